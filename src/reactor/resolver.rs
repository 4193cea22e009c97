//! Names are looked up on a thread of its own, because the system's resolver blocks.
//!
//! The thread is started by the first name; a gateway whose backends are all IP addresses never has one.

use crate::service::link::RedisRole;
use crate::service::upstreams::UpstreamId;
use mio::Waker;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// The stack of the thread: the system's resolver keeps its buffers there.
const STACK_BYTES: usize = 256 * 1024;

/// Whose name it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Backend(UpstreamId),
    Redis(RedisRole),
}

struct Question {
    subject: Subject,
    host: String,
    port: u16,
}

type Answer = (Subject, Result<Vec<SocketAddr>, String>);

/// The reactor's end.
pub struct Resolver {
    waker: Arc<Waker>,
    answers: Receiver<Answer>,
    answer: Sender<Answer>,
    questions: Option<Sender<Question>>,
}

impl Resolver {
    /// `waker` is called when there is an answer.
    pub fn new(waker: Arc<Waker>) -> Resolver {
        let (answer, answers) = channel();
        Resolver { waker, answers, answer, questions: None }
    }

    /// Has a name looked up.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn ask(&mut self, subject: Subject, host: String, port: u16) -> io::Result<()> {
        if self.questions.is_none() {
            let (questions, asked) = channel();
            let (answer, waker) = (self.answer.clone(), Arc::clone(&self.waker));
            thread::Builder::new()
                .name("resolver".into())
                .stack_size(STACK_BYTES)
                .spawn(move || look_up_all(&asked, &answer, &waker))?;
            self.questions = Some(questions);
        }
        if let Some(questions) = &self.questions {
            questions
                .send(Question { subject, host, port })
                .map_err(|_| io::Error::other("the resolver thread has ended"))?;
        }
        Ok(())
    }

    /// The next answer.
    pub fn poll_answer(&mut self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

fn look_up_all(asked: &Receiver<Question>, answer: &Sender<Answer>, waker: &Waker) {
    while let Ok(Question { subject, host, port }) = asked.recv() {
        let found = match (host.as_str(), port).to_socket_addrs() {
            Ok(addresses) => Ok(addresses.collect()),
            Err(error) => Err(error.to_string()),
        };
        if answer.send((subject, found)).is_err() || waker.wake().is_err() {
            return; // the reactor is gone
        }
    }
}
