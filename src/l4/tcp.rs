//! What one generation does for one `[tcp.NAME]`: who may connect, where a connection goes, and by what it lives.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::scalar::TargetAddr;
use crate::config::tcp::TcpSpec;
use crate::generation::Flight;
use crate::http::record::AccessLog;
use crate::metrics::WorkerContext;
use crate::upstream::error::Error;
use crate::upstream::hash;
use crate::upstream::link::Link;
use crate::upstream::stream::Connecting;
use crate::upstream::{InFlight, KeyedBy, Upstream};

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
        let Some(ip) = client.map(|ip| ip.to_canonical()) else {
            return true;
        };
        let among = |nets: &[ipnet::IpNet]| nets.iter().any(|net| net.contains(&ip));
        !among(&self.spec.deny) && (self.spec.allow.is_empty() || among(&self.spec.allow))
    }

    /// By what a session with `target` lives (see `generation::Flight::define`): listener, upstream and target.
    fn definition(&self, target: Option<&TargetAddr>) -> u64 {
        let mut hasher = DefaultHasher::new();
        ("tcp", &self.spec.name, &self.spec.upstream, target).hash(&mut hasher);
        hasher.finish().max(1)
    }

    /// Whether a session that lives by `definition` could have begun here.
    pub fn holds(&self, definition: u64) -> bool {
        let leaves = self.upstream.leaves();
        let mut targets = leaves.iter().map(|target| &target.key().1);
        definition == self.definition(None)
            || targets.any(|target| definition == self.definition(Some(target)))
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
        flight.define(self.definition(None));
        let upstream = self.upstream.lead(|_| None, false).upstream;
        // The client's address is all that is known of it, whatever a template would ask for.
        let key = match (upstream.keyed_by(), client.peer) {
            (KeyedBy::Nothing, _) | (_, None) => None,
            (_, Some(peer)) => Some(hash::of_ip(peer.ip())),
        };
        let asking = Connecting {
            key,
            client: client.peer.zip(client.local),
        };
        let connected = upstream.connect(worker, asking).await?;
        flight.define(self.definition(Some(&connected.1.target.key().1)));
        flight.set_long(self.spec.on_change);
        Ok(connected)
    }
}
