//! What a client of SOCKS asks for, and what it hears when that is not met.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;

use crate::forward::Destination;
use crate::forward::socks::{Reply, v4, v5};
use crate::session::Kind;

/// A request that is not met.
pub(super) struct Refusal {
    /// What the client hears.
    pub(super) last: Vec<u8>,
    pub(super) kind: Kind,
    /// Whom authentication found.
    pub(super) user: Option<Arc<str>>,
    pub(super) to: Option<Box<str>>,
    /// What HTTP would have answered.
    pub(super) status: u16,
}

impl Refusal {
    pub(super) fn new(version: Version, last: Vec<u8>, status: StatusCode) -> Refusal {
        Refusal {
            last,
            kind: version.kind(),
            user: None,
            to: None,
            status: status.as_u16(),
        }
    }
}

/// What a client asks for.
pub(super) struct Asked {
    pub(super) version: Version,
    pub(super) user: Option<Arc<str>>,
    pub(super) what: What,
}

pub(super) enum What {
    Connect(Destination),
    Associate,
}

impl Asked {
    pub(super) fn kind(&self) -> Kind {
        match self.what {
            What::Connect(_) => self.version.kind(),
            What::Associate => Kind::SocksUdp,
        }
    }

    pub(super) fn to(&self) -> Option<Box<str>> {
        match &self.what {
            What::Connect(to) => Some(to.to_string().into()),
            What::Associate => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Socks4,
    Socks5,
}

impl Version {
    pub(super) fn kind(self) -> Kind {
        match self {
            Version::Socks4 => Kind::Socks4,
            Version::Socks5 => Kind::Socks5,
        }
    }

    pub(super) fn refusal(self, reply: Reply) -> Vec<u8> {
        match self {
            Version::Socks4 => v4::REFUSED.to_vec(),
            Version::Socks5 => v5::refusal(reply),
        }
    }

    pub(super) fn success(self, bound: Option<SocketAddr>) -> Vec<u8> {
        match (self, bound) {
            (Version::Socks4, _) => v4::GRANTED.to_vec(),
            (Version::Socks5, Some(bound)) => v5::reply(Reply::Succeeded, bound),
            (Version::Socks5, None) => v5::refusal(Reply::Succeeded),
        }
    }
}

/// Why a handshake comes to nothing.
pub(super) enum Over {
    /// The client left, or speaks nothing that could be answered.
    Silently,
    With(Box<Refusal>),
    /// It is HTTP, which is spoken elsewhere.
    Http,
}

impl Over {
    pub(super) fn with(version: Version, last: impl Into<Vec<u8>>, status: StatusCode) -> Over {
        Over::With(Box::new(Refusal::new(version, last.into(), status)))
    }
}

/// A request that nobody could meet.
pub(super) fn bad(version: Version, reply: Reply, user: &Option<Arc<str>>) -> Over {
    let last = version.refusal(reply);
    let refusal = Refusal::new(version, last, StatusCode::BAD_REQUEST);
    let user = user.clone();
    Over::With(Box::new(Refusal { user, ..refusal }))
}
