//! Writes chunks to the files of their streams.
//!
//! A file may take a chunk at once. What it does not take goes to the next job of a background
//! thread, with what waits for other files, and clients get the chunk once it is written. Chunks
//! that come behind it go the same way, so that clients get them in order.

use super::{IncomingSpeeches, SpeechFile, SpeechPart, SpeechRefusal, WaitingAudio, find};
use crate::net;
use crate::net::files::spool::{SpoolWrites, SpoolWritten};
use crate::session::Context;
use crate::session::jobs::FileJob;

/// Chunks for which there is room while nothing waits.
const KEPT_CHUNKS: usize = 64;

/// What background threads have to write. One job is under way at a time.
#[derive(Default)]
pub(super) struct Writing {
    /// The bytes for the next job, and the chunks that they complete.
    next: SpoolWrites,
    next_chunks: Vec<QueuedChunk>,
    /// What the job under way writes; nothing if there is none.
    under_way: Vec<QueuedChunk>,
    /// A block that is empty.
    spare: SpoolWrites,
}

/// A chunk whose last bytes, or all of them, are to be written.
pub(super) struct QueuedChunk {
    part: SpeechPart,
    length: u32,
    /// Of its bytes, those that are to be written.
    left: u32,
    fields: Box<str>,
}

impl QueuedChunk {
    /// The memory that it takes.
    fn cost(&self) -> usize {
        size_of::<QueuedChunk>() + self.left as usize + self.fields.len()
    }
}

impl IncomingSpeeches {
    /// Whether something waits for a background thread, and none is at work.
    #[inline]
    pub fn can_write(&self) -> bool {
        !self.writing.next_chunks.is_empty() && self.writing.under_way.is_empty()
    }

    /// What waits for a background thread goes there, unless one is at work.
    pub fn begin_write(&mut self) -> Option<FileJob> {
        if !self.can_write() {
            return None;
        }
        let Writing { next, next_chunks, under_way, spare } = &mut self.writing;
        std::mem::swap(next_chunks, under_way);
        Some(FileJob::WriteSpool(std::mem::replace(next, std::mem::take(spare))))
    }
}

impl Context {
    /// A background thread has written to files.
    pub fn handle_spool_written(&mut self, written: SpoolWritten) {
        let SpoolWritten { outcomes, block } = written;
        self.speech.writing.spare = block;
        let mut chunks = std::mem::take(&mut self.speech.writing.under_way);
        for (chunk, outcome) in chunks.drain(..).zip(outcomes) {
            self.speech.release(chunk.cost());
            let part = chunk.part;
            let speech = self.speech.speech(part);
            // Of a stream that was dropped nothing more is taken.
            let Some((speech, begun)) = speech.and_then(|it| it.begun.map(|begun| (it, begun)))
            else {
                continue;
            };
            speech.unwritten -= 1;
            let is_ending = speech.unwritten == 0 && speech.end.is_some();
            let refusal = match outcome {
                Ok(()) => {
                    self.streams.append(self.now, begun.id, chunk.length, &chunk.fields);
                    is_ending.then(|| self.advance(part.task)).and_then(Result::err)
                }
                Err(error) => Some(self.drop_for_error(part, &error)),
            };
            if let Some(refusal) = refusal {
                self.tell(part.task, refusal);
            }
        }
        chunks.shrink_to(KEPT_CHUNKS);
        self.speech.writing.under_way = chunks;
        if self.speech.take_drained() {
            net::give_memory_back();
        }
    }

    /// Writes a chunk to the file of its stream, which clients get.
    pub(super) fn write_chunk(
        &mut self,
        part: SpeechPart,
        bytes: &[u8],
        fields: Box<str>,
    ) -> Result<(), SpeechRefusal> {
        let IncomingSpeeches { by_task, writing, .. } = &mut self.speech;
        let Some(speech) = find(by_task, part) else { return Ok(()) };
        let (SpeechFile::Open(file), Some(begun)) = (&speech.file, speech.begun) else {
            return Ok(());
        };
        // Clients get no chunk before the ones in front of it.
        let written = if speech.unwritten > 0 { Ok(0) } else { file.write(bytes, speech.placed) };
        let written = match written {
            Ok(written) => written,
            Err(error) => return Err(self.drop_for_error(part, &error)),
        };
        speech.placed += written as u64;
        let (rest, length) = (bytes.get(written..).unwrap_or_default(), bytes.len() as u32);
        if rest.is_empty() && speech.unwritten == 0 {
            self.streams.append(self.now, begun.id, length, &fields);
            return Ok(());
        }
        writing.next.push(file, speech.placed, rest);
        speech.placed += rest.len() as u64;
        speech.unwritten += 1;
        let queued = QueuedChunk { part, length, left: rest.len() as u32, fields };
        let cost = queued.cost();
        writing.next_chunks.push(queued);
        self.speech.hold(cost);
        Ok(())
    }

    /// Writes what came before clients got the stream.
    pub(super) fn write_waiting(&mut self, part: SpeechPart) -> Result<(), SpeechRefusal> {
        let waiting = self.speech.speech(part).and_then(|speech| {
            let bytes = speech.waiting_bytes();
            Some((speech.waiting.take()?, bytes))
        });
        let Some((waiting, held)) = waiting else { return Ok(()) };
        self.speech.release(held);
        let WaitingAudio { bytes, chunks, .. } = *waiting;
        let mut rest = &bytes[..];
        for (length, fields) in chunks {
            let (chunk, behind) = rest.split_at_checked(length as usize).unwrap_or((rest, &[]));
            rest = behind;
            self.write_chunk(part, chunk, fields)?;
        }
        Ok(())
    }
}
