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
use super::progress::Progress;
use crate::config::http::FileCoding;
use crate::upstream::error::{Error, Kind};
use crate::upstream::{InFlight, UpstreamBody};

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
    /// Holds the target's in-flight count.
    _in_flight: Option<InFlight>,
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
            _in_flight: None,
        }
    }

    /// A target's body, with its count.
    pub fn streamed(body: UpstreamBody, in_flight: InFlight) -> ResponseBody {
        ResponseBody {
            content: Content::Upstream(body),
            exchange: None,
            _in_flight: Some(in_flight),
        }
    }

    /// Ties the request's end to this body's.
    pub fn hold(&mut self, exchange: Exchange) {
        if exchange.progress.is_stream() && self.is_end_stream() {
            exchange.progress.set_answered();
        }
        self.exchange = Some(exchange);
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
        if let Content::Upstream(_) | Content::File(_) | Content::Compressed(_) = this.content
            && let Some(exchange) = &this.exchange
            && exchange.progress.flight.poll_cut(cx).is_ready()
        {
            let cut = Error::us(
                Kind::ConnectionTerminated,
                "cut at the drain deadline of its generation",
            );
            return Poll::Ready(Some(Err(cut)));
        }
        let polled = this.content.poll_frame(cx);
        if let Some(exchange) = &this.exchange {
            exchange.progress.handed_over(polled.is_ready());
            if exchange.progress.is_stream() && this.ends_with(&polled) {
                exchange.progress.set_answered();
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty => true,
            Content::Full(_) => false,
            Content::Upstream(body) => body.is_end_stream(),
            Content::File(file) => file.left() == 0,
            Content::Compressed(compressed) => compressed.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

/// A service of ours always answers.
pub type Answer = Result<http::Response<ResponseBody>, Infallible>;
