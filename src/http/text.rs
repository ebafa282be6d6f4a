//! Cookies and query keys, as routes and templates read them; rendered templates as field values.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

/// The pairs of all `Cookie` lines (RFC 6265 section 4.2.1), values without surrounding quotes.
pub fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b';'))
        .filter_map(|pair| {
            let equals = memchr::memchr(b'=', pair)?;
            let value = pair[equals + 1..].trim_ascii();
            let bare = value
                .strip_prefix(b"\"")
                .and_then(|v| v.strip_suffix(b"\""));
            Some((pair[..equals].trim_ascii(), bare.unwrap_or(value)))
        })
}

/// The pairs of a query as forms write it: `&` between them, `+` for a space, percent-encoded. A key without `=` has an
/// empty value.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (Cow<'_, [u8]>, Cow<'_, [u8]>)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (form_decode(key), form_decode(value))
        })
}

fn form_decode(text: &str) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'%', b'+', text.as_bytes()).is_none() {
        return Cow::Borrowed(text.as_bytes());
    }
    let spaced = text.replace('+', " ");
    Cow::Owned(percent_encoding::percent_decode_str(&spaced).collect())
}

/// A rendered text as a field value: without control characters, so that no variable can begin another field.
pub(super) fn field_value(text: String) -> Option<HeaderValue> {
    let clean = if text.contains(|c: char| c.is_ascii_control()) {
        text.replace(|c: char| c.is_ascii_control(), "")
    } else {
        text
    };
    HeaderValue::from_maybe_shared(Bytes::from(clean)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn cookies_of_all_lines() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; b=\"two\";c"));
        headers.append(COOKIE, HeaderValue::from_static("d = x=y"));
        let all: Vec<_> = cookies(&headers).collect();
        assert_eq!(
            all,
            [(&b"a"[..], &b"1"[..]), (b"b", b"two"), (b"d", b"x=y")]
        );
    }

    #[test]
    fn query_keys_and_values_are_decoded() {
        let all: Vec<_> = query_pairs("a=1&&b=x+y%26z&debug&%61b=%zz")
            .map(|(k, v)| {
                format!(
                    "{}={}",
                    String::from_utf8_lossy(&k),
                    String::from_utf8_lossy(&v)
                )
            })
            .collect();
        assert_eq!(all, ["a=1", "b=x y&z", "debug=", "ab=%zz"]);
    }
}
