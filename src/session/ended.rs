//! How a session ended: the phase says it once, and `Session` alone logs and counts it.

use super::close::{CloseReason, CodeText};
use super::{Context, Identity};
use crate::base::quoted::Quoted;
use crate::net::Side;
use crate::proto::http::{Form, Response};
use crate::proto::message::TaskId;
use crate::proto::ws_reader::WsReader;
use crate::service::limits::Refusal;
use crate::service::stats::BothWays;
use crate::service::tasks::{ClientState, TaskEnd};
use crate::service::trust::Client;
use log::{Level, log, warn};
use std::fmt;

/// The end of a session, as the phase that decided it reports it.
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Ended {
    pub reason: CloseReason,
    /// The code in the Close frame that the client saw; `None` where it saw none.
    pub code: Option<u16>,
    pub traffic: BothWays,
    pub detail: Detail,
    pub last: Last,
}

/// What the closing line has besides the reason. It also decides whether the end is counted.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields and variants explain themselves")]
pub enum Detail {
    /// An HTTP connection: neither logged nor counted.
    Http,
    /// A request head that was not understood, or came too late.
    BadRequest {
        status: u16,
        why: &'static str,
    },
    /// A TLS handshake that failed.
    Handshake {
        why: String,
    },
    OriginNotAllowed {
        origin: String,
    },
    /// A connection beyond a limit.
    Refused(Refusal),
    /// The client left before a backend had answered.
    LeftWhileDialing,
    /// No backend took the client.
    NoBackend {
        what: String,
    },
    Relay,
    /// A client that cannot subscribe to results.
    CannotSubscribe {
        error: &'static str,
    },
    Output {
        task: TaskId,
        state: ClientState,
        /// How the task ended for this client, if it did.
        end: Option<TaskEnd>,
    },
    Inbox {
        published: u64,
    },
    /// A worker that sent speech.
    Ingest {
        chunks: u64,
        /// Messages that could not be used.
        errors: u64,
    },
}

/// What is still to be sent to the client.
pub enum Last {
    /// Nothing. What a transport still holds is sent.
    Nothing,
    /// Nothing, and what a transport still holds is dropped: the connection is closed at once.
    Dropped,
    /// These frames, which may be none. Then FIN, and a wait for the client's.
    Frames(Vec<u8>),
    /// A whole HTTP answer. Then FIN, and a wait for the client's.
    Answer(Vec<u8>),
    /// FIN alone: everything else has been written.
    Fin(Awaited),
}

/// What shows, after FIN, that the client has ended its side too.
pub enum Awaited {
    /// Its FIN.
    Fin,
    /// Its FIN or its Close frame, which this reader finds.
    Close(Box<WsReader>),
    /// Nothing: it has sent its Close frame already.
    Nothing,
}

/// The bytes of a response after which nothing more is read, for [`Last::Answer`]. Counts it.
pub fn last_response(response: Response, cx: &mut Context) -> Vec<u8> {
    cx.stats.count_http(response.status);
    response.into_bytes(Form::LAST)
}

impl Ended {
    /// An end that carried no messages, after which nothing is sent.
    pub fn new(reason: CloseReason, detail: Detail) -> Box<Ended> {
        let traffic = BothWays::default();
        Box::new(Ended { reason, code: None, traffic, detail, last: Last::Nothing })
    }

    /// The end of an HTTP connection that needs no line in the log.
    pub fn http(reason: CloseReason) -> Box<Ended> {
        Ended::new(reason, Detail::Http)
    }

    /// The same end, with something left to send.
    pub fn with_last(mut self: Box<Self>, last: Last) -> Box<Ended> {
        self.last = last;
        self
    }

    /// The same end, of a client that is sent a Close frame with the code of the reason.
    pub fn with_close_code(mut self: Box<Self>) -> Box<Ended> {
        self.code = Some(self.reason.close_code(Side::Downstream));
        self
    }

    /// The client may not have received the last bytes, for `reason`: then nothing was delivered.
    /// An end for another reason stays what it is.
    pub(super) fn fail_delivery(&mut self, reason: CloseReason) {
        if self.reason == CloseReason::Delivered {
            self.reason = reason;
            self.code = None;
            if let Detail::Output { end, .. } = &mut self.detail {
                *end = None;
            }
        }
    }

    /// Logs and counts it, and reports it to the task. Called by [`super::Session`] alone, once for
    /// each session.
    pub(super) fn record(&self, who: &Identity, cx: &mut Context) {
        self.log(who, cx);
        if self.is_counted() {
            let (route, reason) = (who.route_name(), self.reason.word());
            cx.stats.count_closed(route, reason, self.traffic, who.key as usize);
        }
        if let Detail::Output { task, state, end } = &self.detail {
            let is_speaking = cx.streams.is_speaking(task.uuid());
            cx.results.leave(cx.now, task.uuid(), *state, *end, is_speaking);
        } else if let Detail::Ingest { .. } = &self.detail {
            let tasks: Vec<_> = cx.feeds.tasks_of(who.id()).collect();
            tasks.into_iter().for_each(|task| cx.speech.forget_dropped(task));
            cx.feeds.leave(who.id());
        } else if let Detail::Refused(refusal) = &self.detail {
            cx.stats.count_refused(refusal.word());
        }
    }

    /// A WebSocket is no longer open from the moment on that its end is decided.
    pub(super) fn count_not_open(&self, who: &Identity, cx: &mut Context) {
        match self.detail {
            Detail::LeftWhileDialing
            | Detail::NoBackend { .. }
            | Detail::Relay
            | Detail::Output { .. }
            | Detail::Ingest { .. } => cx.stats.count_not_open(who.route_name()),
            Detail::Http
            | Detail::BadRequest { .. }
            | Detail::Handshake { .. }
            | Detail::Inbox { .. }
            | Detail::OriginNotAllowed { .. }
            | Detail::Refused(_)
            | Detail::CannotSubscribe { .. } => {}
        }
    }

    /// It is the end of a WebSocket, or of what was to be one.
    pub(super) fn is_counted(&self) -> bool {
        match self.detail {
            Detail::Http
            | Detail::BadRequest { .. }
            | Detail::Handshake { .. }
            | Detail::Inbox { .. }
            | Detail::Refused(_) => false,
            Detail::OriginNotAllowed { .. }
            | Detail::LeftWhileDialing
            | Detail::NoBackend { .. }
            | Detail::Relay
            | Detail::CannotSubscribe { .. }
            | Detail::Output { .. }
            | Detail::Ingest { .. } => true,
        }
    }

    /// The task whose results were served, as the client wrote it.
    pub(super) fn task(&self) -> Option<&TaskId> {
        if let Detail::Output { task, .. } = &self.detail { Some(task) } else { None }
    }

    /// One line for every end but that of an HTTP connection: the same three fields first, then
    /// those of its kind.
    fn log(&self, who: &Identity, cx: &Context) {
        let (level, target) = match &self.detail {
            Detail::Http => return,
            Detail::Refused(refusal) => {
                let (why, client) = (refusal.why(), who.client());
                return warn!(target: "gateway", "{who} refused why=\"{why}\" client={client}");
            }
            Detail::OriginNotAllowed { .. } => (Level::Warn, "http"),
            Detail::BadRequest { .. } => (Level::Info, "http"),
            Detail::Handshake { .. } => (Level::Info, "tls"),
            Detail::LeftWhileDialing | Detail::NoBackend { .. } => (Level::Info, "dial"),
            Detail::Relay => (Level::Info, "relay"),
            Detail::CannotSubscribe { .. } | Detail::Output { .. } => (Level::Info, "output"),
            Detail::Inbox { .. } => (Level::Info, "inbox"),
            Detail::Ingest { .. } => (Level::Info, "ingest"),
        };
        let Ended { reason, code, .. } = self;
        let (code, age, fields) = (CodeText(*code), who.age(cx.now), Fields(self, who.client()));
        log!(
            target: target, level,
            "{who} closed reason={reason} code={code} duration={age}{fields}"
        );
    }
}

/// The fields of a closing line that only this kind of end has. The client's address is among them
/// where no earlier line has it.
struct Fields<'e>(&'e Ended, Client);

impl fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fields(Ended { detail, traffic: BothWays { from_client, to_client }, .. }, client) =
            self;
        match detail {
            Detail::Http | Detail::Refused(_) => Ok(()),
            Detail::BadRequest { status, why } => {
                write!(f, " status={status} why=\"{why}\" client={client}")
            }
            Detail::OriginNotAllowed { origin } => {
                write!(f, " origin={} client={client}", Quoted(origin))
            }
            Detail::Handshake { why } => write!(f, " why={} client={client}", Quoted(why)),
            Detail::LeftWhileDialing => write!(f, " client={client}"),
            Detail::NoBackend { what } => write!(f, " what={} client={client}", Quoted(what)),
            Detail::Relay => write!(
                f,
                " from_client_frames={} from_client_bytes={} to_client_frames={} to_client_bytes={}",
                from_client.frames, from_client.bytes, to_client.frames, to_client.bytes,
            ),
            Detail::CannotSubscribe { error } => {
                write!(f, " error=\"{error}\" client={client}")
            }
            Detail::Output { task, .. } => write!(
                f,
                " to_client_frames={} to_client_bytes={} task={task}",
                to_client.frames, to_client.bytes,
            ),
            Detail::Inbox { published } => write!(f, " published={published}"),
            Detail::Ingest { chunks, errors } => write!(
                f,
                " chunks={chunks} errors={errors} from_client_frames={} from_client_bytes={}",
                from_client.frames, from_client.bytes,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::stats::Traffic;

    /// `docs/operations.md` shows these fields, and people search logs for them.
    #[test]
    fn fields_of_a_closing_line_stay_as_they_are_documented() {
        let task = || TaskId::read("7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111").expect("it is a UUID");
        let state = ClientState::Waiting;
        #[rustfmt::skip]
        let cases = [
            (Detail::Http, ""),
            (Detail::BadRequest { status: 400, why: "no" },
             " status=400 why=\"no\" client=192.0.2.7:5000"),
            (Detail::OriginNotAllowed { origin: "https://a \"b".into() },
             " origin=\"https://a \\\"b\" client=192.0.2.7:5000"),
            (Detail::Handshake { why: "an \"alert\"".into() },
             " why=\"an \\\"alert\\\"\" client=192.0.2.7:5000"),
            (Detail::LeftWhileDialing, " client=192.0.2.7:5000"),
            (Detail::NoBackend { what: "refused".into() },
             " what=\"refused\" client=192.0.2.7:5000"),
            (Detail::Relay,
             " from_client_frames=1 from_client_bytes=2 to_client_frames=3 to_client_bytes=4"),
            (Detail::CannotSubscribe { error: "no" }, " error=\"no\" client=192.0.2.7:5000"),
            (Detail::Output { task: task(), state, end: None },
             " to_client_frames=3 to_client_bytes=4 task=7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111"),
            (Detail::Inbox { published: 5 }, " published=5"),
            (Detail::Ingest { chunks: 6, errors: 7 },
             " chunks=6 errors=7 from_client_frames=1 from_client_bytes=2"),
        ];
        let client = Client::Peer(std::net::SocketAddr::from(([192, 0, 2, 7], 5000)));
        for (detail, fields) in cases {
            let mut ended = Ended::new(CloseReason::Done, detail);
            ended.traffic.from_client = Traffic { frames: 1, bytes: 2 };
            ended.traffic.to_client = Traffic { frames: 3, bytes: 4 };
            assert_eq!(Fields(&ended, client).to_string(), fields);
        }
    }
}
