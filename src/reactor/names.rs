//! Which names are being looked up, and which come next; no thread and no clock.
//!
//! The system's resolver blocks for as long as its servers do not answer, 30 seconds and more. So
//! that a few names that hang cannot keep all others waiting:
//!
//! - a name is looked up once at a time, however many ask for it;
//! - names that were slow last time, or are by now, get at most [`SLOW_THREADS_MAX`] of the
//!   [`THREADS`]. The others are left to names that are expected to be quick.
//!
//! Only if as many names as there are threads hang for the first time, all at once, do others wait:
//! until the first of them fails, once.

use crate::base::moment::Moment;
use crate::service::name::{LookUpError, Name};
use crate::session::jobs::{JobAnswer, NameOwner};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Threads that look up names.
pub const THREADS: usize = 6;

/// How many of them may be busy with slow names before another name known to be slow has to wait.
const SLOW_THREADS_MAX: usize = 3;

/// A look-up that takes longer is slow.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// Names known to be slow; the one that was noted first is forgotten first.
const SLOW_NAMES_MAX: usize = 64;

/// Names that wait for a thread. One more is answered with an error at once.
const WAITING_MAX: usize = 1024;

/// The addresses of a host, or why none are known.
pub type FoundAddresses = Result<Vec<IpAddr>, LookUpError>;

/// The names under way and those that wait.
#[derive(Debug, Default)]
pub struct Names {
    running: Vec<RunningLookUp>,
    waiting: VecDeque<WaitingName>,
    slow: VecDeque<String>,
}

#[derive(Debug)]
struct WaitingName {
    host: String,
    owners: Vec<(NameOwner, u16)>,
}

#[derive(Debug)]
struct RunningLookUp {
    host: String,
    owners: Vec<(NameOwner, u16)>,
    since: Moment,
}

impl Names {
    /// Notes that `owner` wants the addresses of `name`. An answer is returned if the name cannot
    /// be looked up now.
    pub fn ask(&mut self, name: Name, owner: NameOwner) -> Option<JobAnswer> {
        let Name { host, port } = name;
        if let Some(running) = self.running.iter_mut().find(|running| running.host == host) {
            running.owners.push((owner, port));
        } else if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.host == host) {
            waiting.owners.push((owner, port));
        } else if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(WaitingName { host, owners: vec![(owner, port)] });
        } else {
            return Some(JobAnswer::LookedUp {
                owner,
                found: Err(LookUpError::Shortage { errno: libc::EAGAIN }),
            });
        }
        None
    }

    /// The next host for a thread, if one is free for it. It is under way from now on.
    pub fn poll(&mut self, now: Moment) -> Option<&str> {
        if self.running.len() >= THREADS {
            return None;
        }
        let slow = self.running.iter().filter(|running| self.is_slow(running, now)).count();
        let may_be_slow = slow < SLOW_THREADS_MAX;
        let next = self
            .waiting
            .iter()
            .position(|waiting| may_be_slow || !self.slow.contains(&waiting.host))?;
        let WaitingName { host, owners } = self.waiting.remove(next)?;
        self.running.push(RunningLookUp { host, owners, since: now });
        self.running.last().map(|running| running.host.as_str())
    }

    /// A thread is done with `host`: the answers for everything that asked.
    pub fn handle_found(
        &mut self,
        host: &str,
        found: &FoundAddresses,
        now: Moment,
    ) -> Vec<JobAnswer> {
        let Some(index) = self.running.iter().position(|running| running.host == host) else {
            return Vec::new();
        };
        let running = self.running.swap_remove(index);
        self.slow.retain(|slow| slow != host);
        if running.since + SLOW_AFTER <= now {
            self.slow.push_back(running.host);
            if self.slow.len() > SLOW_NAMES_MAX {
                self.slow.pop_front();
            }
        }
        let answer = |(owner, port)| {
            let found = found.clone();
            let found =
                found.map(|ips| ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect());
            JobAnswer::LookedUp { owner, found }
        };
        running.owners.into_iter().map(answer).collect()
    }

    fn is_slow(&self, running: &RunningLookUp, now: Moment) -> bool {
        running.since + SLOW_AFTER <= now || self.slow.contains(&running.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::link::RedisRole;

    const SECOND: Duration = Duration::from_secs(1);

    fn ask(names: &mut Names, host: &str) {
        let name = Name { host: host.into(), port: 80 };
        assert!(names.ask(name, NameOwner::Redis(RedisRole::Subscriber)).is_none());
    }

    fn poll_all(names: &mut Names, now: Moment) -> Vec<String> {
        std::iter::from_fn(|| names.poll(now).map(str::to_owned)).collect()
    }

    #[test]
    fn a_name_is_looked_up_once_for_all_who_ask() {
        let (mut names, now) = (Names::default(), Moment::START);
        let name = |port| Name { host: "a".into(), port };
        assert!(names.ask(name(80), NameOwner::Redis(RedisRole::Subscriber)).is_none());
        assert_eq!(names.poll(now), Some("a"));
        assert!(names.ask(name(81), NameOwner::Redis(RedisRole::Store)).is_none());
        assert_eq!(names.poll(now), None);
        let found = Ok(vec!["192.0.2.1".parse().unwrap()]);
        let answers = names.handle_found("a", &found, now);
        let answers: Vec<_> = answers
            .into_iter()
            .map(|answer| match answer {
                JobAnswer::LookedUp { owner, found } => (owner, found.unwrap()[0].to_string()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            answers,
            [
                (NameOwner::Redis(RedisRole::Subscriber), "192.0.2.1:80".into()),
                (NameOwner::Redis(RedisRole::Store), "192.0.2.1:81".into())
            ]
        );
        assert!(names.handle_found("a", &found, now).is_empty());
    }

    #[test]
    fn names_that_hang_leave_threads_to_the_others() {
        let (mut names, mut now) = (Names::default(), Moment::START);
        let hanging: Vec<String> = (0..THREADS).map(|n| format!("hangs{n}")).collect();
        hanging.iter().for_each(|host| ask(&mut names, host));
        assert_eq!(poll_all(&mut names, now), hanging);
        // The first time nothing is known of them, and another name waits until one of them has
        // failed.
        ask(&mut names, "good");
        assert_eq!(names.poll(now), None);
        now += 30 * SECOND;
        for host in &hanging {
            assert_eq!(
                names
                    .handle_found(host, &Err(LookUpError::NotFound("timed out".into())), now)
                    .len(),
                1
            );
        }
        assert_eq!(poll_all(&mut names, now), ["good"]);
        names.handle_found("good", &Ok(Vec::new()), now);
        // From then on they get half of the threads.
        hanging.iter().for_each(|host| ask(&mut names, host));
        assert_eq!(poll_all(&mut names, now), hanging[..SLOW_THREADS_MAX]);
        ask(&mut names, "good");
        assert_eq!(poll_all(&mut names, now), ["good"]);
        // One that is quick again is like any other.
        names.handle_found(&hanging[0], &Ok(Vec::new()), now);
        assert_eq!(poll_all(&mut names, now), hanging[SLOW_THREADS_MAX..=SLOW_THREADS_MAX]);
        ask(&mut names, &hanging[0]);
        assert_eq!(poll_all(&mut names, now), hanging[..1]);
    }

    #[test]
    fn too_many_waiting_names_are_answered_with_an_error() {
        let mut names = Names::default();
        (0..WAITING_MAX).for_each(|n| ask(&mut names, &format!("n{n}")));
        let name = |host: &str| Name { host: host.into(), port: 1 };
        assert!(names.ask(name("one more"), NameOwner::Redis(RedisRole::Subscriber)).is_some());
        assert!(names.ask(name("n0"), NameOwner::Redis(RedisRole::Subscriber)).is_none());
    }
}
