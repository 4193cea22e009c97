//! `bench-memory`: the gateway in a memory cgroup, beside clients that hardly read. It must never
//! be killed, stay within the group's limit with the kernel's socket memory included, and serve
//! everyone else.

use aivtuber_gateway_benches::net::{free_port, raise_descriptor_limit};
use aivtuber_gateway_benches::wire::{
    fresh_key, parse_answer, parse_request, push_frame, upgrade_answer, upgrade_request,
};
use aivtuber_gateway_benches::{Fault, resp};
use lexopt::prelude::*;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

const HELP: &str = "\
bench-memory: the gateway in a memory cgroup, beside clients that hardly read (as root)

  --case CASE      slow, result, connections, commands or partials (slow)
  --seconds S      how long, for the case `slow` (60)
  --limit MIB      the cgroup's limit, the kernel's socket memory included (64)
  --gateway FILE   the gateway's binary (target/release/aivtuber-gateway)

slow          2,000 idle pairs, 50 streams of 1 MB/s, 150 relays and 150 deliveries whose clients
              read 16 bytes every 20 s. No timeout ends one of them. One that the gateway closes
              comes back after a second.
result        one result of 4 MiB, and 150 clients of its task that do not read
connections   2,000 idle pairs, and 300 clients that ask for /connections and do not read
commands      40 workers that send 16 MiB of a command and not its end
partials      6,000 results of 30 KiB for one task without a client
";

const IDLE_PAIRS: usize = 2000;
const STREAMS: usize = 50;
const SLOW_RELAYS: usize = 150;
const SLOW_WAITERS: usize = 150;
const TASKS: usize = 10;
const READ_INTERVAL: Duration = Duration::from_secs(20);

/// Bytes of a stream's frame, and the pause between two.
const STREAM_FRAME: usize = 64 * 1024;
const STREAM_PAUSE: Duration = Duration::from_millis(64);

/// Everything that is to happen has happened after this time.
const SETTLE_TIME: Duration = Duration::from_secs(3);

/// Bytes of a result's text.
const RESULT_TEXT: usize = 1024 * 1024;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("bench-memory: {fault}");
            ExitCode::FAILURE
        }
    }
}

/// What the threads count.
#[derive(Default)]
struct Counts {
    is_over: AtomicBool,
    streamed: AtomicU64,
    streams_lost: AtomicU64,
    slow_closed: AtomicU64,
    slow_refused: AtomicU64,
    published: AtomicU64,
    refused: AtomicU64,
}

fn run() -> Result<(), Fault> {
    let (mut seconds, mut limit) = (60.0, 64_u64);
    let mut case = "slow".to_owned();
    let mut gateway = PathBuf::from("target/release/aivtuber-gateway");
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Long("case") => case = value(&mut parser)?,
            Long("seconds") => seconds = value(&mut parser)?,
            Long("limit") => limit = value(&mut parser)?,
            Long("gateway") => {
                gateway = parser.value().map_err(|error| error.to_string())?.into();
            }
            Short('h') | Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            other => return Err(format!("{}\n\n{HELP}", other.unexpected())),
        }
    }
    raise_descriptor_limit();
    let group = Group::new(limit * 1024 * 1024)?;
    let backend = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let mut target = Target::start(&gateway, &group, &backend)?;
    let counts = Arc::new(Counts::default());
    serve(backend);
    let time = Duration::from_secs_f64(seconds);
    let outcome = match case.as_str() {
        "slow" => measure(&mut target, &group, &counts, time),
        case => measure_held(case, &mut target, &group),
    };
    counts.is_over.store(true, Relaxed);
    let alive = target.is_alive();
    drop(target);
    let figures = outcome?;
    println!("{figures}");
    if !alive {
        return Err("the gateway did not survive".into());
    }
    Ok(())
}

fn value<T>(parser: &mut lexopt::Parser) -> Result<T, Fault>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let value = parser.value().and_then(|value| value.parse());
    value.map_err(|error| error.to_string())
}

fn measure(
    target: &mut Target,
    group: &Group,
    counts: &Arc<Counts>,
    time: Duration,
) -> Result<String, Fault> {
    let fault = |error: io::Error| format!("while connecting: {error}");
    let address = target.address;
    let idle: Result<Vec<TcpStream>, io::Error> =
        (0..IDLE_PAIRS).map(|_| open(address, "/ws/input?echo")).collect();
    let mut idle = idle.map_err(fault)?;
    for _ in 0..STREAMS {
        let (stream, counts) = (open(address, "/ws/input?stream").map_err(fault)?, counts.clone());
        spawn(move || drain(stream, &counts));
    }
    let base = group.usage()?;
    for slow in 0..SLOW_RELAYS + SLOW_WAITERS {
        let path = match slow.checked_sub(SLOW_RELAYS) {
            None => "/ws/input?flood".to_owned(),
            Some(waiter) => format!("/ws/output/{}", task(waiter % TASKS)),
        };
        let counts = counts.clone();
        spawn(move || hardly_read(address, &path, &counts));
    }
    let (inbox, publishing) = (target.inbox, counts.clone());
    spawn(move || publish(inbox, &publishing));
    let seen = watch(target, group, counts, &mut idle, time)?;
    let before = base.0 + base.1;
    if seen.sockets_most == 0 {
        return Err("the counter of socket memory did not move".into());
    }
    if seen.most > group.limit {
        return Err(format!(
            "{} MiB were used, over the limit; at most {} MiB in sockets, {} MiB before the slow clients came",
            mib(seen.most),
            mib(seen.sockets_most),
            mib(before),
        ));
    }
    Ok(format!(
        "limit {} MiB, {} s: at most {} MiB used, of it at most {} MiB in sockets ({} MiB before the slow clients came)\n{}",
        mib(group.limit),
        time.as_secs(),
        mib(seen.most),
        mib(seen.sockets_most),
        mib(before),
        seen.service(counts),
    ))
}

/// What was seen while slow clients were connected.
struct Seen {
    /// The highest use of memory, sockets included, and of sockets alone, in bytes.
    most: u64,
    sockets_most: u64,
    /// Times of echoes, in milliseconds.
    echoes: Vec<f64>,
    /// Small tasks, one a second.
    probes: u64,
    probes_served: u64,
    /// Bytes of all streams in the slowest second.
    streamed_least: u64,
}

impl Seen {
    /// How well clients were served.
    fn service(mut self, counts: &Counts) -> String {
        self.echoes.sort_by(f64::total_cmp);
        let at = |share: f64| self.echoes[((self.echoes.len() - 1) as f64 * share) as usize];
        format!(
            "echo p50 {:.2} ms, p99 {:.2} ms, worst {:.1} ms; streams at least {} MB/s together, {} lost\n\
             slow clients closed {}, refused {}; large results taken {}, refused {}; small tasks served {} of {}",
            at(0.5),
            at(0.99),
            at(1.0),
            self.streamed_least / 1_000_000,
            counts.streams_lost.load(Relaxed),
            counts.slow_closed.load(Relaxed),
            counts.slow_refused.load(Relaxed),
            counts.published.load(Relaxed),
            counts.refused.load(Relaxed),
            self.probes_served,
            self.probes,
        )
    }
}

/// Measures for `time`, with echoes over the `idle` connections in turn.
fn watch(
    target: &mut Target,
    group: &Group,
    counts: &Counts,
    idle: &mut [TcpStream],
    time: Duration,
) -> Result<Seen, Fault> {
    let mut seen = Seen {
        most: 0,
        sockets_most: 0,
        echoes: Vec::new(),
        probes: 0,
        probes_served: 0,
        streamed_least: u64::MAX,
    };
    let (begin, mut second) = (Instant::now(), 0);
    let mut streamed_before = counts.streamed.load(Relaxed);
    while begin.elapsed() < time {
        let (memory, sockets) = group.usage()?;
        seen.most = seen.most.max(memory + sockets);
        seen.sockets_most = seen.sockets_most.max(sockets);
        if !target.is_alive() {
            return Err(format!("the gateway was killed after {:?}", begin.elapsed()));
        }
        let which = seen.echoes.len() % idle.len();
        let sent = Instant::now();
        echo(&mut idle[which]).map_err(|error| format!("an echo failed: {error}"))?;
        seen.echoes.push(sent.elapsed().as_secs_f64() * 1000.0);
        if begin.elapsed().as_secs() > second {
            second = begin.elapsed().as_secs();
            seen.probes += 1;
            seen.probes_served += u64::from(probe(target.address, target.inbox).is_ok());
            let streamed = counts.streamed.load(Relaxed);
            seen.streamed_least = seen.streamed_least.min(streamed - streamed_before);
            streamed_before = streamed;
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(seen)
}

/// How much more is used while peers hold what `case` says, and whether others are served.
fn measure_held(case: &str, target: &mut Target, group: &Group) -> Result<String, Fault> {
    let fault = |error: io::Error| error.to_string();
    let (address, inbox) = (target.address, target.inbox);
    let mut held = Vec::new();
    let idle = if case == "connections" { IDLE_PAIRS } else { 0 };
    for _ in 0..idle {
        held.push(open(address, "/ws/input?echo").map_err(fault)?);
    }
    probe(address, inbox).map_err(fault)?;
    thread::sleep(SETTLE_TIME);
    let base = group.usage()?;
    match case {
        "result" => {
            for _ in 0..150 {
                held.push(open(address, &format!("/ws/output/{}", task(0))).map_err(fault)?);
            }
            let text = "x".repeat(4 * 1024 * 1024);
            let payload = format!(r#"{{"text":"{text}","final":false}}"#);
            send_result(inbox, &task(0), payload.as_bytes()).map_err(fault)?;
        }
        "connections" => {
            for _ in 0..300 {
                let mut stream = TcpStream::connect(address).map_err(fault)?;
                stream
                    .write_all(b"GET /connections HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                    .map_err(fault)?;
                held.push(stream);
            }
        }
        "commands" => {
            let mut command = Vec::new();
            let payload = vec![b'x'; 16 * 1024 * 1024 - 1024];
            let channel = format!("task_response:{}", task(0));
            resp::push_command(&mut command, &[b"PUBLISH", channel.as_bytes(), &payload]);
            let most = command.len() - 16;
            for _ in 0..40 {
                let mut stream = TcpStream::connect(inbox).map_err(fault)?;
                // The gateway may close it in the middle.
                let _ = stream.write_all(&command[..most]);
                held.push(stream);
            }
        }
        "partials" => {
            let text = "x".repeat(30 * 1024);
            let payload = format!(r#"{{"text":"{text}","final":false}}"#);
            for _ in 0..6000 {
                send_result(inbox, &task(0), payload.as_bytes()).map_err(fault)?;
            }
        }
        other => return Err(format!("no case `{other}`\n\n{HELP}")),
    }
    let mut most = base;
    let begin = Instant::now();
    while begin.elapsed() < SETTLE_TIME {
        let (memory, sockets) = group.usage()?;
        most = (most.0.max(memory), most.1.max(sockets));
        thread::sleep(Duration::from_millis(20));
    }
    let served = (0..5).filter(|_| probe(address, inbox).is_ok()).count();
    Ok(format!(
        "{case}: {} MiB more ({} MiB before), and {} MiB more in sockets; small tasks served \
         {served} of 5",
        mib(most.0 - base.0),
        mib(base.0),
        mib(most.1.saturating_sub(base.1)),
    ))
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1024 * 1024)
}

fn task(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// A thread that ends with the process. It needs little stack: there are hundreds.
fn spawn(work: impl FnOnce() + Send + 'static) {
    let builder = thread::Builder::new().stack_size(256 * 1024);
    drop(builder.spawn(work).expect("a thread"));
}

// ---- the gateway in its group

/// A memory cgroup of either version.
struct Group {
    path: PathBuf,
    limit: u64,
    version: Version,
}

#[derive(Clone, Copy, PartialEq)]
enum Version {
    One,
    Two,
}

impl Group {
    fn new(limit: u64) -> Result<Group, Fault> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let name = format!("bench-memory-{}", std::process::id());
        let v1 = own.lines().find_map(|line| line.split_once(":memory:"));
        let (version, top) = match v1 {
            Some((_, path)) => (Version::One, format!("/sys/fs/cgroup/memory{path}")),
            None => (Version::Two, "/sys/fs/cgroup".to_owned()),
        };
        let path = Path::new(&top).join(name);
        fs::create_dir(&path)
            .map_err(|error| format!("cannot make a cgroup at {}: {error}", path.display()))?;
        let group = Group { path, limit, version };
        match version {
            Version::One => {
                // Without a limit of its own, socket memory is not counted.
                group.write("memory.kmem.tcp.limit_in_bytes", limit)?;
                group.write("memory.limit_in_bytes", limit)?;
            }
            Version::Two => {
                group.write("memory.max", limit)?;
                let _ = group.write("memory.swap.max", 0);
            }
        }
        Ok(group)
    }

    fn write(&self, file: &str, value: u64) -> Result<(), Fault> {
        fs::write(self.path.join(file), value.to_string())
            .map_err(|error| format!("cannot write {file}: {error}"))
    }

    fn read(&self, file: &str) -> Result<String, Fault> {
        fs::read_to_string(self.path.join(file))
            .map_err(|error| format!("cannot read {file}: {error}"))
    }

    /// Bytes used: by sockets, and by everything else.
    fn usage(&self) -> Result<(u64, u64), Fault> {
        let number = |text: &str| text.trim().parse::<u64>().map_err(|error| error.to_string());
        match self.version {
            Version::One => Ok((
                number(&self.read("memory.usage_in_bytes")?)?,
                number(&self.read("memory.kmem.tcp.usage_in_bytes")?)?,
            )),
            Version::Two => {
                let all = number(&self.read("memory.current")?)?;
                let stat = self.read("memory.stat")?;
                let sockets = stat.lines().find_map(|line| line.strip_prefix("sock "));
                let sockets = number(sockets.unwrap_or("0"))?;
                Ok((all - sockets.min(all), sockets))
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

struct Target {
    child: Child,
    address: SocketAddr,
    inbox: SocketAddr,
    folder: PathBuf,
}

impl Target {
    fn start(gateway: &Path, group: &Group, backend: &TcpListener) -> Result<Target, Fault> {
        let text = |error: io::Error| error.to_string();
        let port = || free_port().map_err(text);
        let (address, inbox) = (local(port()?), local(port()?));
        let folder = std::env::temp_dir().join(format!("bench-memory-{}", std::process::id()));
        fs::create_dir_all(&folder).map_err(text)?;
        let config = format!(
            "[server]\nlisten = [\"{address}\"]\nwrite_timeout = \"0s\"\n\
             [proxy]\nping_interval = \"0s\"\n[redis]\nurl = \"embedded://{inbox}\"\n\
             [[route]]\nname = \"input\"\npath = \"/ws/input\"\nbackend = [\"ws://{}/ws/input\"]\n\
             [[route]]\nname = \"output\"\npath = \"/ws/output/{{task_id}}\"\nserve = \"output\"\n\
             [log]\nlevel = \"warn\"\n",
            backend.local_addr().map_err(text)?
        );
        fs::write(folder.join("config.toml"), config).map_err(text)?;
        let enter = "echo $$ >\"$1/cgroup.procs\" && exec \"$2\" --config \"$3\"";
        let child = Command::new("sh")
            .args(["-c", enter, "sh"])
            .arg(&group.path)
            .arg(gateway)
            .arg(folder.join("config.toml"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.join("log")).map_err(text)?)
            .spawn()
            .map_err(text)?;
        let mut target = Target { child, address, inbox, folder };
        let begin = Instant::now();
        while TcpStream::connect(address).is_err() {
            if !target.is_alive() || begin.elapsed() > Duration::from_secs(10) {
                let log = fs::read_to_string(target.folder.join("log")).unwrap_or_default();
                return Err(format!("the gateway does not listen; it said:\n{log}"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(target)
    }

    fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

// ---- backends

/// Accepts backend connections for ever. What each does follows from its query.
fn serve(listener: TcpListener) {
    spawn(move || {
        for stream in listener.incoming().flatten() {
            spawn(move || {
                let _ = be_backend(stream);
            });
        }
    });
}

fn be_backend(mut stream: TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    let request = loop {
        let mut bytes = [0; 2048];
        let n = stream.read(&mut bytes)?;
        if n == 0 {
            return Ok(());
        }
        head.extend_from_slice(&bytes[..n]);
        match parse_request(&head) {
            Ok(Some(request)) => break request,
            Ok(None) => {}
            Err(fault) => return Err(io::Error::other(fault)),
        }
    };
    stream.write_all(&upgrade_answer(&request.key))?;
    let mut frame = Vec::new();
    push_frame(&mut frame, 0x82, &vec![7; STREAM_FRAME], None);
    let pause = match request.target.split_once('?').map(|(_, query)| query) {
        Some("flood") => Duration::ZERO,
        Some("stream") => STREAM_PAUSE,
        _ => return echo_back(stream),
    };
    loop {
        stream.write_all(&frame)?;
        thread::sleep(pause);
    }
}

/// Echoes text frames of a few bytes.
fn echo_back(mut stream: TcpStream) -> io::Result<()> {
    let mut bytes = [0; 64];
    loop {
        let n = stream.read(&mut bytes)?;
        if n < 6 {
            return Ok(());
        }
        let mut payload = bytes[6..n].to_vec();
        for (at, byte) in payload.iter_mut().enumerate() {
            *byte ^= bytes[2 + at % 4];
        }
        // A Close frame, or a pong to a ping of the gateway, has no echo.
        if bytes[0] == 0x89 || bytes[0] == 0x81 {
            let first = if bytes[0] == 0x89 { 0x8a } else { 0x81 };
            let mut frame = Vec::new();
            push_frame(&mut frame, first, &payload, None);
            stream.write_all(&frame)?;
        }
    }
}

// ---- clients

fn open(address: SocketAddr, path: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(&upgrade_request(path, "127.0.0.1", &fresh_key()))?;
    let mut head = Vec::new();
    while parse_answer(&head).map_err(io::Error::other)?.is_none() {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.push(byte[0]);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut frame = Vec::new();
    push_frame(&mut frame, 0x81, b"hello", Some([1, 2, 3, 4]));
    stream.write_all(&frame)?;
    loop {
        let mut head = [0; 2];
        stream.read_exact(&mut head)?;
        let mut payload = vec![0; usize::from(head[1] & 0x7f)];
        stream.read_exact(&mut payload)?;
        if head[0] == 0x81 {
            return if payload == b"hello" {
                Ok(())
            } else {
                Err(io::ErrorKind::InvalidData.into())
            };
        }
        // A ping of the gateway.
        let mut pong = Vec::new();
        push_frame(&mut pong, 0x8a, &payload, Some([1, 2, 3, 4]));
        stream.write_all(&pong)?;
    }
}

fn drain(mut stream: TcpStream, counts: &Counts) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = stream.read(&mut bytes) {
        counts.streamed.fetch_add(n as u64, Relaxed);
    }
    if !counts.is_over.load(Relaxed) {
        counts.streams_lost.fetch_add(1, Relaxed);
    }
}

/// Reads a few bytes every 20 s; comes back when it is closed.
fn hardly_read(address: SocketAddr, path: &str, counts: &Counts) {
    loop {
        match open(address, path) {
            Ok(mut stream) => {
                let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
                let begin = Instant::now();
                let mut reads = 0;
                loop {
                    thread::sleep(Duration::from_millis(500));
                    let mut bytes = [0; 16];
                    let mut error = None;
                    if begin.elapsed() > READ_INTERVAL * (reads + 1) {
                        reads += 1;
                        error = stream.read(&mut bytes).err().map(|error| error.kind());
                    }
                    let is_reset = stream.take_error().ok().flatten().is_some();
                    if is_reset || matches!(error, Some(kind) if kind != io::ErrorKind::WouldBlock)
                    {
                        counts.slow_closed.fetch_add(1, Relaxed);
                        break;
                    }
                }
                let _ = stream.shutdown(Shutdown::Both);
            }
            Err(_) => {
                counts.slow_refused.fetch_add(1, Relaxed);
            }
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Publishes long results, one after the other, for all the slow clients.
fn publish(inbox: SocketAddr, counts: &Counts) {
    let text = "x".repeat(RESULT_TEXT);
    let payload = format!(r#"{{"text":"{text}","final":false}}"#);
    for number in 0.. {
        let _ = send_result(inbox, &task(number % TASKS), payload.as_bytes()).map(|is_taken| {
            let count = if is_taken { &counts.published } else { &counts.refused };
            count.fetch_add(1, Relaxed);
        });
        thread::sleep(Duration::from_millis(200));
    }
}

/// True: it was taken.
fn send_result(inbox: SocketAddr, task: &str, payload: &[u8]) -> io::Result<bool> {
    let mut stream = TcpStream::connect(inbox)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let channel = format!("task_response:{task}");
    let mut command = Vec::new();
    resp::push_command(&mut command, &[b"PUBLISH", channel.as_bytes(), payload]);
    stream.write_all(&command)?;
    let mut reply = [0; 64];
    let n = stream.read(&mut reply)?;
    Ok(reply[..n].starts_with(b":"))
}

/// A client that comes, gets a short result and leaves.
fn probe(address: SocketAddr, inbox: SocketAddr) -> io::Result<()> {
    let task = task(1000 + fastrand::usize(..1_000_000));
    let mut stream = open(address, &format!("/ws/output/{task}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    if !send_result(inbox, &task, br#"{"text":"hello"}"#)? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    Ok(())
}
