//! Bytes in bulk over plain TCP, each of them known beforehand: a server that sends or takes as many as it is asked to,
//! and clients that look at every one. The pattern's period is a prime, so that no loss or repetition of a whole buffer
//! goes unnoticed.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::PATIENCE;

const PERIOD: usize = 1_048_573;
/// Sent and read at a time.
const CHUNK: usize = 128 << 10;

/// One period, and a chunk of the next.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as u8
    };
    let mut all: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
    all.extend_from_within(..CHUNK);
    all
});

/// `size` bytes (at most a chunk) of the pattern from `at` on.
fn pattern(at: u64, size: usize) -> &'static [u8] {
    let from = (at % PERIOD as u64) as usize;
    &PATTERN[from..from + size]
}

/// Sends the first `bytes` of the pattern.
fn send(to: &mut impl Write, bytes: u64) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let size = (bytes - at).min(CHUNK as u64) as usize;
        to.write_all(pattern(at, size))?;
        at += size as u64;
    }
    Ok(())
}

/// Takes the first `bytes` of the pattern; `came` is told of each piece.
fn take(from: &mut impl Read, bytes: u64, mut came: impl FnMut(usize)) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < bytes {
        let most = (bytes - at).min(CHUNK as u64) as usize;
        let size = from.read(&mut buffer[..most])?;
        if size == 0 {
            let what = format!("it ended after {at} of {bytes} bytes");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        if buffer[..size] != *pattern(at, size) {
            let what = format!("a wrong byte in the {size} from {at} on");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        at += size as u64;
        came(size);
    }
    Ok(())
}

/// A server: a client says how many bytes it wants and how many it will send (16 bytes), gets the former, sends the latter,
/// and is told in one byte whether they were right.
pub(crate) struct Bulk {
    pub(crate) addr: SocketAddr,
}

impl Bulk {
    pub(crate) fn start(on: SocketAddr) -> Bulk {
        let listener = TcpListener::bind(on).unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // One that breaks is the client's to tell.
                std::thread::spawn(move || serve(stream));
            }
        });
        Bulk { addr }
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut asked = [0; 16];
    while stream.read_exact(&mut asked).is_ok() {
        let number = |at: usize| {
            asked[at..]
                .first_chunk()
                .map_or(0, |n| u64::from_be_bytes(*n))
        };
        send(&mut stream, number(0))?;
        let right = take(&mut stream, number(8), |_| {}).is_ok();
        stream.write_all(&[u8::from(right)])?;
    }
    Ok(())
}

fn ask(stream: &mut TcpStream, down: u64, up: u64) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&[down.to_be_bytes(), up.to_be_bytes()].concat())
}

fn judged(stream: &mut TcpStream) -> io::Result<()> {
    let mut right = [0];
    stream.read_exact(&mut right)?;
    match right {
        [1] => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "wrong bytes came",
        )),
    }
}

/// Takes `bytes` over a connection to a [`Bulk`], however it was made, and sends `up` of them. How long it took.
///
/// # Errors
/// Where it broke off, or was not what was sent.
pub(crate) fn exchange(stream: &mut TcpStream, down: u64, up: u64) -> io::Result<Duration> {
    let start = Instant::now();
    ask(stream, down, up)?;
    take(stream, down, |_| {})?;
    send(stream, up)?;
    judged(stream)?;
    Ok(start.elapsed())
}

/// Bytes a second.
pub(crate) fn rate(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64()
}

/// Asks for everything and reads nothing.
pub(crate) fn mute(mut stream: TcpStream) -> io::Result<TcpStream> {
    ask(&mut stream, u64::MAX, 0)?;
    Ok(stream)
}

/// A [`mute`] one reads so much after all.
///
/// # Errors
/// Where it broke off, or was not what was sent.
pub(crate) fn wake(mute: &mut TcpStream, bytes: u64) -> io::Result<()> {
    take(mute, bytes, |_| {})
}

/// Asks for everything and reads 8 KiB of it every `pause`, for as long as it is kept.
pub(crate) struct Slow {
    came: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    reading: Option<JoinHandle<io::Result<()>>>,
}

impl Slow {
    pub(crate) fn start(mut stream: TcpStream, pause: Duration) -> io::Result<Slow> {
        ask(&mut stream, u64::MAX, 0)?;
        let mut slow = Slow {
            came: Default::default(),
            stop: Default::default(),
            reading: None,
        };
        let (came, stop) = (slow.came.clone(), slow.stop.clone());
        slow.reading = Some(std::thread::spawn(move || {
            let mut at = 0;
            let mut buffer = vec![0; 8 << 10];
            while !stop.load(Ordering::SeqCst) {
                let size = stream.read(&mut buffer)?;
                if size == 0 || buffer[..size] != *pattern(at, size) {
                    return Err(io::Error::other(format!(
                        "wrong, or the end, after {at} bytes"
                    )));
                }
                at += size as u64;
                came.store(at, Ordering::SeqCst);
                // Its slowness; nothing waits for it.
                std::thread::sleep(pause);
            }
            Ok(())
        }));
        Ok(slow)
    }

    /// Ends it; all that came was right, and something did.
    pub(crate) fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        let reading = self.reading.take().unwrap();
        reading.join().unwrap().unwrap();
        let came = self.came.load(Ordering::SeqCst);
        assert!(came > 0, "a slow reader got nothing at all");
        came
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
