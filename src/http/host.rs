//! The authority a request is for: exactly one, syntactically valid, or the request is refused. Everything behind this
//! module may rely on it being ASCII, without user information, with a decimal port at most.

use std::borrow::Cow;

use http::HeaderValue;

/// Why an authority is refused (400).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the Host is not valid")]
pub struct BadHost;

/// A valid authority. Keeps the field value it came in, so that sending it on copies nothing.
#[derive(Debug, Clone)]
pub struct Host {
    value: HeaderValue,
    /// Length of the host in `value`, without port.
    len: usize,
    /// The host in lower case without a final dot, where the value is not that already.
    lower: Option<Box<str>>,
}

impl Host {
    /// Reads a `Host` field or an `:authority` (RFC 9110 section 7.2: `uri-host [":" port]`).
    ///
    /// # Errors
    /// [`BadHost`] if it is empty or anything but a name, an IPv4 or a bracketed IPv6 address with a port of digits.
    pub fn parse(value: HeaderValue) -> Result<Host, BadHost> {
        let bytes = value.as_bytes();
        let len = host_length(bytes).ok_or(BadHost)?;
        match &bytes[len..] {
            [] => {}
            [b':', port @ ..] => {
                let digits = port.iter().all(u8::is_ascii_digit);
                let number = std::str::from_utf8(port)
                    .ok()
                    .and_then(|p| p.parse::<u16>().ok());
                if !digits || (number.is_none() && !port.is_empty()) {
                    return Err(BadHost);
                }
            }
            _ => return Err(BadHost),
        }
        let host = &bytes[..len];
        let dotted = len > 1 && host.ends_with(b".");
        let lower = (dotted || host.iter().any(u8::is_ascii_uppercase)).then(|| {
            let host = if dotted { &host[..len - 1] } else { host };
            String::from_utf8_lossy(host)
                .to_ascii_lowercase()
                .into_boxed_str()
        });
        Ok(Host { value, len, lower })
    }

    /// Lower case, without port.
    pub fn name(&self) -> &str {
        match &self.lower {
            Some(lower) => lower,
            // `parse` let only ASCII through.
            None => std::str::from_utf8(&self.value.as_bytes()[..self.len]).unwrap_or_default(),
        }
    }

    /// As it came.
    pub fn value(&self) -> &HeaderValue {
        &self.value
    }

    /// The port the client named.
    pub fn port(&self) -> Option<u16> {
        let port = self.value.as_bytes().get(self.len + 1..)?;
        std::str::from_utf8(port).ok()?.parse().ok()
    }

    /// For a quoted string (`Forwarded`); a valid host has nothing to escape.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.value.as_bytes())
    }
}

/// Length of the host at the start of `bytes`; `None` if there is none or it has a character no host has.
fn host_length(bytes: &[u8]) -> Option<usize> {
    if bytes.first() == Some(&b'[') {
        let end = memchr::memchr(b']', bytes)?;
        let inner = std::str::from_utf8(&bytes[1..end]).ok()?;
        inner.parse::<std::net::Ipv6Addr>().ok()?;
        return Some(end + 1);
    }
    let end = memchr::memchr(b':', bytes).unwrap_or(bytes.len());
    let valid = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%".contains(b);
    let host = &bytes[..end];
    // One final dot is the root; what would be left before two is no name.
    let rooted = host == b"." || host.ends_with(b"..");
    (!host.is_empty() && !rooted && host.iter().all(valid)).then_some(end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn valid_ones() {
        let table = [
            ("example.com", "example.com", None),
            ("Example.COM:8080", "example.com", Some(8080)),
            ("example.com.", "example.com", None),
            ("example.com:", "example.com", None),
            ("127.0.0.1:80", "127.0.0.1", Some(80)),
            ("[::1]:443", "[::1]", Some(443)),
            ("[2001:DB8::1]", "[2001:db8::1]", None),
            ("a_b-c.d", "a_b-c.d", None),
        ];
        for (text, name, port) in table {
            let host = Host::parse(HeaderValue::from_static(text)).unwrap();
            assert_eq!((host.name(), host.port()), (name, port), "{text}");
        }
    }

    #[test]
    fn invalid_ones() {
        for text in [
            "",
            ".",
            "..",
            "a..",
            "a..:80",
            ":80",
            "a b",
            "a,b",
            "user@host",
            "a/b",
            "a\\b",
            "a:b",
            "a:80:80",
            "a:+80",
            "a:65536",
            "[::1",
            "[::1]x",
            "[zz]",
            "a#b",
            "a?b",
            "a\"b",
            "a<b",
            "a, b",
        ] {
            assert!(
                Host::parse(HeaderValue::from_str(text).unwrap()).is_err(),
                "{text:?}"
            );
        }
        assert!(Host::parse(HeaderValue::from_bytes("é".as_bytes()).unwrap()).is_err());
    }

    #[test]
    fn a_lower_case_name_is_not_copied() {
        assert!(
            Host::parse(HeaderValue::from_static("example.com:80"))
                .unwrap()
                .lower
                .is_none()
        );
    }
}
