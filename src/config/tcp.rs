//! `[tcp.NAME]`: streams from clients to the targets of an upstream and back.

mod names;
mod websocket;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::check::Checker;
use super::decode::{Limit, List, Loc, Map, section};
use super::forward::ForwardTlsRaw;
use super::http::{TlsSpec, TlsVersion, addresses, place};
use super::l4;
use super::runtime::OnChange;
use super::scalar::{HostPattern, ListenAddr, Span, Speed, cidr};
use super::tree::At;
use super::upstream::{References, UpstreamSpec};
pub use websocket::WebsocketSpec;
use websocket::Written;

section! {
    /// Passes connections on, byte for byte: each to one target of an upstream, the next one where it cannot be had.
    pub struct TcpRaw {
        /// Addresses: `IP:port`, `:port` (all addresses), `localhost:port` or `unix:/path`. Nothing else listens there, unless it
        /// goes by names: listeners with `sni` may share an address with each other and with `[http]` servers over TLS.
        listen: List<String>,
        /// `false`: checked, but not there.
        enabled: bool = true,
        /// Where connections go: the name of an upstream, or `host:port`. Its policy picks the target, its health checks
        /// and limits hold; with `tls` it is spoken to over TLS.
        upstream: String,
        /// The same by the name that clients ask for in their TLS hello (SNI), which is read and passed on: TLS is ended by the
        /// target. `a.example.com`, then the longest `*.example.com`, then `*`: all others, and hellos without a name. Without
        /// `*` these get the alert `unrecognized_name`. What is no TLS is closed. On an address that `[http]` servers have too,
        /// their `hosts` count as names, and they get what no name takes.
        sni: Map<String>,
        /// Each connection goes on in a websocket, as binary messages: a URL, `ws://host[:port]/path` or `wss://` (TLS, checked
        /// against the system's CAs), instead of `upstream`; or, beside an `upstream` (or `sni`), the path alone: its targets
        /// speak websocket then, with its policy, checks, limits, `tls` and `via`.
        websocket: String,
        /// Of the clients that `sni` names only those that offer one of these protocols in their hello (ALPN), such as `h2`,
        /// `postgresql` or `acme-tls/1`. They go before a listener that asks for no protocol of the same name.
        alpn: List<String>,
        /// Ends TLS here: what the upstream gets is cleartext, or TLS of ours where it has `tls`.
        tls: ForwardTlsRaw,
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
    later = [];
}

section! {
    /// How long the stages of a session may take.
    pub struct TcpTimeoutsRaw {
        /// Resolve, dial and handshake with one target together; left out: as the upstream's own `timeouts.connect` says.
        connect: Span,
        /// Both sides may be silent so long.
        idle: Limit<Span> = "1h",
        /// A PROXY header may take so long to come, and so may the hello that `sni` looks at, or the handshake of `tls`.
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
    pub to: ToSpec,
    /// `None`: targets get the bytes as they are.
    pub websocket: Option<WebsocketSpec>,
    /// Protocols of which a client must offer one; empty: any, or none. Only with [`ToSpec::Sni`].
    pub alpn: Vec<Box<str>>,
    /// `None`: what clients say is passed on as it is. Never with [`ToSpec::Sni`].
    pub tls: Option<TlsSpec>,
    pub min_version: TlsVersion,
    pub proxy_protocol: bool,
    pub trusted_proxies: Vec<IpNet>,
    /// Empty: everybody.
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
    /// To a target. `None`: as its upstream says.
    pub connect: Option<Duration>,
    /// `None`: no limit.
    pub idle: Option<Duration>,
    /// Of a PROXY header, a hello, and a handshake. `None`: no limit.
    pub header: Option<Duration>,
    /// Of an address, all workers together.
    pub connections: Option<usize>,
    pub connections_per_client: Option<usize>,
    /// Bytes a second in each direction.
    pub bandwidth: Option<u64>,
    pub on_change: OnChange,
}

/// Where connections go: names of upstreams that the document holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToSpec {
    Upstream(Arc<str>),
    Sni(SniSpec),
}

/// By the name in a TLS hello.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SniSpec {
    /// Each name once, none a regular expression.
    pub names: Vec<(HostPattern, Arc<str>)>,
    /// For all others; `None`: they are refused.
    pub rest: Option<Arc<str>>,
}

impl ToSpec {
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<str>> {
        let (one, sni) = match self {
            ToSpec::Upstream(one) => (Some(one), None),
            ToSpec::Sni(sni) => (sni.rest.as_ref(), Some(&sni.names)),
        };
        let named = sni.into_iter().flatten().map(|(_, upstream)| upstream);
        named.chain(one)
    }
}

impl TcpSpec {
    /// Whether its clients are told apart by the name in their hello: then it may share its addresses.
    pub fn is_by_name(&self) -> bool {
        matches!(self.to, ToSpec::Sni(_))
    }
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
    /// The names of `sni`, `*` among them, each with its place.
    pub names_at: Vec<(String, At)>,
    /// Of each of [`SETTINGS`], where it is written.
    settings_at: [Option<At>; SETTINGS.len()],
}

/// A key, and where it is written.
type Setting = (&'static str, fn(&TcpRaw) -> Option<At>);

/// What holds before it is known whose a connection is: all that share an address must agree on it.
const SETTINGS: [Setting; 5] = [
    ("proxy_protocol", |raw| place(&raw.proxy_protocol)),
    ("trusted_proxies", |raw| place(&raw.trusted_proxies)),
    ("timeouts.header", |raw| {
        place(&raw.timeouts.as_ref()?.header)
    }),
    ("limits.connections", |raw| {
        place(&raw.limits.as_ref()?.connections)
    }),
    ("limits.connections_per_client", |raw| {
        place(&raw.limits.as_ref()?.connections_per_client)
    }),
];

impl CheckedTcp {
    /// Where a setting is written; else the listener.
    pub fn place(&self, key: &str) -> At {
        let number = SETTINGS.iter().position(|(name, _)| *name == key);
        let at = number.and_then(|number| self.settings_at.get(number));
        at.copied().flatten().unwrap_or(self.at)
    }
}

impl TcpRaw {
    /// Checks one listener, whose defaults are in; `at` is its place, `on_change` what `[runtime]` says, `running` the one of
    /// that name that serves.
    pub fn spec(
        &self,
        name: &str,
        at: At,
        on_change: OnChange,
        running: Option<&TcpSpec>,
        references: &mut References<'_>,
        check: &mut Checker<'_>,
    ) -> CheckedTcp {
        let enabled = self.enabled.as_ref().is_none_or(|e| e.value);
        let (listen, listen_at) = self.listen(at, check).into_iter().unzip();
        let websocket = self.websocket.as_ref();
        let websocket = websocket.and_then(|w| check.take(w.at, Written::parse(w)));
        let url = websocket.as_ref().and_then(|w| w.url.as_deref());
        let (to, names_at) = self.to(at, url, enabled, references, check);
        let alpn = names::protocols(self.alpn.as_ref(), self.sni.is_some(), check);
        let tls = self.tls.as_ref().map(|tls| {
            let running = running.and_then(|r| r.tls.as_ref());
            tls.spec(tls.at, running, check)
        });
        if let (Some(tls), Some(_)) = (&self.tls, &self.sni) {
            check
                .findings
                .error(tls.at, "`sni` passes TLS on unopened, and `tls` ends it")
                .help("leave one of them out");
        }
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
                to,
                websocket: websocket.map(|written| written.spec),
                alpn,
                tls,
                min_version: self
                    .tls
                    .as_ref()
                    .map_or(TlsVersion::V12, |tls| tls.oldest()),
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
            upstream_at: (self.upstream.as_ref().map(|upstream| upstream.at))
                .or(self.sni.as_ref().map(|sni| sni.at))
                .or(self.websocket.as_ref().map(|websocket| websocket.at))
                .unwrap_or(at),
            names_at,
            settings_at: SETTINGS.map(|(_, place)| place(self)),
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

    /// `url`: of `websocket`, if it has one.
    fn to(
        &self,
        at: At,
        url: Option<&str>,
        enabled: bool,
        references: &mut References<'_>,
        check: &mut Checker<'_>,
    ) -> (ToSpec, Vec<(String, At)>) {
        if let (Some(url), Some(websocket)) = (url, &self.websocket) {
            if self.has("upstream") || self.has("sni") {
                check
                    .findings
                    .error(
                        websocket.at,
                        "the URL of `websocket` stands instead of an upstream",
                    )
                    .help("leave one of them out, or write the path alone");
            }
            let text = Loc {
                value: url.to_owned(),
                at: websocket.at,
            };
            let found = references.resolve(&text, enabled, check);
            let upstream = found.map(|found| found.upstream).unwrap_or_default();
            return (ToSpec::Upstream(upstream), Vec::new());
        }
        if let (Some(sni), Some(_)) = (&self.sni, &self.upstream) {
            check
                .findings
                .error(sni.at, "`upstream` and `sni` exclude each other")
                .help("in `sni`, `\"*\"` has the upstream for all other names");
        }
        if let Some(sni) = &self.sni {
            let (spec, names) = names::spec(sni, enabled, references, check);
            return (ToSpec::Sni(spec), names);
        }
        let Some(text) = &self.upstream else {
            // A URL that is wrong has been told.
            let path = self.websocket.as_ref().is_none_or(|w| w.starts_with('/'));
            let keys = ["upstream", "sni", "websocket"];
            if path && !keys.iter().any(|key| self.spoiled.contains(key)) {
                check
                    .findings
                    .error(at, "a TCP listener needs an `upstream`, or `sni`")
                    .help("the name of an upstream, or `host:port`");
            }
            return (ToSpec::Upstream("".into()), Vec::new());
        };
        let found = upstream(text, enabled, references, check);
        (ToSpec::Upstream(found.unwrap_or_default()), Vec::new())
    }
}

/// Checks that the upstreams are for connections that nobody looks into.
pub fn check_upstreams(
    listeners: &[CheckedTcp],
    upstreams: &BTreeMap<Arc<str>, UpstreamSpec>,
    check: &mut Checker<'_>,
) {
    for listener in listeners {
        for upstream in listener.spec.to.upstreams() {
            let named = (upstream, listener.upstream_at);
            l4::check_upstream(named, upstreams, |u| l4::keyed(u, "a TCP"), check);
        }
    }
}

fn upstream(
    text: &Loc<String>,
    enabled: bool,
    references: &mut References<'_>,
    check: &mut Checker<'_>,
) -> Option<Arc<str>> {
    if text.contains("://") {
        check
            .findings
            .error(
                text.at,
                "bytes are passed on as they are: a URL says too much",
            )
            .help("the name of an upstream, or `host:port`");
        return None;
    }
    let found = references.resolve(text, enabled, check)?;
    Some(found.upstream)
}

fn ranges(list: Option<&Loc<List<String>>>, check: &mut Checker<'_>) -> Vec<IpNet> {
    let nets = check.each(list, cidr);
    nets.into_iter().map(|(net, _)| net).collect()
}
