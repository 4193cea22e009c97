use super::*;
use crate::base::testing::TestFolder;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

const TASK: &str = "7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111";

fn write(folder: &TestFolder, name: &str, from: u32, messages: &[&str]) -> PathBuf {
    folder.write(name, lines(from, messages))
}

/// A line a second, from second `from` on.
fn lines(from: u32, messages: &[&str]) -> String {
    let line = |(second, message)| format!("2026-11-22T10:00:{second:02}.000Z INFO  x {message}\n");
    (from..).zip(messages).map(line).collect()
}

fn told(log: &Path, name: Option<&str>) -> Vec<String> {
    let story = explain(log, name).unwrap();
    let story = story.map(|story| story.to_text()).unwrap_or_default();
    let told =
        |line: &str| line.split_once(" s  ").map_or(line, |(_, told)| told).trim().to_owned();
    story.lines().map(told).filter(|line| !line.is_empty()).collect()
}

#[test]
fn a_connection_is_told_whole_and_alone() {
    let folder = TestFolder::make();
    let log = write(
        &folder,
        "log",
        0,
        &[
            "input_1 client>gateway GET /ws client=192.0.2.7:1",
            "input_1 opened client=192.0.2.7:1",
            "input_11 opened client=192.0.2.8:1",
            "input_1 client>backend text len=5 fin=true",
            "input_1 closed reason=client_closed code=1000 sentence=\"It was time.\"",
            "input_11 closed reason=client_closed code=1000 sentence=\"No.\"",
        ],
    );
    let expected = [
        "input_1  client>gateway GET /ws client=192.0.2.7:1",
        "input_1  opened client=192.0.2.7:1",
        "input_1  client>backend text len=5 fin=true",
        "input_1  closed reason=client_closed code=1000 sentence=\"It was time.\"",
        "input_1: It was time.",
    ];
    assert_eq!(told(&log, Some("input_1")), expected);
    assert_eq!(told(&log, Some("192.0.2.7")), expected, "by its client");
    assert!(told(&log, Some("input_2")).is_empty());
}

#[test]
fn a_task_is_told_with_what_its_worker_did_for_it_alone() {
    let folder = TestFolder::make();
    let mine = |text: &str| text.replace("TASK", TASK);
    let messages = [
        "output_1 client>gateway GET /ws/output client=192.0.2.7:1",
        "output_1 opened client=192.0.2.7:1 task=TASK",
        "inbox_2 opened client=192.0.2.9:1",
        "inbox_2 = published task=other len=5",
        "inbox_2 = published task=TASK len=5",
        "result heard len=5 task=TASK",
        "result heard len=5 task=other",
        "output_1 > text len=9 task=TASK",
        "output_1 closed reason=delivered code=1000 task=TASK sentence=\"The final result was delivered.\"",
    ]
    .map(mine);
    let log = write(&folder, "log", 0, &messages.each_ref().map(String::as_str));
    let told = told(&log, Some(&TASK.to_uppercase()));
    assert_eq!(told.len(), 7, "{told:?}");
    assert!(told[2].starts_with("inbox_2   = published task=7d2b"), "{told:?}");
    assert!(told[3].starts_with("result heard len=5 task=7d2b"), "{told:?}");
    assert_eq!(told[6], "output_1: The final result was delivered.");
}

#[test]
fn rotated_and_gzipped_files_are_read_in_order() {
    let folder = TestFolder::make();
    let log = write(&folder, "log", 30, &["input_1 closed reason=done sentence=\"End.\""]);
    write(&folder, "log.1", 20, &["input_1 client>backend text len=2 fin=true"]);
    write(&folder, "log.bak", 5, &["input_1 another file"]);
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(lines(10, &["input_1 client>backend text len=1 fin=true"]).as_bytes()).unwrap();
    fs::write(folder.join("log.2.gz"), gz.finish().unwrap()).unwrap();
    write(&folder, "log.10", 0, &["input_1 opened client=192.0.2.7:1"]);
    assert_eq!(
        told(&log, Some("input_1")),
        [
            "input_1  opened client=192.0.2.7:1",
            "input_1  client>backend text len=1 fin=true",
            "input_1  client>backend text len=2 fin=true",
            "input_1  closed reason=done sentence=\"End.\"",
            "input_1: End.",
        ]
    );
}

#[test]
fn steps_of_a_story_are_told_when_they_happened() {
    let folder = TestFolder::make();
    let log = write(
        &folder,
        "log",
        0,
        &[
            "input_1 opened client=192.0.2.7:1",
            "input_2 opened client=192.0.2.8:1",
            "input_1 closed reason=backend_vanished code=1011 sentence=\"It broke.\"",
            "input_1 failed reason=backend_vanished code=1011 events=1 sentence=\"It broke.\"",
            "input_1 ~ before_end=2.500s client>backend text len=5 fin=true",
        ],
    );
    assert_eq!(
        told(&log, None),
        [
            "input_1  opened client=192.0.2.7:1",
            "input_1  client>backend text len=5 fin=true",
            "input_1  closed reason=backend_vanished code=1011 sentence=\"It broke.\"",
            "input_1: It broke.",
        ]
    );
}

#[test]
fn ids_begin_anew_with_each_start() {
    let folder = TestFolder::make();
    let log = write(
        &folder,
        "log",
        0,
        &[
            "starting version=1",
            "input_1 opened client=192.0.2.7:1",
            "starting version=1",
            "input_1 opened client=192.0.2.8:1",
        ],
    );
    let told = told(&log, Some("input_1"));
    assert_eq!(told[0], "input_1  opened client=192.0.2.8:1");
    assert_eq!(told[1..], ["The log does not say that it has ended."]);
}

#[test]
fn bad_endings_are_known_without_their_stories() {
    let folder = TestFolder::make();
    let log = write(
        &folder,
        "log",
        0,
        &[
            "input_1 closed reason=client_closed code=1000 sentence=\"Good.\"",
            "input_2 closed reason=client_closed code=4000 sentence=\"Bad.\"",
            "output_3 closed reason=task_timeout code=4008 sentence=\"Late.\"",
            "input_4 closed reason=client_closed code=none sentence=\"Good.\"",
        ],
    );
    let told = told(&log, None);
    assert_eq!(told[2..], ["input_2: Bad.", "output_3: Late."]);
}

#[test]
fn of_a_clients_many_connections_those_that_failed_are_shown() {
    let folder = TestFolder::make();
    let mut messages = Vec::new();
    for number in 1..=50 {
        let reason = if number == 7 { "backend_vanished code=1011" } else { "delivered code=1000" };
        messages.push(format!("input_{number} opened client=192.0.2.7:{number}"));
        messages.push(format!("input_{number} closed reason={reason} sentence=\"End {number}.\""));
    }
    let messages: Vec<_> = messages.iter().map(String::as_str).collect();
    let log = folder.write("log", lines(0, &messages[..50]) + &lines(0, &messages[50..]));
    let told = told(&log, Some("192.0.2.7"));
    assert!(told[0].starts_with('…') && told.len() == 1 + 20 * 3, "{told:?}");
    assert_eq!(told.iter().filter(|line| *line == "input_7: End 7.").count(), 1, "{told:?}");
    assert_eq!(told.last().unwrap(), "input_50: End 50.");
}

#[test]
fn steps_come_before_the_end_that_is_logged_with_them() {
    let folder = TestFolder::make();
    let end = "input_1 closed reason=backend_vanished code=1011 sentence=\"It broke.\"";
    let step =
        "input_1 ~ before_end=0.000s = sent close to client code=1011 reason=backend_vanished";
    let log = folder.write("log", lines(0, &[end]) + &lines(0, &[step]));
    let told = told(&log, Some("input_1"));
    assert!(told[0].contains("= sent close") && told[1].contains("closed"), "{told:?}");
}

#[test]
fn json_has_events_and_endings() {
    let folder = TestFolder::make();
    let log = write(
        &folder,
        "log",
        0,
        &[
            "input_1 opened client=192.0.2.7:1",
            "input_1 closed reason=client_closed code=1000 sentence=\"It was time.\"",
        ],
    );
    let story = explain(&log, Some("input_1")).unwrap().unwrap().to_json();
    let story: serde_json::Value = serde_json::from_str(&story).unwrap();
    assert_eq!(story["events"][0]["event"], "opened");
    assert_eq!(story["events"][0]["time"], "2026-11-22T10:00:00.000Z");
    assert_eq!(story["ended"][0]["code"], 1000);
    assert_eq!(story["ended"][0]["sentence"], "It was time.");
}

#[test]
fn a_log_that_is_not_there_is_named() {
    let error = explain(Path::new("/nowhere/log"), None).unwrap_err();
    assert!(error.starts_with("cannot read /nowhere/log: No such file"), "{error}");
}

#[test]
fn nothing_in_a_log_reaches_the_terminal_as_a_command() {
    let folder = TestFolder::make();
    let hostile = "input_1 closed reason=task_timeout what=\"\u{1b}[2J\u{9b}31m\u{7}\r\" \
                   sentence=\"\u{1b}]0;gone\u{7}\"";
    let text = lines(0, &["input_1 opened client=192.0.2.7:1", hostile]);
    let json = r#"{"time":"2026-11-22T10:00:05.000Z","level":"WARN","target":"x\u001b[1m","message":"input_1 = a\u001b[2Jb\nc"}"#;
    let log = folder.write("log", format!("{text}{json}\n"));
    let story = explain(&log, Some("input_1")).unwrap().unwrap();
    let shown = story.to_text();
    assert_eq!(story.lines.len(), 3, "{shown:?}");
    assert!(!shown.chars().any(|sign| sign.is_control() && sign != '\n'), "{shown:?}");
    assert_eq!(shown.lines().count(), 5, "a value begins no line of its own: {shown:?}");
}

#[test]
fn a_damaged_or_unreadable_part_does_not_hide_the_others() {
    let folder = TestFolder::make();
    let log = write(&folder, "log", 30, &["input_1 closed reason=done sentence=\"End.\""]);
    fs::create_dir(folder.join("log.1")).unwrap();
    let mut gz = GzEncoder::new(Vec::new(), Compression::none());
    gz.write_all(lines(10, &["input_1 opened client=192.0.2.7:1"]).as_bytes()).unwrap();
    let whole = gz.finish().unwrap();
    // As when the disk was full, or while it is still being compressed.
    fs::write(folder.join("log.2.gz"), &whole[..whole.len() - 6]).unwrap();
    fs::write(folder.join("log.3.gz"), b"\x1f\x8bno gzip").unwrap();
    let story = explain(&log, Some("input_1")).unwrap().unwrap();
    let shown = story.to_text();
    for file in ["log.1: ", "log.2.gz: ", "log.3.gz: "] {
        assert!(shown.contains(&format!("/{file}")), "{shown}");
    }
    assert_eq!(shown.matches("; its lines are missing here\n").count(), 3, "{shown}");
    assert!(shown.contains("opened client=192.0.2.7:1"), "what could be read: {shown}");
    assert!(shown.ends_with("input_1: End.\n"), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&story.to_json()).unwrap();
    assert_eq!(json["unread"].as_array().unwrap().len(), 3);
    let error = explain(&log, Some("input_2")).unwrap_err();
    assert!(error.contains("cannot read ") && error.contains("log.3.gz"), "{error}");
}

#[test]
fn long_lines_and_times_that_cannot_be_cost_little() {
    let folder = TestFolder::make();
    let mut text = lines(0, &["input_1 opened client=192.0.2.7:1"]);
    for before_end in ["-1e300", "1e300", "9223372036854775.807", "-3"] {
        text += &lines(1, &[&format!("input_1 ~ before_end={before_end}s it was")]);
    }
    let long = "x".repeat(1 << 20);
    for _ in 0..700 {
        text += &lines(2, &[&format!("input_1 = {}", &long[..60_000])]);
    }
    text += &lines(3, &[&format!("input_1 = {long}"), "input_1 closed reason=done"]);
    text += &"Z".repeat(1 << 20);
    text += &lines(4, &[]);
    let log = folder.write("log", &text);
    let story = explain(&log, Some("input_1")).unwrap().unwrap();
    assert!(story.is_cut);
    let held: usize = story.lines.iter().map(|(_, line)| line.bytes()).sum();
    assert!(held <= BYTES_MAX, "{held}");
    assert!(story.to_text().len() < 2 * BYTES_MAX);
    assert!(story.to_text().ends_with("input_1: It ended.\n"));
    // None of it is slow or panics, whatever the log says about time.
    let log = folder.write("other", &text[..1000]);
    assert!(explain(&log, Some("input_1")).unwrap().is_some());
}
