//! What this machine is called, and where it is.

#![expect(clippy::disallowed_types, reason = "a command of its own, which may wait")]

use super::subject::CertSubject;
use crate::net;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// An address outside of every network here (RFC 5737), to ask for the way there.
const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// The first part of this machine's name, if it can be used in URLs.
pub fn host_name() -> Option<String> {
    let system = rustix::system::uname();
    let name = system.nodename().to_str().ok()?;
    let name = name.split('.').next().unwrap_or(name).to_ascii_lowercase();
    name.parse::<CertSubject>().is_ok().then_some(name)
}

/// The names and addresses by which this machine is reached: its own name, also as it is looked up
/// in local networks (`NAME.local`, RFC 6762), and the addresses of its interfaces.
pub fn subjects() -> Vec<CertSubject> {
    let mut names = vec!["localhost".to_owned()];
    if let Some(name) = host_name().filter(|name| name != "localhost") {
        names.push(format!("{name}.local"));
        names.push(name);
    }
    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for address in net::own_addresses().unwrap_or_default() {
        if !addresses.contains(&address) && is_usable(address) {
            addresses.push(address);
        }
    }
    let names = names.into_iter().map(CertSubject::Name);
    names.chain(addresses.into_iter().map(CertSubject::Address)).collect()
}

/// Whether the address can be in a URL: one that needs the name of an interface cannot.
fn is_usable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_unspecified(),
        IpAddr::V6(address) => !address.is_unspecified() && !address.is_unicast_link_local(),
    }
}

/// The address by which others in the network reach this machine: the one that packets to
/// elsewhere come from, else the first one that is not loopback.
pub fn lan_address() -> Option<IpAddr> {
    let by_route = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        // Sends nothing.
        socket.connect(ELSEWHERE).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let is_outside = |address: &IpAddr| !address.is_loopback() && is_usable(*address);
    by_route().filter(is_outside).or_else(|| {
        let mut others = net::own_addresses().ok()?;
        others.retain(is_outside);
        others.sort_by_key(IpAddr::is_ipv6);
        others.into_iter().next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_called_localhost_and_by_its_addresses() {
        let subjects = subjects();
        for text in ["localhost", "127.0.0.1", "::1"] {
            assert!(subjects.contains(&text.parse().unwrap()), "{text} in {subjects:?}");
        }
        if let Some(address) = lan_address() {
            assert!(subjects.contains(&CertSubject::Address(address)), "{address} in {subjects:?}");
        }
        for (at, subject) in subjects.iter().enumerate() {
            assert!(!subjects[..at].contains(subject), "{subject} is there twice");
        }
    }
}
