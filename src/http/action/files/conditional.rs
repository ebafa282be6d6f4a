//! Preconditions, in the order of RFC 9110 section 13.2.2.

use std::time::UNIX_EPOCH;

use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
use http::{HeaderMap, HeaderName};

use super::stat::Validators;

/// What preconditions make of a `GET` or `HEAD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Proceed,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

pub(super) fn evaluate(headers: &HeaderMap, current: &Validators) -> Verdict {
    if headers.contains_key(IF_MATCH) {
        if !names(headers, &IF_MATCH, current, Compare::Strong) {
            return Verdict::Failed;
        }
    } else if let Some(date) = date(headers, &IF_UNMODIFIED_SINCE)
        && current.modified > date
    {
        return Verdict::Failed;
    }
    if headers.contains_key(IF_NONE_MATCH) {
        if names(headers, &IF_NONE_MATCH, current, Compare::Weak) {
            return Verdict::NotModified;
        }
    } else if let Some(date) = date(headers, &IF_MODIFIED_SINCE)
        && current.modified <= date
    {
        return Verdict::NotModified;
    }
    Verdict::Proceed
}

/// Whether a `Range` is to be heeded: `If-Range` names the present state, or is not there (section 13.1.5).
pub(super) fn range_applies(headers: &HeaderMap, current: &Validators) -> bool {
    let Some(value) = headers.get(IF_RANGE) else {
        return true;
    };
    if headers.get_all(IF_RANGE).iter().nth(1).is_some() {
        return false;
    }
    if value.as_bytes().contains(&b'"') {
        return value.as_bytes().trim_ascii() == current.etag.as_bytes();
    }
    // An exact match, not "not later": the client has a part of just that state.
    date(headers, &IF_RANGE) == Some(current.modified)
}

/// How entity tags are compared (section 8.8.3.2). Ours is strong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Strong,
    Weak,
}

/// Whether the list names the present state; `*` does.
fn names(headers: &HeaderMap, field: &HeaderName, current: &Validators, how: Compare) -> bool {
    headers.get_all(field).iter().any(|line| {
        let line = line.as_bytes().trim_ascii();
        line == b"*" || any_tag(line, current.etag.as_bytes(), how)
    })
}

fn any_tag(mut rest: &[u8], tag: &[u8], how: Compare) -> bool {
    loop {
        while let [b' ' | b'\t' | b',', tail @ ..] = rest {
            rest = tail;
        }
        let weak = rest.starts_with(b"W/");
        let opaque = if weak { &rest[2..] } else { rest };
        if opaque.first() != Some(&b'"') {
            return false;
        }
        let Some(end) = opaque[1..].iter().position(|b| *b == b'"') else {
            return false;
        };
        let (found, tail) = opaque.split_at(end + 2);
        if found == tag && !(weak && how == Compare::Strong) {
            return true;
        }
        rest = tail;
    }
}

/// A date in seconds since 1970; what is none is as if it were not there.
fn date(headers: &HeaderMap, field: &HeaderName) -> Option<u64> {
    let mut lines = headers.get_all(field).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return None;
    };
    let time = httpdate::parse_http_date(line.to_str().ok()?).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const SAME: &str = "Fri, 01 Jan 2021 00:00:00 GMT";
    const EARLIER: &str = "Thu, 31 Dec 2020 23:59:59 GMT";
    const LATER: &str = "Fri, 01 Jan 2021 00:00:01 GMT";

    fn current() -> Validators {
        Validators {
            etag: HeaderValue::from_static("\"a\""),
            modified: 1_609_459_200,
            last_modified: HeaderValue::from_static(SAME),
        }
    }

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_order_of_the_rfc() {
        use Verdict::{Failed, NotModified, Proceed};
        let table: &[(&[(&str, &str)], Verdict)] = &[
            (&[], Proceed),
            (&[("if-match", "\"a\"")], Proceed),
            (&[("if-match", "*")], Proceed),
            (&[("if-match", "\"b\", \"a\"")], Proceed),
            (&[("if-match", "\"b\"")], Failed),
            (&[("if-match", "W/\"a\"")], Failed),
            (&[("if-match", "a")], Failed),
            (&[("if-match", "")], Failed),
            (&[("if-match", "\"b\""), ("if-match", "\"a\"")], Proceed),
            (&[("if-unmodified-since", EARLIER)], Failed),
            (&[("if-unmodified-since", SAME)], Proceed),
            (&[("if-unmodified-since", "soon")], Proceed),
            // If-Match makes If-Unmodified-Since void.
            (
                &[("if-match", "\"a\""), ("if-unmodified-since", EARLIER)],
                Proceed,
            ),
            (&[("if-none-match", "\"a\"")], NotModified),
            (&[("if-none-match", "W/\"a\"")], NotModified),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-none-match", "\"b\",W/\"c,d\" ,\"a\"")], NotModified),
            (&[("if-none-match", "\"b\"")], Proceed),
            (&[("if-none-match", "\"a")], Proceed),
            (&[("if-modified-since", SAME)], NotModified),
            (&[("if-modified-since", LATER)], NotModified),
            (&[("if-modified-since", EARLIER)], Proceed),
            (&[("if-modified-since", "0")], Proceed),
            // If-None-Match makes If-Modified-Since void.
            (
                &[("if-none-match", "\"b\""), ("if-modified-since", SAME)],
                Proceed,
            ),
            (&[("if-match", "\"b\""), ("if-none-match", "\"a\"")], Failed),
            (
                &[("if-match", "\"a\""), ("if-none-match", "\"a\"")],
                NotModified,
            ),
            (
                &[("if-unmodified-since", SAME), ("if-modified-since", SAME)],
                NotModified,
            ),
        ];
        for (fields, verdict) in table {
            assert_eq!(
                evaluate(&headers(fields), &current()),
                *verdict,
                "{fields:?}"
            );
        }
    }

    #[test]
    fn a_range_is_heeded_for_the_very_same_state_only() {
        let table = [
            ("\"a\"", true),
            ("\"b\"", false),
            ("W/\"a\"", false),
            (SAME, true),
            (LATER, false),
            (EARLIER, false),
            ("soon", false),
        ];
        for (value, applies) in table {
            let fields = headers(&[("if-range", value)]);
            assert_eq!(range_applies(&fields, &current()), applies, "{value}");
        }
        assert!(range_applies(&HeaderMap::new(), &current()));
    }
}
