//! What can only be seen with all servers in view: addresses that are shared, and by whom.

pub(super) mod names;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::config::check::Checker;
use crate::config::forward;
use crate::config::http::Checked;
use crate::config::scalar::ListenAddr;
use crate::config::tcp::CheckedTcp;
use crate::config::tree::At;
use crate::config::tunnel::CheckedTunnel;
use crate::config::udp::CheckedUdp;

/// Checks the addresses of all enabled servers against each other and against the admin API's.
pub(super) fn check(servers: &[Checked], admin: &ListenAddr, check: &mut Checker<'_>) {
    let mut owners: HashMap<&ListenAddr, &Checked> = HashMap::new();
    let mut hosts: HashMap<(&ListenAddr, String), &Checked> = HashMap::new();
    for server in servers {
        let mut compared = false;
        let mut host_reported = vec![false; server.spec.hosts.len().max(1)];
        for (addr, at) in server.spec.listen.iter().zip(&server.listen_at) {
            // The kernel gives each socket with port 0 a port of its own.
            if addr.is_any_port() {
                continue;
            }
            if addr.conflicts_with(admin) {
                check
                    .findings
                    .error(*at, format!("the admin API listens on {admin}"))
                    .help("choose another port here or in `admin.listen`");
            }
            match owners.entry(addr) {
                Entry::Vacant(free) => {
                    free.insert(server);
                }
                Entry::Occupied(owner) if !compared => {
                    compared = true;
                    connections_agree(server, owner.get(), addr, check);
                }
                Entry::Occupied(_) => {}
            }
            let names = server
                .spec
                .hosts
                .iter()
                .zip(&server.hosts_at)
                .map(|(host, at)| (host.to_string(), *at));
            let names: Vec<(String, At)> = if server.spec.hosts.is_empty() {
                vec![(String::new(), *at)]
            } else {
                names.collect()
            };
            for (index, (name, at)) in names.into_iter().enumerate() {
                match hosts.entry((addr, name)) {
                    Entry::Vacant(free) => {
                        free.insert(server);
                    }
                    // `:80` is two addresses; once is enough.
                    Entry::Occupied(_) if std::mem::replace(&mut host_reported[index], true) => {}
                    Entry::Occupied(taken) => {
                        let other = taken.get();
                        // Both have it from `[defaults]`: then only the server's own name says which one is meant.
                        let shared = other.listen_at.contains(&at) || other.hosts_at.contains(&at);
                        let at = if shared { server.at } else { at };
                        same_host(&taken.key().1, other, addr, at, check)
                    }
                }
            }
        }
    }
}

/// A listener that has its addresses alone, or shares them with others of a kind.
pub(super) struct Alone<'c> {
    /// With its section.
    pub(super) name: String,
    /// Its clients are told apart by name, from those of others that do so and from those of HTTP.
    by_name: bool,
    pub(super) listen: &'c [ListenAddr],
    pub(super) listen_at: &'c [At],
}

impl<'c> Alone<'c> {
    pub(super) fn tunnel(tunnel: &'c CheckedTunnel) -> Alone<'c> {
        Alone {
            name: format!("tunnels.{}", tunnel.spec.name),
            by_name: false,
            listen: &tunnel.spec.listen,
            listen_at: &tunnel.listen_at,
        }
    }

    pub(super) fn forward(proxy: &'c forward::Checked) -> Alone<'c> {
        Alone {
            name: format!("forward.{}", proxy.spec.name),
            by_name: false,
            listen: &proxy.spec.listen,
            listen_at: &proxy.listen_at,
        }
    }

    pub(super) fn tcp(tcp: &'c CheckedTcp) -> Alone<'c> {
        Alone {
            name: format!("tcp.{}", tcp.spec.name),
            by_name: tcp.spec.is_by_name(),
            listen: &tcp.spec.listen,
            listen_at: &tcp.listen_at,
        }
    }
}

/// Checks the addresses of those that nobody else may have, or nobody of another kind.
pub(super) fn check_alone<'c>(
    all: impl Iterator<Item = Alone<'c>>,
    servers: &'c [Checked],
    admin: &ListenAddr,
    check: &mut Checker<'_>,
) {
    // The last: may they be shared with one that goes by names?
    let mut owners: HashMap<&ListenAddr, (String, At, bool)> = HashMap::new();
    for server in servers {
        for (addr, at) in server.spec.listen.iter().zip(&server.listen_at) {
            if !addr.is_any_port() {
                owners.insert(addr, (format!("http.{}", server.spec.name), *at, true));
            }
        }
    }
    for alone in all {
        let mut told = false;
        for (addr, at) in alone.listen.iter().zip(alone.listen_at) {
            if addr.is_any_port() {
                continue;
            }
            if addr.conflicts_with(admin) {
                check
                    .findings
                    .error(*at, format!("the admin API listens on {admin}"))
                    .help("choose another port here or in `admin.listen`");
            }
            // `:7000` is two addresses; once is enough.
            let by_name = alone.by_name;
            if let Some((other, there, shared)) =
                owners.insert(addr, (alone.name.clone(), *at, by_name))
                && !(shared && by_name)
                && !std::mem::replace(&mut told, true)
            {
                let message = taken((&other, there), (&alone.name, *at), addr);
                check
                    .findings
                    .error(*at, message)
                    .help("what speaks no HTTP needs an address of its own; only `[tcp]` with `sni` shares one, with its like and with `[http]` over TLS");
            }
        }
    }
}

/// That one has an address which another has: where both have it from `[defaults]`, the place does not say who.
fn taken((other, there): (&str, At), (name, at): (&str, At), addr: &ListenAddr) -> String {
    match there == at {
        true => format!("`{other}` and `{name}` both have the address {addr}"),
        false => format!("`{other}` has the address {addr} too"),
    }
}

/// Checks the addresses of UDP, which has ports of its own.
pub(super) fn check_datagrams(all: &[CheckedUdp], check: &mut Checker<'_>) {
    let mut owners: HashMap<&ListenAddr, (&CheckedUdp, At)> = HashMap::new();
    for listener in all {
        let mut told = false;
        for (addr, at) in listener.spec.listen.iter().zip(&listener.listen_at) {
            if addr.is_any_port() {
                continue;
            }
            // `:53` is two addresses; once is enough.
            if let Some((other, there)) = owners.insert(addr, (listener, *at))
                && !std::mem::replace(&mut told, true)
            {
                let name = |listener: &CheckedUdp| format!("udp.{}", listener.spec.name);
                let message = taken((&name(other), there), (&name(listener), *at), addr);
                check
                    .findings
                    .error(*at, message)
                    .help("a UDP listener needs an address of its own");
            }
        }
    }
}

/// Adds the servers that `tls.redirect_http` stands for.
pub(super) fn add_redirects(servers: &mut Vec<Checked>, check: &mut Checker<'_>) {
    let redirects: Vec<Checked> = servers
        .iter()
        .filter_map(|server| server.redirecting(check))
        .collect();
    for redirect in redirects {
        if let Some(taken) = servers.iter().find(|s| s.spec.name == redirect.spec.name) {
            check.findings.key_error(
                taken.at,
                "this name stands for the server that `redirect_http` makes",
            );
        }
        servers.push(redirect);
    }
}

fn same_host(host: &str, other: &Checked, addr: &ListenAddr, at: At, check: &mut Checker<'_>) {
    let name = &other.spec.name;
    if host.is_empty() {
        check
            .findings
            .error(
                at,
                format!("`http.{name}` has the address {addr} too, and neither has `hosts`"),
            )
            .help("give one of them `hosts` or another address");
    } else {
        check
            .findings
            .error(
                at,
                format!("`http.{name}` answers for `{host}` on {addr} too"),
            )
            .help("a host belongs to one server of an address; put both servers' routes into one");
    }
}

fn connections_agree(
    server: &Checked,
    owner: &Checked,
    addr: &ListenAddr,
    check: &mut Checker<'_>,
) {
    for (key, here, there) in server.differences(owner) {
        let (name, other) = (&server.spec.name, &owner.spec.name);
        let sentence = |other: &str| {
            format!("`{key}` differs from that of `http.{other}`, and both listen on {addr}")
        };
        let help =
            "what belongs to the connection must be equal: it is settled before the host is known";
        check.findings.error(here, sentence(other)).help(help);
        check.findings.error(there, sentence(name)).help(help);
    }
}
