//! The gateway in a simulated world: scripted peers, a simulated kernel, and time that is only
//! counted.
//!
//! Every world follows from its seed, so a failure can be repeated: `SIM_SEED=123 cargo test --test
//! sim` runs one seed and prints its log and every call. `SIM_SEEDS=100000` runs that many,
//! `SIM_FIRST=500` starts there, and `SIM_SURVEY=1` lists all failing seeds instead of stopping at
//! the first. What is checked is described at the top of [`world`], [`forward`], [`results`],
//! [`speech`] and [`wire`].

#[path = "sim/answers.rs"]
mod answers;
#[path = "sim/audio.rs"]
mod audio;
#[path = "sim/controls.rs"]
mod controls;
#[path = "sim/download.rs"]
mod download;
#[path = "sim/exchanges.rs"]
mod exchanges;
#[path = "sim/forward.rs"]
mod forward;
#[path = "sim/kernel.rs"]
mod kernel;
#[path = "sim/listener.rs"]
mod listener;
#[path = "sim/peers.rs"]
mod peers;
#[path = "sim/process.rs"]
mod process;
#[path = "sim/recordings.rs"]
mod recordings;
#[path = "sim/redis.rs"]
mod redis;
#[path = "sim/results.rs"]
mod results;
#[path = "sim/simulation.rs"]
mod simulation;
#[path = "sim/speech.rs"]
mod speech;
#[path = "sim/waiter.rs"]
mod waiter;
#[path = "sim/wire.rs"]
mod wire;
#[path = "sim/world.rs"]
mod world;

use audio::AudioWorld;
use forward::ForwardWorld;
use kernel::Shared;
use log::{LevelFilter, Log, Metadata, Record};
use results::ResultsWorld;
use simulation::Simulation;
use speech::SpeechWorld;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Once;
use world::World;
use world::failover::FailoverWorld;

/// Faults that worlds have found, and their seeds. A change of the simulation itself may turn a
/// seed into another world. Those that could be written as a short exchange are in `tests/compat`
/// too.
const FOUND: [(&str, u64); 6] = [
    ("a relay that has lost both sinks ends", 801),
    ("a 101 behind an interim answer is passed on", 88),
    ("a second pong to the gateway's pings is not relayed", 901),
    ("a side that waits for the other side is not silent", 242),
    ("a backend that timed out during its handshake gets no Close frame", 142_527),
    ("a client that is gone when a Close frame is due", 195),
];

/// The same of audio files that change.
const FOUND_AUDIO: [(&str, u64); 4] = [
    ("a chunk that a thread has read shows that the file was rewritten", 580),
    ("a file that was rewritten behind the last chunk is not complete", 820),
    ("a client that comes to a file that has changed gets what it is now", 509),
    ("a download of a file that was opened while it was young is of what it is now", 279),
];

/// The same of speech that workers push.
const FOUND_SPEECH: [(&str, u64); 2] = [
    ("a stream behind one that ends in the turn of a STOP does not begin", 1959),
    ("the same where the stream before it was longer", 1793),
];

/// Worlds of relays in an ordinary run.
const SEEDS: u64 = 2000;

/// Worlds of backends of which one is good in an ordinary run.
const FAILOVER_SEEDS: u64 = 500;

/// Worlds of plain HTTP in an ordinary run.
const FORWARD_SEEDS: u64 = 1000;

/// Worlds of results in an ordinary run.
const RESULTS_SEEDS: u64 = 400;

/// Worlds of speech that workers push in an ordinary run.
const SPEECH_SEEDS: u64 = 400;

/// Worlds of audio files that change in an ordinary run.
const AUDIO_SEEDS: u64 = 500;

/// Lines of the transcript that a failure prints.
const LINES_MAX: usize = 400;

#[test]
fn many_worlds_end_well() {
    check_seeds::<World>(SEEDS, "many_worlds_end_well");
}

#[test]
fn no_client_is_lost_while_a_good_backend_is_left() {
    check_seeds::<FailoverWorld>(FAILOVER_SEEDS, "no_client_is_lost_while_a_good_backend_is_left");
}

#[test]
fn plain_http_arrives_as_it_was_sent() {
    check_seeds::<ForwardWorld>(FORWARD_SEEDS, "plain_http_arrives_as_it_was_sent");
}

#[test]
fn results_arrive_in_many_worlds() {
    check_seeds::<ResultsWorld>(RESULTS_SEEDS, "results_arrive_in_many_worlds");
}

#[test]
fn speech_arrives_in_many_worlds() {
    check_seeds::<SpeechWorld>(SPEECH_SEEDS, "speech_arrives_in_many_worlds");
}

#[test]
fn audio_is_of_one_recording_however_files_change() {
    check_seeds::<AudioWorld>(AUDIO_SEEDS, "audio_is_of_one_recording_however_files_change");
}

#[test]
fn worlds_that_found_faults_end_well() {
    for (_, seed) in FOUND {
        check::<World>(seed, Shown::OnFailure, "many_worlds_end_well");
    }
    for (_, seed) in FOUND_AUDIO {
        let test = "audio_is_of_one_recording_however_files_change";
        check::<AudioWorld>(seed, Shown::OnFailure, test);
    }
    for (_, seed) in FOUND_SPEECH {
        check::<SpeechWorld>(seed, Shown::OnFailure, "speech_arrives_in_many_worlds");
    }
}

/// When a transcript is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Always,
    OnFailure,
}

fn check_seeds<W: Simulation>(seeds: u64, test: &str) {
    if let Some(seed) = number("SIM_SEED") {
        return check::<W>(seed, Shown::Always, test);
    }
    let first = number("SIM_FIRST").unwrap_or(0);
    for seed in first..first + number("SIM_SEEDS").unwrap_or(seeds) {
        if std::env::var("SIM_SURVEY").is_ok() {
            if let Err(why) = run::<W>(seed, None) {
                println!("SURVEY {seed}: {why}");
            }
            continue;
        }
        check::<W>(seed, Shown::OnFailure, test);
    }
}

/// Runs the world of `seed`. One that fails runs again, to record its transcript.
fn check<W: Simulation>(seed: u64, shown: Shown, test: &str) {
    let outcome = run::<W>(seed, None);
    if outcome.is_ok() && shown == Shown::OnFailure {
        return;
    }
    let transcript = Rc::new(RefCell::new(Vec::new()));
    let again = run::<W>(seed, Some(&transcript));
    let transcript = transcript.borrow();
    let skipped = match shown {
        Shown::Always => 0,
        Shown::OnFailure => transcript.len().saturating_sub(LINES_MAX),
    };
    let lines = transcript[skipped..].join("\n");
    match outcome {
        Ok(()) => println!("{lines}"),
        Err(why) => panic!(
            "{lines}\n\nseed {seed}: {why}\nagain: {again:?}\nSIM_SEED={seed} cargo test --test sim {test}\n"
        ),
    }
}

type Transcript = Rc<RefCell<Vec<String>>>;

fn run<W: Simulation>(seed: u64, transcript: Option<&Transcript>) -> Result<(), String> {
    let mut world = W::new(seed, transcript.is_some());
    let kernel = Rc::clone(world.kernel());
    if transcript.is_some() {
        trace_log(&kernel);
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Some(transcript) = transcript {
        transcript.borrow_mut().extend(kernel.borrow_mut().trace.take().unwrap_or_default());
        TRACED.with(|traced| traced.borrow_mut().take());
    }
    outcome.unwrap_or_else(|panic| {
        // After a panic the world may be inconsistent: not even its destructors may run.
        let what = panic.downcast_ref::<String>().cloned();
        let what = what.or_else(|| panic.downcast_ref::<&str>().map(|&what| what.to_owned()));
        std::mem::forget(world);
        Err(format!("panic: {}", what.unwrap_or_default()))
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

// ---- the log as a transcript

thread_local! {
    /// The kernel whose trace takes this thread's log lines.
    static TRACED: RefCell<Option<Shared>> = const { RefCell::new(None) };
}

/// Writes log lines into the trace of a simulated kernel.
struct TraceLogger;

fn trace_log(kernel: &Shared) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| log::set_logger(&TraceLogger).expect("no other logger"));
    log::set_max_level(LevelFilter::Debug);
    TRACED.with(|traced| *traced.borrow_mut() = Some(Rc::clone(kernel)));
}

impl Log for TraceLogger {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        TRACED.with(|traced| {
            if let Some(kernel) = &*traced.borrow()
                && let Ok(mut kernel) = kernel.try_borrow_mut()
            {
                kernel.note(|| format!("| {} {}", record.target(), record.args()));
            }
        });
    }

    fn flush(&self) {}
}
