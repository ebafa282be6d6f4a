//! An HTTP connection: in cleartext the first bytes choose HTTP/1 or HTTP/2 under a deadline (over TLS the handshake has),
//! then hyper speaks it and the timers watch. hyper's own timer would count header and idle time together and end without
//! an answer, so it is off.

mod h1;

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, Wake as _};

use bytes::Bytes;
use http::Request;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::h1::LAST_WRITE;
use super::entry::Entry;
use super::io::Watched;
use super::streams::{Owner, Streams};
use super::timers::{Event, Watch};
use crate::config::http::ConnectionSpec;
use crate::generation::{EpochGuard, Slot};
use crate::http::body::{Answer, Exchange};
use crate::http::connection::{Connection, Expired};
use crate::http::pipeline;
use crate::http::progress::Progress;
use crate::http::switch::Becomes;
use crate::metrics::WorkerContext;
use crate::net::{H2Stream, Peer, Sever};
use crate::tls;

/// One bound address on one worker: what its connections share.
#[derive(Debug)]
pub struct Listener {
    pub slot: Slot<Entry>,
    pub worker: Arc<WorkerContext>,
    /// Of all addresses of the worker.
    pub handshakes: Arc<tls::Counters>,
}

/// What a client with prior knowledge of HTTP/2 sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Of the first read: as a rule a whole head, so that choosing the protocol costs no extra call to the system.
const FIRST_READ: usize = 2048;
/// Windows towards clients, who are not trusted to hold more than this of our memory.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The least that HTTP/2 allows, and all that its clients need.
const FRAME: u32 = 16 * 1024;
/// Bytes of field names and values that a client may have us remember (HPACK's own default).
const FIELD_TABLE: u32 = 4096;
/// Bytes of a response that may wait in a stream's send buffer.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that a client opened and reset before we came to them (CVE-2023-44487); more is a GOAWAY.
const PENDING_RESETS: usize = 20;
/// Streams that we had to reset for the client's errors (CVE-2025-8671); more is a GOAWAY.
const LOCAL_RESETS: usize = 100;

/// Serves one accepted connection to its end, under `spec`. The caller holds permits and counts, catches panics.
///
/// Ends early when `guard.epoch.cut` is cancelled; finishes kindly when `guard.epoch.finish` is: the next HTTP/1
/// response says `Connection: close`, an idle HTTP/1 connection lingers for `IDLE_LINGER`, HTTP/2 sends GOAWAY.
//
// No `async fn`: a future has room for what it is called with beside the room of those that it hands that on to.
pub fn serve<S>(
    stream: S,
    peer: Peer,
    local: Option<SocketAddr>,
    listener: Arc<Listener>,
    spec: Arc<ConnectionSpec>,
    guard: EpochGuard,
) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let connection = Connection::new(peer, local, spec, listener.worker.clone());
    serve_read(stream, Bytes::new(), Arc::new(connection), listener, guard)
}

/// The same for a connection of which `first` was read already.
pub(super) async fn serve_read<S>(
    mut stream: S,
    first: Bytes,
    connection: Arc<Connection>,
    listener: Arc<Listener>,
    guard: EpochGuard,
) where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let switched = {
        let mut watch = pin!(watch(&connection, &guard));
        let chosen = choose(&mut stream, first, &connection, watch.as_mut());
        let Some((protocol, prefix)) = chosen.await else {
            return;
        };
        speak(stream, prefix, protocol, listener, connection, watch).await
    };
    go_on(switched, guard).await;
}

/// The same for a connection whose protocol a handshake has settled.
pub(super) async fn serve_chosen<S>(
    stream: S,
    connection: Arc<Connection>,
    protocol: Protocol,
    listener: Arc<Listener>,
    guard: EpochGuard,
) where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let switched = {
        let watch = pin!(watch(&connection, &guard));
        speak(stream, Bytes::new(), protocol, listener, connection, watch).await
    };
    go_on(switched, guard).await;
}

fn watch<'a>(connection: &Arc<Connection>, guard: &'a EpochGuard) -> Watch<'a> {
    if guard.epoch.finish.is_cancelled() {
        // Accepted from the queue of an address that goes: its first response says so already.
        connection.finish();
    }
    Watch::new(connection.clone(), &guard.epoch)
}

/// `prefix`: what was read already.
async fn speak<S>(
    stream: S,
    prefix: Bytes,
    protocol: Protocol,
    listener: Arc<Listener>,
    connection: Arc<Connection>,
    watch: Pin<&mut Watch<'_>>,
) -> Option<Switched<S>>
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    match protocol {
        Protocol::Http1 => h1::serve(stream, prefix, listener, connection, watch).await,
        Protocol::Http2 => {
            let io = Watched::new(stream, prefix, connection.clone(), None);
            // Boxed: those of HTTP/1 would have its room.
            let left = Box::pin(serve_http2(io, listener, connection, watch)).await;
            left.map(Switched::Streams)
        }
    }
}

/// Goes on with what a connection has become, if it has. It then lives and ends by its own definition, not with the
/// connections of its epoch.
async fn go_on<S>(switched: Option<Switched<S>>, guard: EpochGuard)
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    drop(guard);
    match switched {
        // Boxed: few connections come to this, and all would carry its state.
        Some(Switched::Whole {
            becomes,
            stream,
            early,
        }) => Box::pin(becomes.run(stream, early)).await,
        Some(Switched::Streams(left)) => left.await,
        None => {}
    }
}

/// A connection that lives on by what it has become.
enum Switched<S> {
    /// It speaks HTTP no more.
    Whole {
        becomes: Becomes,
        stream: S,
        /// What the client sent after its request.
        early: Bytes,
    },
    /// Some of its streams are tunnels; it ends with the last of them.
    Streams(Pin<Box<dyn Future<Output = ()> + Send>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Reads until the protocol is clear. `None`: the client left, was silent for too long or speaks what is not allowed
/// here (its bytes are no request in any protocol that is, so there is nothing to answer with).
async fn choose<S: AsyncRead + Unpin>(
    stream: &mut S,
    first: Bytes,
    connection: &Connection,
    mut watch: Pin<&mut Watch<'_>>,
) -> Option<(Protocol, Bytes)> {
    let (http1, http2) = (connection.spec.h1, connection.spec.h2);
    if !http2 {
        // hyper knows the preface and ends the connection.
        return http1.then_some((Protocol::Http1, first));
    }
    let mut first = Vec::from(first);
    loop {
        let common = first
            .iter()
            .zip(PREFACE)
            .take_while(|(a, b)| a == b)
            .count();
        if common == PREFACE.len() {
            return Some((Protocol::Http2, Bytes::from(first)));
        }
        if common < first.len() {
            return http1.then(|| (Protocol::Http1, Bytes::from(first)));
        }
        first.extend_from_slice(&read_aside(stream, watch.as_mut()).await?);
    }
}

/// What comes next, read aside, so that only as much memory is held as came. `None`: the client left, or its time is over.
async fn read_aside<S: AsyncRead + Unpin>(
    stream: &mut S,
    mut watch: Pin<&mut Watch<'_>>,
) -> Option<Bytes> {
    poll_fn(|cx| {
        let mut room = [MaybeUninit::uninit(); FIRST_READ];
        let mut buffer = ReadBuf::uninit(&mut room);
        match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                return Poll::Ready(Some(Bytes::copy_from_slice(buffer.filled())));
            }
            Poll::Ready(_) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        match watch.as_mut().poll(cx) {
            // It has the linger to say what it came for.
            Poll::Ready(Event::Finish) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(Event::Cut | Event::Expired(_)) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Pins the generation of this instant and begins a request in it.
fn begin(
    listener: &Listener,
    connection: &Arc<Connection>,
    streams: Option<&Streams>,
    request: Request<Incoming>,
) -> impl Future<Output = Answer> + Send + use<> {
    let serving = listener.slot.pin();
    let flight = serving.generation.begin(listener.slot.binding);
    let progress = Arc::new(Progress::new(flight, streams.is_some()));
    let current = match streams {
        Some(streams) => {
            streams.announce(progress.clone());
            None
        }
        None => Some(progress.clone()),
    };
    let begun = connection.begin(!request.body().is_end_stream(), current);
    let exchange = Exchange {
        progress,
        connection: connection.clone(),
    };
    pipeline::serve(exchange, begun, serving, request)
}

async fn serve_http2<S>(
    io: Watched<S>,
    listener: Arc<Listener>,
    connection: Arc<Connection>,
    mut watch: Pin<&mut Watch<'_>>,
) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>>
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    connection.set_multiplexed();
    let spec = connection.spec.clone();
    let owner = Owner::new(spec.write_timeout, listener.worker.clone());
    let streams = &owner.streams;
    let service = {
        let (listener, connection, streams) =
            (listener.clone(), connection.clone(), streams.clone());
        // Boxed: hyper moves a stream about on its way to its task, which then keeps room for the larger of the request and
        // its answer for as long as the answer lasts.
        service_fn(move |request| Box::pin(begin(&listener, &connection, Some(&streams), request)))
    };
    let mut serving = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(spec.streams)
        .max_header_list_size(u32::try_from(spec.header_size).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_frame_size(FRAME)
        .header_table_size(FIELD_TABLE)
        // A client that is gone shows by `timeouts.idle` and `timeouts.write`.
        .keep_alive_interval(None)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(io), service);
    let mut closing = false;
    let ended = loop {
        let step = poll_fn(|cx| {
            let polled = Pin::new(&mut serving).poll(cx);
            streams.reap();
            join_streams(&listener, &connection, streams);
            match polled {
                Poll::Ready(result) => return Poll::Ready(Ok(result)),
                Poll::Pending if streams.are_abused() => {
                    return Poll::Ready(Err(Event::Cut));
                }
                Poll::Pending
                    if !closing
                        && spec
                            .requests_per_connection
                            .is_some_and(|n| connection.served() >= n) =>
                {
                    return Poll::Ready(Err(Event::Finish));
                }
                Poll::Pending => {}
            }
            watch.as_mut().poll(cx).map(Err)
        })
        .await;
        match step {
            Ok(result) => break result,
            // Streams in progress end in their own time; without any, the linger ends it.
            Err(Event::Finish) => {}
            Err(Event::Expired(Expired::Idle | Expired::Header { .. }))
                if connection.open() > 0 =>
            {
                continue;
            }
            // Said once; expired again, the client did not take the hint.
            Err(Event::Expired(Expired::Idle | Expired::Header { .. })) if !closing => {}
            Err(Event::Cut) if streams.are_abused() => {
                tracing::debug!(peer = %connection.peer, "too many requests given up");
                // One word, if it can leave at once.
                Pin::new(&mut serving).graceful_shutdown();
                let _ = poll_fn(|cx| Poll::Ready(Pin::new(&mut serving).poll(cx))).await;
                return None;
            }
            // Each ends by its own definition, and then the connection.
            Err(Event::Cut) if streams.tunnels() > 0 => {
                Pin::new(&mut serving).graceful_shutdown();
                return Some(Box::pin(async move {
                    linger(serving, owner, listener, connection).await;
                }));
            }
            Err(Event::Cut | Event::Expired(_)) => return None,
        }
        closing = true;
        connection.finish();
        Pin::new(&mut serving).graceful_shutdown();
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %connection.peer, %error, "HTTP/2 connection ended");
    }
    None
}

/// Begins the tunnels that streams have become.
fn join_streams(listener: &Arc<Listener>, connection: &Arc<Connection>, streams: &Streams) {
    for (becomes, stream) in connection.take_streams() {
        becomes.settle(&listener.slot.pin());
        let exchange = Exchange {
            progress: becomes.progress().clone(),
            connection: connection.clone(),
        };
        let driver = connection.clone();
        let (tasks, progress) = (streams.clone(), exchange.progress.clone());
        let run = async move {
            let _exchange = exchange;
            // Fails when the client was gone before our answer.
            if let Ok(stream) = stream.await {
                let stream = H2Stream::new(stream, tasks.sending(&progress).await);
                becomes.run(stream, Bytes::new()).await;
            }
        };
        streams.run_tunnel(run, move || driver.wake_by_ref());
    }
}

/// Drives a connection that is to end until its last tunnel has, and what that had to say has left.
async fn linger<H>(
    mut serving: H,
    owner: Owner,
    listener: Arc<Listener>,
    connection: Arc<Connection>,
) where
    H: Future<Output = hyper::Result<()>> + Unpin,
{
    let streams = &owner.streams;
    let mut last = None;
    poll_fn(|cx| {
        connection.register(cx);
        if Pin::new(&mut serving).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        streams.reap();
        join_streams(&listener, &connection, streams);
        if streams.tunnels() > 0 {
            return Poll::Pending;
        }
        let last = last.get_or_insert_with(|| Box::pin(tokio::time::sleep(LAST_WRITE)));
        last.as_mut().poll(cx)
    })
    .await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
