//! The log of a whole process. There is one logger in a process, so each test runs its own
//! executable again as a child; a variable in the environment makes it the child.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use aivtuber_gateway::base::moment::Moment;
use aivtuber_gateway::logging::{self, Format, Settings};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Set in a child: the file it logs to, or nothing for standard error.
const CHILD: &str = "GATEWAY_LOGGING_TEST_CHILD";

const TEXT: &str = "x";
const LINES: usize = 3000;

#[test]
fn a_reader_that_does_not_read_holds_up_nothing() {
    if std::env::var_os(CHILD).is_some() {
        let logging = logging::start(Settings::default()).unwrap();
        for number in 0..LINES {
            log::info!(target: "test", "number={number} {}", TEXT.repeat(1000));
        }
        let lost = logging.turn(Moment::START).lines_lost;
        logging.finish();
        println!("lost={lost}");
        return;
    }
    let mut child = run_again("a_reader_that_does_not_read_holds_up_nothing", "", Stdio::piped());
    // Nobody has read a byte of its log by then, and a pipe takes 64 KiB.
    assert!(wait(&mut child).success());
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    let lost: usize =
        stdout.split("lost=").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    assert!(lost > LINES / 2 && lost < LINES, "{lost}");
    let lines: Vec<_> = stderr.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
    assert!(lines.len() > 10, "{stderr}");
    for (number, line) in lines.iter().enumerate() {
        let (head, text) = line.trim_end().split_at(line.find("number=").unwrap());
        assert!(head.ends_with("Z INFO  test "), "{head}");
        assert_eq!(text, format!("number={number} {}", TEXT.repeat(1000)));
    }
}

/// Standard error is a file, so the thread of the log writes it. A limit of the size of files takes
/// the place of a disk that is full.
#[test]
fn lines_wait_while_the_disk_behind_standard_error_is_full() {
    const TEST: &str = "lines_wait_while_the_disk_behind_standard_error_is_full";
    if std::env::var_os(CHILD).is_some() {
        let limit = |maximum: Option<u64>| {
            setrlimit(Resource::Fsize, Rlimit { current: maximum, maximum: None }).unwrap();
        };
        let logging = logging::start(Settings::default()).unwrap();
        limit(Some(2000));
        for number in 0..LINES {
            log::info!(target: "test", "number={number} {}", TEXT.repeat(1000));
            if number == 10 {
                logging.finish();
                assert_ne!(logging.turn(Moment::START).error_code, 0, "it is full");
            }
        }
        limit(None);
        while logging.turn(Moment::START).error_code != 0 {
            logging.finish();
        }
        log::info!(target: "test", "there is room");
        logging.finish();
        println!("lost={}", logging.turn(Moment::START).lines_lost);
        return;
    }
    let path =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("full-{}.log", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    // Without this, the first byte beyond the limit would end the process.
    let mut child = Command::new("sh")
        .args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture", "--test-threads=1"])
        .env(CHILD, "")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(file)
        .spawn()
        .unwrap();
    let status = wait(&mut child);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(status.success(), "{text}");
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    let lost: usize =
        stdout.split("lost=").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let written = LINES - lost;
    assert!(written > 900, "a megabyte waits: {written}");
    for (number, line) in lines[..written].iter().enumerate() {
        assert!(line.contains(&format!(" number={number} x")), "{line}");
    }
    let [report, last] = &lines[written..] else { panic!("{} lines", lines.len()) };
    assert!(report.contains(&format!("WARN  logging lines lost={lost}: ")), "{report}");
    assert!(last.ends_with("INFO  test there is room"), "{last}");
}

#[test]
fn a_panic_is_in_the_log_after_all_lines_before_it() {
    if let Some(file) = std::env::var_os(CHILD) {
        logging::start(Settings {
            file: Some(file.into()),
            format: Format::Json,
            ..Settings::default()
        })
        .unwrap();
        log::info!(target: "test", "before");
        log::debug!(target: "test", "not at this level");
        panic!("it broke");
    }
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("panic-{}.log", std::process::id()));
    let mut child = run_again(
        "a_panic_is_in_the_log_after_all_lines_before_it",
        file.to_str().unwrap(),
        Stdio::null(),
    );
    assert!(!wait(&mut child).success());
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!((&lines[0]["level"], &lines[0]["message"]), (&"INFO".into(), &"before".into()));
    assert_eq!((&lines[1]["level"], &lines[1]["target"]), (&"ERROR".into(), &"panic".into()));
    assert!(lines[1]["message"].as_str().unwrap().contains("it broke"), "{text}");
}

/// This executable as a child that runs one test.
fn run_again(test: &str, file: &str, stderr: Stdio) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

/// Waits for a child to end, and kills it if it does not.
fn wait(child: &mut Child) -> ExitStatus {
    for _ in 0..600 {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("the child was held up");
}
