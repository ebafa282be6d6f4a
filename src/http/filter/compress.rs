//! `compress`: which responses are compressed, and what their fields say then. How is in `http::compressed`.

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    ETAG,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::Body as _;

use crate::config::http::{FileCoding, FiltersSpec};
use crate::http::action::files::negotiate;
use crate::http::body::ResponseBody;
use crate::http::headers::{add_vary, lists_token};

/// A body below so many bytes costs more to compress than it gains: it fits a packet either way.
const WORTH: u64 = 1024;

/// Fields that tell of the very bytes that are sent: a response with one is left as it is.
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// The compiled `compress` of a server or a route.
#[derive(Debug)]
pub(super) struct Compress {
    codings: Vec<FileCoding>,
}

/// What the way back must know of a request.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    coding: Option<FileCoding>,
    is_head: bool,
}

impl Compress {
    pub(super) fn build(spec: &FiltersSpec) -> Option<Compress> {
        let codings = spec.compress.get()?.codings.clone();
        Some(Compress { codings })
    }

    pub(super) fn ask(&self, parts: &Parts) -> Wanted {
        Wanted {
            coding: negotiate::codings(&parts.headers, &self.codings)
                .first()
                .copied(),
            is_head: parts.method == Method::HEAD,
        }
    }

    pub(super) fn back(&self, wanted: &Wanted, response: &mut Response<ResponseBody>) {
        let status = response.status();
        if status == StatusCode::NOT_MODIFIED {
            // What the client has may be the compressed form: its validator is the weak one.
            if wanted.coding.is_some() {
                weaken(response.headers_mut());
            }
            return;
        }
        if !has_whole_content(status) || !self.gains(response) {
            return;
        }
        let headers = response.headers_mut();
        add_vary(headers, "accept-encoding");
        let Some(coding) = wanted.coding.filter(|_| !wanted.is_head) else {
            return;
        };
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.word()));
        headers.remove(CONTENT_LENGTH);
        headers.remove(ACCEPT_RANGES);
        weaken(headers);
        response.body_mut().compress(coding);
    }

    fn gains(&self, response: &Response<ResponseBody>) -> bool {
        let headers = response.headers();
        let said = headers.get(CONTENT_LENGTH);
        let said = said.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let length = said.or(response.body().size_hint().exact());
        length.is_none_or(|length| length >= WORTH)
            && headers.get(CONTENT_TYPE).is_some_and(is_text)
            && is_plain(headers)
            && !headers.contains_key(CONTENT_RANGE)
            && !lists_token(headers, &CACHE_CONTROL, "no-transform")
            && !DIGESTS.iter().any(|name| headers.contains_key(name))
    }
}

/// A part of a representation can't be compressed by itself, and these have no content at all.
fn has_whole_content(status: StatusCode) -> bool {
    !status.is_informational()
        && !matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT
        )
}

fn is_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Types that are text in the end. A stream of events is none of them: it lives for hours, all the time with the memory
/// of an encoder, for the sake of a few bytes.
fn is_text(value: &HeaderValue) -> bool {
    let whole = value.as_bytes();
    let bare = whole.split(|b| *b == b';').next().unwrap_or_default();
    let Ok(text) = std::str::from_utf8(bare.trim_ascii()) else {
        return false;
    };
    let kind = text.to_ascii_lowercase();
    let Some((top, sub)) = kind.split_once('/') else {
        return false;
    };
    match (top, sub) {
        ("text", "event-stream") => false,
        ("text", _) => true,
        (_, sub) if sub.ends_with("+json") || sub.ends_with("+xml") || sub.ends_with("+text") => {
            true
        }
        ("application", sub) => matches!(
            sub,
            "json"
                | "javascript"
                | "x-javascript"
                | "ecmascript"
                | "xml"
                | "xml-dtd"
                | "wasm"
                | "graphql"
                | "ld+json"
                | "x-ndjson"
                | "ndjson"
                | "jsonlines"
                | "yaml"
                | "x-yaml"
                | "toml"
                | "rtf"
                | "postscript"
                | "x-sh"
                | "x-httpd-php"
                | "x-tar"
                | "vnd.ms-fontobject"
                | "x-font-ttf"
                | "x-font-opentype"
        ),
        ("font", sub) => matches!(sub, "ttf" | "otf" | "collection" | "sfnt"),
        ("image", sub) => matches!(sub, "bmp" | "x-icon" | "vnd.microsoft.icon"),
        _ => false,
    }
}

/// Makes a strong validator weak: the bytes are other ones (RFC 9110 section 8.8.3).
fn weaken(headers: &mut HeaderMap) {
    let Some(etag) = headers.get(ETAG) else {
        return;
    };
    if etag.as_bytes().starts_with(b"W/") {
        return;
    }
    match HeaderValue::from_bytes(&[b"W/", etag.as_bytes()].concat()) {
        Ok(weak) => _ = headers.insert(ETAG, weak),
        Err(_) => _ = headers.remove(ETAG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_gain() {
        let of = |text: &'static str| is_text(&HeaderValue::from_static(text));
        for yes in [
            "text/html; charset=utf-8",
            "TEXT/plain",
            "application/json",
            "application/problem+json",
            "image/svg+xml",
            "application/wasm",
            "font/ttf",
        ] {
            assert!(of(yes), "{yes}");
        }
        for no in [
            "image/png",
            "application/grpc",
            "application/grpc+proto",
            "text/event-stream",
            "application/octet-stream",
            "font/woff2",
            "video/mp4",
            "text",
            "",
        ] {
            assert!(!of(no), "{no}");
        }
    }

    #[test]
    fn validators_get_weak() {
        for (before, after) in [("\"a\"", "W/\"a\""), ("W/\"a\"", "W/\"a\"")] {
            let mut headers = HeaderMap::new();
            headers.insert(ETAG, HeaderValue::from_static(before));
            weaken(&mut headers);
            assert_eq!(headers[ETAG], after);
        }
    }
}
