//! Programs under test: started on a core of their own, watched through `/proc`, ended by their id.
//!
//! CPU is the scheduler's run time of every thread of the process and its children. It counts
//! nanoseconds where `utime` counts ticks; it is exact for sleeping threads, so it is read only
//! when the target is at rest.

use crate::Fault;
use crate::load::work::Observe;
use rustix::process::{Pid, Signal};
use rustix::thread::CpuSet;
use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Timeout for a target to listen.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Timeout after TERM; then the target is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// A target is at rest once its run time has not changed for this long.
const REST: Duration = Duration::from_millis(15);
/// Timeout for coming to rest: a program may have a heartbeat.
const REST_PATIENCE: Duration = Duration::from_secs(3);
/// Run time in one `REST` that still counts as rest, in nanoseconds.
const REST_NANOS: u64 = 60_000;

/// The core of the targets and the core of the load.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    pub target: usize,
    pub load: usize,
}

impl Cores {
    /// The first and the last core this process may use, which stays on the last one.
    pub fn choose() -> Result<Cores, Fault> {
        let allowed = rustix::thread::sched_getaffinity(None)
            .map_err(|error| format!("no affinity: {error}"))?;
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
        let (Some(&target), Some(&load)) = (cores.first(), cores.last()) else {
            return Err("no core".into());
        };
        if target == load {
            return Err("two cores are needed: one for the target, one for the load".into());
        }
        let cores = Cores { target, load };
        cores.stay_on(load)?;
        Ok(cores)
    }

    /// For a program that shares the load generator's core.
    pub fn beside_load(self) -> Cores {
        Cores { target: self.load, ..self }
    }

    fn stay_on(self, core: usize) -> Result<(), Fault> {
        let mut set = CpuSet::new();
        set.set(core);
        rustix::thread::sched_setaffinity(None, &set)
            .map_err(|error| format!("cannot stay on core {core}: {error}"))
    }
}

/// A running program; dropping it ends it and its children.
pub struct Process {
    child: Child,
    /// From just before the start to the first connection that it took.
    pub started_in: Duration,
}

impl Process {
    /// Starts a program on `cores.target` and waits until `address` takes connections. What it
    /// prints goes to `output`.
    pub fn start(
        mut command: Command,
        cores: Cores,
        address: SocketAddr,
        output: &Path,
    ) -> Result<Process, Fault> {
        let name = command.get_program().to_string_lossy().into_owned();
        let file = fs::File::create(output)
            .map_err(|error| format!("cannot write {}: {error}", output.display()))?;
        let errors = file.try_clone().map_err(|error| error.to_string())?;
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        // A child inherits the core of the thread that starts it.
        cores.stay_on(cores.target)?;
        let before = Instant::now();
        let spawned = command.spawn();
        cores.stay_on(cores.load)?;
        let child = spawned.map_err(|error| format!("cannot start {name}: {error}"))?;
        let mut process = Process { child, started_in: Duration::ZERO };
        loop {
            if TcpStream::connect(address).is_ok() {
                process.started_in = before.elapsed();
                return Ok(process);
            }
            crate::interrupt::check()?;
            let ended = process.child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || before.elapsed() > START_PATIENCE {
                let said = fs::read_to_string(output).unwrap_or_default();
                let how = ended
                    .map_or("does not listen".to_owned(), |status| format!("ended with {status}"));
                return Err(format!("{name} {how}; it said:\n{said}"));
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sets its nice value to 19, so that it yields to every other program on its core.
    pub fn yield_to_others(&self) -> Result<(), Fault> {
        rustix::process::setpriority_process(Pid::from_child(&self.child).into(), 19)
            .map_err(|error| format!("cannot make way: {error}"))
    }

    /// Whether it is still running.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends TERM and waits; kills it if that takes too long.
    pub fn stop(&mut self) {
        let family = family(self.id());
        signal(self.id(), Signal::TERM);
        let asked = Instant::now();
        while self.is_alive() {
            if asked.elapsed() > STOP_PATIENCE {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // Children that survive a kill.
        for orphan in family.into_iter().filter(|&id| id != self.child.id()) {
            let stat = fs::read_to_string(format!("/proc/{orphan}/stat")).unwrap_or_default();
            if parent_in(&stat) == Some(1) {
                signal(orphan, Signal::KILL);
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Keeps both cores from halting while it exists: a `SCHED_IDLE` loop runs on each.
///
/// Waking a halted virtual core takes 50 to 500 µs: more than everything that is timed, and it
/// varies.
pub struct Awake(Vec<Child>);

impl Awake {
    pub fn keep(cores: Cores) -> Result<Awake, Fault> {
        let mut awake = Awake(Vec::new());
        for core in [cores.target, cores.load] {
            let mut command = Command::new("chrt");
            command.args([
                "--idle",
                "0",
                "taskset",
                "--cpu-list",
                &core.to_string(),
                "sh",
                "-c",
                "while :; do :; done",
            ]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            awake.0.push(
                command
                    .spawn()
                    .map_err(|error| format!("cannot start chrt (Debian: util-linux): {error}"))?,
            );
        }
        Ok(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends a signal to one process.
pub fn signal(id: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// A process and everything that descends from it.
pub fn family(root: u32) -> Vec<u32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(parent) =
            fs::read_to_string(entry.path().join("stat")).ok().as_deref().and_then(parent_in)
        {
            parents.push((id, parent));
        }
    }
    let mut family = vec![root];
    let mut at = 0;
    while let Some(&parent) = family.get(at) {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(id, _)| *id));
        at += 1;
    }
    family
}

/// The parent's id in a line of `/proc/PID/stat`; the name before it may hold anything.
fn parent_in(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Run time of all threads of these processes, in nanoseconds.
pub fn run_time(family: &[u32]) -> u64 {
    let threads = family
        .iter()
        .flat_map(|id| fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten());
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

/// Voluntary context switches of all threads of this process.
pub fn sleeps(id: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok())
        .filter_map(|status| {
            status.lines().find_map(|line| {
                line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok()
            })
        })
        .sum()
}

/// How long this thread has been runnable without a core, in nanoseconds.
fn own_wait() -> u64 {
    let line = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// Proportional set size of these processes, in bytes.
pub fn memory(family: &[u32]) -> Result<u64, Fault> {
    let mut sum = 0;
    for id in family {
        let path = format!("/proc/{id}/smaps_rollup");
        let rollup = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        sum += pss_in(&rollup).ok_or_else(|| format!("{path} has no Pss"))?;
    }
    Ok(sum)
}

fn pss_in(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Waits until a family has come to rest.
pub fn rest(family: &[u32]) {
    let start = Instant::now();
    let mut before = run_time(family);
    while start.elapsed() < REST_PATIENCE && !crate::interrupt::is_set() {
        std::thread::sleep(REST);
        let now = run_time(family);
        if now - before < REST_NANOS {
            return;
        }
        before = now;
    }
}

/// Watches a target during the measured part of a workload.
pub struct Watch {
    family: Vec<u32>,
    before: u64,
    strace: Option<Strace>,
    /// Where strace writes; `None`: calls are not counted.
    counts: Option<PathBuf>,
    /// Run time of the measured part, in nanoseconds.
    pub nanos: u64,
    /// When it began, and the load generator's wait for its core until then.
    began: (Instant, u64),
    /// The share of the measured part in which the load generator was runnable without its core.
    pub disturbance: f64,
    /// System calls of the measured part by name, when they were counted.
    pub calls: BTreeMap<String, u64>,
}

impl Watch {
    /// `family`: the target's processes. `counts`: count system calls too, through a scratch file;
    /// the run time then says nothing.
    pub fn new(family: Vec<u32>, counts: Option<PathBuf>) -> Watch {
        Watch {
            family,
            before: 0,
            strace: None,
            counts,
            nanos: 0,
            began: (Instant::now(), 0),
            disturbance: 0.0,
            calls: BTreeMap::new(),
        }
    }
}

impl Observe for Watch {
    fn begin(&mut self) -> Result<(), Fault> {
        rest(&self.family);
        if let Some(file) = &self.counts {
            self.strace = Some(Strace::attach(&self.family, file.clone())?);
        }
        self.before = run_time(&self.family);
        self.began = (Instant::now(), own_wait());
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        let (began, wait) = self.began;
        self.disturbance = (own_wait() - wait) as f64 / began.elapsed().as_nanos().max(1) as f64;
        rest(&self.family);
        self.nanos = run_time(&self.family) - self.before;
        if let Some(strace) = self.strace.take() {
            self.calls = strace.detach()?;
        }
        Ok(())
    }
}

/// A running `strace -c`.
struct Strace {
    child: Child,
    file: PathBuf,
}

impl Strace {
    fn attach(family: &[u32], file: PathBuf) -> Result<Strace, Fault> {
        let mut command = Command::new("strace");
        command.args(["-c", "-f", "-q", "-o"]).arg(&file);
        for id in family {
            command.arg("-p").arg(id.to_string());
        }
        let errors =
            fs::File::create(file.with_extension("errors")).map_err(|error| error.to_string())?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn();
        let mut strace =
            Strace { child: child.map_err(|error| format!("cannot start strace: {error}"))?, file };
        let start = Instant::now();
        while !family.iter().all(|&id| is_traced(id)) {
            if !matches!(strace.child.try_wait(), Ok(None)) || start.elapsed() > START_PATIENCE {
                let said =
                    fs::read_to_string(strace.file.with_extension("errors")).unwrap_or_default();
                return Err(format!("strace did not attach: {said}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(strace)
    }

    fn detach(mut self) -> Result<BTreeMap<String, u64>, Fault> {
        signal(self.child.id(), Signal::INT);
        self.child.wait().map_err(|error| format!("strace: {error}"))?;
        let table = fs::read_to_string(&self.file).map_err(|error| format!("strace: {error}"))?;
        Ok(calls_in(&table))
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.child.id(), Signal::INT);
            let _ = self.child.wait();
        }
    }
}

/// Whether every thread of a process has a tracer.
fn is_traced(id: u32) -> bool {
    fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status
            .lines()
            .any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    })
}

/// Calls by name from the table of `strace -c`.
fn calls_in(table: &str) -> BTreeMap<String, u64> {
    let mut calls = BTreeMap::new();
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // % time, seconds, usecs/call, calls, errors (may be empty), name
        let (Some(Ok(_)), Some(Ok(count)), Some(&name)) = (
            words.first().map(|word| word.parse::<f64>()),
            words.get(3).map(|word| word.parse()),
            words.last(),
        ) else {
            continue;
        };
        if name != "total" {
            calls.insert(name.to_owned(), count);
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_any_name() {
        assert_eq!(parent_in("12 (a) b (c)) S 7 12 12 0"), Some(7));
        assert_eq!(parent_in("nothing"), None);
    }

    #[test]
    fn pss_is_read_in_bytes() {
        assert_eq!(
            pss_in("55d0-7ff [rollup]\nRss:  1200 kB\nPss:    812 kB\nPss_Dirty: 3 kB\n"),
            Some(812 * 1024)
        );
        assert_eq!(pss_in("Rss: 1 kB\n"), None);
    }

    #[test]
    fn the_table_of_strace_is_read() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n \
                     60.00    0.004000           2      2000           sendto\n \
                     40.00    0.003000           1      3000        12 recvfrom\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                     100.00    0.007000           1      5000        12 total\n";
        let calls = calls_in(table);
        assert_eq!(
            calls.iter().map(|(name, &count)| (name.as_str(), count)).collect::<Vec<_>>(),
            [("recvfrom", 3000), ("sendto", 2000)]
        );
    }

    #[test]
    fn our_own_run_time_and_memory_can_be_read() {
        let us = [std::process::id()];
        assert!(memory(&us).unwrap() > 100 * 1024);
        assert!(run_time(&us) > 0);
        assert!(family(us[0]).contains(&us[0]));
    }
}
