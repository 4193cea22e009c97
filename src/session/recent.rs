//! The black box: what happened last on a connection, logged if it ends badly.
//!
//! A connection has one from its first frame on, and while it is being connected to a backend. It
//! gives it back when it is connected, when a client that waits for results has been sent all there
//! is, when a relay has been quiet for [`QUIET_MIN`], and at its end. So a connection that only
//! waits has none. They come from a pool with a limit: beyond it connections go without.
//!
//! A frame that passes is noted in about twenty instructions and without an allocation, so this is
//! also where frames are counted by opcode; the counts go to the route together. A step that is no
//! frame has a place of its own, so that a stream of frames does not push it out.

use super::close::CloseReason;
use crate::base::budget::{Budget, Charge};
use crate::base::moment::{CoarseMoment, Moment};
use crate::net::Side;
use crate::proto::ws::{FrameHead, Opcode};
use crate::service::stats::FrameCounts;
use std::cell::{Cell, OnceCell};
use std::net::SocketAddrV4;
use std::time::Duration;

/// Frames that are remembered. A place is found by the low bits of a counter.
const FRAMES: usize = 16;

/// Other steps that are remembered.
const STEPS: usize = 8;

/// Connections that have one at the same time.
const BOXES_MAX: usize = 4096;

/// Unused ones that are kept for the next connections.
const UNUSED_MAX: usize = 16;

/// After this long without a message a relay gives its box back.
pub const QUIET_MIN: Duration = Duration::from_secs(60);

/// A step that is remembered: an event of the transcript, without what it borrowed.
#[derive(Debug)]
#[expect(missing_docs, reason = "the variants are those of `Event`")]
pub enum Kept {
    Connecting(SocketAddrV4),
    Connected,
    UpgradeRequest,
    BackendAnswer(u16),
    ClosePassed {
        to: Side,
        code: Option<u16>,
    },
    CloseSent {
        to: Side,
        code: u16,
        reason: CloseReason,
    },
    PingSent {
        to: Side,
    },
    PongReceived {
        from: Side,
    },
    /// One that is rare, as its line.
    Line(Box<str>),
}

/// What happened last.
pub struct Recent {
    frames: PassedFrames,
    /// Frames by side and opcode, as far as the route has not counted them: it does at the latest
    /// when a deadline of the connection is looked at.
    counts: [Cell<u32>; KEYS],
    frames_noted: Cell<u32>,
    steps_noted: Cell<u32>,
    /// Exists from the first step on: many connections have none.
    steps: OnceCell<Box<NotedSteps>>,
}

/// Frames, each in thirteen bytes: one array for each thing that is noted.
struct PassedFrames {
    lengths: [Cell<u64>; FRAMES],
    at: [Cell<CoarseMoment>; FRAMES],
    /// The key, and [`FIN`].
    keys: [Cell<u8>; FRAMES],
}

type NotedSteps = [Cell<Option<NotedStep>>; STEPS];

/// A step that is no frame.
#[derive(Debug)]
struct NotedStep {
    what: Kept,
    at: CoarseMoment,
    /// Frames that had been noted then.
    frames_noted: u32,
}

/// Sides and opcodes.
const KEYS: usize = 2 * Side::BIT as usize;

/// The bit beside a key for frames that end a message.
const FIN: u8 = KEYS as u8;

/// A number below [`KEYS`] for a frame to `to`.
#[inline]
fn key_of(to: Side, opcode: Opcode) -> u8 {
    opcode.bits() | to.bit()
}

/// The side and the opcode of a key.
fn meaning_of(key: u8) -> (Side, Opcode) {
    let to = if key & Side::BIT == 0 { Side::Upstream } else { Side::Downstream };
    (to, Opcode::from_bits(key))
}

/// An entry of the story.
#[derive(Debug)]
pub enum StoryEntry {
    /// A frame that went to a side.
    Frame(Side, FrameHead),
    /// Another step.
    Step(Kept),
}

impl Recent {
    fn new() -> Recent {
        Recent {
            frames: PassedFrames {
                lengths: [const { Cell::new(0) }; FRAMES],
                at: [const { Cell::new(Moment::START.coarse()) }; FRAMES],
                keys: [const { Cell::new(0) }; FRAMES],
            },
            counts: [const { Cell::new(0) }; KEYS],
            frames_noted: Cell::new(0),
            steps_noted: Cell::new(0),
            steps: OnceCell::new(),
        }
    }

    /// Notes a frame that goes to `to`.
    #[inline]
    pub fn note_frame(&self, to: Side, head: &FrameHead, now: Moment) {
        let key = key_of(to, head.opcode);
        let noted = self.frames_noted.get();
        self.frames_noted.set(noted.wrapping_add(1));
        self.frames.note(noted as usize % FRAMES, key, head, now);
        if let Some(count) = self.counts.get(usize::from(key) % KEYS) {
            count.set(count.get().wrapping_add(1));
        }
    }

    /// Notes a step that is no frame, if it is one that is remembered.
    pub fn note(&self, what: Option<Kept>, now: Moment) {
        let Some(what) = what else { return };
        let noted = self.steps_noted.get();
        self.steps_noted.set(noted.wrapping_add(1));
        let steps = self.steps.get_or_init(|| Box::new([const { Cell::new(None) }; STEPS]));
        if let Some(place) = steps.get(noted as usize % STEPS) {
            let frames_noted = self.frames_noted.get();
            place.set(Some(NotedStep { what, at: now.coarse(), frames_noted }));
        }
    }

    /// Adds the counts to those of the route, and begins anew with them.
    pub fn count_for(&self, route: &FrameCounts) {
        for (key, count) in (0..).zip(&self.counts) {
            match (u64::from(count.take()), meaning_of(key)) {
                (0, _) => {}
                (n, (Side::Upstream, opcode)) => route.count_from_client(opcode, n),
                (n, (Side::Downstream, opcode)) => route.count_to_client(opcode, n),
            }
        }
    }

    /// What is remembered, in order, each with the time since then. The steps are taken out.
    pub fn take_story(&self, now: Moment) -> Vec<(Duration, StoryEntry)> {
        let mut steps = last(self.steps_noted.get(), STEPS)
            .filter_map(|noted| self.steps.get()?.get(noted as usize % STEPS)?.take())
            .peekable();
        let mut story = Vec::new();
        for noted in last(self.frames_noted.get(), FRAMES) {
            while let Some(step) = steps.next_if(|step| step.frames_noted <= noted) {
                story.push((step.at.age(now), StoryEntry::Step(step.what)));
            }
            if let Some((at, to, head)) = self.frames.frame(noted as usize % FRAMES) {
                story.push((at.age(now), StoryEntry::Frame(to, head)));
            }
        }
        story.extend(steps.map(|step| (step.at.age(now), StoryEntry::Step(step.what))));
        story
    }

    /// Forgets everything, for the next connection, which may have no steps.
    fn clear(&mut self) {
        self.steps = OnceCell::new();
        self.frames_noted.set(0);
        self.steps_noted.set(0);
    }
}

impl PassedFrames {
    #[inline]
    fn note(&self, place: usize, key: u8, head: &FrameHead, now: Moment) {
        if let Some(length) = self.lengths.get(place) {
            length.set(head.payload);
        }
        if let Some(at) = self.at.get(place) {
            at.set(now.coarse());
        }
        if let Some(known) = self.keys.get(place) {
            known.set(if head.fin { key | FIN } else { key });
        }
    }

    fn frame(&self, place: usize) -> Option<(CoarseMoment, Side, FrameHead)> {
        let (length, at) = (self.lengths.get(place)?.get(), self.at.get(place)?.get());
        let key = self.keys.get(place)?.get();
        let (to, opcode) = meaning_of(key);
        let head = FrameHead::of_message(opcode, length);
        Some((at, to, FrameHead { fin: key & FIN != 0, ..head }))
    }
}

/// The numbers of the last of `noted` things, at most `places`.
fn last(noted: u32, places: usize) -> std::ops::Range<u32> {
    noted.saturating_sub(places as u32)..noted
}

/// The pool.
pub struct Recents {
    #[expect(clippy::vec_box, reason = "they are given out and taken back as boxes")]
    unused: Vec<Box<Recent>>,
    given: usize,
    charge: Charge,
}

impl Recents {
    /// An empty one, whose memory is charged to `budget`.
    pub fn new(budget: &Budget) -> Recents {
        Recents { unused: Vec::new(), given: 0, charge: budget.charge(0) }
    }

    /// An empty box, unless there are too many.
    pub fn take(&mut self) -> Option<Box<Recent>> {
        if self.given >= BOXES_MAX {
            return None;
        }
        self.given += 1;
        self.recharge();
        Some(self.unused.pop().unwrap_or_else(|| Box::new(Recent::new())))
    }

    /// Takes a box back. Its counts have been added to those of the route.
    pub fn give(&mut self, mut recent: Box<Recent>) {
        self.given -= 1;
        self.recharge();
        if self.unused.len() < UNUSED_MAX {
            recent.clear();
            self.unused.push(recent);
        }
    }

    /// Those that are in use count, for their connections; the few that have steps as the others.
    fn recharge(&mut self) {
        self.charge.set(self.given * size_of::<Recent>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Moment {
        Moment::START + Duration::from_millis(milliseconds)
    }

    fn text(length: u64) -> FrameHead {
        FrameHead::of_message(Opcode::Text, length)
    }

    fn story(recent: &Recent, now: Moment) -> Vec<String> {
        let story = recent.take_story(now).into_iter();
        story
            .map(|(age, one)| match one {
                StoryEntry::Frame(to, head) => {
                    format!("{} {to:?} {}", age.as_millis(), head.payload)
                }
                StoryEntry::Step(step) => format!("{} {step}", age.as_millis()),
            })
            .collect()
    }

    #[test]
    fn frames_and_steps_come_out_in_order() {
        let recent = Recent::new();
        recent.note(Some(Kept::Connected), at(0));
        recent.note_frame(Side::Upstream, &text(1), at(0));
        recent.note_frame(Side::Downstream, &text(2), at(0));
        recent.note(Some(Kept::PingSent { to: Side::Downstream }), at(0));
        recent.note_frame(Side::Upstream, &text(3), at(0));
        recent.note(Some(Kept::Line("= stalled".into())), at(0));
        recent.note(None, at(0));
        assert_eq!(
            story(&recent, at(0)),
            [
                "0 = connected to backend",
                "0 Upstream 1",
                "0 Downstream 2",
                "0 = pinged client",
                "0 Upstream 3",
                "0 = stalled",
            ]
        );
    }

    #[test]
    fn a_stream_of_frames_pushes_no_step_out() {
        let recent = Recent::new();
        recent.note(Some(Kept::PingSent { to: Side::Upstream }), at(0));
        for length in 0..1000 {
            recent.note_frame(Side::Downstream, &text(length), at(1100));
        }
        let story = story(&recent, at(4000));
        assert_eq!(story.len(), 1 + FRAMES);
        assert!(story[0].ends_with("= pinged backend"), "{story:?}");
        assert!(story[FRAMES].ends_with("Downstream 999"), "{story:?}");
        let age = recent.take_story(at(4000))[0].0;
        assert!(age.abs_diff(Duration::from_millis(2900)) < Duration::from_millis(3), "{age:?}");
    }

    #[test]
    fn frames_are_counted_once_by_direction_and_opcode() {
        let (recent, route) = (Recent::new(), FrameCounts::default());
        for opcode in [Opcode::Text, Opcode::Text, Opcode::Reserved5, Opcode::Pong] {
            recent.note_frame(Side::Upstream, &FrameHead::of_message(opcode, 1), at(0));
        }
        recent.note_frame(Side::Downstream, &text(1), at(0));
        recent.count_for(&route);
        recent.count_for(&route);
        let counts: Vec<_> = route.counts().filter(|(.., n)| *n > 0).collect();
        assert_eq!(
            counts,
            [
                ("from_client", "text", 2),
                ("from_client", "pong", 1),
                ("from_client", "reserved", 1),
                ("to_client", "text", 1),
            ]
        );
    }

    #[test]
    fn the_pool_is_bounded_and_gives_out_empty_boxes() {
        let budget = Budget::default();
        let mut recents = Recents::new(&budget);
        let boxes: Vec<_> = (0..BOXES_MAX).filter_map(|_| recents.take()).collect();
        assert_eq!(boxes.len(), BOXES_MAX);
        assert!(recents.take().is_none());
        assert!(budget.held() < 3 * 1024 * 1024, "{} bytes", budget.held());
        boxes[0].note_frame(Side::Upstream, &text(1), at(0));
        boxes[0].note(Some(Kept::Connected), at(0));
        boxes.into_iter().for_each(|recent| recents.give(recent));
        assert_eq!(budget.held(), 0);
        assert!(recents.unused.iter().all(|recent| recent.steps.get().is_none()));
        let kept: Vec<_> = (0..UNUSED_MAX).filter_map(|_| recents.take()).collect();
        assert!(kept.iter().all(|recent| recent.take_story(at(0)).is_empty()));
    }

    /// A few hundred bytes, so that every busy connection can have one.
    #[test]
    fn a_box_is_small() {
        assert!(size_of::<Recent>() <= 360, "{}", size_of::<Recent>());
    }
}
