//! One connection of the API, and what is between it and the wire: bounds on heads, on peers that do not read, and a
//! close that lets the peer read the last answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, header};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::guard::Peer;
use super::seats::{Seat, Turn};
use super::secure::Opening;

/// For a request head, for an idle connection, and for a TLS handshake.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Largest request head; hyper answers 431 beyond. It looks at this between reads, so a little more may pass.
const HEAD_SIZE: usize = 64 * 1024;
/// Most header fields.
const HEAD_FIELDS: usize = 100;
/// How long a peer may leave an answer unread before its connection is given up.
const WRITE_STALL: Duration = Duration::from_secs(60);
/// How much is read and thrown away after the last answer, and how long: closing on what the peer still sends would
/// reset the connection, and the answer could be lost with it.
const DISCARD: (usize, Duration) = (64 * 1024 * 1024, Duration::from_secs(5));

/// What a connection is made of.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// An accepted socket of either kind.
pub(super) type Wire = Pin<Box<dyn Stream>>;

/// A connection that was accepted.
pub(super) struct Accepted {
    pub(super) wire: Wire,
    pub(super) opening: Opening,
    pub(super) peer: Peer,
}

/// The connection was told to end before the request came.
#[derive(Debug, thiserror::Error)]
#[error("the connection was told to end")]
struct Closed;

/// One connection to its end. `leave` lets it finish the request it is at; a closed seat ends it where it is.
pub(super) async fn connection(
    accepted: Accepted,
    router: Router,
    leave: CancellationToken,
    seat: Arc<Seat>,
) {
    let Accepted {
        wire,
        opening,
        peer,
    } = accepted;
    let at = seat.clone();
    let served = async {
        let passed = tokio::time::timeout(HEAD_TIME, opening.pass(wire)).await;
        let (wire, secured) = match passed {
            Ok(Ok(passed)) => passed,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "TLS handshake with the admin API failed");
                return Ok(());
            }
            Err(_) => return Ok(()),
        };
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            let extensions = request.extensions_mut();
            extensions.insert(peer.clone());
            if let Some(secured) = &secured {
                extensions.insert(secured.clone());
            }
            answer(request, router.clone(), at.clone())
        });
        let io = TokioIo::new(Bounded {
            wire,
            seat: seat.clone(),
            stalled: None,
            last: None,
        });
        let mut connection = std::pin::pin!(
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(HEAD_SIZE)
                .max_headers(HEAD_FIELDS)
                .serve_connection(io, service)
        );
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = leave.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    tokio::select! {
        // First: a seat that was given to another takes no request any more.
        biased;
        () = seat.closed() => tracing::debug!("an admin connection without a request was closed"),
        ended = served => if let Err(error) = ended {
            tracing::debug!(%error, "admin connection");
        }
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    router: Router,
    seat: Arc<Seat>,
) -> Result<hyper::Response<Outgoing>, Closed> {
    let turn = seat.request(request.body().is_end_stream()).ok_or(Closed)?;
    let request = request.map(|body| {
        let seat = seat.clone();
        Body::new(Received { body, seat })
    });
    let Ok(mut response) = router.oneshot(request).await;
    if seat.owes() {
        // Answered without the whole body: what follows on this connection is not a request.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    Ok(response.map(|body| Outgoing { body, _turn: turn }))
}

/// A request's body, which tells its seat when it is here, or when nobody wants the rest.
struct Received {
    body: Incoming,
    seat: Arc<Seat>,
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(task));
        if frame.is_none() || self.body.is_end_stream() {
            self.seat.received(true);
        }
        Poll::Ready(frame)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.seat.received(false);
    }
}

/// An answer's body, which keeps the request in flight until hyper has taken all of it.
struct Outgoing {
    body: Body,
    _turn: Turn,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(task)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Gives a connection up whose peer does not read (a forgotten `curl` on a stream would hold a seat for ever), and
/// closes lingeringly.
struct Bounded {
    wire: Wire,
    seat: Arc<Seat>,
    stalled: Option<Pin<Box<Sleep>>>,
    last: Option<Last>,
}

/// What may still come after we have said that nothing follows from us.
struct Last {
    left: usize,
    over: Pin<Box<Sleep>>,
}

impl Bounded {
    fn watch<T>(
        &mut self,
        task: &mut Task<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.stalled.take().is_some() {
                self.seat.unsent(false);
            }
            return written;
        }
        let stalled = match &mut self.stalled {
            Some(stalled) => stalled,
            none => {
                self.seat.unsent(true);
                none.insert(Box::pin(tokio::time::sleep(WRITE_STALL)))
            }
        };
        match stalled.as_mut().poll(task) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.wire.as_mut().poll_read(task, buffer)
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.wire.as_mut().poll_write(task, bytes);
        self.watch(task, written)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.wire.as_mut().poll_write_vectored(task, parts);
        self.watch(task, written)
    }
    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        let flushed = self.wire.as_mut().poll_flush(task);
        self.watch(task, flushed)
    }
    /// Ends our side, then reads what the peer still sends until it ends its own, within [`DISCARD`].
    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let last = match &mut this.last {
            Some(last) => last,
            none => {
                ready!(this.wire.as_mut().poll_shutdown(task))?;
                if this.seat.ending() {
                    return Poll::Ready(Ok(()));
                }
                none.insert(Last {
                    left: DISCARD.0,
                    over: Box::pin(tokio::time::sleep(DISCARD.1)),
                })
            }
        };
        if last.over.as_mut().poll(task).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut space = [0; 16 * 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(this.wire.as_mut().poll_read(task, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    match last.left.checked_sub(buffer.filled().len()) {
                        Some(rest) => last.left = rest,
                        None => return Poll::Ready(Ok(())),
                    }
                }
                // The end, or a peer that is gone: either way the answer is no longer in danger.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
