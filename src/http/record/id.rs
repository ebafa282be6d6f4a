//! The request id: taken from a proxy in front that is trusted, else made. It goes to the origin and back to the client,
//! so it is made for every request, and cheaply: ids are cut from a batch, so that one costs no allocation of its own.

use std::cell::RefCell;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The field that carries it.
pub static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Hexadecimal digits of an id that we make: 128 bits.
const DIGITS: usize = 32;
/// Ids of a batch. What keeps one of them keeps the batch in memory (2 KiB).
const BATCH: usize = 64;
/// Bytes of an id that is taken.
const LONGEST: usize = 128;

thread_local! {
    static LEFT: RefCell<Bytes> = const { RefCell::new(Bytes::new()) };
}

/// A new id. It tells requests apart and is no secret.
pub fn make() -> HeaderValue {
    let id = LEFT.with_borrow_mut(|left| {
        if left.len() < DIGITS {
            *left = batch();
        }
        left.split_to(DIGITS)
    });
    HeaderValue::from_maybe_shared(id).unwrap_or(HeaderValue::from_static("0"))
}

fn batch() -> Bytes {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut digits = Vec::with_capacity(BATCH * DIGITS);
    while digits.len() < BATCH * DIGITS {
        for byte in fastrand::u64(..).to_ne_bytes() {
            digits.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
    Bytes::from(digits)
}

/// The id of a request: from a trusted peer the one it carries, if that is one.
pub fn of(headers: &HeaderMap, trusted: bool) -> HeaderValue {
    let given = if trusted { carried(headers) } else { None };
    given.cloned().unwrap_or_else(make)
}

fn carried(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(&X_REQUEST_ID).iter();
    let (Some(only), None) = (lines.next(), lines.next()) else {
        return None;
    };
    // What ids are commonly made of; nothing that would need quotes anywhere.
    let fits = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:/+=@~".contains(b);
    let text = only.as_bytes();
    ((1..=LONGEST).contains(&text.len()) && text.iter().all(fits)).then_some(only)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn made_ids_are_all_different_and_of_one_form() {
        let ids: HashSet<HeaderValue> = (0..1000).map(|_| make()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            let text = id.to_str().unwrap();
            assert!(
                text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit()),
                "{text}"
            );
        }
    }

    #[test]
    fn only_a_trusted_peer_gives_one_and_only_a_sane_one() {
        let taken = |values: &[&[u8]], trusted| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(&X_REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
            }
            of(&headers, trusted).as_bytes() == *values.first().unwrap_or(&&b""[..])
        };
        assert!(taken(&[b"0af7651916cd43dd8448eb211c80319c"], true));
        assert!(taken(&[b"req-1.2:3/4+5=@~"], true));
        assert!(!taken(&[b"a"], false));
        let long = [b'a'; LONGEST + 1];
        for bad in [&b"a b"[..], b"a\"b", b"a\\b", b"\xff", b"", &long, b"a\tb"] {
            assert!(!taken(&[bad], true), "{bad:?}");
        }
        assert!(!taken(&[b"a", b"b"], true));
        assert!(!taken(&[], true));
    }
}
