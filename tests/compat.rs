//! The wire contract as exchanges: scripts of what the peers send and, under `---`, of what they
//! get.
//!
//! The scripts are `tests/compat/*.txt`, one file for each section of `docs/protocol.md`. An
//! exchange begins with `## ` and what it shows. Exchanges run over the simulated kernel of
//! `tests/sim`, without chance: bytes arrive whole and at once, and time passes only with `wait`.
//! `COMPAT_REWRITE=1` writes what happens into the scripts, to be read and judged before it is
//! kept. `COMPAT_ONLY=1011` plays only the exchanges that have this in their title.
//!
//! ```text
//! set serves=http                       routes for plain HTTP; all bytes are shown as lines
//! set serves=speech                     routes for results and for speech, `Bearer open`
//! set serves=files                      a route for the files in `tests/compat/site`
//! set named=ws://localhost:8003/        the backend of the route `named`
//! set max_message=5                     settings, before anything else; `set splices=1`: use pipes
//! set results=4                         serve results, audio in chunks of 4 bytes, and the inbox
//! show heads                            show handshakes whole; else only their first lines
//! host 10.0.0.1:8001 refuses            or swallows, lacks (this machine has no memory), up
//! names 10.0.0.3:80 10.0.0.4:80         what names resolve to; `fail`: nothing; `hang`: no answer
//! files lack descriptors                no file can be opened; `files open`: they can again
//! client> GET /health HTTP/1.1          a line, with CRLF
//! client: upgrade /ws/input, Origin: https://a.example
//! client: text "hello"                  frames: text, binary, continue, ping, close 1000 "why"
//! client: more text "hello"             a frame without FIN
//! client: answers                       a pong to the gateway's last ping
//! client: cut 4 text "hello"            only the first bytes of it
//! client: rest text "hello" 4           only what follows them
//! client: bytes 81 00                   any bytes
//! client: repeat 5000 x                 a long text; `lines`: this many lines
//! client: fin | reset | closes          how it ends
//! client: stalls | reads | takes 500    stops reading, reads again, or reads just this many bytes
//! client: gathers | sends | sends fin   keeps what it sends, then sends it at once
//! worker> PING                          a command for the inbox; TASK is the id of a task
//! backend: accept                       the 101 to the request that arrived
//! wait 5s   drain   reload max_message=5   stats
//! closed                                why WebSockets have ended so far; `closed http`: what else
//! stop   run                            the gateway's process stands still, and goes on
//! ```
//! A client or a worker connects with the first line that names it. Backends are called `backend`,
//! `backend2`, … in the order in which they are dialed. Output is shown by connection, not by time.

#[expect(dead_code, reason = "the simulation uses the rest")]
#[path = "sim/kernel.rs"]
mod kernel;
#[expect(dead_code, reason = "the simulation uses the rest")]
#[path = "sim/wire.rs"]
mod wire;

use aivtuber_gateway::gateway::{self, Gateway};
use aivtuber_gateway::net::files::OpenError;
use aivtuber_gateway::net::{Side, Source};
use aivtuber_gateway::service::assets::Files;
use aivtuber_gateway::service::limits;
use aivtuber_gateway::service::name::LookUpError;
use aivtuber_gateway::service::origin::OriginRule;
use aivtuber_gateway::service::route::{Access, HttpLimits, RouteSettings, TargetSettings};
use aivtuber_gateway::service::token::Token;
use aivtuber_gateway::service::trust::PeerRule;
use aivtuber_gateway::service::url::{BackendUrl, Template};
use aivtuber_gateway::session::jobs::{FileAnswer, FileJob, Job, JobAnswer};
use aivtuber_gateway::session::{self, OnBackendFailure};
use kernel::{Action, Dialer, End, Host, Kernel, LinkId, Nature, Records, Shared, near_socket};
use rustix::io::Errno;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};
use tungstenite::handshake::derive_accept_key;
use wire::{Frame, FrameKind};

#[test]
fn relayed_routes() {
    play("relay.txt");
}

#[test]
fn backends_that_fail() {
    play("failures.txt");
}

#[test]
fn http_on_the_same_port() {
    play("http.txt");
}

#[test]
fn admins_and_strangers() {
    play("admins.txt");
}

#[test]
fn plain_http() {
    play("forward.txt");
}

#[test]
fn files_of_a_page() {
    play("files.txt");
}

#[test]
fn headers_of_the_proxy_protocol() {
    play("proxy_header.txt");
}

#[test]
fn close_codes() {
    play("closing.txt");
}

#[test]
fn results_and_what_workers_are_told() {
    play("results.txt");
}

#[test]
fn speech_over_a_websocket() {
    play("speech.txt");
}

/// Plays every exchange of a file and compares what happens with what the file says.
fn play(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat").join(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let only = std::env::var("COMPAT_ONLY").ok();
    let mut played = String::new();
    let mut exchanges = 0;
    for (index, exchange) in text.split("\n## ").enumerate() {
        if index == 0 {
            played.push_str(exchange);
            continue;
        }
        exchanges += 1;
        played.push_str("\n## ");
        let title = exchange.lines().next().unwrap_or_default();
        if only.as_ref().is_some_and(|only| !title.contains(only)) {
            played.push_str(exchange);
            continue;
        }
        played.push_str(
            &play_exchange(exchange).unwrap_or_else(|why| panic!("{name}: {exchange}\n\n{why}")),
        );
    }
    assert!(exchanges > 5, "{name} has only {exchanges} exchanges");
    if std::env::var_os("COMPAT_REWRITE").is_some() {
        std::fs::write(&path, &played).expect("it was read a moment ago");
    } else if let Some((number, (ours, theirs))) =
        (1..).zip(played.lines().zip(text.lines())).find(|(_, (ours, theirs))| ours != theirs)
    {
        panic!(
            "{name}:{number}: the file has\n  {theirs}\nwhat happens is\n  {ours}\n\n{}",
            diff(&text, &played)
        );
    } else {
        assert_eq!(played.lines().count(), text.lines().count(), "{name}: the number of lines");
    }
}

/// The exchange where the first difference is, as it happened.
fn diff(written: &str, played: &str) -> String {
    let exchanges = written.split("\n## ").zip(played.split("\n## "));
    exchanges.filter(|(a, b)| a != b).map(|(_, b)| format!("## {b}")).next().unwrap_or_default()
}

fn play_exchange(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut run = None;
    let mut settings = settings();
    let mut options = Options { shows_heads: false, splices: false, is_raw: false };
    let mut lines = text.lines().peekable();
    writeln!(out, "{}", lines.next().unwrap_or_default()).expect("a String takes everything");
    while let Some(line) = lines.next() {
        writeln!(out, "{line}").expect("a String takes everything");
        if let Some(words) = line.strip_prefix("set ") {
            options.splices |= words.contains("splices=1");
            options.is_raw |= words.contains("serves=http");
            change(&mut settings, words)?;
        } else if line == "show heads" {
            options.shows_heads = true;
        } else if line == "---" {
            let run: &mut ScriptRun =
                run.get_or_insert_with(|| ScriptRun::new(settings.clone(), options));
            run.settle()?;
            out.push_str(&run.take_output());
            while lines.peek().is_some_and(|line| is_output(line)) {
                lines.next();
            }
        } else if !line.is_empty() && !line.starts_with('#') {
            let run = run.get_or_insert_with(|| ScriptRun::new(settings.clone(), options));
            run.act(&line.replace("TASK", TASK), &mut settings)
                .map_err(|why| format!("{line}: {why}"))?;
        }
    }
    let mut run = run.ok_or("nothing happens")?;
    run.settle()?;
    match run.take_output() {
        rest if rest.is_empty() => {
            // Every exchange but the last is followed by the empty line before the next one.
            Ok(out.strip_suffix('\n').unwrap_or(&out).to_owned()
                + if text.ends_with('\n') { "\n" } else { "" })
        }
        rest => Err(format!("this is sent after the last `---`:\n{rest}")),
    }
}

/// `client< …`
fn is_output(line: &str) -> bool {
    line.trim_start_matches(|sign: char| sign.is_ascii_alphanumeric()).starts_with('<')
}

/// How an exchange is shown and carried.
#[derive(Clone, Copy)]
struct Options {
    /// The heads of handshakes are shown whole.
    shows_heads: bool,
    /// The kernel can splice, so streams pass through pipes.
    splices: bool,
    /// All bytes are shown as lines.
    is_raw: bool,
}

// ---- settings

fn route(name: &str, path: &str, urls: &[&str]) -> RouteSettings {
    RouteSettings {
        name: name.into(),
        path: Template::parse(path).expect("a path"),
        target: TargetSettings::Backend {
            urls: urls.iter().map(|url| BackendUrl::parse(url).expect("a URL")).collect(),
            host: (name == "hosted").then(|| "backend.example".into()),
            learn_task: None,
        },
    }
}

fn settings() -> gateway::Settings {
    gateway::Settings {
        trust: Default::default(),
        session: session::Settings::default(),
        limits: limits::Settings {
            max_connections: 100,
            max_connections_per_ip: 0,
            allowed_origins: Vec::new(),
        },
        routes: vec![
            route("input", "/ws/input", &["ws://10.0.0.1:8001/ws/input"]),
            route(
                "task",
                "/ws/task/{task_id}",
                &["ws://10.0.0.2:8002/tasks/{task_id}?from={task_id}"],
            ),
            route("two", "/ws/two", &["ws://10.0.0.3/", "ws://10.0.0.4/"]),
            route("named", "/ws/named", &["ws://name.example:8003/"]),
            route("hosted", "/ws/hosted", &["ws://10.0.0.1:8001/hosted"]),
            route("rest", "/ws/rest/{rest...}", &["ws://10.0.0.1:8001/v1/{rest}"]),
        ],
        drain_timeout: Some(Duration::from_secs(30)),
        tasks: Default::default(),
        link: Default::default(),
        upstreams: Default::default(),
        tls: Default::default(),
    }
}

fn change(settings: &mut gateway::Settings, words: &str) -> Result<(), String> {
    for word in words.split_whitespace() {
        let (key, value) = word.split_once('=').ok_or(format!("`{word}` is no key=value"))?;
        let time = || duration(value).map(|time| (!time.is_zero()).then_some(time));
        let number = || value.parse::<u64>().map_err(|error| format!("{word}: {error}"));
        let session = &mut settings.session;
        match key {
            "header_timeout" => session.header_timeout = time()?,
            "keep_alive" => session.keep_alive = time()?,
            "connect_timeout" => session.connect_timeout = time()?,
            "attempt_timeout" => session.attempt_timeout = time()?,
            "handshake_timeout" => session.handshake_timeout = time()?,
            "resolve_interval" => settings.upstreams.resolve_interval = time()?,
            "write_timeout" => session.write_timeout = time()?,
            "ping_interval" => session.ping_interval = time()?,
            "ping_timeout" => session.ping_timeout = time()?,
            "idle_timeout" => session.idle_timeout = time()?,
            "drain_timeout" => settings.drain_timeout = time()?,
            "max_message" => session.max_message = Some(number()?).filter(|&max| max > 0),
            "on_backend_failure" if value == "http" => {
                session.on_backend_failure = OnBackendFailure::Http
            }
            "on_backend_failure" if value == "close" => {
                session.on_backend_failure = OnBackendFailure::Close
            }
            "named" => settings.routes[3] = route("named", "/ws/named", &[value]),
            "max_connections" => settings.limits.max_connections = number()? as usize,
            "max_connections_per_ip" => settings.limits.max_connections_per_ip = number()? as usize,
            "admin_from" => settings.trust.admin_from = vec![PeerRule::parse(value)?],
            "trusted_proxies" => settings.trust.trusted_proxies = vec![PeerRule::parse(value)?],
            "proxy_protocol" => settings.trust.proxy_protocol = value == "true",
            "allowed_origins" => settings.limits.allowed_origins = vec![OriginRule::parse(value)?],
            "splices" => {} // an option of the kernel
            "results" => serve_results(settings, number()? as usize),
            "serves" if value == "speech" => serve_speech(settings),
            "serves" if value == "http" => serve_http(settings),
            "serves" if value == "files" => serve_files(settings),
            "response_timeout" => session.response_timeout = time()?,
            "max_body" => session.max_body = Some(number()?).filter(|&max| max > 0),
            "timeout" => session.output.timeout = time()?,
            "audio_stall" => session.output.audio_stall = time()?,
            "max_audio" => session.output.max_audio = number()?,
            "chunk_size" => session.output.chunk_size = number()? as usize,
            "claims" => settings.routes.push(RouteSettings {
                path: Template::parse(value)?,
                ..settings.routes[0].clone()
            }),
            "without_route" => settings.routes.retain(|route| route.name != value),
            _ => return Err(format!("`{word}` is not known")),
        }
    }
    Ok(())
}

/// Results come through the inbox; audio is in `tests/compat/audio`, and is as old as the checkout.
fn serve_results(settings: &mut gateway::Settings, chunk_size: usize) {
    settings.routes.push(RouteSettings {
        name: "output".into(),
        path: Template::parse("/ws/output/{task_id}").expect("a path"),
        target: TargetSettings::Output,
    });
    settings.link.urls = vec!["embedded://127.0.0.1:1".into()];
    let output = &mut settings.session.output;
    output.audio_root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/audio");
    output.audio_wait = None;
    output.chunk_size = chunk_size;
}

/// Plain HTTP, to one backend and to two.
fn serve_http(settings: &mut gateway::Settings) {
    let route = |name: &str, path: &str, urls: &[&str], limits| RouteSettings {
        name: name.into(),
        path: Template::parse(path).expect("a path"),
        target: TargetSettings::Http {
            urls: urls.iter().map(|url| BackendUrl::parse(url).expect("a URL")).collect(),
            host: None,
            limits,
        },
    };
    let small = HttpLimits { max_body: Some(Some(5)), response_timeout: None };
    settings.routes = vec![
        route("api", "/api/{x}", &["http://10.0.0.1:8001/{x}"], HttpLimits::default()),
        route("small", "/small", &["http://10.0.0.1:8001/small"], small),
        route("two", "/two", &["http://10.0.0.3/", "http://10.0.0.4/"], HttpLimits::default()),
    ];
}

/// A page and its files, which are as old as the checkout.
fn serve_files(settings: &mut gateway::Settings) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/site");
    settings.routes.push(RouteSettings {
        name: "app".into(),
        path: Template::parse("/{file...}").expect("a path"),
        target: TargetSettings::Files(Files {
            folder: folder.into(),
            fallback: Some("index.html".into()),
        }),
    });
}

/// Results from the gateway's own inbox, and speech from workers that have the token `open`.
fn serve_speech(settings: &mut gateway::Settings) {
    let route = |name: &str, path: &str, target| RouteSettings {
        name: name.into(),
        path: Template::parse(path).expect("a path"),
        target,
    };
    let token = Some(Token::parse("open").expect("a token"));
    let ingest = TargetSettings::Ingest(Access { token, token_file: String::new() });
    settings.routes.push(route("output", "/ws/output/{task_id}", TargetSettings::Output));
    settings.routes.push(route("ingest", "/ws/ingest", ingest));
    settings.link.urls = vec!["embedded://127.0.0.1:1".into()];
}

fn addresses(words: &str) -> Result<Vec<SocketAddr>, String> {
    let read = |word: &str| word.parse().map_err(|error| format!("{word}: {error}"));
    words.split_whitespace().map(read).collect()
}

fn duration(text: &str) -> Result<Duration, String> {
    let number = |digits: &str| digits.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    match text.strip_suffix("ms") {
        Some(digits) => Ok(Duration::from_millis(number(digits)?)),
        None => Ok(Duration::from_secs(number(
            text.strip_suffix('s').ok_or("a time ends with s or ms")?,
        )?)),
    }
}

// ---- the gateway and its peers

/// A gateway, with peers that do what the script says.
struct ScriptRun {
    kernel: Shared,
    gateway: Gateway,
    peers: Vec<Peer>,
    slots: Vec<(usize, LinkId)>,
    waiting: Vec<(LinkId, Role)>,
    /// Finished background jobs, for the next turn.
    answers: Vec<JobAnswer>,
    /// What looking up a name gives; `None`: no answer.
    names: Option<Result<Vec<SocketAddr>, LookUpError>>,
    /// What opening a file fails with.
    file_error: Option<OpenError>,
    backends: usize,
    shows_heads: bool,
    is_raw: bool,
    /// The gateway's process does not run.
    is_stopped: bool,
    /// What `stats` and `closed` showed.
    shown: String,
}

/// A client or a backend, and how it reads what it gets.
struct Peer {
    name: String,
    link: LinkId,
    role: Role,
    /// The heads of handshakes are shown whole.
    shows_heads: bool,
    is_stalled: bool,
    /// What it sends is kept here first.
    gathered: Option<Vec<u8>>,
    /// What has arrived and has not been shown.
    held: Vec<u8>,
    reading: Reading,
    output: String,
    key: String,
    /// The payload of the gateway's last ping.
    pinged: Vec<u8>,
    has_seen_end: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Backend,
    Worker,
}

#[derive(PartialEq, Eq)]
enum Reading {
    Head,
    Body {
        left: usize,
        is_shown: bool,
    },
    Frames,
    /// An answer that ends with its connection.
    Rest,
    /// Lines of an event stream, and of its chunks.
    Events,
    /// What the inbox says.
    Replies,
    /// Whatever comes, as lines.
    Raw,
}

/// What scripts call TASK.
const TASK: &str = "00000000-0000-0000-0000-000000000001";
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MASK: [u8; 4] = [1, 2, 3, 4];

impl ScriptRun {
    fn new(settings: gateway::Settings, options: Options) -> ScriptRun {
        let Options { shows_heads, splices, is_raw } = options;
        let nature = Nature {
            receive_max: 1 << 20,
            send_max: if splices { 256 * 1024 } else { 64 * 1024 },
            latency: Duration::ZERO,
            cuts: false,
            has_quirks: false,
            splices,
            peeks_ahead: true,
            records: Records::None,
        };
        let kernel = Kernel::new(1, nature);
        for address in [
            "10.0.0.1:8001",
            "10.0.0.2:8002",
            "10.0.0.3:80",
            "10.0.0.4:80",
            "[::1]:8003",
            "127.0.0.1:8003",
        ] {
            let address = address.parse().expect("an address");
            kernel.borrow_mut().hosts.insert(address, Host::Up(Duration::ZERO));
        }
        let now = kernel.borrow().now;
        let network = Box::new(Dialer(Rc::clone(&kernel)));
        let gateway = Gateway::new(settings, network, fastrand::Rng::with_seed(1), now, UNIX_EPOCH);
        let gateway = gateway.expect("its settings are good");
        ScriptRun {
            kernel,
            gateway,
            peers: Vec::new(),
            slots: Vec::new(),
            waiting: Vec::new(),
            answers: Vec::new(),
            names: Some(Ok(addresses("[::1]:8003 127.0.0.1:8003").expect("addresses"))),
            file_error: None,
            backends: 0,
            shows_heads,
            is_raw,
            is_stopped: false,
            shown: String::new(),
        }
    }

    fn act(&mut self, line: &str, settings: &mut gateway::Settings) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "wait" => return self.wait(duration(rest)?),
            "drain" => self.gateway.drain(),
            "stop" => self.is_stopped = true,
            "run" => self.is_stopped = false,
            "stats" => self.show_stats(),
            "closed" => self.show_closed(rest == "http"),
            "reload" => {
                change(settings, rest)?;
                self.gateway.reload(settings.clone());
            }
            "host" => self.set_host(rest)?,
            "files" => {
                self.file_error = match rest {
                    "lack descriptors" => Some(OpenError::Shortage(Errno::MFILE)),
                    "open" => None,
                    _ => return Err(format!("files that {rest}?")),
                }
            }
            "names" => {
                self.names = match rest {
                    "hang" => None,
                    "fail" => Some(Err(LookUpError::NotFound("no such name".into()))),
                    "lack descriptors" => Some(Err(LookUpError::Shortage { errno: 24 })),
                    found => Some(Ok(addresses(found)?)),
                }
            }
            _ => {
                let (name, rest) = match word.split_at(word.len() - 1) {
                    (name, ">") => {
                        let index = self.peer(name)?;
                        let bytes = format!("{rest}\r\n");
                        self.send(index, bytes.as_bytes());
                        return self.settle();
                    }
                    (name, ":") => (name, rest),
                    _ => return Err("a line begins with `name>` or `name:`".into()),
                };
                let index = self.peer(name)?;
                self.perform(index, rest)?;
            }
        }
        self.settle()
    }

    fn show_stats(&mut self) {
        let stats = self.gateway.stats();
        let (too_big, pings, pongs) =
            (stats.messages_too_big, stats.pings_sent, stats.pongs_swallowed);
        let mut line = format!("gateway< too_big={too_big} pings={pings} pongs={pongs}");
        for (backend, dials) in stats.backends() {
            write!(line, " {backend} ok={} failed={}", dials.ok, dials.failed)
                .expect("a String takes everything");
        }
        for (route, classes) in stats.requests() {
            write!(line, " {route}={classes:?}").expect("a String takes everything");
        }
        for (status, count) in stats.http() {
            write!(line, " {status}={count}").expect("a String takes everything");
        }
        self.shown = line + "\n";
    }

    fn show_closed(&mut self, is_http: bool) {
        let ended = self.gateway.stats().ended().iter();
        let routes = ended.filter(|(route, _)| (&***route == "http") == is_http);
        for ((reason, ..), count) in routes.flat_map(|(_, reasons)| reasons) {
            let times = if *count == 1 { String::new() } else { format!(" {count} times") };
            writeln!(self.shown, "gateway< closed reason={reason}{times}")
                .expect("a String takes everything");
        }
    }

    fn set_host(&mut self, words: &str) -> Result<(), String> {
        let (address, how) = words.split_once(' ').ok_or("how?")?;
        let address: SocketAddr = address.parse().map_err(|error| format!("{error}"))?;
        let host = match how {
            "refuses" => Host::Refusing(Duration::ZERO),
            "swallows" => Host::Swallowing,
            "lacks" => Host::Failing(ErrorKind::OutOfMemory),
            "up" => Host::Up(Duration::ZERO),
            _ => return Err(format!("a host that {how}?")),
        };
        self.kernel.borrow_mut().hosts.insert(address, host);
        Ok(())
    }

    fn peer(&mut self, name: &str) -> Result<usize, String> {
        if let Some(index) = self.peers.iter().position(|peer| peer.name == name) {
            return Ok(index);
        }
        let role = match name {
            _ if name.starts_with("client") => Role::Client,
            _ if name.starts_with("worker") => Role::Worker,
            _ => return Err(format!("{name} has not been dialed")),
        };
        let link = self.kernel.borrow_mut().open();
        self.waiting.push((link, role));
        let mut peer = Peer::new(name.to_owned(), link, role, self.shows_heads);
        peer.read_raw(self.is_raw);
        self.peers.push(peer);
        self.settle()?;
        Ok(self.peers.len() - 1)
    }

    fn send(&mut self, index: usize, bytes: &[u8]) {
        if let Some(gathered) = &mut self.peers[index].gathered {
            return gathered.extend(bytes);
        }
        self.kernel.borrow_mut().send(self.peers[index].link, bytes);
    }

    /// A peer does what `words` say.
    fn perform(&mut self, index: usize, words: &str) -> Result<(), String> {
        let link = self.peers[index].link;
        let (word, rest) = words.split_once(' ').unwrap_or((words, ""));
        match word {
            "fin" => self.kernel.borrow_mut().end(link, End::Fin),
            "reset" => self.kernel.borrow_mut().end(link, End::Reset),
            "closes" => {
                self.kernel.borrow_mut().close(link);
            }
            "stalls" => self.peers[index].is_stalled = true,
            "reads" => self.peers[index].is_stalled = false,
            "takes" => {
                let count = rest.parse().map_err(|error| format!("{error}"))?;
                let bytes = self.kernel.borrow_mut().receive(link, count);
                self.peers[index].held.extend(bytes);
                self.peers[index].show();
            }
            "answers" => {
                let mask = self.peers[index].mask();
                let frame =
                    Frame::new(FrameKind::plain(wire::PONG, mask), &self.peers[index].pinged);
                self.send(index, &frame.bytes);
            }
            "connects" => {}
            "gathers" => self.peers[index].gathered = Some(Vec::new()),
            "sends" => {
                let gathered =
                    self.peers[index].gathered.take().ok_or("it has gathered nothing")?;
                self.send(index, &gathered);
                if rest == "fin" {
                    // The last bytes and the FIN make one event.
                    self.kernel.borrow_mut().deliver(link);
                    self.kernel.borrow_mut().end(link, End::Fin);
                    self.kernel.borrow_mut().deliver(link);
                }
            }
            "upgrade" => self.send(index, &upgrade(rest)),
            "accept" => {
                let head = accept(&self.peers[index].key, rest);
                self.send(index, head.as_bytes());
            }
            "repeat" => {
                let (count, text) = rest.split_once(' ').ok_or("repeat how often?")?;
                let count = count.parse().map_err(|error| format!("{error}"))?;
                self.send(index, text.repeat(count).as_bytes());
            }
            "lines" => {
                let (count, text) = rest.split_once(' ').ok_or("how many?")?;
                let count = count.parse().map_err(|error| format!("{error}"))?;
                self.send(index, format!("{text}\r\n").repeat(count).as_bytes());
            }
            "bytes" => {
                let bytes: Result<Vec<u8>, _> =
                    rest.split(' ').map(|byte| u8::from_str_radix(byte, 16)).collect();
                self.send(index, &bytes.map_err(|error| format!("{error}"))?);
            }
            "cut" => {
                let (count, rest) = rest.split_once(' ').ok_or("cut where?")?;
                let count: usize = count.parse().map_err(|error| format!("{error}"))?;
                let frame = self.frame(index, rest)?;
                self.send(index, &frame[..count]);
            }
            "rest" => {
                let (rest, count) = rest.rsplit_once(' ').ok_or("from where on?")?;
                let count: usize = count.parse().map_err(|error| format!("{error}"))?;
                let frame = self.frame(index, rest)?;
                self.send(index, &frame[count..]);
            }
            _ => {
                let frame = self.frame(index, words)?;
                self.send(index, &frame);
            }
        }
        Ok(())
    }

    fn frame(&self, index: usize, words: &str) -> Result<Vec<u8>, String> {
        let mask = self.peers[index].mask();
        let (fin, words) = match words.strip_prefix("more ") {
            Some(words) => (false, words),
            None => (true, words),
        };
        let (rsv, words) = match words.strip_prefix("deflated ") {
            Some(words) => (4, words),
            None => (0, words),
        };
        let (word, rest) = words.split_once(' ').unwrap_or((words, ""));
        let opcode = match word {
            "continue" => 0,
            "text" => wire::TEXT,
            "binary" => wire::BINARY,
            "close" => wire::CLOSE,
            "ping" => wire::PING,
            "pong" => wire::PONG,
            _ => return Err(format!("what is `{word}`?")),
        };
        let (code, text) = match opcode {
            wire::CLOSE if !rest.is_empty() => rest.split_once(' ').unwrap_or((rest, "\"\"")),
            _ => ("", rest),
        };
        let mut payload = Vec::new();
        if !code.is_empty() {
            payload.extend(
                code.parse::<u16>().map_err(|error| format!("{code}: {error}"))?.to_be_bytes(),
            );
        }
        match text.split_once(" times ") {
            Some((count, text)) => {
                let count = count.parse().map_err(|error| format!("{count}: {error}"))?;
                payload.extend(text.trim_matches('"').repeat(count).bytes());
            }
            None => payload.extend(text.trim_matches('"').bytes()),
        }
        Ok(Frame::new(FrameKind { fin, rsv, ..FrameKind::plain(opcode, mask) }, &payload).bytes)
    }

    // ---- time and turns

    /// Everything happens that needs no time to pass.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..10_000 {
            let action = self.kernel.borrow_mut().poll_action();
            if let Some(action) = action {
                self.happen(action);
                continue;
            }
            let now = self.kernel.borrow().now;
            let is_due = self.gateway.next_turn().is_some_and(|at| at <= now);
            let is_knocked = self.waiting.first().is_some_and(|(_, role)| self.can_admit(*role));
            let is_answered = !self.answers.is_empty();
            if self.is_stopped {
                return Ok(());
            }
            if is_due || is_knocked || is_answered || self.kernel.borrow().has_edges() {
                self.turn();
            } else if !self.read() {
                return Ok(());
            }
        }
        Err("it does not settle".into())
    }

    fn wait(&mut self, time: Duration) -> Result<(), String> {
        self.settle()?;
        let until = self.kernel.borrow().now + time;
        loop {
            let turn = self.gateway.next_turn().filter(|_| !self.is_stopped);
            let next = [self.kernel.borrow().next_action(), turn].into_iter().flatten().min();
            self.kernel.borrow_mut().now = next.map_or(until, |at| at.min(until));
            self.settle()?;
            if self.kernel.borrow().now >= until {
                return Ok(());
            }
        }
    }

    fn happen(&mut self, action: Action) {
        match action {
            Action::Deliver(link) => self.kernel.borrow_mut().deliver(link),
            Action::Edge(link) => self.kernel.borrow_mut().late_edge(link),
            Action::Dialed(link, result) => self.kernel.borrow_mut().dialed(link, result),
            Action::Peer(_) | Action::Plan(_) => {}
        }
    }

    fn turn(&mut self) {
        let events = self.kernel.borrow_mut().take_events();
        let now = self.kernel.borrow().now;
        self.gateway.begin_turn(now);
        for (_, source, ready) in events {
            self.gateway.ready(source, ready);
        }
        for answer in std::mem::take(&mut self.answers) {
            self.gateway.handle_answer(answer);
        }
        self.gateway.settle();
        while let Some(&(link, role)) = self.waiting.first()
            && self.can_admit(role)
        {
            self.waiting.remove(0);
            let key = self.gateway.next_key();
            self.slots.retain(|(slot, _)| *slot != key);
            self.slots.push((key, link));
            self.kernel.borrow_mut().register(link, Source::Session(key, Side::Downstream));
            let near = near_socket(&self.kernel, link);
            let from = SocketAddr::from(([192, 0, 2, 1], 50_000 + link as u16));
            match role {
                Role::Worker => self.gateway.admit_worker(near, from),
                Role::Client | Role::Backend => self.gateway.admit(near, from),
            }
        }
        self.gateway.finish_turn();
        self.gateway.shrink_to_fit();
        while let Some(job) = self.gateway.poll_job() {
            match job {
                Job::LookUp { owner, .. } => {
                    if let Some(found) = self.names.clone() {
                        self.answers.push(JobAnswer::LookedUp { owner, found });
                    }
                }
                Job::File(job) => {
                    let answer = match (job, self.file_error) {
                        // Its answer would show that later files can be opened at once.
                        (FileJob::CheckAudioRoot(_), Some(_)) => continue,
                        (FileJob::Open { owner, .. }, Some(error)) => {
                            JobAnswer::File(FileAnswer::Opened { owner, opened: Err(error) })
                        }
                        (job, _) => job.run(),
                    };
                    self.answers.push(answer);
                }
            }
        }
        loop {
            let Some(link) = self.kernel.borrow_mut().established.pop_front() else { break };
            self.backends += 1;
            let to = self.kernel.borrow().links[link].to;
            let name = if self.backends == 1 {
                "backend".into()
            } else {
                format!("backend{}", self.backends)
            };
            let mut peer = Peer::new(name, link, Role::Backend, self.shows_heads);
            peer.read_raw(self.is_raw);
            peer.report(&format!("(dialed at {})", to.expect("it was dialed")));
            self.peers.push(peer);
        }
    }

    fn can_admit(&self, role: Role) -> bool {
        match role {
            Role::Worker => self.gateway.can_admit_worker(),
            Role::Client | Role::Backend => self.gateway.can_admit(),
        }
    }

    /// Every peer reads. Returns false if there was nothing to read.
    fn read(&mut self) -> bool {
        let mut is_any = false;
        for peer in &mut self.peers {
            if peer.is_stalled {
                continue;
            }
            let bytes = self.kernel.borrow_mut().receive(peer.link, usize::MAX);
            if !bytes.is_empty() {
                is_any = true;
                peer.held.extend(bytes);
                peer.show();
            }
            let end = self.kernel.borrow().received_end(peer.link);
            if let Some(end) = end
                && !std::mem::replace(&mut peer.has_seen_end, true)
            {
                peer.show_end(end);
            }
        }
        is_any
    }

    fn take_output(&mut self) -> String {
        let output: String =
            self.peers.iter_mut().map(|peer| std::mem::take(&mut peer.output)).collect();
        output + &std::mem::take(&mut self.shown)
    }
}

impl Peer {
    fn new(name: String, link: LinkId, role: Role, shows_heads: bool) -> Peer {
        Peer {
            name,
            link,
            role,
            shows_heads,
            is_stalled: false,
            gathered: None,
            held: Vec::new(),
            reading: if role == Role::Worker { Reading::Replies } else { Reading::Head },
            output: String::new(),
            key: String::new(),
            pinged: Vec::new(),
            has_seen_end: false,
        }
    }

    /// Shows whatever comes as lines, if `is_raw`.
    fn read_raw(&mut self, is_raw: bool) {
        if is_raw {
            self.reading = Reading::Raw;
        }
    }

    /// Clients mask what they send.
    fn mask(&self) -> Option<[u8; 4]> {
        (self.role == Role::Client).then_some(MASK)
    }

    fn report(&mut self, what: &str) {
        let line = format!("{}< {}", self.name, what.replace(TASK, "TASK"));
        writeln!(self.output, "{}", line.trim_end()).expect("a String takes everything");
    }

    /// Shows what has arrived whole.
    fn show(&mut self) {
        loop {
            let is_more = match self.reading {
                Reading::Head => self.show_head(),
                Reading::Body { left, is_shown } => self.show_body(left, is_shown),
                Reading::Frames => self.show_frame(),
                Reading::Rest => false,
                Reading::Events => self.show_line(),
                Reading::Replies => self.show_reply(),
                Reading::Raw => self.show_raw(),
            };
            if !is_more {
                return;
            }
        }
    }

    fn show_head(&mut self) -> bool {
        let Some(length) = self.held.windows(4).position(|four| four == b"\r\n\r\n") else {
            return false;
        };
        let head = String::from_utf8_lossy(&self.held[..length]).into_owned();
        self.held.drain(..length + 4);
        let status = head.split(' ').nth(1).unwrap_or_default();
        if !self.shows_heads && (status == "101" || !(self.role == Role::Client)) {
            let first = head.lines().next().unwrap_or_default();
            self.key = head
                .lines()
                .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
                .unwrap_or_default()
                .into();
            self.report(&format!("{first} …"));
            self.reading = Reading::Frames;
            return true;
        }
        let (mut left, mut is_shown) = (0, true);
        for line in head.lines() {
            if let Some(key) = line.strip_prefix("Sec-WebSocket-Key: ") {
                self.key = key.to_owned();
            }
            if let Some(length) = line.strip_prefix("Content-Length: ") {
                left = length.parse().expect("a length");
                self.report("Content-Length: …");
                continue;
            }
            // Of a file, both depend on when the repository was checked out.
            if let Some((name @ ("ETag" | "Last-Modified"), _)) = line.split_once(": ")
                && head.contains("\nLast-Modified: ")
            {
                self.report(&format!("{name}: …"));
                continue;
            }
            if line.contains("'sha256-") {
                let mut parts = line.split("'sha256-");
                let mut shown = parts.next().unwrap_or_default().to_owned();
                for part in parts {
                    let (_, after) = part.split_once('\'').expect("a hash is quoted");
                    shown.push_str(&format!("'sha256-…'{after}"));
                }
                self.report(&shown);
                continue;
            }
            is_shown &= !line.starts_with("Content-Type: text/");
            match line.strip_prefix("X-Request-Id: ") {
                Some(id) if id.len() == 36 => self.report("X-Request-Id: <a UUID>"),
                _ => self.report(line),
            }
        }
        self.report("");
        self.reading = match status {
            "101" => Reading::Frames,
            _ if !(self.role == Role::Client) => Reading::Frames,
            _ if head.contains("text/event-stream") => Reading::Events,
            _ if head.contains("Transfer-Encoding") => Reading::Rest,
            _ if left > 0 => Reading::Body { left, is_shown },
            _ => Reading::Head,
        };
        true
    }

    fn show_line(&mut self) -> bool {
        let Some(end) = self.held.iter().position(|byte| *byte == b'\n') else { return false };
        let line: Vec<u8> = self.held.drain(..=end).collect();
        self.report(String::from_utf8_lossy(&line).trim_end());
        true
    }

    fn show_body(&mut self, left: usize, is_shown: bool) -> bool {
        // The answer to HEAD has a length and no body: the next head follows, or nothing.
        if self.held.starts_with(b"HTTP/1.1 ") || self.held.is_empty() {
            self.reading = Reading::Head;
            return !self.held.is_empty();
        }
        if self.held.len() < left {
            return false;
        }
        let body: Vec<u8> = self.held.drain(..left).collect();
        let text = String::from_utf8_lossy(&body).replace(env!("CARGO_PKG_VERSION"), "<version>");
        if is_shown {
            self.report(text.trim_end());
        } else {
            self.report(&format!("({})", text.lines().next().unwrap_or_default()));
        }
        self.reading = Reading::Head;
        true
    }

    fn show_frame(&mut self) -> bool {
        let Some((head, length)) = aivtuber_gateway::proto::ws::FrameHead::parse(&self.held) else {
            return false;
        };
        let end = length + head.payload as usize;
        if self.held.len() < end {
            return false;
        }
        let mut payload = self.held[length..end].to_vec();
        self.held.drain(..end);
        if let Some(mask) = head.mask {
            aivtuber_gateway::proto::ws::apply_mask(&mut payload, mask, 0);
        }
        let mut line = String::new();
        if head.mask.is_some() == (self.role == Role::Client) {
            line.push_str("WRONGLY MASKED ");
        }
        if !head.fin {
            line.push_str("more ");
        }
        if head.rsv != 0 {
            line.push_str("deflated ");
        }
        let is_own = head.opcode == aivtuber_gateway::proto::ws::Opcode::Ping && payload.len() == 8;
        if is_own {
            self.pinged.clone_from(&payload);
        }
        let text =
            if is_own { "<ours>".into() } else { String::from_utf8_lossy(&payload).into_owned() };
        match (head.opcode.bits(), payload.first_chunk()) {
            (0, _) => write!(line, "continue \"{}\"", short(&text)),
            (wire::CLOSE, Some(code)) => {
                let reason = String::from_utf8_lossy(&payload[2..]).into_owned();
                write!(line, "close {} \"{reason}\"", u16::from_be_bytes(*code))
            }
            (wire::CLOSE, None) => write!(line, "close"),
            _ => write!(line, "{} \"{}\"", head.opcode, short(&text)),
        }
        .expect("a String takes everything");
        self.report(&line);
        true
    }

    fn show_raw(&mut self) -> bool {
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned();
        for line in text.trim_end_matches("\r\n").split("\r\n") {
            match line.strip_prefix("X-Request-Id: ") {
                Some(id) if id.len() == 36 => self.report("X-Request-Id: <a UUID>"),
                _ => self.report(&short(&line.escape_debug().to_string())),
            }
        }
        false
    }

    fn show_reply(&mut self) -> bool {
        let Some((text, used)) = reply(&self.held) else { return false };
        self.held.drain(..used);
        self.report(&text);
        true
    }

    fn show_end(&mut self, end: End) {
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            let text = match self.reading {
                Reading::Frames => {
                    let bytes: Vec<String> =
                        held.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
                    format!("({} bytes of a frame: {})", held.len(), bytes.join(" "))
                }
                _ => String::from_utf8_lossy(&held).escape_default().to_string(),
            };
            self.report(&text);
        }
        self.report(match end {
            End::Fin => "(end)",
            End::Reset => "(reset)",
        });
    }
}

/// A value in the Redis protocol at the front of `bytes`, and how many of them it takes.
fn reply(bytes: &[u8]) -> Option<(String, usize)> {
    let length = bytes.windows(2).position(|two| two == b"\r\n")?;
    let line = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let mut used = length + 2;
    let number = line[1..].parse::<usize>();
    match (&line[..1], number) {
        ("$", Ok(length)) => {
            let text = bytes.get(used..used + length)?;
            (bytes.len() >= used + length + 2)
                .then(|| (String::from_utf8_lossy(text).into_owned(), used + length + 2))
        }
        ("*", Ok(count)) => {
            let mut words = Vec::new();
            for _ in 0..count {
                let (word, length) = reply(&bytes[used..])?;
                words.push(word);
                used += length;
            }
            Some((words.join(" "), used))
        }
        _ => Some((line, used)),
    }
}

fn short(text: &str) -> String {
    let text = &*text.replace(TASK, "TASK");
    match text.len() {
        0..=120 => text.to_owned(),
        length => format!("{}… {length} bytes", text.chars().take(10).collect::<String>()),
    }
}

/// The answer to the request with this `key`. `lines`: more headers, separated by `, `.
fn accept(key: &str, lines: &str) -> String {
    let accept = derive_accept_key(key.as_bytes());
    let mut head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nServer: backend\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n"
    );
    let lines = lines.split(", ").filter(|line| !line.is_empty());
    lines.for_each(|line| head += &format!("{line}\r\n"));
    head + "\r\n"
}

/// A valid upgrade request. `words`: the path, then header lines to add or, by their name, to
/// replace.
fn upgrade(words: &str) -> Vec<u8> {
    let mut words = words.split(", ");
    let path = words.next().filter(|path| !path.is_empty()).unwrap_or("/ws/input");
    let extra: Vec<&str> = words.collect();
    let mut head = format!("GET {path} HTTP/1.1\r\n");
    let key = format!("Sec-WebSocket-Key: {KEY}");
    for line in [
        "Host: gateway:8000",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        &key,
    ] {
        let name = &line[..=line.find(':').expect("a header")];
        if !extra.iter().any(|extra| extra.starts_with(name)) {
            head += &format!("{line}\r\n");
        }
    }
    for line in extra {
        head += &format!("{line}\r\n");
    }
    (head + "\r\n").into_bytes()
}
