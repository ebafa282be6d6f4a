//! Why somebody does not get where he wants to go.

use std::net::SocketAddr;

use super::rules::Verdict;
use super::socks::Reply;
use super::target::Destination;
use crate::upstream::error::{Error, Kind, Side};
use http::StatusCode;

/// Why somebody does not get where he wants to go. Its kind gives the status and `Proxy-Status` of HTTP, and with
/// [`Refused::reply`] the code of SOCKS.
#[derive(Debug, Clone)]
pub struct Refused {
    pub error: Error,
    /// There is no way to that network, rather than to that host.
    network: bool,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused {
            error,
            network: false,
        }
    }
}

impl Refused {
    /// Rules say so. `address`: that of a name for which it was found.
    pub(super) fn denied(to: &Destination, address: Option<SocketAddr>) -> Refused {
        let found = match (to, address) {
            (Destination::Name(..), Some(address)) => format!(" ({})", address.ip()),
            _ => String::new(),
        };
        let detail = format!("{to}{found} is not allowed here");
        Refused::by_rule(Kind::HttpRequestDenied, detail)
    }

    pub(super) fn of(verdict: Verdict, to: &Destination, address: SocketAddr) -> Refused {
        if verdict != Verdict::Prohibited {
            return Refused::denied(to, Some(address));
        }
        let detail = format!("{to} is {address}, which is denied by default");
        Refused::by_rule(Kind::DestinationIpProhibited, detail)
    }

    fn by_rule(kind: Kind, detail: String) -> Refused {
        let error = Error {
            status: Some(StatusCode::FORBIDDEN),
            ..Error::new(kind, Side::Client, detail).unsent()
        };
        error.into()
    }

    /// What dialling came to.
    pub(super) fn dial(error: &std::io::Error, address: SocketAddr) -> Refused {
        Refused {
            network: error.kind() == std::io::ErrorKind::NetworkUnreachable,
            error: Error::dial(error, &address),
        }
    }

    /// True if rules say so, and not the network.
    pub fn is_by_rule(&self) -> bool {
        matches!(
            self.error.kind,
            Kind::HttpRequestDenied | Kind::DestinationIpProhibited
        )
    }

    /// The code of SOCKS5 (RFC 1928 section 6).
    pub fn reply(&self) -> Reply {
        match self.error.kind {
            Kind::HttpRequestDenied | Kind::DestinationIpProhibited => Reply::NotAllowed,
            Kind::ConnectionRefused => Reply::Refused,
            Kind::DestinationUnavailable if self.network => Reply::NetworkUnreachable,
            Kind::DestinationUnavailable | Kind::DnsError | Kind::DnsTimeout => {
                Reply::HostUnreachable
            }
            Kind::ConnectionTimeout => Reply::Expired,
            Kind::ConnectionTerminated
            | Kind::ConnectionReadTimeout
            | Kind::ConnectionLimitReached
            | Kind::TlsProtocolError
            | Kind::TlsCertificateError
            | Kind::TlsAlertReceived
            | Kind::HttpRequestError
            | Kind::HttpProtocolError
            | Kind::HttpResponseIncomplete
            | Kind::HttpResponseTimeout
            | Kind::HttpUpgradeFailed
            | Kind::ProxyConfigurationError
            | Kind::ProxyInternalError
            | Kind::ProxyLoopDetected => Reply::Failed,
        }
    }
}
