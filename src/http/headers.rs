//! Fields that an intermediary must take away or set (RFC 9110 section 7.6, RFC 7239). Order matters: first everything
//! is stripped that the peer could abuse, then ours is set, so a client can't name our fields in `Connection` to have
//! them removed.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, FORWARDED, HOST, TE, TRAILER, VARY, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Version};

use super::connection::Connection;
use super::host::Host;
use super::websocket;
use crate::config::http::Scheme;
use crate::upstream::error::{Error, Kind};

pub static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Our name in `Via`.
const PSEUDONYM: &str = "evergate";
/// So many passages through us (or our like) and it is a loop: each adds one entry, so every loop gets there, and no
/// chain of gateways that makes sense is that long.
const MOST_PASSAGES: usize = 16;

/// What a request's framing and negotiation fields said before they were stripped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `TE: trailers`: the client takes trailers.
    pub trailers: bool,
    /// It asks for a websocket on this connection.
    pub websocket: bool,
}

/// Takes from a request what must not be sent on: hop-by-hop fields and those `Connection` names (but for the ones that
/// carry meaning end to end), credentials meant for a proxy, `Proxy` (httpoxy), and names with `_`, which many origins
/// can't tell from `-`. From an untrusted peer also all it says about other hops.
pub fn strip_request(headers: &mut HeaderMap, trusted: bool) -> Wishes {
    let wishes = Wishes {
        trailers: lists_token(headers, &TE, "trailers"),
        websocket: websocket::is_upgrade(headers),
    };
    strip(headers, |name| match name {
        "proxy" | "proxy-authorization" | "http2-settings" => true,
        "forwarded" | "x-real-ip" => !trusted,
        _ if name.starts_with("x-forwarded-") => !trusted,
        _ => memchr::memchr(b'_', name.as_bytes()).is_some(),
    });
    wishes
}

/// The same for a request to a forward proxy, whose client chose the origin and is known to it: only what was meant for this
/// hop is taken.
pub fn strip_proxied(headers: &mut HeaderMap) -> Wishes {
    let wishes = Wishes {
        trailers: lists_token(headers, &TE, "trailers"),
        websocket: false,
    };
    strip(headers, |name| {
        matches!(name, "proxy" | "proxy-authorization" | "http2-settings")
    });
    wishes
}

/// Takes from a response what was meant for this hop only.
pub fn strip_response(headers: &mut HeaderMap) {
    strip(headers, |name| name == "proxy-authenticate");
}

/// Takes away the hop-by-hop fields and those that `drops`. One walk over what is there: most messages have none of them,
/// so that looking each one up would cost more.
fn strip(headers: &mut HeaderMap, drops: impl Fn(&str) -> bool) {
    let mut dropped: Vec<HeaderName> = Vec::new();
    let mut connection = false;
    for name in headers.keys() {
        match name.as_str() {
            "connection" => connection = true,
            "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade" => {
                dropped.push(name.clone());
            }
            text if drops(text) => dropped.push(name.clone()),
            _ => {}
        }
    }
    if connection {
        strip_named_by_connection(headers);
    }
    for name in &dropped {
        headers.remove(name);
    }
}

fn strip_named_by_connection(headers: &mut HeaderMap) {
    let mut named: Vec<HeaderName> = Vec::new();
    for line in headers.get_all(CONNECTION) {
        for token in line.as_bytes().split(|b| *b == b',') {
            let token = token.trim_ascii();
            // The everyday ones name no field, or one that goes anyway.
            if token.eq_ignore_ascii_case(b"keep-alive") || token.eq_ignore_ascii_case(b"close") {
                continue;
            }
            if let Ok(name) = HeaderName::from_bytes(token)
                && !is_protected(&name)
            {
                named.push(name);
            }
        }
    }
    headers.remove(CONNECTION);
    for name in named {
        headers.remove(name);
    }
}

/// End-to-end fields that `Connection` may not have removed: framing, authority, identity, and what we set ourselves.
fn is_protected(name: &HeaderName) -> bool {
    use http::header::{
        AUTHORIZATION, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ORIGIN, SET_COOKIE,
    };
    [
        HOST,
        CONTENT_LENGTH,
        CONTENT_TYPE,
        CONTENT_ENCODING,
        CONTENT_RANGE,
        AUTHORIZATION,
        COOKIE,
        SET_COOKIE,
        ORIGIN,
        FORWARDED,
        VIA,
        TRAILER,
    ]
    .contains(name)
        || name.as_str().starts_with("x-forwarded-")
}

/// True if a list field has `token`, whatever parameters follow it.
pub(super) fn lists_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|line| {
        line.as_bytes().split(|b| *b == b',').any(|element| {
            let bare = element.split(|b| *b == b';').next().unwrap_or_default();
            bare.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
        })
    })
}

/// Adds a name to `Vary`, unless it is there or everything is.
pub(super) fn add_vary(headers: &mut HeaderMap, name: &'static str) {
    if lists_token(headers, &VARY, name) || lists_token(headers, &VARY, "*") {
        return;
    }
    headers.append(VARY, HeaderValue::from_static(name));
}

/// Says who asks and how: `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded`. Behind a trusted peer the lists go on
/// and what it said about scheme and host stands.
pub fn set_forwarded(
    headers: &mut HeaderMap,
    connection: &Connection,
    host: Option<&Host>,
    scheme: Scheme,
) {
    let peer = connection.peer_text();
    let previous = if connection.trusted {
        joined(headers, &X_FORWARDED_FOR)
    } else {
        None
    };
    let chain = match previous {
        Some(previous) => text_value(format!(
            "{previous}, {}",
            peer.to_str().unwrap_or("unknown")
        ))
        .unwrap_or(peer),
        None => peer,
    };
    headers.insert(&X_FORWARDED_FOR, chain);
    if !(connection.trusted && headers.contains_key(&X_FORWARDED_PROTO)) {
        headers.insert(
            &X_FORWARDED_PROTO,
            HeaderValue::from_static(scheme_text(scheme)),
        );
    }
    if let Some(host) = host
        && !(connection.trusted && headers.contains_key(&X_FORWARDED_HOST))
    {
        headers.insert(&X_FORWARDED_HOST, host.value().clone());
    }
    let make = |before: Option<&str>| text_value(forwarded_element(before, connection, host));
    let previous = if connection.trusted {
        joined(headers, &FORWARDED)
    } else {
        None
    };
    let value = match previous {
        Some(before) => make(Some(&before)),
        None => connection.forwarded(host.map_or(&[], |h| h.value().as_bytes()), || make(None)),
    };
    if let Some(value) = value {
        headers.insert(FORWARDED, value);
    }
}

fn forwarded_element(before: Option<&str>, connection: &Connection, host: Option<&Host>) -> String {
    let mut out = String::with_capacity(80 + before.map_or(0, str::len));
    if let Some(before) = before {
        out.push_str(before);
        out.push_str(", ");
    }
    // Writing to a String can't fail.
    let _ = match connection.peer.ip() {
        Some(std::net::IpAddr::V4(v4)) => write!(out, "for={v4}"),
        Some(std::net::IpAddr::V6(v6)) => write!(out, "for=\"[{v6}]\""),
        // RFC 7239 section 6.2.
        None => out.write_str("for=unknown"),
    };
    if let Some(host) = host {
        out.push_str(";host=");
        let text = host.text();
        if text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
        {
            out.push_str(&text);
        } else {
            out.push('"');
            out.push_str(&text);
            out.push('"');
        }
    }
    // The scheme of this hop: `Forwarded` has one per element.
    out.push_str(";proto=");
    out.push_str(scheme_text(connection.scheme()));
    out
}

/// Adds us to `Via`.
///
/// # Errors
/// `proxy_loop_detected` when we are in it too often.
pub fn set_via(headers: &mut HeaderMap, version: Version) -> Result<(), Error> {
    let protocol = match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2.0",
        _ => "1.1",
    };
    let Some(before) = joined(headers, &VIA) else {
        let entry = match protocol {
            "1.0" => "1.0 evergate",
            "2.0" => "2.0 evergate",
            _ => "1.1 evergate",
        };
        headers.insert(VIA, HeaderValue::from_static(entry));
        return Ok(());
    };
    let passages = before
        .split(',')
        .filter(|entry| entry.split_ascii_whitespace().nth(1) == Some(PSEUDONYM))
        .count();
    if passages >= MOST_PASSAGES {
        return Err(Error::us(
            Kind::ProxyLoopDetected,
            "too many passages through this proxy in Via",
        ));
    }
    if let Some(value) = text_value(format!("{before}, {protocol} {PSEUDONYM}")) {
        headers.insert(VIA, value);
    }
    Ok(())
}

/// One `Cookie` line, as HTTP/1 wants it (RFC 9113 section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else {
        return;
    };
    let mut all = first.as_bytes().to_vec();
    for line in std::iter::once(second).chain(lines) {
        all.extend_from_slice(b"; ");
        all.extend_from_slice(line.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(all)) {
        headers.insert(COOKIE, value);
    }
}

/// All lines of a list field as one; `None` if there is none or it is not text.
fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut lines = headers
        .get_all(name)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .filter(|line| !line.is_empty());
    let first = lines.next()?;
    let mut all = Cow::Borrowed(first);
    for line in lines {
        let all = all.to_mut();
        all.push_str(", ");
        all.push_str(line);
    }
    Some(all)
}

fn text_value(text: String) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

pub(super) fn scheme_text(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::http::test_kit::{connection, local_connection, spec};

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        headers
    }

    fn show(headers: &HeaderMap) -> String {
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines.join("\n")
    }

    #[test]
    fn what_a_request_loses() {
        let mut headers = map(&[
            ("host", "a"),
            (
                "connection",
                "keep-alive, X-Secret, Host, Content-Length, authorization, te",
            ),
            ("connection", "X-Other,, X-Forwarded-For"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip;q=0.5, Trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA"),
            ("proxy-authorization", "Basic eA=="),
            ("proxy", "http://evil"),
            ("x_user", "root"),
            ("x-secret", "1"),
            ("x-other", "2"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-port", "1"),
            ("x-real-ip", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("authorization", "Bearer t"),
            ("content-length", "0"),
            ("trailer", "x-sum"),
            ("x-keep", "3"),
        ]);
        assert_eq!(
            strip_request(&mut headers, false),
            Wishes {
                trailers: true,
                websocket: false
            }
        );
        assert_eq!(
            show(&headers),
            "authorization: Bearer t\ncontent-length: 0\nhost: a\ntrailer: x-sum\nx-keep: 3"
        );
    }

    #[test]
    fn a_trusted_peer_keeps_its_word_about_other_hops() {
        let mut headers = map(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("connection", "x-forwarded-for"),
        ]);
        strip_request(&mut headers, true);
        assert_eq!(
            show(&headers),
            "x-forwarded-for: 1.2.3.4\nx-real-ip: 1.2.3.4"
        );
    }

    #[test]
    fn what_a_response_loses() {
        let mut headers = map(&[
            ("connection", "close, x-hop, set-cookie"),
            ("x-hop", "1"),
            ("set-cookie", "a=1"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2"),
            ("proxy-authenticate", "Basic"),
            ("trailer", "x-sum"),
            ("content-length", "3"),
        ]);
        strip_response(&mut headers);
        assert_eq!(
            show(&headers),
            "content-length: 3\nset-cookie: a=1\ntrailer: x-sum"
        );
    }

    #[test]
    fn an_untrusted_peer_is_all_that_is_said() {
        let connection = connection(spec());
        let mut headers = map(&[("x-forwarded-proto", "https"), ("forwarded", "for=6.6.6.6")]);
        let host = Host::parse(HeaderValue::from_static("a.test:8080")).unwrap();
        strip_request(&mut headers, connection.trusted);
        set_forwarded(&mut headers, &connection, Some(&host), Scheme::Http);
        assert_eq!(
            show(&headers),
            "forwarded: for=192.0.2.1;host=\"a.test:8080\";proto=http\nx-forwarded-for: 192.0.2.1\n\
             x-forwarded-host: a.test:8080\nx-forwarded-proto: http"
        );
    }

    #[test]
    fn a_peer_without_an_address_is_unknown_and_trusted_by_no_range() {
        let mut spec = spec();
        spec.trusted_proxies = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        let connection = local_connection(spec);
        assert!(!connection.trusted);
        let mut headers = map(&[("x-forwarded-for", "6.6.6.6")]);
        let host = Host::parse(HeaderValue::from_static("a.test")).unwrap();
        set_forwarded(&mut headers, &connection, Some(&host), Scheme::Http);
        assert_eq!(
            show(&headers),
            "forwarded: for=unknown;host=a.test;proto=http\nx-forwarded-for: unknown\n\
             x-forwarded-host: a.test\nx-forwarded-proto: http"
        );
    }

    #[test]
    fn behind_a_trusted_peer_the_lists_go_on() {
        let mut spec = spec();
        spec.trusted_proxies = vec!["192.0.2.0/24".parse().unwrap()];
        let connection = connection(spec);
        let mut headers = map(&[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "front.test"),
            ("forwarded", "for=1.1.1.1"),
        ]);
        let host = Host::parse(HeaderValue::from_static("a.test")).unwrap();
        strip_request(&mut headers, connection.trusted);
        set_forwarded(&mut headers, &connection, Some(&host), Scheme::Https);
        assert_eq!(
            show(&headers),
            "forwarded: for=1.1.1.1, for=192.0.2.1;host=a.test;proto=http\n\
             x-forwarded-for: 1.1.1.1, 2.2.2.2, 192.0.2.1\nx-forwarded-host: front.test\nx-forwarded-proto: https"
        );
    }

    #[test]
    fn via_grows_until_it_is_a_loop() {
        let mut headers = map(&[]);
        for _ in 0..MOST_PASSAGES {
            set_via(&mut headers, Version::HTTP_11).unwrap();
        }
        assert_eq!(
            set_via(&mut headers, Version::HTTP_11).unwrap_err().kind,
            Kind::ProxyLoopDetected
        );
        let mut headers = map(&[("via", "1.0 fred"), ("via", "1.1 evergate.example")]);
        set_via(&mut headers, Version::HTTP_2).unwrap();
        assert_eq!(
            show(&headers),
            "via: 1.0 fred, 1.1 evergate.example, 2.0 evergate"
        );
    }

    #[test]
    fn cookies_of_several_fields_become_one() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut headers);
        assert_eq!(show(&headers), "cookie: a=1; b=2; c=3");
    }
}
