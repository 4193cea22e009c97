//! What is about to be sent on a WebSocket that the gateway serves itself: frames, and at most one
//! chunk of a file between them.
//!
//! ```text
//!   before: bytes ──► chunk: a range of the file ──► after: bytes
//! ```
//!
//! *Wire order is queue order.* A chunk is the payload of a frame whose head is in `before`, so
//! what comes up while a chunk is being sent (a pong, a Close frame) waits in `after` for the
//! chunk's end. The head leaves with `MSG_MORE`, so that it travels with the first bytes of its
//! payload.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use crate::net::{Conn, Io, OpenFile};
use crate::proto::message::{AudioPresence, Field, SharedResult, TaskId};
use crate::proto::ws::{FrameHead, Opcode};
use std::io::ErrorKind;
use std::rc::Rc;

/// Capacity that is kept from one chunk to the next: enough for the text that announces a chunk,
/// not for a long result.
const KEPT_BYTES: usize = 1024;

/// A field of a result is copied up to this length. A longer one stays in the result, which all
/// clients of the task share.
const COPIED_BYTES_MAX: usize = 16 * 1024;

/// The frames and the chunk that are still to be sent, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    before: Frames,
    chunk_offset: u64,
    chunk_left: u32,
    /// Exists while something waits for the end of a chunk, which is rare.
    after: Option<Box<Frames>>,
}

/// Bytes of frames, and long fields of results between them.
#[derive(Debug, Default)]
struct Frames {
    bytes: Vec<u8>,
    sent: usize,
    /// Exists while there are any.
    fields: Option<Box<SharedFields>>,
}

/// Fields stay here until everything has been sent, so that the ends of frames are known.
#[derive(Debug, Default)]
struct SharedFields {
    list: Vec<SharedField>,
    sent: usize,
}

/// A field whose place is before the byte at `at`.
#[derive(Debug)]
struct SharedField {
    at: usize,
    result: SharedResult,
    field: Field,
    sent: usize,
}

/// The outcome of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flushed {
    /// The socket is full and something is left. Otherwise the outbox is empty.
    pub is_blocked: bool,
    /// Bytes that the socket took.
    pub moved: usize,
}

/// Why a flush cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushError {
    /// The connection to the client.
    Client,
    /// The rest of the chunk: the file ends before it.
    File,
}

impl Outbox {
    /// Appends whole frames; none if `frames` is empty.
    pub fn push(&mut self, frames: &[u8]) {
        if !frames.is_empty() {
            self.tail().bytes.extend_from_slice(frames);
        }
    }

    /// Appends a text message.
    pub fn push_text(&mut self, text: &str) {
        let tail = self.tail();
        FrameHead::of_message(Opcode::Text, text.len() as u64).write(&mut tail.bytes);
        tail.bytes.extend_from_slice(text.as_bytes());
    }

    /// Appends the text message of a result. Returns its length.
    pub fn push_result(
        &mut self,
        result: &SharedResult,
        task: &TaskId,
        audio: AudioPresence,
    ) -> usize {
        let (before, between) = result.message_around(task, audio);
        let (text, extras) = (result.field(Field::Text), result.field(Field::Extras));
        let length = before.len() + text.len() + between.len() + extras.len() + 1;
        let tail = self.tail();
        FrameHead::of_message(Opcode::Text, length as u64).write(&mut tail.bytes);
        tail.bytes.extend_from_slice(before.as_bytes());
        tail.push_field(result, Field::Text);
        tail.bytes.extend_from_slice(between.as_bytes());
        tail.push_field(result, Field::Extras);
        tail.bytes.push(b'}');
        length
    }

    /// Appends a binary message whose payload is `length` bytes of the file, from `offset` on.
    ///
    /// # Panics
    /// If another chunk is in the outbox: there is room for one.
    pub fn push_chunk(&mut self, offset: u64, length: u32) {
        assert!(self.chunk_left == 0, "an outbox holds one chunk at a time");
        let bytes = &mut self.before.bytes;
        FrameHead::of_message(Opcode::Binary, u64::from(length)).write(bytes);
        (self.chunk_offset, self.chunk_left) = (offset, length);
    }

    /// Appends a binary message whose payload is in memory.
    pub fn push_binary(&mut self, payload: &[u8]) {
        let tail = self.tail();
        FrameHead::of_message(Opcode::Binary, payload.len() as u64).write(&mut tail.bytes);
        tail.bytes.extend_from_slice(payload);
    }

    /// Whether everything has been sent.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.chunk_left == 0 && self.after.is_none()
    }

    /// A part of a chunk is still to be sent.
    pub fn has_chunk(&self) -> bool {
        self.chunk_left > 0
    }

    /// Bytes to send that are in memory. A chunk is not.
    pub fn held_bytes(&self) -> usize {
        self.before.unsent() + self.after.as_ref().map_or(0, |after| after.unsent())
    }

    /// Bytes of its own memory.
    pub fn own_bytes(&self) -> usize {
        let after = self.after.as_ref();
        self.before.bytes.capacity() + after.map_or(0, |after| after.bytes.capacity())
    }

    /// Its part of the results that it shares with other clients.
    pub fn shared_bytes(&self) -> usize {
        let after = self.after.iter().flat_map(|after| after.fields());
        let fields = self.before.fields().iter().chain(after);
        fields.map(|one| one.result.bytes() / Rc::strong_count(&one.result)).sum()
    }

    /// No frame has been sent in part.
    pub fn is_at_boundary(&self) -> bool {
        self.before.sent == 0 && (self.chunk_left == 0 || !self.before.is_empty())
    }

    /// Frames that have not been sent whole.
    pub fn unsent_frames(&self) -> u64 {
        let chunk = u64::from(self.chunk_left > 0 && self.before.is_empty());
        let after = self.after.as_ref().map_or(0, |after| after.unsent_frames());
        self.before.unsent_frames() + chunk + after
    }

    /// Drops everything but the rest of a frame that has been sent in part.
    pub fn drop_unsent(&mut self) {
        self.after = None;
        if self.before.is_empty() {
            return; // the chunk, if there is one, has begun
        }
        // The frame of a chunk ends behind the bytes in memory.
        if self.before.drop_unsent() == Remainder::InMemory {
            self.chunk_left = 0;
        }
    }

    /// Sends as much as the socket takes. The chunk is read from `file`.
    ///
    /// # Errors
    /// If the client is gone, or the file has become shorter.
    pub fn flush(
        &mut self,
        sink: &mut Conn,
        file: Option<&OpenFile>,
    ) -> Result<Flushed, FlushError> {
        let mut moved = 0;
        while !self.is_empty() {
            match self.send(sink, file)? {
                Some(n) => moved += n,
                None => return Ok(Flushed { is_blocked: true, moved }),
            }
        }
        Ok(Flushed { is_blocked: false, moved })
    }

    /// Where the next frame is appended.
    fn tail(&mut self) -> &mut Frames {
        if self.chunk_left > 0 { self.after.get_or_insert_default() } else { &mut self.before }
    }

    /// One system call for an outbox that is not empty. `None`: the socket is full.
    fn send(
        &mut self,
        sink: &mut Conn,
        file: Option<&OpenFile>,
    ) -> Result<Option<usize>, FlushError> {
        if self.before.is_empty()
            && self.chunk_left == 0
            && let Some(after) = self.after.take()
        {
            self.before = *after;
        }
        if let Some((bytes, is_last)) = self.before.next() {
            let has_more = !is_last || self.chunk_left > 0;
            let io = if has_more { sink.write_more(bytes) } else { sink.write(bytes) };
            let Io::Moved(n) = io.map_err(|_| FlushError::Client)? else { return Ok(None) };
            self.before.advance(n);
            return Ok(Some(n));
        }
        let Some(file) = file else { return Err(FlushError::File) };
        match sink.send_file(file, self.chunk_offset, self.chunk_left as usize) {
            Ok(Io::Moved(n)) => {
                self.chunk_offset += n as u64;
                self.chunk_left -= n as u32;
                Ok(Some(n))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(FlushError::File),
            Err(_) => Err(FlushError::Client),
        }
    }
}

/// Where the frame ends that has been sent in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remainder {
    InMemory,
    InChunk,
}

impl Frames {
    /// Where the first frame begins: the answer to the upgrade may be in front of it.
    fn first_frame(&self) -> usize {
        let is_answer = self.bytes.starts_with(b"HTTP");
        let answer = memchr::memmem::find(&self.bytes, b"\r\n\r\n").filter(|_| is_answer);
        answer.map_or(0, |at| at + 4)
    }

    /// Frames that have not been sent whole.
    fn unsent_frames(&self) -> u64 {
        let (mut end, mut count) = (self.first_frame(), 0);
        while end < self.bytes.len() {
            end = self.frame_end(end);
            count += u64::from(end > self.sent);
        }
        count
    }

    /// Drops the frames that have not begun.
    fn drop_unsent(&mut self) -> Remainder {
        let mut end = self.first_frame();
        while end < self.sent {
            end = self.frame_end(end);
        }
        if end > self.bytes.len() {
            return Remainder::InChunk;
        }
        self.bytes.truncate(end);
        if let Some(fields) = &mut self.fields {
            fields.list.retain(|field| field.at < end);
        }
        self.advance(0);
        Remainder::InMemory
    }

    /// Where the frame that begins at `start` ends.
    fn frame_end(&self, start: usize) -> usize {
        let head = &self.bytes[start..];
        let (head_bytes, length) = match head[1] {
            126 => (4, usize::from(u16::from_be_bytes([head[2], head[3]]))),
            127 => {
                let length = head[2..10].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                (10, length as usize)
            }
            length => (2, usize::from(length)),
        };
        let mut end = start + head_bytes + length;
        // Long fields are part of the frame, and their bytes are elsewhere.
        for field in self.fields() {
            if start < field.at && field.at < end {
                end -= field.result.field(field.field).len();
            }
        }
        end
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn fields(&self) -> &[SharedField] {
        self.fields.as_ref().map_or(&[], |fields| &fields.list)
    }

    /// The field of which something is still to be sent.
    fn next_field(&self) -> Option<&SharedField> {
        let fields = self.fields.as_ref()?;
        fields.list.get(fields.sent)
    }

    fn push_field(&mut self, result: &SharedResult, field: Field) {
        let text = result.field(field);
        if text.len() <= COPIED_BYTES_MAX {
            return self.bytes.extend_from_slice(text.as_bytes());
        }
        let (at, result) = (self.bytes.len(), Rc::clone(result));
        let fields = self.fields.get_or_insert_default();
        fields.list.push(SharedField { at, result, field, sent: 0 });
    }

    fn unsent(&self) -> usize {
        let fields = self.fields().iter().map(|one| one.result.field(one.field).len() - one.sent);
        self.bytes.len() - self.sent + fields.sum::<usize>()
    }

    /// The bytes to send next, and whether nothing is behind them. `None`: everything has been
    /// sent.
    fn next(&self) -> Option<(&[u8], bool)> {
        match self.next_field() {
            Some(field) if field.at == self.sent => {
                Some((&field.result.field(field.field).as_bytes()[field.sent..], false))
            }
            Some(field) => Some((&self.bytes[self.sent..field.at], false)),
            None if self.sent < self.bytes.len() => Some((&self.bytes[self.sent..], true)),
            None => None,
        }
    }

    /// `n` of the bytes that [`Frames::next`] returned have been sent.
    fn advance(&mut self, n: usize) {
        let fields = self
            .fields
            .as_deref_mut()
            .map(|fields| (fields.list.get_mut(fields.sent), &mut fields.sent));
        match fields {
            Some((Some(field), fields_sent)) if field.at == self.sent => {
                field.sent += n;
                if field.sent == field.result.field(field.field).len() {
                    *fields_sent += 1;
                }
            }
            _ => self.sent += n,
        }
        // A field is never last: the end of its message is behind it.
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_BYTES);
            self.sent = 0;
            self.fields = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::budget::Budget;
    use crate::base::testing::TestFolder;
    use crate::net::Ready;
    use crate::net::files::Root;
    use crate::net::testing::SlowSocket;
    use crate::proto::message::TaskResult;
    use uuid::Uuid;

    /// A file of `length` bytes that count from 0 up.
    fn file(length: u8) -> OpenFile {
        let folder = TestFolder::make();
        folder.write("audio", (0..length).collect::<Vec<u8>>());
        let opened = Root::new(&folder, 1024).request("audio".as_ref()).run();
        opened.expect("a file beneath the root opens")
    }

    /// Flushes until the outbox is empty or lost, through a socket that takes `room` bytes a call.
    fn drain(
        outbox: &mut Outbox,
        file: Option<&OpenFile>,
        room: usize,
    ) -> (Vec<u8>, Option<FlushError>) {
        let (socket, taken) = SlowSocket::open(room);
        let mut conn = Conn::accepted(socket);
        let lost = loop {
            conn.handle_ready(Ready { writable: true, ..Ready::default() });
            match outbox.flush(&mut conn, file) {
                Ok(Flushed { is_blocked: true, .. }) => {}
                Ok(Flushed { is_blocked: false, .. }) => break None,
                Err(lost) => break Some(lost),
            }
        };
        (taken.take(), lost)
    }

    /// Lets a socket take `count` bytes, one at a time.
    fn drain_part(outbox: &mut Outbox, file: Option<&OpenFile>, count: usize) -> Vec<u8> {
        let (socket, taken) = SlowSocket::open(1);
        let mut conn = Conn::accepted(socket);
        for _ in 0..count {
            conn.handle_ready(Ready { writable: true, ..Ready::default() });
            outbox.send(&mut conn, file).unwrap();
        }
        taken.take()
    }

    #[test]
    fn wire_order_is_queue_order_around_a_chunk() {
        let file = file(10);
        for room in [1, 2, 3, 7, 1000] {
            let mut outbox = Outbox::default();
            outbox.push_text("hi");
            outbox.push_chunk(4, 3);
            outbox.push(b"pong");
            outbox.push(b"");
            outbox.push_text("bye");
            assert!(outbox.has_chunk());
            let sent = drain(&mut outbox, Some(&file), room);
            let expected = b"\x81\x02hi\x82\x03\x04\x05\x06pong\x81\x03bye".to_vec();
            assert_eq!(sent, (expected, None), "{room} bytes a call");
            assert!(outbox.is_empty() && outbox.held_bytes() == 0);
        }
    }

    #[test]
    fn what_has_not_begun_is_dropped_at_a_frame_boundary() {
        let file = file(10);
        let budget = Budget::default();
        let long = format!(r#"{{"text":"{}"}}"#, "x".repeat(2 * COPIED_BYTES_MAX));
        let long = TaskResult::read(long.as_bytes()).shared(&budget);
        let fill = |outbox: &mut Outbox| {
            outbox.push(b"HTTP/1.1 101\r\n\r\n");
            outbox.push_text("hi");
            outbox.push_result(&long, &TaskId::from(Uuid::nil()), AudioPresence::Absent);
            outbox.push_text(&"y".repeat(200));
            outbox.push_chunk(4, 3);
            outbox.push(b"pong");
        };
        let mut whole = Outbox::default();
        fill(&mut whole);
        let (all, _) = drain(&mut whole, Some(&file), usize::MAX);
        let all = &all[..all.len() - 4];
        // Where frames end, found by reading them.
        let mut ends = vec![16];
        while let Some(&last) = ends.last().filter(|&&last| last < all.len()) {
            let (head, length) = match all[last + 1] {
                126 => (4, usize::from(u16::from_be_bytes([all[last + 2], all[last + 3]]))),
                length => (2, usize::from(length)),
            };
            ends.push(last + head + length);
        }
        assert_eq!((ends.len(), ends.last()), (5, Some(&all.len())));
        let places = (0..40).chain(ends.iter().flat_map(|end| end - 3..end + 4));
        for sent in places.filter(|sent| *sent < all.len()) {
            let mut outbox = Outbox::default();
            fill(&mut outbox);
            let mut first = drain_part(&mut outbox, Some(&file), sent);
            outbox.drop_unsent();
            outbox.push_text("bye");
            first.extend(drain(&mut outbox, Some(&file), usize::MAX).0);
            let end = ends.iter().find(|end| **end >= sent).copied().unwrap();
            let expected = [&all[..end], b"\x81\x03bye"].concat();
            assert!(first == expected, "{sent} bytes had been sent");
        }
    }

    #[test]
    fn a_file_that_ends_early_is_lost_and_nothing_follows_it() {
        let file = file(5);
        let mut outbox = Outbox::default();
        outbox.push_chunk(3, 4);
        outbox.push_text("bye");
        let sent = drain(&mut outbox, Some(&file), 1000);
        assert_eq!(sent, (b"\x82\x04\x03\x04".to_vec(), Some(FlushError::File)));
    }

    #[test]
    fn a_chunk_is_not_held_in_memory() {
        let mut outbox = Outbox::default();
        outbox.push_chunk(0, 1 << 20);
        assert_eq!(outbox.held_bytes(), 10, "the frame's head alone");
    }

    #[test]
    fn capacity_of_a_long_message_is_released_once_it_is_sent() {
        let mut outbox = Outbox::default();
        outbox.push_text(&"x".repeat(100_000));
        drain(&mut outbox, None, 1_000_000);
        assert!(outbox.own_bytes() <= KEPT_BYTES, "{}", outbox.own_bytes());
    }

    #[test]
    fn long_fields_stay_in_the_result_and_arrive_in_place() {
        let task = TaskId::read("7d3e1c4a-0000-4000-8000-000000000001").unwrap();
        for (text, extra) in [(10, 10), (100_000, 10), (10, 100_000), (100_000, 100_000)] {
            let payload =
                format!(r#"{{"text":"{}","more":"{}"}}"#, "a".repeat(text), "b".repeat(extra));
            let budget = Budget::default();
            let result = TaskResult::read(payload.as_bytes()).shared(&budget);
            for room in [1000, 1_000_000] {
                let mut outbox = Outbox::default();
                outbox.push_text("hi");
                let length = outbox.push_result(&result, &task, AudioPresence::Absent);
                outbox.push_text("bye");
                assert!(outbox.own_bytes() < 40_000, "{}", outbox.own_bytes());
                assert!(outbox.held_bytes() > text + extra && outbox.is_at_boundary());
                let (sent, lost) = drain(&mut outbox, None, room);
                let message = result.message(&task, AudioPresence::Absent);
                assert_eq!((message.len(), lost), (length, None));
                assert!(sent.starts_with(b"\x81\x02hi\x81") && sent.ends_with(b"}\x81\x03bye"));
                let at = sent.len() - 5 - length;
                assert!(sent[at..at + length] == *message.as_bytes(), "{text} and {extra} bytes");
                assert!(outbox.is_empty() && outbox.held_bytes() == 0);
            }
        }
    }
}
