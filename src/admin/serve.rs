//! The admin listener: follows the binding that the supervisor publishes, accepts from it, and owns every connection.
//! A new address is served before the old one's last answer is out; a changed token or name needs nothing here, since
//! the guards read the binding at each request.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
#[cfg(unix)]
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::control::Control;
use super::guard::Peer;
use super::{App, Context};
use crate::supervisor::{AdminListener, Handle};

/// Open connections; more wait in the kernel's queue.
const CONNECTIONS: usize = 256;
/// For a request head, and for an idle connection.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Largest request head; hyper answers 431 beyond.
const HEAD_SIZE: usize = 64 * 1024;
/// Most header fields.
const HEAD_FIELDS: usize = 100;
/// How long a peer may leave an answer unread before its connection is given up.
const WRITE_STALL: Duration = Duration::from_secs(60);
/// How long the last answers may take once the process has ended its work.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// First and longest pause after a failed accept.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Serves the admin API for the life of the process. Returns once `context.stop` is cancelled (or the supervisor's
/// binding watch has closed) and the answers in flight are out, or their time is over.
pub async fn serve(handle: Handle, context: Context) {
    run(handle, context).await;
}

pub(crate) async fn run<C: Control>(control: C, context: Context) {
    let stop = context.stop.clone();
    let app = App::new(control, context);
    let router = super::router(app.clone());
    let mut binding = app.0.binding.clone();
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut open: Option<Open> = None;
    loop {
        let wanted = binding
            .borrow_and_update()
            .as_ref()
            .map(|binding| binding.listener.clone());
        if !same(open.as_ref().map(|open| &open.origin), wanted.as_ref()) {
            // Dropping the old one tells its connections to finish what they are at.
            open = wanted.and_then(|listener| match Open::new(listener) {
                Ok(open) => Some(open),
                Err(error) => {
                    tracing::error!(%error, "the admin address cannot be served");
                    None
                }
            });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = binding.changed() => if changed.is_err() { break },
            Some(ended) = connections.join_next() => note(&app, ended),
            (stream, peer, permit) = accept(open.as_mut(), &permits) => {
                let leave = open.as_ref().map(|open| open.leave.child_token()).unwrap_or_default();
                connections.spawn(connection(stream, peer, router.clone(), leave, permit));
            }
        }
    }
    drop(open);
    let last = async {
        while let Some(ended) = connections.join_next().await {
            note(&app, ended);
        }
    };
    if tokio::time::timeout(LAST_ANSWERS, last).await.is_err() {
        tracing::warn!("admin connections were closed with answers unread");
        connections.shutdown().await;
    }
    app.0.ended.cancel();
    app.0.observers.close();
    app.0.observers.wait().await;
}

fn same(a: Option<&Arc<AdminListener>>, b: Option<&Arc<AdminListener>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

fn note<C: Control>(app: &App<C>, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        app.0.context.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(%error, "a panic in an admin connection");
    }
}

/// A listener that is being served.
struct Open {
    origin: Arc<AdminListener>,
    socket: Socket,
    leave: CancellationToken,
    pause: Duration,
}

enum Socket {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

impl Open {
    /// Registers a duplicate of the socket with this runtime; the supervisor keeps the original.
    fn new(origin: Arc<AdminListener>) -> io::Result<Open> {
        let socket = match &*origin {
            AdminListener::Tcp(listener) => {
                let listener = listener.try_clone()?;
                listener.set_nonblocking(true)?;
                Socket::Tcp(TcpListener::from_std(listener)?)
            }
            #[cfg(unix)]
            AdminListener::Unix(listener) => {
                let listener = listener.try_clone()?;
                listener.set_nonblocking(true)?;
                Socket::Unix(UnixListener::from_std(listener)?)
            }
        };
        Ok(Open {
            origin,
            socket,
            leave: CancellationToken::new(),
            pause: BACK_OFF.0,
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.leave.cancel();
    }
}

/// What a connection is made of.
trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// The next connection, with its permit. Never ends without a listener. Cancel-safe: nothing is accepted before it is
/// returned.
async fn accept(
    open: Option<&mut Open>,
    permits: &Arc<Semaphore>,
) -> (Pin<Box<dyn Stream>>, Peer, OwnedSemaphorePermit) {
    let Some(open) = open else {
        return std::future::pending().await;
    };
    let Ok(permit) = permits.clone().acquire_owned().await else {
        return std::future::pending().await;
    };
    loop {
        let accepted: io::Result<(Pin<Box<dyn Stream>>, Peer)> = match &open.socket {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                // Answers are small and streamed line by line; without this each line could wait for an ACK.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY");
                }
                (Box::pin(stream) as Pin<Box<dyn Stream>>, Peer::Tcp(peer))
            }),
            #[cfg(unix)]
            Socket::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                let user = stream.peer_cred().ok().map(|peer| peer.uid());
                (Box::pin(stream) as Pin<Box<dyn Stream>>, Peer::Unix(user))
            }),
        };
        match accepted {
            Ok((stream, peer)) => {
                open.pause = BACK_OFF.0;
                return (stream, peer, permit);
            }
            // Of one connection, not of the listener.
            Err(error) if is_connection_error(&error) => {}
            Err(error) => {
                // Out of descriptors, most likely: the connection stays queued, so trying at once would spin.
                tracing::warn!(%error, pause_ms = open.pause.as_millis() as u64, "the admin address cannot accept");
                let pause = open.pause;
                open.pause = (pause * 2).min(BACK_OFF.1);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

fn is_connection_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// One connection to its end. `leave` lets it finish the request it is at.
async fn connection(
    stream: Pin<Box<dyn Stream>>,
    peer: Peer,
    router: Router,
    leave: CancellationToken,
    permit: OwnedSemaphorePermit,
) {
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let router = router.clone();
        async move {
            router
                .oneshot(request)
                .await
                .map_err(|never: Infallible| never)
        }
    });
    let io = TokioIo::new(Stalling {
        stream,
        stalled: None,
    });
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(HEAD_SIZE)
            .max_headers(HEAD_FIELDS)
            .serve_connection(io, service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = leave.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "admin connection");
    }
    drop(permit);
}

pin_project! {
    /// Gives a connection up whose peer does not read: a forgotten `curl` on a stream would hold a permit for ever.
    struct Stalling {
        stream: Pin<Box<dyn Stream>>,
        stalled: Option<Pin<Box<Sleep>>>,
    }
}

impl Stalling {
    fn watch<T>(
        &mut self,
        task: &mut Task<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let sleep = self.stalled.get_or_insert_with(|| {
            Box::pin(tokio::time::sleep_until(Instant::now() + WRITE_STALL))
        });
        match sleep.as_mut().poll(task) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Stalling {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(task, buffer)
    }
}

impl AsyncWrite for Stalling {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream.as_mut().poll_write(task, bytes);
        self.watch(task, written)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream.as_mut().poll_write_vectored(task, parts);
        self.watch(task, written)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        let flushed = self.stream.as_mut().poll_flush(task);
        self.watch(task, flushed)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(task)
    }
}
