//! What happened to a task, and when: `timeline` in `/status`.
//!
//! Most tasks that are known at one time only wait, so a task has its first event in place, and
//! from the second event on all of them in a box.

use std::time::Duration;

use crate::base::moment::Moment;

/// Something that happens to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
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
const EVENTS: [(Event, &str); 9] = [
    (Event::Connected, "connected"),
    (Event::Published, "published"),
    (Event::TextSent, "text_sent"),
    (Event::FirstAudio, "first_audio"),
    (Event::LastAudio, "last_audio"),
    (Event::Completed, "completed"),
    (Event::Resumed, "resumed"),
    (Event::Stopped, "stopped"),
    (Event::Timeout, "timeout"),
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
pub(super) enum Timeline {
    #[default]
    Empty,
    One(Event, Moment),
    Several(Box<Several>),
}

#[derive(Debug)]
pub(super) struct Several {
    first: Event,
    /// By event.
    at: [Option<Moment>; EVENTS.len()],
}

impl Several {
    fn new(first: Event, at: Moment) -> Several {
        let mut several = Several { first, at: [None; EVENTS.len()] };
        several.set(first, at);
        several
    }

    fn set(&mut self, event: Event, at: Moment) {
        if let Some(place) = self.at.get_mut(event as usize) {
            *place = Some(at);
        }
    }

    fn at(&self, event: Event) -> Option<Moment> {
        self.at.get(event as usize).copied()?
    }
}

impl Timeline {
    /// Notes an event. Of most kinds the first counts, of [`Event::LastAudio`] and
    /// [`Event::Completed`] the last.
    pub(super) fn note(&mut self, event: Event, now: Moment) -> Milestones {
        let event = match event {
            Event::Connected if self.at(Event::Connected).is_some() => Event::Resumed,
            event => event,
        };
        let is_known = self.at(event).is_some();
        if is_known && !matches!(event, Event::LastAudio | Event::Completed) {
            return Milestones::default();
        }
        match self {
            Timeline::Empty => *self = Timeline::One(event, now),
            Timeline::One(first, at) if *first == event => *at = now,
            Timeline::One(first, at) => {
                let mut several = Box::new(Several::new(*first, *at));
                several.set(event, now);
                *self = Timeline::Several(several);
            }
            Timeline::Several(several) => several.set(event, now),
        }
        self.milestones(event, now).filter(|_| !is_known).unwrap_or_default()
    }

    fn milestones(&self, event: Event, now: Moment) -> Option<Milestones> {
        let since = |event| self.at(event).map(|at| now - at);
        match event {
            Event::TextSent => Some(Milestones {
                publish_to_text: since(Event::Published),
                connect_to_result: since(Event::Connected),
                ..Milestones::default()
            }),
            Event::FirstAudio => Some(Milestones {
                publish_to_first_audio: since(Event::Published),
                ..Milestones::default()
            }),
            _ => None,
        }
    }

    fn at(&self, event: Event) -> Option<Moment> {
        match self {
            Timeline::One(first, at) if *first == event => Some(*at),
            Timeline::Empty | Timeline::One(..) => None,
            Timeline::Several(several) => several.at(event),
        }
    }

    /// What has happened, with the time since the first event, in the order of the table.
    pub(super) fn events(&self) -> Vec<(&'static str, Duration)> {
        let began_at = match self {
            Timeline::Empty => return Vec::new(),
            Timeline::One(_, at) => *at,
            Timeline::Several(several) => several.at(several.first).unwrap_or(Moment::START),
        };
        let events = EVENTS.iter();
        events.filter_map(|(event, name)| Some((*name, self.at(*event)? - began_at))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Moment {
        Moment::START + Duration::from_millis(milliseconds)
    }

    fn milliseconds(timeline: &Timeline) -> Vec<(&'static str, u128)> {
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
        let mut timeline = Timeline::default();
        assert_eq!(milliseconds(&timeline), []);
        for (event, time) in [
            (Event::Connected, 1000),
            (Event::Published, 1010),
            (Event::Published, 1011),
            (Event::TextSent, 1012),
            (Event::TextSent, 1020),
            (Event::FirstAudio, 1030),
            (Event::LastAudio, 1030),
            (Event::LastAudio, 1080),
            (Event::Completed, 1090),
            (Event::Connected, 2000),
            (Event::Connected, 3000),
            (Event::Completed, 3500),
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
        let mut timeline = Timeline::default();
        timeline.note(Event::Published, at(0));
        timeline.note(Event::Connected, at(100));
        let text = Milestones {
            publish_to_text: milli(101),
            connect_to_result: milli(1),
            ..Milestones::default()
        };
        assert_eq!(timeline.note(Event::TextSent, at(101)), text);
        assert_eq!(timeline.note(Event::TextSent, at(200)), Milestones::default());
        let audio = Milestones { publish_to_first_audio: milli(110), ..Milestones::default() };
        assert_eq!(timeline.note(Event::FirstAudio, at(110)), audio);
        assert_eq!(timeline.note(Event::FirstAudio, at(120)), Milestones::default());
    }

    #[test]
    fn a_task_that_only_waits_owns_no_box() {
        let mut timeline = Timeline::default();
        timeline.note(Event::Connected, at(5));
        assert!(matches!(timeline, Timeline::One(Event::Connected, _)));
        assert_eq!(milliseconds(&timeline), [("connected", 0)]);
    }
}
