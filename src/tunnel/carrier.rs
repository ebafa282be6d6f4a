//! What both ends do with their HTTP/2 connection: window sizes, signs of life, the control stream.
//!
//! The connection's window is many times that of a stream: streams share it, and one whose reader is slow may fill its own
//! window without taking from the others. What a stream may hold is bounded by its window at the receiver and by
//! [`SEND_BUFFER`] at the sender.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::poll_fn;
use h2::{Ping, PingPong, RecvStream, SendStream};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::wire;

/// Bytes on the way to one reader: a gigabit at 48 ms.
pub const STREAM_WINDOW: u32 = 6 << 20;
/// Bytes on the way to all readers of a connection.
pub const CONNECTION_WINDOW: u32 = 256 << 20;
/// Bytes of one frame: large enough that its head costs nothing, small enough that others need not wait for it.
pub const FRAME: u32 = 64 << 10;
/// Bytes that wait in one stream until the socket takes them.
pub const SEND_BUFFER: usize = 512 << 10;
/// Flows of one connection at once.
pub const STREAMS: u32 = 20_000;
/// Bytes of a request's head.
pub const HEAD: u32 = 16 << 10;
/// Bytes that the kernel may hold besides what is on its way: what comes later would have to wait behind them.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT: u32 = 256 << 10;
/// How often the other side is asked for a sign of life, and how long it may take.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_WITHIN: Duration = Duration::from_secs(5);
/// From when on others are preferred to one that has been asked, if that is more than four of its round trips.
const OVERDUE: Duration = Duration::from_secs(1);
/// How long a message of the control stream may wait for room.
const SAY_WITHIN: Duration = Duration::from_secs(10);

/// Sets up the socket of a session, or of a flow that has its own. What the system does not have is done without. The kernel is not
/// asked to give up on bytes that wait (`TCP_USER_TIMEOUT`): it would also where the other end just does not read, as that
/// of a flow may for as long as it likes; a dead path is noticed by a session's pings, and its flows end with it.
pub fn tune(stream: &tokio::net::TcpStream) {
    let mut set = vec![stream.set_nodelay(true)];
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let socket = socket2::SockRef::from(stream);
        set.push(socket.set_tcp_notsent_lowat(UNSENT));
    }
    for error in set.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "a tunnel's socket does without an option");
    }
}

/// The round trips of a session, and whether one takes too long.
#[derive(Debug, Default)]
pub struct RoundTrip {
    micros: AtomicU64,
    /// Since when there is no answer to what was asked.
    asked: Mutex<Option<Instant>>,
    /// To ask now.
    now: Notify,
}

impl RoundTrip {
    /// The last one; `None`: there has been none.
    pub fn get(&self) -> Option<Duration> {
        let micros = self.micros.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    fn set(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.store(micros.max(1), Ordering::Relaxed);
    }

    /// Whether a sign of life is late: that side may be dead, and is not known to be yet.
    pub fn is_overdue(&self) -> bool {
        let Some(asked) = *self.asked.lock() else {
            return false;
        };
        let usual = self.get().unwrap_or_default();
        asked.elapsed() > OVERDUE.max(usual * 4)
    }

    /// Asks for a sign of life now instead of at its time.
    pub fn ask(&self) {
        self.now.notify_one();
    }
}

/// Asks for signs of life until there is none. Returns why not.
pub async fn until_dead(mut ping: PingPong, round_trip: &RoundTrip) -> String {
    loop {
        let asked = Instant::now();
        *round_trip.asked.lock() = Some(asked);
        match timeout(PING_WITHIN, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {
                round_trip.set(asked.elapsed());
                *round_trip.asked.lock() = None;
            }
            // The connection's own end says more.
            Ok(Err(error)) => return format!("the connection has ended: {error}"),
            Err(_) => return format!("no sign of life within {PING_WITHIN:?}"),
        }
        // Also when it is early.
        let _ = timeout(PING_EVERY, round_trip.now.notified()).await;
    }
}

/// Reads one message of the greeting.
///
/// # Errors
/// What the socket says, or that it is no such message.
pub async fn hear<T: DeserializeOwned>(io: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let mut head = [0; 4];
    io.read_exact(&mut head).await?;
    let length = wire::length(head, wire::MAX_GREETING).map_err(io::Error::other)?;
    let mut json = vec![0; length];
    io.read_exact(&mut json).await?;
    wire::decode(&json).map_err(io::Error::other)
}

/// Writes one message of the greeting.
///
/// # Errors
/// What the socket says.
pub async fn tell(io: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    io.write_all(&wire::encode(message)).await?;
    io.flush().await
}

/// Messages that come over the control stream.
pub struct Ear {
    stream: RecvStream,
    buffer: BytesMut,
}

impl Ear {
    pub fn new(stream: RecvStream) -> Ear {
        Ear {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// The next one; `None`: there will be no more. Cancel-safe.
    ///
    /// # Errors
    /// When what comes is no message, or the stream breaks.
    pub async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            let whole = wire::take(&mut self.buffer, wire::MAX_CONTROL);
            if let Some(message) = whole.map_err(io::Error::other)? {
                return Ok(Some(message));
            }
            let Some(chunk) = self.stream.data().await else {
                return Ok(None);
            };
            let chunk = chunk.map_err(io::Error::other)?;
            let flow = self.stream.flow_control();
            flow.release_capacity(chunk.len())
                .map_err(io::Error::other)?;
            self.buffer.extend_from_slice(&chunk);
        }
    }
}

/// Where messages of the control stream go.
pub struct Mouth(SendStream<Bytes>);

impl Mouth {
    pub fn new(stream: SendStream<Bytes>) -> Mouth {
        Mouth(stream)
    }

    /// Says something, as soon as there is room for it.
    ///
    /// # Errors
    /// When there is none in time, or the stream has ended.
    pub async fn say(&mut self, message: &impl Serialize) -> io::Result<()> {
        let bytes = wire::encode(message);
        match timeout(SAY_WITHIN, send_all(&mut self.0, bytes)).await {
            Ok(sent) => sent,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Sends all of it, piece by piece as the other side has room.
///
/// # Errors
/// When the stream has ended.
pub async fn send_all(stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> io::Result<()> {
    while !bytes.is_empty() {
        let room = room(stream, bytes.len()).await?;
        let piece = bytes.split_to(room.min(bytes.len()));
        stream.send_data(piece, false).map_err(io::Error::other)?;
    }
    Ok(())
}

async fn room(stream: &mut SendStream<Bytes>, wanted: usize) -> io::Result<usize> {
    // Nothing is reserved for what is not there: it would be taken from the other streams.
    stream.reserve_capacity(wanted);
    loop {
        let room = stream.capacity();
        if room > 0 {
            return Ok(room);
        }
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(broken(error)),
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// What the end of a stream is to those who use it as a socket.
pub fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        // The carrier's trouble, not that of whoever is at the other end of the flow.
        return io::Error::new(io::ErrorKind::ConnectionAborted, error);
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
