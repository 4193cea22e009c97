//! The bare subscriber: one `PSUBSCRIBE`, and each message goes to the client of its task as one
//! text frame and a close.
//!
//! The frame carries the published bytes as they came. That leaves out what any real service must
//! do (read the JSON, write another), and so it is a floor.

use crate::Fault;
use crate::net::{self, Io, Poll};
use crate::resp::{self, Value};
use crate::wire;
use rustix::event::epoll::EventFlags;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

const LISTENER: u64 = u64::MAX;
const REDIS: u64 = u64::MAX - 1;
const READ_BYTES: usize = 64 * 1024;

/// The close code for the client of a task.
const GOODBYE: [u8; 4] = [wire::CLOSE, 2, 0x03, 0xe8];

#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: SocketAddr,
    pub redis: SocketAddr,
    /// The part of a channel's name before the task id.
    pub channel_prefix: String,
}

/// Serves until the process ends.
pub fn run(settings: &Settings) -> Result<(), Fault> {
    net::raise_descriptor_limit();
    let listener =
        net::listen(settings.listen).map_err(|error| format!("cannot listen: {error}"))?;
    let redis =
        net::dial(settings.redis).map_err(|error| format!("cannot reach Redis: {error}"))?;
    let mut poll = Poll::new(256).map_err(|error| error.to_string())?;
    poll.add(&listener, LISTENER, EventFlags::IN).map_err(|error| error.to_string())?;
    poll.add(&redis, REDIS, EventFlags::IN | EventFlags::OUT | EventFlags::ET)
        .map_err(|error| error.to_string())?;
    let mut subscriber = Subscriber {
        prefix: settings.channel_prefix.as_bytes().to_vec(),
        redis,
        subscribed: false,
        heard: Vec::new(),
        buffer: vec![0; READ_BYTES],
        frame: Vec::new(),
        clients: Vec::new(),
        free: Vec::new(),
        waiting: HashMap::new(),
    };
    loop {
        let count = poll.wait(None).map_err(|error| error.to_string())?;
        for index in 0..count {
            match poll.event(index) {
                (LISTENER, _) => subscriber.accept(&listener, &poll)?,
                (REDIS, _) => subscriber.listen_to_redis()?,
                (slot, _) => subscriber.read_client(slot as usize),
            }
        }
    }
}

struct Subscriber {
    prefix: Vec<u8>,
    redis: OwnedFd,
    subscribed: bool,
    /// An incomplete value.
    heard: Vec<u8>,
    buffer: Vec<u8>,
    frame: Vec<u8>,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    waiting: HashMap<Box<[u8]>, usize>,
}

struct Client {
    socket: OwnedFd,
    /// Empty until the upgrade.
    task: Box<[u8]>,
}

impl Subscriber {
    fn accept(&mut self, listener: &TcpListener, poll: &Poll) -> Result<(), Fault> {
        while let Some(socket) = net::accept(listener).map_err(|error| error.to_string())? {
            let slot = self.free.pop().unwrap_or_else(|| {
                self.clients.push(None);
                self.clients.len() - 1
            });
            poll.add(&socket, slot as u64, EventFlags::IN).map_err(|error| error.to_string())?;
            self.clients[slot] = Some(Client { socket, task: Box::default() });
        }
        Ok(())
    }

    fn listen_to_redis(&mut self) -> Result<(), Fault> {
        if !self.subscribed {
            let mut command = Vec::new();
            resp::push_command(&mut command, &[b"PSUBSCRIBE", &[&self.prefix[..], b"*"].concat()]);
            let sent = net::send(&self.redis, &command)
                .map_err(|error| format!("cannot reach Redis: {error}"))?;
            self.subscribed = sent == Io::Moved(command.len());
        }
        loop {
            match net::recv(&self.redis, &mut self.buffer).map_err(|error| error.to_string())? {
                Io::Moved(count) if self.heard.is_empty() => {
                    let buffer = std::mem::take(&mut self.buffer);
                    let used = self.publish(&buffer[..count])?;
                    self.heard.extend_from_slice(&buffer[used..count]);
                    self.buffer = buffer;
                    if count < self.buffer.len() {
                        return Ok(());
                    }
                }
                Io::Moved(count) => {
                    let mut heard = std::mem::take(&mut self.heard);
                    heard.extend_from_slice(&self.buffer[..count]);
                    let used = self.publish(&heard)?;
                    heard.drain(..used);
                    self.heard = heard;
                }
                Io::Blocked => return Ok(()),
                Io::Ended => return Err("Redis hung up".into()),
            }
        }
    }

    /// Passes on every whole message in `bytes`; gives the bytes used.
    fn publish(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let mut used = 0;
        while let Some((value, length)) = resp::parse(&bytes[used..])? {
            used += length;
            let Value::Array(words) = value else {
                return Err("unexpected message from Redis".into());
            };
            if let [Value::Bytes(b"pmessage"), _, Value::Bytes(channel), Value::Bytes(payload)] =
                words[..]
            {
                self.deliver(channel.strip_prefix(&self.prefix[..]).unwrap_or_default(), payload);
            }
        }
        Ok(used)
    }

    fn deliver(&mut self, task: &[u8], payload: &[u8]) {
        let Some(slot) = self.waiting.remove(task) else { return };
        let Some(client) = &self.clients[slot] else { return };
        self.frame.clear();
        wire::push_frame(&mut self.frame, wire::TEXT, payload, None);
        self.frame.extend_from_slice(&GOODBYE);
        if net::send(&client.socket, &self.frame).ok() != Some(Io::Moved(self.frame.len())) {
            self.clients[slot] = None;
            self.free.push(slot);
        }
    }

    fn read_client(&mut self, slot: usize) {
        let Some(client) = self.clients[slot].as_mut() else { return };
        let read = net::recv(&client.socket, &mut self.buffer);
        if let (Ok(Io::Moved(count)), true) = (&read, client.task.is_empty()) {
            // Over loopback a request arrives in one piece; anything else ends the connection
            // below.
            if let Ok(Some(request)) = wire::parse_request(&self.buffer[..*count]) {
                let task = request.target.rsplit('/').next().unwrap_or_default();
                client.task = task.as_bytes().into();
                let answer = wire::upgrade_answer(&request.key);
                if net::send(&client.socket, &answer).ok() == Some(Io::Moved(answer.len())) {
                    self.waiting.insert(client.task.clone(), slot);
                    return;
                }
            }
        }
        if matches!(read, Ok(Io::Blocked)) {
            return;
        }
        // Its Close or its FIN: a waiting client sends nothing else.
        self.waiting.remove(&client.task);
        self.clients[slot] = None;
        self.free.push(slot);
    }
}
