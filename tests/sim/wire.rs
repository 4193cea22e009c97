//! Frames as a peer makes them, and a [`Judge`] of what the other end receives.
//!
//! It does not use the gateway's own frame reader, so that the two cannot share a mistake.

use aivtuber_gateway::proto::ws::apply_mask;

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// How reasons in the peers' Close frames begin, to tell them from the gateway's.
pub const PEERS_REASON: &str = "peer:";

/// Payload bytes of the gateway's pings. Peers ping with other lengths.
pub const GATEWAY_PING_BYTES: usize = 8;

/// One frame, as it is sent.
#[derive(Clone)]
pub struct Frame {
    pub bytes: Vec<u8>,
    /// The pong to a ping of the gateway, which is not relayed.
    pub is_for_gateway: bool,
}

/// What a frame carries besides its payload.
#[derive(Clone, Copy)]
pub struct FrameKind {
    pub opcode: u8,
    pub fin: bool,
    pub rsv: u8,
    /// Bytes that encode the length: 1, 3 or 9. More than needed are allowed.
    pub length_bytes: usize,
    pub mask: Option<[u8; 4]>,
}

impl FrameKind {
    pub fn plain(opcode: u8, mask: Option<[u8; 4]>) -> FrameKind {
        FrameKind { opcode, fin: true, rsv: 0, length_bytes: 1, mask }
    }
}

impl Frame {
    pub fn new(kind: FrameKind, payload: &[u8]) -> Frame {
        let mut bytes = vec![u8::from(kind.fin) << 7 | kind.rsv << 4 | kind.opcode];
        let masked = if kind.mask.is_some() { 0x80 } else { 0 };
        let needed = match payload.len() {
            0..126 => 1,
            126..=0xffff => 3,
            _ => 9,
        };
        match kind.length_bytes.max(needed) {
            1 => bytes.push(masked | payload.len() as u8),
            3 => {
                bytes.push(masked | 126);
                bytes.extend((payload.len() as u16).to_be_bytes());
            }
            _ => {
                bytes.push(masked | 127);
                bytes.extend((payload.len() as u64).to_be_bytes());
            }
        }
        bytes.extend(kind.mask.iter().flatten());
        let at = bytes.len();
        bytes.extend(payload);
        if let Some(mask) = kind.mask {
            apply_mask(&mut bytes[at..], mask, 0);
        }
        Frame { bytes, is_for_gateway: false }
    }

    pub fn close(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Frame {
        Frame::new(
            FrameKind::plain(CLOSE, mask),
            &[&code.to_be_bytes(), reason.as_bytes()].concat(),
        )
    }
}

/// A frame head: opcode, bytes of the head and of the payload, and the mask. `None` while it is
/// incomplete.
pub fn read_head(bytes: &[u8]) -> Option<(u8, usize, u64, Option<[u8; 4]>)> {
    let &[first, second, ..] = bytes else { return None };
    let (mut at, length) = match second & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
        length => (2, u64::from(length)),
    };
    let mask = match second & 0x80 {
        0 => None,
        _ => {
            at += 4;
            Some(bytes.get(at - 4..at)?.try_into().ok()?)
        }
    };
    Some((first & 0xf, at, length, mask))
}

/// A Close frame that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goodbye {
    pub code: Option<u16>,
    pub reason: String,
    pub is_gateways: bool,
}

/// A frame that was received whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Got {
    Data,
    Ping { payload: Vec<u8>, is_gateways: bool },
    Pong,
    Close,
}

/// Follows what one end receives and compares it with what the other end sent.
#[derive(Default)]
pub struct Judge {
    /// The other end is a client, whose frames are masked.
    pub is_masked: bool,
    /// The next frame of the other end that is expected.
    next: usize,
    /// The beginning of a frame that may be the other end's or the gateway's.
    begun: Vec<u8>,
    /// Bytes received of a frame that is known to be the other end's.
    matched: usize,
    pub goodbye: Option<Goodbye>,
}

impl Judge {
    pub fn new(is_masked: bool) -> Judge {
        Judge { is_masked, ..Judge::default() }
    }

    /// Handles `bytes`, which follow the handshake. `sent`: all frames that the other end has begun
    /// to send.
    pub fn take(&mut self, mut bytes: &[u8], sent: &[Frame]) -> Result<Vec<Got>, String> {
        let mut got = Vec::new();
        while !bytes.is_empty() {
            if let Some(goodbye) = &self.goodbye {
                return Err(format!("{} bytes behind a Close frame {goodbye:?}", bytes.len()));
            }
            if self.matched > 0 {
                bytes = self.take_payload(bytes, &sent[self.next], &mut got)?;
                continue;
            }
            self.begun.push(bytes[0]);
            bytes = &bytes[1..];
            let Some((opcode, head, payload, mask)) = read_head(&self.begun) else { continue };
            let is_control = opcode & 8 != 0;
            if is_control && (self.begun.len() as u64) < head as u64 + payload {
                continue;
            }
            while sent.get(self.next).is_some_and(|frame| frame.is_for_gateway) {
                self.next += 1;
            }
            let is_peers =
                sent.get(self.next).is_some_and(|frame| frame.bytes.starts_with(&self.begun));
            let begun = std::mem::take(&mut self.begun);
            if is_peers && !is_control {
                self.matched = begun.len();
                if self.matched == sent[self.next].bytes.len() {
                    self.matched = 0;
                    self.next += 1;
                    got.push(Got::Data);
                }
                continue;
            }
            if !is_peers && mask.is_some() != self.is_masked {
                return Err(format!("a frame of the gateway is masked={}", mask.is_some()));
            }
            let mut payload = begun[head..].to_vec();
            if let Some(mask) = mask {
                apply_mask(&mut payload, mask, 0);
            }
            got.push(match opcode {
                CLOSE => {
                    self.goodbye = Some(Goodbye {
                        code: payload.first_chunk().map(|code| u16::from_be_bytes(*code)),
                        reason: String::from_utf8_lossy(payload.get(2..).unwrap_or_default())
                            .into_owned(),
                        is_gateways: !is_peers,
                    });
                    Got::Close
                }
                PING => Got::Ping { payload, is_gateways: !is_peers },
                _ => Got::Pong,
            });
            if is_peers {
                self.next += 1;
            } else if begun[0] != 0x80 | CLOSE
                && (begun[0] != 0x80 | PING || begun.len() - head != GATEWAY_PING_BYTES)
            {
                let shown = &begun[..begun.len().min(24)];
                let expected =
                    sent.get(self.next).map(|frame| &frame.bytes[..frame.bytes.len().min(24)]);
                return Err(format!(
                    "{shown:x?} was never sent, frame {} is {expected:x?}",
                    self.next
                ));
            }
        }
        Ok(got)
    }

    /// Compares what comes with the rest of `frame`, which has begun. Returns what follows it.
    fn take_payload<'b>(
        &mut self,
        bytes: &'b [u8],
        frame: &Frame,
        got: &mut Vec<Got>,
    ) -> Result<&'b [u8], String> {
        let expected = &frame.bytes[self.matched..];
        let n = expected.len().min(bytes.len());
        if bytes[..n] != expected[..n] {
            let (frame, matched) = (self.next, self.matched);
            return Err(format!("frame {frame} is not what was sent, after {matched} bytes"));
        }
        self.matched += n;
        if n == expected.len() {
            self.matched = 0;
            self.next += 1;
            got.push(Got::Data);
        }
        Ok(&bytes[n..])
    }

    /// No frame is incomplete.
    pub fn is_at_boundary(&self) -> bool {
        self.matched == 0 && self.begun.is_empty()
    }

    /// What is missing of the first `wired` bytes that were sent. A head that was cut there may be
    /// missing.
    pub fn missing(&self, sent: &[Frame], wired: u64) -> Option<String> {
        let mut start = 0;
        for (index, frame) in sent.iter().enumerate() {
            let whole = start + frame.bytes.len() as u64;
            if index >= self.next && !frame.is_for_gateway {
                let got =
                    if index == self.next { self.matched.max(self.begun.len()) as u64 } else { 0 };
                let passed = wired.min(whole).saturating_sub(start);
                let held_back =
                    if passed < whole - start { head_bytes(&frame.bytes) as u64 } else { 0 };
                if got < passed && passed > held_back {
                    return Some(format!("{got} of {passed} bytes of frame {index} came"));
                }
            }
            start = whole;
        }
        None
    }
}

/// How many bytes of a cut frame the gateway may keep back: an incomplete head, or a pong.
fn head_bytes(frame: &[u8]) -> usize {
    let (opcode, head, ..) = read_head(frame).expect("frames have heads");
    if opcode == PONG { frame.len() } else { head - 1 }
}

#[test]
fn the_judge_finds_what_is_wrong() {
    let mask = Some([1, 2, 3, 4]);
    let data = |n: usize| Frame::new(FrameKind::plain(BINARY, mask), &vec![7; n]);
    let sent = [data(3), data(300), Frame::close(1000, "peer: bye", mask)];
    let all = sent.iter().flat_map(|frame| frame.bytes.clone()).collect::<Vec<u8>>();
    for cut in 0..all.len() {
        let mut judge = Judge::new(true);
        judge.take(&all[..cut], &sent).unwrap();
        judge.take(&all[cut..], &sent).unwrap();
        assert_eq!(
            judge.goodbye.as_ref().map(|bye| (bye.code, bye.is_gateways)),
            Some((Some(1000), false))
        );
        assert_eq!(judge.missing(&sent, all.len() as u64), None);
        assert!(judge.take(b"x", &sent).is_err(), "nothing behind a Close frame");
    }
    let ping = Frame::new(FrameKind::plain(PING, mask), b"12345678").bytes;
    let mut judge = Judge::new(true);
    let got =
        judge.take(&[&sent[0].bytes[..], &ping, &sent[1].bytes[..9]].concat(), &sent).unwrap();
    assert_eq!(got, [Got::Data, Got::Ping { payload: b"12345678".to_vec(), is_gateways: true }]);
    assert!(!judge.is_at_boundary());
    assert!(judge.missing(&sent, sent[0].bytes.len() as u64 + 20).is_some());
    assert!(judge.take(&ping, &sent).is_err(), "a frame within a frame");
    assert!(Judge::new(true).take(&sent[1].bytes, &sent).is_err(), "a frame left out");
    assert!(
        Judge::new(true)
            .take(&Frame::new(FrameKind::plain(TEXT, mask), b"a").bytes, &sent)
            .is_err()
    );
    assert!(Judge::new(false).take(&ping, &[]).is_err(), "masked towards a client");
}
