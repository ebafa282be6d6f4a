//! A request body on an HTTP/2 stream. hyper takes it away for good, and goes on sending it after the response has
//! ended; so it is only lent: one that was not touched comes back when the stream was refused, and one that nobody wants
//! any more is stopped, which resets the stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use super::body::RequestBody;

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
enum State {
    /// Nobody has asked it for anything.
    Whole(RequestBody),
    Begun(RequestBody),
    Ended,
    /// Given back or stopped.
    Gone,
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
            state: Mutex::new(State::Whole(body)),
            waker: AtomicWaker::new(),
        });
        let loan = Loan { lent: lent.clone() };
        (Outgoing { lent: Some(lent) }, Some(loan))
    }
}

impl Loan {
    /// The body, if nothing of it was sent.
    pub(super) fn take_back(self) -> Option<RequestBody> {
        let mut state = self.lent.state.lock();
        match std::mem::replace(&mut *state, State::Gone) {
            State::Whole(body) => Some(body),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Nobody wants it any more.
    pub(super) fn stop(self) {
        {
            let mut state = self.lent.state.lock();
            if matches!(*state, State::Ended) {
                return;
            }
            *state = State::Gone;
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
        let mut body = match std::mem::replace(&mut *state, State::Ended) {
            State::Whole(body) | State::Begun(body) => body,
            State::Ended => return Poll::Ready(None),
            State::Gone => {
                *state = State::Gone;
                return Poll::Ready(Some(Err(h2::Reason::CANCEL.into())));
            }
        };
        let polled = Pin::new(&mut body).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => {}
            // A reader that sees the end coming does not ask again.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() || body.is_end_stream() => {}
            Poll::Ready(Some(Err(_))) => *state = State::Gone,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => *state = State::Begun(body),
        }
        // What the client did wrong is noted where it is asked for; the target learns that nothing more comes.
        polled.map(|frame| frame.map(|frame| frame.map_err(|_| h2::Reason::CANCEL.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.lent
            .as_ref()
            .is_none_or(|lent| match &*lent.state.lock() {
                State::Whole(body) | State::Begun(body) => body.is_end_stream(),
                State::Ended => true,
                State::Gone => false,
            })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(lent) = &self.lent else {
            return SizeHint::with_exact(0);
        };
        match &*lent.state.lock() {
            State::Whole(body) | State::Begun(body) => body.size_hint(),
            State::Ended | State::Gone => SizeHint::default(),
        }
    }
}
