//! What one generation does for one `[udp.NAME]`: whose datagrams are taken, where those of a client go, and by what its
//! session lives.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Life, admits, key_of};
use crate::config::udp::UdpSpec;
use crate::generation::{Flight, Generation};
use crate::metrics::WorkerContext;
use crate::net::proxy_protocol;
use crate::upstream::error::Error;
use crate::upstream::stream::Route;
use crate::upstream::{Client, InFlight, Upstream};

/// Shared by the addresses of a listener, and the workers.
#[derive(Debug)]
pub struct Udp {
    pub spec: UdpSpec,
    upstream: Arc<Upstream>,
}

/// Where the datagrams of a session go.
pub struct Picked {
    pub route: Route,
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

    /// Begins a session, which lives by its listener and upstream from its first instant: its task may run for the first time
    /// when a swap has asked it already.
    pub fn begin(&self, generation: &Arc<Generation>, binding: u32) -> Flight {
        generation.begin_defined(binding, self.life().digest(None))
    }

    /// Picks the target of the session of `client`, which is a long flow by then. `flight`: of [`Udp::begin`].
    ///
    /// # Errors
    /// No target is to be had.
    pub async fn pick(
        &self,
        worker: &Arc<WorkerContext>,
        client: Client,
        flight: &Flight,
    ) -> Result<Picked, Error> {
        let upstream = self.upstream.lead(|_| None, false).upstream;
        let (source, destination) = client;
        let key = key_of(upstream, Some(source.ip()));
        let (route, in_flight) = upstream.datagram(worker, key, client).await?;
        flight.define(self.life().digest(Some(&in_flight.target.key().1)));
        flight.set_long(self.spec.on_change);
        let header = match upstream.tells_client() {
            true => proxy_protocol::datagram_header(source, destination),
            false => Vec::new(),
        };
        Ok(Picked {
            route,
            in_flight,
            header,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Format;
    use crate::document::{Context, Document};
    use crate::generation::Verdict;
    use crate::upstream::Shared;

    /// Its task has not run yet, or looks for a target.
    #[tokio::test]
    async fn a_session_that_has_just_begun_is_not_ended_by_a_swap_of_other_things() {
        let text = "[udp.dns]\nlisten = '127.0.0.1:5300'\nupstream = '127.0.0.1:53'\n";
        let context = Context {
            base: "/".into(),
            running: None,
        };
        let parsed = Document::parse(text.as_bytes(), Format::Toml, &context);
        let document = parsed.unwrap().document;
        let shared = Arc::new(Shared::new(tokio::runtime::Handle::current(), 1));
        let build = || {
            let spec = document.udp.values().next().unwrap().clone();
            let upstream = Upstream::build(document.upstreams.values().next().unwrap(), &shared);
            Udp::new(spec, Arc::new(upstream))
        };
        let (before, after) = (build(), build());
        let (old, new) = (Generation::new(1), Generation::new(2));
        let _flight = before.begin(&old, 7);
        let told = old.settle(false, |asked| match after.holds(asked.definition) {
            true => Verdict::Moves(new.clone()),
            false => Verdict::Ends,
        });
        assert_eq!((told, old.in_flight(), new.in_flight()), (0, 0, 1));
    }
}
