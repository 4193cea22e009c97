//! Worlds in which one backend is always good: no client may be lost, whatever the others do.
//!
//! The others refuse, swallow or reset connections, hang, answer nonsense or that they are
//! overloaded, and are well again in between. Every client is patient. So each of them must be
//! relayed in the end, within its first wait.

use super::*;

const BACKENDS: [&str; 3] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];

/// Names, and how many of the backends they lead to.
const NAMES: [(&str, usize); 2] = [("two.example", 2), ("three.example", 3)];

/// Where a name of these worlds leads.
pub(super) fn addresses_of(host: &str) -> Option<Vec<SocketAddr>> {
    let (_, addresses) = NAMES.iter().find(|(name, _)| *name == host)?;
    let backends = BACKENDS[..*addresses].iter();
    Some(backends.map(|address| address.parse().expect("an address")).collect())
}

/// A world with one route, and two or three backends behind it.
pub struct FailoverWorld(World);

impl Simulation for FailoverWorld {
    fn new(seed: u64, is_traced: bool) -> FailoverWorld {
        let mut chance = fastrand::Rng::with_seed(seed ^ 0xfa11u64.rotate_left(32));
        let mut nature = draw_nature(&mut chance, &[100, 4096, 65_536]);
        nature.peeks_ahead = chance.bool();
        nature.records = records_of(seed);
        let kernel = kernel(seed, nature, is_traced);
        kernel.borrow_mut().stands_still = seed % 4 == 1;
        let count = chance.usize(2..=BACKENDS.len());
        let good: SocketAddr = BACKENDS[chance.usize(..count)].parse().expect("an address");
        let settings = settings(&mut chance, count);
        let mut gateway = Gateway::new(
            settings.clone(),
            Box::new(Dialer(Rc::clone(&kernel))),
            fastrand::Rng::with_seed(seed ^ 0xca5e),
            kernel.borrow().now,
            UNIX_EPOCH,
        )
        .expect("its settings are good");
        gateway.limit_turns(turn_limits(seed));
        let backends = Backends {
            is_kind: false,
            good: Some(good),
            scale: Scale::Common,
            chance: chance.fork(),
        };
        let mut world = World::around(kernel, gateway, settings, backends);
        plan(&mut world, &mut chance, good);
        FailoverWorld(world)
    }

    fn run(&mut self) -> Result<(), String> {
        self.advance(None)?;
        self.0.judge()?;
        let mut peers = self.0.peers.iter().flatten();
        let is_lost = |peer: &&Peer| {
            matches!(peer.role, Role::Client { .. }) && !self.0.is_relayed(peer.link)
        };
        match peers.find(is_lost) {
            Some(peer) => Err(format!(
                "client {} is lost (status {:?}), though {:?} is good",
                peer.link, peer.status, self.0.backends.good
            )),
            None => Ok(()),
        }
    }

    fn kernel(&self) -> &Shared {
        self.0.kernel()
    }

    fn tick(&mut self, link: LinkId) -> Result<(), String> {
        self.0.tick(link)
    }

    fn carry_out(&mut self, plan: usize) {
        self.0.carry_out(plan);
    }

    fn greet(&mut self) {
        self.0.greet();
    }

    fn is_due(&self, now: Moment) -> bool {
        self.0.is_due(now)
    }

    fn next_turn(&self) -> Option<Moment> {
        self.0.next_turn()
    }

    fn turn(&mut self) -> Result<(), String> {
        self.0.turn()
    }

    fn check_quiet(&mut self) -> Result<(), String> {
        self.0.check_quiet()
    }
}

fn settings(chance: &mut fastrand::Rng, backends: usize) -> gateway::Settings {
    let mut settings = draw_settings(chance);
    settings.session = session::Settings {
        on_backend_failure: settings.session.on_backend_failure,
        ..session::Settings::default()
    };
    settings.limits.max_connections = CONNECTIONS_MANY;
    settings.limits.max_connections_per_ip = 0;
    // Some are addresses of one name.
    let of_name = [0, 2, 3][chance.usize(..3)].min(backends);
    let named = NAMES.iter().filter(|(_, addresses)| *addresses == of_name);
    let named = named.map(|(name, _)| format!("ws://{name}/"));
    let alone = BACKENDS[of_name..backends].iter().map(|at| format!("ws://{at}/"));
    let urls: Vec<String> = named.chain(alone).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    settings.routes = vec![route("input", "/ws/input", &urls)];
    settings
}

fn plan(world: &mut World, chance: &mut fastrand::Rng, good: SocketAddr) {
    for address in BACKENDS {
        let address: SocketAddr = address.parse().expect("an address");
        let mut at = Duration::ZERO;
        while at < 60 * S {
            let host = if address == good {
                Host::Up([Duration::ZERO, 200 * MS][chance.usize(..2)])
            } else {
                draw_sick_host(chance)
            };
            world.plan(at, Plan::Host(address, host));
            at += 10 * MS + 20 * S * chance.u32(..1000) / 1000;
        }
    }
    // Nobody waits for longer than a minute, the time apart in which the process stands still.
    let patience = if world.kernel.borrow().stands_still { 15 } else { 1 } * 60 * S;
    for _ in 0..chance.usize(1..9) {
        let behavior = Behavior {
            leaves_after: patience,
            messages: chance.u32(..4),
            ending: [Ending::Close, Ending::Stay][chance.usize(..2)],
            ..prompt()
        };
        let role = Role::Client { is_early: chance.u8(..3) == 0 };
        let head = peers::upgrade_request("/ws/input", "");
        let at = MS + 40 * S * chance.u32(..1000) / 1000;
        world.plan(at, Plan::Arrive(Box::new((role, behavior, head))));
    }
}

/// A shortage of this machine would not be the host's fault, and is not among them.
fn draw_sick_host(chance: &mut fastrand::Rng) -> Host {
    match chance.u8(..8) {
        0 => Host::Refusing(Duration::ZERO),
        1 => Host::Refusing(300 * MS),
        2 => Host::Swallowing,
        3 => Host::Failing(ErrorKind::NetworkUnreachable),
        4 => Host::Up(200 * MS),
        _ => Host::Up(Duration::ZERO),
    }
}

/// What a backend that is not good answers. What it refuses for good (403) is its right.
pub(super) fn draw_sick_answer(chance: &mut fastrand::Rng) -> BackendAnswer {
    let status = [429, 502, 503, 504][chance.usize(..4)];
    match chance.u8(..10) {
        0..3 => BackendAnswer::Status(status, draw_body(chance)),
        3 => BackendAnswer::Garbage,
        4 => BackendAnswer::WrongKey,
        5 => BackendAnswer::Nothing,
        6 => BackendAnswer::Fin,
        7 => BackendAnswer::Reset,
        _ => BackendAnswer::Upgrade { interim: chance.bool() },
    }
}
