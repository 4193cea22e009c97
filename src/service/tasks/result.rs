//! One result as it is known here.

use std::rc::Rc;

use super::RESULT_COST;
use crate::base::sequence::Ticket;

/// One result.
#[derive(Debug)]
pub(super) struct KnownResult {
    pub(super) hash: u64,
    /// What Redis stored before this moment is older: microseconds of its clock.
    pub(super) since: u64,
    /// `None` once it is gone. The rest stays as long as the task, so that the result is recognised
    /// when it comes again.
    pub(super) payload: Option<Rc<[u8]>>,
    /// See [`KnownResult::origin`]. Not a [`ResultOrigin`], which would take more room.
    pub(super) subscription: u32,
    pub(super) source: ResultSource,
    /// Tells it from the others of its task. Numbers wrap around long after the first ones are
    /// gone.
    pub(super) number: u32,
    /// Its `result_id`: greater than that of the one before it.
    pub(super) id: u32,
    /// Every client that waited has been given it.
    pub(super) is_dispatched: bool,
    /// There was no room to retain it: it is gone once it is dispatched.
    pub(super) is_passing: bool,
    /// Its audio grows: it is retained, and not in the queue of those that may go.
    pub(super) is_held: bool,
    /// Its place among all retained results.
    pub(super) ticket: Option<Ticket>,
}

/// What clients get of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResultContent {
    /// What the worker published.
    Published(Rc<[u8]>),
    /// Audio that the gateway received, in a file of its own.
    Speech,
}

/// How a result became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResultOrigin {
    /// The subscription of this number heard it.
    Published(u32),
    /// Redis keeps it, and no subscription of this gateway heard it.
    Kept,
    /// The worker has set it, and has not published it yet.
    Set,
}

/// A [`ResultOrigin`] without its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResultSource {
    Published,
    Kept,
    Set,
    /// The gateway receives it. Its payload is empty, and its audio in a file.
    Speech,
}

impl KnownResult {
    pub(super) fn new(
        number: u32,
        id: u32,
        hash: u64,
        origin: ResultOrigin,
        since: u64,
    ) -> KnownResult {
        let mut result = KnownResult {
            hash,
            since,
            payload: None,
            subscription: 0,
            source: ResultSource::Kept,
            number,
            id,
            is_dispatched: false,
            is_passing: false,
            is_held: false,
            ticket: None,
        };
        result.set_origin(origin);
        result
    }

    /// What clients get of it, while there is anything.
    pub(super) fn content(&self) -> Option<ResultContent> {
        let payload = self.payload.as_ref()?;
        Some(match self.source {
            ResultSource::Speech => ResultContent::Speech,
            ResultSource::Published | ResultSource::Kept | ResultSource::Set => {
                ResultContent::Published(Rc::clone(payload))
            }
        })
    }

    pub(super) fn origin(&self) -> ResultOrigin {
        match self.source {
            // It has its place among what was heard at the same time.
            ResultSource::Published | ResultSource::Speech => {
                ResultOrigin::Published(self.subscription)
            }
            ResultSource::Kept => ResultOrigin::Kept,
            ResultSource::Set => ResultOrigin::Set,
        }
    }

    pub(super) fn set_origin(&mut self, origin: ResultOrigin) {
        (self.source, self.subscription) = match origin {
            ResultOrigin::Published(subscription) => (ResultSource::Published, subscription),
            ResultOrigin::Kept => (ResultSource::Kept, 0),
            ResultOrigin::Set => (ResultSource::Set, 0),
        };
    }
}

/// What was left of a result.
pub(super) struct GoneResult {
    pub(super) number: u32,
    pub(super) id: u32,
    pub(super) source: ResultSource,
    /// Of what the worker published.
    pub(super) bytes: usize,
    pub(super) is_passing: bool,
    pub(super) is_held: bool,
    pub(super) ticket: Option<Ticket>,
}

impl GoneResult {
    /// Takes what is left of a result; `None`: nothing is.
    pub(super) fn take(one: &mut KnownResult) -> Option<GoneResult> {
        let bytes = one.payload.take()?.len();
        Some(GoneResult {
            number: one.number,
            id: one.id,
            source: one.source,
            bytes,
            is_passing: std::mem::take(&mut one.is_passing),
            is_held: std::mem::take(&mut one.is_held),
            ticket: one.ticket.take(),
        })
    }

    /// What it cost without its speech.
    pub(super) fn cost(&self) -> usize {
        RESULT_COST + self.bytes
    }
}
