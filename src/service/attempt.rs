//! Why an attempt to reach a backend failed, and whose fault that is.
//!
//! The connector reports one of these errors for each failed attempt. [`AttemptError::fault`]
//! decides what happens next: only a fault of the backend makes it rest, and a shortage on this
//! machine is never blamed on a backend. The `Display` text goes to the client behind `backend
//! unavailable: `, so it names neither addresses nor anything else a stranger should not learn.

use crate::proto::http::reason_phrase;
use std::fmt;
use std::io::{self, ErrorKind};

/// Why one attempt to reach a backend failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub enum AttemptError {
    /// There is no backend to try.
    NoBackend,
    /// This machine lacks what a connection needs: file descriptors, local ports or memory.
    Local { errno: i32 },
    /// The backend's name has no address.
    NameNotFound,
    /// The name was not looked up in time.
    LookupTimedOut,
    /// Nothing listens at the address.
    Refused,
    /// The connection was not accepted in time.
    ConnectTimedOut,
    /// As many connections as may wait at its Unix socket do already.
    QueueFull,
    /// This machine has no route to the address.
    Unreachable,
    /// The connection was reset, by the backend or by something on the way.
    Reset,
    /// The backend's certificate is not valid, not for this name, or from an unknown root.
    Untrusted,
    /// The TLS handshake failed for another reason.
    TlsFailed,
    /// Any other error of the kernel while connecting.
    CannotConnect,
    /// The backend ended the connection before it had answered.
    Unanswered,
    /// The backend accepted the connection and did not answer in time.
    AnswerTimedOut,
    /// The same of a request of plain HTTP.
    ResponseTimedOut,
    /// The answer is not what its protocol allows. The phrase says what is wrong, for the log.
    Malformed(&'static str),
    /// The answer is sound, but not the upgrade that was asked for. The phrase is for the log.
    NotUpgraded(&'static str),
    /// The backend answered with this HTTP status, which says that it cannot serve at the moment.
    Status(u16),
}

/// Whose fault a failed attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptFault {
    /// This machine's: the backend may be well.
    Local,
    /// The name service's, or a wrong name in the configuration.
    Lookup,
    /// The backend's, or that of the network in between, as far as can be seen from here.
    Backend,
}

impl AttemptError {
    /// What `error` of connecting, or of the first write, says.
    pub fn of_connecting(error: &io::Error) -> AttemptError {
        if let Some(errno) = error.raw_os_error()
            && is_shortage(errno)
        {
            return AttemptError::Local { errno };
        }
        match error.kind() {
            ErrorKind::OutOfMemory => AttemptError::Local { errno: libc::ENOMEM },
            ErrorKind::ConnectionRefused => AttemptError::Refused,
            ErrorKind::TimedOut => AttemptError::ConnectTimedOut,
            ErrorKind::ResourceBusy => AttemptError::QueueFull,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => AttemptError::Unreachable,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => AttemptError::Reset,
            // Only TLS has these two.
            ErrorKind::UnexpectedEof => AttemptError::Unanswered,
            ErrorKind::InvalidData => AttemptError::TlsFailed,
            _ => AttemptError::CannotConnect,
        }
    }

    /// Whose fault it is.
    pub fn fault(self) -> AttemptFault {
        match self {
            AttemptError::NoBackend | AttemptError::Local { .. } => AttemptFault::Local,
            AttemptError::NameNotFound | AttemptError::LookupTimedOut => AttemptFault::Lookup,
            _ => AttemptFault::Backend,
        }
    }

    /// Whether time ran out, which HTTP answers with 504 instead of 502.
    pub fn is_timeout(self) -> bool {
        matches!(
            self,
            AttemptError::LookupTimedOut
                | AttemptError::ConnectTimedOut
                | AttemptError::AnswerTimedOut
                | AttemptError::ResponseTimedOut
        )
    }

    /// What else is known, for the log alone.
    pub fn cause(self) -> Cause {
        Cause(self)
    }

    /// Whether a connection was established before the attempt failed.
    pub fn is_after_connecting(self) -> bool {
        matches!(
            self,
            AttemptError::Untrusted
                | AttemptError::TlsFailed
                | AttemptError::Unanswered
                | AttemptError::AnswerTimedOut
                | AttemptError::ResponseTimedOut
                | AttemptError::Malformed(_)
                | AttemptError::NotUpgraded(_)
                | AttemptError::Status(_)
        )
    }
}

/// What the log says about a failure besides its phrase: ` why="…"`, or nothing.
#[derive(Debug, Clone, Copy)]
pub struct Cause(AttemptError);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            AttemptError::Local { errno } => {
                write!(f, " why=\"{}\"", io::Error::from_raw_os_error(errno))
            }
            AttemptError::Malformed(why) | AttemptError::NotUpgraded(why) => {
                write!(f, " why=\"{why}\"")
            }
            _ => Ok(()),
        }
    }
}

/// Whether the kernel refused a connection because this machine has run out of something.
///
/// `EADDRNOTAVAIL` and `EADDRINUSE`: all local ports to that address are taken. `EAGAIN`: no room
/// in the routing tables (`connect(2)`).
fn is_shortage(errno: i32) -> bool {
    matches!(
        errno,
        libc::EMFILE
            | libc::ENFILE
            | libc::ENOMEM
            | libc::ENOBUFS
            | libc::EADDRNOTAVAIL
            | libc::EADDRINUSE
            | libc::EAGAIN
    )
}

/// The phrase for the client.
impl fmt::Display for AttemptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AttemptError::NoBackend => "no backend is configured",
            AttemptError::Local { .. } => "the gateway is out of resources",
            AttemptError::NameNotFound => "its name was not found",
            AttemptError::LookupTimedOut => "its name could not be looked up in time",
            AttemptError::Refused => "connection refused",
            AttemptError::ConnectTimedOut => "connecting timed out",
            AttemptError::QueueFull => "it accepts no further connection at the moment",
            AttemptError::Unreachable => "no route to it",
            AttemptError::Reset => "connection reset",
            AttemptError::Untrusted => "its certificate is not accepted",
            AttemptError::TlsFailed => "the TLS handshake with it failed",
            AttemptError::CannotConnect => "could not connect",
            AttemptError::Unanswered => "it closed the connection without an answer",
            AttemptError::AnswerTimedOut => "no answer to the upgrade in time",
            AttemptError::ResponseTimedOut => "no answer in time",
            AttemptError::Malformed(_) => "its answer was not understood",
            AttemptError::NotUpgraded(_) => "its answer was not a WebSocket upgrade",
            AttemptError::Status(status) => {
                write!(f, "it answered {status}")?;
                return match reason_phrase(*status) {
                    "" => Ok(()),
                    phrase => write!(f, " {phrase}"),
                };
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortages_of_this_machine_are_no_fault_of_a_backend() {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::EADDRNOTAVAIL]
        {
            let error = AttemptError::of_connecting(&io::Error::from_raw_os_error(errno));
            assert_eq!(error, AttemptError::Local { errno });
            assert_eq!(error.fault(), AttemptFault::Local);
        }
        let error = AttemptError::of_connecting(&ErrorKind::OutOfMemory.into());
        assert_eq!(error.fault(), AttemptFault::Local);
        let error = AttemptError::of_connecting(&ErrorKind::ResourceBusy.into());
        assert_eq!((error, error.fault()), (AttemptError::QueueFull, AttemptFault::Backend));
    }

    #[test]
    fn errors_of_connecting_are_told_apart() {
        for (errno, error, phrase) in [
            (libc::ECONNREFUSED, AttemptError::Refused, "connection refused"),
            (libc::ETIMEDOUT, AttemptError::ConnectTimedOut, "connecting timed out"),
            (libc::EHOSTUNREACH, AttemptError::Unreachable, "no route to it"),
            (libc::ENETUNREACH, AttemptError::Unreachable, "no route to it"),
            (libc::ECONNRESET, AttemptError::Reset, "connection reset"),
            (libc::EPIPE, AttemptError::Reset, "connection reset"),
            (libc::EPERM, AttemptError::CannotConnect, "could not connect"),
        ] {
            let found = AttemptError::of_connecting(&io::Error::from_raw_os_error(errno));
            assert_eq!(found, error);
            assert_eq!(found.fault(), AttemptFault::Backend);
            assert_eq!(found.to_string(), phrase);
        }
    }

    #[test]
    fn a_status_is_named_where_it_has_a_name() {
        let phrase = |status| AttemptError::Status(status).to_string();
        assert_eq!(phrase(503), "it answered 503 Service Unavailable");
        assert_eq!(phrase(499), "it answered 499");
    }
}
