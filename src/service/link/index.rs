//! The index of the results that Redis keeps of a task, as `keep.lua` writes it.

/// An entry of the index that `keep.lua` writes.
pub(super) struct IndexEntry {
    pub(super) hash: u64,
    pub(super) stored_at: u64,
    /// The `result_id`.
    pub(super) id: u32,
    pub(super) field: [u8; 4],
}

fn is_field(name: &[u8; 4]) -> bool {
    name.iter().all(u8::is_ascii_alphanumeric)
}

/// The entries of an index, in order, and the `result_id` of the next one. What the script cannot
/// have written is left out, and so is what has no payload any more.
pub(super) fn entries(index: &[u8], numbers: &[u8]) -> (Vec<IndexEntry>, u32) {
    let all = index.get(12..).unwrap_or_default().chunks_exact(36);
    let mut ids = Numbers::read(numbers);
    let mut entries = Vec::new();
    let next_place = all.len();
    for (place, entry) in all.enumerate() {
        let id = ids.at(place as u32);
        entries.extend(read_entry(entry, id));
    }
    (entries, ids.at(next_place as u32))
}

fn read_entry(entry: &[u8], id: u32) -> Option<IndexEntry> {
    Some(IndexEntry {
        hash: u64::from_str_radix(str::from_utf8(entry.get(..16)?).ok()?, 16).ok()?,
        stored_at: str::from_utf8(entry.get(16..32)?).ok()?.parse().ok()?,
        id,
        // Without a payload it is "----".
        field: entry.get(32..36)?.try_into().ok().filter(is_field)?,
    })
}

/// The numbers of the results in an index: usually their places, counted from 0. Where it is not
/// so, `keep.lua` has written a place and the number of the result there; those behind it count on.
struct Numbers {
    /// Places and their numbers, those that are asked for next at the end.
    stated: Vec<(u32, u32)>,
    next: u32,
}

impl Numbers {
    fn read(text: &[u8]) -> Numbers {
        let number = |digits: &[u8]| str::from_utf8(digits).ok()?.parse().ok();
        let stated = text.chunks_exact(20).map(|one| one.split_at(10));
        let stated = stated.filter_map(|(place, id)| Some((number(place)?, number(id)?)));
        let mut stated: Vec<(u32, u32)> = stated.collect();
        stated.sort_unstable_by(|one, other| other.cmp(one));
        Numbers { stated, next: 0 }
    }

    /// The number of the result at `place`. To be called for each place, in order.
    fn at(&mut self, place: u32) -> u32 {
        let mut id = self.next;
        while let Some(&(_, stated)) = self.stated.last().filter(|(at, _)| *at <= place) {
            id = id.max(stated);
            self.stated.pop();
        }
        self.next = id.saturating_add(1);
        id
    }
}
