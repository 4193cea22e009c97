//! What many clients do to the gateway at once, while the messages of others are measured.
//!
//! The clients run on threads of their own that yield to the measuring one, so that the figures
//! show how long the target kept a message waiting, and not how busy the load generator's core is.
//! The bare byte pipe serves nothing but messages: its figure, in the same run, is what the machine
//! adds.

use crate::Fault;
use crate::load::results;
use crate::load::work::Observe;
use crate::resp;
use crate::wire;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::setpriority_process;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Timeout for a byte of an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Clients that ask for `/connections`, each as fast as it is answered.
const ASKING: usize = 20;
/// Workers that publish as fast as the inbox reads.
const PUBLISHING: usize = 4;
/// Results that a worker publishes before it reads the replies.
const PUBLISHED_AT_ONCE: usize = 500;
/// Clients of one task, and its results.
const CROWD: usize = 6000;
const CROWD_RESULTS: usize = 200;
/// Results that a crowd finds when it comes; the others are published then.
const CROWD_KEPT: usize = 100;

/// Clients of `/events`, and of `/events/frames`.
pub const WATCHING: usize = 100;
/// What the socket of a follower that does not read takes; the kernel doubles it.
const FOLLOWER_BUFFER_BYTES: usize = 4096;
/// How often such a follower looks whether it is time to read.
const FOLLOWER_NAP: Duration = Duration::from_millis(50);

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Ask for `/connections`.
    Reports,
    /// Publish to the inbox, for tasks without clients.
    Publications,
    /// Come for one task in thousands, get its results, leave, come again.
    Crowd,
    /// Watch the gateway: a snapshot a second for each.
    Watchers,
    /// Follow all frames, and read none of it until the end.
    SlowFollowers,
}

/// Where it is done.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub address: SocketAddr,
    /// Where workers publish.
    pub inbox: Option<SocketAddr>,
    pub channel_prefix: &'static str,
}

/// What one thread does again and again.
type Work = fn(Place, &Shared) -> io::Result<()>;

/// Exerts a pressure while something is measured.
pub struct Beside {
    /// `None`: on nothing.
    pressure: Option<(Pressure, Place)>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    /// Answers, publications, clients and their results, snapshots, or lines of frames that were
    /// lost.
    pub done: u64,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    done: AtomicU64,
}

impl Beside {
    pub fn new(pressure: Option<(Pressure, Place)>) -> Beside {
        Beside { pressure, shared: Arc::default(), threads: Vec::new(), done: 0 }
    }
}

impl Observe for Beside {
    fn begin(&mut self) -> Result<(), Fault> {
        let Some((pressure, place)) = self.pressure else { return Ok(()) };
        let (threads, work): (usize, Work) = match pressure {
            Pressure::Reports => (ASKING, ask),
            Pressure::Publications => (PUBLISHING, publish),
            Pressure::Crowd => (1, crowd),
            Pressure::Watchers => (WATCHING, watch),
            Pressure::SlowFollowers => (WATCHING, follow),
        };
        for _ in 0..threads {
            let shared = Arc::clone(&self.shared);
            self.threads.push(std::thread::spawn(move || {
                setpriority_process(Some(rustix::thread::gettid()), 19)?;
                while !shared.is_over.load(Ordering::Relaxed) {
                    work(place, &shared)?;
                }
                Ok(())
            }));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        let done = self.shared.done.load(Ordering::Relaxed);
        self.shared.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let outcome = thread.join().map_err(|_| Fault::from("a client panicked"))?;
            outcome.map_err(|error| format!("a client beside the messages: {error}"))?;
        }
        // What a follower lost shows when it reads again, at the end.
        let is_known_later = matches!(self.pressure, Some((Pressure::SlowFollowers, _)));
        self.done = if is_known_later { self.shared.done.load(Ordering::Relaxed) } else { done };
        if self.pressure.is_some() && self.done == 0 {
            return Err("nothing was done beside the messages".into());
        }
        Ok(())
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn note(&self, done: usize) {
        self.done.fetch_add(done as u64, Ordering::Relaxed);
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ask(place: Place, shared: &Shared) -> io::Result<()> {
    let mut stream = connect(place.address)?;
    let question = get("/connections", place);
    let mut bytes = vec![0; 1 << 20];
    while !shared.is_over() {
        stream.write_all(question.as_bytes())?;
        let (mut length, mut answer) = (0, None);
        while answer.is_none() {
            length += read_some(&mut stream, &mut bytes[length..])?;
            answer = wire::parse_answer(&bytes[..length]).map_err(io::Error::other)?;
        }
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4);
        let mut left = (head + content_length(&bytes[..head])?).saturating_sub(length);
        while left > 0 {
            let room = left.min(bytes.len());
            left -= read_some(&mut stream, &mut bytes[..room])?;
        }
        shared.note(1);
    }
    Ok(())
}

fn content_length(head: &[u8]) -> io::Result<usize> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let value = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length = value.and_then(|value| value.trim().parse().ok());
    length.ok_or_else(|| io::Error::other("an answer without a length"))
}

fn read_some(stream: &mut TcpStream, bytes: &mut [u8]) -> io::Result<usize> {
    match stream.read(bytes)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length => Ok(length),
    }
}

/// Reads events until the measured part is over.
fn watch(place: Place, shared: &Shared) -> io::Result<()> {
    let mut stream = connect(place.address)?;
    stream.write_all(get("/events", place).as_bytes())?;
    let mut bytes = vec![0; 64 << 10];
    while !shared.is_over() {
        let length = read_some(&mut stream, &mut bytes)?;
        shared.note(String::from_utf8_lossy(&bytes[..length]).matches("event: snapshot").count());
    }
    Ok(())
}

/// Asks for all frames, reads nothing while the measured part goes on, and then how many lines were
/// lost.
fn follow(place: Place, shared: &Shared) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_recv_buffer_size(&socket, FOLLOWER_BUFFER_BYTES)?;
    rustix::net::connect(&socket, &place.address)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(get("/events/frames", place).as_bytes())?;
    while !shared.is_over() {
        std::thread::sleep(FOLLOWER_NAP);
    }
    let (mut text, mut bytes) = (String::new(), vec![0; 64 << 10]);
    loop {
        let length = read_some(&mut stream, &mut bytes)?;
        text.push_str(&String::from_utf8_lossy(&bytes[..length]));
        let lost = text.split_once("event: lost\ndata: {\"count\":");
        if let Some((count, _)) = lost.and_then(|(_, rest)| rest.split_once('}')) {
            shared.note(count.parse().map_err(io::Error::other)?);
            return Ok(());
        }
        // A line that is cut by the end of the read is looked at again.
        text =
            text.rsplit_once("event: ").map_or(text.clone(), |(_, last)| format!("event: {last}"));
    }
}

fn get(path: &str, place: Place) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", place.address)
}

fn publish(place: Place, shared: &Shared) -> io::Result<()> {
    let mut stream = connect(inbox(place)?)?;
    while !shared.is_over() {
        let tasks = (0..PUBLISHED_AT_ONCE).map(|_| results::fresh_task());
        publish_for(place, &mut stream, tasks)?;
        shared.note(PUBLISHED_AT_ONCE);
    }
    Ok(())
}

fn inbox(place: Place) -> io::Result<SocketAddr> {
    place.inbox.ok_or_else(|| io::Error::other("there is nowhere to publish"))
}

/// Publishes a result for each of these tasks, and reads the replies.
fn publish_for(
    place: Place,
    stream: &mut TcpStream,
    tasks: impl Iterator<Item = String>,
) -> io::Result<()> {
    let json = results::published(None, false);
    let (mut commands, mut replies) = (Vec::new(), 0_usize);
    for task in tasks {
        let channel = format!("{}{task}", place.channel_prefix);
        resp::push_command(&mut commands, &[b"PUBLISH", channel.as_bytes(), json.as_bytes()]);
        replies += 1;
    }
    stream.write_all(&commands)?;
    let mut bytes = vec![0; 64 << 10];
    while replies > 0 {
        let length = read_some(stream, &mut bytes)?;
        let lines = bytes[..length].iter().filter(|byte| **byte == b'\n').count();
        replies = replies.saturating_sub(lines);
    }
    Ok(())
}

fn crowd(place: Place, shared: &Shared) -> io::Result<()> {
    let task = results::fresh_task();
    let mut worker = connect(inbox(place)?)?;
    publish_for(place, &mut worker, (0..CROWD_KEPT).map(|_| task.clone()))?;
    let path = format!("/ws/output/{task}");
    let host = place.address.to_string();
    let mut clients = Vec::new();
    while clients.len() < CROWD && !shared.is_over() {
        let mut client = connect(place.address)?;
        client.write_all(&wire::upgrade_request(&path, &host, &wire::fresh_key()))?;
        clients.push(client);
        shared.note(1);
    }
    let rest = CROWD_RESULTS - CROWD_KEPT;
    publish_for(place, &mut worker, (0..rest).map(|_| task.clone()))?;
    let mut bytes = vec![0; 64 << 10];
    let frame = |id| 2 + 2 + results::text_message(&task, id as u32, false, false).len();
    let length: usize = (0..CROWD_RESULTS).map(frame).sum();
    for client in &mut clients {
        let mut left = length;
        while left > 0 && !shared.is_over() {
            let read = read_some(client, &mut bytes)?;
            left = left.saturating_sub(read);
        }
        shared.note(CROWD_RESULTS);
    }
    Ok(())
}
