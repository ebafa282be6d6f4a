//! HTTP/2 connections to a target: shared by the requests of a worker up to the target's limit of streams, and made one
//! after another while that is not enough. A request that waits for a connection waits for the one that is being made.
//!
//! A connection is used only after the target's settings have come (a round trip more, once in its life): its limit of
//! streams is then known, so that none is refused for want of knowing it, and what does not speak HTTP/2 has been told
//! from what does before anything was sent.

#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::connection::Slot;
use super::error::{Error, Kind, tls_kind};
use super::h1::HEAD;
use super::outgoing::Outgoing;
use super::pool::Keep;
use super::timer::Deadline;
use super::wire::Socket;
use crate::config::scalar::TargetAddr;

/// Bytes of a response that may wait for its client, per stream. There is no further limit per connection, so that
/// slow clients do not stop the others that share it.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Bytes of a request body that may wait to be sent, per stream.
const SEND_BUFFER: usize = 256 * 1024;
/// Streams on one connection, however many the target allows: they share its one task and its one socket.
const MOST_STREAMS: usize = 1000;
/// Streams that we gave up and of which frames may still come.
const RESETS: usize = 1024;
/// gRPC servers end connections that are pinged more often than every five minutes. A dead peer is noticed earlier: by
/// the kernel ([`Socket::watch_peer`]), and by a response that does not come.
const PING_EVERY: Duration = Duration::from_secs(310);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

type Http = http2::Connection<TokioIo<Wire>, Outgoing, Tasks>;
type Sent = Result<Response<Incoming>, TrySendError<Request<Outgoing>>>;

/// A new connection, before it is known who drives it.
pub(super) struct Parts {
    sender: http2::SendRequest<Outgoing>,
    http: Http,
    wire: Driving,
    tasks: Owner,
    signs: Arc<Signs>,
    withdrawn: Option<CancellationToken>,
}

/// Speaks HTTP/2 over `socket`; comes back when the target has said its settings.
///
/// # Errors
/// All of them unsent.
pub(super) async fn open(socket: Socket, slot: Slot, address: &TargetAddr) -> Result<Parts, Error> {
    socket.watch_peer();
    let withdrawn = socket.withdrawn();
    let signs = Arc::new(Signs::default());
    let tasks = Owner::default();
    let wire = Wire {
        socket,
        signs: signs.clone(),
    };
    let (sender, mut http) = http2::Builder::new(tasks.tasks.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD as u32)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESETS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(wire))
        .await
        .map_err(|e| Error::exchange(&e, address).unsent())?;
    let driving = tasks.tasks.shared.first.lock().take();
    let driving = driving.ok_or_else(|| {
        let detail = format!("{address}: nothing drives the connection");
        Error::us(Kind::ProxyInternalError, detail).unsent()
    })?;
    let mut wire: Driving = Box::pin(drive(driving, slot, signs.clone()));
    poll_fn(|cx| {
        // The socket's end first: then it can be said why.
        let closed = wire.as_mut().poll(cx).is_ready();
        let ended = match Pin::new(&mut http).poll(cx) {
            Poll::Ready(Err(error)) => Error::exchange(&error, address),
            Poll::Ready(Ok(())) => over(&signs, address),
            Poll::Pending if closed => over(&signs, address),
            // What a target says first is its settings (RFC 9113 section 3.4), and what was read has now been looked at.
            Poll::Pending if signs.heard.load(Ordering::Relaxed) > 0 => return Poll::Ready(Ok(())),
            Poll::Pending => return Poll::Pending,
        };
        // h2 keeps of an error only what kind of I/O it was.
        let kind = signs.tls.get().copied().unwrap_or(ended.kind);
        Poll::Ready(Err(Error { kind, ..ended }.unsent()))
    })
    .await?;
    Ok(Parts {
        sender,
        http,
        wire,
        tasks,
        signs,
        withdrawn,
    })
}

/// A connection that ended, without an error, before it was of any use.
fn over(signs: &Signs, address: &TargetAddr) -> Error {
    let detail = if signs.heard.load(Ordering::Relaxed) == 0 {
        format!("{address}: ended before it said anything in HTTP/2")
    } else {
        format!("{address}: went away as it came")
    };
    Error::upstream(Kind::ConnectionTerminated, detail)
}

/// What a connection's tasks let others know.
#[derive(Debug, Default)]
struct Signs {
    /// Reads that brought something.
    heard: AtomicU64,
    over: AtomicBool,
    /// What went wrong in TLS.
    tls: OnceLock<Kind>,
}

/// A connection to a target. Dropping it closes the socket, and with it every stream.
pub(super) struct Multiplexed {
    sender: http2::SendRequest<Outgoing>,
    /// What of it is asked besides being driven: the target's settings. `None` when it takes no more streams.
    http: Arc<Mutex<Option<Http>>>,
    signs: Arc<Signs>,
    /// Takes no more streams, whatever the protocol says.
    retired: AtomicBool,
    streams: AtomicUsize,
    /// Of one that leads through another connection.
    withdrawn: Option<CancellationToken>,
    peer: TargetAddr,
    _driver: AbortOnDropHandle<()>,
    _tasks: Owner,
}

impl std::fmt::Debug for Multiplexed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Multiplexed")
            .field("peer", &self.peer)
            .field("streams", &self.streams)
            .finish_non_exhaustive()
    }
}

impl Multiplexed {
    /// Starts the connection's task on the current worker. What sends requests and what reads the socket are one task:
    /// were they two, on two threads, a GOAWAY could come between a request's being sent and hyper's last look, and a
    /// request that is on its way would be taken for one that never was.
    pub(super) fn new(parts: Parts, peer: TargetAddr) -> Arc<Multiplexed> {
        let http = Arc::new(Mutex::new(Some(parts.http)));
        let driver = tokio::spawn(Driver {
            http: http.clone(),
            signs: parts.signs.clone(),
            wire: parts.wire,
        });
        Arc::new(Multiplexed {
            sender: parts.sender,
            http,
            signs: parts.signs,
            retired: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
            withdrawn: parts.withdrawn,
            peer,
            _driver: AbortOnDropHandle::new(driver),
            _tasks: parts.tasks,
        })
    }

    /// Hands `request` over; what is not taken any more comes back with the error. Nobody may let go of the other end
    /// meanwhile: what is handed over in that moment, from another thread, would neither be taken nor come back.
    pub(super) fn send(&self, request: Request<Outgoing>) -> impl Future<Output = Sent> + use<> {
        let taken = self.http.lock();
        let answer = self.sender.clone().try_send_request(request);
        drop(taken);
        answer
    }

    pub(super) fn peer(&self) -> &TargetAddr {
        &self.peer
    }

    /// No new streams from now on.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// True if it takes no more streams.
    pub(super) fn is_over(&self) -> bool {
        let withdrawn = self.withdrawn.as_ref();
        self.retired.load(Ordering::Relaxed)
            || withdrawn.is_some_and(CancellationToken::is_cancelled)
            || self.sender.is_closed()
            || self.signs.over.load(Ordering::Acquire)
    }

    /// Whether the target takes extended CONNECT (RFC 8441 section 3).
    pub(super) fn takes_extended_connect(&self) -> bool {
        let http = self.http.lock();
        http.as_ref()
            .is_some_and(Http::is_extended_connect_protocol_enabled)
    }

    /// How often something came from the target.
    pub(super) fn heard(&self) -> u64 {
        self.signs.heard.load(Ordering::Relaxed)
    }

    fn limit(&self) -> usize {
        let http = self.http.lock();
        let most = http.as_ref().map_or(0, Http::current_max_send_streams);
        most.min(MOST_STREAMS)
    }
}

/// A connection in its pool.
#[derive(Debug)]
pub(super) struct Entry {
    connection: Arc<Multiplexed>,
    keep: Keep,
    /// When a sweep first saw it without streams.
    seen: Option<Instant>,
}

impl Entry {
    pub(super) fn new(connection: Arc<Multiplexed>, keep: Keep) -> Entry {
        Entry {
            connection,
            keep,
            seen: None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.connection.streams.load(Ordering::Acquire) == 0 && !self.is_over()
    }

    pub(super) fn is_over(&self) -> bool {
        self.connection.is_over()
    }

    /// A stream, if it has room. Asked under the pool's lock only.
    pub(super) fn take(&mut self, keep: Keep) -> Option<Ticket> {
        let streams = self.connection.streams.load(Ordering::Acquire);
        if streams >= self.connection.limit() {
            return None;
        }
        self.keep = keep;
        self.seen = None;
        Some(Ticket::new(self.connection.clone()))
    }

    /// Whether it is kept, `idle` others being kept without streams.
    pub(super) fn stays(&mut self, now: Instant, idle: &mut usize) -> bool {
        if self.is_over() {
            return false;
        }
        if !self.is_idle() {
            self.seen = None;
            return true;
        }
        let since = now.saturating_duration_since(*self.seen.get_or_insert(now));
        let stays = since < self.keep.timeout && *idle < self.keep.share;
        *idle += usize::from(stays);
        stays
    }
}

/// A place for one stream on a connection. Dropping it ends the request's body, if that has not ended.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) connection: Arc<Multiplexed>,
    pub(super) deadline: Deadline,
    pub(super) body: Option<super::outgoing::Loan>,
}

impl Ticket {
    pub(super) fn new(connection: Arc<Multiplexed>) -> Ticket {
        connection.streams.fetch_add(1, Ordering::AcqRel);
        Ticket {
            connection,
            deadline: Deadline::default(),
            body: None,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            body.stop();
        }
        self.connection.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A connection that is being made.
#[derive(Debug, Default)]
pub(super) struct Dial {
    done: CancellationToken,
    failure: OnceLock<Error>,
}

impl Dial {
    pub(super) fn fail(&self, error: &Error) {
        // Only its maker fails it, once.
        let _ = self.failure.set(error.clone());
    }

    pub(super) fn done(&self) {
        self.done.cancel();
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Why it failed. Without one it is worth another look: it is there, or its maker has gone away.
    pub(super) async fn wait(&self) -> Result<(), Error> {
        self.done.cancelled().await;
        match self.failure.get() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

/// The task of a connection. However it ends, by a panic too, nobody waits on the connection any more.
struct Driver {
    http: Arc<Mutex<Option<Http>>>,
    signs: Arc<Signs>,
    /// It has the slot, which is given back last.
    wire: Driving,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut http = self.http.lock();
        if let Some(connection) = http.as_mut()
            && let Poll::Ready(ended) = Pin::new(connection).poll(cx)
        {
            // The streams that are under way go on.
            *http = None;
            if let Err(error) = ended {
                tracing::debug!(%error, "upstream connection takes no more streams");
            }
        }
        drop(http);
        self.wire.as_mut().poll(cx)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.signs.over.store(true, Ordering::Release);
        // Requests that were handed over and not taken come back.
        *self.http.lock() = None;
    }
}

/// What reads and writes a connection's socket.
type Driving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// hyper's executor for one connection. Its own task comes first, and is not started here; then those of its streams.
#[derive(Clone, Default)]
pub(super) struct Tasks {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    begun: AtomicBool,
    first: Mutex<Option<Driving>>,
    running: Mutex<JoinSet<()>>,
}

/// The hold on the tasks of a connection's streams: dropping it aborts them. (The tasks hold clones of the executor, so no
/// count of clones would ever end them.)
#[derive(Default)]
struct Owner {
    tasks: Tasks,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.tasks.shared.running.lock().abort_all();
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        if !self.shared.begun.swap(true, Ordering::Relaxed) {
            *self.shared.first.lock() = Some(Box::pin(future));
            return;
        }
        let mut running = self.shared.running.lock();
        // Those that have ended; no more than began since the last look.
        while running.try_join_next().is_some() {}
        running.spawn(future);
    }
}

/// Reads and writes the socket until the connection's end.
async fn drive(wire: Driving, slot: Slot, signs: Arc<Signs>) {
    wire.await;
    signs.over.store(true, Ordering::Release);
    drop(slot);
}

/// A socket that lets know when something came.
struct Wire {
    socket: Socket,
    signs: Arc<Signs>,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &polled
            && let Some(kind) = tls_kind(error)
        {
            // The first one says why.
            let _ = self.signs.tls.set(kind);
        }
        if buf.filled().len() > before {
            self.signs.heard.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
