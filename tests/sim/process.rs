//! One gateway process of the simulated world: the gateway, with the part of the reactor that is
//! not in the gateway.
//!
//! A turn calls the gateway as the reactor does; the order of a turn and the Redis sockets are the
//! gateway's own.

use crate::kernel::{Dialer, Kernel, LinkId, Shared, near_socket};
use aivtuber_gateway::base::moment::Moment;
use aivtuber_gateway::gateway::{self, Gateway};
use aivtuber_gateway::net::files::OpenError;
use aivtuber_gateway::net::{Network, OpenFile, PeerAddress, Ready, Side, Socket, Source};
use aivtuber_gateway::service::link::REDIS_ROLES;
use aivtuber_gateway::session::jobs::{FileAnswer, FileJob, Job, JobAnswer};
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};
use uuid::Uuid;

/// The longest time that a look-up takes.
const LOOK_UP_MAX: Duration = Duration::from_millis(2);

/// The host that the name of every Redis server leads to.
const REDIS_IP: [u8; 4] = [10, 0, 0, 9];

/// A connection that waits to be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    Client(LinkId),
    Worker(LinkId),
}

pub struct Process {
    pub gateway: Gateway,
    kernel: Shared,
    pub arrivals: VecDeque<Arrival>,
    pub is_drained: bool,
    wants_drain: bool,
    redis_links: Rc<Cell<RedisLinks>>,
    watches: Rc<RefCell<Watches>>,
    /// Some watched file has been written to.
    has_written: bool,
    /// Outcomes of background jobs, and when they come.
    answers: VecDeque<(Moment, JobAnswer)>,
    /// How files are read; `None`: at once.
    pub disk: Option<Disk>,
    /// Every other file for speech is not opened, because descriptors have run out.
    pub lacks_descriptors: bool,
    idle_in_a_row: u32,
    idle_in_second: u32,
    second: u64,
    turned_at: Moment,
}

/// Files on a server that takes its time: whatever is done with them is a job for a background
/// thread, is done at some moment, and is known at a later one.
pub struct Disk {
    /// The longest time that a job takes.
    slowness: Duration,
    /// Jobs under way: when they are done, when that is known, and the job.
    jobs: Vec<(Moment, Moment, FileJob)>,
    /// When which file was opened, or was not there.
    pub opened: Vec<(Moment, PathBuf)>,
    /// When no file can be opened, because descriptors have run out.
    pub shortage: Option<Range<Moment>>,
}

impl Disk {
    pub fn new(slowness: Duration) -> Disk {
        Disk { slowness, jobs: Vec::new(), opened: Vec::new(), shortage: None }
    }
}

/// The latest link of each Redis connection, open or not.
pub type RedisLinks = [Option<LinkId>; 2];

/// Who watches files.
#[derive(Default)]
struct Watches {
    /// The kernel reports nothing.
    is_silent: bool,
    owners: Vec<u64>,
    written: VecDeque<u64>,
}

/// The kernel's connections, with a note of those to Redis.
struct ProcessNetwork {
    dialer: Dialer,
    redis_links: Rc<Cell<RedisLinks>>,
    watches: Rc<RefCell<Watches>>,
}

impl Network for ProcessNetwork {
    fn connect(&mut self, to: &PeerAddress, source: Source) -> io::Result<Socket> {
        let socket = self.dialer.connect(to, source)?;
        if let Source::Link(role) = source {
            let mut links = self.redis_links.get();
            links[role] = Some(self.dialer.0.borrow().links.len() - 1);
            self.redis_links.set(links);
        }
        Ok(socket)
    }

    fn watch(&mut self, _: &OpenFile, owner: u64) -> io::Result<()> {
        let mut watches = self.watches.borrow_mut();
        match watches.is_silent {
            true => Err(ErrorKind::Unsupported.into()),
            false => {
                watches.owners.push(owner);
                Ok(())
            }
        }
    }

    fn unwatch(&mut self, owner: u64) {
        self.watches.borrow_mut().owners.retain(|other| *other != owner);
    }

    fn poll_written(&mut self) -> Option<u64> {
        self.watches.borrow_mut().written.pop_front()
    }
}

impl Process {
    pub fn new(kernel: &Shared, settings: gateway::Settings, seed: u64) -> Process {
        let now = kernel.borrow().now;
        let redis_links = Rc::new(Cell::new(RedisLinks::default()));
        let is_silent = seed.is_multiple_of(3);
        let watches = Rc::new(RefCell::new(Watches { is_silent, ..Watches::default() }));
        let network = Box::new(ProcessNetwork {
            dialer: Dialer(Rc::clone(kernel)),
            redis_links: Rc::clone(&redis_links),
            watches: Rc::clone(&watches),
        });
        let chance = fastrand::Rng::with_seed(seed);
        let gateway = Gateway::new(settings, network, chance, now, UNIX_EPOCH)
            .expect("its settings are good");
        Process {
            gateway,
            kernel: Rc::clone(kernel),
            arrivals: VecDeque::new(),
            is_drained: false,
            wants_drain: false,
            redis_links,
            watches,
            has_written: false,
            answers: VecDeque::new(),
            disk: None,
            lacks_descriptors: false,
            idle_in_a_row: 0,
            idle_in_second: 0,
            second: 0,
            turned_at: now,
        }
    }

    /// The latest link of each Redis connection, open or not.
    pub fn redis_links(&self) -> RedisLinks {
        self.redis_links.get()
    }

    pub fn drain(&mut self) {
        self.wants_drain = true;
    }

    /// A file has been written to: whoever watches one is notified, as a kernel may do it.
    pub fn note_written(&mut self) {
        let watches = &mut *self.watches.borrow_mut();
        watches.written.extend(&watches.owners);
        self.has_written |= !watches.written.is_empty();
    }

    /// A worker's publication arrives, without a connection of its own.
    pub fn publish(&mut self, task: Uuid, payload: &[u8]) {
        let now = self.kernel.borrow().now;
        self.gateway.results().publish(now, task, payload);
        self.has_written = true;
    }

    /// When the next turn begins without an event.
    pub fn next_turn(&self) -> Option<Moment> {
        let answer = self.answers.front().map(|(at, _)| *at);
        let jobs = self.disk.iter().flat_map(|disk| &disk.jobs).map(|(_, known_at, _)| *known_at);
        self.gateway.next_turn().into_iter().chain(answer).chain(jobs).min()
    }

    /// Whether a turn begins now even without an event.
    pub fn is_due(&self, now: Moment) -> bool {
        let can_admit = |arrival: &Arrival| match arrival {
            Arrival::Client(_) => self.gateway.can_admit() || self.is_drained,
            Arrival::Worker(_) => self.gateway.can_admit_worker(),
        };
        self.wants_drain
            || self.has_written
            || self.arrivals.front().is_some_and(can_admit)
            || self.next_turn().is_some_and(|at| at <= now)
    }

    /// One turn of the loop. Returns the links that were accepted.
    pub fn turn(&mut self, events: Vec<(LinkId, Source, Ready)>) -> Result<Vec<LinkId>, String> {
        let (now, moves) = (self.kernel.borrow().now, self.kernel.borrow().moves);
        self.work_on_disk(now);
        let mut has_news = !events.is_empty() || self.wants_drain;
        self.gateway.begin_turn(now);
        if std::mem::take(&mut self.has_written) {
            has_news = true;
            self.gateway.ready(Source::Files, Ready::default());
        }
        for (_, source, ready) in events {
            self.kernel.borrow_mut().note(|| format!("event {source:?} {ready:?}"));
            self.gateway.ready(source, ready);
        }
        while self.answers.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, answer)) = self.answers.pop_front()
        {
            has_news = true;
            self.gateway.handle_answer(answer);
        }
        self.gateway.settle();
        let entered = self.accept();
        if std::mem::take(&mut self.wants_drain) {
            self.is_drained = true;
            self.gateway.drain();
        }
        self.gateway.finish_turn();
        while let Some(job) = self.gateway.poll_job() {
            self.begin(job, now);
        }
        // The reactor asks this before it waits, so the gateway knows when its next turn is late.
        self.next_turn();
        let is_idle = !has_news && moves == self.kernel.borrow().moves;
        self.count_idle(is_idle)?;
        Ok(entered)
    }

    /// Does what background threads have done with files by now. To be called before a file
    /// changes.
    pub fn work_on_disk(&mut self, now: Moment) {
        let Some(disk) = &mut self.disk else { return };
        disk.jobs.sort_by_key(|(done_at, ..)| *done_at);
        while disk.jobs.first().is_some_and(|(done_at, ..)| *done_at <= now) {
            let (done_at, known_at, job) = disk.jobs.remove(0);
            let is_short = disk.shortage.as_ref().is_some_and(|span| span.contains(&done_at));
            let mut answer = match job {
                FileJob::Open { owner, .. } if is_short => {
                    let opened = Err(OpenError::Shortage(Errno::MFILE));
                    JobAnswer::File(FileAnswer::Opened { owner, opened })
                }
                FileJob::Open { request, owner } => {
                    disk.opened.push((done_at, request.name().to_path_buf()));
                    FileJob::Open { request, owner }.run()
                }
                job => job.run(),
            };
            if let JobAnswer::File(FileAnswer::Opened { opened: Ok(file), .. }) = &mut answer {
                file.ask_server();
            }
            let at = self.answers.partition_point(|(at, _)| *at <= known_at);
            self.answers.insert(at, (known_at, answer));
        }
    }

    fn begin(&mut self, job: Job, now: Moment) {
        self.kernel.borrow_mut().note(|| format!("background job {job:?}"));
        let job = match (job, &mut self.disk) {
            // Its answer would show that the folder is a local one.
            (Job::File(FileJob::CheckAudioRoot(_)), Some(_)) => return,
            (Job::File(job), Some(disk)) => {
                let kernel = &mut *self.kernel.borrow_mut();
                let known_at = now + kernel.some(disk.slowness);
                let done_at = now + kernel.some(known_at - now);
                return disk.jobs.push((done_at, known_at, job));
            }
            (job, _) => job,
        };
        let wait = self.kernel.borrow_mut().some(LOOK_UP_MAX);
        let answer = match job {
            Job::LookUp { name, owner } => {
                let found = Ok(vec![SocketAddr::from((REDIS_IP, name.port))]);
                JobAnswer::LookedUp { owner, found }
            }
            Job::File(FileJob::OpenSpool { task, serial, .. })
                if self.lacks_descriptors && self.kernel.borrow_mut().one_in(2) =>
            {
                let opened = Err(OpenError::Shortage(Errno::MFILE));
                JobAnswer::File(FileAnswer::SpoolOpened { task, serial, opened })
            }
            // Done now, and known later.
            Job::File(job) => job.run(),
        };
        let at = self.answers.iter().map(|(at, _)| *at).max().unwrap_or(now).max(now + wait);
        self.answers.push_back((at, answer));
    }

    fn accept(&mut self) -> Vec<LinkId> {
        let mut entered = Vec::new();
        while let Some(&arrival) = self.arrivals.front() {
            let (Arrival::Client(link) | Arrival::Worker(link)) = arrival;
            let is_worker = matches!(arrival, Arrival::Worker(_));
            if !is_worker && self.is_drained {
                self.kernel.borrow_mut().refuse(link);
            } else if is_worker && self.gateway.can_admit_worker()
                || !is_worker && self.gateway.can_admit()
            {
                let key = self.gateway.next_key();
                self.kernel.borrow_mut().note(|| format!("{arrival:?} accepted slot={key}"));
                self.kernel.borrow_mut().register(link, Source::Session(key, Side::Downstream));
                let near = near_socket(&self.kernel, link);
                let from = SocketAddr::from(([192, 0, 2, 1], 1000 + link as u16));
                match is_worker {
                    true => self.gateway.admit_worker(near, from),
                    false => self.gateway.admit(near, from),
                }
                entered.push(link);
            } else {
                break;
            }
            self.arrivals.pop_front();
        }
        entered
    }

    fn count_idle(&mut self, is_idle: bool) -> Result<(), String> {
        let second = (self.kernel.borrow().now - self.kernel.borrow().start).as_secs();
        if std::mem::replace(&mut self.second, second) != second {
            self.idle_in_second = 0;
        }
        let now = self.kernel.borrow().now;
        let has_paused =
            now > std::mem::replace(&mut self.turned_at, now) + Duration::from_millis(1);
        if !is_idle || has_paused {
            self.idle_in_a_row = 0;
            return Ok(());
        }
        self.idle_in_a_row += 1;
        self.idle_in_second += 1;
        let count = 3 + self.gateway.session_count() as u32;
        if self.idle_in_a_row > 8 * count || self.idle_in_second > 50 * count {
            let next = self.next_turn().map(|at| at - self.kernel.borrow().now);
            return Err(format!(
                "it spins: {} turns did nothing, the next one is due in {next:?}",
                self.idle_in_a_row
            ));
        }
        Ok(())
    }

    /// Called when nothing more happens before time passes. Fails if the gateway left work undone.
    pub fn check_quiet(&mut self) -> Result<(), String> {
        let now = self.kernel.borrow().now;
        let results = self.gateway.results();
        if results.poll_delivery(now).is_some() {
            return Err("a result is not delivered".into());
        }
        if results.poll_notice().is_some() {
            return Err("a notice is not logged".into());
        }
        let Some(link) = results.link() else { return Ok(()) };
        if let Some(event) = link.poll_event() {
            return Err(format!("{event:?} is not handled"));
        }
        if let Some(action) = link.poll_action() {
            return Err(format!("{action:?} is not done"));
        }
        for role in REDIS_ROLES {
            let waits = link.poll_output(role, now).len();
            let kernel = self.kernel.borrow();
            if waits > 0
                && let Some(id) = self.redis_links.get()[role as usize]
                && !kernel.links[id].is_dropped
                && !kernel.is_full(id)
            {
                return Err(format!("{waits} bytes for Redis are not sent, and there is room"));
            }
        }
        Ok(())
    }
}

/// Whether the gateway has not read what arrived at one of its sockets, although nothing keeps it
/// from reading.
pub fn is_left_unread(kernel: &Kernel, link: LinkId) -> bool {
    kernel.is_unread(link) && kernel.links[link].source != Source::Waker && !kernel.is_full(link)
}
