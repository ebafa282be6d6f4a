//! What names destinations: ranges, names, ports.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::super::check::shorten;
use super::super::scalar::{HostPattern, Wrong, cidr};

/// Destinations: a place, a port, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    pub place: Place,
    /// `None`: any.
    pub port: Option<u16>,
}

/// Where a destination is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Anywhere,
    /// An address, as a client gave it or as it was found for its name. IPv4 ranges stand for IPv6 forms of their addresses
    /// too.
    Net(IpNet),
    /// A name as a client gave it: lower case, without a dot at its end.
    Name(Arc<str>),
    /// Any name below this one.
    Below(Arc<str>),
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place, self.port) {
            (Place::Anywhere, None) => f.write_str("*")?,
            (Place::Anywhere, Some(_)) => {}
            (Place::Net(net @ IpNet::V6(_)), Some(_)) => write!(f, "[{net}]")?,
            (Place::Net(net), _) => net.fmt(f)?,
            (Place::Name(name), _) => f.write_str(name)?,
            (Place::Below(name), _) => write!(f, "*.{name}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl Pattern {
    /// Parses `10.0.0.0/8`, `::1`, `host`, `*.host`, `*` or `:25`, or one of them with `:port`; IPv6 with a port is in
    /// brackets.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Pattern, Wrong> {
        let wrong = || {
            Wrong::new(format!("`{}` is not a destination", shorten(text))).help(
                "a range (`10.0.0.0/8`), a name (`example.com`, `*.example.com`), a port (`:25`), or both (`example.com:25`, `[::1]:25`)",
            )
        };
        if let Ok(net) = cidr(text) {
            return Ok(Pattern {
                place: Place::Net(canonical(net)),
                port: None,
            });
        }
        let (place, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (net, port) = rest.split_once(']').ok_or_else(wrong)?;
                let net = cidr(net).ok().filter(|n| matches!(n, IpNet::V6(_)));
                let place = Place::Net(canonical(net.ok_or_else(wrong)?));
                let port = match port {
                    "" => None,
                    port => Some(port.strip_prefix(':').ok_or_else(wrong)?),
                };
                (place, port)
            }
            None => {
                let (host, port) = match text.rsplit_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (text, None),
                };
                let place = match (host, port) {
                    ("", None) => return Err(wrong()),
                    ("" | "*", _) => Place::Anywhere,
                    _ => place(host).map_err(|_| wrong())?,
                };
                (place, port)
            }
        };
        let port = match port {
            None => None,
            Some(digits) => {
                let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                let port = digits.parse::<u16>().ok().filter(|p| plain && *p > 0);
                Some(port.ok_or_else(wrong)?)
            }
        };
        Ok(Pattern { place, port })
    }
}

fn place(host: &str) -> Result<Place, Wrong> {
    if let Ok(net) = cidr(host) {
        // With a port, an address of IPv6 has brackets.
        return match net {
            IpNet::V4(_) => Ok(Place::Net(net)),
            IpNet::V6(_) => Err(Wrong::new("")),
        };
    }
    // What looks like an address, and is none, is no name either.
    let last = host.trim_end_matches('.').rsplit('.').next();
    if last.is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit())) || host.contains('/') {
        return Err(Wrong::new(""));
    }
    match HostPattern::parse(host)? {
        HostPattern::Exact(name) => Ok(Place::Name(name.into())),
        HostPattern::Below(name) => Ok(Place::Below(name.into())),
        HostPattern::Regex(_) => Err(Wrong::new("")),
    }
}

/// The IPv4 range that one of mapped addresses stands for.
fn canonical(net: IpNet) -> IpNet {
    match (net.addr().to_canonical(), net.prefix_len()) {
        (v4 @ IpAddr::V4(_), bits @ 96..) if net.addr().is_ipv6() => {
            IpNet::new(v4, bits - 96).unwrap_or(net)
        }
        _ => net,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_are_places_ports_or_both() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.1.2.3:80", "10.1.2.3/32:80"),
            ("10.0.0.0/8:80", "10.0.0.0/8:80"),
            ("::1", "::1/128"),
            ("[::1]:80", "[::1/128]:80"),
            ("[fd00::/8]:80", "[fd00::/8]:80"),
            ("::ffff:127.0.0.1", "127.0.0.1/32"),
            ("Example.COM.", "example.com"),
            ("*.example.com:443", "*.example.com:443"),
            (":25", ":25"),
            ("*:25", ":25"),
            ("*", "*"),
        ] {
            assert_eq!(Pattern::parse(text).unwrap().to_string(), shown, "{text}");
        }
        for wrong in [
            "",
            ":",
            ":0",
            ":65536",
            ":+1",
            "a:b",
            "a:",
            "[::1",
            "[1.2.3.4]:1",
            "1.2.3",
            "1.2.3.4/33",
            "a/8",
            "http://a",
            "~a",
            "a b",
            "*.",
            "::1:80x",
        ] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(text in "[a-z0-9.:*/\\[\\]]{0,20}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                prop_assert_eq!(Pattern::parse(&pattern.to_string()), Ok(pattern));
            }
        }
    }
}
