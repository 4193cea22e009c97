//! A reload reaches every part: after one with a changed key, a gateway works with the same
//! settings as one that was started with them.
//!
//! Goes through the table of keys, so a new key is covered, and fails if its part is not reloaded.

use std::path::Path;
use std::time::SystemTime;

use aivtuber_gateway::base::moment::Moment;
use aivtuber_gateway::config::{self, Config, Key, SECTIONS};
use aivtuber_gateway::gateway::{Gateway, InEffect, Settings};
use aivtuber_gateway::logging;
use aivtuber_gateway::net::{Network, PeerAddress, Socket, Source};

/// No connection can be made; nothing is dialled in these tests.
struct NoNetwork;

impl Network for NoNetwork {
    fn connect(&mut self, _: &PeerAddress, _: Source) -> std::io::Result<Socket> {
        Err(std::io::ErrorKind::NetworkUnreachable.into())
    }
}

fn started_with(settings: Settings) -> Gateway {
    let random = fastrand::Rng::with_seed(1);
    Gateway::new(settings, Box::new(NoNetwork), random, Moment::START, SystemTime::UNIX_EPOCH)
        .unwrap()
}

fn in_effect_after_reload(config: &Config) -> InEffect {
    let mut gateway = started_with(Config::default().gateway);
    gateway.reload(config.gateway.clone());
    gateway.in_effect()
}

/// The defaults, but for one key, and the line that changes it.
fn changed(section: &str, key: &Key) -> (String, Config) {
    let line = format!("[{section}] {} = {}", key.name, key.example());
    let text = format!("[{section}]\n{} = {}\n", key.name, key.example());
    let config = config::parse(Path::new("x.toml"), &text)
        .unwrap_or_else(|problems| panic!("{line}: {problems}"));
    (line, config)
}

/// The key of `[log]` that is not for the log, but for the sessions.
const OF_SESSIONS: &str = "failures";

#[test]
fn every_live_key_is_in_effect_after_a_reload() {
    let defaults = started_with(Config::default().gateway).in_effect();
    let mut count = 0;
    for section in SECTIONS {
        let is_of_gateway = |key: &&Key| section.name != "log" || key.name == OF_SESSIONS;
        for key in section.keys.iter().filter(|key| !key.needs_restart()).filter(is_of_gateway) {
            let (line, config) = changed(section.name, key);
            let fresh = started_with(config.gateway.clone()).in_effect();
            assert_ne!(fresh, defaults, "{line}: no part of a started gateway has it");
            assert_eq!(in_effect_after_reload(&config), fresh, "{line}: a reload misses it");
            count += 1;
        }
    }
    assert!(count >= 18, "only {count} live keys were tried");
}

#[test]
fn routes_and_the_link_to_redis_are_in_effect_after_a_reload() {
    for text in [
        "route = []",
        "[[route]]\nname = \"a\"\npath = \"/a/{x}\"\nbackend = [\"ws://a/{x}\", \"ws://b\"]\nhost = \"h\"\n",
        "[[route]]\nname = \"other\"\npath = \"/other/{task_id}\"\nserve = \"output\"\n",
    ] {
        let config = config::parse(Path::new("x.toml"), text).unwrap();
        let (reloaded, fresh) =
            (in_effect_after_reload(&config), started_with(config.gateway.clone()).in_effect());
        assert_eq!(reloaded.routes, config.gateway.routes, "{text}");
        assert_eq!(fresh.routes, config.gateway.routes, "{text}");
    }
    // The first route that serves results begins the link, with the settings of the reload.
    let without = config::parse(Path::new("x.toml"), "route = []").unwrap();
    let with = config::parse(Path::new("x.toml"), "[redis]\ngrace = \"17s\"").unwrap();
    let mut gateway = started_with(without.gateway);
    assert_eq!(gateway.in_effect().redis, None);
    gateway.reload(with.gateway.clone());
    assert_eq!(gateway.in_effect(), started_with(with.gateway).in_effect());
}

#[test]
fn every_key_of_the_log_is_in_effect_after_a_reload() {
    let log = logging::start(Config::default().log).unwrap();
    let section = SECTIONS.iter().find(|section| section.name == "log").unwrap();
    for key in section.keys.iter().filter(|key| !["file", OF_SESSIONS].contains(&key.name)) {
        let (line, config) = changed(section.name, key);
        log.apply(config.log.clone());
        assert_ne!(log.settings(), Config::default().log, "{line}");
        assert_eq!(log.settings(), config.log, "{line}");
    }
    log.finish();
}
