//! Admission: what a request is, who sent it, and whether it is one we take at all. What passes here has one valid
//! authority, a clean path and a known client; nothing behind it asks again.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, MAX_FORWARDS, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use hyper::body::{Body as _, Incoming};

use super::client;
use super::connection::{Connection, HeadMarks};
use super::host::Host;
use super::path::Path;
use super::record::id;
use super::route::Head;
use crate::config::http::Scheme;
use crate::metrics::cell::Cell;
use crate::tls::ClientCert;
use crate::upstream::body::{BodyRules, RequestBody};
use crate::upstream::error::Error;

/// What the phases after admission know about a request besides its head.
#[derive(Debug)]
pub struct RequestContext<'a> {
    pub connection: &'a Connection,
    /// The client, after trusted proxies. One of a unix socket has no address.
    pub client: Option<IpAddr>,
    pub scheme: Scheme,
    /// Absent only on HTTP/1.0.
    pub host: Option<Host>,
    /// As it came, until a filter rewrote it.
    pub path: Path<'a>,
    /// As `path`.
    pub query: Option<Cow<'a, str>>,
    /// The path is `/` because all of what the client asked for was stripped: its own has no slash at its end.
    pub slashless: bool,
    /// The target as it came.
    pub uri: &'a Uri,
    /// It came to a forward proxy: what it asks for is all of `uri`.
    pub proxied: bool,
    pub version: Version,
    /// The client's certificate, if the server it asks wants one.
    pub client_cert: Option<&'a ClientCert>,
    /// See [`id`].
    pub request_id: HeaderValue,
    /// Whom authentication found; `None`: nobody was asked.
    pub user: Option<Arc<str>>,
}

/// What an `Expect` field asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    None,
    /// The client sends its body after `100 Continue`.
    Continue,
}

impl<'a> RequestContext<'a> {
    /// Admits a request, or says what is wrong with it. Puts the effective authority into `Host`. `proxied`: it came to a
    /// forward proxy, which has no say in paths.
    ///
    /// # Errors
    /// An error of the client's side with the status to answer.
    pub fn admit(
        connection: &'a Connection,
        parts: &mut Parts,
        uri: &'a Uri,
        marks: HeadMarks,
        proxied: bool,
    ) -> Result<RequestContext<'a>, Error> {
        if marks.ambiguous_length {
            return Err(bad("Content-Length with Transfer-Encoding, or twice"));
        }
        if parts.headers.contains_key(TRANSFER_ENCODING) {
            check_coding(parts)?;
        }
        if marks.fragment {
            return Err(bad("a fragment in the request target"));
        }
        if parts.method == Method::CONNECT && !proxied {
            return Err(Error::client(
                StatusCode::METHOD_NOT_ALLOWED,
                "CONNECT to a reverse proxy",
            ));
        }
        let host = authority(parts, uri)?;
        if uri.path() == "*" && parts.method != Method::OPTIONS {
            return Err(bad("asterisk-form with a method other than OPTIONS"));
        }
        let path = if proxied { "/" } else { uri.path() };
        let path = Path::parse(path).map_err(|error| bad(error.to_string()))?;
        let (client, scheme) = match connection.peer.ip() {
            Some(peer) if connection.trusted => {
                let proxies = &connection.spec.trusted_proxies;
                let (client, scheme) = client::behind_trusted(peer, &parts.headers, proxies);
                (Some(client), scheme)
            }
            peer => (peer, None),
        };
        let scheme = scheme.unwrap_or_else(|| connection.scheme());
        Ok(RequestContext {
            connection,
            client,
            scheme,
            host,
            path,
            query: uri.query().map(Cow::Borrowed),
            slashless: false,
            uri,
            proxied,
            version: parts.version,
            client_cert: None,
            request_id: id::of(&parts.headers, connection.trusted),
            user: None,
        })
    }

    /// The client. A proxy tells its address, seldom the port: that is 0 then.
    pub fn client_address(&self) -> Option<SocketAddr> {
        let peer = self.connection.peer;
        match self.client {
            client if client == peer.ip() => peer.address(),
            client => client.map(|ip| SocketAddr::new(ip, 0)),
        }
    }

    /// The client, and the address of ours that it reached.
    pub fn client_and_local(&self) -> Option<(SocketAddr, SocketAddr)> {
        Some((self.client_address()?, self.connection.local?))
    }

    /// Lower case, without port; empty if the request named none.
    pub fn host_name(&self) -> &str {
        self.host.as_ref().map_or("", Host::name)
    }

    /// What routing may look at.
    pub fn head<'h>(&'h self, parts: &'h Parts) -> Head<'h> {
        Head {
            method: &parts.method,
            host: self.host_name(),
            path: &self.path.decoded,
            query: self.query.as_deref(),
            headers: &parts.headers,
            scheme: self.scheme,
            remote: self.client,
        }
    }

    /// Path and query to send on.
    pub fn target(&self) -> Cow<'_, str> {
        match (self.as_received(), &self.query) {
            (Some(target), _) => Cow::Borrowed(target.as_str()),
            (None, None) => Cow::Borrowed(&self.path.forward),
            (None, Some(query)) => Cow::Owned(format!("{}?{query}", self.path.forward)),
        }
    }

    /// The received path and query, if it can be sent on just so.
    pub fn as_received(&self) -> Option<&PathAndQuery> {
        let target = self.uri.path_and_query()?;
        // `http://host?query` has a query without a path.
        let whole = matches!(target.as_str().as_bytes(), [b'/' | b'*', ..]);
        (whole && matches!(self.path.forward, Cow::Borrowed(_))).then_some(target)
    }

    /// The body as it is sent on, with `fields` that tell of it. `limit` in bytes; `cell`: where they are counted.
    pub fn sent_on(
        &self,
        fields: &mut HeaderMap,
        body: Incoming,
        expectation: Expectation,
        limit: Option<u64>,
        cell: Option<Arc<Cell>>,
    ) -> RequestBody {
        if body.is_end_stream() {
            if expectation == Expectation::Continue {
                fields.remove(EXPECT);
            }
            return RequestBody::empty();
        }
        if !fields.contains_key(CONTENT_LENGTH) {
            // Said outright: hyper sends a GET without a length as one without a body.
            fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let rules = BodyRules {
            limit,
            timeout: self.connection.spec.body_timeout,
            expect_continue: expectation == Expectation::Continue,
            finished: self.connection.expect_end_of_body(),
            cell,
        };
        RequestBody::new(body, rules)
    }
}

fn bad(detail: impl Into<String>) -> Error {
    Error::client(StatusCode::BAD_REQUEST, detail)
}

/// `Transfer-Encoding` may be `chunked` once and nothing else: we take the coding off and put our own on, so any other
/// coding would reach the origin without its label.
fn check_coding(parts: &Parts) -> Result<(), Error> {
    let mut codings = parts
        .headers
        .get_all(TRANSFER_ENCODING)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .map(|coding| coding.trim_ascii());
    let chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    match (codings.next(), codings.next()) {
        (Some(only), None) if chunked(only) => Ok(()),
        (Some(first), Some(second)) if chunked(first) && chunked(second) => {
            Err(bad("chunked twice"))
        }
        _ => Err(Error::client(
            StatusCode::NOT_IMPLEMENTED,
            "a transfer coding other than chunked",
        )),
    }
}

/// The one authority: of the target if it has one (absolute-form, `:authority`), else of `Host` (RFC 9112 section 3.2).
fn authority(parts: &mut Parts, uri: &Uri) -> Result<Option<Host>, Error> {
    let mut lines = parts.headers.get_all(HOST).iter();
    let field = lines.next().cloned();
    if lines.next().is_some() {
        return Err(bad("more than one Host"));
    }
    let http1 = parts.version < Version::HTTP_2;
    // Older clients leave it out of a CONNECT, where it says nothing new.
    if field.is_none() && parts.version == Version::HTTP_11 && parts.method != Method::CONNECT {
        return Err(bad("no Host"));
    }
    if http1
        && let Some(scheme) = uri.scheme_str()
        && !(scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
    {
        return Err(bad("a target of another scheme"));
    }
    let Some(named) = uri.authority() else {
        return match field {
            Some(value) => Host::parse(value)
                .map(Some)
                .map_err(|error| bad(error.to_string())),
            None if http1 => Ok(None),
            None => Err(bad("no authority")),
        };
    };
    let value = match field {
        // Nearly always equal: no copy then.
        Some(value) if value.as_bytes() == named.as_str().as_bytes() => value,
        _ => {
            let value = HeaderValue::from_str(named.as_str())
                .map_err(|_| bad("the authority is not valid"))?;
            parts.headers.insert(HOST, value.clone());
            value
        }
    };
    Host::parse(value)
        .map(Some)
        .map_err(|error| bad(error.to_string()))
}

/// Reads `Expect` (RFC 9110 section 10.1.1); HTTP/1.0 has none, and HTTP/2 has no way for us to send a 100.
///
/// # Errors
/// 417 for an expectation other than `100-continue`.
pub fn expectation(parts: &mut Parts) -> Result<Expectation, Error> {
    let Some(value) = parts.headers.get(EXPECT) else {
        return Ok(Expectation::None);
    };
    if parts.version == Version::HTTP_10 {
        parts.headers.remove(EXPECT);
        return Ok(Expectation::None);
    }
    if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        return Err(Error::client(
            StatusCode::EXPECTATION_FAILED,
            "an expectation other than 100-continue",
        ));
    }
    if parts.version == Version::HTTP_2 {
        parts.headers.remove(EXPECT);
        return Ok(Expectation::None);
    }
    Ok(Expectation::Continue)
}

/// Counts `Max-Forwards` down on `TRACE` and `OPTIONS` (RFC 9110 section 7.6.2). `Ok(true)`: it must not be sent on.
///
/// # Errors
/// 400 if it is not a number.
pub fn last_forward(parts: &mut Parts) -> Result<bool, Error> {
    if parts.method != Method::TRACE && parts.method != Method::OPTIONS {
        return Ok(false);
    }
    let Some(value) = parts.headers.get(MAX_FORWARDS) else {
        return Ok(false);
    };
    let left: u64 = value
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| bad("Max-Forwards is not a number"))?;
    match left.checked_sub(1) {
        None => Ok(true),
        Some(left) => {
            parts.headers.insert(MAX_FORWARDS, HeaderValue::from(left));
            Ok(false)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::http::test_kit::{connection, spec};
    use http::Request;

    fn admit(request: http::request::Builder) -> Result<String, u16> {
        let connection = connection(spec());
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let uri = std::mem::take(&mut parts.uri);
        let admitted =
            RequestContext::admit(&connection, &mut parts, &uri, HeadMarks::default(), false);
        admitted
            .map(|cx| {
                format!(
                    "{} {} {:?}",
                    cx.host_name(),
                    cx.target(),
                    parts.headers.get(HOST)
                )
            })
            .map_err(|error| error.status().as_u16())
    }

    fn get(uri: &str) -> http::request::Builder {
        Request::get(uri)
    }

    #[test]
    fn exactly_one_valid_authority() {
        assert_eq!(admit(get("/a")), Err(400));
        assert_eq!(
            admit(get("/a").version(Version::HTTP_10)),
            Ok(" /a None".into())
        );
        assert_eq!(
            admit(get("/a").header("host", "A.test:80")),
            Ok("a.test /a Some(\"A.test:80\")".into())
        );
        assert_eq!(
            admit(get("/a").header("host", "a").header("host", "a")),
            Err(400)
        );
        assert_eq!(admit(get("/a").header("host", "")), Err(400));
        assert_eq!(admit(get("/a").header("host", "a b")), Err(400));
        assert_eq!(
            admit(get("http://b.test/x").header("host", "a")),
            Ok("b.test /x Some(\"b.test\")".into())
        );
        assert_eq!(
            admit(get("http://user@b.test/x").header("host", "a")),
            Err(400)
        );
        assert_eq!(admit(get("ftp://b.test/x").header("host", "a")), Err(400));
        let h2 = |builder: http::request::Builder| admit(builder.version(Version::HTTP_2));
        assert_eq!(
            h2(get("http://b.test/x").header("host", "a")),
            Ok("b.test /x Some(\"b.test\")".into())
        );
        assert_eq!(
            h2(get("/x").header("host", "a")),
            Ok("a /x Some(\"a\")".into())
        );
        assert_eq!(h2(get("/x")), Err(400));
    }

    #[test]
    fn targets_that_are_refused() {
        let host = |builder: http::request::Builder| admit(builder.header("host", "a"));
        assert_eq!(host(Request::options("*")), Ok("a * Some(\"a\")".into()));
        assert_eq!(host(get("*")), Err(400));
        assert_eq!(host(get("/a%00b")), Err(400));
        assert_eq!(host(get("/%ff")), Err(400));
        assert_eq!(host(Request::connect("a:80")), Err(405));
    }

    #[test]
    fn the_target_is_sent_on_as_it_came_less_dot_segments() {
        let host = |uri: &str| admit(get(uri).header("host", "a")).unwrap();
        assert_eq!(host("/a%20b?x=1&y=%2e"), "a /a%20b?x=1&y=%2e Some(\"a\")");
        assert_eq!(host("/a/../b?x=/../y"), "a /b?x=/../y Some(\"a\")");
        assert_eq!(host("/a/..?"), "a /? Some(\"a\")");
        assert_eq!(host("http://a"), "a / Some(\"a\")");
        assert_eq!(host("http://a?q"), "a /?q Some(\"a\")");
    }

    #[test]
    fn max_forwards_counts_down() {
        let (mut parts, ()) = Request::options("/")
            .header("max-forwards", "1")
            .body(())
            .unwrap()
            .into_parts();
        assert!(!last_forward(&mut parts).unwrap());
        assert_eq!(parts.headers[MAX_FORWARDS], "0");
        assert!(last_forward(&mut parts).unwrap());
        parts.method = Method::GET;
        assert!(!last_forward(&mut parts).unwrap());
    }
}
