//! HTTP/2 by hand: frames as they are written, well-formed or not, and what the server makes of them.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{PATIENCE, raw};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame's bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// An HPACK integer behind `first`, which keeps its upper bits.
fn integer(first: u8, bits: u32, value: usize) -> Vec<u8> {
    let most = (1 << bits) - 1;
    if value < most {
        return vec![first | value as u8];
    }
    let mut bytes = vec![first | most as u8];
    let mut rest = value - most;
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

fn text(value: &[u8]) -> Vec<u8> {
    let mut bytes = integer(0, 7, value.len());
    bytes.extend(value);
    bytes
}

/// A field as a literal that nobody remembers. Whatever is in it.
pub(crate) fn field(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [vec![0], text(name.as_ref()), text(value.as_ref())].concat()
}

/// The same, remembered as the newest entry of the table: number 62.
pub(crate) fn remembered(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [vec![0x40], text(name.as_ref()), text(value.as_ref())].concat()
}

/// Entry 62 once more.
pub(crate) const NEWEST: u8 = 0x80 | 62;

/// The fields of an ordinary request.
pub(crate) fn request(method: &str, path: &str) -> Vec<u8> {
    [
        field(":method", method),
        field(":scheme", "http"),
        field(":authority", "x"),
        field(":path", path),
    ]
    .concat()
}

/// A whole request without a body.
pub(crate) fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        stream,
        &request("GET", path),
    )
}

pub(crate) fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    fn code(&self, at: usize) -> u32 {
        let bytes = self.payload.get(at..at + 4).unwrap_or(&[0; 4]);
        u32::from_be_bytes(bytes.try_into().unwrap())
    }
}

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Answer(u16),
    /// Its END_STREAM.
    Ended,
    Reset(u32),
    /// The connection ends, with a word.
    Goaway(u32),
    Closed,
}

impl Fate {
    /// Nothing but a refusal.
    pub(crate) fn is_refusal(self) -> bool {
        match self {
            Fate::Answer(status) => (400..500).contains(&status),
            Fate::Ended => false,
            Fate::Reset(_) | Fate::Goaway(_) | Fate::Closed => true,
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    buf: Vec<u8>,
}

impl Wire {
    /// Sends the preface and these settings (identifier, value).
    pub(crate) fn open(to: SocketAddr, settings: &[(u16, u32)]) -> Wire {
        let mut wire = Wire::connect(to);
        let settings: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        wire.send(&[PREFACE.to_vec(), frame(SETTINGS, 0, 0, &settings)].concat())
            .unwrap();
        wire
    }

    /// Sends nothing yet.
    pub(crate) fn connect(to: SocketAddr) -> Wire {
        let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Wire {
            stream,
            buf: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next frame; `None` when the connection has ended, in whatever way.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(head) = self.buf.first_chunk::<9>() {
                let size = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let (kind, flags, stream) = (
                    head[3],
                    head[4],
                    u32::from_be_bytes(head[5..9].try_into().unwrap()) & (u32::MAX >> 1),
                );
                if self.buf.len() >= 9 + size {
                    let payload = self.buf.drain(..9 + size).skip(9).collect();
                    return Some(Frame {
                        kind,
                        flags,
                        stream,
                        payload,
                    });
                }
            }
            let mut piece = [0; 16 * 1024];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(n) => self.buf.extend_from_slice(&piece[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    panic!("nothing came for {PATIENCE:?}")
                }
                Err(_) => return None,
            }
        }
    }

    /// Waits for what becomes of `stream`.
    pub(crate) fn fate(&mut self, stream: u32) -> Fate {
        while let Some(frame) = self.next() {
            match frame.kind {
                HEADERS if frame.stream == stream => {
                    return Fate::Answer(status(&frame.payload));
                }
                RST_STREAM if frame.stream == stream => return Fate::Reset(frame.code(0)),
                GOAWAY => return Fate::Goaway(frame.code(4)),
                _ => {}
            }
        }
        Fate::Closed
    }

    /// Waits for the end of `stream`, whatever comes on it before.
    pub(crate) fn ending(&mut self, stream: u32) -> Fate {
        while let Some(frame) = self.next() {
            match frame.kind {
                RST_STREAM if frame.stream == stream => return Fate::Reset(frame.code(0)),
                DATA | HEADERS if frame.stream == stream && frame.flags & END_STREAM != 0 => {
                    return Fate::Ended;
                }
                GOAWAY => return Fate::Goaway(frame.code(4)),
                _ => {}
            }
        }
        Fate::Closed
    }

    /// Waits for the end of the connection: how it was announced, and how many streams were reset before.
    pub(crate) fn end(&mut self) -> (Option<u32>, usize) {
        let (mut said, mut resets) = (None, 0);
        while let Some(frame) = self.next() {
            match frame.kind {
                GOAWAY => said = Some(frame.code(4)),
                RST_STREAM => resets += 1,
                _ => {}
            }
        }
        (said, resets)
    }
}

/// The status in the header block of an answer: entries of the static table, or the digits of a literal.
fn status(block: &[u8]) -> u16 {
    let block = match block {
        // An update of the table's size.
        [first, rest @ ..] if first & 0xe0 == 0x20 => rest,
        all => all,
    };
    match block {
        [0x88, ..] => 200,
        [0x89, ..] => 204,
        [0x8a, ..] => 206,
        [0x8b, ..] => 304,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        [0x08 | 0x48 | 0x18, size, rest @ ..] => {
            let bytes = &rest[..usize::from(size & 0x7f)];
            if size & 0x80 == 0 {
                return std::str::from_utf8(bytes).unwrap().parse().unwrap();
            }
            digits(bytes)
        }
        other => panic!("a header block that begins with {other:?}"),
    }
}

/// Three digits in HPACK's Huffman code: 0 to 2 have five bits, the others six.
fn digits(bytes: &[u8]) -> u16 {
    let mut bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)));
    let mut number = 0;
    for _ in 0..3 {
        let five = (0..5).fold(0, |all, _| all << 1 | bits.next().unwrap());
        let digit = if five < 3 {
            five
        } else {
            (five << 1 | bits.next().unwrap()) - 0x19 + 3
        };
        number = number * 10 + digit;
    }
    number
}

/// Another client, who asks on while something happens and remembers the longest wait.
#[derive(Debug)]
pub(crate) struct Bystander {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Duration>>,
}

impl Bystander {
    /// Asks for `path`, each time on a new connection.
    pub(crate) fn start(to: SocketAddr, path: &'static str) -> Bystander {
        let stop = Arc::new(AtomicBool::new(false));
        let ends = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut worst = Duration::ZERO;
            while !ends.load(Ordering::SeqCst) {
                let start = Instant::now();
                assert_eq!(raw::get(to, "x", path).status, 200);
                worst = worst.max(start.elapsed());
                // One among the clients, not a load of its own.
                std::thread::sleep(Duration::from_millis(2));
            }
            worst
        });
        Bystander {
            stop,
            thread: Some(thread),
        }
    }

    /// The longest wait.
    pub(crate) fn worst(mut self) -> Duration {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
