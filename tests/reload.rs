//! A reload reaches every part: after one with a changed key, a gateway works with the same
//! settings as one that was started with them.
//!
//! Goes through the table of keys, so a new key is covered, and fails if its part is not reloaded.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use aivtuber_gateway::base::moment::Moment;
use aivtuber_gateway::config::{self, Config, Key, SECTIONS};
use aivtuber_gateway::gateway::{Gateway, InEffect, Settings};
use aivtuber_gateway::logging;
use aivtuber_gateway::net::{Network, PeerAddress, Socket, Source};
use aivtuber_gateway::session::jobs::{FileJob, Job, NameOwner};

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

fn in_effect_after_reload(before: &Config, config: &Config) -> InEffect {
    let mut gateway = started_with(before.gateway.clone());
    gateway.reload(config.gateway.clone());
    gateway.in_effect()
}

/// The defaults, but for one key, and the line that changes it.
fn changed(section: &str, key: &Key) -> (String, Config) {
    changed_from("", section, key)
}

/// The configuration `base`, but for one key, and the line that changes it.
fn changed_from(base: &str, section: &str, key: &Key) -> (String, Config) {
    let line = format!("{section}.{} = {}", key.name, key.example());
    let config = config::parse(Path::new("x.toml"), &format!("{base}{line}\n"))
        .unwrap_or_else(|problems| panic!("{line}: {problems}"));
    (line, config)
}

/// The sections and live keys of everything but the log.
fn live_keys() -> impl Iterator<Item = (&'static str, &'static Key)> {
    SECTIONS.iter().flat_map(|section| {
        let is_of_gateway = |key: &&Key| section.name != "log" || key.name == OF_SESSIONS;
        let keys = section.keys.iter().filter(|key| !key.needs_restart());
        keys.filter(is_of_gateway).map(|key| (section.name, key))
    })
}

/// The key of `[log]` that is not for the log, but for the sessions.
const OF_SESSIONS: &str = "failures";

#[test]
fn every_live_key_is_in_effect_after_a_reload() {
    let defaults = started_with(Config::default().gateway).in_effect();
    let mut count = 0;
    for (section, key) in live_keys() {
        let (line, config) = changed(section, key);
        let fresh = started_with(config.gateway.clone()).in_effect();
        assert_ne!(fresh, defaults, "{line}: no part of a started gateway has it");
        let reloaded = in_effect_after_reload(&Config::default(), &config);
        assert_eq!(reloaded, fresh, "{line}: a reload misses it");
        count += 1;
    }
    assert!(count >= 18, "only {count} live keys were tried");
}

/// With the embedded inbox some keys reach other parts.
#[test]
fn every_live_key_is_in_effect_after_a_reload_with_an_inbox() {
    const BASE: &str = "redis.url = \"embedded://127.0.0.1:0\"\n";
    let before = config::parse(Path::new("x.toml"), BASE).unwrap();
    let defaults = started_with(before.gateway.clone()).in_effect();
    let mut has_password = false;
    for (section, key) in live_keys() {
        let (line, config) = changed_from(BASE, section, key);
        let fresh = started_with(config.gateway.clone()).in_effect();
        has_password |= fresh.inbox_password != defaults.inbox_password;
        assert_eq!(in_effect_after_reload(&before, &config), fresh, "{line}: a reload misses it");
    }
    assert!(has_password, "no key changes the password of the inbox");
}

#[test]
fn routes_and_the_link_to_redis_are_in_effect_after_a_reload() {
    for text in [
        "route = []",
        "[[route]]\nname = \"a\"\npath = \"/a/{x}\"\nbackend = [\"ws://a/{x}\", \"ws://b\"]\nhost = \"h\"\n",
        "[[route]]\nname = \"other\"\npath = \"/other/{task_id}\"\nserve = \"output\"\n",
    ] {
        let config = config::parse(Path::new("x.toml"), text).unwrap();
        let (reloaded, fresh) = (
            in_effect_after_reload(&Config::default(), &config),
            started_with(config.gateway.clone()).in_effect(),
        );
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

/// A reload has what is outside of the process looked at anew, even if no setting has changed.
#[test]
fn backends_and_the_audio_root_are_looked_up_again_after_a_reload() {
    let text = "[[route]]\nname = \"a\"\npath = \"/a\"\nbackend = [\"ws://backend.example\"]\n\
        [[route]]\nname = \"b\"\npath = \"/b/{task_id}\"\nserve = \"output\"\n";
    let config = config::parse(Path::new("x.toml"), text).unwrap();
    let mut gateway = started_with(config.gateway.clone());
    let looked_at = |gateway: &mut Gateway| {
        let jobs = std::iter::from_fn(|| gateway.poll_job()).map(|job| match job {
            Job::LookUp { owner: NameOwner::Backend(_), .. } => "a backend",
            Job::File(FileJob::CheckAudioRoot(_)) => "the audio root",
            _ => "something else",
        });
        jobs.collect::<BTreeSet<_>>()
    };
    looked_at(&mut gateway);
    gateway.reload(config.gateway);
    assert_eq!(looked_at(&mut gateway), ["a backend", "the audio root"].into());
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
