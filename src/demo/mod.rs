//! The stand-in for the AI behind `/ws/input`, so that `aivtuber-gateway demo` needs nothing else.
//!
//! It speaks the input protocol of existing front ends, as a backend like any other: it listens on
//! a port that the kernel chooses, and the gateway relays to it. No other part of the program knows
//! about it.
//!
//! ```text
//!   ◄ {"type":"system","action":"task_id_assigned","task_id":"<uuid>"}
//!   ► {"type":"text","chunk_id":0,"action":"data_chunk"}      announces a piece of the text
//!   ► (binary) the piece, in UTF-8                            as many such pairs as needed;
//!                                                    or "audio", and a piece of a recording
//!   ► {"action":"upload_complete"}
//!   ◄ {"type":"system","action":"upload_processed","status":"queued","task_id":"<uuid>"}
//! ```
//!
//! With an inbox for results, it publishes an answer at once: a text, which says what it heard if
//! that was a recording, and a WAV file with a tune made of the words. The file grows note by note
//! while it is delivered, until `STOP` comes on the task's control channel.
//!
//! It has a blocking thread for each connection, and one for each answer that is being made, unlike
//! the gateway. That is the simplest way to write a backend, and twice [`CONNECTIONS_MAX`] threads
//! are no burden.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the stand-in runs on threads of its own and may wait"
)]

mod answers;
mod recording;
mod server;
mod upload;
mod voice;
mod welcome;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use answers::{Responder, TaskControl, publish};
use log::debug;
use server::DemoServer;
pub use welcome::{HttpsWelcome, welcome};

/// The path of the input protocol.
pub const PATH: &str = "/ws/input";

/// Connections at a time; one more gets 503.
pub const CONNECTIONS_MAX: usize = 64;

/// Bytes of one upload's text, all pieces together.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Bytes of one uploaded recording, all pieces together.
pub const RECORDING_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Between one note of an answer and the next, which lasts longer: speech is usually made faster
/// than it is heard.
const NOTE_PAUSE: Duration = Duration::from_millis(250);

/// A client that sends no message for this long is closed with 1000.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// For each read of a handshake and each write.
const IO_TIMEOUT: Duration = Duration::from_secs(10);

/// How the stand-in answers.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// The beginning of a task's channel name.
    pub channel_prefix: String,
    /// The beginning of the name of a task's control channel.
    pub control_prefix: String,
    /// The folder for sound files; created if it is missing.
    pub audio_root: PathBuf,
}

/// The running stand-in. Dropping it stops it and removes its sound files.
pub struct Demo {
    address: SocketAddr,
    inbox: Arc<OnceLock<SocketAddr>>,
    server: Arc<DemoServer>,
    listening: Option<JoinHandle<()>>,
}

impl Demo {
    /// Listens on a port that the kernel chooses, on this machine only.
    ///
    /// # Errors
    /// When the system refuses the folder, the socket or the thread.
    pub fn start(options: DemoOptions) -> io::Result<Demo> {
        let DemoOptions { channel_prefix, control_prefix, audio_root } = options;
        std::fs::create_dir_all(&audio_root)?;
        let inbox: Arc<OnceLock<SocketAddr>> = Arc::default();
        let publish_at = Arc::clone(&inbox);
        let publish = move |task_id: &str, json: &str| match publish_at.get() {
            Some(&inbox) => publish(inbox, &format!("{channel_prefix}{task_id}"), json),
            None => Err(io::Error::other("there is no inbox to publish in")),
        };
        let listen_at = Arc::clone(&inbox);
        let listen = move |task_id: &str| {
            let Some(&inbox) = listen_at.get() else { return TaskControl::NONE };
            TaskControl::subscribe(inbox, &format!("{control_prefix}{task_id}")).unwrap_or_else(
                |error| {
                    debug!(target: "demo", "task {task_id} cannot be stopped: {error}");
                    TaskControl::NONE
                },
            )
        };
        let responder = Responder {
            publish: Box::new(publish),
            listen: Box::new(listen),
            audio_root,
            pause: NOTE_PAUSE,
            files: Mutex::default(),
        };
        Demo::open(Some(responder), inbox, IDLE_TIMEOUT)
    }

    /// Publishes answers at `inbox` from now on, in the Redis protocol.
    pub fn publish_at(&self, inbox: SocketAddr) {
        let _ = self.inbox.set(inbox);
    }

    fn open(
        responder: Option<Responder>,
        inbox: Arc<OnceLock<SocketAddr>>,
        idle_timeout: Duration,
    ) -> io::Result<Demo> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let server = Arc::new(DemoServer::new(responder, idle_timeout));
        let listening = {
            let server = Arc::clone(&server);
            thread::Builder::new()
                .name("demo".into())
                .spawn(move || server.accept_all(&listener))?
        };
        Ok(Demo { address, inbox, server, listening: Some(listening) })
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
        self.server.stop();
        // Wakes the listener, which then sees that it is to stop.
        let _ = TcpStream::connect_timeout(&self.address, IO_TIMEOUT);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
        self.server.clear();
    }
}
