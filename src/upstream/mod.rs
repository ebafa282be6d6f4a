//! Where requests go: named sets of targets, and what of them outlives a generation.
//!
//! An [`Upstream`] is one generation's view: weights, policy, timeouts, pool sizes. Its [`Target`]s are leased by identity and
//! keep their connections and counts across generations. Nothing here knows of routes or reloads.
//!
//! What is spoken is the target's [`Transport`]: HTTP/1 on connections that serve one request at a time
//! ([`connection`]), or HTTP/2 on connections that are shared ([`multiplex`]), with or without TLS.
//!
//! The hot path is [`Upstream::send`]: with an idle connection at hand it takes locks that only this worker takes (the
//! balancer's turn if there is a choice, the pool's shard at check-out and again when the connection comes back), and
//! reads the clock once for each timeout it has to wait under. Of what other workers write too, it touches the target's
//! reference count.

pub mod alone;
mod balance;
pub mod body;
mod connect;
mod connection;
pub mod dial;
mod driven;
pub mod error;
mod exchange;
mod h1;
pub mod handshake;
pub mod hash;
pub mod health;
mod latency;
pub mod link;
mod multiplex;
mod outgoing;
mod pool;
mod queue;
pub mod resolve;
mod response;
mod retry;
mod select;
mod send;
mod source;
mod split;
mod state;
pub mod sticky;
pub mod stream;
mod streams;
#[cfg(test)]
mod tests;
mod timer;
mod transport;
pub mod upgrade;
pub mod via;
pub mod websocket;
mod wire;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use ::http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::config::http::RetrySpec;
use crate::config::scalar::TargetAddr;
use crate::config::upstream::{
    Balance, OnDown, PoolSpec, TargetSpec, UpstreamSpec, UpstreamTimeouts,
};
use crate::registry::Registry;
use crate::tls;
use error::{Error, Kind};
#[cfg(any(test, fuzzing))]
pub use h1::fuzzing as answers;
use health::{Check, CheckKey, Health, Passive, Ward};
pub use pool::{InFlight, Target, sweep};
use pool::{Pool, Round};
use resolve::{Lookup, LookupKey, Names, Resolver};
pub use response::UpstreamBody;
pub use select::KeyedBy;
pub use split::Choice;
pub use state::TargetState;
use transport::Transport;
use via::Via;

/// Identity of a target: the same address under another upstream is another target.
pub type TargetKey = (Arc<str>, TargetAddr);

/// Checks that may be under way at once: each takes a descriptor or two.
const CHECKING: usize = 256;

/// The state of the reach layer that generations lease from. One per process.
pub struct Shared {
    pub targets: Registry<TargetKey, Target>,
    /// Runtime of background work (names); never a worker's.
    pub control: tokio::runtime::Handle,
    /// Number of workers, hence of pool shards.
    pub workers: usize,
    /// By worker; at least one.
    rounds: Box<[Arc<Round>]>,
    names: Registry<(Arc<str>, u16), Names>,
    lookups: Registry<LookupKey, Lookup>,
    wards: Registry<Arc<str>, Ward>,
    checks: Registry<CheckKey, Check>,
    /// Checks that are under way at once.
    checking: Arc<Semaphore>,
    budgets: Registry<Arc<str>, retry::Budget>,
    queues: Registry<Arc<str>, queue::Queue>,
    pub resolver: Arc<Resolver>,
    /// Who knows services in tunnels; `None`: nobody.
    tunnels: Option<Arc<dyn dial::Dial>>,
}

impl Shared {
    /// Names are looked up by the system's resolver, on `control`.
    pub fn new(control: tokio::runtime::Handle, workers: usize) -> Shared {
        Shared::with_resolver(control, workers, Arc::new(resolve::system))
    }

    /// See [`Registry::sweep`].
    pub fn sweep(&self) {
        self.targets.sweep();
        self.names.sweep();
        self.lookups.sweep();
        self.wards.sweep();
        self.checks.sweep();
        self.budgets.sweep();
        self.queues.sweep();
    }

    pub(crate) fn with_resolver(
        control: tokio::runtime::Handle,
        workers: usize,
        resolver: Arc<Resolver>,
    ) -> Shared {
        Shared {
            targets: Registry::default(),
            control,
            workers,
            rounds: (0..workers.max(1)).map(|_| Arc::default()).collect(),
            names: Registry::default(),
            lookups: Registry::default(),
            wards: Registry::default(),
            checks: Registry::default(),
            checking: Arc::new(Semaphore::new(CHECKING)),
            budgets: Registry::default(),
            queues: Registry::default(),
            resolver,
            tunnels: None,
        }
    }

    /// The same with somebody who dials services in tunnels.
    pub fn with_tunnels(self, tunnels: Arc<dyn dial::Dial>) -> Shared {
        Shared {
            tunnels: Some(tunnels),
            ..self
        }
    }

    fn names_of(&self, host: &Arc<str>, port: u16) -> Arc<Names> {
        let names = || Names::new(host.clone(), port);
        self.names.lease(&(host.clone(), port), names)
    }

    fn lookup(
        &self,
        host: &Arc<str>,
        port: u16,
        interval: Duration,
        timeout: Duration,
    ) -> Arc<Lookup> {
        let names = self.names_of(host, port);
        let key = LookupKey {
            host: host.clone(),
            port,
            interval,
            timeout,
        };
        self.lookups.lease(&key, || {
            Lookup::start(&key, names, self.resolver.clone(), &self.control)
        })
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("targets", &self.targets)
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

/// A client, and the address of ours that it came to.
pub type Client = (SocketAddr, SocketAddr);

/// One generation's view of an upstream.
#[derive(Debug)]
pub struct Upstream {
    name: Arc<str>,
    members: Box<[Member]>,
    /// Instead of members of its own.
    split: Option<split::Split>,
    /// By member.
    weights: Box<[u32]>,
    /// Some member is there only for when no other is usable.
    backups: bool,
    balance: Balance,
    /// By member, hashes of the addresses; empty unless the policy hashes.
    seeds: Box<[u64]>,
    sticky: Option<sticky::Sticky>,
    budget: Arc<retry::Budget>,
    limits: Option<queue::Limits>,
    /// By worker; none when there is only one member.
    turns: Box<[Turn]>,
    pool: PoolSpec,
    timeouts: UpstreamTimeouts,
    resolve_timeout: Duration,
    ward: Arc<Ward>,
    passive: Option<Arc<Passive>>,
    /// 0: none.
    slow_start: Duration,
    /// By member, for slow start.
    whole_weights: Box<[u32]>,
    /// What a target has in flight ends when it goes down.
    cuts: bool,
    /// `None`: direct.
    via: Option<Arc<Via>>,
}

#[derive(Debug)]
struct Member {
    target: Arc<Target>,
    transport: Transport,
    /// Its connections that were made for this transport.
    pool: Arc<Pool>,
    /// A proxy on the way looks its name up.
    found_elsewhere: bool,
    backup: bool,
    /// What `Host` says when it names the target.
    host: HeaderValue,
    /// Keeps the name's addresses fresh while this generation lives.
    lookup: Option<Arc<Lookup>>,
    /// Asks it how it is, from this generation's commit on.
    check: Option<Arc<Check>>,
}

/// Where one worker stands in the round: on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Turn {
    /// Credits of the smooth round robin; empty until the first pick.
    credits: Mutex<Vec<i64>>,
    /// Where the search for the least loaded begins.
    cursor: AtomicUsize,
}

/// What a request asks of its upstream besides the request itself.
#[derive(Debug, Clone, Default)]
pub struct SendOptions {
    /// For one try: from the request's last byte to the response's head. `None`: the upstream's own.
    pub response_timeout: Option<Duration>,
    /// Put the target's `host:port` into `Host`.
    pub host_from_target: bool,
    /// Hash of what [`Upstream::keyed_by`] asked for.
    pub key: Option<u64>,
    /// The target that the client's cookie names ([`sticky::StickyId::read`]).
    pub sticky: Option<sticky::StickyId>,
    /// `None`: what was not sent goes to up to three targets.
    pub retries: Option<Arc<RetrySpec>>,
    /// The client, and the address of ours that it came to, for an upstream that [tells](Upstream::tells_client) them. Boxed:
    /// few requests have it.
    pub client: Option<Box<Client>>,
}

impl Upstream {
    /// Without TLS.
    #[cfg(test)]
    pub(crate) fn build(spec: &UpstreamSpec, shared: &Arc<Shared>) -> Upstream {
        Upstream::build_over(spec, None, None, shared)
    }

    /// Builds from the spec, leasing its targets. `client`: what was made of its `tls`, if it has that; `via` likewise. Never blocks; names
    /// that are not resolved yet leave their target down.
    pub fn build_over(
        spec: &UpstreamSpec,
        client: Option<&Arc<tls::client::Client>>,
        via: Option<Arc<Via>>,
        shared: &Arc<Shared>,
    ) -> Upstream {
        let ward = shared.wards.lease(&spec.name, Ward::default);
        let members: Box<[Member]> = spec
            .targets
            .iter()
            .map(|t| Member::lease(spec, t, &ward, (client, via.as_ref()), shared))
            .collect();
        let passive = spec.passive.clone().map(|rules| {
            let members = members.iter().map(|m| m.target.health().clone());
            Arc::new(Passive::new(
                rules,
                members.collect(),
                shared.control.clone(),
            ))
        });
        let turns = if members.len() > 1 {
            shared.workers.max(1)
        } else {
            0
        };
        let weights: Box<[u32]> = spec.targets.iter().map(|t| t.weight).collect();
        Upstream {
            name: spec.name.clone(),
            whole_weights: health::whole(&weights),
            weights,
            backups: members.iter().any(|m| m.backup),
            seeds: select::seeds(spec),
            sticky: sticky::Sticky::build(spec),
            limits: queue::Limits::build(spec, &members, shared),
            budget: shared.budgets.lease(&spec.name, retry::Budget::new),
            members,
            split: None,
            balance: spec.balance.clone(),
            turns: (0..turns).map(|_| Turn::default()).collect(),
            pool: spec.pool.clone(),
            timeouts: spec.timeouts.clone(),
            resolve_timeout: spec.resolve.timeout,
            ward,
            passive,
            slow_start: spec.slow_start,
            via,
            cuts: spec
                .health
                .as_ref()
                .is_some_and(|h| h.on_down == OnDown::Cut),
        }
    }

    /// Waits until every DNS name of this upstream has been looked up once, at most `resolve.timeout`. Returns the
    /// names that were not found, as `host:port` (their targets are down; a warning).
    pub async fn resolved(&self) -> Vec<String> {
        let all = async {
            for lookup in self.members.iter().filter_map(|m| m.lookup.as_ref()) {
                lookup.first().await;
            }
        };
        // Those that are late are told by their state below.
        let _ = tokio::time::timeout(self.resolve_timeout, all).await;
        let missing = self
            .members
            .iter()
            .filter(|m| m.lookup.as_ref().is_some_and(|l| !l.names.is_up()));
        missing.map(|m| m.target.address().to_string()).collect()
    }

    /// The generation is committed: its checks take charge of its targets. `running`: the upstream ran before. Does
    /// nothing where it has been done.
    pub fn begin(&self, running: bool) {
        for member in &self.members {
            member.target.set_found_elsewhere(member.found_elsewhere);
            let health = member.target.health();
            health.begin(member.check.as_deref(), self.passive.is_some(), running);
        }
    }

    /// Whether its connections begin by saying who the client is.
    pub fn tells_client(&self) -> bool {
        // They all do, or none.
        self.members.first().is_some_and(Member::tells_client)
    }

    /// The proxies on the way.
    pub fn via(&self) -> Option<&Arc<Via>> {
        self.via.as_ref()
    }

    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Requests that wait for a target with room.
    pub fn queued(&self) -> usize {
        self.limits
            .as_ref()
            .map_or(0, |limits| limits.waiting.len())
    }

    /// Targets of this generation's view: for `/status` and for `Entry::holds`.
    pub fn targets(&self) -> impl Iterator<Item = (&TargetAddr, u32, &Arc<Target>)> {
        self.members
            .iter()
            .zip(&self.weights)
            .map(|(m, weight)| (m.target.address(), *weight, &m.target))
    }

    /// Why there is no target to pick at all.
    fn none_usable(&self) -> Error {
        let down = self
            .members
            .iter()
            .zip(&self.weights)
            .find(|(m, weight)| **weight > 0 && !m.target.is_resolved());
        match down.and_then(|(m, _)| m.target.names()) {
            Some(names) if !names.is_up() => names.error(),
            _ => {
                let why = match self.weights.iter().any(|weight| *weight > 0) {
                    true => "no target is up",
                    false => "every target has weight 0",
                };
                let detail = format!("upstream {}: {why}", self.name);
                Error::upstream(Kind::DestinationUnavailable, detail).unsent()
            }
        }
    }
}

impl Member {
    fn lease(
        spec: &UpstreamSpec,
        target: &TargetSpec,
        ward: &Arc<Ward>,
        (client, via): (Option<&Arc<tls::client::Client>>, Option<&Arc<Via>>),
        shared: &Shared,
    ) -> Member {
        let address = &target.address;
        let backup = target.backup;
        let elsewhere = spec.found_elsewhere || via.is_some_and(|via| via.takes_names());
        // Another generation may look it up.
        let known = match address {
            TargetAddr::Name(host, port) => Some(shared.names_of(host, *port)),
            TargetAddr::Ip(_) | TargetAddr::Unix(_) | TargetAddr::Tunnel(..) => None,
        };
        let lookup = match address {
            TargetAddr::Name(host, port) if !elsewhere => {
                Some(shared.lookup(host, *port, spec.resolve.interval, spec.resolve.timeout))
            }
            _ => None,
        };
        let key = (spec.name.clone(), address.clone());
        let names = lookup.as_ref().map(|lookup| lookup.names.clone());
        let target = shared.targets.lease(&key, || {
            let health = Arc::new(Health::new(key.clone(), ward.clone()));
            let target = Target::new(key.clone(), &shared.rounds, known, health);
            target.set_found_elsewhere(elsewhere);
            target
        });
        let transport = Transport::new(spec, client, address, via, shared.tunnels.as_ref());
        let check = spec.health.clone().map(|spec| {
            let key = CheckKey {
                target: key.clone(),
                spec,
                transport: transport.key(),
            };
            shared.checks.lease(&key, || {
                let health = target.health().clone();
                let (permits, control) = (shared.checking.clone(), shared.control.clone());
                let transport = transport.clone();
                Check::new(&key, health, names.clone(), transport, permits, control)
            })
        });
        let host = match address {
            // They have no authority; this is what clients of unix sockets commonly say.
            TargetAddr::Unix(_) | TargetAddr::Tunnel(..) => HeaderValue::from_static("localhost"),
            // Addresses and checked names are always valid here; an impossible one is left to the origin to refuse.
            named => {
                HeaderValue::try_from(named.to_string()).unwrap_or(HeaderValue::from_static(""))
            }
        };
        Member {
            pool: target.pool(&transport.key()),
            target,
            transport,
            found_elsewhere: elsewhere,
            backup,
            host,
            lookup,
            check,
        }
    }

    /// Whether a connection is for one client alone.
    fn tells_client(&self) -> bool {
        self.transport.proxy_protocol.is_some()
    }

    /// Where to dial, for whom.
    fn to(&self, client: Option<Client>, worker: usize, within: Duration) -> connect::To<'_> {
        connect::To {
            address: self.target.address(),
            names: self.lookup.as_ref().map(|lookup| &*lookup.names),
            transport: &self.transport,
            hops: self.transport.via.as_ref().map(|via| via.hops()),
            passed: None,
            worker,
            client,
            within,
            speaks: tls::client::Offer::Nothing,
        }
    }

    /// Why no connection can be made.
    fn no_slot(&self) -> Error {
        let (address, open) = (self.target.address(), self.target.connections());
        let detail = format!("{address}: {open} connections are open");
        Error::upstream(Kind::ConnectionLimitReached, detail).unsent()
    }
}
