//! Completions for shells, made from the tables of flags and commands.

use std::fmt::Write as _;

use super::{COMMANDS, Command, FLAGS, Flag, NAME};
use crate::config;

/// What completes the value of a flag, or the first operand of a command.
enum Values {
    /// Nothing: the value is free text.
    Free,
    /// The names of files.
    Files,
    /// The names of folders.
    Folders,
    /// One of these words.
    Words(Vec<&'static str>),
}

/// The completions for `shell`, as a script that the shell reads; `None` for an unknown shell.
pub fn completions(shell: &str) -> Option<String> {
    match shell {
        "bash" => Some(bash()),
        "zsh" => Some(zsh()),
        "fish" => Some(fish()),
        _ => None,
    }
}

impl Command {
    fn first_operand(&self) -> Values {
        match (self.operands.words, self.operands.shown) {
            ([], shown) if shown.starts_with("DIR") => Values::Folders,
            ([], _) => Values::Free,
            (words, _) => Values::Words(words.to_vec()),
        }
    }
}

impl Flag {
    fn values(&self) -> Values {
        match self.value() {
            Some("FILE" | "LOG") => Values::Files,
            Some("LEVEL") => Values::Words(config::log_levels().collect()),
            _ => Values::Free,
        }
    }
}

/// Bash: one function. `--flag=value` reaches it as three words.
fn bash() -> String {
    let mut values = String::new();
    for flag in FLAGS.iter().filter(|flag| flag.value().is_some()) {
        let short = flag.short.map_or(String::new(), |short| format!("-{short} | "));
        let complete = match flag.values() {
            Values::Free => "return",
            Values::Files | Values::Folders => {
                "compopt -o filenames 2> /dev/null\n            \
                 mapfile -t COMPREPLY < <(compgen -f -- \"$current\")\n            return"
            }
            Values::Words(words) => &format!(
                "mapfile -t COMPREPLY < <(compgen -W \"{}\" -- \"$current\")\n            return",
                words.join(" ")
            ),
        };
        let _ = writeln!(
            values,
            "        {short}--{})\n            {complete}\n            ;;",
            flag.long
        );
    }
    let mut operands = String::new();
    for command in COMMANDS {
        let complete = match command.first_operand() {
            Values::Free => continue,
            Values::Files | Values::Folders => {
                "compopt -o filenames 2> /dev/null\n            \
                 mapfile -t COMPREPLY < <(compgen -d -- \"$current\")\n            return\n            ;;"
            }
            Values::Words(words) => &format!("words=\"{}\" ;;", words.join(" ")),
        };
        let _ = writeln!(operands, "        {}) {complete}", command.name);
    }
    let commands = names().collect::<Vec<_>>();
    let flags = FLAGS.iter().flat_map(|flag| {
        let short = flag.short.map(|short| format!("-{short}"));
        [Some(format!("--{}", flag.long)), short].into_iter().flatten()
    });
    let flags = flags.collect::<Vec<_>>().join(" ");
    format!(
        r#"# bash completion for {NAME}

_aivtuber_gateway() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}}
    if [[ $current == = ]]; then
        current=
    elif [[ $previous == = ]]; then
        previous=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    COMPREPLY=()
    case $previous in
{values}    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "{flags}" -- "$current")
        return
    fi
    local word command=
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD - 1}}"; do
        case $word in
            {patterns})
                command=$word
                break
                ;;
        esac
    done
    local words=
    case $command in
        "") words="{words}" ;;
{operands}    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}

complete -F _aivtuber_gateway {NAME}
"#,
        patterns = commands.join(" | "),
        words = commands.join(" "),
    )
}

/// Zsh: a function to be autoloaded from `$fpath`, which may also be sourced.
fn zsh() -> String {
    let mut flags = String::new();
    for flag in FLAGS {
        let doc = zsh_quoted(flag.doc);
        let value = match (flag.value(), flag.values()) {
            (None, _) => String::new(),
            (Some(name), Values::Free) => format!(":{name}: "),
            (Some(name), Values::Files | Values::Folders) => format!(":{name}:_files"),
            (Some(name), Values::Words(words)) => format!(":{name}:({})", words.join(" ")),
        };
        let (long_end, short_end) = if value.is_empty() { ("", "") } else { ("=", "+") };
        let repeat = if flag.doc.contains("repeatable") { "*" } else { "" };
        let long = format!("--{}{long_end}", flag.long);
        let short = flag.short.map(|short| format!("-{short}{short_end}"));
        for name in std::iter::once(long).chain(short) {
            let _ = writeln!(flags, "        '{repeat}{name}[{doc}]{value}' \\");
        }
    }
    let mut commands = String::new();
    for command in COMMANDS {
        let _ = writeln!(commands, "        '{}:{}'", command.name, zsh_quoted(command.doc));
    }
    let mut operands = String::new();
    for command in COMMANDS {
        let complete = match command.first_operand() {
            Values::Free => continue,
            Values::Files | Values::Folders => "_files -/".to_owned(),
            Values::Words(words) => format!("compadd -- {}", words.join(" ")),
        };
        let _ = writeln!(operands, "            {}) {complete} ;;", command.name);
    }
    format!(
        r#"#compdef {NAME}

_aivtuber_gateway() {{
    local state line
    local -a commands=(
{commands}    )
    _arguments -s -S -C \
{flags}        '1: :->command' \
        '*: :->operand'
    case $state in
        command) _describe command commands ;;
        operand) case $line[1] in
{operands}        esac ;;
    esac
}}

if [[ $funcstack[1] == _{NAME} ]]; then
    _aivtuber_gateway "$@"
else
    compdef _aivtuber_gateway {NAME}
fi
"#
    )
}

/// The text inside a quoted description of `_arguments`.
fn zsh_quoted(text: &str) -> String {
    let mut quoted = String::new();
    for c in text.chars() {
        match c {
            '\'' => quoted.push_str("'\\''"),
            '[' | ']' | ':' | '\\' => quoted.extend(['\\', c]),
            c => quoted.push(c),
        }
    }
    quoted
}

/// Fish: one line for each flag, command and operand.
fn fish() -> String {
    let all = names().collect::<Vec<_>>().join(" ");
    let mut text = format!("# fish completion for {NAME}\n\ncomplete -c {NAME} -f\n");
    for flag in FLAGS {
        let short = flag.short.map_or(String::new(), |short| format!(" -s {short}"));
        let value = match (flag.value(), flag.values()) {
            (None, _) => String::new(),
            (Some(_), Values::Free) => " -x".into(),
            (Some(_), Values::Files | Values::Folders) => " -r -F".into(),
            (Some(_), Values::Words(words)) => format!(" -x -a '{}'", words.join(" ")),
        };
        let doc = fish_quoted(flag.doc);
        let _ = writeln!(text, "complete -c {NAME}{short} -l {}{value} -d {doc}", flag.long);
    }
    for command in COMMANDS {
        let (name, doc) = (command.name, fish_quoted(command.doc));
        let _ = writeln!(
            text,
            "complete -c {NAME} -n 'not __fish_seen_subcommand_from {all}' -a {name} -d {doc}"
        );
        let complete = match command.first_operand() {
            Values::Free => continue,
            Values::Files | Values::Folders => "'(__fish_complete_directories)'".to_owned(),
            Values::Words(words) => format!("'{}'", words.join(" ")),
        };
        let _ = writeln!(
            text,
            "complete -c {NAME} -n '__fish_seen_subcommand_from {name}' -a {complete}"
        );
    }
    text
}

fn fish_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|command| command.name)
}

#[cfg(test)]
mod tests {
    use super::super::SHELLS;
    use super::*;

    #[test]
    fn every_shell_completes_every_flag_and_command() {
        for shell in SHELLS {
            let script = completions(shell).unwrap();
            for name in FLAGS.iter().map(|flag| flag.long).chain(names()) {
                assert!(script.contains(name), "{shell} lacks {name}");
            }
            for word in ["off", "trace"].into_iter().chain(SHELLS.iter().copied()) {
                assert!(script.contains(word), "{shell} lacks {word}");
            }
        }
        assert_eq!(completions("ksh"), None);
    }

    #[test]
    fn descriptions_are_quoted() {
        assert_eq!(zsh_quoted("it's [a]: b\\"), "it'\\''s \\[a\\]\\: b\\\\");
        assert_eq!(fish_quoted("it's \\"), "'it\\'s \\\\'");
    }
}
