//! What the unit tests of several phases need.

use super::{Context, Settings};
use crate::base::moment::Moment;
use crate::net::testing::NoNetwork;
use crate::service::limits::{self, Limits};
use crate::service::results::Results;
use crate::service::tasks::{self, Tasks};

/// A context at the start of time, without routes, backends and Redis.
pub fn context(settings: Settings) -> Context {
    let limits = limits::Settings {
        max_connections: 1000,
        max_connections_per_ip: 0,
        allowed_origins: Vec::new(),
    };
    let results = Results::new(Tasks::new(tasks::Settings::default()), None);
    let (network, chance) = (Box::new(NoNetwork), fastrand::Rng::with_seed(1));
    Context::new(Moment::START, settings, network, Limits::new(limits), results, chance)
}
