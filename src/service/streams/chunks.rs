//! Where the chunks of a stream begin and end.
//!
//! All clients of a stream see the same chunks, also one that returns for the rest of them, so
//! their lengths are kept as long as the stream. Speech comes in pieces of one length, mostly:
//! lengths are kept as runs, and an hour of 20 ms chunks takes a few bytes.

#![expect(clippy::indexing_slicing, reason = "positions come from the same buffer")]

/// The lengths of a stream's chunks, in order.
#[derive(Debug, Default)]
pub struct Chunks {
    /// Every run but the last: length and count, each with 7 bits a byte, the lowest first.
    runs: Vec<u8>,
    last: Run,
    count: u64,
    length: u64,
    /// Further fields of chunks, if any chunk has some.
    fields: Option<Box<ChunkFields>>,
}

/// Chunks of the same length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Run {
    length: u32,
    count: u32,
}

/// JSON text of the further fields of every chunk.
#[derive(Debug, Default)]
struct ChunkFields {
    text: String,
    /// Where those of each chunk end in `text`.
    ends: Vec<u32>,
}

/// What a client has of a stream, and what it is sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Where the run of the next chunk begins.
    run_at: usize,
    /// Chunks of that run that are in front of the next one.
    used: u32,
    chunk: u64,
    offset: u64,
    /// It has the chunks in front of this one, and the bytes in front of this one, known or not.
    from_chunk: u64,
    from_byte: u64,
}

/// A chunk, or the part of it that a client has not got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Piece {
    pub number: u64,
    /// Bytes of the stream in front of it.
    pub offset: u64,
    pub length: u32,
}

impl Cursor {
    /// For a client that has everything in front of this chunk.
    pub fn from_chunk(from_chunk: u64) -> Cursor {
        Cursor { run_at: 0, used: 0, chunk: 0, offset: 0, from_chunk, from_byte: 0 }
    }

    /// For a client that has everything in front of this byte.
    pub fn from_byte(from_byte: u64) -> Cursor {
        Cursor { from_byte, ..Cursor::from_chunk(0) }
    }

    /// The number of the next chunk.
    pub fn chunk(&self) -> u64 {
        self.chunk
    }

    /// The piece is on its way: the next one follows.
    pub fn pass(&mut self, piece: Piece) {
        self.used += 1;
        self.chunk = piece.number + 1;
        self.offset = piece.offset + u64::from(piece.length);
    }

    /// Passes over chunks of this run that the client has.
    fn skip(&mut self, run: Run) {
        let left = u64::from(run.count - self.used);
        let by_bytes = match self.from_byte.saturating_sub(self.offset) {
            0 => 0,
            bytes => bytes.checked_div(u64::from(run.length)).unwrap_or(left),
        };
        let by_number = self.from_chunk.saturating_sub(self.chunk);
        let skipped = left.min(by_bytes.max(by_number));
        self.used += skipped as u32;
        self.chunk += skipped;
        self.offset += skipped * u64::from(run.length);
    }
}

impl Chunks {
    /// Chunks.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of all chunks.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        let fields = |fields: &ChunkFields| fields.text.capacity() + size_of_val(&fields.ends[..]);
        self.runs.capacity() + self.fields.as_deref().map_or(0, fields)
    }

    /// Adds a chunk with further fields: JSON text, a comma in front of each name, or nothing.
    pub fn push(&mut self, length: u32, fields: &str) {
        if length == self.last.length && self.last.count < u32::MAX {
            self.last.count += 1;
        } else {
            if self.last.count > 0 {
                write_number(self.last.length, &mut self.runs);
                write_number(self.last.count, &mut self.runs);
            }
            self.last = Run { length, count: 1 };
        }
        if !fields.is_empty() || self.fields.is_some() {
            let known = self.fields.get_or_insert_default();
            known.ends.resize(self.count as usize, 0);
            known.text.push_str(fields);
            known.ends.push(known.text.len() as u32);
        }
        self.count += 1;
        self.length += u64::from(length);
    }

    /// Adds bytes in chunks of at most `chunk_size`.
    pub fn push_bytes(&mut self, mut bytes: u64, chunk_size: u32) {
        while bytes > 0 {
            let length = bytes.min(u64::from(chunk_size)) as u32;
            self.push(length, "");
            bytes -= u64::from(length);
        }
    }

    /// What the client is sent next; `None`: it has everything so far.
    pub fn peek(&self, cursor: &mut Cursor) -> Option<Piece> {
        loop {
            let (run, next_at) = self.run(cursor.run_at);
            if cursor.from_chunk > cursor.chunk || cursor.from_byte > cursor.offset {
                cursor.skip(run);
            }
            if cursor.used < run.count {
                // A part of a chunk, where the client has bytes of it.
                let had = cursor.from_byte.saturating_sub(cursor.offset) as u32;
                let offset = cursor.offset + u64::from(had);
                return Some(Piece { number: cursor.chunk, offset, length: run.length - had });
            }
            (cursor.run_at, cursor.used) = (next_at?, 0);
        }
    }

    /// The further fields of a chunk.
    pub fn fields(&self, number: u64) -> &str {
        let Some(fields) = self.fields.as_deref() else { return "" };
        let number = number as usize;
        let start = number.checked_sub(1).map_or(0, |before| fields.ends[before]);
        fields.ends.get(number).map_or("", |end| &fields.text[start as usize..*end as usize])
    }

    /// The run that begins at a place, and where the next one does.
    fn run(&self, at: usize) -> (Run, Option<usize>) {
        if at == self.runs.len() {
            return (self.last, None);
        }
        let (length, behind) = read_number(&self.runs, at);
        let (count, behind) = read_number(&self.runs, behind);
        (Run { length, count }, Some(behind))
    }
}

fn write_number(mut number: u32, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The number at a place, and the place behind it.
fn read_number(bytes: &[u8], mut at: usize) -> (u32, usize) {
    let (mut number, mut shift) = (0, 0);
    loop {
        let byte = bytes[at];
        number |= u32::from(byte & 0x7f) << shift;
        (at, shift) = (at + 1, shift + 7);
        if byte < 0x80 {
            return (number, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pieces from a cursor on: number, offset and length.
    fn pieces(chunks: &Chunks, cursor: &mut Cursor) -> Vec<(u64, u64, u32)> {
        let mut pieces = Vec::new();
        while let Some(piece) = chunks.peek(cursor) {
            assert_eq!(chunks.peek(cursor), Some(piece), "a look changes nothing");
            cursor.pass(piece);
            pieces.push((piece.number, piece.offset, piece.length));
        }
        pieces
    }

    fn of(lengths: &[u32]) -> Chunks {
        let mut chunks = Chunks::default();
        lengths.iter().for_each(|length| chunks.push(*length, ""));
        chunks
    }

    #[test]
    fn every_client_sees_the_same_chunks_from_wherever_it_resumes() {
        let lengths = [960, 960, 960, 5, 70_000, 70_000, 1, 960, 1, 1, 128, 127];
        let chunks = of(&lengths);
        let all = pieces(&chunks, &mut Cursor::from_chunk(0));
        let expected: Vec<(u64, u64, u32)> = (0..lengths.len())
            .map(|n| (n as u64, lengths[..n].iter().map(|it| u64::from(*it)).sum(), lengths[n]))
            .collect();
        assert_eq!(all, expected);
        assert_eq!(
            (chunks.count(), chunks.length()),
            (12, lengths.iter().map(|n| u64::from(*n)).sum())
        );
        for from in 0..=lengths.len() + 2 {
            let rest = pieces(&chunks, &mut Cursor::from_chunk(from as u64));
            assert_eq!(rest, all[from.min(all.len())..], "from chunk {from}");
        }
        for from in (0..4000).chain(72_000..73_000).chain(140_000..chunks.length() + 3) {
            let rest = pieces(&chunks, &mut Cursor::from_byte(from));
            let expected: Vec<(u64, u64, u32)> = all
                .iter()
                .filter(|(_, offset, length)| offset + u64::from(*length) > from)
                .map(|&(number, offset, length)| {
                    let had = from.saturating_sub(offset);
                    (number, offset + had, length - had as u32)
                })
                .collect();
            assert_eq!(rest, expected, "from byte {from}");
        }
    }

    #[test]
    fn a_cursor_goes_on_when_chunks_are_added_at_any_time() {
        let lengths = [3, 3, 7, 7, 7, 2, 3];
        for before in 0..=lengths.len() {
            let mut chunks = of(&lengths[..before]);
            let mut cursor = Cursor::from_chunk(0);
            let mut seen = pieces(&chunks, &mut cursor);
            for length in &lengths[before..] {
                chunks.push(*length, "");
                seen.extend(pieces(&chunks, &mut cursor));
            }
            assert_eq!(seen, pieces(&of(&lengths), &mut Cursor::from_chunk(0)), "{before} at once");
        }
    }

    #[test]
    fn what_the_client_has_already_is_left_out_when_it_comes() {
        let mut chunks = of(&[10]);
        let (mut by_chunk, mut by_byte) = (Cursor::from_chunk(2), Cursor::from_byte(25));
        assert_eq!(chunks.peek(&mut by_chunk), None);
        assert_eq!(chunks.peek(&mut by_byte), None);
        (0..3).for_each(|_| chunks.push(10, ""));
        assert_eq!(pieces(&chunks, &mut by_chunk), [(2, 20, 10), (3, 30, 10)]);
        assert_eq!(pieces(&chunks, &mut by_byte), [(2, 25, 5), (3, 30, 10)]);
    }

    #[test]
    fn bytes_are_cut_into_chunks_of_the_largest_size() {
        let mut chunks = Chunks::default();
        chunks.push_bytes(0, 10);
        chunks.push_bytes(25, 10);
        chunks.push_bytes(10, 10);
        let all = pieces(&chunks, &mut Cursor::from_chunk(0));
        assert_eq!(all, [(0, 0, 10), (1, 10, 10), (2, 20, 5), (3, 25, 10)]);
    }

    #[test]
    fn an_hour_of_equal_chunks_takes_a_few_bytes() {
        let mut chunks = of(&[44]);
        (0..180_000).for_each(|_| chunks.push(960, ""));
        chunks.push(100, "");
        assert!(chunks.bytes() <= 64, "{} bytes", chunks.bytes());
    }

    #[test]
    fn fields_belong_to_their_chunk() {
        let mut chunks = of(&[1, 1]);
        chunks.push(1, r#","viseme":{"a":1}"#);
        chunks.push(1, "");
        chunks.push(0, r#","viseme":2"#);
        let fields: Vec<&str> = (0..6).map(|number| chunks.fields(number)).collect();
        assert_eq!(fields, ["", "", r#","viseme":{"a":1}"#, "", r#","viseme":2"#, ""]);
        assert_eq!(of(&[1]).fields(0), "");
    }
}
