//! `[udp.NAME]`: datagrams of clients to the targets of an upstream, and answers back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::agent::ProxyVersion;
use super::check::Checker;
use super::decode::{Limit, List, Loc, section};
use super::http::addresses;
use super::l4;
use super::runtime::OnChange;
use super::scalar::{ListenAddr, Span, TargetAddr, cidr};
use super::tree::At;
use super::upstream::{References, UpstreamSpec};

section! {
    /// Passes datagrams on as they are. Those of one client address are a session: they go to one target, from a port of the
    /// session's own.
    pub struct UdpRaw {
        /// Addresses: `IP:port`, `:port` (all addresses) or `localhost:port`. No other UDP listener is there; TCP may be.
        listen: List<String>,
        /// `false`: checked, but not there.
        enabled: bool = true,
        /// Where datagrams go: the name of an upstream, or `host:port`. Its policy picks the target of a session.
        upstream: String,
        /// Ranges of client addresses whose datagrams alone are taken; left out: everybody's.
        allow: List<String>,
        /// Ranges of client addresses whose datagrams are not taken, also if `allow` has them.
        deny: List<String>,
        /// A session ends after so long without a datagram in either direction.
        idle: Limit<Span> = "60s",
        /// A session ends once each of the client's datagrams has been answered with so many: 1 for DNS.
        replies: Limit<u64> = "unlimited",
        /// How much is let through at once.
        limits: UdpLimitsRaw = {},
        /// What happens to a session when a swap changed or removed its own definition (this listener, its upstream, its
        /// target); left out: as `[runtime]` says. Without its listener none lasts longer than `drain_timeout`.
        on_change: OnChange,
    }
    later = [&["proxy_protocol", "trusted_proxies", "tls", "sni"]];
}

section! {
    /// How much is let through at once.
    pub struct UdpLimitsRaw {
        /// Sessions of an address, the whole process together. Each has a socket; datagrams of more clients are dropped.
        sessions: Limit<u64> = 10000,
    }
    later = [&["bandwidth"]];
}

/// Checked `[udp.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpSpec {
    pub name: Arc<str>,
    /// In the document's order, never empty; no unix sockets.
    pub listen: Vec<ListenAddr>,
    /// Name of an upstream that the document holds.
    pub upstream: Arc<str>,
    /// Empty: everybody.
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// `None`: no limit.
    pub idle: Option<Duration>,
    /// To each datagram of the client; `None`: no limit.
    pub replies: Option<u64>,
    /// Of an address, all workers together. `None`: no limit.
    pub sessions: Option<usize>,
    pub on_change: OnChange,
}

/// A listener that has been checked for itself, with the places that checks across the document need.
#[derive(Debug)]
pub struct CheckedUdp {
    pub spec: UdpSpec,
    pub enabled: bool,
    /// Of each of `spec.listen`.
    pub listen_at: Vec<At>,
    /// Of `upstream`.
    upstream_at: At,
}

impl UdpRaw {
    /// Checks one listener; `at` is its place, `on_change` what `[runtime]` says.
    pub fn spec(
        &self,
        name: &str,
        at: At,
        on_change: OnChange,
        references: &mut References<'_>,
        check: &mut Checker<'_>,
    ) -> CheckedUdp {
        let enabled = self.enabled.as_ref().is_none_or(|e| e.value);
        let (listen, listen_at) = self.listen(at, check).into_iter().unzip();
        let upstream = self.upstream(at, enabled, references, check);
        for list in [&self.allow, &self.deny].into_iter().flatten() {
            if list.is_empty() && !list.spoiled {
                check
                    .findings
                    .error(list.at, "an empty list of addresses")
                    .help("leave it out for no list, or write `[\"0.0.0.0/0\", \"::/0\"]` for every address");
            }
        }
        let sessions = self.limits.as_ref().and_then(|l| l.sessions.as_ref());
        let mut count = |raw: Option<&Loc<Limit<u64>>>| {
            raw.and_then(|raw| raw.get().map(|count| check.count(raw.at, count)))
        };
        let sessions = count(sessions);
        let replies = count(self.replies.as_ref()).map(|n| n as u64);
        CheckedUdp {
            spec: UdpSpec {
                name: name.into(),
                listen,
                upstream,
                allow: ranges(self.allow.as_ref(), check),
                deny: ranges(self.deny.as_ref(), check),
                idle: check.limit(self.idle.as_ref()),
                replies,
                sessions,
                on_change: self.on_change.as_ref().map_or(on_change, |o| o.value),
            },
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
                    .error(at, "a UDP listener needs `listen`")
                    .help("such as `listen = \"127.0.0.1:53\"`");
            }
            return Vec::new();
        };
        if list.is_empty() && !list.spoiled {
            let message = "a UDP listener needs an address to listen on";
            check.findings.error(list.at, message);
        }
        let mut all = addresses(list, check);
        all.retain(|(address, at)| {
            let is_ip = matches!(address, ListenAddr::Tcp(_));
            if !is_ip {
                let message = format!("{address}: UDP needs an IP address and a port");
                check.findings.error(*at, message);
            }
            is_ip
        });
        all
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
                    .error(at, "a UDP listener needs an `upstream`")
                    .help("the name of an upstream, or `host:port`");
            }
            return "".into();
        };
        if text.contains("://") {
            let message = "datagrams are passed on as they are: a URL says too much";
            check
                .findings
                .error(text.at, message)
                .help("the name of an upstream, or `host:port`");
            return "".into();
        }
        let found = references.resolve(text, enabled, check);
        found.map_or("".into(), |found| found.upstream)
    }
}

/// Checks that datagrams can go where the listeners send them.
pub fn check_upstreams(
    listeners: &[CheckedUdp],
    upstreams: &BTreeMap<Arc<str>, UpstreamSpec>,
    check: &mut Checker<'_>,
) {
    for listener in listeners {
        let named = (&listener.spec.upstream, listener.upstream_at);
        l4::check_upstream(named, upstreams, refusal, check);
    }
}

/// Why no datagrams go to an upstream, and what helps.
fn refusal(upstream: &UpstreamSpec) -> Option<l4::Refusal> {
    if upstream.tls.is_some() {
        let message = format!("upstream `{}` has `tls`, which is for TCP", upstream.name);
        return Some((message, Some("name one without `tls`")));
    }
    if upstream.via.is_some() {
        let message = format!(
            "upstream `{}` has `via`, and datagrams through proxies are not supported yet",
            upstream.name
        );
        return Some((message, Some("name one without `via`")));
    }
    if upstream.proxy_protocol == Some(ProxyVersion::V1) {
        let message = format!(
            "upstream `{}` has `proxy_protocol = \"v1\"`, which is for TCP",
            upstream.name
        );
        return Some((message, Some("use `\"v2\"`")));
    }
    if let Some(keyed) = l4::keyed(upstream, "a UDP") {
        return Some(keyed);
    }
    upstream
        .targets
        .iter()
        .find_map(|target| match &target.address {
            TargetAddr::Ip(_) | TargetAddr::Name(..) | TargetAddr::Tunnel(..) => None,
            TargetAddr::Unix(_) => {
                let message = format!("no datagrams go to the target {}", target.address);
                let help = "a target of UDP is `host:port`, or a `udp` service in a tunnel";
                Some((message, Some(help)))
            }
        })
}

fn ranges(list: Option<&Loc<List<String>>>, check: &mut Checker<'_>) -> Vec<IpNet> {
    let nets = check.each(list, cidr);
    nets.into_iter().map(|(net, _)| net).collect()
}
