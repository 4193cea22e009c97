//! Who follows live frames by `GET /events/frames`, and what waits to be sent to them.
//!
//! A follower that is slow loses lines, and learns how many; nothing waits for it. What waits for
//! the followers is charged to the memory budget.

use serde_json::json;

use crate::base::budget::{Budget, Charge};
use crate::proto::message::percent_decoded;
use crate::service::trust::Client;

/// Followers at once.
const FOLLOWERS_MAX: usize = 128;

/// Bytes that may wait for one follower.
const WAITING_BYTES_MAX: usize = 256 * 1024;

/// Which connections are followed; all where nothing is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct TapFilter {
    pub route: Option<String>,
    pub task: Option<String>,
    pub id: Option<String>,
    /// An address, with or without its port.
    pub client: Option<String>,
    /// Payloads are shown too.
    pub payload: bool,
}

/// What filters look at.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct TapSubject<'s> {
    pub id: &'s str,
    pub route: Option<&'s str>,
    pub task: Option<&'s str>,
    pub client: Option<Client>,
}

/// The followers, known by `W`.
#[derive(Debug)]
pub struct Taps<W> {
    followers: Vec<Follower<W>>,
    charge: Charge,
}

#[derive(Debug)]
struct Follower<W> {
    who: W,
    filter: TapFilter,
    /// Whole events.
    waiting: Vec<u8>,
    /// Lines since then that did not fit.
    lost: u64,
}

impl TapFilter {
    /// Reads the query of a request.
    ///
    /// # Errors
    /// A sentence, if there is anything in it that is no filter.
    pub fn read(query: &str) -> Result<TapFilter, &'static str> {
        let mut filter = TapFilter::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if name == "payload" {
                filter.payload = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err("payload is true or false"),
                };
                continue;
            }
            let place = match name {
                "route" => &mut filter.route,
                "task" => &mut filter.task,
                "id" => &mut filter.id,
                "client" => &mut filter.client,
                _ => return Err("the filters are route, task, id, client and payload"),
            };
            *place = Some(percent_decoded(value).ok_or("a value in the query is not UTF-8")?);
        }
        Ok(filter)
    }

    fn fits(&self, subject: &TapSubject<'_>) -> bool {
        let is = |wanted: &Option<String>, text: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| text == Some(wanted))
        };
        is(&self.id, Some(subject.id))
            && is(&self.route, subject.route)
            && is(&self.task, subject.task)
            && self.client.as_deref().is_none_or(|wanted| {
                let is_client = |client: Client| {
                    let ip = client.ip().map(|ip| ip.to_string());
                    client.to_string() == wanted || ip.as_deref() == Some(wanted)
                };
                subject.client.is_some_and(is_client)
            })
    }
}

impl<W: Copy + PartialEq> Taps<W> {
    /// Nobody follows. What will wait for followers is charged to `budget`.
    pub fn new(budget: &Budget) -> Taps<W> {
        Taps { followers: Vec::new(), charge: budget.charge(0) }
    }

    /// Whether nobody follows.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.followers.is_empty()
    }

    /// Whether one more may follow.
    pub fn has_room(&self) -> bool {
        self.followers.len() < FOLLOWERS_MAX
    }

    /// One more follows.
    pub fn enter(&mut self, who: W, filter: TapFilter) {
        self.followers.push(Follower { who, filter, waiting: Vec::new(), lost: 0 });
    }

    /// It follows no longer.
    pub fn leave(&mut self, who: W) {
        self.followers.retain(|follower| follower.who != who);
        self.charge.set(self.followers.iter().map(|follower| follower.waiting.capacity()).sum());
    }

    /// Those that follow.
    pub fn followers(&self) -> impl Iterator<Item = W> + '_ {
        self.followers.iter().map(|follower| follower.who)
    }

    /// Whether somebody follows payloads.
    pub fn show_payload(&self) -> bool {
        self.followers.iter().any(|follower| follower.filter.payload)
    }

    /// Something happened: `data`, one line of JSON, and the same with a payload, for those that
    /// follow payloads.
    pub fn push(&mut self, subject: &TapSubject<'_>, data: &str, with_payload: Option<&str>) {
        let mut more = 0;
        for follower in self.followers.iter_mut().filter(|one| one.filter.fits(subject)) {
            let full = with_payload.filter(|_| follower.filter.payload);
            let before = follower.waiting.capacity();
            follower.push("frame", full.unwrap_or(data));
            more += follower.waiting.capacity() - before;
        }
        self.charge.set(self.charge.bytes() + more);
    }

    /// This many further events came in too fast to be looked at.
    pub fn lose(&mut self, count: u64) {
        self.followers.iter_mut().for_each(|follower| follower.lost += count);
    }

    /// What waits for a follower; nothing waits then.
    pub fn take(&mut self, who: W) -> Option<Vec<u8>> {
        let follower = self.followers.iter_mut().find(|follower| follower.who == who)?;
        let before = follower.waiting.capacity();
        let lost = std::mem::take(&mut follower.lost);
        if lost > 0 {
            follower.write("lost", &json!({ "count": lost }).to_string());
        }
        let waiting = std::mem::take(&mut follower.waiting);
        self.charge.set(self.charge.bytes() - before);
        Some(waiting).filter(|bytes| !bytes.is_empty())
    }
}

impl<W> Follower<W> {
    fn push(&mut self, event: &str, data: &str) {
        // In order: what was lost comes before what follows it.
        if self.lost > 0 || self.waiting.len() + data.len() > WAITING_BYTES_MAX {
            self.lost += 1;
        } else {
            self.write(event, data);
        }
    }

    fn write(&mut self, event: &str, data: &str) {
        for part in ["event: ", event, "\ndata: ", data, "\n\n"] {
            self.waiting.extend_from_slice(part.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject<'s>(id: &'s str, route: &'s str, task: Option<&'s str>) -> TapSubject<'s> {
        let client = Client::Peer(std::net::SocketAddr::from(([192, 0, 2, 7], 5000)).into());
        TapSubject { id, route: Some(route), task, client: Some(client) }
    }

    #[test]
    fn filters_choose_what_is_followed() {
        let one = subject("input_1", "input", Some("7 7"));
        for (query, fits) in [
            ("", true),
            ("route=input", true),
            ("route=output", false),
            ("id=input_1&route=input", true),
            ("id=input", false),
            ("task=7%207", true),
            ("task=7", false),
            ("client=192.0.2.7", true),
            ("client=192.0.2.7:5000", true),
            ("client=192.0.2.8", false),
        ] {
            assert_eq!(TapFilter::read(query).unwrap().fits(&one), fits, "{query}");
        }
        for query in ["limit=1", "id=%ff", "payload", "payload=1"] {
            assert!(TapFilter::read(query).is_err(), "{query}");
        }
        let probe = TapSubject { id: "probe_1", route: None, task: None, client: None };
        assert!(TapFilter::default().fits(&probe));
        assert!(!TapFilter::read("client=192.0.2.7").unwrap().fits(&probe));
    }

    #[test]
    fn payloads_are_for_those_that_asked() {
        let budget = Budget::default();
        let mut taps = Taps::new(&budget);
        taps.enter(1, TapFilter::read("payload=false").unwrap());
        assert!(!taps.show_payload());
        taps.enter(2, TapFilter::read("payload=true").unwrap());
        assert!(taps.show_payload());
        taps.push(&subject("input_1", "input", None), "{1}", Some("{2}"));
        assert_eq!(taps.take(1).unwrap(), b"event: frame\ndata: {1}\n\n");
        assert_eq!(taps.take(2).unwrap(), b"event: frame\ndata: {2}\n\n");
    }

    #[test]
    fn slow_follower_loses_lines_and_learns_how_many() {
        let budget = Budget::default();
        let mut taps = Taps::new(&budget);
        taps.enter(1, TapFilter::default());
        taps.enter(2, TapFilter::read("id=other").unwrap());
        let line = format!("\"{}\"", "x".repeat(998));
        for _ in 0..300 {
            taps.push(&subject("input_1", "input", None), &line, None);
        }
        assert!((100_000..2 * WAITING_BYTES_MAX + 1).contains(&budget.held()), "{}", budget.held());
        let waited = String::from_utf8(taps.take(1).unwrap()).unwrap();
        assert_eq!(budget.held(), 0, "what waits no longer");
        assert!(waited.len() < WAITING_BYTES_MAX + 1200);
        let lines = waited.matches("event: frame\n").count();
        let lost = format!("event: lost\ndata: {{\"count\":{}}}\n\n", 300 - lines);
        assert!(lines > 200 && waited.ends_with(&lost), "{lines}");
        assert_eq!((taps.take(1), taps.take(2)), (None, None));
        taps.push(&subject("input_1", "input", None), "{}", None);
        assert_eq!(taps.take(1).unwrap(), b"event: frame\ndata: {}\n\n");
        taps.lose(2);
        assert_eq!(taps.take(2).unwrap(), b"event: lost\ndata: {\"count\":2}\n\n");
        taps.take(1).unwrap();
        taps.push(&subject("input_1", "input", None), &line, None);
        assert!(budget.held() > 0);
        taps.leave(1);
        assert_eq!(budget.held(), 0);
        assert_eq!(taps.followers().collect::<Vec<_>>(), [2]);
    }
}
