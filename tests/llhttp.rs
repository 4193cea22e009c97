//! Heads and bodies as this gateway reads them, and as llhttp does: the parser of node, without any
//! lenient flag, which is also that of Python's `httptools`.
//!
//! From seeds come ordinary messages, several on one connection, and hostile ones, with every kind
//! of fault that request smuggling is known for. Nothing may be accepted here that llhttp rejects,
//! and where both accept, they must agree on every field and on where each message ends. To reject
//! more is fine; what is rejected on purpose is in `docs/protocol.md`.
//!
//! Differences, with reasons:
//! - llhttp knows a list of methods; here any token is one (RFC 9110 §9.1).
//! - Behind `Connection: close` llhttp rejects further bytes; here they are not read.
//! - Behind an upgrade llhttp reads no further; here, on a route for plain HTTP, the header is
//!   dropped and reading goes on.

use std::io::Write;
use std::process::{Command, Stdio};

use aivtuber_gateway::proto::http::framing::{BodyFraming, BodyReader};
use aivtuber_gateway::proto::http::{RequestHead, ResponseHead, empty_slots};
use serde_json::Value;

/// Messages, or runs of them, of each kind.
const SEEDS: u64 = 10_000;

/// One message as a parser has read it.
#[derive(Debug, PartialEq)]
struct Message {
    first: String,
    headers: Vec<(String, String)>,
    content: String,
    is_complete: bool,
}

/// What a parser made of some bytes.
#[derive(Debug)]
struct Verdict {
    messages: Vec<Message>,
    error: Option<String>,
    /// It has stopped reading for a reason of its own.
    has_stopped: bool,
}

struct Case {
    kind: &'static str,
    /// Of the request, for a response.
    method: &'static str,
    bytes: Vec<u8>,
}

#[test]
fn requests_are_read_as_llhttp_reads_them() {
    compare(SEEDS, draw_requests);
}

#[test]
fn responses_are_read_as_llhttp_reads_them() {
    compare(SEEDS, draw_response);
}

fn compare(seeds: u64, draw: fn(&mut fastrand::Rng) -> Case) {
    let cases: Vec<Case> =
        (0..seeds).map(|seed| draw(&mut fastrand::Rng::with_seed(seed))).collect();
    let theirs = llhttp(&cases);
    assert_eq!(theirs.len(), cases.len());
    let (mut accepted, mut rejected) = (0, 0);
    for ((seed, case), theirs) in (0u64..).zip(&cases).zip(&theirs) {
        let ours = read(case);
        accepted += u64::from(ours.error.is_none() && !ours.messages.is_empty());
        rejected += u64::from(ours.error.is_some());
        if let Err(why) = agree(&ours, theirs) {
            let shown = case.bytes.escape_ascii();
            panic!(
                "seed {seed}: {why}\n{} {}\n{shown}\nhere: {ours:?}\nllhttp: {theirs:?}",
                case.kind, case.method
            );
        }
    }
    assert!(accepted > seeds / 5 && rejected > seeds / 5, "{accepted} accepted, {rejected} not");
}

fn agree(ours: &Verdict, theirs: &Verdict) -> Result<(), String> {
    let is_unknown_method = theirs.error.as_deref() == Some("HPE_INVALID_METHOD");
    for (index, mine) in ours.messages.iter().enumerate() {
        let Some(other) = theirs.messages.get(index) else {
            let is_fine = is_unknown_method || theirs.has_stopped;
            return if is_fine { Ok(()) } else { Err(format!("only read here: {mine:?}")) };
        };
        if (&mine.first, &mine.headers) != (&other.first, &other.headers) {
            return Err(format!("different heads: {mine:?} {other:?}"));
        }
        if theirs.has_stopped && index + 1 == theirs.messages.len() {
            return Ok(());
        }
        // A fault in a body may be found a few bytes sooner or later.
        let has_fault = ours.error.is_some();
        if mine.is_complete != other.is_complete && (mine.is_complete || !has_fault) {
            return Err(format!("complete: {mine:?} {other:?}"));
        }
        let is_prefix = other.content.starts_with(&mine.content);
        if mine.content != other.content && !(has_fault && is_prefix) {
            return Err(format!("different content: {mine:?} {other:?}"));
        }
    }
    match (&ours.error, &theirs.error) {
        (None, Some(_)) if is_unknown_method || theirs.has_stopped || ours.has_stopped => Ok(()),
        (None, Some(error)) => Err(format!("rejected by llhttp alone: {error}")),
        _ => Ok(()),
    }
}

// ---- the parsers

fn read(case: &Case) -> Verdict {
    let mut verdict = Verdict { messages: Vec::new(), error: None, has_stopped: false };
    let mut at = 0;
    while at < case.bytes.len() {
        let rest = &case.bytes[at..];
        let mut slots = empty_slots();
        let lines = |headers: &mut dyn Iterator<Item = (&str, &[u8])>| {
            headers.map(|(name, value)| (name.to_owned(), latin1(value))).collect::<Vec<_>>()
        };
        let (first, headers, length, framing, is_last) = if case.kind == "request" {
            match RequestHead::parse(rest, &mut slots) {
                Ok(None) => {
                    // Nothing of this message has been accepted.
                    verdict.has_stopped = true;
                    return verdict;
                }
                Err(bad) => {
                    verdict.error = Some(bad.why.to_owned());
                    return verdict;
                }
                Ok(Some((head, length))) => {
                    let first = format!("{} {} 1.{}", head.method, head.target, head.minor_version);
                    let framing = BodyFraming::of_request(&head);
                    let headers = lines(&mut head.headers.iter());
                    (first, headers, length, framing, !head.is_keep_alive())
                }
            }
        } else {
            match ResponseHead::parse(rest, &mut slots) {
                Ok(None) => {
                    // Nothing of this message has been accepted.
                    verdict.has_stopped = true;
                    return verdict;
                }
                Err(bad) => {
                    verdict.error = Some(bad.why.to_owned());
                    return verdict;
                }
                Ok(Some((head, length))) => {
                    let first = format!("{} 1.{}", head.status, head.minor_version);
                    let headers = lines(&mut head.headers.iter());
                    match BodyFraming::of_response(&head, case.method) {
                        Ok(framing) => (first, headers, length, framing, !head.is_interim()),
                        Err(why) => {
                            verdict.error = Some(why.to_owned());
                            return verdict;
                        }
                    }
                }
            }
        };
        at += length;
        let mut reader = BodyReader::new(framing);
        let mut body = case.bytes[at..].to_vec();
        let (content, used) = match reader.read(&mut body) {
            Ok(found) => (latin1(&body[found.content]), found.used),
            Err(why) => {
                verdict.error = Some(why.to_owned());
                (String::new(), 0)
            }
        };
        at += used;
        let is_complete = reader.is_done() || framing == BodyFraming::UntilClose;
        verdict.messages.push(Message { first, headers, content, is_complete });
        if verdict.error.is_some() || !is_complete {
            return verdict;
        }
        if is_last {
            verdict.has_stopped = true;
            return verdict;
        }
    }
    verdict
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn llhttp(cases: &[Case]) -> Vec<Verdict> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/llhttp.js");
    let mut node = Command::new("node")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node is installed");
    let mut input = Vec::new();
    for Case { kind, method, bytes } in cases {
        input.extend(format!("{kind} {method} {}\n", bytes.len()).into_bytes());
        input.extend(bytes);
    }
    // It reads everything before it answers.
    node.stdin.take().expect("it is piped").write_all(&input).expect("node reads");
    let output = node.wait_with_output().expect("node ends");
    let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
    text.lines().map(verdict).collect()
}

fn verdict(line: &str) -> Verdict {
    let line: Value = serde_json::from_str(line).expect("node writes JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let messages = line["messages"].as_array().expect("a list").iter();
    let has_upgraded = messages.clone().any(|message| message["upgrade"] == true);
    let messages = messages.map(|message| {
        let flat: Vec<_> =
            message["headers"].as_array().expect("a list").iter().map(text).collect();
        let headers = flat.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        let first = match message["status"].as_u64() {
            Some(status) => format!("{status} {}", text(&message["version"])),
            None => format!(
                "{} {} {}",
                text(&message["method"]),
                text(&message["url"]),
                text(&message["version"])
            ),
        };
        let (content, is_complete) = (text(&message["content"]), message["complete"] == true);
        Message { first, headers, content, is_complete }
    });
    let error = line["error"].as_str().map(str::to_owned);
    let is_closed = error.as_deref() == Some("HPE_CLOSED_CONNECTION");
    Verdict { messages: messages.collect(), error, has_stopped: has_upgraded || is_closed }
}

// ---- drawing

const METHODS: [&str; 10] =
    ["GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "ODD-METHOD"];

const LENGTHS: [&str; 14] = [
    "5",
    "05",
    "+5",
    "-5",
    " 5",
    "5 ",
    "5, 5",
    "5,6",
    "0x5",
    "5_0",
    "",
    "5a",
    "9223372036854775808",
    "18446744073709551616",
];

const CODINGS: [&str; 12] = [
    "chunked",
    "Chunked",
    "CHUNKED",
    " chunked ",
    "gzip, chunked",
    "chunked, gzip",
    "identity",
    "chunked, chunked",
    "xchunked",
    "\"chunked\"",
    "",
    "chunked;q=1",
];

const SIZES: [&str; 16] = [
    "5",
    "005",
    "0005",
    "+5",
    "-5",
    " 5",
    "5 ",
    "5\t",
    "0x5",
    "5;a",
    "5;a=b",
    "5;a=\"b\"",
    "5 ;a",
    "5;\n",
    "5_",
    "00000000000000005",
];

const TRAILERS: [&str; 10] = [
    "",
    "",
    "X: y\r\n",
    "X : y\r\n",
    "X: y\n",
    " X: y\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "X: \0\r\n",
    ": y\r\n",
];

fn pick<'p>(from: &[&'p str], chance: &mut fastrand::Rng) -> &'p str {
    from[chance.usize(..from.len())]
}

fn draw_requests(chance: &mut fastrand::Rng) -> Case {
    let is_hostile = chance.bool();
    let mut bytes = Vec::new();
    for _ in 0..chance.usize(1..4) {
        let target = pick(&["/", "/a?b=c", "/%20", "http://a/b", "/a#b", "*"], chance);
        let version = match is_hostile && chance.u8(..8) == 0 {
            true => pick(&["1.0", "1.2", "2.0", "0.9", "1.1 ", "1"], chance),
            false => "1.1",
        };
        let method = pick(&METHODS, chance);
        let first = format!("{method} {target} HTTP/{version}\r\nHost: a\r\n");
        bytes.extend(draw_message(first, is_hostile, chance));
    }
    spoil(&mut bytes, is_hostile, chance);
    Case { kind: "request", method: "-", bytes }
}

fn draw_response(chance: &mut fastrand::Rng) -> Case {
    let is_hostile = chance.bool();
    let method = pick(&["GET", "HEAD", "POST"], chance);
    let mut bytes = Vec::new();
    if chance.u8(..6) == 0 {
        bytes.extend(b"HTTP/1.1 100 Continue\r\n\r\n");
    }
    let status = pick(&["200", "200", "204", "304", "404", "500", "299", "99", "1000"], chance);
    let version = pick(&["1.1", "1.1", "1.1", "1.0", "2.0"], chance);
    let first = format!("HTTP/{version} {status} {}\r\n", pick(&["OK", "", "Not it"], chance));
    bytes.extend(draw_message(first, is_hostile, chance));
    spoil(&mut bytes, is_hostile, chance);
    Case { kind: "response", method, bytes }
}

/// A message that begins with `head`, with one body.
fn draw_message(mut head: String, is_hostile: bool, chance: &mut fastrand::Rng) -> Vec<u8> {
    let odd = |chance: &mut fastrand::Rng| is_hostile && chance.u8(..3) == 0;
    for _ in 0..chance.usize(..3) {
        head += match odd(chance) {
            true => pick(
                &[
                    "A : b\r\n",
                    " A: b\r\n",
                    "A: b\r\n c\r\n",
                    "A\r\n",
                    ": b\r\n",
                    "A\tB: c\r\n",
                    "A: b\n",
                    "A: \0\r\n",
                    "Host: c\r\n",
                    "A:b\r\n",
                    "Connection: close\r\n",
                ],
                chance,
            ),
            false => pick(&["A: b\r\n", "X-B:\tc d \r\n", "Cookie: é\r\n", "E:\r\n"], chance),
        };
    }
    let framing = chance.u8(..if is_hostile { 4 } else { 3 });
    let (has_length, is_chunked) = (framing & 1 == 1, framing & 2 == 2);
    if has_length {
        let length = if odd(chance) { pick(&LENGTHS, chance) } else { "5" };
        head += &format!("Content-Length: {length}\r\n");
        if odd(chance) {
            head += &format!("Content-Length: {}\r\n", pick(&["5", "6"], chance));
        }
    }
    if is_chunked {
        let coding = if odd(chance) { pick(&CODINGS, chance) } else { "chunked" };
        head += &format!("Transfer-Encoding: {coding}\r\n");
        if odd(chance) {
            head +=
                pick(&["Transfer-Encoding: chunked\r\n", "Transfer-Encoding: gzip\r\n"], chance);
        }
    }
    let mut bytes = (head + "\r\n").into_bytes();
    if is_chunked {
        for _ in 0..chance.usize(..3) {
            let size = if odd(chance) { pick(&SIZES, chance) } else { "5" };
            let end = if odd(chance) { pick(&["\n", "\r", "", "x\r\n"], chance) } else { "\r\n" };
            bytes.extend(format!("{size}\r\nhello{end}").into_bytes());
        }
        let trailers =
            if is_hostile { pick(&TRAILERS, chance) } else { pick(&TRAILERS[..3], chance) };
        bytes.extend(format!("0\r\n{trailers}\r\n").into_bytes());
    } else if has_length {
        bytes.extend(b"hello");
    }
    bytes
}

/// Changes a byte or two.
fn spoil(bytes: &mut Vec<u8>, is_hostile: bool, chance: &mut fastrand::Rng) {
    if !is_hostile || chance.bool() {
        return;
    }
    for _ in 0..chance.usize(1..3) {
        let at = chance.usize(..bytes.len());
        match chance.u8(..4) {
            0 => drop(bytes.remove(at)),
            1 => bytes[at] = b"\r\n :,;\0\t\x7f\xff0"[chance.usize(..11)],
            2 => bytes.insert(at, b"\r\n :,;\0\t\x7f\xff0"[chance.usize(..11)]),
            _ => bytes.truncate(at.max(1)),
        }
    }
}
