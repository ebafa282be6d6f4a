//! `split`: an upstream that is other upstreams, each with its share of the requests.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::super::check::{Checker, shorten};
use super::super::decode::{Loc, Map};
use super::super::tree::At;
use super::{References, UpstreamRaw, UpstreamSpec};

/// Splits that may lie in each other: a request walks down through them.
const MAX_DEPTH: usize = 8;
/// Ways down from one split, which may meet again.
const MAX_WAYS: usize = 10_000;

/// A member of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareSpec {
    /// Name of an upstream that the document holds.
    pub upstream: Arc<str>,
    /// Share of the requests, 0 to 1000; 0 gets none at all.
    pub share: u32,
}

/// Puts the members of every split into its spec. Names that lead nowhere, or back to where they are, are errors.
pub fn resolve(
    declared: &Map<UpstreamRaw>,
    upstreams: &mut BTreeMap<Arc<str>, UpstreamSpec>,
    references: &mut References<'_>,
    check: &mut Checker<'_>,
) {
    for (name, raw) in declared.iter() {
        if let Some(split) = &raw.split
            && let Some(spec) = upstreams.get_mut(name.as_str())
        {
            spec.split = shares(split, true, references, check);
        }
    }
    let mut walk = Walk {
        declared,
        path: Vec::new(),
        known: HashMap::new(),
    };
    for (name, raw) in declared.iter().filter(|(_, raw)| raw.split.is_some()) {
        walk.look(name, raw.at, check);
    }
}

/// The members of one split, each by its name, or by the address that stands for an upstream. `live` as in
/// [`References::resolve`].
pub fn shares(
    split: &Loc<Map<u64>>,
    live: bool,
    references: &mut References<'_>,
    check: &mut Checker<'_>,
) -> Vec<ShareSpec> {
    let mut all: Vec<ShareSpec> = Vec::with_capacity(split.len());
    for (name, share) in split.iter() {
        let share_of = check.number(share.at, share.value, 0..=1_000);
        let text = Loc {
            value: name.clone(),
            at: share.at,
        };
        let Some(reference) = references.resolve(&text, live, check) else {
            continue;
        };
        if !reference.base.is_empty() {
            let message = "a member of a split has no path of its own";
            check.findings.key_error(share.at, message);
            continue;
        }
        if all.iter().any(|other| other.upstream == reference.upstream) {
            let message = format!("`{}` is in this split twice", shorten(name));
            check.findings.key_error(share.at, message);
            continue;
        }
        all.push(ShareSpec {
            upstream: reference.upstream,
            share: u32::try_from(share_of).unwrap_or(u32::MAX),
        });
    }
    if split.values().all(|share| share.value == 0) && split.spoiled.is_empty() {
        let message = if split.is_empty() {
            "a split needs at least one upstream"
        } else {
            "every share is 0, so no upstream would get a request"
        };
        let finding = check.findings.error(split.at, message);
        finding.help("such as `split = { blue = 95, green = 5 }`");
    }
    all
}

/// Looks for splits that lead back to themselves.
struct Walk<'d> {
    declared: &'d Map<UpstreamRaw>,
    /// From the split that was asked for to the one that is looked at.
    path: Vec<&'d str>,
    /// Of those that were looked at: the splits from there down, and the ways. Of the wrong ones too, which are told once.
    known: HashMap<&'d str, (usize, usize)>,
}

impl<'d> Walk<'d> {
    /// Splits from `name` down, and ways. Never deeper than [`MAX_DEPTH`] calls. `at` is where `name` was named.
    fn look(&mut self, name: &'d str, at: At, check: &mut Checker<'_>) -> (usize, usize) {
        let Some(split) = self.declared.get(name).and_then(|raw| raw.split.as_ref()) else {
            return (0, 1);
        };
        if let Some(known) = self.known.get(name) {
            let known = *known;
            if self.path.len() + known.0 > MAX_DEPTH {
                self.too_deep(at, check);
            }
            return known;
        }
        if let Some(begin) = self.path.iter().position(|on| *on == name) {
            let way = self.path[begin..].iter().chain([&name]);
            let way: Vec<String> = way.map(|name| shorten(name)).collect();
            let message = format!("this split leads back to itself: {}", way.join(" → "));
            check.findings.key_error(at, message);
            return (0, 0);
        }
        if self.path.len() >= MAX_DEPTH {
            self.too_deep(at, check);
            return (0, 0);
        }
        self.path.push(name);
        let (mut deepest, mut ways) = (0, 0_usize);
        for (member, share) in split.iter() {
            let (depth, more) = self.look(member, share.at, check);
            deepest = deepest.max(depth);
            ways = ways.saturating_add(more);
        }
        self.path.pop();
        if ways > MAX_WAYS {
            let message = format!("this split leads to upstreams in more than {MAX_WAYS} ways");
            check.findings.error(split.at, message);
            ways = 0;
        }
        self.known.insert(name, (deepest + 1, ways));
        (deepest + 1, ways)
    }

    fn too_deep(&self, at: At, check: &mut Checker<'_>) {
        let message = format!("more than {MAX_DEPTH} splits lie in each other");
        check.findings.key_error(at, message);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::config::Format;
    use crate::document::{Context, Document, Refused};

    fn parse(text: &str) -> Result<Document, Vec<String>> {
        let context = Context {
            base: "/base".into(),
            running: None,
        };
        match Document::parse(text.as_bytes(), Format::Toml, &context) {
            Ok(parsed) => Ok(std::sync::Arc::unwrap_or_clone(parsed.document)),
            Err(Refused::Invalid { errors, .. }) => {
                let all = errors.into_iter();
                Err(all
                    .map(|e| format!("{}: {}", e.pointer, e.message))
                    .collect())
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    const WEB: &str = "[http.web]\nlisten = '127.0.0.1:1'\nproxy = 'app'\n";
    const COLOURS: &str =
        "[upstreams.blue]\ntargets = '127.0.0.1:2'\n[upstreams.green]\ntargets = '127.0.0.1:3'\n";

    #[test]
    fn members_are_names_and_addresses() {
        let text = format!(
            "{WEB}{COLOURS}[upstreams.app]\nsplit = {{ blue = 95, inner = 5, '127.0.0.1:4' = 0 }}\n\
             [upstreams.inner]\nsplit = {{ green = 1 }}\n"
        );
        let document = parse(&text).unwrap();
        let split = &document.upstreams["app"].split;
        let shares: Vec<_> = split.iter().map(|s| (&*s.upstream, s.share)).collect();
        assert_eq!(shares, [("blue", 95), ("inner", 5), ("127.0.0.1:4", 0)]);
        assert!(document.upstreams.contains_key("127.0.0.1:4"));
    }

    #[test]
    fn an_action_may_split_itself() {
        let text = format!(
            "[http.web]\nlisten = '127.0.0.1:1'\nproxy = {{ split = {{ blue = 3, green = 1 }} }}\n{COLOURS}"
        );
        let document = parse(&text).unwrap();
        assert_eq!(document.upstreams["split:blue=3,green=1"].split.len(), 2);
    }

    #[test]
    fn what_leads_nowhere_or_back_is_told_with_its_place() {
        let app = |rest: &str| parse(&format!("{WEB}{COLOURS}[upstreams.app]\n{rest}\n"));
        let only = |rest: &str| app(rest).unwrap_err().join("; ");
        assert_eq!(
            only("split = { bleu = 1 }"),
            "/upstreams/app/split/bleu: there is no upstream `bleu`"
        );
        assert_eq!(
            only("split = { app = 1, blue = 1 }"),
            "/upstreams/app/split/app: this split leads back to itself: app → app"
        );
        assert_eq!(
            only("split = { a = 1 }\n[upstreams.a]\nsplit = { app = 1 }"),
            "/upstreams/a/split/app: this split leads back to itself: app → a → app"
        );
        assert!(only("split = { blue = 0, green = 0 }").contains("every share is 0"));
        assert!(only("split = {}").contains("at least one"));
        assert!(only("split = { blue = 1001 }").contains("not within 0 to 1000"));
        assert!(
            only("split = { blue = 1 }\ntargets = '127.0.0.1:5'").contains("instead of targets")
        );
        assert!(only("split = { 'http://127.0.0.1:5/x' = 1 }").contains("no path"));
        let deep: String = (0..9)
            .map(|n| format!("[upstreams.u{n}]\nsplit = {{ u{} = 1 }}\n", n + 1))
            .collect();
        let deep = format!("split = {{ u0 = 1 }}\n{deep}[upstreams.u9]\ntargets = '127.0.0.1:5'");
        assert!(only(&deep).contains("more than 8 splits"));
    }

    #[test]
    fn defaults_have_the_one_or_the_other() {
        let text = format!(
            "{WEB}{COLOURS}[upstreams.app]\nsplit = {{ blue = 1 }}\n[defaults.upstreams]\ntargets = '127.0.0.1:5'\n"
        );
        assert!(parse(&text).unwrap().upstreams["app"].targets.is_empty());
    }
}
