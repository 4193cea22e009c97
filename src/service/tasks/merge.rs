//! Merging what Redis keeps of a task into the results that are known here.
//!
//! Both sides are lists in order of publication, and neither is complete: Redis may have lost its
//! data, and this gateway may have been away. Each entry of Redis is first matched with a known
//! result, then the new ones are placed between the known ones. `docs/kept-results.md` has an
//! example.

use std::collections::{HashMap, VecDeque};

use xxhash_rust::xxh3::xxh3_64;

use super::result::{KnownResult, ResultOrigin};
use super::task::Task;
use super::{KeptResult, Subscription};

/// A result that Redis keeps and that was not known.
struct NewResult {
    /// The index of the known result that it belongs in front of.
    place: usize,
    /// The index of the known result that follows it in Redis, if one does.
    before: Option<usize>,
    stored_at: u64,
    id: u32,
    hash: u64,
    origin: ResultOrigin,
    payload: Vec<u8>,
}

/// Payloads to be retained, by the number of their result.
pub(super) type Payloads = Vec<(u32, Vec<u8>)>;

/// Merges `kept`, which is in Redis' order, into the results of a task. What was heard stays in the
/// order in which it was heard. `subscription` is the current one, which has heard everything that
/// was published before Redis gave this answer; `next_id` is the `result_id` of what comes next in
/// Redis.
pub(super) fn merge(
    task: &mut Task,
    subscription: Subscription,
    kept: Vec<KeptResult>,
    next_id: u32,
) -> Payloads {
    let Task { results, last_number, .. } = task;
    let list = results.take();
    let mut payloads = Vec::new();
    let (matched, mut new) = match_kept(&list, subscription, kept, &mut payloads);
    let is_matched: Vec<bool> = matched.iter().map(Option::is_some).collect();
    let mut ids = Ids::new(next_id, !new.is_empty() || is_matched.contains(&true));
    place_all(&mut new, &list, &is_matched, subscription);
    // Stable: those for the same place stay in Redis' order.
    new.sort_by_key(|one| one.place);
    let mut merged = Vec::with_capacity(list.len() + new.len());
    let mut new = new.into_iter().peekable();
    let known = list.into_iter().map(Some).chain([None]);
    let matched = matched.into_iter().chain([None]);
    for (at, (known, in_redis)) in known.zip(matched).enumerate() {
        while let Some(one) = new.next_if(|one| one.place <= at) {
            *last_number = last_number.wrapping_add(1);
            payloads.push((*last_number, one.payload));
            let since =
                if one.origin == ResultOrigin::Set { subscription.since } else { one.stored_at };
            let id = ids.of_new(one.id);
            merged.push(KnownResult::new(*last_number, id, one.hash, one.origin, since));
        }
        merged.extend(known.map(|mut known| {
            known.id = ids.of_known(&known, in_redis);
            known
        }));
    }
    results.set(merged);
    task.next_id = task.next_id.max(next_id).max(ids.least);
    payloads
}

/// Numbers results in their order, by what Redis says and what they are known by.
struct Ids {
    /// The lowest number that the next result may get.
    least: u32,
    /// How many more results Redis knew of before the last result that it has, too.
    missed: u32,
    /// The number of the next result, if none that Redis keeps can be compared with.
    next: Option<u32>,
}

impl Ids {
    fn new(next_id: u32, keeps_any: bool) -> Ids {
        Ids { least: 0, missed: 0, next: Some(next_id).filter(|_| !keeps_any) }
    }

    fn of_new(&mut self, in_redis: u32) -> u32 {
        self.take(in_redis)
    }

    fn of_known(&mut self, known: &KnownResult, in_redis: Option<u32>) -> u32 {
        let own = known.id;
        if let Some(in_redis) = in_redis {
            self.missed = in_redis.saturating_sub(own);
        }
        // What a client has seen keeps its number, unless Redis says otherwise. The rest was heard
        // after what Redis keeps, and counted without knowing it.
        self.take(match in_redis {
            Some(in_redis) => own.max(in_redis),
            None if known.is_dispatched => own,
            None => own.saturating_add(self.missed).max(self.next.unwrap_or(0)),
        })
    }

    fn take(&mut self, id: u32) -> u32 {
        let id = id.max(self.least);
        self.least = id.saturating_add(1);
        id
    }
}

/// Finds out which known results Redis keeps, with its numbers for them, and which of the kept ones
/// are new. The payload of one that was evicted before its delivery is added to `payloads`.
fn match_kept(
    results: &[KnownResult],
    subscription: Subscription,
    kept: Vec<KeptResult>,
    payloads: &mut Payloads,
) -> (Vec<Option<u32>>, Vec<NewResult>) {
    let mut matched = vec![None; results.len()];
    let mut unmatched = Unmatched::new(results, subscription);
    let mut new: Vec<NewResult> = Vec::new();
    // New ones from this index on are followed by no known result so far.
    let mut not_followed = 0;
    // Behind the last known result that was matched so far.
    let mut place = 0;
    for one in kept {
        let hash = xxh3_64(&one.payload);
        let Some(at) = unmatched.take(hash, one.stored_at) else {
            let is_set = one.stored_at == KeptResult::NOT_PUBLISHED;
            let origin = if is_set { ResultOrigin::Set } else { ResultOrigin::Kept };
            let KeptResult { stored_at, id, payload } = one;
            new.push(NewResult { place, before: None, stored_at, id, hash, origin, payload });
            continue;
        };
        matched[at] = Some(one.id);
        place = place.max(at + 1);
        // This known result follows the new ones in Redis, so none of them may be put behind it.
        new[not_followed..].iter_mut().for_each(|new| new.before = Some(at));
        not_followed = new.len();
        if results[at].payload.is_none() && !results[at].is_dispatched {
            payloads.push((results[at].number, one.payload));
        }
    }
    (matched, new)
}

/// The known results that no kept one was matched with yet. Each is matched once, so that two equal
/// results in Redis are two.
struct Unmatched<'r> {
    results: &'r [KnownResult],
    subscription: Subscription,
    /// Their indices, by their hashes.
    by_hash: HashMap<u64, VecDeque<usize>>,
}

impl Unmatched<'_> {
    fn new(results: &[KnownResult], subscription: Subscription) -> Unmatched<'_> {
        let mut by_hash: HashMap<u64, VecDeque<usize>> = HashMap::with_capacity(results.len());
        for (at, one) in results.iter().enumerate() {
            by_hash.entry(one.hash).or_default().push_back(at);
        }
        Unmatched { results, subscription, by_hash }
    }

    /// The known result that a kept one is.
    fn take(&mut self, hash: u64, stored_at: u64) -> Option<usize> {
        let equal = self.by_hash.get_mut(&hash)?;
        let current = ResultOrigin::Published(self.subscription.number);
        let find = |fits: &dyn Fn(ResultOrigin) -> bool| {
            equal.iter().position(|at| fits(self.results[*at].origin()))
        };
        let found = if stored_at >= self.subscription.since {
            // Stored since the current subscription began, so the current subscription has most
            // probably heard it. Else it may be what the worker set, or what an earlier
            // subscription heard and some gateway stored late.
            find(&|origin| origin == current)
                .or_else(|| find(&|origin| origin == ResultOrigin::Set))
                .or_else(|| find(&|_| true))
        } else {
            // Stored before, so it cannot be what the current subscription heard. If it were
            // matched with that, an equal result from before an absence would take its place and
            // one would be lost.
            find(&|origin| origin != current && origin != ResultOrigin::Set)
                .or_else(|| find(&|origin| origin == ResultOrigin::Set))
        };
        equal.remove(found?)
    }
}

/// Moves the places of new results behind known ones that Redis does not keep and that are older.
/// Without this, what Redis has stored after it lost its data would come before what it lost.
fn place_all(
    new: &mut [NewResult],
    results: &[KnownResult],
    is_matched: &[bool],
    subscription: Subscription,
) {
    // The first and the last place of the one before, and when it was stored.
    let mut previous = (0, 0, u64::MAX);
    for one in new {
        let before = one.before.unwrap_or(results.len());
        let first = one.place.min(before);
        let is_older = |at: usize| {
            let known = &results[at];
            // What the current subscription heard is not older: it would have heard the new one as
            // well.
            let is_current = known.origin() == ResultOrigin::Published(subscription.number);
            !is_matched[at] && !is_current && known.since <= one.stored_at
        };
        // What is older than the one before is older than this one as well.
        let (previous_first, previous_last, stored_at) = previous;
        let is_later = stored_at <= one.stored_at && previous_first <= first;
        let mut place = if is_later { first.max(previous_last.min(before)) } else { first };
        while place < before && is_older(place) {
            place += 1;
        }
        one.place = place;
        previous = (first, place, one.stored_at);
    }
}
