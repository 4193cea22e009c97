//! `aivtuber-gateway tap`: follows live frames of a running gateway, by its `/events/frames`.

use std::io::{BufRead, BufReader, Write};

use serde_json::Value;

use crate::healthcheck::{self, Place};

/// How lines are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// For people, on a terminal.
    Coloured,
    /// For people.
    Plain,
    /// For programs: one JSON object a line.
    Json,
}

/// The longest line that is read from the gateway, in bytes.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// Follows until the gateway ends the stream or `out` takes no more.
///
/// # Errors
/// A sentence, if the gateway cannot be followed.
pub fn follow(
    place: &Place,
    filters: &[(&str, String)],
    style: Style,
    out: &mut dyn Write,
) -> Result<(), String> {
    let listen = &place.listen;
    let failed = |error: std::io::Error| format!("no gateway answers at {listen}: {error}");
    let (host, mut stream) = healthcheck::connect(place, None).map_err(failed)?;
    let query: Vec<_> =
        filters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    // HTTP/1.0: the events come as they are, without chunks.
    write!(
        stream,
        "GET /events/frames?{} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: tap\r\n\r\n",
        query.join("&")
    )
    .map_err(failed)?;
    let mut reader = BufReader::new(stream);
    let status = read_line(&mut reader).map_err(failed)?;
    let status = status.split(' ').nth(1).unwrap_or_default().to_owned();
    while !read_line(&mut reader).map_err(failed)?.is_empty() {}
    if status != "200" {
        let body = read_line(&mut reader).unwrap_or_default();
        return Err(refusal(&status, &listen.to_string(), &body));
    }
    let mut event = String::new();
    loop {
        let line = match read_line(&mut reader) {
            Ok(line) => line,
            // The gateway has ended the stream, or itself.
            Err(_) => return Ok(()),
        };
        if let Some(name) = line.strip_prefix("event: ") {
            event = name.to_owned();
        } else if let Some(data) = line.strip_prefix("data: ") {
            let text = shown(&event, data, style);
            if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
                return Ok(());
            }
        }
    }
}

fn refusal(status: &str, address: &str, body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    let why = body.get("error").and_then(Value::as_str).unwrap_or("not as a gateway does");
    match status {
        "403" if why.contains("allow_tap_payload") => format!("{address}: {why}"),
        "403" => format!(
            "the gateway at {address} takes this command for a stranger; set admin_listen = \
             [\"127.0.0.1:8009\"] in [server]: {why}"
        ),
        _ => format!("{address} answers with HTTP {status}: {why}"),
    }
}

/// A line without its end; an error at the end of the stream.
fn read_line(reader: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = Vec::new();
    std::io::Read::take(&mut *reader, LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let text = String::from_utf8_lossy(&line);
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn encoded(value: &str) -> String {
    let mut out = String::new();
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// An event as it is printed.
fn shown(event: &str, data: &str, style: Style) -> String {
    if style == Style::Json && event != "lost" {
        return data.to_owned();
    }
    let fields: Value = serde_json::from_str(data).unwrap_or_default();
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    if event == "lost" {
        let count = fields.get("count").and_then(Value::as_u64).unwrap_or_default();
        return match style {
            Style::Json => format!("{{\"lost\":{count}}}"),
            _ => format!("… {count} lines were lost: this command was too slow …"),
        };
    }
    let time = text("time").get(11..23).unwrap_or_default();
    let (dim, colour, off) = match (style, text("from")) {
        (Style::Coloured, "") => ("\x1b[2m", "", "\x1b[0m"),
        (Style::Coloured, "client") => ("\x1b[2m", "\x1b[36m", "\x1b[0m"),
        (Style::Coloured, _) => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
        _ => ("", "", ""),
    };
    let what = match text("from") {
        "" => text("text").chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        from => {
            let length = fields.get("length").and_then(Value::as_u64).unwrap_or_default();
            let is_whole = fields.get("fin").and_then(Value::as_bool).unwrap_or(true);
            let more = if is_whole { "" } else { ", more follows" };
            let payload = payload(&fields, length);
            format!("{from} → {} {} {length} B{more}{payload}", text("to"), text("opcode"))
        }
    };
    let id: String = text("id").chars().filter(|c| !c.is_control()).collect();
    format!("{dim}{time}{off} {id} {colour}{what}{off}")
}

/// The payload, if there is one, behind its frame: a text in quotes, with escapes.
fn payload(fields: &Value, length: u64) -> String {
    let (shown, bytes) = match (fields.get("payload"), fields.get("payload_base64")) {
        (Some(Value::String(text)), _) => (format!("{text:?}"), text.len()),
        (_, Some(Value::String(text))) => {
            let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
            (format!("base64 {text}"), text.len() / 4 * 3 - padding)
        }
        _ => return String::new(),
    };
    let is_cut = (bytes as u64) < length;
    format!(" {shown}{}", if is_cut { " …" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: &str = r#"{"time":"2026-11-26T10:00:00.123Z","id":"input_1","from":"client","to":"backend","opcode":"text","length":12,"fin":false}"#;

    #[test]
    fn lines_are_readable() {
        assert_eq!(
            shown("frame", FRAME, Style::Plain),
            "10:00:00.123 input_1 client → backend text 12 B, more follows"
        );
        assert_eq!(shown("frame", FRAME, Style::Json), FRAME);
        assert!(shown("frame", FRAME, Style::Coloured).contains("\x1b[36mclient → backend"));
        let step = r#"{"time":"2026-11-26T10:00:00.123Z","id":"input_1","text":"= pinged\u001b[2J client"}"#;
        assert_eq!(shown("frame", step, Style::Plain), "10:00:00.123 input_1 = pinged [2J client");
        for (payload, length, line) in [
            (r#""payload":"声\"\u001b""#, 5, r#" 5 B "声\"\u{1b}""#),
            (r#""payload":"abc""#, 5, r#" 5 B "abc" …"#),
            (r#""payload_base64":"AAEC/w==""#, 4, " 4 B base64 AAEC/w=="),
            (r#""payload_base64":"AAEC/w==""#, 9, " 9 B base64 AAEC/w== …"),
        ] {
            let data = format!(r#"{{"from":"client","length":{length},"fin":true,{payload}}}"#);
            assert!(shown("frame", &data, Style::Plain).ends_with(line), "{payload}");
        }
        assert!(shown("lost", r#"{"count":3}"#, Style::Plain).contains("3 lines were lost"));
        assert_eq!(shown("lost", r#"{"count":3}"#, Style::Json), r#"{"lost":3}"#);
    }

    #[test]
    fn filters_are_encoded() {
        assert_eq!(encoded("a-7 &/声"), "a-7%20%26%2F%E5%A3%B0");
    }
}
