//! What one generation does for one `[tcp.NAME]`: who may connect, where a connection goes, and by what it lives.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Life, admits, key_of};
use crate::config::scalar::HostPattern;
use crate::config::tcp::{TcpSpec, ToSpec};
use crate::generation::Flight;
use crate::http::record::AccessLog;
use crate::metrics::WorkerContext;
use crate::tls::Server;
use crate::upstream::error::Error;
use crate::upstream::link::Link;
use crate::upstream::stream::Connecting;
use crate::upstream::upgrade::Switched;
use crate::upstream::websocket::Wanted;
use crate::upstream::{InFlight, Upstream};

/// Shared by the addresses of a listener, and the workers.
#[derive(Debug)]
pub struct Tcp {
    pub spec: TcpSpec,
    /// Where sessions leave a line.
    pub log: Option<Arc<AccessLog>>,
    /// What it presents; `None`: it does not end TLS.
    pub tls: Option<Server>,
    to: To,
}

#[derive(Debug)]
enum To {
    One(Arc<Upstream>),
    Sni {
        exact: HashMap<Box<str>, Arc<Upstream>>,
        /// `*.a.test` under `a.test`.
        below: HashMap<Box<str>, Arc<Upstream>>,
        rest: Option<Arc<Upstream>>,
    },
}

/// A client that has connected.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// `None`: it came by a unix socket.
    pub peer: Option<SocketAddr>,
    /// The address of ours that it came to.
    pub local: Option<SocketAddr>,
}

/// What a client was connected to.
#[derive(Debug)]
pub enum Target {
    Stream(Link),
    /// It speaks websocket.
    Websocket(Switched),
}

impl Tcp {
    /// `None`: an upstream is not there, which none that a document names is.
    pub fn new(
        spec: TcpSpec,
        upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
        tls: Option<Server>,
        log: Option<Arc<AccessLog>>,
    ) -> Option<Tcp> {
        let to = To::new(&spec.to, upstreams)?;
        Some(Tcp { spec, log, tls, to })
    }

    /// Whether it must know which name a client asks for.
    pub fn asks_for_sni(&self) -> bool {
        matches!(self.to, To::Sni { .. })
    }

    /// Where a client goes that asks for `sni` (lower case); `None`: nowhere.
    pub fn upstream(&self, sni: Option<&str>) -> Option<&Arc<Upstream>> {
        let (exact, below, rest) = match &self.to {
            To::One(upstream) => return Some(upstream),
            To::Sni { exact, below, rest } => (exact, below, rest),
        };
        let named = sni.and_then(|name| {
            let mut above = name.match_indices('.').map(|(at, _)| &name[at + 1..]);
            let below = || above.find_map(|domain| below.get(domain));
            exact.get(name).or_else(below)
        });
        named.or(rest.as_ref())
    }

    /// Whether a client may connect at all. Those of a unix socket have the rights of its file.
    pub fn admits(&self, client: Option<IpAddr>) -> bool {
        client.is_none_or(|ip| admits(&self.spec.allow, &self.spec.deny, ip))
    }

    fn life<'a>(&'a self, upstream: &'a Arc<Upstream>) -> Life<'a> {
        Life {
            kind: "tcp",
            name: &self.spec.name,
            path: self.spec.websocket.as_ref().map(|w| w.path.as_str()),
            upstream,
        }
    }

    /// Whether a session that lives by `definition` could have begun here.
    pub fn holds(&self, definition: u64) -> bool {
        let mut upstreams = self.to.upstreams();
        upstreams.any(|upstream| self.life(upstream).holds(definition))
    }

    /// Connects `client` to a target of `to`, one of its upstreams. While it looks for one, the session lives by its listener and upstream alone.
    ///
    /// # Errors
    /// No target is to be had.
    pub async fn connect(
        &self,
        worker: &Arc<WorkerContext>,
        client: Client,
        to: &Arc<Upstream>,
        flight: &Flight,
    ) -> Result<(Target, InFlight), Error> {
        flight.define(self.life(to).digest(None));
        let upstream = to.lead(|_| None, false).upstream;
        let asking = Connecting {
            key: key_of(upstream, client.peer.map(|peer| peer.ip())),
            client: client.peer.zip(client.local),
            within: self.spec.connect,
        };
        let (target, in_flight) = match &self.spec.websocket {
            None => {
                let (link, in_flight) = upstream.connect(worker, asking).await?;
                (Target::Stream(link), in_flight)
            }
            Some(spec) => {
                let wanted = Wanted {
                    path: &spec.path,
                    host: spec.host.as_ref(),
                };
                // Boxed: of many sessions few come here.
                let agreeing = Box::pin(upstream.websocket(worker, wanted, asking));
                let (switched, in_flight) = agreeing.await?;
                (Target::Websocket(switched), in_flight)
            }
        };
        flight.define(self.life(to).digest(Some(&in_flight.target.key().1)));
        flight.set_long(self.spec.on_change);
        Ok((target, in_flight))
    }
}

impl To {
    fn new(spec: &ToSpec, upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>) -> Option<To> {
        let get = |name: &Arc<str>| upstreams.get(name).cloned();
        let sni = match spec {
            ToSpec::Upstream(name) => return get(name).map(To::One),
            ToSpec::Sni(sni) => sni,
        };
        let (mut exact, mut below) = (HashMap::new(), HashMap::new());
        for (pattern, upstream) in &sni.names {
            let upstream = get(upstream)?;
            match pattern {
                HostPattern::Exact(name) => _ = exact.insert(name.as_str().into(), upstream),
                HostPattern::Below(name) => _ = below.insert(name.as_str().into(), upstream),
                // The document was refused.
                HostPattern::Regex(_) => {}
            }
        }
        let rest = match &sni.rest {
            Some(name) => Some(get(name)?),
            None => None,
        };
        Some(To::Sni { exact, below, rest })
    }

    fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        let (one, named) = match self {
            To::One(one) => (Some(one), None),
            To::Sni { exact, below, rest } => {
                (rest.as_ref(), Some(exact.values().chain(below.values())))
            }
        };
        named.into_iter().flatten().chain(one)
    }
}
