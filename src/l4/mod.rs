//! Layer 4: streams and datagrams passed on as they come.

pub mod bridge;
pub mod flows;
pub mod names;
pub(crate) mod pace;
pub mod relay;
pub mod tcp;
pub mod udp;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::scalar::TargetAddr;
use crate::upstream::{KeyedBy, Upstream, hash};

/// Whether a client is among those who may come: among `allow`, if that names anybody, and not among `deny`.
fn admits(allow: &[IpNet], deny: &[IpNet], client: IpAddr) -> bool {
    let ip = client.to_canonical();
    let among = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
    !among(deny) && (allow.is_empty() || among(allow))
}

/// By what a session lives (see `generation::Flight::define`): its listener, upstream and, once it has one, target; where the
/// targets speak websocket, also what is asked for there.
#[derive(Debug, Clone, Copy)]
struct Life<'a> {
    kind: &'static str,
    name: &'a Arc<str>,
    path: Option<&'a str>,
    upstream: &'a Arc<Upstream>,
}

impl Life<'_> {
    fn digest(&self, target: Option<&TargetAddr>) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.kind, self.name, self.path).hash(&mut hasher);
        (self.upstream.name(), target).hash(&mut hasher);
        hasher.finish().max(1)
    }

    /// Whether a session that lives by `definition` could have begun here.
    fn holds(&self, definition: u64) -> bool {
        let leaves = self.upstream.leaves();
        let mut targets = leaves.iter().map(|target| &target.key().1);
        definition == self.digest(None)
            || targets.any(|target| definition == self.digest(Some(target)))
    }
}

/// What an upstream's policy hashes: the client's address is all that is known, and all that templates may ask for here.
fn key_of(upstream: &Upstream, client: Option<IpAddr>) -> Option<u64> {
    match (upstream.keyed_by(), client) {
        (KeyedBy::Nothing, _) | (_, None) => None,
        (_, Some(ip)) => Some(hash::of_ip(ip)),
    }
}
