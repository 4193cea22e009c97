//! What is known by a UUID, at little more than its own size: slots in a row, and a table of their numbers.
//!
//! The surprising thing is why a `HashMap` will not do. A hash table is never full, and half empty after it has grown: each byte
//! of an entry costs up to two. Here only four bytes of each stand in such a table. A row of slots that has grown costs nothing
//! beyond its last entry, because memory that nobody has written to is not there. And an entry keeps its slot for as long as it
//! is in, so that others may remember it by four bytes.

use hashbrown::HashTable;
use slab::Slab;
use std::hash::{BuildHasher, RandomState};
use std::ops::{Index, IndexMut};
use uuid::Uuid;

/// Of a crowd of so many or more it is noticed when half of it has left.
const CROWD_MIN: usize = 1024;

/// Bytes that a row of slots is given before its first entry. An allocator maps pieces so large by themselves, so that they cost
/// what was written to, and grow where they are. A smaller row would be copied as it grows, and leave its former places behind as
/// holes between what was made meanwhile.
pub const FIRST_BYTES: usize = 256 * 1024;

/// Where an entry stands, until it is removed; another one may stand there later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

/// See the top of this file.
#[derive(Debug)]
pub struct Table<T> {
    entries: Slab<(Uuid, T)>,
    slots: HashTable<Slot>,
    /// Keyed by chance: it is strangers who choose the UUIDs.
    hashes: RandomState,
    /// The most entries at a time since the memory of those that had left was last given back.
    crowd: usize,
}

impl<T> Table<T> {
    /// With [`FIRST_BYTES`] of room for entries.
    pub fn new() -> Table<T> {
        let entries = Slab::with_capacity(FIRST_BYTES / size_of::<(Uuid, T)>());
        Table { entries, slots: HashTable::new(), hashes: RandomState::new(), crowd: 0 }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where the entry of `id` stands, if there is one.
    pub fn find(&self, id: Uuid) -> Option<Slot> {
        self.slots.find(self.hashes.hash_one(id), |slot| self.id(*slot) == id).copied()
    }

    /// Where the entry of `id` stands; a new one, if there is none.
    pub fn find_or_insert_with(&mut self, id: Uuid, entry: impl FnOnce() -> T) -> Slot {
        if let Some(slot) = self.find(id) {
            return slot;
        }
        let Table { entries, slots, hashes, crowd } = self;
        let slot = Slot(entries.insert((id, entry())) as u32);
        slots.insert_unique(hashes.hash_one(id), slot, |slot| {
            hashes.hash_one(entries[slot.0 as usize].0)
        });
        *crowd = entries.len().max(*crowd);
        slot
    }

    pub fn entry(&self, id: Uuid) -> Option<&T> {
        self.find(id).map(|slot| &self[slot])
    }

    pub fn entry_mut(&mut self, id: Uuid) -> Option<&mut T> {
        self.find(id).map(|slot| &mut self[slot])
    }

    /// Whose entry stands there.
    ///
    /// # Panics
    /// When none does.
    pub fn id(&self, slot: Slot) -> Uuid {
        self.entries[slot.0 as usize].0
    }

    /// Takes the entry out. When half of a crowd has left, the memory behind the last entry is given back.
    ///
    /// # Panics
    /// When there is none.
    pub fn remove(&mut self, slot: Slot) -> T {
        let (id, entry) = self.entries.remove(slot.0 as usize);
        let Ok(found) = self.slots.find_entry(self.hashes.hash_one(id), |one| *one == slot) else {
            unreachable!("each entry's slot is in the table");
        };
        found.remove();
        if self.crowd >= CROWD_MIN && self.len() <= self.crowd / 2 {
            self.crowd = self.len();
            self.entries.shrink_to_fit();
            self.slots.shrink_to_fit(|slot| self.hashes.hash_one(self.entries[slot.0 as usize].0));
        }
        entry
    }

    /// Every entry, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Uuid, &T)> {
        self.entries.iter().map(|(_, (id, entry))| (*id, entry))
    }
}

/// # Panics
/// When no entry stands there.
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
    fn it_is_as_a_map_would_be() {
        let (mut table, mut map, mut chance) =
            (Table::new(), HashMap::new(), fastrand::Rng::with_seed(7));
        for round in 0..20_000 {
            // Up to a crowd, and down again.
            let ids = if round < 10_000 { 4 * CROWD_MIN } else { 16 };
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
        assert_eq!(table.iter().map(|(id, value)| (id, *value)).collect::<HashMap<_, _>>(), map);
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
    fn a_crowd_that_left_leaves_no_memory_behind() {
        let mut table = Table::new();
        let slots: Vec<Slot> =
            (0..50_000).map(|number| table.find_or_insert_with(id(number), || number)).collect();
        slots.iter().rev().for_each(|slot| _ = table.remove(*slot));
        assert!(table.is_empty());
        assert!(table.entries.capacity() < CROWD_MIN && table.slots.capacity() < CROWD_MIN);
    }
}
