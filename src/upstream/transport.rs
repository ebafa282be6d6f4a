//! How a target is spoken to: protocol and TLS. It is part of a connection's identity, so that one which was made under
//! other settings is never used again.

use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::dial::Dial;
use super::via::Via;
use crate::config::agent::ProxyVersion;
use crate::config::scalar::TargetAddr;
use crate::config::upstream::{Protocol, UpstreamSpec};
use crate::tls::client::{Client, Identity, Offer};

/// How one target is spoken to.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    pub(super) protocol: Protocol,
    /// `None`: cleartext.
    pub(super) tls: Option<Tls>,
    /// How it is said who the client is; such a connection is for that client alone.
    pub(super) proxy_protocol: Option<ProxyVersion>,
    /// The proxies on the way.
    pub(super) via: Option<Arc<Via>>,
    /// Of a service in a tunnel: who dials it.
    pub(super) tunnels: Option<Arc<dyn Dial>>,
}

/// TLS with one target.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    pub(super) client: Arc<Client>,
    /// What the target must prove.
    pub(super) name: ServerName<'static>,
}

/// What connections of a target must have in common to be exchangeable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TransportKey {
    protocol: Protocol,
    tls: Option<(Identity, ServerName<'static>)>,
    proxy_protocol: Option<ProxyVersion>,
    via: Option<[u8; 32]>,
}

impl Transport {
    /// `client`: of the upstream, if it has `tls`.
    pub(super) fn new(
        spec: &UpstreamSpec,
        client: Option<&Arc<Client>>,
        target: &TargetAddr,
        via: Option<&Arc<Via>>,
        tunnels: Option<&Arc<dyn Dial>>,
    ) -> Transport {
        let tls = client.map(|client| Tls {
            client: client.clone(),
            name: client.name_of(target),
        });
        Transport {
            protocol: match spec.protocol {
                // There is no ALPN in cleartext.
                Protocol::Auto if tls.is_none() => Protocol::Http1,
                protocol => protocol,
            },
            tls,
            proxy_protocol: spec.proxy_protocol,
            via: via.cloned(),
            tunnels: tunnels
                .filter(|_| matches!(target, TargetAddr::Tunnel(..)))
                .cloned(),
        }
    }

    pub(super) fn key(&self) -> TransportKey {
        let tls = self.tls.as_ref();
        TransportKey {
            protocol: self.protocol,
            tls: tls.map(|tls| (*tls.client.identity(), tls.name.clone())),
            proxy_protocol: self.proxy_protocol,
            via: self.via.as_ref().map(|via| *via.identity()),
        }
    }

    /// What is spoken over a socket that is to carry requests, as far as no TLS of our own covers it.
    pub(super) fn within(&self, offer: Offer) -> Offer {
        match (&self.tls, self.protocol, offer) {
            (Some(_), ..) | (None, _, Offer::Nothing) => Offer::Nothing,
            (None, Protocol::Http1, _) | (None, _, Offer::H1) => Offer::H1,
            (None, _, Offer::H2 | Offer::Both) => Offer::H2,
        }
    }

    /// The scheme of what is asked for.
    pub(super) fn scheme(&self) -> ::http::uri::Scheme {
        match self.tls {
            Some(_) => ::http::uri::Scheme::HTTPS,
            None => ::http::uri::Scheme::HTTP,
        }
    }
}
