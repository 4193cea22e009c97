//! The PROXY header in front of a connection that comes from a trusted proxy.
//!
//! What it says takes the place of the socket's address. Nothing can be answered to a proxy that
//! sends none, because what it speaks is unknown: the connection is closed.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::{Accept, AcceptStage, Fate};
use crate::net::{Conn, Io, Security};
use crate::proto::proxy_header::{BadHeader, HEADER_BYTES_MAX, HeaderSource, parse};
use crate::service::trust::Peer;
use crate::session::request::Request;
use crate::session::transcript::{Event, note};
use crate::session::{
    Admission, CloseReason, Context, Detail, Ended, Identity, Last, Limit, Phase, Step,
};

/// What has come so far.
enum HeaderReceived {
    /// A header, and what followed it.
    Whole(HeaderSource, Vec<u8>),
    /// The beginning of one.
    Part(Vec<u8>),
    /// This many bytes of one, and the end.
    Ended(usize),
}

impl Accept {
    /// Reads the header, whose beginning is `held`, then goes on with what it precedes.
    pub(super) fn read_header(
        mut self: Box<Self>,
        held: &[u8],
        downstream: &mut Conn,
        who: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        if self.fate == Fate::Evicted {
            return make_room(who);
        }
        match cx.with_scratch(|scratch, _| receive(held, downstream, scratch)) {
            Ok(HeaderReceived::Whole(source, early)) => {
                self.begin(source, early, downstream, who, cx)
            }
            Ok(HeaderReceived::Part(_)) if self.deadline.is_some_and(|at| at <= cx.now) => {
                fail("it was not complete within header_timeout".into())
            }
            Ok(HeaderReceived::Part(held)) => {
                self.stage = AcceptStage::Header(held);
                Step::Wait(Phase::Accept(self))
            }
            // A proxy that only tries whether something listens here.
            Ok(HeaderReceived::Ended(0)) => Step::End(Ended::http(CloseReason::Done)),
            Ok(HeaderReceived::Ended(_)) => fail("the connection ended in the middle of it".into()),
            Err(bad) => fail(bad.to_string()),
        }
    }

    /// Goes on behind the header, where `early` bytes have been read.
    fn begin(
        mut self: Box<Self>,
        source: HeaderSource,
        early: Vec<u8>,
        downstream: &mut Conn,
        who: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        match source {
            HeaderSource::Proxy => {}
            HeaderSource::Address(address) => who.note_named(Peer::named(address)),
            HeaderSource::Unknown => who.note_named(Peer::Unnamed),
        }
        let (proxy, client) = (who.socket_peer(), who.client());
        note(&*who, || Event::ProxyHeader { proxy, client });
        if who.security() == Security::Plain {
            return Step::Next(match who.admission {
                Admission::Refused(_) => Request::refused_after(early, cx),
                _ => Request::first_after(early, cx),
            });
        }
        if !downstream.put_layer(|socket| cx.tls.accept_after(socket, early)) {
            return super::give_up("there is no certificate", cx);
        }
        self.stage = AcceptStage::Tls;
        Step::Next(Phase::Accept(self))
    }
}

fn receive(
    held: &[u8],
    downstream: &mut Conn,
    scratch: &mut [u8],
) -> Result<HeaderReceived, BadHeader> {
    let mut length = held.len();
    scratch[..length].copy_from_slice(held);
    loop {
        if let Some((source, header_bytes)) = parse(&scratch[..length])? {
            return Ok(HeaderReceived::Whole(source, scratch[header_bytes..length].to_vec()));
        }
        // There is room: a header that is not whole is shorter than the longest one.
        match downstream.read(&mut scratch[length..HEADER_BYTES_MAX]) {
            Ok(Io::Moved(n)) => length += n,
            Ok(Io::Blocked) => return Ok(HeaderReceived::Part(scratch[..length].to_vec())),
            Ok(Io::Ended) | Err(_) => return Ok(HeaderReceived::Ended(length)),
        }
    }
}

/// Ends a connection so that others have room.
fn make_room(who: &Identity) -> Step {
    match who.admission {
        Admission::Refused(refusal) => {
            let detail = Detail::Refused(Limit::Clients(refusal));
            Step::End(Ended::new(CloseReason::Refused, detail).with_last(Last::Dropped))
        }
        _ => fail("too many connections wait for theirs".into()),
    }
}

fn fail(why: String) -> Step {
    let detail = Detail::ProxyHeader { why };
    Step::End(Ended::new(CloseReason::BadProxyHeader, detail).with_last(Last::Dropped))
}
