//! The results of one task, found without a walk over all of them.
//!
//! A task may have thousands of results: those that are retained, and behind them those that are
//! only recognised. A publication, a delivery or an eviction must not cost a walk over them. Nearly
//! always the oldest result goes first and the newest comes last, so it is enough to remember where
//! the walk ended the last time. Where the list changes in another way, which is rare, the next
//! walk begins at the front again. Numbers and ids grow along the list, so that one of them is
//! found by a binary search.

#![expect(clippy::indexing_slicing, reason = "places are bounded by the list's length")]

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::slice;

use super::RESULT_COST;
use super::result::{KnownResult, ResultOrigin};

/// From this many results on, places are remembered. A walk over fewer costs nothing.
const LONG_MIN: usize = 64;

/// Results in the order of publication, as far as that is known. Most tasks that are known at one
/// time only wait, and have none: that takes eight bytes. Most others have one.
#[derive(Debug, Default)]
pub(super) struct KnownResults(Option<Box<Listed>>);

#[derive(Debug)]
enum Listed {
    One(KnownResult),
    Many {
        list: Vec<KnownResult>,
        /// Exists while the list is long.
        places: Option<Box<Places>>,
    },
}

/// What is remembered of a long list.
#[derive(Debug, Default)]
struct Places {
    /// No result in front of this place has its payload.
    gone: usize,
    /// Every result in front of this place is dispatched.
    dispatched: usize,
    /// No result in front of this place is on its way without being retained.
    passing: usize,
    heard: Option<HeardResults>,
}

/// How many equal results one subscription has heard.
#[derive(Debug)]
struct HeardResults {
    subscription: u32,
    counts: HashMap<u64, u32>,
    /// Results of [`ResultOrigin::Set`], of any content.
    set: usize,
}

impl KnownResults {
    fn list(&self) -> &[KnownResult] {
        match self.0.as_deref() {
            None => &[],
            Some(Listed::One(one)) => slice::from_ref(one),
            Some(Listed::Many { list, .. }) => list,
        }
    }

    fn list_mut(&mut self) -> &mut [KnownResult] {
        self.parts_mut().0
    }

    /// The list and what is remembered of it.
    fn parts_mut(&mut self) -> (&mut [KnownResult], Option<&mut Places>) {
        match self.0.as_deref_mut() {
            None => (&mut [], None),
            Some(Listed::One(one)) => (slice::from_mut(one), None),
            Some(Listed::Many { list, places }) => (list, places.as_deref_mut()),
        }
    }

    fn places(&self) -> Option<&Places> {
        match self.0.as_deref()? {
            Listed::One(_) => None,
            Listed::Many { places, .. } => places.as_deref(),
        }
    }

    fn places_mut(&mut self) -> Option<&mut Places> {
        self.parts_mut().1
    }

    pub fn len(&self) -> usize {
        self.list().len()
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &KnownResult> {
        self.list().iter()
    }

    /// Those that have their payload.
    pub fn present(&self) -> impl Iterator<Item = &KnownResult> {
        let gone = self.places().map_or(0, |places| places.gone);
        self.list()[gone..].iter().filter(|one| one.payload.is_some())
    }

    /// Those that are not dispatched and have their payload.
    pub fn undispatched(&self) -> impl DoubleEndedIterator<Item = &KnownResult> {
        let dispatched = self.places().map_or(0, |places| places.dispatched);
        let rest = self.list()[dispatched..].iter();
        rest.filter(|one| !one.is_dispatched && one.payload.is_some())
    }

    /// The newest result comes last.
    pub fn push(&mut self, one: KnownResult) {
        let Some(Listed::Many { list, places }) = self.0.as_deref_mut() else {
            let mut list = self.take();
            list.reserve_exact(1);
            list.push(one);
            self.set(list);
            return;
        };
        if let Some(heard) = places.as_mut().and_then(|places| places.heard.as_mut()) {
            heard.add(&one);
        }
        list.push(one);
        if places.is_none() && list.len() >= LONG_MIN {
            *places = Some(Box::default());
        }
    }

    /// The list, to be changed in any way and given back by [`KnownResults::set`].
    pub fn take(&mut self) -> Vec<KnownResult> {
        match self.0.take().map(|listed| *listed) {
            None => Vec::new(),
            Some(Listed::One(one)) => vec![one],
            Some(Listed::Many { list, .. }) => list,
        }
    }

    /// Replaces the list.
    pub fn set(&mut self, mut list: Vec<KnownResult>) {
        self.0 = match (list.pop(), list.is_empty()) {
            (None, _) => None,
            (Some(one), true) => Some(Box::new(Listed::One(one))),
            (Some(last), false) => {
                list.push(last);
                Some(Box::new(Listed::Many { list, places: None }))
            }
        };
    }

    /// Those behind the last one that is dispatched.
    pub fn tail(&mut self) -> impl Iterator<Item = &mut KnownResult> {
        self.list_mut().iter_mut().skip_while(|one| one.is_dispatched)
    }

    /// The result of this number.
    pub fn numbered(&mut self, number: u32) -> Option<&mut KnownResult> {
        let place = self.place_of(number)?;
        self.list_mut().get_mut(place)
    }

    fn place_of(&self, number: u32) -> Option<usize> {
        let list = self.list();
        place_of(list.len(), number, |place| list[place].number)
    }

    /// The result with this `result_id`, to be changed.
    pub fn by_id_mut(&mut self, id: u32) -> Option<&mut KnownResult> {
        let place = self.list().partition_point(|one| one.id < id);
        self.list_mut().get_mut(place).filter(|one| one.id == id)
    }

    /// The result with this `result_id`.
    pub fn by_id(&self, id: u32) -> Option<&KnownResult> {
        let place = self.list().partition_point(|one| one.id < id);
        self.list().get(place).filter(|one| one.id == id)
    }

    /// Some payload at the front of the list is gone.
    pub fn skip_gone(&mut self) {
        let mut gone = self.places().map_or(0, |places| places.gone);
        while self.list().get(gone).is_some_and(|one| one.payload.is_none()) {
            gone += 1;
        }
        if let Some(places) = self.places_mut() {
            places.gone = gone;
        }
    }

    /// Marks the next result as dispatched that is not, and has its payload. `None`: all are
    /// dispatched.
    pub fn dispatch_next(&mut self) -> Option<&KnownResult> {
        let mut place = self.places().map_or(0, |places| places.dispatched);
        let mut next = None;
        while let (None, Some(one)) = (next, self.list_mut().get_mut(place)) {
            // One whose payload is gone counts as dispatched as well.
            let was_dispatched = std::mem::replace(&mut one.is_dispatched, true);
            next = Some(place).filter(|_| !was_dispatched && one.payload.is_some());
            place += 1;
        }
        if let Some(places) = self.places_mut() {
            places.dispatched = place;
        }
        next.map(|place| &self.list()[place])
    }

    /// The result of this number will be gone once it is dispatched.
    pub fn mark_passing(&mut self, number: u32) {
        let Some(place) = self.place_of(number) else { return };
        self.list_mut()[place].is_passing = true;
        if let Some(places) = self.places_mut() {
            places.passing = places.passing.min(place);
        }
    }

    /// Drops the payloads of those that are gone once they are dispatched. Returns what they cost.
    pub fn drop_passing(&mut self) -> usize {
        let end = self.len();
        let first = self.places_mut().map_or(0, |it| std::mem::replace(&mut it.passing, end));
        let passing = self.list_mut()[first..].iter_mut().filter(|one| one.is_passing);
        let drop = |one: &mut KnownResult| {
            one.is_passing = false;
            one.payload.take().map_or(0, |payload| RESULT_COST + payload.len())
        };
        passing.map(drop).sum()
    }

    /// A result was published during a subscription. Returns how many equal ones were published
    /// during that subscription, this one included, and, if the worker had stored it with SET
    /// before, the number of that result.
    pub fn hear(&mut self, hash: u64, subscription: u32) -> (NonZeroU32, Option<u32>) {
        let origin = ResultOrigin::Published(subscription);
        let (list, mut places) = self.parts_mut();
        let (equal, has_set) = match &mut places {
            None => {
                let is_equal = |one: &&KnownResult| one.hash == hash && one.origin() == origin;
                (list.iter().filter(is_equal).count() as u32, true)
            }
            Some(places) => {
                let heard = places.heard.take().filter(|it| it.subscription == subscription);
                let heard = heard.unwrap_or_else(|| HeardResults::new(subscription, list));
                let found = (heard.counts.get(&hash).copied().unwrap_or(0), heard.set > 0);
                places.heard = Some(heard);
                found
            }
        };
        let is_set = |one: &&mut KnownResult| one.hash == hash && one.origin() == ResultOrigin::Set;
        let set = has_set.then(|| list.iter_mut().find(is_set)).flatten();
        let id = set.as_ref().map(|one| one.id);
        if let Some(one) = set {
            // The worker has published what it had set.
            one.set_origin(origin);
            if let Some(places) = places {
                places.heard = None;
            }
        }
        (NonZeroU32::MIN.saturating_add(equal), id)
    }
}

/// Finds `number` in a list of this length, `at` being the number at each place. Numbers grow along
/// the list, apart from what Redis knew of earlier results, and when they start again at 0.
fn place_of(length: usize, number: u32, at: impl Fn(usize) -> u32) -> Option<usize> {
    let (mut first, mut end) = (0, length);
    while first < end {
        let middle = first + (end - first) / 2;
        match at(middle) < number {
            true => first = middle + 1,
            false => end = middle,
        }
    }
    let is_here = first < length && at(first) == number;
    if is_here { Some(first) } else { (0..length).find(|place| at(*place) == number) }
}

impl HeardResults {
    fn new(subscription: u32, list: &[KnownResult]) -> HeardResults {
        let mut heard = HeardResults { subscription, counts: HashMap::new(), set: 0 };
        list.iter().for_each(|one| heard.add(one));
        heard
    }

    fn add(&mut self, one: &KnownResult) {
        match one.origin() {
            ResultOrigin::Published(number) if number == self.subscription => {
                *self.counts.entry(one.hash).or_default() += 1;
            }
            ResultOrigin::Set => self.set += 1,
            ResultOrigin::Published(_) | ResultOrigin::Kept => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn result(number: u32, hash: u64, origin: ResultOrigin) -> KnownResult {
        let payload = Some([].into());
        KnownResult { payload, ..KnownResult::new(number, number, hash, origin, 0) }
    }

    #[test]
    fn equal_publications_are_counted_alike_with_and_without_an_index() {
        for others in [0, 2 * LONG_MIN] {
            let mut known = KnownResults::default();
            for number in 0..others as u32 {
                known.push(result(number, 100 + u64::from(number), ResultOrigin::Published(1)));
            }
            let mut hear = |hash, subscription, expected: (u32, bool)| {
                let (nth, set) = known.hear(hash, subscription);
                let was_set = set.is_some();
                assert_eq!((nth.get(), was_set), expected, "{hash} {subscription} {others}");
                if !was_set {
                    known.push(result(1000, hash, ResultOrigin::Published(subscription)));
                }
            };
            hear(7, 1, (1, false));
            hear(7, 1, (2, false));
            hear(8, 1, (1, false));
            hear(7, 2, (1, false));
            hear(7, 1, (3, false));
            known.push(result(2000, 9, ResultOrigin::Set));
            let (first, second) = (known.hear(9, 1), known.hear(9, 1));
            assert_eq!((first.0.get(), first.1), (1, Some(2000)));
            assert_eq!((second.0.get(), second.1), (2, None));
        }
    }

    #[test]
    fn results_are_dispatched_once_and_in_order_whatever_happens_to_the_list() {
        let mut known = KnownResults::default();
        const LAST: u32 = 2 * LONG_MIN as u32;
        (0..=LAST).for_each(|number| known.push(result(number, 1, ResultOrigin::Kept)));
        known.numbered(1).unwrap().payload = None;
        let next = |known: &mut KnownResults| known.dispatch_next().map(|one| one.number);
        assert_eq!(next(&mut known), Some(0));
        let mut list = known.take();
        list.insert(0, result(999, 1, ResultOrigin::Kept));
        known.set(list);
        assert_eq!(known.undispatched().count(), LAST as usize);
        let all: Vec<u32> = std::iter::from_fn(|| next(&mut known)).collect();
        assert_eq!(all[..3], [999, 2, 3]);
        assert_eq!((all.len(), all.last()), (LAST as usize, Some(&LAST)));
        known.push(result(1000, 1, ResultOrigin::Kept));
        assert_eq!((next(&mut known), next(&mut known)), (Some(1000), None));
        assert!(known.iter().all(|one| one.is_dispatched));
    }

    #[test]
    fn one_result_takes_little_more_than_its_fields() {
        assert!(size_of::<Listed>() <= 56, "{}", size_of::<Listed>());
    }

    #[test]
    fn results_that_only_pass_are_dropped_with_their_cost() {
        for others in [0, 2 * LONG_MIN as u32] {
            let mut known = KnownResults::default();
            (0..=others).for_each(|number| known.push(result(number, 1, ResultOrigin::Kept)));
            known.drop_passing();
            known.mark_passing(others);
            assert_eq!((known.drop_passing(), known.drop_passing()), (RESULT_COST, 0));
            assert_eq!(known.present().count(), others as usize);
        }
    }

    #[test]
    fn those_that_are_gone_are_skipped_without_a_walk() {
        let mut known = KnownResults::default();
        (0..100).for_each(|number| known.push(result(number, 1, ResultOrigin::Kept)));
        for number in 0..100 {
            assert_eq!(known.present().count(), 100 - number as usize);
            known.numbered(number).unwrap().payload = None;
            known.skip_gone();
            let gone = known.places().unwrap().gone;
            assert_eq!(gone, number as usize + 1, "the walk began where the last one had ended");
        }
    }

    #[test]
    fn a_number_is_found_wherever_it_is_and_nearly_always_without_a_walk() {
        let looked_at = Cell::new(0);
        let find = |list: &[u32], number| {
            looked_at.set(0);
            place_of(list.len(), number, |place| {
                looked_at.set(looked_at.get() + 1);
                list[place]
            })
        };
        let sorted: Vec<u32> = (0..10_000).map(|number| 2 * number).collect();
        for place in 0..sorted.len() {
            assert_eq!(find(&sorted, sorted[place]), Some(place));
            assert!(looked_at.get() <= 16, "{} looked at", looked_at.get());
        }
        // What Redis knew of earlier results comes first, with later numbers; numbers start again.
        for list in [&[7, 8, 9, 1, 2, 3][..], &[u32::MAX - 1, u32::MAX, 0, 1], &[]] {
            let found = list.iter().map(|number| find(list, *number));
            assert!(found.eq((0..list.len()).map(Some)), "{list:?}");
            assert_eq!(find(list, 5), None);
        }
    }
}
