//! A client that downloads audio with `GET /audio/…`, and keeps what it got and when.

use crate::kernel::{Action, Kernel, LinkId};
use crate::listener::Manner;
use crate::peers::head_length;
use aivtuber_gateway::base::moment::Moment;
use std::collections::VecDeque;
use std::ops::Range;

/// What it asks for.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub task: usize,
    /// The `result_id`; `None`: the first result with audio.
    pub number: Option<usize>,
    pub range: Option<Range<usize>>,
    pub is_kept_alive: bool,
}

pub struct Download {
    pub link: LinkId,
    pub wanted: Wanted,
    pub manner: Manner,
    pub came_at: Moment,
    /// When it had everything, or met the end of the connection; `None`: it left before that.
    pub ended_at: Option<Moment>,
    pub response: Option<Response>,
    pub is_over: bool,
    inbox: Vec<u8>,
    out: VecDeque<u8>,
    read_at: Moment,
    leave_at: Moment,
}

/// A response as far as it came.
pub struct Response {
    pub status: u16,
    pub content_range: Option<String>,
    length: usize,
    pub body: Vec<u8>,
}

impl Response {
    pub fn is_whole(&self) -> bool {
        self.body.len() == self.length
    }

    fn read(head: &[u8]) -> Result<Response, String> {
        let head = str::from_utf8(head).map_err(|why| why.to_string())?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.get(9..12)?.parse().ok());
        let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(": ")).collect();
        let field = |wanted: &str| {
            fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|field| field.1)
        };
        let length = field("Content-Length").and_then(|text| text.parse().ok());
        Ok(Response {
            status: status.ok_or("an answer without a status")?,
            content_range: field("Content-Range").map(str::to_owned),
            length: length.ok_or_else(|| format!("an answer without a length: {head}"))?,
            body: Vec::new(),
        })
    }
}

impl Download {
    pub fn new(
        kernel: &mut Kernel,
        link: LinkId,
        wanted: Wanted,
        manner: Manner,
        path: &str,
    ) -> Download {
        let leave_at = kernel.now + manner.leaves_after;
        kernel.at(leave_at, Action::Peer(link));
        kernel.wake_peer(link);
        let range = wanted.range.as_ref();
        let range = range.map(|it| format!("Range: bytes={}-{}\r\n", it.start, it.end - 1));
        let range = range.unwrap_or_default();
        let connection = if wanted.is_kept_alive { "" } else { "Connection: close\r\n" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{range}{connection}\r\n");
        Download {
            link,
            wanted,
            manner,
            came_at: kernel.now,
            ended_at: None,
            response: None,
            is_over: false,
            inbox: Vec::new(),
            out: request.into_bytes().into(),
            read_at: kernel.now,
            leave_at,
        }
    }

    /// Reads, writes, leaves.
    pub fn tick(&mut self, kernel: &mut Kernel) -> Result<(), String> {
        if self.is_over {
            return Ok(());
        }
        self.read(kernel)?;
        let n = self.out.len().min(kernel.window(self.link));
        let bytes: Vec<u8> = self.out.drain(..n).collect();
        if !bytes.is_empty() {
            kernel.send(self.link, &bytes);
        }
        let has_all = self.response.as_ref().is_some_and(Response::is_whole);
        let is_ended = has_all || kernel.received_end(self.link).is_some();
        if is_ended {
            self.ended_at = Some(kernel.now);
        }
        if is_ended || kernel.now >= self.leave_at {
            kernel.close(self.link);
            self.is_over = true;
        }
        Ok(())
    }

    fn read(&mut self, kernel: &mut Kernel) -> Result<(), String> {
        while kernel.is_to_receive(self.link) {
            if kernel.now < self.read_at {
                kernel.at(self.read_at, Action::Peer(self.link));
                return Ok(());
            }
            let bytes = kernel.receive(self.link, self.manner.read_bite);
            self.read_at = kernel.now + self.manner.read_pace;
            self.inbox.extend(bytes);
            if self.response.is_none()
                && let Some(length) = head_length(&self.inbox)
            {
                self.response = Some(Response::read(&self.inbox[..length])?);
                self.inbox.drain(..length);
            }
            if let Some(response) = &mut self.response {
                response.body.append(&mut self.inbox);
                if response.body.len() > response.length {
                    return Err(format!("{} bytes of {}", response.body.len(), response.length));
                }
            }
        }
        Ok(())
    }
}
