//! A line of a log, in text or JSON.

use crate::logging::fields::Parts;
use serde_json::Value;

const DAY: i64 = 24 * 60 * 60 * 1000;

/// The longest time from a step of a story to its end, in seconds: a hundred years. A log says
/// more only if the gateway has not written it.
const BEFORE_END_MAX: f64 = 100.0 * 366.0 * 24.0 * 60.0 * 60.0;

/// What `explain` needs of a line, by the names of `docs/log.schema.json`.
#[derive(Debug)]
pub struct LogLine {
    /// In milliseconds since 1970.
    at: i64,
    pub level: String,
    pub target: String,
    message: String,
    pub id: Option<String>,
    pub event: &'static str,
    pub task: Option<String>,
    client: Option<String>,
    request_id: Option<String>,
    pub reason: Option<String>,
    pub code: Option<u64>,
    pub sentence: Option<String>,
    /// In milliseconds.
    before_end: i64,
}

impl LogLine {
    /// Reads a line. `None`: it is not one of the gateway's.
    pub fn read(text: &str) -> Option<LogLine> {
        let (at, level, target, message) = read_json(text).or_else(|| read_text(text))?;
        let parts = Parts::of(&message);
        let text = |name| parts.text(name).map(str::to_owned);
        let (id, event) = (parts.id.map(str::to_owned), parts.event);
        let (task, client, request_id) = (text("task"), text("client"), text("request_id"));
        let (reason, sentence) = (text("reason"), text("sentence"));
        let code = parts.value("code").and_then(Value::as_u64);
        let before_end = parts.value("before_end_seconds").and_then(Value::as_f64);
        let before_end = before_end.unwrap_or_default().clamp(0.0, BEFORE_END_MAX);
        let before_end = (before_end * 1000.0).round() as i64;
        Some(LogLine {
            at,
            level,
            target,
            id,
            event,
            task,
            client,
            request_id,
            reason,
            code,
            sentence,
            before_end,
            message,
        })
    }

    /// Bytes of its own memory, roughly.
    pub fn bytes(&self) -> usize {
        let parts = [&self.id, &self.task, &self.client, &self.request_id, &self.sentence];
        let parts = parts.into_iter().flatten().map(String::len);
        size_of::<LogLine>() + self.message.len() + parts.sum::<usize>()
    }

    /// Whether it is this event.
    pub fn is(&self, event: &str) -> bool {
        self.event == event
    }

    /// When it happened, in milliseconds since 1970: for a step of a story before it was written.
    pub fn happened_at(&self) -> i64 {
        self.at - self.before_end
    }

    /// Whether it says whose the connection is, or what it is about.
    pub fn is_about_connection(&self) -> bool {
        ["opened", "closed", "failed", "request", "task_learned"].contains(&self.event)
    }

    /// Whether it names a task, a client or a request.
    pub fn names(&self, name: &str) -> bool {
        self.is_of_task(name)
            || self.request_id.as_deref() == Some(name)
            || self.client.as_deref().is_some_and(|client| client == name || host(client) == name)
    }

    /// Whether it is about this task.
    pub fn is_of_task(&self, task: &str) -> bool {
        self.task.as_ref().is_some_and(|known| known.eq_ignore_ascii_case(task))
    }

    /// The message without what stands elsewhere: the id, and the mark of a step of a story.
    pub fn told(&self) -> &str {
        let id = self.id.as_deref().unwrap_or_default();
        let told = self.message.strip_prefix(id).unwrap_or(&self.message).trim_start();
        match told.strip_prefix("~ before_end=") {
            Some(step) => step.split_once(' ').map_or("", |(_, step)| step),
            None => told,
        }
    }

    /// The level, for warnings and errors. The steps of a story, all logged as warnings, have none.
    pub fn mark(&self) -> &'static str {
        match (self.level.as_str(), self.before_end > 0 || self.message.contains(" ~ ")) {
            ("ERROR", _) => "ERROR ",
            ("WARN", false) => "WARN ",
            _ => "",
        }
    }
}

/// An address without its port and brackets.
fn host(client: &str) -> &str {
    let host = client.rsplit_once(':').map_or(client, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

type Basics = (i64, String, String, String);

/// A line in JSON, with something in front of it or not.
fn read_json(text: &str) -> Option<Basics> {
    let at = text.find("{\"time\":")?;
    let line: Value = serde_json::from_str(text.get(at..)?.trim_end()).ok()?;
    let text = |name: &str| line.get(name)?.as_str().map(str::to_owned);
    Some((read_time(&text("time")?)?, text("level")?, text("target")?, text("message")?))
}

/// A line of text, with something in front of it or not.
fn read_text(text: &str) -> Option<Basics> {
    const TIME_BYTES: usize = "2026-11-22T10:00:00.123Z".len();
    // The time ends with the first such `Z`.
    let at = text.match_indices('Z').find_map(|(end, _)| {
        let at = (end + 1).checked_sub(TIME_BYTES)?;
        read_time(text.get(at..=end)?).map(|_| at)
    })?;
    let time = read_time(text.get(at..at + TIME_BYTES)?)?;
    let rest = text.get(at + TIME_BYTES..)?.trim_start();
    let (level, rest) = rest.split_once(' ')?;
    let (target, message) = rest.trim_start().split_once(' ')?;
    let is_level = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level);
    is_level.then(|| (time, level.into(), target.into(), message.trim_end().into()))
}

/// `2026-11-22T10:00:00.123Z` in milliseconds since 1970.
fn read_time(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u32>().ok().map(i64::from);
    let is_shaped = text.len() == 24
        && [(4, '-'), (7, '-'), (10, 'T'), (13, ':'), (16, ':'), (19, '.'), (23, 'Z')]
            .iter()
            .all(|(at, sign)| text.as_bytes().get(*at) == Some(&(*sign as u8)));
    if !is_shaped {
        return None;
    }
    let days = days_of(number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let seconds = number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    Some(days * DAY + seconds * 1000 + number(20, 23)?)
}

/// Days from 1970 to a date, by counting years from March on, so that the day that leap years add
/// is the last one of a year.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days_in_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + days_in_year
        - 719_468
}

/// The date of a day, counted from 1970: the inverse of [`days_of`].
fn date_of(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days.div_euclid(366);
    while days_of(year + 1, 1, 1) <= days {
        year += 1;
    }
    let mut month = 12;
    while days_of(year, month, 1) > days {
        month -= 1;
    }
    (year, month, days - days_of(year, month, 1) + 1)
}

/// `10:00:00.123` of milliseconds since 1970.
pub fn time_of_day(at: i64) -> String {
    let at = at.rem_euclid(DAY);
    let (hour, minute) = (at / 3_600_000, at / 60_000 % 60);
    format!("{hour:02}:{minute:02}:{:02}.{:03}", at / 1000 % 60, at % 1000)
}

/// `2026-11-22T10:00:00.123Z` of milliseconds since 1970.
pub fn rfc3339(at: i64) -> String {
    let (year, month, day) = date_of(at.div_euclid(DAY));
    format!("{year:04}-{month:02}-{day:02}T{}Z", time_of_day(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for text in [
            "1970-01-01T00:00:00.000Z",
            "2000-02-29T23:59:59.999Z",
            "2024-12-31T12:00:00.500Z",
            "2026-11-22T10:00:00.123Z",
            "2100-03-01T00:00:00.001Z",
        ] {
            assert_eq!(rfc3339(read_time(text).expect(text)), text);
        }
        assert_eq!(read_time("1970-01-02T00:00:01.002Z"), Some(86_401_002));
        for text in ["2026-11-22 10:00:00.123Z", "2026-11-22T10:00:00Z", "xxxx-11-22T10:00:00.123Z"]
        {
            assert_eq!(read_time(text), None, "{text}");
        }
    }

    #[test]
    fn lines_are_read_whatever_is_in_front_of_them() {
        let text =
            "2026-11-22T10:00:00.123Z WARN  dial input_1 = backend ws://b/ failed what=\"Z\"";
        let json = r#"{"time":"2026-11-22T10:00:00.123Z","level":"WARN","target":"dial","event":"backend_failed","id":"input_1","message":"input_1 = backend ws://b/ failed what=\"Z\""}"#;
        for line in [text, json] {
            for front in ["", "Nov 22 10:00:00 host aivtuber-gateway[7]: ", "gateway-1  | "] {
                let line = LogLine::read(&format!("{front}{line}\n")).expect("it is a line");
                assert_eq!((line.level.as_str(), line.target.as_str()), ("WARN", "dial"));
                assert_eq!((line.id.as_deref(), line.event), (Some("input_1"), "backend_failed"));
                assert_eq!(line.told(), "= backend ws://b/ failed what=\"Z\"");
                assert_eq!(rfc3339(line.happened_at()), "2026-11-22T10:00:00.123Z");
            }
        }
        for other in ["", "-- Boot 7 --", "2026-11-22T10:00:00.123Z nothing here", "{\"time\":1}"] {
            assert!(LogLine::read(other).is_none(), "{other}");
        }
    }

    #[test]
    fn client_is_found_with_and_without_its_port() {
        let named = |client: &str, name: &str| {
            let line =
                format!("2026-11-22T10:00:00.123Z INFO  relay input_1 opened client={client}");
            LogLine::read(&line).expect("it is a line").names(name)
        };
        assert!(named("192.0.2.7:5000", "192.0.2.7") && named("192.0.2.7:5000", "192.0.2.7:5000"));
        assert!(named("[2001:db8::1]:7", "2001:db8::1"));
        assert!(!named("192.0.2.77:5000", "192.0.2.7"));
    }
}
