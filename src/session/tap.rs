//! What happens on connections, for those that follow live frames.
//!
//! The transcript has one check, which the debug log needs anyway: the level of the log. While
//! someone follows, that level is raised, so that events are made; the logger compares with a
//! level of its own and drops them. While no one follows, this costs nothing.
//!
//! Events are noted where there is no [`Context`](super::Context), so they wait here until the end
//! of the turn, when the gateway adds the time and the task and hands them out.

use super::SessionId;
use crate::service::trust::Client;
use log::{Level, LevelFilter, Metadata};
use serde_json::{Map, Value};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};

/// Bytes of a payload that are shown.
pub const PAYLOAD_BYTES_MAX: usize = 4096;

/// Events of one turn that are kept. A turn can have more: a read may hold thousands of frames.
const NOTED_MAX: usize = 4096;

static IS_TAPPED: AtomicBool = AtomicBool::new(false);

/// Somebody follows payloads too.
static SHOWS_PAYLOAD: AtomicBool = AtomicBool::new(false);

/// By the thread of their gateway: in tests, several run in one process.
static NOTED: Mutex<Vec<(ThreadId, Noted)>> = Mutex::new(Vec::new());

/// Events that were not kept.
static LOST: AtomicU64 = AtomicU64::new(0);

/// One event.
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Noted {
    pub session: Option<SessionId>,
    pub id: String,
    pub route: Option<Box<str>>,
    pub client: Option<Client>,
    /// What happened, as fields of JSON.
    pub what: Map<String, Value>,
    /// The frame's payload as a field of JSON.
    pub payload: Option<(&'static str, String)>,
}

/// Somebody follows. Called again while that is so: a reload sets the level of the log.
pub fn begin() {
    IS_TAPPED.store(true, Ordering::Relaxed);
    if log::max_level() < LevelFilter::Debug {
        log::set_max_level(LevelFilter::Debug);
    }
}

/// Nobody follows any more: the level is again what the logger takes.
pub fn end() {
    IS_TAPPED.store(false, Ordering::Relaxed);
    SHOWS_PAYLOAD.store(false, Ordering::Relaxed);
    let takes = |level: &Level| {
        log::logger().enabled(&Metadata::builder().level(*level).target("relay").build())
    };
    let level = [Level::Trace, Level::Debug, Level::Info, Level::Warn, Level::Error];
    let level = level.iter().find(|level| takes(level));
    log::set_max_level(level.map_or(LevelFilter::Off, Level::to_level_filter));
    drop(take());
}

/// Whether live frames are followed.
pub fn is_open() -> bool {
    IS_TAPPED.load(Ordering::Relaxed)
}

/// From now on, payloads are kept, or are not.
pub fn set_payload(shows: bool) {
    SHOWS_PAYLOAD.store(shows, Ordering::Relaxed);
}

/// Whether somebody follows payloads.
pub fn shows_payload() -> bool {
    SHOWS_PAYLOAD.load(Ordering::Relaxed)
}

/// Keeps an event, which `make` makes, until the end of the turn.
pub(super) fn keep(make: impl FnOnce() -> Noted) {
    let mut all = NOTED.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() >= NOTED_MAX {
        LOST.fetch_add(1, Ordering::Relaxed);
    } else {
        all.push((thread::current().id(), make()));
    }
}

/// What was kept for the gateway of this thread, and how many events were not.
pub fn take() -> (Vec<Noted>, u64) {
    let own = thread::current().id();
    let mut all = NOTED.lock().unwrap_or_else(PoisonError::into_inner);
    let (ours, others) = std::mem::take(&mut *all).into_iter().partition(|(of, _)| *of == own);
    *all = others;
    let ours: Vec<(ThreadId, Noted)> = ours;
    (ours.into_iter().map(|(_, noted)| noted).collect(), LOST.swap(0, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::super::Identity;
    use super::super::transcript::{Event, Subject, note};
    use super::*;
    use crate::net::Side;
    use crate::proto::ws::{FrameHead, Opcode};
    use serde_json::json;

    #[test]
    fn events_are_kept_while_somebody_follows() {
        let who = Identity::of_client();
        let head = FrameHead::of_message(Opcode::Text, 5);
        let frame = || Event::Frame { to: Side::Upstream, head: &head };
        note(&who, frame);
        assert!(take().0.is_empty(), "nobody follows");
        begin();
        note(&who, frame);
        note(Subject::Probe(3), || Event::Connected);
        let (noted, lost) = take();
        assert_eq!((noted.len(), lost), (2, 0));
        let expected = json!({
            "from": "client", "to": "backend", "opcode": "text", "length": 5, "fin": true,
        });
        assert_eq!((&*noted[0].id, Value::Object(noted[0].what.clone())), ("http_1", expected));
        assert_eq!(noted[1].id, "probe_3");
        assert_eq!(noted[1].what["text"], "= connected to backend");
        (0..NOTED_MAX + 3).for_each(|_| note(&who, frame));
        let (noted, lost) = take();
        assert_eq!((noted.len(), lost), (NOTED_MAX, 3));
        end();
        note(&who, frame);
        assert!(take().0.is_empty());
    }
}
