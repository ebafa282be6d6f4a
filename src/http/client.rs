//! Who the client is: the peer, or behind trusted proxies what they say, read from the right and only as far as each
//! hop is itself believed (RFC 7239 section 8.1).

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::FORWARDED;
use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;

use super::headers::{X_FORWARDED_FOR, X_FORWARDED_PROTO};
use crate::config::http::Scheme;

/// True if `address` is one of `proxies`. An IPv4 address that came over an IPv6 socket counts as IPv4.
pub fn is_trusted(address: IpAddr, proxies: &[IpNet]) -> bool {
    let address = address.to_canonical();
    proxies.iter().any(|net| net.contains(&address))
}

/// An address as a field value.
pub(super) fn address_value(address: IpAddr) -> HeaderValue {
    let text = Bytes::from(address.to_canonical().to_string());
    HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

/// The client's address and scheme as a trusted peer reports them.
///
/// `X-Forwarded-For` goes before `Forwarded`: a proxy that knows only the former hands on whatever its client wrote into
/// the latter. Entries are read from the right; the first one that is not a trusted proxy is the client. What can't be
/// read ends the walk at the last hop that could.
pub fn behind_trusted(
    peer: IpAddr,
    headers: &HeaderMap,
    proxies: &[IpNet],
) -> (IpAddr, Option<Scheme>) {
    let peer = peer.to_canonical();
    let mut proto =
        last_element(headers, &X_FORWARDED_PROTO).and_then(|text| scheme_of(text.trim()));
    let address = if headers.contains_key(&X_FORWARDED_FOR) {
        let hops =
            elements_from_right(headers, &X_FORWARDED_FOR).map(|text| node_address(text.trim()));
        walk(peer, hops, proxies)
    } else if headers.contains_key(FORWARDED) {
        if proto.is_none() {
            proto = last_element(headers, &FORWARDED)
                .and_then(|element| parameter(element, "proto"))
                .and_then(|text| scheme_of(unquote(text)));
        }
        let hops = elements_from_right(headers, &FORWARDED)
            .map(|element| parameter(element, "for").and_then(|text| node_address(unquote(text))));
        walk(peer, hops, proxies)
    } else {
        peer
    };
    (address, proto)
}

fn walk(peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>, proxies: &[IpNet]) -> IpAddr {
    let mut client = peer;
    for hop in hops {
        let Some(address) = hop else { break };
        client = address;
        if !is_trusted(address, proxies) {
            break;
        }
    }
    client
}

/// The elements of a list field over all its lines, last first. Commas inside quotes do not occur in what we read: a
/// value with one is cut there and then not understood, which ends the walk.
fn elements_from_right<'a>(
    headers: &'a HeaderMap,
    name: &http::HeaderName,
) -> impl Iterator<Item = &'a str> + use<'a> {
    let lines: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
    lines
        .into_iter()
        .rev()
        .flat_map(|line| line.to_str().unwrap_or("?").rsplit(','))
}

fn last_element<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Option<&'a str> {
    headers
        .get_all(name)
        .iter()
        .next_back()?
        .to_str()
        .ok()?
        .rsplit(',')
        .next()
}

fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    element.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim()
            .eq_ignore_ascii_case(name)
            .then_some(value.trim())
    })
}

fn unquote(text: &str) -> &str {
    text.strip_prefix('"')
        .and_then(|t| t.strip_suffix('"'))
        .unwrap_or(text)
}

/// `192.0.2.1`, `192.0.2.1:80`, `[2001:db8::1]`, `[2001:db8::1]:80`, `2001:db8::1`.
fn node_address(text: &str) -> Option<IpAddr> {
    let address = text
        .parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|a| a.ip()))
        .ok()
        .or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok())?;
    Some(address.to_canonical())
}

fn scheme_of(text: &str) -> Option<Scheme> {
    if text.eq_ignore_ascii_case("https") {
        Some(Scheme::Https)
    } else if text.eq_ignore_ascii_case("http") {
        Some(Scheme::Http)
    } else {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn client(fields: &[(&'static str, &'static str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let proxies: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let (address, scheme) = behind_trusted("10.0.0.1".parse().unwrap(), &headers, &proxies);
        match scheme {
            None => address.to_string(),
            Some(scheme) => format!("{address} {scheme:?}"),
        }
    }

    #[test]
    fn the_client_is_the_first_hop_from_the_right_that_is_not_trusted() {
        let xff = "x-forwarded-for";
        let table: &[(&[(&'static str, &'static str)], &str)] = &[
            (&[], "10.0.0.1"),
            (&[(xff, "203.0.113.7")], "203.0.113.7"),
            (&[(xff, "1.2.3.4, 203.0.113.7, 10.2.2.2")], "203.0.113.7"),
            (
                &[(xff, "1.2.3.4"), (xff, "203.0.113.7,10.2.2.2")],
                "203.0.113.7",
            ),
            (&[(xff, "10.3.3.3, 10.2.2.2")], "10.3.3.3"),
            (&[(xff, "203.0.113.7, garbage, 10.2.2.2")], "10.2.2.2"),
            (&[(xff, "[2001:db8::7]:443")], "2001:db8::7"),
            (&[(xff, "::ffff:203.0.113.7")], "203.0.113.7"),
            (
                &[(xff, "203.0.113.7"), ("forwarded", "for=1.1.1.1")],
                "203.0.113.7",
            ),
            (
                &[("forwarded", "for=192.0.2.60;proto=https;by=203.0.113.43")],
                "192.0.2.60 Https",
            ),
            (
                &[("forwarded", "for=9.9.9.9, For=\"[2001:db8:cafe::17]:4711\"")],
                "2001:db8:cafe::17",
            ),
            (&[("forwarded", "for=9.9.9.9, for=_hidden")], "10.0.0.1"),
            (&[("x-forwarded-proto", "https")], "10.0.0.1 Https"),
            (&[("x-forwarded-proto", "https, http")], "10.0.0.1 Http"),
            (&[("x-forwarded-proto", "gopher")], "10.0.0.1"),
        ];
        for (fields, expected) in table {
            assert_eq!(client(fields), *expected, "{fields:?}");
        }
    }

    #[test]
    fn a_mapped_address_is_trusted_like_its_ipv4_form() {
        let nets: Vec<IpNet> = vec!["127.0.0.0/8".parse().unwrap()];
        assert!(is_trusted("::ffff:127.0.0.1".parse().unwrap(), &nets));
        assert!(!is_trusted("::1".parse().unwrap(), &nets));
    }
}
