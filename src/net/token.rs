//! What an event is about, packed into the one word that `epoll` carries.

#![expect(clippy::disallowed_types, reason = "sockets and files live here")]

use mio::Token;

/// The two ends of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Side {
    /// The client's side.
    Downstream = Side::BIT,
    /// The backend's side.
    Upstream = 0,
}

impl Side {
    /// What [`Side::bit`] is for the client's side.
    pub const BIT: u8 = 0x10;

    /// A bit that the opcode of a frame leaves free: so a side and an opcode are one number,
    /// without a branch.
    #[inline]
    pub const fn bit(self) -> u8 {
        self as u8
    }

    /// The opposite side.
    pub fn other(self) -> Side {
        match self {
            Side::Downstream => Side::Upstream,
            Side::Upstream => Side::Downstream,
        }
    }

    /// The word for this side in the log.
    pub fn word(self) -> &'static str {
        match self {
            Side::Downstream => "client",
            Side::Upstream => "backend",
        }
    }
}

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Source {
    /// One side of the session in this slot.
    Session(usize, Side),
    Listener(usize),
    Signal(usize),
    /// One of the connections to Redis.
    Link(usize),
    /// The probe of a backend in this slot.
    Probe(usize),
    /// Files that are watched: some were written to.
    Files,
    /// A background thread has an answer.
    Waker,
    /// A deadline has come.
    Alarm,
}

const KIND_BITS: u32 = 4;
const DOWNSTREAM: usize = 0;
const UPSTREAM: usize = 1;
const LISTENER: usize = 2;
const SIGNAL: usize = 3;
const WAKER: usize = 4;
const LINK: usize = 5;
const ALARM: usize = 6;
const PROBE: usize = 7;
const FILES: usize = 8;

impl From<Source> for Token {
    fn from(source: Source) -> Token {
        let (number, kind) = match source {
            Source::Session(key, Side::Downstream) => (key, DOWNSTREAM),
            Source::Session(key, Side::Upstream) => (key, UPSTREAM),
            Source::Listener(n) => (n, LISTENER),
            Source::Signal(n) => (n, SIGNAL),
            Source::Waker => (0, WAKER),
            Source::Alarm => (0, ALARM),
            Source::Link(n) => (n, LINK),
            Source::Probe(n) => (n, PROBE),
            Source::Files => (0, FILES),
        };
        Token(number << KIND_BITS | kind)
    }
}

impl From<Token> for Source {
    fn from(token: Token) -> Source {
        let number = token.0 >> KIND_BITS;
        match token.0 & ((1 << KIND_BITS) - 1) {
            DOWNSTREAM => Source::Session(number, Side::Downstream),
            UPSTREAM => Source::Session(number, Side::Upstream),
            LISTENER => Source::Listener(number),
            SIGNAL => Source::Signal(number),
            WAKER => Source::Waker,
            ALARM => Source::Alarm,
            LINK => Source::Link(number),
            PROBE => Source::Probe(number),
            FILES => Source::Files,
            kind => unreachable!("token kind {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_round_trip_keeps_every_source() {
        for source in [
            Source::Session(0, Side::Downstream),
            Source::Session(0, Side::Upstream),
            Source::Session(123_456_789, Side::Upstream),
            Source::Listener(3),
            Source::Signal(2),
            Source::Waker,
            Source::Alarm,
            Source::Link(1),
            Source::Probe(5),
            Source::Files,
        ] {
            assert_eq!(Source::from(Token::from(source)), source);
        }
    }
}
