//! The timer that ends a wait for events: a `timerfd`, registered like a socket.
//!
//! It is rarely set. A timeout passed to each wait would have the kernel arm and disarm a timer for
//! every message of a quiet gateway, although deadlines nearly always move later: a connection that
//! sends something will be idle later. So the timer stays at the earliest moment it was ever asked
//! for, fires there, perhaps with nothing due, and is set anew.

#![expect(
    clippy::disallowed_types,
    reason = "the reactor owns the poll and what is registered with it"
)]

use crate::base::moment::Moment;
use crate::net::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// The timer of the loop; see the module's description.
pub struct Alarm {
    timer: OwnedFd,
    /// When it fires; `None` while it is not set.
    fires_at: Option<Moment>,
}

impl Alarm {
    /// A timer that is not set.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn register(registry: &Registry) -> io::Result<Alarm> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        registry.register(
            &mut SourceFd(&timer.as_raw_fd()),
            Source::Alarm.into(),
            Interest::READABLE,
        )?;
        Ok(Alarm { timer, fires_at: None })
    }

    /// Makes it fire at `at` or earlier. `now` is the moment of the turn.
    ///
    /// # Errors
    /// What `timerfd_settime(2)` reports; none is expected.
    pub fn set(&mut self, at: Moment, now: Moment) -> io::Result<()> {
        if self.fires_at.is_some_and(|fires_at| fires_at <= at) {
            return Ok(());
        }
        // A wait of zero would disarm it.
        let wait = (at - now).max(Duration::from_nanos(1));
        let value = Timespec::try_from(wait)
            .unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.fires_at = Some(at);
        Ok(())
    }

    /// It has fired. Nothing is read from it: its events are edge-triggered, and setting it again
    /// also makes it unreadable.
    pub fn handle_fired(&mut self) {
        self.fires_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll};
    use rustix::event::{PollFd, PollFlags};

    #[test]
    fn it_fires_at_the_earliest_moment_and_again_when_it_is_set_again() {
        let mut poll = Poll::new().unwrap();
        let mut alarm = Alarm::register(poll.registry()).unwrap();
        let mut events = Events::with_capacity(4);
        let now = Moment::START;
        for _ in 0..3 {
            alarm.set(now + Duration::from_secs(3600), now).unwrap();
            alarm.set(now + Duration::from_millis(1), now).unwrap();
            alarm.set(now + Duration::from_secs(60), now).unwrap();
            poll.poll(&mut events, None).unwrap();
            assert_eq!(
                events.iter().map(|event| Source::from(event.token())).collect::<Vec<_>>(),
                [Source::Alarm]
            );
            alarm.handle_fired();
        }
    }

    /// The timer may fire during a turn. The next wait reports it, unless it was set to another
    /// moment in between; then that one is reported, and nothing twice.
    #[test]
    fn firing_during_a_turn_ends_the_next_wait() {
        let mut poll = Poll::new().unwrap();
        let mut alarm = Alarm::register(poll.registry()).unwrap();
        let mut events = Events::with_capacity(4);
        let (start, second) = (Moment::START, Duration::from_secs(1));
        for next in [start, start + second, start + 2 * second] {
            // Due a second ago, as after a turn that took that long.
            alarm.set(start + second, start + 2 * second).unwrap();
            let mut fired = [PollFd::new(&alarm.timer, PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut fired, None), Ok(1));
            alarm.set(next, start).unwrap();
            poll.poll(&mut events, None).unwrap();
            assert_eq!(events.iter().count(), 1);
            alarm.handle_fired();
            poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            assert!(events.is_empty(), "once");
        }
    }

    #[test]
    fn what_is_due_fires_at_once_and_the_end_of_time_never() {
        let mut poll = Poll::new().unwrap();
        let mut alarm = Alarm::register(poll.registry()).unwrap();
        let mut events = Events::with_capacity(4);
        alarm.set(Moment::START + Duration::MAX, Moment::START).unwrap();
        alarm.set(Moment::START, Moment::START + Duration::from_secs(1)).unwrap();
        poll.poll(&mut events, None).unwrap();
        assert!(!events.is_empty());
    }
}
