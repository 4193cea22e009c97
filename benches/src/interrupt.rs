//! INT and TERM end a run cleanly: the programs it started are ended too.
//!
//! The signal only sets a flag, which every wait checks.

use crate::Fault;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on INT and TERM set the flag; a second one ends the process.
pub fn listen() -> Result<(), Fault> {
    let flag = FLAG.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(flag)))
            .map_err(|error| format!("cannot listen for signals: {error}"))?;
    }
    Ok(())
}

/// Whether the run is to end.
pub fn is_set() -> bool {
    FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// A fault when the run is to end.
pub fn check() -> Result<(), Fault> {
    if is_set() { Err("interrupted".into()) } else { Ok(()) }
}
