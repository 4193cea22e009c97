//! The share of each process of several on one listening address.
//!
//! Connections and messages are the gateway's own counts, read from `/metrics` of each process: on
//! the shared address the kernel chooses the process, so each also listens on an address of its
//! own.

use super::metrics;
use super::process::{Watch, run_time, sleeps};
use crate::Fault;
use crate::load::work::Observe;
use std::net::SocketAddr;

/// What is read from `/metrics`; the relayed route is called `input` (`targets.rs`).
const CONNECTIONS: &str = "aivtuber_gateway_websockets_open{route=\"input\"}";
const MESSAGES: &str = "aivtuber_gateway_frames_total{route=\"input\",direction=\"from_client\"}";

/// The part of one process in the measured part of a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Part {
    /// Its open connections at the start.
    pub connections: u64,
    /// Frames that it relayed to the backend.
    pub messages: u64,
    /// Its run time, in nanoseconds.
    pub nanos: u64,
    /// Voluntary context switches of its threads.
    pub sleeps: u64,
}

/// Watches a target as a whole, and each of its processes.
pub struct Division {
    pub watch: Watch,
    /// The process ids, and the address of its own of each.
    processes: Vec<(u32, SocketAddr)>,
    /// In the order of the processes; complete after `Observe::end`.
    pub parts: Vec<Part>,
}

impl Division {
    pub fn new(watch: Watch, processes: Vec<(u32, SocketAddr)>) -> Division {
        Division { watch, parts: vec![Part::default(); processes.len()], processes }
    }
}

impl Observe for Division {
    fn begin(&mut self) -> Result<(), Fault> {
        for (part, &(_, address)) in self.parts.iter_mut().zip(&self.processes) {
            let text = metrics::read(address)?;
            part.connections = metrics::figure(&text, CONNECTIONS)?;
            part.messages = metrics::figure(&text, MESSAGES)?;
        }
        self.watch.begin()?;
        for (part, &(id, _)) in self.parts.iter_mut().zip(&self.processes) {
            (part.nanos, part.sleeps) = (run_time(&[id]), sleeps(id));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        self.watch.end()?;
        for (part, &(id, _)) in self.parts.iter_mut().zip(&self.processes) {
            (part.nanos, part.sleeps) = (run_time(&[id]) - part.nanos, sleeps(id) - part.sleeps);
        }
        for (part, &(_, address)) in self.parts.iter_mut().zip(&self.processes) {
            part.messages = metrics::figure(&metrics::read(address)?, MESSAGES)? - part.messages;
        }
        Ok(())
    }
}

/// The greatest share of the connections that one process has: 0.5 is even for two; `None` without
/// connections.
pub fn fullest(parts: &[Part]) -> Option<f64> {
    let sum: u64 = parts.iter().map(|part| part.connections).sum();
    let most = parts.iter().map(|part| part.connections).max()?;
    (sum > 0).then(|| most as f64 / sum as f64)
}

#[cfg(test)]
mod tests {
    use super::super::metrics::tests::be_asked;
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    #[test]
    fn the_fullest_is_a_share_of_all() {
        let parts = |counts: &[u64]| -> Vec<Part> {
            counts.iter().map(|&connections| Part { connections, ..Part::default() }).collect()
        };
        assert_eq!(fullest(&parts(&[96, 160])), Some(0.625));
        assert_eq!(fullest(&parts(&[64])), Some(1.0));
        assert_eq!(fullest(&parts(&[0, 0])), None);
        assert_eq!(fullest(&[]), None);
    }

    #[test]
    fn each_process_is_asked_before_and_after() {
        // Two listeners that answer in turn what a process would: connections, then messages so
        // far.
        let answers = [[(3, 10), (3, 17)], [(5, 100), (4, 102)]];
        let (mut work, stdin) = UnixStream::pair().unwrap();
        let stdin = Stdio::from(OwnedFd::from(stdin));
        let mut worker = Command::new("cat").stdin(stdin).stdout(Stdio::null()).spawn().unwrap();
        let id = worker.id();
        let (addresses, servers): (Vec<_>, Vec<_>) = answers
            .into_iter()
            .map(|answers| {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let address = listener.local_addr().unwrap();
                let serve = move || {
                    for (connections, messages) in answers {
                        let mut stream = be_asked(&listener);
                        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
                        write!(
                            stream,
                            "{head}{CONNECTIONS} {connections}\n{MESSAGES} {messages}\n"
                        )
                        .unwrap();
                    }
                };
                ((id, address), std::thread::spawn(serve))
            })
            .unzip();
        let mut division = Division::new(Watch::new(Vec::new(), None), addresses);
        division.begin().unwrap();
        let before = run_time(&[id]);
        while run_time(&[id]) < before + 1_000_000 {
            work.write_all(&[0; 4096]).unwrap();
        }
        division.end().unwrap();
        drop(work);
        worker.wait().unwrap();
        servers.into_iter().for_each(|server| server.join().unwrap());
        let counts: Vec<_> =
            division.parts.iter().map(|part| (part.connections, part.messages)).collect();
        assert_eq!(counts, [(3, 7), (5, 2)]);
        assert!(
            division.parts.iter().all(|part| part.nanos >= 1_000_000 && part.sleeps > 0),
            "{:?}",
            division.parts
        );
    }
}
