//! The one response body: what a client is sent, and what must live until it has been. Dropping it, by the end of the
//! response or by a client that went away, is the end of the request: its flight, its target's count and its place on
//! the connection are released together.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::action::files::body::FileBody;
use super::compressed::Compressed;
use super::connection::Connection;
use super::filter::pace::{Deadline, Pace};
use super::progress::Progress;
use super::record::Record;
use crate::config::http::FileCoding;
use crate::upstream::error::{Error, Kind};
use crate::upstream::{InFlight, Target, UpstreamBody};

/// A request in progress: one place in its generation and one on its connection. Dropping it ends the request.
#[derive(Debug)]
pub struct Exchange {
    pub progress: Arc<Progress>,
    pub connection: Arc<Connection>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.connection.end();
    }
}

/// The body of every response.
#[derive(Debug)]
pub struct ResponseBody {
    content: Content,
    exchange: Option<Exchange>,
    /// What few responses have; boxed, for every response would carry its room.
    extras: Option<Box<Extras>>,
    record: Option<Record>,
    /// Holds the target's in-flight count.
    in_flight: Option<InFlight>,
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(outcome) = self.record.as_mut().and_then(Record::finish)
            && let Some(in_flight) = &mut self.in_flight
        {
            in_flight.end(outcome);
        }
    }
}

/// What holds a body back or ends it.
#[derive(Debug)]
struct Extras {
    pace: Option<Pace>,
    deadline: Option<Deadline>,
}

/// Bytes of a fixed body that are handed over at a time: what HTTP/2 is given is queued whatever the client's window, so
/// more than this would wait in memory where no timer sees it.
const PIECE: usize = 64 * 1024;

/// What is sent.
#[derive(Debug)]
pub enum Content {
    Empty,
    Full(Bytes),
    Upstream(UpstreamBody),
    File(FileBody),
    /// Any of the others, compressed. Boxed: few are.
    Compressed(Box<Compressed>),
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Content {
        if bytes.is_empty() {
            Content::Empty
        } else {
            Content::Full(bytes)
        }
    }
}

impl Content {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self {
            Content::Empty => Poll::Ready(None),
            Content::Full(bytes) => {
                let piece = bytes.split_to(bytes.len().min(PIECE));
                if bytes.is_empty() {
                    *self = Content::Empty;
                }
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Content::Upstream(body) => Pin::new(body).poll_frame(cx),
            Content::File(file) => file.poll_piece(cx).map(|piece| {
                let piece = piece?.map(Frame::data).map_err(|error| {
                    let detail = format!("a file while it was sent: {error}");
                    Error::us(Kind::ProxyInternalError, detail)
                });
                Some(piece)
            }),
            Content::Compressed(compressed) => compressed.poll_frame(cx),
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Content::Empty => SizeHint::with_exact(0),
            Content::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Upstream(body) => body.size_hint(),
            Content::File(file) => SizeHint::with_exact(file.left()),
            Content::Compressed(_) => SizeHint::default(),
        }
    }
}

impl ResponseBody {
    pub fn new(content: Content) -> ResponseBody {
        ResponseBody {
            content,
            exchange: None,
            extras: None,
            record: None,
            in_flight: None,
        }
    }

    /// A target's body, with its count.
    pub fn streamed(body: UpstreamBody, in_flight: InFlight) -> ResponseBody {
        ResponseBody {
            content: Content::Upstream(body),
            exchange: None,
            extras: None,
            record: None,
            in_flight: Some(in_flight),
        }
    }

    /// Ties the request's end to this body's. `record`: unless something else keeps it.
    pub fn hold(&mut self, exchange: Exchange, record: Option<Record>) {
        if exchange.progress.is_stream() && self.is_end_stream() {
            exchange.progress.set_answered();
        }
        self.exchange = Some(exchange);
        self.record = record;
    }

    /// Who gave it.
    pub fn target(&self) -> Option<&Arc<Target>> {
        self.in_flight.as_ref().map(|in_flight| &in_flight.target)
    }

    /// Sends it no faster than `pace`, and not beyond `deadline`. One that has no content has neither.
    pub fn limit(&mut self, pace: Option<Pace>, deadline: Option<Deadline>) {
        // One at hand is sent at once, unless it is paced.
        let lasts = matches!(
            self.content,
            Content::Upstream(_) | Content::File(_) | Content::Compressed(_)
        );
        let deadline = deadline.filter(|_| lasts || pace.is_some());
        if (pace.is_some() || deadline.is_some()) && !matches!(self.content, Content::Empty) {
            self.extras = Some(Box::new(Extras { pace, deadline }));
        }
    }

    /// What its limits have to say before the content is asked.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Option<Poll<Result<Bytes, Error>>> {
        let extras = self.extras.as_mut()?;
        if let Some(deadline) = &mut extras.deadline
            && let Poll::Ready(over) = deadline.poll_over(cx)
        {
            return Some(Poll::Ready(Err(over)));
        }
        let pace = extras.pace.as_mut()?;
        if pace.poll_ready(cx).is_pending() {
            return Some(Poll::Pending);
        }
        let rest = pace.rest()?;
        Some(Poll::Ready(Ok(pace.take(rest))))
    }

    /// The next of the content, no more of it than the pace allows.
    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = self.content.poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &polled
            && let Some(in_flight) = &self.in_flight
        {
            in_flight.broken(error);
        }
        let Some(pace) = self.extras.as_mut().and_then(|extras| extras.pace.as_mut()) else {
            return polled;
        };
        polled.map_ok(|frame| match frame.into_data() {
            Ok(piece) => Frame::data(pace.take(piece)),
            Err(trailers) => trailers,
        })
    }

    fn pace(&self) -> Option<&Pace> {
        self.extras.as_ref()?.pace.as_ref()
    }

    /// Sends what it has compressed from here on. Its length is not known any more.
    pub fn compress(&mut self, coding: FileCoding) {
        let content = std::mem::replace(&mut self.content, Content::Empty);
        self.content = match Compressed::new(content, coding) {
            Ok(compressed) => Content::Compressed(Box::new(compressed)),
            Err(content) => content,
        };
    }

    /// Nothing follows this.
    fn ends_with(&self, polled: &Poll<Option<Result<Frame<Bytes>, Error>>>) -> bool {
        match polled {
            Poll::Pending => false,
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || self.is_end_stream(),
            Poll::Ready(None | Some(Err(_))) => true,
        }
    }

    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Takes the content away.
    pub fn empty(&mut self) {
        self.content = Content::Empty;
    }

    /// Takes the content away, as `HEAD` wants it, and returns its length where that is known beforehand.
    pub fn suppress(&mut self) -> Option<usize> {
        match &self.content {
            Content::Full(bytes) => {
                let length = bytes.len();
                self.content = Content::Empty;
                Some(length)
            }
            Content::Empty => Some(0),
            // Has no content of its own in answer to HEAD.
            Content::Upstream(_) => None,
            Content::Compressed(_) => {
                self.content = Content::Empty;
                None
            }
            Content::File(file) => {
                let length = usize::try_from(file.left()).ok();
                self.content = Content::Empty;
                length
            }
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let lasts = matches!(
            this.content,
            Content::Upstream(_) | Content::File(_) | Content::Compressed(_)
        );
        if (lasts || this.extras.is_some())
            && let Some(exchange) = &this.exchange
            && exchange.progress.flight.poll_cut(cx).is_ready()
        {
            let cut = Error::us(
                Kind::ConnectionTerminated,
                "cut at the drain deadline of its generation",
            );
            return Poll::Ready(Some(Err(cut)));
        }
        if let Some(in_flight) = &mut this.in_flight
            && in_flight.poll_cut(cx).is_ready()
        {
            return Poll::Ready(Some(Err(in_flight.cut_error())));
        }
        let polled = match this.poll_limits(cx) {
            Some(limited) => limited.map(|piece| Some(piece.map(Frame::data))),
            None => this.poll_content(cx),
        };
        if let Some(exchange) = &this.exchange {
            exchange.progress.handed_over(polled.is_ready());
            if exchange.progress.is_stream() && this.ends_with(&polled) {
                exchange.progress.set_answered();
            }
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && let Some(record) = &mut this.record
        {
            record.add_sent(data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        if self.pace().is_some_and(|pace| pace.left() > 0) {
            return false;
        }
        match &self.content {
            Content::Empty => true,
            Content::Full(_) => false,
            Content::Upstream(body) => body.is_end_stream(),
            Content::File(file) => file.left() == 0,
            Content::Compressed(compressed) => compressed.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let mut size = self.content.size_hint();
        if let Some(left) = self.pace().map(Pace::left).filter(|left| *left > 0) {
            if let Some(upper) = size.upper() {
                size.set_upper(upper + left);
            }
            size.set_lower(size.lower() + left);
        }
        size
    }
}

/// A service of ours always answers.
pub type Answer = Result<http::Response<ResponseBody>, Infallible>;
