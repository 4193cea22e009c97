//! Choices that sessions are given as one word.

/// How far a session may go on while the gateway drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// Finish what is in flight, then leave.
    Finish,
    /// The drain time is over: leave now.
    Leave,
}

/// What the log gets of a connection that ended badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failures {
    /// All that is remembered of it.
    Everything,
    /// The same without its frames.
    Steps,
    /// Nothing beside its closing line.
    Nothing,
}

/// How a client learns that no backend takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBackendFailure {
    /// The upgrade is completed, then closed with a code and a reason, which scripts in a browser
    /// can read.
    Close,
    /// The backend's own HTTP answer, else 502 or 504.
    Http,
}
