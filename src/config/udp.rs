//! `[udp.NAME]`: datagrams of clients to the targets of an upstream, and answers back.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::agent::ProxyVersion;
use super::check::Checker;
use super::decode::{Limit, List, section};
use super::l4::{self, Upstreams};
use super::runtime::OnChange;
use super::scalar::{ListenAddr, Span, TargetAddr};
use super::tree::At;
use super::upstream::{References, UpstreamSpec};
use super::via::{HopProtocol, HopSpec, ViaSpec};

const KIND: l4::Kind = l4::Kind {
    name: "a UDP",
    example: "127.0.0.1:53",
    passes: "datagrams are passed on",
};

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
        /// Sessions of an address, the whole process together. Each has a socket; datagrams of more clients are dropped. All
        /// addresses together have half of `runtime.max_connections` at most.
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
        let mut listen = KIND.listen(self.listen.as_ref(), self.has("listen"), at, check);
        listen.retain(|(address, at)| {
            let is_ip = matches!(address, ListenAddr::Tcp(_));
            if !is_ip {
                let message = format!("{address}: UDP needs an IP address and a port");
                check.findings.error(*at, message);
            }
            is_ip
        });
        let (listen, listen_at) = listen.into_iter().unzip();
        let upstream = match &self.upstream {
            Some(text) => KIND.upstream(text, enabled, references, check),
            None if self.has("upstream") => None,
            None => {
                let message = "a UDP listener needs an `upstream`";
                let finding = check.findings.error(at, message);
                finding.help("the name of an upstream, or `host:port`");
                None
            }
        };
        let sessions = self.limits.as_ref().and_then(|l| l.sessions.as_ref());
        CheckedUdp {
            spec: UdpSpec {
                name: name.into(),
                listen,
                upstream: upstream.unwrap_or_default(),
                allow: l4::some_ranges(self.allow.as_ref(), check),
                deny: l4::some_ranges(self.deny.as_ref(), check),
                idle: check.limit(self.idle.as_ref()),
                replies: check.most(self.replies.as_ref()).map(|n| n as u64),
                sessions: check.most(sessions),
                on_change: self.on_change.as_ref().map_or(on_change, |o| o.value),
            },
            enabled,
            listen_at,
            upstream_at: self.upstream.as_ref().map_or(at, |upstream| upstream.at),
        }
    }
}

/// Checks that datagrams can go where the listeners send them.
pub fn check_upstreams(listeners: &[CheckedUdp], upstreams: &Upstreams, check: &mut Checker<'_>) {
    for listener in listeners {
        let named = (&listener.spec.upstream, listener.upstream_at);
        l4::check_upstream(named, upstreams, |u| refusal(u, upstreams), check);
    }
}

/// Why no datagrams go to an upstream, and what helps.
fn refusal(upstream: &UpstreamSpec, upstreams: &Upstreams) -> Option<l4::Refusal> {
    let name = &upstream.name;
    if upstream.tls.is_some() {
        let message = format!("upstream `{name}` has `tls`, which is for TCP");
        return Some((message, Some("name one without `tls`")));
    }
    if let Some(via) = &upstream.via
        && let Some((why, help)) = no_way(via, upstreams)
    {
        let message = format!("upstream `{name}` has `via`, and {why}");
        return Some((message, Some(help)));
    }
    if upstream.proxy_protocol == Some(ProxyVersion::V1) {
        let message = format!("upstream `{name}` has `proxy_protocol = \"v1\"`, which is for TCP");
        return Some((message, Some("use `\"v2\"`")));
    }
    if let Some(unknown) = KIND.knows_too_little(upstream) {
        return Some(unknown);
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

/// Why no datagrams go through proxies, and what helps: they do through some that speak SOCKS5 and are reached as they are.
fn no_way(via: &ViaSpec, upstreams: &Upstreams) -> Option<(&'static str, &'static str)> {
    let last = via.hops.len().saturating_sub(1);
    let mut hops = via.hops.iter().enumerate();
    hops.find_map(|(index, hop)| no_way_through(hop, index == last, upstreams))
}

fn no_way_through(
    hop: &HopSpec,
    is_last: bool,
    upstreams: &Upstreams,
) -> Option<(&'static str, &'static str)> {
    let socks = "all proxies on their way must be `socks5://` or `socks5h://`";
    if !matches!(hop.protocol, HopProtocol::Socks5 | HopProtocol::Socks5h) {
        return Some(("a proxy of HTTP takes no datagrams", socks));
    }
    let proxies = l4::parts(&hop.upstream, upstreams);
    if proxies.iter().any(|proxy| proxy.via.is_some()) {
        let why = "datagrams would pass by the `via` that its proxies have themselves";
        return Some((why, "write the whole way in one `via`"));
    }
    if proxies.iter().any(|proxy| proxy.tls.is_some()) {
        let why = "datagrams to a proxy over TLS would go in cleartext";
        return Some((why, "use a proxy without `tls`"));
    }
    let mut targets = proxies.iter().flat_map(|proxy| &proxy.targets);
    let is_near =
        |address: &TargetAddr| matches!(address, TargetAddr::Unix(_) | TargetAddr::Tunnel(..));
    if targets.any(|target| is_near(&target.address)) {
        return Some(("no datagrams go to a proxy that is no `host:port`", socks));
    }
    // One might have the connection to the next proxy, and another the datagrams.
    let several = match &proxies[..] {
        [proxy] => proxy.targets.len() > 1 || proxy.targets_file.is_some(),
        _ => true,
    };
    (several && !is_last).then_some((
        "datagrams go past one proxy of which there are several only if it is the last",
        "name one proxy in each place before the last",
    ))
}
