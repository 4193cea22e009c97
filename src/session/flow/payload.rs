//! Payloads of frames that pass, for those that follow them by `/events/frames?payload=true`.
//!
//! A frame is handed out once the part of its payload that is shown has passed, or the source has
//! ended. Nothing here runs, and nothing is copied, while nobody follows payloads.

use super::{Flow, Watched};
use crate::net::Side;
use crate::proto::ws::{self, FrameHead, Opcode};
use crate::session::Identity;
use crate::session::tap::{self, PAYLOAD_BYTES_MAX};
use crate::session::transcript::offer_frame;

/// A frame whose payload is shown.
pub(super) struct Shown {
    head: FrameHead,
    bytes: Vec<u8>,
}

impl Flow {
    /// A frame begins that those who follow payloads have not been given.
    #[cold]
    pub(super) fn follow_payload(&mut self, head: &FrameHead, who: &Identity) {
        match &self.watched {
            // Handed out when it has been read.
            Some(watched) if matches!(**watched, Watched::Text(_)) => {}
            None if head.payload > 0 && self.goodbye.is_none() => {
                let shown = Shown { head: *head, bytes: Vec::new() };
                self.watched = Some(Box::new(Watched::Shown(shown)));
            }
            _ => offer_frame(who, self.to, head, None),
        }
    }

    /// A piece of a payload that is shown passes.
    #[cold]
    pub(super) fn show(&mut self, piece: &[u8], who: &Identity) {
        let Some(Watched::Shown(shown)) = self.watched.as_deref_mut() else { return };
        let room = PAYLOAD_BYTES_MAX - shown.bytes.len();
        shown.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        if shown.bytes.len() == PAYLOAD_BYTES_MAX || self.frames.payload_left() == 0 {
            self.end_payload(who);
        }
    }

    /// Hands out a frame with what has passed of its payload.
    #[cold]
    pub(super) fn end_payload(&mut self, who: &Identity) {
        if !matches!(self.watched.as_deref(), Some(Watched::Shown(_))) {
            return;
        }
        if let Some(Watched::Shown(Shown { head, mut bytes })) =
            self.watched.take().map(|watched| *watched)
        {
            ws::apply_mask(&mut bytes, head.mask.unwrap_or_default(), 0);
            offer_frame(who, self.to, &head, Some(bytes));
        }
    }

    /// A text that was read for its task has passed.
    pub(super) fn show_text(to: Side, text: &[u8], who: &Identity) {
        if tap::shows_payload() {
            let head = FrameHead::of_message(Opcode::Text, text.len() as u64);
            offer_frame(who, to, &head, Some(text.to_vec()));
        }
    }
}
