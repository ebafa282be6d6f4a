//! Where a client wants to go, as it said it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a name (RFC 1035 section 2.3.4), without the dot at its end.
const NAME: usize = 253;

/// Where a client wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    Address(SocketAddr),
    /// Lower case, without a dot at its end; and a port.
    Name(Box<str>, u16),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Address(address) => address.fmt(f),
            Destination::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl Destination {
    /// `host` is a name or an IP literal, IPv6 with or without brackets. `None`: it can be neither, or the port is 0.
    pub fn new(host: &str, port: u16) -> Option<Destination> {
        if port == 0 {
            return None;
        }
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let literal = match bracketed {
            Some(v6) => Some(IpAddr::V6(v6.parse::<Ipv6Addr>().ok()?)),
            None => host.parse::<IpAddr>().ok(),
        };
        match literal {
            Some(ip) => Some(Destination::Address(SocketAddr::new(ip, port))),
            None => Some(Destination::Name(name(host)?, port)),
        }
    }

    /// `None`: it is an address.
    pub fn name(&self) -> Option<&str> {
        match self {
            Destination::Address(_) => None,
            Destination::Name(name, _) => Some(name),
        }
    }

    pub fn port(&self) -> u16 {
        match self {
            Destination::Address(address) => address.port(),
            Destination::Name(_, port) => *port,
        }
    }
}

/// A name that may be looked up. Underscores are in use, though in no name of a host.
fn name(text: &str) -> Option<Box<str>> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    // No top level domain is a number; what ends in one is an address in a notation that rules on ranges would not know.
    let last = name.rsplit('.').next().unwrap_or_default();
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    if digits(last)
        || last
            .strip_prefix("0x")
            .or(last.strip_prefix("0X"))
            .is_some_and(hex)
    {
        return None;
    }
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(fits);
    (name.len() <= NAME && name.split('.').all(label)).then(|| name.to_ascii_lowercase().into())
}

/// The address itself, and the IPv4 address that is in it if there is one: mapped (RFC 4291 section 2.5.5), compatible,
/// behind NAT64 (RFC 6052) or 6to4 (RFC 3056).
pub fn forms(ip: IpAddr) -> (IpAddr, Option<Ipv4Addr>) {
    let canonical = ip.to_canonical();
    let IpAddr::V6(v6) = canonical else {
        return (canonical, None);
    };
    let octets = v6.octets();
    let v4 = |at: usize| {
        let bytes: Option<[u8; 4]> = octets.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map(Ipv4Addr::from)
    };
    let inner = match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => v4(12),
        [0x2002, ..] => v4(2),
        // `::` and `::1` are not meant by this.
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => v4(12),
        _ => None,
    };
    (canonical, inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_an_address_or_a_name_that_can_be_one() {
        for (host, shown) in [
            ("127.0.0.1", Some("127.0.0.1:80")),
            ("::1", Some("[::1]:80")),
            ("[::1]", Some("[::1]:80")),
            ("Example.COM.", Some("example.com:80")),
            ("_srv.example", Some("_srv.example:80")),
            // Resolvers take them for addresses, also those behind other proxies.
            ("2130706433", None),
            ("0x7f.1", None),
            ("127.1", None),
            ("a.0x7F", None),
            ("1.example", Some("1.example:80")),
            ("0xample", Some("0xample:80")),
            ("", None),
            (".", None),
            ("a..b", None),
            ("a\0b", None),
            ("a b", None),
            ("a/b", None),
            ("user@host", None),
            ("[127.0.0.1]", None),
            ("fe80::1%eth0", None),
            ("ä.de", None),
        ] {
            let destination = Destination::new(host, 80).map(|d| d.to_string());
            assert_eq!(destination.as_deref(), shown, "{host:?}");
        }
        assert_eq!(Destination::new("a", 0), None);
        assert!(Destination::new(&"a.".repeat(127), 1).is_some());
        assert_eq!(Destination::new(&"a.".repeat(128), 1), None);
    }

    #[test]
    fn ipv4_is_found_in_every_form() {
        for (text, inner) in [
            ("::ffff:127.0.0.1", None),
            ("64:ff9b::127.0.0.1", Some("127.0.0.1")),
            ("2002:7f00:1::", Some("127.0.0.1")),
            ("::127.0.0.1", Some("127.0.0.1")),
            ("::1", None),
            ("::", None),
            ("2001:db8::1", None),
        ] {
            let (canonical, found) = forms(text.parse().unwrap());
            assert_eq!(found.map(|ip| ip.to_string()).as_deref(), inner, "{text}");
            assert_eq!(canonical.is_ipv4(), text.starts_with("::ffff:"));
        }
    }
}
