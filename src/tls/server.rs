//! What one address presents to its clients: a certificate by name, and by name what it asks of them. Certificates are
//! chosen over all servers of the address; what is asked of a client is the matter of the one server that its name
//! belongs to.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::NoClientAuth;

use super::choose::{Chooser, domains_above};
use super::client_auth::{ClientAuth, Resumption};
use super::store::Certificate;
use super::{H1, H1_0, H2, Shared};
use crate::config::http::{Alpn, ClientAuthSpec, TlsVersion};
use crate::config::scalar::HostPattern;

/// One server behind an address.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// The names that its `client_auth` is for; empty: those of no other server.
    pub hosts: &'a [HostPattern],
    pub certificates: &'a [Arc<Certificate>],
    pub client_auth: Option<&'a Arc<ClientAuth>>,
}

/// What one address of a generation presents to its clients.
pub struct Server {
    state: ArcSwap<State>,
}

struct State {
    chooser: Arc<Chooser>,
    /// At least one.
    policies: Vec<Policy>,
    /// Names by policy; empty where there is one for all.
    exact: HashMap<Box<str>, usize>,
    below: HashMap<Box<str>, usize>,
}

struct Policy {
    config: Arc<ServerConfig>,
    client_auth: Option<Arc<ClientAuthSpec>>,
    /// Kept as long as somebody can resume.
    _resumption: Arc<Resumption>,
}

/// What a handshake goes by.
#[derive(Debug, Clone)]
pub struct Handshake {
    pub config: Arc<ServerConfig>,
    /// What it asks of the client.
    pub client_auth: Option<Arc<ClientAuthSpec>>,
}

impl Server {
    /// `servers`: all of the address, at least one; the first is for clients that ask for no name or an unknown one, both
    /// for its certificate and for its `client_auth`. `alpn`: the preferred first.
    ///
    /// # Errors
    /// When rustls has no such version, which it has.
    pub fn new(
        servers: &[Presented<'_>],
        oldest: TlsVersion,
        alpn: &[Alpn],
        shared: &Shared,
    ) -> Result<Server, rustls::Error> {
        let mut seen = HashSet::new();
        let all: Vec<_> = servers
            .iter()
            .flat_map(|s| s.certificates)
            .filter(|certificate| seen.insert(Arc::as_ptr(certificate)))
            .cloned()
            .collect();
        let chooser = Arc::new(Chooser::new(&all));
        let mut state = State {
            chooser,
            policies: Vec::new(),
            exact: HashMap::new(),
            below: HashMap::new(),
        };
        for server in servers {
            let number = state.policy(server.client_auth, oldest, alpn, shared)?;
            for host in server.hosts {
                match host {
                    HostPattern::Exact(name) => {
                        _ = state.exact.insert(name.as_str().into(), number)
                    }
                    HostPattern::Below(name) => {
                        _ = state.below.insert(name.as_str().into(), number)
                    }
                    // `hosts` takes none: the document was refused.
                    HostPattern::Regex(_) => {}
                }
            }
        }
        if servers.is_empty() {
            state.policy(None, oldest, alpn, shared)?;
        }
        if state.policies.len() == 1 {
            (state.exact, state.below) = (HashMap::new(), HashMap::new());
        }
        Ok(Server {
            state: ArcSwap::from_pointee(state),
        })
    }

    /// What a client that asks for `sni` gets.
    pub fn handshake(&self, sni: Option<&str>) -> Handshake {
        let state = self.state.load();
        let policy = state.policy_for(sni);
        Handshake {
            config: policy.config.clone(),
            client_auth: policy.client_auth.clone(),
        }
    }

    /// True if the certificate for `sni` is good for `host` too, both in lower case.
    pub fn shares(&self, sni: &str, host: &str) -> bool {
        let state = self.state.load();
        state.chooser.presented(sni).is_some_and(|c| c.is_for(host))
    }

    /// From now on it presents what `other` does: the next hello gets it.
    pub fn exchange(&self, other: Server) {
        self.state.store(other.state.into_inner());
    }
}

impl State {
    /// The number of a policy; one is made if there is none like it.
    fn policy(
        &mut self,
        client_auth: Option<&Arc<ClientAuth>>,
        oldest: TlsVersion,
        alpn: &[Alpn],
        shared: &Shared,
    ) -> Result<usize, rustls::Error> {
        let spec = client_auth.map(|auth| &auth.spec);
        let known = |policy: &Policy| policy.client_auth.as_ref() == spec;
        if let Some(number) = self.policies.iter().position(known) {
            return Ok(number);
        }
        let resumption = client_auth.map_or(&shared.open, |auth| &auth.resumption);
        let both = [&rustls::version::TLS13, &rustls::version::TLS12];
        let versions = match oldest {
            TlsVersion::V12 => &both[..],
            TlsVersion::V13 => &both[..1],
        };
        let verifier = match client_auth {
            Some(auth) => auth.verifier.clone(),
            None => Arc::new(NoClientAuth),
        };
        let mut config = ServerConfig::builder_with_provider(shared.provider.clone())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.chooser.clone());
        config.ticketer = resumption.tickets.clone();
        config.session_storage = resumption.sessions.clone();
        let names = alpn.iter().flat_map(|name| match name {
            Alpn::H2 => &[H2][..],
            Alpn::Http1 => &[H1, H1_0],
        });
        config.alpn_protocols = names.map(|name| name.to_vec()).collect();
        self.policies.push(Policy {
            config: Arc::new(config),
            client_auth: spec.cloned(),
            _resumption: resumption.clone(),
        });
        Ok(self.policies.len() - 1)
    }

    fn policy_for(&self, sni: Option<&str>) -> &Policy {
        let number = sni.filter(|_| self.policies.len() > 1).and_then(|name| {
            let lower = match name.bytes().any(|b| b.is_ascii_uppercase()) {
                true => Cow::Owned(name.to_ascii_lowercase()),
                false => Cow::Borrowed(name),
            };
            let below = || domains_above(&lower).find_map(|domain| self.below.get(domain));
            self.exact.get(&*lower).or_else(below).copied()
        });
        &self.policies[number.unwrap_or(0)]
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server")
            .field(&self.state.load().chooser)
            .finish()
    }
}
