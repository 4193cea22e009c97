//! The last bytes, then FIN, then the wait for the client to have them.
//!
//! ```text
//! last bytes ──► FIN ──► all is acknowledged, and the client has sent FIN or its Close ──► done
//!     └──────────┴────── no byte taken or acknowledged for the timeout ──► gone
//! ```
//!
//! Closing at once could destroy what was just sent. A socket that is closed with unread input, or
//! that gets some later, answers with RST, and with an RST the kernel drops what it has not sent
//! yet. So everything that the client still sends is read and discarded until it has ended its
//! side.
//!
//! The session counts as ended only here: what a client has not received has not been delivered.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::ended::{Awaited, Detail, Ended, Last, LastFrames};
use super::stall::Stall;
use super::{CloseReason, Context, Drain, Identity, Phase, State, Step};
use crate::base::moment::Moment;
use crate::net::{Conn, Io};
use crate::proto::message::TaskId;
use crate::proto::ws_reader::{Received, WsFault, WsReader};
use crate::service::stats::BothWays;
use std::time::Duration;

/// Timeout for the next sign that the client takes what it was sent, where `write_timeout` is off.
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);

/// The same while the gateway drains, and for a connection beyond a limit: a client that takes its
/// last bytes is still waited for, one that only fails to close is not.
const BRIEF_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads of bytes that are discarded, in one step; then other sessions have their turn.
const READS_PER_STEP: usize = 16;

/// A session whose last bytes are on their way.
pub struct Linger {
    ended: Box<Ended>,
    last: LastFrames,
    sent: usize,
    is_fin_sent: bool,
    /// The client has sent FIN or its Close frame.
    has_answered: bool,
    /// Finds the client's Close frame, where its frames have been followed from the start.
    reader: Option<Box<WsReader>>,
    stall: Stall,
    is_brief: bool,
    wake_at: Option<Moment>,
}

impl Linger {
    /// Sends the last bytes of a session that has ended, then FIN.
    pub fn phase(mut ended: Box<Ended>, cx: &Context) -> Phase {
        let none = LastFrames::default();
        let (mut last, has_answered) = match std::mem::replace(&mut ended.last, Last::Dropped) {
            Last::Nothing | Last::Dropped => (none, true),
            Last::Frames(last) => (last, false),
            Last::Answer(bytes) => (LastFrames { bytes, ..none }, false),
            Last::Fin(Awaited::Fin) => (none, false),
            Last::Fin(Awaited::Close(reader)) => {
                (LastFrames { reader: Some(reader), ..none }, false)
            }
            Last::Fin(Awaited::Nothing) => (none, true),
        };
        let (reader, early) = (last.reader.take(), std::mem::take(&mut last.early));
        let is_brief = cx.is_draining || matches!(ended.detail, Detail::Refused(_));
        let mut linger = Box::new(Linger {
            ended,
            last,
            sent: 0,
            is_fin_sent: false,
            has_answered,
            reader,
            stall: Stall::new(cx.now),
            is_brief,
            wake_at: None,
        });
        linger.follow(&early);
        Phase::Linger(linger)
    }

    /// Sends what is left, and FIN behind it. `Err`: the connection is lost.
    fn send(&mut self, downstream: &mut Conn, cx: &Context) -> Result<(), ()> {
        while self.sent < self.last.bytes.len() {
            match downstream.write(&self.last.bytes[self.sent..]) {
                Ok(Io::Moved(n)) => self.sent += n,
                Ok(_) => return Ok(()),
                Err(_) => return Err(()),
            }
            self.stall.note_progress(cx.now);
        }
        if !self.is_fin_sent && downstream.shutdown_write() {
            self.is_fin_sent = true;
            self.stall.note_progress(cx.now);
        }
        Ok(())
    }

    /// Reads and discards. True: there may be more. `Err`: the connection is lost.
    fn discard(&mut self, downstream: &mut Conn, cx: &mut Context) -> Result<bool, ()> {
        for _ in 0..READS_PER_STEP {
            let had_answered = self.has_answered;
            let read = cx.with_scratch(|scratch, _| {
                let read = downstream.read(scratch);
                if let Ok(Io::Moved(n)) = read {
                    self.follow(&scratch[..n]);
                }
                read
            });
            match read {
                // Its Close frame is the last that matters; an error behind it is not met any more.
                Ok(Io::Moved(_)) if self.has_answered && !had_answered => return Ok(true),
                Ok(Io::Moved(_)) => {}
                Ok(Io::Blocked) => return Ok(false),
                // With the RST the kernel dropped what the client has not acknowledged, and would
                // count it as unacknowledged forever.
                Ok(Io::Ended) if downstream.is_reset() => return Err(()),
                Ok(Io::Ended) => {
                    self.has_answered = true;
                    return Ok(false);
                }
                Err(_) => return Err(()),
            }
        }
        Ok(true)
    }

    /// Looks for a Close frame in what is discarded. Frames up to it are counted.
    fn follow(&mut self, bytes: &[u8]) {
        let Some(reader) = &mut self.reader else { return };
        let frames = reader.frames_seen();
        let received = reader.handle_bytes(bytes, &mut Vec::new(), &mut |_| {});
        let from_client = &mut self.ended.traffic.from_client;
        from_client.frames += reader.frames_seen() - frames;
        from_client.bytes += bytes.len() as u64;
        match received {
            Received::Nothing => {}
            Received::Close(_) | Received::Fault(WsFault::CloseCode) => {
                self.has_answered = true;
                self.reader = None;
            }
            // Broken frames: only FIN shows the end.
            Received::Fault(_) => self.reader = None,
        }
    }

    fn timeout(&self, cx: &Context) -> Option<Duration> {
        let timeout = linger_timeout(cx);
        if self.is_brief { timeout.map(|timeout| timeout.min(BRIEF_TIMEOUT)) } else { timeout }
    }

    /// The client may not have received everything.
    fn fail(mut self, reason: CloseReason) -> Step {
        self.ended.fail_delivery(reason);
        self.over()
    }

    /// Counts the frames that were sent here. A Close frame among them that was not sent whole was
    /// not seen.
    fn over(mut self) -> Step {
        self.count_sent();
        Step::Over(self.ended)
    }

    fn count_sent(&mut self) {
        let LastFrames { bytes, answer_bytes, frames, .. } = &self.last;
        let is_whole = self.sent == bytes.len();
        if !is_whole {
            self.ended.client_close = self.ended.client_close.unseen();
        }
        if *frames > 0 {
            let to_client = &mut self.ended.traffic.to_client;
            to_client.bytes += self.sent.saturating_sub(*answer_bytes) as u64;
            to_client.frames += if is_whole { *frames } else { 0 };
        }
    }
}

/// Timeout for the next sign that a peer takes its last bytes.
pub(super) fn linger_timeout(cx: &Context) -> Option<Duration> {
    Some(cx.settings.write_timeout.unwrap_or(LINGER_TIMEOUT))
}

impl State for Linger {
    fn step(
        mut self: Box<Self>,
        downstream: &mut Conn,
        _: &mut Identity,
        cx: &mut Context,
    ) -> Step {
        let sent = self.send(downstream, cx);
        let Ok(has_more) = sent.and_then(|()| self.discard(downstream, cx)) else {
            return self.fail(CloseReason::ClientVanished);
        };
        // A Close frame may have crossed the last bytes, and a client may end its side before it
        // reads.
        if self.is_fin_sent
            && self.has_answered
            && downstream.unacknowledged().is_none_or(|bytes| bytes == 0)
        {
            return self.over();
        }
        let timeout = self.timeout(cx);
        if self.stall.check_timeout(downstream, timeout, cx.now) {
            return self.fail(CloseReason::ClientStalled);
        }
        self.wake_at = self.stall.deadline(timeout);
        if has_more { Step::Yield(Phase::Linger(self)) } else { Step::Wait(Phase::Linger(self)) }
    }

    fn deadline(&self) -> Option<Moment> {
        self.wake_at
    }

    fn drain(&mut self, _: Drain, _: &Identity, _: &mut Context) {
        self.is_brief = true;
    }

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "closing"
    }

    fn held_bytes(&self) -> usize {
        self.last.bytes.len() - self.sent
    }

    fn own_bytes(&self) -> usize {
        self.last.bytes.capacity()
    }

    fn release(mut self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        self.ended.fail_delivery(CloseReason::Stopped);
        self.count_sent();
        self.ended
    }

    /// The counts join those of ended sessions only when this phase is over.
    fn traffic(&self) -> Option<BothWays> {
        self.ended.task().map(|_| self.ended.traffic)
    }

    fn task(&self) -> Option<&TaskId> {
        self.ended.task()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Ready, Socket, Transport};
    use crate::proto::ws;
    use crate::service::tasks::{ClientState, TaskEnd};
    use crate::session::{Settings, testing};
    use std::cell::Cell;
    use std::collections::VecDeque;
    use std::io::{self, ErrorKind, Read, Write};
    use std::rc::Rc;

    /// What the client does next: sends bytes (none: FIN), resets, or acknowledges all but some.
    #[derive(Clone)]
    enum Act {
        Sends(Vec<u8>),
        Resets,
        Owes(usize),
    }

    #[derive(Default)]
    struct LingeringClient {
        arrived: Cell<VecDeque<Act>>,
        owed: Cell<usize>,
    }

    struct ClientSocket(Rc<LingeringClient>);

    impl Read for ClientSocket {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let mut arrived = self.0.arrived.take();
            let act = arrived.pop_front();
            self.0.arrived.set(arrived);
            match act {
                Some(Act::Sends(bytes)) => {
                    buf[..bytes.len()].copy_from_slice(&bytes);
                    Ok(bytes.len())
                }
                Some(Act::Resets) => Err(ErrorKind::ConnectionReset.into()),
                Some(Act::Owes(_)) | None => Err(ErrorKind::WouldBlock.into()),
            }
        }
    }

    impl Write for ClientSocket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for ClientSocket {
        fn shutdown_write(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn unacknowledged(&self) -> Option<usize> {
            Some(self.0.owed.get())
        }
    }

    fn context() -> Context {
        let write_timeout = Some(Duration::from_secs(16));
        testing::context(Settings { write_timeout, ..Settings::default() })
    }

    fn delivered() -> Box<Ended> {
        let task = TaskId::read("00000000-0000-0000-0000-000000000001").expect("a UUID");
        let (state, end) = (ClientState::Sending, Some(TaskEnd::Completed));
        let detail = Detail::Output { task, state, end, fault: None };
        let last = Last::Fin(Awaited::Close(Box::default()));
        Ended::new(CloseReason::Delivered, detail).with_last(last)
    }

    /// The client owes 1,000 acknowledgements at first. With a timeout of 16 s.
    #[test]
    fn nothing_counts_as_delivered_before_the_client_has_it() {
        use CloseReason::{ClientStalled, ClientVanished, Delivered};
        let fin = || Act::Sends(Vec::new());
        let close = || Act::Sends(ws::close_frame(1000, "", Some([1, 2, 3, 4])));
        let bad_close = || Act::Sends(ws::close_frame(1005, "", Some([1, 2, 3, 4])));
        let text = || Act::Sends(b"\x81\x82\0\0\0\0hi".to_vec());
        type Acts = Vec<(u64, Act)>;
        #[rustfmt::skip]
        let cases: [(&str, Acts, CloseReason, u64); 9] = [
            ("acknowledges, then FIN", vec![(1, Act::Owes(0)), (2, fin())], Delivered, 2),
            ("acknowledges, then Close", vec![(1, Act::Owes(0)), (2, close())], Delivered, 2),
            ("acknowledges, then Close with 1005",
             vec![(1, Act::Owes(0)), (2, bad_close())], Delivered, 2),
            ("FIN before it has everything",
             vec![(1, fin()), (9, Act::Owes(0))], Delivered, 9),
            ("Close that crossed, then a reset", vec![(1, close()), (2, Act::Resets)], ClientVanished, 2),
            ("a reset", vec![(3, Act::Resets)], ClientVanished, 3),
            ("takes nothing", vec![], ClientStalled, 16),
            ("has everything and does not close", vec![(4, Act::Owes(0))], ClientStalled, 20),
            ("takes a little every 10 s, and talks",
             vec![(10, Act::Owes(900)), (11, text()), (20, Act::Owes(500)), (30, Act::Owes(0)), (31, close())],
             Delivered, 31),
        ];
        for (name, acts, reason, ended_at) in cases {
            let client =
                Rc::new(LingeringClient { owed: Cell::new(1000), ..LingeringClient::default() });
            let mut conn =
                Conn::accepted(Socket::Other(Box::new(ClientSocket(Rc::clone(&client)))));
            let (mut cx, mut who) = (context(), Identity::of_client());
            let mut phase = Linger::phase(delivered(), &cx);
            let mut second = 0;
            let ended = loop {
                cx.now = Moment::START + Duration::from_secs(second);
                for (_, act) in acts.iter().filter(|(at, _)| *at == second) {
                    match act {
                        Act::Owes(owed) => client.owed.set(*owed),
                        act => {
                            let mut arrived = client.arrived.take();
                            arrived.push_back(act.clone());
                            client.arrived.set(arrived);
                        }
                    }
                }
                conn.handle_ready(Ready { readable: true, ..Ready::default() });
                let Phase::Linger(linger) = phase else { panic!("{name}: another phase") };
                phase = match linger.step(&mut conn, &mut who, &mut cx) {
                    Step::Wait(phase) | Step::Yield(phase) => phase,
                    Step::Over(ended) => break ended,
                    _ => panic!("{name}: another step"),
                };
                second += 1;
            };
            assert_eq!((ended.reason, second), (reason, ended_at), "{name}");
            let is_completed = matches!(ended.detail, Detail::Output { end: Some(_), .. });
            assert_eq!(is_completed, reason == Delivered, "{name}");
        }
    }
}
