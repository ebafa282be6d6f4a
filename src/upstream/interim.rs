//! Counts the interim responses (1xx) before the answer to a request on an HTTP/1 connection. hyper reads on for as long as
//! they come, so a flood of them would hold a client and a core until the response timeout, if there is one. A callback
//! of hyper's would cost every request two allocations: here one flag is looked at per read.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Interim responses to one request; more is a broken origin. A long operation may well send some (102, 103).
pub(super) const MOST: u32 = 100;

/// What the one who asks shares with the one who reads.
#[derive(Debug)]
pub(super) struct Awaited {
    head: AtomicBool,
    flooded: AtomicBool,
}

impl Default for Awaited {
    /// Of a new connection: what comes first on it is a head.
    fn default() -> Awaited {
        Awaited {
            head: AtomicBool::new(true),
            flooded: AtomicBool::new(false),
        }
    }
}

impl Awaited {
    /// A request is about to be sent: what comes next is a head.
    pub(super) fn expect(&self) {
        self.head.store(true, Ordering::Relaxed);
    }

    /// There were more than [`MOST`]; the connection has ended for it.
    pub(super) fn flooded(&self) -> bool {
        self.flooded.load(Ordering::Relaxed)
    }
}

/// Reads the bytes of interim heads as they come.
#[derive(Debug, Default)]
pub(super) struct Interim {
    pub(super) awaited: Arc<Awaited>,
    count: u32,
    at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// So many bytes of a status line have passed; the three of its code as far as they have come.
    Line(usize, [u8; 3]),
    /// In the head of an interim response, in a line of which something has come or not.
    Head { empty: bool },
}

impl Default for At {
    fn default() -> At {
        At::Line(0, [0; 3])
    }
}

/// Bytes before the code in a status line: `HTTP/1.1 `.
const BEFORE_CODE: usize = 9;

impl Interim {
    /// Looks at what was read.
    ///
    /// # Errors
    /// Too many of them.
    pub(super) fn look(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.awaited.head.load(Ordering::Relaxed) {
            return Ok(());
        }
        for &byte in bytes {
            self.at = match self.at {
                // Skipped by hyper, too.
                At::Line(0, _) if matches!(byte, b'\r' | b'\n') => continue,
                At::Line(seen, mut code) => {
                    if let Some(digit) = seen.checked_sub(BEFORE_CODE) {
                        code[digit] = byte;
                        if digit == 0 && byte != b'1' {
                            self.answered();
                            return Ok(());
                        }
                        if digit == 2 {
                            // Not a single byte after a 101 is HTTP.
                            if code == *b"101" {
                                self.answered();
                                return Ok(());
                            }
                            self.count += 1;
                            if self.count > MOST {
                                self.awaited.flooded.store(true, Ordering::Relaxed);
                                let why = format!("more than {MOST} interim responses");
                                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                            }
                            self.at = At::Head { empty: false };
                            continue;
                        }
                    }
                    At::Line(seen + 1, code)
                }
                At::Head { empty: true } if byte == b'\n' => At::default(),
                At::Head { empty } => At::Head {
                    empty: byte == b'\n' || (empty && byte == b'\r'),
                },
            };
        }
        Ok(())
    }

    /// The answer itself has begun: nothing is looked at until the next request.
    fn answered(&mut self) {
        self.awaited.head.store(false, Ordering::Relaxed);
        self.count = 0;
        self.at = At::default();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
    const BARE: &str = "\r\nHTTP/1.0 100\n\n";
    const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    proptest! {
        #[test]
        fn each_is_counted_once(
            heads in proptest::collection::vec(proptest::sample::select(vec![HINTS, CONTINUE, BARE]), 0..=MOST as usize),
            size in 1_usize..64,
        ) {
            let mut interim = Interim::default();
            for piece in heads.concat().as_bytes().chunks(size) {
                interim.look(piece).unwrap();
            }
            prop_assert_eq!(interim.count as usize, heads.len());
            prop_assert!(interim.awaited.head.load(Ordering::Relaxed));
            for piece in ANSWER.as_bytes().chunks(size) {
                interim.look(piece).unwrap();
            }
            prop_assert!(!interim.awaited.head.load(Ordering::Relaxed) && !interim.awaited.flooded());
        }
    }

    #[test]
    fn too_many_end_it() {
        let mut interim = Interim::default();
        let allowed = CONTINUE.repeat(MOST as usize);
        interim.look(allowed.as_bytes()).unwrap();
        assert!(interim.look(CONTINUE.as_bytes()).is_err());
        assert!(interim.awaited.flooded());
        // Each request has as many.
        let mut interim = Interim::default();
        for _ in 0..3 {
            interim.look(allowed.as_bytes()).unwrap();
            interim.look(ANSWER.as_bytes()).unwrap();
            // Whatever a body looks like.
            interim.look(allowed.repeat(2).as_bytes()).unwrap();
            interim.awaited.expect();
        }
    }

    #[test]
    fn what_follows_a_101_is_not_looked_at() {
        let mut interim = Interim::default();
        let all = format!("{CONTINUE}HTTP/1.1 101 x\r\n\r\n{}", CONTINUE.repeat(200));
        interim.look(all.as_bytes()).unwrap();
        interim.look(all.as_bytes()).unwrap();
        assert!(!interim.awaited.flooded());
    }
}
