//! What is published on the tasks' control channels, seen at the simulated Redis or by a worker
//! that is subscribed at the inbox, and what must hold for it.
//!
//! - There are no messages about unknown tasks, and a STOP only where a client means to stop.
//! - While nothing fails, LEFT and BACK alternate, and no LEFT is published while a client waits.
//! - Once all clients have left, the last message about an unfinished task that had a client is
//!   LEFT or STOP.

use aivtuber_gateway::base::moment::Moment;
use std::time::Duration;
use uuid::Uuid;

const PREFIX: &str = "task_control:";

/// All messages, in order.
#[derive(Default)]
pub struct Controls {
    said: Vec<(Moment, Uuid, Word)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    Stop,
    Left,
    Back,
}

/// What is known of a task in the end.
pub struct TaskFacts {
    pub uuid: Uuid,
    pub may_stop: bool,
    /// A client has waited for it, and no final result was published.
    pub is_unfinished: bool,
    /// When prompt clients waited for it: from, until.
    pub waits: Vec<(Moment, Moment)>,
}

impl Controls {
    /// A publication on a control channel.
    pub fn hear(&mut self, now: Moment, channel: &str, payload: &[u8]) -> Result<(), String> {
        let task = channel.strip_prefix(PREFIX).and_then(|id| id.parse().ok());
        let word = match payload {
            br#"{"action":"STOP"}"# => Some(Word::Stop),
            br#"{"action":"LEFT"}"# => Some(Word::Left),
            br#"{"action":"BACK"}"# => Some(Word::Back),
            _ => None,
        };
        let (Some(task), Some(word)) = (task, word) else {
            return Err(format!("{channel} says {:?}", String::from_utf8_lossy(payload)));
        };
        self.said.push((now, task, word));
        Ok(())
    }

    /// `lag`: how long a word is on its way at most. `None`: there were several gateways, or
    /// something failed.
    pub fn judge(&self, tasks: &[TaskFacts], lag: Option<Duration>) -> Result<(), String> {
        for (at, task, word) in &self.said {
            let facts = tasks.iter().find(|facts| facts.uuid == *task);
            match facts {
                None => return Err(format!("{word:?} of an unknown task at {at:?}")),
                Some(facts) if *word == Word::Stop && !facts.may_stop => {
                    return Err(format!("nobody has stopped {task}"));
                }
                Some(_) => {}
            }
        }
        tasks.iter().try_for_each(|facts| {
            let said = self.said.iter().filter(|(_, task, _)| *task == facts.uuid);
            let said: Vec<(Moment, Word)> = said.map(|(at, _, word)| (*at, *word)).collect();
            let judged = self.judge_last(facts, &said);
            let judged =
                judged.and_then(|()| lag.map_or(Ok(()), |lag| judge_calm(facts, &said, lag)));
            judged.map_err(|why| format!("task {}: {why}: {said:?}", facts.uuid))
        })
    }

    fn judge_last(&self, facts: &TaskFacts, said: &[(Moment, Word)]) -> Result<(), String> {
        match said.last() {
            Some((_, Word::Left | Word::Stop)) => Ok(()),
            _ if !facts.is_unfinished => Ok(()),
            _ => Err("everybody has left, and its workers do not know".into()),
        }
    }
}

fn judge_calm(facts: &TaskFacts, said: &[(Moment, Word)], lag: Duration) -> Result<(), String> {
    let mut last = Word::Back;
    for &(at, word) in said {
        match (last, word) {
            (Word::Left, Word::Left) => return Err("LEFT twice in a row".into()),
            (Word::Stop | Word::Back, Word::Back) => return Err("BACK, and nobody had left".into()),
            _ => last = word,
        }
        let is_there = |(from, until): &(Moment, Moment)| *from + lag < at && at < *until;
        if word == Word::Left && facts.waits.iter().any(is_there) {
            return Err(format!("LEFT at {at:?}, and a client waits"));
        }
    }
    Ok(())
}

/// A worker at the inbox that listens to all control channels.
pub struct Listener {
    held: Vec<u8>,
}

impl Listener {
    pub const COMMAND: &[u8] = b"PSUBSCRIBE task_control:*\r\n";

    pub fn new() -> Listener {
        Listener { held: Vec::new() }
    }

    /// Takes bytes of the inbox. The error says what is wrong with them.
    pub fn take(
        &mut self,
        bytes: &[u8],
        now: Moment,
        controls: &mut Controls,
    ) -> Result<(), String> {
        self.held.extend(bytes);
        while let Some((words, used)) = words(&self.held) {
            self.held.drain(..used);
            match &words[..] {
                [kind, ..] if kind == b"psubscribe" => {}
                [kind, _, channel, payload] if kind == b"pmessage" => {
                    controls.hear(now, &String::from_utf8_lossy(channel), payload)?;
                }
                _ => return Err(format!("a listener gets {words:?}")),
            }
        }
        Ok(())
    }
}

/// An array of strings and numbers at the front of `bytes`, and how many of them it takes.
fn words(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut used = 0;
    let mut line = || -> Option<(u8, usize, usize)> {
        let length = bytes[used..].windows(2).position(|two| two == b"\r\n")?;
        let number = std::str::from_utf8(&bytes[used + 1..used + length]).ok()?.parse().ok()?;
        let sign = bytes[used];
        used += length + 2;
        let start = used;
        if sign == b'$' {
            used += number + 2;
        }
        (used <= bytes.len()).then_some((sign, number, start))
    };
    let (_, count, _) = line()?;
    let mut words = Vec::new();
    for _ in 0..count {
        let (sign, number, start) = line()?;
        words.push(match sign {
            b'$' => bytes[start..start + number].to_vec(),
            _ => number.to_string().into_bytes(),
        });
    }
    Some((words, used))
}
