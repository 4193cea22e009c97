//! Rows of plain HTTP: files, and requests that are passed on.

use super::process::{Watch, memory};
use super::rows::DISTURBANCE;
use super::run::{Run, Sample};
use super::targets::{API, AUDIO, FILES, Instance, PAGE};
use crate::Fault;
use crate::load::http::{self, Content, Exchange};
use crate::load::work::Observe;
use std::sync::Arc;

const MIB: f64 = (1 << 20) as f64;
const JSON_BYTES: usize = 1024;
const LONG_BYTES: u64 = 64 << 20;

/// Which way long content goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Up,
    Down,
}

/// A file of a kilobyte, again and again.
pub fn small_file(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let content = Content::of(Arc::clone(run.page));
    exchange(run, &file(PAGE, content), 64, Unit::Request)
}

/// A file of 8 MiB.
pub fn large_file(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let content = Content::of(Arc::clone(run.audio));
    exchange(run, &file(AUDIO, content), 8, Unit::Bytes)
}

/// JSON there and back.
pub fn json(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let exchanged = Exchange {
        path: format!("{API}chat"),
        upload: Some(Content::json(JSON_BYTES)),
        download: Content::json(JSON_BYTES),
        media_type: "application/json",
    };
    exchange(run, &exchanged, 64, Unit::Request)
}

/// Content that no target should hold as a whole.
pub fn long(run: &mut Run<'_>, way: Way) -> Result<Sample, Fault> {
    let (long, short) = (Content::random(LONG_BYTES), Content::json(64));
    let (upload, download) = match way {
        Way::Up => (Some(long), short),
        Way::Down => (None, long),
    };
    let media_type = "application/octet-stream";
    let exchanged = Exchange { path: format!("{API}file"), upload, download, media_type };
    exchange(run, &exchanged, 4, Unit::Bytes)
}

/// What the cost is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Request,
    Bytes,
}

fn file(name: &str, download: Content) -> Exchange {
    Exchange { path: format!("{FILES}{name}"), upload: None, download, media_type: "" }
}

fn exchange(
    run: &mut Run<'_>,
    exchange: &Exchange,
    clients: usize,
    unit: Unit,
) -> Result<Sample, Fault> {
    let mut weigh = Weigh { watch: run.watch(), instance: run.instance, memory: 0 };
    let (address, limits) = (run.instance.address, run.limits());
    let mut outcome = http::run(address, run.listener, exchange, clients, limits, &mut weigh)?;
    let Weigh { mut watch, memory, .. } = weigh;
    let (count, bytes) = (outcome.count as f64, outcome.bytes as f64);
    match unit {
        Unit::Request => run.keep_calls(&mut watch, count, "request"),
        Unit::Bytes => run.keep_calls(&mut watch, bytes / MIB, "MiB"),
    }
    let rate = if unit == Unit::Request { count } else { bytes / 1e6 };
    Ok(Sample::from([
        ("cpu", watch.nanos as f64 / 1e3 / count),
        ("cpu_gb", watch.nanos as f64 / bytes),
        ("p50", outcome.latencies.percentile(50.0).unwrap_or_default()),
        ("p99", outcome.latencies.percentile(99.0).unwrap_or_default()),
        ("rate", rate / outcome.seconds),
        ("growth", (memory as f64 - run.instance.start_memory as f64) / MIB),
        (DISTURBANCE, watch.disturbance),
    ]))
}

/// Also weighs the target while it is busy.
struct Weigh<'a> {
    watch: Watch,
    instance: &'a Instance,
    memory: u64,
}

impl Observe for Weigh<'_> {
    fn begin(&mut self) -> Result<(), Fault> {
        self.watch.begin()
    }

    fn end(&mut self) -> Result<(), Fault> {
        self.watch.end()
    }

    fn midway(&mut self) -> Result<(), Fault> {
        self.memory = memory(&self.instance.family())?;
        Ok(())
    }
}
