//! One run of one row against one target, and what it measured.

use super::metrics::Scraper;
use super::process::Watch;
use super::rows::Row;
use super::targets::{CHANNEL_PREFIX, Instance, Place};
use crate::Fault;
use crate::load::World;
use crate::load::results::Shape;
use crate::load::work::Limits;
use crate::tls::Handshake;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

/// The figures of one run by the metric's name.
pub type Sample = BTreeMap<&'static str, f64>;

/// What a row's function is given.
pub struct Run<'a> {
    pub place: &'a Place,
    pub instance: &'a Instance,
    pub listener: &'a TcpListener,
    /// The backend of targets that reach it over a Unix socket.
    pub unix_listener: &'a OwnedFd,
    pub seconds: f64,
    /// Use fewer connections and results where the full number takes long.
    pub quick: bool,
    /// Whether this pass counts system calls; its other figures are not kept.
    pub counting: bool,
    /// The counted system calls and the unit of work they are divided by.
    pub calls: Option<Calls>,
    pub audio: &'a Arc<Vec<u8>>,
    pub audio_small: &'a Arc<Vec<u8>>,
    pub page: &'a Arc<Vec<u8>>,
}

/// System calls of a counting pass.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    pub by_name: BTreeMap<String, u64>,
    /// Units of work, in the row's unit.
    pub units: f64,
    /// The unit's name.
    pub unit: &'static str,
}

impl Run<'_> {
    /// Runs the row, and reads `/metrics` in the meantime if the target wants that.
    pub fn perform(&mut self, row: &Row) -> Result<Sample, Fault> {
        let scraper =
            self.instance.target.is_scraped().then(|| Scraper::start(self.instance.address));
        let sample = (row.run)(self);
        scraper.map_or(Ok(0), Scraper::finish)?;
        sample
    }

    /// A fresh world around the target.
    pub fn world(&self) -> Result<World, Fault> {
        let listener = match self.instance.target.dials_unix() {
            true => self.unix_listener.as_fd(),
            false => self.listener.as_fd(),
        };
        let listener = listener
            .try_clone_to_owned()
            .map_err(|error| format!("cannot share the listener: {error}"))?;
        let mut world = World::new(self.instance.address, listener)?;
        if self.instance.target.has_tls() {
            world.use_tls(self.place.certificate.client(Handshake::Full)?);
        }
        Ok(world)
    }

    pub fn watch(&self) -> Watch {
        let counts: Option<PathBuf> = self.counting.then(|| self.place.dir.join("strace.counts"));
        Watch::new(self.instance.family(), counts)
    }

    pub fn limits(&self) -> Limits {
        Limits::seconds(self.seconds)
    }

    /// Keeps what a counting pass counted.
    pub fn keep_calls(&mut self, watch: &mut Watch, units: f64, unit: &'static str) {
        if self.counting {
            self.calls = Some(Calls { by_name: std::mem::take(&mut watch.calls), units, unit });
        }
    }

    pub fn publish_at(&self) -> Result<SocketAddr, Fault> {
        self.instance.publish_at.ok_or_else(|| "there is nowhere to publish".into())
    }

    pub fn channel_prefix(&self) -> &'static str {
        CHANNEL_PREFIX
    }

    /// The form of results at this target's clients.
    pub fn shape(&self) -> Shape {
        if self.instance.target.copies_results() { Shape::AsPublished } else { Shape::Delivered }
    }
}
