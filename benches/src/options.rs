//! The command line of `benches/compare`.

use crate::Fault;
use lexopt::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;

pub const HELP: &str = "\
benches/compare: the gateway side by side with floors and peers, in Markdown on standard output

  --quick            the floors, HAProxy and the gateway, short rounds: under 3 minutes
  --only ROW         just this row; may be given several times (--list names them)
  --targets A,B      just these targets, where a row has them (--list names them)
  --rounds N         rounds of each row, A B C A B C (default 8; with --quick 2)
  --seconds S        measured time of each run (default 1; with --quick 0.3)
  --gateway FILE     the gateway's binary (default: target/release/aivtuber-gateway)
  --versus FILE      another build of the gateway, as the target `versus`
  --markdown FILE    also write everything to FILE
  --awake            keep the cores from being halted in every row: wakes cost less and vary less
  --no-strace        do not count system calls
  --list             name rows and targets, measure nothing
  -h, --help         this text
";

#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub quick: bool,
    /// Empty: every row.
    pub only: Vec<String>,
    /// Empty: every target.
    pub targets: Vec<String>,
    pub rounds: usize,
    /// Measured seconds of one run.
    pub seconds: f64,
    pub gateway: Option<PathBuf>,
    pub versus: Option<PathBuf>,
    pub markdown: Option<PathBuf>,
    pub awake: bool,
    pub strace: bool,
    pub list: bool,
    pub help: bool,
}

impl Options {
    /// Reads the arguments behind the program's name; errors name the argument and what is allowed.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Options, Fault> {
        let mut parser = lexopt::Parser::from_args(arguments);
        let (mut rounds, mut seconds) = (None, None);
        let mut options = Options {
            quick: false,
            only: Vec::new(),
            targets: Vec::new(),
            rounds: 0,
            seconds: 0.0,
            gateway: None,
            versus: None,
            markdown: None,
            awake: false,
            strace: true,
            list: false,
            help: false,
        };
        while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
            match argument {
                Long("quick") => options.quick = true,
                Long("only") => options.only.extend(words(&mut parser)?),
                Long("targets") => options.targets.extend(words(&mut parser)?),
                Long("rounds") => {
                    rounds = Some(number(&mut parser, "--rounds", 1.0, 1000.0)? as usize)
                }
                Long("seconds") => seconds = Some(number(&mut parser, "--seconds", 0.05, 60.0)?),
                Long("gateway") => options.gateway = Some(path(&mut parser)?),
                Long("versus") => options.versus = Some(path(&mut parser)?),
                Long("markdown") => options.markdown = Some(path(&mut parser)?),
                Long("awake") => options.awake = true,
                Long("no-strace") => options.strace = false,
                Long("list") => options.list = true,
                Short('h') | Long("help") => options.help = true,
                other => return Err(format!("{}\n\n{HELP}", other.unexpected())),
            }
        }
        options.rounds = rounds.unwrap_or(if options.quick { 2 } else { 8 });
        options.seconds = seconds.unwrap_or(if options.quick { 0.3 } else { 1.0 });
        Ok(options)
    }

    /// Whether a row was asked for: by its name, or as one of all, of which a quick run has those
    /// that are quick.
    pub fn wants_row(&self, row: &str, is_quick: bool) -> bool {
        if self.only.is_empty() {
            is_quick || !self.quick
        } else {
            self.only.iter().any(|name| name == row)
        }
    }

    /// Whether a target was asked for.
    pub fn wants_target(&self, target: &str) -> bool {
        self.targets.is_empty() || self.targets.iter().any(|name| name == target)
    }
}

fn words(parser: &mut lexopt::Parser) -> Result<Vec<String>, Fault> {
    let value =
        parser.value().and_then(|value| value.string()).map_err(|error| error.to_string())?;
    Ok(value.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

fn path(parser: &mut lexopt::Parser) -> Result<PathBuf, Fault> {
    parser.value().map(PathBuf::from).map_err(|error| error.to_string())
}

fn number(parser: &mut lexopt::Parser, flag: &str, least: f64, most: f64) -> Result<f64, Fault> {
    let value =
        parser.value().and_then(|value| value.string()).map_err(|error| error.to_string())?;
    let number = value.parse::<f64>().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{flag} {value}: a number from {least} to {most} is allowed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, Fault> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_defaults_depend_on_quick_and_flags_win() {
        assert_eq!((parse("").unwrap().rounds, parse("").unwrap().seconds), (8, 1.0));
        assert_eq!((parse("--quick").unwrap().rounds, parse("--quick").unwrap().seconds), (2, 0.3));
        assert_eq!(parse("--rounds 5 --quick").unwrap().rounds, 5);
        assert!(!parse("--no-strace").unwrap().strace);
        assert!(parse("--awake").unwrap().awake && !parse("").unwrap().awake);
    }

    #[test]
    fn rows_and_targets_are_lists() {
        let options = parse("--only a --only b,c --targets pipe,gateway").unwrap();
        assert_eq!(options.only, ["a", "b", "c"]);
        assert!(options.wants_row("c", true) && !options.wants_row("d", true));
        assert!(options.wants_target("pipe") && !options.wants_target("nginx"));
        assert!(
            parse("").unwrap().wants_row("anything", true)
                && parse("").unwrap().wants_target("anything")
        );
    }

    #[test]
    fn a_quick_run_has_its_own_rows_and_those_that_are_named() {
        assert!(parse("").unwrap().wants_row("long", false));
        assert!(!parse("--quick").unwrap().wants_row("long", false));
        assert!(parse("--quick").unwrap().wants_row("short", true));
        assert!(parse("--quick --only long").unwrap().wants_row("long", false));
        assert!(!parse("--quick --only long").unwrap().wants_row("short", true));
    }

    #[test]
    fn faults_name_the_argument_and_what_is_allowed() {
        assert!(parse("--rounds 0").unwrap_err().contains("--rounds 0: a number from 1 to 1000"));
        assert!(parse("--rounds many").unwrap_err().contains("many"));
        assert!(parse("--round 3").unwrap_err().contains("--round"));
        assert!(parse("stray").unwrap_err().contains("stray"));
        assert!(parse("--only").is_err());
    }

    #[test]
    fn every_flag_is_in_the_help() {
        for flag in [
            "quick",
            "only",
            "targets",
            "rounds",
            "seconds",
            "gateway",
            "versus",
            "markdown",
            "no-strace",
            "list",
            "help",
        ] {
            assert!(HELP.contains(&format!("--{flag} ")), "{flag}");
        }
    }
}
