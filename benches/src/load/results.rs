//! What result delivery sends to a waiting client, and the check of it, byte for byte.
//!
//! `Delivery` is fed whatever arrives, cut anywhere. Audio is compared inside the read buffer and
//! never stored, so that the client costs little beside the program under test.

use crate::Fault;
use crate::wire::{self, FrameHead};
use serde_json::{Value, json};

/// The `text` of every result that the load generator publishes.
pub const TEXT: &str = "The quick brown fox says: konnichiwa, chat!";
/// The payload bytes of one audio frame.
pub const CHUNK_BYTES: u64 = 64 * 1024;
/// Text messages are shorter than this.
const TEXT_BYTES_MAX: u64 = 4096;

/// The JSON a worker publishes. `audio` is a file's name; `last` false: more results follow.
pub fn published(audio: Option<&str>, last: bool) -> String {
    let audio = audio.map_or(String::new(), |name| format!(r#","audio_file":"{name}""#));
    let more = if last { "" } else { r#","final":false"# };
    format!(r#"{{"text":"{TEXT}"{audio}{more}}}"#)
}

/// The text message of a result.
pub fn text_message(task: &str, id: u32, audio: bool, last: bool) -> String {
    let media = if audio { r#","audio_type":"audio/wav""# } else { "" };
    let more = if last { "" } else { r#","final":false"# };
    format!(
        r#"{{"status":"success","task_id":"{task}","content":"{TEXT}","audio_present":{audio},"result_id":{id}{media}{more}}}"#
    )
}

/// The text message before a chunk.
pub fn chunk_message(task: &str, chunk: u64, chunks: u64) -> String {
    format!(
        r#"{{"type":"audio_chunk","task_id":"{task}","chunk_id":{chunk},"total_chunks":{chunks}}}"#
    )
}

/// The text message after the last chunk.
pub fn complete_message(task: &str) -> String {
    format!(r#"{{"type":"audio_complete","task_id":"{task}"}}"#)
}

/// A task id as a worker makes them: a random UUID.
pub fn fresh_task() -> String {
    let id = fastrand::u128(..);
    let (a, b, c) = ((id >> 96) as u32, (id >> 80) as u16, (id >> 64) as u16 & 0x0fff | 0x4000);
    let (d, e) = ((id >> 48) as u16 & 0x3fff | 0x8000, id as u64 & 0xffff_ffff_ffff);
    format!("{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
}

/// The expected form of the text message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As the protocol says.
    Delivered,
    /// The published bytes unchanged (the bare subscriber).
    AsPublished,
}

/// What one piece of input completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Text messages of results.
    pub texts: u32,
    /// Results including their audio.
    pub results: u32,
    /// Audio payload bytes.
    pub audio_bytes: u64,
    pub pings: u32,
    pub closed: bool,
}

/// What one client expects next.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub task: String,
    shape: Shape,
    /// Whether each result is the last for its task.
    last: bool,
    /// Length of the audio that each result has; `None` for none.
    audio: Option<u64>,
    /// The `result_id` of the next result.
    id: u32,
    next: Next,
    /// An incomplete frame; never audio.
    held: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Text,
    ChunkText(u64),
    ChunkFrame(u64),
    /// Payload of a chunk: the place in the audio, and the place where the chunk ends.
    Chunk {
        at: u64,
        end: u64,
    },
    Complete,
    Close,
    Nothing,
}

impl Delivery {
    pub fn new(task: String, shape: Shape, last: bool, audio: Option<u64>) -> Delivery {
        Delivery { task, shape, last, audio, id: 0, next: Next::Text, held: Vec::new() }
    }

    /// Releases the spare memory of an idle client.
    pub fn rest(&mut self) {
        self.held = Vec::new();
    }

    /// Whether the connection may end now.
    pub fn is_over(&self) -> bool {
        self.next == Next::Nothing && self.held.is_empty()
    }

    /// Checks the next bytes; `audio` is what the file holds.
    pub fn observe(&mut self, mut bytes: &[u8], audio: &[u8]) -> Result<Progress, Fault> {
        let mut progress = Progress::default();
        while !bytes.is_empty() {
            if let Next::Chunk { at, end } = self.next {
                let count = bytes.len().min((end - at) as usize);
                if bytes[..count] != audio[at as usize..at as usize + count] {
                    return Err(format!("audio bytes from {at} on are not those of the file"));
                }
                bytes = &bytes[count..];
                progress.audio_bytes += count as u64;
                self.advance_chunk(at + count as u64, end);
            } else if self.held.is_empty() {
                let used = self.take_frame(bytes, &mut progress)?;
                if used == 0 {
                    self.held.extend_from_slice(bytes);
                    break;
                }
                bytes = &bytes[used..];
            } else {
                // Byte by byte past a cut: at most one small frame is ever taken this way.
                let mut held = std::mem::take(&mut self.held);
                held.push(bytes[0]);
                bytes = &bytes[1..];
                let used = self.take_frame(&held, &mut progress)?;
                held.drain(..used);
                self.held = held;
            }
        }
        Ok(progress)
    }

    /// Takes one frame, or the head of a chunk, from the start of `bytes`; 0 while it is
    /// incomplete.
    fn take_frame(&mut self, bytes: &[u8], progress: &mut Progress) -> Result<usize, Fault> {
        let Some(head) = wire::parse_frame_head(bytes) else { return Ok(0) };
        if head.mask.is_some() {
            return Err("a masked frame came from the server".into());
        }
        if let (Next::ChunkFrame(chunk), wire::BINARY) = (self.next, head.first) {
            return self.begin_chunk(chunk, head).map(|()| head.size);
        }
        if head.payload > TEXT_BYTES_MAX {
            return Err(format!("expected {:?}, got a frame of {} bytes", self.next, head.payload));
        }
        let end = head.size + head.payload as usize;
        let Some(payload) = bytes.get(head.size..end) else { return Ok(0) };
        match head.first {
            wire::TEXT => self.take_text(payload, progress)?,
            wire::PING => progress.pings += 1,
            wire::CLOSE
                if self.next == Next::Close && payload.starts_with(&1000u16.to_be_bytes()) =>
            {
                self.next = Next::Nothing;
                progress.closed = true;
            }
            first => {
                let said = String::from_utf8_lossy(payload);
                return Err(format!("expected {:?}, got frame {first:#x} {said:?}", self.next));
            }
        }
        Ok(end)
    }

    fn take_text(&mut self, payload: &[u8], progress: &mut Progress) -> Result<(), Fault> {
        let chunks = self.chunks();
        match self.next {
            Next::Text => {
                let expected = match self.shape {
                    Shape::Delivered => {
                        text_message(&self.task, self.id, self.audio.is_some(), self.last)
                    }
                    Shape::AsPublished => published(None, self.last),
                };
                same_json(payload, &expected)?;
                progress.texts += 1;
                match self.audio {
                    Some(0) => self.next = Next::Complete,
                    Some(_) => self.next = Next::ChunkText(0),
                    None => self.finish(progress),
                }
            }
            Next::ChunkText(chunk) => {
                same_json(payload, &chunk_message(&self.task, chunk, chunks))?;
                self.next = Next::ChunkFrame(chunk);
            }
            Next::Complete => {
                same_json(payload, &complete_message(&self.task))?;
                self.finish(progress);
            }
            other => {
                return Err(format!(
                    "expected {other:?}, got text {:?}",
                    String::from_utf8_lossy(payload)
                ));
            }
        }
        Ok(())
    }

    fn begin_chunk(&mut self, chunk: u64, head: FrameHead) -> Result<(), Fault> {
        let at = chunk * CHUNK_BYTES;
        let end = (at + CHUNK_BYTES).min(self.audio.unwrap_or_default());
        if head.payload != end - at {
            return Err(format!(
                "chunk {chunk} has {} bytes instead of {}",
                head.payload,
                end - at
            ));
        }
        self.advance_chunk(at, end);
        Ok(())
    }

    fn advance_chunk(&mut self, at: u64, end: u64) {
        self.next = match end.div_ceil(CHUNK_BYTES) {
            _ if at < end => Next::Chunk { at, end },
            done if done == self.chunks() => Next::Complete,
            done => Next::ChunkText(done),
        };
    }

    fn finish(&mut self, progress: &mut Progress) {
        progress.results += 1;
        self.id += 1;
        self.next = if self.last { Next::Close } else { Next::Text };
    }

    fn chunks(&self) -> u64 {
        self.audio.unwrap_or_default().div_ceil(CHUNK_BYTES)
    }
}

/// The same bytes, or at least the same JSON: the protocol fixes fields and values, not their
/// order.
fn same_json(got: &[u8], expected: &str) -> Result<(), Fault> {
    if got == expected.as_bytes() {
        return Ok(());
    }
    let value = serde_json::from_slice::<Value>(got).unwrap_or_else(|_| json!("not JSON"));
    if serde_json::from_str::<Value>(expected).is_ok_and(|expected| expected == value) {
        return Ok(());
    }
    Err(format!("expected {expected}, got {}", String::from_utf8_lossy(got)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audio(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 253) as u8).collect()
    }

    fn exchange(task: &str, id: u32, audio: &[u8], last: bool) -> Vec<u8> {
        let mut wire = Vec::new();
        let chunks = (audio.len() as u64).div_ceil(CHUNK_BYTES);
        wire::push_frame(
            &mut wire,
            wire::TEXT,
            text_message(task, id, true, last).as_bytes(),
            None,
        );
        for (at, chunk) in audio.chunks(CHUNK_BYTES as usize).enumerate() {
            wire::push_frame(
                &mut wire,
                wire::TEXT,
                chunk_message(task, at as u64, chunks).as_bytes(),
                None,
            );
            wire::push_frame(&mut wire, wire::BINARY, chunk, None);
        }
        wire::push_frame(&mut wire, wire::TEXT, complete_message(task).as_bytes(), None);
        if last {
            wire::push_frame(&mut wire, wire::CLOSE, &1000u16.to_be_bytes(), None);
        }
        wire
    }

    #[test]
    fn a_delivery_is_followed_whatever_the_pieces() {
        for length in [0, 1, 65_535, 65_536, 65_537, 200_000] {
            let (task, audio) = (fresh_task(), audio(length));
            let wire = exchange(&task, 0, &audio, true);
            for piece in [1, 2, 7, 1000, 65_536, wire.len()] {
                let mut delivery =
                    Delivery::new(task.clone(), Shape::Delivered, true, Some(length as u64));
                let mut sum = Progress::default();
                for bytes in wire.chunks(piece) {
                    assert!(!delivery.is_over());
                    let progress = delivery.observe(bytes, &audio).unwrap();
                    sum.texts += progress.texts;
                    sum.results += progress.results;
                    sum.audio_bytes += progress.audio_bytes;
                    sum.closed |= progress.closed;
                }
                let all = Progress {
                    texts: 1,
                    results: 1,
                    audio_bytes: length as u64,
                    pings: 0,
                    closed: true,
                };
                assert_eq!(sum, all, "length {length}, pieces of {piece}");
                assert!(delivery.is_over());
            }
        }
    }

    #[test]
    fn results_that_are_not_the_last_leave_the_client_waiting() {
        let (task, audio) = (fresh_task(), audio(100_000));
        let mut delivery = Delivery::new(task.clone(), Shape::Delivered, false, Some(100_000));
        for id in 0..3 {
            let progress = delivery.observe(&exchange(&task, id, &audio, false), &audio).unwrap();
            assert_eq!((progress.results, progress.closed), (1, false));
        }
    }

    #[test]
    fn a_wrong_byte_anywhere_is_a_fault() {
        let (task, audio) = (fresh_task(), audio(70_000));
        let wire = exchange(&task, 0, &audio, true);
        for at in (0..wire.len()).step_by(997).chain([0, 1, wire.len() - 1]) {
            let mut wrong = wire.clone();
            wrong[at] ^= 0x40;
            let mut delivery = Delivery::new(task.clone(), Shape::Delivered, true, Some(70_000));
            assert!(delivery.observe(&wrong, &audio).is_err() || !delivery.is_over(), "byte {at}");
        }
    }

    #[test]
    fn the_order_of_fields_is_free_and_their_values_are_not() {
        assert!(same_json(br#"{"b":1,"a":2}"#, r#"{"a":2,"b":1}"#).is_ok());
        assert!(same_json(br#"{"b":1,"a":3}"#, r#"{"a":2,"b":1}"#).is_err());
        assert!(same_json(b"", r#"{"a":2}"#).is_err());
    }

    #[test]
    fn task_ids_are_random_uuids() {
        let (one, two) = (fresh_task(), fresh_task());
        assert_ne!(one, two);
        assert_eq!(one.len(), 36);
        assert_eq!((&one[14..15], one[19..20].contains(['8', '9', 'a', 'b'])), ("4", true));
    }

    #[test]
    fn what_is_published_is_json() {
        for audio in [None, Some("bench.wav")] {
            for last in [true, false] {
                let value: Value = serde_json::from_str(&published(audio, last)).unwrap();
                assert_eq!(value["text"], TEXT);
                assert_eq!(value.get("audio_file").and_then(Value::as_str), audio);
                assert_eq!(value.get("final").and_then(Value::as_bool), (!last).then_some(false));
            }
        }
    }
}
