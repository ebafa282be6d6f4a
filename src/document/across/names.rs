//! Addresses where the name in a TLS hello tells whose a connection is: of `[tcp]` listeners with `sni`, and of servers over TLS
//! beside them. What is settled before the name is known they must agree on, and a name may have one answer.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ipnet::IpNet;

use crate::config::check::Checker;
use crate::config::http::Checked;
use crate::config::scalar::ListenAddr;
use crate::config::tcp::CheckedTcp;
use crate::config::tree::At;

/// What takes all names that nothing else does.
const ALL: &str = "*";

/// One that shares an address.
#[derive(Clone, Copy)]
enum Sharer<'c> {
    Http(&'c Checked),
    Tcp(&'c CheckedTcp),
}

/// What holds before the name is known.
#[derive(Debug, PartialEq, Eq)]
struct First<'c> {
    proxy_protocol: bool,
    trusted_proxies: &'c [IpNet],
    header: Option<Duration>,
    connections: Option<usize>,
    connections_per_client: Option<usize>,
}

impl<'c> Sharer<'c> {
    fn name(self) -> String {
        match self {
            Sharer::Http(server) => format!("http.{}", server.spec.name),
            Sharer::Tcp(tcp) => format!("tcp.{}", tcp.spec.name),
        }
    }

    fn first(self) -> First<'c> {
        match self {
            Sharer::Http(server) => {
                let spec = &server.spec.connection;
                First {
                    proxy_protocol: spec.proxy_protocol,
                    trusted_proxies: &spec.trusted_proxies,
                    header: spec.header_timeout,
                    connections: spec.connections,
                    connections_per_client: spec.connections_per_client,
                }
            }
            Sharer::Tcp(tcp) => {
                let spec = &tcp.spec;
                First {
                    proxy_protocol: spec.proxy_protocol,
                    trusted_proxies: &spec.trusted_proxies,
                    header: spec.header,
                    connections: spec.connections,
                    connections_per_client: spec.connections_per_client,
                }
            }
        }
    }

    fn place(self, key: &str) -> At {
        match self {
            Sharer::Http(server) => server.place(key),
            Sharer::Tcp(tcp) => tcp.place(key),
        }
    }

    /// The keys in which two differ. Without PROXY headers `trusted_proxies` is a matter of HTTP alone.
    fn differences(self, other: Sharer<'_>) -> impl Iterator<Item = &'static str> {
        let (a, b) = (self.first(), other.first());
        let both = a.proxy_protocol && b.proxy_protocol;
        let keys = [
            ("proxy_protocol", a.proxy_protocol != b.proxy_protocol),
            (
                "trusted_proxies",
                both && a.trusted_proxies != b.trusted_proxies,
            ),
            ("timeouts.header", a.header != b.header),
            ("limits.connections", a.connections != b.connections),
            (
                "limits.connections_per_client",
                a.connections_per_client != b.connections_per_client,
            ),
        ];
        keys.into_iter()
            .filter_map(|(key, differs)| differs.then_some(key))
    }
}

/// Who has a name, and where it says so.
struct Owner<'c> {
    sharer: Sharer<'c>,
    at: At,
}

/// A name on an address, with the protocol that its clients must offer.
type Name<'c> = (&'c ListenAddr, String, Option<&'c str>);

/// Checks those that go by names against each other, and against the servers of the same addresses.
pub(in crate::document) fn check(
    listeners: &[CheckedTcp],
    servers: &[Checked],
    check: &mut Checker<'_>,
) {
    let listeners = || listeners.iter().filter(|tcp| tcp.spec.is_by_name());
    let addresses = listeners().flat_map(|tcp| &tcp.spec.listen);
    let addresses: HashSet<&ListenAddr> = addresses.filter(|addr| !addr.is_any_port()).collect();
    if addresses.is_empty() {
        return;
    }
    // All servers of an address agree with its first.
    let mut firsts: HashMap<&ListenAddr, Sharer<'_>> = HashMap::new();
    let mut names: HashMap<Name<'_>, Owner<'_>> = HashMap::new();
    for server in servers {
        let shared = server.spec.listen.iter().zip(&server.listen_at);
        for (addr, at) in shared.filter(|(addr, _)| addresses.contains(addr)) {
            let sharer = Sharer::Http(server);
            firsts.entry(addr).or_insert(sharer);
            let mut add = |name: String, at: At| {
                let owner = Owner { sharer, at };
                names.entry((addr, name, None)).or_insert(owner);
            };
            if server.spec.hosts.is_empty() {
                add(ALL.to_owned(), *at);
            }
            for (host, at) in server.spec.hosts.iter().zip(&server.hosts_at) {
                add(host.to_string(), *at);
            }
        }
    }
    for tcp in listeners() {
        // `:443` is two addresses; once is enough.
        let (mut compared, mut told) = (false, HashSet::new());
        let all = tcp.spec.listen.iter().zip(&tcp.listen_at);
        for (addr, at) in all.filter(|(addr, _)| !addr.is_any_port()) {
            match firsts.entry(addr) {
                Entry::Vacant(free) => _ = free.insert(Sharer::Tcp(tcp)),
                Entry::Occupied(_) if compared => {}
                Entry::Occupied(first) => {
                    compared = true;
                    fit(tcp, *at, *first.get(), addr, check);
                }
            }
            for (name, at) in &tcp.names_at {
                let protocols = tcp.spec.alpn.iter().map(|p| Some(&**p));
                let any = tcp.spec.alpn.is_empty().then_some(None);
                for protocol in protocols.chain(any) {
                    match names.entry((addr, name.clone(), protocol)) {
                        Entry::Vacant(free) => {
                            let sharer = Sharer::Tcp(tcp);
                            free.insert(Owner { sharer, at: *at });
                        }
                        Entry::Occupied(taken) if told.insert(name) => {
                            same_name(name, tcp, *at, taken.get(), addr, check);
                        }
                        Entry::Occupied(_) => {}
                    }
                }
            }
        }
    }
}

/// Whether `tcp` can be on `addr` beside the one that was there first.
fn fit(tcp: &CheckedTcp, at: At, first: Sharer<'_>, addr: &ListenAddr, check: &mut Checker<'_>) {
    let own = Sharer::Tcp(tcp);
    if let Sharer::Http(server) = first
        && server.spec.tls.is_none()
    {
        let other = first.name();
        let message = format!("`{other}` has the address {addr} too, and is cleartext");
        let help = format!(
            "clients say no name there: give `{other}` `tls`, or one of them another address"
        );
        check.findings.error(at, message).help(help);
        return;
    }
    for key in own.differences(first) {
        let sentence = |other: String| {
            format!("`{key}` differs from that of `{other}`, and both listen on {addr}")
        };
        let help = "this must be equal: it is settled before the name is known";
        let (here, there) = (own.place(key), first.place(key));
        check
            .findings
            .error(here, sentence(first.name()))
            .help(help);
        check.findings.error(there, sentence(own.name())).help(help);
    }
}

fn same_name(
    name: &str,
    tcp: &CheckedTcp,
    at: At,
    owner: &Owner<'_>,
    addr: &ListenAddr,
    check: &mut Checker<'_>,
) {
    // Both have it from `[defaults]`: then only the listener's own name says which one is meant.
    let at = if at == owner.at { tcp.at } else { at };
    let other = owner.sharer.name();
    let (message, help) = match (owner.sharer, name) {
        (Sharer::Http(_), ALL) => (
            format!("`{other}` has the address {addr} too, and no `hosts`: all names are its"),
            "give it `hosts`, or leave `\"*\"` out: what no name takes goes to HTTP",
        ),
        (Sharer::Http(_), _) => (
            format!("`{other}` answers for `{name}` on {addr} too"),
            "a name belongs to one of them; `alpn` here tells some of its clients from the others",
        ),
        (Sharer::Tcp(_), _) => (
            format!("`{other}` has `{name}` on {addr} too"),
            "a name has one upstream; `alpn` tells some of its clients from the others",
        ),
    };
    check.findings.error(at, message).help(help);
}
