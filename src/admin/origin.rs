//! Which names are ours and which web pages are: pure functions over one request's head, used by `guard`. They close
//! DNS rebinding (a name of the attacker's that points at us) and requests of other sites' pages.

use std::net::{IpAddr, SocketAddr};

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header, uri::Authority};

use super::problem::{Problem, Refusal};
use crate::config::admin::AdminSpec;
use crate::config::scalar::ListenAddr;

/// The one `Host` of a request.
pub(super) fn host(request: &Request) -> Result<Authority, Refusal> {
    let bad = |detail| Problem::new(StatusCode::BAD_REQUEST, "bad-host", detail);
    let mut values = request.headers().get_all(header::HOST).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(bad("exactly one Host header is needed"));
    };
    let authority =
        Authority::try_from(value.as_bytes()).map_err(|_| bad("Host is not a host and port"))?;
    if authority.as_str().contains('@') {
        return Err(bad("Host is not a host and port"));
    }
    Ok(authority)
}

/// Loopback names and addresses, the address we listen on itself, and what the configuration allows. A name that an
/// attacker owns and points at us is none of these.
pub(super) fn known_host(spec: &AdminSpec, host: &str) -> bool {
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .trim_end_matches('.')
        .to_ascii_lowercase();
    if host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        let own = match &spec.listen {
            ListenAddr::Tcp(address) => !address.ip().is_unspecified() && address.ip() == ip,
            ListenAddr::Unix(_) => false,
        };
        if own || ip.to_canonical().is_loopback() {
            return true;
        }
    }
    let plain = |name: &str| {
        name.trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase()
    };
    spec.allowed_hosts
        .iter()
        .any(|allowed| plain(allowed) == host)
}

pub(super) fn foreign_host(host: &str) -> Refusal {
    let detail = format!(
        "`{host}` is not one of this API's names; add it to admin.allowed_hosts if it should be"
    );
    Problem::new(StatusCode::FORBIDDEN, "foreign-host", detail)
}

pub(super) fn foreign_origin() -> Refusal {
    let detail = "the request comes from another web page; this API takes none of those";
    Problem::new(StatusCode::FORBIDDEN, "foreign-origin", detail)
}

/// Refuses what a browser sends for any page but our own.
pub(super) fn own_origin(
    headers: &HeaderMap,
    host: &Authority,
    secure: bool,
) -> Result<(), Refusal> {
    let sites = headers.get_all("sec-fetch-site");
    if sites
        .iter()
        .any(|site| site != "same-origin" && site != "none")
    {
        return Err(foreign_origin());
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else {
        return Ok(());
    };
    let own = origins.next().is_none()
        && origin
            .to_str()
            .is_ok_and(|origin| is_own(origin, host, secure));
    if own { Ok(()) } else { Err(foreign_origin()) }
}

/// An origin is ours when it names the very host and port the request was sent to, with the scheme it came by. `https`
/// on a cleartext connection can only be ours under a name that was allowed by hand: a TLS proxy in front of us then.
pub(super) fn is_own(origin: &str, host: &Authority, secure: bool) -> bool {
    let Some((scheme, rest)) = origin.split_once("://") else {
        return false;
    };
    let loopback = AdminSpec {
        listen: ListenAddr::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))),
        token: None,
        tokens: Default::default(),
        read_tokens: Default::default(),
        monitor: None,
        tls: None,
        allowed_hosts: Vec::new(),
    };
    let default = match scheme {
        "http" if !secure => 80,
        "https" if secure || !known_host(&loopback, host.host()) => 443,
        _ => return false,
    };
    let Ok(origin) = rest.parse::<Authority>() else {
        return false;
    };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default);
    origin.host().eq_ignore_ascii_case(host.host()) && port(&origin) == port(host)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(hosts: &[&str]) -> AdminSpec {
        AdminSpec {
            listen: ListenAddr::Tcp("10.0.0.5:8837".parse().unwrap()),
            token: None,
            tokens: Default::default(),
            read_tokens: Default::default(),
            monitor: None,
            tls: None,
            allowed_hosts: hosts.iter().map(|host| host.to_string()).collect(),
        }
    }

    #[test]
    fn hosts_that_can_be_ours() {
        let spec = spec(&["admin.example"]);
        for host in [
            "localhost",
            "LOCALHOST",
            "127.0.0.1",
            "127.9.9.9",
            "[::1]",
            "10.0.0.5",
            "admin.example",
            "a.localhost",
        ] {
            assert!(known_host(&spec, host), "{host}");
        }
        for host in [
            "evil.example",
            "10.0.0.6",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "0.0.0.0",
            "",
            "[::]",
        ] {
            assert!(!known_host(&spec, host), "{host}");
        }
    }

    #[test]
    fn origins_that_can_be_ours() {
        let host = |text: &str| text.parse::<Authority>().unwrap();
        assert!(is_own(
            "http://127.0.0.1:8837",
            &host("127.0.0.1:8837"),
            false
        ));
        assert!(is_own("http://localhost", &host("localhost:80"), false));
        assert!(is_own(
            "https://admin.example",
            &host("admin.example"),
            false
        ));
        assert!(is_own(
            "https://127.0.0.1:8837",
            &host("127.0.0.1:8837"),
            true
        ));
        assert!(is_own("https://localhost", &host("localhost:443"), true));
        assert!(!is_own(
            "http://127.0.0.1:8837",
            &host("127.0.0.1:8837"),
            true
        ));
        for (origin, at) in [
            ("null", "127.0.0.1:8837"),
            ("http://127.0.0.1:8838", "127.0.0.1:8837"),
            ("https://127.0.0.1:8837", "127.0.0.1:8837"),
            ("http://localhost:8837", "127.0.0.1:8837"),
            ("http://evil.example", "127.0.0.1:8837"),
            ("file://", "127.0.0.1:8837"),
            ("", "127.0.0.1:8837"),
        ] {
            assert!(!is_own(origin, &host(at), false), "{origin} at {at}");
        }
    }

    proptest! {
        #[test]
        fn no_name_outside_loopback_is_known(host in "[a-z0-9.-]{1,30}\\.example") {
            prop_assert!(!known_host(&spec(&[]), &host));
        }
    }
}
