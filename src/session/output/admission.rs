//! Whether a client can wait for the results that it asks for, and how one that cannot is rejected.

use super::progress::Start;
use crate::net::Side;
use crate::proto::message::{self, TaskId};
use crate::proto::ws::{self, FrameHead, Opcode};
use crate::session::{CloseReason, Context, Detail, Ended, Identity, Last, LastFrames, Step};

/// The greatest `from_result`. No task has as many results.
const RESULT_ID_MAX: u32 = u32::MAX / 2;

/// A client that was answered with a 101, and cannot subscribe.
pub(super) struct Rejected<'r> {
    /// The 101.
    pub(super) accept: Vec<u8>,
    pub(super) error: &'static str,
    pub(super) reason: CloseReason,
    pub(super) task: Option<TaskId>,
    /// What it sent behind its request.
    pub(super) early: &'r [u8],
}

/// Rejects a client that cannot subscribe, with the reason.
pub(super) fn refuse(rejected: Rejected<'_>, who: &Identity, cx: &mut Context) -> Step {
    let Rejected { accept: mut last, error, reason, task, early } = rejected;
    cx.stats.count_handshake_failed(who.route_name(), reason.word());
    let answer_bytes = last.len();
    let text = message::error_message(error, task.as_ref());
    FrameHead::of_message(Opcode::Text, text.len() as u64).write(&mut last);
    last.extend_from_slice(text.as_bytes());
    last.extend(ws::close_frame(reason.close_code(Side::Downstream), reason.phrase(), None));
    let last = LastFrames::behind_answer(last, answer_bytes, 2, early);
    let ended = Ended::new(reason, Detail::CannotSubscribe { error, task }).with_close_code();
    Step::End(ended.with_last(Last::Frames(last)))
}

/// What a client that has a part of its results asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Resume {
    /// It has the results with lower numbers. `None`: it does not count results.
    pub(super) result: Option<u32>,
    /// Where to begin in the audio of the first result that it gets.
    pub(super) start: Start,
}

impl Resume {
    /// Reads the query: `from_result`, and `from_chunk` or `from_byte`, of which the latter counts.
    ///
    /// # Errors
    /// The error message for the client.
    pub(super) fn read(query: Option<&str>) -> Result<Resume, &'static str> {
        let mut pairs =
            query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let (mut result, mut chunk, mut byte) = (None, None, None);
        for (name, value) in &mut pairs {
            // The first of a name counts.
            match name {
                "from_result" => result = result.or(Some(value)),
                "from_chunk" => chunk = chunk.or(Some(value)),
                "from_byte" => byte = byte.or(Some(value)),
                _ => {}
            }
        }
        let result = number(result, message::BAD_FROM_RESULT)?;
        let result = match result.map(u32::try_from) {
            None => None,
            Some(Ok(id)) if id <= RESULT_ID_MAX => Some(id),
            Some(_) => return Err(message::BAD_FROM_RESULT),
        };
        let chunk = number(chunk, message::BAD_FROM_CHUNK)?.map(Start::Chunk);
        let byte = number(byte, message::BAD_FROM_BYTE)?.map(Start::Byte);
        Ok(Resume { result, start: byte.or(chunk).unwrap_or_default() })
    }

    /// The client has seen something of every result with a lower number than this.
    pub(super) fn seen(self) -> u32 {
        match self {
            Resume { result: None | Some(0), .. } => 0,
            Resume { result: Some(result), start } if start.is_beginning() => result,
            Resume { result: Some(result), .. } => result + 1,
        }
    }

    /// It has this result.
    pub(super) fn has(self, id: u32) -> bool {
        self.result.is_some_and(|first| id < first)
    }

    /// The next one that it gets is `id`: if that is not the one it has a part of, it has nothing
    /// of what it gets.
    pub(super) fn begin_with(&mut self, id: u32) {
        if self.result.is_some_and(|first| id > first) {
            self.start = Start::default();
        }
    }

    /// The next result that it gets has no audio, although it names a file. A client that counts
    /// results has a part of that file or nothing; another one may have a part of a later file, the
    /// first one that could be sent.
    pub(super) fn go_without_audio(&mut self) {
        if self.result.is_some() {
            self.start = Start::default();
        }
    }

    /// Nothing is left out any more.
    pub(super) fn is_over(self) -> bool {
        self.result.is_none_or(|first| first == 0) && self.start == Start::default()
    }
}

fn number(text: Option<&str>, error: &'static str) -> Result<Option<u64>, &'static str> {
    text.map(|text| text.parse().map_err(|_| error)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resume(result: impl Into<Option<u32>>, start: Start) -> Result<Resume, &'static str> {
        Ok(Resume { result: result.into(), start })
    }

    #[test]
    fn a_query_says_where_to_go_on() {
        for (query, expected) in [
            ("", resume(None, Start::Chunk(0))),
            ("a=1&from_chunk=7&b", resume(None, Start::Chunk(7))),
            ("from_chunk=7&from_chunk=8", resume(None, Start::Chunk(7))),
            ("from_result=0&from_chunk=2", resume(0, Start::Chunk(2))),
            ("from_result=3", resume(3, Start::Chunk(0))),
            ("from_chunk=2&from_result=1", resume(1, Start::Chunk(2))),
            ("from_result=1&from_byte=99", resume(1, Start::Byte(99))),
            ("from_chunk=2&from_byte=0", resume(None, Start::Byte(0))),
        ] {
            assert_eq!(Resume::read(Some(query)), expected, "{query}");
        }
        assert_eq!(Resume::read(None), resume(None, Start::Chunk(0)));
    }

    #[test]
    fn what_is_not_a_number_is_an_error() {
        for (name, error) in [
            ("from_chunk", message::BAD_FROM_CHUNK),
            ("from_byte", message::BAD_FROM_BYTE),
            ("from_result", message::BAD_FROM_RESULT),
        ] {
            for bad in ["", "-1", "x", "1.0", "99999999999999999999"] {
                let query = format!("{name}={bad}");
                assert_eq!(Resume::read(Some(&query)), Err(error), "{query}");
            }
        }
        let query = format!("from_result={}", RESULT_ID_MAX + 1);
        assert_eq!(Resume::read(Some(&query)), Err(message::BAD_FROM_RESULT));
    }

    #[test]
    fn the_rest_of_a_result_that_is_gone_is_not_taken_from_another_one() {
        for (query, id, start) in [
            ("from_chunk=3", 1, Start::Chunk(3)),
            ("from_result=0&from_chunk=3", 0, Start::Chunk(3)),
            ("from_result=0&from_chunk=3", 1, Start::default()),
            ("from_result=2&from_byte=3", 2, Start::Byte(3)),
            ("from_result=2&from_byte=3", 3, Start::default()),
        ] {
            let mut resume = Resume::read(Some(query)).unwrap();
            resume.begin_with(id);
            assert_eq!(resume.start, start, "{query} {id}");
        }
    }

    #[test]
    fn a_client_that_wants_the_rest_of_a_result_has_seen_it() {
        for (query, seen) in [
            ("from_chunk=3", 0),
            ("from_result=2", 2),
            ("from_result=2&from_chunk=0", 2),
            ("from_result=2&from_chunk=1", 3),
            ("from_result=2&from_byte=1", 3),
        ] {
            assert_eq!(Resume::read(Some(query)).map(Resume::seen), Ok(seen), "{query}");
        }
    }
}
