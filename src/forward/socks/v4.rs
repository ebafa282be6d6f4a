//! SOCKS4, and 4a with names: no RFC has them. The user in a request proves nothing.

use std::net::{Ipv4Addr, SocketAddr};

use super::Parsed;
use super::v5::{To, named};

/// First byte of all that a client says.
pub const VERSION: u8 = 4;
/// Bytes of a user, and of a name.
const TEXT: usize = 255;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub to: To,
}

/// What cannot be met: the answer is [`REFUSED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// The answer to a request that was met.
pub const GRANTED: [u8; 8] = [0, 0x5a, 0, 0, 0, 0, 0, 0];
/// The answer to a request that was not, for whatever reason.
pub const REFUSED: [u8; 8] = [0, 0x5b, 0, 0, 0, 0, 0, 0];

/// Reads a request.
///
/// # Errors
/// [`Malformed`].
pub fn request(bytes: &[u8]) -> Parsed<Request, Malformed> {
    match bytes {
        [] | [VERSION] => return Ok(None),
        // CONNECT; there is no BIND.
        [VERSION, 1, ..] => {}
        _ => return Err(Malformed),
    }
    let Some((head, rest)) = bytes.split_first_chunk::<8>() else {
        return Ok(None);
    };
    let [_, _, p1, p0, a, b, c, d] = *head;
    let port = u16::from_be_bytes([p1, p0]);
    let Some(user) = text(rest)? else {
        return Ok(None);
    };
    let length = 8 + user.len() + 1;
    // 4a: an address that no host has stands for a name behind the user.
    if (a, b, c) == (0, 0, 0) && d != 0 {
        let Some(name) = text(rest.get(user.len() + 1..).unwrap_or_default())? else {
            return Ok(None);
        };
        let to = named(name, port);
        return Ok(Some((Request { to }, length + name.len() + 1)));
    }
    let to = To::Address(SocketAddr::from((Ipv4Addr::new(a, b, c, d), port)));
    Ok(Some((Request { to }, length)))
}

/// The bytes before the first zero; `None`: it must still come.
fn text(bytes: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    match bytes.iter().take(TEXT + 1).position(|b| *b == 0) {
        Some(end) => Ok(bytes.get(..end)),
        None if bytes.len() > TEXT => Err(Malformed),
        None => Ok(None),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::forward::socks::MOST;

    #[test]
    fn requests_have_an_address_or_a_name() {
        let to = |bytes: &[u8]| {
            let (found, length) = request(bytes).unwrap().unwrap();
            (found.to.destination().map(|d| d.to_string()), length)
        };
        let plain = b"\x04\x01\0\x50\x7f\0\0\x01me\0rest";
        assert_eq!(to(plain), (Some("127.0.0.1:80".into()), 11));
        let named = b"\x04\x01\x01\xbb\0\0\0\x01\0Example.com\0rest";
        assert_eq!(to(named), (Some("example.com:443".into()), 21));
        assert_eq!(to(b"\x04\x01\0\x50\0\0\0\x01\0\0").0, None);
        assert_eq!(to(b"\x04\x01\0\0\x01\x02\x03\x04\0").0, None);
        // 0.0.0.0 is an address, whatever it is good for.
        assert_eq!(
            to(b"\x04\x01\0\x50\0\0\0\0\0").0.as_deref(),
            Some("0.0.0.0:80")
        );
        assert_eq!(request(b"\x04\x02\0\x50"), Err(Malformed));
        let endless = |head: &[u8]| [head, &[b'x'; MOST]].concat();
        assert_eq!(
            request(&endless(b"\x04\x01\0\x50\x7f\0\0\x01")),
            Err(Malformed)
        );
        assert_eq!(
            request(&endless(b"\x04\x01\0\x50\0\0\0\x01\0")),
            Err(Malformed)
        );
    }
}
