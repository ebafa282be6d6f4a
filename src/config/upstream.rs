//! `[upstreams.NAME]`: where requests go.
mod balance;
mod health;
mod passive;
mod protocol;
mod reference;
mod split;
mod sticky;
mod targets_file;
mod tls;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::agent::ProxyVersion;
use super::check::Checker;
use super::decode::{Limit, List, Map, Switch, section};
use super::scalar::{Span, TargetAddr};
use super::tree::At;
use super::via::{HopRaw, ViaSpec};

pub use balance::{Balance, BalanceRaw};
pub use health::{HealthRaw, HealthSpec, OnDown, ProbeSpec, StatusRange};
pub use passive::{PassiveRaw, PassiveSpec};
pub use protocol::Protocol;
pub use reference::{ProxyAt, Reference, References, base_path};
pub use split::{ShareSpec, resolve as resolve_splits, shares};
pub use sticky::{SameSite, StickyRaw, StickySpec};
pub use targets_file::{Fault, parse as parse_targets};
pub use tls::{UpstreamTlsRaw, UpstreamTlsSpec};

section! {
    /// A named set of targets that requests go to.
    pub struct UpstreamRaw {
        /// Where the requests go, at least one.
        targets: List<TargetRaw>,
        /// A file of targets instead, one a line: `ADDRESS [weight=N] [backup]`; read again when it changes.
        targets_file: String,
        /// Instead of targets: names of upstreams, each with its share of the requests, 0 to 1000; 0 gets none, not even from
        /// `sticky`. One without a usable target leaves its requests to the others, by share. Of the other keys only
        /// `sticky` counts here, the rest is each member's own.
        split: Map<u64>,
        /// How a target is chosen.
        balance: BalanceRaw = "round_robin",
        /// A cookie that keeps a client with its target; left out: none.
        sticky: StickyRaw,
        /// What the targets speak.
        protocol: Protocol = "h1",
        /// TLS to the targets; cleartext without it.
        tls: UpstreamTlsRaw,
        /// Idle connections that are kept.
        pool: PoolRaw = {},
        /// How long the stages of a request may take.
        timeouts: UpstreamTimeoutsRaw = {},
        /// How names of targets are looked up.
        resolve: ResolveRaw = {},
        /// How much one target takes at once; left out: any amount.
        limits: UpstreamLimitsRaw,
        /// Active checks of each target; `false`, or left out: none.
        health: Switch<HealthRaw>,
        /// Ejection of targets that fail requests; `false`, or left out: none.
        passive: Switch<PassiveRaw>,
        /// How long a target that comes, or comes back, takes to get its whole share.
        slow_start: Span = "0s",
        /// The version of the PROXY protocol, `"v1"` or `"v2"`, in which each connection begins by saying who the client is and which
        /// address it reached, before TLS; `false`: none. Such a connection belongs to one client: none is kept or shared,
        /// so it is not for HTTP/2. For `[udp]` it is `"v2"`, in front of the first datagram of a session. Checks say that they
        /// speak for themselves; to a `health.port` they say nothing.
        proxy_protocol: Switch<ProxyVersion> = false,
        /// The proxies through which the targets are reached, the nearest first; left out, or `"direct"`: none. Names of targets are looked
        /// up by the last one, but for `socks5`. Checks take the same way. Datagrams of `[udp]` go through one that speaks SOCKS5.
        via: List<HopRaw>,
    }
    one_of = ["targets", "targets_file", "split"];
    later = [];
}

section! {
    /// A target: `host:port`, `unix:/path`, or `tunnel:AGENT/SERVICE`.
    pub struct TargetRaw {
        /// `host:port`, `unix:/path`, or `tunnel:AGENT/SERVICE`: a service that an agent publishes.
        address: String,
        /// Share of the traffic, 0 to 1000; 0 gets none.
        weight: u64 = 1,
        /// Used only while no other target is usable.
        backup: bool = false,
    }
    short = address;
    later = [];
}

section! {
    /// Idle connections that are kept, counted over the whole process.
    pub struct PoolRaw {
        /// Idle connections kept per target.
        idle: u64 = 64,
        /// How long an idle connection is kept.
        idle_timeout: Span = "60s",
        /// Open connections per target.
        max_connections: Limit<u64> = "unlimited",
    }
    later = [];
}

section! {
    /// How long the stages of a request to a target may take.
    pub struct UpstreamTimeoutsRaw {
        /// Resolve, dial and handshake together.
        connect: Span = "3s",
        /// From the request's last byte to the response's head.
        response: Limit<Span> = "60s",
        /// Between two pieces of a response body.
        idle: Limit<Span> = "60s",
    }
    later = [];
}

section! {
    /// How much one target takes at once, counted over the whole process.
    pub struct UpstreamLimitsRaw {
        /// Requests in flight, websockets among them. At so many another target is picked; backups are not for this.
        requests: Limit<u64> = "unlimited",
        /// Open connections. As `pool.max_connections`, but requests wait for one.
        connections: Limit<u64> = "unlimited",
        /// Requests that wait while every target is full, for each target; the first one gets the first free place. One with a `sticky`
        /// cookie waits for its own target, and goes to another only after that.
        queue: u64 = 100,
        /// How long a request waits before it is answered with 503.
        wait: Span = "1s",
    }
    later = [];
}

section! {
    /// How DNS names of targets are looked up.
    pub struct ResolveRaw {
        /// How often a name is looked up again.
        interval: Span = "30s",
        /// How long one look-up may take.
        timeout: Span = "10s",
    }
    later = [];
}

/// One target of an upstream. Its identity is (upstream, address); the weight may change freely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetSpec {
    pub address: TargetAddr,
    /// Share of the traffic, 0 to 1000; 0 gets none.
    pub weight: u32,
    /// Used only while no other target is usable.
    pub backup: bool,
}

/// Checked `[upstreams.NAME]`, or the upstream that a URL in a `proxy` key stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamSpec {
    pub name: Arc<str>,
    /// Never empty, but for a split, and while `targets_file` has not been read.
    pub targets: Vec<TargetSpec>,
    /// Where they come from.
    pub targets_file: Option<PathBuf>,
    /// Instead of targets; see [`resolve_splits`].
    pub split: Vec<ShareSpec>,
    pub balance: Balance,
    pub sticky: Option<StickySpec>,
    /// [`Protocol::H2`] only with `tls`, [`Protocol::H2c`] only without.
    pub protocol: Protocol,
    /// `None`: cleartext.
    pub tls: Option<UpstreamTlsSpec>,
    pub pool: PoolSpec,
    pub timeouts: UpstreamTimeouts,
    pub resolve: ResolveSpec,
    pub limits: Option<LimitsSpec>,
    pub health: Option<HealthSpec>,
    pub passive: Option<PassiveSpec>,
    /// 0: at once.
    pub slow_start: Duration,
    /// How connections say who the client is. Only with [`Protocol::Http1`].
    pub proxy_protocol: Option<ProxyVersion>,
    /// `None`: direct.
    pub via: Option<ViaSpec>,
    /// JSON Pointer of its `tls`, where that is written in another place: the hop that it stands for.
    pub tls_place: Option<Arc<str>>,
    /// A proxy before it looks the names of its targets up.
    pub found_elsewhere: bool,
}

/// Checked `limits` of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsSpec {
    /// `None`: any number.
    pub requests: Option<usize>,
    /// `None`: any number.
    pub connections: Option<usize>,
    pub queue: usize,
    pub wait: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    /// Idle connections kept per target, the whole process together.
    pub idle: usize,
    pub idle_timeout: Duration,
    /// Open connections per target, the whole process together; `None`: no limit.
    pub max_connections: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTimeouts {
    /// Resolve, dial and handshake together.
    pub connect: Duration,
    /// From the request's last byte (or the last sign of life while it is sent) to the response's head; `None`: no limit.
    pub response: Option<Duration>,
    /// Between two pieces of a response body; `None`: no limit.
    pub idle: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveSpec {
    pub interval: Duration,
    pub timeout: Duration,
}

impl UpstreamSpec {
    /// JSON Pointer of its `tls`.
    pub fn tls_pointer(&self) -> String {
        match &self.tls_place {
            Some(place) => place.to_string(),
            None => format!("/upstreams/{}/tls", self.name),
        }
    }
}

impl UpstreamRaw {
    /// Checks one upstream, whose defaults are in; `at` is its place. `running` is what serves under the same name.
    pub fn spec(
        &self,
        name: &str,
        at: At,
        running: Option<&UpstreamSpec>,
        check: &mut Checker<'_>,
    ) -> UpstreamSpec {
        let targets = self.targets(at, check);
        let targets_file = self.targets_file(check);
        let health = self.health.as_ref().and_then(|h| h.on());
        if let Some(port) = health.and_then(|h| h.port.as_ref())
            && let Some(unix) = targets
                .iter()
                .find(|t| matches!(t.address, TargetAddr::Unix(_) | TargetAddr::Tunnel(..)))
        {
            let error = format!("the target `{}` has no port", unix.address);
            check.findings.error(port.at, error);
        }
        let passive = self.passive.as_ref().and_then(|p| p.on());
        let (protocol, protocol_at) = self
            .protocol
            .as_ref()
            .map_or((Protocol::Http1, at), |p| (p.value, p.at));
        let running = running.and_then(|upstream| upstream.tls.as_ref());
        let tls = self
            .tls
            .as_ref()
            .map(|tls| (tls.spec(running, check), tls.at));
        if !self.spoiled.contains(&"tls") {
            let tls = tls.as_ref().map(|(tls, at)| (tls, *at));
            tls::agree(protocol, protocol_at, tls, &targets, check);
        }
        let proxy_protocol = self.proxy_protocol.as_ref();
        if let Some(key) =
            proxy_protocol.filter(|p| p.on().is_some() && protocol != Protocol::Http1)
        {
            let message = format!(
                "a connection with a PROXY header belongs to one client, and those of `{}` are shared",
                protocol.word()
            );
            let finding = check.findings.error(key.at, message);
            finding.help("use `protocol = \"h1\"`");
        }
        let pool = self.pool.as_ref().map(|p| &p.value);
        let timeouts = self.timeouts.as_ref().map(|t| &t.value);
        let resolve = self.resolve.as_ref().map(|r| &r.value);
        UpstreamSpec {
            name: name.into(),
            targets,
            split: Vec::new(),
            targets_file,
            health: health.map(|h| h.spec(check)),
            passive: passive.map(|p| p.spec(check)),
            slow_start: self
                .slow_start
                .as_ref()
                .map_or(Duration::ZERO, |s| s.value.0),
            proxy_protocol: proxy_protocol.and_then(|p| p.on().copied()),
            via: None,
            tls_place: None,
            found_elsewhere: false,
            balance: balance::balance(self.balance.as_ref(), check),
            sticky: self.sticky.as_ref().and_then(|s| s.value.spec(s.at, check)),
            protocol,
            tls: tls.map(|(tls, _)| tls),
            pool: PoolSpec {
                idle: pool
                    .and_then(|p| p.idle.as_ref())
                    .map_or(0, |n| usize::try_from(n.value).unwrap_or(usize::MAX)),
                idle_timeout: check.duration(pool.and_then(|p| p.idle_timeout.as_ref())),
                max_connections: check.most(pool.and_then(|p| p.max_connections.as_ref())),
            },
            timeouts: UpstreamTimeouts {
                connect: check.duration(timeouts.and_then(|t| t.connect.as_ref())),
                response: check.limit(timeouts.and_then(|t| t.response.as_ref())),
                idle: check.limit(timeouts.and_then(|t| t.idle.as_ref())),
            },
            resolve: ResolveSpec {
                interval: check.duration(resolve.and_then(|r| r.interval.as_ref())),
                timeout: check.duration(resolve.and_then(|r| r.timeout.as_ref())),
            },
            limits: self.limits.as_ref().map(|l| l.value.spec(check)),
        }
    }

    fn targets(&self, at: At, check: &mut Checker<'_>) -> Vec<TargetSpec> {
        if let Some(split) = &self.split
            && (self.has("targets") || self.has("targets_file"))
        {
            let finding = check
                .findings
                .key_error(split.at, "`split` stands instead of targets");
            finding.help("leave one of them out");
        }
        let Some(list) = &self.targets else {
            let keys = ["targets", "targets_file", "split"];
            if !keys.iter().any(|key| self.has(key)) {
                check
                    .findings
                    .error(at, "an upstream needs `targets`")
                    .help("such as `targets = [\"10.0.0.1:8080\"]`");
            }
            return Vec::new();
        };
        if list.is_empty() && !list.spoiled {
            check
                .findings
                .error(list.at, "an upstream needs at least one target");
        }
        let mut seen = HashSet::new();
        let mut targets: Vec<TargetSpec> = Vec::with_capacity(list.len());
        let mut total = 0;
        for raw in list.iter() {
            let weight = raw
                .weight
                .as_ref()
                .map_or(1, |w| check.number(w.at, w.value, 0..=1_000));
            total += weight;
            let Some(text) = &raw.address else {
                if !raw.spoiled.contains(&"address") {
                    check.findings.error(raw.at, "a target needs an `address`");
                }
                continue;
            };
            let parsed = TargetAddr::parse(text, check.base);
            let Some(address) = check.take(text.at, parsed) else {
                continue;
            };
            if !seen.insert(address.clone()) {
                check
                    .findings
                    .error(text.at, format!("the target `{address}` is listed twice"))
                    .help("give one of them a larger `weight` instead");
                continue;
            }
            targets.push(TargetSpec {
                address,
                weight: u32::try_from(weight).unwrap_or(u32::MAX),
                backup: raw.backup.as_ref().is_some_and(|b| b.value),
            });
        }
        if total == 0 && !list.is_empty() && !list.spoiled {
            check
                .findings
                .error(
                    list.at,
                    "every target has weight 0, so none would get a request",
                )
                .help("give at least one of them a weight from 1 to 1000");
        }
        targets
    }
}

impl UpstreamLimitsRaw {
    fn spec(&self, check: &mut Checker<'_>) -> LimitsSpec {
        LimitsSpec {
            requests: check.most(self.requests.as_ref()),
            connections: check.most(self.connections.as_ref()),
            queue: self
                .queue
                .as_ref()
                .map_or(0, |n| usize::try_from(n.value).unwrap_or(usize::MAX)),
            wait: check.duration(self.wait.as_ref()),
        }
    }
}
