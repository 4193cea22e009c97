//! Everything that can be set, and its defaults.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::routes::default_routes;
use crate::reactor::listeners::ListenOn;
use crate::service::limits;
use crate::session::{self, MemoryLimit};
use crate::{gateway, logging, reactor};

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Config {
    pub reactor: reactor::Settings,
    pub gateway: gateway::Settings,
    pub log: logging::Settings,
}

impl Default for Config {
    fn default() -> Self {
        let gateway = gateway::Settings {
            trust: Default::default(),
            session: session::Settings {
                memory_limit: MemoryLimit::Auto,
                ..session::Settings::default()
            },
            limits: limits::Settings {
                max_connections: 10_000,
                max_connections_per_ip: 0,
                allowed_origins: Vec::new(),
            },
            routes: default_routes(),
            drain_timeout: Some(Duration::from_secs(30)),
            tasks: Default::default(),
            link: Default::default(),
            upstreams: Default::default(),
            tls: Default::default(),
        };
        Config {
            reactor: reactor::Settings {
                listen: vec![ListenOn::Tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8000)))],
                admin: Vec::new(),
                inbox: Vec::new(),
                reuse_port: false,
            },
            gateway,
            log: Default::default(),
        }
    }
}
