//! What comes before the first request of some connections: the PROXY header of a trusted proxy,
//! and the TLS handshake where TLS is expected.
//!
//! A handshake costs about as much as a hundred relayed messages. So each step that may take part
//! in one counts as that much work of the turn: when a crowd arrives, its handshakes are spread
//! over turns, and relayed messages pass between them.
//!
//! A client that does not speak TLS goes on without it, and learns from the answer to its request
//! what is expected here.

mod header;

use super::ended::Awaited;
use super::request::Request;
use super::transcript::{Event, note};
use super::{
    Admission, CloseReason, Context, Detail, Drain, Ended, Identity, Last, Phase, State, Step,
};
use crate::base::moment::Moment;
use crate::net::{Conn, Security};
use std::io::ErrorKind;

/// What a step of a handshake counts as, see [`Context::work`]: about 140 µs.
const WORK_OF_A_HANDSHAKE: usize = 128 * 1024;

/// Waiting for a PROXY header, or for the client's part of the handshake.
pub struct Accept {
    /// For both together.
    deadline: Option<Moment>,
    fate: Fate,
    stage: AcceptStage,
}

enum AcceptStage {
    /// A PROXY header, of which this has come.
    Header(Vec<u8>),
    Tls,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    GoOn,
    /// Others need the room.
    Evicted,
    Draining,
}

impl Accept {
    /// Waits for a handshake.
    pub fn phase(cx: &Context) -> Phase {
        Accept::at(AcceptStage::Tls, cx)
    }

    /// Waits for a PROXY header, and then for a handshake where TLS is expected.
    pub fn with_header(cx: &Context) -> Phase {
        Accept::at(AcceptStage::Header(Vec::new()), cx)
    }

    fn at(stage: AcceptStage, cx: &Context) -> Phase {
        let deadline = cx.after(cx.settings.header_timeout);
        Phase::Accept(Box::new(Accept { deadline, fate: Fate::GoOn, stage }))
    }
}

impl State for Accept {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        who: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        if self.fate == Fate::Draining {
            return Step::End(Ended::http(CloseReason::Draining));
        }
        if let AcceptStage::Header(held) = &mut self.stage {
            let held = std::mem::take(held);
            return self.read_header(&held, downstream, who, cx);
        }
        if self.fate == Fate::Evicted {
            return give_up("too many unfinished handshakes", cx);
        }
        if downstream.is_readable() {
            cx.work += WORK_OF_A_HANDSHAKE;
        }
        match downstream.handshake() {
            Ok(None) if self.deadline.is_some_and(|at| at <= cx.now) => {
                give_up("it was not complete in time", cx)
            }
            Ok(None) => Step::Wait(Phase::Accept(self)),
            Ok(Some(security)) => {
                who.note_security(security);
                if security == Security::Tls {
                    cx.stats.tls_handshakes += 1;
                    let client = who.client();
                    note(&*who, || Event::Secured { client });
                }
                Step::Next(match who.admission {
                    Admission::Refused(_) => Request::refused(cx),
                    _ => Request::first(cx),
                })
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Step::End(Ended::http(CloseReason::Done))
            }
            Err(error) => {
                cx.stats.tls_handshakes_failed += 1;
                let detail = Detail::Handshake { why: error.to_string() };
                // The alert says why: it must arrive before the connection ends.
                let last = Last::Fin(Awaited::Nothing);
                Step::End(Ended::new(CloseReason::TlsFailed, detail).with_last(last))
            }
        }
    }

    fn deadline(&self) -> Option<Moment> {
        self.deadline
    }

    fn evict(&mut self) {
        self.fate = Fate::Evicted;
    }

    fn drain(&mut self, _: Drain, _: &Identity, _: &mut Context) {
        self.fate = Fate::Draining;
    }

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "accept"
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn own_bytes(&self) -> usize {
        match &self.stage {
            AcceptStage::Header(held) => held.capacity(),
            AcceptStage::Tls => 0,
        }
    }

    fn release(self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        Ended::http(CloseReason::Stopped)
    }
}

/// Gives the handshake up. Without keys, the client cannot be sent a reason.
fn give_up(why: &str, cx: &mut Context) -> Step {
    cx.stats.tls_handshakes_failed += 1;
    let detail = Detail::Handshake { why: why.to_owned() };
    Step::End(Ended::new(CloseReason::TlsFailed, detail).with_last(Last::Dropped))
}
