//! `bench-instructions`: the program behind `benches/instructions`.

use aivtuber_gateway_benches::compare::instructions::{Counts, compare, count, read, write};
use aivtuber_gateway_benches::compare::targets::{Place, target};
use aivtuber_gateway_benches::{Fault, interrupt};
use lexopt::prelude::*;
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
benches/instructions: instructions of user space for a relayed frame and for a handshake, counted by callgrind

  --record         keep what was counted in benches/instructions.txt
  --strict         exit status 1 when a count has grown by more than 3 %
  --targets A,B    pipe, gateway and gateway-info (log level info) are counted by default
  --gateway FILE   the gateway's binary (default: target/release/aivtuber-gateway)
  --file FILE      the recorded counts (default: benches/instructions.txt)
  -h, --help       this text
";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            eprintln!("bench-instructions: {fault}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, Fault> {
    let mut parser = lexopt::Parser::from_env();
    let (mut record, mut strict, mut gateway) = (false, false, None);
    let mut names = "pipe,gateway,gateway-info".to_owned();
    let mut file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt"));
    let text = |parser: &mut lexopt::Parser| -> Result<String, Fault> {
        parser.value().and_then(|value| value.string()).map_err(|error| error.to_string())
    };
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Long("record") => record = true,
            Long("strict") => strict = true,
            Long("targets") => names = text(&mut parser)?,
            Long("gateway") => gateway = Some(PathBuf::from(text(&mut parser)?)),
            Long("file") => file = text(&mut parser)?.into(),
            Short('h') | Long("help") => {
                print!("{HELP}");
                return Ok(true);
            }
            other => return Err(format!("{}\n\n{HELP}", other.unexpected())),
        }
    }
    interrupt::listen()?;
    let (place, listener) = Place::new(gateway, None)?;
    let mut counts = Counts::new();
    for name in names.split(',') {
        let target =
            target(name).ok_or_else(|| format!("--targets {name}: there is no such target"))?;
        match target.program(&place) {
            Ok(_) => counts.extend(count(target, &place, &listener)?),
            Err(fault) => eprintln!("{name} is left out: {fault}"),
        }
    }
    let mut recorded = read(&file)?;
    let (table, good) = compare(&counts, &recorded);
    print!("{table}");
    if record {
        recorded.extend(counts);
        write(&file, &recorded)?;
    }
    Ok(good || !strict)
}
