//! Control channels: how gateways and workers learn that a task was stopped, that its clients have
//! left, or that one is back.
//!
//! There is one channel a task, and one subscription for all of them. What a gateway publishes
//! comes back to it, so it counts its own publications and does not act on as many equal ones.

use std::collections::HashMap;

use uuid::Uuid;

use super::Link;
use super::connection::Connection;
use super::jobs::StoreJob;
use super::keep::{ErrorReply, JOBS_MAX, Keeper};
use super::pending::{PendingReply, StoreReply};
use crate::base::moment::Moment;
use crate::proto::control::ControlAction;
use crate::proto::resp;

/// Publications that may be on their way back.
const ECHOES_MAX: usize = 4096;

/// The control channels of all tasks.
pub(super) struct ControlChannels {
    prefix: String,
    pattern: String,
    state: ControlState,
    /// Own publications that have not come back.
    echoes: HashMap<(Uuid, ControlAction), u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ControlState {
    NotSubscribed,
    Subscribed,
    /// Redis does not allow it.
    Refused,
}

impl ControlChannels {
    pub(super) fn new(prefix: &str) -> ControlChannels {
        ControlChannels {
            prefix: prefix.to_owned(),
            pattern: resp::pattern_for_prefix(prefix),
            state: ControlState::NotSubscribed,
            echoes: HashMap::new(),
        }
    }

    pub(super) fn is_pattern(&self, name: &[u8]) -> bool {
        name == self.pattern.as_bytes()
    }

    /// The task whose control channel this is.
    pub(super) fn task_of(&self, channel: &[u8]) -> Option<Uuid> {
        Uuid::try_parse_ascii(channel.strip_prefix(self.prefix.as_bytes())?).ok()
    }

    /// A publication was heard. False: it is one of this gateway's own.
    pub(super) fn hear(&mut self, task: Uuid, action: ControlAction) -> bool {
        let Some(count) = self.echoes.get_mut(&(task, action)) else { return true };
        *count -= 1;
        if *count == 0 {
            self.echoes.remove(&(task, action));
        }
        false
    }

    /// A connection is lost: what was published may never come back.
    pub(super) fn reset(&mut self) {
        self.echoes.clear();
        self.state = ControlState::NotSubscribed;
    }

    /// Redis did not publish it.
    pub(super) fn forget_echo(&mut self, task: Uuid, action: ControlAction) {
        self.hear(task, action);
    }

    fn expect_echo(&mut self, task: Uuid, action: ControlAction) {
        if self.state == ControlState::Subscribed && self.echoes.len() < ECHOES_MAX {
            *self.echoes.entry((task, action)).or_default() += 1;
        }
    }
}

impl Link {
    /// Publishes on the control channel of a task, for its workers and other gateways. While the
    /// link is down it waits, and is taken for another gateway's when it is heard: that repeats
    /// what is done already.
    pub fn publish_control(&mut self, task: Uuid, action: ControlAction) {
        if self.is_up() {
            self.control.expect_echo(task, action);
        }
        self.keeper.publish(task, action);
    }

    /// Removes what Redis keeps of a task, and what its worker has set.
    pub fn drop_task(&mut self, task: Uuid, spellings: &[Box<str>]) {
        for pending in &mut self.store.pending {
            pending.drop_stores_of(task);
        }
        self.keeper.drop_task(task, spellings);
    }

    /// Removes what the worker of a task has set.
    pub fn drop_set(&mut self, task: Uuid, spellings: &[Box<str>]) {
        self.keeper.drop_set(task, spellings);
    }

    /// Asks whether Redis has anything of a task; [`super::LinkEvent::Known`] answers. No answer
    /// comes when the link goes down.
    pub fn ask_known(&mut self, task: Uuid) {
        self.keeper.ask_known(task);
    }

    /// Subscribes to the control channels, once results can be heard.
    pub(super) fn subscribe_to_control(&mut self, now: Moment) {
        self.control.state = ControlState::Subscribed;
        let command = [&b"PSUBSCRIBE"[..], self.control.pattern.as_bytes()];
        self.subscriber.send(now, PendingReply::Control, &command);
    }

    /// Redis does not let this user subscribe to control channels, or publish there. One warning
    /// names everything that it needs for both.
    pub(super) fn handle_control_refused(&mut self, command: &str, error: &ErrorReply) {
        if std::mem::replace(&mut self.control.state, ControlState::Refused)
            == ControlState::Refused
        {
            return;
        }
        let pattern = &self.control.pattern;
        self.report(format!(
            "STOP, LEFT and BACK do not reach other gateways and workers: Redis refuses {command}, \
             its user needs PSUBSCRIBE, PUBLISH and the channels {pattern} (ACL: +psubscribe \
             +publish &{pattern}): {error}"
        ));
    }
}

impl Keeper {
    /// Removes what is kept of a task, what is still to be kept, and what its worker has set.
    pub(super) fn drop_task(&mut self, task: Uuid, spellings: &[Box<str>]) {
        self.jobs.drop_stores_of(task);
        let mut keys = self.set_keys(task, spellings);
        keys.push(format!("{}{task}", self.kept_prefix));
        self.push_bounded(StoreJob::Delete(keys));
    }

    /// Removes what the worker of a task has set.
    pub(super) fn drop_set(&mut self, task: Uuid, spellings: &[Box<str>]) {
        let keys = self.set_keys(task, spellings);
        self.push_bounded(StoreJob::Delete(keys));
    }

    pub(super) fn publish(&mut self, task: Uuid, action: ControlAction) {
        self.push_bounded(StoreJob::Publish(task, action));
    }

    /// Puts in front of the queue what was under way when the connection broke. Look-ups are asked
    /// again once the link is up.
    pub(super) fn do_again(&mut self, reply: StoreReply) {
        match reply {
            StoreReply::Stored(requests) => self.store_again(requests),
            // Better twice than never: a worker would go on for nobody.
            StoreReply::Published(task, action) => {
                self.jobs.push_front(StoreJob::Publish(task, action));
            }
            StoreReply::ScriptLoaded
            | StoreReply::Index(_)
            | StoreReply::Page(_)
            | StoreReply::Set(_)
            | StoreReply::Forgotten
            | StoreReply::Known(_) => {}
        }
    }

    pub(super) fn ask_known(&mut self, task: Uuid) {
        self.jobs.push(StoreJob::AskKnown(task));
    }

    /// What a worker may have set for a task, under every spelling of its id that is known.
    fn set_keys(&self, task: Uuid, spellings: &[Box<str>]) -> Vec<String> {
        let prefix = &self.channel_prefix;
        let others = spellings.iter().map(|spelling| format!("{prefix}{spelling}"));
        std::iter::once(format!("{prefix}{task}")).chain(others).collect()
    }

    /// Unlike results these are not counted when they are dropped: no client waits for them.
    fn push_bounded(&mut self, job: StoreJob) {
        if self.jobs.len() < JOBS_MAX {
            self.jobs.push(job);
        }
    }

    pub(super) fn pack_control(&mut self, connection: &mut Connection, now: Moment, job: StoreJob) {
        match job {
            StoreJob::Delete(keys) => {
                let mut command = vec![&b"UNLINK"[..]];
                command.extend(keys.iter().map(|key| key.as_bytes()));
                connection.send(now, PendingReply::Store(StoreReply::Forgotten), &command);
            }
            StoreJob::Publish(task, action) => {
                let channel = format!("{}{task}", self.control_prefix);
                let command = [&b"PUBLISH"[..], channel.as_bytes(), action.payload()];
                let pending = PendingReply::Store(StoreReply::Published(task, action));
                connection.send(now, pending, &command);
            }
            StoreJob::AskKnown(task) => {
                let keys = [
                    format!("{}{task}", self.kept_prefix),
                    format!("{}{task}", self.channel_prefix),
                ];
                let command = [&b"EXISTS"[..], keys[0].as_bytes(), keys[1].as_bytes()];
                connection.send(now, PendingReply::Store(StoreReply::Known(task)), &command);
            }
            StoreJob::LookUp { .. } | StoreJob::Page(_) | StoreJob::Forget(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: Uuid = Uuid::from_u128(7);

    #[test]
    fn own_publications_are_recognised_and_those_of_others_are_not() {
        let mut channels = ControlChannels::new("task_control:");
        channels.expect_echo(TASK, ControlAction::Stop);
        assert!(
            channels.hear(TASK, ControlAction::Stop),
            "nothing comes back without a subscription"
        );
        channels.state = ControlState::Subscribed;
        channels.expect_echo(TASK, ControlAction::Stop);
        channels.expect_echo(TASK, ControlAction::Stop);
        assert!(channels.hear(TASK, ControlAction::Left), "another gateway's, between the two");
        assert_eq!(
            [(); 3].map(|()| channels.hear(TASK, ControlAction::Stop)),
            [false, false, true]
        );
        channels.expect_echo(TASK, ControlAction::Stop);
        channels.reset();
        assert!(channels.hear(TASK, ControlAction::Stop), "a lost connection brings nothing back");
    }

    #[test]
    fn channels_name_their_task() {
        let channels = ControlChannels::new("c[1]:");
        assert!(channels.is_pattern(br"c\[1\]:*") && !channels.is_pattern(b"c[1]:*"));
        assert_eq!(channels.task_of(format!("c[1]:{TASK}").as_bytes()), Some(TASK));
        assert_eq!(channels.task_of(format!("d:{TASK}").as_bytes()), None);
        assert_eq!(channels.task_of(b"c[1]:nonsense"), None);
    }
}
