//! What the gateway reports to the service manager that started it, by `sd_notify(3)`.
//!
//! Each report is a datagram to the Unix socket that `NOTIFY_SOCKET` names; systemd and a few
//! others listen there. Without the variable, nothing is sent. Sending never waits: a report that
//! the socket does not take is dropped.
//!
//! With `WATCHDOG_USEC` the service manager wants a sign of life at least that often, or ends the
//! gateway. The loop sends it, twice as often as needed, so it also shows that the loop turns.

use crate::base::moment::Moment;
use log::warn;
use rustix::time::{ClockId, clock_gettime};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service manager, or nothing.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    watchdog: Option<Watchdog>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Watchdog {
    interval: Duration,
    due_at: Moment,
}

impl Supervisor {
    /// The service manager that the environment names. `pid` is this process.
    pub fn from_env(env: impl Fn(&str) -> Option<OsString>, pid: u32) -> Supervisor {
        let Some(name) = env("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Supervisor::default();
        };
        match connect(&name) {
            Ok(socket) => Supervisor { socket: Some(socket), watchdog: watchdog(&env, pid) },
            Err(error) => {
                warn!(target: "gateway", "cannot report to NOTIFY_SOCKET={name:?}: {error}");
                Supervisor::default()
            }
        }
    }

    /// Reports that the gateway serves, at the start and at the end of a reload.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// Reports that the configuration is being read again; [`Supervisor::ready`] must follow.
    pub fn reloading(&self) {
        // By this time, systemd tells this report from one about an earlier reload.
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=Reading the configuration"
        ));
    }

    /// Reports that the gateway drains.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={status}"));
    }

    /// When the next sign of life is due.
    #[inline]
    pub fn due_at(&self) -> Option<Moment> {
        self.watchdog.map(|watchdog| watchdog.due_at)
    }

    /// Sends a sign of life.
    pub fn feed(&mut self, now: Moment, status: &str) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.due_at = now + watchdog.interval;
            self.send(&format!("WATCHDOG=1\nSTATUS={status}"));
        }
    }

    fn send(&self, report: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(report.as_bytes());
        }
    }
}

/// Connects to a path, or with `@` to a name in the abstract namespace.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        _ => return Err(io::Error::other("expected a path, or a name that begins with @")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

fn watchdog(env: &impl Fn(&str) -> Option<OsString>, pid: u32) -> Option<Watchdog> {
    let number = |name| env(name)?.to_str()?.parse::<u64>().ok();
    let is_meant = env("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(pid.into());
    let micros = number("WATCHDOG_USEC").filter(|micros| *micros > 0 && is_meant)?;
    Some(Watchdog { interval: Duration::from_micros(micros / 2), due_at: Moment::START })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that receives reports, and its name.
    fn receiver(test: &str) -> (UnixDatagram, OsString) {
        let name = format!("aivtuber-gateway-{test}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}").into())
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 1024];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn reports_are_datagrams_with_a_line_for_each_variable() {
        let (socket, name) = receiver("reports");
        let env = |variable: &str| (variable == "NOTIFY_SOCKET").then(|| name.clone());
        let mut supervisor = Supervisor::from_env(env, 1);
        supervisor.ready("Serving");
        assert_eq!(received(&socket), "READY=1\nSTATUS=Serving");
        supervisor.reloading();
        let report = received(&socket);
        let micros = report.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        let micros = micros.strip_suffix("\nSTATUS=Reading the configuration").unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0);
        supervisor.stopping("Draining");
        assert_eq!(received(&socket), "STOPPING=1\nSTATUS=Draining");
        // Without a watchdog no sign of life is due, and none is sent.
        assert_eq!(supervisor.due_at(), None);
        supervisor.feed(Moment::START, "Serving");
        supervisor.ready("Serving");
        assert_eq!(received(&socket), "READY=1\nSTATUS=Serving");
    }

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_it_asks() {
        let (socket, name) = receiver("watchdog");
        let with = |micros: &'static str, pid: Option<&'static str>| {
            let env = |variable: &str| match variable {
                "NOTIFY_SOCKET" => Some(name.clone()),
                "WATCHDOG_USEC" => Some(micros.into()),
                "WATCHDOG_PID" => pid.map(OsString::from),
                _ => None,
            };
            Supervisor::from_env(env, 7)
        };
        for (micros, pid) in [("0", None), ("soon", None), ("20000000", Some("8"))] {
            assert_eq!(with(micros, pid).due_at(), None, "{micros} {pid:?}");
        }
        for pid in [None, Some("7")] {
            let mut supervisor = with("20000000", pid);
            assert_eq!(supervisor.due_at(), Some(Moment::START));
            let now = Moment::START + Duration::from_secs(5);
            supervisor.feed(now, "Serving");
            assert_eq!(supervisor.due_at(), Some(now + Duration::from_secs(10)));
            assert_eq!(received(&socket), "WATCHDOG=1\nSTATUS=Serving");
        }
    }

    #[test]
    fn nothing_is_sent_to_a_socket_that_is_not_there_or_takes_nothing() {
        for name in ["", "/nowhere/notify", "vsock:2:1", "@nobody-listens"] {
            let env = |variable: &str| (variable == "NOTIFY_SOCKET").then(|| name.into());
            assert!(Supervisor::from_env(env, 1).socket.is_none(), "{name}");
        }
        // The receiver reads nothing: the queue fills up, and the rest is dropped.
        let (socket, name) = receiver("full");
        let env = |variable: &str| (variable == "NOTIFY_SOCKET").then(|| name.clone());
        let supervisor = Supervisor::from_env(env, 1);
        (0..10_000).for_each(|_| supervisor.ready("Serving"));
        assert_eq!(received(&socket), "READY=1\nSTATUS=Serving");
    }
}
