//! The command line: arguments in, an action and flags out.
//!
//! Flags and commands are data: [`FLAGS`] and [`COMMANDS`] hold name, value, description and effect
//! side by side. The parser, `--help`, the manual page, the completions of shells and the test that
//! compares with the README all read these tables.
//!
//! ```
//! use aivtuber_gateway::cli::{self, Action};
//!
//! let invocation = cli::parse(["--check", "--listen", ":9000"]).unwrap();
//! assert_eq!(invocation.action, Action::Check);
//! assert_eq!(invocation.flags.listen, [":9000"]);
//! ```

mod completions;
mod man;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

pub use completions::completions;
pub use man::manual;

use crate::config::{self, Flags};

/// The name of the program, which its messages begin with.
pub const NAME: &str = "aivtuber-gateway";

/// What the program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Run the gateway until a signal stops it.
    Run,
    /// The same, with a stand-in for the AI.
    Demo,
    /// The same, with HTTPS.
    DemoHttps,
    /// Ask a running gateway for its `/health`.
    Healthcheck,
    /// Make a certificate.
    Cert,
    /// Try everything that the gateway depends on.
    Doctor,
    /// Tell the story of a connection or task from a log.
    Explain,
    /// Follow live frames of a running gateway.
    Tap,
    /// Check the configuration.
    Check,
    /// Print the configuration that would be in use.
    PrintConfig,
    /// Print only what differs in it from the defaults.
    PrintChanged,
    /// Print a manual page.
    Man,
    /// Print the completions for a shell.
    Completions,
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// What to do.
    pub action: Action,
    /// The words that follow the command, as many as it takes.
    pub operands: Vec<String>,
    /// Settings that override environment and file.
    pub flags: Flags,
    /// What only some commands take.
    pub options: Options,
}

/// What only some commands take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Print JSON.
    pub json: bool,
    /// What is followed, by the names of `/events/frames`.
    pub filters: Vec<(&'static str, String)>,
}

/// A word without dashes that says what to do.
pub struct Command {
    /// The word.
    pub name: &'static str,
    /// What follows the word.
    pub operands: Operands,
    /// For `--help`.
    pub doc: &'static str,
    action: Action,
}

/// The words that follow a command.
pub struct Operands {
    /// As `--help` shows them; empty if there are none.
    pub shown: &'static str,
    /// Each operand is one of these words; any word if empty.
    pub words: &'static [&'static str],
    count: RangeInclusive<usize>,
}

const NO_OPERANDS: Operands = Operands { shown: "", words: &[], count: 0..=0 };

/// The shells for which there are completions.
pub const SHELLS: &[&str] = &["bash", "zsh", "fish"];

/// The commands, as `--help` lists them.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "demo",
        operands: NO_OPERANDS,
        doc: "run with a small stand-in for the AI behind /ws/input; needs nothing else",
        action: Action::Demo,
    },
    Command {
        name: "healthcheck",
        operands: NO_OPERANDS,
        doc: "ask the running gateway's /health; exit status 0 or 1 (for containers)",
        action: Action::Healthcheck,
    },
    Command {
        name: "cert",
        operands: Operands { shown: "DIR [NAME]...", words: &[], count: 1..=usize::MAX },
        doc: "write a certificate for these names and addresses, or this machine's, to DIR",
        action: Action::Cert,
    },
    Command {
        name: "doctor",
        operands: NO_OPERANDS,
        doc: "try backends, Redis, files, ports and limits for real, and say what to do",
        action: Action::Doctor,
    },
    Command {
        name: "explain",
        operands: Operands { shown: "LOG [NAME]", words: &[], count: 1..=2 },
        doc: "tell from a log what happened to a connection, task or client, or what failed last",
        action: Action::Explain,
    },
    Command {
        name: "tap",
        operands: NO_OPERANDS,
        doc: "follow live frames of the running gateway",
        action: Action::Tap,
    },
    Command {
        name: "man",
        operands: Operands { shown: "[config]", words: &["config"], count: 0..=1 },
        doc: "print the manual page of this program, or of its configuration file",
        action: Action::Man,
    },
    Command {
        name: "completions",
        operands: Operands { shown: "SHELL", words: SHELLS, count: 1..=1 },
        doc: "print the completions for bash, zsh or fish",
        action: Action::Completions,
    },
];

impl Command {
    /// The word with its operands.
    pub fn usage(&self) -> String {
        format!("{} {}", self.name, self.operands.shown).trim_end().to_owned()
    }
}

/// A flag.
pub struct Flag {
    /// Its long name, without dashes.
    pub long: &'static str,
    /// Its short name, if it has one.
    pub short: Option<char>,
    /// For `--help`.
    pub doc: &'static str,
    effect: Effect,
}

enum Effect {
    /// Takes a value, which `--help` calls by this name.
    Value(&'static str, fn(&mut Flags, OsString) -> Result<(), OsString>),
    Action(Action),
    /// Turns this action, which must be on the command line too, into the second one.
    Change(Action, Action),
    /// Sets an option of these commands.
    Option(&'static [Action], fn(&mut Options)),
    /// Takes a value, which `--help` calls by this name, for a filter of `tap`.
    Filter(&'static str),
}

/// The command that takes filters.
const TAP: &[Action] = &[Action::Tap];

/// The commands that can print JSON.
const JSON: &[Action] = &[Action::Doctor, Action::Explain, Action::Tap];

impl Flag {
    /// The name of its value in `--help`, if it takes one.
    pub fn value(&self) -> Option<&'static str> {
        match self.effect {
            Effect::Value(name, _) | Effect::Filter(name) => Some(name),
            Effect::Action(_) | Effect::Change(..) | Effect::Option(..) => None,
        }
    }
}

/// The flags, as `--help` lists them.
pub const FLAGS: &[Flag] = &[
    Flag {
        long: "config",
        short: Some('c'),
        doc: "read the configuration from this file",
        effect: Effect::Value("FILE", |flags, file| {
            flags.config = Some(file.into());
            Ok(())
        }),
    },
    Flag {
        long: "listen",
        short: Some('l'),
        doc: "accept connections on this address, such as 0.0.0.0:8000; repeatable",
        effect: Effect::Value("ADDR", |flags, address| {
            flags.listen.push(address.into_string()?);
            Ok(())
        }),
    },
    Flag {
        long: "redis",
        short: None,
        doc: "take results from this Redis; repeatable, tried in turn",
        effect: Effect::Value("URL", |flags, url| {
            flags.redis.push(url.into_string()?);
            Ok(())
        }),
    },
    Flag {
        long: "log-level",
        short: None,
        doc: "log this level and above: off, error, warn, info, debug or trace",
        effect: Effect::Value("LEVEL", |flags, level| {
            flags.log_level = Some(level.into_string()?);
            Ok(())
        }),
    },
    Flag {
        long: "log-file",
        short: None,
        doc: "write the log to this file instead of standard error",
        effect: Effect::Value("FILE", |flags, file| {
            flags.log_file = Some(file.into_string()?);
            Ok(())
        }),
    },
    Flag {
        long: "https",
        short: None,
        doc: "with demo: HTTPS on port 8443, with a certificate of its own",
        effect: Effect::Change(Action::Demo, Action::DemoHttps),
    },
    Flag {
        long: "check",
        short: None,
        doc: "check the configuration and exit",
        effect: Effect::Action(Action::Check),
    },
    Flag {
        long: "print-config",
        short: None,
        doc: "print the configuration in use, without passwords, and exit",
        effect: Effect::Action(Action::PrintConfig),
    },
    Flag {
        long: "changed",
        short: None,
        doc: "with --print-config: print only what differs from the defaults",
        effect: Effect::Change(Action::PrintConfig, Action::PrintChanged),
    },
    Flag {
        long: "json",
        short: None,
        doc: "with doctor, explain and tap: print JSON, for programs",
        effect: Effect::Option(JSON, |options| options.json = true),
    },
    Flag {
        long: "payload",
        short: None,
        doc: "with tap: payloads too, where allow_tap_payload is set",
        effect: Effect::Option(TAP, |options| options.filters.push(("payload", "true".into()))),
    },
    Flag {
        long: "route",
        short: None,
        doc: "with tap: only connections of this route",
        effect: Effect::Filter("NAME"),
    },
    Flag {
        long: "task",
        short: None,
        doc: "with tap: only those of this task",
        effect: Effect::Filter("TASK"),
    },
    Flag {
        long: "id",
        short: None,
        doc: "with tap: only this connection, such as input_1",
        effect: Effect::Filter("ID"),
    },
    Flag {
        long: "client",
        short: None,
        doc: "with tap: only those of this address, with or without port",
        effect: Effect::Filter("ADDR"),
    },
    Flag {
        long: "version",
        short: Some('V'),
        doc: "print the version and exit",
        effect: Effect::Action(Action::Version),
    },
    Flag {
        long: "help",
        short: Some('h'),
        doc: "print this help and exit",
        effect: Effect::Action(Action::Help),
    },
];

/// Reads the arguments, without the name of the program.
///
/// # Errors
/// One line that says what is wrong and what was probably meant.
pub fn parse<I>(arguments: I) -> Result<Invocation, String>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut flags = Flags::default();
    let mut options = Options::default();
    let mut choice = Choice::default();
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        let option = match argument {
            lexopt::Arg::Value(word) => {
                choice.handle_word(word.to_string_lossy().into_owned())?;
                continue;
            }
            option => option,
        };
        let (shown, flag) = find(&option)?;
        if let Effect::Value(name, set) = flag.effect {
            let value =
                parser.value().map_err(|_| format!("{shown} needs a value: {shown} {name}"))?;
            set(&mut flags, value).map_err(|value| format!("{shown}: {value:?} is not UTF-8"))?;
            continue;
        }
        if let Effect::Filter(name) = flag.effect {
            let value =
                parser.value().map_err(|_| format!("{shown} needs a value: {shown} {name}"))?;
            options.filters.push((flag.long, value.to_string_lossy().into_owned()));
            choice.options.push((shown, TAP));
            continue;
        }
        if parser.optional_value().is_some() {
            return Err(format!("{shown} takes no value"));
        }
        match flag.effect {
            Effect::Value(..) | Effect::Filter(_) => {}
            Effect::Action(action) => choice.set(shown, action)?,
            Effect::Change(from, to) => choice.change = Some((shown, from, to)),
            Effect::Option(actions, set) => {
                set(&mut options);
                choice.options.push((shown, actions));
            }
        }
    }
    let (action, operands) = choice.finish()?;
    Ok(Invocation { action, operands, flags, options })
}

/// What the arguments so far ask for.
#[derive(Default)]
struct Choice {
    /// How it was written, and what it is.
    action: Option<(String, Action)>,
    /// The command, if the action is one.
    command: Option<&'static Command>,
    operands: Vec<String>,
    /// A flag that turns one action into another.
    change: Option<(String, Action, Action)>,
    /// Options, and the actions that take them.
    options: Vec<(String, &'static [Action])>,
}

impl Choice {
    /// A word without dashes: a command, or an operand of the command before it.
    fn handle_word(&mut self, word: String) -> Result<(), String> {
        if let Some(Command { name, operands, .. }) = self.command
            && self.operands.len() < *operands.count.end()
        {
            if !operands.words.is_empty() && !operands.words.contains(&word.as_str()) {
                let hint = config::did_you_mean(&word, operands.words.iter().copied());
                let known = operands.words.join(", ");
                return Err(format!("{name}: unknown word {word:?}, expected {known}{hint}"));
            }
            self.operands.push(word);
            return Ok(());
        }
        let command = COMMANDS.iter().find(|command| command.name == word).ok_or_else(|| {
            let hint = config::did_you_mean(&word, COMMANDS.iter().map(|command| command.name));
            format!("unknown command {word:?}{}", hint_or(&hint))
        })?;
        self.set(word, command.action)?;
        self.command = Some(command);
        Ok(())
    }

    fn set(&mut self, word: String, action: Action) -> Result<(), String> {
        self.action = Some(match self.action.take() {
            None => (word, action),
            // Help wins over everything else.
            Some(before) if before.1 == Action::Help || before.1 == action => before,
            Some(_) if action == Action::Help => (word, action),
            Some((before, _)) => return Err(format!("{before} and {word} cannot be combined")),
        });
        Ok(())
    }

    fn finish(self) -> Result<(Action, Vec<String>), String> {
        let action = self.action.map_or(Action::Run, |(_, action)| action);
        if action == Action::Help {
            return Ok((action, self.operands));
        }
        if let Some(Command { name, operands, .. }) = self.command
            && self.operands.len() < *operands.count.start()
        {
            return Err(format!("{name} needs more: {name} {}", operands.shown));
        }
        if let Some((shown, actions)) =
            self.options.iter().find(|(_, takes)| !takes.contains(&action))
        {
            let takes = COMMANDS.iter().filter(|command| actions.contains(&command.action));
            let takes: Vec<_> = takes.map(|command| command.name).collect();
            return Err(format!("{shown} has no effect without {}", takes.join(" or ")));
        }
        match self.change {
            None => Ok((action, self.operands)),
            Some((_, from, to)) if from == action => Ok((to, self.operands)),
            Some((shown, from, _)) => {
                Err(format!("{shown} has no effect without {}", how_to_ask(from)))
            }
        }
    }
}

/// The flag or the command that asks for `wanted`.
fn how_to_ask(wanted: Action) -> String {
    let flag =
        FLAGS.iter().find(|flag| matches!(flag.effect, Effect::Action(action) if action == wanted));
    let command = COMMANDS.iter().find(|command| command.action == wanted);
    flag.map(|flag| format!("--{}", flag.long))
        .or_else(|| command.map(|command| command.name.to_owned()))
        .unwrap_or_default()
}

/// What `--help` prints.
pub fn help() -> String {
    let mut text = format!(
        "One port in front of an AI-VTuber back end: relays WebSockets, delivers results, shows their state.\n\n\
         Usage: {NAME} [COMMAND] [FLAGS]\n\nCommands:\n"
    );
    for command in COMMANDS {
        push_row(&mut text, &command.usage(), command.doc);
    }
    push_row(&mut text, "(none)", "run the gateway");
    text.push_str("\nFlags:\n");
    for flag in FLAGS {
        let short = flag.short.map_or("    ".into(), |short| format!("-{short}, "));
        let value = flag.value().map_or(String::new(), |value| format!(" {value}"));
        push_row(&mut text, &format!("{short}--{}{value}", flag.long), flag.doc);
    }
    text.push_str("\nEnvironment:\n");
    for variable in config::ENVIRONMENT {
        push_row(&mut text, variable.name, variable.doc);
    }
    let [here, system] = config::SEARCHED;
    let _ = write!(
        text,
        "\nWithout --config: ./{here}, then {system}, then the defaults.\n\
         Flags override the environment, the environment overrides the file.\n"
    );
    text
}

/// What `--version` prints.
pub fn version() -> String {
    format!("{NAME} {}\n", env!("CARGO_PKG_VERSION"))
}

fn push_row(text: &mut String, name: &str, doc: &str) {
    let _ = writeln!(text, "  {name:<23} {doc}");
}

/// The flag, and how it was written on the command line.
fn find(option: &lexopt::Arg<'_>) -> Result<(String, &'static Flag), String> {
    match option {
        lexopt::Arg::Short(short) => {
            let flag = FLAGS.iter().find(|flag| flag.short == Some(*short));
            flag.map(|flag| (format!("-{short}"), flag))
                .ok_or_else(|| format!("unknown flag -{short}{}", hint_or("")))
        }
        lexopt::Arg::Long(long) => {
            let flag = FLAGS.iter().find(|flag| flag.long == *long);
            flag.map(|flag| (format!("--{long}"), flag)).ok_or_else(|| {
                let hint = match config::nearest(long, FLAGS.iter().map(|flag| flag.long)) {
                    Some(near) => format!(", did you mean `--{near}`?"),
                    None => String::new(),
                };
                format!("unknown flag --{long}{}", hint_or(&hint))
            })
        }
        lexopt::Arg::Value(word) => Err(format!("unexpected {word:?}")),
    }
}

fn hint_or(hint: &str) -> &str {
    if hint.is_empty() { "; --help lists what there is" } else { hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, String> {
        parse(line.split_whitespace())
    }

    fn action(line: &str) -> Action {
        parsed(line).unwrap().action
    }

    #[test]
    fn values_are_read_in_every_notation() {
        let flags = Flags {
            config: Some("x.toml".into()),
            listen: vec![":1".into(), ":2".into()],
            redis: vec!["redis://a".into()],
            log_level: Some("debug".into()),
            log_file: Some("y.log".into()),
            ..Flags::default()
        };
        for line in [
            "-c x.toml -l :1 -l :2 --redis redis://a --log-level debug --log-file y.log",
            "-cx.toml -l:1 -l=:2 --redis=redis://a --log-level=debug --log-file=y.log",
            "--config x.toml --listen :1 --listen=:2 --redis redis://a --log-level debug --log-file y.log",
        ] {
            assert_eq!(
                parsed(line),
                Ok(Invocation {
                    action: Action::Run,
                    operands: vec![],
                    flags: flags.clone(),
                    options: Options::default(),
                }),
                "{line}"
            );
        }
    }

    #[test]
    fn every_flag_of_the_table_is_understood() {
        for flag in FLAGS {
            let value = flag.value().map_or("", |_| " value");
            let before = match flag.effect {
                Effect::Change(needed, _) => format!("{} ", how_to_ask(needed)),
                Effect::Option(..) | Effect::Filter(_) => "tap ".into(),
                _ => String::new(),
            };
            let long = parsed(&format!("{before}--{}{value}", flag.long))
                .unwrap_or_else(|why| panic!("{why}"));
            assert_ne!(long, parsed(&before).unwrap(), "--{} has no effect", flag.long);
            if let Some(short) = flag.short {
                assert_eq!(parsed(&format!("-{short}{value}")), Ok(long));
            }
        }
    }

    #[test]
    fn actions() {
        assert_eq!(action(""), Action::Run);
        assert_eq!(action("demo"), Action::Demo);
        assert_eq!(action("demo --https"), Action::DemoHttps);
        assert_eq!(action("cert ."), Action::Cert);
        assert_eq!(action("healthcheck -l :1"), Action::Healthcheck);
        assert_eq!(action("-l :1 healthcheck"), Action::Healthcheck);
        assert_eq!(action("--check --check"), Action::Check);
        assert_eq!(action("demo --help"), Action::Help);
        assert_eq!(action("--help demo"), Action::Help);
        assert_eq!(action("-V"), Action::Version);
        assert_eq!(action("--print-config"), Action::PrintConfig);
        assert_eq!(action("--print-config --changed"), Action::PrintChanged);
        assert_eq!(action("--changed --print-config"), Action::PrintChanged);
        assert_eq!(action("man"), Action::Man);
        assert_eq!(action("--changed --help"), Action::Help);
        assert_eq!(action("completions --help"), Action::Help);
        assert_eq!(action("doctor"), Action::Doctor);
        assert!(parsed("--json doctor").unwrap().options.json);
    }

    #[test]
    fn commands_take_the_words_after_them() {
        let operands = |line| parsed(line).unwrap().operands;
        assert_eq!(operands("man"), [""; 0]);
        assert_eq!(operands("man config"), ["config"]);
        assert_eq!(operands("completions fish"), ["fish"]);
        assert_eq!(
            operands("cert certs a.example demo ::1"),
            ["certs", "a.example", "demo", "::1"]
        );
        assert_eq!(operands("completions -c x zsh"), ["zsh"]);
    }

    #[test]
    fn bad_usage_is_one_line_with_the_nearest_word() {
        for (line, why) in [
            ("--lisen :1", "unknown flag --lisen, did you mean `--listen`?"),
            ("--loglevel x", "unknown flag --loglevel, did you mean `--log-level`?"),
            ("--banana", "unknown flag --banana; --help lists what there is"),
            ("-x", "unknown flag -x; --help lists what there is"),
            ("demmo", "unknown command \"demmo\", did you mean `demo`?"),
            ("start", "unknown command \"start\"; --help lists what there is"),
            ("--config", "--config needs a value: --config FILE"),
            ("-l", "-l needs a value: -l ADDR"),
            ("--check=yes", "--check takes no value"),
            ("demo --check", "demo and --check cannot be combined"),
            ("demo healthcheck", "demo and healthcheck cannot be combined"),
            ("completions", "completions needs more: completions SHELL"),
            (
                "completions fisch",
                "completions: unknown word \"fisch\", expected bash, zsh, fish, did you mean `fish`?",
            ),
            ("completions bash demo", "completions and demo cannot be combined"),
            ("man demo", "man: unknown word \"demo\", expected config"),
            ("cert", "cert needs more: cert DIR [NAME]..."),
            ("--https", "--https has no effect without demo"),
            ("--changed", "--changed has no effect without --print-config"),
            ("--json", "--json has no effect without doctor or explain or tap"),
            ("demo --json", "--json has no effect without doctor or explain or tap"),
            ("--route x doctor", "--route has no effect without tap"),
            ("--check --changed", "--changed has no effect without --print-config"),
        ] {
            assert_eq!(parsed(line), Err(why.into()));
        }
    }

    #[test]
    fn help_lists_everything_and_fits_a_terminal() {
        let help = help();
        for flag in FLAGS {
            assert!(
                help.contains(&format!("--{}", flag.long)) && help.contains(flag.doc),
                "--{}",
                flag.long
            );
        }
        for (name, doc) in COMMANDS.iter().map(|command| (command.name, command.doc)) {
            assert!(help.contains(name) && help.contains(doc), "{name}");
        }
        for variable in config::ENVIRONMENT {
            assert!(help.contains(variable.name), "{}", variable.name);
        }
        for line in help.lines() {
            assert!(line.chars().count() <= 108, "{line}");
        }
    }
}
