//! Conditions of routes from what is written to what is checked.

use ::http::{HeaderName, Method};

use super::super::check::{Checker, shorten};
use super::super::decode::{List, Loc, Map};
use super::super::scalar::{HostPattern, Pattern, Wrong, cidr};
use super::raw::MatchRaw;
use super::{MatchSpec, MethodPattern, PathPattern, TextPattern};

pub(super) fn spec(raw: &MatchRaw, check: &mut Checker<'_>) -> MatchSpec {
    for (key, list) in [
        ("host", &raw.host),
        ("path", &raw.path),
        ("method", &raw.method),
        ("remote", &raw.remote),
    ] {
        if let Some(list) = list {
            not_empty(key, list, check);
        }
    }
    if let Some(list) = &raw.scheme {
        not_empty("scheme", list, check);
    }
    let header = named(raw.header.as_ref(), check, |name| {
        HeaderName::try_from(name)
            .map_err(|_| Wrong::new(format!("`{}` is not the name of a header", shorten(name))))
    });
    let plain = |name: &str| {
        if name.is_empty() {
            Err(Wrong::new("an empty name"))
        } else {
            Ok(name.to_owned())
        }
    };
    let not = raw.not.as_ref().map(|inner| {
        let spec = spec(&inner.value, check);
        if spec == MatchSpec::default() && inner.spoiled.is_empty() && !has_conditions(inner) {
            check
                .findings
                .error(
                    inner.at,
                    "`not` without conditions would keep everything out",
                )
                .help("leave it out, or give a condition");
        }
        Box::new(spec)
    });
    MatchSpec {
        host: values(check.each(raw.host.as_ref(), HostPattern::parse)),
        path: values(check.each(raw.path.as_ref(), path)),
        method: values(check.each(raw.method.as_ref(), method)),
        header,
        cookie: named(raw.cookie.as_ref(), check, plain),
        query: named(raw.query.as_ref(), check, plain),
        scheme: raw
            .scheme
            .iter()
            .flat_map(|l| l.iter())
            .map(|s| s.value)
            .collect(),
        remote: values(check.each(raw.remote.as_ref(), cidr)),
        not,
    }
}

fn has_conditions(raw: &MatchRaw) -> bool {
    raw.host.is_some()
        || raw.path.is_some()
        || raw.method.is_some()
        || raw.header.is_some()
        || raw.cookie.is_some()
        || raw.query.is_some()
        || raw.scheme.is_some()
        || raw.remote.is_some()
        || raw.not.is_some()
}

fn not_empty<T>(key: &str, list: &Loc<List<T>>, check: &mut Checker<'_>) {
    if list.is_empty() && !list.spoiled {
        check
            .findings
            .error(list.at, format!("no request fits an empty list of `{key}`"))
            .help("leave the key out: without it every request fits");
    }
}

fn values<T>(found: Vec<(T, super::super::tree::At)>) -> Vec<T> {
    found.into_iter().map(|(value, _)| value).collect()
}

fn named<K>(
    map: Option<&Loc<Map<List<String>>>>,
    check: &mut Checker<'_>,
    parse: impl Fn(&str) -> Result<K, Wrong>,
) -> Vec<(K, Vec<TextPattern>)> {
    let mut out = Vec::new();
    for (name, list) in map.iter().flat_map(|m| m.iter()) {
        not_empty(name, list, check);
        let patterns = values(check.each(Some(list), text));
        match parse(name) {
            Ok(name) => out.push((name, patterns)),
            Err(wrong) => check
                .findings
                .key_error(list.at, wrong.message)
                .help_if(wrong.help),
        }
    }
    out
}

fn text(text: &str) -> Result<TextPattern, Wrong> {
    if let Some(regex) = text.strip_prefix('~') {
        return Pattern::compile(regex).map(TextPattern::Regex);
    }
    Ok(match text.strip_suffix('*') {
        Some("") => TextPattern::Any,
        Some(prefix) => TextPattern::Prefix(prefix.to_owned()),
        None => TextPattern::Exact(text.to_owned()),
    })
}

fn method(text: &str) -> Result<MethodPattern, Wrong> {
    if let Some(regex) = text.strip_prefix('~') {
        return Pattern::compile(regex).map(MethodPattern::Regex);
    }
    let wrong = || Wrong::new(format!("`{}` is not a method", shorten(text)));
    let upper = text.to_ascii_uppercase();
    let standard = [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT",
    ];
    if upper != text && standard.contains(&upper.as_str()) {
        return Err(wrong().help(format!("methods have capital letters: `{upper}`")));
    }
    // RFC 9110 allows a star in a method, but who writes one means a pattern.
    if text == "*" {
        return Err(wrong().help("leave `method` out: without it every method fits"));
    }
    if text.contains('*') {
        return Err(wrong().help("use a regular expression: `~^P`"));
    }
    Method::from_bytes(text.as_bytes())
        .map(MethodPattern::Exact)
        .map_err(|_| wrong())
}

/// A path as requests are compared with it: decoded but `%2F`, and without dot segments.
fn path(text: &str) -> Result<PathPattern, Wrong> {
    if let Some(regex) = text.strip_prefix('~') {
        return Pattern::compile(regex).map(PathPattern::Regex);
    }
    let wrong = || Wrong::new(format!("`{}` is not a path", shorten(text)));
    if text == "*" {
        return Err(wrong().help("write `/*` for every path"));
    }
    if !text.starts_with('/') {
        return Err(wrong().help("paths begin with `/`, regular expressions with `~`"));
    }
    let (fixed, kind): (&str, fn(String) -> PathPattern) = match text.strip_suffix('*') {
        None => (text, PathPattern::Exact),
        Some(start) => match start.strip_suffix('/') {
            Some(folder) => (folder, PathPattern::Below),
            None => (start, PathPattern::Prefix),
        },
    };
    if fixed.contains('*') {
        return Err(
            wrong().help("a `*` stands only at the end; use a regular expression: `~^/a/[^/]+/b$`")
        );
    }
    if fixed.contains(['?', '#']) {
        return Err(wrong().help("conditions on the query go into `match.query`"));
    }
    if fixed
        .split('/')
        .any(|segment| segment == "." || segment == "..")
    {
        return Err(wrong().help("requests are compared without `.` and `..`"));
    }
    decoded(fixed)
        .map(kind)
        .ok_or_else(|| wrong().help("what is percent-encoded must be UTF-8"))
}

/// Percent-decoding of everything but the slash. `None`: not UTF-8.
fn decoded(path: &str) -> Option<String> {
    if !path.contains('%') {
        return Some(path.to_owned());
    }
    let pieces: Vec<String> = path
        .split("%2f")
        .flat_map(|piece| piece.split("%2F"))
        .map(|piece| {
            percent_encoding::percent_decode_str(piece)
                .decode_utf8()
                .map(|c| c.into_owned())
        })
        .collect::<Result<_, _>>()
        .ok()?;
    Some(pieces.join("%2F"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_star_at_the_end_is_below_or_prefix() {
        assert_eq!(path("/v1").unwrap(), PathPattern::Exact("/v1".into()));
        assert_eq!(path("/v1/*").unwrap(), PathPattern::Below("/v1".into()));
        assert_eq!(path("/*").unwrap(), PathPattern::Below(String::new()));
        assert_eq!(path("/v1*").unwrap(), PathPattern::Prefix("/v1".into()));
        assert_eq!(
            path("/a%20b%2fc%2F").unwrap(),
            PathPattern::Exact("/a b%2Fc%2F".into())
        );
        for wrong in ["", "v1", "*", "/a/*/b", "/a?b", "/a/../b", "/%ff", "~("] {
            assert!(path(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_are_any_prefix_regex_or_exact() {
        assert_eq!(text("*").unwrap(), TextPattern::Any);
        assert_eq!(text("ab*").unwrap(), TextPattern::Prefix("ab".into()));
        assert_eq!(text("ab").unwrap(), TextPattern::Exact("ab".into()));
        assert!(matches!(text("~^a").unwrap(), TextPattern::Regex(_)));
    }

    #[test]
    fn methods_have_capital_letters() {
        assert!(method("GET").is_ok() && method("PURGE").is_ok());
        assert!(method("get").is_err() && method("a b").is_err());
    }

    #[test]
    fn a_method_is_exact_or_a_regular_expression_and_no_star() {
        let pattern = method("~^P").unwrap();
        let taken = [Method::PUT, Method::POST, Method::GET].map(|m| pattern.matches(&m));
        assert_eq!(taken, [true, true, false]);
        assert!(method("GET").unwrap().matches(&Method::GET));
        assert!(method("~(").unwrap_err().message.contains("expression"));
        for star in ["*", "P*"] {
            assert!(method(star).unwrap_err().help.is_some(), "{star}");
        }
    }
}
