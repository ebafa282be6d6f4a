//! A document compiled into runtime objects: upstreams with their leases, one entry per bound address. What did not
//! change since the generation before is taken over as it is, so that a swap costs what it changes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::http::{ActionSpec, HttpSpec, RespondBody};
use crate::config::scalar::ListenAddr;
use crate::document::Document;
use crate::http::{Entry, Files};
use crate::upstream::{Shared, Upstream};

/// Identity of a bound address. A port 0 is never shared, so its server and place belong to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BindingKey {
    pub address: ListenAddr,
    pub owner: Option<(Arc<str>, usize)>,
}

/// Which servers stand behind which address, in the document's order.
pub fn bindings(document: &Document) -> BTreeMap<BindingKey, Vec<&HttpSpec>> {
    let mut map: BTreeMap<BindingKey, Vec<&HttpSpec>> = BTreeMap::new();
    for spec in document.http.values() {
        for (index, address) in spec.listen.iter().enumerate() {
            let any_port = matches!(address, ListenAddr::Tcp(a) if a.port() == 0);
            let owner = any_port.then(|| (spec.name.clone(), index));
            map.entry(BindingKey {
                address: address.clone(),
                owner,
            })
            .or_default()
            .push(spec);
        }
    }
    map
}

fn actions_of<'a>(specs: &'a [&HttpSpec]) -> impl Iterator<Item = &'a ActionSpec> {
    specs.iter().flat_map(|spec| {
        let routes = spec.routes.iter().map(|route| &route.action);
        routes.chain(&spec.fallback)
    })
}

/// Names of the upstreams that the servers of an address use.
pub fn upstreams_of<'a>(specs: &'a [&HttpSpec]) -> impl Iterator<Item = &'a Arc<str>> {
    actions_of(specs).filter_map(|action| match action {
        ActionSpec::Proxy(proxy) => Some(&proxy.upstream),
        ActionSpec::Respond(_) | ActionSpec::Redirect(_) => None,
    })
}

/// Paths of the files that the servers of an address answer with.
fn files_of<'a>(specs: &'a [&HttpSpec]) -> impl Iterator<Item = &'a PathBuf> {
    actions_of(specs).filter_map(|action| match action {
        ActionSpec::Respond(respond) => match &respond.body {
            RespondBody::File(path) => Some(path),
            RespondBody::Template(_) => None,
        },
        ActionSpec::Proxy(_) | ActionSpec::Redirect(_) => None,
    })
}

/// What one generation runs. Dropping the last reference lets its leases fall.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub upstreams: BTreeMap<Arc<str>, Arc<Upstream>>,
    pub entries: BTreeMap<BindingKey, Arc<Entry>>,
    pub files: Files,
}

impl Snapshot {
    /// Compiles `document`. `before` is what runs, with the document it was made of.
    pub fn build(
        document: &Document,
        files: Files,
        shared: &Arc<Shared>,
        before: Option<(&Document, &Snapshot)>,
    ) -> Snapshot {
        let upstreams: BTreeMap<_, _> = document
            .upstreams
            .iter()
            .map(|(name, spec)| {
                let kept = before.and_then(|(old, snapshot)| {
                    let same = old.upstreams.get(name) == Some(spec);
                    same.then(|| snapshot.upstreams.get(name).cloned())
                        .flatten()
                });
                (
                    name.clone(),
                    kept.unwrap_or_else(|| Arc::new(Upstream::build(spec, shared))),
                )
            })
            .collect();
        let old_bindings = before.map(|(old, _)| bindings(old)).unwrap_or_default();
        let entries = bindings(document)
            .into_iter()
            .map(|(key, specs)| {
                let kept = before.and_then(|(_, snapshot)| {
                    let same = old_bindings.get(&key) == Some(&specs)
                        && files_of(&specs).all(|path| snapshot.files.get(path) == files.get(path))
                        && upstreams_of(&specs).all(|name| {
                            match (upstreams.get(name), snapshot.upstreams.get(name)) {
                                (Some(new), Some(old)) => Arc::ptr_eq(new, old),
                                _ => false,
                            }
                        });
                    same.then(|| snapshot.entries.get(&key).cloned()).flatten()
                });
                let entry =
                    kept.unwrap_or_else(|| Arc::new(Entry::build(&specs, &upstreams, &files)));
                (key, entry)
            })
            .collect();
        Snapshot {
            upstreams,
            entries,
            files,
        }
    }
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
        let old = Snapshot::build(&document, files("old"), &shared, None);
        let new = Snapshot::build(&document, files("new"), &shared, Some((&document, &old)));
        let kept = old
            .entries
            .iter()
            .map(|(key, entry)| Arc::ptr_eq(entry, &new.entries[key]));
        assert_eq!(kept.collect::<Vec<_>>(), [false, true]);
    }
}
