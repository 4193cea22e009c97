//! What the demo prints at its start: what to open, what to try, what to trust.

use super::PATH;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

/// White on black whatever the terminal's colours, so that a camera sees dark on light.
const COLOURS: &str = "\x1b[97;40m";
const NO_COLOURS: &str = "\x1b[0m";

/// What to open and what to try, for people, with a gateway that listens at `gateway`.
pub fn welcome(gateway: SocketAddr) -> String {
    let at = shown(gateway);
    format!(
        "\n\
         The demo is running: the gateway, and a stand-in for the AI behind {PATH}.\n\
         \n\
         \x20 open   http://{at}/                type something, see the answer and hear it\n\
         \x20 ask    curl http://{at}/health\n\
         \x20 try    python3 -m websockets ws://{at}{PATH}\n\
         \x20        (pip install websockets) prints the id of your task\n\
         \n\
         docs/frontend.md shows how to build a talking page. Ctrl-C ends the demo.\n\n"
    )
}

/// The same, with HTTPS.
pub struct HttpsWelcome<'a> {
    /// Where the gateway listens with TLS.
    pub gateway: SocketAddr,
    /// This machine's address in its network, if it has one.
    pub lan: Option<IpAddr>,
    /// The file with the certificate of the CA.
    pub ca: &'a Path,
}

impl HttpsWelcome<'_> {
    /// The text, without a QR code.
    pub fn text(&self) -> String {
        let here = shown(self.gateway);
        let mut text = format!(
            "\n\
             The demo is running: the gateway, and a stand-in for the AI behind {PATH}.\n\
             \n\
             \x20 open   https://{here}/                type or speak, see the answer and hear it\n"
        );
        if let Some(url) = self.lan_url() {
            let _ = writeln!(text, "  phone  {url:<38} the same, on devices in this network");
        }
        let ca = self.ca.display();
        let _ = write!(
            text,
            "  ask    curl --cacert '{ca}' https://{here}/health\n\
             \x20 trust  {ca}\n\
             \x20        Browsers warn until they trust this CA: docs/https.md shows how.\n\
             \n\
             docs/frontend.md shows how to build a talking page. Ctrl-C ends the demo.\n\n"
        );
        text
    }

    /// The same, with a QR code of the URL for devices in this network, if there is one.
    pub fn text_with_code(&self) -> String {
        let code = self.lan_url().and_then(|url| code(&url)).unwrap_or_default();
        self.text() + &code
    }

    /// The URL for other devices, if they can reach the gateway.
    fn lan_url(&self) -> Option<String> {
        let ip = match self.gateway.ip() {
            ip if ip.is_loopback() => return None,
            ip if ip.is_unspecified() => self.lan?,
            ip => ip,
        };
        Some(format!("https://{}/", SocketAddr::new(ip, self.gateway.port())))
    }
}

/// The address for a browser on this machine.
fn shown(gateway: SocketAddr) -> String {
    let host = match gateway.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() || ip == Ipv4Addr::LOCALHOST => {
            "localhost".to_owned()
        }
        IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    format!("{host}:{}", gateway.port())
}

/// A QR code for terminals, two rows of it in one line of text. `None`: the text is too long.
#[cfg(feature = "tls")]
fn code(text: &str) -> Option<String> {
    use qrcode::render::unicode::Dense1x2;
    let code = qrcode::QrCode::new(text).ok()?;
    let picture = code
        .render::<Dense1x2>()
        .dark_color(Dense1x2::Light)
        .light_color(Dense1x2::Dark)
        .module_dimensions(1, 1)
        .build();
    let mut shown = String::new();
    for line in picture.lines() {
        let _ = writeln!(shown, "  {COLOURS}{line}{NO_COLOURS}");
    }
    shown.push('\n');
    Some(shown)
}

/// Without TLS there is nothing to show one for.
#[cfg(not(feature = "tls"))]
fn code(_: &str) -> Option<String> {
    let _ = (COLOURS, NO_COLOURS);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_welcome_names_an_address_to_open() {
        for (listen, shown) in [
            ("0.0.0.0:8000", "http://localhost:8000/ "),
            ("127.0.0.1:81", "http://localhost:81/ "),
            ("192.0.2.7:8000", "http://192.0.2.7:8000/ "),
            ("[::]:8000", "http://[::1]:8000/ "),
            ("[2001:db8::1]:8000", "http://[2001:db8::1]:8000/ "),
        ] {
            let text = welcome(listen.parse().unwrap());
            assert!(text.contains(shown), "{text}");
        }
    }

    #[test]
    fn with_https_it_names_the_address_for_phones_and_the_ca() {
        let lan = Some("192.0.2.7".parse().unwrap());
        for (listen, lan, phone) in [
            ("0.0.0.0:8443", lan, Some("https://192.0.2.7:8443/ ")),
            (
                "[::]:8443",
                Some("2001:db8::1".parse().unwrap()),
                Some("https://[2001:db8::1]:8443/ "),
            ),
            ("198.51.100.1:443", lan, Some("https://198.51.100.1:443/ ")),
            ("127.0.0.1:8443", lan, None),
            ("0.0.0.0:8443", None, None),
        ] {
            let gateway = listen.parse().unwrap();
            let welcome = HttpsWelcome { gateway, lan, ca: Path::new("/data/ca.pem") };
            let text = welcome.text();
            assert!(text.contains("\n  trust  /data/ca.pem\n"), "{text}");
            assert_eq!(text.contains("\n  phone  "), phone.is_some(), "{text}");
            assert!(phone.is_none_or(|phone| text.contains(phone)), "{text}");
            let has_code = phone.is_some() && cfg!(feature = "tls");
            assert_eq!(welcome.text_with_code() != text, has_code);
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn a_code_is_light_around_and_has_its_three_corners() {
        let shown = code("https://192.0.2.7:8443/").unwrap();
        let lines: Vec<String> = shown
            .lines()
            .filter_map(|line| line.strip_prefix("  \x1b[97;40m")?.strip_suffix("\x1b[0m"))
            .map(str::to_owned)
            .collect();
        let width = lines[0].chars().count();
        // Version 2 or 3, and four modules of margin on each side.
        assert!(width == 25 + 8 || width == 29 + 8, "{width}");
        assert_eq!(lines.len(), width.div_ceil(2));
        for line in &lines[..lines.len() - 1] {
            assert!(line.starts_with("████") && line.ends_with("████"), "{line}");
        }
        let corner = "████ ▄▄▄▄▄ █";
        assert!(lines[2].starts_with(corner), "{}", lines[2]);
        assert!(lines[2].ends_with(&corner.chars().rev().collect::<String>()), "{}", lines[2]);
    }
}
