//! Audio files that workers have said to be complete.
//!
//! `{"audio_end":"a.wav"}` names a file and no result. It is about every result of its task with
//! that growing file that was known when it came. If there was none, it is about the first one that
//! comes within `audio_wait`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::Tasks;
use super::task::Task;
use crate::base::moment::Moment;
use crate::base::table::Slot;
use crate::proto::message::growing_file;
use crate::service::audio_names::{self, Mapping};

/// Ends that are known of one task; the oldest is forgotten first.
const ENDS_MAX: usize = 1024;

/// How names of files are compared, and how long an end waits for its result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndRules {
    /// Prefixes in workers' paths, and what they are called on this machine.
    pub path_map: Vec<Mapping>,
    /// `None`: not at all.
    pub wait: Option<Duration>,
}

/// A file that is complete.
#[derive(Debug)]
pub(super) struct AudioEnd {
    name: Box<Path>,
    at: Moment,
    /// It is about the results up to the one with this number...
    last_number: u32,
    /// ...and one of them has that file.
    is_matched: bool,
}

impl Tasks {
    /// Takes other rules for ends of audio files.
    pub fn set_end_rules(&mut self, rules: EndRules) {
        self.end_rules = rules;
    }

    /// The rules in effect.
    pub fn end_rules(&self) -> &EndRules {
        &self.end_rules
    }

    /// A worker has said that a file is complete.
    pub fn handle_audio_end(&mut self, now: Moment, task: Uuid, name: PathBuf) {
        let slot = self.tasks.find_or_insert_with(task, Task::default);
        let known = &self.tasks[slot];
        let is_matched = known.has_growing(&name, &self.end_rules.path_map);
        let last_number = known.last_number;
        let ends = self.ends.entry(task).or_default();
        // A worker may send it twice, with SET and PUBLISH: one entry is enough.
        ends.retain(|end| *end.name != *name || end.is_matched && !is_matched);
        if ends.len() >= ENDS_MAX {
            ends.remove(0);
        }
        ends.push(AudioEnd { name: name.into(), at: now, last_number, is_matched });
        self.remember(now, slot);
    }

    /// Whether the growing file of a result, which has this name, is complete.
    pub fn is_audio_ended(&self, task: Uuid, result_id: u32, name: &Path) -> bool {
        let (Some(known), Some(ends)) = (self.tasks.entry(task), self.ends.get(&task)) else {
            return false;
        };
        let number = known.results.by_id(result_id).map(|one| one.number);
        ends.iter().any(|end| {
            number.is_none_or(|number| is_up_to(number, end.last_number))
                && audio_names::is_same(&end.name, name, &self.end_rules.path_map)
        })
    }

    /// A result of this number has come: an end that came just before may be about it.
    pub(super) fn match_ends(&mut self, now: Moment, slot: Slot, number: u32, payload: &[u8]) {
        if self.ends.is_empty() {
            return;
        }
        let Some(ends) = self.ends.get_mut(&self.tasks.id(slot)) else { return };
        if ends.iter().all(|end| end.is_matched) {
            return;
        }
        let Some(name) = growing_file(payload) else { return };
        let EndRules { path_map, wait } = &self.end_rules;
        for end in ends.iter_mut().filter(|end| !end.is_matched) {
            let is_in_time = wait.is_some_and(|wait| now <= end.at + wait);
            if is_in_time && audio_names::is_same(&end.name, &name, path_map) {
                (end.is_matched, end.last_number) = (true, number);
            }
        }
    }

    /// Results have been found in Redis that were published earlier: ends may be about them.
    pub(super) fn match_ends_again(&mut self, task: Uuid) {
        let (Some(known), Some(ends)) = (self.tasks.entry(task), self.ends.get_mut(&task)) else {
            return;
        };
        for end in ends.iter_mut().filter(|end| !end.is_matched) {
            if known.has_growing(&end.name, &self.end_rules.path_map) {
                (end.is_matched, end.last_number) = (true, known.last_number);
            }
        }
    }
}

impl Task {
    fn has_growing(&self, name: &Path, path_map: &[Mapping]) -> bool {
        // As a rule it is one of the last.
        let payloads = self.results.iter().rev().filter_map(|one| one.payload.as_deref());
        let mut names = payloads.filter_map(growing_file);
        names.any(|growing| audio_names::is_same(&growing, name, path_map))
    }
}

/// Whether a number is not behind another one. Numbers wrap around.
fn is_up_to(number: u32, last: u32) -> bool {
    last.wrapping_sub(number) < u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tasks::{Settings, Subscription};

    const TASK: Uuid = Uuid::from_u128(7);
    const NOW: Moment = Moment::START;
    const WAIT: Duration = Duration::from_secs(1);

    fn tasks() -> Tasks {
        let mut tasks = Tasks::new(Settings::default());
        let path_map = vec![Mapping { from: "/app".into(), to: "/srv".into() }];
        tasks.set_end_rules(EndRules { path_map, wait: Some(WAIT) });
        tasks
    }

    /// Returns its `result_id`.
    fn publish(tasks: &mut Tasks, now: Moment, name: &str) -> u32 {
        let payload = format!(r#"{{"audio_file":"{name}","audio_growing":true}}"#);
        let payload = payload.into_bytes().into();
        tasks.handle_published(now, TASK, Subscription::UNKNOWN, payload).id
    }

    fn is_ended(tasks: &Tasks, id: u32, name: &str) -> bool {
        tasks.is_audio_ended(TASK, id, Path::new(name))
    }

    #[test]
    fn an_end_is_about_the_results_that_were_known() {
        let mut tasks = tasks();
        let first = publish(&mut tasks, NOW, "a.wav");
        let other = publish(&mut tasks, NOW, "b.wav");
        assert!(!is_ended(&tasks, first, "a.wav"));
        tasks.handle_audio_end(NOW, TASK, "a.wav".into());
        assert!(is_ended(&tasks, first, "a.wav") && !is_ended(&tasks, other, "b.wav"));
        // The name is used again: the next end is about that.
        let second = publish(&mut tasks, NOW, "a.wav");
        assert!(!is_ended(&tasks, second, "a.wav"));
        tasks.handle_audio_end(NOW, TASK, "a.wav".into());
        assert!(is_ended(&tasks, second, "a.wav") && is_ended(&tasks, first, "a.wav"));
    }

    #[test]
    fn an_end_that_comes_before_its_result_waits_for_it() {
        for (elapsed, expected) in [(Duration::ZERO, true), (WAIT, true), (2 * WAIT, false)] {
            let mut tasks = tasks();
            tasks.handle_audio_end(NOW, TASK, "a.wav".into());
            let other = publish(&mut tasks, NOW, "b.wav");
            let first = publish(&mut tasks, NOW + elapsed, "a.wav");
            assert!(!is_ended(&tasks, other, "b.wav"));
            assert_eq!(is_ended(&tasks, first, "a.wav"), expected, "{elapsed:?}");
            let second = publish(&mut tasks, NOW + elapsed, "a.wav");
            assert!(!is_ended(&tasks, second, "a.wav"), "it was about the first one");
        }
    }

    #[test]
    fn an_end_is_about_a_result_that_is_on_its_way_and_no_longer_kept() {
        let mut tasks = tasks();
        let id = publish(&mut tasks, NOW, "a.wav");
        tasks.drop_kept(TASK);
        tasks.handle_client(
            NOW,
            TASK,
            None,
            Some(crate::service::tasks::ClientState::Waiting),
            None,
        );
        tasks.handle_audio_end(NOW, TASK, "a.wav".into());
        assert!(is_ended(&tasks, id, "a.wav"));
    }

    #[test]
    fn names_are_compared_as_files() {
        for (name, end, expected) in [
            ("/app/a.wav", "/srv/a.wav", true),
            ("a.wav", "./a.wav", true),
            ("/app/./a.wav", "/srv/a.wav", true),
            ("a.wav", "b/a.wav", false),
        ] {
            let mut tasks = tasks();
            let id = publish(&mut tasks, NOW, name);
            tasks.handle_audio_end(NOW, TASK, end.into());
            assert_eq!(is_ended(&tasks, id, name), expected, "{name} and {end}");
        }
    }

    #[test]
    fn ends_are_bounded_and_go_with_the_task() {
        let mut tasks = tasks();
        for number in 0..2 * ENDS_MAX {
            tasks.handle_audio_end(NOW, TASK, format!("{number}.wav").into());
        }
        assert_eq!(tasks.ends[&TASK].len(), ENDS_MAX);
        let mut stopped = self::tasks();
        stopped.handle_audio_end(NOW, TASK, "a.wav".into());
        stopped.stop(NOW, TASK);
        assert!(stopped.ends.is_empty());
        while let Some(at) = tasks.deadline() {
            tasks.trim(at, |_| false);
        }
        assert!(tasks.is_empty() && tasks.ends.is_empty());
    }
}
