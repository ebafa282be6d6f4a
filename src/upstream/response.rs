//! The response body on its way to the client, and the moment its connection becomes free.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::Progress;
use super::connection::Connection;
use super::error::{Error, Kind, chain};
use super::multiplex::Ticket;
use super::pool::Lease;
use crate::config::scalar::TargetAddr;

/// The response body as it comes from a target, with the idle limit between its pieces; a cut one is an error, never a
/// clean end. It hands the connection back to the pool when it has ended.
///
/// Dropped before its end, it closes the connection, which stops the origin.
#[derive(Debug)]
pub struct UpstreamBody {
    incoming: Incoming,
    /// The connection, until it goes back.
    held: Option<Held>,
    /// The request's body, unless it was empty.
    sent: Option<Arc<Progress>>,
    limit: Option<Duration>,
    /// While a piece is waited for: until when, unless the request's body still comes.
    due: Option<Instant>,
}

/// A connection that belongs to no target.
#[derive(Debug)]
pub(super) struct Alone {
    pub(super) connection: Box<Connection>,
    pub(super) peer: TargetAddr,
}

/// What a response comes on.
#[derive(Debug)]
pub(super) enum Held {
    /// HTTP/1: the connection.
    H1(Lease),
    /// HTTP/2: a stream.
    H2(Ticket),
    /// HTTP/1 on a connection that ends with it.
    Alone(Box<Alone>),
}

impl UpstreamBody {
    pub(super) fn new(
        incoming: Incoming,
        held: Held,
        sent: Option<Arc<Progress>>,
        limit: Option<Duration>,
    ) -> UpstreamBody {
        let mut body = UpstreamBody {
            incoming,
            held: Some(held),
            sent,
            limit,
            due: None,
        };
        if body.incoming.is_end_stream() {
            body.release();
        }
        body
    }

    /// The response is whole: its connection is free, unless the origin answered before it had the whole request.
    /// Then the connection's next bytes would still be that request's, so it is closed; a stream is reset.
    fn release(&mut self) {
        if let Some(Held::H1(lease)) = self.held.take()
            && self.sent.as_ref().is_none_or(|sent| sent.ended())
        {
            lease.give_back();
        }
    }

    /// The next piece, driving the connection until it comes or is late.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let UpstreamBody {
            incoming,
            held,
            sent,
            limit,
            due,
        } = self;
        let mut incoming = Pin::new(incoming);
        let ask = |cx: &mut Context<'_>| incoming.as_mut().poll_frame(cx);
        let due = |passed| {
            let limit = (*limit)?;
            let Some(passed) = passed else {
                return Some(*due.get_or_insert_with(|| Instant::now() + limit));
            };
            // While the client still sends, the origin may be silent.
            let later = sent.as_ref()?.last() + limit;
            *due = Some(later);
            (later > passed).then_some(later)
        };
        let piece = match held {
            Some(Held::H1(lease)) => lease.connection.poll(cx, ask, due),
            Some(Held::H2(ticket)) => ticket.deadline.watch(cx, ask, due),
            Some(Held::Alone(alone)) => alone.connection.poll(cx, ask, due),
            // All of it is here.
            None => return incoming.poll_frame(cx).map_err(Cut::Broken),
        };
        match ready!(piece) {
            Some(piece) => Poll::Ready(piece.map(|piece| piece.map_err(Cut::Broken))),
            None => Poll::Ready(Some(Err(Cut::Late(limit.unwrap_or_default())))),
        }
    }

    fn cut(&mut self, kind: Kind, why: String) -> Error {
        let peer = self
            .held
            .take()
            .map_or_else(String::new, |held| format!("{}: ", held.peer()));
        // When the client's own body broke, hyper ends both directions; the cause is the client's.
        match self.sent.as_ref().and_then(|sent| sent.failure()) {
            Some(error) => error,
            None => Error::upstream(kind, format!("{peer}{why}")),
        }
    }
}

impl Held {
    fn peer(&self) -> &TargetAddr {
        match self {
            Held::H1(lease) => lease.peer(),
            Held::H2(ticket) => ticket.connection.peer(),
            Held::Alone(alone) => &alone.peer,
        }
    }
}

/// Why a body ends before its end.
enum Cut {
    Broken(hyper::Error),
    Late(Duration),
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        match this.poll_incoming(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.due = None;
                // A reader that sees the end coming does not ask again.
                if frame.is_trailers() || this.incoming.is_end_stream() {
                    this.release();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.release();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(cut))) => {
                let (kind, why) = match cut {
                    Cut::Broken(error) => (Kind::HttpResponseIncomplete, chain(&error)),
                    Cut::Late(limit) => (
                        Kind::ConnectionReadTimeout,
                        format!("no piece of the response body within {limit:?}"),
                    ),
                };
                Poll::Ready(Some(Err(this.cut(kind, why))))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
