//! How a session ended: the phase says it once, and `Session` alone logs, counts and records it.

mod sentence;

use super::close::{CloseReason, Closing, CodeText, EndVerdict, Party};
use super::{Context, Identity};
use crate::base::quoted::Quoted;
use crate::net::Side;
use crate::proto::http::{BadHead, Form, Response};
use crate::proto::message::TaskId;
use crate::proto::ws_reader::WsReader;
use crate::service::ledger::{ClosedConnection, ConnectionKind};
use crate::service::limits::Refusal;
use crate::service::sentence::Sentence;
use crate::service::stats::{BothWays, EndedCount};
use crate::service::tasks::{ClientState, TaskEnd};
use crate::service::trust::Client;
use crate::service::upstreams::UpstreamId;
use log::{Level, log};
use sentence::sentence;
use std::fmt;
use std::time::Duration;

/// The end of a session, as the phase that decided it reports it.
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Ended {
    pub reason: CloseReason,
    /// Who ended it.
    pub by: Party,
    /// The Close frame that the client saw or sent.
    pub client_close: Closing,
    /// The same of the backend.
    pub backend_close: Closing,
    pub traffic: BothWays,
    /// The backend that it had, or that was tried last.
    pub backend: Option<UpstreamId>,
    pub activity: Activity,
    pub detail: Detail,
    pub last: Last,
}

/// What the sides were doing when the end began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Activity {
    /// The time since the last message of the client; of one whose results are served: since it
    /// last proved alive. `None` where there were no messages.
    pub client_idle: Option<Duration>,
    pub backend_idle: Option<Duration>,
    /// A message was half sent, or bytes waited for a side.
    pub is_unfinished: bool,
    /// Pings of the gateway to either side, and their answers.
    pub pings_sent: u16,
    pub pongs_received: u16,
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
    /// A connection of a trusted proxy that does not begin with a PROXY header.
    ProxyHeader {
        why: String,
    },
    OriginNotAllowed {
        origin: String,
    },
    /// A connection beyond a limit.
    Refused(Limit),
    /// The client left before a backend had answered.
    LeftWhileDialing,
    /// No backend took the client.
    NoBackend {
        what: String,
        answered: Answered,
    },
    Relay,
    /// A request on a route for plain HTTP, which was not answered to the end.
    Forward {
        method: Box<str>,
        /// Of the response that had begun.
        status: Option<u16>,
        what: Option<&'static str>,
        /// Bytes of content.
        request_bytes: u64,
        response_bytes: u64,
    },
    /// A client that cannot subscribe to results.
    CannotSubscribe {
        error: &'static str,
        task: Option<TaskId>,
    },
    Output {
        task: TaskId,
        state: ClientState,
        /// How the task ended for this client, if it did.
        end: Option<TaskEnd>,
        /// What was wrong with a result.
        fault: Option<String>,
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

/// The limit beyond which a connection was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// A limit of clients.
    Clients(Refusal),
    /// Memory.
    Memory,
    /// The number of workers in the inbox.
    Workers,
}

impl Limit {
    /// A phrase for the log and for the answer.
    pub fn why(self) -> &'static str {
        match self {
            Limit::Clients(refusal) => refusal.why(),
            Limit::Memory => "out of memory budget",
            Limit::Workers => "too many workers",
        }
    }

    /// One word for metrics.
    fn word(self) -> &'static str {
        match self {
            Limit::Clients(refusal) => refusal.word(),
            Limit::Memory => "memory",
            Limit::Workers => "workers",
        }
    }
}

/// How a client learned that no backend takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// By a Close frame behind a 101.
    WebSocket,
    /// By an HTTP answer.
    Http,
}

/// What is still to be sent to the client.
pub enum Last {
    /// Nothing. What a transport still holds is sent.
    Nothing,
    /// Nothing, and what a transport still holds is dropped: the connection is closed at once.
    Dropped,
    /// These frames, which may be none. Then FIN, and a wait for the client's.
    Frames(LastFrames),
    /// A whole HTTP answer. Then FIN, and a wait for the client's.
    Answer(Vec<u8>),
    /// FIN alone: everything else has been written.
    Fin(Awaited),
}

/// Frames behind which nothing is sent.
#[derive(Default)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct LastFrames {
    pub bytes: Vec<u8>,
    /// Bytes of the handshake in front of the frames.
    pub answer_bytes: usize,
    /// Frames to be counted once they have been sent.
    pub frames: u64,
    /// Frames of the client that have been read and not looked at.
    pub early: Vec<u8>,
    /// Finds the client's Close frame, where its frames have been followed from the start.
    pub reader: Option<Box<WsReader>>,
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

/// Logs and counts a connection that is closed at once, without an answer.
pub fn refuse_unanswered(who: &Identity, refusal: Refusal, cx: &mut Context) {
    let detail = Detail::Refused(Limit::Clients(refusal));
    Ended::new(CloseReason::Refused, detail).record(who, cx);
}

impl LastFrames {
    /// Frames behind the answer to an upgrade. The client has sent `early` behind its request.
    pub fn behind_answer(
        bytes: Vec<u8>,
        answer_bytes: usize,
        frames: u64,
        early: &[u8],
    ) -> LastFrames {
        LastFrames {
            bytes,
            answer_bytes,
            frames,
            early: early.to_vec(),
            reader: Some(Box::default()),
        }
    }
}

impl Ended {
    /// An end that carried no messages, after which nothing is sent.
    pub fn new(reason: CloseReason, detail: Detail) -> Box<Ended> {
        Box::new(Ended {
            reason,
            by: reason.ended_by(),
            client_close: Closing::None,
            backend_close: Closing::None,
            traffic: BothWays::default(),
            backend: None,
            activity: Activity::default(),
            detail,
            last: Last::Nothing,
        })
    }

    /// The end of an HTTP connection that needs no line in the log.
    pub fn http(reason: CloseReason) -> Box<Ended> {
        Ended::new(reason, Detail::Http)
    }

    /// The end of a connection whose request is answered with an error, and not read any further.
    pub fn bad_request(bad: BadHead) -> Box<Ended> {
        let detail = Detail::BadRequest { status: bad.status, why: bad.why };
        Ended::new(CloseReason::BadRequest, detail)
    }

    /// The same end, with something left to send.
    pub fn with_last(mut self: Box<Self>, last: Last) -> Box<Ended> {
        self.last = last;
        self
    }

    /// The same end, of a client that is sent a Close frame with the code of the reason.
    pub fn with_close_code(mut self: Box<Self>) -> Box<Ended> {
        self.client_close = Closing::Received(Some(self.reason.close_code(Side::Downstream)));
        self
    }

    /// Another reason, with its party.
    pub(super) fn set_reason(&mut self, reason: CloseReason) {
        (self.reason, self.by) = (reason, reason.ended_by());
    }

    /// The client may not have received the last bytes, for `reason`: then nothing was delivered.
    /// An end for another reason stays what it is.
    pub(super) fn fail_delivery(&mut self, reason: CloseReason) {
        if self.reason.is_delivery() {
            self.set_reason(reason);
            self.client_close = Closing::None;
            self.activity.is_unfinished = true;
            if let Detail::Output { end, .. } = &mut self.detail {
                *end = None;
            }
        }
    }

    /// Whether something went wrong.
    pub(super) fn is_bad(&self) -> bool {
        let code = match self.by {
            Party::Backend => self.backend_close.code(),
            _ => self.client_close.code(),
        };
        match self.reason.verdict() {
            EndVerdict::Good => false,
            EndVerdict::Bad => true,
            EndVerdict::ByCode => !matches!(code, None | Some(1000 | 1001)),
            EndVerdict::IfUnfinished => self.activity.is_unfinished,
        }
    }

    /// Logs, counts and records it, and reports it to the task. Called by [`super::Session`] alone,
    /// once for each session.
    pub(super) fn record(&self, who: &Identity, cx: &mut Context) {
        if let Some(phase) = self.phase() {
            let sentence = sentence(self);
            self.log(phase, &sentence, who, cx);
            cx.stats.count_ended(&EndedCount {
                route: who.route_name(),
                reason: self.reason.word(),
                by: self.by.word(),
                is_failure: self.is_bad(),
                client_code: self.client_close.code(),
                backend_code: self.backend_close.code(),
            });
            let closed = self.closed_connection(phase, sentence, who, cx);
            cx.ledger.push(closed);
        }
        if self.is_counted() {
            let (route, reason) = (who.route_name(), self.reason.word());
            cx.stats.count_closed(route, reason, self.traffic, who.key as usize);
        }
        if let Detail::Output { task, state, end, .. } = &self.detail {
            let is_speaking = cx.streams.is_speaking(task.uuid());
            cx.results.leave(cx.now, task.uuid(), *state, *end, is_speaking);
        } else if let Detail::Ingest { .. } = &self.detail {
            let tasks: Vec<_> = cx.feeds.tasks_of(who.id()).collect();
            tasks.into_iter().for_each(|task| cx.speech.forget_dropped(task));
            cx.feeds.leave(who.id());
        } else if let Detail::Refused(limit) = &self.detail {
            cx.stats.count_refused(limit.word());
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
            | Detail::Forward { .. }
            | Detail::ProxyHeader { .. }
            | Detail::Inbox { .. }
            | Detail::OriginNotAllowed { .. }
            | Detail::Refused(_)
            | Detail::CannotSubscribe { .. } => {}
        }
    }

    /// It is the end of a WebSocket, that is, of what was answered with 101: closes and upgrades
    /// balance.
    pub(super) fn is_counted(&self) -> bool {
        match self.detail {
            Detail::Http
            | Detail::BadRequest { .. }
            | Detail::Handshake { .. }
            | Detail::Forward { .. }
            | Detail::ProxyHeader { .. }
            | Detail::Inbox { .. }
            | Detail::Refused(_)
            | Detail::LeftWhileDialing
            | Detail::NoBackend { answered: Answered::Http, .. } => false,
            Detail::OriginNotAllowed { .. }
            | Detail::NoBackend { answered: Answered::WebSocket, .. }
            | Detail::Relay
            | Detail::CannotSubscribe { .. }
            | Detail::Output { .. }
            | Detail::Ingest { .. } => true,
        }
    }

    /// It has a closing line.
    pub(super) fn is_recorded(&self) -> bool {
        self.phase().is_some()
    }

    /// It ended before anything was tried for it.
    pub(super) fn is_before_upgrade(&self) -> bool {
        matches!(self.phase(), Some("accept" | "request"))
    }

    /// The task as the last field of a line.
    pub(super) fn task_field(&self, who: &Identity) -> String {
        match (&self.detail, who.task_id()) {
            (Detail::Output { task, .. } | Detail::CannotSubscribe { task: Some(task), .. }, _) => {
                format!(" task={task}")
            }
            (_, Some(task)) => format!(" task={}", Quoted(task)),
            (_, None) => String::new(),
        }
    }

    /// The task whose results were served, as the client wrote it.
    pub(super) fn task(&self) -> Option<&TaskId> {
        match &self.detail {
            Detail::Output { task, .. } => Some(task),
            _ => None,
        }
    }

    /// The task in its path, as the client wrote it.
    fn task_text(&self, who: &Identity) -> Option<String> {
        match &self.detail {
            Detail::Output { task, .. } | Detail::CannotSubscribe { task: Some(task), .. } => {
                Some(task.to_string())
            }
            _ => who.task_id().map(str::to_owned),
        }
    }

    /// Where the connection was; `None` for one that is not recorded.
    fn phase(&self) -> Option<&'static str> {
        match self.detail {
            Detail::Http => None,
            Detail::Handshake { .. } | Detail::ProxyHeader { .. } => Some("accept"),
            Detail::BadRequest { .. } | Detail::OriginNotAllowed { .. } | Detail::Refused(_) => {
                Some("request")
            }
            Detail::LeftWhileDialing | Detail::NoBackend { .. } => Some("dial"),
            Detail::Relay => Some("relay"),
            Detail::Forward { .. } => Some("http"),
            Detail::CannotSubscribe { .. } | Detail::Output { .. } => Some("output"),
            Detail::Inbox { .. } => Some("inbox"),
            Detail::Ingest { .. } => Some("ingest"),
        }
    }

    fn closed_connection(
        &self,
        phase: &'static str,
        sentence: Sentence,
        who: &Identity,
        cx: &Context,
    ) -> ClosedConnection {
        let backend = self.backend.filter(|id| cx.upstreams.is_known(*id));
        ClosedConnection {
            kind: match self.detail {
                Detail::Http
                | Detail::BadRequest { .. }
                | Detail::Handshake { .. }
                | Detail::Forward { .. }
                | Detail::ProxyHeader { .. }
                | Detail::Refused(_) => ConnectionKind::Early,
                Detail::Inbox { .. } => ConnectionKind::Worker,
                _ => ConnectionKind::WebSocket,
            },
            serial: who.serial,
            route: who.shared_route_name(),
            task_id: self.task_text(who),
            client: who.client(),
            backend: backend.map(|id| cx.upstreams.url(id).shared_text()),
            closed: cx.wall.at(cx.now),
            duration: cx.now - who.opened,
            phase,
            ended_by: self.by.word(),
            reason: self.reason.word(),
            is_failure: self.is_bad(),
            client_code: self.client_close.code(),
            backend_code: self.backend_close.code(),
            client_close: self.client_close.word(),
            backend_close: self.backend_close.word(),
            client_idle: self.activity.client_idle,
            backend_idle: self.activity.backend_idle,
            traffic: self.traffic,
            pings_sent: self.activity.pings_sent,
            pongs_received: self.activity.pongs_received,
            sentence,
        }
    }

    /// Writes the closing line; an HTTP connection has none. Three fields come first in each, then
    /// those of this kind of end, then which side ended it, and the sentence.
    fn log(&self, phase: &'static str, sentence: &Sentence, who: &Identity, cx: &Context) {
        let (level, target) = match &self.detail {
            Detail::Refused(Limit::Workers) => (Level::Warn, "inbox"),
            Detail::Http | Detail::Refused(_) => (Level::Warn, "gateway"),
            Detail::OriginNotAllowed { .. } => (Level::Warn, "http"),
            Detail::BadRequest { .. } | Detail::Forward { .. } => (Level::Info, "http"),
            Detail::Handshake { .. } => (Level::Info, "tls"),
            // The proxy or this configuration has to be changed.
            Detail::ProxyHeader { .. } => (Level::Warn, "gateway"),
            Detail::LeftWhileDialing | Detail::NoBackend { .. } => (Level::Info, "dial"),
            Detail::Relay => (Level::Info, "relay"),
            Detail::CannotSubscribe { .. } | Detail::Output { .. } => (Level::Info, "output"),
            Detail::Inbox { .. } => (Level::Info, "inbox"),
            Detail::Ingest { .. } => (Level::Info, "ingest"),
        };
        let (code, age) = (CodeText(self.client_close.code()), who.age(cx.now));
        let (reason, by) = (self.reason, self.by.word());
        let (fields, sentence) = (EndFields(self, who), Quoted(sentence));
        log!(
            target: target, level,
            "{who} closed reason={reason} code={code} duration={age}{fields} ended_by={by} phase={phase} sentence={sentence}"
        );
    }
}

/// The fields of a closing line that only this kind of end has. The client's address is among them
/// where no earlier line has it.
struct EndFields<'e>(&'e Ended, &'e Identity);

impl fmt::Display for EndFields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EndFields(ended, who) = self;
        let client: Client = who.client();
        match &ended.detail {
            Detail::Http => return Ok(()),
            Detail::Refused(limit) => {
                return write!(f, " why=\"{}\" client={client}", limit.why());
            }
            Detail::BadRequest { status, why } => {
                return write!(f, " status={status} why=\"{why}\" client={client}");
            }
            Detail::Forward { method, status, what, request_bytes, response_bytes } => {
                write!(f, " method={method}")?;
                if let Some(status) = status {
                    write!(f, " status={status}")?;
                }
                if let Some(what) = what {
                    write!(f, " what={}", Quoted(what))?;
                }
                return write!(
                    f,
                    " client={client} request_bytes={request_bytes} response_bytes={response_bytes}"
                );
            }
            Detail::Inbox { published } => return write!(f, " published={published}"),
            Detail::OriginNotAllowed { origin } => {
                write!(f, " origin={} client={client}", Quoted(origin))?;
            }
            Detail::Handshake { why } | Detail::ProxyHeader { why } => {
                return write!(f, " why={} client={client}", Quoted(why));
            }
            Detail::LeftWhileDialing => write!(f, " client={client}")?,
            Detail::NoBackend { what, .. } => {
                write!(f, " what={} client={client}", Quoted(what))?;
            }
            Detail::CannotSubscribe { error, .. } => {
                write!(f, " error=\"{error}\" client={client}")?;
            }
            Detail::Ingest { chunks, errors } => write!(f, " chunks={chunks} errors={errors}")?,
            Detail::Relay | Detail::Output { .. } => {}
        }
        let BothWays { from_client, to_client } = ended.traffic;
        write!(
            f,
            " from_client_frames={} from_client_bytes={} to_client_frames={} to_client_bytes={}",
            from_client.frames, from_client.bytes, to_client.frames, to_client.bytes,
        )?;
        match &ended.detail {
            Detail::Output { task, .. } | Detail::CannotSubscribe { task: Some(task), .. } => {
                write!(f, " task={task}")
            }
            _ => match who.task_id() {
                Some(task) => write!(f, " task={}", Quoted(task)),
                None => Ok(()),
            },
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
        const COUNTS: &str =
            " from_client_frames=1 from_client_bytes=2 to_client_frames=3 to_client_bytes=4";
        const TASK: &str = " task=7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111";
        #[rustfmt::skip]
        let cases = [
            (Detail::Http, String::new()),
            (Detail::BadRequest { status: 400, why: "no" },
             " status=400 why=\"no\" client=127.0.0.1:5000".into()),
            (Detail::Refused(Limit::Clients(Refusal::Full)),
             " why=\"too many connections\" client=127.0.0.1:5000".into()),
            (Detail::OriginNotAllowed { origin: "https://a \"b".into() },
             format!(" origin=\"https://a \\\"b\" client=127.0.0.1:5000{COUNTS}")),
            (Detail::Handshake { why: "an \"alert\"".into() },
             " why=\"an \\\"alert\\\"\" client=127.0.0.1:5000".into()),
            (Detail::ProxyHeader { why: "it is too long".into() },
             " why=\"it is too long\" client=127.0.0.1:5000".into()),
            (Detail::LeftWhileDialing, format!(" client=127.0.0.1:5000{COUNTS}")),
            (Detail::NoBackend { what: "refused".into(), answered: Answered::Http },
             format!(" what=\"refused\" client=127.0.0.1:5000{COUNTS}")),
            (Detail::Relay, COUNTS.into()),
            (Detail::CannotSubscribe { error: "no", task: None },
             format!(" error=\"no\" client=127.0.0.1:5000{COUNTS}")),
            (Detail::CannotSubscribe { error: "no", task: Some(task()) },
             format!(" error=\"no\" client=127.0.0.1:5000{COUNTS}{TASK}")),
            (Detail::Output { task: task(), state, end: None, fault: None },
             format!("{COUNTS}{TASK}")),
            (Detail::Forward { method: "PUT".into(), status: Some(200), what: Some("a \"b"),
                               request_bytes: 5, response_bytes: 6 },
             " method=PUT status=200 what=\"a \\\"b\" client=127.0.0.1:5000 request_bytes=5 \
              response_bytes=6".into()),
            (Detail::Forward { method: "PUT".into(), status: None, what: None, request_bytes: 5,
                               response_bytes: 0 },
             " method=PUT client=127.0.0.1:5000 request_bytes=5 response_bytes=0".into()),
            (Detail::Inbox { published: 5 }, " published=5".into()),
            (Detail::Ingest { chunks: 6, errors: 7 },
             format!(" chunks=6 errors=7{COUNTS}")),
        ];
        let who = Identity::of_client();
        for (detail, fields) in cases {
            let mut ended = Ended::new(CloseReason::Done, detail);
            ended.traffic.from_client = Traffic { frames: 1, bytes: 2 };
            ended.traffic.to_client = Traffic { frames: 3, bytes: 4 };
            assert_eq!(EndFields(&ended, &who).to_string(), fields);
        }
    }

    #[test]
    fn what_ends_well_is_no_failure() {
        use CloseReason::{BackendClosed, ClientClosed, ClientVanished, Delivered, WorkerFailed};
        let (sent, none) = (|code| Closing::Sent(Some(code)), Closing::None);
        #[rustfmt::skip]
        let cases = [
            (ClientClosed, sent(1000), none, false, false),
            (ClientClosed, sent(1001), none, false, false),
            (ClientClosed, Closing::Sent(None), none, false, false),
            (ClientClosed, sent(4000), none, false, true),
            (BackendClosed, Closing::Received(Some(1000)), sent(1000), true, false),
            (BackendClosed, none, sent(1011), false, true),
            (ClientVanished, none, none, false, false),
            (ClientVanished, none, none, true, true),
            (Delivered, none, none, false, false),
            (WorkerFailed, none, none, false, true),
        ];
        for (reason, client_close, backend_close, is_unfinished, is_bad) in cases {
            let mut ended = Ended::new(reason, Detail::Relay);
            (ended.client_close, ended.backend_close) = (client_close, backend_close);
            ended.activity.is_unfinished = is_unfinished;
            assert_eq!(ended.is_bad(), is_bad, "{reason} {client_close:?} {backend_close:?}");
        }
    }
}
