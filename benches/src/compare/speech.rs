//! Rows of speech that is made while it is heard.

use super::process::{Awake, Watch};
use super::rows::DISTURBANCE;
use super::run::{Run, Sample};
use super::targets::Instance;
use crate::Fault;
use crate::load::speech::{self, Source, Speech};
use crate::load::work::Observe;

const MIB: f64 = (1 << 20) as f64;
/// 20 ms of 24 kHz 16-bit speech, and how many of them a second of speech has.
const CHUNK_BYTES: usize = 960;
const CHUNKS_PER_SECOND: f64 = 50.0;
/// Streams at a time. A quick run has fewer.
const STREAMS: usize = 1000;
const STREAMS_QUICK: usize = 200;

/// How speech gets to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// Appended to files.
    Files,
    /// Pushed over WebSockets.
    Ingest,
}

/// Speech as base64, as fast as it goes.
pub fn ingest(run: &mut Run<'_>) -> Result<Sample, Fault> {
    let takes_speech = run.instance.target.takes_speech();
    let source = if takes_speech { Source::Base64 } else { Source::Relayed };
    let load = Speech { source, streams: 8, chunk_bytes: 64 << 10, pace: None };
    let mut watch = run.watch();
    let outcome = speech::run(run.instance.address, run.listener, &load, run.limits(), &mut watch)?;
    run.keep_calls(&mut watch, outcome.bytes as f64 / MIB, "MiB");
    Ok(Sample::from([
        ("cpu_gb", watch.nanos as f64 / outcome.bytes as f64),
        ("rate", outcome.bytes as f64 / outcome.seconds / 1e6),
        (DISTURBANCE, watch.disturbance),
    ]))
}

/// Many streams at the pace of speech.
pub fn streams(run: &mut Run<'_>, feed: Feed) -> Result<Sample, Fault> {
    let streams = if run.quick { STREAMS_QUICK } else { STREAMS };
    let source = source(run, feed);
    let pace = Some(CHUNKS_PER_SECOND);
    let load = Speech { source, streams, chunk_bytes: CHUNK_BYTES, pace };
    let mut weigh = Weigh { watch: run.watch(), instance: run.instance, memory: 0.0 };
    let outcome = speech::run(run.instance.address, run.listener, &load, run.limits(), &mut weigh)?;
    let Weigh { mut watch, memory, .. } = weigh;
    run.keep_calls(&mut watch, outcome.count as f64, "chunk");
    Ok(Sample::from([
        ("cpu", watch.nanos as f64 / 1e3 / outcome.count as f64),
        ("busy", watch.nanos as f64 / 1e9 / outcome.seconds),
        ("memory", (memory - run.instance.start_memory as f64) / streams as f64),
        (DISTURBANCE, watch.disturbance),
    ]))
}

/// From a chunk that is made to its client.
pub fn latency(run: &mut Run<'_>, feed: Feed) -> Result<Sample, Fault> {
    let _awake = Awake::keep(run.place.cores)?;
    let source = source(run, feed);
    let pace = Some(CHUNKS_PER_SECOND);
    let load = Speech { source, streams: 10, chunk_bytes: CHUNK_BYTES, pace };
    let mut limits = run.limits();
    // 1 % of 500 chunks are only five.
    limits.seconds *= 3.0;
    let mut watch = run.watch();
    let mut outcome = speech::run(run.instance.address, run.listener, &load, limits, &mut watch)?;
    Ok(Sample::from([
        ("p50", outcome.latencies.percentile(50.0).unwrap_or_default()),
        ("p99", outcome.latencies.percentile(99.0).unwrap_or_default()),
    ]))
}

fn source<'r>(run: &Run<'r>, feed: Feed) -> Source<'r> {
    match feed {
        Feed::Ingest => Source::Binary,
        Feed::Files => {
            let publish = run.instance.publish_at.map(|at| (at, run.channel_prefix()));
            Source::Files { folder: &run.place.audio_root, publish }
        }
    }
}

/// Also weighs the target in the end, before its connections close.
struct Weigh<'a> {
    watch: Watch,
    instance: &'a Instance,
    memory: f64,
}

impl Observe for Weigh<'_> {
    fn begin(&mut self) -> Result<(), Fault> {
        self.watch.begin()
    }

    fn end(&mut self) -> Result<(), Fault> {
        self.watch.end()?;
        self.memory = self.instance.memory()? as f64;
        Ok(())
    }
}
