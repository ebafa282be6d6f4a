//! What listeners of layer 4 ask of the upstreams that they name: they see no requests, so not every upstream is for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::check::Checker;
use super::template::{Part, Var};
use super::tree::At;
use super::upstream::{Balance, UpstreamSpec};

/// Why an upstream is not for a listener, and what helps.
pub(super) type Refusal = (String, Option<&'static str>);

/// Records the first thing that is wrong with an upstream of that name, or with one that it is split into; `at` is where a
/// listener names it.
pub(super) fn check_upstream(
    (name, at): (&Arc<str>, At),
    upstreams: &BTreeMap<Arc<str>, UpstreamSpec>,
    wrong: impl Fn(&UpstreamSpec) -> Option<Refusal>,
    check: &mut Checker<'_>,
) {
    let mut names = vec![name];
    // A document has no circle of splits.
    while let Some(name) = names.pop() {
        let Some(upstream) = upstreams.get(name) else {
            continue;
        };
        names.extend(upstream.split.iter().map(|part| &part.upstream));
        if let Some((message, help)) = wrong(upstream) {
            let finding = check.findings.error(at, message);
            finding.help_if(help.map(str::to_owned));
            return;
        }
    }
}

/// Of a session nothing can be hashed but where it comes from. `kind`: of the listener, with its article.
pub(super) fn keyed(upstream: &UpstreamSpec, kind: &str) -> Option<Refusal> {
    let Balance::Hash(template) = &upstream.balance else {
        return None;
    };
    let known = |part: &Part| matches!(part, Part::Text(_) | Part::Var(Var::ClientIp));
    // The members of a split have policies of their own.
    if !upstream.split.is_empty() || template.parts.iter().all(known) {
        return None;
    }
    let message = format!(
        "`balance` of the upstream `{}` hashes more than {kind} listener knows, the client's address",
        upstream.name
    );
    Some((
        message,
        Some("name one with `balance = \"ip_hash\"` or `{ hash = \"{client_ip}\" }`"),
    ))
}
