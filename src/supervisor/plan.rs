//! The plan of a swap: a pure function of the old and the new document.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::http::{ClientAuthSpec, ConnectionSpec, HttpSpec, TlsSpec};
use crate::config::scalar::TargetAddr;
use crate::config::upstream::UpstreamSpec;
use crate::document::Document;
use crate::snapshot::{Behind, BindingKey, bindings};

/// What happens to one listening address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Same address, same definition: nothing moves.
    Keep,
    /// Same address, other routes: its next request sees them.
    Update,
    /// Same address, other connection settings: its connections are asked to finish.
    Refresh,
    /// New address.
    Open,
    /// No longer in the document.
    Close,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListenerPlan {
    pub address: String,
    pub change: Change,
    /// Names of the servers behind it after the swap (before it, for `close`).
    pub servers: Vec<String>,
}

/// Counts of state that is carried over by identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Carried {
    pub kept: u64,
    pub dropped: u64,
    pub new: u64,
}

/// What a swap changes, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    pub listeners: Vec<ListenerPlan>,
    /// Servers by name: added, removed, changed.
    pub servers: Named,
    pub upstreams: Named,
    /// Targets (`upstream/address`) whose pools and counts are carried.
    pub targets: Carried,
    /// Other sections that changed: `admin`, `runtime`.
    pub sections: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Named {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
}

/// What happens to one bound address, with its identity.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    pub(super) key: BindingKey,
    pub(super) change: Change,
}

/// Compares what runs with what is wanted. Pure; `None` is nothing: boot begins there, stop ends there.
pub(super) fn plan(old: Option<&Document>, new: Option<&Document>) -> (Plan, Vec<Step>) {
    let before = old.map(bindings).unwrap_or_default();
    let after = new.map(bindings).unwrap_or_default();
    let (no_servers, no_upstreams) = (BTreeMap::new(), BTreeMap::new());
    let old_upstreams = old.map_or(&no_upstreams, |d| &d.upstreams);
    let new_upstreams = new.map_or(&no_upstreams, |d| &d.upstreams);
    let mut steps = Vec::new();
    let mut listeners = Vec::new();
    let mut add = |key: &BindingKey, change, behind: &Behind<'_>| {
        listeners.push(ListenerPlan {
            address: key.shown(),
            change,
            servers: behind.names().map(ToString::to_string).collect(),
        });
        steps.push(Step {
            key: key.clone(),
            change,
        });
    };
    for (key, behind) in &after {
        let change = match before.get(key) {
            None => Change::Open,
            Some(was) if is_refreshed(was, behind) => Change::Refresh,
            Some(was) if was != behind => Change::Update,
            Some(_) => {
                let same = behind
                    .upstreams()
                    .all(|name| is_same(name, old_upstreams, new_upstreams));
                if same { Change::Keep } else { Change::Update }
            }
        };
        add(key, change, behind);
    }
    for (key, behind) in before.iter().filter(|(key, _)| !after.contains_key(*key)) {
        add(key, Change::Close, behind);
    }
    let targets = |map: &BTreeMap<Arc<str>, UpstreamSpec>| -> BTreeSet<(Arc<str>, TargetAddr)> {
        map.values()
            .flat_map(|u| {
                u.targets
                    .iter()
                    .map(|t| (u.name.clone(), t.address.clone()))
            })
            .collect()
    };
    let (old_targets, new_targets) = (targets(old_upstreams), targets(new_upstreams));
    let kept = old_targets.intersection(&new_targets).count();
    let mut sections = Vec::new();
    if let (Some(old), Some(new)) = (old, new) {
        if old.admin != new.admin {
            sections.push("admin".to_owned());
        }
        if old.runtime != new.runtime {
            sections.push("runtime".to_owned());
        }
        if old.forward != new.forward {
            sections.push("forward".to_owned());
        }
    }
    let plan = Plan {
        listeners,
        servers: named(
            old.map_or(&no_servers, |d| &d.http),
            new.map_or(&no_servers, |d| &d.http),
        ),
        upstreams: named(old_upstreams, new_upstreams),
        targets: Carried {
            kept: kept as u64,
            dropped: (old_targets.len() - kept) as u64,
            new: (new_targets.len() - kept) as u64,
        },
        sections,
    };
    (plan, steps)
}

/// Whether an upstream, and all that it is split over, is what it was.
fn is_same(
    name: &str,
    old: &BTreeMap<Arc<str>, UpstreamSpec>,
    new: &BTreeMap<Arc<str>, UpstreamSpec>,
) -> bool {
    let below = |spec: &UpstreamSpec| spec.split.iter().all(|m| is_same(&m.upstream, old, new));
    old.get(name) == new.get(name) && new.get(name).is_none_or(below)
}

/// Whether the connections that are there must end, after their current work.
fn is_refreshed(was: &Behind<'_>, is: &Behind<'_>) -> bool {
    // What agents must prove; all else is asked anew with each of their flows.
    let proves = |behind: &Behind<'_>| behind.tunnel.map(|tunnel| tunnel.tls.client_auth.clone());
    // Clients of `sni` are not told apart before their hello, and then go by what serves.
    let alone = |behind: &Behind<'_>| {
        let mut tcp = behind.tcp.iter().filter(|tcp| !tcp.is_by_name());
        tcp.next().map(|tcp| proved(tcp.tls.as_ref()))
    };
    proves(was) != proves(is)
        || (!was.http.is_empty() && connection(&was.http) != connection(&is.http))
        || asks_otherwise(&was.http, &is.http)
        || was.forward.map(|f| proved(f.tls.as_ref())) != is.forward.map(|f| proved(f.tls.as_ref()))
        || alone(was) != alone(is)
}

/// What the clients of a forward proxy or a TCP listener have proved by their connection.
fn proved(tls: Option<&TlsSpec>) -> (bool, Option<Arc<ClientAuthSpec>>) {
    (tls.is_some(), tls.and_then(|tls| tls.client_auth.clone()))
}

/// All servers of an address agree on this, so the first one speaks for them.
fn connection<'a>(specs: &[&'a HttpSpec]) -> Option<&'a ConnectionSpec> {
    specs.first().map(|spec| &spec.connection)
}

/// True if what clients must prove at their handshake has changed: what they have proved is not enough then.
fn asks_otherwise(was: &[&HttpSpec], is: &[&HttpSpec]) -> bool {
    let asked = |spec: &HttpSpec| spec.tls.as_ref().and_then(|tls| tls.client_auth.clone());
    is.iter().any(|spec| {
        let before = was.iter().find(|old| old.name == spec.name);
        before.is_some_and(|old| asked(old) != asked(spec))
    })
}

fn named<T: PartialEq>(old: &BTreeMap<Arc<str>, T>, new: &BTreeMap<Arc<str>, T>) -> Named {
    let names = |it: &mut dyn Iterator<Item = &Arc<str>>| it.map(|name| name.to_string()).collect();
    Named {
        added: names(&mut new.keys().filter(|name| !old.contains_key(*name))),
        removed: names(&mut old.keys().filter(|name| !new.contains_key(*name))),
        changed: names(
            &mut new
                .iter()
                .filter(|(n, v)| old.get(*n).is_some_and(|o| o != *v))
                .map(|(n, _)| n),
        ),
    }
}

/// Keys that are read at start-up only: a change is a warning, said once with its pointer.
pub(super) fn boot_only(old: &Document, new: &Document) -> Vec<(&'static str, String)> {
    let (old, new) = (&old.runtime, &new.runtime);
    let mut found = Vec::new();
    let mut say = |pointer, key: &str| {
        found.push((
            pointer,
            format!("`{key}` is read at start-up only; the running value stays until a restart"),
        ));
    };
    if old.workers != new.workers {
        say("/runtime/workers", "workers");
    }
    if old.model != new.model {
        say("/runtime/model", "model");
    }
    if old.state_dir != new.state_dir {
        say("/runtime/state_dir", "state_dir");
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Format;
    use crate::document::Context;

    fn document(text: &str) -> Document {
        let context = Context {
            base: "/".into(),
            running: None,
        };
        let parsed = Document::parse(text.as_bytes(), Format::Toml, &context);
        Arc::unwrap_or_clone(parsed.unwrap().document)
    }

    fn changes(old: &str, new: &str) -> Vec<(String, Change)> {
        let (plan, _) = plan(Some(&document(old)), Some(&document(new)));
        plan.listeners
            .into_iter()
            .map(|l| (l.address, l.change))
            .collect()
    }

    const A: &str =
        "[http.a]\nlisten = '127.0.0.1:1'\nproxy = 'u'\n[upstreams.u]\ntargets = ['127.0.0.1:9']\n";

    #[test]
    fn an_address_is_kept_updated_refreshed_opened_or_closed() {
        let one = |change| vec![("127.0.0.1:1".to_owned(), change)];
        assert_eq!(changes(A, A), one(Change::Keep));
        assert_eq!(
            changes(
                A,
                &A.replace("'127.0.0.1:9'", "'127.0.0.1:9', '127.0.0.1:8'")
            ),
            one(Change::Update)
        );
        assert_eq!(
            changes(
                A,
                &A.replace("proxy = 'u'", "proxy = 'u'\nlimits.streams = 7")
            ),
            one(Change::Refresh)
        );
        assert_eq!(
            changes(A, &A.replace("127.0.0.1:1", "127.0.0.1:2")),
            [
                ("127.0.0.1:2".to_owned(), Change::Open),
                ("127.0.0.1:1".to_owned(), Change::Close)
            ]
        );
    }

    #[test]
    fn names_come_to_an_address_and_go_and_no_connection_is_asked_to_finish() {
        let web = "[http.web]\nlisten = '127.0.0.1:1'\nrespond = ''\ntls.self_signed = 'w.test'\n";
        let names = |name: &str| {
            format!(
                "[tcp.{name}]\nlisten = '127.0.0.1:1'\nsni = {{ '{name}.test' = '127.0.0.1:9' }}\n"
            )
        };
        let (a, b) = (names("a"), names("b"));
        let all = [web, &a, &b].concat();
        let steps = [
            web,
            &[web, &a].concat(),
            &all,
            &[&a[..], &b].concat(),
            &b,
            web,
        ];
        let told: Vec<_> = steps.windows(2).map(|w| changes(w[0], w[1])[0].1).collect();
        // Where HTTP goes, its connections are.
        let expected = [
            Change::Update,
            Change::Update,
            Change::Refresh,
            Change::Update,
            Change::Update,
        ];
        assert_eq!(told, expected);
        let (plan, _) = plan(None, Some(&document(&all)));
        assert_eq!(plan.listeners[0].servers, ["web", "a", "b"]);
        // One that had the address alone has other connections.
        let alone = "[tcp.a]\nlisten = '127.0.0.1:1'\nupstream = '127.0.0.1:9'\n";
        assert_eq!(changes(alone, &a)[0].1, Change::Refresh);
    }

    #[test]
    fn boot_opens_all_and_stop_closes_all() {
        let a = document(A);
        let (boot, steps) = plan(None, Some(&a));
        assert_eq!((steps.len(), steps[0].change), (1, Change::Open));
        assert_eq!(
            (boot.servers.added, boot.targets.new),
            (vec!["a".to_owned()], 1)
        );
        let (stop, steps) = plan(Some(&a), None);
        assert_eq!(steps[0].change, Change::Close);
        assert_eq!(stop.upstreams.removed, ["u"]);
    }

    #[test]
    fn targets_are_carried_by_upstream_and_address() {
        let other = A.replace("'127.0.0.1:9'", "'127.0.0.1:9', '127.0.0.1:8'");
        let (plan, _) = plan(Some(&document(A)), Some(&document(&other)));
        assert_eq!(
            plan.targets,
            Carried {
                kept: 1,
                dropped: 0,
                new: 1
            }
        );
        assert_eq!(plan.upstreams.changed, ["u"]);
        assert_eq!((plan.servers.changed.len(), plan.sections.len()), (0, 0));
    }

    #[test]
    fn a_port_0_belongs_to_its_server() {
        let a = "[http.a]\nlisten = '127.0.0.1:0'\nrespond = 'x'\n";
        let renamed = a.replace("http.a", "http.b");
        let changed: Vec<_> = changes(a, &renamed)
            .into_iter()
            .map(|(_, change)| change)
            .collect();
        assert_eq!(changed, [Change::Open, Change::Close]);
        assert_eq!(changes(a, &a.replace("'x'", "'y'"))[0].1, Change::Update);
    }

    #[test]
    fn what_is_read_at_start_up_only_is_named() {
        let old = document("[runtime]\nworkers = 1\n");
        let new = document("[runtime]\nworkers = 2\nmodel = 'shared'\n");
        let pointers: Vec<_> = boot_only(&old, &new)
            .into_iter()
            .map(|(pointer, _)| pointer)
            .collect();
        assert_eq!(pointers, ["/runtime/workers", "/runtime/model"]);
    }
}
