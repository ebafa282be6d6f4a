//! Which server, which route: pure over a [`Head`]. First match wins, and ten thousand routes cost a look-up.
//!
//! Every route lies in buckets by its most selective conditions: first the host (exact, below a domain, any), in it the
//! path (exact, below a path, with a prefix, any). A request asks for the few buckets that can hold a match, gets
//! ascending lists of route numbers, and walks them merged in the document's order, checking each candidate in full.
//! So the index may offer too much but never too little, and order decides alone.

use std::net::IpAddr;

use http::{HeaderMap, Method};

use super::{ByName, text};
use crate::config::http::{MatchSpec, PathPattern, Scheme, TextPattern};
use crate::config::scalar::HostPattern;

/// What routing may look at.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    pub method: &'a Method,
    /// Lower case, without port; empty where an HTTP/1.0 request named none.
    pub host: &'a str,
    /// Decoded, without dot segments.
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    pub scheme: Scheme,
    /// The client, after trusted proxies; without an address it is in no range.
    pub remote: Option<IpAddr>,
}

/// From this many routes on a bucket is split by path; below, a scan is quicker and smaller.
const SPLIT: usize = 8;

/// The routes of one server, indexed.
#[derive(Debug)]
pub struct Routes {
    matchers: Vec<MatchSpec>,
    exact: ByName<Paths>,
    below: ByName<Paths>,
    any: Paths,
}

/// The routes of one host bucket by path.
#[derive(Debug, Default)]
struct Paths {
    split: Option<Box<Split>>,
    rest: Vec<u32>,
}

#[derive(Debug, Default)]
struct Split {
    exact: ByName<Vec<u32>>,
    /// By the path that the request's must equal or lie below.
    below: ByName<Vec<u32>>,
    prefix: ByName<Vec<u32>>,
    /// Lengths of the keys of `prefix`, ascending.
    prefix_lengths: Vec<usize>,
}

impl Routes {
    /// Indexes `matchers`, whose order is the routes' order.
    pub fn new(matchers: Vec<MatchSpec>) -> Routes {
        let mut exact: ByName<Vec<u32>> = ByName::default();
        let mut below: ByName<Vec<u32>> = ByName::default();
        let mut any: Vec<u32> = Vec::new();
        for (number, matcher) in (0u32..).zip(&matchers) {
            if matcher.host.is_empty()
                || matcher
                    .host
                    .iter()
                    .any(|h| matches!(h, HostPattern::Regex(_)))
            {
                any.push(number);
                continue;
            }
            for host in &matcher.host {
                let bucket = match host {
                    HostPattern::Exact(name) => exact.entry(name.as_str().into()).or_default(),
                    HostPattern::Below(name) => below.entry(name.as_str().into()).or_default(),
                    HostPattern::Regex(_) => &mut any,
                };
                push(bucket, number);
            }
        }
        let paths = |numbers: Vec<u32>| Paths::new(numbers, &matchers);
        Routes {
            exact: exact
                .into_iter()
                .map(|(host, numbers)| (host, paths(numbers)))
                .collect(),
            below: below
                .into_iter()
                .map(|(host, numbers)| (host, paths(numbers)))
                .collect(),
            any: paths(any),
            matchers,
        }
    }

    /// The number of the first route that takes `head`.
    pub fn find(&self, head: &Head<'_>) -> Option<usize> {
        let mut lists = Lists::default();
        if !self.exact.is_empty()
            && let Some(paths) = self.exact.get(head.host)
        {
            paths.gather(head.path, &mut lists);
        }
        if !self.below.is_empty() {
            for domain in domains_above(head.host) {
                if let Some(paths) = self.below.get(domain) {
                    paths.gather(head.path, &mut lists);
                }
            }
        }
        self.any.gather(head.path, &mut lists);
        lists.first(|number| self.matchers.get(number).is_some_and(|m| matches(m, head)))
    }
}

impl Paths {
    fn new(numbers: Vec<u32>, matchers: &[MatchSpec]) -> Paths {
        if numbers.len() <= SPLIT {
            return Paths {
                split: None,
                rest: numbers,
            };
        }
        let mut split = Split::default();
        let mut rest = Vec::new();
        for number in numbers {
            let paths = matchers.get(number as usize).map_or(&[][..], |m| &m.path);
            let unbounded = |p: &PathPattern| match p {
                PathPattern::Regex(_) => true,
                PathPattern::Below(path) | PathPattern::Prefix(path) => path.is_empty(),
                PathPattern::Exact(_) => false,
            };
            if paths.is_empty() || paths.iter().any(unbounded) {
                rest.push(number);
                continue;
            }
            for path in paths {
                let (map, key) = match path {
                    PathPattern::Exact(path) => (&mut split.exact, path),
                    PathPattern::Below(path) => (&mut split.below, path),
                    PathPattern::Prefix(path) => (&mut split.prefix, path),
                    PathPattern::Regex(_) => continue,
                };
                push(map.entry(key.as_str().into()).or_default(), number);
            }
        }
        split.prefix_lengths = split.prefix.keys().map(|key| key.len()).collect();
        split.prefix_lengths.sort_unstable();
        split.prefix_lengths.dedup();
        let empty = split.exact.is_empty() && split.below.is_empty() && split.prefix.is_empty();
        Paths {
            split: (!empty).then(|| Box::new(split)),
            rest,
        }
    }

    fn gather<'a>(&'a self, path: &str, lists: &mut Lists<'a>) {
        lists.add(&self.rest);
        let Some(split) = &self.split else { return };
        if !split.exact.is_empty() {
            lists.add_some(split.exact.get(path));
        }
        if !split.below.is_empty() {
            lists.add_some(split.below.get(path));
            for (slash, _) in path.match_indices('/').filter(|(slash, _)| *slash > 0) {
                lists.add_some(split.below.get(&path[..slash]));
            }
        }
        for length in split
            .prefix_lengths
            .iter()
            .take_while(|length| **length <= path.len())
        {
            if let Some(key) = path.get(..*length) {
                lists.add_some(split.prefix.get(key));
            }
        }
    }
}

fn push(bucket: &mut Vec<u32>, number: u32) {
    // Numbers come ascending, so a route named twice in one bucket is its last.
    if bucket.last() != Some(&number) {
        bucket.push(number);
    }
}

/// The domains that `host` lies below, longest first.
pub(super) fn domains_above(host: &str) -> impl Iterator<Item = &str> {
    host.match_indices('.')
        .map(|(dot, _)| &host[dot + 1..])
        .filter(|domain| !domain.is_empty())
}

/// Ascending candidate lists; few enough that a merge by looking at all heads is the quickest.
#[derive(Default)]
struct Lists<'a> {
    inline: [&'a [u32]; 6],
    len: usize,
    spill: Vec<&'a [u32]>,
}

impl<'a> Lists<'a> {
    fn add(&mut self, list: &'a [u32]) {
        if list.is_empty() {
        } else if let Some(place) = self.inline.get_mut(self.len) {
            *place = list;
            self.len += 1;
        } else {
            self.spill.push(list);
        }
    }

    fn add_some(&mut self, list: Option<&'a Vec<u32>>) {
        if let Some(list) = list {
            self.add(list);
        }
    }

    fn first(mut self, mut takes: impl FnMut(usize) -> bool) -> Option<usize> {
        if self.len <= 1 && self.spill.is_empty() {
            return self.inline[0]
                .iter()
                .map(|n| *n as usize)
                .find(|n| takes(*n));
        }
        let mut done = None;
        loop {
            let heads = self.inline[..self.len].iter_mut().chain(&mut self.spill);
            let next = heads
                .filter(|list| !list.is_empty())
                .min_by_key(|list| list.first().copied())?;
            let number = *next.first()?;
            *next = &next[1..];
            // The same route can be in two lists (two of its paths, two of its hosts).
            if done.replace(number) != Some(number) && takes(number as usize) {
                return Some(number as usize);
            }
        }
    }
}

/// True if every condition holds.
pub fn matches(spec: &MatchSpec, head: &Head<'_>) -> bool {
    any_or_empty(&spec.host, |p| host_matches(p, head.host))
        && any_or_empty(&spec.path, |p| path_matches(p, head.path))
        && any_or_empty(&spec.method, |m| m.matches(head.method))
        && any_or_empty(&spec.scheme, |s| *s == head.scheme)
        && any_or_empty(&spec.remote, |net| {
            head.remote.is_some_and(|remote| net.contains(&remote))
        })
        && spec.header.iter().all(|(name, values)| {
            head.headers
                .get_all(name)
                .iter()
                .any(|v| any_text(values, v.as_bytes()))
        })
        && spec.cookie.iter().all(|(name, values)| {
            text::cookies(head.headers).any(|(k, v)| k == name.as_bytes() && any_text(values, v))
        })
        && spec.query.iter().all(|(name, values)| {
            text::query_pairs(head.query.unwrap_or_default())
                .any(|(k, v)| *k == *name.as_bytes() && any_text(values, &v))
        })
        && !spec.not.as_ref().is_some_and(|not| matches(not, head))
}

fn any_or_empty<T>(items: &[T], holds: impl FnMut(&T) -> bool) -> bool {
    items.is_empty() || items.iter().any(holds)
}

/// `host` is lower case, without port.
pub fn host_matches(pattern: &HostPattern, host: &str) -> bool {
    match pattern {
        HostPattern::Exact(name) => name == host,
        HostPattern::Below(domain) => host
            .strip_suffix(domain.as_str())
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        HostPattern::Regex(pattern) => pattern.regex.is_match(host),
    }
}

fn path_matches(pattern: &PathPattern, path: &str) -> bool {
    match pattern {
        PathPattern::Exact(exact) => exact == path,
        PathPattern::Below(above) => path
            .strip_prefix(above.as_str())
            .is_some_and(|rest| above.is_empty() || rest.is_empty() || rest.starts_with('/')),
        PathPattern::Prefix(prefix) => path.starts_with(prefix.as_str()),
        PathPattern::Regex(pattern) => pattern.regex.is_match(path),
    }
}

fn any_text(patterns: &[TextPattern], value: &[u8]) -> bool {
    patterns.iter().any(|pattern| match pattern {
        TextPattern::Any => true,
        TextPattern::Exact(exact) => exact.as_bytes() == value,
        TextPattern::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
        TextPattern::Regex(pattern) => pattern.regex.is_match(value),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
