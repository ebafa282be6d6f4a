//! Where messages begin and end in an HTTP/1 client's bytes, and what its heads show that hyper resolves without a word.
//!
//! hyper gives `Transfer-Encoding` the word over `Content-Length`, hides the latter and ends the connection afterwards,
//! which is safe; RFC 9112 section 6.1 lets a server refuse such a request instead, and so do we. It cuts a fragment off
//! the target too. Neither can be seen in the parsed request, so heads are read here on their way to hyper.
//!
//! Only what certainly is a head is read as one: a length is counted down, chunks are followed as hyper does ([`Chunks`]).
//! After what hyper can't read either the look at heads rests for good: hyper then ends the connection.

use super::chunks::{Chunks, Fate};
use crate::http::connection::HeadMarks;

/// Follows the messages of one connection.
#[derive(Debug)]
pub struct Framing {
    step: Step,
}

#[derive(Debug)]
enum Step {
    Head(HeadScan),
    /// So many bytes of a body are still to come.
    Body(u64),
    Chunks(Chunks),
    /// In what hyper ends the connection for.
    Lost,
    /// Before a byte that is not handed on.
    Refused,
}

impl Default for Framing {
    /// At the beginning of a connection.
    fn default() -> Framing {
        Framing {
            step: Step::Head(HeadScan::default()),
        }
    }
}

impl Framing {
    /// Follows `bytes` to the beginning of the next message and returns how many that are: what is read at once then
    /// never holds parts of two heads.
    pub fn follow(&mut self, bytes: &[u8], mut show: impl FnMut(HeadMarks)) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.step {
                Step::Head(scan) => {
                    at += scan.feed(rest);
                    let marks = scan.marks();
                    if marks != HeadMarks::default() {
                        show(marks);
                    }
                    if scan.done {
                        self.step = scan.body();
                    }
                }
                Step::Body(left) => {
                    let size = usize::try_from(*left).map_or(rest.len(), |n| n.min(rest.len()));
                    at += size;
                    *left -= size as u64;
                }
                Step::Chunks(chunks) => {
                    let (size, fate) = chunks.feed(rest);
                    at += size;
                    match fate {
                        Fate::More => {}
                        Fate::Over => self.step = Step::Body(0),
                        Fate::Malformed => self.step = Step::Lost,
                        Fate::Forbidden => self.step = Step::Refused,
                    }
                }
                Step::Lost => return bytes.len(),
                Step::Refused => return at,
            }
            if let Step::Body(0) = self.step {
                self.step = Step::Head(HeadScan::default());
                break;
            }
        }
        at
    }

    /// True if what comes next must not be handed on: the connection is to end.
    pub fn is_refused(&self) -> bool {
        matches!(self.step, Step::Refused)
    }
}

/// Reads the bytes of one head as they come, line by line.
#[derive(Debug, Default)]
struct HeadScan {
    /// Beginning of a line whose end has not come.
    partial: [u8; LONGEST],
    partial_len: usize,
    /// The request line is over.
    started: bool,
    done: bool,
    /// Counted to two.
    lengths: u8,
    /// What the last `Content-Length` said, if it was a number.
    length: Option<u64>,
    encoding: bool,
    fragment: bool,
    /// It is the beginning of HTTP/2's preface, which hyper knows as a whole.
    preface: bool,
}

const LENGTH: &[u8] = b"content-length:";
const ENCODING: &[u8] = b"transfer-encoding:";
/// As much of a line as is ever looked at: a name, some space and the digits of a length.
const LONGEST: usize = 32;

impl HeadScan {
    /// Returns how many of `bytes` are of this head.
    fn feed(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while !self.done && at < bytes.len() {
            let rest = &bytes[at..];
            let end = memchr::memchr(b'\n', rest);
            let piece = &rest[..end.unwrap_or(rest.len())];
            if !self.started && memchr::memchr(b'#', piece).is_some() {
                self.fragment = true;
            }
            let Some(end) = end else {
                self.keep(piece);
                return bytes.len();
            };
            if self.partial_len == 0 {
                self.line(piece);
            } else {
                self.keep(piece);
                let (line, len) = (self.partial, self.partial_len);
                self.line(&line[..len]);
            }
            self.partial_len = 0;
            at += end + 1;
        }
        at
    }

    fn keep(&mut self, piece: &[u8]) {
        let size = piece.len().min(LONGEST - self.partial_len);
        self.partial[self.partial_len..self.partial_len + size].copy_from_slice(&piece[..size]);
        self.partial_len += size;
    }

    fn line(&mut self, line: &[u8]) {
        match line {
            // Empty lines before a request line are skipped (RFC 9112 section 2.2).
            [] | [b'\r'] => self.done = self.started,
            _ if !self.started => {
                self.started = true;
                self.preface = line.starts_with(b"PRI * HTTP/2");
            }
            [b'c' | b'C', ..] => {
                if let Some(value) = after(line, LENGTH) {
                    self.lengths = (self.lengths + 1).min(2);
                    self.length = number(value);
                }
            }
            [b't' | b'T', ..] => self.encoding |= after(line, ENCODING).is_some(),
            _ => {}
        }
    }

    fn marks(&self) -> HeadMarks {
        HeadMarks {
            ambiguous_length: self.lengths > 1 || (self.lengths == 1 && self.encoding),
            fragment: self.fragment,
        }
    }

    /// What follows. hyper takes no other coding than one that ends in `chunked`, and no length that is not a number.
    fn body(&self) -> Step {
        match (self.encoding, self.lengths, self.length) {
            _ if self.preface => Step::Lost,
            (true, _, _) => Step::Chunks(Chunks::default()),
            (false, 0, _) => Step::Body(0),
            (false, 1, Some(length)) => Step::Body(length),
            _ => Step::Lost,
        }
    }
}

/// What follows `name` in `line`, if it begins so.
fn after<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then_some(rest)
}

/// A length, unless the line is too long to be sure that all of it is here.
fn number(value: &[u8]) -> Option<u64> {
    if value.len() + LENGTH.len() >= LONGEST {
        return None;
    }
    let digits = value.trim_ascii();
    let plain = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits)
        .ok()
        .filter(|_| plain)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(pieces: &[&[u8]]) -> (HeadMarks, bool, Option<u64>) {
        let mut scan = HeadScan::default();
        for piece in pieces {
            scan.feed(piece);
        }
        let body = match scan.body() {
            Step::Body(length) => Some(length),
            _ => None,
        };
        (scan.marks(), scan.done, body)
    }

    #[test]
    fn what_a_head_shows() {
        let both = HeadMarks {
            ambiguous_length: true,
            fragment: false,
        };
        let fragment = HeadMarks {
            ambiguous_length: false,
            fragment: true,
        };
        let none = HeadMarks::default();
        let table: &[(&[u8], HeadMarks, bool, Option<u64>)] = &[
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", none, true, Some(0)),
            (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", both, true, None),
            (b"\r\n\r\nPOST / HTTP/1.1\ntransfer-encoding: chunked\ncontent-length: 3\n\n", both, true, None),
            (
                b"POST / HTTP/1.1\r\nContent-Length: 3\r\nX: 1\r\nContent-Length: 3\r\n\r\n",
                both,
                true,
                None,
            ),
            (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", fragment, true, Some(0)),
            (b"GET /a HTTP/1.1\r\nX: #\r\n\r\n", none, true, Some(0)),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", none, true, None),
            (b"POST / HTTP/1.1\r\ncontent-LENGTH:123456789012345\r\n\r\n", none, true, Some(123_456_789_012_345)),
            (b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n", none, true, None),
            (b"POST / HTTP/1.1\r\nContent-Length: 1                 2\r\n\r\n", none, true, None),
            // The next request's head is another matter.
            (
                b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nPOST /# HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                none,
                true,
                Some(0),
            ),
            (b"GET / HTTP/1.1\r\nHost: a\r\n", none, false, Some(0)),
        ];
        for (head, marks, done, body) in table {
            assert_eq!(
                scan(&[head]),
                (*marks, *done, *body),
                "{}",
                String::from_utf8_lossy(head)
            );
        }
    }

    #[test]
    fn bytes_are_followed_to_the_next_message_and_no_further() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let post = "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n";
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut framing = Framing::default();
        let mut follow = |text: &str| {
            let mut shown = None;
            let size = framing.follow(text.as_bytes(), |marks| shown = Some(marks));
            (size, shown.is_some())
        };
        assert_eq!(follow(&get.repeat(2)), (get.len(), false));
        assert_eq!(follow(&format!("{post}ab")), (post.len() + 2, false));
        assert_eq!(follow(&format!("c{get}")), (1, false));
        let all = format!("{chunked}3\r\nabc\r\n0\r\n\r");
        assert_eq!(follow(&all), (all.len(), false));
        assert_eq!(follow("\nGET /# HTTP/1.1\r\n"), (1, false));
        assert_eq!(follow("GET /# HTTP/1.1\r\n"), (17, true));
    }

    #[test]
    fn what_must_not_be_read_stops_there_for_good() {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x";
        let mut framing = Framing::default();
        let text = format!("{head}\0\r\nabc\r\n0\r\n\r\n");
        assert_eq!(framing.follow(text.as_bytes(), |_| {}), head.len());
        assert!(framing.is_refused());
        assert_eq!(framing.follow(&text.as_bytes()[head.len()..], |_| {}), 0);
        assert_eq!(framing.follow(b"GET / HTTP/1.1\r\n\r\n", |_| {}), 0);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            lines in prop::collection::vec(
                prop::sample::select(vec![
                    "GET /x#y HTTP/1.1", "Content-Length: 1", "Transfer-Encoding: chunked", "T: 1", "content-lengthy: 2",
                    "content-length:   00000000000000000000000000000000000001", "transfer-encoding", "",
                ]),
                0..6,
            ),
            cuts in prop::collection::vec(0usize..160, 0..6),
        ) {
            let text = lines.join("\r\n");
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(scan(&pieces), scan(&[bytes]));
        }

        /// Heads and counted bodies, cut anywhere and given back where it stops: every head is seen once.
        #[test]
        fn every_head_is_found(
            bodies in prop::collection::vec(prop::option::of((any::<bool>(), 0usize..40)), 1..6),
            sizes in prop::collection::vec(1usize..80, 1..40),
        ) {
            let mut bytes = Vec::new();
            for body in &bodies {
                bytes.extend_from_slice(b"GET /# HTTP/1.1\r\n");
                match body {
                    None => bytes.extend_from_slice(b"\r\n"),
                    Some((false, length)) => {
                        bytes.extend_from_slice(format!("Content-Length: {length}\r\n\r\n").as_bytes());
                        bytes.extend(std::iter::repeat_n(b'\n', *length));
                    }
                    Some((true, chunks)) => {
                        bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                        bytes.extend_from_slice("2;x\r\n\r\n\r\n".repeat(*chunks).as_bytes());
                        bytes.extend_from_slice(b"0\r\nt: 1\r\n\r\n");
                    }
                }
            }
            let mut framing = Framing::default();
            let (mut at, mut ends, mut sizes) = (0, 0, sizes.into_iter().cycle());
            while at < bytes.len() {
                let end = bytes.len().min(at + sizes.next().unwrap_or(1));
                let size = framing.follow(&bytes[at..end], |_| {});
                prop_assert!(size > 0 && size <= end - at);
                at += size;
                ends += usize::from(matches!(&framing.step, Step::Head(scan) if !scan.started && scan.partial_len == 0));
            }
            prop_assert_eq!(ends, bodies.len());
        }
    }
}
