//! A request body on an HTTP/2 stream. hyper takes it away for good, and goes on sending it after the response has
//! ended; so it is only lent. As long as nobody has answered, its first pieces are remembered, so that a stream which
//! was refused meanwhile can be sent elsewhere; and one that nobody wants any more is stopped, which resets the stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use super::body::RequestBody;

/// Bytes that are remembered; a body of which more was sent cannot be sent again.
const MEMORY: usize = 64 * 1024;

/// What hyper is given.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// `None`: empty.
    lent: Option<Arc<Lent>>,
}

/// What the lender keeps.
#[derive(Debug)]
pub(super) struct Loan {
    lent: Arc<Lent>,
}

#[derive(Debug)]
struct Lent {
    state: Mutex<State>,
    waker: AtomicWaker,
}

#[derive(Debug)]
struct State {
    /// `None`: given back or stopped.
    body: Option<RequestBody>,
    ended: bool,
    /// What was sent of it; `None` if that is not known any more.
    sent: Option<VecDeque<Bytes>>,
    size: usize,
}

impl State {
    fn remember(&mut self, frame: &Frame<Bytes>) {
        let Some(sent) = &mut self.sent else { return };
        match frame.data_ref() {
            Some(piece) if self.size + piece.len() <= MEMORY => {
                self.size += piece.len();
                sent.push_back(piece.clone());
            }
            _ => self.sent = None,
        }
    }
}

impl Outgoing {
    pub(super) fn empty() -> Outgoing {
        Outgoing { lent: None }
    }

    pub(super) fn lend(body: RequestBody) -> (Outgoing, Option<Loan>) {
        if body.is_end_stream() {
            return (Outgoing::empty(), None);
        }
        let lent = Arc::new(Lent {
            state: Mutex::new(State {
                body: Some(body),
                ended: false,
                sent: Some(VecDeque::new()),
                size: 0,
            }),
            waker: AtomicWaker::new(),
        });
        let loan = Loan { lent: lent.clone() };
        (Outgoing { lent: Some(lent) }, Some(loan))
    }
}

impl Loan {
    /// It was answered: nobody will want it from its beginning.
    pub(super) fn accepted(&self) {
        self.lent.state.lock().sent = None;
    }

    /// The body from its beginning, if that is still known.
    pub(super) fn take_back(self) -> Option<RequestBody> {
        let mut state = self.lent.state.lock();
        let sent = state.sent.take()?;
        state.body.take().map(|body| body.rewound(sent))
    }

    /// Nobody wants it any more.
    pub(super) fn stop(self) {
        {
            let mut state = self.lent.state.lock();
            state.body = None;
            if state.ended {
                return;
            }
        }
        self.lent.waker.wake();
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(lent) = &self.lent else {
            return Poll::Ready(None);
        };
        lent.waker.register(cx.waker());
        let mut state = lent.state.lock();
        if state.ended {
            return Poll::Ready(None);
        }
        let Some(body) = &mut state.body else {
            return Poll::Ready(Some(Err(h2::Reason::CANCEL.into())));
        };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => state.ended = true,
            Poll::Ready(Some(Ok(frame))) => {
                // A reader that sees the end coming does not ask again.
                state.ended = frame.is_trailers() || body.is_end_stream();
                state.remember(frame);
            }
            Poll::Ready(Some(Err(_))) => (state.body, state.sent) = (None, None),
            Poll::Pending => {}
        }
        // What the client did wrong is noted where it is asked for; the target learns that nothing more comes.
        polled.map(|frame| frame.map(|frame| frame.map_err(|_| h2::Reason::CANCEL.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.lent.as_ref().is_none_or(|lent| {
            let state = lent.state.lock();
            state.ended || state.body.as_ref().is_some_and(Body::is_end_stream)
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(lent) = &self.lent else {
            return SizeHint::with_exact(0);
        };
        let state = lent.state.lock();
        let body = state.body.as_ref().filter(|_| !state.ended);
        body.map_or_else(SizeHint::default, Body::size_hint)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};

    use super::super::body::BodyRules;
    use super::*;

    fn body(pieces: &[&'static [u8]]) -> RequestBody {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|p| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(p))))
            .collect();
        let stream = futures_util::stream::iter(pieces);
        RequestBody::of(StreamBody::new(stream), BodyRules::default())
    }

    async fn text(body: impl Body<Data = Bytes, Error: std::fmt::Debug>) -> Bytes {
        body.collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn a_refused_body_is_whole_again_however_much_was_sent() {
        for read in 0..4 {
            let (mut lent, loan) = Outgoing::lend(body(&[b"a", b"bc", b"d"]));
            for _ in 0..read {
                lent.frame().await.unwrap().unwrap();
            }
            let again = loan.unwrap().take_back().unwrap();
            // And once more.
            let (mut lent, loan) = Outgoing::lend(again);
            let first = lent.frame().await.unwrap().unwrap();
            assert_eq!(first.data_ref().unwrap(), "a");
            let again = loan.unwrap().take_back().unwrap();
            assert_eq!(text(again).await, "abcd", "{read}");
        }
    }

    #[tokio::test]
    async fn what_is_too_large_or_was_answered_is_not_remembered() {
        static LARGE: [u8; MEMORY] = [0; MEMORY];
        let (mut lent, loan) = Outgoing::lend(body(&[b"a", &LARGE, b"b"]));
        lent.frame().await.unwrap().unwrap();
        lent.frame().await.unwrap().unwrap();
        assert!(loan.unwrap().take_back().is_none());
        let (_lent, loan) = Outgoing::lend(body(&[b"a"]));
        let loan = loan.unwrap();
        loan.accepted();
        assert!(loan.take_back().is_none());
    }

    #[tokio::test]
    async fn a_stopped_body_resets_its_stream_unless_all_was_sent() {
        let (mut lent, loan) = Outgoing::lend(body(&[b"a", b"b"]));
        lent.frame().await.unwrap().unwrap();
        loan.unwrap().stop();
        let error = lent.frame().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
        assert!(!lent.is_end_stream());
        let (mut lent, loan) = Outgoing::lend(body(&[b"a"]));
        while lent.frame().await.is_some() {}
        loan.unwrap().stop();
        assert!(lent.is_end_stream() && lent.frame().await.is_none());
    }
}
