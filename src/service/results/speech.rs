//! Speech that the gateway received, on its way to clients like any other result.

use uuid::Uuid;

use super::{Notice, Results};
use crate::base::moment::Moment;
use crate::service::tasks::{SpeechKey, SpeechStore, Subscription};

impl<K: Copy + Ord> Results<K> {
    /// A stream of a task begins. Returns its key and its `result_id`; `None`: there is no room for
    /// it. Clients get it with [`Results::announce_speech`].
    pub fn begin_speech(
        &mut self,
        now: Moment,
        task: Uuid,
        store: SpeechStore,
    ) -> Option<(SpeechKey, u32)> {
        let subscription = self.link.as_ref().and_then(|link| link.subscription(task));
        let subscription = subscription.unwrap_or(Subscription::UNKNOWN);
        let is_due = |task| self.bus.is_due(task);
        let begun = self.tasks.begin_speech(now, task, subscription, store, is_due);
        self.follow_speech();
        begun
    }

    /// The stream that has begun can be delivered.
    pub fn announce_speech(&mut self, now: Moment, task: Uuid) {
        self.dispatch(now, task);
    }

    /// A stream grows by this many bytes of audio and of further fields. False: there is no room
    /// for them.
    pub fn grow_speech(
        &mut self,
        now: Moment,
        key: SpeechKey,
        (audio, fields): (usize, usize),
    ) -> bool {
        let is_due = |task| self.bus.is_due(task);
        let has_grown = self.tasks.grow_speech(now, key, (audio, fields), is_due);
        self.follow_speech();
        has_grown
    }

    /// The stream that is about to end is the last result of its task.
    pub fn note_final_speech(&mut self, task: Uuid) {
        self.tasks.note_final(task);
    }

    /// A stream has ended.
    pub fn end_speech(&mut self, now: Moment, key: SpeechKey) {
        self.tasks.end_speech(now, key);
    }

    /// Bounds the number of streams that are kept.
    pub fn limit_speech_files(&mut self, files_max: usize) {
        self.tasks.limit_speech_files(files_max);
    }

    /// Something came for a task that was stopped.
    pub fn note_dropped(&mut self) {
        if let Some(Notice::DroppedAfterStop { results }) = self.notices.back_mut() {
            *results += 1;
        } else {
            self.notices.push_back(Notice::DroppedAfterStop { results: 1 });
        }
    }

    /// Reports what has happened to streams.
    pub(super) fn follow_speech(&mut self) {
        self.recharge();
        while let Some(key) = self.tasks.poll_gone_speech() {
            self.notices.push_back(Notice::SpeechGone(key));
        }
        while let Some(renumbered) = self.tasks.poll_renumbered() {
            self.notices.push_back(Notice::SpeechRenumbered(renumbered));
        }
    }
}
