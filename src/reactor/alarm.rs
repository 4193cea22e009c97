//! The alarm that ends a wait for events when something is due: a timer of the kernel's, watched like a socket.
//!
//! Surprising: it is hardly ever set. A time-out given with each wait is a timer that the kernel arms and disarms for each
//! message of a quiet gateway; deadlines, however, nearly always move later (a connection that says something is idle later).
//! So the alarm stays at the earliest moment it was ever asked for, rings there, perhaps in vain, and is set anew then.

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

/// See the top of this file.
pub struct Alarm {
    timer: OwnedFd,
    rings_at: Option<Moment>,
}

impl Alarm {
    /// An alarm that is not set.
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
        Ok(Alarm { timer, rings_at: None })
    }

    /// It rings at `at` or earlier. `now` is the turn's moment.
    pub fn set(&mut self, at: Moment, now: Moment) -> io::Result<()> {
        if self.rings_at.is_some_and(|rings_at| rings_at <= at) {
            return Ok(());
        }
        // Nothing at all would disarm it.
        let wait = (at - now).max(Duration::from_nanos(1));
        let value = Timespec::try_from(wait)
            .unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.rings_at = Some(at);
        Ok(())
    }

    /// It rang. There is nothing to read: its events are edge-triggered, and setting it starts it anew.
    pub fn handle_ring(&mut self) {
        self.rings_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll};
    use rustix::event::{PollFd, PollFlags};

    #[test]
    fn it_rings_at_the_earliest_moment_and_again_when_it_is_set_again() {
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
            alarm.handle_ring();
        }
    }

    /// It rang while nobody looked, which is told when somebody does; unless it was set to an earlier moment, which is told instead.
    #[test]
    fn a_ring_that_nobody_saw_is_not_lost() {
        let mut poll = Poll::new().unwrap();
        let mut alarm = Alarm::register(poll.registry()).unwrap();
        let mut events = Events::with_capacity(4);
        let (start, second) = (Moment::START, Duration::from_secs(1));
        for next in [start, start + second, start + 2 * second] {
            // Due for a second, as it is when a turn takes that long.
            alarm.set(start + second, start + 2 * second).unwrap();
            let mut rung = [PollFd::new(&alarm.timer, PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut rung, None), Ok(1));
            alarm.set(next, start).unwrap();
            poll.poll(&mut events, None).unwrap();
            assert_eq!(events.iter().count(), 1);
            alarm.handle_ring();
            poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            assert!(events.is_empty(), "once");
        }
    }

    #[test]
    fn what_is_due_rings_at_once_and_the_end_of_time_never() {
        let mut poll = Poll::new().unwrap();
        let mut alarm = Alarm::register(poll.registry()).unwrap();
        let mut events = Events::with_capacity(4);
        alarm.set(Moment::START + Duration::MAX, Moment::START).unwrap();
        alarm.set(Moment::START, Moment::START + Duration::from_secs(1)).unwrap();
        poll.poll(&mut events, None).unwrap();
        assert!(!events.is_empty());
    }
}
