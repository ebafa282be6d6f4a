//! What a proxy must know of websockets (RFC 6455): whether a request asks for one, where its frames begin and end, and
//! how to say goodbye between two of them. Messages, masks and extensions are the ends' own business: only frame headers
//! are read, their payload is counted.

use http::header::{CONNECTION, CONTENT_LENGTH, UPGRADE};
use http::{HeaderMap, HeaderValue};

use super::headers::lists_token;
use crate::net::copy::Tap;

/// Two bytes, the longest length, a mask.
const HEADER: usize = 14;
const OPCODE: u8 = 0x0f;
const CLOSE: u8 = 0x08;
const MASKED: u8 = 0x80;

/// True if the fields of a message offer, or agree on, the protocol `websocket` for this connection (RFC 9110 section
/// 7.8). `h2c` and others that may stand beside it are nobody's business.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && lists_token(headers, &UPGRADE, "websocket")
        && lists_token(headers, &CONNECTION, "upgrade")
}

/// Says so on this hop. Whatever said it on the other one was taken away.
pub fn set_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // Neither a handshake nor its answer has a body.
    headers.remove(CONTENT_LENGTH);
}

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub struct Frames {
    header: [u8; HEADER],
    /// Bytes of a header that have come.
    have: usize,
    /// Of the payload that is passing.
    left: u64,
    /// What passes is no websocket: its end is not known any more.
    lost: bool,
    /// A Close has begun.
    closed: bool,
}

impl Frames {
    /// True if nothing may follow but the end: a Close was seen.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Between two frames of a stream that goes on.
    pub fn may_close(&self) -> bool {
        self.rest() == 0 && !self.closed
    }

    /// Bytes of the header that has begun, as far as is known yet.
    fn header_size(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let length = match self.header[1] & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & MASKED == 0 { 0 } else { 4 };
        2 + length + mask
    }

    /// The header is whole.
    fn begin(&mut self) {
        let bytes = |from: usize, to: usize| {
            self.header[from..to]
                .iter()
                .fold(0, |number: u64, byte| number << 8 | u64::from(*byte))
        };
        self.left = match self.header[1] & !MASKED {
            126 => bytes(2, 4),
            127 => bytes(2, 10),
            short => short.into(),
        };
        self.closed |= self.header[0] & OPCODE == CLOSE;
        // The highest bit is never set (section 5.2).
        self.lost = self.left > u64::MAX / 2;
        self.have = 0;
    }
}

impl Tap for Frames {
    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.lost {
            if self.left > 0 {
                let size = usize::try_from(self.left).map_or(bytes.len(), |n| n.min(bytes.len()));
                self.left -= size as u64;
                bytes = &bytes[size..];
                continue;
            }
            let size = (self.header_size() - self.have).min(bytes.len());
            self.header[self.have..self.have + size].copy_from_slice(&bytes[..size]);
            self.have += size;
            bytes = &bytes[size..];
            if self.have >= 2 && self.have == self.header_size() {
                self.begin();
            }
        }
    }

    fn rest(&self) -> usize {
        if self.lost {
            usize::MAX
        } else if self.left > 0 {
            usize::try_from(self.left).unwrap_or(usize::MAX)
        } else if self.have > 0 {
            self.header_size() - self.have
        } else {
            0
        }
    }
}

/// A Close with 1001, "going away" (section 7.4.1), as a server sends it.
pub fn going_away() -> [u8; 4] {
    let [high, low] = GOING_AWAY.to_be_bytes();
    [0x80 | CLOSE, 2, high, low]
}

/// The same as a client sends it, masked by `key` (section 5.3).
pub fn going_away_masked(key: [u8; 4]) -> [u8; 8] {
    let [high, low] = GOING_AWAY.to_be_bytes();
    let [a, b, c, d] = key;
    [0x80 | CLOSE, MASKED | 2, a, b, c, d, high ^ a, low ^ b]
}

const GOING_AWAY: u16 = 1001;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderName;
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0x80 | opcode];
        let mask = if masked { MASKED } else { 0 };
        match payload.len() {
            short @ 0..126 => out.push(mask | u8::try_from(short).unwrap()),
            middle @ 126..65536 => {
                out.push(mask | 126);
                out.extend(u16::try_from(middle).unwrap().to_be_bytes());
            }
            long => {
                out.push(mask | 127);
                out.extend((long as u64).to_be_bytes());
            }
        }
        if masked {
            out.extend([1, 2, 3, 4]);
        }
        out.extend(payload);
        out
    }

    fn size() -> impl Strategy<Value = usize> {
        prop_oneof![
            0_usize..4,
            120_usize..132,
            0_usize..2000,
            65_530_usize..65_540
        ]
    }

    proptest! {
        #[test]
        fn any_split_of_a_stream_finds_the_same_boundaries(
            frames in proptest::collection::vec((0_u8..16, any::<bool>(), size()), 1..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            let mut closed_at = None;
            for (opcode, masked, size) in frames {
                if opcode == CLOSE {
                    closed_at.get_or_insert(stream.len());
                }
                stream.extend(frame(opcode, masked, &vec![0x88; size]));
                ends.push(stream.len());
            }
            let mut places: Vec<usize> = cuts.iter().map(|c| c.index(stream.len() + 1)).collect();
            places.extend(&ends);
            places.sort_unstable();
            let mut scan = Frames::default();
            let mut at = 0;
            for place in places {
                scan.pass(&stream[at..place]);
                at = place;
                prop_assert_eq!(scan.rest() == 0, ends.contains(&at), "at {}", at);
                // What it asks for never leads past the next boundary.
                let next = ends.iter().find(|end| **end >= at).unwrap();
                prop_assert!(at + scan.rest() <= *next);
                if ends.contains(&at) {
                    prop_assert_eq!(scan.is_closed(), closed_at.is_some_and(|c| c < at));
                    prop_assert_eq!(scan.may_close(), !scan.is_closed());
                }
            }
        }

        #[test]
        fn following_rest_leads_to_the_boundary(masked: bool, size in size(), start in any::<prop::sample::Index>()) {
            let stream = [frame(2, masked, &vec![1; size]), frame(1, false, b"next")].concat();
            let end = stream.len() - 6;
            let mut at = start.index(end + 1);
            let mut scan = Frames::default();
            scan.pass(&stream[..at]);
            while scan.rest() > 0 {
                let rest = scan.rest();
                scan.pass(&stream[at..at + rest]);
                at += rest;
            }
            prop_assert!(at == end || at == 0);
        }

        #[test]
        fn no_bytes_make_it_fall_over(bytes: Vec<u8>) {
            let mut scan = Frames::default();
            scan.pass(&bytes);
            let _ = scan.rest();
        }
    }

    #[test]
    fn what_is_no_websocket_has_no_boundary() {
        let mut scan = Frames::default();
        scan.pass(&[0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(scan.rest(), usize::MAX);
        scan.pass(&[0; 100]);
        assert!(!scan.may_close());
    }

    #[test]
    fn our_own_frames_are_whole() {
        let mut scan = Frames::default();
        scan.pass(&going_away());
        assert!(scan.is_closed() && scan.rest() == 0);
        let masked = going_away_masked([9, 8, 7, 6]);
        let mut scan = Frames::default();
        scan.pass(&masked);
        assert!(scan.is_closed() && scan.rest() == 0);
        assert_eq!([masked[6] ^ 9, masked[7] ^ 8], 1001_u16.to_be_bytes());
    }

    #[test]
    fn only_websocket_is_an_upgrade() {
        let asks = |fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                );
            }
            is_upgrade(&headers)
        };
        assert!(asks(&[("connection", "Upgrade"), ("upgrade", "WebSocket")]));
        assert!(asks(&[
            ("connection", "keep-alive, UPGRADE"),
            ("upgrade", "h2c, websocket")
        ]));
        for (connection, upgrade) in [
            ("keep-alive", "websocket"),
            ("upgrade", "h2c"),
            ("upgrade", "websocket/13"),
            ("upgrade", "websockets"),
            ("upgraded", "websocket"),
        ] {
            assert!(!asks(&[("connection", connection), ("upgrade", upgrade)]));
        }
        assert!(!asks(&[("upgrade", "websocket")]));
    }
}
