//! The `via` of all upstreams together: none may lead back to itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::super::check::Checker;
use super::super::decode::Map;
use super::super::scalar::TargetAddr;
use super::super::upstream::{References, TargetSpec, UpstreamRaw, UpstreamSpec};
use super::{Around, MOST, ViaSpec, is_direct, via};

/// Puts the `via` of every upstream into its spec.
pub fn resolve_vias(
    declared: &Map<UpstreamRaw>,
    upstreams: &mut BTreeMap<Arc<str>, UpstreamSpec>,
    references: &mut References<'_>,
    running_upstreams: Option<&BTreeMap<Arc<str>, UpstreamSpec>>,
    check: &mut Checker<'_>,
) {
    // Whether others have one is asked for each of them.
    for (name, raw) in declared.iter() {
        if let Some(list) = raw.via.as_ref().filter(|list| !is_direct(list))
            && let Some(spec) = upstreams.get_mut(name.as_str())
        {
            spec.via = Some(ViaSpec { hops: Vec::new() });
            let beside =
                |t: &TargetSpec| matches!(t.address, TargetAddr::Unix(_) | TargetAddr::Tunnel(..));
            if let Some(target) = spec.targets.iter().find(|t| beside(t)) {
                let message = format!("the target `{}` is reached by no proxy", target.address);
                check.findings.error(list.at, message);
            }
        }
    }
    let mut found = Vec::new();
    for (name, raw) in declared.iter() {
        let Some(list) = &raw.via else { continue };
        let mut around = Around {
            references,
            upstreams,
            pointer: format!("/upstreams/{name}/via"),
            live: true,
            running: running_upstreams.and_then(|all| all.get(name.as_str())?.via.as_ref()),
            running_upstreams,
        };
        found.push((name, via(&list.value, list.at, &mut around, check)));
    }
    for (name, via) in found {
        if let Some(spec) = upstreams.get_mut(name.as_str()) {
            spec.via = via;
        }
    }
    let mut depths = HashMap::new();
    for (name, raw) in declared.iter() {
        if let Some(list) = &raw.via {
            let deep = depth(name, upstreams, &mut depths, 0);
            if deep > MOST {
                let message = format!(
                    "this `via` leads back to itself, or through more than {MOST} upstreams"
                );
                check.findings.error(list.at, message);
                upstreams
                    .entry(name.as_str().into())
                    .and_modify(|spec| spec.via = None);
            }
        }
    }
}

/// How many upstreams lie behind one another from here; too many, where they lead back.
fn depth(
    name: &str,
    upstreams: &BTreeMap<Arc<str>, UpstreamSpec>,
    known: &mut HashMap<Arc<str>, usize>,
    above: usize,
) -> usize {
    const ENDLESS: usize = 64;
    if let Some(known) = known.get(name) {
        return *known;
    }
    let Some(spec) = upstreams.get(name) else {
        return 0;
    };
    if above >= ENDLESS {
        return ENDLESS;
    }
    // Whoever comes here again before the end goes in a circle.
    known.insert(name.into(), ENDLESS);
    let hops = spec.via.iter().flat_map(|via| &via.hops);
    let below = hops.map(|hop| (&hop.upstream, 1));
    let below = below.chain(spec.split.iter().map(|part| (&part.upstream, 0)));
    let below: Vec<_> = below.map(|(name, step)| (name.clone(), step)).collect();
    let deepest = below
        .into_iter()
        .map(|(name, step)| step + depth(&name, upstreams, known, above + 1))
        .max()
        .unwrap_or_default()
        .min(ENDLESS);
    known.insert(name.into(), deepest);
    deepest
}
