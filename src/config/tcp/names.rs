//! `sni` and `alpn`: which clients of TLS are meant, by what they say in their hello.

use std::collections::HashSet;
use std::net::IpAddr;

use super::super::check::Checker;
use super::super::decode::{List, Loc, Map};
use super::super::scalar::{HostPattern, Wrong};
use super::super::tree::At;
use super::super::upstream::References;
use super::{SniSpec, upstream};

/// What `sni` says. Each name is there once.
pub(super) fn spec(
    sni: &Loc<Map<String>>,
    enabled: bool,
    references: &mut References<'_>,
    check: &mut Checker<'_>,
) -> (SniSpec, Vec<(String, At)>) {
    let mut spec = SniSpec::default();
    if sni.is_empty() && sni.spoiled.is_empty() {
        check
            .findings
            .error(sni.at, "`sni` without a name lets nobody in")
            .help("such as `sni = { \"a.example.com\" = \"UPSTREAM\" }`");
    }
    let mut seen = HashSet::new();
    let mut places = Vec::new();
    for (key, text) in sni.iter() {
        let found = upstream(text, enabled, references, check);
        if key == "*" {
            spec.rest = found;
            places.push((key.to_owned(), text.at));
            continue;
        }
        let Some(name) = check.take(text.at, asked_for(key)) else {
            continue;
        };
        if !seen.insert(name.to_string()) {
            let message = format!("`{name}` is there twice: names have no case");
            check.findings.error(text.at, message);
            continue;
        }
        places.push((name.to_string(), text.at));
        spec.names.extend(found.map(|upstream| (name, upstream)));
    }
    (spec, places)
}

/// A name that a client may ask for.
fn asked_for(text: &str) -> Result<HostPattern, Wrong> {
    let bare = text.trim_matches(['[', ']']);
    if bare.parse::<IpAddr>().is_ok() {
        return Err(Wrong::new(format!("no client asks for `{text}`"))
            .help("a hello has names alone (RFC 6066 section 3); who dials an address asks for none: `\"*\"`"));
    }
    match HostPattern::parse(text)? {
        HostPattern::Regex(_) => Err(Wrong::new("`sni` takes no regular expressions")
            .help("a name, `*.name`, or `\"*\"` for all others")),
        name => Ok(name),
    }
}

/// What `alpn` says. Each protocol is there once.
pub(super) fn protocols(
    alpn: Option<&Loc<List<String>>>,
    has_names: bool,
    check: &mut Checker<'_>,
) -> Vec<Box<str>> {
    let Some(list) = alpn else {
        return Vec::new();
    };
    if list.is_empty() && !list.spoiled {
        check
            .findings
            .error(list.at, "an empty list of protocols lets nobody in")
            .help("leave it out for all clients, whatever they offer");
    }
    if !has_names {
        check
            .findings
            .error(list.at, "`alpn` chooses among the clients that `sni` names")
            .help("with `sni = { \"*\" = \"UPSTREAM\" }` in the place of `upstream` it has all of them");
    }
    let mut all: Vec<Box<str>> = Vec::new();
    for item in list.iter() {
        // RFC 7301 section 3.1.
        if !(1..=255).contains(&item.len()) {
            check
                .findings
                .error(item.at, "a protocol has a name of 1 to 255 bytes")
                .help("such as `h2`, `http/1.1` or `postgresql`");
        } else if all.iter().any(|other| **other == *item.value) {
            let message = format!("`{}` is there twice", item.value);
            check.findings.error(item.at, message);
        } else {
            all.push(item.as_str().into());
        }
    }
    all
}
