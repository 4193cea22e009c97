//! Worlds of audio files that are slow, late, young, rewritten, truncated or replaced while clients
//! get them.
//!
//! A worker publishes results through the inbox, and the files that they name live their own lives.
//! In every second world the files are on a server that takes its time. What must hold:
//!
//! - `audio_complete` comes only behind the whole content of one file, as it was when its last byte
//!   had been sent. A file that was finished when it was opened has not changed since.
//! - No audio is a mixture of two recordings, unless an error or the end of the connection follows
//!   at once. Nor is what a client has after it came back for the rest.
//! - A file that nothing happens to arrives, and one that is only appended to while it is young is
//!   not called changed.
//! - A file that comes within `audio_wait` is not missed.
//! - A download is of one recording, as it was at some moment since it was asked for, or less comes
//!   than its head has announced, and then something has happened to the file.
//! - A plain text of another task leaves at once, however slow a file is.
//! - A client that cannot be given its audio because descriptors have run out is closed with 1013
//!   between two results, only after 10 s of that, and gets everything when it comes again.
//!
//! In every fourth world the process stands still for longer than any timeout.

use crate::answers::folder;
use crate::download::{Download, Wanted};
use crate::kernel::{Action, End, LinkId, Nature, Shared};
use crate::listener::{Heard, Listener, Manner, Outcome};
use crate::peers;
use crate::process::{Arrival, Disk, Process, is_left_unread};
use crate::recordings::{Change, Recording};
use crate::simulation::{MS, S, STANDSTILL_MAX, Simulation, kernel, turn_limits};
use crate::world::records_of;
use aivtuber_gateway::base::moment::Moment;
use aivtuber_gateway::gateway;
use aivtuber_gateway::service::limits;
use aivtuber_gateway::service::link;
use aivtuber_gateway::service::route::{RouteSettings, TargetSettings};
use aivtuber_gateway::service::url::Template;
use aivtuber_gateway::session;
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// When the last listener comes. By then nothing happens to files any more.
const INSPECTED_AFTER: Duration = Duration::from_secs(60);

/// How long a process may stand still in all, before the last time that it does.
const STANDSTILLS: Duration = Duration::from_secs(100);

/// What a client is closed with that has waited for descriptors for too long.
const OUT_OF_RESOURCES: (u16, &str) = (1013, "gateway out of resources");

/// How long opening a file is tried while descriptors have run out.
const SHORTAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest time that a background thread takes for a file.
const SLOWNESS_MAX: Duration = Duration::from_secs(3);

/// How long a listener stays that must get everything.
const PATIENCE: Duration = Duration::from_secs(60 + 100).saturating_add(STANDSTILL_MAX);

/// A text that has left by this time was not delayed: clocks and edges are a little late.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Something that happens at a set time.
enum Plan {
    Publish(usize),
    Change { recording: usize, change: Change, age: Duration },
    Come { task: usize, manner: Manner, comebacks: u32, rest: Option<Rest> },
    Download(Wanted, Manner),
}

/// What a listener comes back for.
struct Rest {
    result: usize,
    number: u64,
    chunks: u64,
    audio: Vec<u8>,
}

/// A published result.
struct Piece {
    task: usize,
    recording: Option<usize>,
    /// When the gateway had read it.
    told_at: Option<Moment>,
}

struct Guest {
    listener: Listener,
    task: usize,
    comebacks: u32,
    /// Bytes written to it in all, and when.
    writes: Vec<(u64, Moment)>,
    is_done: bool,
}

pub struct AudioWorld {
    kernel: Shared,
    seed: u64,
    process: Process,
    wait: Duration,
    chunk_size: usize,
    recordings: Vec<Recording>,
    pieces: Vec<Piece>,
    guests: Vec<Guest>,
    by_link: HashMap<LinkId, usize>,
    downloads: Vec<Download>,
    /// The results of each task in the order of their publication.
    published: HashMap<usize, Vec<usize>>,
    /// The connection of the worker, what it has not sent, and where each result ends.
    worker: LinkId,
    worker_out: VecDeque<u8>,
    worker_bytes: u64,
    marks: VecDeque<(u64, usize)>,
    plans: Vec<Option<Plan>>,
    chance: fastrand::Rng,
}

impl Simulation for AudioWorld {
    fn new(seed: u64, is_traced: bool) -> AudioWorld {
        let mut chance = fastrand::Rng::with_seed(seed ^ 0xa0d10);
        let nature = Nature {
            receive_max: 65_536,
            send_max: [600, 4096, 65_536][chance.usize(..3)],
            latency: [Duration::ZERO, MS / 10, 5 * MS][chance.usize(..3)],
            cuts: chance.bool(),
            has_quirks: chance.bool(),
            splices: false,
            peeks_ahead: false,
            records: records_of(seed),
        };
        let kernel = kernel(seed, nature, is_traced);
        kernel.borrow_mut().stands_still = seed % 4 == 1;
        kernel.borrow_mut().standstills_left = STANDSTILLS;
        let wait = [20 * MS, S, S][chance.usize(..3)];
        let chunk_size = [16, 100, 5000][chance.usize(..3)];
        let settings = settings(wait, chunk_size);
        let mut process = Process::new(&kernel, settings, seed);
        process.gateway.limit_turns(turn_limits(seed));
        if chance.bool() {
            let slowness = [MS, 100 * MS, 500 * MS, SLOWNESS_MAX][chance.usize(..4)];
            let mut disk = Disk::new(slowness);
            let mut chance = fastrand::Rng::with_seed(seed ^ 0x5407);
            if chance.bool() {
                let from = kernel.borrow().now + some(&mut chance, 10 * S);
                disk.shortage = Some(from..from + [2 * S, 15 * S, 30 * S][chance.usize(..3)]);
            }
            process.disk = Some(disk);
        }
        let worker = kernel.borrow_mut().open();
        process.arrivals.push_back(Arrival::Worker(worker));
        let mut world = AudioWorld {
            kernel,
            seed,
            process,
            wait,
            chunk_size,
            recordings: Vec::new(),
            pieces: Vec::new(),
            guests: Vec::new(),
            by_link: HashMap::new(),
            downloads: Vec::new(),
            published: HashMap::new(),
            worker,
            worker_out: VecDeque::new(),
            worker_bytes: 0,
            marks: VecDeque::new(),
            plans: Vec::new(),
            chance: chance.fork(),
        };
        world.plan_texts(&mut chance);
        (1..=chance.usize(1..4)).for_each(|task| world.plan_task(&mut chance, task));
        if seed.is_multiple_of(3) {
            world.plan_downloads(fastrand::Rng::with_seed(seed ^ 0xd0_3171));
        }
        world
    }

    fn run(&mut self) -> Result<(), String> {
        self.advance(None)?;
        self.judge()
    }

    fn kernel(&self) -> &Shared {
        &self.kernel
    }

    fn pass(&mut self, now: Moment) {
        self.process.work_on_disk(now);
    }

    fn tick(&mut self, link: LinkId) -> Result<(), String> {
        if link == self.worker {
            self.tick_worker();
            return Ok(());
        }
        if let Some(download) = self.downloads.iter_mut().find(|it| it.link == link) {
            let ticked = download.tick(&mut self.kernel.borrow_mut());
            return ticked.map_err(|why| format!("download {link}: {why}"));
        }
        let Some(&at) = self.by_link.get(&link) else { return Ok(()) };
        let guest = &mut self.guests[at];
        let ticked = guest.listener.tick(&mut self.kernel.borrow_mut());
        ticked.map_err(|why| format!("listener {link}: {why}"))?;
        if guest.listener.is_over && !std::mem::replace(&mut guest.is_done, true) {
            self.come_back(at);
        }
        Ok(())
    }

    fn carry_out(&mut self, plan: usize) {
        match self.plans[plan].take() {
            None => {}
            Some(Plan::Publish(piece)) => self.publish(piece),
            Some(Plan::Change { recording, change, age }) => {
                let now = self.kernel.borrow().now;
                let recording = &mut self.recordings[recording];
                self.kernel.borrow_mut().note(|| format!("{} {change:?}", recording.name()));
                recording.apply(change, now, age);
            }
            Some(Plan::Come { task, manner, comebacks, rest }) => {
                self.come(task, manner, comebacks, rest);
            }
            Some(Plan::Download(wanted, manner)) => self.download(wanted, manner),
        }
    }

    fn greet(&mut self) {}

    fn is_due(&self, now: Moment) -> bool {
        self.process.is_due(now)
    }

    fn next_turn(&self) -> Option<Moment> {
        self.process.next_turn()
    }

    fn turn(&mut self) -> Result<(), String> {
        let events = self.kernel.borrow_mut().take_events();
        self.process.turn(events)?;
        let kernel = self.kernel.borrow();
        let taken = kernel.links[self.worker].taken;
        while self.marks.front().is_some_and(|(end, _)| *end <= taken)
            && let Some((_, piece)) = self.marks.pop_front()
        {
            self.pieces[piece].told_at = Some(kernel.now);
        }
        for guest in &mut self.guests {
            let written = kernel.links[guest.listener.link].written;
            if guest.writes.last().map_or(0, |last| last.0) < written {
                guest.writes.push((written, kernel.now));
            }
        }
        Ok(())
    }

    fn check_quiet(&mut self) -> Result<(), String> {
        self.process.check_quiet()?;
        let kernel = self.kernel.borrow();
        let mut links = self.guests.iter().map(|guest| guest.listener.link);
        match links.find(|link| is_left_unread(&kernel, *link)) {
            Some(link) => Err(format!("link {link} is not read from")),
            None => Ok(()),
        }
    }
}

impl AudioWorld {
    fn plan(&mut self, wait: Duration, plan: Plan) {
        self.plans.push(Some(plan));
        self.kernel.borrow_mut().after(wait, Action::Plan(self.plans.len() - 1));
    }

    fn add_piece(&mut self, at: Duration, task: usize, recording: Option<usize>) {
        self.pieces.push(Piece { task, recording, told_at: None });
        self.plan(at, Plan::Publish(self.pieces.len() - 1));
    }

    /// A task whose results are texts, and one listener that is always there.
    fn plan_texts(&mut self, chance: &mut fastrand::Rng) {
        let manner = Manner { leaves_after: INSPECTED_AFTER + PATIENCE, ..prompt() };
        self.plan(Duration::ZERO, Plan::Come { task: 0, manner, comebacks: 0, rest: None });
        for _ in 0..20 {
            let at = S + some(chance, 20 * S);
            self.add_piece(at, 0, None);
        }
    }

    fn plan_task(&mut self, chance: &mut fastrand::Rng, task: usize) {
        let mut at = S + some(chance, 2 * S);
        for _ in 0..chance.usize(1..4) {
            let recording = self.recordings.len();
            self.recordings.push(Recording::new(self.seed, recording));
            self.plan_life(chance, recording, at);
            self.add_piece(at, task, Some(recording));
            at += [Duration::ZERO, 10 * MS, 3 * S][chance.usize(..3)];
        }
        for _ in 0..chance.usize(1..4) {
            let come_at = if chance.bool() { some(chance, S) } else { some(chance, 10 * S) };
            let manner = draw_manner(chance);
            let comebacks = chance.u32(..3);
            self.plan(come_at, Plan::Come { task, manner, comebacks, rest: None });
        }
        let manner = Manner { leaves_after: PATIENCE, ..prompt() };
        self.plan(INSPECTED_AFTER, Plan::Come { task, manner, comebacks: 0, rest: None });
    }

    /// In some worlds the same files are downloaded, at the same times and in the end.
    fn plan_downloads(&mut self, mut chance: fastrand::Rng) {
        let mut results: HashMap<usize, usize> = HashMap::new();
        for piece in self.pieces.iter().filter(|piece| piece.recording.is_some()) {
            *results.entry(piece.task).or_default() += 1;
        }
        let mut results: Vec<(usize, usize)> = results.into_iter().collect();
        results.sort_unstable();
        for (task, count) in results {
            for number in 0..count {
                let manner = Manner { leaves_after: PATIENCE, ..prompt() };
                let (number, range, is_kept_alive) = (Some(number), None, chance.bool());
                let wanted = Wanted { task, number, range, is_kept_alive };
                self.plan(INSPECTED_AFTER, Plan::Download(wanted, manner));
            }
            for _ in 0..chance.usize(1..8) {
                let number = chance.bool().then(|| chance.usize(..=count));
                let range = (chance.u8(..3) == 0).then(|| {
                    let from = chance.usize(..2 * self.chunk_size);
                    from..from + 1 + chance.usize(..2 * self.chunk_size)
                });
                let wanted = Wanted { task, number, range, is_kept_alive: chance.bool() };
                let at = S + some(&mut chance, 10 * S);
                let manner = Manner { leaving: End::Fin, ..draw_manner(&mut chance) };
                self.plan(at, Plan::Download(wanted, manner));
            }
        }
    }

    fn download(&mut self, wanted: Wanted, manner: Manner) {
        let number = wanted.number.map_or(String::new(), |number| format!("/{number}"));
        let path = format!("/audio/{}{number}", self.uuid(wanted.task));
        let kernel = &mut *self.kernel.borrow_mut();
        let link = kernel.open();
        kernel.note(|| format!("download {link} of {path} {wanted:?} {manner:?}"));
        self.downloads.push(Download::new(kernel, link, wanted, manner, &path));
        self.process.arrivals.push_back(Arrival::Client(link));
    }

    /// What happens to the file of a result that is published at `at`.
    fn plan_life(&mut self, chance: &mut fastrand::Rng, recording: usize, at: Duration) {
        let sizes = [0, 1, self.chunk_size, 3 * self.chunk_size + 5, 9 * self.chunk_size];
        let size = |chance: &mut fastrand::Rng| sizes[chance.usize(..sizes.len())];
        let length = size(chance);
        let (put_at, age) = match chance.u8(..8) {
            // Long finished, or so it seems.
            0..3 => (at.saturating_sub(S / 2), 100 * S),
            // Just before its result.
            3..6 => (at.saturating_sub(some(chance, self.wait)), Duration::ZERO),
            // After it, or too late.
            _ => (at + some(chance, 2 * self.wait), Duration::ZERO),
        };
        self.plan(put_at, Plan::Change { recording, change: Change::Put(length), age });
        let span = [MS, self.wait / 2, 2 * self.wait, 5 * S][chance.usize(..4)];
        let mut change_at = put_at.max(at);
        let only_grows = chance.bool();
        for _ in 0..[0, 0, 1, 2, 6][chance.usize(..5)] {
            change_at += some(chance, span) + MS / 10;
            let length = size(chance);
            let change = match chance.u8(..10) {
                _ if only_grows => Change::Append(1 + chance.usize(..2 * self.chunk_size)),
                0..2 => Change::Cut(length),
                2..6 => Change::Rewrite(length),
                6 => Change::Patch,
                7..9 => Change::Put(length),
                _ => Change::Remove,
            };
            self.plan(change_at, Plan::Change { recording, change, age: Duration::ZERO });
        }
    }

    fn publish(&mut self, number: usize) {
        let piece = &self.pieces[number];
        self.published.entry(piece.task).or_default().push(number);
        let payload = match piece.recording {
            Some(recording) => {
                let name = self.recordings[recording].name();
                format!(r#"{{"text":"{number}","audio_file":"{name}","final":false}}"#)
            }
            None => format!(r#"{{"text":"{number}","plain":true,"final":false}}"#),
        };
        let channel = format!("task_response:{}", self.uuid(piece.task));
        let command = format!(
            "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n${}\r\n{payload}\r\n",
            channel.len(),
            payload.len()
        );
        self.worker_bytes += command.len() as u64;
        self.worker_out.extend(command.bytes());
        self.marks.push_back((self.worker_bytes, number));
        self.tick_worker();
    }

    fn tick_worker(&mut self) {
        let kernel = &mut *self.kernel.borrow_mut();
        kernel.receive(self.worker, usize::MAX);
        let n = self.worker_out.len().min(kernel.window(self.worker));
        let bytes: Vec<u8> = self.worker_out.drain(..n).collect();
        if !bytes.is_empty() {
            kernel.send(self.worker, &bytes);
        }
    }

    fn uuid(&self, task: usize) -> Uuid {
        Uuid::from_u128(u128::from(self.seed) << 64 | 0xabcd << 48 | task as u128)
    }

    fn come(&mut self, task: usize, manner: Manner, comebacks: u32, rest: Option<Rest>) {
        let query = rest.as_ref().map_or(String::new(), |rest| {
            format!("?from_result={}&from_chunk={}", rest.number, rest.chunks)
        });
        let path = format!("/ws/output/{}{query}", self.uuid(task));
        let kernel = &mut *self.kernel.borrow_mut();
        let link = kernel.open();
        kernel.note(|| format!("listener {link} comes for {path} {manner:?}"));
        let request = peers::upgrade_request(&path, "");
        let rest = rest.map(|rest| (rest.result, rest.chunks, rest.audio));
        let listener = Listener::new(kernel, link, manner, rest, &request, self.chunk_size);
        self.by_link.insert(link, self.guests.len());
        self.guests.push(Guest { listener, task, comebacks, writes: Vec::new(), is_done: false });
        self.process.arrivals.push_back(Arrival::Client(link));
    }

    /// A listener has left, or was closed. It may come back for the rest.
    fn come_back(&mut self, at: usize) {
        let Guest { listener, task, comebacks, .. } = &self.guests[at];
        let Some(comebacks) = comebacks.checked_sub(1) else { return };
        let last = listener.heard.last();
        let last = last.filter(|last| last.outcome == Outcome::CutShort && last.has_audio);
        let rest = last.map(|last| Rest {
            result: last.result,
            number: last.number,
            chunks: last.chunks,
            audio: last.audio.clone(),
        });
        let (task, manner) = (*task, listener.manner.clone());
        let wait = [Duration::ZERO, MS, S, 4 * S][self.chance.usize(..4)];
        self.plan(wait, Plan::Come { task, manner, comebacks, rest });
    }

    // ---- in the end

    fn judge(&mut self) -> Result<(), String> {
        let sessions = self.process.gateway.session_count();
        // The worker stays.
        if sessions > 1 {
            return Err(format!("{sessions} sessions never end"));
        }
        for guest in &self.guests {
            let link = guest.listener.link;
            self.judge_guest(guest).map_err(|why| format!("listener {link}: {why}"))?;
        }
        for download in &self.downloads {
            let link = download.link;
            self.judge_download(download).map_err(|why| format!("download {link}: {why}"))?;
        }
        Ok(())
    }

    fn judge_download(&self, download: &Download) -> Result<(), String> {
        let Download { wanted, came_at, manner, .. } = download;
        let is_last = manner.leaves_after == PATIENCE;
        let Some(ended_at) = download.ended_at else {
            return if is_last { Err("it never ends".into()) } else { Ok(()) };
        };
        let response = download.response.as_ref().ok_or("it got no answer")?;
        let published = self.published.get(&wanted.task);
        let piece = published.and_then(|pieces| pieces.get(wanted.number.unwrap_or(0)));
        let piece = piece.map(|&piece| &self.pieces[piece]);
        let known_at = piece.and_then(|piece| piece.told_at).filter(|at| *at <= ended_at);
        let (Some(known_at), Some(recording)) = (known_at, piece.and_then(|it| it.recording))
        else {
            return match response.status {
                404 => Ok(()),
                status => Err(format!("{status}, and there is no such result")),
            };
        };
        let recording = &self.recordings[recording];
        let versions = recording.versions.iter().enumerate();
        // Each was the content of a file at some moment meanwhile.
        let mut contents = versions.filter_map(|(index, version)| {
            let is_recent = recording.end_of(index).is_none_or(|end| end >= *came_at);
            (version.at <= ended_at && is_recent).then_some(&version.content[..])
        });
        let is_changed = recording.versions.iter().any(|version| {
            let is_change = !matches!(version.change, Change::Put(_) | Change::Remove);
            is_change && *came_at <= version.at && version.at <= ended_at
        });
        let body = &response.body[..];
        match (response.status, &wanted.range) {
            // Descriptors had run out for so long that nothing better could be done.
            (503, _) if !is_last && self.lacked_descriptors() => Ok(()),
            (404, _) if known_at >= *came_at => Ok(()),
            (404, _) if recording.was_absent(*came_at, ended_at) => Ok(()),
            (200 | 206, _) if !response.is_whole() => match is_changed {
                true => Ok(()),
                false => Err("it breaks off, and nothing happened to its file".into()),
            },
            (200, _) if contents.any(|content| content == body) => Ok(()),
            (206, Some(range)) => {
                let is_part = |content: &[u8]| {
                    let end = range.end.min(content.len());
                    let last = end.saturating_sub(1);
                    let shown = format!("bytes {}-{last}/{}", range.start, content.len());
                    range.start < end
                        && content.get(range.start..end) == Some(body)
                        && response.content_range.as_deref() == Some(&shown)
                };
                match contents.any(is_part) {
                    true => Ok(()),
                    false => Err("its part is of no file".into()),
                }
            }
            (416, Some(range)) if contents.any(|content| content.len() <= range.start) => Ok(()),
            (status, range) => Err(format!(
                "{status} with {} bytes for {range:?}, which is no recording",
                body.len()
            )),
        }
    }

    fn judge_guest(&self, guest: &Guest) -> Result<(), String> {
        let listener = &guest.listener;
        for heard in &listener.heard {
            let piece = &self.pieces[heard.result];
            let told_at = piece.told_at.ok_or("a result that was not published")?;
            if piece.task != guest.task {
                return Err("a result of another task".into());
            }
            match piece.recording {
                None => {
                    let written_at = written_at(guest, heard.text_end);
                    if written_at > told_at + AT_ONCE + self.stood_still(told_at, written_at) {
                        return Err(format!("text {} was delayed", heard.result));
                    }
                }
                Some(recording) => self
                    .judge_audio(guest, heard, &self.recordings[recording], told_at)
                    .map_err(|why| format!("result {}: {why}", heard.result))?,
            }
        }
        if let Some((code, reason)) = &listener.goodbye
            && (*code, reason.as_str()) == OUT_OF_RESOURCES
        {
            self.judge_out_of_resources(listener)?;
        } else if let Some((code, reason)) = &listener.goodbye {
            let last = listener.heard.last();
            let is_changed = match last.map(|last| &last.outcome) {
                Some(Outcome::Error(error)) => error == "Audio file changed",
                // It came for a rest that there is not any more.
                None => true,
                _ => false,
            };
            if *code != 1011 || !is_changed {
                return Err(format!("it is closed: {code} {reason}"));
            }
        }
        // A listener that stays gets all there is.
        let is_last = listener.manner.leaves_after == PATIENCE;
        if is_last || guest.task == 0 {
            let published = self.pieces.iter().filter(|piece| piece.task == guest.task).count();
            if listener.heard.len() != published && listener.goodbye.is_none() {
                return Err(format!("{} of {published} results", listener.heard.len()));
            }
            if let Some(heard) = listener.heard.iter().find(|it| it.outcome == Outcome::CutShort) {
                return Err(format!("result {} never ends", heard.result));
            }
            if is_last && listener.goodbye.is_some() {
                return Err("it is closed, and nothing happened to any file".into());
            }
        }
        Ok(())
    }

    /// Whether descriptors had run out at some time for as long as opening a file is tried.
    fn lacked_descriptors(&self) -> bool {
        let shortage = self.process.disk.as_ref().and_then(|disk| disk.shortage.as_ref());
        shortage.is_some_and(|span| span.end - span.start + SLOWNESS_MAX >= SHORTAGE_TIMEOUT)
    }

    /// Descriptors had run out for so long that nothing better could be done.
    fn judge_out_of_resources(&self, listener: &Listener) -> Result<(), String> {
        if !self.lacked_descriptors() {
            return Err("it is closed for want of descriptors that were there".into());
        }
        match listener.heard.iter().find(|heard| heard.outcome == Outcome::CutShort) {
            Some(heard) => Err(format!("it is closed in the middle of result {}", heard.result)),
            None => Ok(()),
        }
    }

    /// How long the process stood still between two moments.
    fn stood_still(&self, from: Moment, to: Moment) -> Duration {
        let kernel = self.kernel.borrow();
        let within = kernel.standstills.iter().filter(|(until, _)| from <= *until && *until <= to);
        within.map(|(_, time)| *time).sum()
    }

    fn judge_audio(
        &self,
        guest: &Guest,
        heard: &Heard,
        recording: &Recording,
        told_at: Moment,
    ) -> Result<(), String> {
        let joined_at = guest.writes.first().map_or(guest.listener.came_at, |write| write.1);
        let since = told_at.max(joined_at);
        let text_at = written_at(guest, heard.text_end);
        let audio_at = written_at(guest, heard.audio_end);
        let end_at = written_at(guest, heard.end);
        match &heard.outcome {
            Outcome::Error(error) if error == "Audio file not found" && !heard.has_audio => {
                match recording.was_absent(since + self.wait, end_at) {
                    true => Ok(()),
                    false => Err("its file came in time, and was not found".into()),
                }
            }
            Outcome::Error(error) if error == "Audio file changed" && heard.has_audio => {
                self.judge_change(guest, heard, recording, (since, text_at, end_at))
            }
            Outcome::Error(error) => Err(format!("an error {error:?}")),
            Outcome::CutShort => self.judge_prefix(heard, recording),
            Outcome::Complete => {
                let since = told_at.max(self.first_joined(heard.result).min(joined_at));
                self.judge_complete(heard, recording, (since, text_at, audio_at, end_at))
            }
        }
    }

    /// When the first listener came that has this result: the file that was opened for it is the
    /// one that the others get while it may grow.
    fn first_joined(&self, result: usize) -> Moment {
        let has = |guest: &&Guest| guest.listener.heard.iter().any(|heard| heard.result == result);
        let guests = self.guests.iter().filter(has);
        let joined = guests.filter_map(|guest| Some(guest.writes.first()?.1));
        joined.min().expect("somebody has it")
    }

    /// The whole content of one file, and not of a file that had been another one.
    fn judge_complete(
        &self,
        heard: &Heard,
        recording: &Recording,
        (since, text_at, audio_at, end_at): (Moment, Moment, Moment, Moment),
    ) -> Result<(), String> {
        let was_current = |index: usize| {
            let at = recording.versions[index].at;
            at <= end_at && recording.end_of(index).is_none_or(|end| end >= audio_at)
        };
        let versions = recording.versions.iter().enumerate();
        let mut same = versions.filter(|(_, version)| version.content == heard.audio).peekable();
        if same.peek().is_none() {
            return Err("a mixture, and it is complete".into());
        }
        let mut current = same.filter(|(index, _)| was_current(*index)).peekable();
        if current.peek().is_none() {
            return Err("it was not that file any more when it was complete".into());
        }
        let is_fine = current.any(|(_, version)| {
            !self.was_finished(recording, version.file, since, text_at)
                || !recording.versions.iter().any(|other| {
                    other.file == version.file && text_at < other.at && other.at < audio_at
                })
        });
        match is_fine {
            true => Ok(()),
            false => Err("its file was finished, was changed, and is complete".into()),
        }
    }

    /// Whether the file had been finished whenever it may have been opened.
    fn was_finished(&self, recording: &Recording, file: usize, from: Moment, to: Moment) -> bool {
        let mut versions = recording.versions.iter().enumerate();
        versions.all(|(index, version)| {
            let may_be_opened = version.file == file
                && version.at <= to
                && recording.end_of(index).is_none_or(|end| end >= from);
            !may_be_opened || version.age > self.wait || version.at + self.wait < from
        })
    }

    /// What was sent is of one file, apart from a chunk that was being sent when it changed.
    fn judge_prefix(&self, heard: &Heard, recording: &Recording) -> Result<(), String> {
        let sure = heard.audio.len().saturating_sub(self.chunk_size).max(heard.had);
        let sure = &heard.audio[..sure];
        let mut versions = recording.versions.iter();
        match versions.any(|version| version.content.starts_with(sure)) {
            true => Ok(()),
            false => Err("a mixture".into()),
        }
    }

    /// Something has happened to a file that is called changed.
    fn judge_change(
        &self,
        guest: &Guest,
        heard: &Heard,
        recording: &Recording,
        (since, text_at, end_at): (Moment, Moment, Moment),
    ) -> Result<(), String> {
        self.judge_prefix(heard, recording)?;
        if heard.had > 0 {
            return Ok(());
        }
        let opened = self.openings(recording, since, text_at);
        let is_young = |index: usize| {
            let version = &recording.versions[index];
            opened.iter().all(|&(from, to)| {
                let is_it =
                    version.at <= to && recording.end_of(index).is_none_or(|end| end >= from);
                !is_it || version.age.is_zero() && to < version.at + self.wait
            })
        };
        let mut files: Vec<usize> = recording.versions.iter().map(|version| version.file).collect();
        files.dedup();
        // One of the files that may have been opened has a reason.
        let has_reason = files.iter().any(|&file| {
            let versions = recording.versions.iter().enumerate();
            let mut versions = versions.filter(|(_, version)| version.file == file);
            let was_rewritten = versions.clone().any(|(_, version)| {
                since <= version.at
                    && version.at <= end_at
                    && !matches!(version.change, Change::Append(_) | Change::Put(_))
            });
            let was_extended = versions.clone().any(|(_, version)| {
                since <= version.at && version.at <= end_at && version.change != Change::Put(0)
            });
            was_rewritten || was_extended && versions.any(|(index, _)| !is_young(index))
        });
        match has_reason {
            true => Ok(()),
            false => Err(format!("changed, and it was not: listener {}", guest.listener.link)),
        }
    }

    /// The spans in which the file may have been opened.
    fn openings(&self, recording: &Recording, from: Moment, to: Moment) -> Vec<(Moment, Moment)> {
        let Some(disk) = &self.process.disk else { return vec![(from, to)] };
        let name = Path::new(recording.name());
        let opened = disk.opened.iter().filter(|(at, of)| of == name && from <= *at && *at <= to);
        opened.map(|(at, _)| (*at, *at)).collect()
    }
}

/// When the bytes of a listener's connection up to `end` had been written.
fn written_at(guest: &Guest, end: u64) -> Moment {
    let write = guest.writes.iter().find(|(written, _)| *written >= end);
    write.expect("what was received was written").1
}

fn some(chance: &mut fastrand::Rng, most: Duration) -> Duration {
    most * chance.u32(..1000) / 1000
}

fn prompt() -> Manner {
    Manner {
        read_bite: usize::MAX,
        read_pace: Duration::ZERO,
        leaves_after: 60 * S,
        leaving: End::Fin,
    }
}

fn draw_manner(chance: &mut fastrand::Rng) -> Manner {
    let leaves_after = [some(chance, S), some(chance, 10 * S), 120 * S][chance.usize(..3)];
    let leaving = [End::Fin, End::Reset][chance.usize(..2)];
    let manner = Manner { leaves_after, leaving, ..prompt() };
    if chance.bool() {
        return manner;
    }
    let (read_bite, read_pace) =
        [(1000, 100 * MS), (100, 10 * MS), (7000, 500 * MS)][chance.usize(..3)];
    Manner { read_bite, read_pace, ..manner }
}

fn settings(wait: Duration, chunk_size: usize) -> gateway::Settings {
    let output = session::output::Settings {
        timeout: None,
        chunk_size,
        audio_root: folder().to_path_buf(),
        audio_wait: Some(wait),
        ..session::output::Settings::default()
    };
    gateway::Settings {
        trust: Default::default(),
        session: session::Settings {
            ping_interval: None,
            ping_timeout: None,
            output,
            ..session::Settings::default()
        },
        limits: limits::Settings {
            max_connections: 1000,
            max_connections_per_ip: 0,
            allowed_origins: Vec::new(),
        },
        routes: vec![RouteSettings {
            name: "output".into(),
            path: Template::parse("/ws/output/{task_id}").expect("a path"),
            target: TargetSettings::Output,
        }],
        drain_timeout: None,
        tasks: Default::default(),
        link: link::Settings { urls: vec!["embedded://127.0.0.1:1".into()], ..Default::default() },
        upstreams: Default::default(),
        tls: Default::default(),
    }
}
