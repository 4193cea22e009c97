//! Listening sockets that the service manager opened and passed on: `sd_listen_fds(3)`.
//!
//! They outlive the gateway, so clients that connect while it restarts wait instead of being
//! refused. A passed socket takes the place of the address in the configuration that it has; one
//! that has no such address is an error, because the configuration would not do what it says.

#![expect(clippy::disallowed_types, reason = "the reactor owns listening sockets")]

use crate::net;
use socket2::SockRef;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

/// The sockets that were passed and not yet taken.
#[derive(Debug, Default)]
pub struct PassedSockets {
    sockets: Vec<PassedSocket>,
}

/// A listening socket, and what the service manager calls it.
#[derive(Debug)]
pub struct PassedSocket {
    /// From `LISTEN_FDNAMES`: in systemd, `FileDescriptorName=`, else the name of the unit.
    name: String,
    address: SocketAddr,
    listener: TcpListener,
}

impl PassedSockets {
    /// Takes the sockets that the environment announces. `pid` is this process. To be called once,
    /// before other descriptors are opened.
    ///
    /// # Errors
    /// A sentence about a socket that cannot be used.
    pub fn from_env(
        env: impl Fn(&str) -> Option<OsString>,
        pid: u32,
    ) -> Result<PassedSockets, String> {
        let text = |name| env(name).and_then(|value| value.into_string().ok());
        // Meant for another process that has left its environment to this one.
        if text("LISTEN_PID").and_then(|text| text.parse().ok()) != Some(pid) {
            return Ok(PassedSockets::default());
        }
        let count = text("LISTEN_FDS").unwrap_or_default();
        let count = count.parse().map_err(|_| format!("LISTEN_FDS={count:?} is not a number"))?;
        let names = text("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let taken = net::take_passed(count)
            .map_err(|error| format!("LISTEN_FDS={count}: cannot take the sockets: {error}"))?;
        let socket = |descriptor| PassedSocket::new(descriptor, names.next().unwrap_or_default());
        let sockets = taken.into_iter().map(socket).collect::<Result<_, _>>()?;
        Ok(PassedSockets { sockets })
    }

    /// As if this one had been passed.
    #[cfg(test)]
    pub fn of(listener: TcpListener) -> PassedSockets {
        let socket = PassedSocket::new(listener.into(), "test");
        PassedSockets { sockets: vec![socket.expect("it listens")] }
    }

    /// The socket that listens on `address`, if one was passed.
    pub fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let index = self.sockets.iter().position(|socket| socket.address == address)?;
        Some(self.sockets.swap_remove(index).listener)
    }

    /// A socket that nothing has taken.
    pub fn rest(self) -> Option<PassedSocket> {
        self.sockets.into_iter().next()
    }
}

impl PassedSocket {
    fn new(descriptor: OwnedFd, name: &str) -> Result<PassedSocket, String> {
        let failed = |why: &str| format!("the passed socket {name:?} cannot be used: {why}");
        let read = || -> io::Result<_> {
            let socket = SockRef::from(&descriptor);
            let is_stream = socket.r#type()? == socket2::Type::STREAM;
            Ok((is_stream && socket.is_listener()?, socket.local_addr()?.as_socket()))
        };
        match read().map_err(|error| failed(&error.to_string()))? {
            (false, _) => Err(failed("it does not listen for connections")),
            (true, None) => Err(failed("it has no IP address")),
            (true, Some(address)) => {
                let listener = TcpListener::from(descriptor);
                Ok(PassedSocket { name: name.to_owned(), address, listener })
            }
        }
    }
}

impl fmt::Display for PassedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the passed socket {:?} listens on {}, which is not in server.listen or \
             server.admin_listen, and not where the embedded inbox listens",
            self.name, self.address
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn a_socket_is_found_by_its_address_once() {
        let (one, at_one) = listener();
        let (other, at_other) = listener();
        let sockets = [one, other].map(|one| PassedSocket::new(one.into(), "web").unwrap());
        let mut passed = PassedSockets { sockets: sockets.into() };
        assert!(passed.take("127.0.0.1:1".parse().unwrap()).is_none());
        assert_eq!(passed.take(at_other).unwrap().local_addr().unwrap(), at_other);
        assert!(passed.take(at_other).is_none());
        let rest = passed.rest().unwrap().to_string();
        let expected = format!("the passed socket \"web\" listens on {at_one}, which is not in");
        assert!(rest.starts_with(&expected), "{rest}");
    }

    #[test]
    fn what_does_not_listen_is_refused() {
        let why = PassedSocket::new(UnixDatagram::unbound().unwrap().into(), "x").unwrap_err();
        assert_eq!(
            why,
            "the passed socket \"x\" cannot be used: it does not listen for connections"
        );
        let (listener, address) = listener();
        let client = std::net::TcpStream::connect(address).unwrap();
        drop(listener);
        let why = PassedSocket::new(client.into(), "").unwrap_err();
        assert!(why.contains("does not listen"), "{why}");
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(PassedSocket::new(file.into(), "").is_err());
    }

    #[test]
    fn the_environment_of_another_process_is_ignored() {
        let none = PassedSockets::from_env(|_| None, 1).unwrap();
        assert!(none.sockets.is_empty());
        let env = |name: &str| match name {
            "LISTEN_PID" => Some("2".into()),
            "LISTEN_FDS" => Some("1".into()),
            _ => None,
        };
        assert!(PassedSockets::from_env(env, 1).unwrap().sockets.is_empty());
        let env = |name: &str| match name {
            "LISTEN_PID" => Some("1".into()),
            "LISTEN_FDS" => Some("many".into()),
            _ => None,
        };
        let why = PassedSockets::from_env(env, 1).unwrap_err();
        assert_eq!(why, "LISTEN_FDS=\"many\" is not a number");
    }
}
