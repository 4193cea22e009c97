//! A map keyed by UUID that costs little more than its entries: a slab, and a hash table of slot
//! numbers.
//!
//! A `HashMap` would cost up to twice the size of its entries, because a hash table is half empty
//! after it has grown. Here the hash table holds only four bytes an entry. A slab that has grown
//! costs nothing behind its last entry, because untouched pages are not resident. And an entry
//! keeps its slot for as long as it lives, so that other structures can refer to it with four
//! bytes.

#![expect(clippy::indexing_slicing, reason = "slots and positions come from the structure itself")]

use hashbrown::HashTable;
use slab::Slab;
use std::hash::{BuildHasher, RandomState};
use std::ops::{Index, IndexMut};
use uuid::Uuid;

/// Unused slots are released once the number of entries has halved, from this number up.
const SHRINK_MIN: usize = 1024;

/// Initial capacity of a slab, in bytes. An allocator maps a block of this size or more on its own,
/// so that only touched pages are resident and the block can grow in place. A smaller slab would be
/// copied as it grows, and leave holes in the heap.
const FIRST_BYTES: usize = 256 * 1024;

/// Initial capacity of a slab whose entries are `T`: at least `FIRST_BYTES`, for a block that is
/// a few bytes smaller would be part of the heap.
pub const fn first_capacity<T>() -> usize {
    FIRST_BYTES.div_ceil(size_of::<T>())
}

/// The place of an entry until it is removed. Another entry may have it later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

/// A map keyed by UUID, whose entries keep their slots.
#[derive(Debug)]
pub struct Table<T> {
    entries: Slab<(Uuid, T)>,
    slots: HashTable<Slot>,
    /// Randomly keyed, because the UUIDs come from outside.
    hashes: RandomState,
    /// The highest number of entries since memory was last released.
    peak: usize,
}

impl<T> Table<T> {
    /// An empty table that need not be copied while it grows.
    pub fn new() -> Table<T> {
        let entries = Slab::with_capacity(first_capacity::<(Uuid, T)>());
        Table { entries, slots: HashTable::new(), hashes: RandomState::new(), peak: 0 }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The slot of `id`, if it has an entry.
    pub fn find(&self, id: Uuid) -> Option<Slot> {
        self.slots.find(self.hashes.hash_one(id), |slot| self.id(*slot) == id).copied()
    }

    /// The slot of `id`. If it has no entry, inserts one.
    pub fn find_or_insert_with(&mut self, id: Uuid, entry: impl FnOnce() -> T) -> Slot {
        if let Some(slot) = self.find(id) {
            return slot;
        }
        let Table { entries, slots, hashes, peak } = self;
        let slot = Slot(entries.insert((id, entry())) as u32);
        slots.insert_unique(hashes.hash_one(id), slot, |slot| {
            hashes.hash_one(entries[slot.0 as usize].0)
        });
        *peak = entries.len().max(*peak);
        slot
    }

    /// The entry of `id`, if there is one.
    pub fn entry(&self, id: Uuid) -> Option<&T> {
        self.find(id).map(|slot| &self[slot])
    }

    /// The entry of `id`, if there is one.
    pub fn entry_mut(&mut self, id: Uuid) -> Option<&mut T> {
        self.find(id).map(|slot| &mut self[slot])
    }

    /// The key of the entry in `slot`.
    ///
    /// # Panics
    /// When the slot is empty.
    pub fn id(&self, slot: Slot) -> Uuid {
        self.entries[slot.0 as usize].0
    }

    /// Removes the entry in `slot`. Releases the memory behind the last entry when the number of
    /// entries has halved since the peak.
    ///
    /// # Panics
    /// When the slot is empty.
    pub fn remove(&mut self, slot: Slot) -> T {
        let (id, entry) = self.entries.remove(slot.0 as usize);
        let Ok(found) = self.slots.find_entry(self.hashes.hash_one(id), |one| *one == slot) else {
            unreachable!("each entry's slot is in the table");
        };
        found.remove();
        if self.peak >= SHRINK_MIN && self.len() <= self.peak / 2 {
            self.peak = self.len();
            self.entries.shrink_to_fit();
            self.slots.shrink_to_fit(|slot| self.hashes.hash_one(self.entries[slot.0 as usize].0));
        }
        entry
    }

    /// Every entry whose place is `place` or a later one, with its place. A walk over all entries
    /// can pause: an entry keeps its place for as long as it lives.
    pub fn iter_from(&self, place: usize) -> impl Iterator<Item = (usize, Uuid, &T)> {
        let entry = |place: usize| {
            let (id, entry) = self.entries.get(place)?;
            Some((place, *id, entry))
        };
        (place..self.entries.capacity()).filter_map(entry)
    }
}

/// # Panics
/// When the slot is empty.
impl<T> Index<Slot> for Table<T> {
    type Output = T;

    fn index(&self, slot: Slot) -> &T {
        &self.entries[slot.0 as usize].1
    }
}

impl<T> IndexMut<Slot> for Table<T> {
    fn index_mut(&mut self, slot: Slot) -> &mut T {
        &mut self.entries[slot.0 as usize].1
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn id(number: usize) -> Uuid {
        Uuid::from_u128(number as u128)
    }

    #[test]
    fn behaves_like_a_map() {
        let (mut table, mut map, mut chance) =
            (Table::new(), HashMap::new(), fastrand::Rng::with_seed(7));
        for round in 0..20_000 {
            // Grows beyond the size from which it shrinks, then shrinks.
            let ids = if round < 10_000 { 4 * SHRINK_MIN } else { 16 };
            let id = id(chance.usize(..ids));
            match chance.u32(..4) {
                0 => assert_eq!(table.find(id).map(|slot| table.remove(slot)), map.remove(&id)),
                1 => assert_eq!(table.entry(id), map.get(&id)),
                2 => {
                    if let Some(value) = table.entry_mut(id) {
                        *value = round;
                    }
                    map.entry(id).and_modify(|value| *value = round);
                }
                _ => {
                    let slot = table.find_or_insert_with(id, || round);
                    assert_eq!(
                        (table.id(slot), table[slot]),
                        (id, *map.entry(id).or_insert(round))
                    );
                }
            }
            assert_eq!((table.len(), table.is_empty()), (map.len(), map.is_empty()));
        }
        let all = table.iter_from(0).map(|(_, id, value)| (id, *value));
        assert_eq!(all.collect::<HashMap<_, _>>(), map);
    }

    #[test]
    fn an_entry_keeps_its_slot() {
        let mut table = Table::new();
        let slots: Vec<Slot> =
            (0..5000).map(|number| table.find_or_insert_with(id(number), || number)).collect();
        for number in (0..5000).filter(|number| number % 100 != 0) {
            assert_eq!(table.remove(slots[number]), number);
        }
        for number in (0..5000).step_by(100) {
            assert_eq!(
                (table.find(id(number)), table[slots[number]]),
                (Some(slots[number]), number)
            );
        }
    }

    #[test]
    fn memory_is_released_after_most_entries_are_removed() {
        let mut table = Table::new();
        let slots: Vec<Slot> =
            (0..50_000).map(|number| table.find_or_insert_with(id(number), || number)).collect();
        slots.iter().rev().for_each(|slot| _ = table.remove(*slot));
        assert!(table.is_empty());
        assert!(table.entries.capacity() < SHRINK_MIN && table.slots.capacity() < SHRINK_MIN);
    }
}
