//! An HTTP/1 connection of a client. One that has been idle for a while is *parked*: hyper is taken off it, with its buffers
//! and the room for a request's state, and only its stream, its timers and its counts are left, until bytes come.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::super::framing::Framing;
use super::super::io::Watched;
use super::super::timers::{Event, Watch};
use super::{Listener, Switched, begin, read_aside};
use crate::http::Face as _;
use crate::http::connection::{Connection, Expired};
use crate::net::Sever;

/// How long a closed connection is read on so that our last answer is not lost to a reset: while its client sends, and
/// in all. Nothing of it is kept, so its bytes are not counted.
const LAST_SILENCE: Duration = Duration::from_secs(2);
const LAST_READ: Duration = Duration::from_secs(10);
const LAST_BUFFER: usize = 4 * 1024;
/// How long the answer to a head that never ended may take to leave.
pub(super) const LAST_WRITE: Duration = Duration::from_secs(1);
/// Bytes of an HTTP/1 read or write buffer, if no larger head is allowed. Also the bound of a head that never ends.
const BUFFER: usize = 64 * 1024;

/// How hyper's part of a connection ended.
enum Ended<S> {
    /// It has been idle for a while; what came after all is not read yet.
    Quiet(S, Bytes),
    /// The connection is over, but for what it has become.
    Over(Option<Switched<S>>),
}

/// `prefix`: what was read already.
pub(super) async fn serve<S>(
    mut stream: S,
    mut prefix: Bytes,
    listener: Arc<Listener>,
    connection: Arc<Connection>,
    mut watch: Pin<&mut Watch<'_>>,
) -> Option<Switched<S>>
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    loop {
        let framing = Some(Framing::default());
        let io = Watched::new(stream, prefix, connection.clone(), framing);
        // Boxed: a parked connection does without its room.
        let ended = Box::pin(converse(io, &listener, &connection, watch.as_mut())).await;
        (stream, prefix) = match ended {
            Ended::Quiet(stream, prefix) => (stream, prefix),
            Ended::Over(switched) => return switched,
        };
        if prefix.is_empty() {
            connection.park();
            prefix = read_aside(&mut stream, watch.as_mut()).await?;
        }
    }
}

/// Lets hyper speak until the connection is over, or has been idle for a while.
async fn converse<S>(
    io: Watched<S>,
    listener: &Arc<Listener>,
    connection: &Arc<Connection>,
    mut watch: Pin<&mut Watch<'_>>,
) -> Ended<S>
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let service = {
        let (listener, connection) = (listener.clone(), connection.clone());
        service_fn(move |request| begin(&listener, &connection, None, request))
    };
    let spec = &connection.spec;
    let mut serving = http1::Builder::new()
        // A client that shuts down its side after the request still gets its answer, within a limit of ours.
        .half_close(true)
        .keep_alive(true)
        .max_headers(spec.headers)
        .max_header_size(spec.header_size)
        .max_buf_size(spec.header_size.max(BUFFER))
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(io), service);
    let ended = loop {
        let step = poll_fn(|cx| match Pin::new(&mut serving).poll(cx) {
            Poll::Ready(result) => Poll::Ready(Ok(result)),
            Poll::Pending if connection.poll_cut(cx).is_ready() => Poll::Ready(Err(Event::Cut)),
            Poll::Pending => watch.as_mut().poll(cx).map(Err),
        })
        .await;
        match step {
            Ok(result) => break result,
            // Responses say so from now on; between two the deadline is the linger.
            Err(Event::Finish) => {}
            Err(Event::Expired(Expired::Quiet)) => {
                let (stream, prefix) = apart(serving.into_parts());
                return Ended::Quiet(stream, prefix);
            }
            Err(Event::Expired(Expired::Header { partial: true }))
                if connection.may_refuse_head() =>
            {
                refused(listener, connection, StatusCode::REQUEST_TIMEOUT);
                // Boxed, like all last words: the connection's task would have their room all its life.
                let last = Box::pin(refuse_slow_head(serving.into_parts().io.into_inner()));
                watch.epoch.cut.run_until_cancelled(last).await;
                return Ended::Over(None);
            }
            Err(Event::Cut | Event::Expired(_)) => {
                give_up(&serving.into_parts().io.into_inner());
                return Ended::Over(None);
            }
        }
    };
    if ended.is_ok()
        && let Some(becomes) = connection.take_tunnel()
    {
        becomes.settle(&listener.slot.pin());
        let (stream, early) = apart(serving.into_parts());
        return Ended::Over(Some(Switched::Whole {
            becomes,
            stream,
            early,
        }));
    }
    let malformed = match &ended {
        Ok(()) => false,
        Err(error) => {
            tracing::debug!(peer = %connection.peer, %error, "HTTP/1 connection ended");
            if error.is_parse() {
                // What hyper has answered by itself.
                let status = if error.is_parse_too_large() {
                    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
                } else {
                    StatusCode::BAD_REQUEST
                };
                refused(listener, connection, status);
            }
            error.is_parse()
        }
    };
    if malformed || (ended.is_ok() && connection.is_unread()) {
        let last = Box::pin(read_away(serving.into_parts().io.into_inner()));
        watch.epoch.cut.run_until_cancelled(last).await;
    } else if ended.is_err() {
        give_up(&serving.into_parts().io.into_inner());
    }
    Ended::Over(None)
}

/// The stream, and what was read of it and not used.
fn apart<S, T>(parts: http1::Parts<TokioIo<Watched<S>>, T>) -> (S, Bytes) {
    let (stream, later) = parts.io.into_inner().into_parts();
    if parts.read_buf.is_empty() {
        return (stream, later);
    }
    (stream, [parts.read_buf, later].concat().into())
}

/// A close is the end of some responses: it must not be taken for that where they have been cut.
fn give_up<S: Sever>(io: &Watched<S>) {
    if io.connection().is_open_ended() {
        io.sever();
    }
}

/// What could not be read as a request is counted and written down like one.
fn refused(listener: &Listener, connection: &Connection, status: StatusCode) {
    let serving = listener.slot.pin();
    let generation = serving.generation.id;
    serving
        .entry
        .http()
        .watch
        .refused(connection, generation, status.as_u16());
}

/// `408` by hand, since no request came that hyper could answer.
async fn refuse_slow_head<S: AsyncRead + AsyncWrite + Unpin>(mut io: Watched<S>) {
    const ANSWER: &[u8] =
        b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let write = async {
        io.write_all(ANSWER).await?;
        io.shutdown().await
    };
    // Best effort: the connection ends either way.
    let _ = tokio::time::timeout(LAST_WRITE, write).await;
}

/// Reads what the client still sends after our side was shut down: closing with unread bytes would be a reset, and that
/// may overtake our last answer.
async fn read_away<S: AsyncRead + AsyncWrite + Unpin>(mut io: Watched<S>) {
    // hyper leaves that to us when the client had asked for another protocol.
    if !matches!(
        tokio::time::timeout(LAST_WRITE, io.shutdown()).await,
        Ok(Ok(()))
    ) {
        return;
    }
    let read = async {
        while let Ok(true) = tokio::time::timeout(LAST_SILENCE, read_some(&mut io)).await {}
    };
    // Time over: it is closed as it is.
    let _ = tokio::time::timeout(LAST_READ, read).await;
}

/// True if there was something. It is read aside, so that nothing is held or cleared for it.
fn read_some<S: AsyncRead + Unpin>(io: &mut Watched<S>) -> impl Future<Output = bool> {
    poll_fn(|cx| {
        let mut room = [MaybeUninit::uninit(); LAST_BUFFER];
        let mut buffer = ReadBuf::uninit(&mut room);
        let read = ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer));
        Poll::Ready(read.is_ok() && !buffer.filled().is_empty())
    })
}
