//! What happens to a session, step by step, as values: the debug log prints them, and whatever else
//! watches a session later reads the same values.
//!
//! [`note`] builds the value only when something reads it, so at `info` a relayed frame pays for
//! one comparison.
//!
//! How the lines read: `a>b` went from a to b, where `gateway` marks what it sent or took itself;
//! on a connection that the gateway serves itself, `>` and `<` are to and from the client; `=` is
//! an observation.

use super::close::{CloseReason, CodeText};
use super::recent::{Kept, Recent};
use super::tap::{self, Noted};
use super::{Context, Identity};
use crate::base::moment::{Moment, Seconds};
use crate::base::quoted::Quoted;
use crate::net::Side;
use crate::net::files::OpenError;
use crate::proto::http;
use crate::proto::message::TaskId;
use crate::proto::ws::{FrameHead, Opcode, cut_at_char};
use crate::service::attempt::AttemptError;
use crate::service::trust::{Client, Peer};
use serde_json::{Map, Value, json};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// Something that happened on a connection. It never holds a payload, a token or a query value.
#[derive(Clone, Copy)]
#[expect(missing_docs, reason = "the fields and variants explain themselves")]
pub enum Event<'e> {
    /// The TLS handshake with a client is complete.
    Secured {
        client: Client,
    },
    /// A trusted proxy has said whose connection it is.
    ProxyHeader {
        proxy: Peer,
        client: Client,
    },
    /// A request head, without the query.
    Request {
        method: &'e str,
        path: &'e str,
        query: Query,
        client: Client,
    },
    /// An HTTP answer of the gateway.
    Answer {
        status: u16,
    },

    /// There is no file of the name that a client asks for.
    NoFile {
        error: OpenError,
        name: &'e str,
    },

    /// An attempt to connect to a backend begins.
    Connecting {
        backend: &'e str,
        /// `None`: a Unix socket, whose path the URL has.
        address: Option<SocketAddr>,
    },
    Connected,
    /// The attempt failed; another one may follow.
    AttemptFailed {
        what: &'e dyn fmt::Display,
    },
    /// Every attempt to reach this backend has failed, the last one with this error.
    BackendFailed {
        backend: &'e str,
        error: AttemptError,
    },
    /// The upgrade request has left for the backend.
    UpgradeRequest {
        request_id: &'e str,
    },
    /// The head of a request on an HTTP route has left for the backend.
    ForwardedRequest {
        request_id: &'e str,
    },
    /// A request on an HTTP route has been answered, or its connection has ended before.
    Forwarded(Forwarded<'e>),
    /// The request of a probe has left for the backend.
    ProbeRequest,
    /// An HTTP answer of the backend.
    BackendAnswer {
        status: u16,
        reason: &'e str,
    },
    /// The backend's 101 is passed on.
    Upgraded,

    /// A frame passes through a relay.
    Frame {
        to: Side,
        head: &'e FrameHead,
    },
    /// A Close frame from one side has been passed on whole.
    ClosePassed {
        to: Side,
        code: Option<u16>,
    },
    /// A Close frame of the gateway's goes to one side.
    CloseSent {
        to: Side,
        code: u16,
        reason: CloseReason,
    },
    PingSent {
        to: Side,
    },
    /// The answer to the gateway's own ping, which is not relayed.
    PongReceived {
        from: Side,
    },
    /// A side that does not answer is given up.
    Silent {
        side: Side,
        silence: Duration,
    },
    /// A side that takes no byte is given up.
    Stalled {
        side: Side,
    },

    /// A message to a client whose results are served.
    Text {
        length: usize,
        /// Where somebody follows payloads.
        text: Option<&'e str>,
    },
    /// A chunk of audio, as one message.
    Chunk {
        length: u64,
        number: u64,
        /// `None` while the file grows.
        total: Option<u64>,
    },
    /// A ping to a client whose results are served.
    Ping,
    /// A Close frame to a client whose results are served.
    Close {
        code: u16,
        phrase: &'e str,
    },
    /// A frame of a client whose results are served.
    ClientFrame {
        head: &'e FrameHead,
    },
    /// A Close frame from a client whose results are served.
    ClientClose {
        code: Option<u16>,
    },

    /// A worker's command in the inbox.
    Command {
        name: &'e str,
        arguments: usize,
    },
    /// A worker published a result of this many bytes.
    Published {
        task: uuid::Uuid,
        bytes: usize,
    },
    /// A worker published, but not for a task.
    NotATask,

    /// A worker sent a chunk of speech.
    SpeechChunk {
        task: uuid::Uuid,
        /// As the worker numbered it.
        seq: Option<u64>,
        length: usize,
    },
    /// A worker has sent all of its speech.
    SpeechEnd {
        task: uuid::Uuid,
        is_final: bool,
    },
    /// A worker is sent an error.
    SpeechError {
        error: &'e str,
    },
    /// A worker is sent a control message.
    SentToWorker {
        action: &'static str,
        task: uuid::Uuid,
    },
}

/// What became of a request on an HTTP route.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Forwarded<'e> {
    pub method: &'e str,
    /// Of the backend's response, or the gateway's own; `None`: there was none.
    pub status: Option<u16>,
    /// From the request's head to the response's, and to the end.
    pub head_after: Option<Duration>,
    pub duration: Duration,
    /// Bytes of content.
    pub request_bytes: u64,
    pub response_bytes: u64,
}

/// Whether a request has a query. Its values may be secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Query {
    Present,
    Absent,
}

impl Query {
    fn mark(self) -> &'static str {
        match self {
            Query::Present => "?…",
            Query::Absent => "",
        }
    }
}

/// What an event happened to.
#[derive(Clone, Copy)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Subject<'s> {
    Session(&'s Identity),
    /// A session whose task its phase has.
    Task(&'s Identity, &'s TaskId),
    /// The probe of a failed backend with this number, counted from 1 since the start.
    Probe(u64),
}

impl<'s> From<&'s Identity> for Subject<'s> {
    fn from(who: &'s Identity) -> Self {
        Subject::Session(who)
    }
}

impl<'s> Subject<'s> {
    /// What the connection remembers.
    fn recent(&self) -> Option<&'s Recent> {
        match self {
            Subject::Session(who) | Subject::Task(who, _) => who.recent(),
            Subject::Probe(_) => None,
        }
    }

    /// The task that the lines are about, as a further field.
    pub fn task_field(&self) -> TaskField<'_> {
        TaskField(self)
    }
}

/// ` task=…` at the end of a line, where the subject has a task.
pub struct TaskField<'s>(&'s Subject<'s>);

impl fmt::Display for TaskField<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Subject::Session(who) => match who.task_id() {
                Some(task) => write!(f, " task={}", Quoted(task)),
                None => Ok(()),
            },
            Subject::Task(_, task) => write!(f, " task={task}"),
            Subject::Probe(_) => Ok(()),
        }
    }
}

/// What begins its lines: `input_1`, `probe_1`.
impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Session(who) | Subject::Task(who, _) => who.fmt(f),
            Subject::Probe(number) => write!(f, "probe_{number}"),
        }
    }
}

/// The longest line that is remembered, in bytes.
const LINE_BYTES_MAX: usize = 200;

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Kept::Connecting(address) => write!(f, "= connecting to backend at {address}"),
            Kept::Connected => Event::Connected.fmt(f),
            Kept::UpgradeRequest => f.write_str("gateway>backend upgrade request"),
            Kept::BackendAnswer(status) => {
                Event::BackendAnswer { status, reason: http::reason_phrase(status) }.fmt(f)
            }
            Kept::ClosePassed { to, code } => Event::ClosePassed { to, code }.fmt(f),
            Kept::CloseSent { to, code, reason } => Event::CloseSent { to, code, reason }.fmt(f),
            Kept::PingSent { to } => Event::PingSent { to }.fmt(f),
            Kept::PongReceived { from } => Event::PongReceived { from }.fmt(f),
            Kept::Line(ref line) => f.write_str(line),
        }
    }
}

/// Reports a step that a connection remembers, if it remembers any. `event` is called only if
/// something reads the value.
#[inline]
pub fn note_step<'s, 'e>(
    who: impl Into<Subject<'s>>,
    now: Moment,
    event: impl FnOnce() -> Event<'e>,
) {
    let who = who.into();
    if who.recent().is_some() || log::Level::Debug <= log::max_level() {
        remember_and_log(who, now, &event());
    }
}

/// Has the connection remember a step that is logged elsewhere.
pub fn remember(who: Subject<'_>, now: Moment, event: &Event<'_>) {
    if let Some(recent) = who.recent() {
        recent.note(event.kept(), now);
    }
}

fn remember_and_log(who: Subject<'_>, now: Moment, event: &Event<'_>) {
    remember(who, now, event);
    if log::Level::Debug <= log::max_level() {
        log_event(who, event);
    }
}

/// Counts, remembers and reports a frame that passes through a relay. False: the connection did not
/// remember anything before.
#[inline]
pub fn note_frame(who: &Identity, to: Side, head: &FrameHead, cx: &mut Context) -> bool {
    match who.recent() {
        Some(recent) => {
            recent.note_frame(to, head, cx.now);
            true
        }
        None => {
            note_unremembered(who, to, head, cx);
            false
        }
    }
}

/// The same for a frame of a connection that remembers nothing: its first one, or any where the
/// log, at debug, has everything.
#[cold]
fn note_unremembered(who: &Identity, to: Side, head: &FrameHead, cx: &mut Context) {
    if tap::shows_payload() {
        // The flow hands it out, once its payload has passed.
        let event = Event::Frame { to, head };
        log::debug!(target: event.target(), "{who} {event}");
    } else {
        note(who, || Event::Frame { to, head });
    }
    who.count_frame(to, head, cx);
}

/// Reports an event that no connection remembers. `event` is called only if something reads the
/// value.
#[inline]
pub fn note<'s, 'e>(who: impl Into<Subject<'s>>, event: impl FnOnce() -> Event<'e>) {
    if log::Level::Debug <= log::max_level() {
        log_event(who.into(), &event());
    }
}

#[cold]
fn log_event(who: Subject<'_>, event: &Event<'_>) {
    log::debug!(target: event.target(), "{who} {event}{}", who.task_field());
    if tap::is_open() {
        let payload = match *event {
            Event::Text { text: Some(text), .. } => {
                let shown = text.bytes().take(tap::PAYLOAD_BYTES_MAX).collect();
                Some(payload_field(Opcode::Text, 0, shown))
            }
            _ => None,
        };
        offer(who, event, payload);
    }
}

/// Keeps a frame of a relay for those that follow payloads, with the beginning of its payload.
pub fn offer_frame(who: &Identity, to: Side, head: &FrameHead, payload: Option<Vec<u8>>) {
    let payload = payload.map(|bytes| payload_field(head.opcode, head.rsv, bytes));
    offer(who.into(), &Event::Frame { to, head }, payload);
}

/// A payload, or its beginning, as a field: a text as it is, anything else in base64.
fn payload_field(opcode: Opcode, rsv: u8, mut bytes: Vec<u8>) -> (&'static str, String) {
    if matches!(opcode, Opcode::Text | Opcode::Continuation) && rsv == 0 {
        if let Err(error) = std::str::from_utf8(&bytes)
            && error.error_len().is_none()
            && opcode == Opcode::Text
        {
            // A character that is cut, by the limit or by the end of a fragment.
            bytes.truncate(error.valid_up_to());
        }
        match String::from_utf8(bytes) {
            Ok(text) => return ("payload", text),
            Err(error) => bytes = error.into_bytes(),
        }
    }
    ("payload_base64", data_encoding::BASE64.encode(&bytes))
}

/// Keeps an event for those that follow live frames.
fn offer(who: Subject<'_>, event: &Event<'_>, payload: Option<(&'static str, String)>) {
    let session = match who {
        Subject::Session(who) | Subject::Task(who, _) => Some(who),
        Subject::Probe(_) => None,
    };
    tap::keep(|| Noted {
        session: session.map(|who| who.id()),
        id: who.to_string(),
        route: session.map(|who| who.route_name().into()),
        client: session.map(|who| who.client()),
        what: describe(event),
        payload,
    });
}

/// The fields of an event: those of a frame, or a text.
fn describe(event: &Event<'_>) -> Map<String, Value> {
    let frame = |from: &str, to: &str, opcode: Opcode, length: u64, fin: bool| {
        json!({
            "from": from, "to": to, "opcode": opcode.to_string(), "length": length, "fin": fin,
        })
    };
    let fields = match *event {
        Event::Frame { to, head } => {
            frame(to.other().word(), to.word(), head.opcode, head.payload, head.fin)
        }
        Event::ClientFrame { head } => {
            frame("client", "gateway", head.opcode, head.payload, head.fin)
        }
        Event::Text { length, .. } => frame("gateway", "client", Opcode::Text, length as u64, true),
        Event::Chunk { length, .. } => frame("gateway", "client", Opcode::Binary, length, true),
        Event::Ping => frame("gateway", "client", Opcode::Ping, 0, true),
        _ => json!({ "text": event.to_string() }),
    };
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

impl Event<'_> {
    /// What a connection remembers of it; `None`: nothing, since it is a frame, or follows from the
    /// line `opened`.
    pub fn kept(&self) -> Option<Kept> {
        Some(match *self {
            Event::Connecting { address: Some(SocketAddr::V4(address)), .. } => {
                Kept::Connecting(address)
            }
            Event::Connected => Kept::Connected,
            Event::UpgradeRequest { .. } => Kept::UpgradeRequest,
            Event::BackendAnswer { status, .. } => Kept::BackendAnswer(status),
            Event::ClosePassed { to, code } => Kept::ClosePassed { to, code },
            Event::CloseSent { to, code, reason } => Kept::CloseSent { to, code, reason },
            Event::PingSent { to } => Kept::PingSent { to },
            Event::PongReceived { from } => Kept::PongReceived { from },
            Event::Connecting { .. }
            | Event::AttemptFailed { .. }
            | Event::BackendFailed { .. }
            | Event::Silent { .. }
            | Event::Stalled { .. }
            | Event::Ping
            | Event::Close { .. }
            | Event::ClientClose { .. }
            | Event::Command { .. }
            | Event::Published { .. }
            | Event::NotATask
            | Event::SpeechEnd { .. }
            | Event::SpeechError { .. }
            | Event::SentToWorker { .. } => {
                let line = self.to_string();
                Kept::Line(cut_at_char(&line, LINE_BYTES_MAX).into())
            }
            Event::Secured { .. }
            | Event::ProxyHeader { .. }
            | Event::Request { .. }
            | Event::Answer { .. }
            | Event::ForwardedRequest { .. }
            | Event::Forwarded(_)
            | Event::NoFile { .. }
            | Event::ProbeRequest
            | Event::Upgraded
            | Event::Frame { .. }
            | Event::Text { .. }
            | Event::Chunk { .. }
            | Event::ClientFrame { .. }
            | Event::SpeechChunk { .. } => return None,
        })
    }

    /// The target of its log line.
    fn target(&self) -> &'static str {
        match self {
            Event::Secured { .. } => "tls",
            Event::ProxyHeader { .. }
            | Event::Request { .. }
            | Event::Answer { .. }
            | Event::NoFile { .. }
            | Event::Forwarded(_) => "http",
            Event::Connecting { .. }
            | Event::Connected
            | Event::AttemptFailed { .. }
            | Event::BackendFailed { .. }
            | Event::UpgradeRequest { .. }
            | Event::ForwardedRequest { .. }
            | Event::ProbeRequest
            | Event::BackendAnswer { .. }
            | Event::Upgraded => "dial",
            Event::Frame { .. }
            | Event::ClosePassed { .. }
            | Event::CloseSent { .. }
            | Event::PingSent { .. }
            | Event::PongReceived { .. }
            | Event::Silent { .. }
            | Event::Stalled { .. } => "relay",
            Event::Text { .. }
            | Event::Chunk { .. }
            | Event::Ping
            | Event::Close { .. }
            | Event::ClientFrame { .. }
            | Event::ClientClose { .. } => "output",
            Event::Command { .. } | Event::Published { .. } | Event::NotATask => "inbox",
            Event::SpeechChunk { .. }
            | Event::SpeechEnd { .. }
            | Event::SpeechError { .. }
            | Event::SentToWorker { .. } => "ingest",
        }
    }
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Event::Secured { client } => write!(f, "= TLS is established client={client}"),
            Event::ProxyHeader { proxy, client } => {
                write!(f, "= PROXY header proxy={proxy} client={client}")
            }
            Event::Request { method, path, query, client } => {
                write!(f, "client>gateway {method} {path}{} client={client}", query.mark())
            }
            Event::Answer { status } => {
                write!(f, "gateway>client {status} {}", http::reason_phrase(status))
            }
            Event::NoFile { error, name } => {
                write!(f, "= no file why={} file={}", Quoted(error), Quoted(name))
            }
            Event::Connecting { backend, address } => {
                write!(f, "= connecting to backend {backend}{}", Optional(" at ", address))
            }
            Event::Connected => f.write_str("= connected to backend"),
            Event::AttemptFailed { what } => write!(f, "= attempt failed what={}", Quoted(what)),
            Event::BackendFailed { backend, error } => {
                write!(f, "= backend {backend} failed what={}{}", Quoted(error), error.cause())
            }
            Event::UpgradeRequest { request_id } => {
                write!(f, "gateway>backend upgrade request request_id={request_id}")
            }
            Event::ForwardedRequest { request_id } => {
                write!(f, "gateway>backend request request_id={request_id}")
            }
            Event::Forwarded(forwarded) => forwarded.fmt(f),
            Event::ProbeRequest => f.write_str("gateway>backend request of a probe"),
            Event::BackendAnswer { status, reason } => {
                write!(f, "backend>gateway {status} {reason}")
            }
            Event::Upgraded => f.write_str("gateway>client 101 Switching Protocols"),
            Event::Frame { to, head } => {
                write!(f, "{}>{} {}", to.other().word(), to.word(), Head(head))
            }
            Event::ClosePassed { to, code } => {
                write!(f, "= {} sent close code={}", to.other().word(), CodeText(code))
            }
            Event::CloseSent { to, code, reason } => {
                write!(f, "= sent close to {} code={code} reason={reason}", to.word())
            }
            Event::PingSent { to } => write!(f, "= pinged {}", to.word()),
            Event::PongReceived { from } => write!(f, "= {} answered our ping", from.word()),
            Event::Silent { side, silence } => {
                write!(f, "= {} has not answered for {silence:.3?}", side.word())
            }
            Event::Stalled { side } => {
                write!(f, "= {} takes nothing of what is held for it", side.word())
            }
            Event::Text { length, .. } => write!(f, "> text len={length}"),
            Event::Chunk { length, number, total } => {
                write!(f, "> binary len={length} chunk={number}/{}", OrUnknown(total))
            }
            Event::Ping => f.write_str("> ping"),
            Event::Close { code, phrase } => write!(f, "> close code={code} reason=\"{phrase}\""),
            Event::ClientFrame { head } => write!(f, "< {}", Head(head)),
            Event::ClientClose { code } => write!(f, "< close code={}", CodeText(code)),
            Event::Command { name, arguments } => {
                write!(f, "< {} arguments={arguments}", Word(name))
            }
            Event::Published { task, bytes } => write!(f, "= published task={task} len={bytes}"),
            Event::NotATask => f.write_str("= published to a channel that is no task's"),
            Event::SpeechChunk { task, seq, length } => {
                write!(f, "< chunk task={task}{} len={length}", Optional(" seq=", seq))
            }
            Event::SpeechEnd { task, is_final } => {
                write!(f, "< end task={task} final={is_final}")
            }
            Event::SpeechError { error } => write!(f, "> error error={}", Quoted(error)),
            Event::SentToWorker { action, task } => write!(f, "> {action} task={task}"),
        }
    }
}

/// A part of a line that may be absent, with what comes before it.
struct Optional<T>(&'static str, Option<T>);

impl<T: fmt::Display> fmt::Display for Optional<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.as_ref().map_or(Ok(()), |value| write!(f, "{}{value}", self.0))
    }
}

/// The head of a frame, as fields.
struct Head<'h>(&'h FrameHead);

impl fmt::Display for Head<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Head(head) = self;
        write!(f, "{} len={} fin={}", head.opcode, head.payload, head.fin)
    }
}

impl fmt::Display for Forwarded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "= request over method={} status=", self.method)?;
        match self.status {
            Some(status) => write!(f, "{status}")?,
            None => f.write_str("none")?,
        }
        if let Some(head_after) = self.head_after {
            write!(f, " head_after={}", Seconds(head_after))?;
        }
        let Forwarded { duration, request_bytes, response_bytes, .. } = self;
        let duration = Seconds(*duration);
        write!(
            f,
            " duration={duration} request_bytes={request_bytes} response_bytes={response_bytes}"
        )
    }
}

/// A number, or `?`.
struct OrUnknown(Option<u64>);

impl fmt::Display for OrUnknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => number.fmt(f),
            None => f.write_str("?"),
        }
    }
}

/// A word from outside, in quotes if it could be taken for something else.
struct Word<'w>(&'w str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            true => f.write_str(self.0),
            false => Quoted(self.0).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_text_where_they_can_be() {
        let field = |opcode, rsv, bytes: &[u8]| payload_field(opcode, rsv, bytes.to_vec());
        let text = |text: &str| ("payload", text.to_owned());
        let binary = |text: &str| ("payload_base64", text.to_owned());
        assert_eq!(field(Opcode::Text, 0, "声".as_bytes()), text("声"));
        assert_eq!(field(Opcode::Text, 0, b"a\xe5\xa3"), text("a"), "a character that is cut");
        assert_eq!(field(Opcode::Text, 0, b"a\xffb"), binary("Yf9i"));
        assert_eq!(field(Opcode::Text, 4, b"ab"), binary("YWI="), "it is compressed");
        assert_eq!(field(Opcode::Continuation, 0, b"ab"), text("ab"));
        assert_eq!(field(Opcode::Continuation, 0, b"a\xe5"), binary("YeU="));
        assert_eq!(field(Opcode::Binary, 0, b"ab"), binary("YWI="));
    }

    /// `docs/operations.md` shows these lines, and people search logs for them.
    #[test]
    fn lines_stay_as_they_are_documented() {
        let head = FrameHead { fin: false, payload: 5, ..FrameHead::of_message(Opcode::Text, 5) };
        let client = Client::Peer(std::net::SocketAddr::from(([192, 0, 2, 7], 5000)).into());
        let silence = Duration::from_millis(40_001);
        let (status, head_after) = (Some(201), Some(Duration::from_millis(500)));
        #[rustfmt::skip]
        let forwarded = Forwarded { method: "PUT", status, head_after, duration: silence, request_bytes: 5, response_bytes: 6 };
        use Side::{Downstream, Upstream};
        #[rustfmt::skip]
        let cases = [
            (Event::Secured { client }, "tls", "= TLS is established client=192.0.2.7:5000"),
            (Event::ProxyHeader { proxy: Peer::Unix, client }, "http",
             "= PROXY header proxy=unix client=192.0.2.7:5000"),
            (Event::Request { method: "GET", path: "/ws", query: Query::Present, client },
             "http", "client>gateway GET /ws?… client=192.0.2.7:5000"),
            (Event::Request { method: "GET", path: "/", query: Query::Absent, client },
             "http", "client>gateway GET / client=192.0.2.7:5000"),
            (Event::Answer { status: 404 }, "http", "gateway>client 404 Not Found"),
            (Event::Connecting { backend: "ws+unix:///a:/", address: None },
             "dial", "= connecting to backend ws+unix:///a:/"),
            (Event::Connecting { backend: "ws://b/", address: Some(SocketAddr::from(([192, 0, 2, 1], 1))) },
             "dial", "= connecting to backend ws://b/ at 192.0.2.1:1"),
            (Event::Connected, "dial", "= connected to backend"),
            (Event::AttemptFailed { what: &"no route to it" },
             "dial", "= attempt failed what=\"no route to it\""),
            (Event::BackendFailed { backend: "ws://b/", error: AttemptError::Refused },
             "dial", "= backend ws://b/ failed what=\"connection refused\""),
            (Event::UpgradeRequest { request_id: "r" },
             "dial", "gateway>backend upgrade request request_id=r"),
            (Event::ForwardedRequest { request_id: "r" },
             "dial", "gateway>backend request request_id=r"),
            (Event::Forwarded(forwarded), "http",
             "= request over method=PUT status=201 head_after=0.500s duration=40.001s request_bytes=5 response_bytes=6"),
            (Event::Forwarded(Forwarded { status: None, head_after: None, ..forwarded }), "http",
             "= request over method=PUT status=none duration=40.001s request_bytes=5 response_bytes=6"),
            (Event::ProbeRequest, "dial", "gateway>backend request of a probe"),
            (Event::BackendAnswer { status: 101, reason: "OK" }, "dial", "backend>gateway 101 OK"),
            (Event::Upgraded, "dial", "gateway>client 101 Switching Protocols"),
            (Event::Frame { to: Upstream, head: &head },
             "relay", "client>backend text len=5 fin=false"),
            (Event::ClosePassed { to: Upstream, code: None },
             "relay", "= client sent close code=none"),
            (Event::CloseSent { to: Downstream, code: 1011, reason: CloseReason::BackendVanished },
             "relay", "= sent close to client code=1011 reason=backend_vanished"),
            (Event::PingSent { to: Upstream }, "relay", "= pinged backend"),
            (Event::PongReceived { from: Upstream }, "relay", "= backend answered our ping"),
            (Event::Silent { side: Downstream, silence },
             "relay", "= client has not answered for 40.001s"),
            (Event::Stalled { side: Upstream },
             "relay", "= backend takes nothing of what is held for it"),
            (Event::Text { length: 9, text: None }, "output", "> text len=9"),
            (Event::Chunk { length: 9, number: 1, total: Some(2) },
             "output", "> binary len=9 chunk=1/2"),
            (Event::Chunk { length: 9, number: 1, total: None },
             "output", "> binary len=9 chunk=1/?"),
            (Event::Ping, "output", "> ping"),
            (Event::Close { code: 1000, phrase: "done" },
             "output", "> close code=1000 reason=\"done\""),
            (Event::ClientFrame { head: &head }, "output", "< text len=5 fin=false"),
            (Event::ClientClose { code: Some(1000) }, "output", "< close code=1000"),
            (Event::Command { name: "PUBLISH", arguments: 2 }, "inbox", "< PUBLISH arguments=2"),
            (Event::Command { name: "A task=x", arguments: 0 }, "inbox",
             "< \"A task=x\" arguments=0"),
            (Event::Published { task: uuid::Uuid::nil(), bytes: 5 }, "inbox",
             "= published task=00000000-0000-0000-0000-000000000000 len=5"),
            (Event::NotATask, "inbox", "= published to a channel that is no task's"),
            (Event::SpeechChunk { task: uuid::Uuid::nil(), seq: Some(3), length: 5 }, "ingest",
             "< chunk task=00000000-0000-0000-0000-000000000000 seq=3 len=5"),
            (Event::SpeechChunk { task: uuid::Uuid::nil(), seq: None, length: 5 }, "ingest",
             "< chunk task=00000000-0000-0000-0000-000000000000 len=5"),
            (Event::SpeechEnd { task: uuid::Uuid::nil(), is_final: true }, "ingest",
             "< end task=00000000-0000-0000-0000-000000000000 final=true"),
            (Event::SpeechError { error: "a \"b" }, "ingest", "> error error=\"a \\\"b\""),
            (Event::SentToWorker { action: "STOP", task: uuid::Uuid::nil() }, "ingest",
             "> STOP task=00000000-0000-0000-0000-000000000000"),
        ];
        for (event, target, line) in cases {
            assert_eq!((event.target(), event.to_string().as_str()), (target, line));
        }
    }

    #[test]
    fn a_shortage_of_this_machine_is_named_as_the_system_names_it() {
        for (errno, why) in [
            (libc::EMFILE, "Too many open files (os error 24)"),
            (libc::ENFILE, "Too many open files in system (os error 23)"),
            (libc::EADDRNOTAVAIL, "Cannot assign requested address (os error 99)"),
        ] {
            let error = AttemptError::Local { errno };
            let line = Event::BackendFailed { backend: "ws://b/", error }.to_string();
            let expected = format!(
                "= backend ws://b/ failed what=\"the gateway is out of resources\" why=\"{why}\""
            );
            assert_eq!(line, expected);
        }
    }

    #[test]
    fn a_missing_file_is_named_with_the_reason() {
        let event = Event::NoFile { error: OpenError::NotFound, name: "a \"b" };
        assert_eq!(event.to_string(), "= no file why=\"not found\" file=\"a \\\"b\"");
        assert_eq!(event.target(), "http");
    }
}
