//! What one generation does for one `[udp.NAME]`: whose datagrams are taken, where those of a client go, and by what its
//! session lives.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Life, admits, key_of};
use crate::config::udp::UdpSpec;
use crate::generation::Flight;
use crate::metrics::WorkerContext;
use crate::net::proxy_protocol;
use crate::upstream::error::Error;
use crate::upstream::stream::Towards;
use crate::upstream::{Client, InFlight, Upstream};

/// Shared by the addresses of a listener, and the workers.
#[derive(Debug)]
pub struct Udp {
    pub spec: UdpSpec,
    upstream: Arc<Upstream>,
}

/// Where the datagrams of a session go.
pub struct Picked {
    pub target: Towards,
    pub in_flight: InFlight,
    /// What the first one begins with; mostly empty.
    pub header: Vec<u8>,
}

impl Udp {
    pub fn new(spec: UdpSpec, upstream: Arc<Upstream>) -> Udp {
        Udp { spec, upstream }
    }

    /// Whether datagrams of a client are taken at all.
    pub fn admits(&self, client: IpAddr) -> bool {
        admits(&self.spec.allow, &self.spec.deny, client)
    }

    fn life(&self) -> Life<'_> {
        Life {
            kind: "udp",
            name: &self.spec.name,
            path: None,
            upstream: &self.upstream,
        }
    }

    /// Whether a session that lives by `definition` could have begun here.
    pub fn holds(&self, definition: u64) -> bool {
        self.life().holds(definition)
    }

    /// Picks the target of the session of `client`, which is a long flow by then: until then it lives by its listener and
    /// upstream alone.
    ///
    /// # Errors
    /// No target is to be had.
    pub async fn pick(
        &self,
        worker: &Arc<WorkerContext>,
        client: Client,
        flight: &Flight,
    ) -> Result<Picked, Error> {
        flight.define(self.life().digest(None));
        let upstream = self.upstream.lead(|_| None, false).upstream;
        let (source, destination) = client;
        let key = key_of(upstream, Some(source.ip()));
        let (target, in_flight) = upstream.datagram(worker, key, client).await?;
        flight.define(self.life().digest(Some(&in_flight.target.key().1)));
        flight.set_long(self.spec.on_change);
        let header = match upstream.tells_client() {
            true => proxy_protocol::datagram_header(source, destination),
            false => Vec::new(),
        };
        Ok(Picked {
            target,
            in_flight,
            header,
        })
    }
}
