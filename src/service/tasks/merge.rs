//! Merging what Redis keeps of a task into the results that are known here.
//!
//! Both sides are lists in order of publication, and neither is complete: Redis may have lost its
//! data, and this gateway may have been away. Each entry of Redis is first matched with a known
//! result, then the new ones are placed between the known ones. `docs/kept-results.md` has an
//! example.

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
    new.iter_mut().for_each(|one| place(one, &list, &is_matched, subscription));
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
    let mut new: Vec<NewResult> = Vec::new();
    // Behind the last known result that was matched so far.
    let mut place = 0;
    for one in kept {
        let hash = xxh3_64(&one.payload);
        let Some(at) = matching(results, &matched, hash, one.stored_at, subscription) else {
            let is_set = one.stored_at == KeptResult::NOT_PUBLISHED;
            let origin = if is_set { ResultOrigin::Set } else { ResultOrigin::Kept };
            let KeptResult { stored_at, id, payload } = one;
            new.push(NewResult { place, before: None, stored_at, id, hash, origin, payload });
            continue;
        };
        matched[at] = Some(one.id);
        place = place.max(at + 1);
        // This known result follows the new ones in Redis, so none of them may be put behind it.
        for new in new.iter_mut().filter(|new| new.before.is_none()) {
            new.before = Some(at);
        }
        if results[at].payload.is_none() && !results[at].is_dispatched {
            payloads.push((results[at].number, one.payload));
        }
    }
    (matched, new)
}

/// The known result that a kept one is. Each known one is matched once, so that two equal results
/// in Redis are two.
fn matching(
    results: &[KnownResult],
    matched: &[Option<u32>],
    hash: u64,
    stored_at: u64,
    subscription: Subscription,
) -> Option<usize> {
    let current = ResultOrigin::Published(subscription.number);
    let find = |fits: &dyn Fn(ResultOrigin) -> bool| {
        let equal = |(at, known): (usize, &KnownResult)| {
            matched[at].is_none() && known.hash == hash && fits(known.origin())
        };
        results.iter().enumerate().position(equal)
    };
    if stored_at >= subscription.since {
        // Stored since the current subscription began, so the current subscription has most
        // probably heard it. Else it may be what the worker set, or what an earlier subscription
        // heard and some gateway stored late.
        find(&|origin| origin == current)
            .or_else(|| find(&|origin| origin == ResultOrigin::Set))
            .or_else(|| find(&|_| true))
    } else {
        // Stored before, so it cannot be what the current subscription heard. If it were matched
        // with that, an equal result from before an absence would take its place and one would be
        // lost.
        find(&|origin| origin != current && origin != ResultOrigin::Set)
            .or_else(|| find(&|origin| origin == ResultOrigin::Set))
    }
}

/// Moves the place of a new result behind known ones that Redis does not keep and that are older.
/// Without this, what Redis has stored after it lost its data would come before what it lost.
fn place(
    new: &mut NewResult,
    results: &[KnownResult],
    is_matched: &[bool],
    subscription: Subscription,
) {
    let before = new.before.unwrap_or(results.len());
    new.place = new.place.min(before);
    let is_older = |at: usize| {
        let known = &results[at];
        // What the current subscription heard is not older: it would have heard the new one as
        // well.
        let is_current = known.origin() == ResultOrigin::Published(subscription.number);
        !is_matched[at] && !is_current && known.since <= new.stored_at
    };
    while new.place < before && is_older(new.place) {
        new.place += 1;
    }
}
