//! The part of a file that is the content of a response.
//!
//! It goes from the page cache to the socket, and is never here. What is not in memory is read by a
//! background thread, a piece at a time, and written from there.

use super::content::{SendError, Sent, Unsent};
use super::jobs::{FileJob, Job};
use super::{Context, Identity};
use crate::net::files::{FileBytes, FileState};
use crate::net::{Conn, OpenFile};
use std::io::{self, ErrorKind};
use std::ops::Range;

/// Bytes that a background thread reads at once.
const READ_BYTES: u64 = 64 * 1024;

/// A range of a file that is still to be sent.
pub struct FileBody {
    file: OpenFile,
    left: Range<u64>,
    age: FileAge,
    read: ReadAhead,
}

/// Whether a file may still be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAge {
    /// It grows, or is the gateway's own. Only a loss of bytes shows that it has changed.
    Growing,
    /// It may grow. What is sent is what was there when it was opened.
    Young,
    /// It is not to change any more.
    Finished,
}

enum ReadAhead {
    /// Nothing is read: the page cache has what comes next, or nobody has looked.
    Idle,
    /// A background thread is reading.
    UnderWay,
    Done(io::Result<FileBytes>),
    /// What it has read.
    Sending(Unsent),
}

impl FileBody {
    /// These bytes of an open file.
    pub fn new(file: OpenFile, range: Range<u64>, age: FileAge) -> FileBody {
        FileBody { file, left: range, age, read: ReadAhead::Idle }
    }

    /// Whether everything has been sent.
    pub fn is_over(&self) -> bool {
        self.left.is_empty()
    }

    /// Bytes of its own memory, those that a background thread is reading included.
    pub fn own_bytes(&self) -> usize {
        match &self.read {
            ReadAhead::Idle | ReadAhead::Done(Err(_)) => 0,
            ReadAhead::UnderWay => self.read_bytes() as usize,
            ReadAhead::Done(Ok(read)) => read.bytes.capacity(),
            ReadAhead::Sending(read) => read.own_bytes(),
        }
    }

    /// A background thread has read. Acted on by the next [`FileBody::send`].
    pub fn handle_read(&mut self, read: io::Result<FileBytes>) {
        if matches!(self.read, ReadAhead::UnderWay) {
            self.read = ReadAhead::Done(read);
        }
    }

    /// Sends at most `most` bytes of what is left, which is something.
    ///
    /// # Errors
    /// If the rest cannot be sent.
    pub fn send(
        &mut self,
        downstream: &mut Conn,
        most: usize,
        who: &Identity,
        cx: &mut Context,
    ) -> Result<Sent, SendError> {
        match std::mem::replace(&mut self.read, ReadAhead::Idle) {
            ReadAhead::Idle => self.send_cached(downstream, most, who, cx),
            ReadAhead::UnderWay => {
                self.read = ReadAhead::UnderWay;
                Ok(Sent::Reading)
            }
            ReadAhead::Done(Ok(FileBytes { bytes, state })) => {
                self.check(state)?;
                if (bytes.len() as u64) < self.read_bytes() {
                    return Err(SendError::Changed);
                }
                self.send_read(downstream, Unsent::new(bytes), most)
            }
            ReadAhead::Done(Err(_)) => Err(SendError::Unreadable),
            ReadAhead::Sending(read) => self.send_read(downstream, read, most),
        }
    }

    fn send_cached(
        &mut self,
        downstream: &mut Conn,
        most: usize,
        who: &Identity,
        cx: &mut Context,
    ) -> Result<Sent, SendError> {
        let left = self.left.end - self.left.start;
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(most);
        if !downstream.is_writable() {
            return Ok(Sent::Blocked);
        }
        if !self.file.is_cached(self.left.start, count) {
            let request = self.file.read_request(self.left.start, self.read_bytes() as usize);
            cx.jobs.push_back(Job::File(FileJob::Read { request, owner: who.id() }));
            self.read = ReadAhead::UnderWay;
            return Ok(Sent::Reading);
        }
        // Once the last byte is sent, the client can no longer learn that the file changed.
        if count as u64 == left
            && let Some(state) = self.file.state_now()
        {
            self.check(state)?;
        }
        let sent = match downstream.send_file(&self.file, self.left.start, count) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(SendError::Changed);
            }
            sent => Sent::by(sent)?,
        };
        self.left.start += sent.bytes() as u64;
        Ok(sent)
    }

    fn send_read(
        &mut self,
        downstream: &mut Conn,
        mut read: Unsent,
        most: usize,
    ) -> Result<Sent, SendError> {
        let sent = read.send(downstream, most)?;
        self.left.start += sent.bytes() as u64;
        if !read.is_empty() {
            self.read = ReadAhead::Sending(read);
        }
        Ok(sent)
    }

    fn read_bytes(&self) -> u64 {
        READ_BYTES.min(self.left.end - self.left.start)
    }

    fn check(&self, state: FileState) -> Result<(), SendError> {
        let opened = self.file.state();
        let is_same = match self.age {
            // What is missing is noticed when it is read.
            FileAge::Growing => true,
            FileAge::Young => state == opened || state.length > opened.length,
            FileAge::Finished => state == opened,
        };
        if is_same { Ok(()) } else { Err(SendError::Changed) }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "a test reads what its peer received")]
mod tests {
    use super::*;
    use crate::base::testing::TestFolder;
    use crate::net::Ready;
    use crate::net::files::Root;
    use crate::net::testing::SlowSocket;
    use crate::session::jobs::{FileAnswer, JobAnswer};
    use crate::session::{self, testing};
    use std::cell::RefCell;
    use std::io::Write;
    use std::path::{Path, PathBuf};
    use std::rc::Rc;

    const WRITABLE: Ready = Ready { readable: false, writable: true, read_closed: false };

    struct Scene {
        who: Identity,
        cx: Context,
        conn: Conn,
        taken: Rc<RefCell<Vec<u8>>>,
    }

    impl Scene {
        fn new(room: usize) -> Scene {
            let (socket, taken) = SlowSocket::open(room);
            let cx = testing::context(session::Settings::default());
            Scene { who: Identity::of_client(), cx, conn: Conn::accepted(socket), taken }
        }

        /// Sends to the end; after each piece, `then` may do something to the file.
        fn send(&mut self, body: &mut FileBody, mut then: impl FnMut()) -> Result<(), SendError> {
            while !body.is_over() {
                match body.send(&mut self.conn, 1000, &self.who, &mut self.cx)? {
                    Sent::Moved(n) => assert!((1..=1000).contains(&n)),
                    Sent::Blocked => self.conn.handle_ready(WRITABLE),
                    Sent::Reading => {
                        let Some(Job::File(job)) = self.cx.jobs.pop_front() else {
                            panic!("a read")
                        };
                        let JobAnswer::File(FileAnswer::Read { read, .. }) = job.run() else {
                            panic!("another answer");
                        };
                        body.handle_read(read);
                    }
                    Sent::Waiting => panic!("the file is there"),
                }
                then();
            }
            Ok(())
        }
    }

    fn bytes() -> Vec<u8> {
        (0..150_000_u32).map(|at| (at % 251) as u8).collect()
    }

    /// A file, and the folder that it is in.
    fn file() -> (TestFolder, PathBuf, OpenFile) {
        let folder = TestFolder::make();
        let path = folder.write("audio", bytes());
        let file = Root::new(&folder, 1 << 20).request(Path::new("audio")).run().unwrap();
        (folder, path, file)
    }

    /// Reads in the background begin with `ReadAhead::UnderWay`, wherever the file is.
    fn reading(scene: &mut Scene, mut body: FileBody) -> FileBody {
        let request = body.file.read_request(body.left.start, body.read_bytes() as usize);
        scene.cx.jobs.push_back(Job::File(FileJob::Read { request, owner: scene.who.id() }));
        body.read = ReadAhead::UnderWay;
        body
    }

    #[test]
    fn range_arrives_whole_however_the_socket_takes_it() {
        let (_folder, _, file) = file();
        for room in [1, 7, 999, 1000, 1001, 1 << 20] {
            for range in [0..1, 0..3000, 149_000..150_000, 70_001..73_002] {
                for is_read in [false, true] {
                    let mut scene = Scene::new(room);
                    let mut body = FileBody::new(file.clone(), range.clone(), FileAge::Finished);
                    if is_read {
                        body = reading(&mut scene, body);
                    }
                    assert_eq!(scene.send(&mut body, || ()), Ok(()));
                    let expected = &bytes()[range.start as usize..range.end as usize];
                    assert!(*scene.taken.borrow() == expected, "{room} {range:?} {is_read}");
                    assert_eq!(body.own_bytes(), 0, "nothing is held behind the last byte");
                }
            }
        }
    }

    #[test]
    fn finished_file_that_changes_is_not_sent_to_its_end() {
        let (_folder, path, file) = file();
        let mut scene = Scene::new(700);
        let mut body = FileBody::new(file, 0..150_000, FileAge::Finished);
        let long_ago = std::time::UNIX_EPOCH;
        let touch =
            || std::fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago);
        assert_eq!(scene.send(&mut body, || touch().unwrap()), Err(SendError::Changed));
        assert!(scene.taken.borrow().len() < 150_000);
    }

    #[test]
    fn young_file_that_is_rewritten_is_not_sent_to_its_end() {
        let (_folder, path, file) = file();
        for is_read in [false, true] {
            let mut scene = Scene::new(700);
            let mut body = FileBody::new(file.clone(), 0..150_000, FileAge::Young);
            if is_read {
                body = reading(&mut scene, body);
            }
            let long_ago = std::time::UNIX_EPOCH;
            let touch =
                || std::fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago);
            assert_eq!(scene.send(&mut body, || touch().unwrap()), Err(SendError::Changed));
            assert!(scene.taken.borrow().len() < 150_000);
        }
    }

    #[test]
    fn young_file_may_grow_and_not_shrink() {
        let (_folder, path, file) = file();
        let open = || std::fs::File::options().append(true).open(&path).unwrap();
        let mut scene = Scene::new(1 << 20);
        let mut body = FileBody::new(file.clone(), 0..150_000, FileAge::Young);
        assert_eq!(scene.send(&mut body, || open().write_all(b"x").unwrap()), Ok(()));
        assert!(*scene.taken.borrow() == bytes(), "as it was when it was opened");
        let mut body = FileBody::new(file, 0..150_000, FileAge::Young);
        let cut = || open().set_len(50_000).unwrap();
        assert_eq!(Scene::new(1 << 20).send(&mut body, cut), Err(SendError::Changed));
    }
}
