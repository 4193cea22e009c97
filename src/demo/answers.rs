//! Answers: a text and a sound file, published to the inbox.

use super::IO_TIMEOUT;
use super::recording::Heard;
use super::upload::Input;
use super::voice::{NOTE_SECONDS, NOTES, wav};
use log::debug;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Sound files on the disk at a time. The oldest is removed for a new one.
pub const FILES_MAX: usize = 64;

/// Publishes a result: task id, JSON object.
pub type Publish = dyn Fn(&str, &str) -> io::Result<()> + Send + Sync;

/// Makes answers and publishes them.
pub struct Responder {
    publish: Box<Publish>,
    audio_root: PathBuf,
    pub delay: Duration,
    files: Mutex<Files>,
}

/// Sound files on the disk.
#[derive(Default)]
struct Files {
    oldest_first: VecDeque<PathBuf>,
    /// The demo has ended: none may be added.
    is_closed: bool,
}

impl Responder {
    pub fn new(publish: Box<Publish>, audio_root: PathBuf, delay: Duration) -> Responder {
        Responder { publish, audio_root, delay, files: Mutex::default() }
    }

    /// Publishes the answer to `input`, with the tune of its words and captions for it.
    pub fn answer(&self, task_id: &str, input: &Input) -> io::Result<()> {
        let name = format!("demo-{task_id}.wav");
        let reply = reply_to(input);
        let tune = match input {
            Input::Text(text) => wav(text),
            Input::Recording(_) => wav(&reply),
        };
        self.keep(self.audio_root.join(&name), &tune)?;
        let captions = captions(&reply);
        let result = json!({"text": reply, "audio_file": name, "captions": captions});
        (self.publish)(task_id, &result.to_string())
    }

    /// Writes a new file. The oldest one is removed first if there are too many.
    pub fn keep(&self, path: PathBuf, bytes: &[u8]) -> io::Result<()> {
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
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        files.oldest_first.push_back(path);
        file.write_all(bytes)
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
            let heard = Heard::new(recording);
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

/// Publishes to a channel of the inbox, in the Redis protocol.
///
/// # Errors
/// When the inbox cannot be reached in [`IO_TIMEOUT`], or refuses.
pub fn publish(inbox: SocketAddr, channel: &str, json: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&inbox, IO_TIMEOUT)?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
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
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread::{self, JoinHandle};

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
        let reply = reply_to(&Input::Recording(wav("Hello")));
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
    }
}
