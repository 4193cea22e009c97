//! What is on its way to one client: its order, and the memory that it takes.

use super::Underway;
use super::audio::Audio;
use crate::proto::message::{SharedResult, TaskResult};
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes that a client in the middle of a message takes: its reader, and the largest message.
const READER_BYTES: usize = 8 * 1024;

/// Whether anything follows a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    MoreFollow,
    Last,
}

impl Order {
    pub(super) fn of(result: &TaskResult) -> Order {
        if result.is_final() { Order::Last } else { Order::MoreFollow }
    }
}

impl Underway {
    /// Bytes of its own memory.
    pub(super) fn own_bytes(&self) -> usize {
        let reader = self.reader.as_ref().map_or(0, |_| READER_BYTES);
        let audio = self.audio.as_ref().map_or(0, Audio::own_bytes);
        size_of::<Underway>() + self.outbox.own_bytes() + reader + audio
    }

    /// Its part of the results that it shares with other clients.
    pub(super) fn shared_bytes(&self) -> usize {
        let part = |one: &SharedResult| one.bytes() / Rc::strong_count(one);
        self.results.iter().map(part).sum::<usize>() + self.outbox.shared_bytes()
    }

    pub(super) fn pop_result(&mut self) -> Option<SharedResult> {
        let result = self.results.pop_front()?;
        if self.results.is_empty() {
            self.drop_results(); // also releases the capacity
        } else {
            self.result_bytes -= result.bytes();
        }
        Some(result)
    }

    /// Whether a result is still to be sent, here or in the queue of the bus.
    pub(super) fn has_more(&self) -> bool {
        self.more_queued || !self.results.is_empty()
    }

    pub(super) fn drop_results(&mut self) {
        (self.results, self.result_bytes) = (VecDeque::new(), 0);
    }

    /// Nothing is on its way.
    pub(super) fn is_over(&self) -> bool {
        self.results.is_empty()
            && self.audio.is_none()
            && self.resume.is_over()
            && self.final_end.is_none()
            && self.fault.is_none()
            && self.leaving.is_none()
            && self.outbox.is_empty()
            && self.reader.is_none()
    }
}
