//! Worlds behind a proxy: every connection begins with a PROXY header, which is cut anywhere, also
//! where the request or the TLS handshake behind it begins.

use super::secured;
use crate::kernel::{LinkId, Records, Shared, near_socket};
use aivtuber_gateway::gateway::{self, Gateway};
use aivtuber_gateway::service::trust::PeerRule;
use std::net::SocketAddr;

/// Whether the clients of this world come through a proxy: a fifth do, with or without TLS.
pub fn is_proxied(seed: u64, records: Records) -> bool {
    match records {
        Records::None => matches!(seed % 10, 1 | 6),
        Records::Simulated => false,
        Records::Tls => seed % 20 == 19,
    }
}

/// Makes the gateway expect headers, and TLS behind them where this world has it.
pub fn expect_headers(settings: &mut gateway::Settings, records: Records) {
    settings.trust.trusted_proxies = vec![PeerRule::parse("192.0.2.0/24").expect("a network")];
    settings.trust.proxy_protocol = true;
    if records == Records::Tls {
        settings.tls = secured::settings();
    }
}

/// The header of the client at the other end of this link.
pub fn draw_header(chance: &mut fastrand::Rng, link: LinkId) -> Vec<u8> {
    let (host, port) = (link as u8 % 3 + 1, 1000 + link as u16);
    let source = [203, 0, 113, host];
    let ports = [port.to_be_bytes(), 8000_u16.to_be_bytes()].concat();
    let binary = |family: u8, addresses: &[u8], tlvs: &[u8]| {
        let rest = [addresses, &ports, tlvs].concat();
        let length = (rest.len() as u16).to_be_bytes();
        [b"\r\n\r\n\0\r\nQUIT\n\x21".as_slice(), &[family], &length, &rest].concat()
    };
    match chance.u8(..4) {
        0 => format!("PROXY TCP4 203.0.113.{host} 192.0.2.9 {port} 8000\r\n").into_bytes(),
        1 => format!("PROXY TCP6 2001:db8::{host} 2001:db8::9 {port} 8000\r\n").into_bytes(),
        2 => binary(0x11, &[source, [192, 0, 2, 9]].concat(), b""),
        _ => {
            let addresses = [[0x20; 16], [0x20; 16]].concat();
            binary(0x21, &addresses, &vec![0; chance.usize(..3000)])
        }
    }
}

/// The gateway accepts a connection of the proxy.
pub fn admit(gateway: &mut Gateway, kernel: &Shared, link: LinkId, proxy: SocketAddr) {
    let records = kernel.borrow().nature.records;
    match records {
        Records::Tls => gateway.admit_tls(secured::bare_socket(kernel, link), proxy),
        _ => gateway.admit(near_socket(kernel, link), proxy),
    }
}
