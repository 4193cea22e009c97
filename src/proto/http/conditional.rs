//! Conditional requests and ranges (RFC 9110 §13 and §14), for content that has an entity tag and a
//! time of its last change.

use super::RequestHead;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The headers of a request that say under which conditions it wants what, as the client wrote
/// them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    if_match: Option<Box<[u8]>>,
    if_none_match: Option<Box<[u8]>>,
    if_modified_since: Option<Box<[u8]>>,
    if_unmodified_since: Option<Box<[u8]>>,
    if_range: Option<Box<[u8]>>,
    range: Option<Box<[u8]>>,
}

/// What content a request is compared with.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Validators<'v> {
    /// A strong entity tag, with its quotes.
    pub etag: &'v str,
    pub modified: SystemTime,
    /// Bytes.
    pub length: u64,
}

/// What a request gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selected {
    /// 200.
    Whole,
    /// 206 with these bytes; at least one.
    Part(Range<u64>),
    /// 304: the client has it.
    NotModified,
    /// 412: it is not what the client expects.
    Failed,
    /// 416: no byte of the range exists.
    Unsatisfiable,
}

impl Conditions {
    /// The conditions in a request.
    pub fn read(head: &RequestHead) -> Conditions {
        let value = |name| head.headers.first(name).map(Box::from);
        Conditions {
            if_match: value("if-match"),
            if_none_match: value("if-none-match"),
            if_modified_since: value("if-modified-since"),
            if_unmodified_since: value("if-unmodified-since"),
            if_range: value("if-range"),
            // GET is the only method that has ranges (RFC 9110 §14.2).
            range: if head.is_head() { None } else { value("range") },
        }
    }

    /// What the request gets, judged in the order of RFC 9110 §13.2.2. A date that cannot be read,
    /// a range that cannot be read, and several ranges are ignored.
    pub fn select(&self, known: Validators) -> Selected {
        let modified = whole_seconds(known.modified);
        match (&self.if_match, date(&self.if_unmodified_since)) {
            (Some(tags), _) if !lists_strongly(tags, known.etag) => return Selected::Failed,
            (None, Some(date)) if modified > date => return Selected::Failed,
            _ => {}
        }
        match (&self.if_none_match, date(&self.if_modified_since)) {
            (Some(tags), _) if lists(tags, known.etag) => return Selected::NotModified,
            (None, Some(date)) if modified <= date => return Selected::NotModified,
            _ => {}
        }
        let is_same = match &self.if_range {
            None => true,
            Some(tag) if tag.contains(&b'"') => **tag == *known.etag.as_bytes(),
            // An exact match (RFC 9110 §13.1.5).
            date @ Some(_) => self::date(date) == Some(modified),
        };
        match &self.range {
            Some(range) if is_same => select_range(range, known.length),
            _ => Selected::Whole,
        }
    }
}

/// Whether a list of entity tags has this one, or is `*`, compared weakly (RFC 9110 §8.8.3.2).
pub fn lists(list: &[u8], etag: &str) -> bool {
    tags(list).any(|tag| tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag.as_bytes())
}

/// The same, compared strongly: a weak tag equals none.
fn lists_strongly(list: &[u8], etag: &str) -> bool {
    tags(list).any(|tag| tag == b"*" || tag == etag.as_bytes())
}

fn tags(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

fn date(value: &Option<Box<[u8]>>) -> Option<SystemTime> {
    let text = std::str::from_utf8(value.as_deref()?).ok()?;
    httpdate::parse_http_date(text.trim_ascii()).ok()
}

/// `time` as `Last-Modified` has it: in whole seconds.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The value of `Last-Modified` (RFC 9110 §5.6.7).
pub fn last_modified(time: SystemTime) -> String {
    httpdate::fmt_http_date(whole_seconds(time))
}

/// The part of `length` bytes that a `Range` header asks for.
fn select_range(range: &[u8], length: u64) -> Selected {
    let Some((first, last)) = read_range(range) else { return Selected::Whole };
    let (first, end) = match (first, last) {
        (Some(first), Some(last)) if last < first => return Selected::Whole,
        (Some(first), last) => (first, last.map_or(length, |last| last.saturating_add(1))),
        (None, Some(suffix)) => (length.saturating_sub(suffix), length),
        (None, None) => return Selected::Whole,
    };
    let end = end.min(length);
    if first < end { Selected::Part(first..end) } else { Selected::Unsatisfiable }
}

/// The two numbers of one range of bytes, as they are written.
fn read_range(range: &[u8]) -> Option<(Option<u64>, Option<u64>)> {
    let text = std::str::from_utf8(range).ok()?.trim_ascii();
    let (unit, range) = text.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim_ascii().split_once('-')?;
    Some((number(first)?, number(last)?))
}

/// A number, or nothing at all. One that is too large for a `u64` is beyond any file.
fn number(digits: &str) -> Option<Option<u64>> {
    if digits.is_empty() {
        return Some(None);
    }
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Some(digits.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 9 November 1994, 08:49:37 and a half.
    const MODIFIED: Duration = Duration::from_millis(784_370_977_500);
    const SAME: &str = "Wed, 09 Nov 1994 08:49:37 GMT";
    const EARLIER: &str = "Wed, 09 Nov 1994 08:49:36 GMT";

    fn select(request: &str, length: u64) -> Selected {
        let request = format!("{request}Host: a\r\n\r\n");
        let mut slots = super::super::empty_slots();
        let head = RequestHead::parse(request.as_bytes(), &mut slots).unwrap().unwrap().0;
        let modified = UNIX_EPOCH + MODIFIED;
        Conditions::read(&head).select(Validators { etag: "\"a\"", modified, length })
    }

    fn get(headers: &str) -> Selected {
        select(&format!("GET / HTTP/1.1\r\n{headers}"), 10)
    }

    #[test]
    fn ranges_are_read_as_in_the_rfc() {
        use Selected::{Part, Unsatisfiable, Whole};
        for (range, expected) in [
            ("bytes=0-", Part(0..10)),
            ("bytes=0-0", Part(0..1)),
            ("bytes=2-4", Part(2..5)),
            ("bytes=9-9", Part(9..10)),
            ("bytes=5-100", Part(5..10)),
            ("bytes=5-99999999999999999999999", Part(5..10)),
            ("Bytes= 2-4 ", Part(2..5)),
            ("bytes=-1", Part(9..10)),
            ("bytes=-10", Part(0..10)),
            ("bytes=-11", Part(0..10)),
            ("bytes=-0", Unsatisfiable),
            ("bytes=10-", Unsatisfiable),
            ("bytes=10-12", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=4-2", Whole),
            ("bytes=0-1,3-4", Whole),
            ("bytes=-", Whole),
            ("bytes=", Whole),
            ("bytes", Whole),
            ("bytes=a-b", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=1-2-3", Whole),
            ("bytes=1 - 2", Whole),
            ("items=0-1", Whole),
            ("", Whole),
        ] {
            assert_eq!(get(&format!("Range: {range}\r\n")), expected, "{range:?}");
        }
        assert_eq!(select("GET / HTTP/1.1\r\nRange: bytes=0-\r\n", 0), Unsatisfiable);
        assert_eq!(select("GET / HTTP/1.1\r\nRange: bytes=-5\r\n", 0), Unsatisfiable);
        assert_eq!(select("HEAD / HTTP/1.1\r\nRange: bytes=0-1\r\n", 10), Whole);
    }

    #[test]
    fn conditions_are_judged_in_order() {
        use Selected::{Failed, NotModified, Part, Whole};
        let later = "Wed, 09 Nov 1994 08:49:38 GMT";
        for (headers, expected) in [
            (vec![], Whole),
            (vec!["If-None-Match: \"a\""], NotModified),
            (vec!["If-None-Match: \"b\", W/\"a\""], NotModified),
            (vec!["If-None-Match: *"], NotModified),
            (vec!["If-None-Match: \"b\""], Whole),
            (vec!["If-Modified-Since: {same}"], NotModified),
            (vec!["If-Modified-Since: {later}"], NotModified),
            (vec!["If-Modified-Since: {earlier}"], Whole),
            (vec!["If-Modified-Since: Wednesday, 09-Nov-94 08:49:37 GMT"], NotModified),
            (vec!["If-Modified-Since: Wed Nov  9 08:49:37 1994"], NotModified),
            (vec!["If-Modified-Since: yesterday"], Whole),
            (vec!["If-None-Match: \"b\"", "If-Modified-Since: {same}"], Whole),
            (vec!["If-None-Match: \"a\"", "Range: bytes=0-1"], NotModified),
            (vec!["If-Match: \"a\""], Whole),
            (vec!["If-Match: \"b\", \"a\""], Whole),
            (vec!["If-Match: *"], Whole),
            (vec!["If-Match: W/\"a\""], Failed),
            (vec!["If-Match: \"b\"", "If-None-Match: \"a\""], Failed),
            (vec!["If-Unmodified-Since: {earlier}"], Failed),
            (vec!["If-Unmodified-Since: {same}"], Whole),
            (vec!["If-Match: \"a\"", "If-Unmodified-Since: {earlier}"], Whole),
            (vec!["If-Range: \"a\"", "Range: bytes=0-1"], Part(0..2)),
            (vec!["If-Range: \"b\"", "Range: bytes=0-1"], Whole),
            (vec!["If-Range: W/\"a\"", "Range: bytes=0-1"], Whole),
            (vec!["If-Range: {same}", "Range: bytes=0-1"], Part(0..2)),
            (vec!["If-Range: {later}", "Range: bytes=0-1"], Whole),
            (vec!["If-Range: x", "Range: bytes=0-1"], Whole),
            (vec!["If-Range: \"b\"", "Range: bytes=10-"], Whole),
        ] {
            let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
            let headers = headers.replace("{same}", SAME).replace("{later}", later);
            let headers = headers.replace("{earlier}", EARLIER);
            assert_eq!(get(&headers), expected, "{headers}");
        }
    }

    #[test]
    fn last_modified_is_in_whole_seconds() {
        assert_eq!(last_modified(UNIX_EPOCH + MODIFIED), SAME);
        assert_eq!(
            last_modified(UNIX_EPOCH - Duration::from_secs(1)),
            "Thu, 01 Jan 1970 00:00:00 GMT"
        );
    }
}
