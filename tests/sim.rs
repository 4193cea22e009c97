//! A simulated world around the gateway: scripted peers, a kernel that is not there, time that is only counted.
//!
//! Every world follows from its seed, so one that fails fails again: `SIM_SEED=123 cargo test --test sim` shows it with its
//! log and every call; `SIM_SEEDS=100000` tries so many. What is checked is written at the top of [`world`] and [`wire`].
//! A seed that found a fault is kept below, under the name of the fault.

#[path = "sim/answers.rs"]
mod answers;
#[path = "sim/kernel.rs"]
mod kernel;
#[path = "sim/peers.rs"]
mod peers;
#[path = "sim/process.rs"]
mod process;
#[path = "sim/redis.rs"]
mod redis;
#[path = "sim/results.rs"]
mod results;
#[path = "sim/waiter.rs"]
mod waiter;
#[path = "sim/wire.rs"]
mod wire;
#[path = "sim/world.rs"]
mod world;

use kernel::Shared;
use log::{LevelFilter, Log, Metadata, Record};
use results::ResultsWorld;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Once;
use world::World;

/// What worlds have found, and where. A change of the world itself may make its seeds show something else; the exchanges of
/// `tests/compat` show the faults that could be told as a story.
const FOUND: [(&str, u64); 6] = [
    ("a relay that has lost both sinks ends", 801),
    ("the 101 behind an interim answer is not left lying", 88),
    ("a second pong to pings of ours is kept to ourselves", 901),
    ("who waits for the other side is not silent", 242),
    ("a backend that timed out while it was asked is owed nothing", 142_527),
    ("a client that is gone when it is to be told something", 195),
];

/// Worlds in an ordinary run.
const SEEDS: u64 = 2000;

/// Lines of the transcript that are shown.
const LINES_MAX: usize = 400;

/// Worlds of results in an ordinary run.
const RESULTS_SEEDS: u64 = 400;

#[test]
fn many_worlds_end_well() {
    hold_many::<World>(SEEDS, "many_worlds_end_well");
}

#[test]
fn results_arrive_in_many_worlds() {
    hold_many::<ResultsWorld>(RESULTS_SEEDS, "results_arrive_in_many_worlds");
}

/// A simulated world.
trait Live {
    fn born(seed: u64, is_traced: bool) -> Self;
    /// Lives to its end, and is judged.
    fn run(&mut self) -> Result<(), String>;
    fn kernel(&self) -> &Shared;
}

impl Live for World {
    fn born(seed: u64, is_traced: bool) -> World {
        World::new(seed, is_traced)
    }

    fn run(&mut self) -> Result<(), String> {
        World::run(self)
    }

    fn kernel(&self) -> &Shared {
        &self.kernel
    }
}

impl Live for ResultsWorld {
    fn born(seed: u64, is_traced: bool) -> ResultsWorld {
        ResultsWorld::new(seed, is_traced)
    }

    fn run(&mut self) -> Result<(), String> {
        ResultsWorld::run(self)
    }

    fn kernel(&self) -> &Shared {
        &self.kernel
    }
}

fn hold_many<W: Live>(seeds: u64, test: &str) {
    if let Some(seed) = number("SIM_SEED") {
        return hold::<W>(seed, true, test);
    }
    let first = number("SIM_FIRST").unwrap_or(0);
    for seed in first..first + number("SIM_SEEDS").unwrap_or(seeds) {
        if std::env::var("SIM_SURVEY").is_ok() {
            if let Err(why) = live::<W>(seed, None) {
                println!("SURVEY {seed}: {why}");
            }
            continue;
        }
        hold::<W>(seed, false, test);
    }
}

#[test]
fn worlds_that_found_faults_end_well() {
    for (_, seed) in FOUND {
        hold::<World>(seed, false, "many_worlds_end_well");
    }
}

/// Lives the world of `seed`; a failure is lived again with its transcript.
fn hold<W: Live>(seed: u64, is_shown: bool, test: &str) {
    let Err(why) = live::<W>(seed, None) else {
        if is_shown {
            let transcript = Rc::new(RefCell::new(Vec::new()));
            let _ = live::<W>(seed, Some(&transcript));
            println!("{}", transcript.borrow().join("\n"));
        }
        return;
    };
    let transcript = Rc::new(RefCell::new(Vec::new()));
    let again = live::<W>(seed, Some(&transcript));
    let transcript = transcript.borrow();
    let shown = &transcript
        [transcript.len().saturating_sub(if is_shown { usize::MAX } else { LINES_MAX })..];
    panic!(
        "{}\n\nseed {seed}: {why}\nagain: {again:?}\nSIM_SEED={seed} cargo test --test sim {test}\n",
        shown.join("\n")
    );
}

type Transcript = Rc<RefCell<Vec<String>>>;

fn live<W: Live>(seed: u64, transcript: Option<&Transcript>) -> Result<(), String> {
    let mut world = W::born(seed, transcript.is_some());
    let kernel = Rc::clone(world.kernel());
    if transcript.is_some() {
        listen(&kernel);
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Some(transcript) = transcript {
        transcript.borrow_mut().extend(kernel.borrow_mut().trace.take().unwrap_or_default());
        LISTENER.with(|listener| listener.borrow_mut().take());
    }
    outcome.unwrap_or_else(|panic| {
        // Whatever it holds is not to be looked at any more, not even to be dropped.
        let what = panic.downcast_ref::<String>().cloned();
        let what = what.or_else(|| panic.downcast_ref::<&str>().map(|&what| what.to_owned()));
        std::mem::forget(world);
        Err(format!("panic: {}", what.unwrap_or_default()))
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

// ---- the log as a transcript

thread_local! {
    /// The kernel whose trace takes this thread's log lines.
    static LISTENER: RefCell<Option<kernel::Shared>> = const { RefCell::new(None) };
}

struct Ear;

fn listen(kernel: &Shared) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| log::set_logger(&Ear).expect("no other logger"));
    log::set_max_level(LevelFilter::Debug);
    LISTENER.with(|listener| *listener.borrow_mut() = Some(Rc::clone(kernel)));
}

impl Log for Ear {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        LISTENER.with(|listener| {
            if let Some(kernel) = &*listener.borrow()
                && let Ok(mut kernel) = kernel.try_borrow_mut()
            {
                kernel.note(|| format!("| {} {}", record.target(), record.args()));
            }
        });
    }

    fn flush(&self) {}
}
