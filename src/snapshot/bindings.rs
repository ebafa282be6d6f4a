//! What a document puts behind which address.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::forward::ForwardSpec;
use crate::config::http::{ActionSpec, FiltersSpec, HttpSpec, RespondBody};
use crate::config::scalar::ListenAddr;
use crate::config::tcp::TcpSpec;
use crate::config::tunnel::TunnelSpec;
use crate::config::udp::UdpSpec;
use crate::document::Document;
use crate::net::Transport;
use crate::tls::store::{forward_name, tcp_name, tunnel_name};

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

    /// Names of those that present certificates there, as `tls::Material` knows them.
    pub(super) fn presenting(&self) -> impl Iterator<Item = Arc<str>> {
        let http = self.http.iter().map(|spec| spec.name.clone());
        let forward = self.forward.iter().map(|spec| forward_name(&spec.name));
        let tunnel = self.tunnel.iter().map(|spec| tunnel_name(&spec.name));
        let tcp = self.tcp.iter().map(|spec| tcp_name(&spec.name));
        http.chain(forward).chain(tunnel).chain(tcp)
    }

    /// Paths of the files that it answers with, or goes by.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
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
