//! The Redis protocol (RESP2 and RESP3) without its sockets, as a client and as a server.
//!
//! As a client of Redis: the `redis` crate packs commands ([`pack`]) and parses replies
//! ([`Decoder`]), and [`classify`] separates published messages from replies. As the embedded
//! inbox, which is a server: [`CommandReader`] reads commands and [`RespReply`] writes replies.
//!
//! In RESP2 a published message and an ordinary array look alike, and only the connection tells
//! them apart; in RESP3 a message is a push. A parser that waits for the rest of a value holds what
//! came so far. So a peer that announces a gigabyte is limited by the bytes that it may send before
//! a value is complete, not by the announcement, which allocates nothing.

#![expect(
    clippy::indexing_slicing,
    reason = "positions come from a search in the same bytes, or are checked against their length before"
)]

mod extent;
mod glob;

pub use glob::matches_glob;

use extent::Extent;
use std::fmt;
use std::io::{self, Read};

use redis::{Parser, PushKind, Value};

/// Appends a command to `out`.
pub fn pack(out: &mut Vec<u8>, arguments: &[&[u8]]) {
    let mut command = redis::Cmd::new();
    for argument in arguments {
        command.arg(*argument);
    }
    command.write_packed_command(out);
}

/// Decodes replies that arrive in pieces. Each connection needs a new one, also after an error.
pub struct Decoder {
    parser: Parser,
    /// Bytes of the largest value that this parser has had. Its buffer never shrinks.
    parser_bytes: usize,
    extent: Extent,
    /// Bytes of the current value so far.
    unfinished: usize,
    unfinished_max: usize,
}

/// A parser that had a larger value is replaced behind it.
const PARSER_BYTES_MAX: usize = 64 * 1024;

/// The server broke its protocol: the connection cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum ReplyError {
    /// A value of more than this many bytes.
    TooLarge { bytes_max: usize },
    /// Bytes that are not RESP. They are not quoted, as they may be a result's payload.
    NotResp,
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplyError::TooLarge { bytes_max } => {
                write!(f, "a value of more than {bytes_max} bytes")
            }
            ReplyError::NotResp => f.write_str("bytes that are not the Redis protocol"),
        }
    }
}

impl Decoder {
    /// A decoder for values of at most `unfinished_max` bytes.
    pub fn new(unfinished_max: usize) -> Decoder {
        Decoder {
            parser: Parser::new(),
            parser_bytes: 0,
            extent: Extent::new(),
            unfinished: 0,
            unfinished_max,
        }
    }

    /// Bytes in memory. The parser's buffer doubles when it grows.
    pub fn held_bytes(&self) -> usize {
        self.parser_bytes.next_power_of_two()
    }

    /// The next value, with its bytes removed from the front of `input`. `Ok(None)`: all of `input`
    /// was taken and the value is not complete. Call it until it returns that.
    ///
    /// # Errors
    /// See [`ReplyError`]. A value may exceed the limit by one piece of input.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Value>, ReplyError> {
        let (taken, is_whole) = self.extent.advance(input);
        let (mut piece, behind) = input.split_at(taken);
        *input = behind;
        self.unfinished += taken;
        self.parser_bytes = self.parser_bytes.max(self.unfinished);
        match self.parser.parse_value(PartialInput(&mut piece)) {
            Ok(value) if is_whole && piece.is_empty() => {
                self.unfinished = 0;
                if self.parser_bytes > PARSER_BYTES_MAX {
                    (self.parser, self.parser_bytes) = (Parser::new(), 0);
                }
                Ok(Some(value))
            }
            Err(error) if error.is_timeout() && !is_whole => {
                if self.unfinished > self.unfinished_max {
                    return Err(ReplyError::TooLarge { bytes_max: self.unfinished_max });
                }
                Ok(None)
            }
            // The parser's own message quotes the bytes.
            _ => Err(ReplyError::NotResp),
        }
    }
}

/// A value from Redis, by what it is about.
#[derive(Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum Incoming {
    /// A publication.
    Message { channel: Vec<u8>, payload: Vec<u8> },
    /// A subscription has begun. `name` is the channel or the pattern, as it was sent.
    Subscribed { name: Vec<u8> },
    /// A subscription has ended.
    Unsubscribed { name: Vec<u8> },
    /// The reply to the oldest command without one.
    Reply(Value),
    /// A push about something else, such as cache invalidation.
    Other,
}

/// Says what a value is about. `is_subscriber`: the connection subscribes to channels. Only such a
/// connection receives messages as plain arrays (RESP2); on any other one an array is a reply.
pub fn classify(value: Value, is_subscriber: bool) -> Incoming {
    match value {
        Value::Push { kind, data } => {
            let name = match kind {
                PushKind::Message => "message",
                PushKind::PMessage => "pmessage",
                PushKind::Subscribe | PushKind::PSubscribe => "subscribe",
                PushKind::Unsubscribe | PushKind::PUnsubscribe => "unsubscribe",
                _ => return Incoming::Other,
            };
            published(name.as_bytes(), data.into_iter())
        }
        Value::Array(items) if is_subscriber && is_published(&items) => {
            let mut items = items.into_iter();
            let name = bytes(items.next()).unwrap_or_default();
            published(&name, items)
        }
        Value::Attribute { data, .. } => classify(*data, is_subscriber),
        reply => Incoming::Reply(reply),
    }
}

/// The bytes of a string of any kind.
pub fn bytes(value: Option<Value>) -> Option<Vec<u8>> {
    match value? {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.into_bytes()),
        Value::Okay => Some(b"OK".to_vec()),
        _ => None,
    }
}

/// A pattern that matches exactly the channels which begin with `prefix`.
pub fn pattern_for_prefix(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for letter in prefix.chars() {
        if matches!(letter, '*' | '?' | '[' | ']' | '\\' | '^') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern.push('*');
    pattern
}

/// Reads a worker's commands, which arrive in pieces: arrays of bulk strings, as every client
/// library sends them, and plain lines, as a person types them into `nc`. Owns no memory between
/// commands.
pub struct CommandReader {
    state: CommandState,
    arguments: Vec<Vec<u8>>,
    /// Bytes of the current command so far.
    size: usize,
    size_max: usize,
}

/// Counts are of the arguments to come, the current one included.
enum CommandState {
    /// In the first line of a command.
    Start { line: Vec<u8> },
    /// In the line with the next argument's length.
    Length { count: usize, line: Vec<u8> },
    /// In an argument that lacks `missing` bytes.
    Argument { count: usize, missing: usize, argument: Vec<u8> },
    /// In the line end behind an argument.
    LineEnd { count: usize, line: Vec<u8> },
}

/// What is wrong with a command. The reply is `-ERR Protocol error: …`, and the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The count of arguments is not a number, or over 1024.
    ArgumentCount,
    /// An argument does not begin with `$`.
    ArgumentStart,
    /// The length of an argument is not a number, or the command is too large.
    ArgumentLength,
    /// No line end follows an argument.
    ArgumentEnd,
    /// A line of more than 64 KiB.
    LineTooLong,
    /// A quote without its partner in a typed line.
    Quotes,
    /// An HTTP request. A web page can make a browser send one, with commands in its body.
    Http,
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CommandError::ArgumentCount => "invalid multibulk length",
            CommandError::ArgumentStart => "expected '$'",
            CommandError::ArgumentLength => "invalid bulk length",
            CommandError::ArgumentEnd => "an argument is longer than announced",
            CommandError::LineTooLong => "too big inline request",
            CommandError::Quotes => "unbalanced quotes in request",
            CommandError::Http => "this is not an HTTP server",
        })
    }
}

/// The longest line, in bytes: a typed command, or a length.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// The most arguments of a command. No command of the inbox takes more than a few.
const ARGUMENTS_MAX: usize = 1024;

impl CommandReader {
    /// A reader of commands of at most `size_max` bytes.
    pub fn new(size_max: usize) -> CommandReader {
        CommandReader {
            state: CommandState::Start { line: Vec::new() },
            arguments: Vec::new(),
            size: 0,
            size_max,
        }
    }

    /// Reads commands of at most `size_max` bytes from the next argument on.
    pub fn set_size_max(&mut self, size_max: usize) {
        self.size_max = size_max;
    }

    /// Whether no command has begun.
    pub fn is_idle(&self) -> bool {
        matches!(&self.state, CommandState::Start { line } if line.is_empty())
    }

    /// Bytes in memory of a command that is not complete.
    pub fn held_bytes(&self) -> usize {
        let current = match &self.state {
            CommandState::Start { line }
            | CommandState::Length { line, .. }
            | CommandState::LineEnd { line, .. } => line.capacity(),
            CommandState::Argument { argument, .. } => argument.capacity(),
        };
        self.arguments.iter().map(Vec::capacity).sum::<usize>() + current
    }

    /// The next command, its name first; never empty. Its bytes are removed from the front of
    /// `input`. `Ok(None)`: all of `input` was taken and the command is not complete. Call it until
    /// it returns that.
    ///
    /// # Errors
    /// See [`CommandError`]; nothing more can be read.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Vec<Vec<u8>>>, CommandError> {
        loop {
            match &mut self.state {
                CommandState::Start { line } => {
                    let Some(line) = take_line(input, line)? else { return Ok(None) };
                    if let Some(count) = line.strip_prefix(b"*") {
                        self.start_array(count)?;
                        continue;
                    }
                    let arguments = split(&line)?;
                    let Some(name) = arguments.first() else { continue };
                    if is_http(name) {
                        return Err(CommandError::Http);
                    }
                    return Ok(Some(arguments));
                }
                CommandState::Length { count, line } => {
                    let count = *count;
                    let Some(line) = take_line(input, line)? else { return Ok(None) };
                    let missing = self.argument_length(&line)?;
                    self.state = CommandState::Argument { count, missing, argument: Vec::new() };
                }
                CommandState::Argument { count, missing, argument } => {
                    let taken = input.len().min(*missing);
                    argument.extend_from_slice(&input[..taken]);
                    *input = &input[taken..];
                    *missing -= taken;
                    if *missing > 0 {
                        return Ok(None);
                    }
                    self.arguments.push(std::mem::take(argument));
                    self.state = CommandState::LineEnd { count: *count - 1, line: Vec::new() };
                }
                CommandState::LineEnd { count, line } => {
                    let count = *count;
                    let Some(line) = take_line(input, line)? else { return Ok(None) };
                    if !line.is_empty() {
                        return Err(CommandError::ArgumentEnd);
                    }
                    if count > 0 {
                        self.state = CommandState::Length { count, line: Vec::new() };
                        continue;
                    }
                    self.state = CommandState::Start { line: Vec::new() };
                    self.size = 0;
                    let arguments = std::mem::take(&mut self.arguments);
                    if arguments.first().is_some_and(|name| is_http(name)) {
                        return Err(CommandError::Http);
                    }
                    return Ok(Some(arguments));
                }
            }
        }
    }

    /// The first line announced an array. Redis ignores an empty one, and one of negative length.
    fn start_array(&mut self, count: &[u8]) -> Result<(), CommandError> {
        match number(count) {
            Some(count) if count <= 0 => {}
            Some(count) if count <= ARGUMENTS_MAX as i64 => {
                self.state = CommandState::Length { count: count as usize, line: Vec::new() };
            }
            _ => return Err(CommandError::ArgumentCount),
        }
        Ok(())
    }

    fn argument_length(&mut self, line: &[u8]) -> Result<usize, CommandError> {
        let length = line.strip_prefix(b"$").ok_or(CommandError::ArgumentStart)?;
        let length = number(length).and_then(|length| usize::try_from(length).ok());
        // Checked before the argument comes, so that no memory is taken for one that is too large.
        self.size = self.size.saturating_add(length.unwrap_or(usize::MAX));
        length.filter(|_| self.size <= self.size_max).ok_or(CommandError::ArgumentLength)
    }
}

/// The version of the protocol that a peer asked for with `HELLO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Protocol {
    #[default]
    Resp2,
    Resp3,
}

/// A reply of the inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum RespReply<'a> {
    Simple(&'a str),
    /// Begins with a code: `ERR unknown command`.
    Error(&'a str),
    Integer(i64),
    Bulk(&'a [u8]),
    Null,
    Array(Vec<RespReply<'a>>),
    /// A flat array in RESP2.
    Map(Vec<(RespReply<'a>, RespReply<'a>)>),
    /// An array in RESP2.
    Push(Vec<RespReply<'a>>),
}

impl RespReply<'_> {
    /// Appends the reply to `out`. Line ends in simple strings and errors become spaces.
    pub fn write(&self, protocol: Protocol, out: &mut Vec<u8>) {
        let line = |out: &mut Vec<u8>, mark: u8, text: &str| {
            out.push(mark);
            out.extend(
                text.bytes().map(|byte| if byte == b'\r' || byte == b'\n' { b' ' } else { byte }),
            );
            out.extend_from_slice(b"\r\n");
        };
        match self {
            RespReply::Simple(text) => line(out, b'+', text),
            RespReply::Error(text) => line(out, b'-', text),
            RespReply::Integer(value) => line(out, b':', &value.to_string()),
            RespReply::Bulk(bytes) => {
                line(out, b'$', &bytes.len().to_string());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            RespReply::Null if protocol == Protocol::Resp3 => line(out, b'_', ""),
            RespReply::Null => line(out, b'$', "-1"),
            RespReply::Array(items) => {
                line(out, b'*', &items.len().to_string());
                items.iter().for_each(|item| item.write(protocol, out));
            }
            RespReply::Push(items) => {
                let mark = if protocol == Protocol::Resp3 { b'>' } else { b'*' };
                line(out, mark, &items.len().to_string());
                items.iter().for_each(|item| item.write(protocol, out));
            }
            RespReply::Map(pairs) => {
                match protocol {
                    Protocol::Resp2 => line(out, b'*', &(pairs.len() * 2).to_string()),
                    Protocol::Resp3 => line(out, b'%', &pairs.len().to_string()),
                }
                for (name, value) in pairs {
                    name.write(protocol, out);
                    value.write(protocol, out);
                }
            }
        }
    }
}

/// Bytes that have arrived. Behind them a read would block; it does not find an end.
struct PartialInput<'a, 'b>(&'a mut &'b [u8]);

impl Read for PartialInput<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.read(buf)
    }
}

/// What a message of the kind `name` says with the `items` behind that.
fn published(name: &[u8], mut items: impl Iterator<Item = Value>) -> Incoming {
    let incoming = match name {
        b"message" => message(items.next(), items.next()),
        // The pattern comes first.
        b"pmessage" => message(items.nth(1), items.next()),
        b"subscribe" | b"psubscribe" => {
            bytes(items.next()).map(|name| Incoming::Subscribed { name })
        }
        _ => bytes(items.next()).map(|name| Incoming::Unsubscribed { name }),
    };
    incoming.unwrap_or(Incoming::Other)
}

fn message(channel: Option<Value>, payload: Option<Value>) -> Option<Incoming> {
    Some(Incoming::Message { channel: bytes(channel)?, payload: bytes(payload)? })
}

fn is_published(items: &[Value]) -> bool {
    matches!(items.first(), Some(Value::BulkString(kind)) if matches!(
        kind.as_slice(),
        b"message" | b"pmessage" | b"subscribe" | b"psubscribe" | b"unsubscribe" | b"punsubscribe"
    ))
}

/// Moves bytes up to a line end from `input` to `line`. Returns the line without its end once it is
/// complete.
fn take_line(input: &mut &[u8], line: &mut Vec<u8>) -> Result<Option<Vec<u8>>, CommandError> {
    let end = memchr::memchr(b'\n', input);
    let taken = end.unwrap_or(input.len());
    if line.len() + taken > LINE_BYTES_MAX {
        return Err(CommandError::LineTooLong);
    }
    line.extend_from_slice(&input[..taken]);
    *input = &input[end.map_or(taken, |end| end + 1)..];
    if end.is_none() {
        return Ok(None);
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(Some(std::mem::take(line)))
}

/// Whether a command's name is the beginning of an HTTP request, or the header that each has.
fn is_http(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:")
}

fn number(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Splits a typed line into words, with the quotes and escapes of `redis-cli`.
fn split(line: &[u8]) -> Result<Vec<Vec<u8>>, CommandError> {
    let is_blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0;
    let mut words = Vec::new();
    let mut rest = line.iter().copied().peekable();
    loop {
        while rest.next_if(is_blank).is_some() {}
        if rest.peek().is_none() {
            return Ok(words);
        }
        let mut word = Vec::new();
        while let Some(byte) = rest.next_if(|byte| !is_blank(byte)) {
            if byte != b'"' && byte != b'\'' {
                word.push(byte);
                continue;
            }
            loop {
                match rest.next().ok_or(CommandError::Quotes)? {
                    end if end == byte => break,
                    b'\\' if byte == b'"' => {
                        word.push(escaped(&mut rest).ok_or(CommandError::Quotes)?)
                    }
                    b'\\' if rest.next_if_eq(&b'\'').is_some() => word.push(b'\''),
                    plain => word.push(plain),
                }
            }
            if rest.peek().is_some_and(|next| !is_blank(next)) {
                return Err(CommandError::Quotes);
            }
        }
        words.push(word);
    }
}

/// The byte that the characters behind a backslash mean, between double quotes.
fn escaped(rest: &mut std::iter::Peekable<impl Iterator<Item = u8> + Clone>) -> Option<u8> {
    Some(match rest.next()? {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        b'x' => {
            let mut ahead = rest.clone().map(|byte| char::from(byte).to_digit(16));
            match (ahead.next().flatten(), ahead.next().flatten()) {
                (Some(high), Some(low)) => {
                    rest.nth(1);
                    (high * 16 + low) as u8
                }
                _ => b'x',
            }
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that comes out when `stream` arrives in pieces that end at `cuts`.
    fn decoded(stream: &[u8], cuts: &[usize]) -> Vec<Value> {
        let mut decoder = Decoder::new(1 << 20);
        let mut values = Vec::new();
        for piece in pieces(stream, cuts) {
            let mut input = piece;
            while let Some(value) = decoder.decode(&mut input).unwrap() {
                values.push(value);
            }
            assert!(input.is_empty());
        }
        values
    }

    fn pieces<'a>(stream: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        let mut from = 0;
        for &cut in cuts.iter().chain([&stream.len()]) {
            pieces.push(&stream[from..cut]);
            from = cut;
        }
        pieces
    }

    #[test]
    fn replies_are_the_same_wherever_the_stream_is_cut() {
        let stream = b"+OK\r\n:42\r\n$-1\r\n$5\r\na\r\nbc\r\n*0\r\n*2\r\n$1\r\nx\r\n*1\r\n:-1\r\n-ERR no\r\n_\r\n#t\r\n%1\r\n+a\r\n:1\r\n\
            >4\r\n$8\r\npmessage\r\n$2\r\np*\r\n$2\r\npc\r\n$0\r\n\r\n=6\r\ntxt:hi\r\n+PONG\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n";
        let whole = decoded(stream, &[]);
        assert_eq!(whole.len(), 14);
        for cut in 0..=stream.len() {
            assert_eq!(decoded(stream, &[cut]), whole, "cut at {cut}");
        }
        let every: Vec<usize> = (1..stream.len()).collect();
        assert_eq!(decoded(stream, &every), whole);
    }

    #[test]
    fn unfinished_value_is_bounded() {
        let mut decoder = Decoder::new(1000);
        let mut input: &[u8] = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$999999999999\r\n";
        assert_eq!(decoder.decode(&mut input), Ok(None));
        let filler = [b'x'; 100];
        let outcome: Result<Vec<_>, _> =
            (0..20).map(|_| decoder.decode(&mut &filler[..])).collect();
        assert_eq!(outcome, Err(ReplyError::TooLarge { bytes_max: 1000 }));
    }

    #[test]
    fn memory_of_a_large_value_is_given_back_behind_it() {
        let mut decoder = Decoder::new(4 << 20);
        let text = "x".repeat(3 << 20);
        let stream = format!("+OK\r\n${}\r\n{text}\r\n*2\r\n:1\r\n+rest", text.len());
        let mut values = Vec::new();
        let mut held_max = 0;
        for mut piece in stream.as_bytes().chunks(60_000) {
            while let Some(value) = decoder.decode(&mut piece).unwrap() {
                values.push(value);
            }
            held_max = held_max.max(decoder.held_bytes());
        }
        assert!(held_max >= text.len(), "{held_max}");
        assert!(decoder.held_bytes() < 1024, "{}", decoder.held_bytes());
        assert_eq!(
            decoder.decode(&mut &b"\r\n"[..]).unwrap().map(|value| values.push(value)),
            Some(())
        );
        assert_eq!(values[1], Value::BulkString(text.into_bytes()));
        assert_eq!(
            values[2],
            Value::Array(vec![Value::Int(1), Value::SimpleString("rest".into())])
        );
    }

    #[test]
    fn number_of_finished_values_is_not_limited() {
        let mut decoder = Decoder::new(100);
        let stream = b"$50\r\naaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(1000);
        let count = stream.chunks(33).map(|mut piece| {
            let mut count = 0;
            while decoder.decode(&mut piece).unwrap().is_some() {
                count += 1;
            }
            count
        });
        assert_eq!(count.sum::<usize>(), 1000);
    }

    #[test]
    fn bytes_that_are_not_resp_are_refused_without_being_quoted() {
        for nonsense in [
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            b"$x\r\n",
            b"*1\r\n?secret\r\n",
            b"$1\r\nabc\r\n",
        ] {
            let mut decoder = Decoder::new(1000);
            assert_eq!(decoder.decode(&mut &nonsense[..]), Err(ReplyError::NotResp));
        }
    }

    #[test]
    fn messages_and_replies_are_classified() {
        let one =
            |stream: &[u8], is_listening| classify(decoded(stream, &[]).remove(0), is_listening);
        let heard = Incoming::Message { channel: b"ch".to_vec(), payload: b"\0\xff".to_vec() };
        assert_eq!(one(b"*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$2\r\n\0\xff\r\n", true), heard);
        assert_eq!(
            one(b"*4\r\n$8\r\npmessage\r\n$2\r\nc*\r\n$2\r\nch\r\n$2\r\n\0\xff\r\n", true),
            heard
        );
        for is_listening in [true, false] {
            assert_eq!(
                one(b">3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$2\r\n\0\xff\r\n", is_listening),
                heard
            );
            assert_eq!(
                one(
                    b">4\r\n$8\r\npmessage\r\n$2\r\nc*\r\n$2\r\nch\r\n$2\r\n\0\xff\r\n",
                    is_listening
                ),
                heard
            );
            assert_eq!(one(b">2\r\n$10\r\ninvalidate\r\n*0\r\n", is_listening), Incoming::Other);
            assert!(matches!(
                one(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", is_listening),
                Incoming::Reply(_)
            ));
            assert!(matches!(one(b"+PONG\r\n", is_listening), Incoming::Reply(_)));
            assert!(matches!(one(b"*0\r\n", is_listening), Incoming::Reply(_)));
        }
        assert!(matches!(
            one(b"*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$1\r\nm\r\n", false),
            Incoming::Reply(_)
        ));
        assert_eq!(
            one(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n", true),
            Incoming::Subscribed { name: b"c".to_vec() }
        );
        assert_eq!(
            one(b">3\r\n+psubscribe\r\n$2\r\nc*\r\n:1\r\n", true),
            Incoming::Subscribed { name: b"c*".to_vec() }
        );
        assert_eq!(
            one(b"*3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n", true),
            Incoming::Unsubscribed { name: b"c".to_vec() }
        );
        assert_eq!(
            one(b">3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n", true),
            Incoming::Unsubscribed { name: b"c".to_vec() }
        );
        assert_eq!(one(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n:1\r\n", true), Incoming::Other);
    }

    #[test]
    fn pattern_matches_the_prefix_only() {
        assert_eq!(pattern_for_prefix("task_response:"), "task_response:*");
        assert_eq!(pattern_for_prefix("a*b?[c]\\^:"), r"a\*b\?\[c\]\\\^:*");
    }

    #[test]
    fn packed_commands_can_be_read() {
        let mut stream = Vec::new();
        pack(&mut stream, &[b"PUBLISH", b"c", b"\r\n\0$5"]);
        pack(&mut stream, &[b"PING"]);
        assert_eq!(
            requests(&stream, &[]),
            [vec![&b"PUBLISH"[..], b"c", b"\r\n\0$5"], vec![b"PING"]]
        );
    }

    fn requests(stream: &[u8], cuts: &[usize]) -> Vec<Vec<Vec<u8>>> {
        let mut requests = CommandReader::new(1 << 20);
        let mut all = Vec::new();
        for piece in pieces(stream, cuts) {
            let mut input = piece;
            while let Some(request) = requests.decode(&mut input).unwrap() {
                all.push(request);
            }
            assert!(input.is_empty());
        }
        assert!(
            matches!(&requests.state, CommandState::Start { line } if line.capacity() == 0),
            "memory is held between commands"
        );
        all
    }

    #[test]
    fn commands_are_the_same_wherever_the_stream_is_cut() {
        let stream = b"*1\r\n$4\r\nPING\r\n*3\r\n$7\r\nPUBLISH\r\n$2\r\nch\r\n$4\r\n\r\n\r\n\r\n*0\r\n*-1\r\n\r\nPING\r\nPING\n  ECHO  \"a b\\x41\\n\\q\" 'c\\'d \"' e\r\n*2\r\n$0\r\n\r\n$1\r\nx\r\n";
        let whole = requests(stream, &[]);
        let expected: [Vec<&[u8]>; 6] = [
            vec![b"PING"],
            vec![b"PUBLISH", b"ch", b"\r\n\r\n"],
            vec![b"PING"],
            vec![b"PING"],
            vec![b"ECHO", b"a bA\nq", b"c'd \"", b"e"],
            vec![b"", b"x"],
        ];
        assert_eq!(whole, expected);
        for cut in 0..=stream.len() {
            assert_eq!(requests(stream, &[cut]), whole, "cut at {cut}");
        }
        let every: Vec<usize> = (1..stream.len()).collect();
        assert_eq!(requests(stream, &every), whole);
    }

    #[test]
    fn malformed_commands_are_refused() {
        for (stream, why) in [
            (&b"*1025\r\n"[..], CommandError::ArgumentCount),
            (b"*x\r\n", CommandError::ArgumentCount),
            (b"*1\r\n:1\r\n", CommandError::ArgumentStart),
            (b"*1\r\n$-1\r\n", CommandError::ArgumentLength),
            (b"*1\r\n$101\r\n", CommandError::ArgumentLength),
            (b"*1\r\n$99999999999999999999\r\n", CommandError::ArgumentLength),
            (
                b"*2\r\n$60\r\n123456789012345678901234567890123456789012345678901234567890\r\n$60\r\n",
                CommandError::ArgumentLength,
            ),
            (b"*1\r\n$1\r\nabc\r\n", CommandError::ArgumentEnd),
            (b"ECHO \"a\r\n", CommandError::Quotes),
            (b"ECHO \"a\"b\r\n", CommandError::Quotes),
            (b"ECHO 'a\r\n", CommandError::Quotes),
            (b"ECHO \"a\\", CommandError::Quotes),
            (b"POST / HTTP/1.1\r\n", CommandError::Http),
            (b"Host: x\r\n", CommandError::Http),
        ] {
            let stream = [stream, b"\r\n"].concat();
            assert_eq!(CommandReader::new(100).decode(&mut &stream[..]), Err(why), "{}", stream.escape_ascii());
        }
        let line = vec![b'x'; LINE_BYTES_MAX + 1];
        assert_eq!(CommandReader::new(100).decode(&mut &line[..]), Err(CommandError::LineTooLong));
    }

    #[test]
    fn size_limit_is_per_command() {
        let stream =
            b"*1\r\n$60\r\n123456789012345678901234567890123456789012345678901234567890\r\n"
                .repeat(3);
        let mut requests = CommandReader::new(100);
        let mut input = &stream[..];
        assert_eq!(std::iter::from_fn(|| requests.decode(&mut input).unwrap()).count(), 3);
    }

    #[test]
    fn replies_are_written_in_resp2_and_resp3() {
        let answer = RespReply::Array(vec![
            RespReply::Simple("O\r\nK"),
            RespReply::Error("ERR no"),
            RespReply::Integer(-3),
            RespReply::Bulk(b"\r\n"),
            RespReply::Null,
            RespReply::Map(vec![(RespReply::Bulk(b"a"), RespReply::Integer(1))]),
        ]);
        let mut out = Vec::new();
        answer.write(Protocol::Resp2, &mut out);
        assert_eq!(
            out.escape_ascii().to_string(),
            b"*6\r\n+O  K\r\n-ERR no\r\n:-3\r\n$2\r\n\r\n\r\n$-1\r\n*2\r\n$1\r\na\r\n:1\r\n"
                .escape_ascii()
                .to_string()
        );
        out.clear();
        answer.write(Protocol::Resp3, &mut out);
        assert_eq!(
            out.escape_ascii().to_string(),
            b"*6\r\n+O  K\r\n-ERR no\r\n:-3\r\n$2\r\n\r\n\r\n_\r\n%1\r\n$1\r\na\r\n:1\r\n"
                .escape_ascii()
                .to_string()
        );
        assert_eq!(decoded(&out, &[]).len(), 1);
    }
}
