//! The manual pages, made from the tables of flags, commands and variables, and from the comments
//! of `config.toml`. Their source is `man(7)`, which mandoc and groff read.

use std::fmt::Write as _;

use super::{COMMANDS, FLAGS, NAME};
use crate::config;

/// When the words of the pages last changed.
const DATE: &str = "2026-11-26";

/// The longest line of a page's source that mandoc likes.
const COLUMNS_MAX: usize = 78;

/// The page `aivtuber-gateway.toml(5)` for `config`, else `aivtuber-gateway(1)`.
pub fn manual(page: Option<&str>) -> String {
    if page == Some("config") { of_config() } else { of_program() }
}

fn of_program() -> String {
    let mut page = Page::new(NAME, 1, "User Commands");
    page.heading("NAME");
    page.raw(&format!("{} \\- one port in front of an AI\\-VTuber back end", escaped(NAME)));
    page.heading("SYNOPSIS");
    page.raw(&format!(".B {}\n[\\fICOMMAND\\fR] [\\fIFLAGS\\fR]", escaped(NAME)));
    page.heading("DESCRIPTION");
    page.text(
        "Browsers open their WebSockets at this gateway. Their input is relayed to the AI; its \
         answers, text and voice, are delivered from wherever a worker publishes them. The \
         gateway stays in the foreground and logs to standard error. It needs no configuration \
         file; see `aivtuber-gateway.toml`(5) for what can be set.",
    );
    page.heading("COMMANDS");
    for command in COMMANDS {
        page.item(&command.usage(), &sentence(command.doc));
    }
    page.paragraph();
    page.text("Without a command, the gateway runs until a signal stops it.");
    page.heading("OPTIONS");
    for flag in FLAGS {
        let short = flag.short.map_or(String::new(), |short| format!("-{short}, "));
        let value = flag.value().map_or(String::new(), |value| format!(" {value}"));
        page.item(&format!("{short}--{}{value}", flag.long), &sentence(flag.doc));
    }
    page.heading("ENVIRONMENT");
    page.text("Flags override the environment, and the environment overrides the file.");
    for variable in config::ENVIRONMENT {
        page.item(variable.name, &sentence(variable.doc));
    }
    page.heading("FILES");
    let [here, system] = config::SEARCHED;
    page.item(&format!("./{here}"), "The configuration, if no flag names another file.");
    page.item(system, "The configuration, if that file does not exist.");
    page.heading("SIGNALS");
    for (signals, effect) in [
        (
            "TERM, INT",
            "Drain: stop listening, let messages in flight finish, close WebSockets with 1012, at \
             the latest after `drain_timeout`. A second one stops at once.",
        ),
        (
            "HUP",
            "Read the configuration again and reopen the log file. A wrong configuration is \
             logged, and the running one stays. Open connections stay.",
        ),
        ("USR1", "Reopen the log file."),
    ] {
        page.item(signals, effect);
    }
    page.heading("EXIT STATUS");
    for (status, meaning) in [
        ("0", "A clean stop."),
        ("1", "Anything else, such as an address that cannot be listened on."),
        ("2", "Wrong usage or configuration."),
    ] {
        page.item(status, meaning);
    }
    page.heading("EXAMPLES");
    page.text("Try it, with a stand-in for the AI; then open http://localhost:8000/:");
    page.example("aivtuber-gateway demo");
    page.paragraph();
    page.text("Run it in front of a back end:");
    page.example("INPUT_HANDLER_URL=ws://localhost:8001 aivtuber-gateway --listen :8000");
    page.paragraph();
    page.text("See what a configuration file changes:");
    page.example("aivtuber-gateway -c new.toml --print-config --changed");
    page.heading("SEE ALSO");
    page.raw(".BR aivtuber\\-gateway.toml (5)");
    page.source
}

fn of_config() -> String {
    let name = format!("{NAME}.toml");
    let mut page = Page::new(&name, 5, "File Formats");
    page.heading("NAME");
    page.raw(&format!("{} \\- configuration of {}(1)", escaped(&name), escaped(NAME)));
    page.heading("DESCRIPTION");
    let [here, system] = config::SEARCHED;
    page.text(&format!(
        "The gateway reads `./{here}`, else `{system}`, or the file that `--config` names. It is \
         TOML. Every key is optional and shown here with its default."
    ));
    page.paragraph();
    page.text(
        "Durations are written \"500ms\", \"10s\", \"5m\" or \"1h\"; \"0s\" switches a timeout \
         off. Sizes are written \"64KiB\", \"16MiB\", \"10MB\" or as a number of bytes. On a HUP \
         signal, a running gateway reads the file again. Keys marked (restart) need a restart.",
    );
    for entry in config::entries() {
        match (entry.section.as_str(), entry.key.as_str()) {
            ("route", "") => {
                page.heading("[[route]]");
                page.text(&entry.doc);
            }
            (section, "") => {
                page.heading(&format!("[{section}]"));
                page.text(&entry.doc);
            }
            ("route", key) => page.item(key, &entry.doc),
            (_, key) => page.item(&format!("{key} = {}", entry.default), &entry.doc),
        }
    }
    page.heading("SEE ALSO");
    page.raw(".BR aivtuber\\-gateway (1)");
    page.source
}

/// The source of a page while it is written.
struct Page {
    source: String,
}

impl Page {
    fn new(name: &str, section: u8, volume: &str) -> Page {
        let title = escaped(&name.to_uppercase());
        let version = env!("CARGO_PKG_VERSION");
        let source = format!(".TH {title} {section} {DATE} \"{NAME} {version}\" \"{volume}\"\n");
        Page { source }
    }

    fn heading(&mut self, words: &str) {
        let _ = writeln!(self.source, ".SH \"{}\"", escaped(words));
    }

    fn paragraph(&mut self) {
        self.source.push_str(".PP\n");
    }

    /// A term and what it means.
    fn item(&mut self, term: &str, meaning: &str) {
        let _ = writeln!(self.source, ".TP\n\\fB{}\\fR", escaped(term));
        self.text(meaning);
    }

    /// A command to be copied.
    fn example(&mut self, command: &str) {
        let _ = writeln!(self.source, ".PP\n.RS 4\n.nf\n{}\n.fi\n.RE", escaped(command));
    }

    /// Words in lines that are short enough. What is between backquotes becomes bold.
    fn text(&mut self, words: &str) {
        let mut line = String::new();
        let mut is_bold = false;
        for word in words.split_whitespace() {
            let mut shown = String::new();
            for (at, part) in word.split('`').enumerate() {
                if at > 0 {
                    is_bold = !is_bold;
                    shown.push_str(if is_bold { "\\fB" } else { "\\fR" });
                }
                shown.push_str(&escaped(part));
            }
            if !line.is_empty() && line.len() + 1 + shown.len() > COLUMNS_MAX {
                self.raw(&line);
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            } else if shown.starts_with(['.', '\'']) {
                // Else it would be a request.
                line.push_str("\\&");
            }
            line.push_str(&shown);
        }
        self.raw(&line);
    }

    fn raw(&mut self, line: &str) {
        let _ = writeln!(self.source, "{line}");
    }
}

/// The text without a meaning for the formatter.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '"' => escaped.push_str("\\(dq"),
            c if c.is_ascii() => escaped.push(c),
            c => {
                let _ = write!(escaped, "\\[u{:04X}]", u32::from(c));
            }
        }
    }
    escaped
}

/// A phrase of `--help` as a sentence.
fn sentence(phrase: &str) -> String {
    let mut letters = phrase.chars();
    letters.next().map_or(String::new(), |first| {
        first.to_uppercase().chain(letters).chain(std::iter::once('.')).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_name_everything() {
        let page = manual(None);
        for name in FLAGS.iter().map(|flag| flag.long).chain(COMMANDS.iter().map(|one| one.name)) {
            assert!(page.contains(&escaped(name)), "{name}");
        }
        for variable in config::ENVIRONMENT {
            assert!(page.contains(variable.name), "{}", variable.name);
        }
        let page = manual(Some("config"));
        for section in config::SECTIONS {
            assert!(page.contains(&format!(".SH \"[{}]\"", section.name)), "[{}]", section.name);
            for key in section.keys {
                assert!(page.contains(&format!("\n\\fB{} = ", key.name)), "{}", key.name);
            }
        }
    }

    #[test]
    fn text_is_escaped_and_wrapped() {
        let mut page = Page { source: String::new() };
        page.text(&format!("a-b \\ \"c\" `d e`… {} .f 'g", "x".repeat(70)));
        assert_eq!(
            page.source,
            format!("a\\-b \\e \\(dqc\\(dq \\fBd e\\fR\\[u2026]\n{} .f 'g\n", "x".repeat(70))
        );
        let mut page = Page { source: String::new() };
        page.text(&format!("{} .f", "x".repeat(77)));
        assert_eq!(page.source, format!("{}\n\\&.f\n", "x".repeat(77)));
    }
}
