//! The binary: reads the command line, loads the configuration, starts the log and runs the
//! gateway.
//!
//! Exit status: 0 after a clean stop, 2 for bad usage or configuration, 1 for anything else.

#![warn(
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::expect_used,
    clippy::fn_params_excessive_bools,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::too_many_lines,
    clippy::unwrap_used
)]

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use aivtuber_gateway::cli::{self, Action, Invocation};
use aivtuber_gateway::config::{self, Config, Flags, Loaded};
use aivtuber_gateway::demo::{self, Demo, HttpsWelcome};
use aivtuber_gateway::doctor::{self, Colours};
use aivtuber_gateway::healthcheck::Place;
use aivtuber_gateway::logging::{self, Logging};
use aivtuber_gateway::reactor::listeners::ListenOn;
use aivtuber_gateway::reactor::passed::PassedSockets;
use aivtuber_gateway::reactor::signals;
use aivtuber_gateway::reactor::supervisor::Supervisor;
use aivtuber_gateway::reactor::{Hooks, Reactor, Service};
use aivtuber_gateway::{cert, explain, gateway, healthcheck, net, tap};

/// The exit status for bad usage or configuration.
const UNUSABLE: u8 = 2;

/// Where `demo --https` listens unless flags say otherwise.
const DEMO_LISTEN: [&str; 2] = ["0.0.0.0:8000", "tls://0.0.0.0:8443"];

fn main() -> ExitCode {
    net::return_large_blocks();
    if let Err(error) = signals::survive_file_size_limit() {
        return complain(1, &format!("cannot handle a signal: {error}"));
    }
    let Invocation { action, operands, mut flags, options } =
        match cli::parse(std::env::args_os().skip(1)) {
            Ok(invocation) => invocation,
            Err(why) => return complain(UNUSABLE, &why),
        };
    match action {
        Action::Help => return say(&cli::help()),
        Action::Version => return say(&cli::version()),
        Action::Man => return say(&cli::manual(operands.first().map(String::as_str))),
        Action::Completions => {
            let script = operands.first().and_then(|shell| cli::completions(shell));
            return script.map_or(ExitCode::from(UNUSABLE), |script| say(&script));
        }
        Action::Cert => return make_certificate(&operands),
        Action::Explain => return explain(&operands, options.json),
        Action::DemoHttps => {
            if let Err(why) = prepare_https(&mut flags) {
                return complain(1, &why);
            }
        }
        _ => {}
    }
    let loaded = match load(&flags, None, None) {
        Ok(loaded) => loaded,
        Err(problems) => return complain(UNUSABLE, &problems.to_string()),
    };
    match action {
        Action::Check => {
            let loaded = match loaded.load_certificates() {
                Ok(loaded) => loaded.check_machine(),
                Err(problems) => return complain(UNUSABLE, &problems.to_string()),
            };
            for warning in &loaded.warnings {
                complain(0, warning);
            }
            let source = loaded
                .path
                .map_or("no file, only defaults".into(), |path| path.display().to_string());
            say(&format!("The configuration is valid ({source}).\n"))
        }
        Action::PrintConfig => say(&loaded.config.to_toml()),
        Action::PrintChanged => say(&loaded.config.changes_to_toml()),
        Action::Healthcheck => match first_place(&loaded.config).as_ref().map(healthcheck::ask) {
            Some(Ok(status)) => say(&format!("{status}\n")),
            Some(Err(why)) => complain(1, &why),
            None => complain(UNUSABLE, "the gateway listens nowhere"),
        },
        Action::Doctor => consult(loaded, options.json),
        Action::Tap => follow(&loaded.config, &options),
        Action::Run => match loaded.load_certificates() {
            Ok(loaded) => start(action, flags, loaded),
            Err(problems) => complain(UNUSABLE, &problems.to_string()),
        },
        Action::Demo | Action::DemoHttps => start(action, flags, loaded),
        Action::Help
        | Action::Version
        | Action::Man
        | Action::Completions
        | Action::Cert
        | Action::Explain => ExitCode::SUCCESS,
    }
}

/// The folder of this user for the CA.
fn data_folder() -> Result<PathBuf, String> {
    cert::data_folder(|name| std::env::var_os(name))
}

/// The command `cert`: a folder, then names.
fn make_certificate(operands: &[String]) -> ExitCode {
    let Some((folder, names)) = operands.split_first() else {
        return ExitCode::from(UNUSABLE);
    };
    match data_folder().and_then(|data| cert::write(Path::new(folder), names, &data)) {
        Ok(text) => say(&text),
        Err(why) => complain(1, &why),
    }
}

/// The command `explain`: a log, then a name.
fn explain(operands: &[String], is_json: bool) -> ExitCode {
    let Some((log, names)) = operands.split_first() else {
        return ExitCode::from(UNUSABLE);
    };
    match explain::explain(Path::new(log), names.first().map(String::as_str)) {
        Ok(Some(story)) if is_json => say(&story.to_json()),
        Ok(Some(story)) => say(&story.to_text()),
        Ok(None) => complain(1, &format!("{log} has nothing about that")),
        Err(why) => complain(1, &why),
    }
}

/// Makes a certificate for the demo, and adds what serves with it to the flags.
fn prepare_https(flags: &mut Flags) -> Result<(), String> {
    if flags.listen.is_empty() {
        flags.listen = DEMO_LISTEN.map(String::from).to_vec();
    } else if !flags.listen.iter().any(|address| address.starts_with("tls://")) {
        return Err("demo --https needs a tls:// address among those of --listen".into());
    }
    let file = cert::write_for_demo(&data_folder()?)?;
    let file = file.into_os_string().into_string();
    flags.tls_file = Some(file.map_err(|path| format!("{path:?} is not UTF-8"))?);
    Ok(())
}

/// Follows live frames until the gateway ends the stream.
fn follow(config: &Config, options: &cli::Options) -> ExitCode {
    let Some(place) = first_place(config) else {
        return complain(UNUSABLE, "the gateway listens nowhere");
    };
    let style = match options.json {
        true => tap::Style::Json,
        false if is_colourful() => tap::Style::Coloured,
        false => tap::Style::Plain,
    };
    match tap::follow(&place, &options.filters, style, &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => complain(1, &why),
    }
}

/// Whether standard output is a terminal whose user wants colours.
fn is_colourful() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Tries everything and prints what was found; exit status 1 if something fails.
fn consult(loaded: Loaded, is_json: bool) -> ExitCode {
    let rows = doctor::examine(loaded);
    let colours = if is_colourful() { Colours::Shown } else { Colours::Absent };
    let text = if is_json { doctor::json(&rows) } else { doctor::table(&rows, colours) };
    match say(&text) {
        ExitCode::SUCCESS if doctor::worst(&rows) == doctor::CheckState::Fail => ExitCode::FAILURE,
        status => status,
    }
}

/// Runs with a log, and writes its last lines before returning.
fn start(action: Action, flags: Flags, loaded: Loaded) -> ExitCode {
    let pid = std::process::id();
    let variable = |name: &str| std::env::var_os(name);
    // Before anything else is opened: passed sockets are known by their numbers.
    let sockets = match PassedSockets::from_env(variable, pid) {
        Ok(sockets) => sockets,
        Err(why) => return complain(1, &why),
    };
    let logging = match logging::start(loaded.config.log.clone()) {
        Ok(logging) => logging,
        Err(error) => return complain(1, &error.to_string()),
    };
    let is_on_stderr = loaded.config.log.file.is_none();
    let service = Service { supervisor: Supervisor::from_env(variable, pid), sockets };
    let outcome = match action {
        Action::Demo | Action::DemoHttps => run_demo(flags, loaded, service, &logging),
        _ => run(flags, loaded.check_machine(), None, service, &logging),
    };
    if let Err(why) = &outcome {
        log::error!(target: "main", "{why}");
    }
    logging.finish();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Already reported: the log goes to standard error.
        Err(_) if is_on_stderr && log::max_level() >= log::Level::Error => ExitCode::FAILURE,
        Err(why) => complain(1, &why),
    }
}

/// Runs the gateway with the stand-in as its backend for input.
fn run_demo(
    flags: Flags,
    loaded: Loaded,
    service: Service,
    logging: &Logging,
) -> Result<(), String> {
    let gateway::Settings { link, session, .. } = loaded.config.gateway;
    let options = demo::DemoOptions {
        channel_prefix: link.channel_prefix,
        control_prefix: link.control_prefix,
        audio_root: session.output.audio_root,
    };
    let demo = Demo::start(options)
        .map_err(|error| format!("cannot start the stand-in of the demo: {error}"))?;
    let loaded = load(&flags, Some(&demo), None)
        .and_then(Loaded::load_certificates)
        .map_err(|problems| problems.to_string())?;
    run(flags, loaded.check_machine(), Some(demo), service, logging)
}

/// Runs the gateway to its end. The error is a sentence, for exit status 1.
fn run(
    flags: Flags,
    loaded: Loaded,
    demo: Option<Demo>,
    service: Service,
    logging: &Logging,
) -> Result<(), String> {
    let Loaded { config, path, warnings } = loaded;
    let (is_demo, demo) = (demo.is_some(), demo.map(Arc::new));
    log::info!(
        target: "gateway",
        "starting version={} config={} demo={is_demo} {}",
        env!("CARGO_PKG_VERSION"),
        named(path.as_deref()),
        config.summary(),
    );
    for warning in warnings {
        log::warn!(target: "config", "{warning}");
    }
    let has_https = flags.tls_file.is_some();
    // Known once the listeners are open.
    let listening = Arc::new(OnceLock::new());
    let hooks = Hooks {
        read_config: {
            let (demo, listening) = (demo.clone(), Arc::clone(&listening));
            Box::new(move || {
                let listening = listening.get().map(Vec::as_slice);
                load(&flags, demo.as_deref(), listening)
                    .and_then(Loaded::load_certificates)
                    .map(Loaded::check_machine)
            })
        },
        apply_config: {
            let (mut running, logging) = (config.clone(), logging.clone());
            Box::new(move |loaded| apply(loaded, &mut running, &logging))
        },
        reopen_log: {
            let logging = logging.clone();
            Box::new(move || logging.reopen())
        },
        log_turn: {
            let logging = logging.clone();
            Box::new(move |now| logging.turn(now))
        },
    };
    let reactor = Reactor::new(&config.reactor, config.gateway, hooks, service)
        .map_err(|error| error.to_string())?;
    listening.get_or_init(|| reactor.addresses());
    if let Some(demo) = demo {
        if let Some(&inbox) = reactor.inbox_addresses().first() {
            demo.publish_at(inbox);
        }
        say(&welcome(&reactor.addresses(), has_https)?);
    }
    reactor.run().map_err(|error| error.to_string())
}

/// What the demo prints, with a QR code if a terminal shows it.
fn welcome(addresses: &[ListenOn], has_https: bool) -> Result<String, String> {
    let with_address = |on: &&ListenOn| on.address().is_some();
    let on = addresses.iter().find(|on| on.has_tls() == has_https && with_address(on));
    let on = on.or_else(|| addresses.iter().find(with_address));
    let Some(gateway) = on.and_then(ListenOn::address) else {
        return Ok(String::new());
    };
    if !has_https {
        return Ok(demo::welcome(gateway));
    }
    let ca = cert::ca_file(&data_folder()?);
    let text = HttpsWelcome { gateway, lan: cert::lan_address(), ca: &ca };
    Ok(if std::io::stdout().is_terminal() { text.text_with_code() } else { text.text() })
}

/// Applies a configuration that was read again to the log. Returns the settings for the gateway, or
/// nothing if the configuration cannot be used: then that is logged, and the running one stays.
fn apply(
    loaded: Result<Loaded, config::Problems>,
    running: &mut Config,
    logging: &Logging,
) -> Option<gateway::Settings> {
    let Loaded { mut config, warnings, path } = match loaded {
        Ok(loaded) => loaded,
        Err(problems) => {
            for problem in problems.0 {
                log::error!(target: "config", "not reloaded: {problem}");
            }
            logging.reopen();
            return None;
        }
    };
    let kept = config.keep_until_restart(running);
    logging.apply(config.log.clone());
    log::info!(target: "config", "read again config={}", named(path.as_deref()));
    for key in kept {
        log::warn!(target: "config", "{key} has changed in the configuration, but only a restart takes it into use");
    }
    for warning in warnings {
        log::warn!(target: "config", "{warning}");
    }
    *running = config.clone();
    Some(config.gateway)
}

/// Where commands ask a running gateway with this configuration.
fn first_place(config: &Config) -> Option<Place> {
    Place::first(&config.reactor, &config.gateway.trust)
}

/// How the log names the file.
fn named(path: Option<&Path>) -> String {
    path.map_or("none".into(), |path| path.display().to_string())
}

/// Loads the configuration. The demo acts through the environment: its stand-in and an embedded
/// inbox then override the file, also on each reload.
fn load(
    flags: &Flags,
    demo: Option<&Demo>,
    listening: Option<&[ListenOn]>,
) -> Result<Loaded, config::Problems> {
    let variable = |name: &str| match demo {
        Some(demo) if name == "INPUT_HANDLER_URL" => Some(demo.url().into()),
        Some(_) if name == "OUTPUT_HANDLER_URL" => None,
        Some(_) if name == "REDIS_URL" => Some("embedded://127.0.0.1:0".into()),
        _ => std::env::var_os(name),
    };
    config::load(flags, &variable, listening)
}

/// Prints to standard output. A closed pipe is no error: `| head` has read enough.
fn say(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            complain(1, &format!("cannot print: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Prints to standard error, each line with the name of the program.
fn complain(status: u8, text: &str) -> ExitCode {
    for line in text.lines() {
        let _ = writeln!(std::io::stderr(), "{}: {line}", cli::NAME);
    }
    ExitCode::from(status)
}
