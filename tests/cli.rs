//! The command line as people and scripts use it, without running a gateway: output and exit
//! status.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A folder for one test, removed afterwards. The binary runs in it, so that no other `config.toml`
/// is read.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("gateway-cli-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, text: &str) -> &Folder {
        fs::write(self.0.join(name), text).unwrap();
        self
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with(&[], arguments)
    }

    fn run_with(&self, env: &[(&str, &str)], arguments: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aivtuber-gateway"));
        command.current_dir(&self.0).args(arguments).stdin(Stdio::null());
        for variable in aivtuber_gateway::config::ENVIRONMENT {
            command.env_remove(variable.name);
        }
        command.envs(env.iter().copied());
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { status: status.code().unwrap(), stdout: text(stdout), stderr: text(stderr) }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug)]
struct Ended {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// Exit status 2, nothing on standard output, and this on standard error.
    fn refused_with(self, stderr: &str) {
        assert_eq!((self.status, self.stdout.as_str(), self.stderr.as_str()), (2, "", stderr));
    }

    fn printed(self) -> String {
        assert_eq!((self.status, self.stderr.as_str()), (0, ""));
        self.stdout
    }
}

#[test]
fn help_and_version_work_with_a_broken_file() {
    let folder = Folder::new("help");
    folder.write("config.toml", "this is not TOML");
    for flag in ["--help", "-h"] {
        assert!(
            folder.run(&[flag]).printed().contains("Usage: aivtuber-gateway [COMMAND] [FLAGS]")
        );
    }
    for flag in ["--version", "-V"] {
        assert_eq!(
            folder.run(&[flag]).printed(),
            format!("aivtuber-gateway {}\n", env!("CARGO_PKG_VERSION"))
        );
    }
}

#[test]
fn bad_usage_is_one_line_and_status_2() {
    let folder = Folder::new("usage");
    folder
        .run(&["--lisen", ":1"])
        .refused_with("aivtuber-gateway: unknown flag --lisen, did you mean `--listen`?\n");
    folder.run(&["-c"]).refused_with("aivtuber-gateway: -c needs a value: -c FILE\n");
    folder.run(&["helthcheck"]).refused_with(
        "aivtuber-gateway: unknown command \"helthcheck\", did you mean `healthcheck`?\n",
    );
    folder.run(&["--listen", "nonsense", "--check"]).refused_with(
        "aivtuber-gateway: --listen: \"nonsense\" is not an address with a port; expected \"0.0.0.0:8000\", \
         \"[::]:8000\", \"localhost:8000\" or \":8000\"\n",
    );
}

#[test]
fn problems_of_a_file_are_reported_with_file_line_key_and_nearest_name() {
    let folder = Folder::new("wrong");
    folder.write("config.toml", "[server]\nlistn = \"0.0.0.0:8000\"\n\n[log]\nlevel = \"inf\"\n");
    let expected = "aivtuber-gateway: config.toml:2: server.listn: unknown key, did you mean `listen`?\n\
                    aivtuber-gateway: config.toml:5: log.level: \"inf\" is unknown, expected one of \"off\", \"error\", \"warn\", \"info\", \
                    \"debug\", \"trace\", did you mean `info`?\n";
    for arguments in [&["--check"][..], &["--print-config"], &[], &["demo"], &["healthcheck"]] {
        folder.run(arguments).refused_with(expected);
    }
    folder.write("other.toml", "[server\n");
    let other = folder.run(&["--config", "other.toml"]);
    assert_eq!(other.status, 2);
    assert!(
        other.stderr.starts_with("aivtuber-gateway: other.toml:1: not TOML: "),
        "{}",
        other.stderr
    );
    folder.run(&["-c", "none.toml"]).refused_with(
        "aivtuber-gateway: none.toml: cannot be read: No such file or directory (os error 2)\n",
    );
}

#[test]
fn check_names_the_file() {
    let folder = Folder::new("check");
    folder.write("other.toml", "[server]\nlisten = \"127.0.0.1:1\"\n");
    assert_eq!(
        folder.run(&["--check", "-c", "other.toml"]).printed(),
        "The configuration is valid (other.toml).\n"
    );
    folder.write("config.toml", "");
    assert_eq!(folder.run(&["--check"]).printed(), "The configuration is valid (config.toml).\n");
    folder.write("config.toml", "route = []");
    let warned = folder.run_with(&[("INPUT_HANDLER_URL", "ws://a")], &["--check"]);
    assert_eq!(
        (warned.status, warned.stdout.as_str()),
        (0, "The configuration is valid (config.toml).\n")
    );
    assert_eq!(
        warned.stderr,
        "aivtuber-gateway: INPUT_HANDLER_URL is ignored: no route is called `input`\n"
    );
}

#[test]
fn check_names_the_routes_that_can_never_be_reached() {
    let folder = Folder::new("shadowed");
    let route = |name: &str, path: &str| {
        format!("[[route]]\nname = \"{name}\"\npath = \"{path}\"\nbackend = \"ws://a/\"\n")
    };
    let routes = [
        route("own", "/health"),
        route("rooms", "/ws/{rest...}"),
        route("lobby", "/ws/lobby"),
        route("root", "/"),
    ];
    folder.write("config.toml", &routes.concat());
    let warned = folder.run(&["--check"]);
    assert_eq!(
        (warned.status, warned.stdout.as_str()),
        (0, "The configuration is valid (config.toml).\n")
    );
    assert_eq!(
        warned.stderr,
        "aivtuber-gateway: route `own`: its path `/health` is never reached, because the gateway \
         itself answers `/health`\n\
         aivtuber-gateway: route `lobby`: its path `/ws/lobby` is never reached, because route \
         `rooms` before it takes `/ws/{rest...}`: put the narrower path first\n"
    );
}

#[test]
fn check_and_start_say_that_the_log_file_cannot_be_written() {
    let folder = Folder::new("log");
    folder.write("plain", "").write("config.toml", "route = []\n[log]\nfile = \"plain/x.log\"\n");
    let checked = folder.run(&["--check"]);
    let expected = "log.file: plain/x.log cannot be written: Not a directory (os error 20)\n";
    assert_eq!((checked.status, checked.stderr), (0, format!("aivtuber-gateway: {expected}")));
    // It stops after the warnings: the address is another machine's.
    let started = folder.run(&["--listen", "192.0.2.1:1"]);
    let warned = started.stderr.lines().find(|line| line.contains("WARN  config "));
    assert!(warned.is_some_and(|line| line.ends_with(expected.trim_end())), "{}", started.stderr);
    assert_eq!(started.status, 1);
}

#[test]
fn a_backend_that_is_the_gateway_itself_is_refused() {
    let folder = Folder::new("itself");
    let route = "[[route]]\nname = \"a\"\npath = \"/a\"\nbackend = \"ws://localhost:8765/b\"\n";
    folder.write("config.toml", &format!("[server]\nlisten = \"127.0.0.1:8765\"\n{route}"));
    for arguments in [&["--check"][..], &[]] {
        folder.run(arguments).refused_with(
            "aivtuber-gateway: config.toml: route `a`: the backend `ws://localhost:8765/b` is the \
             gateway itself, which listens on 127.0.0.1:8765\n",
        );
    }
}

#[test]
fn printed_configuration_reads_back_as_the_same() {
    let folder = Folder::new("print");
    folder.write(
        "config.toml",
        "[log]\nlevel = \"warn\"\nformat = \"json\"\n[redis]\nurl = \"redis://file\"\n",
    );
    let env = [
        ("OUTPUT_HANDLER_URL", "ws://out:9/r/{task_id}"),
        ("REDIS_URL", "redis://environment"),
        ("AIVTUBER_GATEWAY_LOG", "debug"),
    ];
    let printed = folder
        .run_with(&env, &["--print-config", "--redis", "redis://flag", "-l", "127.0.0.1:9"])
        .printed();
    for line in [
        "listen = [\"127.0.0.1:9\"]",
        "backend = [\"ws://out:9/r/{task_id}\"]",
        "url = [\"redis://flag\"]",
        "level = \"debug\"",
        "format = \"json\"",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line} is not in\n{printed}");
    }
    folder.write("printed.toml", &printed);
    assert_eq!(folder.run(&["--print-config", "-c", "printed.toml"]).printed(), printed);
}

#[test]
fn only_what_was_changed_is_printed_and_means_the_same() {
    let folder = Folder::new("changed");
    folder.write("config.toml", "[log]\nkeep = 5\n");
    let changed = |arguments: &[&str]| {
        folder.run(&[&["--print-config", "--changed"], arguments].concat()).printed()
    };
    assert_eq!(changed(&[]), "# Nothing differs from the defaults.\n");
    folder.write(
        "config.toml",
        "[server]\nmax_connections = 7\n[log]\nlevel = \"info\"\nkeep = 6\n[redis]\nurl = \"redis://u:p@h\"\n",
    );
    assert_eq!(
        changed(&["--log-level", "debug"]),
        "[server]\nmax_connections = 7\n\n[redis]\n# *** replaces a password\nurl = [\"redis://u:***@h\"]\n\n\
         [log]\nlevel = \"debug\"\nkeep = 6\n"
    );
    let route = "[[route]]\nname = \"a\"\npath = \"/a\"\nbackend = [\"ws://b/\"]\n";
    folder.write("config.toml", route);
    assert_eq!(changed(&[]), route);
    folder.write("config.toml", "route = []\n");
    assert_eq!(changed(&[]), "route = []\n");
    folder
        .run(&["--changed"])
        .refused_with("aivtuber-gateway: --changed has no effect without --print-config\n");
}

#[test]
fn manual_pages_and_completions_need_no_configuration() {
    let folder = Folder::new("man");
    folder.write("config.toml", "this is not TOML");
    assert!(folder.run(&["man"]).printed().starts_with(".TH AIVTUBER\\-GATEWAY 1 "));
    assert!(folder.run(&["man", "config"]).printed().starts_with(".TH AIVTUBER\\-GATEWAY.TOML 5 "));
    for shell in ["bash", "zsh", "fish"] {
        assert!(folder.run(&["completions", shell]).printed().contains("--print-config"));
    }
    folder
        .run(&["completions"])
        .refused_with("aivtuber-gateway: completions needs more: completions SHELL\n");
}

#[test]
fn print_config_shows_no_password() {
    let folder = Folder::new("password");
    folder.write("config.toml", "");
    let printed =
        folder.run(&["--print-config", "--redis", "redis://user:hunter2@host/1"]).printed();
    assert!(printed.contains("url = [\"redis://user:***@host/1\"]"), "{printed}");
    let refused = folder.run(&["--check", "--redis", "redis://user:hunter2@host/x"]);
    assert_eq!(refused.status, 2);
    assert!(!refused.stderr.contains("hunter2"), "{}", refused.stderr);
}

#[test]
fn a_bad_variable_is_reported_by_name() {
    let folder = Folder::new("variable");
    folder.write("config.toml", "");
    folder.run_with(&[("REDIS_HOST", "r"), ("REDIS_PORT", "none")], &["--check"]).refused_with(
        "aivtuber-gateway: REDIS_HOST: REDIS_PORT is \"none\", expected 1 to 65535\n",
    );
}

#[test]
fn healthcheck_without_a_gateway_is_status_1_and_a_sentence() {
    let folder = Folder::new("health");
    folder.write("config.toml", "");
    // A port that was free a moment ago: nothing listens on it.
    let address =
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let ended = folder.run(&["healthcheck", "--listen", &address]);
    assert_eq!((ended.status, ended.stdout.as_str()), (1, ""));
    assert!(
        ended.stderr.starts_with(&format!("aivtuber-gateway: no gateway answers at {address}: ")),
        "{}",
        ended.stderr
    );
}
