//! A client that listens to recordings, and writes down what it got and when.
//!
//! What does not fit the order of messages is a fault at once. Whether the audio is the right one
//! is judged in the end, by the world, which knows what happened to the files.

use crate::kernel::{Action, End, Kernel, LinkId};
use crate::peers::head_length;
use crate::wire::{BINARY, CLOSE, Frame, FrameKind, TEXT, read_head};
use aivtuber_gateway::base::moment::Moment;
use serde_json::Value;
use std::collections::VecDeque;
use std::time::Duration;

/// How it reads, and when it leaves.
#[derive(Debug, Clone)]
pub struct Manner {
    pub read_bite: usize,
    pub read_pace: Duration,
    pub leaves_after: Duration,
    pub leaving: End,
}

/// A result as it came.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The `content`, which is the number of the result.
    pub result: usize,
    /// Its `result_id`.
    pub number: u64,
    /// Bytes of the connection up to the end of the text, of the last audio, and of everything.
    pub text_end: u64,
    pub audio_end: u64,
    pub end: u64,
    pub has_audio: bool,
    /// Bytes that it had before, when it came back for the rest.
    pub had: usize,
    pub audio: Vec<u8>,
    pub chunks: u64,
    pub outcome: Outcome,
    announced: Option<Announced>,
    total: Option<u64>,
    is_open_ended: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more came of it.
    CutShort,
    Complete,
    Error(String),
}

#[derive(Debug, Clone, Copy)]
struct Announced {
    chunk: u64,
}

pub struct Listener {
    pub link: LinkId,
    pub manner: Manner,
    pub heard: Vec<Heard>,
    pub status: Option<u16>,
    pub goodbye: Option<(u16, String)>,
    pub saw_end: Option<End>,
    /// It left before the gateway did.
    pub left_first: bool,
    pub is_over: bool,
    pub came_at: Moment,
    /// The rest of a result that it comes back for: number, chunks, bytes.
    rest: Option<(usize, u64, Vec<u8>)>,
    chunk_size: usize,
    inbox: Vec<u8>,
    offset: u64,
    out: VecDeque<u8>,
    read_at: Moment,
    leave_at: Moment,
}

impl Listener {
    pub fn new(
        kernel: &mut Kernel,
        link: LinkId,
        manner: Manner,
        rest: Option<(usize, u64, Vec<u8>)>,
        request: &[u8],
        chunk_size: usize,
    ) -> Listener {
        let leave_at = kernel.now + manner.leaves_after;
        kernel.at(leave_at, Action::Peer(link));
        kernel.wake_peer(link);
        Listener {
            link,
            manner,
            heard: Vec::new(),
            status: None,
            goodbye: None,
            saw_end: None,
            left_first: false,
            is_over: false,
            came_at: kernel.now,
            rest,
            chunk_size,
            inbox: Vec::new(),
            offset: 0,
            out: request.iter().copied().collect(),
            read_at: kernel.now,
            leave_at,
        }
    }

    /// Reads, writes, leaves.
    pub fn tick(&mut self, kernel: &mut Kernel) -> Result<(), String> {
        if self.is_over {
            return Ok(());
        }
        self.read(kernel)?;
        self.write(kernel);
        let is_closed = self.goodbye.is_some() && self.out.is_empty();
        if self.saw_end.is_some() || kernel.now >= self.leave_at || is_closed {
            self.left_first = self.goodbye.is_none() && self.saw_end.is_none();
            match self.left_first && self.manner.leaving == End::Reset {
                true => kernel.end(self.link, End::Reset),
                false => drop(kernel.close(self.link)),
            }
            self.is_over = true;
        }
        Ok(())
    }

    fn write(&mut self, kernel: &mut Kernel) {
        let n = self.out.len().min(kernel.window(self.link));
        let bytes: Vec<u8> = self.out.drain(..n).collect();
        if !bytes.is_empty() {
            kernel.send(self.link, &bytes);
        }
    }

    fn read(&mut self, kernel: &mut Kernel) -> Result<(), String> {
        while kernel.is_to_receive(self.link) {
            if kernel.now < self.read_at {
                kernel.at(self.read_at, Action::Peer(self.link));
                return Ok(());
            }
            let bytes = kernel.receive(self.link, self.manner.read_bite);
            self.read_at = kernel.now + self.manner.read_pace;
            self.inbox.extend(bytes);
            self.take(kernel)?;
        }
        self.saw_end = self.saw_end.or(kernel.received_end(self.link));
        Ok(())
    }

    fn take(&mut self, kernel: &mut Kernel) -> Result<(), String> {
        if self.status.is_none() {
            let Some(length) = head_length(&self.inbox) else { return Ok(()) };
            let status = std::str::from_utf8(&self.inbox[9..12]).ok();
            self.status = status.and_then(|text| text.parse().ok());
            self.inbox.drain(..length);
            self.offset += length as u64;
        }
        while let Some((opcode, head, length, _)) = read_head(&self.inbox) {
            let end = head + length as usize;
            if self.inbox.len() < end {
                return Ok(());
            }
            let payload = self.inbox[head..end].to_vec();
            self.inbox.drain(..end);
            self.offset += end as u64;
            if self.goodbye.is_some() {
                return Err("a frame behind a Close frame".into());
            }
            match opcode {
                TEXT => self.take_text(kernel, &payload)?,
                BINARY => self.take_chunk(&payload)?,
                CLOSE => self.take_close(kernel, &payload),
                _ => return Err(format!("a frame of kind {opcode}")),
            }
        }
        Ok(())
    }

    fn take_close(&mut self, kernel: &mut Kernel, payload: &[u8]) {
        let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
        let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
        kernel.note(|| format!("listener {} is closed {code} {reason}", self.link));
        self.goodbye = Some((code, reason));
        let frame = Frame::new(
            FrameKind::plain(CLOSE, Some([1, 2, 3, 4])),
            &payload[..payload.len().min(2)],
        );
        self.out.extend(frame.bytes);
    }

    fn take_text(&mut self, kernel: &mut Kernel, text: &[u8]) -> Result<(), String> {
        let message: Value = serde_json::from_slice(text).map_err(|why| why.to_string())?;
        kernel.note(|| format!("listener {} gets {message}", self.link));
        let (offset, link) = (self.offset, self.link);
        let current = self.heard.last_mut().filter(|heard| heard.outcome == Outcome::CutShort);
        let is_in_audio = current.as_ref().is_some_and(|heard| heard.has_audio);
        if current.as_ref().is_some_and(|heard| heard.announced.is_some()) {
            return Err(format!("{message} in place of a chunk"));
        }
        if let Some(error) = message["error"].as_str() {
            // Before any text, it is about the rest of the audio that was asked for.
            if let Some(heard) = current {
                (heard.outcome, heard.end) = (Outcome::Error(error.into()), offset);
            } else if self.rest.is_none() || !self.heard.is_empty() {
                return Err(format!("{message} out of place"));
            }
            return Ok(());
        }
        match (message["type"].as_str(), current) {
            (Some("audio_chunk"), Some(heard)) if is_in_audio => heard.announce(&message),
            (Some("audio_complete"), Some(heard)) if is_in_audio => {
                (heard.outcome, heard.end) = (Outcome::Complete, offset);
                match heard.total {
                    Some(total) if !heard.is_open_ended && total != heard.chunks => {
                        Err(format!("{} chunks of {total} are complete", heard.chunks))
                    }
                    _ => Ok(()),
                }
            }
            (None, None) => self.begin_result(&message, offset),
            (None, Some(heard)) if !heard.has_audio => {
                // Its audio is missing, and the reason has to follow.
                Err(format!("{message} before the error that listener {link} has to get"))
            }
            _ => Err(format!("{message} out of place")),
        }
    }

    fn begin_result(&mut self, message: &Value, offset: u64) -> Result<(), String> {
        let content = message["content"].as_str().and_then(|text| text.parse().ok());
        let result = content.ok_or("a text that was never published")?;
        if self.heard.iter().any(|heard| heard.result == result) {
            return Err(format!("result {result} came twice"));
        }
        let rest = self.rest.take_if(|(rest, ..)| *rest == result);
        let (chunks, had) = rest.map_or((0, Vec::new()), |(_, chunks, had)| (chunks, had));
        let has_audio = message["audio_present"] == true;
        // A plain text has no audio, and no error follows it.
        let is_plain = message["plain"] == true;
        let outcome = if is_plain { Outcome::Complete } else { Outcome::CutShort };
        let number = message["result_id"].as_u64().ok_or("a result without a number")?;
        self.heard.push(Heard {
            result,
            number,
            text_end: offset,
            audio_end: offset,
            end: offset,
            has_audio,
            had: had.len(),
            audio: had,
            chunks,
            outcome,
            announced: None,
            total: None,
            is_open_ended: false,
        });
        Ok(())
    }

    fn take_chunk(&mut self, bytes: &[u8]) -> Result<(), String> {
        let offset = self.offset;
        let heard = self.heard.last_mut().filter(|heard| heard.outcome == Outcome::CutShort);
        let announced = heard.and_then(|heard| Some((heard.announced.take()?, heard)));
        let Some((announced, heard)) = announced else {
            return Err(format!("a binary message of {} bytes out of place", bytes.len()));
        };
        if bytes.is_empty() || bytes.len() > self.chunk_size {
            return Err(format!("a chunk of {} bytes", bytes.len()));
        }
        heard.audio.extend(bytes);
        heard.audio_end = offset;
        heard.chunks = announced.chunk + 1;
        Ok(())
    }
}

impl Heard {
    /// A chunk follows.
    fn announce(&mut self, message: &Value) -> Result<(), String> {
        let chunk = message["chunk_id"].as_u64();
        if chunk != Some(self.chunks) {
            return Err(format!("{message} after {} chunks", self.chunks));
        }
        let at = message.get("offset").map_or(Some(self.audio.len() as u64), Value::as_u64);
        if at != Some(self.audio.len() as u64) {
            return Err(format!("{message} after {} bytes", self.audio.len()));
        }
        match message["total_chunks"].as_u64() {
            Some(total) if self.total.is_some_and(|old| old != total) => {
                return Err(format!("{message} after another number of chunks"));
            }
            Some(total) => self.total = Some(total),
            None if message.get("offset").is_none() => {
                return Err(format!("{message} without an offset"));
            }
            None => self.is_open_ended = true,
        }
        self.announced = Some(Announced { chunk: self.chunks });
        Ok(())
    }
}
