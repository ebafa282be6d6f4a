//! A document compiled into runtime objects: upstreams with their leases, one entry per bound address. What did not
//! change since the generation before is taken over as it is, so that a swap costs what it changes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::agent::AgentSpec;
use crate::config::forward::ForwardSpec;
use crate::config::http::{ActionSpec, Alpn, FiltersSpec, HttpSpec, RespondBody, TlsVersion};
use crate::config::scalar::ListenAddr;
use crate::config::tcp::TcpSpec;
use crate::config::tunnel::TunnelSpec;
use crate::config::udp::UdpSpec;
use crate::document::Document;
use crate::forward::{self, Forward};
use crate::http::record::{self, AccessLog, Recording};
use crate::http::{self, Face as _, Files, filter};
use crate::l4::names::Names;
use crate::l4::tcp::Tcp;
use crate::l4::udp::Udp;
use crate::listen::entry::{Entry, Plane};
use crate::listen::tunnel::Accepting;
use crate::net::Transport;
use crate::tls;
use crate::tls::client::Clients;
use crate::tls::stamp::Stamps;
use crate::tls::store::{Material, forward_name, tcp_name, tunnel_name};
use crate::tunnel::agent::{Agent, Agents, Settings};
use crate::tunnel::{Hub, Tunnel};
use crate::upstream::via::Via;
use crate::upstream::{Shared, Upstream};

/// Identity of a bound address. A port 0 is never shared, so its server and place belong to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BindingKey {
    pub transport: Transport,
    pub address: ListenAddr,
    pub owner: Option<(Arc<str>, usize)>,
}

/// What a document puts behind one address.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Behind<'d> {
    /// By name.
    pub http: Vec<&'d HttpSpec>,
    /// Nobody else is there then.
    pub forward: Option<&'d ForwardSpec>,
    /// By name. Several, or HTTP beside them: then all of them go by names (`sni`).
    pub tcp: Vec<&'d TcpSpec>,
    /// Then there is nothing else.
    pub udp: Option<&'d UdpSpec>,
    /// Then there is nothing else.
    pub tunnel: Option<&'d TunnelSpec>,
}

/// What stands behind which address.
pub fn bindings(document: &Document) -> BTreeMap<BindingKey, Behind<'_>> {
    let mut map: BTreeMap<BindingKey, Behind<'_>> = BTreeMap::new();
    for spec in document.http.values() {
        for key in keys(Transport::Stream, &spec.name, &spec.listen) {
            map.entry(key).or_default().http.push(spec);
        }
    }
    for spec in document.forward.values() {
        for key in keys(Transport::Stream, &forward_name(&spec.name), &spec.listen) {
            map.entry(key).or_default().forward = Some(spec);
        }
    }
    for spec in document.tcp.values() {
        for key in keys(Transport::Stream, &tcp_name(&spec.name), &spec.listen) {
            map.entry(key).or_default().tcp.push(spec);
        }
    }
    for spec in document.udp.values() {
        let owner = format!("[udp.{}]", spec.name).into();
        for key in keys(Transport::Datagram, &owner, &spec.listen) {
            map.entry(key).or_default().udp = Some(spec);
        }
    }
    for spec in document.tunnels.values() {
        for key in keys(Transport::Stream, &tunnel_name(&spec.name), &spec.listen) {
            map.entry(key).or_default().tunnel = Some(spec);
        }
    }
    map
}

/// Identities of the addresses that `name` listens on.
fn keys<'a>(
    transport: Transport,
    name: &'a Arc<str>,
    listen: &'a [ListenAddr],
) -> impl Iterator<Item = BindingKey> + 'a {
    listen.iter().enumerate().map(move |(index, address)| {
        let any_port = matches!(address, ListenAddr::Tcp(a) if a.port() == 0);
        BindingKey {
            transport,
            address: address.clone(),
            owner: any_port.then(|| (name.clone(), index)),
        }
    })
}

impl BindingKey {
    /// As operators see it.
    pub fn shown(&self) -> String {
        self.transport.show(&self.address)
    }
}

impl Behind<'_> {
    /// Names of what stands there.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let http = self.http.iter().map(|spec| &spec.name);
        let forward = self.forward.iter().map(|spec| &spec.name);
        let tcp = self.tcp.iter().map(|spec| &spec.name);
        let udp = self.udp.iter().map(|spec| &spec.name);
        let tunnel = self.tunnel.iter().map(|spec| &spec.name);
        http.chain(forward).chain(tcp).chain(udp).chain(tunnel)
    }

    /// Names of the upstreams that it uses.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<str>> {
        let tcp = self.tcp.iter().flat_map(|spec| spec.to.upstreams());
        let udp = self.udp.iter().map(|spec| &spec.upstream);
        let forward = self.forward.iter().flat_map(|spec| spec.upstreams());
        upstreams_of(&self.http)
            .chain(tcp)
            .chain(udp)
            .chain(forward)
    }

    /// Names of those that present certificates there, as [`Material`] knows them.
    fn presenting(&self) -> impl Iterator<Item = Arc<str>> {
        let http = self.http.iter().map(|spec| spec.name.clone());
        let forward = self.forward.iter().map(|spec| forward_name(&spec.name));
        let tunnel = self.tunnel.iter().map(|spec| tunnel_name(&spec.name));
        let tcp = self.tcp.iter().map(|spec| tcp_name(&spec.name));
        http.chain(forward).chain(tunnel).chain(tcp)
    }

    /// Paths of the files that it answers with, or goes by.
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let proxy = self.forward.iter().flat_map(|spec| spec.files());
        files_of(&self.http).chain(proxy.map(|(path, _)| path))
    }
}

fn actions_of<'a>(specs: &'a [&HttpSpec]) -> impl Iterator<Item = &'a ActionSpec> {
    specs.iter().flat_map(|spec| {
        let routes = spec.routes.iter().map(|route| &route.action);
        routes.chain(&spec.fallback)
    })
}

/// Names of the upstreams that the servers of an address use.
fn upstreams_of<'a>(specs: &'a [&HttpSpec]) -> impl Iterator<Item = &'a Arc<str>> {
    let proxied = actions_of(specs).filter_map(|action| match action {
        ActionSpec::Proxy(proxy) => Some(&proxy.upstream),
        ActionSpec::Tcp { upstream } => Some(upstream),
        ActionSpec::Files(_) | ActionSpec::Respond(_) | ActionSpec::Redirect(_) => None,
    });
    proxied.chain(filters_of(specs).flat_map(FiltersSpec::upstreams))
}

fn filters_of<'a>(specs: &'a [&HttpSpec]) -> impl Iterator<Item = &'a FiltersSpec> {
    specs.iter().flat_map(|spec| spec.all_filters())
}

/// Paths of the files that the servers of an address answer with, or go by.
fn files_of<'a>(specs: &'a [&HttpSpec]) -> impl Iterator<Item = &'a PathBuf> {
    let pages = specs
        .iter()
        .flat_map(|spec| spec.error_pages.files().map(|(_, path)| path));
    let answered = actions_of(specs).filter_map(|action| match action {
        ActionSpec::Respond(respond) => match &respond.body {
            RespondBody::File(path) => Some(path),
            RespondBody::Template(_) => None,
        },
        ActionSpec::Proxy(_)
        | ActionSpec::Files(_)
        | ActionSpec::Redirect(_)
        | ActionSpec::Tcp { .. } => None,
    });
    let named = filters_of(specs).flat_map(FiltersSpec::files);
    answered.chain(pages).chain(named.map(|(path, _)| path))
}

/// What one generation runs. Dropping the last reference lets its leases fall.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub upstreams: BTreeMap<Arc<str>, Arc<Upstream>>,
    pub entries: BTreeMap<BindingKey, Arc<Entry>>,
    pub files: Files,
    pub pems: Pems,
    pub certificates: Material,
    /// How upstreams are spoken to.
    pub clients: Clients,
    pub access_log: Option<Arc<AccessLog>>,
    /// What the admin API presents; `None`: it is cleartext.
    pub admin: Option<Arc<tls::Server>>,
    /// By name.
    pub tunnels: BTreeMap<Arc<str>, Tunnelling>,
    pub agents: BTreeMap<Arc<str>, (Arc<Agent>, Arc<Settings>)>,
}

/// A tunnel with what a generation makes of it.
#[derive(Debug, Clone)]
pub struct Tunnelling {
    pub hub: Arc<Hub>,
    pub tunnel: Arc<Tunnel>,
    pub spec: Arc<TunnelSpec>,
}

/// What the files of a document hold.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Those that only a swap reads anew: answers, and what TLS to upstreams needs.
    pub answers: Files,
    pub pems: Pems,
}

/// The files that hold certificates, keys and CAs: they are taken over when they change, so they are kept apart.
#[derive(Debug, Clone, Default)]
pub struct Pems {
    pub files: Files,
    /// As they lay there before they were read.
    pub stamps: Arc<Stamps>,
}

/// What outlives generations, as far as compiling one takes leases on it.
#[derive(Debug, Clone, Copy)]
pub struct Lasting<'a> {
    pub upstreams: &'a Arc<Shared>,
    pub tls: &'a tls::Shared,
    pub filters: &'a filter::Shared,
    pub forward: &'a forward::Shared,
    pub records: &'a record::Shared,
    pub tunnels: &'a Arc<Hub>,
    pub agents: &'a Agents,
}

impl Snapshot {
    /// Compiles `document`. `before` is what runs, with the document it was made of; `certificates` those that the
    /// document names, made of the PEM files among `contents`.
    pub fn build(
        document: &Document,
        contents: Contents,
        (certificates, clients): (Material, Clients),
        access_log: Option<Arc<AccessLog>>,
        lasting: Lasting<'_>,
        before: Option<(&Document, &Snapshot)>,
    ) -> Snapshot {
        let Contents {
            answers: files,
            pems,
        } = contents;
        let Lasting {
            upstreams: shared,
            tls,
            filters,
            forward,
            records,
            tunnels: hub,
            agents,
        } = lasting;
        // One that changed is another for every entry.
        let same_log = before.is_none_or(|(old, _)| old.access_log == document.access_log);
        let access_log = match before {
            Some((_, snapshot)) if same_log => snapshot.access_log.clone(),
            _ => access_log,
        };
        let recording = Recording {
            shared: records,
            log: access_log.as_ref(),
        };
        let mut upstreams = BTreeMap::new();
        for name in document.upstreams.keys() {
            let of = (document, &clients);
            add_upstream(name, of, shared, before, &mut upstreams);
        }
        let tunnels = tunnels(document, hub, before);
        let old_bindings = before.map(|(old, _)| bindings(old)).unwrap_or_default();
        let entries = bindings(document)
            .into_iter()
            .map(|(key, behind)| {
                let kept = before.and_then(|(_, snapshot)| {
                    let same = same_log
                        && old_bindings.get(&key) == Some(&behind)
                        && behind
                            .presenting()
                            .all(|name| certificates.same(&snapshot.certificates, &name))
                        && behind
                            .files()
                            .all(|path| snapshot.files.get(path) == files.get(path))
                        && behind.upstreams().all(|name| {
                            match (upstreams.get(name), snapshot.upstreams.get(name)) {
                                (Some(new), Some(old)) => Arc::ptr_eq(new, old),
                                _ => false,
                            }
                        });
                    same.then(|| snapshot.entries.get(&key).cloned()).flatten()
                });
                if let Some(kept) = kept {
                    return (key, kept);
                }
                let entry = {
                    let specs = &behind.http;
                    let accepting = behind
                        .tunnel
                        .and_then(|spec| accepting(tunnels.get(&spec.name)?, &certificates, tls));
                    let http = || http::Entry::build(specs, &upstreams, &files, filters, recording);
                    if let Some(accepting) = accepting {
                        return (key, Arc::new(Entry::of_tunnel(http(), Arc::new(accepting))));
                    }
                    if let Some(spec) = behind.forward {
                        let presented = presented_by(spec, &certificates, tls);
                        let passwords = &filters.passwords;
                        let proxy = Forward::build(
                            spec,
                            &files,
                            &upstreams,
                            presented,
                            passwords,
                            forward,
                            access_log.clone(),
                        );
                        let proxy = Arc::new(proxy);
                        let http = http::Entry::of_forward(proxy.clone(), recording);
                        return (key, Arc::new(Entry::of_forward(proxy, http)));
                    }
                    let over_tls = || http().over_tls(presented(specs, &certificates, tls));
                    let listeners = behind.tcp.iter().filter_map(|spec| {
                        let presented = presented_by_tcp(spec, &certificates, tls);
                        let log = access_log.clone();
                        let tcp = Tcp::new((*spec).clone(), &upstreams, presented, log)?;
                        Some(Arc::new(tcp))
                    });
                    let listeners: Vec<_> = listeners.collect();
                    if let Some(tcp) = listeners.iter().find(|tcp| tcp.upstream().is_some()) {
                        return (key, Arc::new(Entry::of_tcp(http(), tcp.clone())));
                    }
                    if !listeners.is_empty()
                        && let Some(names) = Names::new(listeners, specs)
                    {
                        return (key, Arc::new(Entry::of_names(over_tls(), Arc::new(names))));
                    }
                    let udp = behind.udp.and_then(|spec| {
                        let upstream = upstreams.get(&spec.upstream)?.clone();
                        Some(Arc::new(Udp::new(spec.clone(), upstream)))
                    });
                    if let Some(udp) = udp {
                        return (key, Arc::new(Entry::of_udp(http(), udp)));
                    }
                    Arc::new(Entry::of_http(over_tls()))
                };
                (key, entry)
            })
            .collect();
        let admin = admin_tls(document, &certificates, tls).map(Arc::new);
        let agents = agents_of(document, agents, &clients, &upstreams, before);
        Snapshot {
            upstreams,
            entries,
            files,
            pems,
            certificates,
            access_log,
            admin,
            agents,
            clients,
            tunnels,
        }
    }

    /// The same with other certificates, which its addresses present from the next hello on; `document` is the one it was
    /// made of. Only what differs is exchanged. No request notices.
    pub fn renewed(
        &self,
        document: &Document,
        pems: Pems,
        certificates: Material,
        tls: &tls::Shared,
    ) -> Snapshot {
        for (key, behind) in bindings(document) {
            let same = behind
                .presenting()
                .all(|name| certificates.same(&self.certificates, &name));
            if let Some(entry) = self.entries.get(&key).filter(|_| !same) {
                match &entry.plane {
                    Plane::Tunnel(accepting) => {
                        let name = &accepting.tunnel.name;
                        if let Some(server) = tunnel_tls(name, &certificates, tls) {
                            accepting.server.exchange(server);
                        }
                    }
                    Plane::Forward(proxy) => {
                        let presented = presented_by(&proxy.spec, &certificates, tls);
                        if let (Some(server), Some(presented)) = (&proxy.tls, presented) {
                            server.exchange(presented);
                        }
                    }
                    Plane::Tcp(tcp) => {
                        let presented = presented_by_tcp(&tcp.spec, &certificates, tls);
                        if let (Some(server), Some(presented)) = (&tcp.tls, presented) {
                            server.exchange(presented);
                        }
                    }
                    Plane::Http | Plane::Names(_) | Plane::Udp(_) => {
                        let presented = presented(&behind.http, &certificates, tls);
                        entry.http().present(presented);
                    }
                }
            }
        }
        let same = certificates.same(&self.certificates, &tls::store::ADMIN);
        if let Some(server) = self.admin.as_ref().filter(|_| !same)
            && let Some(new) = admin_tls(document, &certificates, tls)
        {
            server.exchange(new);
        }
        Snapshot {
            pems,
            certificates,
            ..self.clone()
        }
    }
}

impl Snapshot {
    /// It is committed, in the place of `before`: its upstreams' checks take charge of their targets.
    pub fn begin(&self, before: Option<&Snapshot>, hub: &Hub) {
        for (name, upstream) in &self.upstreams {
            let old = before.and_then(|before| before.upstreams.get(name));
            // One that is taken over has begun.
            if old.is_none_or(|old| !Arc::ptr_eq(old, upstream)) {
                upstream.begin(old.is_some());
            }
        }
        for Tunnelling { tunnel, spec, .. } in self.tunnels.values() {
            hub.adopt(tunnel, spec);
        }
        let tunnels = self.tunnels.values();
        hub.know(tunnels.flat_map(|made| made.spec.tokens.keys()));
        for (name, (agent, settings)) in &self.agents {
            let old = before.and_then(|before| before.agents.get(name));
            if old.is_none_or(|(_, old)| !Arc::ptr_eq(old, settings)) {
                agent.adopt(settings.clone());
            }
        }
    }
}

/// The tunnels of a document; one that did not change is what it was.
fn tunnels(
    document: &Document,
    hub: &Arc<Hub>,
    before: Option<(&Document, &Snapshot)>,
) -> BTreeMap<Arc<str>, Tunnelling> {
    let one = |(name, spec): (&Arc<str>, &TunnelSpec)| {
        let kept = before.and_then(|(_, snapshot)| snapshot.tunnels.get(name));
        let kept = kept.filter(|old| *old.spec == *spec).cloned();
        let made = kept.unwrap_or_else(|| Tunnelling {
            hub: hub.clone(),
            tunnel: hub.lease(spec),
            spec: Arc::new(spec.clone()),
        });
        (name.clone(), made)
    };
    document.tunnels.iter().map(one).collect()
}

/// The agents of a document; one that did not change is what it was.
fn agents_of(
    document: &Document,
    agents: &Agents,
    clients: &Clients,
    upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
    before: Option<(&Document, &Snapshot)>,
) -> BTreeMap<Arc<str>, (Arc<Agent>, Arc<Settings>)> {
    let one = |(name, spec): (&Arc<str>, &AgentSpec)| {
        // Every agent has one, and every service that speaks TLS.
        let client = clients.of(&tls::client::agent(name))?.clone();
        let of = |service: &Arc<str>| {
            let client = clients.of(&tls::client::service(name, service))?;
            Some((service.clone(), client.clone()))
        };
        let settings = Settings {
            spec: spec.clone(),
            client,
            services: spec.services.keys().filter_map(of).collect(),
            via: spec.via.as_ref().map(|via| Via::build(via, upstreams)),
        };
        let kept = before.and_then(|(_, snapshot)| snapshot.agents.get(name));
        let same = |(_, old): &&(Arc<Agent>, Arc<Settings>)| {
            old.same(&settings) && same_way(old.via.as_ref(), settings.via.as_ref())
        };
        if let Some(kept) = kept.filter(same) {
            return Some((name.clone(), kept.clone()));
        }
        Some((name.clone(), (agents.lease(spec), Arc::new(settings))))
    };
    document.agents.iter().filter_map(one).collect()
}

/// What an address does for the agents of a tunnel.
fn accepting(
    made: &Tunnelling,
    certificates: &Material,
    shared: &tls::Shared,
) -> Option<Accepting> {
    Some(Accepting {
        hub: made.hub.clone(),
        tunnel: made.tunnel.clone(),
        spec: made.spec.clone(),
        server: tunnel_tls(&made.tunnel.name, certificates, shared)?,
    })
}

fn tunnel_tls(name: &str, certificates: &Material, shared: &tls::Shared) -> Option<tls::Server> {
    let name = tunnel_name(name);
    let presented = tls::Presented {
        hosts: &[],
        certificates: certificates.of(&name),
        client_auth: certificates.client_auth(&name),
    };
    let made = tls::Server::new(&[presented], TlsVersion::V13, &[], shared);
    // As in `presented`.
    made.inspect_err(|error| tracing::error!(%error, "a tunnel cannot present anything"))
        .ok()
}

/// What the admin API presents: HTTP/1.1 is all that it speaks.
fn admin_tls(
    document: &Document,
    certificates: &Material,
    shared: &tls::Shared,
) -> Option<tls::Server> {
    document.admin.tls.as_ref()?;
    let presented = tls::Presented {
        hosts: &[],
        certificates: certificates.of(&tls::store::ADMIN),
        client_auth: certificates.client_auth(&tls::store::ADMIN),
    };
    let made = tls::Server::new(&[presented], TlsVersion::V12, &[Alpn::Http1], shared);
    // As in `presented`.
    made.inspect_err(|error| tracing::error!(%error, "the admin API cannot present anything"))
        .ok()
}

/// Adds an upstream and, before it, those that it is split over and those on its way: a document has no circle of them. `None`: it
/// is not there, which no document is.
fn add_upstream(
    name: &Arc<str>,
    of: (&Document, &Clients),
    shared: &Arc<Shared>,
    before: Option<(&Document, &Snapshot)>,
    all: &mut BTreeMap<Arc<str>, Arc<Upstream>>,
) -> Option<Arc<Upstream>> {
    if let Some(there) = all.get(name) {
        return Some(there.clone());
    }
    let (document, clients) = of;
    let spec = document.upstreams.get(name)?;
    let mut members = Vec::with_capacity(spec.split.len());
    for part in &spec.split {
        let member = add_upstream(&part.upstream, of, shared, before, all)?;
        members.push((member, part.share));
    }
    for hop in spec.via.iter().flat_map(|via| &via.hops) {
        add_upstream(&hop.upstream, of, shared, before, all)?;
    }
    let via = spec.via.as_ref().map(|via| Via::build(via, all));
    let kept = before.and_then(|(old, snapshot)| {
        let kept = snapshot.upstreams.get(name)?;
        // Its spec names the members; they may have changed themselves.
        let mut pairs = kept.members().zip(&members);
        let same = old.upstreams.get(name) == Some(spec)
            && clients.same(&snapshot.clients, name)
            && same_way(kept.via(), via.as_ref())
            && pairs.all(|((old, _), (new, _))| Arc::ptr_eq(old, new));
        same.then(|| kept.clone())
    });
    let upstream = kept.unwrap_or_else(|| {
        let own = Upstream::build_over(spec, clients.of(name), via, shared);
        Arc::new(if members.is_empty() {
            own
        } else {
            own.over(members)
        })
    });
    all.insert(name.clone(), upstream.clone());
    Some(upstream)
}

/// Whether two ways of the same spec go through the very same upstreams.
fn same_way(old: Option<&Arc<Via>>, new: Option<&Arc<Via>>) -> bool {
    let hops = |via: Option<&Arc<Via>>| -> Vec<*const Upstream> {
        let upstreams = via.into_iter().flat_map(|via| via.upstreams());
        upstreams.map(Arc::as_ptr).collect()
    };
    hops(old) == hops(new)
}

/// What the servers of an address present. First comes the server without `hosts`, which is there for clients whose name
/// nobody knows, then the others by name.
fn presented(
    specs: &[&HttpSpec],
    certificates: &Material,
    shared: &tls::Shared,
) -> Option<tls::Server> {
    let connection = &specs.first()?.connection;
    let (default, named): (Vec<&HttpSpec>, Vec<&HttpSpec>) =
        specs.iter().copied().partition(|s| s.hosts.is_empty());
    let oldest = connection.tls?;
    let servers = default.into_iter().chain(named);
    let all: Vec<_> = servers
        .map(|spec| tls::Presented {
            hosts: &spec.hosts,
            certificates: certificates.of(&spec.name),
            client_auth: certificates.client_auth(&spec.name),
        })
        .collect();
    let made = tls::Server::new(&all, oldest, &connection.alpn, shared);
    // It fails for versions of TLS that are not in the library, and those we name are.
    made.inspect_err(|error| tracing::error!(%error, "an address cannot present anything"))
        .ok()
}

/// What a forward proxy presents; `None`: it is cleartext.
fn presented_by(
    spec: &ForwardSpec,
    certificates: &Material,
    shared: &tls::Shared,
) -> Option<tls::Server> {
    spec.tls.as_ref()?;
    // SOCKS has no name there; whoever offers something means HTTP.
    let alpn: &[Alpn] = match spec.http {
        true => &[Alpn::H2, Alpn::Http1],
        false => &[],
    };
    let oldest = spec.min_version;
    presented_alone(
        &forward_name(&spec.name),
        oldest,
        alpn,
        certificates,
        shared,
    )
}

/// What a TCP listener presents; `None`: it does not end TLS. It takes any protocol: what is spoken is the target's matter.
fn presented_by_tcp(
    spec: &TcpSpec,
    certificates: &Material,
    shared: &tls::Shared,
) -> Option<tls::Server> {
    spec.tls.as_ref()?;
    let oldest = spec.min_version;
    presented_alone(&tcp_name(&spec.name), oldest, &[], certificates, shared)
}

/// What one that has its addresses to itself presents.
fn presented_alone(
    name: &str,
    oldest: TlsVersion,
    alpn: &[Alpn],
    certificates: &Material,
    shared: &tls::Shared,
) -> Option<tls::Server> {
    let presented = tls::Presented {
        hosts: &[],
        certificates: certificates.of(name),
        client_auth: certificates.client_auth(name),
    };
    let made = tls::Server::new(&[presented], oldest, alpn, shared);
    // As in `presented`.
    made.inspect_err(|error| tracing::error!(%error, name, "a listener cannot present anything"))
        .ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Format;
    use crate::document::Context;
    use bytes::Bytes;

    #[tokio::test]
    async fn a_changed_file_renews_the_entries_that_use_it_and_no_other() {
        let text = "[http.a]\nlisten = '127.0.0.1:1'\nrespond.file = 'a'\n\
                    [http.b]\nlisten = '127.0.0.1:2'\nrespond.file = 'b'\n";
        let context = Context {
            base: "/base".into(),
            running: None,
        };
        let document = Document::parse(text.as_bytes(), Format::Toml, &context)
            .unwrap()
            .document;
        let files = |a: &'static str| {
            [("/base/a", a), ("/base/b", "same")]
                .map(|(path, text)| (PathBuf::from(path), Bytes::from_static(text.as_bytes())))
                .into()
        };
        let shared = Arc::new(Shared::new(tokio::runtime::Handle::current(), 1));
        let tls = tls::Shared::new().unwrap();
        let build = |text, before| {
            let certificates = Material::default();
            let filters = filter::Shared::default();
            let contents = Contents {
                answers: files(text),
                ..Contents::default()
            };
            Snapshot::build(
                &document,
                contents,
                (certificates, Clients::default()),
                None,
                Lasting {
                    forward: &forward::Shared::new(&shared),
                    tunnels: &Arc::default(),
                    agents: &Agents::new(Vec::new()),
                    upstreams: &shared,
                    tls: &tls,
                    filters: &filters,
                    records: &record::Shared::new(Arc::default(), 1),
                },
                before,
            )
        };
        let old = build("old", None);
        let new = build("new", Some((&document, &old)));
        let kept = old
            .entries
            .iter()
            .map(|(key, entry)| Arc::ptr_eq(entry, &new.entries[key]));
        assert_eq!(kept.collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_port_that_the_kernel_chooses_belongs_to_its_place() {
        let text = b"[http.web]\nlisten = ['127.0.0.1:0', '127.0.0.1:0']\nrespond = ''\n";
        let context = Context {
            base: "/".into(),
            running: None,
        };
        let parsed = Document::parse(text, Format::Toml, &context).unwrap();
        let keys = bindings(&parsed.document).into_keys();
        let owners: Vec<_> = keys.filter_map(|key| key.owner).collect();
        assert_eq!(owners, [("web".into(), 0), ("web".into(), 1)]);
    }

    /// Sections have names of their own.
    #[test]
    fn a_port_that_the_kernel_chooses_is_not_shared_by_two_of_one_name() {
        let text = b"[http.a]\nlisten = '127.0.0.1:0'\nrespond = ''\n\
                     [tcp.a]\nlisten = '127.0.0.1:0'\nupstream = '127.0.0.1:1'\n\
                     [udp.a]\nlisten = '127.0.0.1:0'\nupstream = '127.0.0.1:1'\n\
                     [forward.a]\nlisten = '127.0.0.1:0'\n";
        let context = Context {
            base: "/".into(),
            running: None,
        };
        let parsed = Document::parse(text, Format::Toml, &context).unwrap();
        assert_eq!(bindings(&parsed.document).len(), 4);
    }
}
