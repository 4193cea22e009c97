//! What a certificate is for: names and addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A name in DNS is no longer (RFC 1035 §2.3.4), and a part of it neither.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// A name or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertSubject {
    /// In ASCII, its first label `*` for any one label.
    Name(String),
    Address(IpAddr),
}

impl FromStr for CertSubject {
    type Err = String;

    fn from_str(text: &str) -> Result<CertSubject, String> {
        if let Ok(address) = text.parse() {
            return Ok(CertSubject::Address(address));
        }
        // Browsers accept no certificate for all of a top-level domain.
        let name = text.strip_prefix("*.").filter(|rest| rest.contains('.')).unwrap_or(text);
        let is_good = |label: &str| {
            let is_inside = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
            (1..=LABEL_BYTES_MAX).contains(&label.len())
                && label.bytes().all(is_inside)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > NAME_BYTES_MAX || !name.split('.').all(is_good) {
            return Err(format!(
                "{text:?} is neither a name nor an address; expected \"app.example\", \
                 \"*.app.example\", \"192.0.2.7\" or \"2001:db8::7\""
            ));
        }
        Ok(CertSubject::Name(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for CertSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CertSubject::Name(name) => f.write_str(name),
            CertSubject::Address(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_told_apart() {
        for text in ["localhost", "a-1.example", "*.a.example", "my_pc.local", "192.0.2.7", "::1"] {
            assert_eq!(text.parse::<CertSubject>().unwrap().to_string(), text);
        }
        assert_eq!("PC".parse(), Ok(CertSubject::Name("pc".into())));
        assert_eq!("::1".parse(), Ok(CertSubject::Address("::1".parse().unwrap())));
        let long = "a".repeat(64);
        for text in [
            "",
            ".",
            "a..b",
            "-a",
            "a-",
            "*",
            "*.example",
            "a.*.b",
            "http://a",
            "a:80",
            "[::1]",
            "é",
            "a/b",
            &long,
        ] {
            let why = text.parse::<CertSubject>().unwrap_err();
            assert!(why.contains("neither a name nor an address"), "{text}: {why}");
        }
    }
}
