//! What a client that waits for results sends: pongs, a Close frame, STOP.

#![expect(clippy::indexing_slicing, reason = "lengths come from reads into the same buffer")]

use super::{BUDGET, Output, OutputEnding};
use crate::net::{Conn, Io, Side};
use crate::proto::ws::Opcode;
use crate::proto::ws_reader::{Received, WsFault};
use crate::service::results::StoppedBy;
use crate::session::transcript::{Event, Subject, note, note_step};
use crate::session::{CloseReason, Closing, Context, Identity, State};

/// Bytes of answers to the client's pings that wait for it. While there are more, it is not read.
const ANSWERS_BYTES_MAX: usize = 16 * 1024;

impl Output {
    /// Reads what the client sends, within the budget. `Err`: it is gone.
    pub(super) fn read(
        &mut self,
        downstream: &mut Conn,
        who: &Identity,
        cx: &mut Context,
    ) -> Result<(), ()> {
        for _ in 0..BUDGET {
            if !self.can_read(downstream) {
                break;
            }
            cx.with_scratch(|scratch, cx| {
                match downstream.read(&mut scratch[..ANSWERS_BYTES_MAX]) {
                    Ok(Io::Moved(n)) => {
                        self.handle_bytes(&scratch[..n], who, cx);
                        Ok(())
                    }
                    Ok(Io::Blocked) => Ok(()),
                    Ok(Io::Ended) | Err(_) => Err(()),
                }
            })?;
        }
        Ok(())
    }

    /// The client may have sent something, and there is room for the answers.
    pub(super) fn can_read(&self, downstream: &Conn) -> bool {
        downstream.is_readable()
            && self.leaving().is_none()
            && self.held_bytes() <= ANSWERS_BYTES_MAX
    }

    pub(super) fn handle_bytes(&mut self, bytes: &[u8], who: &Identity, cx: &mut Context) {
        if bytes.is_empty() {
            return;
        }
        self.note_alive(cx.now);
        self.traffic.from_client.bytes += bytes.len() as u64;
        let mut answers = Vec::new();
        let mut reader = self.underway().reader.take().unwrap_or_default();
        let frames = reader.frames_seen();
        let mut pongs = 0;
        let received = reader.handle_bytes(bytes, &mut answers, &mut |head| {
            note(Subject::Task(who, &self.task), || Event::ClientFrame { head });
            who.count_frame(Side::Upstream, head, cx);
            pongs += u16::from(head.opcode == Opcode::Pong);
        });
        if pongs > 0 {
            self.pings.note_pongs();
        }
        self.traffic.from_client.frames += reader.frames_seen() - frames;
        let asks_stop = reader.take_stop();
        if !reader.is_idle() {
            self.underway().reader = Some(reader);
        }
        if asks_stop {
            cx.results.stop(cx.now, self.task.uuid(), StoppedBy::Client);
        }
        match received {
            Received::Nothing => {
                self.push_frames(&answers, who, cx);
                if asks_stop {
                    // At once: it would go on for the rest of this step.
                    self.handle_stop(StoppedBy::Client, who, cx);
                }
            }
            Received::Close(code) => {
                note_step(Subject::Task(who, &self.task), cx.now, || Event::ClientClose { code });
                self.push_frames(&answers, who, cx);
                let closing = Closing::Sent(code);
                self.underway().leaving = Some(OutputEnding {
                    closing,
                    ..OutputEnding::abrupt(CloseReason::ClientClosed)
                });
            }
            Received::Fault(fault) => {
                let reason = match fault {
                    WsFault::Protocol | WsFault::CloseCode => CloseReason::ProtocolFault,
                    WsFault::Utf8 => CloseReason::NotUtf8,
                    WsFault::TooBig => CloseReason::ClientMessageTooBig,
                };
                self.leave(reason, None, who, cx);
            }
        }
    }

    /// Control frames to the client: answers to its frames, pings, a Close frame.
    pub(super) fn push_frames(&mut self, frames: &[u8], who: &Identity, cx: &mut Context) {
        self.underway().outbox.push(frames);
        self.traffic.to_client.frames += who.count_frames(Side::Downstream, frames, cx);
    }
}
