//! What a route does. Compiled from its spec, so that a request finds fixed texts and values ready.

pub mod files;
pub mod proxy;
pub mod respond;
pub mod tcp;
mod upgrade;

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use super::{Files, Quick};
use crate::config::http::{ActionSpec, ProxySpec, RetrySpec};
use crate::config::scalar::TargetAddr;
use crate::upstream::Upstream;

/// A compiled action.
#[derive(Debug)]
pub struct Action {
    pub kind: Kind,
    /// Of the server's name and the action's spec: the part of a request's definition that is known before a target is.
    pub definition: u64,
}

#[derive(Debug)]
pub enum Kind {
    Proxy(proxy::Proxy),
    Files(files::StaticFiles),
    Respond(respond::Respond),
    Redirect(respond::Redirect),
    Tcp(tcp::Tcp),
}

impl Action {
    pub fn build(
        server: &str,
        spec: &ActionSpec,
        upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
        files: &Files,
    ) -> Action {
        let kind = match spec {
            ActionSpec::Proxy(spec) => Kind::Proxy(proxy::Proxy::build(spec, upstreams)),
            ActionSpec::Files(spec) => Kind::Files(files::StaticFiles::build(spec)),
            ActionSpec::Respond(spec) => Kind::Respond(respond::Respond::build(spec, files)),
            ActionSpec::Redirect(spec) => Kind::Redirect(respond::Redirect::build(spec)),
            ActionSpec::Tcp { upstream } => Kind::Tcp(tcp::Tcp::build(upstream, upstreams)),
        };
        Action {
            kind,
            definition: digest(server, spec),
        }
    }

    /// Name of the upstream that it leads to.
    pub fn upstream(&self) -> Option<&Arc<str>> {
        self.leads_to().map(|upstream| upstream.name())
    }

    fn leads_to(&self) -> Option<&Arc<Upstream>> {
        match &self.kind {
            Kind::Proxy(proxy) => proxy.upstream.as_ref(),
            Kind::Tcp(tcp) => tcp.upstream.as_ref(),
            Kind::Files(_) | Kind::Respond(_) | Kind::Redirect(_) => None,
        }
    }

    /// Every definition that a request can live by here (see `generation::Flight::define`).
    pub fn definitions(&self) -> impl Iterator<Item = u64> {
        let targets = self
            .leads_to()
            .into_iter()
            .flat_map(|upstream| upstream.leaves());
        std::iter::once(self.definition)
            .chain(targets.map(|target| with_target(self.definition, &target.key().1)))
    }
}

/// The definition of a request once its target is known. Per request, so by the quick hash.
pub fn with_target(definition: u64, target: &TargetAddr) -> u64 {
    Quick::default().hash_one((definition, target))
}

/// Equal for equal (server, action), within this process.
fn digest(server: &str, spec: &ActionSpec) -> u64 {
    match spec {
        // What becomes of a flow when its definition is gone, and how it found its target, are no part of it.
        ActionSpec::Proxy(proxy) => Quick::default().hash_one((
            server,
            ActionSpec::Proxy(ProxySpec {
                on_change: None,
                retries: RetrySpec::default(),
                buffer: 0,
                // Its members and shares are many upstreams, of which a flow uses one target.
                upstream: match proxy.split {
                    true => "split".into(),
                    false => proxy.upstream.clone(),
                },
                ..proxy.clone()
            }),
        )),
        other => Quick::default().hash_one((server, other)),
    }
}
