//! Instructions of user space for a unit of work, counted by callgrind.
//!
//! Each count is the difference of two runs that differ only in their length, divided by that
//! difference: start-up, handshake and warm-up cancel out, and the rest repeats to a fraction of a
//! per cent on any machine.

use super::process::{Process, signal};
use super::targets::{Place, Target, installed};
use crate::Fault;
use crate::load::World;
use crate::load::work::{self, Echo, Limits};
use crate::net::free_port;
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Units of work in the short and the long run.
const MESSAGES: [u64; 2] = [2_000, 6_000];
const HANDSHAKES: [u64; 2] = [500, 2_500];
/// Growth by more than this share is reported.
pub const GROWTH_MAX: f64 = 0.03;
/// Callgrind writes its file after the program has ended.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Counts by name: `gateway.frame` is a relayed frame of 64 B, `gateway.handshake` a connection
/// from its upgrade to its end with one message.
pub type Counts = BTreeMap<String, f64>;

/// Counts both for one target.
pub fn count(
    target: &'static Target,
    place: &Place,
    listener: &TcpListener,
) -> Result<Counts, Fault> {
    let mut counts = Counts::new();
    // A message is two relayed frames.
    for (name, lengths, units) in [("frame", MESSAGES, 2.0), ("handshake", HANDSHAKES, 1.0)] {
        let mut totals = [0u64; 2];
        for (total, length) in totals.iter_mut().zip(lengths) {
            *total = run(target, place, listener, name, length)?;
        }
        let more = (lengths[1] - lengths[0]) as f64 * units;
        let instructions = totals[1].checked_sub(totals[0]).ok_or("the longer run counted less")?;
        counts.insert(format!("{}.{name}", target.id), instructions as f64 / more);
    }
    Ok(counts)
}

fn run(
    target: &'static Target,
    place: &Place,
    listener: &TcpListener,
    work: &str,
    length: u64,
) -> Result<u64, Fault> {
    let port = free_port().map_err(|error| format!("no free port: {error}"))?;
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    let counted = target.command(place, address, None)?;
    let file = place.dir.join("callgrind.out");
    let _ = fs::remove_file(&file);
    let mut command = Command::new(installed("valgrind")?);
    command
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", file.display()));
    command.arg(counted.get_program()).args(counted.get_args());
    for (name, value) in counted.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut process =
        Process::start(command, place.cores, address, &place.dir.join("valgrind.output"))?;
    let shared = listener.try_clone().map_err(|error| error.to_string())?;
    let mut world = World::new(address, shared)?;
    match work {
        "frame" => drop(work::echo(&mut world, &Echo::new(64, 1), Limits::count(length), &mut ())?),
        _ => drop(work::handshakes(&mut world, 1, Limits::count(length), &mut ())?),
    }
    drop(world);
    signal(process.id(), rustix::process::Signal::TERM);
    let asked = Instant::now();
    while process.is_alive() {
        if asked.elapsed() > STOP_PATIENCE {
            return Err(format!("{} did not end after TERM", target.id));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let written =
        fs::read_to_string(&file).map_err(|error| format!("callgrind wrote nothing: {error}"))?;
    total_in(&written).ok_or_else(|| "callgrind's file has no total".into())
}

/// The sum of all instructions in callgrind's file.
fn total_in(file: &str) -> Option<u64> {
    let line = file
        .lines()
        .find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Reads recorded counts: a name and a number a line, `#` begins a comment.
pub fn read(path: &Path) -> Result<Counts, Fault> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Counts::new()),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    let mut counts = Counts::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let mut words = line.split_whitespace();
        let (Some(name), Some(count)) =
            (words.next(), words.next().and_then(|word| word.parse().ok()))
        else {
            if line.is_empty() {
                continue;
            }
            return Err(format!(
                "{}:{}: a name and a number are allowed",
                path.display(),
                number + 1
            ));
        };
        counts.insert(name.to_owned(), count);
    }
    Ok(counts)
}

/// Writes counts to be read again.
pub fn write(path: &Path, counts: &Counts) -> Result<(), Fault> {
    let mut text = String::from(
        "# Instructions of user space: a relayed frame of 64 B, and a connection from its upgrade to its end.\n\
         # Written by `benches/instructions --record`.\n",
    );
    for (name, count) in counts {
        text.push_str(&format!("{name} {count:.1}\n"));
    }
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// A Markdown table of the counts beside those that were recorded, and whether none has grown by
/// more than `GROWTH_MAX`.
pub fn compare(counts: &Counts, recorded: &Counts) -> (String, bool) {
    let mut text =
        String::from("| instructions | counted | recorded | change |\n| --- | --- | --- | --- |\n");
    let mut good = true;
    for (name, count) in counts {
        let line = match recorded.get(name) {
            Some(before) => {
                let growth = count / before - 1.0;
                good &= growth <= GROWTH_MAX;
                let mark = if growth > GROWTH_MAX { " **more than 3 % worse**" } else { "" };
                format!(
                    "| `{name}` | {count:.1} | {before:.1} | {:+.1} %{mark} |\n",
                    growth * 100.0
                )
            }
            None => format!("| `{name}` | {count:.1} | – | – |\n"),
        };
        text.push_str(&line);
    }
    (text, good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found() {
        assert_eq!(
            total_in("version: 1\nevents: Ir\nfn=(1)\n12 3\n\ntotals: 123456\n"),
            Some(123_456)
        );
        assert_eq!(total_in("summary: 77\n"), Some(77));
        assert_eq!(total_in("fn=(1)\n"), None);
    }

    #[test]
    fn growth_is_named_from_three_per_cent_on() {
        let recorded = Counts::from([("a".into(), 100.0), ("b".into(), 100.0)]);
        let counts =
            |a: f64| Counts::from([("a".into(), a), ("b".into(), 50.0), ("new".into(), 9.0)]);
        let (text, good) = compare(&counts(102.9), &recorded);
        assert!(
            good && text.contains("| `a` | 102.9 | 100.0 | +2.9 % |")
                && text.contains("| `new` | 9.0 | – | – |")
        );
        let (text, good) = compare(&counts(103.1), &recorded);
        assert!(!good && text.contains("worse"));
    }

    #[test]
    fn recorded_counts_survive_the_trip_and_faults_are_named() {
        let path = std::env::temp_dir().join(format!(
            "instructions-{}-{}",
            std::process::id(),
            fastrand::u64(..)
        ));
        let counts = Counts::from([("gateway.frame".into(), 812.5), ("pipe.frame".into(), 300.0)]);
        write(&path, &counts).unwrap();
        assert_eq!(read(&path).unwrap(), counts);
        fs::write(&path, "# a comment\n\nname many\n").unwrap();
        assert!(read(&path).unwrap_err().ends_with(":3: a name and a number are allowed"));
        fs::remove_file(&path).unwrap();
        assert_eq!(read(&path).unwrap(), Counts::new());
    }
}
