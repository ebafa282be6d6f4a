//! The one vocabulary of failure on the data plane: the registered names of RFC 9209 (`Proxy-Status`), whose fault it was, and
//! whether another try is safe. `http::error` maps it to a response; nothing else chooses a status.

use std::fmt;

/// RFC 9209 section 2.3 error types, as far as they can occur here, plus what the RFC leaves to the request's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    DnsTimeout,
    DnsError,
    DestinationNotFound,
    DestinationUnavailable,
    ConnectionRefused,
    ConnectionTerminated,
    ConnectionTimeout,
    ConnectionReadTimeout,
    ConnectionWriteTimeout,
    ConnectionLimitReached,
    HttpRequestError,
    HttpRequestDenied,
    HttpProtocolError,
    HttpResponseIncomplete,
    HttpResponseTimeout,
    HttpUpgradeFailed,
    ProxyConfigurationError,
    ProxyInternalError,
    ProxyLoopDetected,
}

/// Whose fault it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Upstream,
    Us,
}

/// A failure on the data plane.
#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    pub side: Side,
    /// True when nothing of the request can have reached the origin's application, so that any method may be tried again.
    pub unsent: bool,
    /// For the log; never shown to the client.
    pub detail: String,
    /// A status that fits better than the kind's own (400, 408, 413 for a client's body).
    pub status: Option<::http::StatusCode>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({:?}): {}", self.kind, self.side, self.detail)
    }
}

impl std::error::Error for Error {}
