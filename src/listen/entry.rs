//! What a generation does behind one bound address: who is let in, and what is spoken with those who are.
//!
//! An address keeps its socket when its plane changes. Connections that were made before go on with what they were: a
//! request on one of them finds that no server is there any more.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::tunnel::Accepting;
use crate::config::http::ConnectionSpec;
use crate::config::tcp::TcpSpec;
use crate::forward::Forward;
use crate::http::client::is_trusted;
use crate::http::{self, Face};
use crate::l4::names::Names;
use crate::l4::tcp::Tcp;
use crate::l4::udp::Udp;
use crate::net::Peer;

/// What one generation does behind one bound address. Shared by the workers.
#[derive(Debug)]
pub struct Entry {
    pub admission: Admission,
    pub plane: Plane,
    http: http::Entry,
}

/// What is spoken with a new connection.
#[derive(Debug)]
pub enum Plane {
    Http,
    Forward(Arc<Forward>),
    Tcp(Arc<Tcp>),
    /// TLS that is told apart by the name in a hello, and passed on unopened; or ended here, where there is HTTP too.
    Names(Arc<Names>),
    /// Behind an address of datagrams, and nothing else is.
    Udp(Arc<Udp>),
    /// Agents come here.
    Tunnel(Arc<Accepting>),
}

/// Who is let in, and what is known of clients before their first byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admission {
    /// Connections of this address, the whole process together.
    pub connections: Option<usize>,
    /// Connections of this address from one client address.
    pub connections_per_client: Option<usize>,
    /// Whose connections begin with a PROXY header; `None`: nobody's.
    pub behind: Option<Behind>,
}

/// Balancers that say who their clients are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Behind {
    pub trusted_proxies: Vec<IpNet>,
    /// How long the header may take; `None`: no limit.
    pub within: Option<Duration>,
}

impl Entry {
    /// An address that speaks HTTP.
    pub fn of_http(http: http::Entry) -> Entry {
        Entry {
            admission: Admission::of(&http.connection),
            plane: Plane::Http,
            http,
        }
    }

    /// An address of a forward proxy. `http`: for those who speak it with a proxy.
    pub fn of_forward(forward: Arc<Forward>, http: http::Entry) -> Entry {
        Entry {
            admission: Admission {
                connections: forward.spec.limits.connections,
                ..Admission::default()
            },
            plane: Plane::Forward(forward),
            http,
        }
    }

    /// An address of a TCP listener. `http`: without servers.
    pub fn of_tcp(http: http::Entry, tcp: Arc<Tcp>) -> Entry {
        Entry {
            admission: Admission::of_tcp(&tcp.spec),
            plane: Plane::Tcp(tcp),
            http,
        }
    }

    /// An address whose clients are told apart by name. `http`: for those that no listener has; without servers, nobody.
    pub fn of_names(http: http::Entry, names: Arc<Names>) -> Entry {
        // They agree with each other.
        let admission = match (http.is_secure(), names.listeners().first()) {
            (false, Some(tcp)) => Admission::of_tcp(&tcp.spec),
            _ => Admission::of(&http.connection),
        };
        Entry {
            admission,
            plane: Plane::Names(names.clone()),
            http: http.beside(names),
        }
    }

    /// An address of a UDP listener. `http`: without servers.
    pub fn of_udp(http: http::Entry, udp: Arc<Udp>) -> Entry {
        Entry {
            admission: Admission::default(),
            plane: Plane::Udp(udp),
            http,
        }
    }

    /// An address that agents dial. `http`: without servers.
    pub fn of_tunnel(http: http::Entry, accepting: Arc<Accepting>) -> Entry {
        Entry {
            admission: Admission::default(),
            plane: Plane::Tunnel(accepting),
            http,
        }
    }
}

impl Face for Entry {
    fn http(&self) -> &http::Entry {
        &self.http
    }

    fn holds(&self, definition: u64) -> bool {
        match &self.plane {
            Plane::Http => self.http.holds(definition),
            Plane::Forward(forward) => forward.holds(definition),
            Plane::Tcp(tcp) => tcp.holds(definition),
            Plane::Names(names) => names.holds(definition) || self.http.holds(definition),
            Plane::Udp(udp) => udp.holds(definition),
            Plane::Tunnel(_) => false,
        }
    }
}

impl Admission {
    fn of(connection: &ConnectionSpec) -> Admission {
        Admission {
            connections: connection.connections,
            connections_per_client: connection.connections_per_client,
            behind: connection.proxy_protocol.then(|| Behind {
                trusted_proxies: connection.trusted_proxies.clone(),
                within: connection.header_timeout,
            }),
        }
    }

    fn of_tcp(spec: &TcpSpec) -> Admission {
        Admission {
            connections: spec.connections,
            connections_per_client: spec.connections_per_client,
            behind: spec.proxy_protocol.then(|| Behind {
                trusted_proxies: spec.trusted_proxies.clone(),
                within: spec.header,
            }),
        }
    }

    /// The balancers among which `peer` is, if its connections begin with a PROXY header.
    pub fn behind(&self, peer: Peer) -> Option<&Behind> {
        let (behind, ip) = (self.behind.as_ref()?, peer.ip()?);
        is_trusted(ip, &behind.trusted_proxies).then_some(behind)
    }
}
