//! `websocket` of a TCP listener: where, and at which path, each of its connections becomes a websocket.

use ::http::HeaderValue;
use ::http::uri::PathAndQuery;

use super::super::check::shorten;
use super::super::scalar::Wrong;

/// Checked `websocket`: what its handshakes ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebsocketSpec {
    /// With its query.
    pub path: PathAndQuery,
    /// `Host`, as the URL has it. `None`: the target's own address.
    pub host: Option<HeaderValue>,
}

/// As it is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// The URL of HTTP that stands for the upstream; `None`: the listener names one.
    pub(super) url: Option<String>,
    pub(super) spec: WebsocketSpec,
}

impl Written {
    /// `ws://host[:port][/path]` or `wss://…` (RFC 6455 section 3), or a path alone.
    pub(super) fn parse(text: &str) -> Result<Written, Wrong> {
        if text.starts_with('/') {
            let path = path(text)?;
            return Ok(Written {
                url: None,
                spec: WebsocketSpec { path, host: None },
            });
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let (scheme, port) = match scheme {
            "ws" => ("http", ":80"),
            "wss" => ("https", ":443"),
            "http" | "https" => {
                let message = format!("`{scheme}://` is no websocket's URL");
                let help = "write `ws://`, or `wss://` for TLS";
                return Err(Wrong::new(message).help(help));
            }
            _ => {
                let message = format!("`{}` is not the URL of a websocket", shorten(text));
                let help = "such as `wss://host/path`; or, beside an `upstream`, the path alone";
                return Err(Wrong::new(message).help(help));
            }
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let host = authority.strip_suffix(port).unwrap_or(authority);
        let host = HeaderValue::try_from(host)
            .ok()
            .filter(|h| h.to_str().is_ok_and(|h| !h.is_empty()));
        let Some(host) = host else {
            let message = format!("`{}` is no host", shorten(authority));
            return Err(Wrong::new(message));
        };
        let path = match rest.starts_with('/') {
            true => path(rest)?,
            false => path(&format!("/{rest}"))?,
        };
        Ok(Written {
            url: Some(format!("{scheme}://{authority}")),
            spec: WebsocketSpec {
                path,
                host: Some(host),
            },
        })
    }
}

fn path(text: &str) -> Result<PathAndQuery, Wrong> {
    let wrong = || Wrong::new(format!("`{}` is no path to ask for", shorten(text)));
    if text.contains('#') {
        return Err(wrong().help("a websocket's URL has no fragment"));
    }
    let parsed = PathAndQuery::try_from(text)
        .ok()
        .filter(|_| text.is_ascii());
    parsed.ok_or_else(|| wrong().help("it begins with `/` and is percent-encoded"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_an_upstream_a_host_and_a_path() {
        let parse = |text: &str| {
            let Written { url, spec } = Written::parse(text).ok()?;
            let host = spec.host.map(|host| host.to_str().unwrap().to_owned());
            Some((url, host, spec.path.to_string()))
        };
        let is = |url: &str, host: &str, path: &str| {
            Some((Some(url.to_owned()), Some(host.to_owned()), path.to_owned()))
        };
        assert_eq!(parse("ws://a.test"), is("http://a.test", "a.test", "/"));
        assert_eq!(
            parse("wss://a.test:443/x/y?z=1"),
            is("https://a.test:443", "a.test", "/x/y?z=1")
        );
        assert_eq!(
            parse("wss://[::1]:80?q"),
            is("https://[::1]:80", "[::1]:80", "/?q")
        );
        assert_eq!(parse("/a?b"), Some((None, None, "/a?b".to_owned())));
        for wrong in [
            "",
            "a",
            "a.test:80",
            "http://a/",
            "https://a",
            "WS://a",
            "ws://",
            "ws:///x",
            "ws://a/#b",
            "ws://a/b c",
            "ws://a/\u{e9}",
            "/a b",
            "?a",
        ] {
            assert!(Written::parse(wrong).is_err(), "{wrong}");
        }
    }
}
