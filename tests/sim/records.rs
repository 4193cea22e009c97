//! A record layer on top of the simulated sockets: what TLS asks of a transport, without
//! cryptography.
//!
//! Everything passes in records: a type, a length, and a payload that is not readable as it is. The
//! gateway's end is a [`Recorded`], a buffering [`Transport`]; the peer's end lives in the kernel,
//! so that peers send and receive plain bytes. It is awkward where TLS is:
//!
//! - *Handshake*: nothing can be written before the peer's hello was read; the dialing end speaks
//!   first.
//! - *Update*: after an `UPDATE` record nothing more can be read before the answer to it was
//!   written.
//! - *Nothing in it*: a `TICKET` record costs a read and yields no plaintext.
//! - *Several reads in one event*: records are cut anywhere on the wire and read in bulk.
//! - *Crossing*: a write may take records out of the socket, for which no event comes any more.
//! - *Held output*: a record that does not fit the socket leaves with a later event.

use super::secured::Far;
use super::{Kernel, Near, Records};
use aivtuber_gateway::net::Transport;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};

const HELLO: u8 = 0xa1;
const DATA: u8 = 0xa2;
const UPDATE: u8 = 0xa3;
const ANSWER: u8 = 0xa4;
const TICKET: u8 = 0xa5;

const HEAD_BYTES: usize = 3;

/// Payloads are combined with this, so that bytes which bypass the layer are noticed.
const SCRAMBLE: u8 = 0x5a;

/// Plaintext in one record.
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// What the gateway's end reads from the socket at once.
const READ_BYTES: usize = 20_000;

/// What the kernel knows of both ends.
#[derive(Debug, Default)]
pub struct Layer {
    /// The peer's end, if that is TLS.
    tls: Option<Far>,
    /// What the peer has received: of a record that is not complete, and plaintext.
    begun: Vec<u8>,
    plaintext: VecDeque<u8>,
    /// `UPDATE` records that the peer has sent, and answers that it has got.
    updates: u32,
    answers: u32,
    /// The gateway's end has completed the handshake.
    pub is_established: bool,
    /// The gateway's end could read on without another byte from the socket.
    pub is_input_held: bool,
    /// It cannot, before its output has left.
    pub is_read_blocked: bool,
    pub held_output: usize,
}

impl Layer {
    /// Of a new connection, which the gateway has dialed or will accept.
    pub fn new(records: Records, is_dialed: bool) -> Option<Layer> {
        match records {
            Records::None => None,
            Records::Simulated => Some(Layer::default()),
            Records::Tls => Some(Layer { tls: Some(Far::new(is_dialed)), ..Layer::default() }),
        }
    }

    /// What a peer that connects sends first.
    pub fn hello(&mut self) -> Vec<u8> {
        self.tls.as_mut().map_or_else(hello, Far::poll_output)
    }

    /// Whether what the peer has sent waits for the end of the handshake, and the end behind it.
    pub fn keeps_back(&self) -> bool {
        self.tls.as_ref().is_some_and(Far::keeps_back)
    }

    /// How the peer sends `bytes`.
    pub fn seal(&mut self, mut bytes: &[u8], chance: &mut fastrand::Rng) -> Vec<u8> {
        if let Some(tls) = &mut self.tls {
            return tls.seal(bytes, chance);
        }
        let mut records = Vec::new();
        while !bytes.is_empty() {
            match chance.u8(..16) {
                0 => push_record(TICKET, &[0; 5], &mut records),
                1 => {
                    push_record(UPDATE, &[], &mut records);
                    self.updates += 1;
                }
                _ => {}
            }
            let most = if chance.bool() { RECORD_BYTES_MAX } else { 100 };
            let n = chance.usize(1..=bytes.len().min(most));
            push_record(DATA, &bytes[..n], &mut records);
            bytes = &bytes[n..];
        }
        records
    }

    /// How many bytes the peer needs to complete a record.
    pub fn needed(&self) -> usize {
        if self.tls.is_some() {
            return RECORD_BYTES_MAX;
        }
        record_bytes(&self.begun) - self.begun.len()
    }

    /// The peer has received `bytes`, at most [`Layer::needed`]. Returns what it sends in return.
    pub fn open(&mut self, bytes: &[u8], is_dialed: bool) -> Vec<u8> {
        if let Some(tls) = &mut self.tls {
            self.plaintext.extend(tls.open(bytes));
            return tls.poll_output();
        }
        self.begun.extend(bytes);
        let Some((kind, payload)) = take_record(&mut self.begun) else { return Vec::new() };
        match kind {
            HELLO if is_dialed => return hello(),
            HELLO => {}
            DATA => self.plaintext.extend(payload),
            ANSWER => {
                self.answers += 1;
                assert!(self.answers <= self.updates, "an answer to no update");
            }
            kind => panic!("record type {kind:#x} was never sent"),
        }
        Vec::new()
    }

    pub fn has_plaintext(&self) -> bool {
        !self.plaintext.is_empty()
    }

    pub fn take_plaintext(&mut self, most: usize) -> Vec<u8> {
        let n = most.min(self.plaintext.len());
        super::take(&mut self.plaintext, n)
    }
}

/// The first record of either end.
fn hello() -> Vec<u8> {
    let mut record = Vec::new();
    push_record(HELLO, &[7; 20], &mut record);
    record
}

fn push_record(kind: u8, payload: &[u8], records: &mut Vec<u8>) {
    records.push(kind);
    records.extend((payload.len() as u16).to_be_bytes());
    records.extend(payload.iter().map(|byte| byte ^ SCRAMBLE));
}

/// The length of the record that begins `bytes`, or of its head while that is not complete.
fn record_bytes(bytes: &[u8]) -> usize {
    let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else { return HEAD_BYTES };
    HEAD_BYTES + usize::from(u16::from_be_bytes([head[1], head[2]]))
}

fn has_record(bytes: &[u8]) -> bool {
    bytes.len() >= HEAD_BYTES && bytes.len() >= record_bytes(bytes)
}

fn take_record(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    if !has_record(bytes) {
        return None;
    }
    let rest = bytes.split_off(record_bytes(bytes));
    let record = std::mem::replace(bytes, rest);
    Some((record[0], record[HEAD_BYTES..].iter().map(|byte| byte ^ SCRAMBLE).collect()))
}

/// The gateway's end.
pub struct Recorded {
    near: Near,
    is_established: bool,
    /// Records that have been read from the socket.
    input: Vec<u8>,
    plaintext: VecDeque<u8>,
    is_ended: bool,
    /// Records that the socket had no room for.
    output: Vec<u8>,
    /// The answer to an `UPDATE` is in `output`: until it has left, nothing is read.
    owes_answer: bool,
    /// A read was refused because of that.
    was_refused: bool,
}

impl Recorded {
    pub fn new(near: Near, is_dialed: bool) -> Recorded {
        let mut recorded = Recorded {
            near,
            is_established: false,
            input: Vec::new(),
            plaintext: VecDeque::new(),
            is_ended: false,
            output: if is_dialed { hello() } else { Vec::new() },
            owes_answer: false,
            was_refused: false,
        };
        recorded.report();
        recorded
    }

    /// Sends held output.
    fn send(&mut self) -> io::Result<()> {
        let mut sent = 0;
        let outcome = loop {
            if sent == self.output.len() {
                self.owes_answer = false;
                break Ok(());
            }
            match self.kernel().write_unseen(self.near.link, &self.output[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.output.drain(..sent);
        if outcome.as_ref().is_err_and(|error| !is_blocked(error)) {
            self.output.clear(); // the peer is gone
        }
        outcome
    }

    /// Handles one record, or brings more bytes from the socket.
    fn advance(&mut self) -> io::Result<()> {
        if self.owes_answer && self.send().is_err_and(|error| is_blocked(&error)) {
            self.was_refused = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        self.was_refused = false;
        let Some((kind, payload)) = take_record(&mut self.input) else {
            let mut bytes = vec![0; READ_BYTES];
            let n = self.near.read(&mut bytes)?;
            self.is_ended = n == 0;
            self.input.extend(&bytes[..n]);
            return Ok(());
        };
        match kind {
            HELLO if !self.is_established => {
                self.is_established = true;
                if self.kernel().links[self.near.link].to.is_none() {
                    self.output.extend(hello());
                    self.owes_answer = true;
                }
            }
            DATA if self.is_established => self.plaintext.extend(payload),
            UPDATE if self.is_established => {
                push_record(ANSWER, &[], &mut self.output);
                self.owes_answer = true;
            }
            TICKET if self.is_established => {}
            kind => panic!("record type {kind:#x} out of place"),
        }
        Ok(())
    }

    fn read_plaintext(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.plaintext.is_empty() {
            if self.is_ended {
                return Ok(0);
            }
            self.advance()?;
        }
        let n = buf.len().min(self.plaintext.len());
        buf[..n].copy_from_slice(&super::take(&mut self.plaintext, n));
        let kernel = &mut *self.kernel();
        kernel.note_taken(self.near.link, n);
        // Progress without a call to the kernel: otherwise records of one byte look like a busy
        // loop.
        kernel.moves += 1;
        Ok(n)
    }

    fn write_plaintext(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send()?;
        while !self.is_established {
            if self.is_ended {
                return Err(ErrorKind::BrokenPipe.into());
            }
            self.advance()?;
        }
        self.send()?;
        if !self.is_ended && self.kernel().one_in(8) {
            // A write may look into the socket: what it finds there raises no event any more.
            match self.advance() {
                Err(error) if !is_transient(&error) => return Err(error),
                _ => {}
            }
        }
        let n = {
            let kernel = &mut *self.kernel();
            let n = kernel.chance.usize(1..=bytes.len().min(RECORD_BYTES_MAX));
            kernel.links[self.near.link].wrote(n, false);
            n
        };
        push_record(DATA, &bytes[..n], &mut self.output);
        match self.send() {
            Err(error) if !is_blocked(&error) => Err(error),
            _ => Ok(n),
        }
    }

    /// Shows the kernel what is held here.
    fn report(&mut self) {
        let is_read_blocked = self.owes_answer && !self.output.is_empty();
        let kernel = &mut *self.near.kernel.borrow_mut();
        let layer = kernel.links[self.near.link].layer.as_mut().expect("a link with records");
        layer.is_established = self.is_established;
        layer.is_input_held = !self.plaintext.is_empty() || has_record(&self.input);
        layer.is_read_blocked = is_read_blocked;
        layer.held_output = self.output.len();
    }

    fn kernel(&self) -> std::cell::RefMut<'_, Kernel> {
        self.near.kernel.borrow_mut()
    }
}

impl Read for Recorded {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let done = self.read_plaintext(buf);
        self.report();
        done
    }
}

impl Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = self.write_plaintext(bytes);
        self.report();
        done
    }

    fn flush(&mut self) -> io::Result<()> {
        let done = self.send();
        self.report();
        done
    }
}

impl Transport for Recorded {
    /// What is held counts byte by byte: it fills the socket's room again, so the socket alone may
    /// look as if a slow peer took nothing.
    fn unacknowledged(&self) -> Option<usize> {
        self.near.unacknowledged().map(|bytes| bytes + self.output.len())
    }

    fn kernel_bytes(&self) -> usize {
        self.near.kernel_bytes() + self.input.len() + self.plaintext.len() + self.output.len()
    }

    fn discard_on_close(&mut self) -> io::Result<()> {
        self.near.discard_on_close()
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        self.flush()?;
        self.near.shutdown_write()
    }

    fn is_buffering(&self) -> bool {
        true
    }

    fn is_read_pending(&self) -> bool {
        let is_read_blocked = self.owes_answer && !self.output.is_empty();
        let has_input = self.was_refused || self.is_ended || has_record(&self.input);
        !self.plaintext.is_empty() || has_input && !is_read_blocked
    }

    fn is_write_pending(&self) -> bool {
        self.is_established && self.output.is_empty()
    }

    fn is_output_held(&self) -> bool {
        !self.output.is_empty()
    }

    fn connect_outcome(&mut self) -> io::Result<()> {
        self.near.connect_outcome()
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn is_blocked(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}
