//! The byte pipe: listener to backend, nothing parsed, edge-triggered.
//!
//! The splicing rule: a read that fills the buffer turns a direction over to `splice`; a splice of
//! less than `SPLICE_LEAST` turns it back. Kernel pipes come from a pool, because creating and
//! closing one costs more than a message.

use crate::Fault;
use crate::net::{self, Endpoint, Io, Poll};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::pipe::{PipeFlags, SpliceFlags};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// A splice of fewer bytes than this means that the direction no longer streams.
const SPLICE_LEAST: usize = 16 * 1024;
/// The capacity asked for a kernel pipe, and the most one splice may move.
const PIPE_BYTES: usize = 1 << 20;
/// Moves and bytes of one direction before the others get their turn.
const MOVES_PER_WAKE: usize = 16;
const BYTES_PER_WAKE: usize = 1 << 20;
/// Idle kernel pipes that are kept.
const POOL_MAX: usize = 16;
const LISTENER: u64 = u64::MAX;

#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: SocketAddr,
    pub backend: Endpoint,
    pub splice: bool,
    /// The shared buffer's size in bytes.
    pub buffer: usize,
}

/// Serves until the process ends.
pub fn run(settings: Settings) -> Result<(), Fault> {
    net::raise_descriptor_limit();
    let listener =
        net::listen(settings.listen).map_err(|error| format!("cannot listen: {error}"))?;
    serve(settings, &listener).map_err(|error| format!("the pipe broke: {error}"))
}

/// Serves on an existing listener until the process ends.
pub(crate) fn serve(settings: Settings, listener: &TcpListener) -> io::Result<()> {
    let mut poll = Poll::new(256)?;
    poll.add(listener, LISTENER, EventFlags::IN)?;
    let mut pairs: Vec<Option<Pair>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut tools = Tools {
        splice: settings.splice,
        buffer: vec![0; settings.buffer].into_boxed_slice(),
        pool: Vec::new(),
    };
    let (mut yielded, mut again, mut dead) = (Vec::<usize>::new(), Vec::new(), Vec::new());
    loop {
        let count = poll.wait(if yielded.is_empty() { None } else { Some(Duration::ZERO) })?;
        for index in 0..count {
            let (token, flags) = poll.event(index);
            if token == LISTENER {
                while let Some(client) = net::accept(listener)? {
                    admit(&settings.backend, client, &poll, &mut pairs, &mut free)?;
                }
                continue;
            }
            let (slot, side) = ((token >> 1) as usize, (token & 1) as usize);
            if let Some(pair) = pairs[slot].as_mut() {
                match pair.ready(side, flags, &mut tools) {
                    Turn::Wait => {}
                    Turn::More => again.push(slot),
                    Turn::Over => dead.push(slot),
                }
            }
        }
        for slot in yielded.drain(..) {
            if let Some(pair) = pairs[slot].as_mut() {
                match pair.pump(&mut tools) {
                    Turn::Wait => {}
                    Turn::More => again.push(slot),
                    Turn::Over => dead.push(slot),
                }
            }
        }
        // Slots are freed last, so that a late event of this turn reaches no new connection.
        for slot in dead.drain(..) {
            if pairs[slot].take().is_some() {
                free.push(slot);
            }
        }
        again.sort_unstable();
        again.dedup();
        std::mem::swap(&mut yielded, &mut again);
    }
}

fn admit(
    backend: &Endpoint,
    client: OwnedFd,
    poll: &Poll,
    pairs: &mut Vec<Option<Pair>>,
    free: &mut Vec<usize>,
) -> io::Result<()> {
    let Ok(upstream) = net::dial_backend(backend) else { return Ok(()) };
    let slot = free.pop().unwrap_or_else(|| {
        pairs.push(None);
        pairs.len() - 1
    });
    let both = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    poll.add(&client, (slot as u64) << 1, both)?;
    poll.add(&upstream, (slot as u64) << 1 | 1, both)?;
    pairs[slot] = Some(Pair { sockets: [client, upstream], flows: Default::default() });
    Ok(())
}

struct Tools {
    splice: bool,
    buffer: Box<[u8]>,
    pool: Vec<Tunnel>,
}

/// A kernel pipe: what is spliced goes in at `entry` and comes out at `exit`.
struct Tunnel {
    exit: OwnedFd,
    entry: OwnedFd,
}

enum Turn {
    Wait,
    More,
    Over,
}

/// One client and its backend connection; flow 0 goes up, flow 1 goes down.
struct Pair {
    sockets: [OwnedFd; 2],
    flows: [Flow; 2],
}

/// Bytes one way. Owns nothing while its sink is fast enough.
#[derive(Default)]
struct Flow {
    backlog: Option<Box<Backlog>>,
    tunnel: Option<Box<(Tunnel, usize)>>,
    readable: bool,
    /// The source has announced its end: read on until 0, even after a short read.
    closing: bool,
    streaming: bool,
    ended: bool,
}

/// What the sink has not taken, from `sent` on.
struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
}

impl Pair {
    fn ready(&mut self, side: usize, flags: EventFlags, tools: &mut Tools) -> Turn {
        let end = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        let flow = &mut self.flows[side];
        flow.readable |= flags.intersects(EventFlags::IN | end);
        flow.closing |= flags.intersects(end);
        self.pump(tools)
    }

    fn pump(&mut self, tools: &mut Tools) -> Turn {
        let mut more = false;
        for side in 0..2 {
            let (source, sink) = (&self.sockets[side], &self.sockets[1 - side]);
            let flow = &mut self.flows[side];
            if !(flow.readable || flow.backlog.is_some() || flow.tunnel.is_some()) {
                continue;
            }
            match flow.pump(source, sink, tools) {
                Ok(unfinished) => more |= unfinished,
                Err(_) => return Turn::Over,
            }
        }
        match (self.flows.iter().all(|flow| flow.ended), more) {
            (true, _) => Turn::Over,
            (false, true) => Turn::More,
            (false, false) => Turn::Wait,
        }
    }
}

impl Flow {
    /// `Ok(true)`: the budget is used up and there may be more.
    fn pump(&mut self, source: &OwnedFd, sink: &OwnedFd, tools: &mut Tools) -> io::Result<bool> {
        let mut bytes = 0;
        for _ in 0..MOVES_PER_WAKE {
            if !self.flush(sink, tools)? || !self.readable || self.ended {
                return Ok(false);
            }
            let moved = if self.streaming {
                self.splice(source, tools)?
            } else {
                self.relay(source, sink, tools)?
            };
            match moved {
                Io::Moved(count) => bytes += count,
                Io::Blocked => self.readable = false,
                Io::Ended => {
                    self.ended = true;
                    return rustix::net::shutdown(sink, Shutdown::Write)
                        .map(|()| false)
                        .map_err(Into::into);
                }
            }
            if bytes >= BYTES_PER_WAKE {
                break;
            }
        }
        Ok(true)
    }

    /// Whether nothing is buffered.
    fn flush(&mut self, sink: &OwnedFd, tools: &mut Tools) -> io::Result<bool> {
        while let Some(backlog) = &mut self.backlog {
            match net::send(sink, &backlog.bytes[backlog.sent..])? {
                Io::Moved(count) => backlog.sent += count,
                _ => return Ok(false),
            }
            if backlog.sent == backlog.bytes.len() {
                self.backlog = None;
            }
        }
        while let Some((tunnel, held)) = self.tunnel.as_deref_mut() {
            match splice(&tunnel.exit, sink, *held)? {
                Io::Moved(count) if count == *held => {
                    let tunnel = self.tunnel.take().map(|held| held.0);
                    tools.pool.extend(tunnel.filter(|_| tools.pool.len() < POOL_MAX));
                }
                Io::Moved(count) => *held -= count,
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn relay(&mut self, source: &OwnedFd, sink: &OwnedFd, tools: &mut Tools) -> io::Result<Io> {
        let count = match net::recv(source, &mut tools.buffer)? {
            Io::Moved(count) => count,
            other => return Ok(other),
        };
        if count < tools.buffer.len() {
            self.readable = self.closing;
        } else {
            self.streaming = tools.splice;
        }
        let sent = match net::send(sink, &tools.buffer[..count])? {
            Io::Moved(sent) => sent,
            _ => 0,
        };
        if sent < count {
            self.backlog =
                Some(Box::new(Backlog { bytes: tools.buffer[sent..count].to_vec(), sent: 0 }));
        }
        Ok(Io::Moved(count))
    }

    fn splice(&mut self, source: &OwnedFd, tools: &mut Tools) -> io::Result<Io> {
        let tunnel = match tools.pool.pop() {
            Some(tunnel) => tunnel,
            None => {
                let (exit, entry) =
                    rustix::pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
                // Fails once this user's pipe pages are used up; the default size works too.
                let _ = rustix::pipe::fcntl_setpipe_size(&entry, PIPE_BYTES);
                Tunnel { exit, entry }
            }
        };
        let moved = splice(source, &tunnel.entry, PIPE_BYTES)?;
        match moved {
            Io::Moved(count) => {
                self.streaming = count >= SPLICE_LEAST;
                self.tunnel = Some(Box::new((tunnel, count)));
            }
            _ => tools.pool.push(tunnel),
        }
        Ok(moved)
    }
}

fn splice(from: &OwnedFd, to: &OwnedFd, bytes: usize) -> io::Result<Io> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    match rustix::pipe::splice(from, None, to, None, bytes, flags) {
        Ok(0) => Ok(Io::Ended),
        Ok(count) => Ok(Io::Moved(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Io::Blocked),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    /// Sends more than every buffer holds both ways at once through a pipe that serves on a thread,
    /// and compares.
    fn carries_everything(splice: bool) {
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = net::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings {
            listen: address,
            backend: Endpoint::Tcp(backend.local_addr().unwrap()),
            splice,
            buffer: 64 * 1024,
        };
        // The thread ends with the test process: a floor never stops by itself.
        std::thread::spawn(move || serve(settings, &listener));
        let mut client = TcpStream::connect(address).unwrap();
        let (mut server, _) = backend.accept().unwrap();
        let payload: Vec<u8> = (0..8_000_003u32).map(|at| (at % 251) as u8).collect();
        let (mut writer, up) = (client.try_clone().unwrap(), payload.clone());
        let sending = std::thread::spawn(move || {
            writer.write_all(&up).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let (mut answerer, down) = (server.try_clone().unwrap(), payload.clone());
        let answering = std::thread::spawn(move || {
            answerer.write_all(&down).unwrap();
            answerer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let receiving = std::thread::spawn(move || {
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            got
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert!(got == payload, "bytes changed on the way up");
        assert!(receiving.join().unwrap() == payload, "bytes changed on the way down");
        sending.join().unwrap();
        answering.join().unwrap();
    }

    #[test]
    fn the_plain_pipe_carries_every_byte_both_ways_to_the_end() {
        carries_everything(false);
    }

    #[test]
    fn the_splicing_pipe_carries_every_byte_both_ways_to_the_end() {
        carries_everything(true);
    }
}
