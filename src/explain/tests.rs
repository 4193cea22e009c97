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
