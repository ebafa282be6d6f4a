//! What a client would rather have: a coding (`Accept-Encoding`) and the form of a folder's list (`Accept`).

use http::header::{ACCEPT, ACCEPT_ENCODING};
use http::{HeaderMap, HeaderName};

use crate::config::http::FileCoding;

/// The codings of `offered` that the client takes, best first: by its weight, then by our order. Those it likes less
/// than the plain file are left out.
pub(in crate::http) fn codings(headers: &HeaderMap, offered: &[FileCoding]) -> Vec<FileCoding> {
    if offered.is_empty() || !headers.contains_key(ACCEPT_ENCODING) {
        return Vec::new();
    }
    let (mut any, mut identity) = (None, 0);
    let mut named: Vec<(FileCoding, u16)> = Vec::new();
    for (item, weight) in items(headers, &ACCEPT_ENCODING) {
        let is = |name: &str| item.eq_ignore_ascii_case(name);
        if is("*") {
            any = Some(weight);
        } else if is("identity") {
            identity = weight;
        } else if let Some(coding) = offered
            .iter()
            .find(|coding| is(coding.word()) || (is("x-gzip") && **coding == FileCoding::Gzip))
        {
            named.push((*coding, weight));
        }
    }
    let weight_of = |coding: &FileCoding| {
        let own = named.iter().find(|(c, _)| c == coding).map(|(_, w)| *w);
        own.or(any).unwrap_or(0)
    };
    let mut taken: Vec<_> = offered
        .iter()
        .map(|coding| (*coding, weight_of(coding)))
        .filter(|(_, weight)| *weight > 0 && *weight >= identity)
        .collect();
    taken.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
    taken.into_iter().map(|(coding, _)| coding).collect()
}

/// Whether JSON is asked for rather than HTML, by name.
pub(super) fn wants_json(headers: &HeaderMap) -> bool {
    let (mut json, mut html) = (0, 0);
    for (item, weight) in items(headers, &ACCEPT) {
        if item.eq_ignore_ascii_case("application/json") {
            json = weight;
        } else if item.eq_ignore_ascii_case("text/html") {
            html = weight;
        }
    }
    json > html
}

/// The items of a list with their weights in thousandths (RFC 9110 section 12.4.2); what is not well-formed has none.
fn items<'h>(
    headers: &'h HeaderMap,
    field: &HeaderName,
) -> impl Iterator<Item = (&'h str, u16)> + use<'h> {
    headers
        .get_all(field)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|item| {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let weight = parts.find_map(|p| p.strip_prefix("q=").or(p.strip_prefix("Q=")));
            (name, weight.map_or(1000, thousandths))
        })
}

/// `0`, `1`, `0.25`: at most three digits behind the point.
fn thousandths(text: &str) -> u16 {
    let (whole, behind) = text.split_once('.').unwrap_or((text, ""));
    let digits = behind.bytes().all(|b| b.is_ascii_digit()) && behind.len() <= 3;
    match whole {
        "1" if digits => 1000,
        "0" if digits => format!("{behind:0<3}").parse().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use FileCoding::{Brotli, Gzip, Zstd};

    #[test]
    fn weights_then_our_order() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, text.parse().unwrap());
            codings(&headers, &[Brotli, Zstd, Gzip])
        };
        let table: &[(&str, &[FileCoding])] = &[
            ("gzip, deflate, br, zstd", &[Brotli, Zstd, Gzip]),
            ("gzip", &[Gzip]),
            ("x-gzip", &[Gzip]),
            ("GZIP;q=1.0, br;q=0.5", &[Gzip, Brotli]),
            ("br;q=0, *", &[Zstd, Gzip]),
            ("*;q=0", &[]),
            ("br;q=0.5, identity", &[]),
            ("br;q=0.5, identity;q=0.1", &[Brotli]),
            ("identity;q=0", &[]),
            ("br;q=2", &[]),
            ("br;q=x, gzip;q=0.001", &[Gzip]),
            ("br;q=0.0001", &[]),
            ("", &[]),
        ];
        for (text, expected) in table {
            assert_eq!(of(text), *expected, "{text}");
        }
        assert_eq!(codings(&HeaderMap::new(), &[Gzip]), []);
    }

    proptest! {
        #[test]
        fn the_first_is_the_one_the_client_likes_best(
            weights in proptest::collection::vec(0..=1000_u16, 3),
            garbage in "[ -~]{0,20}",
        ) {
            let offered = [Zstd, Brotli, Gzip];
            let list: Vec<String> = offered
                .iter()
                .zip(&weights)
                .map(|(coding, w)| format!("{};q={}.{:03}", coding.word(), w / 1000, w % 1000))
                .collect();
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, list.join(", ").parse().unwrap());
            let taken = codings(&headers, &offered);
            let most = *weights.iter().max().unwrap();
            let best = weights.iter().position(|w| *w == most).filter(|_| most > 0);
            prop_assert_eq!(taken.first().copied(), best.map(|at| offered[at]));
            prop_assert_eq!(taken.len(), weights.iter().filter(|w| **w > 0).count());
            headers.append(ACCEPT_ENCODING, garbage.parse().unwrap());
            prop_assert!(codings(&headers, &offered).len() <= 3);
        }
    }

    #[test]
    fn json_by_name_only() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, text.parse().unwrap());
            wants_json(&headers)
        };
        assert!(of("application/json") && of("text/html;q=0.5, application/json"));
        assert!(!of("*/*") && !of("text/html, application/json") && !of("application/json;q=0"));
    }
}
