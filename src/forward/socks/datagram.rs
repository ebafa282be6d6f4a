//! The header of a datagram between client and relay (RFC 1928 section 7).

use std::net::SocketAddr;

use super::v5::{To, put, to};

/// Bytes of the longest header that we write.
pub const HEAD: usize = 3 + 1 + 16 + 2;

/// Where a client's datagram is to go, and what it holds. `None`: no header, or a fragment, of which we have none.
pub fn read(bytes: &[u8]) -> Option<(To, &[u8])> {
    let [0, 0, 0, rest @ ..] = bytes else {
        return None;
    };
    let (to, length) = to(rest).ok()??;
    Some((to, rest.get(length..)?))
}

/// The header of a datagram that has come from `from`, into `out`.
pub fn write(from: SocketAddr, out: &mut Vec<u8>) {
    out.extend([0, 0, 0]);
    put(from, out);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fragments_and_rubbish_are_none() {
        let whole = b"\0\0\0\x01\x7f\0\0\x01\0\x35data";
        assert_eq!(read(whole).unwrap().1, b"data");
        assert!(read(b"\0\0\x01\x01\x7f\0\0\x01\0\x35data").is_none());
        assert!(read(b"\0\x01\0\x01\x7f\0\0\x01\0\x35data").is_none());
        for length in 0..10 {
            assert!(read(&whole[..length]).is_none(), "{length}");
        }
        assert_eq!(read(&whole[..10]).unwrap().1, b"");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(from in any::<SocketAddr>(), data in prop::collection::vec(any::<u8>(), 0..20)) {
            let mut bytes = Vec::new();
            write(from, &mut bytes);
            prop_assert!(bytes.len() <= HEAD);
            bytes.extend(&data);
            let (to, rest) = read(&bytes).unwrap();
            let canonical = SocketAddr::new(from.ip().to_canonical(), from.port());
            prop_assert_eq!(to, To::Address(canonical));
            prop_assert_eq!(rest, &data[..]);
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }
    }
}
