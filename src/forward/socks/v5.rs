//! SOCKS5 (RFC 1928) and its passwords (RFC 1929).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Parsed, Reply};
use crate::forward::target::Destination;

/// First byte of all that a client says.
pub const VERSION: u8 = 5;
/// First byte of what a client says of its user.
const PASSWORD_VERSION: u8 = 1;

/// How a client may show who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    None = 0,
    Password = 2,
}

/// The methods that a client offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    pub none: bool,
    pub password: bool,
}

/// Not SOCKS5, or not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `None`: not UTF-8, which no user's name is.
    pub name: Option<String>,
    pub password: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Connect,
    Associate,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub command: Command,
    pub to: To,
}

/// The address of a request or datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// It may be one to which nobody can connect.
    Address(SocketAddr),
    Name(Destination),
    /// A name that can be none, or that has port 0.
    Nowhere,
}

impl To {
    /// `None`: nobody can connect to it.
    pub fn destination(self) -> Option<Destination> {
        match self {
            To::Address(address) if address.port() == 0 => None,
            To::Address(address) => Some(Destination::Address(address)),
            To::Name(destination) => Some(destination),
            To::Nowhere => None,
        }
    }
}

/// Reads what a client says first: the methods it offers.
///
/// # Errors
/// [`Malformed`]: there is nothing to answer.
pub fn greeting(bytes: &[u8]) -> Parsed<Offer, Malformed> {
    match bytes {
        [] => Ok(None),
        [VERSION] => Ok(None),
        [VERSION, count, rest @ ..] => {
            let count = usize::from(*count);
            let Some(methods) = rest.get(..count) else {
                return Ok(None);
            };
            let has = |method: Method| methods.contains(&(method as u8));
            let offer = Offer {
                none: has(Method::None),
                password: has(Method::Password),
            };
            Ok(Some((offer, 2 + count)))
        }
        _ => Err(Malformed),
    }
}

/// The answer to a greeting; `None`: no method will do.
pub fn choice(method: Option<Method>) -> [u8; 2] {
    [VERSION, method.map_or(0xff, |method| method as u8)]
}

/// Reads name and password.
///
/// # Errors
/// [`Malformed`]: the answer is that they are wrong.
pub fn credentials(bytes: &[u8]) -> Parsed<Credentials, Malformed> {
    match bytes {
        [] | [PASSWORD_VERSION] => Ok(None),
        [PASSWORD_VERSION, rest @ ..] => {
            let Some((name, rest)) = counted(rest) else {
                return Ok(None);
            };
            let Some((password, _)) = counted(rest) else {
                return Ok(None);
            };
            let length = 3 + name.len() + password.len();
            let credentials = Credentials {
                name: String::from_utf8(name.to_vec()).ok(),
                password: password.to_vec(),
            };
            Ok(Some((credentials, length)))
        }
        _ => Err(Malformed),
    }
}

/// The answer to name and password.
pub fn verdict(right: bool) -> [u8; 2] {
    [PASSWORD_VERSION, u8::from(!right)]
}

/// Reads a request.
///
/// # Errors
/// The reply to one that cannot be met.
pub fn request(bytes: &[u8]) -> Parsed<Request, Reply> {
    let command = match bytes {
        [VERSION, 1, ..] => Command::Connect,
        [VERSION, 3, ..] => Command::Associate,
        [] | [VERSION] => return Ok(None),
        [VERSION, ..] => return Err(Reply::NoSuchCommand),
        _ => return Err(Reply::Failed),
    };
    let Some(address) = bytes.get(3..) else {
        return Ok(None);
    };
    let found = to(address).map_err(|_| Reply::NoSuchAddressType)?;
    Ok(found.map(|(to, length)| (Request { command, to }, 3 + length)))
}

/// The reply to a request, with the address of ours that it is about.
pub fn reply(reply: Reply, bound: SocketAddr) -> Vec<u8> {
    let mut out = vec![VERSION, reply as u8, 0];
    put(bound, &mut out);
    out
}

/// The reply to a request that is not met.
pub fn refusal(code: Reply) -> Vec<u8> {
    reply(code, (Ipv4Addr::UNSPECIFIED, 0).into())
}

/// Reads type, address and port.
///
/// # Errors
/// [`Malformed`]: there is no such type.
pub fn to(bytes: &[u8]) -> Parsed<To, Malformed> {
    let (kind, rest) = match bytes.split_first() {
        Some(split) => split,
        None => return Ok(None),
    };
    let address = |ip: IpAddr, port: [u8; 2], length| {
        let address = SocketAddr::new(ip, u16::from_be_bytes(port));
        Ok(Some((To::Address(address), length)))
    };
    match kind {
        1 => match rest.split_first_chunk::<4>() {
            Some((ip, rest)) => match rest.first_chunk::<2>() {
                Some(port) => address(Ipv4Addr::from(*ip).into(), *port, 7),
                None => Ok(None),
            },
            None => Ok(None),
        },
        4 => match rest.split_first_chunk::<16>() {
            Some((ip, rest)) => match rest.first_chunk::<2>() {
                Some(port) => address(Ipv6Addr::from(*ip).into(), *port, 19),
                None => Ok(None),
            },
            None => Ok(None),
        },
        3 => {
            let Some((name, rest)) = counted(rest) else {
                return Ok(None);
            };
            let Some(port) = rest.first_chunk::<2>() else {
                return Ok(None);
            };
            let length = 4 + name.len();
            Ok(Some((named(name, u16::from_be_bytes(*port)), length)))
        }
        _ => Err(Malformed),
    }
}

/// A name, or an address that came as one.
pub(super) fn named(name: &[u8], port: u16) -> To {
    let destination = std::str::from_utf8(name)
        .ok()
        .and_then(|name| Destination::new(name, port));
    match destination {
        Some(Destination::Address(address)) => To::Address(address),
        Some(name) => To::Name(name),
        None => To::Nowhere,
    }
}

/// Writes type, address and port.
pub fn put(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            out.push(1);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(4);
            out.extend(ip.octets());
        }
    }
    out.extend(address.port().to_be_bytes());
}

/// Bytes behind a byte that counts them, and what follows.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (count, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*count))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::forward::socks::MOST;

    #[test]
    fn messages_of_the_rfc() {
        let offer = |none, password| Offer { none, password };
        assert_eq!(greeting(&[5, 1, 0]), Ok(Some((offer(true, false), 3))));
        assert_eq!(greeting(&[5, 2, 0, 2, 9]), Ok(Some((offer(true, true), 4))));
        assert_eq!(greeting(&[5, 1, 1]), Ok(Some((offer(false, false), 3))));
        assert_eq!(greeting(&[5, 0]), Ok(Some((offer(false, false), 2))));
        assert_eq!(greeting(&[4, 1]), Err(Malformed));
        let (found, length) = credentials(b"\x01\x05alice\x06secret!").unwrap().unwrap();
        assert_eq!(found.name.as_deref(), Some("alice"));
        assert_eq!((found.password.as_slice(), length), (&b"secret"[..], 14));
        assert_eq!(credentials(&[5, 1]), Err(Malformed));
        let (found, length) = request(b"\x05\x01\x00\x01\x7f\0\0\x01\0\x50..")
            .unwrap()
            .unwrap();
        assert_eq!(found.to.destination().unwrap().to_string(), "127.0.0.1:80");
        assert_eq!((found.command, length), (Command::Connect, 10));
        let named = |name: &str| {
            let mut bytes = vec![5, 3, 0, 3, u8::try_from(name.len()).unwrap()];
            bytes.extend(name.as_bytes());
            bytes.extend([1, 187]);
            let (found, length) = request(&bytes).unwrap().unwrap();
            assert_eq!((found.command, length), (Command::Associate, bytes.len()));
            found.to.destination().map(|d| d.to_string())
        };
        assert_eq!(named("Example.com").as_deref(), Some("example.com:443"));
        assert_eq!(named("::1").as_deref(), Some("[::1]:443"));
        assert_eq!(named(""), None);
        assert_eq!(named("a\0b"), None);
        assert_eq!(request(&[5, 2, 0]), Err(Reply::NoSuchCommand));
        assert_eq!(request(&[5, 1, 0, 2]), Err(Reply::NoSuchAddressType));
        assert_eq!(request(&[4, 1, 0, 1]), Err(Reply::Failed));
        let ours = reply(Reply::Succeeded, "[::1]:258".parse().unwrap());
        assert_eq!(
            ours,
            [
                5, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2
            ]
        );
        assert_eq!(refusal(Reply::Refused), [5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn a_message_is_found_as_soon_as_it_is_whole_and_stays_what_it_is(
            bytes in prop::collection::vec(prop_oneof![0..6u8, any::<u8>()], 0..40),
        ) {
            fn steady<T: PartialEq + std::fmt::Debug + Clone, E: PartialEq + std::fmt::Debug + Clone>(
                bytes: &[u8],
                parse: impl Fn(&[u8]) -> Parsed<T, E>,
            ) {
                let mut before: Option<Parsed<T, E>> = None;
                for length in 0..=bytes.len() {
                    let now = parse(&bytes[..length]);
                    if let Ok(Some((_, size))) = &now {
                        assert!(*size <= length && *size <= MOST);
                    }
                    if let Some(before) = &before {
                        assert_eq!(before, &now);
                    }
                    if !matches!(now, Ok(None)) {
                        before = Some(now);
                    }
                }
            }
            steady(&bytes, greeting);
            steady(&bytes, credentials);
            steady(&bytes, request);
            steady(&bytes, to);
            steady(&bytes, crate::forward::socks::v4::request);
        }

        #[test]
        fn addresses_come_back(ip in any::<IpAddr>(), port in any::<u16>()) {
            let address = SocketAddr::new(ip.to_canonical(), port);
            let mut bytes = Vec::new();
            put(address, &mut bytes);
            prop_assert_eq!(to(&bytes), Ok(Some((To::Address(address), bytes.len()))));
        }
    }
}
