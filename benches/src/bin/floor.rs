//! `bench-floor`: runs one of the floor programs until it is killed.

use aivtuber_gateway_benches::Fault;
use aivtuber_gateway_benches::floor::{copy, pipe, speech, subscribe};
use aivtuber_gateway_benches::net::Endpoint;
use lexopt::prelude::*;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

const HELP: &str = "\
bench-floor: what the kernel charges when a program does nothing of its own

  bench-floor pipe --listen ADDR --backend ADDR|unix:PATH [--splice] [--buffer BYTES]
  bench-floor subscribe --listen ADDR --redis ADDR [--prefix TEXT]
  bench-floor speech --listen ADDR [--spool FOLDER | --files FOLDER]
  bench-floor copy --listen ADDR --file FILE [--buffer BYTES] [--chunk BYTES]
";

/// Fits a 64 KiB frame and its head.
const BUFFER_BYTES: usize = 68 * 1024;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("bench-floor: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Fault> {
    let mut parser = lexopt::Parser::from_env();
    let (mut program, mut listen, mut backend, mut redis, mut file) =
        (None, None, None, None, None);
    let mut source = speech::Source::Memory;
    let (mut splice, mut buffer, mut chunk) = (false, BUFFER_BYTES, 64 * 1024);
    let mut prefix = "task_response:".to_owned();
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Value(name) if program.is_none() => {
                program = Some(name.string().map_err(|error| error.to_string())?)
            }
            Long("listen") => listen = Some(value::<SocketAddr>(&mut parser)?),
            Long("backend") => backend = Some(value::<Endpoint>(&mut parser)?),
            Long("redis") => redis = Some(value::<SocketAddr>(&mut parser)?),
            Long("file") => file = Some(value::<PathBuf>(&mut parser)?),
            Long("spool") => source = speech::Source::Spool(value(&mut parser)?),
            Long("files") => source = speech::Source::Files(value(&mut parser)?),
            Long("prefix") => prefix = value(&mut parser)?,
            Long("buffer") => buffer = value(&mut parser)?,
            Long("chunk") => chunk = value(&mut parser)?,
            Long("splice") => splice = true,
            other => return Err(format!("{}\n\n{HELP}", other.unexpected())),
        }
    }
    let wants = |flag: &str| format!("{flag} is missing\n\n{HELP}");
    let listen = listen.ok_or_else(|| wants("--listen"));
    match program.as_deref() {
        Some("pipe") => {
            let backend = backend.ok_or_else(|| wants("--backend"))?;
            pipe::run(pipe::Settings { listen: listen?, backend, splice, buffer })
        }
        Some("subscribe") => {
            let redis = redis.ok_or_else(|| wants("--redis"))?;
            subscribe::run(&subscribe::Settings { listen: listen?, redis, channel_prefix: prefix })
        }
        Some("speech") => speech::run(&speech::Settings { listen: listen?, source }),
        Some("copy") => {
            let file = file.ok_or_else(|| wants("--file"))?;
            copy::run(&copy::Settings { listen: listen?, file, buffer, chunk })
        }
        _ => Err(format!("pipe, subscribe, speech or copy?\n\n{HELP}")),
    }
}

fn value<T: std::str::FromStr>(parser: &mut lexopt::Parser) -> Result<T, Fault>
where
    T::Err: std::fmt::Display + Send + Sync + std::error::Error + 'static,
{
    parser.value().and_then(|value| value.parse()).map_err(|error| error.to_string())
}
