//! Speech that the gateway itself receives: results whose audio grows while they are kept.
//!
//! The audio is in a file of the gateway's own, in memory or in the spool folder; here it is
//! counted. While a stream is open it is in no queue, so that it is never evicted; from its end on
//! it is kept like any other result. What is in memory counts against `max_retained`, what is in
//! the folder against `max_spool`, and of each a task may have half. Each stream has a descriptor,
//! so their number is bounded too.

use std::collections::{BTreeSet, HashMap, VecDeque};

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::removal::Removal;
use super::result::{GoneResult, KnownResult, ResultOrigin, ResultSource};
use super::task::Task;
use super::{RESULT_COST, Retained, Subscription, Tasks};
use crate::base::moment::Moment;
use crate::base::sequence::Ticket;

/// Streams that may be kept, if nothing else is set.
const FILES_MAX: usize = 4096;

/// Where the audio of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum SpeechStore {
    Memory,
    Spool,
}

/// A stream, for as long as it is kept. No two have the same, ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpeechKey {
    task: Uuid,
    number: u32,
    serial: u64,
}

impl SpeechKey {
    /// The task that it belongs to.
    pub fn task(&self) -> Uuid {
        self.task
    }
}

/// A stream has another `result_id` than before: Redis knew of results in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Renumbered {
    pub key: SpeechKey,
    pub id: u32,
}

/// All streams.
#[derive(Debug)]
pub(super) struct KeptSpeeches {
    /// By task and number of the result.
    by_result: HashMap<(Uuid, u32), KeptSpeech>,
    /// Those that have ended, by their `SpeechStore`, as they are found among all retained results.
    ended: [BTreeSet<Ticket>; 2],
    /// Bytes in the spool folder.
    spooled: u64,
    /// The part of each task that has any there.
    spooled_of: HashMap<Uuid, u64>,
    files_max: usize,
    /// Streams since the start.
    begun: u64,
    gone: VecDeque<SpeechKey>,
    renumbered: VecDeque<Renumbered>,
}

#[derive(Debug)]
struct KeptSpeech {
    serial: u64,
    store: SpeechStore,
    /// Bytes in memory, and in the spool folder.
    memory: usize,
    spooled: u64,
    has_ended: bool,
}

impl Default for KeptSpeeches {
    fn default() -> Self {
        KeptSpeeches {
            by_result: HashMap::new(),
            ended: Default::default(),
            spooled: 0,
            spooled_of: HashMap::new(),
            files_max: FILES_MAX,
            begun: 0,
            gone: VecDeque::new(),
            renumbered: VecDeque::new(),
        }
    }
}

impl KeptSpeeches {
    /// The oldest one that has ended and is kept `in_store`, if that matters.
    fn oldest_ended(&self, in_store: Option<SpeechStore>) -> Option<Ticket> {
        let [memory, spool] = self.ended.each_ref().map(|tickets| tickets.first().copied());
        match in_store {
            Some(SpeechStore::Memory) => memory,
            Some(SpeechStore::Spool) => spool,
            None => memory.into_iter().chain(spool).min(),
        }
    }

    fn speech(&self, key: SpeechKey) -> Option<&KeptSpeech> {
        let speech = self.by_result.get(&(key.task, key.number));
        speech.filter(|speech| speech.serial == key.serial)
    }

    fn speech_mut(&mut self, key: SpeechKey) -> Option<&mut KeptSpeech> {
        let speech = self.by_result.get_mut(&(key.task, key.number));
        speech.filter(|speech| speech.serial == key.serial)
    }

    fn key(&self, task: Uuid, number: u32) -> Option<SpeechKey> {
        let serial = self.by_result.get(&(task, number))?.serial;
        Some(SpeechKey { task, number, serial })
    }
}

impl Tasks {
    /// Bounds the number of streams that are kept, with those that are open.
    pub fn limit_speech_files(&mut self, files_max: usize) {
        self.speeches.files_max = files_max;
    }

    /// A stream begins, behind all results of the task. Returns its `result_id` as well; `None`:
    /// there is no room for it.
    pub fn begin_speech(
        &mut self,
        now: Moment,
        task: Uuid,
        subscription: Subscription,
        store: SpeechStore,
        is_due: impl Fn(Uuid) -> bool,
    ) -> Option<(SpeechKey, u32)> {
        while self.speeches.by_result.len() >= self.speeches.files_max {
            self.evict_speech(now, None, &is_due).then_some(())?;
        }
        if !self.make_room(now, task, RESULT_COST, &is_due) {
            return None;
        }
        // No publication is equal to it.
        self.speeches.begun += 1;
        let hash = xxh3_64(&self.speeches.begun.to_ne_bytes());
        let slot = self.tasks.find_or_insert_with(task, Task::default);
        let known = &mut self.tasks[slot];
        known.last_number = known.last_number.wrapping_add(1);
        let (number, id) = (known.last_number, known.next_id);
        known.next_id = id.saturating_add(1);
        let origin = ResultOrigin::Published(subscription.number);
        let mut one = KnownResult::new(number, id, hash, origin, subscription.since);
        (one.source, one.payload) = (ResultSource::Speech, Some([].into()));
        known.results.push(one);
        known.bytes += RESULT_COST;
        self.retained_bytes += RESULT_COST;
        known.bound_recognised();
        let serial = self.speeches.begun;
        let speech = KeptSpeech { serial, store, memory: 0, spooled: 0, has_ended: false };
        self.speeches.by_result.insert((task, number), speech);
        Some((SpeechKey { task, number, serial }, id))
    }

    /// A stream grows by this much audio and by fields of this many bytes. False: there is no room
    /// for that, and it stays as it was.
    pub fn grow_speech(
        &mut self,
        now: Moment,
        key: SpeechKey,
        (audio, fields): (usize, usize),
        is_due: impl Fn(Uuid) -> bool,
    ) -> bool {
        let Some(speech) = self.speeches.speech(key) else { return false };
        let (memory, spooled) = match speech.store {
            SpeechStore::Memory => (audio + fields, 0),
            SpeechStore::Spool => (fields, audio as u64),
        };
        if !self.make_room(now, key.task, memory, &is_due)
            || !self.make_spool_room(now, key.task, spooled, &is_due)
        {
            return false;
        }
        let (Some(speech), Some(known)) =
            (self.speeches.speech_mut(key), self.tasks.entry_mut(key.task))
        else {
            return false;
        };
        speech.memory += memory;
        speech.spooled += spooled;
        known.bytes += memory;
        self.retained_bytes += memory;
        if spooled > 0 {
            self.speeches.spooled += spooled;
            *self.speeches.spooled_of.entry(key.task).or_default() += spooled;
        }
        true
    }

    /// A stream has ended: from now on it is kept like any other result.
    pub fn end_speech(&mut self, now: Moment, key: SpeechKey) {
        let Some(speech) = self.speeches.speech_mut(key) else { return };
        if std::mem::replace(&mut speech.has_ended, true) {
            return;
        }
        let store = speech.store;
        let Some(task) = self.tasks.find(key.task) else { return };
        let Some(one) = self.tasks[task].results.numbered(key.number) else { return };
        let ticket = self.retained.push(Retained { at: now, task, number: key.number });
        one.ticket = Some(ticket);
        self.speeches.ended[store as usize].insert(ticket);
    }

    /// The next stream that is not kept any more.
    pub fn poll_gone_speech(&mut self) -> Option<SpeechKey> {
        self.speeches.gone.pop_front()
    }

    /// The next stream whose `result_id` has changed.
    pub fn poll_renumbered(&mut self) -> Option<Renumbered> {
        self.speeches.renumbered.pop_front()
    }

    /// Bytes of speech in the spool folder.
    pub fn spooled_bytes(&self) -> u64 {
        self.speeches.spooled
    }

    /// Numbers and ids of the streams of a task, to be compared with by [`Tasks::note_renumbered`].
    pub(super) fn speech_ids(&self, task: Uuid) -> HashMap<u32, u32> {
        if self.speeches.by_result.is_empty() {
            return HashMap::new();
        }
        let results = self.tasks.entry(task).map(|task| task.results.present());
        let speech = results.into_iter().flatten();
        let speech = speech.filter(|one| one.source == ResultSource::Speech);
        speech.map(|one| (one.number, one.id)).collect()
    }

    pub(super) fn note_renumbered(&mut self, task: Uuid, before: HashMap<u32, u32>) {
        if before.is_empty() {
            return;
        }
        for (number, id) in self.speech_ids(task) {
            if before.get(&number) != Some(&id)
                && let Some(key) = self.speeches.key(task, number)
            {
                self.speeches.renumbered.push_back(Renumbered { key, id });
            }
        }
    }

    /// A result is gone: what it cost besides its own bytes.
    pub(super) fn forget_speech(&mut self, task: Uuid, one: &GoneResult) -> usize {
        if one.source != ResultSource::Speech {
            return 0;
        }
        let Some(speech) = self.speeches.by_result.remove(&(task, one.number)) else { return 0 };
        self.speeches.spooled -= speech.spooled;
        if let Some(spooled) = self.speeches.spooled_of.get_mut(&task) {
            *spooled -= speech.spooled;
            if *spooled == 0 {
                self.speeches.spooled_of.remove(&task);
            }
        }
        let key = SpeechKey { task, number: one.number, serial: speech.serial };
        self.speeches.gone.push_back(key);
        if let Some(ticket) = one.ticket {
            self.speeches.ended[speech.store as usize].remove(&ticket);
        }
        speech.memory
    }

    /// Lets old results go until there is room in memory for this many more bytes of a task.
    fn make_room(
        &mut self,
        now: Moment,
        task: Uuid,
        bytes: usize,
        is_due: &impl Fn(Uuid) -> bool,
    ) -> bool {
        let held = self.tasks.entry(task).map_or(0, |task| task.bytes);
        if held + bytes > self.settings.task_bytes_max() {
            return false;
        }
        let Some(rest) = self.settings.max_retained.checked_sub(bytes) else { return false };
        if self.retained_bytes > rest {
            self.evict_to(now, rest, is_due);
        }
        self.retained_bytes <= rest
    }

    /// The same for the spool folder.
    fn make_spool_room(
        &mut self,
        now: Moment,
        task: Uuid,
        bytes: u64,
        is_due: &impl Fn(Uuid) -> bool,
    ) -> bool {
        let max_spool = self.settings.max_spool;
        let held = self.speeches.spooled_of.get(&task).copied().unwrap_or(0);
        if bytes > 0 && held + bytes > max_spool / 2 {
            return false;
        }
        while bytes > 0 && self.speeches.spooled + bytes > max_spool {
            if !self.evict_speech(now, Some(SpeechStore::Spool), is_due) {
                return false;
            }
        }
        true
    }

    /// Lets the oldest stream go that has ended. False: there is none that may go.
    fn evict_speech(
        &mut self,
        now: Moment,
        in_store: Option<SpeechStore>,
        is_due: &impl Fn(Uuid) -> bool,
    ) -> bool {
        let Some(ticket) = self.speeches.oldest_ended(in_store) else { return false };
        let is_free = |one: &&Retained| !is_due(self.tasks.id(one.task));
        let Some(&one) = self.retained.item(ticket).filter(is_free) else { return false };
        self.retained.remove(ticket);
        self.remove(now, one, Removal::Evicted);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RESULT_COST, ResultContent, Settings, Status, Tasks};
    use super::*;
    use std::time::Duration;

    const NOW: Moment = Moment::START;
    const TASK: Uuid = Uuid::from_u128(7);
    const OTHER: Uuid = Uuid::from_u128(8);

    fn tasks(max_retained: usize, max_spool: u64) -> Tasks {
        let retain = Some(Duration::from_secs(300));
        Tasks::new(Settings { retain, max_retained, max_spool })
    }

    fn begin(tasks: &mut Tasks, task: Uuid, store: SpeechStore) -> (SpeechKey, u32) {
        tasks.begin_speech(NOW, task, Subscription::UNKNOWN, store, |_| false).expect("room")
    }

    fn grow(tasks: &mut Tasks, key: SpeechKey, audio: usize) -> bool {
        tasks.grow_speech(NOW, key, (audio, 0), |_| false)
    }

    fn publish(tasks: &mut Tasks, task: Uuid, bytes: usize) -> u32 {
        let payload = vec![b'x'; bytes].into();
        tasks.handle_published(NOW, task, Subscription::UNKNOWN, payload).id
    }

    #[test]
    fn speech_is_numbered_among_the_results_and_given_to_clients_in_its_place() {
        let mut tasks = tasks(1 << 20, 0);
        assert_eq!(publish(&mut tasks, TASK, 10), 0);
        let (_, id) = begin(&mut tasks, TASK, SpeechStore::Memory);
        assert_eq!((id, publish(&mut tasks, TASK, 10)), (1, 2));
        let contents: Vec<_> = std::iter::from_fn(|| tasks.poll_undispatched(TASK))
            .map(|one| (one.id, one.content == ResultContent::Speech))
            .collect();
        assert_eq!(contents, [(0, false), (1, true), (2, false)]);
        assert_eq!(tasks.status(TASK).0, Status::Ready);
    }

    #[test]
    fn an_open_stream_is_never_evicted_and_goes_in_its_turn_once_it_has_ended() {
        let mut tasks = tasks(10_000, 0);
        let (key, _) = begin(&mut tasks, TASK, SpeechStore::Memory);
        assert!(grow(&mut tasks, key, 3000));
        for _ in 0..20 {
            publish(&mut tasks, OTHER, 1000);
            tasks.trim(NOW, |_| false);
            assert!(tasks.retained_bytes() <= 10_000);
        }
        tasks.evict_to(NOW, 0, |_| false);
        assert_eq!((tasks.retained_bytes(), tasks.poll_gone_speech()), (3000 + RESULT_COST, None));
        assert!(grow(&mut tasks, key, 1000), "what has ended makes room");
        tasks.end_speech(NOW, key);
        tasks.evict_to(NOW, 0, |_| false);
        assert_eq!(tasks.poll_gone_speech(), Some(key));
        assert_eq!((tasks.retained_bytes(), tasks.retained()), (0, 0));
    }

    #[test]
    fn speech_in_memory_may_take_half_of_it_and_makes_older_results_go() {
        let mut tasks = tasks(10_000, 0);
        publish(&mut tasks, OTHER, 3000);
        let (key, _) = begin(&mut tasks, TASK, SpeechStore::Memory);
        let most = 5000 - RESULT_COST;
        assert!(grow(&mut tasks, key, most) && !grow(&mut tasks, key, 1));
        let (second, _) = begin(&mut tasks, OTHER, SpeechStore::Memory);
        assert!(grow(&mut tasks, second, 1744 - RESULT_COST));
        assert_eq!(tasks.retained_bytes(), 10_000);
        assert_eq!(tasks.evicted(), 0);
        let third = begin(&mut tasks, Uuid::from_u128(9), SpeechStore::Memory).0;
        assert_eq!(tasks.evicted(), 1, "the result of OTHER");
        assert!(grow(&mut tasks, third, 3000 - 1) && !grow(&mut tasks, third, 300));
        tasks.stop(NOW, TASK);
        assert!(grow(&mut tasks, third, 1000), "the stopped one has made room");
        assert!(!grow(&mut tasks, key, 1), "it is gone");
    }

    #[test]
    fn speech_in_the_spool_has_limits_of_its_own() {
        let mut tasks = tasks(10_000, 100_000);
        let (first, _) = begin(&mut tasks, TASK, SpeechStore::Spool);
        assert!(grow(&mut tasks, first, 50_000) && !grow(&mut tasks, first, 1));
        assert!(tasks.grow_speech(NOW, first, (0, 100), |_| false), "fields are in memory");
        assert_eq!((tasks.spooled_bytes(), tasks.retained_bytes()), (50_000, 100 + RESULT_COST));
        let (second, _) = begin(&mut tasks, OTHER, SpeechStore::Spool);
        let third = begin(&mut tasks, Uuid::from_u128(9), SpeechStore::Spool).0;
        assert!(grow(&mut tasks, second, 50_000) && !grow(&mut tasks, third, 1));
        tasks.end_speech(NOW, first);
        assert!(!tasks.grow_speech(NOW, third, (1, 0), |task| task == TASK), "TASK is due");
        assert!(grow(&mut tasks, third, 1));
        assert_eq!((tasks.poll_gone_speech(), tasks.spooled_bytes()), (Some(first), 50_001));
        assert_eq!(tasks.retained(), 0);
    }

    #[test]
    fn descriptors_bound_the_number_of_streams() {
        let mut tasks = tasks(1 << 20, 0);
        tasks.limit_speech_files(2);
        let first = begin(&mut tasks, TASK, SpeechStore::Memory).0;
        begin(&mut tasks, OTHER, SpeechStore::Memory);
        let begin_third = |tasks: &mut Tasks| {
            let store = SpeechStore::Memory;
            tasks.begin_speech(NOW, OTHER, Subscription::UNKNOWN, store, |_| false).is_some()
        };
        assert!(!begin_third(&mut tasks));
        tasks.end_speech(NOW, first);
        assert!(begin_third(&mut tasks));
        assert_eq!(tasks.poll_gone_speech(), Some(first));
    }

    #[test]
    fn speech_expires_from_its_end_on() {
        let mut tasks = tasks(1 << 20, 0);
        let (key, _) = begin(&mut tasks, TASK, SpeechStore::Memory);
        let second = Duration::from_secs(1);
        tasks.end_speech(NOW + 1000 * second, key);
        tasks.trim(NOW + 1299 * second, |_| false);
        assert_eq!(tasks.poll_gone_speech(), None);
        assert_eq!(tasks.deadline(), Some(NOW + 1300 * second));
        tasks.trim(NOW + 1300 * second, |_| false);
        assert_eq!(tasks.poll_gone_speech(), Some(key));
        assert!(tasks.is_empty());
    }

    #[test]
    fn a_number_that_redis_corrects_is_reported() {
        let mut tasks = tasks(1 << 20, 0);
        let (key, id) = begin(&mut tasks, TASK, SpeechStore::Memory);
        tasks.note_seen(TASK, 5);
        tasks.apply_seen(TASK);
        assert_eq!((id, tasks.poll_renumbered()), (0, Some(Renumbered { key, id: 5 })));
        assert_eq!(tasks.poll_undispatched(TASK).map(|one| one.id), Some(5));
    }
}
