//! What one generation does for one `[udp.NAME]`: whose datagrams are taken, where those of a client go, and by what its
//! session lives.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Life, admits, key_of};
use crate::config::udp::UdpSpec;
use crate::generation::Flight;
use crate::metrics::WorkerContext;
use crate::upstream::error::Error;
use crate::upstream::{InFlight, Upstream};

/// Shared by the addresses of a listener, and the workers.
#[derive(Debug)]
pub struct Udp {
    pub spec: UdpSpec,
    upstream: Arc<Upstream>,
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
            upstream: &self.upstream,
        }
    }

    /// Whether a session that lives by `definition` could have begun here.
    pub fn holds(&self, definition: u64) -> bool {
        self.life().holds(definition)
    }

    /// Picks the target of a client's session, which is a long flow by then: until then it lives by its listener and
    /// upstream alone.
    ///
    /// # Errors
    /// No target is to be had.
    pub async fn pick(
        &self,
        worker: &Arc<WorkerContext>,
        client: IpAddr,
        flight: &Flight,
    ) -> Result<(SocketAddr, InFlight), Error> {
        flight.define(self.life().digest(None));
        let upstream = self.upstream.lead(|_| None, false).upstream;
        let key = key_of(upstream, Some(client));
        let picked = upstream.datagram(worker, key).await?;
        flight.define(self.life().digest(Some(&picked.1.target.key().1)));
        flight.set_long(self.spec.on_change);
        Ok(picked)
    }
}
