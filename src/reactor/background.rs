//! Background threads for whatever may block: looking up names, opening and reading files, reading
//! the configuration.
//!
//! All are started with the gateway, so a system that allows no more threads is noticed at once,
//! not hours later. A task goes into the queue of its lane, one of the lane's threads takes it,
//! and its outcome comes back through a channel; the waker then ends the loop's wait. Each lane has
//! threads of its own: a slow configuration file delays no name.
//!
//! A thread that waits owns a stack of which a page or two are in use, and nothing on the heap.

#![expect(clippy::disallowed_methods, reason = "the reactor owns threads and the wall clock")]
#![expect(
    clippy::disallowed_types,
    reason = "the reactor owns the poll and what is registered with it"
)]

use super::names::{self, FoundAddresses, Names};
use crate::base::moment::Moment;
use crate::base::queue::take_first;
use crate::service::name::LookUpError;
use crate::session::jobs::{FileJob, Job, JobAnswer};
use mio::Waker;
use socket2::{Domain, Type};
use std::collections::VecDeque;
use std::io;
use std::net::ToSocketAddrs;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// The stack of a thread that looks up names: the system's resolver keeps its buffers there.
const RESOLVER_STACK_BYTES: usize = 256 * 1024;

/// The stack of a thread that opens and reads files.
const FILES_STACK_BYTES: usize = 64 * 1024;

/// Threads that open and read files.
const FILES_THREADS: usize = 4;

/// The stack of the thread that reads the configuration: the parser recurses.
const CONFIG_STACK_BYTES: usize = 1024 * 1024;

/// Reads the configuration, as `C`.
pub type ReadConfig<C> = Box<dyn FnMut() -> C + Send>;

/// The threads, seen from the loop.
pub struct Background<C> {
    names: Names,
    hosts: Arc<JobQueue<String>>,
    files: Arc<JobQueue<FileJob>>,
    config: ConfigReader,
    outcomes: Receiver<FinishedJob<C>>,
    /// Answers that were known at once.
    answers: VecDeque<JobAnswer>,
}

/// What a thread sends back.
enum FinishedJob<C> {
    Found {
        host: String,
        found: FoundAddresses,
    },
    Answer(JobAnswer),
    /// In a box: the channel has room for 31 outcomes, each as large as the largest.
    Config(Box<C>),
}

/// What came back, for the loop.
pub enum BackgroundEvent<C> {
    Answer(JobAnswer),
    /// The configuration as it was read.
    Config(C),
}

struct ConfigReader {
    requests: Arc<JobQueue<()>>,
    state: Reading,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Idle,
    UnderWay,
    /// It was asked for again meanwhile: the file may have changed after it was read.
    UnderWayAndAgain,
}

impl<C: Send + 'static> Background<C> {
    /// Starts all threads. `waker` ends the loop's wait when there is an event.
    ///
    /// # Errors
    /// When the system allows no more threads.
    pub fn start(waker: Waker, mut read_config: ReadConfig<C>) -> io::Result<Background<C>> {
        let (sender, outcomes) = channel();
        let back = Back { sender, waker: Arc::new(waker) };
        let hosts = Arc::new(JobQueue::default());
        for _ in 0..names::THREADS {
            let look_up = |host: String| {
                let found = look_up(&host);
                FinishedJob::Found { host, found }
            };
            spawn("resolver", RESOLVER_STACK_BYTES, &hosts, &back, look_up)?;
        }
        let files = Arc::new(JobQueue::default());
        for _ in 0..FILES_THREADS {
            let run = |job: FileJob| FinishedJob::Answer(job.run());
            spawn("files", FILES_STACK_BYTES, &files, &back, run)?;
        }
        let requests = Arc::new(JobQueue::default());
        let read = move |()| FinishedJob::Config(Box::new(read_config()));
        spawn("config", CONFIG_STACK_BYTES, &requests, &back, read)?;
        Ok(Background {
            names: Names::default(),
            hosts,
            files,
            config: ConfigReader { requests, state: Reading::Idle },
            outcomes,
            answers: VecDeque::new(),
        })
    }

    /// Has a job done.
    pub fn submit(&mut self, job: Job, now: Moment) {
        match job {
            Job::LookUp { name, owner } => {
                self.answers.extend(self.names.ask(name, owner));
                self.dispatch_names(now);
            }
            Job::File(job) => self.files.push(job),
        }
    }

    /// Has the configuration read; once more if that is under way already.
    pub fn read_config(&mut self) {
        self.config.state = match self.config.state {
            Reading::Idle => {
                self.config.requests.push(());
                Reading::UnderWay
            }
            Reading::UnderWay | Reading::UnderWayAndAgain => Reading::UnderWayAndAgain,
        };
    }

    /// Whether the configuration is being read.
    pub fn is_reading_config(&self) -> bool {
        self.config.state != Reading::Idle
    }

    /// The next outcome.
    pub fn poll_event(&mut self, now: Moment) -> Option<BackgroundEvent<C>> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some(BackgroundEvent::Answer(answer));
            }
            match self.outcomes.try_recv().ok()? {
                FinishedJob::Found { host, found } => {
                    self.answers.extend(self.names.handle_found(&host, &found, now));
                    self.dispatch_names(now);
                }
                FinishedJob::Answer(answer) => return Some(BackgroundEvent::Answer(answer)),
                FinishedJob::Config(config) => {
                    let state = std::mem::replace(&mut self.config.state, Reading::Idle);
                    if state == Reading::UnderWayAndAgain {
                        self.read_config();
                    }
                    return Some(BackgroundEvent::Config(*config));
                }
            }
        }
    }

    /// Whether there is an event that no wake-up announces.
    pub fn has_news(&self) -> bool {
        !self.answers.is_empty()
    }

    fn dispatch_names(&mut self, now: Moment) {
        while let Some(host) = self.names.poll(now) {
            self.hosts.push(host.to_owned());
        }
    }
}

/// Asks the system's resolver, which blocks.
fn look_up(host: &str) -> FoundAddresses {
    let answer = (host, 0).to_socket_addrs();
    answer
        .map(|addresses| addresses.map(|address| address.ip()).collect())
        .map_err(|error| look_up_error(&error, open_any_socket()))
}

/// What a failed look-up means. A resolver that gets no descriptor or memory calls the name unknown
/// like any other that it cannot find; a socket opened right behind it shows which it was.
fn look_up_error(error: &io::Error, any_socket: io::Result<()>) -> LookUpError {
    let shortage = any_socket.err().as_ref().and_then(io::Error::raw_os_error);
    match shortage.or(error.raw_os_error()) {
        Some(errno) => LookUpError::Shortage { errno },
        None => LookUpError::NotFound(error.to_string()),
    }
}

fn open_any_socket() -> io::Result<()> {
    socket2::Socket::new(Domain::IPV4, Type::DGRAM, None).map(|_| ())
}

/// The way back to the loop.
struct Back<C> {
    sender: Sender<FinishedJob<C>>,
    waker: Arc<Waker>,
}

fn spawn<T: Send + 'static, C: Send + 'static>(
    name: &str,
    stack_bytes: usize,
    queue: &Arc<JobQueue<T>>,
    back: &Back<C>,
    mut work: impl FnMut(T) -> FinishedJob<C> + Send + 'static,
) -> io::Result<()> {
    let queue = Arc::clone(queue);
    let (sender, waker) = (back.sender.clone(), Arc::clone(&back.waker));
    thread::Builder::new().name(name.into()).stack_size(stack_bytes).spawn(move || {
        loop {
            let outcome = work(queue.wait());
            if sender.send(outcome).is_err() || waker.wake().is_err() {
                return; // The loop has ended.
            }
        }
    })?;
    Ok(())
}

/// Tasks for the threads of one lane, oldest first.
struct JobQueue<T> {
    tasks: Mutex<VecDeque<T>>,
    has_task: Condvar,
}

impl<T> Default for JobQueue<T> {
    fn default() -> Self {
        JobQueue { tasks: Mutex::default(), has_task: Condvar::new() }
    }
}

impl<T> JobQueue<T> {
    fn push(&self, task: T) {
        self.lock().push_back(task);
        self.has_task.notify_one();
    }

    /// The next task; blocks until there is one.
    fn wait(&self) -> T {
        let mut tasks = self.lock();
        loop {
            if let Some(task) = take_first(&mut tasks) {
                return task;
            }
            tasks = self.has_task.wait(tasks).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        // No code that can panic runs under the lock.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Source;
    use crate::net::files::RootRequest;
    use crate::service::link::RedisRole;
    use crate::service::name::Name;
    use crate::session::jobs::FileAnswer;
    use crate::session::jobs::NameOwner;
    use mio::{Events, Poll};

    const NOW: Moment = Moment::START;

    /// Waits for a wake-up, then takes the next outcome.
    fn next_event<C: Send + 'static>(
        poll: &mut Poll,
        background: &mut Background<C>,
    ) -> BackgroundEvent<C> {
        let mut events = Events::with_capacity(4);
        loop {
            if let Some(event) = background.poll_event(NOW) {
                return event;
            }
            poll.poll(&mut events, None).unwrap();
        }
    }

    fn start<C: Send + 'static>(read_config: ReadConfig<C>) -> (Poll, Background<C>) {
        let poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Source::Waker.into()).unwrap();
        let background = Background::start(waker, read_config).unwrap();
        (poll, background)
    }

    #[test]
    fn names_are_looked_up_while_the_configuration_is_slow() {
        let (release, released) = channel();
        let (mut poll, mut background) = start(Box::new(move || released.recv().unwrap()));
        background.read_config();
        let name = Name { host: "127.0.0.1".into(), port: 7 };
        background.submit(Job::LookUp { name, owner: NameOwner::Redis(RedisRole::Store) }, NOW);
        match next_event(&mut poll, &mut background) {
            BackgroundEvent::Answer(JobAnswer::LookedUp { owner, found }) => {
                assert_eq!(owner, NameOwner::Redis(RedisRole::Store));
                assert_eq!(found.unwrap(), ["127.0.0.1:7".parse().unwrap()]);
            }
            BackgroundEvent::Answer(other) => panic!("{other:?}"),
            BackgroundEvent::Config(()) => panic!("it was not released"),
        }
        release.send(()).unwrap();
        assert!(matches!(next_event(&mut poll, &mut background), BackgroundEvent::Config(())));
    }

    #[test]
    fn a_configuration_that_is_asked_for_while_it_is_read_is_read_once_more() {
        let (release, released) = channel();
        let mut count = 0;
        let (mut poll, mut background) = start(Box::new(move || {
            released.recv().unwrap();
            count += 1;
            count
        }));
        for _ in 0..3 {
            background.read_config();
        }
        for expected in 1..=2 {
            release.send(()).unwrap();
            match next_event(&mut poll, &mut background) {
                BackgroundEvent::Config(count) => assert_eq!(count, expected),
                BackgroundEvent::Answer(answer) => panic!("{answer:?}"),
            }
        }
        assert_eq!(background.config.state, Reading::Idle);
    }

    #[test]
    fn a_shortage_is_not_taken_for_an_unknown_name() {
        let unknown = || io::Error::other("Name or service not known");
        let errno = |number| io::Error::from_raw_os_error(number);
        let not_found = LookUpError::NotFound("Name or service not known".into());
        assert_eq!(look_up_error(&unknown(), Ok(())), not_found);
        let shortage = |errno| LookUpError::Shortage { errno };
        let (files, memory) = (libc::EMFILE, libc::ENOMEM);
        assert_eq!(look_up_error(&unknown(), Err(errno(files))), shortage(files));
        assert_eq!(look_up_error(&errno(memory), Ok(())), shortage(memory));
    }

    #[test]
    fn a_name_that_does_not_exist_is_answered_with_the_reason() {
        let (mut poll, mut background) = start(Box::new(|| ()));
        let name = Name { host: "no such name".into(), port: 7 };
        background
            .submit(Job::LookUp { name, owner: NameOwner::Redis(RedisRole::Subscriber) }, NOW);
        match next_event(&mut poll, &mut background) {
            BackgroundEvent::Answer(JobAnswer::LookedUp { found, .. }) => {
                assert!(matches!(found, Err(LookUpError::NotFound(why)) if !why.is_empty()));
            }
            BackgroundEvent::Answer(other) => panic!("{other:?}"),
            BackgroundEvent::Config(()) => panic!("it was not asked for"),
        }
    }

    #[test]
    fn files_are_opened_while_the_configuration_is_slow() {
        let (release, released) = channel();
        let (mut poll, mut background) = start(Box::new(move || released.recv().unwrap()));
        background.read_config();
        let check = RootRequest::new(&std::env::temp_dir());
        background.submit(Job::File(FileJob::CheckAudioRoot(check)), NOW);
        match next_event(&mut poll, &mut background) {
            BackgroundEvent::Answer(JobAnswer::File(FileAnswer::AudioRootChecked(found))) => {
                assert!(found.is_ok())
            }
            BackgroundEvent::Answer(other) => panic!("{other:?}"),
            BackgroundEvent::Config(()) => panic!("it was not released"),
        }
        release.send(()).unwrap();
    }
}
