//! The stand-in for the AI behind `/ws/input`, so that `aivtuber-gateway demo` works on a machine that has nothing else.
//!
//! It speaks the input protocol that front ends already use, as a backend like any other: a listener on a port of the kernel's
//! choice, reached over a socket and relayed to by the gateway. Nothing else in the house knows that it is there.
//!
//! ```text
//!   ◄ {"type":"system","action":"task_id_assigned","task_id":"<uuid>"}
//!   ► {"type":"text","chunk_id":0,"action":"data_chunk"}      the next message is a piece of the text
//!   ► (binary) the piece, in UTF-8                            as many such pairs as it takes
//!   ► {"action":"upload_complete"}
//!   ◄ {"type":"system","action":"upload_processed","status":"queued","task_id":"<uuid>"}
//! ```
//!
//! With an inbox for results, an answer is published [`THINKING_TIME`] later: a text, and a WAV of a few notes that the words
//! were turned into.
//!
//! Surprising: this is the one place with a blocking thread for each connection. It is the plainest way to write a backend, and
//! [`VISITORS_MAX`] of them are no burden; the loop of the gateway never waits for any of them.

mod answers;
mod server;
mod upload;
mod voice;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use answers::{Studio, publish};
use server::House;

/// Where the stand-in expects its clients, as a path.
pub const PATH: &str = "/ws/input";

/// Connections at a time; one more is answered 503.
pub const VISITORS_MAX: usize = 64;

/// Bytes of one upload's text, all pieces together.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// How long the stand-in takes for an answer.
pub const THINKING_TIME: Duration = Duration::from_secs(1);

/// Who sends no message for so long is closed with 1000.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// Every piece of a handshake, and every write, must get through in this time.
const IO_TIMEOUT: Duration = Duration::from_secs(10);

/// What the stand-in does with an upload.
#[derive(Debug, Clone)]
pub struct Options {
    /// What a task's channel begins with.
    pub channel_prefix: String,
    /// The folder for sound files; made if it is not there.
    pub audio_root: PathBuf,
}

/// The running stand-in. Dropping it stops it, and removes the sound files that it made.
pub struct Demo {
    address: SocketAddr,
    inbox: Arc<OnceLock<SocketAddr>>,
    house: Arc<House>,
    doorman: Option<JoinHandle<()>>,
}

impl Demo {
    /// Listens on a port of the kernel's choice, on this machine only.
    ///
    /// # Errors
    /// When that, or the thread, is refused.
    pub fn start(options: Options) -> io::Result<Demo> {
        let Options { channel_prefix, audio_root } = options;
        let inbox: Arc<OnceLock<SocketAddr>> = Arc::default();
        let publish_at = Arc::clone(&inbox);
        let publish = move |task_id: &str, json: &str| match publish_at.get() {
            Some(&inbox) => publish(inbox, &format!("{channel_prefix}{task_id}"), json),
            None => Err(io::Error::other("there is no inbox to publish in")),
        };
        let studio = Studio::new(Box::new(publish), audio_root, THINKING_TIME);
        Demo::open(Some(studio), inbox, IDLE_TIMEOUT)
    }

    /// From now on answers are published at `inbox`, in the Redis protocol.
    pub fn publish_at(&self, inbox: SocketAddr) {
        let _ = self.inbox.set(inbox);
    }

    fn open(
        studio: Option<Studio>,
        inbox: Arc<OnceLock<SocketAddr>>,
        idle_timeout: Duration,
    ) -> io::Result<Demo> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let house = Arc::new(House::new(studio, idle_timeout));
        let doorman = {
            let house = Arc::clone(&house);
            thread::Builder::new().name("demo".into()).spawn(move || house.open_door(&listener))?
        };
        Ok(Demo { address, inbox, house, doorman: Some(doorman) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a backend's URL.
    pub fn url(&self) -> String {
        format!("ws://{}{PATH}", self.address)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.house.stop();
        // Wakes the listener, which looks at the flag.
        let _ = TcpStream::connect_timeout(&self.address, IO_TIMEOUT);
        if let Some(doorman) = self.doorman.take() {
            let _ = doorman.join();
        }
        self.house.clear();
    }
}

/// What to open and what to try, for a gateway that listens at `gateway`.
pub fn welcome(gateway: SocketAddr) -> String {
    let host = match gateway.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST => {
            "localhost".to_owned()
        }
        IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let at = format!("{host}:{}", gateway.port());
    format!(
        "\n\
         The demo is running: the gateway, and a stand-in for the AI behind {PATH}.\n\
         \n\
         \x20 open   http://{at}/                type something, see the answer and hear it\n\
         \x20 ask    curl http://{at}/health\n\
         \x20 try    python3 -m websockets ws://{at}{PATH}\n\
         \x20        (pip install websockets) and you are told the id of your task\n\
         \n\
         docs/protocol.md has a client to copy and paste. Ctrl-C ends the demo.\n\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_welcome_names_an_address_that_can_be_opened() {
        for (listen, shown) in [
            ("0.0.0.0:8000", "http://localhost:8000/ "),
            ("127.0.0.1:81", "http://localhost:81/ "),
            ("192.0.2.7:8000", "http://192.0.2.7:8000/ "),
            ("[::]:8000", "http://[::1]:8000/ "),
            ("[2001:db8::1]:8000", "http://[2001:db8::1]:8000/ "),
        ] {
            let text = welcome(listen.parse().unwrap());
            assert!(text.contains(shown), "{text}");
        }
    }
}
