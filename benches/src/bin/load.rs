//! `bench-load`: one workload against one target that already runs.

use aivtuber_gateway_benches::compare::process::{Watch, family, memory};
use aivtuber_gateway_benches::load::work::{self, Echo, Limits, Outcome};
use aivtuber_gateway_benches::load::{Way, World};
use aivtuber_gateway_benches::{Fault, interrupt, net};
use lexopt::prelude::*;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const HELP: &str = "\
bench-load: plays the clients and the backend of a target, and compares every byte

  bench-load echo       [--size 64] [--connections 64] [--rate N] [--idle N] [--streams N]
  bench-load down|up    [--size 65536] [--connections 4]
  bench-load handshake  [--connections 32]
  bench-load hold       [--connections 5000]

  --target ADDR     where the target listens (127.0.0.1:8000)
  --backend ADDR    where to be its backend (127.0.0.1:8001)
  --seconds S       how long, for `hold` how long the pairs stay (2)
  --count N         or how many messages, bytes or handshakes
  --pid ID          the target's process: its run time, and for `hold` its memory
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("bench-load: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Fault> {
    let mut parser = lexopt::Parser::from_env();
    let mut work = None;
    let (mut size, mut connections, mut rate, mut idle, mut streams) = (None, None, None, 0, 0);
    let mut target: SocketAddr = ([127, 0, 0, 1], 8000).into();
    let mut backend: SocketAddr = ([127, 0, 0, 1], 8001).into();
    let (mut limits, mut id) = (Limits::seconds(2.0), None);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Value(name) if work.is_none() => {
                work = Some(name.string().map_err(|error| error.to_string())?)
            }
            Long("size") => size = Some(value::<usize>(&mut parser)?),
            Long("connections") => connections = Some(value::<u64>(&mut parser)?),
            Long("rate") => rate = Some(value::<f64>(&mut parser)?),
            Long("idle") => idle = value(&mut parser)?,
            Long("streams") => streams = value(&mut parser)?,
            Long("target") => target = value(&mut parser)?,
            Long("backend") => backend = value(&mut parser)?,
            Long("seconds") => limits.seconds = value(&mut parser)?,
            Long("count") => limits.count = value(&mut parser)?,
            Long("pid") => id = Some(value::<u32>(&mut parser)?),
            Short('h') | Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            other => return Err(format!("{}\n\n{HELP}", other.unexpected())),
        }
    }
    interrupt::listen()?;
    net::raise_descriptor_limit();
    let listener =
        net::listen(backend).map_err(|error| format!("cannot listen on {backend}: {error}"))?;
    let mut world = World::new(target, listener)?;
    let mut watch = Watch::new(family(id.unwrap_or_default()), None);
    let observe: &mut dyn work::Observe = if id.is_some() { &mut watch } else { &mut () };
    let or = |default: u64| connections.unwrap_or(default);
    match work.as_deref() {
        Some("echo") => {
            let echo = Echo { rate, idle, streams, ..Echo::new(size.unwrap_or(64), or(64)) };
            let outcome = work::echo(&mut world, &echo, limits, observe)?;
            show("messages", outcome, id.map(|_| watch.nanos));
        }
        Some(way @ ("down" | "up")) => {
            let way = if way == "down" { Way::Down } else { Way::Up };
            let outcome =
                work::stream(&mut world, or(4), size.unwrap_or(65_536), way, limits, observe)?;
            show("frames", outcome, id.map(|_| watch.nanos));
        }
        Some("handshake") => {
            let outcome = work::handshakes(&mut world, or(32), limits, observe)?;
            show("handshakes", outcome, id.map(|_| watch.nanos));
        }
        Some("hold") => {
            let family = aivtuber_gateway_benches::compare::process::family(id.unwrap_or_default());
            let before = id.map(|_| memory(&family)).transpose()?;
            work::hold(&mut world, or(5000), limits, observe)?;
            if let Some(before) = before {
                let grown = memory(&family)? as f64 - before as f64;
                println!("{:.0} B/pair", grown / or(5000) as f64);
            }
            let until = Instant::now() + Duration::from_secs_f64(limits.seconds);
            while Instant::now() < until {
                world.turn(Some(until.saturating_duration_since(Instant::now())))?;
            }
        }
        _ => return Err(format!("echo, down, up, handshake or hold?\n\n{HELP}")),
    }
    Ok(())
}

fn show(unit: &str, mut outcome: Outcome, nanos: Option<u64>) {
    println!(
        "{} {unit} in {:.3} s, {:.0} a second",
        outcome.count,
        outcome.seconds,
        outcome.count as f64 / outcome.seconds
    );
    if outcome.bytes > 0 {
        println!("{:.1} MB/s", outcome.stream_rate / 1e6);
    }
    if let (Some(p50), Some(p99)) =
        (outcome.latencies.percentile(50.0), outcome.latencies.percentile(99.0))
    {
        println!("p50 {p50:.1} µs, p99 {p99:.1} µs");
    }
    if let Some(nanos) = nanos {
        println!("{:.2} µs CPU for each of the {unit}", nanos as f64 / 1e3 / outcome.count as f64);
        if outcome.bytes > 0 {
            println!("{:.3} s CPU for a GB", nanos as f64 / outcome.bytes as f64);
        }
    }
}

fn value<T: std::str::FromStr>(parser: &mut lexopt::Parser) -> Result<T, Fault>
where
    T::Err: std::fmt::Display + Send + Sync + std::error::Error + 'static,
{
    parser.value().and_then(|value| value.parse()).map_err(|error| error.to_string())
}
