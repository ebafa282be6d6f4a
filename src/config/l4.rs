//! What listeners of layer 4 have in common: how their addresses and lists are read, and what they ask of the upstreams that
//! they name: they see no requests, so not every upstream is for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::check::Checker;
use super::decode::{List, Loc};
use super::http::addresses;
use super::scalar::{ListenAddr, cidr};
use super::template::{Part, Var};
use super::tree::At;
use super::upstream::{Balance, References, UpstreamSpec};

/// Why an upstream is not for a listener, and what helps.
pub(super) type Refusal = (String, Option<&'static str>);

pub(super) type Upstreams = BTreeMap<Arc<str>, UpstreamSpec>;

/// A kind of listener, as messages have it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// With its article.
    pub(super) name: &'static str,
    /// A `listen` that it could have.
    pub(super) example: &'static str,
    /// What it does.
    pub(super) passes: &'static str,
}

impl Kind {
    /// Reads `listen`; `spoiled`: it was there and could not be read.
    pub(super) fn listen(
        self,
        list: Option<&Loc<List<String>>>,
        spoiled: bool,
        at: At,
        check: &mut Checker<'_>,
    ) -> Vec<(ListenAddr, At)> {
        let name = self.name;
        let Some(list) = list else {
            if !spoiled {
                let message = format!("{name} listener needs `listen`");
                let finding = check.findings.error(at, message);
                finding.help(format!("such as `listen = \"{}\"`", self.example));
            }
            return Vec::new();
        };
        if list.is_empty() && !list.spoiled {
            let message = format!("{name} listener needs an address to listen on");
            check.findings.error(list.at, message);
        }
        addresses(list, check)
    }

    /// Reads the name of an upstream, or an address that stands for one. `None`: it is none, which has been recorded.
    pub(super) fn upstream(
        self,
        text: &Loc<String>,
        enabled: bool,
        references: &mut References<'_>,
        check: &mut Checker<'_>,
    ) -> Option<Arc<str>> {
        if text.contains("://") {
            let message = format!("{} as they are: a URL says too much", self.passes);
            let finding = check.findings.error(text.at, message);
            finding.help("the name of an upstream, or `host:port`");
            return None;
        }
        Some(references.resolve(text, enabled, check)?.upstream)
    }

    /// Of a session nothing is known but where it comes from: neither what a policy would hash, nor a cookie.
    pub(super) fn knows_too_little(self, upstream: &UpstreamSpec) -> Option<Refusal> {
        let (name, kind) = (&upstream.name, self.name);
        if upstream.sticky.is_some() {
            let message = format!(
                "`sticky` of the upstream `{name}` is a cookie, and {kind} listener sees none"
            );
            let help =
                "name one without it; `balance = \"ip_hash\"` keeps a client with its target";
            return Some((message, Some(help)));
        }
        let Balance::Hash(template) = &upstream.balance else {
            return None;
        };
        let known = |part: &Part| matches!(part, Part::Text(_) | Part::Var(Var::ClientIp));
        // The members of a split have policies of their own.
        if !upstream.split.is_empty() || template.parts.iter().all(known) {
            return None;
        }
        let message = format!(
            "`balance` of the upstream `{name}` hashes more than {kind} listener knows, the client's address"
        );
        Some((
            message,
            Some("name one with `balance = \"ip_hash\"` or `{ hash = \"{client_ip}\" }`"),
        ))
    }
}

/// Reads ranges of addresses.
pub(super) fn ranges(list: Option<&Loc<List<String>>>, check: &mut Checker<'_>) -> Vec<IpNet> {
    let nets = check.each(list, cidr);
    nets.into_iter().map(|(net, _)| net).collect()
}

/// Reads `allow` or `deny`, which name somebody if they are there.
pub(super) fn some_ranges(list: Option<&Loc<List<String>>>, check: &mut Checker<'_>) -> Vec<IpNet> {
    if let Some(list) = list.filter(|list| list.is_empty() && !list.spoiled) {
        check
            .findings
            .error(list.at, "an empty list of addresses")
            .help(
                "leave it out for no list, or write `[\"0.0.0.0/0\", \"::/0\"]` for every address",
            );
    }
    ranges(list, check)
}

/// Records the first thing that is wrong with an upstream of that name, or with one that it is split into; `at` is where a
/// listener names it.
pub(super) fn check_upstream(
    (name, at): (&Arc<str>, At),
    upstreams: &Upstreams,
    wrong: impl Fn(&UpstreamSpec) -> Option<Refusal>,
    check: &mut Checker<'_>,
) {
    let found = parts(name, upstreams).into_iter().find_map(wrong);
    if let Some((message, help)) = found {
        let finding = check.findings.error(at, message);
        finding.help_if(help.map(str::to_owned));
    }
}

/// An upstream and all that it is split into.
pub(super) fn parts<'u>(name: &'u Arc<str>, upstreams: &'u Upstreams) -> Vec<&'u UpstreamSpec> {
    let (mut names, mut found) = (vec![name], Vec::new());
    // A document has no circle of splits.
    while let Some(upstream) = names.pop().map(|name| upstreams.get(name)) {
        let Some(upstream) = upstream else { continue };
        names.extend(upstream.split.iter().map(|part| &part.upstream));
        found.push(upstream);
    }
    found
}
