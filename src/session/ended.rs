//! How a session ended: the phase says it once, and `Session` alone logs and counts it.

use super::close::{CloseReason, CodeText};
use super::{Context, Identity};
use crate::base::quoted::Quoted;
use crate::proto::http::{Form, Response};
use crate::proto::message::TaskId;
use crate::proto::ws_reader::WsReader;
use crate::service::limits::Refusal;
use crate::service::stats::BothWays;
use crate::service::tasks::{ClientState, TaskEnd};
use log::{info, warn};

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
        match &self.detail {
            Detail::Output { task, state, end } => {
                cx.results.leave(cx.now, task.uuid(), *state, *end);
            }
            Detail::Refused(refusal) => cx.stats.count_refused(refusal.word()),
            Detail::Http
            | Detail::BadRequest { .. }
            | Detail::OriginNotAllowed { .. }
            | Detail::LeftWhileDialing
            | Detail::NoBackend { .. }
            | Detail::Relay
            | Detail::CannotSubscribe { .. }
            | Detail::Inbox { .. } => {}
        }
    }

    /// A WebSocket is no longer open from the moment on that its end is decided.
    pub(super) fn count_not_open(&self, who: &Identity, cx: &mut Context) {
        match self.detail {
            Detail::LeftWhileDialing
            | Detail::NoBackend { .. }
            | Detail::Relay
            | Detail::Output { .. } => cx.stats.count_not_open(who.route_name()),
            Detail::Http
            | Detail::BadRequest { .. }
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
            | Detail::Inbox { .. }
            | Detail::Refused(_) => false,
            Detail::OriginNotAllowed { .. }
            | Detail::LeftWhileDialing
            | Detail::NoBackend { .. }
            | Detail::Relay
            | Detail::CannotSubscribe { .. }
            | Detail::Output { .. } => true,
        }
    }

    /// The task whose results were served, as the client wrote it.
    pub(super) fn task(&self) -> Option<&TaskId> {
        match &self.detail {
            Detail::Output { task, .. } => Some(task),
            Detail::Http
            | Detail::BadRequest { .. }
            | Detail::OriginNotAllowed { .. }
            | Detail::LeftWhileDialing
            | Detail::NoBackend { .. }
            | Detail::Relay
            | Detail::CannotSubscribe { .. }
            | Detail::Refused(_)
            | Detail::Inbox { .. } => None,
        }
    }

    fn log(&self, who: &Identity, cx: &Context) {
        let Ended { reason, traffic: BothWays { from_client, to_client }, .. } = self;
        let (client, code, age) = (who.client(), CodeText(self.code), who.age(cx.now));
        match &self.detail {
            Detail::Http => {}
            Detail::BadRequest { status, why } => info!(
                target: "http",
                "{who} closed reason={reason} status={status} why=\"{why}\" client={client}",
            ),
            Detail::OriginNotAllowed { origin } => warn!(
                target: "http",
                "{who} closed reason={reason} origin={} client={client}",
                Quoted(origin),
            ),
            Detail::Refused(refusal) => {
                warn!(target: "gateway", "{who} refused why=\"{}\" client={client}", refusal.why());
            }
            Detail::LeftWhileDialing => info!(
                target: "dial",
                "{who} closed reason={reason} while connecting client={client}",
            ),
            Detail::NoBackend { what } => info!(
                target: "dial",
                "{who} closed reason={reason} what={} client={client}",
                Quoted(what),
            ),
            Detail::Relay => info!(
                target: "relay",
                "{who} closed reason={reason} code={code} duration={age} from_client_frames={} from_client_bytes={} to_client_frames={} to_client_bytes={}",
                from_client.frames, from_client.bytes, to_client.frames, to_client.bytes,
            ),
            Detail::CannotSubscribe { error } => info!(
                target: "output",
                "{who} closed reason={reason} error=\"{error}\" client={client}",
            ),
            Detail::Output { task, .. } => info!(
                target: "output",
                "{who} closed reason={reason} code={code} duration={age} to_client_frames={} to_client_bytes={} task={task}",
                to_client.frames, to_client.bytes,
            ),
            Detail::Inbox { published } => info!(
                target: "inbox",
                "{who} closed reason={reason} published={published}",
            ),
        }
    }
}
