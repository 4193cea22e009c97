//! What happened to a task, and when: `timeline` in `/status`.
//!
//! Most tasks that are known at one time only wait, so a task has its first event in place, and
//! from the second event on all of them in a box. A result that is retained keeps its task known,
//! so the box is small: an event takes four bytes.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::base::moment::Moment;

/// Something that happens to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskEvent {
    /// Its first client came.
    Connected,
    /// Its first result was heard.
    Published,
    /// The first text of a result was given to a client.
    TextSent,
    /// The first chunk of audio was given to a client.
    FirstAudio,
    /// The last one.
    LastAudio,
    /// The final result has been delivered, whatever it was; the last time.
    Completed,
    /// A client came that was not the first.
    Resumed,
    /// It was stopped.
    Stopped,
    /// A client gave up waiting.
    Timeout,
}

/// In the order of `/status`.
const EVENTS: [(TaskEvent, &str); 9] = [
    (TaskEvent::Connected, "connected"),
    (TaskEvent::Published, "published"),
    (TaskEvent::TextSent, "text_sent"),
    (TaskEvent::FirstAudio, "first_audio"),
    (TaskEvent::LastAudio, "last_audio"),
    (TaskEvent::Completed, "completed"),
    (TaskEvent::Resumed, "resumed"),
    (TaskEvent::Stopped, "stopped"),
    (TaskEvent::Timeout, "timeout"),
];

/// How long parts of a task took, as far as an event has completed them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names explain themselves")]
pub struct Milestones {
    pub publish_to_text: Option<Duration>,
    pub publish_to_first_audio: Option<Duration>,
    pub connect_to_result: Option<Duration>,
}

/// What has happened to a task.
#[derive(Debug, Default)]
pub(super) enum TaskTimeline {
    #[default]
    Empty,
    One(TaskEvent, Moment),
    Several {
        first: TaskEvent,
        /// The second since [`Moment::START`] in which the first event happened.
        second: u32,
        /// By event.
        at: Box<[Option<Tick>; EVENTS.len()]>,
    },
}

/// A time since the beginning of a certain second, in units of [`TICK`], plus one. Eleven hours
/// fit; what happens later counts as if it happened then.
type Tick = NonZeroU32;

/// Short enough for the latencies that are measured with it.
const TICK: Duration = Duration::from_micros(10);

/// The second of the gateway's time to which `now` belongs.
fn second_of(now: Moment) -> u32 {
    (now - Moment::START).as_secs() as u32
}

/// `now` as a time since the beginning of `second`.
fn tick(second: u32, now: Moment) -> Tick {
    let since = (now - Moment::START).saturating_sub(Duration::from_secs(second.into()));
    let ticks = since.as_micros() / TICK.as_micros();
    Tick::MIN.saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX))
}

impl TaskTimeline {
    /// Notes an event. Of most kinds the first counts, of [`TaskEvent::LastAudio`] and
    /// [`TaskEvent::Completed`] the last.
    pub(super) fn note(&mut self, event: TaskEvent, now: Moment) -> Milestones {
        let event = match event {
            TaskEvent::Connected if self.at(TaskEvent::Connected).is_some() => TaskEvent::Resumed,
            event => event,
        };
        let is_known = self.at(event).is_some();
        if is_known && !matches!(event, TaskEvent::LastAudio | TaskEvent::Completed) {
            return Milestones::default();
        }
        match self {
            TaskTimeline::Empty => *self = TaskTimeline::One(event, now),
            TaskTimeline::One(first, at) if *first == event => *at = now,
            TaskTimeline::One(first, at) => {
                let (first, second) = (*first, second_of(*at));
                let mut ticks = Box::new([None; EVENTS.len()]);
                set(&mut ticks, first, tick(second, *at));
                set(&mut ticks, event, tick(second, now));
                *self = TaskTimeline::Several { first, second, at: ticks };
            }
            TaskTimeline::Several { second, at, .. } => set(at, event, tick(*second, now)),
        }
        self.milestones(event, now).filter(|_| !is_known).unwrap_or_default()
    }

    fn milestones(&self, event: TaskEvent, now: Moment) -> Option<Milestones> {
        let since = |event| self.at(event).map(|at| now - at);
        match event {
            TaskEvent::TextSent => Some(Milestones {
                publish_to_text: since(TaskEvent::Published),
                connect_to_result: since(TaskEvent::Connected),
                ..Milestones::default()
            }),
            TaskEvent::FirstAudio => Some(Milestones {
                publish_to_first_audio: since(TaskEvent::Published),
                ..Milestones::default()
            }),
            _ => None,
        }
    }

    fn at(&self, event: TaskEvent) -> Option<Moment> {
        match self {
            TaskTimeline::One(first, at) if *first == event => Some(*at),
            TaskTimeline::Empty | TaskTimeline::One(..) => None,
            TaskTimeline::Several { second, at, .. } => {
                let ticks = at.get(event as usize).copied()??.get() - 1;
                Some(Moment::START + Duration::from_secs((*second).into()) + TICK * ticks)
            }
        }
    }

    /// What has happened, with the time since the first event, in the order of the table.
    pub(super) fn events(&self) -> Vec<(&'static str, Duration)> {
        let began_at = match self {
            TaskTimeline::Empty => return Vec::new(),
            TaskTimeline::One(_, at) => *at,
            TaskTimeline::Several { first, .. } => self.at(*first).unwrap_or(Moment::START),
        };
        let events = EVENTS.iter();
        events.filter_map(|(event, name)| Some((*name, self.at(*event)? - began_at))).collect()
    }
}

fn set(ticks: &mut [Option<Tick>; EVENTS.len()], event: TaskEvent, tick: Tick) {
    if let Some(place) = ticks.get_mut(event as usize) {
        *place = Some(tick);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Moment {
        Moment::START + Duration::from_millis(milliseconds)
    }

    fn milliseconds(timeline: &TaskTimeline) -> Vec<(&'static str, u128)> {
        timeline.events().into_iter().map(|(name, time)| (name, time.as_millis())).collect()
    }

    #[test]
    fn the_table_has_the_order_of_the_events() {
        for (index, (event, _)) in EVENTS.iter().enumerate() {
            assert_eq!(*event as usize, index);
        }
    }

    #[test]
    fn first_events_count_but_the_last_audio_and_the_last_completion() {
        let mut timeline = TaskTimeline::default();
        assert_eq!(milliseconds(&timeline), []);
        for (event, time) in [
            (TaskEvent::Connected, 1000),
            (TaskEvent::Published, 1010),
            (TaskEvent::Published, 1011),
            (TaskEvent::TextSent, 1012),
            (TaskEvent::TextSent, 1020),
            (TaskEvent::FirstAudio, 1030),
            (TaskEvent::LastAudio, 1030),
            (TaskEvent::LastAudio, 1080),
            (TaskEvent::Completed, 1090),
            (TaskEvent::Connected, 2000),
            (TaskEvent::Connected, 3000),
            (TaskEvent::Completed, 3500),
        ] {
            timeline.note(event, at(time));
        }
        assert_eq!(
            milliseconds(&timeline),
            [
                ("connected", 0),
                ("published", 10),
                ("text_sent", 12),
                ("first_audio", 30),
                ("last_audio", 80),
                ("completed", 2500),
                ("resumed", 1000),
            ]
        );
    }

    #[test]
    fn milestones_are_counted_once() {
        let milli = |n| Some(Duration::from_millis(n));
        let mut timeline = TaskTimeline::default();
        timeline.note(TaskEvent::Published, at(0));
        timeline.note(TaskEvent::Connected, at(100));
        let text = Milestones {
            publish_to_text: milli(101),
            connect_to_result: milli(1),
            ..Milestones::default()
        };
        assert_eq!(timeline.note(TaskEvent::TextSent, at(101)), text);
        assert_eq!(timeline.note(TaskEvent::TextSent, at(200)), Milestones::default());
        let audio = Milestones { publish_to_first_audio: milli(110), ..Milestones::default() };
        assert_eq!(timeline.note(TaskEvent::FirstAudio, at(110)), audio);
        assert_eq!(timeline.note(TaskEvent::FirstAudio, at(120)), Milestones::default());
    }

    #[test]
    fn latencies_are_exact_to_ten_microseconds_and_long_times_end_at_eleven_hours() {
        let mut timeline = TaskTimeline::default();
        let published = Moment::START + Duration::from_nanos(5_999_999_999);
        timeline.note(TaskEvent::Connected, at(5));
        timeline.note(TaskEvent::Published, published);
        let took = timeline.note(TaskEvent::TextSent, published + Duration::from_micros(43));
        let took = took.publish_to_text.unwrap();
        assert!(took.abs_diff(Duration::from_micros(43)) < TICK, "{took:?}");
        timeline.note(TaskEvent::Completed, published + Duration::from_secs(3600 * 11));
        let (name, time) = timeline.events()[3];
        assert_eq!((name, time.as_secs()), ("completed", 3600 * 11 + 5));
        timeline.note(TaskEvent::Completed, published + Duration::from_secs(3600 * 50));
        assert!(timeline.events()[3].1 > Duration::from_secs(3600 * 11));
    }

    #[test]
    fn a_task_that_only_waits_owns_no_box() {
        let mut timeline = TaskTimeline::default();
        timeline.note(TaskEvent::Connected, at(5));
        assert!(matches!(timeline, TaskTimeline::One(TaskEvent::Connected, _)));
        assert_eq!(milliseconds(&timeline), [("connected", 0)]);
        assert!(size_of::<TaskTimeline>() <= 16 && size_of::<[Option<Tick>; EVENTS.len()]>() <= 40);
    }
}
