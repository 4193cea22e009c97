//! A client that waits for the results of a task, and compares every message with what was
//! published.
//!
//! It reads frames itself and follows what a result looks like on the wire: the text, for each
//! chunk its announcement and its bytes, the end. What does not fit is a fault at once. What is
//! missing can be judged only in the end, by the world.

use crate::answers::{Board, PlannedResult, Sound, audio_bytes};
use crate::kernel::{Action, End, Kernel, LinkId, take};
use crate::peers::head_length;
use crate::simulation::MS;
use crate::wire::{BINARY, CLOSE, Frame, FrameKind, PING, PONG, TEXT, read_head};
use aivtuber_gateway::base::moment::Moment;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;

/// The error for a client whose task had results that are gone before their time.
const MISSING: &str = "Some results are no longer available";

/// How a waiting client behaves.
#[derive(Debug, Clone)]
pub struct Ways {
    /// It reads and answers without delay.
    pub is_prompt: bool,
    pub read_bite: usize,
    pub read_pace: Duration,
    pub reads_most: usize,
    pub write_bite: usize,
    pub write_pace: Duration,
    pub pong_after: Option<Duration>,
    /// It takes few bytes before it reads.
    pub has_small_window: bool,
    /// What it says, and when, counted from its request.
    pub says: Vec<(Duration, Say)>,
    pub leaves_after: Duration,
    pub leaving: Leaving,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// With a Close frame, and soon after that in any case.
    Close,
    Fin,
    Reset,
    /// Unplugged.
    Silent,
}

/// Something that it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    Ping(usize),
    /// It stops its task.
    Stop,
    Text,
    /// A message in two pieces with a ping between them.
    Pieces,
    /// Faults: too large, not UTF-8, not masked.
    TooBig,
    BadText,
    BadFrame,
}

/// From where on it wants the first audio that it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Chunk(usize),
    Byte(usize),
}

impl Start {
    pub const BEGINNING: Start = Start::Chunk(0);

    /// What it has of it by its own account is something.
    fn is_rest(self) -> bool {
        !matches!(self, Start::Chunk(0) | Start::Byte(0))
    }

    /// The part of the query that says so.
    pub fn query(self) -> String {
        match self {
            Start::Chunk(chunk) => format!("from_chunk={chunk}"),
            Start::Byte(byte) => format!("from_byte={byte}"),
        }
    }

    /// The first chunk of a finished file of this length.
    fn first_chunk(self, length: usize, chunk_size: usize) -> usize {
        let chunks = length.div_ceil(chunk_size);
        match self {
            Start::Chunk(chunk) => chunk.min(chunks),
            Start::Byte(byte) if byte < length => byte / chunk_size,
            Start::Byte(_) => chunks,
        }
    }
}

/// Which message it expects next.
#[derive(Debug, Clone, PartialEq)]
pub enum Hearing {
    /// Between results.
    Rest,
    /// An error message with these words follows the text.
    Fault { words: &'static str, is_final: bool },
    /// `lengths`: what the file's length may have been; `next`: the chunk that is to come, if that
    /// is clear.
    Audio { lengths: Vec<usize>, next: Option<usize>, is_final: bool },
    /// The bytes of the chunk that was announced.
    Chunk { lengths: Vec<usize>, chunk: usize, is_final: bool },
    /// `offset` and `next`: where the next chunk of a growing file begins and its number, if that
    /// is clear.
    Growing { offset: Option<usize>, next: usize, is_final: bool },
    /// The bytes of the chunk of a growing file that was announced. `is_rest`: it may be the end of
    /// a chunk, behind a byte that was asked for.
    Piece { offset: usize, chunk: usize, is_rest: bool, is_final: bool },
    /// A growing file has stalled: what follows, or a Close frame if that was the final result.
    Stalled { is_final: bool },
    /// A Close frame with this code follows.
    Over(u16),
}

/// One result as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub view: String,
    /// Its `result_id`.
    pub number: u64,
    pub is_final: bool,
    /// Where it began in the bytes of the connection.
    pub offset: u64,
}

pub struct Waiter {
    pub link: LinkId,
    /// The gateway that it is connected to.
    pub place: usize,
    /// `None`: it asks for something that is no task.
    pub task: Option<usize>,
    /// The id as it must be echoed.
    id: String,
    pub from_result: u64,
    start: Start,
    pub ways: Ways,
    pub status: Option<u16>,
    pub hearing: Hearing,
    pub seen: Vec<Seen>,
    /// It got the error that results are gone, before their time.
    pub misses_results: bool,
    /// When it asked to stop its task.
    pub stopped_at: Option<Moment>,
    /// It got the acknowledgement that its task is stopped.
    pub is_stopped: bool,
    /// Chunks that came whole of the last audio, and where the last of them ended.
    pub chunks: usize,
    pub bytes: usize,
    /// It counts bytes in the audio that it gets, from this one on.
    counts_from: Option<usize>,
    pub goodbye: Option<(Option<u16>, String, Moment)>,
    pub came_at: Moment,
    pub saw_end: Option<(End, Moment)>,
    /// It said something that ends it: a Close frame (with its code), or a fault.
    pub has_closed: Option<Option<u16>>,
    pub has_faulted: Option<u16>,
    /// Since then it has not listened, or has been gone.
    pub left_at: Option<Moment>,
    /// It left before the gateway did.
    pub left_first: bool,
    pub is_over: bool,
    inbox: Vec<u8>,
    offset: u64,
    taken: usize,
    out: VecDeque<u8>,
    /// Pings that have been sent and not answered.
    pub pings: VecDeque<Vec<u8>>,
    pongs: VecDeque<(Moment, Vec<u8>)>,
    chance: fastrand::Rng,
    read_at: Moment,
    write_at: Moment,
    leave_at: Moment,
}

impl Waiter {
    pub fn new(
        kernel: &mut Kernel,
        link: LinkId,
        task: Option<usize>,
        (id, from_result, start): (String, u64, Start),
        ways: Ways,
        request: &[u8],
    ) -> Waiter {
        let now = kernel.now;
        let leave_at = now + ways.leaves_after;
        kernel.at(leave_at, Action::Peer(link));
        ways.says.iter().for_each(|(wait, _)| kernel.after(*wait, Action::Peer(link)));
        kernel.wake_peer(link);
        Waiter {
            link,
            place: usize::MAX,
            task,
            id,
            from_result,
            start,
            ways,
            status: None,
            hearing: Hearing::Rest,
            seen: Vec::new(),
            misses_results: false,
            stopped_at: None,
            is_stopped: false,
            chunks: 0,
            bytes: 0,
            counts_from: None,
            goodbye: None,
            came_at: now,
            saw_end: None,
            has_closed: None,
            has_faulted: None,
            left_at: None,
            left_first: false,
            is_over: false,
            inbox: Vec::new(),
            offset: 0,
            taken: 0,
            out: request.iter().copied().collect(),
            pings: VecDeque::new(),
            pongs: VecDeque::new(),
            chance: fastrand::Rng::with_seed(kernel.chance.u64(..)),
            read_at: now,
            write_at: now,
            leave_at,
        }
    }

    /// Until when it listened.
    pub fn listened_until(&self, now: Moment) -> Moment {
        let ends =
            [self.left_at, self.saw_end.map(|(_, at)| at), self.goodbye.as_ref().map(|bye| bye.2)];
        ends.into_iter().flatten().min().unwrap_or(now)
    }

    /// Looks up: reads, writes, leaves.
    pub fn tick(&mut self, kernel: &mut Kernel, board: &Board) -> Result<(), String> {
        if self.is_over {
            return Ok(());
        }
        self.read(kernel, board)?;
        self.write(kernel);
        if kernel.now >= self.leave_at {
            self.leave(kernel);
        }
        Ok(())
    }

    fn leave(&mut self, kernel: &mut Kernel) {
        kernel.note(|| format!("waiter {} leaves {:?}", self.link, self.ways.leaving));
        let can_close =
            self.status == Some(101) && self.has_closed.is_none() && self.saw_end.is_none();
        let is_first = self.left_at.is_none();
        self.left_at.get_or_insert(kernel.now);
        self.left_first |= is_first && self.saw_end.is_none();
        match self.ways.leaving {
            Leaving::Close if is_first && can_close && self.has_faulted.is_none() => {
                let code = [None, Some(1000), Some(1001), Some(4999)][self.chance.usize(..4)];
                let mask = Some(self.chance.u32(..).to_ne_bytes());
                let frame = match code {
                    Some(code) => Frame::close(code, "bye", mask),
                    None => Frame::new(FrameKind::plain(CLOSE, mask), &[]),
                };
                self.out.extend(frame.bytes);
                self.has_closed = Some(code);
                self.leave_at = kernel.now + 30_000 * MS;
                kernel.at(self.leave_at, Action::Peer(self.link));
                self.write(kernel);
            }
            Leaving::Fin if is_first && can_close => {
                kernel.end(self.link, End::Fin);
                self.leave_at = kernel.now + 3000 * MS;
                kernel.at(self.leave_at, Action::Peer(self.link));
            }
            Leaving::Reset => {
                kernel.end(self.link, End::Reset);
                self.is_over = true;
            }
            Leaving::Silent if is_first => self.is_over = true,
            _ => {
                kernel.close(self.link);
                self.is_over = true;
            }
        }
    }

    fn leave_by(&mut self, kernel: &mut Kernel, most: Duration) {
        let at = kernel.now + kernel.some(most);
        if at < self.leave_at || self.left_at.is_some() {
            self.leave_at = at;
            kernel.at(at, Action::Peer(self.link));
        }
    }

    fn read(&mut self, kernel: &mut Kernel, board: &Board) -> Result<(), String> {
        while kernel.is_to_receive(self.link) && self.taken < self.ways.reads_most {
            if kernel.now < self.read_at {
                kernel.at(self.read_at, Action::Peer(self.link));
                return Ok(());
            }
            let bytes = kernel
                .receive(self.link, self.ways.read_bite.min(self.ways.reads_most - self.taken));
            self.taken += bytes.len();
            self.read_at = kernel.now + self.ways.read_pace;
            self.inbox.extend(bytes);
            self.take(kernel, board)?;
        }
        if self.saw_end.is_none()
            && let Some(end) = kernel.received_end(self.link)
        {
            kernel.note(|| format!("waiter {} saw {end:?}", self.link));
            self.saw_end = Some((end, kernel.now));
            self.leave_by(kernel, 200 * MS);
        }
        Ok(())
    }

    fn take(&mut self, kernel: &mut Kernel, board: &Board) -> Result<(), String> {
        if self.status.is_none() {
            let Some(length) = head_length(&self.inbox) else { return Ok(()) };
            let status =
                std::str::from_utf8(&self.inbox[9..12]).ok().and_then(|text| text.parse().ok());
            self.status = Some(status.ok_or("an answer without a status")?);
            if self.status == Some(101) {
                self.inbox.drain(..length);
                self.offset += length as u64;
            }
        }
        while self.status == Some(101) {
            let Some((opcode, head, length, mask)) = read_head(&self.inbox) else { return Ok(()) };
            if self.goodbye.is_some() {
                return Err(format!("{} bytes behind a Close frame", self.inbox.len()));
            }
            if self.inbox[0] & 0xf0 != 0x80 || mask.is_some() || length > 1 << 20 {
                return Err(format!("a frame {:x?}", &self.inbox[..head]));
            }
            let end = head + length as usize;
            if self.inbox.len() < end {
                return Ok(());
            }
            let payload = self.inbox[head..end].to_vec();
            self.inbox.drain(..end);
            let offset = self.offset;
            self.offset += end as u64;
            match opcode {
                TEXT => self.take_text(kernel, board, &payload, offset)?,
                BINARY => self.take_chunk(board, &payload)?,
                CLOSE => self.take_close(kernel, &payload),
                PING => {
                    if let Some(wait) = self.ways.pong_after {
                        self.pongs.push_back((kernel.now + wait, payload));
                        kernel.after(wait, Action::Peer(self.link));
                    }
                }
                PONG => {
                    let at = self
                        .pings
                        .iter()
                        .position(|ping| *ping == payload)
                        .ok_or("a pong without a ping")?;
                    if at > 0 {
                        return Err(format!("{at} pings were not answered"));
                    }
                    self.pings.pop_front();
                }
                _ => return Err(format!("a frame of kind {opcode}")),
            }
        }
        Ok(())
    }

    fn take_text(
        &mut self,
        kernel: &mut Kernel,
        board: &Board,
        text: &[u8],
        offset: u64,
    ) -> Result<(), String> {
        let message: Value = serde_json::from_slice(text)
            .map_err(|why| format!("{why} in {}", String::from_utf8_lossy(text)))?;
        kernel.note(|| format!("waiter {} gets {}", self.link, shown(&message)));
        let hearing = std::mem::replace(&mut self.hearing, Hearing::Rest);
        let Some(task) = self.task else { return self.take_refusal(hearing, &message) };
        if self.is_stopped {
            return Err(format!("{} after its task was stopped", shown(&message)));
        }
        if message["type"] == "control" {
            (self.is_stopped, self.hearing) = (true, Hearing::Over(1000));
            let expected = json!({"type": "control", "action": "STOP_ACK", "task_id": self.id});
            return match board.tasks[task].may_stop {
                true => expect(&message, expected),
                false => Err(format!("{} without a reason", shown(&message))),
            };
        }
        match hearing {
            Hearing::Rest | Hearing::Over(1000) | Hearing::Stalled { .. } => {
                self.take_result(board, task, &message, offset)
            }
            Hearing::Fault { words, is_final } => {
                self.hearing = self.after(is_final);
                expect(&message, self.error(words))
            }
            Hearing::Audio { lengths, next, is_final } => {
                self.take_announcement(board, &message, lengths, next, is_final)
            }
            Hearing::Growing { offset, next, is_final } => {
                self.take_growth(board, &message, offset, next, is_final)
            }
            Hearing::Chunk { .. } | Hearing::Piece { .. } | Hearing::Over(_) => {
                Err(format!("{} out of place, at {hearing:?}", shown(&message)))
            }
        }
    }

    /// The error for a request that is wrong.
    fn take_refusal(&mut self, hearing: Hearing, message: &Value) -> Result<(), String> {
        let expected = if self.id.is_empty() {
            json!({"status": "error", "error": "Invalid task_id format"})
        } else {
            self.error("Invalid from_chunk format")
        };
        self.hearing = Hearing::Over(4004);
        match hearing {
            Hearing::Rest => expect(message, expected),
            _ => Err(format!("{} again", shown(message))),
        }
    }

    /// The text of a result, or an error in place of all further ones.
    fn take_result(
        &mut self,
        board: &Board,
        task: usize,
        message: &Value,
        offset: u64,
    ) -> Result<(), String> {
        let view = message.get("content").or(message.get("error"));
        let view = view.and_then(Value::as_str).unwrap_or_default();
        if view == MISSING && self.seen.is_empty() && !self.misses_results {
            let mut expected = self.error(view);
            expected["final"] = false.into();
            self.misses_results = true;
            return expect(message, expected);
        }
        let code = match view {
            "Processing timeout" => Some(4008),
            "Redis connection not available" => Some(1013),
            // It wants the rest of a file, and the first one that is kept is another.
            "Audio file changed" if self.start.is_rest() => Some(1011),
            _ => None,
        };
        if let Some(code) = code {
            self.hearing = Hearing::Over(code);
            return expect(message, self.error(view));
        }
        let (answer, times) = board
            .find(task, view)
            .ok_or_else(|| format!("{} was never published", shown(message)))?;
        let number = message["result_id"].as_u64().ok_or("a result without a number")?;
        expect(message, board.message(answer, &self.id, number))?;
        if number < self.from_result {
            return Err(format!("{} was not asked for", shown(message)));
        }
        if self.from_result > 0 && number > self.from_result {
            self.start = Start::BEGINNING;
        }
        if self.seen.iter().filter(|seen| seen.view == view).count() >= times {
            return Err(format!("{} came twice", shown(message)));
        }
        let is_final = answer.is_final;
        self.seen.push(Seen { view: view.into(), number, is_final, offset });
        self.hearing = match &answer.sound {
            Sound::None => self.after(is_final),
            Sound::Fault(words) => Hearing::Fault { words, is_final },
            Sound::File(size) => Hearing::Audio { lengths: vec![*size], next: None, is_final },
            Sound::Shrinks { size, cut, .. } => {
                Hearing::Audio { lengths: vec![*size, *cut], next: None, is_final }
            }
            Sound::Grows { .. } => Hearing::Growing { offset: None, next: 0, is_final },
        };
        (self.chunks, self.bytes, self.counts_from) = (0, 0, None);
        Ok(())
    }

    /// What comes before a chunk, or after the last one. `lengths`: those that the file may have.
    fn take_announcement(
        &mut self,
        board: &Board,
        message: &Value,
        mut lengths: Vec<usize>,
        next: Option<usize>,
        is_final: bool,
    ) -> Result<(), String> {
        if message["error"] == "Audio file changed" && self.hears_what_shrinks(board) {
            self.hearing = Hearing::Over(1011);
            return expect(message, self.error("Audio file changed"));
        }
        let chunk_size = board.chunk_size;
        let start = std::mem::replace(&mut self.start, Start::BEGINNING);
        if let (Start::Byte(byte), None) = (start, next) {
            self.counts_from = Some(byte);
        }
        let first = |length: usize| next.unwrap_or(start.first_chunk(length, chunk_size));
        if message["type"] == "audio_complete" {
            expect(message, json!({"type": "audio_complete", "task_id": self.id}))?;
            lengths.retain(|length| first(*length) == length.div_ceil(chunk_size));
            self.hearing = self.after(is_final);
        } else {
            let (chunk, total) = (&message["chunk_id"], &message["total_chunks"]);
            let mut expected = json!({
                "type": "audio_chunk", "task_id": self.id, "chunk_id": chunk, "total_chunks": total,
            });
            let chunk = chunk.as_u64().unwrap_or(u64::MAX) as usize;
            if let Some(byte) = self.counts_from {
                expected["offset"] = byte.max(chunk.saturating_mul(chunk_size)).into();
            }
            expect(message, expected)?;
            let total = total.as_u64().unwrap_or(0) as usize;
            lengths.retain(|length| {
                length.div_ceil(chunk_size) == total && first(*length) == chunk && chunk < total
            });
            self.hearing = Hearing::Chunk { lengths: lengths.clone(), chunk, is_final };
        }
        match lengths.is_empty() {
            true => Err(format!("{} out of place, after chunk {next:?}", shown(message))),
            false => Ok(()),
        }
    }

    /// What comes before a chunk of a growing file, or after the last one.
    fn take_growth(
        &mut self,
        board: &Board,
        message: &Value,
        offset: Option<usize>,
        next: usize,
        is_final: bool,
    ) -> Result<(), String> {
        let view = self.seen.last().map(|seen| seen.view.clone()).unwrap_or_default();
        let found = self.task.and_then(|task| board.find(task, &view));
        let Some((PlannedResult { sound: Sound::Grows { first, steps, is_completed, .. }, .. }, _)) =
            found
        else {
            return Err(format!("{} of a file that does not grow", shown(message)));
        };
        let size = first + steps.iter().sum::<usize>();
        let start = std::mem::replace(&mut self.start, Start::BEGINNING);
        if message["error"] == "Audio stalled" {
            self.hearing = Hearing::Stalled { is_final };
            expect(message, self.error("Audio stalled"))?;
            return match is_completed {
                true => Err("it stalled, though its worker was at work".into()),
                false => Ok(()),
            };
        }
        if message["type"] == "audio_complete" {
            expect(message, json!({"type": "audio_complete", "task_id": self.id}))?;
            self.hearing = self.after(is_final);
            let has_had_all = match start {
                Start::Chunk(chunk) => size == 0 || chunk > 0,
                Start::Byte(byte) => byte >= size,
            };
            let has_all = offset.map_or(has_had_all, |offset| offset == size);
            return match has_all && *is_completed {
                true => Ok(()),
                false => Err(format!("complete at byte {offset:?} of {size}")),
            };
        }
        let (chunk, total) = (&message["chunk_id"], &message["total_chunks"]);
        let at = &message["offset"];
        let expected = json!({
            "type": "audio_chunk", "task_id": self.id, "chunk_id": chunk, "total_chunks": total,
            "offset": at,
        });
        expect(message, expected)?;
        let number = |value: &Value| value.as_u64().map(|number| number as usize);
        let (chunk, at) = (number(chunk).ok_or("a number")?, number(at).ok_or("an offset")?);
        let is_right = match offset {
            Some(offset) => (chunk, at) == (next, offset),
            None => {
                let bounds = board.bounds.borrow();
                let known = bounds.get(&(self.place, view));
                let of = |chunk: usize| known.and_then(|known| known.get(&chunk));
                let before = chunk.checked_sub(1).and_then(of);
                match start {
                    // A gateway that was restarted begins anew.
                    Start::Chunk(_) if (chunk, at) == (0, 0) => true,
                    Start::Chunk(first) => {
                        chunk == first
                            && before.is_none_or(|(offset, length)| offset + length == at)
                    }
                    Start::Byte(byte) => {
                        let is_within = |(offset, length): &(usize, usize)| {
                            (*offset..offset + length).contains(&at)
                        };
                        at == byte && of(chunk).is_none_or(is_within)
                    }
                }
            }
        };
        let is_rest = offset.is_none() && matches!(start, Start::Byte(_));
        self.hearing = Hearing::Piece { offset: at, chunk, is_rest, is_final };
        match is_right {
            true => Ok(()),
            false => Err(format!("{} out of place, at {offset:?}, chunk {next}", shown(message))),
        }
    }

    /// What must come behind a result. What was queued with a final one still comes, and the Close
    /// behind the last of it.
    fn after(&self, is_final: bool) -> Hearing {
        match is_final || self.seen.iter().any(|seen| seen.is_final) {
            true => Hearing::Over(1000),
            false => Hearing::Rest,
        }
    }

    fn error(&self, words: &str) -> Value {
        json!({"status": "error", "error": words, "task_id": self.id})
    }

    /// The file of what it is hearing loses bytes at some time.
    pub fn hears_what_shrinks(&self, board: &Board) -> bool {
        let last = self.seen.last().and_then(|seen| board.find(self.task?, &seen.view));
        last.is_some_and(|(answer, _)| matches!(answer.sound, Sound::Shrinks { .. }))
    }

    fn take_chunk(&mut self, board: &Board, bytes: &[u8]) -> Result<(), String> {
        let hearing = std::mem::replace(&mut self.hearing, Hearing::Rest);
        if let Hearing::Piece { offset, chunk, is_rest, is_final } = hearing {
            return self.take_piece(board, bytes, (offset, chunk, is_rest), is_final);
        }
        let Hearing::Chunk { mut lengths, chunk, is_final } = hearing else {
            return Err(format!("a binary message of {} bytes out of place", bytes.len()));
        };
        let (begin, size) = (chunk * board.chunk_size, board.chunk_size);
        let at = self.counts_from.unwrap_or(0).max(begin);
        lengths.retain(|length| at < *length && bytes.len() == length.min(&(begin + size)) - at);
        if lengths.is_empty() || bytes != audio_bytes(at, bytes.len()) {
            return Err(format!("chunk {chunk} of {} bytes is wrong", bytes.len()));
        }
        (self.chunks, self.bytes) = (chunk + 1, at + bytes.len());
        self.hearing = Hearing::Audio { lengths, next: Some(chunk + 1), is_final };
        Ok(())
    }

    /// Every client of a gateway gets the same chunks of a growing file.
    fn take_piece(
        &mut self,
        board: &Board,
        bytes: &[u8],
        (offset, chunk, is_rest): (usize, usize, bool),
        is_final: bool,
    ) -> Result<(), String> {
        if bytes.is_empty() || bytes.len() > board.chunk_size {
            return Err(format!("chunk {chunk} has {} bytes", bytes.len()));
        }
        if bytes != audio_bytes(offset, bytes.len()) {
            return Err(format!("chunk {chunk} at {offset} is wrong"));
        }
        let view = self.seen.last().map(|seen| seen.view.clone()).unwrap_or_default();
        let mut bounds = board.bounds.borrow_mut();
        let known = bounds.entry((self.place, view)).or_default();
        let end = offset + bytes.len();
        // Where a chunk begins that it gets the end of is known only by others.
        let is_same = match known.get(&chunk) {
            Some(&(from, length)) if is_rest => from <= offset && end == from + length,
            None if is_rest => true,
            Some(&bounds) => bounds == (offset, bytes.len()),
            None => {
                known.insert(chunk, (offset, bytes.len()));
                true
            }
        };
        if !is_same {
            let bounds = known[&chunk];
            return Err(format!("chunk {chunk} was {bounds:?}, is at {offset}: {}", bytes.len()));
        }
        (self.chunks, self.bytes) = (chunk + 1, end);
        let offset = Some(end);
        self.hearing = Hearing::Growing { offset, next: chunk + 1, is_final };
        Ok(())
    }

    fn take_close(&mut self, kernel: &mut Kernel, payload: &[u8]) {
        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
        kernel.note(|| {
            format!("waiter {} is closed {code:?} {reason:?} at {:?}", self.link, self.hearing)
        });
        self.goodbye = Some((code, reason, kernel.now));
        if self.has_closed.is_none() && self.left_at.is_none() {
            let frame = Frame::new(
                FrameKind::plain(CLOSE, Some([1, 2, 3, 4])),
                &payload[..payload.len().min(2)],
            );
            self.out.extend(frame.bytes);
        }
    }

    /// Whether the Close frame that came fits what came before it. `judged` by the world: whether
    /// it had a reason.
    pub fn judge_goodbye(&self) -> Result<(), String> {
        let Some((code, reason, _)) = &self.goodbye else { return Ok(()) };
        if self.is_stopped != (reason == "stopped") {
            return Err(format!("a Close frame {reason:?}, is stopped: {}", self.is_stopped));
        }
        let code = code.unwrap_or_default();
        let is_echo = self.has_closed.is_some_and(|own| own.unwrap_or_default() == code);
        let is_right = match (&self.hearing, code) {
            (_, _) if is_echo => true,
            (Hearing::Over(expected), code) if *expected == code => true,
            (Hearing::Stalled { is_final: true }, 1000 | 1011) => true,
            // It has had the final result; the world knows whether that is so.
            (Hearing::Rest, 1000) => self.from_result > 0 && self.seen.is_empty(),
            // What the client has done, or a restart, may end anything but a chunk that was
            // announced.
            (Hearing::Chunk { .. } | Hearing::Piece { .. } | Hearing::Over(1000), _) => false,
            (_, 1002 | 1007 | 1009) => self.has_faulted == Some(code),
            (_, 1012) => reason == "gateway restarting",
            _ => false,
        };
        if is_right {
            Ok(())
        } else {
            Err(format!("a Close frame {code} {reason:?} at {:?}", self.hearing))
        }
    }

    fn write(&mut self, kernel: &mut Kernel) {
        while self.pongs.front().is_some_and(|(at, _)| *at <= kernel.now) {
            if let Some((_, payload)) = self.pongs.pop_front() {
                self.say(PONG, &payload);
            }
        }
        let due = kernel.now - self.came_at;
        while let Some(&(wait, say)) = self.ways.says.first()
            && wait <= due
        {
            self.ways.says.remove(0);
            self.push(say, kernel.now);
        }
        while !self.out.is_empty() {
            if kernel.now < self.write_at {
                kernel.at(self.write_at, Action::Peer(self.link));
                return;
            }
            let n = self.ways.write_bite.min(self.out.len()).min(kernel.window(self.link));
            if n == 0 {
                return;
            }
            let bytes = take(&mut self.out, n);
            kernel.send(self.link, &bytes);
            self.write_at = kernel.now + self.ways.write_pace;
        }
    }

    fn is_silent(&self) -> bool {
        self.has_closed.is_some()
            || self.has_faulted.is_some()
            || self.goodbye.is_some()
            || self.left_at.is_some()
    }

    fn say(&mut self, opcode: u8, payload: &[u8]) {
        if !self.is_silent() {
            let mask = Some(self.chance.u32(..).to_ne_bytes());
            self.out.extend(Frame::new(FrameKind::plain(opcode, mask), payload).bytes);
        }
    }

    fn push(&mut self, say: Say, now: Moment) {
        if self.is_silent() {
            return;
        }
        let mask = Some(self.chance.u32(..).to_ne_bytes());
        let piece = |opcode, fin, payload: &[u8]| {
            Frame::new(FrameKind { opcode, fin, rsv: 0, length_bytes: 1, mask }, payload).bytes
        };
        match say {
            Say::Ping(n) => {
                let payload: Vec<u8> = (0..n).map(|_| self.chance.u8(..)).collect();
                self.say(PING, &payload);
                self.pings.push_back(payload);
            }
            Say::Stop => {
                self.say(TEXT, br#"{"type":"control","action":"STOP"}"#);
                self.stopped_at = Some(now);
            }
            Say::Text => self.say(TEXT, b"are you there?"),
            Say::Pieces => {
                self.out.extend(piece(TEXT, false, "häl".as_bytes()));
                self.push(Say::Ping(3), now);
                self.out.extend(piece(0, true, b"lo"));
            }
            Say::TooBig => {
                self.out.extend(piece(BINARY, true, &[7; 5000]));
                self.has_faulted = Some(1009);
            }
            Say::BadText => {
                self.out.extend(piece(TEXT, true, &[0xff, 0xfe]));
                self.has_faulted = Some(1007);
            }
            Say::BadFrame => {
                self.out.extend(Frame::new(FrameKind::plain(TEXT, None), b"bare").bytes);
                self.has_faulted = Some(1002);
            }
        }
    }
}

fn expect(message: &Value, expected: Value) -> Result<(), String> {
    match *message == expected {
        true => Ok(()),
        false => Err(format!("{} is wrong", shown(message))),
    }
}

/// The beginning of a message, for a failure's report.
fn shown(message: &Value) -> String {
    message.to_string().chars().take(200).collect()
}
