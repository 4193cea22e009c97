//! Streams that the gateway itself fills with what a worker sends it.
//!
//! Each chunk is what the worker sent as one, with its further fields. The file is the gateway's
//! own: nothing else writes to it, so it is never looked at, and it is the only copy, so the stream
//! stays until its result goes.

use uuid::Uuid;

use super::StreamFailure;
use super::{
    NewStream, SeenFile, Stream, StreamId, StreamRules, StreamSource, StreamState, Streams,
};
use crate::base::moment::Moment;
use std::path::Path;
use std::time::SystemTime;

/// What is known of speech besides its audio.
#[derive(Debug)]
pub(super) struct SpeechDetails {
    audio_type: Box<str>,
    is_final: bool,
    /// Its result is not kept any more: it goes with the last client that reads it.
    is_gone: bool,
}

impl<K, F> Stream<K, F> {
    /// The media type of speech.
    pub fn speech_type(&self) -> Option<&str> {
        self.speech.as_ref().map(|speech| &*speech.audio_type)
    }

    /// Whether its task ends with it.
    pub fn is_final_speech(&self) -> bool {
        self.speech.as_ref().is_some_and(|speech| speech.is_final)
    }

    pub(super) fn is_speech(&self) -> bool {
        self.speech.is_some()
    }

    pub(super) fn is_gone_speech(&self) -> bool {
        self.speech.as_ref().is_some_and(|speech| speech.is_gone)
    }
}

impl<K: Copy, F> Streams<K, F> {
    /// Begins a stream of speech, of this media type.
    pub fn begin_speech(
        &mut self,
        now: Moment,
        (task, result_id): (Uuid, u32),
        file: F,
        audio_type: Box<str>,
        rules: &StreamRules,
    ) -> StreamId {
        let name = Path::new("");
        let source = StreamSource::Speech;
        let new =
            NewStream { task, result_id, source, file, name, audio_type: None, is_second: false };
        let id =
            self.begin(now, new, SeenFile { length: 0, modified: SystemTime::UNIX_EPOCH }, rules);
        if let Some(stream) = self.stream_mut(id) {
            stream.speech =
                Some(Box::new(SpeechDetails { audio_type, is_final: false, is_gone: false }));
        }
        id
    }

    /// A chunk of speech, whose bytes are in the file. `fields` is JSON text, a comma in front of
    /// each name, or nothing.
    pub fn append(&mut self, now: Moment, id: StreamId, length: u32, fields: &str) {
        let Some(stream) = self.stream_mut(id).filter(|it| it.state == StreamState::Open) else {
            return;
        };
        let before = stream.chunks.bytes();
        stream.chunks.push(length, fields);
        let after = stream.chunks.bytes();
        if after != before {
            stream.charge.set(stream.charge.bytes() + after - before);
        }
        (stream.grown_at, stream.has_grown) = (now, true);
        self.wake(id);
    }

    /// The worker has sent everything; `is_final`: the task ends with it.
    pub fn complete_speech(&mut self, id: StreamId, is_final: bool) {
        let Some(stream) = self.stream_mut(id).filter(|it| it.state == StreamState::Open) else {
            return;
        };
        if let Some(speech) = &mut stream.speech {
            speech.is_final = is_final;
        }
        self.end(id, StreamState::Ended);
    }

    /// No more of it is taken.
    pub fn fail_speech(&mut self, id: StreamId, failure: StreamFailure) {
        if self.stream(id).is_some_and(|stream| stream.state == StreamState::Open) {
            self.end(id, StreamState::Failed(failure));
        }
    }

    /// It is time to see whether speech has stalled.
    pub fn judge_speech(&mut self, now: Moment, id: StreamId, rules: &StreamRules) {
        let Some(stream) = self.stream(id) else { return };
        match stream.stalls_at(rules) {
            Some(at) if at <= now => self.fail_speech(id, StreamFailure::Stalled),
            _ => self.arm(now, id, rules),
        }
    }

    /// Nothing can be said yet about its worker: what it has sent is still here.
    pub fn put_off_stall(&mut self, now: Moment, id: StreamId) {
        if let Some(stream) = self.stream_mut(id) {
            stream.grown_at = now;
        }
    }

    /// Its result has another number than before.
    pub fn renumber(&mut self, id: StreamId, result_id: u32) {
        if let Some(stream) = self.stream_mut(id) {
            stream.result_id = result_id;
        }
    }

    /// Its result is not kept any more: forgets it once no client reads it.
    pub fn forget(&mut self, id: StreamId) {
        let Some(stream) = self.stream_mut(id) else { return };
        if stream.readers == 0 {
            self.remove(id);
        } else if let Some(speech) = &mut stream.speech {
            speech.is_gone = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::budget::Budget;
    use crate::service::streams::StreamVerdict;
    use std::time::Duration;

    const NOW: Moment = Moment::START;
    const TASK: Uuid = Uuid::from_u128(7);
    const SECOND: Duration = Duration::from_secs(1);
    const RULES: StreamRules = StreamRules {
        chunk_size: 10,
        bytes_max: 1000,
        stall: Some(Duration::from_secs(10)),
        wait: Duration::from_secs(1),
    };

    fn begun() -> (Streams<u8, ()>, StreamId) {
        let mut streams = Streams::new(&Budget::default());
        let id = streams.begin_speech(NOW, (TASK, 3), (), "audio/wav".into(), &RULES);
        (streams, id)
    }

    #[test]
    fn chunks_are_those_of_the_worker_with_their_fields() {
        let (mut streams, id) = begun();
        streams.append(NOW, id, 25, r#","viseme":1"#);
        streams.append(NOW, id, 0, "");
        let stream = streams.stream(id).unwrap();
        assert_eq!((stream.chunks().count(), stream.chunks().length()), (2, 25));
        assert_eq!((stream.chunks().fields(0), stream.chunks().fields(1)), (r#","viseme":1"#, ""));
        assert_eq!((stream.speech_type(), stream.is_final_speech()), (Some("audio/wav"), false));
        assert_eq!(stream.total_chunks(NOW, &RULES), None);
        streams.complete_speech(id, true);
        let stream = streams.stream(id).unwrap();
        assert_eq!(stream.verdict(NOW, &RULES), StreamVerdict::Complete);
        assert_eq!((stream.total_chunks(NOW, &RULES), stream.is_final_speech()), (Some(2), true));
        streams.append(NOW, id, 5, "");
        assert_eq!(streams.stream(id).unwrap().chunks().count(), 2, "it has ended");
    }

    #[test]
    fn a_client_that_waits_is_woken_by_each_chunk_and_by_the_end() {
        let (mut streams, id) = begun();
        let mut since = None;
        for end in [false, true] {
            since = streams.wait(NOW, id, 1, since, &RULES);
            assert_eq!(streams.poll_woken(), None);
            match end {
                false => streams.append(NOW, id, 5, ""),
                true => streams.complete_speech(id, false),
            }
            assert_eq!((streams.poll_woken(), streams.poll_woken()), (Some(1), None));
        }
    }

    #[test]
    fn speech_stalls_when_nothing_has_come_for_so_long() {
        let (mut streams, id) = begun();
        streams.append(NOW + 5 * SECOND, id, 5, "");
        let at = streams.deadline().unwrap();
        assert_eq!(at, NOW + 10 * SECOND);
        assert_eq!(streams.poll_due(at), Some(id));
        streams.judge_speech(at, id, &RULES);
        let at = streams.deadline().unwrap();
        assert_eq!(at, NOW + 15 * SECOND);
        assert_eq!(streams.poll_due(at), Some(id));
        streams.judge_speech(at, id, &RULES);
        let failed = StreamState::Failed(StreamFailure::Stalled);
        assert_eq!(streams.stream(id).unwrap().state(), failed);
        assert_eq!(streams.poll_finished().map(|it| (it.id, it.state)), Some((id, failed)));
        assert_eq!(streams.deadline(), None);
    }

    #[test]
    fn speech_stays_until_its_result_goes_and_no_client_reads_it() {
        let (mut streams, id) = begun();
        streams.enter(id);
        streams.complete_speech(id, false);
        streams.leave(id);
        streams.forget_unless(|_, _| false);
        assert!(streams.stream(id).is_some() && !streams.has_idle());
        streams.renumber(id, 4);
        assert_eq!((streams.find(TASK, 3), streams.find(TASK, 4)), (None, Some(id)));
        streams.enter(id);
        streams.forget(id);
        assert!(streams.stream(id).is_some(), "a client reads it");
        streams.leave(id);
        assert!(streams.stream(id).is_none());
        let other = streams.begin_speech(NOW, (TASK, 5), (), "audio/wav".into(), &RULES);
        streams.forget(other);
        assert!(streams.stream(other).is_none());
    }
}
