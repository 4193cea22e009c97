//! A simulated world around the gateway: scripted peers, a kernel that is not there, time that is only counted.
//!
//! Every world follows from its seed, so one that fails fails again: `SIM_SEED=123 cargo test --test sim` shows it with its
//! log and every call; `SIM_SEEDS=100000` tries so many. What is checked is written at the top of [`world`] and [`wire`].
//! A seed that found a fault is kept below, under the name of the fault.

#[path = "sim/kernel.rs"]
mod kernel;
#[path = "sim/peers.rs"]
mod peers;
#[path = "sim/wire.rs"]
mod wire;
#[path = "sim/world.rs"]
mod world;

use log::{LevelFilter, Log, Metadata, Record};
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

#[test]
fn many_worlds_end_well() {
    if let Some(seed) = number("SIM_SEED") {
        return hold(seed, true);
    }
    let first = number("SIM_FIRST").unwrap_or(0);
    for seed in first..first + number("SIM_SEEDS").unwrap_or(SEEDS) {
        hold(seed, false);
    }
}

#[test]
fn worlds_that_found_faults_end_well() {
    for (_, seed) in FOUND {
        hold(seed, false);
    }
}

/// Lives the world of `seed`; a failure is lived again with its transcript.
fn hold(seed: u64, is_shown: bool) {
    let Err(why) = live(seed, None) else {
        if is_shown {
            let transcript = Rc::new(RefCell::new(Vec::new()));
            let _ = live(seed, Some(&transcript));
            println!("{}", transcript.borrow().join("\n"));
        }
        return;
    };
    let transcript = Rc::new(RefCell::new(Vec::new()));
    let again = live(seed, Some(&transcript));
    let transcript = transcript.borrow();
    let shown = &transcript[transcript.len().saturating_sub(if is_shown { usize::MAX } else { LINES_MAX })..];
    panic!(
        "{}\n\nseed {seed}: {why}\nagain: {again:?}\nSIM_SEED={seed} cargo test --test sim many_worlds\n",
        shown.join("\n")
    );
}

type Transcript = Rc<RefCell<Vec<String>>>;

fn live(seed: u64, transcript: Option<&Transcript>) -> Result<(), String> {
    let mut world = World::new(seed, transcript.is_some());
    if let Some(transcript) = transcript {
        listen(transcript, &world);
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Some(transcript) = transcript {
        transcript.borrow_mut().extend(world.kernel.borrow_mut().trace.take().unwrap_or_default());
        LISTENER.with(|listener| listener.borrow_mut().take());
    }
    outcome.unwrap_or_else(|panic| {
        // Whatever it holds is not to be looked at any more, not even to be dropped.
        let what = panic.downcast_ref::<String>().cloned();
        let what = what.or_else(|| panic.downcast_ref::<&str>().map(|&what| what.to_owned()));
        std::mem::forget(std::mem::replace(&mut world, World::new(0, false)));
        Err(format!("panic: {}", what.unwrap_or_default()))
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

// ---- the log as a transcript

thread_local! {
    /// The kernel whose trace takes this thread's log lines.
    static LISTENER: RefCell<Option<kernel::Shared>> = const { RefCell::new(None) };
}

struct Ear;

fn listen(_: &Transcript, world: &World) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| log::set_logger(&Ear).expect("no other logger"));
    log::set_max_level(LevelFilter::Debug);
    LISTENER.with(|listener| *listener.borrow_mut() = Some(Rc::clone(&world.kernel)));
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
