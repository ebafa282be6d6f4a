//! `[tcp.NAME]`: streams from clients to the targets of an upstream and back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::check::Checker;
use super::decode::{Limit, List, Loc, section};
use super::http::addresses;
use super::l4;
use super::runtime::OnChange;
use super::scalar::{ListenAddr, Span, Speed, cidr};
use super::tree::At;
use super::upstream::{References, UpstreamSpec};

section! {
    /// Passes connections on, byte for byte: each to one target of an upstream, the next one where it cannot be had.
    pub struct TcpRaw {
        /// Addresses: `IP:port`, `:port` (all addresses), `localhost:port` or `unix:/path`. Nothing else listens there.
        listen: List<String>,
        /// `false`: checked, but not there.
        enabled: bool = true,
        /// Where connections go: the name of an upstream, or `host:port`. Its policy picks the target, its health checks
        /// and limits hold; with `tls` it is spoken to over TLS.
        upstream: String,
        /// Connections of `trusted_proxies` begin with a PROXY header, version 1 or 2, which says who the client is. From
        /// others none is read.
        proxy_protocol: bool = false,
        /// Ranges of the balancers that send PROXY headers.
        trusted_proxies: List<String> = [],
        /// Ranges of client addresses that alone may connect; left out: everybody. Others are closed at once.
        allow: List<String>,
        /// Ranges of client addresses that may not connect, also if `allow` has them.
        deny: List<String>,
        /// How long the stages of a session may take.
        timeouts: TcpTimeoutsRaw = {},
        /// How much is let through at once.
        limits: TcpLimitsRaw = {},
        /// What happens to a session when a swap changed or removed its own definition (this listener, its upstream, its
        /// target); left out: as `[runtime]` says.
        on_change: OnChange,
    }
    later = [&["sni", "tls", "websocket"]];
}

section! {
    /// How long the stages of a session may take.
    pub struct TcpTimeoutsRaw {
        /// Resolve, dial and handshake with one target together; left out: as the upstream's own `timeouts.connect` says.
        connect: Span,
        /// Both sides may be silent so long.
        idle: Limit<Span> = "1h",
        /// A PROXY header may take so long to come.
        header: Limit<Span> = "10s",
    }
    later = [];
}

section! {
    /// How much is let through at once.
    pub struct TcpLimitsRaw {
        /// Connections of an address, the whole process together.
        connections: Limit<u64> = "unlimited",
        /// Connections of an address from one client address.
        connections_per_client: Limit<u64> = "unlimited",
        /// Bytes of a session by time, in each direction.
        bandwidth: Limit<Speed> = "unlimited",
    }
    later = [];
}

/// Checked `[tcp.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpSpec {
    pub name: Arc<str>,
    /// In the document's order, never empty.
    pub listen: Vec<ListenAddr>,
    /// Name of an upstream that the document holds.
    pub upstream: Arc<str>,
    pub proxy_protocol: bool,
    pub trusted_proxies: Vec<IpNet>,
    /// Empty: everybody.
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// To a target. `None`: as its upstream says.
    pub connect: Option<Duration>,
    /// `None`: no limit.
    pub idle: Option<Duration>,
    /// Of a PROXY header. `None`: no limit.
    pub header: Option<Duration>,
    /// Of an address, all workers together.
    pub connections: Option<usize>,
    pub connections_per_client: Option<usize>,
    /// Bytes a second in each direction.
    pub bandwidth: Option<u64>,
    pub on_change: OnChange,
}

/// A listener that has been checked for itself, with the places that checks across the document need.
#[derive(Debug)]
pub struct CheckedTcp {
    pub spec: TcpSpec,
    pub at: At,
    pub enabled: bool,
    /// Of each of `spec.listen`.
    pub listen_at: Vec<At>,
    /// Of `upstream`.
    upstream_at: At,
}

impl TcpRaw {
    /// Checks one listener, whose defaults are in; `at` is its place, `on_change` what `[runtime]` says.
    pub fn spec(
        &self,
        name: &str,
        at: At,
        on_change: OnChange,
        references: &mut References<'_>,
        check: &mut Checker<'_>,
    ) -> CheckedTcp {
        let enabled = self.enabled.as_ref().is_none_or(|e| e.value);
        let (listen, listen_at) = self.listen(at, check).into_iter().unzip();
        let upstream = self.upstream(at, enabled, references, check);
        let proxy_protocol = self.proxy_protocol.as_ref().is_some_and(|p| p.value);
        let trusted = ranges(self.trusted_proxies.as_ref(), check);
        if let Some(key) = self.proxy_protocol.as_ref().filter(|_| proxy_protocol)
            && trusted.is_empty()
            && !self.spoiled.contains(&"trusted_proxies")
        {
            check
                .findings
                .error(key.at, "nobody is trusted to send a PROXY header")
                .help("name the balancers in `trusted_proxies`");
        }
        for list in [&self.allow, &self.deny].into_iter().flatten() {
            if list.is_empty() && !list.spoiled {
                check
                    .findings
                    .error(list.at, "an empty list of addresses")
                    .help("leave it out for no list, or write `[\"0.0.0.0/0\", \"::/0\"]` for every address");
            }
        }
        let limits = self.limits.as_ref().map(|l| &l.value);
        let timeouts = self.timeouts.as_ref().map(|t| &t.value);
        let mut count = |raw: Option<&Loc<Limit<u64>>>| {
            raw.and_then(|raw| raw.get().map(|count| check.count(raw.at, count)))
        };
        let connections = count(limits.and_then(|l| l.connections.as_ref()));
        let connections_per_client = count(limits.and_then(|l| l.connections_per_client.as_ref()));
        let bandwidth = limits.and_then(|l| l.bandwidth.as_ref());
        CheckedTcp {
            spec: TcpSpec {
                name: name.into(),
                listen,
                upstream,
                proxy_protocol,
                trusted_proxies: trusted,
                allow: ranges(self.allow.as_ref(), check),
                deny: ranges(self.deny.as_ref(), check),
                connect: timeouts
                    .and_then(|t| t.connect.as_ref())
                    .map(|connect| check.duration(Some(connect))),
                idle: check.limit(timeouts.and_then(|t| t.idle.as_ref())),
                header: check.limit(timeouts.and_then(|t| t.header.as_ref())),
                connections,
                connections_per_client,
                bandwidth: bandwidth.and_then(|b| b.get().map(|speed| speed.0)),
                on_change: self.on_change.as_ref().map_or(on_change, |o| o.value),
            },
            at,
            enabled,
            listen_at,
            upstream_at: self.upstream.as_ref().map_or(at, |upstream| upstream.at),
        }
    }

    fn listen(&self, at: At, check: &mut Checker<'_>) -> Vec<(ListenAddr, At)> {
        let Some(list) = &self.listen else {
            if !self.spoiled.contains(&"listen") {
                check
                    .findings
                    .error(at, "a TCP listener needs `listen`")
                    .help("such as `listen = \"127.0.0.1:5432\"`");
            }
            return Vec::new();
        };
        if list.is_empty() && !list.spoiled {
            let message = "a TCP listener needs an address to listen on";
            check.findings.error(list.at, message);
        }
        addresses(list, check)
    }

    fn upstream(
        &self,
        at: At,
        enabled: bool,
        references: &mut References<'_>,
        check: &mut Checker<'_>,
    ) -> Arc<str> {
        let Some(text) = &self.upstream else {
            if !self.spoiled.contains(&"upstream") {
                check
                    .findings
                    .error(at, "a TCP listener needs an `upstream`")
                    .help("the name of an upstream, or `host:port`");
            }
            return "".into();
        };
        if text.contains("://") {
            check
                .findings
                .error(
                    text.at,
                    "bytes are passed on as they are: a URL says too much",
                )
                .help("the name of an upstream, or `host:port`");
            return "".into();
        }
        let found = references.resolve(text, enabled, check);
        found.map_or("".into(), |found| found.upstream)
    }
}

/// Checks that the upstreams are for connections that nobody looks into.
pub fn check_upstreams(
    listeners: &[CheckedTcp],
    upstreams: &BTreeMap<Arc<str>, UpstreamSpec>,
    check: &mut Checker<'_>,
) {
    for listener in listeners {
        let named = (&listener.spec.upstream, listener.upstream_at);
        l4::check_upstream(named, upstreams, |u| l4::keyed(u, "a TCP"), check);
    }
}

fn ranges(list: Option<&Loc<List<String>>>, check: &mut Checker<'_>) -> Vec<IpNet> {
    let nets = check.each(list, cidr);
    nets.into_iter().map(|(net, _)| net).collect()
}
