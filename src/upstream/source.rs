//! Where the bytes of a request body come from.
//!
//! Over HTTP/2 a client may send the last byte of a body first and the end of its stream later, in a frame of its own. An
//! origin that knows the length answers at the last byte; the answer, when it is through before that frame, makes h2
//! reset the stream (`NO_ERROR`, RFC 9113 section 8.1), and some clients take that for a failure of the request. So the last
//! piece waits for the end, which is on its way: what is sent on is then a whole body.

use std::error::Error as StdError;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::StatusCode;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::error::{Error, chain};

/// The bytes of a request body.
#[derive(Debug)]
pub(super) struct Source {
    from: Supply,
    /// The last piece, until the end is there; after it the trailers that were the end.
    held: Option<Frame<Bytes>>,
}

#[derive(Debug)]
enum Supply {
    Client(Incoming),
    /// Read before: what is left of it.
    Kept(Bytes),
    #[cfg(test)]
    Test(http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>),
}

impl Source {
    pub(super) fn client(incoming: Incoming) -> Source {
        Source::new(Supply::Client(incoming))
    }

    pub(super) fn kept(bytes: Bytes) -> Source {
        Source::new(Supply::Kept(bytes))
    }

    #[cfg(test)]
    pub(super) fn test<B>(body: B) -> Source
    where
        B: Body<Data = Bytes, Error = std::io::Error> + Send + 'static,
    {
        use http_body_util::BodyExt;
        Source::new(Supply::Test(body.boxed_unsync()))
    }

    fn new(from: Supply) -> Source {
        Source { from, held: None }
    }

    /// What is left, if it was read before.
    pub(super) fn at_hand(&self) -> Option<&Bytes> {
        match &self.from {
            Supply::Kept(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(trailers) = self.held.take_if(|held| held.is_trailers()) {
            return Poll::Ready(Some(Ok(trailers)));
        }
        loop {
            let Some(frame) = ready!(self.from.poll_frame(cx)?) else {
                return Poll::Ready(self.held.take().map(Ok));
            };
            if frame.is_data() && self.from.lacks_only_its_end() {
                // Empty ones may follow the last.
                self.held.get_or_insert(frame);
                continue;
            }
            let Some(last) = self.held.take() else {
                return Poll::Ready(Some(Ok(frame)));
            };
            self.held = Some(frame).filter(Frame::is_trailers);
            return Poll::Ready(Some(Ok(last)));
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.from.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let hint = self.from.size_hint();
        match self.held.as_ref().and_then(Frame::data_ref) {
            // Only held when nothing comes after it.
            Some(last) => SizeHint::with_exact(last.len() as u64),
            None => hint,
        }
    }
}

impl Supply {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Error>> {
        // Malformed chunks and a client that went away look alike to the origin: the request never came whole.
        fn bad(error: &dyn StdError) -> Error {
            Error::client(
                StatusCode::BAD_REQUEST,
                format!("request body: {}", chain(error)),
            )
        }
        let frame = match self {
            Supply::Client(incoming) => {
                ready!(Pin::new(incoming).poll_frame(cx)).map(|got| got.map_err(|e| bad(&e)))
            }
            Supply::Kept(bytes) if bytes.is_empty() => None,
            Supply::Kept(bytes) => Some(Ok(Frame::data(std::mem::take(bytes)))),
            #[cfg(test)]
            Supply::Test(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|got| got.map_err(|e| bad(&e)))
            }
        };
        Poll::Ready(frame.transpose())
    }

    /// Every byte of a known length is here, the end is not. Never over HTTP/1, where they are the same.
    fn lacks_only_its_end(&self) -> bool {
        !self.is_end_stream() && self.size_hint().exact() == Some(0)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Supply::Client(incoming) => incoming.is_end_stream(),
            Supply::Kept(bytes) => bytes.is_empty(),
            #[cfg(test)]
            Supply::Test(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Supply::Client(incoming) => incoming.size_hint(),
            Supply::Kept(bytes) => SizeHint::with_exact(bytes.len() as u64),
            #[cfg(test)]
            Supply::Test(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io;

    use ::http::HeaderMap;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;

    /// A body of HTTP/2: `left` bytes are to come, and it ends when its sender is gone.
    struct Streamed {
        left: u64,
        frames: UnboundedReceiver<Frame<Bytes>>,
    }

    impl Body for Streamed {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            let frame = ready!(self.frames.poll_recv(cx));
            let data = frame.as_ref().and_then(Frame::data_ref);
            let taken = data.map_or(0, |data| data.len() as u64);
            self.left -= taken;
            Poll::Ready(frame.map(Ok))
        }

        fn is_end_stream(&self) -> bool {
            self.frames.is_closed() && self.frames.is_empty()
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.left)
        }
    }

    fn streamed(left: u64) -> (UnboundedSender<Frame<Bytes>>, Source) {
        let (sender, frames) = unbounded_channel();
        (sender, Source::test(Streamed { left, frames }))
    }

    fn poll(source: &mut Source) -> Poll<Option<Frame<Bytes>>> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        source
            .poll_frame(&mut cx)
            .map(|got| got.map(Result::unwrap))
    }

    fn data(source: &mut Source) -> Option<Bytes> {
        match poll(source) {
            Poll::Ready(Some(frame)) => frame.into_data().ok(),
            _ => None,
        }
    }

    #[test]
    fn the_last_piece_waits_for_the_end() {
        let (sender, mut source) = streamed(6);
        sender.send(Frame::data("abc".into())).unwrap();
        assert_eq!(data(&mut source).unwrap(), "abc");
        sender.send(Frame::data("def".into())).unwrap();
        assert!(poll(&mut source).is_pending());
        // As an empty frame with the flag for the end, after one without it.
        sender.send(Frame::data(Bytes::new())).unwrap();
        assert!(poll(&mut source).is_pending());
        assert_eq!(source.size_hint().exact(), Some(3));
        assert!(!source.is_end_stream());
        drop(sender);
        assert_eq!(data(&mut source).unwrap(), "def");
        assert!(source.is_end_stream());
        assert_eq!(source.size_hint().exact(), Some(0));
        assert!(matches!(poll(&mut source), Poll::Ready(None)));
    }

    #[test]
    fn an_end_that_is_there_holds_nothing_up() {
        let (sender, mut source) = streamed(3);
        sender.send(Frame::data("abc".into())).unwrap();
        drop(sender);
        assert_eq!(data(&mut source).unwrap(), "abc");
        assert!(source.is_end_stream());

        let mut kept = Source::kept("xyz".into());
        assert_eq!(kept.at_hand().unwrap(), "xyz");
        assert_eq!(data(&mut kept).unwrap(), "xyz");
        assert!(kept.is_end_stream());
    }

    #[test]
    fn trailers_are_an_end_and_come_after_the_last_piece() {
        let (sender, mut source) = streamed(3);
        sender.send(Frame::data("abc".into())).unwrap();
        assert!(poll(&mut source).is_pending());
        sender.send(Frame::trailers(HeaderMap::new())).unwrap();
        drop(sender);
        assert_eq!(data(&mut source).unwrap(), "abc");
        assert!(!source.is_end_stream());
        let Poll::Ready(Some(trailers)) = poll(&mut source) else {
            panic!("no trailers");
        };
        assert!(trailers.is_trailers());
        assert!(matches!(poll(&mut source), Poll::Ready(None)));
    }

    #[test]
    fn a_body_of_unknown_length_is_passed_as_it_comes() {
        let (sender, frames) = unbounded_channel::<io::Result<Frame<Bytes>>>();
        let stream = futures_util::stream::unfold(frames, |mut frames| async {
            frames.recv().await.map(|frame| (frame, frames))
        });
        let mut source = Source::test(http_body_util::StreamBody::new(stream));
        sender.send(Ok(Frame::data("abc".into()))).unwrap();
        assert_eq!(data(&mut source).unwrap(), "abc");
        assert!(poll(&mut source).is_pending());
    }
}
