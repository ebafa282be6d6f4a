//! A server from what is written to what is checked.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::super::check::{Checker, is_name, shorten};
use super::super::decode::{List, Loc};
use super::super::runtime::OnChange;
use super::super::scalar::{HostPattern, ListenAddr, Wrong, cidr};
use super::super::tree::At;
use super::super::upstream::References;
use super::filters::Standing;
use super::raw::{HttpRaw, Protocol, RouteRaw};
use super::{
    ActionSpec, ConnectionSpec, ErrorPagesSpec, FilterSets, FiltersSpec, HttpSpec, MatchSpec,
    RouteSpec, action, matcher,
};

/// A server that has been checked for itself, with the places that checks across servers need.
#[derive(Debug)]
pub struct Checked {
    pub spec: HttpSpec,
    pub at: At,
    pub enabled: bool,
    /// Of each of `spec.listen`.
    pub listen_at: Vec<At>,
    /// Of each of `spec.hosts`.
    pub hosts_at: Vec<At>,
    /// Of each of `spec.routes`.
    pub routes_at: Vec<RouteAt>,
    /// Of each of [`SETTINGS`], where it is written.
    pub(super) settings_at: [Option<At>; SETTINGS.len()],
    /// Addresses of `tls.redirect_http`.
    pub redirect: Vec<(ListenAddr, At)>,
}

/// The places of a route that checks across routes need.
#[derive(Debug, Clone, Copy)]
pub struct RouteAt {
    pub route: At,
    /// Of `match.host`.
    pub hosts: At,
}

impl RouteAt {
    fn of(raw: &Loc<RouteRaw>) -> RouteAt {
        let hosts = raw.matcher.as_ref().and_then(|m| m.host.as_ref());
        RouteAt {
            route: raw.at,
            hosts: hosts.map_or(raw.at, |h| h.at),
        }
    }
}

/// What the rest of the document has for a server.
#[derive(Debug)]
pub struct Around<'a, 'd> {
    /// As `[runtime]` says.
    pub on_change: OnChange,
    pub references: &'a mut References<'d>,
    pub sets: &'a mut FilterSets,
}

impl HttpRaw {
    /// Checks one server, whose defaults are in. `running` is the one of that name that serves.
    pub fn spec(
        &self,
        name: &str,
        at: At,
        running: Option<&HttpSpec>,
        around: &mut Around<'_, '_>,
        check: &mut Checker<'_>,
    ) -> Checked {
        let Around {
            on_change,
            references,
            sets,
        } = around;
        let enabled = self.enabled.as_ref().is_none_or(|e| e.value);
        let (listen, listen_at) = self.listen(at, check).into_iter().unzip();
        let hosts = check.each(self.hosts.as_ref(), host);
        if let Some(list) = self.hosts.as_ref().filter(|l| l.is_empty() && !l.spoiled) {
            check
                .findings
                .error(list.at, "an empty list of hosts")
                .help("leave the key out: without it any host will do");
        }
        let (hosts, hosts_at) = different_hosts(hosts, check).into_iter().unzip();
        let actions = action::Actions {
            proxy: self.proxy.as_ref(),
            files: self.files.as_ref(),
            respond: self.respond.as_ref(),
            redirect: self.redirect.as_ref(),
            tcp: self.tcp.as_ref(),
        };
        let fallback = actions.spec(enabled, references, check);
        let used = sets.take(self.using.as_ref(), check);
        let standing = Standing {
            scope: format_args!("http/{name}"),
            pointer: format_args!("/http/{name}"),
            live: enabled,
        };
        let filters = self.written().spec(standing, references, check);
        let filters = filters.over(&used);
        let filters = filters.over(&FiltersSpec {
            body_limit: self.body_limit_of_limits(),
            ..FiltersSpec::default()
        });
        let mut routes = Vec::new();
        let mut routes_at = Vec::new();
        let mut names: HashMap<&str, usize> = HashMap::new();
        for (index, raw) in self.routes.iter().flat_map(|r| r.iter()).enumerate() {
            if let Some(name) = &raw.name {
                if !is_name(name) {
                    let message = format!("`{}` is not a name", shorten(name));
                    check
                        .findings
                        .error(name.at, message)
                        .help("names have letters, digits, `_`, `-` and `.`");
                }
                if let Some(first) = names.insert(name.as_str(), index) {
                    let message = format!(
                        "two routes are called `{}`; the other is routes/{first}",
                        shorten(name)
                    );
                    check.findings.error(name.at, message);
                }
            }
            let on = raw.enabled.as_ref().is_none_or(|e| e.value);
            let used = sets.take(raw.using.as_ref(), check);
            // No name has this sign.
            let number = format_args!("#{index}");
            let label: &dyn fmt::Display = match &raw.name {
                Some(name) => &name.value,
                None => &number,
            };
            let standing = Standing {
                scope: format_args!("http/{name}/routes/{label}"),
                pointer: format_args!("/http/{name}/routes/{index}"),
                live: enabled && on,
            };
            let own = raw.written().spec(standing, references, check).over(&used);
            if let (Some(route), true) = (route(raw, enabled && on, references, check), on) {
                routes.push(RouteSpec {
                    filters: own.over(&filters),
                    ..route
                });
                routes_at.push(RouteAt::of(raw));
            }
        }
        let tls = self
            .tls
            .as_ref()
            .map(|tls| tls.spec(tls.at, running.and_then(|r| r.tls.as_ref()), check));
        let redirect = self
            .tls
            .as_ref()
            .map(|tls| tls.redirect(check))
            .unwrap_or_default();
        let spec = HttpSpec {
            name: name.into(),
            listen,
            hosts,
            connection: self.connection(check),
            tls,
            upgraded_timeout: check.limit(self.timeouts.as_ref().and_then(|t| t.upgraded.as_ref())),
            filters,
            routes,
            error_pages: ErrorPagesSpec::new(self.error_pages.as_ref(), check),
            fallback,
            on_change: self.on_change.as_ref().map_or(*on_change, |o| o.value),
        };
        Checked {
            spec,
            at,
            enabled,
            listen_at,
            hosts_at,
            routes_at,
            settings_at: SETTINGS.map(|(.., place)| place(self)),
            redirect,
        }
    }

    fn listen(&self, at: At, check: &mut Checker<'_>) -> Vec<(ListenAddr, At)> {
        let Some(list) = &self.listen else {
            if !self.spoiled.contains(&"listen") {
                check
                    .findings
                    .error(at, "a server needs `listen`")
                    .help("such as `listen = \"127.0.0.1:8080\"`");
            }
            return Vec::new();
        };
        if list.is_empty() && !list.spoiled {
            check
                .findings
                .error(list.at, "a server needs an address to listen on");
        }
        addresses(list, check)
    }

    fn connection(&self, check: &mut Checker<'_>) -> ConnectionSpec {
        let protocols = self.protocols.as_ref();
        let speaks = |p: Protocol| protocols.is_some_and(|l| l.iter().any(|item| item.value == p));
        if let Some(list) = protocols.filter(|l| l.is_empty() && !l.spoiled) {
            check
                .findings
                .error(list.at, "a server needs at least one protocol");
        }
        let trusted = check.each(self.trusted_proxies.as_ref(), cidr);
        let proxy_protocol = self.proxy_protocol.as_ref().is_some_and(|p| p.value);
        if let (true, true, Some(raw)) = (proxy_protocol, trusted.is_empty(), &self.proxy_protocol)
        {
            check
                .findings
                .error(raw.at, "nobody is trusted to send a PROXY header")
                .help("give `trusted_proxies` the addresses of the balancers in front");
        }
        let timeouts = self.timeouts.as_ref().map(|t| &t.value);
        let limits = self.limits.as_ref().map(|l| &l.value);
        let (h1, h2) = (speaks(Protocol::H1), speaks(Protocol::H2));
        let alpn = self.tls.as_ref().map(|tls| tls.alpn(h1, h2, check));
        ConnectionSpec {
            h1,
            h2,
            alpn: alpn.unwrap_or_default(),
            tls: self.tls.as_ref().map(|tls| tls.min_version()),
            trusted_proxies: trusted.into_iter().map(|(net, _)| net).collect(),
            proxy_protocol,
            header_timeout: check.limit(timeouts.and_then(|t| t.header.as_ref())),
            body_timeout: check.limit(timeouts.and_then(|t| t.body.as_ref())),
            idle_timeout: check.limit(timeouts.and_then(|t| t.idle.as_ref())),
            write_timeout: check.limit(timeouts.and_then(|t| t.write.as_ref())),
            // hyper's buffer for HTTP/1 has no less than 8 KiB; a megabyte of head is nobody's need.
            header_size: limits
                .and_then(|l| l.header_size.as_ref())
                .map_or(32 * 1024, |size| {
                    if !(8_192..=1_048_576).contains(&size.0) {
                        let message = format!("a head of {} is not possible", size.value);
                        check
                            .findings
                            .error(size.at, message)
                            .help("from `\"8KiB\"` to `\"1MiB\"`");
                    }
                    usize::try_from(size.0).unwrap_or(usize::MAX)
                }),
            headers: limits.and_then(|l| l.headers.as_ref()).map_or(100, |n| {
                usize::try_from(check.number(n.at, n.value, 1..=4_096)).unwrap_or(usize::MAX)
            }),
            connections: check.most(limits.and_then(|l| l.connections.as_ref())),
            connections_per_client: check
                .most(limits.and_then(|l| l.connections_per_client.as_ref())),
            streams: limits.and_then(|l| l.streams.as_ref()).map_or(100, |n| {
                u32::try_from(check.number(n.at, n.value, 1..=100_000)).unwrap_or(u32::MAX)
            }),
            requests_per_connection: check
                .most(limits.and_then(|l| l.requests_per_connection.as_ref()))
                .and_then(|n| u64::try_from(n).ok()),
        }
    }

    fn body_limit_of_limits(&self) -> Option<Option<u64>> {
        let limit = self.limits.as_ref().and_then(|l| l.body.as_ref());
        limit.map(|limit| limit.get().map(|size| size.0))
    }
}

/// A setting of the connection: its key, whether two servers differ in it, and where one has it.
type Setting = (
    &'static str,
    fn(&ConnectionSpec, &ConnectionSpec) -> bool,
    fn(&HttpRaw) -> Option<At>,
);

/// Every setting that servers on one address must agree on.
const SETTINGS: [Setting; 16] = [
    (
        "tls",
        |a, b| a.tls.is_some() != b.tls.is_some(),
        |raw| place(&raw.tls),
    ),
    (
        "tls.min_version",
        |a, b| a.tls.is_some() && b.tls.is_some() && a.tls != b.tls,
        |raw| place(&raw.tls.as_ref()?.min_version),
    ),
    (
        "tls.alpn",
        |a, b| {
            a.tls.is_some() && b.tls.is_some() && (a.h1, a.h2) == (b.h1, b.h2) && a.alpn != b.alpn
        },
        |raw| place(&raw.tls.as_ref()?.alpn),
    ),
    (
        "protocols",
        |a, b| (a.h1, a.h2) != (b.h1, b.h2),
        |raw| place(&raw.protocols),
    ),
    (
        "trusted_proxies",
        |a, b| a.trusted_proxies != b.trusted_proxies,
        |raw| place(&raw.trusted_proxies),
    ),
    (
        "proxy_protocol",
        |a, b| a.proxy_protocol != b.proxy_protocol,
        |raw| place(&raw.proxy_protocol),
    ),
    (
        "timeouts.header",
        |a, b| a.header_timeout != b.header_timeout,
        |raw| place(&raw.timeouts.as_ref()?.header),
    ),
    (
        "timeouts.body",
        |a, b| a.body_timeout != b.body_timeout,
        |raw| place(&raw.timeouts.as_ref()?.body),
    ),
    (
        "timeouts.idle",
        |a, b| a.idle_timeout != b.idle_timeout,
        |raw| place(&raw.timeouts.as_ref()?.idle),
    ),
    (
        "timeouts.write",
        |a, b| a.write_timeout != b.write_timeout,
        |raw| place(&raw.timeouts.as_ref()?.write),
    ),
    (
        "limits.header_size",
        |a, b| a.header_size != b.header_size,
        |raw| place(&raw.limits.as_ref()?.header_size),
    ),
    (
        "limits.headers",
        |a, b| a.headers != b.headers,
        |raw| place(&raw.limits.as_ref()?.headers),
    ),
    (
        "limits.connections",
        |a, b| a.connections != b.connections,
        |raw| place(&raw.limits.as_ref()?.connections),
    ),
    (
        "limits.connections_per_client",
        |a, b| a.connections_per_client != b.connections_per_client,
        |raw| place(&raw.limits.as_ref()?.connections_per_client),
    ),
    (
        "limits.streams",
        |a, b| a.streams != b.streams,
        |raw| place(&raw.limits.as_ref()?.streams),
    ),
    (
        "limits.requests_per_connection",
        |a, b| a.requests_per_connection != b.requests_per_connection,
        |raw| place(&raw.limits.as_ref()?.requests_per_connection),
    ),
];

/// Where it is written; a default is nowhere.
pub(in crate::config) fn place<T>(value: &Option<Loc<T>>) -> Option<At> {
    value.as_ref().map(|v| v.at).filter(|at| *at != At::NOWHERE)
}

impl Checked {
    /// Where a setting of the connection is written; else the server.
    pub fn place(&self, key: &str) -> At {
        let number = SETTINGS.iter().position(|(name, ..)| *name == key);
        let at = number.and_then(|number| self.settings_at.get(number));
        at.copied().flatten().unwrap_or(self.at)
    }

    /// The settings of the connection in which two servers differ, each with its place in either.
    pub fn differences(&self, other: &Checked) -> Vec<(&'static str, At, At)> {
        let at = |of: &Checked, index: usize| {
            let place = of.settings_at.get(index).copied().flatten();
            place.unwrap_or(of.at)
        };
        SETTINGS
            .iter()
            .enumerate()
            .filter(|(_, (_, differ, _))| differ(&self.spec.connection, &other.spec.connection))
            .map(|(index, (key, ..))| (*key, at(self, index), at(other, index)))
            .collect()
    }
}

/// The addresses that a list names, `:80` being two.
pub(in crate::config) fn addresses(
    list: &List<String>,
    check: &mut Checker<'_>,
) -> Vec<(ListenAddr, At)> {
    let mut out: Vec<(ListenAddr, At)> = Vec::new();
    let mut seen = HashSet::new();
    for item in list.iter() {
        if !cfg!(unix) && item.starts_with("unix:") {
            check
                .findings
                .error(item.at, "there are no unix sockets on this system");
            continue;
        }
        let parsed = ListenAddr::parse_all(item, check.base);
        let Some(all) = check.take(item.at, parsed) else {
            continue;
        };
        let two = all.len() > 1;
        for addr in all {
            if two && addr.is_v6() && !check.has_ipv6 {
                check.findings.warning(
                    item.at,
                    format!("{addr} is left out: there is no IPv6 here"),
                );
            } else if addr.is_any_port() || seen.insert(addr.clone()) {
                out.push((addr, item.at));
            } else {
                check
                    .findings
                    .error(item.at, format!("the address {addr} is listed twice"));
            }
        }
    }
    out
}

/// A server is found by its name, for which a regular expression has no order.
fn host(text: &str) -> Result<HostPattern, Wrong> {
    match HostPattern::parse(text)? {
        HostPattern::Regex(_) => Err(Wrong::new("`hosts` takes no regular expressions")
            .help("leave `hosts` out and put the expression into `match.host` of a route")),
        pattern => Ok(pattern),
    }
}

fn different_hosts(
    hosts: Vec<(HostPattern, At)>,
    check: &mut Checker<'_>,
) -> Vec<(HostPattern, At)> {
    let mut seen = HashSet::new();
    let mut out = Vec::with_capacity(hosts.len());
    for (host, at) in hosts {
        if seen.insert(host.to_string()) {
            out.push((host, at));
        } else {
            check
                .findings
                .error(at, format!("the host `{host}` is listed twice"));
        }
    }
    out
}

fn route(
    raw: &Loc<RouteRaw>,
    live: bool,
    references: &mut References<'_>,
    check: &mut Checker<'_>,
) -> Option<RouteSpec> {
    let matcher = match &raw.matcher {
        Some(conditions) => matcher::spec(conditions, check),
        None => MatchSpec::default(),
    };
    let actions = action::Actions {
        proxy: raw.proxy.as_ref(),
        files: raw.files.as_ref(),
        respond: raw.respond.as_ref(),
        redirect: raw.redirect.as_ref(),
        tcp: raw.tcp.as_ref(),
    };
    let spoiled = raw
        .spoiled
        .iter()
        .any(|key| matches!(*key, "proxy" | "files" | "respond" | "redirect" | "tcp"));
    if actions.count() == 0 && !spoiled {
        check
            .findings
            .error(raw.at, "a route needs an action")
            .help("one of `proxy`, `files`, `respond`, `redirect` and `tcp`");
    }
    let action: Option<ActionSpec> = actions.spec(live, references, check);
    Some(RouteSpec {
        name: raw.name.as_ref().map(|n| Arc::from(n.as_str())),
        matcher,
        action: action?,
        filters: FiltersSpec::default(),
    })
}
