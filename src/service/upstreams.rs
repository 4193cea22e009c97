//! The backends: which one is next, which rests after a failure, what its name resolves to.
//!
//! A backend is known by its URL's text, whichever route names it and however often the configuration is read again, so its
//! connection count and its rest survive a reload. The surprising thing: a backend that has failed is tried by one client at
//! a time, also after its rest, until one gets through. A backend that swallows connections would otherwise hold every client
//! of the moment its rest ended for a whole `connect_timeout`.
//!
//! ```text
//!              connecting              connected               left
//!   (chosen) ─────────────► dialing ─────────────► connected ─────────► (gone)
//!                              │ failed: rests, and is looked up again
//!                              │ abandoned: nothing was learnt
//!                              └──────────────────────────────────────► (gone)
//! ```

use crate::base::moment::Moment;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::name::Name;
use super::url::BackendUrl;
use crate::base::backoff::Backoff;

/// How long a backend rests after its first failure, and at most.
const REST_FIRST: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(30);

/// Names one backend for as long as the process runs: never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamId(u32);

/// What is known of where a backend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// At these, to be tried in this order; never empty.
    Known(Rc<[SocketAddr]>),
    /// Its name has to be looked up: call [`Upstreams::looking`] and have it done.
    Unknown,
    /// Someone has asked already; [`Upstreams::resolved`] will follow.
    Looking,
}

/// All backends that a route or a session still uses.
#[derive(Debug, Default)]
pub struct Upstreams {
    entries: BTreeMap<UpstreamId, Upstream>,
    interned: u32,
    /// Counts dials, to tell who was dialled longest ago.
    dials: u64,
}

#[derive(Debug)]
struct Upstream {
    url: BackendUrl,
    /// Dialling and connected ones together.
    active: usize,
    dialing: usize,
    /// `Upstreams::dials` when it was last dialled.
    dialed: u64,
    rest: Backoff,
    /// Set by a failure, until a success; in the past once the rest is over.
    rests_until: Option<Moment>,
    addresses: Addresses,
    lookup_error: Option<String>,
}

impl Upstreams {
    pub fn new() -> Self {
        Self::default()
    }

    /// The backend at `url`: the one that is known under this text, or a new one.
    pub fn intern(&mut self, url: &BackendUrl) -> UpstreamId {
        if let Some((id, _)) = self.entries.iter().find(|(_, known)| known.url == *url) {
            return *id;
        }
        let id = UpstreamId(self.interned);
        self.interned = self.interned.checked_add(1).expect("four thousand million backends");
        let mut upstream = Upstream {
            url: url.clone(),
            active: 0,
            dialing: 0,
            dialed: 0,
            rest: Backoff::new(REST_FIRST, REST_MAX),
            rests_until: None,
            addresses: Addresses::Unknown,
            lookup_error: None,
        };
        upstream.forget_addresses();
        self.entries.insert(id, upstream);
        id
    }

    /// Forgets the backends that are not `used` by a route and have no connection.
    pub fn retain(&mut self, used: impl Fn(UpstreamId) -> bool) {
        self.entries.retain(|id, upstream| upstream.active > 0 || used(*id));
    }

    /// False once it was forgotten.
    pub fn is_known(&self, id: UpstreamId) -> bool {
        self.entries.contains_key(&id)
    }

    /// The backend to dial next, or `None` when all `candidates` were `tried`.
    ///
    /// The one with the fewest connections, dials included; among equals the one dialled longest ago, so that short
    /// connections are spread as well. One that rests comes only when all that are left rest, and then the one whose rest ends
    /// first: a backend that is back gets the very next client.
    pub fn choose(
        &self,
        candidates: &[UpstreamId],
        tried: &[UpstreamId],
        now: Moment,
    ) -> Option<UpstreamId> {
        candidates
            .iter()
            .filter(|id| !tried.contains(id))
            .filter_map(|id| Some((*id, self.entries.get(id)?)))
            .min_by_key(|(_, upstream)| {
                let rest = if upstream.is_resting(now) { upstream.rests_until } else { None };
                (rest, upstream.active, upstream.dialed)
            })
            .map(|(id, _)| id)
    }

    /// A dial begins.
    pub fn connecting(&mut self, id: UpstreamId) {
        self.dials += 1;
        let dials = self.dials;
        self.update(id, |upstream| {
            upstream.active += 1;
            upstream.dialing += 1;
            upstream.dialed = dials;
        });
    }

    /// The dial succeeded: the backend is well, and any rest is over.
    pub fn connected(&mut self, id: UpstreamId) {
        self.update(id, |upstream| {
            upstream.dialing = upstream.dialing.saturating_sub(1);
            upstream.rest.reset();
            upstream.rests_until = None;
        });
    }

    /// The dial failed at every address, or its name was not found. The backend rests, and its name will be looked up again.
    ///
    /// Many dials under way when a backend goes count as one failure: a rest that lasts is not made longer.
    pub fn failed(&mut self, id: UpstreamId, now: Moment) {
        self.update(id, |upstream| {
            upstream.dialing = upstream.dialing.saturating_sub(1);
            upstream.active = upstream.active.saturating_sub(1);
            if upstream.rests_until.is_none_or(|until| until <= now) {
                upstream.rests_until = Some(now + upstream.rest.next_wait());
            }
            upstream.forget_addresses();
        });
    }

    /// The dial was given up for a reason of the client's; that says nothing about the backend.
    pub fn abandoned(&mut self, id: UpstreamId) {
        self.update(id, |upstream| {
            upstream.dialing = upstream.dialing.saturating_sub(1);
            upstream.active = upstream.active.saturating_sub(1);
        });
    }

    /// A connection that was `connected` has ended.
    pub fn left(&mut self, id: UpstreamId) {
        self.update(id, |upstream| upstream.active = upstream.active.saturating_sub(1));
    }

    /// Its URL.
    ///
    /// # Panics
    /// When the backend was forgotten, which cannot be while a route that someone holds names it.
    pub fn url(&self, id: UpstreamId) -> &BackendUrl {
        &self.entries.get(&id).expect("a route's backends are known while the route is").url
    }

    /// How many connections it has, dials included.
    pub fn active(&self, id: UpstreamId) -> usize {
        self.entries.get(&id).map_or(0, |upstream| upstream.active)
    }

    /// Whether others are preferred: its rest lasts, or someone is just finding out whether it is well again.
    pub fn is_resting(&self, id: UpstreamId, now: Moment) -> bool {
        self.entries.get(&id).is_some_and(|upstream| upstream.is_resting(now))
    }

    /// Whether the dial that ended last failed. An abandoned one does not count.
    pub fn last_dial_failed(&self, id: UpstreamId) -> bool {
        self.entries.get(&id).is_some_and(|upstream| upstream.rests_until.is_some())
    }

    /// Where it is. An IP address in the URL is always `Known`.
    pub fn addresses(&self, id: UpstreamId) -> Addresses {
        self.entries.get(&id).map_or(Addresses::Unknown, |upstream| upstream.addresses.clone())
    }

    /// Its name is being looked up from now on. Nothing changes where addresses are known.
    pub fn looking(&mut self, id: UpstreamId) {
        self.update(id, |upstream| {
            if upstream.addresses == Addresses::Unknown {
                upstream.addresses = Addresses::Looking;
            }
        });
    }

    /// What looking up its name gave. After an error, or no address at all, addresses are `Unknown` again: who waited for them
    /// has failed, with [`Upstreams::lookup_error`] as the reason. An answer for a backend forgotten meanwhile is ignored.
    pub fn resolved(&mut self, id: UpstreamId, answer: Result<Vec<SocketAddr>, String>) {
        let Some(upstream) = self.entries.get_mut(&id) else { return };
        if upstream.name().known_addresses().is_some() {
            return;
        }
        (upstream.addresses, upstream.lookup_error) = match answer {
            Ok(found) if !found.is_empty() => (Addresses::Known(found.into()), None),
            Ok(_) => (Addresses::Unknown, Some("its name has no address".into())),
            Err(why) => (Addresses::Unknown, Some(why)),
        };
    }

    /// Why its name was not found, if the last look-up failed.
    pub fn lookup_error(&self, id: UpstreamId) -> Option<&str> {
        self.entries.get(&id)?.lookup_error.as_deref()
    }

    fn update(&mut self, id: UpstreamId, change: impl FnOnce(&mut Upstream)) {
        let upstream = self.entries.get_mut(&id);
        debug_assert!(upstream.is_some(), "{id:?} was forgotten while someone used it");
        if let Some(upstream) = upstream {
            change(upstream);
        }
    }
}

impl Upstream {
    fn is_resting(&self, now: Moment) -> bool {
        self.rests_until.is_some_and(|until| now < until || self.dialing > 0)
    }

    fn name(&self) -> Name {
        Name { host: self.url.host().to_owned(), port: self.url.port() }
    }

    /// A look-up under way stays: its answer is newer than the failure.
    fn forget_addresses(&mut self) {
        if let Some(known) = self.name().known_addresses() {
            self.addresses = Addresses::Known(known.into());
        } else if self.addresses != Addresses::Looking {
            self.addresses = Addresses::Unknown;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn three() -> (Upstreams, [UpstreamId; 3], Moment) {
        let mut upstreams = Upstreams::new();
        let ids = ["ws://a/", "ws://b/", "ws://c/"]
            .map(|url| upstreams.intern(&BackendUrl::parse(url).unwrap()));
        (upstreams, ids, Moment::START)
    }

    fn dial_fails(upstreams: &mut Upstreams, id: UpstreamId, now: Moment) {
        upstreams.connecting(id);
        upstreams.failed(id, now);
    }

    #[test]
    fn one_text_is_one_backend() {
        let (mut upstreams, [a, b, _], _) = three();
        assert_eq!(upstreams.intern(&BackendUrl::parse("ws://a/").unwrap()), a);
        assert_ne!(a, b);
        assert_ne!(upstreams.intern(&BackendUrl::parse("ws://a/other").unwrap()), a);
        assert_eq!(upstreams.url(b).host(), "b");
    }

    #[test]
    fn the_fewest_connections_come_first_and_ties_go_round() {
        let (mut upstreams, ids, now) = three();
        let mut chosen = Vec::new();
        for _ in 0..6 {
            let id = upstreams.choose(&ids, &[], now).unwrap();
            upstreams.connecting(id);
            upstreams.connected(id);
            chosen.push(id);
        }
        assert_eq!(chosen, [ids, ids].concat());
        upstreams.left(ids[1]);
        assert_eq!(upstreams.choose(&ids, &[], now), Some(ids[1]));
        assert_eq!((upstreams.active(ids[0]), upstreams.active(ids[1])), (2, 1));

        // Connections that end at once leave all counts equal; they are spread all the same.
        let (mut upstreams, ids, now) = three();
        let chosen: Vec<_> = (0..6)
            .map(|_| {
                let id = upstreams.choose(&ids, &[], now).unwrap();
                upstreams.connecting(id);
                upstreams.connected(id);
                upstreams.left(id);
                id
            })
            .collect();
        assert_eq!(chosen, [ids, ids].concat());
    }

    #[test]
    fn dials_count_as_connections() {
        let (mut upstreams, [a, b, _], now) = three();
        upstreams.connecting(a);
        assert_eq!(upstreams.choose(&[a, b], &[], now), Some(b));
        upstreams.abandoned(a);
        assert_eq!(upstreams.active(a), 0);
        assert!(!upstreams.last_dial_failed(a));
    }

    #[test]
    fn what_was_tried_is_not_tried_again() {
        let (upstreams, [a, b, c], now) = three();
        assert_eq!(upstreams.choose(&[a, b, c], &[a, b], now), Some(c));
        assert_eq!(upstreams.choose(&[a, b, c], &[a, b, c], now), None);
        assert_eq!(upstreams.choose(&[], &[], now), None);
    }

    #[test]
    fn a_failed_one_rests_longer_each_time() {
        let (mut upstreams, [a, b, _], mut now) = three();
        upstreams.connecting(b);
        for rest in [1, 2, 4, 8, 16, 30, 30] {
            dial_fails(&mut upstreams, a, now);
            assert!(upstreams.last_dial_failed(a));
            assert!(upstreams.is_resting(a, now + (S(rest) - Duration::from_nanos(1))), "{rest}");
            assert_eq!(
                upstreams.choose(&[a, b], &[], now),
                Some(b),
                "although it has more connections"
            );
            now += S(rest);
            assert!(!upstreams.is_resting(a, now), "{rest}");
            assert_eq!(upstreams.choose(&[a, b], &[], now), Some(a));
        }
        upstreams.connecting(a);
        upstreams.connected(a);
        assert!(!upstreams.last_dial_failed(a));
        dial_fails(&mut upstreams, a, now);
        assert!(!upstreams.is_resting(a, now + S(1)), "a success begins anew");
    }

    #[test]
    fn failures_within_one_rest_count_once() {
        let (mut upstreams, [a, ..], now) = three();
        for _ in 0..100 {
            upstreams.connecting(a);
        }
        for _ in 0..100 {
            upstreams.failed(a, now);
        }
        assert!(!upstreams.is_resting(a, now + S(1)));
        assert_eq!(upstreams.active(a), 0);
    }

    #[test]
    fn when_all_rest_the_first_to_wake_is_tried() {
        let (mut upstreams, ids @ [a, b, c], now) = three();
        for (id, at) in [(b, 0), (c, 100), (a, 200)] {
            dial_fails(&mut upstreams, id, now + Duration::from_millis(at));
        }
        let now = now + Duration::from_millis(300);
        assert_eq!(upstreams.choose(&ids, &[], now), Some(b));
        assert_eq!(upstreams.choose(&ids, &[b], now), Some(c));
        assert_eq!(upstreams.choose(&[a], &[], now), Some(a), "a single backend is always tried");
    }

    #[test]
    fn after_its_rest_one_client_finds_out() {
        let (mut upstreams, [a, b, _], now) = three();
        upstreams.connecting(b);
        upstreams.connected(b);
        dial_fails(&mut upstreams, a, now);
        let now = now + S(2);
        assert_eq!(upstreams.choose(&[a, b], &[], now), Some(a));
        upstreams.connecting(a);
        assert_eq!(
            upstreams.choose(&[a, b], &[], now),
            Some(b),
            "the others go where it is known to work"
        );
        upstreams.connected(a);
        upstreams.left(a);
        assert_eq!(upstreams.choose(&[a, b], &[], now), Some(a));
    }

    #[test]
    fn names_are_looked_up_and_forgotten_after_failures() {
        let (mut upstreams, [a, ..], now) = three();
        let found = vec!["[::1]:80".parse().unwrap(), "127.0.0.1:80".parse().unwrap()];
        assert_eq!(upstreams.addresses(a), Addresses::Unknown);
        upstreams.looking(a);
        assert_eq!(upstreams.addresses(a), Addresses::Looking);
        upstreams.resolved(a, Ok(found.clone()));
        assert_eq!(upstreams.addresses(a), Addresses::Known(found.clone().into()));
        upstreams.looking(a);
        assert_eq!(
            upstreams.addresses(a),
            Addresses::Known(found.clone().into()),
            "known stays known"
        );

        dial_fails(&mut upstreams, a, now);
        assert_eq!(upstreams.addresses(a), Addresses::Unknown);
        upstreams.looking(a);
        dial_fails(&mut upstreams, a, now);
        assert_eq!(upstreams.addresses(a), Addresses::Looking, "the answer under way is newer");
        upstreams.resolved(a, Err("no such name".into()));
        assert_eq!(upstreams.addresses(a), Addresses::Unknown);
        assert_eq!(upstreams.lookup_error(a), Some("no such name"));
        upstreams.resolved(a, Ok(vec![]));
        assert_eq!(upstreams.lookup_error(a), Some("its name has no address"));
        upstreams.resolved(a, Ok(found));
        assert_eq!(upstreams.lookup_error(a), None);
    }

    #[test]
    fn an_ip_address_needs_no_look_up() {
        let mut upstreams = Upstreams::new();
        let id = upstreams.intern(&BackendUrl::parse("ws://[::1]:81/").unwrap());
        let known = Addresses::Known(Rc::new(["[::1]:81".parse().unwrap()]));
        assert_eq!(upstreams.addresses(id), known);
        dial_fails(&mut upstreams, id, Moment::START);
        upstreams.looking(id);
        upstreams.resolved(id, Err("never asked".into()));
        assert_eq!(upstreams.addresses(id), known);
    }

    #[test]
    fn unused_ones_are_forgotten_but_not_under_a_connection() {
        let (mut upstreams, [a, b, c], now) = three();
        upstreams.connecting(b);
        upstreams.retain(|id| id == a);
        assert!(upstreams.is_known(a) && upstreams.is_known(b) && !upstreams.is_known(c));
        upstreams.resolved(c, Ok(vec!["127.0.0.1:80".parse().unwrap()]));
        assert!(!upstreams.is_known(c));
        assert_eq!(upstreams.choose(&[c], &[], now), None);
        upstreams.abandoned(b);
        upstreams.retain(|id| id == a);
        assert!(!upstreams.is_known(b));
        let again = upstreams.intern(&BackendUrl::parse("ws://c/").unwrap());
        assert_ne!(again, c, "an id is never used again");
    }
}
