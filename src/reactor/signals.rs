//! Signals as events: each one writes a byte to a socket that the poll loop watches.

#![expect(
    clippy::disallowed_types,
    reason = "the reactor owns the poll and what is registered with it"
)]

use crate::net::Source;
use libc::SIGXFSZ;
use mio::net::UnixStream;
use mio::{Interest, Registry};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::pipe;
use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// `TERM` or `INT`: drain; the second one stops at once.
    Terminate,
    /// `HUP`: read the configuration again and reopen the log file.
    Reload,
    /// `USR1`: reopen the log file.
    Reopen,
}

const SIGNALS: [(i32, Signal); 4] = [
    (SIGTERM, Signal::Terminate),
    (SIGINT, Signal::Terminate),
    (SIGHUP, Signal::Reload),
    (SIGUSR1, Signal::Reopen),
];

/// The receiving ends of the signals' sockets, in the order of `SIGNALS`.
pub struct Signals {
    pipes: Vec<UnixStream>,
}

impl Signals {
    /// Turns these signals into events. From here on they have no other effect.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn register(registry: &Registry) -> io::Result<Signals> {
        let mut pipes = Vec::new();
        for (index, (number, _)) in SIGNALS.into_iter().enumerate() {
            let (mut receiver, sender) = UnixStream::pair()?;
            registry.register(&mut receiver, Source::Signal(index).into(), Interest::READABLE)?;
            pipe::register(number, sender)?;
            pipes.push(receiver);
        }
        Ok(Signals { pipes })
    }

    /// The next signal that came. Several of one kind in a row may count as one, as signals do
    /// anyway.
    pub fn poll_signal(&mut self) -> Option<Signal> {
        self.pipes.iter_mut().zip(SIGNALS).find_map(|(pipe, (_, signal))| {
            let mut byte = [0; 1];
            matches!(pipe.read(&mut byte), Ok(1)).then_some(signal)
        })
    }
}

/// Makes a file that cannot grow any further (`RLIMIT_FSIZE`) an error of the write, as a full disk
/// is. By default, the kernel's signal for it ends the process. To be called before anything is
/// written.
///
/// # Errors
/// What the system says.
pub fn survive_file_size_limit() -> io::Result<()> {
    // Only its handler counts.
    signal_hook::flag::register(SIGXFSZ, Arc::<AtomicBool>::default()).map(drop)
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Signal::Terminate => "terminate",
            Signal::Reload => "reload",
            Signal::Reopen => "reopen",
        })
    }
}
