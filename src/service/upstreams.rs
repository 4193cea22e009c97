//! The backends: which one is tried next, which rests after a failure, where its name leads.
//!
//! A backend is identified by the text of its URL, whichever route names it and however often the
//! configuration is reloaded, so its connection count, its state and its rest survive a reload.
//!
//! ```text
//!             connecting              succeeded               left
//!   (chosen) ────────────► dialing ─────────────► connected ─────────► (gone)
//!                             │ failed: the backend rests, its name is looked up again
//!                             │ answered: it is up, but did not take this client
//!                             │ abandoned: nothing was learnt
//!                             └──────────────────────────────────────► (gone)
//! ```
//!
//! To know before changing anything: a backend that has failed gets one attempt at a time, also
//! after its rest, until one succeeds. A backend that swallows connections would otherwise delay
//! every client that arrives when its rest has ended.

#![expect(clippy::indexing_slicing, reason = "positions come from a search in the same text")]
#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use super::attempt::{AttemptError, AttemptFault};
use super::name::LookUpError;
use super::url::BackendUrl;
use crate::base::backoff::Backoff;
use crate::base::moment::Moment;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// How long a backend rests after its first failure, and at most.
const REST_FIRST: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(30);

/// After a failed lookup, addresses that are known count as fresh for this long, so that clients do
/// not wait for one failing lookup after the other.
const LOOKUP_PAUSE: Duration = Duration::from_secs(1);

/// How backends are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How old the addresses of a name may become; `None`: as old as they like.
    pub resolve_interval: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { resolve_interval: Some(Duration::from_secs(30)) }
    }
}

/// Identifies one backend for as long as the process runs; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamId(u32);

/// What is known of a backend's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum BackendState {
    /// No attempt has said anything about it yet.
    Untried,
    /// It answered the last attempt.
    Ok,
    /// The last attempt failed with `error`, and all before it since `since`.
    Failed { since: Moment, error: AttemptError },
}

/// Where a backend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// At these, to be tried in this order; never empty.
    Fresh(Rc<[SocketAddr]>),
    /// At these, as far as is known; they are older than `resolve_interval`. Never empty.
    Stale(Rc<[SocketAddr]>),
    /// Its name has to be looked up first.
    Unknown,
}

/// What an attempt is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A client is waiting for it. It counts as a connection.
    Client,
    /// To find out whether a failed backend is well again. It does not count.
    Probe,
}

/// How an attempt that [`Upstreams::connecting`] announced has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The backend took the client, at this address. The connection counts until
    /// [`Upstreams::left`].
    Succeeded(SocketAddr),
    /// The backend answered, and did not take this client.
    Answered,
    /// The attempt failed at every address that was tried.
    Failed(AttemptError),
    /// The attempt was given up for a reason on this side, which says nothing about the backend.
    Abandoned,
}

/// All backends that a route or a session still uses.
#[derive(Debug, Default)]
pub struct Upstreams {
    settings: Settings,
    entries: BTreeMap<UpstreamId, Upstream>,
    interned: u32,
    /// Counts attempts, to find the backend that was tried longest ago.
    attempts: u64,
    /// When the next probe is due: asked each turn, so kept ready.
    probe_at: Option<Moment>,
}

#[derive(Debug)]
struct Upstream {
    url: BackendUrl,
    /// Attempts and connections together.
    active: usize,
    dialing: usize,
    is_probed: bool,
    /// `Upstreams::attempts` when it was last tried.
    tried: u64,
    state: BackendState,
    rest: Backoff,
    /// Other backends are preferred until then. Set by a failure, in the past once the rest is
    /// over.
    rests_until: Option<Moment>,
    /// It answered without taking a client: others with as much to do are preferred until then.
    deferral: Backoff,
    deferred_until: Option<Moment>,
    location: Location,
}

/// The placeholder address of a backend on a Unix socket, whose path is in its URL.
const ON_THIS_MACHINE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Where a backend is, and how that is known.
#[derive(Debug)]
enum Location {
    /// The URL says it: an IP address, or `localhost`.
    Fixed(Rc<[SocketAddr]>),
    Named(NamedHost),
}

/// What is known of a name.
#[derive(Debug)]
struct NamedHost {
    /// Empty until the first lookup has succeeded.
    addresses: Rc<[SocketAddr]>,
    is_under_way: bool,
    /// Why the last lookup was not possible, if it was this machine's fault.
    shortage: Option<i32>,
    /// From then on a lookup is due, while the addresses are still used.
    due_at: Moment,
    /// From then on the addresses are too old.
    stale_at: Option<Moment>,
}

impl Upstreams {
    /// No backends, found as `settings` say.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Takes other settings, and has every name looked up again. The known addresses stay usable.
    pub fn reload(&mut self, settings: Settings, now: Moment) {
        self.settings = settings;
        for upstream in self.entries.values_mut() {
            if let Location::Named(lookup) = &mut upstream.location {
                lookup.due_at = now;
                lookup.stale_at = Some(now);
            }
        }
    }

    /// The settings in effect.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The backend at `url`: the one that is known by this text, or a new one.
    pub fn intern(&mut self, url: &BackendUrl) -> UpstreamId {
        if let Some((id, _)) = self.entries.iter().find(|(_, known)| known.url == *url) {
            return *id;
        }
        let id = UpstreamId(self.interned);
        self.interned = self.interned.checked_add(1).expect("four thousand million backends");
        let location = match url.name().known_addresses() {
            _ if url.unix_path().is_some() => Location::Fixed([ON_THIS_MACHINE].into()),
            Some(addresses) => Location::Fixed(addresses.into()),
            None => Location::Named(NamedHost::default()),
        };
        let upstream = Upstream {
            url: url.clone(),
            active: 0,
            dialing: 0,
            is_probed: false,
            tried: 0,
            state: BackendState::Untried,
            rest: Backoff::new(REST_FIRST, REST_MAX),
            rests_until: None,
            deferral: Backoff::new(REST_FIRST, REST_MAX),
            deferred_until: None,
            location,
        };
        self.entries.insert(id, upstream);
        id
    }

    /// Forgets the backends that are not `used` by a route and have no connection.
    pub fn retain(&mut self, used: impl Fn(UpstreamId) -> bool) {
        self.entries.retain(|id, upstream| upstream.active > 0 || used(*id));
        self.schedule_probe();
    }

    /// False once it was forgotten.
    pub fn is_known(&self, id: UpstreamId) -> bool {
        self.entries.contains_key(&id)
    }

    /// All known backends.
    pub fn ids(&self) -> impl Iterator<Item = UpstreamId> {
        self.entries.keys().copied()
    }

    /// The backend to try next, or `None` when there are no `candidates`.
    ///
    /// The one with the fewest connections, attempts included; among equals the one tried longest
    /// ago, so that short connections are spread as well. One that answers without taking clients
    /// has few connections for a bad reason, so others come first for a while, doubling like a
    /// rest. One that rests comes only when all rest, and then the one whose rest ends first.
    pub fn choose(&self, candidates: &[UpstreamId], now: Moment) -> Option<UpstreamId> {
        candidates
            .iter()
            .filter_map(|id| Some((*id, self.entries.get(id)?)))
            .min_by_key(|(_, upstream)| {
                let rest = if upstream.is_resting(now) { upstream.rests_until } else { None };
                let is_deferred = upstream.deferred_until.is_some_and(|until| now < until);
                (rest, is_deferred, upstream.active, upstream.tried)
            })
            .map(|(id, _)| id)
    }

    /// An attempt begins. [`Upstreams::ended`] follows.
    pub fn connecting(&mut self, id: UpstreamId, purpose: Purpose) {
        self.attempts += 1;
        let attempts = self.attempts;
        self.update(id, |upstream| match purpose {
            Purpose::Client => {
                upstream.active += 1;
                upstream.dialing += 1;
                upstream.tried = attempts;
            }
            Purpose::Probe => upstream.is_probed = true,
        });
        self.schedule_probe();
    }

    /// An attempt has ended.
    pub fn ended(
        &mut self,
        id: UpstreamId,
        purpose: Purpose,
        outcome: AttemptOutcome,
        now: Moment,
    ) {
        self.update(id, |upstream| {
            match purpose {
                Purpose::Client => {
                    upstream.dialing = upstream.dialing.saturating_sub(1);
                    if !matches!(outcome, AttemptOutcome::Succeeded(_)) {
                        upstream.active = upstream.active.saturating_sub(1);
                    }
                }
                Purpose::Probe => upstream.is_probed = false,
            }
            match outcome {
                AttemptOutcome::Succeeded(address) => {
                    upstream.recover();
                    upstream.deferral.reset();
                    upstream.deferred_until = None;
                    upstream.prefer(address);
                }
                AttemptOutcome::Answered => {
                    upstream.recover();
                    if purpose == Purpose::Client {
                        upstream.defer(now);
                    }
                }
                AttemptOutcome::Failed(error) => upstream.fail(error, now),
                AttemptOutcome::Abandoned if purpose == Purpose::Probe => {
                    upstream.rests_until = Some(now + REST_FIRST);
                }
                AttemptOutcome::Abandoned => {}
            }
        });
        self.schedule_probe();
    }

    /// A connection that [`AttemptOutcome::Succeeded`] began has ended.
    pub fn left(&mut self, id: UpstreamId) {
        self.update(id, |upstream| upstream.active = upstream.active.saturating_sub(1));
    }

    /// Its URL.
    ///
    /// # Panics
    /// When the backend was forgotten, which cannot be while a route that a session holds names it.
    pub fn url(&self, id: UpstreamId) -> &BackendUrl {
        &self.entries.get(&id).expect("a route's backends are known while the route is").url
    }

    /// How many connections it has, attempts included.
    pub fn active(&self, id: UpstreamId) -> usize {
        self.entries.get(&id).map_or(0, |upstream| upstream.active)
    }

    /// Whether others are preferred: its rest lasts, or an attempt is just finding out how it is.
    pub fn is_resting(&self, id: UpstreamId, now: Moment) -> bool {
        self.entries.get(&id).is_some_and(|upstream| upstream.is_resting(now))
    }

    /// What is known of its health.
    pub fn state(&self, id: UpstreamId) -> BackendState {
        self.entries.get(&id).map_or(BackendState::Untried, |upstream| upstream.state)
    }

    /// Where it is.
    pub fn addresses(&self, id: UpstreamId, now: Moment) -> Addresses {
        match self.entries.get(&id).map(|upstream| &upstream.location) {
            Some(Location::Fixed(addresses)) => Addresses::Fresh(Rc::clone(addresses)),
            Some(Location::Named(lookup)) if !lookup.addresses.is_empty() => {
                let addresses = Rc::clone(&lookup.addresses);
                match lookup.stale_at.is_some_and(|at| at <= now) {
                    true => Addresses::Stale(addresses),
                    false => Addresses::Fresh(addresses),
                }
            }
            Some(Location::Named(_)) | None => Addresses::Unknown,
        }
    }

    /// Whether its name has to be looked up now. True once for each lookup: [`Upstreams::resolved`]
    /// follows.
    #[must_use]
    pub fn begin_lookup(&mut self, id: UpstreamId, now: Moment) -> bool {
        match self.entries.get_mut(&id).map(|upstream| &mut upstream.location) {
            Some(Location::Named(lookup)) if !lookup.is_under_way && lookup.due_at <= now => {
                lookup.is_under_way = true;
                true
            }
            _ => false,
        }
    }

    /// The error number of the shortage on this machine that kept its name from being looked up
    /// last time.
    pub fn lookup_shortage(&self, id: UpstreamId) -> Option<i32> {
        match self.entries.get(&id).map(|upstream| &upstream.location) {
            Some(Location::Named(lookup)) => lookup.shortage,
            _ => None,
        }
    }

    /// Whether an answer to [`Upstreams::begin_lookup`] is still to come.
    pub fn is_looking_up(&self, id: UpstreamId) -> bool {
        match self.entries.get(&id).map(|upstream| &upstream.location) {
            Some(Location::Named(lookup)) => lookup.is_under_way,
            _ => false,
        }
    }

    /// All its addresses have failed: has its name looked up again. False: the URL itself says
    /// where it is.
    pub fn doubt_addresses(&mut self, id: UpstreamId, now: Moment) -> bool {
        match self.entries.get_mut(&id).map(|upstream| &mut upstream.location) {
            Some(Location::Named(lookup)) => {
                lookup.due_at = now;
                true
            }
            _ => false,
        }
    }

    /// What looking up its name gave. Addresses that are known stay usable when the lookup has
    /// failed or found nothing. An answer for a backend that was forgotten meanwhile is ignored.
    pub fn resolved(
        &mut self,
        id: UpstreamId,
        answer: Result<Vec<SocketAddr>, LookUpError>,
        now: Moment,
    ) {
        let interval = self.settings.resolve_interval;
        let Some(upstream) = self.entries.get_mut(&id) else { return };
        let Location::Named(lookup) = &mut upstream.location else { return };
        lookup.is_under_way = false;
        lookup.shortage = match answer {
            Err(LookUpError::Shortage { errno }) => Some(errno),
            Ok(_) | Err(LookUpError::NotFound(_)) => None,
        };
        match answer {
            Ok(found) if !found.is_empty() => {
                let preferred = lookup.addresses.first().copied();
                lookup.addresses = found.into();
                // Halfway, so that under steady load no client has to wait for the lookup.
                lookup.due_at = now + interval.map_or(Duration::MAX, |interval| interval / 2);
                lookup.stale_at = interval.map(|interval| now + interval);
                if let Some(address) = preferred {
                    upstream.prefer(address);
                }
            }
            _ => {
                let retry_at = now + LOOKUP_PAUSE;
                (lookup.due_at, lookup.stale_at) = match lookup.addresses.is_empty() {
                    true => (now, None),
                    false => (retry_at, Some(retry_at)),
                };
            }
        }
    }

    /// When [`Upstreams::due_probe`] will have something: a failed backend has rested, and no
    /// attempt is finding out how it is.
    #[inline]
    pub fn probe_at(&self) -> Option<Moment> {
        self.probe_at
    }

    /// A failed backend that has to be probed now.
    pub fn due_probe(&self, now: Moment) -> Option<UpstreamId> {
        self.probe_at.filter(|at| *at <= now)?;
        let due = |upstream: &Upstream| upstream.probe_at().is_some_and(|at| at <= now);
        self.entries.iter().find(|(_, upstream)| due(upstream)).map(|(id, _)| *id)
    }

    fn schedule_probe(&mut self) {
        self.probe_at = self.entries.values().filter_map(Upstream::probe_at).min();
    }

    fn update(&mut self, id: UpstreamId, change: impl FnOnce(&mut Upstream)) {
        let upstream = self.entries.get_mut(&id);
        debug_assert!(upstream.is_some(), "{id:?} was forgotten while in use");
        if let Some(upstream) = upstream {
            change(upstream);
        }
    }
}

impl Upstream {
    fn is_resting(&self, now: Moment) -> bool {
        self.rests_until.is_some_and(|until| now < until || self.dialing > 0 || self.is_probed)
    }

    fn probe_at(&self) -> Option<Moment> {
        if self.dialing > 0 || self.is_probed { None } else { self.rests_until }
    }

    fn recover(&mut self) {
        self.state = BackendState::Ok;
        self.rest.reset();
        self.rests_until = None;
    }

    fn defer(&mut self, now: Moment) {
        if self.deferred_until.is_none_or(|until| until <= now) {
            self.deferred_until = Some(now + self.deferral.next_wait());
        }
    }

    /// Many attempts that were under way when the backend failed count as one failure: a rest that
    /// lasts is not made longer.
    fn fail(&mut self, error: AttemptError, now: Moment) {
        let since = match self.state {
            BackendState::Failed { since, .. } => since,
            BackendState::Untried | BackendState::Ok => now,
        };
        self.state = BackendState::Failed { since, error };
        if self.rests_until.is_none_or(|until| until <= now) {
            self.rests_until = Some(now + self.rest.next_wait());
        }
        if error.fault() != AttemptFault::Lookup
            && let Location::Named(lookup) = &mut self.location
        {
            // It may have moved. What is known stays usable until the answer has come.
            lookup.due_at = now;
        }
    }

    /// Moves `address` to the front, if it is one of the backend's.
    fn prefer(&mut self, address: SocketAddr) {
        let addresses = match &mut self.location {
            Location::Fixed(addresses) => addresses,
            Location::Named(lookup) => &mut lookup.addresses,
        };
        if let Some(index @ 1..) = addresses.iter().position(|known| *known == address) {
            let mut reordered = addresses.to_vec();
            reordered[..=index].rotate_right(1);
            *addresses = reordered.into();
        }
    }
}

impl Default for NamedHost {
    fn default() -> Self {
        NamedHost {
            addresses: Rc::new([]),
            is_under_way: false,
            shortage: None,
            due_at: Moment::START,
            stale_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;
    const NANO: Duration = Duration::from_nanos(1);
    const REFUSED: AttemptOutcome = AttemptOutcome::Failed(AttemptError::Refused);

    fn three() -> (Upstreams, [UpstreamId; 3], Moment) {
        let mut upstreams = Upstreams::default();
        let ids = ["ws://a/", "ws://b/", "ws://c/"].map(|url| intern(&mut upstreams, url));
        (upstreams, ids, Moment::START)
    }

    fn intern(upstreams: &mut Upstreams, url: &str) -> UpstreamId {
        upstreams.intern(&BackendUrl::parse(url).unwrap())
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn succeeded() -> AttemptOutcome {
        AttemptOutcome::Succeeded(address("10.0.0.1:80"))
    }

    impl Upstreams {
        fn attempt(&mut self, id: UpstreamId, outcome: AttemptOutcome, now: Moment) {
            self.connecting(id, Purpose::Client);
            self.ended(id, Purpose::Client, outcome, now);
        }

        /// Looks up the backend's name, with this answer.
        fn look_up(&mut self, id: UpstreamId, addresses: &[&str], now: Moment) {
            assert!(self.begin_lookup(id, now));
            let addresses = addresses.iter().map(|text| address(text)).collect();
            self.resolved(id, Ok(addresses), now);
        }

        fn known(&self, id: UpstreamId, now: Moment) -> Vec<String> {
            match self.addresses(id, now) {
                Addresses::Fresh(addresses) | Addresses::Stale(addresses) => {
                    addresses.iter().map(SocketAddr::to_string).collect()
                }
                Addresses::Unknown => Vec::new(),
            }
        }
    }

    #[test]
    fn one_url_is_one_backend() {
        let (mut upstreams, [a, b, _], _) = three();
        assert_eq!(intern(&mut upstreams, "ws://a/"), a);
        assert_ne!(a, b);
        assert_ne!(intern(&mut upstreams, "ws://a/other"), a);
        assert_eq!(upstreams.url(b).host(), "b");
    }

    #[test]
    fn least_connections_come_first_and_ties_go_round() {
        let (mut upstreams, ids, now) = three();
        let mut chosen = Vec::new();
        for _ in 0..6 {
            let id = upstreams.choose(&ids, now).unwrap();
            upstreams.attempt(id, succeeded(), now);
            chosen.push(id);
        }
        assert_eq!(chosen, [ids, ids].concat());
        upstreams.left(ids[1]);
        assert_eq!(upstreams.choose(&ids, now), Some(ids[1]));
        assert_eq!((upstreams.active(ids[0]), upstreams.active(ids[1])), (2, 1));

        // Connections that end at once leave all counts equal; they are spread all the same.
        let (mut upstreams, ids, now) = three();
        let chosen: Vec<_> = (0..6)
            .map(|_| {
                let id = upstreams.choose(&ids, now).unwrap();
                upstreams.attempt(id, succeeded(), now);
                upstreams.left(id);
                id
            })
            .collect();
        assert_eq!(chosen, [ids, ids].concat());
    }

    #[test]
    fn attempts_count_as_connections() {
        let (mut upstreams, [a, b, _], now) = three();
        upstreams.connecting(a, Purpose::Client);
        assert_eq!(upstreams.choose(&[a, b], now), Some(b));
        upstreams.ended(a, Purpose::Client, AttemptOutcome::Abandoned, now);
        assert_eq!(upstreams.active(a), 0);
        assert_eq!(upstreams.state(a), BackendState::Untried, "nothing was learnt");
        assert_eq!(upstreams.choose(&[], now), None);
    }

    #[test]
    fn a_failed_backend_rests_longer_each_time() {
        let (mut upstreams, [a, b, _], mut now) = three();
        upstreams.connecting(b, Purpose::Client);
        let since = now;
        for rest in [1, 2, 4, 8, 16, 30, 30] {
            upstreams.attempt(a, REFUSED, now);
            let error = AttemptError::Refused;
            assert_eq!(upstreams.state(a), BackendState::Failed { since, error });
            let almost = now + (S(rest) - NANO);
            assert!(upstreams.is_resting(a, almost), "{rest}");
            assert_eq!(upstreams.choose(&[a, b], almost), Some(b), "although it has more to do");
            now += S(rest);
            assert!(!upstreams.is_resting(a, now), "{rest}");
            assert_eq!(upstreams.choose(&[a, b], now), Some(a));
        }
        upstreams.attempt(a, succeeded(), now);
        assert_eq!(upstreams.state(a), BackendState::Ok);
        upstreams.attempt(a, REFUSED, now);
        assert!(!upstreams.is_resting(a, now + S(1)), "after a success rests are short again");
    }

    #[test]
    fn failures_within_one_rest_count_once() {
        let (mut upstreams, [a, ..], now) = three();
        for _ in 0..100 {
            upstreams.connecting(a, Purpose::Client);
        }
        for _ in 0..100 {
            upstreams.ended(a, Purpose::Client, REFUSED, now);
        }
        assert!(!upstreams.is_resting(a, now + S(1)));
        assert_eq!(upstreams.active(a), 0);
    }

    #[test]
    fn when_all_rest_the_first_to_wake_is_tried() {
        let (mut upstreams, ids @ [a, b, c], now) = three();
        for (id, at) in [(b, 0), (c, 100), (a, 200)] {
            upstreams.attempt(id, REFUSED, now + Duration::from_millis(at));
        }
        let now = now + Duration::from_millis(300);
        assert_eq!(upstreams.choose(&ids, now), Some(b));
        assert_eq!(upstreams.choose(&[a, c], now), Some(c));
        assert_eq!(upstreams.choose(&[a], now), Some(a), "a single backend is always tried");
    }

    #[test]
    fn after_its_rest_one_attempt_finds_out() {
        let (mut upstreams, [a, b, _], now) = three();
        upstreams.attempt(b, succeeded(), now);
        upstreams.attempt(a, REFUSED, now);
        let now = now + S(2);
        assert_eq!(upstreams.choose(&[a, b], now), Some(a));
        upstreams.connecting(a, Purpose::Client);
        assert_eq!(upstreams.choose(&[a, b], now), Some(b), "the others go where it works");
        upstreams.ended(a, Purpose::Client, succeeded(), now);
        upstreams.left(a);
        assert_eq!(upstreams.choose(&[a, b], now), Some(a));
    }

    #[test]
    fn a_backend_that_takes_nobody_is_not_preferred_for_having_no_connections() {
        let (mut upstreams, [a, b, _], mut now) = three();
        upstreams.connecting(b, Purpose::Client);
        let mut lost = 0;
        for _ in 0..600 {
            let id = upstreams.choose(&[a, b], now).unwrap();
            let outcome = if id == a { AttemptOutcome::Answered } else { succeeded() };
            lost += u32::from(id == a);
            upstreams.attempt(id, outcome, now);
            now += Duration::from_millis(100);
        }
        assert_eq!(lost, 6, "at 0, 1, 3, 7, 15 and 31 s of this minute");
        assert_eq!(upstreams.state(a), BackendState::Ok, "it answers");
        upstreams.attempt(a, succeeded(), now);
        upstreams.left(a);
        assert_eq!(upstreams.choose(&[a, b], now), Some(a));
    }

    #[test]
    fn failed_backends_are_probed_after_their_rest() {
        let (mut upstreams, [a, b, _], now) = three();
        assert_eq!(upstreams.probe_at(), None);
        upstreams.attempt(a, REFUSED, now);
        assert_eq!(upstreams.probe_at(), Some(now + S(1)));
        assert_eq!(upstreams.due_probe(now), None);
        let now = now + S(1);
        assert_eq!(upstreams.due_probe(now), Some(a));
        upstreams.connecting(a, Purpose::Probe);
        assert_eq!((upstreams.due_probe(now), upstreams.probe_at()), (None, None));
        assert_eq!(upstreams.active(a), 0, "a probe is not a connection");
        assert_eq!(upstreams.choose(&[a, b], now), Some(b), "its outcome is waited for");
        upstreams.ended(a, Purpose::Probe, REFUSED, now);
        assert_eq!(upstreams.probe_at(), Some(now + S(2)), "the rest becomes longer");
        let now = now + S(2);
        upstreams.connecting(a, Purpose::Probe);
        upstreams.ended(a, Purpose::Probe, AttemptOutcome::Abandoned, now);
        assert_eq!(upstreams.probe_at(), Some(now + S(1)), "not again at once");
        let now = now + S(1);
        upstreams.connecting(a, Purpose::Client);
        assert_eq!(upstreams.due_probe(now), None, "a client is finding out");
        upstreams.ended(a, Purpose::Client, AttemptOutcome::Abandoned, now);
        upstreams.connecting(a, Purpose::Probe);
        upstreams.ended(a, Purpose::Probe, AttemptOutcome::Answered, now);
        assert_eq!((upstreams.state(a), upstreams.probe_at()), (BackendState::Ok, None));
        assert_eq!(upstreams.choose(&[a, b], now), Some(b), "tried longest ago");
    }

    #[test]
    fn names_are_looked_up_halfway_and_addresses_become_stale() {
        let (mut upstreams, [a, ..], now) = three();
        assert_eq!(upstreams.addresses(a, now), Addresses::Unknown);
        assert!(upstreams.begin_lookup(a, now));
        assert!(!upstreams.begin_lookup(a, now), "once at a time");
        assert!(upstreams.is_looking_up(a));
        upstreams.resolved(a, Ok(vec![address("10.0.0.1:80")]), now);
        assert!(!upstreams.is_looking_up(a) && !upstreams.begin_lookup(a, now + (S(15) - NANO)));
        assert!(upstreams.begin_lookup(a, now + S(15)));
        assert!(matches!(upstreams.addresses(a, now + (S(30) - NANO)), Addresses::Fresh(_)));
        assert!(matches!(upstreams.addresses(a, now + S(30)), Addresses::Stale(_)));
        let later = now + S(40);
        upstreams.resolved(a, Ok(vec![address("10.0.0.2:80")]), later);
        assert_eq!(upstreams.known(a, later), ["10.0.0.2:80"]);
        assert!(matches!(upstreams.addresses(a, later), Addresses::Fresh(_)));
    }

    #[test]
    fn without_an_interval_addresses_stay_fresh() {
        let mut upstreams = Upstreams::new(Settings { resolve_interval: None });
        let a = intern(&mut upstreams, "ws://a/");
        upstreams.look_up(a, &["10.0.0.1:80"], Moment::START);
        let much_later = Moment::START + S(1_000_000);
        assert!(matches!(upstreams.addresses(a, much_later), Addresses::Fresh(_)));
        assert!(!upstreams.begin_lookup(a, much_later));
    }

    #[test]
    fn known_addresses_outlive_failed_lookups() {
        let (mut upstreams, [a, ..], now) = three();
        assert!(upstreams.begin_lookup(a, now));
        upstreams.resolved(a, Err(LookUpError::NotFound("no such name".into())), now);
        assert_eq!(upstreams.addresses(a, now), Addresses::Unknown);
        upstreams.look_up(a, &["10.0.0.1:80"], now);
        let mut later = now;
        for answer in [Err(LookUpError::NotFound("server failure".into())), Ok(Vec::new())] {
            later += S(60);
            assert!(upstreams.begin_lookup(a, later));
            upstreams.resolved(a, answer, later);
            assert_eq!(upstreams.known(a, later), ["10.0.0.1:80"]);
            assert!(!upstreams.begin_lookup(a, later), "not again at once");
            assert!(
                matches!(upstreams.addresses(a, later), Addresses::Fresh(_)),
                "no client waits"
            );
            assert!(matches!(upstreams.addresses(a, later + S(1)), Addresses::Stale(_)));
        }
    }

    #[test]
    fn failures_and_reloads_make_a_lookup_due() {
        let (mut upstreams, [a, ..], now) = three();
        upstreams.look_up(a, &["10.0.0.1:80"], now);
        upstreams.attempt(a, REFUSED, now);
        upstreams.look_up(a, &["10.0.0.1:80"], now);
        assert!(!upstreams.begin_lookup(a, now));
        upstreams.reload(Settings::default(), now);
        assert!(matches!(upstreams.addresses(a, now), Addresses::Stale(_)));
        upstreams.look_up(a, &["10.0.0.2:80"], now);
        assert!(upstreams.doubt_addresses(a, now));
        assert!(upstreams.begin_lookup(a, now));
    }

    #[test]
    fn the_address_that_worked_last_comes_first() {
        let (mut upstreams, [a, ..], now) = three();
        upstreams.look_up(a, &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"], now);
        upstreams.attempt(a, AttemptOutcome::Succeeded(address("10.0.0.3:80")), now);
        let order = ["10.0.0.3:80", "10.0.0.1:80", "10.0.0.2:80"];
        assert_eq!(upstreams.known(a, now), order);
        let later = now + S(60);
        upstreams.look_up(a, &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"], later);
        assert_eq!(upstreams.known(a, later), order, "also after it was looked up again");
        upstreams.attempt(a, AttemptOutcome::Succeeded(address("10.9.9.9:80")), later);
        assert_eq!(upstreams.known(a, later), order);

        let local = intern(&mut upstreams, "ws://localhost:81/");
        upstreams.attempt(local, AttemptOutcome::Succeeded(address("127.0.0.1:81")), now);
        assert_eq!(upstreams.known(local, now), ["127.0.0.1:81", "[::1]:81"]);
    }

    #[test]
    fn ip_addresses_and_localhost_need_no_lookup() {
        let mut upstreams = Upstreams::default();
        let now = Moment::START;
        for (url, addresses) in [
            ("ws://[::1]:81/", vec!["[::1]:81"]),
            ("ws://localhost:81/", vec!["[::1]:81", "127.0.0.1:81"]),
            ("ws://App.LocalHost.:81/", vec!["[::1]:81", "127.0.0.1:81"]),
        ] {
            let id = intern(&mut upstreams, url);
            assert_eq!(upstreams.known(id, now), addresses);
            upstreams.attempt(id, REFUSED, now);
            upstreams.reload(Settings::default(), now);
            assert!(!upstreams.begin_lookup(id, now) && !upstreams.doubt_addresses(id, now));
            upstreams.resolved(id, Err(LookUpError::NotFound("never asked".into())), now);
            assert_eq!(upstreams.known(id, now), addresses);
        }
    }

    #[test]
    fn unused_backends_are_forgotten_but_not_under_a_connection() {
        let (mut upstreams, [a, b, c], now) = three();
        upstreams.connecting(b, Purpose::Client);
        upstreams.attempt(c, REFUSED, now);
        upstreams.retain(|id| id == a);
        assert!(upstreams.is_known(a) && upstreams.is_known(b) && !upstreams.is_known(c));
        assert_eq!(upstreams.probe_at(), None);
        upstreams.resolved(c, Ok(vec![address("127.0.0.1:80")]), now);
        assert!(!upstreams.is_known(c));
        assert_eq!(upstreams.choose(&[c], now), None);
        upstreams.ended(b, Purpose::Client, AttemptOutcome::Abandoned, now);
        upstreams.retain(|id| id == a);
        assert!(!upstreams.is_known(b));
        assert_ne!(intern(&mut upstreams, "ws://c/"), c, "an id is never used again");
    }
}
