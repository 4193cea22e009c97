//! `bench-compare`: the driver behind `benches/compare`.

use aivtuber_gateway_benches::compare::process::Awake;
use aivtuber_gateway_benches::compare::report::{self, Results};
use aivtuber_gateway_benches::compare::rows::{NOT_QUICK, QUICK_TARGETS, ROWS, Row};
use aivtuber_gateway_benches::compare::run::{Run, Sample};
use aivtuber_gateway_benches::compare::targets::{
    AUDIO, AUDIO_SMALL, Instance, PAGE, Place, TARGETS, Target, target,
};
use aivtuber_gateway_benches::options::{HELP, Options};
use aivtuber_gateway_benches::{Fault, interrupt, net};
use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

const AUDIO_BYTES: usize = 8 << 20;
/// Not a whole number of chunks.
const AUDIO_SMALL_BYTES: usize = 1_000_000;
const PAGE_BYTES: usize = 1024;
/// The duration of a pass that counts system calls.
const COUNTING_SECONDS: f64 = 0.2;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            eprintln!("bench-compare: {fault}");
            ExitCode::from(2)
        }
    }
}

/// Whether every run of every target succeeded.
fn run() -> Result<bool, Fault> {
    let options = Options::parse(std::env::args_os().skip(1))?;
    if options.help {
        print!("{HELP}");
        return Ok(true);
    }
    if options.list {
        ROWS.iter().for_each(|row| println!("row    {:<16} {}", row.id, row.title));
        TARGETS.iter().for_each(|target| println!("target {:<16} {}", target.id, target.title));
        return Ok(true);
    }
    for name in &options.only {
        if !ROWS.iter().any(|row| row.id == *name) {
            return Err(format!("--only {name}: there is no such row (--list names them)"));
        }
    }
    for name in &options.targets {
        if target(name).is_none() {
            return Err(format!("--targets {name}: there is no such target (--list names them)"));
        }
    }
    interrupt::listen()?;
    let mut driver = Driver::new(options)?;
    let _awake = if driver.options.awake { Some(Awake::keep(driver.place.cores)?) } else { None };
    let began = Instant::now();
    let mut text = driver.preface();
    print!("{text}");
    let mut all = Vec::new();
    for row in ROWS {
        if !driver.options.wants_row(row.id, !NOT_QUICK.contains(&row.id)) {
            continue;
        }
        let Some(results) = driver.measure(row) else { continue };
        interrupt::check()?;
        let section = results.markdown(row);
        print!("{section}");
        text.push_str(&section);
        all.push((row, results));
    }
    let goals = report::goals(&all);
    print!("{goals}");
    text.push_str(&goals);
    if let Some(file) = &driver.options.markdown {
        fs::write(file, &text)
            .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    }
    eprintln!("{} rows in {:.0} s", all.len(), began.elapsed().as_secs_f64());
    Ok(all.iter().all(|(_, results)| results.faults.is_empty()))
}

struct Driver {
    options: Options,
    place: Place,
    listener: TcpListener,
    unix_listener: OwnedFd,
    audio: Arc<Vec<u8>>,
    audio_small: Arc<Vec<u8>>,
    page: Arc<Vec<u8>>,
    /// Targets that cannot run here and have been reported.
    absent: Vec<&'static str>,
}

impl Driver {
    fn new(options: Options) -> Result<Driver, Fault> {
        let (place, listener) = Place::new(options.gateway.clone(), options.versus.clone())?;
        let write = |name: &str, bytes: usize| -> Result<Arc<Vec<u8>>, Fault> {
            let mut audio = vec![0; bytes];
            fastrand::fill(&mut audio);
            fs::write(place.audio_root.join(name), &audio)
                .map_err(|error| format!("cannot write {name}: {error}"))?;
            Ok(Arc::new(audio))
        };
        let (audio, audio_small) =
            (write(AUDIO, AUDIO_BYTES)?, write(AUDIO_SMALL, AUDIO_SMALL_BYTES)?);
        let page = write(PAGE, PAGE_BYTES)?;
        let unix_listener = net::listen_unix(&place.unix_backend())
            .map_err(|error| format!("cannot listen on a Unix socket: {error}"))?;
        let absent = Vec::new();
        Ok(Driver { options, place, listener, unix_listener, audio, audio_small, page, absent })
    }

    /// What ran, on what.
    fn preface(&self) -> String {
        let said = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().ok();
            output
                .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
                .unwrap_or_default()
        };
        let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = model
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|pair| pair.1);
        let congestion =
            fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let versions: Vec<String> = ["gateway", "haproxy", "nginx", "caddy"]
            .iter()
            .filter_map(|name| target(name))
            .filter_map(|target| Some(format!("{} {}", target.title, target.version(&self.place)?)))
            .collect();
        format!(
            "# Side by side\n\n{}, Linux {}, {} ({} cores); targets on core {}, load on core {}; load average before: {}; \
             congestion control: {}{}.\n{}. Rounds: {}, {} s each.\n\n",
            said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            said("uname", &["-r"]),
            model.unwrap_or("unknown processor"),
            std::thread::available_parallelism().map_or(0, usize::from).max(2),
            self.place.cores.target,
            self.place.cores.load,
            load.split_whitespace().take(3).collect::<Vec<_>>().join(" "),
            congestion.trim(),
            if self.options.awake { "; cores kept awake" } else { "" },
            versions.join(", "),
            self.options.rounds,
            self.options.seconds
        )
    }

    /// Runs one row; `None` when no target of it was asked for.
    fn measure(&mut self, row: &Row) -> Option<Results> {
        let mut results = Results::default();
        let wanted = |name: &&&'static str| {
            self.options.wants_target(name)
                && (!self.options.quick
                    || !self.options.targets.is_empty()
                    || QUICK_TARGETS.contains(name))
                && (!name.starts_with("versus") || self.place.versus.is_some())
        };
        let targets: Vec<&'static Target> =
            row.targets.iter().filter(wanted).filter_map(|name| target(name)).collect();
        let mut running: Vec<(&'static Target, Option<Instance>)> = Vec::new();
        for target in targets {
            if let Err(fault) = target.program(&self.place) {
                if !self.absent.contains(&target.id) {
                    eprintln!("{} is left out: {fault}", target.id);
                    self.absent.push(target.id);
                }
                continue;
            }
            let instance =
                if row.fresh { Ok(None) } else { target.start(&self.place, row.need).map(Some) };
            match instance {
                Ok(instance) => {
                    results.samples.push((target.id, Vec::new()));
                    running.push((target, instance));
                }
                Err(fault) => results.faults.push((target.id, fault)),
            }
        }
        if running.is_empty() && results.faults.is_empty() {
            return None;
        }
        let rounds = self.options.rounds.min(row.rounds_max);
        for round in 1..=rounds {
            if interrupt::is_set() {
                break;
            }
            eprintln!("{}: round {round} of {rounds}", row.id);
            running.retain_mut(|(target, instance)| {
                match self.once(row, target, instance.as_ref()) {
                    Ok(sample) => {
                        let figures =
                            results.samples.iter_mut().find(|(name, _)| *name == target.id);
                        figures.into_iter().for_each(|(_, samples)| samples.push(sample.clone()));
                        true
                    }
                    Err(fault) => {
                        eprintln!("{}: {}: {fault}", row.id, target.id);
                        results.faults.push((target.id, fault));
                        *instance = None;
                        false
                    }
                }
            });
        }
        if self.options.strace && !interrupt::is_set() && row.counts_calls {
            for (target, instance) in &running {
                let Some(instance) = instance else { continue };
                let mut run = self.run(instance, COUNTING_SECONDS, true);
                match run.perform(row) {
                    Ok(_) => drop(run.calls.map(|calls| results.calls.insert(target.id, calls))),
                    Err(fault) => eprintln!(
                        "{}: {}: system calls were not counted: {fault}",
                        row.id, target.id
                    ),
                }
            }
        }
        Some(results)
    }

    fn once(
        &self,
        row: &Row,
        target: &'static Target,
        instance: Option<&Instance>,
    ) -> Result<Sample, Fault> {
        match instance {
            Some(instance) => self.run(instance, self.options.seconds, false).perform(row),
            None => {
                let instance = target.start(&self.place, row.need)?;
                self.run(&instance, self.options.seconds, false).perform(row)
            }
        }
    }

    fn run<'a>(&'a self, instance: &'a Instance, seconds: f64, counting: bool) -> Run<'a> {
        Run {
            place: &self.place,
            instance,
            listener: &self.listener,
            unix_listener: &self.unix_listener,
            seconds,
            quick: self.options.quick,
            counting,
            calls: None,
            audio: &self.audio,
            audio_small: &self.audio_small,
            page: &self.page,
        }
    }
}
