//! The one vocabulary of failure on the data plane: the registered names of RFC 9209 (`Proxy-Status`), whose fault it was, and
//! whether another try is safe. `http::error` maps it to a response; nothing else chooses a status.

use std::fmt;
use std::io;

use ::http::StatusCode;

/// RFC 9209 section 2.3 error types, as far as they can occur here, plus what the RFC leaves to the request's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    DnsTimeout,
    DnsError,
    DestinationUnavailable,
    /// A forward proxy does not go there: the address is denied by default.
    DestinationIpProhibited,
    /// A forward proxy does not go there: a rule says so.
    HttpRequestDenied,
    ConnectionRefused,
    ConnectionTerminated,
    ConnectionTimeout,
    ConnectionReadTimeout,
    ConnectionLimitReached,
    TlsProtocolError,
    TlsCertificateError,
    TlsAlertReceived,
    HttpRequestError,
    HttpProtocolError,
    HttpResponseIncomplete,
    HttpResponseTimeout,
    HttpUpgradeFailed,
    ProxyConfigurationError,
    ProxyInternalError,
    ProxyLoopDetected,
}

impl Kind {
    /// The registered token (RFC 9209 section 2.3), as it stands in `Proxy-Status`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::DnsTimeout => "dns_timeout",
            Kind::DnsError => "dns_error",
            Kind::DestinationUnavailable => "destination_unavailable",
            Kind::DestinationIpProhibited => "destination_ip_prohibited",
            Kind::HttpRequestDenied => "http_request_denied",
            Kind::ConnectionRefused => "connection_refused",
            Kind::ConnectionTerminated => "connection_terminated",
            Kind::ConnectionTimeout => "connection_timeout",
            Kind::ConnectionReadTimeout => "connection_read_timeout",
            Kind::ConnectionLimitReached => "connection_limit_reached",
            Kind::TlsProtocolError => "tls_protocol_error",
            Kind::TlsCertificateError => "tls_certificate_error",
            Kind::TlsAlertReceived => "tls_alert_received",
            Kind::HttpRequestError => "http_request_error",
            Kind::HttpProtocolError => "http_protocol_error",
            Kind::HttpResponseIncomplete => "http_response_incomplete",
            Kind::HttpResponseTimeout => "http_response_timeout",
            Kind::HttpUpgradeFailed => "http_upgrade_failed",
            Kind::ProxyConfigurationError => "proxy_configuration_error",
            Kind::ProxyInternalError => "proxy_internal_error",
            Kind::ProxyLoopDetected => "proxy_loop_detected",
        }
    }

    /// The status that RFC 9209 section 2.3 recommends. `http_request_error` is "the applicable 4xx", 400 unless
    /// [`Error::status`] knows better.
    pub fn status(self) -> StatusCode {
        match self {
            Kind::HttpRequestError => StatusCode::BAD_REQUEST,
            Kind::ProxyConfigurationError | Kind::ProxyInternalError => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Kind::HttpRequestDenied => StatusCode::FORBIDDEN,
            Kind::DnsError
            | Kind::DestinationIpProhibited
            | Kind::ConnectionRefused
            | Kind::ConnectionTerminated
            | Kind::TlsProtocolError
            | Kind::TlsCertificateError
            | Kind::TlsAlertReceived
            | Kind::HttpProtocolError
            | Kind::HttpResponseIncomplete
            | Kind::HttpUpgradeFailed
            | Kind::ProxyLoopDetected => StatusCode::BAD_GATEWAY,
            Kind::DestinationUnavailable | Kind::ConnectionLimitReached => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Kind::DnsTimeout
            | Kind::ConnectionTimeout
            | Kind::ConnectionReadTimeout
            | Kind::HttpResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose fault it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Upstream,
    Us,
}

/// A failure on the data plane.
#[derive(Debug, Clone)]
pub struct Error {
    pub kind: Kind,
    pub side: Side,
    /// True when nothing of the request can have reached the origin's application, so that any method may be tried again.
    pub unsent: bool,
    /// For the log; never shown to the client.
    pub detail: String,
    /// A status that fits better than the kind's own (400, 408, 413 for a client's body).
    pub status: Option<StatusCode>,
}

impl Error {
    /// A failure that may have reached the origin, with its kind's own status.
    pub fn new(kind: Kind, side: Side, detail: impl Into<String>) -> Error {
        Error {
            kind,
            side,
            unsent: false,
            detail: detail.into(),
            status: None,
        }
    }

    /// The origin's or the network's fault.
    pub fn upstream(kind: Kind, detail: impl Into<String>) -> Error {
        Error::new(kind, Side::Upstream, detail)
    }

    /// The client's fault, answered with `status`.
    pub fn client(status: StatusCode, detail: impl Into<String>) -> Error {
        Error {
            status: Some(status),
            ..Error::new(Kind::HttpRequestError, Side::Client, detail)
        }
    }

    /// Our own fault or want.
    pub fn us(kind: Kind, detail: impl Into<String>) -> Error {
        Error::new(kind, Side::Us, detail)
    }

    /// The same failure, known to have happened before anything was sent.
    pub fn unsent(self) -> Error {
        Error {
            unsent: true,
            ..self
        }
    }

    /// The status to answer with.
    pub fn status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| self.kind.status())
    }

    /// A dial to `peer` that failed: always unsent.
    pub fn dial(error: &io::Error, peer: &dyn fmt::Display) -> Error {
        use io::ErrorKind as K;
        let detail = format!("connect to {peer}: {error}");
        match error.kind() {
            K::ConnectionRefused => Error::upstream(Kind::ConnectionRefused, detail),
            K::TimedOut => Error::upstream(Kind::ConnectionTimeout, detail),
            K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe => {
                Error::upstream(Kind::ConnectionTerminated, detail)
            }
            _ if out_of_resources(error) => Error::us(Kind::ProxyInternalError, detail),
            _ => Error::upstream(Kind::DestinationUnavailable, detail),
        }
        .unsent()
    }

    /// A TLS handshake with `peer` that failed: always unsent.
    pub(super) fn handshake(error: &io::Error, peer: &dyn fmt::Display) -> Error {
        let detail = format!("TLS with {peer}: {error}");
        let kind = tls_kind(error).unwrap_or(Kind::ConnectionTerminated);
        Error::upstream(kind, detail).unsent()
    }

    /// What hyper's client says about an exchange whose response head never came whole.
    pub(super) fn exchange(error: &hyper::Error, peer: &dyn fmt::Display) -> Error {
        let detail = format!("{peer}: {}", chain(error));
        if let Some(kind) = tls_kind(error) {
            // A target that wants another certificate of us says so after the handshake (RFC 8446 section 4.4.2).
            Error::upstream(kind, detail)
        } else if let Some(error) = cause::<h2::Error>(error) {
            Error::stream(error, detail)
        } else if error.is_parse() {
            Error::upstream(Kind::HttpProtocolError, detail)
        } else if error.is_user() && !driver_gone(error) {
            // A request that hyper refuses to write: the plane let something through.
            Error::us(Kind::ProxyInternalError, detail)
        } else {
            Error::upstream(Kind::ConnectionTerminated, detail)
        }
    }
}

impl Error {
    /// Why an HTTP/2 stream came to nothing. A refused one was not looked at (RFC 9113 section 8.7), nor one beyond the
    /// last that a GOAWAY names, which is how h2 tells it.
    fn stream(error: &h2::Error, detail: String) -> Error {
        match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => {
                Error::upstream(Kind::ConnectionTerminated, detail).unsent()
            }
            _ if error.is_go_away() && error.is_remote() => {
                Error::upstream(Kind::ConnectionTerminated, detail).unsent()
            }
            // The stream alone, or the connection, was ended on purpose.
            Some(h2::Reason::NO_ERROR | h2::Reason::CANCEL) | None => {
                Error::upstream(Kind::ConnectionTerminated, detail)
            }
            Some(_) => Error::upstream(Kind::HttpProtocolError, detail),
        }
    }
}

/// The cause of a kind, however deep.
pub(super) fn cause<'e, T: std::error::Error + 'static>(
    error: &'e (dyn std::error::Error + 'static),
) -> Option<&'e T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>() {
            // Its own source is that of what it wraps.
            Some(io) => io.get_ref().map(|inner| inner as _),
            None => error.source(),
        };
    }
    None
}

/// What of TLS is behind it, if anything is.
pub(super) fn tls_kind(error: &(dyn std::error::Error + 'static)) -> Option<Kind> {
    use rustls::Error as E;
    Some(match cause::<E>(error)? {
        E::AlertReceived(_) => Kind::TlsAlertReceived,
        E::InvalidCertificate(_) | E::NoCertificatesPresented | E::UnsupportedNameType => {
            Kind::TlsCertificateError
        }
        _ => Kind::TlsProtocolError,
    })
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?}): {}", self.kind, self.side, self.detail)
    }
}

impl std::error::Error for Error {}

/// An error and its causes in one line; hyper's own text leaves the cause out.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// hyper files "the connection's task is gone" under user errors, but a task that went (its worker ended) is a lost
/// connection. No predicate tells the two apart: the text is the only sign.
fn driver_gone(error: &hyper::Error) -> bool {
    std::error::Error::source(error)
        .is_some_and(|cause| cause.to_string().contains("dispatch task"))
}

/// Descriptors, memory or buffers ran out here: not the target's fault.
fn out_of_resources(error: &io::Error) -> bool {
    #[cfg(unix)]
    if let Some(code) = rustix::io::Errno::from_io_error(error) {
        use rustix::io::Errno;
        return matches!(
            code,
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM
        );
    }
    error.kind() == io::ErrorKind::OutOfMemory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_token_and_an_error_status() {
        use Kind::*;
        let table = [
            (DnsTimeout, "dns_timeout", 504),
            (DnsError, "dns_error", 502),
            (DestinationUnavailable, "destination_unavailable", 503),
            (ConnectionRefused, "connection_refused", 502),
            (ConnectionTerminated, "connection_terminated", 502),
            (ConnectionTimeout, "connection_timeout", 504),
            (ConnectionReadTimeout, "connection_read_timeout", 504),
            (ConnectionLimitReached, "connection_limit_reached", 503),
            (TlsProtocolError, "tls_protocol_error", 502),
            (TlsCertificateError, "tls_certificate_error", 502),
            (TlsAlertReceived, "tls_alert_received", 502),
            (HttpRequestError, "http_request_error", 400),
            (HttpProtocolError, "http_protocol_error", 502),
            (HttpResponseIncomplete, "http_response_incomplete", 502),
            (HttpResponseTimeout, "http_response_timeout", 504),
            (HttpUpgradeFailed, "http_upgrade_failed", 502),
            (ProxyConfigurationError, "proxy_configuration_error", 500),
            (ProxyInternalError, "proxy_internal_error", 500),
            (ProxyLoopDetected, "proxy_loop_detected", 502),
        ];
        for (kind, name, status) in table {
            assert_eq!((kind.name(), kind.status().as_u16()), (name, status));
        }
    }

    #[test]
    fn a_clients_error_keeps_its_own_status() {
        let error = Error::client(StatusCode::PAYLOAD_TOO_LARGE, "10 bytes over");
        assert_eq!(
            (error.status().as_u16(), error.side, error.unsent),
            (413, Side::Client, false)
        );
        assert_eq!(
            error.to_string(),
            "http_request_error (Client): 10 bytes over"
        );
    }

    #[test]
    fn dial_errors_are_named_by_their_cause() {
        let of = |kind| Error::dial(&io::Error::from(kind), &"10.0.0.1:80");
        assert_eq!(
            of(io::ErrorKind::ConnectionRefused).kind,
            Kind::ConnectionRefused
        );
        assert_eq!(of(io::ErrorKind::TimedOut).kind, Kind::ConnectionTimeout);
        assert_eq!(
            of(io::ErrorKind::HostUnreachable).kind,
            Kind::DestinationUnavailable
        );
        assert!(of(io::ErrorKind::NotFound).unsent);
        #[cfg(unix)]
        assert_eq!(
            Error::dial(
                &io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()),
                &"x"
            )
            .side,
            Side::Us
        );
    }
}
