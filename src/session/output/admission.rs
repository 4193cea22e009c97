//! Whether a client can wait for the results that it asks for, and how one that cannot is rejected.

use crate::net::Side;
use crate::proto::message::{self, TaskId};
use crate::proto::ws::{self, FrameHead, Opcode};
use crate::session::{CloseReason, Detail, Ended, Last, Step};

/// Rejects a client that cannot subscribe, with the reason.
pub(super) fn refuse(
    mut last: Vec<u8>,
    error: &'static str,
    reason: CloseReason,
    task: Option<&TaskId>,
) -> Step {
    let text = message::error_message(error, task);
    FrameHead::of_message(Opcode::Text, text.len() as u64).write(&mut last);
    last.extend_from_slice(text.as_bytes());
    last.extend(ws::close_frame(reason.close_code(Side::Downstream), reason.phrase(), None));
    let ended = Ended::new(reason, Detail::CannotSubscribe { error }).with_close_code();
    Step::End(ended.with_last(Last::Frames(last)))
}

/// The first chunk that the client wants, from the query; 0 by default. `None`: not a number.
pub(super) fn from_chunk(query: Option<&str>) -> Option<u64> {
    let wanted =
        query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("from_chunk="));
    wanted.map_or(Some(0), |number| number.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_chunk_is_a_number_or_nothing() {
        assert_eq!(from_chunk(None), Some(0));
        assert_eq!(from_chunk(Some("")), Some(0));
        assert_eq!(from_chunk(Some("a=1&from_chunk=7&b")), Some(7));
        assert_eq!(from_chunk(Some("from_chunk=7&from_chunk=8")), Some(7));
        for bad in [
            "from_chunk=",
            "from_chunk=-1",
            "from_chunk=x",
            "from_chunk=1.0",
            "from_chunk=99999999999999999999",
        ] {
            assert_eq!(from_chunk(Some(bad)), None, "{bad}");
        }
    }
}
