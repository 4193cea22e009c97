//! From when to when a certificate is valid (RFC 5280 §4.1.2.5).
//!
//! Verifying does not need this, so that `rustls` does not show it. Only the few elements on the
//! way are read, in DER: tag, length, content.

use std::time::{Duration, SystemTime};

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Validity {
    pub begins: SystemTime,
    pub ends: SystemTime,
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Reads it from a certificate in DER; `None` if that is none.
pub(super) fn of_certificate(der: &[u8]) -> Option<Validity> {
    let certificate = Elements(der).expect(SEQUENCE)?;
    let mut fields = Elements(Elements(certificate).expect(SEQUENCE)?);
    let (tag, _) = fields.next()?;
    // Version 1 has no field for the version; then that was the serial number.
    if tag == VERSION {
        fields.next()?;
    }
    fields.next()?; // signature algorithm
    fields.next()?; // issuer
    let mut times = Elements(fields.expect(SEQUENCE)?);
    Some(Validity { begins: time(times.next()?)?, ends: time(times.next()?)? })
}

/// The rest of some elements behind each other.
struct Elements<'d>(&'d [u8]);

impl<'d> Elements<'d> {
    /// Tag and content of the next element.
    fn next(&mut self) -> Option<(u8, &'d [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length =
                    digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
                (length, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next element, which must have this tag.
    fn expect(&mut self, tag: u8) -> Option<&'d [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`, the only forms that are allowed.
fn time((tag, content): (u8, &[u8])) -> Option<SystemTime> {
    let text = str::from_utf8(content).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        UTC_TIME => text.split_at_checked(2)?,
        GENERALIZED_TIME => text.split_at_checked(4)?,
        _ => return None,
    };
    let year: u16 = year.parse().ok()?;
    let year = match tag {
        UTC_TIME if year < 50 => 2000 + year,
        UTC_TIME => 1900 + year,
        _ => year,
    };
    if rest.len() != 10 || !rest.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let part = |at: usize| rest.get(at..at + 2)?.parse::<u8>().ok();
    let month = time::Month::try_from(part(0)?).ok()?;
    let date = time::Date::from_calendar_date(i32::from(year), month, part(2)?).ok()?;
    let at = date.with_hms(part(4)?, part(6)?, part(8)?).ok()?.assume_utc().unix_timestamp();
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(at).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(begins: time::OffsetDateTime, ends: time::OffsetDateTime) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["a.example".into()]).unwrap();
        (params.not_before, params.not_after) = (begins, ends);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn both_forms_of_a_time_are_read() {
        let date = |year, month: u8, day| {
            let month = time::Month::try_from(month).unwrap();
            let date = time::Date::from_calendar_date(year, month, day).unwrap();
            date.with_hms(1, 2, 3).unwrap().assume_utc()
        };
        for (begins, ends) in
            [(date(1999, 12, 31), date(2049, 2, 28)), (date(2026, 1, 1), date(2099, 6, 30))]
        {
            let validity = of_certificate(&made(begins, ends)).unwrap();
            assert_eq!(validity, Validity { begins: begins.into(), ends: ends.into() });
        }
    }

    #[test]
    fn what_is_no_certificate_is_none_wherever_it_is_cut() {
        let now = time::OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let der = made(now, now + Duration::from_secs(1000));
        for end in 0..der.len() {
            assert_eq!(of_certificate(&der[..end]), None, "cut at {end}");
        }
        assert_eq!(of_certificate(b"hello"), None);
    }
}
