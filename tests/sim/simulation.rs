//! What all simulated worlds have in common: how time passes, and in which order things happen.
//!
//! A world plans actions with the kernel. They are carried out in the order of their times;
//! whenever a gateway has something to do, a turn of it follows; whenever nothing is left to do at
//! a moment, the world is checked and time jumps to the next action, turn or deadline.

use crate::kernel::{Action, Kernel, LinkId, Nature, Records, Shared};
use aivtuber_gateway::base::moment::Moment;
use aivtuber_gateway::gateway::TurnLimits;
use std::time::Duration;

pub const MS: Duration = Duration::from_millis(1);
pub const S: Duration = Duration::from_secs(1);

/// A world that has not come to rest after this many steps is stuck.
const STEPS_MAX: u64 = 3_000_000;

/// The longest delay of a turn that begins late.
const LATE_MAX: Duration = Duration::from_millis(1);

/// The longest standstill of a process, and how rare they are among late turns.
pub const STANDSTILL_MAX: Duration = Duration::from_secs(90);
const STANDSTILL_ONE_IN: u32 = 20;

/// How much the gateways of this world do in a turn. In every second world it is so little that the
/// few sessions there are delay each other as thousands would in a large one: whatever can be put
/// off to a later turn is.
pub fn turn_limits(seed: u64) -> TurnLimits {
    let mut chance = fastrand::Rng::with_seed(seed ^ 0x7u64.rotate_left(50));
    if chance.bool() {
        return TurnLimits::default();
    }
    TurnLimits {
        work: 16 * 1024,
        census: 512,
        deadlines: chance.usize(1..3),
        deliveries: chance.usize(1..3),
        look_ups: chance.usize(1..3),
        queued: chance.usize(1..4),
    }
}

/// A kernel whose sockets hold as much as one of `sizes`, without pipes, far peeks and records.
pub fn draw_nature(chance: &mut fastrand::Rng, sizes: &[usize]) -> Nature {
    Nature {
        receive_max: sizes[chance.usize(..sizes.len())],
        send_max: sizes[chance.usize(..sizes.len())],
        latency: [Duration::ZERO, MS / 10, 5 * MS][chance.usize(..3)],
        cuts: chance.u8(..4) > 0,
        has_quirks: chance.bool(),
        splices: false,
        peeks_ahead: false,
        records: Records::None,
    }
}

/// The kernel of a world.
pub fn kernel(seed: u64, nature: Nature, is_traced: bool) -> Shared {
    let kernel = Kernel::new(seed, nature);
    if is_traced {
        kernel.borrow_mut().trace = Some(Vec::new());
    }
    kernel
}

/// A world that follows from its seed.
pub trait Simulation {
    /// The world of `seed`; with `is_traced` it records a transcript.
    fn new(seed: u64, is_traced: bool) -> Self
    where
        Self: Sized;

    /// Runs to the end of the world and checks what everyone got.
    fn run(&mut self) -> Result<(), String>;

    fn kernel(&self) -> &Shared;

    /// Time has passed, or an action is about to be carried out.
    fn pass(&mut self, _now: Moment) {}

    /// Lets the peer at the far end of a link act.
    fn tick(&mut self, link: LinkId) -> Result<(), String>;

    /// Carries out what was planned under this number.
    fn carry_out(&mut self, plan: usize);

    /// Gives peers to connections that have been established.
    fn greet(&mut self);

    /// A turn would begin at `now` without any event.
    fn is_due(&self, now: Moment) -> bool;

    /// When the next turn begins without any event.
    fn next_turn(&self) -> Option<Moment>;

    /// One turn of every gateway that has something to do.
    fn turn(&mut self) -> Result<(), String>;

    /// Nothing will happen before time passes: checks that nothing was left undone.
    fn check_quiet(&mut self) -> Result<(), String>;

    /// Runs until `until`, or until nothing more will happen. True: nothing more will.
    fn advance(&mut self, until: Option<Moment>) -> Result<bool, String> {
        for _ in 0..STEPS_MAX {
            self.act()?;
            let now = self.kernel().borrow().now;
            if self.is_due(now) || self.kernel().borrow().has_edges() {
                self.delay();
                self.act()?;
                self.turn()?;
                continue;
            }
            self.check_quiet()?;
            let next = [self.kernel().borrow().next_action(), self.next_turn()];
            let next = next.into_iter().flatten().min();
            match (next, until) {
                (Some(at), until) if until.is_none_or(|until| at <= until) => {
                    self.kernel().borrow_mut().now = at;
                }
                (_, Some(until)) => {
                    self.kernel().borrow_mut().now = until;
                    return Ok(false);
                }
                (_, None) => return Ok(true),
            }
        }
        Err("it does not come to an end".into())
    }

    /// A turn may begin late: more can happen before it.
    fn delay(&mut self) {
        let kernel = &mut *self.kernel().borrow_mut();
        if kernel.nature.has_quirks && kernel.one_in(4) {
            // Once in a while the process stands still for longer than any timeout.
            let is_standstill = kernel.stands_still && kernel.one_in(STANDSTILL_ONE_IN);
            let wait = kernel.some(if is_standstill { STANDSTILL_MAX } else { LATE_MAX });
            if is_standstill {
                kernel.standstills_left = kernel.standstills_left.saturating_sub(wait);
                kernel.stands_still = !kernel.standstills_left.is_zero();
            }
            kernel.now += wait;
            if is_standstill {
                kernel.standstills.push((kernel.now, wait));
            }
        }
    }

    /// Carries out the actions that are due.
    fn act(&mut self) -> Result<(), String> {
        loop {
            let Some(action) = self.kernel().borrow_mut().poll_action() else { return Ok(()) };
            let now = self.kernel().borrow().now;
            self.pass(now);
            match action {
                Action::Deliver(link) => self.kernel().borrow_mut().deliver(link),
                Action::Edge(link) => self.kernel().borrow_mut().late_edge(link),
                Action::Dialed(link, result) => self.kernel().borrow_mut().dialed(link, result),
                Action::Peer(link) => self.tick(link)?,
                Action::Plan(plan) => self.carry_out(plan),
            }
            self.greet();
        }
    }
}
