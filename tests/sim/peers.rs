//! Scripted peers: clients and backends that behave well or badly.
//!
//! A peer is at the far end of a link and acts whenever something may have happened to it. What it
//! does follows from its [`Behavior`], drawn once. What it receives is checked as it comes.

use crate::kernel::{Action, End, Kernel, LinkId, take};
use crate::simulation::MS;
use crate::wire::{self, BINARY, Frame, FrameKind, Got, Judge, PEERS_REASON, PING, PONG, TEXT};
use aivtuber_gateway::base::moment::Moment;
use std::collections::VecDeque;
use std::time::Duration;
use tungstenite::handshake::derive_accept_key;

/// How a peer behaves.
#[derive(Debug, Clone)]
pub struct Behavior {
    /// It reads, writes and answers without delay and leaves in time, so that every promise to it
    /// must be kept exactly.
    pub is_prompt: bool,
    pub read_bite: usize,
    pub read_pace: Duration,
    /// It stops reading after this many bytes.
    pub reads_most: usize,
    pub write_bite: usize,
    pub write_pace: Duration,
    /// How long it takes to answer a ping; `None`: it does not.
    pub pong_after: Option<Duration>,
    /// It answers a Close frame with one.
    pub replies_close: bool,
    /// Messages that it sends.
    pub messages: u32,
    pub payload_max: usize,
    pub ending: Ending,
    /// It ends within a frame.
    pub cuts: bool,
    /// It leaves after this time, whatever happens.
    pub leaves_after: Duration,
}

/// What a peer does after its last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// A Close frame.
    Close,
    /// FIN without a Close frame; it reads on.
    Fin,
    Reset,
    /// It stays until the other end leaves or `leaves_after` has passed.
    Stay,
    /// It is unplugged: it reads and sends nothing more, not even a FIN.
    Silent,
}

/// How a backend answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendAnswer {
    Upgrade {
        interim: bool,
    },
    /// With a body: of known length, chunked, until the connection ends, or cut short.
    Status(u16, Body),
    Garbage,
    /// A 101 that does not fit the key.
    WrongKey,
    Nothing,
    Fin,
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    Length,
    Chunked,
    UntilClose,
    Cut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerStage {
    /// The handshake, or a plain HTTP exchange.
    Head,
    /// The 101 was received, or sent.
    Frames,
    /// It has left.
    Over,
}

/// What kind of peer it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Opens a WebSocket. `is_early`: it sends frames before the answer.
    Client {
        is_early: bool,
    },
    /// Sends plain requests. For each: whether it is a HEAD, and the expected status (0: any).
    Asker {
        questions: Vec<(bool, u16)>,
        closes: bool,
    },
    Backend {
        answer: BackendAnswer,
        answer_after: Duration,
    },
}

pub struct Peer {
    pub link: LinkId,
    pub role: Role,
    pub behavior: Behavior,
    pub stage: PeerStage,
    /// All frames that it has begun to send.
    pub frames: Vec<Frame>,
    pub judge: Judge,
    /// The status of the answer to a client.
    pub status: Option<u16>,
    /// Bytes that it has still to send.
    out: VecDeque<u8>,
    /// Bytes sent, and how many of them belong to the handshake.
    wired: u64,
    head_bytes: u64,
    /// Bytes received of the handshake, or all bytes of a plain exchange.
    pub inbox: Vec<u8>,
    chance: fastrand::Rng,
    masked: bool,
    max_message: Option<u64>,
    message_bytes: u64,
    messages_left: u32,
    /// It ends after this many bytes.
    cut_at: Option<u64>,
    has_close_queued: bool,
    /// Where a message over the limit begins, in bytes of frames.
    big_at: Option<u64>,
    pub ended: Option<End>,
    pub saw_end: Option<End>,
    /// It ended before the gateway did.
    pub ended_first: bool,
    /// Its 101 came from the backend.
    pub is_relayed: bool,
    /// It has been unplugged.
    pub is_silent: bool,
    taken: usize,
    read_at: Moment,
    write_at: Moment,
    leave_at: Moment,
    pongs: VecDeque<(Moment, Vec<u8>, bool)>,
    answer_at: Option<Moment>,
}

impl Peer {
    pub fn new(
        kernel: &mut Kernel,
        link: LinkId,
        role: Role,
        behavior: Behavior,
        max_message: Option<u64>,
        head: &[u8],
    ) -> Peer {
        let now = kernel.now;
        let masked = matches!(role, Role::Client { .. });
        let leave_at = now + behavior.leaves_after;
        kernel.at(leave_at, Action::Peer(link));
        kernel.wake_peer(link);
        Peer {
            link,
            messages_left: behavior.messages,
            judge: Judge::new(!masked),
            masked,
            role,
            behavior,
            stage: PeerStage::Head,
            frames: Vec::new(),
            status: None,
            out: head.iter().copied().collect(),
            wired: 0,
            head_bytes: head.len() as u64,
            inbox: Vec::new(),
            chance: fastrand::Rng::with_seed(kernel.chance.u64(..)),
            max_message,
            message_bytes: 0,
            cut_at: None,
            has_close_queued: false,
            big_at: None,
            ended: None,
            saw_end: None,
            ended_first: false,
            is_relayed: false,
            is_silent: false,
            taken: 0,
            read_at: now,
            write_at: now,
            leave_at,
            pongs: VecDeque::new(),
            answer_at: None,
        }
    }

    /// Bytes sent behind the handshake.
    pub fn stream_bytes(&self) -> u64 {
        self.wired.saturating_sub(self.head_bytes)
    }

    /// Its part of the handshake has been sent.
    pub fn has_shaken_hands(&self) -> bool {
        self.head_bytes > 0 && self.wired >= self.head_bytes
    }

    /// Its Close frame has been sent.
    pub fn has_closed(&self) -> bool {
        self.has_close_queued && self.out.is_empty()
    }

    /// The head of a message over the limit has been sent.
    pub fn has_said_too_much(&self) -> bool {
        self.big_at.is_some_and(|at| self.stream_bytes() > at)
    }

    /// The gateway may take it for dead, or for too slow.
    pub fn is_unresponsive(&self) -> bool {
        !self.behavior.is_prompt || self.is_silent
    }

    /// Acts: reads, writes, leaves. `sent`: frames that the other end has begun to send.
    pub fn tick(&mut self, kernel: &mut Kernel, sent: &[Frame]) -> Result<(), String> {
        if self.stage == PeerStage::Over || self.is_silent {
            return Ok(());
        }
        self.read(kernel, sent)?;
        self.answer(kernel)?;
        self.write(kernel);
        if kernel.now >= self.leave_at && self.stage != PeerStage::Over {
            self.leave(kernel);
        }
        Ok(())
    }

    fn read(&mut self, kernel: &mut Kernel, sent: &[Frame]) -> Result<(), String> {
        while kernel.is_to_receive(self.link) && self.taken < self.behavior.reads_most {
            if kernel.now < self.read_at {
                kernel.at(self.read_at, Action::Peer(self.link));
                return Ok(());
            }
            let bytes = kernel.receive(
                self.link,
                self.behavior.read_bite.min(self.behavior.reads_most - self.taken),
            );
            self.taken += bytes.len();
            kernel.note(|| format!("peer {} got {}", self.link, bytes.len()));
            self.read_at = kernel.now + self.behavior.read_pace;
            self.take(kernel, &bytes, sent)?;
        }
        if self.saw_end.is_none()
            && let Some(end) = kernel.received_end(self.link)
        {
            kernel.note(|| format!("peer {} saw {end:?}", self.link));
            self.saw_end = Some(end);
            if self.behavior.is_prompt || end == End::Reset {
                self.leave_by(kernel, 200 * MS);
            }
        }
        Ok(())
    }

    fn take(&mut self, kernel: &mut Kernel, bytes: &[u8], sent: &[Frame]) -> Result<(), String> {
        match self.stage {
            PeerStage::Head => {
                self.inbox.extend(bytes);
                self.take_head(kernel, sent)
            }
            PeerStage::Frames => self.take_frames(kernel, bytes, sent),
            PeerStage::Over => Ok(()),
        }
    }

    fn take_head(&mut self, kernel: &mut Kernel, sent: &[Frame]) -> Result<(), String> {
        let Some(length) = head_length(&self.inbox) else { return Ok(()) };
        match &self.role {
            Role::Asker { .. } => Ok(()),
            Role::Client { .. } => {
                let status = status(&self.inbox).ok_or("an answer without a status")?;
                self.status = Some(status);
                if status != 101 {
                    return Ok(());
                }
                let accept = derive_accept_key(KEY.as_bytes());
                let head = String::from_utf8_lossy(&self.inbox[..length]).into_owned();
                if !head.contains(&format!("Sec-WebSocket-Accept: {accept}\r\n")) {
                    return Err(format!("an answer that does not fit the key: {head:?}"));
                }
                self.is_relayed = head.contains("Server: sim\r\n");
                self.stage = PeerStage::Frames;
                let rest = std::mem::take(&mut self.inbox).split_off(length);
                self.take_frames(kernel, &rest, sent)
            }
            Role::Backend { answer_after, .. } => {
                let head = String::from_utf8_lossy(&self.inbox[..length]).into_owned();
                let is_probe = head.contains(" (probe)\r\n");
                for (line, is_of_client) in [
                    ("X-Forwarded-For: ", true),
                    ("X-Request-Id: ", true),
                    ("Via: 1.1 aivtuber-gateway\r\n", false),
                    ("Upgrade: websocket\r\n", false),
                    ("Connection: Upgrade\r\n", false),
                ] {
                    if !(head.contains(line) || is_probe && is_of_client) {
                        return Err(format!("no {line:?} in {head:?}"));
                    }
                }
                if self.answer_at.is_none() {
                    let at = kernel.now + *answer_after;
                    self.answer_at = Some(at);
                    kernel.at(at, Action::Peer(self.link));
                }
                Ok(())
            }
        }
    }

    fn take_frames(
        &mut self,
        kernel: &mut Kernel,
        bytes: &[u8],
        sent: &[Frame],
    ) -> Result<(), String> {
        for got in self.judge.take(bytes, sent)? {
            match got {
                Got::Data | Got::Pong => {}
                Got::Ping { payload, is_gateways } => {
                    if let Some(wait) = self.behavior.pong_after {
                        self.pongs.push_back((kernel.now + wait, payload, is_gateways));
                        kernel.after(wait, Action::Peer(self.link));
                    }
                }
                Got::Close => {
                    if self.behavior.replies_close && !self.has_close_queued && self.ended.is_none()
                    {
                        self.messages_left = 0;
                        self.push_close();
                    }
                    if self.behavior.replies_close {
                        // A server closes at once; a client waits for it to do so.
                        self.leave_by(kernel, if self.masked { 1000 * MS } else { 20 * MS });
                    }
                }
            }
        }
        Ok(())
    }

    fn leave_by(&mut self, kernel: &mut Kernel, most: Duration) {
        let at = kernel.now + kernel.some(most);
        if at < self.leave_at {
            self.leave_at = at;
            kernel.at(at, Action::Peer(self.link));
        }
    }

    /// Sends a backend's answer when it is due.
    fn answer(&mut self, kernel: &mut Kernel) -> Result<(), String> {
        let Role::Backend { answer, .. } = &self.role else { return Ok(()) };
        let is_due = self.answer_at.is_some_and(|at| at <= kernel.now) && self.ended.is_none();
        if self.stage != PeerStage::Head || !is_due || self.head_bytes > 0 {
            return Ok(());
        }
        let head = String::from_utf8_lossy(&self.inbox).into_owned();
        let length = head_length(&self.inbox).unwrap_or_default();
        let key = head
            .lines()
            .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
            .unwrap_or_default();
        let accept = derive_accept_key(key.as_bytes());
        let bytes = match *answer {
            BackendAnswer::Upgrade { interim } => {
                let before =
                    if interim { "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" } else { "" };
                format!("{before}{}", switching(&accept))
            }
            BackendAnswer::WrongKey => switching("AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
            BackendAnswer::Garbage => "SSH-2.0-OpenSSH_9.2p1\r\n\r\n".into(),
            BackendAnswer::Status(status, body) => {
                let (line, body) = match body {
                    Body::Length => ("Content-Length: 5\r\n", "nope\n"),
                    Body::Chunked => ("Transfer-Encoding: chunked\r\n", "5\r\nnope\n\r\n0\r\n\r\n"),
                    Body::UntilClose => ("", "nope\n"),
                    Body::Cut => ("Content-Length: 50\r\n", "nope\n"),
                };
                format!("HTTP/1.1 {status} No\r\n{line}\r\n{body}")
            }
            BackendAnswer::Nothing => return Ok(()),
            BackendAnswer::Fin | BackendAnswer::Reset => {
                self.end(kernel, if *answer == BackendAnswer::Fin { End::Fin } else { End::Reset });
                return Ok(());
            }
        };
        self.head_bytes = bytes.len() as u64;
        self.out.extend(bytes.as_bytes());
        let ends = matches!(answer, BackendAnswer::Status(_, Body::UntilClose | Body::Cut));
        if matches!(answer, BackendAnswer::Upgrade { .. }) {
            if self.inbox.len() > length {
                return Err("frames came before the handshake was done".into());
            }
            self.stage = PeerStage::Frames;
        } else if ends {
            self.cut_at = Some(self.head_bytes);
            self.behavior.ending = Ending::Fin;
        }
        Ok(())
    }

    fn write(&mut self, kernel: &mut Kernel) {
        while let Some(&(at, _, _)) = self.pongs.front() {
            if at > kernel.now {
                break;
            }
            let Some((_, payload, is_gateways)) = self.pongs.pop_front() else { break };
            let mut frame = Frame::new(FrameKind::plain(PONG, self.mask()), &payload);
            frame.is_for_gateway = is_gateways;
            self.push(frame);
        }
        while self.ended.is_none() && self.stage != PeerStage::Over {
            if kernel.now < self.write_at {
                kernel.at(self.write_at, Action::Peer(self.link));
                return;
            }
            if self.out.is_empty() && !self.refill(kernel) {
                return;
            }
            if self.ended.is_some() || self.is_silent {
                return;
            }
            let window = kernel.window(self.link);
            if window == 0 {
                return;
            }
            let mut n = self.behavior.write_bite.min(self.out.len()).min(window);
            if let Some(cut) = self.cut_at {
                n = n.min((cut - self.wired) as usize);
            }
            let bytes = take(&mut self.out, n);
            kernel.note(|| format!("peer {} sent {n}", self.link));
            kernel.send(self.link, &bytes);
            self.wired += n as u64;
            self.write_at = kernel.now + self.pace();
            if self.cut_at == Some(self.wired) {
                return self.do_ending(kernel);
            }
        }
    }

    fn pace(&mut self) -> Duration {
        Duration::from_nanos(self.chance.u64(..=self.behavior.write_pace.as_nanos() as u64))
    }

    /// Puts the next message into `out`, or ends. False: nothing to send now.
    fn refill(&mut self, kernel: &mut Kernel) -> bool {
        let may_speak = match (&self.role, self.stage) {
            (_, PeerStage::Frames) => true,
            (Role::Client { is_early }, PeerStage::Head) => *is_early,
            _ => false,
        };
        if let Role::Asker { closes: true, .. } = self.role {
            self.end(kernel, End::Fin);
            return false;
        }
        if !may_speak || self.has_close_queued {
            return false;
        }
        if self.messages_left == 0 {
            if self.stage == PeerStage::Frames {
                self.do_ending(kernel);
            }
            return !self.out.is_empty();
        }
        loop {
            self.messages_left -= 1;
            self.push_message();
            // Many small ones are sent in bulk.
            if self.messages_left < 100 || self.out.len() > 20_000 {
                break;
            }
        }
        let vanishes = matches!(self.behavior.ending, Ending::Fin | Ending::Reset | Ending::Silent);
        if self.messages_left == 0 && vanishes && self.behavior.cuts && self.cut_at.is_none() {
            let back = self.chance.usize(1..=self.out.len());
            self.cut_at = Some(self.wired + (self.out.len() - back) as u64);
            if back == self.out.len() {
                self.do_ending(kernel);
            }
        }
        true
    }

    fn do_ending(&mut self, kernel: &mut Kernel) {
        match self.behavior.ending {
            Ending::Close => self.push_close(),
            Ending::Fin => self.end(kernel, End::Fin),
            Ending::Reset => self.end(kernel, End::Reset),
            Ending::Stay => {}
            Ending::Silent => {
                kernel.note(|| format!("peer {} is unplugged", self.link));
                self.is_silent = true;
            }
        }
    }

    pub fn end(&mut self, kernel: &mut Kernel, end: End) {
        kernel.note(|| format!("peer {} ends {end:?}", self.link));
        self.ended_first |= self.saw_end.is_none();
        self.ended = Some(end);
        kernel.end(self.link, end);
        if end == End::Reset {
            self.stage = PeerStage::Over;
        }
    }

    /// Closes its socket, even with bytes unread.
    pub fn leave(&mut self, kernel: &mut Kernel) {
        kernel.note(|| format!("peer {} leaves", self.link));
        self.ended_first |= self.ended.is_none() && self.saw_end.is_none();
        self.stage = PeerStage::Over;
        let end = kernel.close(self.link);
        self.ended = self.ended.max(end);
    }

    fn mask(&mut self) -> Option<[u8; 4]> {
        self.masked.then(|| self.chance.u32(..).to_ne_bytes())
    }

    fn push(&mut self, frame: Frame) {
        if self.has_close_queued || self.ended.is_some() {
            return;
        }
        if self.cut_at.is_none() {
            self.out.extend(&frame.bytes);
            self.frames.push(frame);
        }
    }

    fn push_close(&mut self) {
        let mask = self.mask();
        let frame = match self.chance.u8(..4) {
            0 => Frame::new(FrameKind::plain(wire::CLOSE, mask), &[]),
            _ => {
                let code = [1000, 1001, 3000, 4999][self.chance.usize(..4)];
                let reason = "x".repeat(self.chance.usize(..100));
                Frame::close(code, &format!("{PEERS_REASON} {reason}"), mask)
            }
        };
        self.push(frame);
        self.has_close_queued = true;
    }

    /// Queues a message, perhaps fragmented with a ping in between, or some other frame.
    fn push_message(&mut self) {
        match self.chance.u8(..10) {
            0 => {
                let n = [0, 1, 7, 9, 125][self.chance.usize(..5)];
                self.push_control(PING, n);
            }
            1 => {
                let n = [0, 1, 8, 8, 125][self.chance.usize(..5)];
                self.push_control(PONG, n);
            }
            2 => {
                let opcode = 0xb + self.chance.u8(..5);
                self.push_control(opcode, 5);
            }
            _ => self.push_data(),
        }
    }

    fn push_control(&mut self, opcode: u8, n: usize) {
        let mask = self.mask();
        let payload: Vec<u8> = (0..n).map(|_| self.chance.u8(..)).collect();
        self.push(Frame::new(FrameKind::plain(opcode, mask), &payload));
    }

    fn push_data(&mut self) {
        let pieces = if self.chance.u8(..4) == 0 { self.chance.usize(1..5) } else { 1 };
        for piece in 0..pieces {
            let opcode = match piece {
                0 => [TEXT, BINARY, BINARY, 3 + self.chance.u8(..5)][self.chance.usize(..4)],
                _ => 0,
            };
            let n = match self.chance.u8(..8) {
                0 => 0,
                1..5 => self.chance.usize(..=self.behavior.payload_max.min(200)),
                5 => [125, 126, 127, 1000, 65_535, 65_536][self.chance.usize(..6)]
                    .min(self.behavior.payload_max),
                _ => self.chance.usize(..=self.behavior.payload_max),
            };
            let mut payload = vec![0; n];
            self.chance.fill(&mut payload);
            let kind = FrameKind {
                opcode,
                fin: piece + 1 == pieces,
                rsv: if self.chance.u8(..4) == 0 { self.chance.u8(..8) } else { 0 },
                length_bytes: [1, 1, 1, 1, 3, 9][self.chance.usize(..6)],
                mask: self.mask(),
            };
            let before = if opcode == 0 { self.message_bytes } else { 0 };
            self.message_bytes = before + n as u64;
            if self.big_at.is_none() && self.max_message.is_some_and(|max| self.message_bytes > max)
            {
                // Its head has to be on the way whole to be known for what it is.
                let begun: usize = self.frames.iter().map(|frame| frame.bytes.len()).sum();
                self.big_at = Some(begun as u64 + 1);
            }
            self.push(Frame::new(kind, &payload));
            if piece + 1 < pieces && self.chance.u8(..3) == 0 {
                self.push_control(PING, 4);
            }
        }
    }
}

/// Every client's `Sec-WebSocket-Key`.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A client's upgrade request.
pub fn upgrade_request(path: &str, extra: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{extra}\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
    .into_bytes()
}

fn switching(accept: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nServer: sim\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// Where a head ends, if it does.
pub fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn status(head: &[u8]) -> Option<u16> {
    std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()
}

/// The complete answers in `bytes`. `heads_only`: for each request, whether it was a HEAD.
pub fn answers(mut bytes: &[u8], heads_only: &[bool]) -> Result<Vec<(u16, Vec<u8>)>, String> {
    let mut answers = Vec::new();
    while let Some(length) = head_length(bytes) {
        let head = String::from_utf8_lossy(&bytes[..length]).to_lowercase();
        let status = status(bytes).ok_or_else(|| format!("no status in {head:?}"))?;
        let body = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(Ok(0), str::parse);
        let body: usize = body.map_err(|_| format!("a bad length in {head:?}"))?;
        let body = if heads_only.get(answers.len()) == Some(&true) { 0 } else { body };
        if bytes.len() < length + body {
            break;
        }
        answers.push((status, bytes[length..length + body].to_vec()));
        bytes = &bytes[length + body..];
    }
    Ok(answers)
}
