//! A document compiled into runtime objects: upstreams with their leases, one entry per bound address. What did not
//! change since the generation before is taken over as it is, so that a swap costs what it changes.

mod bindings;
mod presented;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use bindings::{Behind, BindingKey, bindings};
use presented::{admin_tls, presented, presented_by, presented_by_tcp, tunnel_tls};

use crate::config::agent::AgentSpec;
use crate::config::tunnel::TunnelSpec;
use crate::document::Document;
use crate::forward::{self, Forward};
use crate::http::record::{self, AccessLog, Recording};
use crate::http::{self, Face as _, Files, filter};
use crate::l4::names::Names;
use crate::l4::tcp::Tcp;
use crate::l4::udp::Udp;
use crate::listen::entry::{Entry, Plane};
use crate::listen::tunnel::Accepting;
use crate::tls;
use crate::tls::client::Clients;
use crate::tls::stamp::Stamps;
use crate::tls::store::Material;
use crate::tunnel::agent::{Agent, Agents, Settings};
use crate::tunnel::{Hub, Tunnel};
use crate::upstream::via::Via;
use crate::upstream::{Shared, Upstream};

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Format;
    use crate::document::Context;
    use bytes::Bytes;
    use std::path::PathBuf;

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
