//! Routes that no request can reach: their hosts are none of the server's, or earlier routes take all that they would.
//! It finds the plain cases — an earlier route without conditions, with the same conditions, or with a host and path
//! that include this one's — in near-linear time; what it does not see is not an error, only a warning less.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::config::check::Checker;
use crate::config::http::{Checked, MatchSpec, PathPattern};
use crate::config::scalar::HostPattern;

/// Pairs of host and path that are looked at in a whole server.
const MAX_PAIRS: usize = 200_000;

/// Parents and prefixes that are tried for one path; each is hashed as a whole.
const MAX_STEPS: usize = 32;

/// Warns of routes that are never reached.
pub(super) fn warn(server: &Checked, check: &mut Checker<'_>) {
    let routes = &server.spec.routes;
    let sites = Sites::new(&server.spec.hosts);
    let mut taken = Taken::default();
    #[expect(
        clippy::mutable_key_type,
        reason = "patterns are hashed by their text, never by the caches of their matchers"
    )]
    let mut same: HashMap<&MatchSpec, usize> = HashMap::new();
    for (index, (route, at)) in routes.iter().zip(&server.routes_at).enumerate() {
        let hosts = &route.matcher.host;
        if !hosts.is_empty() && hosts.iter().all(|host| sites.lack(host)) {
            check
                .findings
                .warning(
                    at.hosts,
                    "this route is never reached: none of its hosts is among the server's `hosts`",
                )
                .help("add them there, or take the route out");
            continue;
        }
        let key = (!is_plain(&route.matcher)).then_some(&route.matcher);
        let earlier = taken
            .by(&route.matcher)
            .or_else(|| key.and_then(|k| same.get(k).copied()));
        match earlier {
            Some(first) => {
                let name = routes[first]
                    .name
                    .as_ref()
                    .map_or_else(|| "an earlier one".to_owned(), |n| format!("`{n}`"));
                check
                    .findings
                    .warning(
                        at.route,
                        format!("this route is never reached: {name} takes all of its requests"),
                    )
                    .help("move it up, or take it out");
            }
            None => {
                taken.add(&route.matcher, index);
                if let Some(key) = key {
                    same.insert(key, index);
                }
            }
        }
    }
}

/// Whether host and path are all its conditions.
fn is_plain(matcher: &MatchSpec) -> bool {
    matcher.method.is_empty()
        && matcher.header.is_empty()
        && matcher.cookie.is_empty()
        && matcher.query.is_empty()
        && matcher.scheme.is_empty()
        && matcher.remote.is_empty()
        && matcher.not.is_none()
}

/// The names that a server answers for.
struct Sites<'s> {
    /// Names and domains; `None`: any, or too many to look at.
    known: Option<Known<'s>>,
}

#[derive(Default)]
struct Known<'s> {
    exact: HashSet<&'s str>,
    below: HashSet<&'s str>,
    /// Every domain that some of its names lie below.
    above: HashSet<&'s str>,
}

impl<'s> Sites<'s> {
    fn new(hosts: &'s [HostPattern]) -> Sites<'s> {
        let mut known = Known::default();
        let mut left = MAX_PAIRS;
        for host in hosts {
            let name = match host {
                HostPattern::Exact(name) => {
                    known.exact.insert(name);
                    name
                }
                HostPattern::Below(name) => {
                    known.below.insert(name);
                    known.above.insert(name);
                    name
                }
                HostPattern::Regex(_) => return Sites { known: None },
            };
            for domain in domains_above(name) {
                if left == 0 {
                    return Sites { known: None };
                }
                left -= 1;
                known.above.insert(domain);
            }
        }
        Sites {
            known: (!hosts.is_empty()).then_some(known),
        }
    }

    /// Whether no name that the pattern takes is among them. What a regular expression takes is not known.
    fn lack(&self, pattern: &HostPattern) -> bool {
        let Some(known) = &self.known else {
            return false;
        };
        let is_below = |name| domains_above(name).any(|domain| known.below.contains(domain));
        match pattern {
            HostPattern::Exact(name) => !known.exact.contains(name.as_str()) && !is_below(name),
            HostPattern::Below(name) => {
                let name = name.as_str();
                !known.above.contains(name) && !known.below.contains(name) && !is_below(name)
            }
            HostPattern::Regex(_) => false,
        }
    }
}

/// The domains that a name lies below.
fn domains_above(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(dot, _)| &name[dot + 1..])
}

type ByName<K, V> = HashMap<K, V, foldhash::fast::FixedState>;

/// A pattern of hosts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Host<'s> {
    Any,
    Exact(&'s str),
    Below(&'s str),
    Regex(&'s str),
}

/// What plain routes have taken so far.
#[derive(Default)]
struct Taken<'s> {
    hosts: ByName<Host<'s>, Box<Paths<'s>>>,
    pairs: usize,
}

#[derive(Default)]
struct Paths<'s> {
    any: Option<usize>,
    exact: ByName<&'s str, usize>,
    below: ByName<&'s str, usize>,
    prefix: ByName<&'s str, usize>,
    /// Lengths that occur in `prefix`.
    lengths: BTreeSet<usize>,
    regex: ByName<&'s str, usize>,
}

impl<'s> Taken<'s> {
    fn add(&mut self, matcher: &'s MatchSpec, route: usize) {
        if !is_plain(matcher) || !self.affordable(matcher) {
            return;
        }
        for host in keys(&matcher.host) {
            let paths = self.hosts.entry(host).or_default();
            if matcher.path.is_empty() {
                paths.any.get_or_insert(route);
            }
            for path in &matcher.path {
                paths.add(path, route);
            }
        }
    }

    fn affordable(&mut self, matcher: &MatchSpec) -> bool {
        self.pairs = self.pairs.saturating_add(
            matcher
                .host
                .len()
                .max(1)
                .saturating_mul(matcher.path.len().max(1)),
        );
        self.pairs <= MAX_PAIRS
    }

    /// The last of the earlier routes that together take all that this matcher would.
    fn by(&mut self, matcher: &MatchSpec) -> Option<usize> {
        if self.hosts.is_empty() || !self.affordable(matcher) {
            return None;
        }
        let mut last = None;
        for host in keys(&matcher.host) {
            let mut candidates = host.wider().filter_map(|h| self.hosts.get(&h)).peekable();
            // Most hosts are new, and then there is nothing to look at.
            candidates.peek()?;
            let candidates: Vec<_> = candidates.collect();
            if matcher.path.is_empty() {
                last = last.max(Some(candidates.iter().find_map(|paths| paths.all())?));
            }
            for path in &matcher.path {
                last = last.max(Some(
                    candidates.iter().find_map(|paths| paths.covers(path))?,
                ));
            }
        }
        last
    }
}

/// Hosts as keys; one that stands for any where there is none.
fn keys(hosts: &[HostPattern]) -> impl Iterator<Item = Host<'_>> {
    let any = hosts.is_empty().then_some(Host::Any);
    any.into_iter().chain(hosts.iter().map(|host| match host {
        HostPattern::Exact(name) => Host::Exact(name),
        HostPattern::Below(name) => Host::Below(name),
        HostPattern::Regex(pattern) => Host::Regex(&pattern.text),
    }))
}

impl<'s> Host<'s> {
    /// All patterns that include it: itself, any, what is below each of its parents.
    fn wider(self) -> impl Iterator<Item = Host<'s>> {
        let name = match self {
            Host::Exact(name) | Host::Below(name) => name,
            Host::Any | Host::Regex(_) => "",
        };
        let parents = domains_above(name).map(Host::Below);
        [self, Host::Any].into_iter().chain(parents)
    }
}

impl<'s> Paths<'s> {
    fn add(&mut self, path: &'s PathPattern, route: usize) {
        match path {
            PathPattern::Exact(p) => {
                self.exact.entry(p).or_insert(route);
            }
            PathPattern::Below(p) if p.is_empty() => {
                self.any.get_or_insert(route);
            }
            PathPattern::Below(p) => {
                self.below.entry(p).or_insert(route);
            }
            PathPattern::Prefix(p) => {
                self.lengths.insert(p.len());
                self.prefix.entry(p).or_insert(route);
            }
            PathPattern::Regex(p) => {
                self.regex.entry(&p.text).or_insert(route);
            }
        }
    }

    fn all(&self) -> Option<usize> {
        self.any.or_else(|| self.prefix.get("/").copied())
    }

    fn covers(&self, path: &PathPattern) -> Option<usize> {
        if let Some(route) = self.all() {
            return Some(route);
        }
        match path {
            PathPattern::Exact(p) => self
                .exact
                .get(p.as_str())
                .copied()
                .or_else(|| self.begins(p))
                .or_else(|| self.is_below(p)),
            // `/v1/*` includes `/v1` itself, so a prefix of `/v1` includes it all.
            PathPattern::Below(p) => self.begins(p).or_else(|| self.is_below(p)),
            // `/v1/a*` may be below `/v1`, but `/v1*` has `/v1b` as well.
            PathPattern::Prefix(p) => self
                .begins(p)
                .or_else(|| p.rfind('/').and_then(|end| self.is_below(&p[..end]))),
            PathPattern::Regex(p) => self.regex.get(&*p.text).copied(),
        }
    }

    fn begins(&self, path: &str) -> Option<usize> {
        let starts = self
            .lengths
            .iter()
            .take_while(|n| **n <= path.len())
            .take(MAX_STEPS);
        starts
            .filter_map(|n| path.get(..*n))
            .find_map(|start| self.prefix.get(start).copied())
    }

    fn is_below(&self, path: &str) -> Option<usize> {
        if self.below.is_empty() {
            return None;
        }
        let parents = path
            .match_indices('/')
            .map(|(at, _)| &path[..at])
            .filter(|p| !p.is_empty());
        parents
            .take(MAX_STEPS)
            .chain([path])
            .find_map(|parent| self.below.get(parent).copied())
    }
}
