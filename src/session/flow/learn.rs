//! Reads the task's id from a message of the backend, where the route says in which field it is.

use super::{Flow, Pumped, Watched};
use crate::net::Side;
use crate::proto::ws::{FrameHead, Opcode};
use crate::session::{Context, Identity};

/// The frames of a backend among which its text with the task's id is.
const LEARNING_FRAMES_MAX: u64 = 16;

/// The largest text that is looked into.
const LEARNING_BYTES_MAX: u64 = 4096;

/// The longest task id that is learned, in bytes.
const TASK_BYTES_MAX: usize = 128;

impl Flow {
    /// A piece of a watched text passes: with the last one, the relay learns the id.
    #[cold]
    pub(super) fn learn(
        &mut self,
        piece: &[u8],
        who: &Identity,
        cx: &mut Context,
        pumped: &mut Pumped,
    ) {
        let Some(Watched::Text(text)) = self.watched.as_deref_mut() else { return };
        text.extend_from_slice(piece);
        if self.frames.payload_left() == 0 {
            cx.black_box.learned = learned(text, who);
            Flow::show_text(self.to, text, who);
            pumped.more |= cx.black_box.learned.is_some();
        }
    }

    /// Watches a text of the backend if the task's id may be in it. While it is looked for, the
    /// connection remembers nothing, so that this is off the path of the other frames.
    #[cold]
    pub(super) fn watch_for_task(&mut self, head: &FrameHead, who: &Identity, cx: &mut Context) {
        let is_known = !who.is_learning() || cx.black_box.learned.is_some();
        if self.to == Side::Upstream || is_known {
            return;
        }
        if self.traffic.frames > LEARNING_FRAMES_MAX {
            return who.begin_recent(cx);
        }
        let is_whole_text = head.opcode == Opcode::Text && head.fin && head.rsv == 0;
        let is_small = head.payload <= LEARNING_BYTES_MAX && head.mask.is_none();
        if is_whole_text && is_small && self.goodbye.is_none() {
            self.watched = Some(Box::new(Watched::Text(Vec::new())));
        }
    }
}

/// The task's id in a backend's text, if it is there.
fn learned(text: &[u8], who: &Identity) -> Option<Box<str>> {
    let field = who.route.as_ref()?.learn_task()?;
    let text: serde_json::Value = serde_json::from_slice(text).ok()?;
    let task = text.get(field)?.as_str()?;
    (!task.is_empty() && task.len() <= TASK_BYTES_MAX).then(|| task.into())
}
