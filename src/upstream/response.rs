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
use super::driven::Driven;
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
    /// What it comes on, until it has ended.
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
    H2(Ticket, Incoming),
    /// HTTP/1 on a connection that ends with it.
    Alone(Box<Alone>),
    /// HTTP/1, while the request is still being sent.
    Driven(Box<Driven>),
}

impl UpstreamBody {
    pub(super) fn new(
        held: Held,
        sent: Option<Arc<Progress>>,
        limit: Option<Duration>,
    ) -> UpstreamBody {
        let is_sending = held
            .connection()
            .is_some_and(|one| one.http.is_sending() && !one.http.is_answered());
        let held = match is_sending {
            true => Held::Driven(Box::new(Driven::new(held))),
            false => held,
        };
        let mut body = UpstreamBody {
            held: Some(held),
            sent,
            limit,
            due: None,
        };
        if body.held.as_ref().is_none_or(Held::is_ended) {
            body.release();
        }
        body
    }

    /// The response is whole: its connection is free, unless the origin answered before it had the whole request.
    /// Then the connection's next bytes would still be that request's, so it is closed; a stream is reset.
    fn release(&mut self) {
        if let Some(Held::H1(lease)) = self.held.take() {
            lease.give_back();
        }
    }

    /// The next piece, driving the connection until it comes or is late.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let UpstreamBody {
            held,
            sent,
            limit,
            due,
        } = self;
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
            Some(Held::H1(Lease { connection, .. })) => ready!(poll_h1(connection, cx, due)),
            Some(Held::Alone(alone)) => ready!(poll_h1(&mut alone.connection, cx, due)),
            Some(Held::H2(ticket, incoming)) => {
                let ask = |cx: &mut Context<'_>| Pin::new(incoming).poll_frame(cx);
                let piece = ready!(ticket.deadline.watch(cx, ask, due));
                piece.map(|piece| piece.map(|piece| piece.map_err(|e| chain(&e))))
            }
            Some(Held::Driven(driven)) => ready!(driven.poll(cx, due)),
            // All of it is here.
            None => Some(None),
        };
        Poll::Ready(match piece {
            Some(piece) => piece.map(|piece| piece.map_err(Cut::Broken)),
            None => Some(Err(Cut::Late(limit.unwrap_or_default()))),
        })
    }

    fn cut(&mut self, kind: Kind, why: String) -> Error {
        let peer = self
            .held
            .take()
            .map_or_else(String::new, |held| format!("{}: ", held.peer()));
        // When the client's own body broke, both directions end; the cause is the client's.
        match self.sent.as_ref().and_then(|sent| sent.failure()) {
            Some(error) => error,
            None => Error::upstream(kind, format!("{peer}{why}")),
        }
    }
}

impl Held {
    pub(super) fn peer(&self) -> &TargetAddr {
        match self {
            Held::H1(lease) => lease.peer(),
            Held::H2(ticket, _) => ticket.connection.peer(),
            Held::Alone(alone) => &alone.peer,
            Held::Driven(driven) => driven.peer(),
        }
    }

    pub(super) fn connection(&self) -> Option<&Connection> {
        match self {
            Held::H1(lease) => Some(&lease.connection),
            Held::Alone(alone) => Some(&alone.connection),
            Held::H2(..) | Held::Driven(_) => None,
        }
    }

    /// It holds a connection of HTTP/1.
    pub(super) fn connection_mut(&mut self) -> Option<&mut Connection> {
        match self {
            Held::H1(lease) => Some(&mut lease.connection),
            Held::Alone(alone) => Some(&mut alone.connection),
            Held::H2(..) | Held::Driven(_) => None,
        }
    }

    /// No piece will come, as far as is known.
    fn is_ended(&self) -> bool {
        match self {
            Held::H2(_, incoming) => incoming.is_end_stream(),
            Held::Driven(driven) => driven.rest() == Some(0),
            _ => self.connection().is_none_or(|one| one.http.is_answered()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match self {
            Held::H2(_, incoming) => return incoming.size_hint(),
            Held::Driven(driven) => driven.rest(),
            _ => self.connection().and_then(|one| one.http.rest()),
        };
        rest.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The next piece of an answer over HTTP/1; `None`: it is late.
fn poll_h1(
    connection: &mut Connection,
    cx: &mut Context<'_>,
    due: impl FnMut(Option<Instant>) -> Option<Instant>,
) -> Poll<Option<Option<Piece>>> {
    let Connection { http, deadline, .. } = connection;
    let piece = ready!(deadline.watch(cx, |cx| http.poll_body(cx), due));
    Poll::Ready(piece.map(|piece| piece.map(|piece| piece.map_err(|fault| fault.to_string()))))
}

/// A piece of an answer, or what broke it.
pub(super) type Piece = Result<Frame<Bytes>, String>;

/// Why a body ends before its end.
enum Cut {
    /// What broke it.
    Broken(String),
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
        match this.poll_piece(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.due = None;
                // A reader that sees the end coming does not ask again.
                if frame.is_trailers() || this.is_end_stream() {
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
                    Cut::Broken(why) => (Kind::HttpResponseIncomplete, why),
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
        self.held.as_ref().is_none_or(Held::is_ended)
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.as_ref();
        held.map_or_else(|| SizeHint::with_exact(0), Held::size_hint)
    }
}
