//! The workloads: what is opened, warmed up and measured, and when it ends.
//!
//! Each is bounded in count and time, and nothing is in flight when `Observe::end` is called: what
//! the target used is then exactly the cost of these units of work.

use super::results::{self, Shape};
use super::world::{After, Plan, Refill, Way, World, waiting};
use crate::Fault;
use crate::stats::Latencies;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The relayed path of every target.
pub const RELAYED: &str = "/ws/input";
/// The path of result delivery, before the task id.
pub const OUTPUT: &str = "/ws/output/";

/// Concurrent handshakes while opening connections whose handshake is not measured.
const OPENING_MAX: u64 = 64;
/// Warm-up messages per connection.
const WARM_UP_MESSAGES: u64 = 4;
/// Streams warm up for this share of the measured time.
const WARM_UP_SHARE: f64 = 0.15;
/// Concurrent audio deliveries while every waiting client gets a result.
const DELIVERIES_MAX: u64 = 64;
/// Time between two pieces of a flood.
const FLOOD_TICK: Duration = Duration::from_millis(1);

/// Is notified when the measured part begins and ends.
pub trait Observe {
    fn begin(&mut self) -> Result<(), Fault>;
    fn end(&mut self) -> Result<(), Fault>;

    /// Half of the measured time is over; not every workload says so.
    fn midway(&mut self) -> Result<(), Fault> {
        Ok(())
    }
}

/// Watches nothing.
impl Observe for () {
    fn begin(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        Ok(())
    }
}

/// When a workload ends: whichever comes first.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub seconds: f64,
    pub count: u64,
    /// Timeout for everything in flight to return.
    pub patience: Duration,
}

impl Limits {
    pub fn seconds(seconds: f64) -> Limits {
        Limits { seconds, count: u64::MAX, patience: Duration::from_secs(30) }
    }

    pub fn count(count: u64) -> Limits {
        Limits { seconds: 600.0, count, patience: Duration::from_secs(60) }
    }
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Units of work: echoes, handshakes, results, files.
    pub count: u64,
    /// Bytes of streams or audio that arrived.
    pub bytes: u64,
    /// How long the measured part took.
    pub seconds: f64,
    pub latencies: Latencies,
    /// Bytes a second of streams beside messages.
    pub stream_rate: f64,
    /// Results published in a flood.
    pub published: u64,
    /// Handshakes that resumed a TLS session.
    pub resumed: u64,
}

/// Echoed messages.
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    pub size: usize,
    pub connections: u64,
    /// Additional idle pairs.
    pub idle: u64,
    /// Messages per second over all connections; `None`: each is sent when the previous one has
    /// returned.
    pub rate: Option<f64>,
    /// Pairs that stream down beside the messages, and the size of their frames.
    pub streams: u64,
    pub stream_size: usize,
}

impl Echo {
    pub fn new(size: usize, connections: u64) -> Echo {
        Echo { size, connections, idle: 0, rate: None, streams: 0, stream_size: 1 << 20 }
    }
}

/// Results for clients that wait.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    pub publish_at: SocketAddr,
    /// The part of the channels' names before the task id.
    pub channel_prefix: &'a str,
    pub shape: Shape,
    pub tasks: u64,
    /// Results a second.
    pub rate: f64,
}

/// A flood of results beside messages.
#[derive(Clone, Copy, Debug)]
pub struct Flood<'a> {
    pub publish_at: SocketAddr,
    /// The part of the channels' names before the task id.
    pub channel_prefix: &'a str,
    /// Results a second.
    pub rate: f64,
    /// The text of each.
    pub json: &'a str,
}

pub fn echo(
    world: &mut World,
    echo: &Echo,
    limits: Limits,
    observe: &mut dyn Observe,
) -> Result<Outcome, Fault> {
    open_all(world, echo.idle, &Plan::Rest, limits)?;
    if echo.streams > 0 {
        world.share_with_messages();
        let pattern = world.pattern(echo.stream_size, Way::Down);
        open_all(world, echo.streams, &Plan::Stream { pattern, way: Way::Down }, limits)?;
    }
    open_all(world, echo.connections, &Plan::Echo { size: echo.size }, limits)?;
    let warm_up = Limits { count: WARM_UP_MESSAGES * echo.connections, seconds: 10.0, ..limits };
    exchange(world, &Echo { rate: None, streams: 0, ..*echo }, warm_up)?;
    if echo.streams > 0 {
        stream_for(world, limits.seconds * WARM_UP_SHARE, limits)?;
    }
    world.reset_tally();
    observe.begin()?;
    let mut outcome = exchange(world, echo, limits)?;
    observe.end()?;
    outcome.latencies = std::mem::take(&mut world.tally.latencies);
    Ok(outcome)
}

/// Frames of `size` bytes over `pairs` connections, one way.
pub fn stream(
    world: &mut World,
    pairs: u64,
    size: usize,
    way: Way,
    limits: Limits,
    observe: &mut dyn Observe,
) -> Result<Outcome, Fault> {
    let pattern = world.pattern(size, way);
    open_all(world, pairs, &Plan::Stream { pattern, way }, limits)?;
    stream_for(world, limits.seconds * WARM_UP_SHARE, limits)?;
    world.reset_tally();
    observe.begin()?;
    let start = Instant::now();
    world.start_streams()?;
    while start.elapsed().as_secs_f64() < limits.seconds
        && world.tally.received_bytes < limits.count
    {
        world.turn(Some(Duration::from_millis(20)))?;
    }
    world.streaming = false;
    world.run_until(limits.patience, "streams in flight", World::streams_are_over)?;
    let seconds = start.elapsed().as_secs_f64();
    observe.end()?;
    let bytes = world.tally.received_bytes;
    let stream_rate = bytes as f64 / seconds;
    Ok(Outcome { count: bytes / size as u64, bytes, seconds, stream_rate, ..Outcome::default() })
}

/// Connect, upgrade, one message of 64 bytes, close, `concurrent` at once.
pub fn handshakes(
    world: &mut World,
    concurrent: u64,
    limits: Limits,
    observe: &mut dyn Observe,
) -> Result<Outcome, Fault> {
    world.after_echo = After::Leave;
    let mut last = Outcome::default();
    for measured in [false, true] {
        let count = if measured { limits.count } else { (2 * concurrent).min(limits.count) };
        world.reset_tally();
        if measured {
            observe.begin()?;
        }
        let start = Instant::now();
        let mut begun = 0;
        loop {
            let over = begun >= count || start.elapsed().as_secs_f64() >= limits.seconds;
            while !over && begun < count && begun - world.tally.left < concurrent {
                world.open(RELAYED, Plan::Echo { size: 64 })?;
                begun += 1;
            }
            if over && world.tally.left == begun {
                break;
            }
            if start.elapsed().as_secs_f64() > limits.seconds + limits.patience.as_secs_f64() {
                return Err(format!(
                    "timed out: {} of {begun} handshakes completed",
                    world.tally.left
                ));
            }
            world.turn(Some(Duration::from_millis(20)))?;
            while let Some(client) = world.paused.pop_front() {
                world.send_message(client)?;
            }
        }
        last = Outcome {
            count: begun,
            resumed: world.tally.resumed,
            seconds: start.elapsed().as_secs_f64(),
            latencies: std::mem::take(&mut world.tally.latencies),
            ..Outcome::default()
        };
    }
    observe.end()?;
    Ok(last)
}

/// Opens idle `pairs`; they stay open as long as the world.
pub fn hold(
    world: &mut World,
    pairs: u64,
    limits: Limits,
    observe: &mut dyn Observe,
) -> Result<(), Fault> {
    observe.begin()?;
    open_all(world, pairs, &Plan::Rest, limits)?;
    observe.end()
}

/// `waves` times: opens `pairs` at once, a message on each, and all of them close.
pub fn come_and_go(world: &mut World, pairs: u64, waves: u64, limits: Limits) -> Result<(), Fault> {
    for _ in 0..waves {
        world.after_echo = After::Leave;
        world.reset_tally();
        open_all(world, pairs, &Plan::Echo { size: 64 }, limits)?;
        while let Some(client) = world.paused.pop_front() {
            world.send_message(client)?;
            world.turn(Some(Duration::ZERO))?;
        }
        world
            .run_until(limits.patience, "closing connections", |world| world.tally.left == pairs)?;
    }
    Ok(())
}

/// One waiting client per task; each gets a result without audio. Latencies are from PUBLISH to the
/// client's text message.
pub fn deliver(
    world: &mut World,
    to: &Delivery<'_>,
    limits: Limits,
    observe: &mut dyn Observe,
) -> Result<Outcome, Fault> {
    let Delivery { publish_at, channel_prefix, shape, tasks, rate } = *to;
    let publisher = world.open_publisher(publish_at)?;
    let json = results::published(None, true);
    let clients = open_tasks(world, tasks, shape, true, None, limits)?;
    world.reset_tally();
    observe.begin()?;
    let start = Instant::now();
    for (published, (client, task)) in clients.iter().enumerate() {
        let due = start + Duration::from_secs_f64(published as f64 / rate);
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            world.turn(Some(left))?;
        }
        world.publish(publisher, &format!("{channel_prefix}{task}"), &json, Some(*client))?;
    }
    world.run_until(limits.patience, "results", |world| world.tally.left == tasks)?;
    let seconds = start.elapsed().as_secs_f64();
    observe.end()?;
    let latencies = std::mem::take(&mut world.tally.latencies);
    Ok(Outcome { count: tasks, seconds, latencies, ..Outcome::default() })
}

/// How audio is requested.
#[derive(Clone, Copy, Debug)]
pub enum Order<'a> {
    /// A worker publishes it at this address; the file's name under `audio_root`.
    Publish { at: SocketAddr, channel_prefix: &'a str, file: &'a str },
    /// A message of the client's (the bare copy loop).
    Message,
    /// `GET` of this path over plain HTTP.
    Get(&'a str),
}

/// Audio to `clients` at once, file after file; every byte is compared with `World::audio`.
pub fn audio(
    world: &mut World,
    order: Order<'_>,
    clients: u64,
    limits: Limits,
    observe: &mut dyn Observe,
) -> Result<Outcome, Fault> {
    let length = world.audio.len() as u64;
    if let Order::Get(path) = order {
        let fetchers = (0..clients).map(|_| world.open_fetcher()).collect::<Result<Vec<_>, _>>()?;
        let files = |bytes_a_second: f64| {
            (bytes_a_second * limits.seconds / length as f64 / clients as f64).max(1.0)
        };
        let start = Instant::now();
        for &fetcher in &fetchers {
            world.fetch(fetcher, path, 1)?;
        }
        world.run_until(limits.patience, "the first downloads", |world| {
            world.tally.fetched == clients
        })?;
        let each = files(world.tally.audio_bytes as f64 / start.elapsed().as_secs_f64()) as u64;
        world.reset_tally();
        observe.begin()?;
        let start = Instant::now();
        for &fetcher in &fetchers {
            world.fetch(fetcher, path, each)?;
        }
        world.run_until(limits.patience, "downloads", |world| {
            world.tally.fetched == clients * each
        })?;
        return audio_outcome(world, start, observe);
    }
    let waiting = open_tasks(world, clients, Shape::Delivered, false, Some(length), limits)?;
    let publisher = match order {
        Order::Publish { at, channel_prefix, file } => {
            let (through, json) =
                (world.open_publisher(at)?, results::published(Some(file), false));
            Some((through, channel_prefix.to_owned(), json))
        }
        _ => None,
    };
    // The first file of each client is the warm-up.
    for measured in [false, true] {
        if measured {
            world.reset_tally();
            observe.begin()?;
            world.after_result = match publisher.clone() {
                Some((through, prefix, json)) => Refill::Publish { through, prefix, json },
                None => Refill::Message,
            };
        }
        let start = Instant::now();
        for (client, task) in &waiting {
            match &publisher {
                Some((through, prefix, json)) => {
                    world.publish(*through, &format!("{prefix}{task}"), json, None)?
                }
                None => world.nudge(*client)?,
            }
        }
        while measured
            && start.elapsed().as_secs_f64() < limits.seconds
            && world.tally.results < limits.count
        {
            world.turn(Some(Duration::from_millis(20)))?;
        }
        // Each client has one in flight.
        world.after_result = Refill::Nothing;
        let wanted = world.tally.results + clients;
        world.run_until(limits.patience, "audio on its way", |world| {
            world.tally.results == wanted
        })?;
        if measured {
            return audio_outcome(world, start, observe);
        }
    }
    Err("nothing was measured".into())
}

fn audio_outcome(
    world: &World,
    start: Instant,
    observe: &mut dyn Observe,
) -> Result<Outcome, Fault> {
    let seconds = start.elapsed().as_secs_f64();
    observe.end()?;
    let (bytes, count) = (world.tally.audio_bytes, world.tally.results + world.tally.fetched);
    Ok(Outcome { count, bytes, seconds, stream_rate: bytes as f64 / seconds, ..Outcome::default() })
}

/// `clients` wait for a task each (`waited` is called), then each gets a result with `World::audio`
/// and goes on waiting (`served` is called).
pub fn wait_and_serve(
    world: &mut World,
    order: Order<'_>,
    clients: u64,
    limits: Limits,
    mut waited: impl FnMut() -> Result<(), Fault>,
    mut served: impl FnMut() -> Result<(), Fault>,
) -> Result<(), Fault> {
    let Order::Publish { at, channel_prefix, file } = order else {
        return Err("results are published".into());
    };
    let length = world.audio.len() as u64;
    let publisher = world.open_publisher(at)?;
    let waiting = open_tasks(world, clients, Shape::Delivered, false, Some(length), limits)?;
    waited()?;
    world.reset_tally();
    let json = results::published(Some(file), false);
    for (published, (_, task)) in waiting.iter().enumerate() {
        let oldest = (published as u64).saturating_sub(DELIVERIES_MAX);
        world.run_until(limits.patience, "audio", |world| world.tally.results >= oldest)?;
        world.publish(publisher, &format!("{channel_prefix}{task}"), &json, None)?;
    }
    world.run_until(limits.patience, "the last audio", |world| world.tally.results == clients)?;
    served()
}

/// Messages at a fixed rate beside results for tasks without clients (none if `flood` is `None`).
pub fn flood(
    world: &mut World,
    echo: &Echo,
    flood: Option<Flood<'_>>,
    limits: Limits,
    observe: &mut dyn Observe,
) -> Result<Outcome, Fault> {
    let rate = echo.rate.ok_or("messages beside a flood have a rate")?;
    open_all(world, echo.connections, &Plan::Echo { size: echo.size }, limits)?;
    let publisher = match flood {
        Some(flood) => Some(world.open_publisher(flood.publish_at)?),
        None => None,
    };
    exchange(
        world,
        &Echo { rate: None, ..*echo },
        Limits { count: WARM_UP_MESSAGES * echo.connections, ..limits },
    )?;
    world.reset_tally();
    observe.begin()?;
    world.after_echo = After::Pause;
    let start = Instant::now();
    let (mut sent, mut published) = (0u64, 0u64);
    while start.elapsed().as_secs_f64() < limits.seconds {
        let elapsed = start.elapsed().as_secs_f64();
        while (sent as f64) < elapsed * rate {
            let Some(client) = world.paused.pop_front() else { break };
            world.send_message(client)?;
            sent += 1;
        }
        if let (Some(flood), Some(publisher)) = (flood, publisher) {
            let due = (elapsed * flood.rate) as u64;
            let tick = (flood.rate * FLOOD_TICK.as_secs_f64()) as u64;
            if due.saturating_sub(published) >= tick.max(1) && published < limits.count {
                let channels: Vec<String> = (published..due)
                    .map(|_| format!("{}{}", flood.channel_prefix, results::fresh_task()))
                    .collect();
                world.publish_all(publisher, &channels, flood.json)?;
                published = due;
            }
        }
        let next = (sent as f64 / rate - elapsed).clamp(0.0, FLOOD_TICK.as_secs_f64());
        world.turn(Some(Duration::from_secs_f64(next)))?;
    }
    world.run_until(limits.patience, "the flood and the last messages", |world| {
        world.tally.published == published && world.tally.echoed == sent
    })?;
    let seconds = start.elapsed().as_secs_f64();
    observe.end()?;
    let latencies = std::mem::take(&mut world.tally.latencies);
    Ok(Outcome { count: sent, seconds, latencies, published, ..Outcome::default() })
}

/// Opens this many more, a few at a time.
fn open_all(world: &mut World, pairs: u64, plan: &Plan, limits: Limits) -> Result<(), Fault> {
    let before = world.tally.opened;
    for begun in 0..pairs {
        world.open(RELAYED, plan.clone())?;
        let oldest = before + (begun + 1).saturating_sub(OPENING_MAX);
        world.run_until(limits.patience, "opening connections", |world| {
            world.tally.opened >= oldest
        })?;
    }
    world.run_until(limits.patience, "opening connections", |world| {
        world.tally.opened == before + pairs
    })
}

fn open_tasks(
    world: &mut World,
    clients: u64,
    shape: Shape,
    last: bool,
    audio: Option<u64>,
    limits: Limits,
) -> Result<Vec<(u32, String)>, Fault> {
    let before = world.tally.opened;
    let mut opened = Vec::new();
    for begun in 0..clients {
        let task = results::fresh_task();
        let id =
            world.open(&format!("{OUTPUT}{task}"), waiting(task.clone(), shape, last, audio))?;
        opened.push((id, task));
        let oldest = before + (begun + 1).saturating_sub(OPENING_MAX);
        world.run_until(limits.patience, "opening connections", |world| {
            world.tally.opened >= oldest
        })?;
    }
    world.run_until(limits.patience, "opening connections", |world| {
        world.tally.opened == before + clients
    })?;
    Ok(opened)
}

fn stream_for(world: &mut World, seconds: f64, limits: Limits) -> Result<(), Fault> {
    let start = Instant::now();
    world.start_streams()?;
    while start.elapsed().as_secs_f64() < seconds && world.tally.received_bytes < limits.count {
        world.turn(Some(Duration::from_millis(20)))?;
    }
    world.streaming = false;
    world.run_until(limits.patience, "streams in flight", World::streams_are_over)
}

fn exchange(world: &mut World, echo: &Echo, limits: Limits) -> Result<Outcome, Fault> {
    let clients = world.paused.len();
    let (mut sent, echoed_before) = (0u64, world.tally.echoed);
    let start = Instant::now();
    if echo.streams > 0 {
        world.start_streams()?;
    }
    world.after_echo = if echo.rate.is_some() { After::Pause } else { After::Again };
    world.messages_left = limits.count;
    if echo.rate.is_none() {
        while let (Some(left), Some(client)) =
            (world.messages_left.checked_sub(1), world.paused.pop_front())
        {
            world.messages_left = left;
            world.send_message(client)?;
        }
    }
    loop {
        let elapsed = start.elapsed().as_secs_f64();
        if elapsed >= limits.seconds || world.tally.echoed - echoed_before >= limits.count {
            break;
        }
        match echo.rate {
            // A timed message is sent when it is due: the load generator never sleeps, it has a
            // core of its own.
            Some(rate) => {
                while (sent as f64) < elapsed * rate && sent < limits.count {
                    let Some(client) = world.paused.pop_front() else { break };
                    world.send_message(client)?;
                    sent += 1;
                }
                world.turn(Some(Duration::ZERO))?;
            }
            None => world.turn(Some(Duration::from_millis(20)))?,
        }
    }
    let stream_rate = world.tally.received_bytes as f64 / start.elapsed().as_secs_f64();
    world.after_echo = After::Pause;
    world.streaming = false;
    world.run_until(limits.patience, "messages in flight", |world| {
        world.paused.len() == clients && world.streams_are_over()
    })?;
    Ok(Outcome {
        count: world.tally.echoed - echoed_before,
        bytes: world.tally.received_bytes,
        seconds: start.elapsed().as_secs_f64(),
        stream_rate,
        ..Outcome::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floor::pipe;
    use crate::net;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    /// A world around a byte pipe, which serves on a thread that ends with the test process.
    fn around_a_pipe(splice: bool) -> World {
        let backend = net::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = net::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let target = listener.local_addr().unwrap();
        let settings = pipe::Settings {
            listen: target,
            backend: net::Endpoint::Tcp(backend.local_addr().unwrap()),
            splice,
            buffer: 64 * 1024,
        };
        std::thread::spawn(move || pipe::serve(settings, &listener));
        World::new(target, backend).unwrap()
    }

    /// A world around a pipe that relays one connection and changes the byte at `place` on the way
    /// down.
    fn around_a_liar(place: usize) -> World {
        let backend = net::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (target, behind) = (listener.local_addr().unwrap(), backend.local_addr().unwrap());
        std::thread::spawn(move || {
            let (client, _) = listener.accept().unwrap();
            let upstream = TcpStream::connect(behind).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let (mut from, mut to, mut passed, mut buffer) = (upstream, client, 0, [0; 4096]);
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if let Some(byte) =
                    place.checked_sub(passed).and_then(|at| buffer[..count].get_mut(at))
                {
                    *byte ^= 1;
                }
                passed += count;
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
        });
        World::new(target, backend).unwrap()
    }

    #[derive(Default)]
    struct Seen(u32, u32);

    impl Observe for Seen {
        fn begin(&mut self) -> Result<(), Fault> {
            self.0 += 1;
            Ok(())
        }

        fn end(&mut self) -> Result<(), Fault> {
            self.1 += 1;
            Ok(())
        }
    }

    #[test]
    fn echoes_are_as_many_as_asked_for_at_any_size() {
        for (size, connections) in [(0, 1), (1, 3), (64, 16), (1024, 4), (65_536, 2), (1 << 20, 2)]
        {
            let (mut world, mut seen) = (around_a_pipe(false), Seen::default());
            let mut outcome =
                echo(&mut world, &Echo::new(size, connections), Limits::count(50), &mut seen)
                    .unwrap();
            assert_eq!((outcome.count, outcome.latencies.len()), (50, 50), "size {size}");
            assert!(outcome.latencies.percentile(50.0).unwrap() > 0.0);
            assert_eq!((seen.0, seen.1), (1, 1));
        }
    }

    #[test]
    fn timed_messages_go_beside_idle_pairs_and_streams() {
        let mut world = around_a_pipe(true);
        let plan = Echo {
            idle: 20,
            rate: Some(2000.0),
            streams: 2,
            stream_size: 1 << 18,
            ..Echo::new(64, 8)
        };
        let limits = Limits { seconds: 20.0, ..Limits::count(100) };
        let outcome = echo(&mut world, &plan, limits, &mut ()).unwrap();
        assert!(outcome.count >= 100 && outcome.bytes > 0 && outcome.stream_rate > 0.0);
    }

    #[test]
    fn streams_go_both_ways_through_both_pipes() {
        for splice in [false, true] {
            for way in [Way::Down, Way::Up] {
                for size in [1000, 65_536, 1 << 20] {
                    let mut world = around_a_pipe(splice);
                    let limits = Limits { seconds: 20.0, ..Limits::count(3 << 20) };
                    let outcome = stream(&mut world, 2, size, way, limits, &mut ()).unwrap();
                    assert!(outcome.bytes >= 3 << 20, "{way:?} {size}");
                }
            }
        }
    }

    #[test]
    fn handshakes_are_as_many_as_asked_for() {
        let (mut world, mut seen) = (around_a_pipe(false), Seen::default());
        let outcome = handshakes(&mut world, 4, Limits::count(25), &mut seen).unwrap();
        assert_eq!((outcome.count, outcome.latencies.len(), seen.0, seen.1), (25, 25, 1, 1));
    }

    #[test]
    fn connections_come_and_go_and_others_stay() {
        let mut world = around_a_pipe(false);
        come_and_go(&mut world, 30, 2, Limits::seconds(20.0)).unwrap();
        world.reset_tally();
        hold(&mut world, 30, Limits::seconds(20.0), &mut ()).unwrap();
        assert_eq!(world.tally.opened, 30);
    }

    #[test]
    fn one_changed_bit_ends_the_run() {
        // In the answer to the upgrade, in a frame's head, and in a payload.
        for place in [110, 129, 170] {
            let mut world = around_a_liar(place);
            let limits = Limits { patience: Duration::from_secs(5), ..Limits::count(10) };
            let fault = echo(&mut world, &Echo::new(64, 1), limits, &mut ()).unwrap_err();
            assert!(!fault.contains("gave up"), "byte {place}: {fault}");
        }
        for place in [200, 70_000, 300_000] {
            let mut world = around_a_liar(place);
            let limits = Limits { seconds: 5.0, ..Limits::count(1 << 20) };
            let fault = stream(&mut world, 1, 65_536, Way::Down, limits, &mut ()).unwrap_err();
            assert!(fault.contains("a stream was changed"), "byte {place}: {fault}");
        }
    }

    #[test]
    fn a_target_that_is_not_there_is_a_fault() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let backend = net::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut world = World::new(nobody, backend).unwrap();
        assert!(hold(&mut world, 1, Limits::seconds(1.0), &mut ()).is_err());
    }
}
