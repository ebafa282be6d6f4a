//! What addresses present over TLS.

use crate::config::forward::ForwardSpec;
use crate::config::http::{Alpn, HttpSpec, TlsVersion};
use crate::config::tcp::TcpSpec;
use crate::document::Document;
use crate::tls;
use crate::tls::store::{Material, forward_name, tcp_name, tunnel_name};

pub(super) fn tunnel_tls(
    name: &str,
    certificates: &Material,
    shared: &tls::Shared,
) -> Option<tls::Server> {
    let name = tunnel_name(name);
    let presented = tls::Presented {
        hosts: &[],
        certificates: certificates.of(&name),
        client_auth: certificates.client_auth(&name),
    };
    let made = tls::Server::new(&[presented], TlsVersion::V13, &[], shared);
    // As in `presented`.
    made.inspect_err(|error| tracing::error!(%error, "a tunnel cannot present anything"))
        .ok()
}

/// What the admin API presents: HTTP/1.1 is all that it speaks.
pub(super) fn admin_tls(
    document: &Document,
    certificates: &Material,
    shared: &tls::Shared,
) -> Option<tls::Server> {
    document.admin.tls.as_ref()?;
    let presented = tls::Presented {
        hosts: &[],
        certificates: certificates.of(&tls::store::ADMIN),
        client_auth: certificates.client_auth(&tls::store::ADMIN),
    };
    let made = tls::Server::new(&[presented], TlsVersion::V12, &[Alpn::Http1], shared);
    // As in `presented`.
    made.inspect_err(|error| tracing::error!(%error, "the admin API cannot present anything"))
        .ok()
}

/// What the servers of an address present. First comes the server without `hosts`, which is there for clients whose name
/// nobody knows, then the others by name.
pub(super) fn presented(
    specs: &[&HttpSpec],
    certificates: &Material,
    shared: &tls::Shared,
) -> Option<tls::Server> {
    let connection = &specs.first()?.connection;
    let (default, named): (Vec<&HttpSpec>, Vec<&HttpSpec>) =
        specs.iter().copied().partition(|s| s.hosts.is_empty());
    let oldest = connection.tls?;
    let servers = default.into_iter().chain(named);
    let all: Vec<_> = servers
        .map(|spec| tls::Presented {
            hosts: &spec.hosts,
            certificates: certificates.of(&spec.name),
            client_auth: certificates.client_auth(&spec.name),
        })
        .collect();
    let made = tls::Server::new(&all, oldest, &connection.alpn, shared);
    // It fails for versions of TLS that are not in the library, and those we name are.
    made.inspect_err(|error| tracing::error!(%error, "an address cannot present anything"))
        .ok()
}

/// What a forward proxy presents; `None`: it is cleartext.
pub(super) fn presented_by(
    spec: &ForwardSpec,
    certificates: &Material,
    shared: &tls::Shared,
) -> Option<tls::Server> {
    spec.tls.as_ref()?;
    // SOCKS has no name there; whoever offers something means HTTP.
    let alpn: &[Alpn] = match spec.http {
        true => &[Alpn::H2, Alpn::Http1],
        false => &[],
    };
    let oldest = spec.min_version;
    presented_alone(
        &forward_name(&spec.name),
        oldest,
        alpn,
        certificates,
        shared,
    )
}

/// What a TCP listener presents; `None`: it does not end TLS. It takes any protocol: what is spoken is the target's matter.
pub(super) fn presented_by_tcp(
    spec: &TcpSpec,
    certificates: &Material,
    shared: &tls::Shared,
) -> Option<tls::Server> {
    spec.tls.as_ref()?;
    let oldest = spec.min_version;
    presented_alone(&tcp_name(&spec.name), oldest, &[], certificates, shared)
}

/// What one that has its addresses to itself presents.
fn presented_alone(
    name: &str,
    oldest: TlsVersion,
    alpn: &[Alpn],
    certificates: &Material,
    shared: &tls::Shared,
) -> Option<tls::Server> {
    let presented = tls::Presented {
        hosts: &[],
        certificates: certificates.of(name),
        client_auth: certificates.client_auth(name),
    };
    let made = tls::Server::new(&[presented], oldest, alpn, shared);
    // As in `presented`.
    made.inspect_err(|error| tracing::error!(%error, name, "a listener cannot present anything"))
        .ok()
}
