//! HTTP/1 towards an origin: one request at a time on a connection, driven by whoever waits for the answer.
//!
//! There is no task and no channel between the request and its socket: the head is written where it is made, the answer is
//! read where it is wanted, and its fields and body are slices of what was read. It promises: the length of a message is
//! never a matter of taste (RFC 9112 section 6.3), what is cut is never taken for whole, everything that is buffered has a
//! bound, and a connection is used again only if both messages on it have ended and nothing came after them.

mod chunked;
mod connection;
mod decode;
mod encode;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub(super) use connection::{Heard, Http1};

use std::fmt;
use std::io;

use super::error::{Error, Kind, chain, tls_kind};

/// Bytes of a response head, and of its trailers.
pub(super) const HEAD: usize = 64 * 1024;
/// Fields of either.
const FIELDS: usize = 100;
/// Interim responses to one request; more is a broken origin, which would hold a client and a core until the response
/// timeout, if there is one. A long operation may well send some (102, 103).
pub(super) const INTERIM: u32 = 100;

/// Why there is no answer, or no more of it.
#[derive(Debug)]
pub(super) enum Fault {
    /// The origin closed before a message was whole.
    Closed,
    Io(io::Error),
    /// What it says is no HTTP/1.
    Malformed(String),
}

impl Fault {
    /// As the error of an exchange with `peer` whose head never came whole.
    pub(super) fn error(&self, peer: &dyn fmt::Display) -> Error {
        let kind = match self {
            // A target that wants another certificate of us says so after the handshake (RFC 8446 section 4.4.2).
            Fault::Io(error) => tls_kind(error).unwrap_or(Kind::ConnectionTerminated),
            Fault::Closed => Kind::ConnectionTerminated,
            Fault::Malformed(_) => Kind::HttpProtocolError,
        };
        Error::upstream(kind, format!("{peer}: {self}"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Closed => f.write_str("closed before its answer was whole"),
            Fault::Io(error) => f.write_str(&chain(error)),
            Fault::Malformed(why) => write!(f, "its answer is not HTTP/1: {why}"),
        }
    }
}
