//! Answers: a text, published to the inbox, and a sound file that grows while it is delivered.

use super::IO_TIMEOUT;
use super::recording::Recording;
use super::upload::Input;
use super::voice::{NOTE_SECONDS, NOTES, Tune};
use crate::proto::resp::{Decoder, Incoming, classify};
use log::debug;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Sound files on the disk at a time. The oldest is removed for a new one.
pub const FILES_MAX: usize = 64;

/// Bytes of one message on a control channel.
const CONTROL_BYTES_MAX: usize = 64 * 1024;

/// Publishes a result: task id, JSON object.
pub type Publish = dyn Fn(&str, &str) -> io::Result<()> + Send + Sync;

/// Begins to listen for what is asked of the worker of a task.
pub type Listen = dyn Fn(&str) -> TaskControl + Send + Sync;

/// Makes answers and publishes them.
pub struct Responder {
    pub publish: Box<Publish>,
    pub listen: Box<Listen>,
    pub audio_root: PathBuf,
    /// Between one note and the next.
    pub pause: Duration,
    pub files: Mutex<Files>,
}

/// How an answer ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Complete,
    /// Nobody wants to hear more than these notes.
    Stopped {
        notes: usize,
    },
}

/// Sound files on the disk.
#[derive(Default)]
pub struct Files {
    oldest_first: VecDeque<PathBuf>,
    /// The demo has ended: none may be added.
    is_closed: bool,
}

impl Responder {
    /// Publishes the answer to `input`, and then makes the tune of its words, note by note, until
    /// it is complete or the task is stopped.
    pub fn answer(&self, task_id: &str, input: &Input) -> io::Result<Outcome> {
        // Before anything is published, so that no STOP can be missed.
        let mut control = (self.listen)(task_id);
        let name = format!("demo-{task_id}.wav");
        let reply = reply_to(input);
        let tune = match input {
            Input::Text(text) => Tune::new(text),
            Input::Recording(_) => Tune::new(&reply),
        };
        let mut file = self.create(self.audio_root.join(&name))?;
        file.write_all(&tune.head())?;
        for (index, note) in tune.notes().enumerate() {
            file.write_all(&note)?;
            if index == 0 {
                let result = json!({
                    "text": reply, "audio_file": name, "audio_growing": true,
                    "captions": captions(&reply),
                });
                (self.publish)(task_id, &result.to_string())?;
            }
            if index + 1 < NOTES && control.is_stopped_within(self.pause) {
                return Ok(Outcome::Stopped { notes: index + 1 });
            }
        }
        (self.publish)(task_id, &json!({"audio_end": name}).to_string())?;
        Ok(Outcome::Complete)
    }

    /// Creates a new file. The oldest one is removed first if there are too many.
    pub fn create(&self, path: PathBuf) -> io::Result<File> {
        fs::create_dir_all(&self.audio_root)?;
        let mut files = self.files();
        if files.is_closed {
            return Err(io::Error::other("the demo has ended"));
        }
        while files.oldest_first.len() >= FILES_MAX {
            if let Some(oldest) = files.oldest_first.pop_front() {
                remove(&oldest);
            }
        }
        // `create_new` follows no link, in case the folder is writable for everyone.
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        files.oldest_first.push_back(path);
        Ok(file)
    }

    pub fn clear(&self) {
        let mut files = self.files();
        files.is_closed = true;
        files.oldest_first.drain(..).for_each(|path| remove(&path));
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        debug!(target: "demo", "cannot remove {}: {error}", path.display());
    }
}

/// The words of `text` that are shown with each note: `[{"start": seconds, "text": words}, …]`.
fn captions(text: &str) -> Vec<Value> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let notes = (0..NOTES).filter_map(|note| {
        let words = words.get(note * words.len() / NOTES..(note + 1) * words.len() / NOTES)?;
        let start = (note as f64 * NOTE_SECONDS * 10.0).round() / 10.0;
        (!words.is_empty()).then(|| json!({"start": start, "text": words.join(" ")}))
    });
    notes.collect()
}

fn reply_to(input: &Input) -> String {
    const SHOWN_CHARS: usize = 200;
    let text = match input {
        Input::Text(text) => text,
        Input::Recording(recording) => {
            let heard = Recording::new(recording);
            return format!(
                "I heard you: {heard}. I am the demo's stand-in for an AI, so all I can do is hum."
            );
        }
    };
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!(
        "You said: “{shown}” I am the demo's stand-in for an AI, so all I can do is hum your words."
    )
}

/// What the inbox says about one task, on a connection of its own.
pub struct TaskControl(Option<InboxSubscription>);

struct InboxSubscription {
    stream: TcpStream,
    decoder: Decoder,
    /// Was read, and is not decoded yet.
    unread: Vec<u8>,
}

impl TaskControl {
    /// Nothing will be heard.
    pub const NONE: TaskControl = TaskControl(None);

    /// Subscribes to a task's control channel.
    ///
    /// # Errors
    /// When the inbox cannot be reached in [`IO_TIMEOUT`], or refuses.
    pub fn subscribe(inbox: SocketAddr, channel: &str) -> io::Result<TaskControl> {
        let mut stream = connect(inbox)?;
        stream.write_all(&redis::cmd("SUBSCRIBE").arg(channel).get_packed_command())?;
        let decoder = Decoder::new(CONTROL_BYTES_MAX);
        let mut subscription = InboxSubscription { stream, decoder, unread: Vec::new() };
        match subscription.next_within(IO_TIMEOUT)? {
            Some(Incoming::Subscribed { .. }) => Ok(TaskControl(Some(subscription))),
            other => Err(io::Error::other(format!("the inbox answered SUBSCRIBE with {other:?}"))),
        }
    }

    /// Waits for `pause`, or until the task is stopped.
    fn is_stopped_within(&mut self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        while let Some(subscription) = &mut self.0 {
            match subscription.next_within(end.saturating_duration_since(Instant::now())) {
                Ok(Some(Incoming::Message { payload, .. })) if is_stop(&payload) => return true,
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(error) => {
                    debug!(target: "demo", "the task can no longer be stopped: {error}");
                    *self = TaskControl::NONE;
                }
            }
        }
        thread::sleep(end.saturating_duration_since(Instant::now()));
        false
    }
}

impl InboxSubscription {
    /// What comes next; `None` if nothing came in time.
    fn next_within(&mut self, timeout: Duration) -> io::Result<Option<Incoming>> {
        let end = Instant::now() + timeout;
        loop {
            let mut input = self.unread.as_slice();
            let value = self.decoder.decode(&mut input).map_err(|error| {
                io::Error::other(format!("the inbox is not understood: {error}"))
            })?;
            let decoded = self.unread.len() - input.len();
            self.unread.drain(..decoded);
            if let Some(value) = value {
                return Ok(Some(classify(value, true)));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut piece = [0; 512];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.unread.extend(piece.iter().take(length)),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// `{"action":"STOP"}`.
fn is_stop(payload: &[u8]) -> bool {
    let message = serde_json::from_slice::<Value>(payload);
    message.is_ok_and(|message| message.get("action").is_some_and(|action| action == "STOP"))
}

fn connect(inbox: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&inbox, IO_TIMEOUT)?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    Ok(stream)
}

/// Publishes to a channel of the inbox, in the Redis protocol.
///
/// # Errors
/// When the inbox cannot be reached in [`IO_TIMEOUT`], or refuses.
pub fn publish(inbox: SocketAddr, channel: &str, json: &str) -> io::Result<()> {
    let mut stream = connect(inbox)?;
    stream.write_all(&redis::cmd("PUBLISH").arg(channel).arg(json).get_packed_command())?;
    match redis::Parser::new().parse_value(&mut stream) {
        Ok(redis::Value::Int(_)) => Ok(()),
        Ok(redis::Value::ServerError(refusal)) => {
            Err(io::Error::other(format!("the inbox refused it: {refusal}")))
        }
        Ok(_) => Err(io::Error::other("the inbox answered PUBLISH with something unexpected")),
        Err(error) => Err(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread::JoinHandle;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn captions_are_the_words_of_the_reply_in_order() {
        for text in ["One two three", "", "語", &"many words ".repeat(100)] {
            let captions = captions(text);
            let words: Vec<_> = captions.iter().map(|one| one["text"].as_str().unwrap()).collect();
            assert_eq!(words.join(" "), text.split_whitespace().collect::<Vec<_>>().join(" "));
            let starts: Vec<_> =
                captions.iter().map(|one| one["start"].as_f64().unwrap()).collect();
            assert!(starts.is_sorted() && starts.iter().all(|start| *start < 4.8), "{starts:?}");
        }
    }

    #[test]
    fn a_recording_is_answered_with_what_was_heard() {
        let reply = reply_to(&Input::Recording(super::super::voice::tests::wav("Hello")));
        assert!(reply.starts_with("I heard you: 4.8 seconds of WAV, 230.4 kilobytes. "), "{reply}");
    }

    /// Takes one connection, sends `answer` and returns what it received.
    fn inbox(answer: &'static [u8], asked_bytes: usize) -> (SocketAddr, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let thread = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut asked = vec![0; asked_bytes];
            stream.read_exact(&mut asked).unwrap();
            stream.write_all(answer).unwrap();
            asked
        });
        (address, thread)
    }

    #[test]
    fn publishing_speaks_the_redis_protocol() {
        let asked = b"*3\r\n$7\r\nPUBLISH\r\n$17\r\ntask_response:a-b\r\n$11\r\n{\"a\":\"\xe5\xa3\xb0\"}\r\n";
        let (address, thread) = inbox(b":1\r\n", asked.len());
        publish(address, "task_response:a-b", "{\"a\":\"声\"}").unwrap();
        assert_eq!(thread.join().unwrap(), asked);
    }

    #[test]
    fn an_answer_ends_at_the_stop_of_its_task() {
        const SUBSCRIBED: &str = "*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n";
        let message =
            |json: &str| format!("*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n${}\r\n{json}\r\n", json.len());
        for (then, is_stopped) in [
            (message(r#"{"action":"STOP"}"#), true),
            (message(r#"{"action":"LEFT"}"#) + &message(r#"{"action":"STOP"}"#), true),
            (message(r#"{"action":"LEFT"}"#), false),
            (message("what?"), false),
            ("nonsense\r\n".to_owned(), false),
            (String::new(), false),
        ] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let address = listener.local_addr().unwrap();
            let answer = format!("{SUBSCRIBED}{then}");
            let thread = thread::spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                let mut asked = [0; 26];
                stream.read_exact(&mut asked).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                asked
            });
            let mut control = TaskControl::subscribe(address, "c").unwrap();
            assert_eq!(&thread.join().unwrap(), b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n");
            let pause = if is_stopped { PATIENCE } else { Duration::from_millis(50) };
            assert_eq!(control.is_stopped_within(pause), is_stopped, "{then}");
        }
        let mut none = TaskControl::NONE;
        assert!(!none.is_stopped_within(Duration::ZERO));
    }

    #[test]
    fn a_refusal_of_the_inbox_is_an_error_with_its_reason() {
        for (answer, why) in [
            (&b"-ERR unknown command\r\n"[..], "unknown command"),
            (b"+OK\r\n", "with something unexpected"),
            (b"", ""),
        ] {
            let (address, thread) = inbox(answer, 1);
            let error = publish(address, "c", "{}").unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            thread.join().unwrap();
        }
        let (address, thread) = inbox(b"-ERR unknown command\r\n", 1);
        assert!(TaskControl::subscribe(address, "c").is_err());
        thread.join().unwrap();
    }
}
