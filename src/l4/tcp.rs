//! What one generation does for one `[tcp.NAME]`: who may connect, where a connection goes, and by what it lives.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Life, admits, key_of};
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

/// Shared by the workers.
#[derive(Debug)]
pub struct Tcp {
    pub spec: TcpSpec,
    /// Where sessions leave a line.
    pub log: Option<Arc<AccessLog>>,
    /// What it presents; `None`: it does not end TLS.
    pub tls: Option<Server>,
    /// Those that it names.
    upstreams: BTreeMap<Arc<str>, Arc<Upstream>>,
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
        let names = spec.to.upstreams();
        let got = names.map(|name| Some((name.clone(), upstreams.get(name)?.clone())));
        let upstreams = got.collect::<Option<_>>()?;
        Some(Tcp {
            spec,
            log,
            tls,
            upstreams,
        })
    }

    /// Where all its clients go; `None`: their names tell.
    pub fn upstream(&self) -> Option<&Arc<Upstream>> {
        match &self.spec.to {
            ToSpec::Upstream(name) => self.upstreams.get(name),
            ToSpec::Sni(_) => None,
        }
    }

    /// One of those that it names.
    pub fn upstream_called(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.get(name)
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
        let mut upstreams = self.upstreams.values();
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
