#![expect(clippy::disallowed_types, reason = "a test changes what its worker does")]

use super::*;
use crate::net::{Ready, Socket, Transport};
use crate::session::{Admission, Settings, testing};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

/// A worker, as its socket shows it.
#[derive(Default)]
struct Worker {
    /// What it has sent and the gateway has not read.
    sent: VecDeque<u8>,
    /// It has closed its connection without reading the replies.
    has_reset: bool,
    /// It reads nothing.
    is_stalled: bool,
    received: Vec<u8>,
    unacknowledged: usize,
}

struct WorkerSocket(Rc<RefCell<Worker>>);

impl Read for WorkerSocket {
    /// As Linux does: what came before a reset can be read after it.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let worker = &mut *self.0.borrow_mut();
        match worker.sent.read(buf)? {
            0 if worker.has_reset => Ok(0),
            0 => Err(ErrorKind::WouldBlock.into()),
            length => Ok(length),
        }
    }
}

impl Write for WorkerSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let worker = &mut *self.0.borrow_mut();
        if worker.has_reset {
            return Err(ErrorKind::BrokenPipe.into());
        }
        if worker.is_stalled {
            return Err(ErrorKind::WouldBlock.into());
        }
        worker.received.extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for WorkerSocket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn unacknowledged(&self) -> Option<usize> {
        Some(self.0.borrow().unacknowledged)
    }
}

struct Scene {
    worker: Rc<RefCell<Worker>>,
    conn: Conn,
    who: Identity,
    cx: Context,
    phase: Option<Phase>,
}

impl Scene {
    fn new() -> Scene {
        let mut cx = testing::context(Settings::default());
        cx.channel_prefix = "task_response:".into();
        cx.control_prefix = "task_control:".into();
        let worker = Rc::default();
        let socket = Socket::Other(Box::new(WorkerSocket(Rc::clone(&worker))));
        let who = Identity { admission: Admission::Inbox, ..Identity::of_client() };
        let phase = Some(Inbox::phase(&cx));
        Scene { worker, conn: Conn::accepted(socket), who, cx, phase }
    }

    fn publishes(&mut self, count: u128) {
        for number in 0..count {
            let channel = format!("task_response:{}", uuid::Uuid::from_u128(number));
            let command =
                format!("*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n$2\r\n{{}}\r\n", channel.len());
            self.worker.borrow_mut().sent.extend(command.as_bytes());
        }
    }

    fn subscribes(&mut self) {
        self.worker.borrow_mut().sent.extend(b"PSUBSCRIBE task_control:*\r\n");
    }

    /// A message comes for the worker.
    fn hears(&mut self, payload: &[u8]) {
        let Some(Phase::Inbox(inbox)) = &mut self.phase else { panic!("another phase") };
        let (pattern, channel) = (Some(&b"task_control:*"[..]), &b"task_control:1"[..]);
        inbox.handle_publication(ChannelMessage { pattern, channel, payload }, self.cx.now);
    }

    fn deadline(&self) -> Option<Moment> {
        let Some(Phase::Inbox(inbox)) = &self.phase else { panic!("another phase") };
        inbox.deadline()
    }

    /// Does all that can be done now. Returns how the session ended, if it did.
    fn step(&mut self) -> Option<CloseReason> {
        self.conn.handle_ready(Ready { readable: true, writable: true, read_closed: false });
        loop {
            let Some(Phase::Inbox(inbox)) = self.phase.take() else { panic!("another phase") };
            match inbox.step(&mut self.conn, &mut self.who, &mut self.cx) {
                Step::Wait(phase) => {
                    self.phase = Some(phase);
                    return None;
                }
                Step::Yield(phase) => self.phase = Some(phase),
                Step::End(ended) => return Some(ended.reason),
                _ => panic!("an inbox waits, yields or ends"),
            }
        }
    }

    /// Lets time pass to the deadline. Returns how long that was, and how the session ended.
    fn pass(&mut self) -> (Duration, Option<CloseReason>) {
        let Some(Phase::Inbox(inbox)) = &self.phase else { panic!("another phase") };
        let at = inbox.deadline().expect("it always has one");
        let waited = at - self.cx.now;
        self.cx.now = at;
        (waited, self.step())
    }
}

#[test]
fn what_a_worker_published_before_it_reset_the_connection_is_heard() {
    let mut scene = Scene::new();
    scene.publishes(500);
    scene.worker.borrow_mut().has_reset = true;
    assert_eq!(scene.step(), Some(CloseReason::ClientVanished));
    assert_eq!(scene.cx.results.tasks().retained(), 500);
}

#[test]
fn an_idle_worker_is_disconnected_after_an_hour() {
    let mut scene = Scene::new();
    scene.publishes(1);
    assert_eq!(scene.step(), None);
    assert_eq!(scene.pass(), (IDLE_TIMEOUT, Some(CloseReason::IdleTimeout)));
}

#[test]
fn a_worker_in_the_middle_of_something_has_less_time() {
    for unfinished in ["", "*3\r\n$7\r\nPUBL", "*1\r\n$5\r\nMULTI\r\n"] {
        let mut scene = Scene::new();
        scene.worker.borrow_mut().sent.extend(unfinished.as_bytes());
        assert_eq!(scene.step(), None);
        let ended = (UNFINISHED_TIMEOUT, Some(CloseReason::IdleTimeout));
        assert_eq!(scene.pass(), ended, "{unfinished:?}");
    }
}

#[test]
fn a_worker_that_takes_its_replies_slowly_is_not_idle_and_one_that_stalls_is() {
    let mut scene = Scene::new();
    scene.publishes(1);
    assert_eq!(scene.step(), None);
    for left in [3000, 2000, 1000] {
        scene.worker.borrow_mut().unacknowledged = left;
        assert_eq!(scene.pass(), (IDLE_TIMEOUT, None), "{left}");
    }
    assert_eq!(scene.pass(), (IDLE_TIMEOUT, Some(CloseReason::IdleTimeout)));
}

/// `write_timeout`, as it is by default.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

#[test]
fn a_worker_or_subscriber_that_takes_no_byte_of_what_waits_for_it_is_gone_after_write_timeout() {
    for is_subscriber in [false, true] {
        let mut scene = Scene::new();
        if is_subscriber {
            scene.subscribes();
            assert_eq!(scene.step(), None);
        }
        let since = scene.cx.now;
        *scene.worker.borrow_mut() =
            Worker { is_stalled: true, unacknowledged: 5000, ..Worker::default() };
        match is_subscriber {
            true => scene.hears(b"a"),
            false => scene.publishes(1),
        }
        assert_eq!(scene.step(), None);
        let reason = loop {
            // Its kernel takes some of it once, and later it only talks.
            if scene.cx.now >= since + WRITE_TIMEOUT / 2 {
                scene.worker.borrow_mut().unacknowledged = 4000;
            }
            scene.worker.borrow_mut().sent.extend(b"PING\r\n");
            if let (_, Some(reason)) = scene.pass() {
                break reason;
            }
        };
        assert_eq!(reason, CloseReason::ClientStalled, "subscriber: {is_subscriber}");
        let after = scene.cx.now - since;
        assert!(WRITE_TIMEOUT * 3 / 2 <= after && after < WRITE_TIMEOUT * 2, "{after:?}");
    }
}

#[test]
fn without_write_timeout_a_worker_that_takes_no_reply_is_idle_after_an_hour() {
    let mut scene = Scene::new();
    scene.cx.settings.write_timeout = None;
    scene.worker.borrow_mut().is_stalled = true;
    scene.publishes(1);
    assert_eq!(scene.step(), None);
    assert_eq!(scene.pass(), (IDLE_TIMEOUT, Some(CloseReason::IdleTimeout)));
}

#[test]
fn what_came_in_time_is_read_before_the_deadline_is_judged() {
    let mut scene = Scene::new();
    assert_eq!(scene.step(), None);
    scene.publishes(1);
    assert_eq!(scene.pass(), (UNFINISHED_TIMEOUT, None));
    assert_eq!(scene.cx.results.tasks().retained(), 1);
}

#[test]
fn subscriber_that_has_taken_everything_is_never_idle() {
    let mut scene = Scene::new();
    scene.subscribes();
    assert_eq!(scene.step(), None);
    assert_eq!(scene.deadline(), None);
    scene.cx.now += 10 * IDLE_TIMEOUT;
    scene.hears(b"a");
    assert_eq!(scene.step(), None);
    let received = String::from_utf8(scene.worker.borrow().received.clone()).unwrap();
    let expected =
        "*4\r\n$8\r\npmessage\r\n$14\r\ntask_control:*\r\n$14\r\ntask_control:1\r\n$1\r\na\r\n";
    assert!(received.ends_with(expected), "{received}");
    assert_eq!(scene.deadline(), None);
}

#[test]
fn subscriber_that_unsubscribes_or_stops_in_a_command_is_idle_like_any_worker() {
    for (sent, timeout) in
        [("PUNSUBSCRIBE\r\n", IDLE_TIMEOUT), ("*2\r\n$4\r\nPI", UNFINISHED_TIMEOUT)]
    {
        let mut scene = Scene::new();
        scene.subscribes();
        scene.worker.borrow_mut().sent.extend(sent.as_bytes());
        assert_eq!(scene.step(), None);
        assert_eq!(scene.pass(), (timeout, Some(CloseReason::IdleTimeout)), "{sent:?}");
    }
}

#[test]
fn subscriber_that_does_not_read_is_disconnected_in_time_or_when_it_holds_up_too_much() {
    let mut scene = Scene::new();
    scene.subscribes();
    assert_eq!(scene.step(), None);
    scene.worker.borrow_mut().is_stalled = true;
    scene.cx.now += 10 * IDLE_TIMEOUT;
    scene.hears(b"a");
    assert_eq!(scene.step(), None);
    assert!(scene.deadline() < Some(scene.cx.now + WRITE_TIMEOUT), "its socket is looked at");
    let payload = [b'x'; 1024];
    for _ in 0..MESSAGE_BYTES_MAX / payload.len() - 32 {
        scene.hears(&payload);
        assert_eq!(scene.step(), None);
    }
    for _ in 0..1000 {
        scene.hears(&payload);
    }
    let Some(Phase::Inbox(inbox)) = &scene.phase else { panic!("another phase") };
    assert!(inbox.held_bytes() < MESSAGE_BYTES_MAX + 2 * payload.len());
    assert_eq!(scene.step(), Some(CloseReason::ClientTooSlow));
}
