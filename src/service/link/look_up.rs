//! A look-up of what Redis keeps of a task, reply by reply.

use redis::Value;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::LookUpAnswer;
use super::index::{IndexEntry, entries};
use crate::proto::resp;
use crate::service::tasks::{KeptResult, Subscription};

/// A look-up of one task, which takes several commands.
pub(super) struct LookUp {
    pub(super) task: Uuid,
    /// By which the task was heard when Redis was asked.
    pub(super) subscription: Option<Subscription>,
    /// The results that are kept, in order.
    pub(super) entries: Vec<IndexEntry>,
    /// Payloads of the first of these, `None` for one that has vanished.
    pub(super) payloads: Vec<Option<Vec<u8>>>,
    /// The `result_id` of the next result.
    pub(super) next_id: u32,
    /// What workers have set, and ends of audio files that are kept.
    pub(super) set: Vec<Vec<u8>>,
    pub(super) is_incomplete: bool,
    /// Replies that are to come.
    pub(super) awaited: usize,
}

impl LookUp {
    pub(super) fn new(task: Uuid, subscription: Option<Subscription>) -> LookUp {
        LookUp {
            task,
            subscription,
            entries: Vec::new(),
            payloads: Vec::new(),
            next_id: 0,
            set: Vec::new(),
            is_incomplete: false,
            awaited: 0,
        }
    }

    /// The first reply: the index, and the payloads of the first fields.
    pub(super) fn take_index(&mut self, reply: Value) {
        let mut values = strings(reply);
        let index = values.next().flatten().unwrap_or_default();
        self.is_incomplete = values.next().flatten().is_some();
        let numbers = values.next().flatten().unwrap_or_default();
        let ends = values.next().flatten().unwrap_or_default();
        // One a line, as if the worker had set them.
        let ends = ends.split(|byte| *byte == b'\n').filter(|end| !end.is_empty());
        self.set.extend(ends.map(<[u8]>::to_vec));
        let first: Vec<Option<Vec<u8>>> = values.collect();
        (self.entries, self.next_id) = entries(&index, &numbers);
        // The payloads are those of the fields 0000, 0001 and so on, which may not be the first in
        // the index.
        for entry in &self.entries {
            let nth = str::from_utf8(&entry.field).ok().and_then(|name| name.parse::<usize>().ok());
            match nth.and_then(|nth| first.get(nth)) {
                Some(payload) => self.payloads.push(payload.clone()),
                None => break,
            }
        }
    }

    /// What workers have set.
    pub(super) fn take_set(&mut self, reply: Value) {
        self.set.extend(strings(reply).flatten());
    }

    pub(super) fn take_page(&mut self, reply: Value) {
        let before = self.payloads.len();
        let missing = self.entries.len() - before;
        self.payloads.extend(strings(reply).take(missing));
        if self.payloads.len() == before {
            // An error, or nothing: asking again would go on forever.
            self.entries.truncate(before);
            self.is_incomplete = true;
        }
    }

    /// What was found. A payload that is not what its entry says belongs to a task of the same id
    /// that began anew meanwhile.
    pub(super) fn answer(self) -> LookUpAnswer {
        let mut kept = Vec::new();
        for (entry, payload) in self.entries.into_iter().zip(self.payloads) {
            if let Some(payload) = payload.filter(|payload| xxh3_64(payload) == entry.hash) {
                kept.push(KeptResult { stored_at: entry.stored_at, id: entry.id, payload });
            }
        }
        let LookUp { task, subscription, next_id, set, is_incomplete, .. } = self;
        LookUpAnswer { task, subscription, kept, next_id, set, is_incomplete }
    }
}

/// The strings of an array, `None` for nil. Nothing for any other reply.
fn strings(reply: Value) -> impl Iterator<Item = Option<Vec<u8>>> {
    let items = match reply {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    items.into_iter().map(|item| resp::bytes(Some(item)))
}
