//! The gateway's own counts, read from `/metrics`: once, or every second as a monitoring system
//! would.

use crate::Fault;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// Timeout for an answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// The interval between two reads.
const SCRAPE_EVERY: Duration = Duration::from_secs(1);

/// The answer to `GET /metrics`, head and all.
pub fn read(address: SocketAddr) -> Result<String, Fault> {
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    match ask() {
        Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => Ok(answer),
        Ok(answer) => {
            Err(format!("/metrics of {address}: {}", answer.lines().next().unwrap_or("no answer")))
        }
        Err(error) => Err(format!("/metrics of {address}: {error}")),
    }
}

/// The value of that name.
pub fn figure(metrics: &str, name: &str) -> Result<u64, Fault> {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.ok_or_else(|| format!("/metrics has no {name}"))
}

/// Reads `/metrics` at once and then every second, on its own thread, until it is finished. Every
/// measured second contains one read.
pub struct Scraper {
    stop: Sender<()>,
    thread: JoinHandle<Result<u64, Fault>>,
}

impl Scraper {
    pub fn start(address: SocketAddr) -> Scraper {
        let (stop, stopped) = mpsc::channel();
        let scrape = move || {
            let mut looks = 0;
            loop {
                read(address)?;
                looks += 1;
                if stopped.recv_timeout(SCRAPE_EVERY) != Err(RecvTimeoutError::Timeout) {
                    return Ok(looks);
                }
            }
        };
        Scraper { stop, thread: std::thread::spawn(scrape) }
    }

    /// How often it was read, or the error.
    pub fn finish(self) -> Result<u64, Fault> {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|_| Err("the reader of /metrics panicked".into()))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Accepts a connection and reads a request for the metrics; the caller answers it.
    pub fn be_asked(listener: &TcpListener) -> TcpStream {
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = Vec::new();
        while !question.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            question.extend(byte);
        }
        assert!(question.starts_with(b"GET /metrics HTTP/1.1\r\n"));
        stream
    }

    /// Answers one request with it.
    fn answer_once(answer: &'static str) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = move || {
            be_asked(&listener).write_all(answer.as_bytes()).unwrap();
        };
        (address, std::thread::spawn(serve))
    }

    #[test]
    fn figures_are_found_by_their_whole_name() {
        let text = "HTTP/1.1 200 OK\r\n\r\nopen{route=\"a\"}x 1\n# open{route=\"a\"} 2\nopen{route=\"a\"} 3\n";
        assert_eq!(figure(text, "open{route=\"a\"}"), Ok(3));
        assert_eq!(figure(text, "other").unwrap_err(), "/metrics has no other");
    }

    #[test]
    fn looks_are_counted_from_the_first_on() {
        let (address, server) = answer_once("HTTP/1.1 200 OK\r\n\r\na 1\n");
        let scraper = Scraper::start(address);
        server.join().unwrap();
        assert_eq!(scraper.finish(), Ok(1));
    }

    #[test]
    fn an_answer_that_is_none_is_a_fault() {
        let (address, server) = answer_once("HTTP/1.1 503 Service Unavailable\r\n\r\n");
        let fault = read(address).unwrap_err();
        assert!(fault.ends_with(": HTTP/1.1 503 Service Unavailable"), "{fault}");
        server.join().unwrap();
    }
}
