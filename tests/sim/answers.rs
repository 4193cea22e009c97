//! What workers publish in the simulated world, and what a client must see of it.
//!
//! Each result has a text of its own, by which it is recognised; some are equal on purpose. Audio
//! files are real files, small, and the same in every world: each byte follows from its offset.

use aivtuber_gateway::base::moment::Moment;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use uuid::Uuid;

/// All tasks, and all results that workers publish.
#[derive(Default)]
pub struct Board {
    pub chunk_size: usize,
    pub tasks: Vec<Task>,
    pub answers: Vec<PlannedResult>,
    /// Workers may publish files that they still write.
    pub has_growth: bool,
    /// Some of them stop writing, and never say that the file is complete.
    pub has_stalls: bool,
    pub bounds: RefCell<Bounds>,
}

/// Offset and length of every chunk of a growing file that a client got, by gateway and text.
pub type Bounds = HashMap<(usize, String), HashMap<usize, (usize, usize)>>;

pub struct Task {
    pub uuid: Uuid,
    /// Indices of the answers that were published, or set and not published yet, in this order.
    pub out: Vec<usize>,
    /// The last of `out` was set, and is still to be published.
    pub is_ahead: bool,
    /// A client means to stop it.
    pub may_stop: bool,
}

/// One result.
#[derive(Debug, Clone)]
pub struct PlannedResult {
    pub task: usize,
    pub payload: Vec<u8>,
    /// The `content` or `error` that a client sees.
    pub view: String,
    pub sound: Sound,
    pub is_failure: bool,
    pub is_final: bool,
    pub extra: Option<(&'static str, Value)>,
    pub out_at: Option<Moment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sound {
    None,
    File(usize),
    /// A file that is cut to `cut` bytes at some moment.
    Shrinks {
        name: String,
        size: usize,
        cut: usize,
    },
    /// A file of `first` bytes to which the worker appends, after it has published.
    Grows {
        name: String,
        first: usize,
        steps: Vec<usize>,
        is_completed: bool,
    },
    /// No audio, and the client gets this error.
    Fault(&'static str),
}

impl Sound {
    /// The name that the worker publishes.
    fn file(&self) -> Option<String> {
        Some(match self {
            Sound::None => return None,
            Sound::File(size) => made(*size),
            Sound::Shrinks { name, .. } | Sound::Grows { name, .. } => name.clone(),
            Sound::Fault("Audio file not found") => "nothing.wav".into(),
            Sound::Fault("Audio file not allowed") => "../outside.wav".into(),
            Sound::Fault(_) => "large.wav".into(),
        })
    }
}

impl Board {
    /// Adds a result to `task`. `is_equal`: byte for byte like others.
    pub fn add(
        &mut self,
        chance: &mut fastrand::Rng,
        task: usize,
        is_final: bool,
        is_equal: bool,
        seed: u64,
    ) -> usize {
        let number = self.answers.len();
        let mut view = if is_equal {
            format!("the same again for {task}")
        } else {
            format!("answer {number}")
        };
        if chance.u8(..8) == 0 && !is_equal {
            view += &" and more".repeat(chance.usize(..200));
        }
        let kind = if is_equal { 9 } else { chance.u8(..16) };
        let sound = self.draw_sound(chance, kind, seed);
        let is_failure = is_final && sound == Sound::None && !is_equal && chance.u8(..3) == 0;
        let mut extra = None;
        let payload = match (is_failure, chance.u8(..4)) {
            (true, 0) => json!({"status": "failed", "text": view}),
            (true, 1) => json!({"error": view, "text": "not this"}),
            (true, 2) => json!({"error": true, "reply": view}),
            (true, _) => {
                let odd = [
                    format!("no JSON {view}"),
                    format!("[\"{view}\"]"),
                    format!(r#"{{"text":{number}}}"#),
                ];
                view = "Invalid response format".into();
                Value::String(odd[chance.usize(..3)].clone())
            }
            (false, with) => {
                let mut payload = json!({"text": view});
                if let Some(file) = sound.file() {
                    payload["audio_file"] = file.into();
                }
                if let Sound::Grows { .. } = sound {
                    payload["audio_growing"] = true.into();
                }
                if !is_final {
                    payload["final"] = false.into();
                }
                if with == 0 {
                    extra = Some(("stats", json!({"n": number})));
                    payload["stats"] = json!({"n": number});
                }
                payload
            }
        };
        let payload = match payload {
            Value::String(odd) => odd.into_bytes(),
            payload => payload.to_string().into_bytes(),
        };
        let extra = extra.filter(|_| !is_equal);
        let payload = if is_equal {
            format!(r#"{{"text":"{view}","final":false}}"#).into_bytes()
        } else {
            payload
        };
        let is_final = is_final && !is_equal;
        self.answers.push(PlannedResult {
            task,
            payload,
            view,
            sound,
            is_failure,
            is_final,
            extra,
            out_at: None,
        });
        number
    }

    fn draw_sound(&self, chance: &mut fastrand::Rng, kind: u8, seed: u64) -> Sound {
        let (number, chunk) = (self.answers.len(), self.chunk_size);
        match kind {
            0..6 => Sound::File(sizes(chunk)[chance.usize(..SIZES)]),
            6 => [
                Sound::Fault("Audio file not found"),
                Sound::Fault("Audio file not allowed"),
                Sound::Fault("Audio file too large"),
            ][chance.usize(..3)]
            .clone(),
            7 if chance.bool() => {
                let size = chunk * chance.usize(1..6) + chance.usize(..chunk);
                let name = format!("shrinks-{seed}-{number}.wav");
                fs::write(folder().join(&name), audio_bytes(0, size)).expect("a file");
                Sound::Shrinks { name, size, cut: chance.usize(..size) }
            }
            8 if self.has_growth => {
                let first = [0, 1, chunk, 2 * chunk + 1][chance.usize(..4)];
                let steps = (0..chance.usize(..12))
                    .map(|_| [1, 7, chunk, chance.usize(1..3 * chunk)][chance.usize(..4)])
                    .collect();
                let name = format!("grows-{seed}-{number}.wav");
                fs::write(folder().join(&name), audio_bytes(0, first)).expect("a file");
                let is_completed = !self.has_stalls || chance.bool();
                Sound::Grows { name, first, steps, is_completed }
            }
            _ => Sound::None,
        }
    }

    /// A worker has published or set an answer.
    pub fn put_out(&mut self, answer: usize, is_published: bool, now: Moment) {
        let task = &mut self.tasks[self.answers[answer].task];
        if !std::mem::replace(&mut task.is_ahead, !is_published) {
            task.out.push(answer);
        }
        self.answers[answer].out_at.get_or_insert(now);
    }

    /// The answer that a client sees as `view`, and how many equal ones were published.
    pub fn find(&self, task: usize, view: &str) -> Option<(&PlannedResult, usize)> {
        let mut out =
            self.tasks[task].out.iter().map(|&at| &self.answers[at]).filter(|one| one.view == view);
        let first = out.next()?;
        Some((first, 1 + out.count()))
    }

    /// The text message that a client gets for it. `number`: its `result_id`.
    pub fn message(&self, answer: &PlannedResult, id: &str, number: u64) -> Value {
        let mut message = match answer.is_failure {
            true => json!({"status": "error", "error": answer.view, "task_id": id}),
            false => {
                let has_audio = !matches!(answer.sound, Sound::None | Sound::Fault(_));
                json!({"status": "success", "task_id": id, "content": answer.view, "audio_present": has_audio})
            }
        };
        message["result_id"] = number.into();
        if message["audio_present"] == true {
            message["audio_type"] = "audio/wav".into();
        }
        if !answer.is_final {
            message["final"] = false.into();
        }
        if let Some((name, value)) = &answer.extra {
            message[*name] = value.clone();
        }
        message
    }
}

/// The number of [`sizes`].
const SIZES: usize = 6;

/// File sizes around the limits of a chunk.
fn sizes(chunk: usize) -> [usize; SIZES] {
    [0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk + chunk / 2]
}

/// The size limit for audio files.
pub const AUDIO_MAX: u64 = 100_000;

/// Bytes of any file, from `at` on.
pub fn audio_bytes(at: usize, count: usize) -> Vec<u8> {
    (at..at + count).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// The folder of all audio files.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("sim-audio-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("large.wav"), vec![0; AUDIO_MAX as usize + 1]).expect("a file");
        folder
    })
}

/// The name of a file of `size` bytes, which is created on first use.
fn made(size: usize) -> String {
    static MADE: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    let name = format!("a{size}.wav");
    let mut made = MADE.lock().expect("no panic while a file is made");
    if !made.contains(&size) {
        fs::write(folder().join(&name), audio_bytes(0, size)).expect("a file");
        made.push(size);
    }
    name
}
