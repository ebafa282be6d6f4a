//! What one generation does for one `[tcp.NAME]`: who may connect, where a connection goes, and by what it lives.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Life, admits, key_of};
use crate::config::tcp::TcpSpec;
use crate::generation::Flight;
use crate::http::record::AccessLog;
use crate::metrics::WorkerContext;
use crate::upstream::error::Error;
use crate::upstream::link::Link;
use crate::upstream::stream::Connecting;
use crate::upstream::{InFlight, Upstream};

/// Shared by the addresses of a listener, and the workers.
#[derive(Debug)]
pub struct Tcp {
    pub spec: TcpSpec,
    /// Where sessions leave a line.
    pub log: Option<Arc<AccessLog>>,
    upstream: Arc<Upstream>,
}

/// A client that has connected.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// `None`: it came by a unix socket.
    pub peer: Option<SocketAddr>,
    /// The address of ours that it came to.
    pub local: Option<SocketAddr>,
}

impl Tcp {
    pub fn new(spec: TcpSpec, upstream: Arc<Upstream>, log: Option<Arc<AccessLog>>) -> Tcp {
        Tcp {
            spec,
            log,
            upstream,
        }
    }

    /// Whether a client may connect at all. Those of a unix socket have the rights of its file.
    pub fn admits(&self, client: Option<IpAddr>) -> bool {
        client.is_none_or(|ip| admits(&self.spec.allow, &self.spec.deny, ip))
    }

    fn life(&self) -> Life<'_> {
        Life {
            kind: "tcp",
            name: &self.spec.name,
            upstream: &self.upstream,
        }
    }

    /// Whether a session that lives by `definition` could have begun here.
    pub fn holds(&self, definition: u64) -> bool {
        self.life().holds(definition)
    }

    /// Connects `client` to a target. While it looks for one, the session lives by its listener and upstream alone.
    ///
    /// # Errors
    /// No target is to be had.
    pub async fn connect(
        &self,
        worker: &Arc<WorkerContext>,
        client: Client,
        flight: &Flight,
    ) -> Result<(Link, InFlight), Error> {
        flight.define(self.life().digest(None));
        let upstream = self.upstream.lead(|_| None, false).upstream;
        let asking = Connecting {
            key: key_of(upstream, client.peer.map(|peer| peer.ip())),
            client: client.peer.zip(client.local),
            within: self.spec.connect,
        };
        let connected = upstream.connect(worker, asking).await?;
        flight.define(self.life().digest(Some(&connected.1.target.key().1)));
        flight.set_long(self.spec.on_change);
        Ok(connected)
    }
}
