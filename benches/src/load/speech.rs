//! Workers that make speech and the clients that hear it: one worker and one client a stream.
//!
//! A worker makes its next chunk when the one before has reached its client, or at its pace. What a
//! client gets is compared with what was made, byte by byte. How it is cut is up to the target.

use super::results::{fresh_task, published};
use super::work::{Limits, Observe, Outcome};
use crate::Fault;
use crate::floor::speech::BEFORE_TASK;
use crate::net::{self, Io, Poll};
use crate::resp::{self, Value};
use crate::wire;
use data_encoding::BASE64;
use rustix::event::epoll::EventFlags;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const READ_BYTES: usize = 256 * 1024;
const MASK: [u8; 4] = [0x11, 0x22, 0x33, 0x44];
/// Bytes of a stream that workers send before the next one of the task begins: ten seconds of 24
/// kHz and 16 bits.
const STREAM_BYTES: usize = 480 * 1024;
/// Timeout for one connection, or for what is on its way in the end.
const PATIENCE: Duration = Duration::from_secs(20);

/// How chunks get to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// As base64 in JSON, to a route that takes speech.
    Base64,
    /// As an announcement and a binary message, to the same.
    Binary,
    /// As base64, to a route that relays them to a backend, which is the client.
    Relayed,
    /// Appended to files of this folder, which have the names of their tasks.
    Files {
        folder: &'a Path,
        /// Where results are published, and what is in front of their tasks in the channels' names.
        /// `None`: the target finds the files by their names.
        publish: Option<(SocketAddr, &'a str)>,
    },
}

/// A load of speech.
#[derive(Clone, Copy, Debug)]
pub struct Speech<'a> {
    pub source: Source<'a>,
    pub streams: usize,
    pub chunk_bytes: usize,
    /// Chunks a second of each stream; `None`: each is sent when the one before has arrived.
    pub pace: Option<f64>,
}

/// One worker and its client.
struct Pair {
    task: String,
    worker: Worker,
    client: OwnedFd,
    /// The rest of a message that did not fit.
    unsent: Vec<u8>,
    /// What is relayed.
    relayed: Vec<u8>,
    seq: u64,
    /// Bytes that were made.
    made: u64,
    /// Bytes that have reached the client.
    heard: u64,
    /// Where chunks that are on their way end, and when they were made.
    on_their_way: VecDeque<(u64, Instant)>,
    /// The beginning of a frame.
    held: Vec<u8>,
}

enum Worker {
    Socket(OwnedFd),
    File(File, PathBuf),
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Worker::File(_, path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

/// Plays workers and clients of the target at `address`; `backend` is where it relays to.
pub fn run(
    address: SocketAddr,
    backend: &TcpListener,
    speech: &Speech<'_>,
    limits: Limits,
    observe: &mut dyn Observe,
) -> Result<Outcome, Fault> {
    let mut play = Play::new(speech)?;
    play.open_all(address, backend)?;
    play.make_for(limits.seconds * 0.15)?;
    play.settle()?;
    play.outcome = Outcome::default();
    observe.begin()?;
    let start = Instant::now();
    play.make_for(limits.seconds)?;
    play.settle()?;
    play.outcome.seconds = start.elapsed().as_secs_f64();
    observe.end()?;
    play.end_all()?;
    Ok(play.outcome)
}

struct Play<'a> {
    speech: &'a Speech<'a>,
    /// To a route that takes it.
    sends_speech: bool,
    audio: Vec<u8>,
    base64: String,
    poll: Poll,
    pairs: Vec<Pair>,
    buffer: Vec<u8>,
    outcome: Outcome,
}

impl Play<'_> {
    fn new<'a>(speech: &'a Speech<'a>) -> Result<Play<'a>, Fault> {
        let audio: Vec<u8> = (0..speech.chunk_bytes).map(|at| (at * 7 + at / 251) as u8).collect();
        Ok(Play {
            speech,
            sends_speech: matches!(speech.source, Source::Base64 | Source::Binary),
            base64: BASE64.encode(&audio),
            audio,
            poll: Poll::new(1024).map_err(|error| error.to_string())?,
            pairs: Vec::new(),
            buffer: vec![0; READ_BYTES],
            outcome: Outcome::default(),
        })
    }

    fn open_all(&mut self, address: SocketAddr, backend: &TcpListener) -> Result<(), Fault> {
        // Connections of the target before this one are no clients.
        while net::accept(backend).map_err(|error| error.to_string())?.is_some() {}
        let mut inbox = match self.speech.source {
            Source::Files { publish: Some((at, _)), .. } => Some(
                TcpStream::connect(at)
                    .map_err(|error| format!("cannot connect to {at}: {error}"))?,
            ),
            _ => None,
        };
        for number in 0..self.speech.streams {
            let pair = self.open(address, backend, inbox.as_mut())?;
            let add = |fd: &OwnedFd, token: usize, flags| {
                self.poll.add(fd, token as u64, flags).map_err(|error| error.to_string())
            };
            add(&pair.client, 2 * number, EventFlags::IN)?;
            if let Worker::Socket(socket) = &pair.worker {
                let both = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
                add(socket, 2 * number + 1, both)?;
            }
            self.pairs.push(pair);
        }
        Ok(())
    }

    fn open(
        &self,
        address: SocketAddr,
        backend: &TcpListener,
        inbox: Option<&mut TcpStream>,
    ) -> Result<Pair, Fault> {
        let task = fresh_task();
        let (worker, client) = match self.speech.source {
            Source::Relayed => {
                let worker = dial(address, "/ws/input")?;
                let client = accept(backend)?;
                read_answer(&worker)?;
                (Worker::Socket(worker), client)
            }
            Source::Base64 | Source::Binary => {
                let client = dial(address, &format!("/ws/output/{task}"))?;
                read_answer(&client)?;
                let worker = dial(address, "/ws/ingest")?;
                read_answer(&worker)?;
                (Worker::Socket(worker), client)
            }
            Source::Files { folder, publish } => {
                let path = folder.join(&task);
                let file = File::create(&path)
                    .map_err(|error| format!("cannot create {}: {error}", path.display()))?;
                let worker = Worker::File(file, path);
                let client = dial(address, &format!("/ws/output/{task}"))?;
                read_answer(&client)?;
                if let (Some((_, prefix)), Some(inbox)) = (publish, inbox) {
                    begin_to_grow(inbox, prefix, &task)?;
                }
                (worker, client)
            }
        };
        Ok(Pair {
            task,
            worker,
            client,
            unsent: Vec::new(),
            relayed: Vec::new(),
            seq: 0,
            made: 0,
            heard: 0,
            on_their_way: VecDeque::new(),
            held: Vec::new(),
        })
    }

    /// Makes chunks for so long, and reads what comes of them.
    fn make_for(&mut self, seconds: f64) -> Result<(), Fault> {
        let start = Instant::now();
        let until = start + Duration::from_secs_f64(seconds);
        // The next stream to send, and when. Their chunks are spread over time, as in real speech.
        let mut next: VecDeque<(Instant, usize)> = VecDeque::new();
        let interval = self.speech.pace.map(|pace| Duration::from_secs_f64(1.0 / pace));
        if let Some(interval) = interval {
            let streams = self.pairs.len();
            let at = |number| start + interval.mul_f64(number as f64 / streams as f64);
            next.extend((0..streams).map(|number| (at(number), number)));
        }
        loop {
            let now = Instant::now();
            if now >= until {
                return Ok(());
            }
            crate::interrupt::check()?;
            while let (Some(interval), Some(&(at, number))) = (interval, next.front())
                && at <= now
            {
                next.pop_front();
                next.push_back((at + interval, number));
                self.make(number)?;
            }
            if interval.is_none() {
                for number in 0..self.pairs.len() {
                    if self.pairs[number].on_their_way.is_empty() {
                        self.make(number)?;
                    }
                }
            }
            // The load generator does not sleep: it has a core of its own.
            self.turn(Duration::ZERO)?;
        }
    }

    /// Waits for what is on its way.
    fn settle(&mut self) -> Result<(), Fault> {
        let start = Instant::now();
        while self.pairs.iter().any(|pair| !pair.on_their_way.is_empty()) {
            if start.elapsed() > PATIENCE {
                return Err("some chunks do not arrive".into());
            }
            self.turn(Duration::from_millis(1))?;
        }
        Ok(())
    }

    /// Workers end their streams, so that nothing of them is left open.
    fn end_all(&mut self) -> Result<(), Fault> {
        for pair in self.pairs.iter_mut().filter(|_| self.sends_speech) {
            wire::push_frame(
                &mut pair.unsent,
                wire::TEXT,
                end_of(&pair.task).as_bytes(),
                Some(MASK),
            );
            pair.flush()?;
        }
        Ok(())
    }

    /// A worker makes its next chunk.
    fn make(&mut self, number: usize) -> Result<(), Fault> {
        let pair = &mut self.pairs[number];
        let task = &pair.task;
        if self.sends_speech && pair.seq as usize * self.audio.len() >= STREAM_BYTES {
            wire::push_frame(&mut pair.unsent, wire::TEXT, end_of(task).as_bytes(), Some(MASK));
            pair.seq = 0;
        }
        let (seq, length) = (pair.seq, self.audio.len());
        match self.speech.source {
            Source::Files { .. } => {}
            Source::Binary => {
                let text = format!(r#"{BEFORE_TASK}{task}","seq":{seq},"bytes":{length}}}"#);
                wire::push_frame(&mut pair.unsent, wire::TEXT, text.as_bytes(), Some(MASK));
                wire::push_frame(&mut pair.unsent, wire::BINARY, &self.audio, Some(MASK));
            }
            Source::Base64 | Source::Relayed => {
                let text = format!(r#"{BEFORE_TASK}{task}","seq":{seq},"pcm":"{}"}}"#, self.base64);
                let start = pair.unsent.len();
                wire::push_frame(&mut pair.unsent, wire::TEXT, text.as_bytes(), Some(MASK));
                if self.speech.source == Source::Relayed {
                    pair.relayed.clear();
                    pair.relayed.extend_from_slice(&pair.unsent[start..]);
                }
            }
        }
        pair.seq += 1;
        pair.made += length as u64;
        pair.on_their_way.push_back((pair.made, Instant::now()));
        match &mut pair.worker {
            Worker::File(file, path) => file
                .write_all(&self.audio)
                .map_err(|error| format!("cannot write {}: {error}", path.display())),
            Worker::Socket(_) => pair.flush(),
        }
    }

    fn turn(&mut self, timeout: Duration) -> Result<(), Fault> {
        let count = self.poll.wait(Some(timeout)).map_err(|error| error.to_string())?;
        for index in 0..count {
            let (token, flags) = self.poll.event(index);
            let number = token as usize / 2;
            if token % 2 == 0 {
                self.hear(number)?;
                continue;
            }
            let pair = &mut self.pairs[number];
            if let Worker::Socket(socket) = &pair.worker
                && flags.contains(EventFlags::IN)
                && let Ok(Io::Moved(count)) = net::recv(socket, &mut self.buffer)
            {
                let said = String::from_utf8_lossy(&self.buffer[..count]);
                return Err(format!("a worker was answered {said}"));
            }
            pair.flush()?;
        }
        Ok(())
    }

    /// A client reads.
    fn hear(&mut self, number: usize) -> Result<(), Fault> {
        let pair = &mut self.pairs[number];
        let count = match net::recv(&pair.client, &mut self.buffer) {
            Ok(Io::Moved(count)) => count,
            Ok(Io::Blocked) => return Ok(()),
            Ok(Io::Ended) => return Err("the target ended a client's connection".into()),
            Err(error) => return Err(format!("the target broke a client's connection ({error})")),
        };
        let mut held = std::mem::take(&mut pair.held);
        let used = if held.is_empty() {
            let used = self.take_frames(number, None, count)?;
            held.extend_from_slice(&self.buffer[used..count]);
            0
        } else {
            held.extend_from_slice(&self.buffer[..count]);
            self.take_frames(number, Some(&held), held.len())?
        };
        held.drain(..used);
        self.pairs[number].held = held;
        Ok(())
    }

    /// Checks the whole frames at the beginning of what a client got; gives their bytes.
    fn take_frames(
        &mut self,
        number: usize,
        held: Option<&[u8]>,
        count: usize,
    ) -> Result<usize, Fault> {
        let pair = &mut self.pairs[number];
        let bytes = &held.unwrap_or(&self.buffer)[..count];
        let is_relayed = self.speech.source == Source::Relayed;
        let mut used = 0;
        while let Some(head) = wire::parse_frame_head(&bytes[used..]) {
            let (start, length) = (used + head.size, head.payload as usize);
            let Some(payload) = bytes.get(start..start + length) else { break };
            let made = match head.first {
                wire::TEXT if is_relayed => {
                    if bytes[used..start + length] != pair.relayed[..] {
                        return Err("a message was changed".into());
                    }
                    self.audio.len()
                }
                wire::TEXT => {
                    check_text(payload, &pair.task)?;
                    0
                }
                wire::BINARY => {
                    if !is_repeated(payload, &self.audio, pair.heard) {
                        return Err("the bytes of a chunk were changed".into());
                    }
                    length
                }
                first => return Err(format!("a client got frame {first:#x}")),
            };
            used = start + length;
            pair.heard += made as u64;
            self.outcome.bytes += made as u64;
            while let Some(&(end, made_at)) = pair.on_their_way.front()
                && end <= pair.heard
            {
                pair.on_their_way.pop_front();
                self.outcome.count += 1;
                self.outcome.latencies.push(made_at.elapsed().as_nanos());
            }
        }
        Ok(used)
    }
}

impl Pair {
    fn flush(&mut self) -> Result<(), Fault> {
        let Worker::Socket(socket) = &self.worker else { return Ok(()) };
        while !self.unsent.is_empty() {
            match net::send(socket, &self.unsent).map_err(|error| error.to_string())? {
                Io::Moved(count) => drop(self.unsent.drain(..count)),
                Io::Blocked | Io::Ended => break,
            }
        }
        Ok(())
    }
}

/// Whether `bytes` are `pattern` again and again, from `at` on.
fn is_repeated(mut bytes: &[u8], pattern: &[u8], at: u64) -> bool {
    let mut from = (at % pattern.len() as u64) as usize;
    while !bytes.is_empty() {
        let count = bytes.len().min(pattern.len() - from);
        if bytes[..count] != pattern[from..from + count] {
            return false;
        }
        (bytes, from) = (&bytes[count..], 0);
    }
    true
}

/// What a client is sent between chunks: nothing but what belongs to its task, and no errors.
fn check_text(text: &[u8], task: &str) -> Result<(), Fault> {
    const KINDS: [&[u8]; 4] = [
        br#"{"type":"audio_chunk","#,
        br#"{"type":"audio_complete","#,
        br#"{"type":"control","#,
        br#"{"status":"success","#,
    ];
    let has_task = || text.windows(task.len()).any(|part| part == task.as_bytes());
    match KINDS.iter().any(|kind| text.starts_with(kind)) && has_task() {
        true => Ok(()),
        false => Err(format!("a client got {}", String::from_utf8_lossy(text))),
    }
}

/// Ends a stream.
fn end_of(task: &str) -> String {
    format!(r#"{{"type":"CONTROL","action":"END","sessionId":"{task}"}}"#)
}

/// Publishes a result whose audio grows.
fn begin_to_grow(inbox: &mut TcpStream, prefix: &str, task: &str) -> Result<(), Fault> {
    let broken = |error: std::io::Error| format!("cannot publish: {error}");
    let json = published(Some(task), true);
    let json = json.replacen('{', r#"{"audio_growing":true,"#, 1);
    let channel = format!("{prefix}{task}");
    let mut command = Vec::new();
    resp::push_command(&mut command, &[b"PUBLISH", channel.as_bytes(), json.as_bytes()]);
    inbox.write_all(&command).map_err(broken)?;
    let mut answer = [0; 64];
    let count = inbox.read(&mut answer).map_err(broken)?;
    match resp::parse(&answer[..count])? {
        Some((Value::Integer(_), _)) => Ok(()),
        other => Err(format!("PUBLISH was answered with {other:?}")),
    }
}

fn dial(address: SocketAddr, target: &str) -> Result<OwnedFd, Fault> {
    let socket = net::dial(address).map_err(|error| format!("cannot connect: {error}"))?;
    let request = wire::upgrade_request(target, &address.to_string(), &wire::fresh_key());
    patiently(|| match net::send(&socket, &request) {
        Ok(Io::Moved(count)) if count == request.len() => Ok(Some(())),
        Ok(Io::Blocked) => Ok(None),
        Ok(_) => Err("half a request was sent".into()),
        Err(error) => Err(format!("cannot connect: {error}")),
    })?;
    Ok(socket)
}

/// The answer to an upgrade, and nothing behind it.
fn read_answer(socket: &OwnedFd) -> Result<(), Fault> {
    let mut answer = Vec::new();
    patiently(|| {
        let mut byte = [0];
        loop {
            match net::recv(socket, &mut byte).map_err(|error| error.to_string())? {
                Io::Moved(_) => answer.push(byte[0]),
                Io::Blocked => return Ok(None),
                Io::Ended => return Err("the target ended a connection".into()),
            }
            if answer.ends_with(b"\r\n\r\n") {
                return match wire::parse_answer(&answer)?.map(|answer| answer.status) {
                    Some(101) => Ok(Some(())),
                    _ => Err(format!("no upgrade: {}", String::from_utf8_lossy(&answer))),
                };
            }
        }
    })
}

/// The target's connection to the backend, upgraded.
fn accept(backend: &TcpListener) -> Result<OwnedFd, Fault> {
    let socket = patiently(|| net::accept(backend).map_err(|error| error.to_string()))?;
    let mut head = vec![0; wire::HEAD_BYTES_MAX];
    let mut length = 0;
    let request = patiently(|| match net::recv(&socket, &mut head[length..]) {
        Ok(Io::Moved(count)) => {
            length += count;
            wire::parse_request(&head[..length])
        }
        Ok(Io::Blocked) => Ok(None),
        Ok(Io::Ended) => Err("the target ended a connection".into()),
        Err(error) => Err(error.to_string()),
    })?;
    net::send(&socket, &wire::upgrade_answer(&request.key)).map_err(|error| error.to_string())?;
    Ok(socket)
}

fn patiently<T>(mut attempt: impl FnMut() -> Result<Option<T>, Fault>) -> Result<T, Fault> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(done) = attempt()? {
            return Ok(done);
        }
        crate::interrupt::check()?;
        std::thread::sleep(Duration::from_micros(50));
    }
    Err("the target does not answer".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floor::{pipe, speech};
    use std::thread;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = net::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn play(
        address: SocketAddr,
        backend: &TcpListener,
        load: Speech<'_>,
    ) -> Result<Outcome, Fault> {
        run(address, backend, &load, Limits::seconds(0.3), &mut ())
    }

    #[test]
    fn every_source_is_heard_through_its_floor() {
        let folder = std::env::temp_dir().join(format!("bench-speech-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let files = Source::Files { folder: &folder, publish: None };
        for (from, source, pace) in [
            (speech::Source::Memory, Source::Binary, None),
            (speech::Source::Spool(folder.clone()), Source::Binary, Some(50.0)),
            (speech::Source::Files(folder.clone()), files, Some(50.0)),
            (speech::Source::Files(folder.clone()), files, None),
        ] {
            let (service, address) = listener();
            thread::spawn(move || speech::serve(from, &service).unwrap());
            let load = Speech { source, streams: 5, chunk_bytes: 960, pace };
            let outcome = play(address, &listener().0, load).unwrap();
            assert!(outcome.count > 40, "{source:?}: {} chunks", outcome.count);
            assert_eq!(outcome.bytes, outcome.count * 960);
            assert_eq!(outcome.latencies.len() as u64, outcome.count);
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "files were left");
        fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn relayed_messages_are_compared_with_what_was_sent() {
        let (backend, behind) = listener();
        let (service, address) = listener();
        let settings = pipe::Settings {
            listen: address,
            backend: net::Endpoint::Tcp(behind),
            splice: false,
            buffer: 64 * 1024,
        };
        thread::spawn(move || pipe::serve(settings, &service));
        let load = Speech { source: Source::Relayed, streams: 2, chunk_bytes: 65_536, pace: None };
        let outcome = play(address, &backend, load).unwrap();
        assert!(outcome.count > 2 && outcome.bytes == outcome.count * 65_536);
    }

    #[test]
    fn a_changed_byte_is_found_wherever_chunks_are_cut() {
        let pattern: Vec<u8> = (0..100).collect();
        let twice = [&pattern[..], &pattern[..]].concat();
        for at in 0..100 {
            for length in [0, 1, 99, 100] {
                assert!(is_repeated(&twice[at..at + length], &pattern, 300 + at as u64));
            }
        }
        let mut wrong = twice.clone();
        wrong[150] ^= 1;
        assert!(!is_repeated(&wrong, &pattern, 0) && is_repeated(&wrong[..150], &pattern, 0));
        assert!(!is_repeated(&twice, &pattern, 1));
    }

    #[test]
    fn errors_and_messages_of_other_tasks_end_the_run() {
        let task = fresh_task();
        assert!(
            check_text(format!(r#"{{"type":"audio_chunk","task_id":"{task}"}}"#).as_bytes(), &task)
                .is_ok()
        );
        assert!(
            check_text(format!(r#"{{"status":"error","task_id":"{task}"}}"#).as_bytes(), &task)
                .is_err()
        );
        assert!(check_text(br#"{"type":"audio_chunk","task_id":"other"}"#, &task).is_err());
    }
}
