//! What the log says of a connection that ended badly: one line with the reason, then one for each
//! of its last events, so that a log at `info` explains failures.

use super::recent::{Kept, Recents, StoryEntry};
use super::transcript::Event;
use super::{Context, Detail, Ended, Failures, Identity};
use crate::base::budget::Budget;
use crate::base::moment::{Moment, Seconds};
use crate::base::quoted::Quoted;
use crate::net::Side;
use crate::proto::ws::FrameHead;
use crate::session::close::CodeText;
use log::warn;
use std::fmt;
use std::time::Duration;

/// Stories in one second.
const STORIES_MAX: u32 = 20;

/// What all sessions need for their stories.
pub struct BlackBox {
    /// The boxes of busy sessions.
    pub recents: Recents,
    /// How many stories have been logged lately.
    pub stories: Stories,
    /// The task's id that the session that is driven has just read.
    pub learned: Option<Box<str>>,
}

impl BlackBox {
    /// An empty one, whose memory is charged to `budget`.
    pub fn new(budget: &Budget) -> BlackBox {
        BlackBox { recents: Recents::new(budget), stories: Stories::default(), learned: None }
    }
}

/// How many stories have been logged in this second.
#[derive(Debug, Default)]
pub struct Stories {
    /// When the second began.
    since: Option<Moment>,
    logged: u32,
    left_out: u64,
}

impl Stories {
    /// Counts a story. False: there were too many in this second, and it is left out.
    fn begin(&mut self, now: Moment) -> bool {
        self.report(now);
        self.since.get_or_insert(now);
        if self.logged < STORIES_MAX {
            self.logged += 1;
            return true;
        }
        self.left_out += 1;
        false
    }

    /// At the end of the second, logs how many stories were left out.
    pub fn report(&mut self, now: Moment) {
        if self.since.is_some_and(|since| since + Duration::from_secs(1) <= now) {
            if self.left_out > 0 {
                warn!(target: "story", "stories left out stories={}", self.left_out);
            }
            *self = Stories::default();
        }
    }
}

/// Logs how a connection came to a bad end. Called once, after its closing line.
pub(super) fn log(ended: &Ended, who: &Identity, cx: &mut Context) {
    if cx.settings.failures == Failures::Nothing || !ended.is_recorded() || !ended.is_bad() {
        return;
    }
    if !cx.black_box.stories.begin(cx.now) {
        return;
    }
    // A connection that never was a WebSocket has one line.
    let recent = if ended.is_before_upgrade() { None } else { who.recent() };
    let mut events = recent.map(|recent| recent.take_story(cx.now)).unwrap_or_default();
    if cx.settings.failures == Failures::Steps {
        events.retain(|(_, entry)| matches!(entry, StoryEntry::Step(_)));
    }
    let task = ended.task_field(who);
    let sentence = cx.ledger.newest_first().next().map(|one| one.sentence.to_string());
    let (reason, code) = (ended.reason, CodeText(ended.client_close.code()));
    warn!(
        target: "story",
        "{who} failed reason={reason} code={code} events={} sentence={}{task}",
        events.len(),
        Quoted(sentence.unwrap_or_default()),
    );
    let is_served = matches!(ended.detail, Detail::Output { .. } | Detail::Ingest { .. });
    for (age, entry) in events {
        let line = match entry {
            StoryEntry::Step(step) => StoryLine::Step(step),
            StoryEntry::Frame(to, head) if is_served => StoryLine::Served(to, head),
            StoryEntry::Frame(to, head) => StoryLine::Relayed(to, head),
        };
        warn!(target: "story", "{who} ~ before_end={} {line}{task}", Seconds(age));
    }
}

/// What happened, in the words of the log at debug.
enum StoryLine {
    Step(Kept),
    Relayed(Side, FrameHead),
    /// A frame between the gateway and a client whose results it serves.
    Served(Side, FrameHead),
}

impl fmt::Display for StoryLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoryLine::Step(step) => step.fmt(f),
            StoryLine::Relayed(to, head) => Event::Frame { to: *to, head }.fmt(f),
            StoryLine::Served(Side::Upstream, head) => Event::ClientFrame { head }.fmt(f),
            StoryLine::Served(Side::Downstream, head) => {
                write!(f, "> {} len={}", head.opcode, head.payload)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stories_are_limited_and_what_is_left_out_is_counted() {
        let at = |milliseconds| Moment::START + Duration::from_millis(milliseconds);
        let mut stories = Stories::default();
        let logged = |stories: &mut Stories, now| (0..30).filter(|_| stories.begin(now)).count();
        assert_eq!(logged(&mut stories, at(0)), 20);
        assert_eq!(logged(&mut stories, at(999)), 0);
        assert_eq!(stories.left_out, 40);
        assert_eq!(logged(&mut stories, at(1000)), 20);
        assert_eq!(stories.left_out, 10, "those before have been logged");
        stories.report(at(1999));
        assert_eq!(stories.left_out, 10);
        stories.report(at(2000));
        assert_eq!(stories.left_out, 0);
    }
}
