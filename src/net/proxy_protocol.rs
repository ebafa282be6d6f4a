//! The header of the PROXY protocol as it is written (HAProxy's specification, versions 1 and 2): once, before anything else of
//! a connection, or in front of the first datagram of a session, so that whoever is behind us knows the client's address.
//! Reading it is `listen::proxy_protocol`.

use std::net::{IpAddr, SocketAddr};

use proxy_header::{ProxiedAddress, ProxyHeader};

use crate::config::agent::ProxyVersion;

/// Says who the client is and which address it reached. `None` (a health check, a client of a unix socket): that this
/// connection speaks for itself (`PROXY UNKNOWN`, LOCAL).
pub fn header(version: ProxyVersion, client: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let header = match client {
        Some((source, destination)) => {
            let (source, destination) = of_one_family(source, destination);
            ProxyHeader::with_address(ProxiedAddress::stream(source, destination))
        }
        None => ProxyHeader::with_local(),
    };
    // The longest one is a line of version 1.
    let mut out = Vec::with_capacity(107);
    let written = match version {
        ProxyVersion::V1 => header.encode_v1(&mut out),
        ProxyVersion::V2 => header.encode_v2(&mut out),
    };
    debug_assert!(written.is_ok(), "two addresses of one family always fit");
    out
}

/// The same in front of a session's first datagram, in version 2: the other one is for streams alone. At most 52 bytes.
pub fn datagram_header(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (source, destination) = of_one_family(source, destination);
    let address = ProxiedAddress::datagram(source, destination);
    let mut out = Vec::with_capacity(52);
    let written = ProxyHeader::with_address(address).encode_v2(&mut out);
    debug_assert!(written.is_ok(), "two addresses of one family always fit");
    out
}

/// A header has room for one family: an IPv4 address beside an IPv6 one is written as IPv6 (RFC 4291 section 2.5.5.2).
fn of_one_family(a: SocketAddr, b: SocketAddr) -> (SocketAddr, SocketAddr) {
    let canonical =
        |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (a, b) = (canonical(a), canonical(b));
    if a.is_ipv4() == b.is_ipv4() {
        return (a, b);
    }
    let v6 = |address: SocketAddr| match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (v6(a), v6(b))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proxy_header::ParseConfig;

    use super::*;

    fn pair(a: &str, b: &str) -> Option<(SocketAddr, SocketAddr)> {
        Some((a.parse().unwrap(), b.parse().unwrap()))
    }

    #[test]
    fn that_of_datagrams_says_so() {
        for (source, destination, kind, length) in [
            ("192.0.2.7:1", "198.51.100.1:2", 0x12, 28),
            ("[2001:db8::7]:1", "198.51.100.1:2", 0x22, 52),
        ] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let bytes = datagram_header(source, destination);
            assert_eq!((bytes[12], bytes[13], bytes.len()), (0x21, kind, length));
            let (header, _) = ProxyHeader::parse(&bytes, ParseConfig::default()).unwrap();
            assert_eq!(header.proxied_address().unwrap().source, source);
        }
    }

    #[test]
    fn both_versions_say_the_same_of_both_families() {
        for (client, line) in [
            (
                pair("192.0.2.7:4711", "198.51.100.1:443"),
                "PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n",
            ),
            (
                pair("[2001:db8::7]:1", "[2001:db8::1]:2"),
                "PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n",
            ),
            (
                pair("[::ffff:192.0.2.7]:1", "198.51.100.1:2"),
                "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
            ),
            (
                pair("192.0.2.7:1", "[2001:db8::1]:2"),
                "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 1 2\r\n",
            ),
            (None, "PROXY UNKNOWN\r\n"),
        ] {
            let v1 = header(ProxyVersion::V1, client);
            assert_eq!(String::from_utf8(v1.clone()).unwrap(), line);
            let v2 = header(ProxyVersion::V2, client);
            assert!(v2.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
            assert_eq!(v2[12], if client.is_some() { 0x21 } else { 0x20 });
            let told = |bytes: &[u8]| {
                let (header, length) = ProxyHeader::parse(bytes, ParseConfig::default()).unwrap();
                assert_eq!(length, bytes.len());
                header
                    .proxied_address()
                    .map(|told| (told.source, told.destination))
            };
            assert_eq!(told(&v1), told(&v2));
        }
    }
}
