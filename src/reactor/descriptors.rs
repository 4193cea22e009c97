//! The file descriptors that this process may have, and a reserve of them.
//!
//! A new connection is the only thing that can be rejected without harm. So clients get no more
//! connections while a few descriptors are still free: the ones that are connected already need
//! theirs for backends, files and Redis, and an orchestrator that asks whether the gateway is alive
//! needs one for its question.
//!
//! Nothing is counted. The kernel gives every new socket the lowest free number, so a socket with
//! number n shows that at least n descriptors are in use.

use log::warn;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::os::fd::RawFd;

/// The largest reserve; a smaller limit has a smaller one.
const RESERVE_MAX: u64 = 128;

/// The reserve's share of the limit.
const RESERVE_SHARE: u64 = 8;

/// The share of the limit that files with speech may have, and the most of them.
const SPEECH_SHARE: u64 = 4;
const SPEECH_FILES_MAX: u64 = 65_536;

/// What the gateway itself needs, besides connections: listeners, signals, the log, Redis, pipes.
const OWN: u64 = 64;

/// The limit of open descriptors.
#[derive(Debug, Clone, Copy)]
pub struct Descriptors {
    /// `u64::MAX`: no limit.
    limit: u64,
}

/// How many descriptors are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supply {
    /// More than the reserve.
    Enough,
    /// Only the reserve is left.
    Low,
    /// Half of the reserve is used up.
    Exhausted,
}

impl Descriptors {
    /// Raises the limit of this process to what the system allows.
    pub fn raise_limit() -> Descriptors {
        let limit = getrlimit(Resource::Nofile);
        if limit.current < limit.maximum || limit.maximum.is_none() {
            let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
            if let Err(error) = setrlimit(Resource::Nofile, raised) {
                warn!(target: "gateway", "cannot raise the limit of open files: {error}");
            }
        }
        Descriptors { limit: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) }
    }

    /// Warns if `max_connections` need more descriptors than there are: a relayed one has two.
    pub fn warn_if_short_for(&self, max_connections: usize) {
        if let Some((needed, limit)) = self.shortage_for(max_connections) {
            warn!(
                target: "gateway",
                "max_connections={max_connections} may need {needed} file descriptors, and {limit} are allowed (RLIMIT_NOFILE): clients are refused when they run out",
            );
        }
    }

    /// How many descriptors `max_connections` need and how many there are, if that is fewer.
    pub fn shortage_for(&self, max_connections: usize) -> Option<(u64, u64)> {
        let needed = 2 * max_connections as u64 + self.reserve() + OWN;
        (needed > self.limit).then_some((needed, self.limit))
    }

    /// Files with speech that may be open at once: those of streams that are kept. Without a bound,
    /// they would leave no descriptors for clients.
    pub fn speech_files(&self) -> usize {
        (self.limit / SPEECH_SHARE).min(SPEECH_FILES_MAX) as usize
    }

    /// What the number of a descriptor that was just opened says about the supply.
    pub fn supply(&self, newest: RawFd) -> Supply {
        let in_use = newest as u64;
        if in_use < self.limit - self.reserve() {
            Supply::Enough
        } else if in_use < self.limit - self.reserve() / 2 {
            Supply::Low
        } else {
            Supply::Exhausted
        }
    }

    fn reserve(&self) -> u64 {
        (self.limit / RESERVE_SHARE).min(RESERVE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_limit_has_a_small_reserve() {
        let supply = |limit, newest| Descriptors { limit }.supply(newest);
        for (limit, low_from, exhausted_from) in
            [(48, 42, 45), (1024, 896, 960), (20_000, 19_872, 19_936)]
        {
            assert_eq!(supply(limit, low_from - 1), Supply::Enough, "{limit}");
            assert_eq!(supply(limit, low_from), Supply::Low, "{limit}");
            assert_eq!(supply(limit, exhausted_from - 1), Supply::Low, "{limit}");
            assert_eq!(supply(limit, exhausted_from), Supply::Exhausted, "{limit}");
        }
        assert_eq!(supply(u64::MAX, RawFd::MAX), Supply::Enough);
        let speech = [48, 20_000, u64::MAX].map(|limit| Descriptors { limit }.speech_files());
        assert_eq!(speech, [12, 5000, 65_536]);
    }

    #[test]
    fn the_limit_is_raised_to_what_is_allowed() {
        let limit = Descriptors::raise_limit().limit;
        assert_eq!(Some(limit), getrlimit(Resource::Nofile).maximum.or(Some(u64::MAX)));
    }
}
