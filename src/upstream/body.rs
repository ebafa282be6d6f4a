//! The request body on its way to a target: the client's stream with its limit, its read timeout and the gate that
//! `Expect: 100-continue` puts before it.
//!
//! A body that has an end in sight already (none was sent) costs nothing. Any other shares a `Progress` with the
//! exchange that sends it: the connection takes the body away, yet the exchange must know whether the client is being waited for,
//! whether the body has ended, and what went wrong on the client's side.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::StatusCode;
use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::Error;
use super::source::Source;
use super::timer::Timer;
use crate::metrics::cell::Cell;

/// A client need not be kept waiting for `100 Continue` (RFC 9110 section 10.1.1): after this its body is read anyway.
const EXPECT_WAIT: Duration = Duration::from_secs(1);

/// How the client's body may be read.
#[derive(Debug, Clone, Default)]
pub struct BodyRules {
    /// Bytes; more is a `Side::Client` error with status 413. `None`: no limit.
    pub limit: Option<u64>,
    /// Longest wait between two pieces; more is a `Side::Client` error with status 408.
    pub timeout: Option<Duration>,
    /// The client waits for `100 Continue`: do not read (which makes hyper send it) before the origin said so.
    pub expect_continue: bool,
    /// Set once the body was read to its end: then whatever the client sends is not of it.
    pub finished: Option<Arc<AtomicBool>>,
    /// Where its bytes are counted.
    pub cell: Option<Arc<Cell>>,
}

/// The body sent to a target.
#[derive(Debug, Default)]
pub struct RequestBody {
    /// `None`: empty. Boxed because requests are moved about before they are written.
    stream: Option<Box<Stream>>,
}

#[derive(Debug)]
struct Stream {
    source: Source,
    rules: BodyRules,
    /// Bytes read so far.
    taken: u64,
    timer: Timer,
    progress: Arc<Progress>,
    /// Pieces that were read before and are to be sent again; they come first.
    again: Option<VecDeque<Bytes>>,
}

impl RequestBody {
    pub fn empty() -> RequestBody {
        RequestBody { stream: None }
    }

    pub fn new(incoming: Incoming, rules: BodyRules) -> RequestBody {
        if incoming.is_end_stream() {
            return RequestBody::empty();
        }
        RequestBody::from_source(Source::client(incoming), rules)
    }

    fn from_source(source: Source, rules: BodyRules) -> RequestBody {
        let progress = Arc::new(Progress::new(!rules.expect_continue));
        RequestBody {
            stream: Some(Box::new(Stream {
                source,
                rules,
                taken: 0,
                timer: Timer::default(),
                progress,
                again: None,
            })),
        }
    }

    /// The same body from its beginning: `pieces` are all that was read of it.
    pub(super) fn rewound(mut self, mut pieces: VecDeque<Bytes>) -> RequestBody {
        if let Some(stream) = &mut self.stream {
            // Those of an earlier time that were not reached this time.
            pieces.extend(stream.again.take().into_iter().flatten());
            stream.again = Some(pieces);
        }
        self
    }

    /// Reads a body whole whose length is known and at most `most`, so that it can be sent again; any other stays as it is.
    ///
    /// # Errors
    /// The client's, as while sending: too late, broken, or over its limit.
    pub async fn keep(mut self, most: u64) -> Result<RequestBody, Error> {
        let Some(size) = self
            .size_hint()
            .exact()
            .filter(|size| (1..=most).contains(size))
        else {
            return Ok(self);
        };
        // The client waits for leave to send; who reads gives it.
        if let Some(stream) = &mut self.stream {
            stream.progress.gate.open();
        }
        let mut whole = BytesMut::with_capacity(usize::try_from(size).unwrap_or(0));
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut self).poll_frame(cx)).await {
            // Trailers of a body with a length: there are none in HTTP/1, and in HTTP/2 nobody sends them.
            if let Ok(data) = frame?.into_data() {
                whole.extend_from_slice(&data);
            }
        }
        let source = Source::kept(whole.freeze());
        Ok(RequestBody::from_source(source, BodyRules::default()))
    }

    /// The same body once more, if it is at hand whole.
    pub(super) fn again(&self) -> Option<RequestBody> {
        match &self.stream {
            None => Some(RequestBody::empty()),
            Some(stream) => match stream.source.at_hand() {
                Some(bytes) if stream.taken == 0 => Some(RequestBody::from_source(
                    Source::kept(bytes.clone()),
                    BodyRules::default(),
                )),
                _ => None,
            },
        }
    }

    /// A body that is not a client's.
    #[cfg(test)]
    pub(crate) fn of<B>(body: B, rules: BodyRules) -> RequestBody
    where
        B: Body<Data = Bytes, Error = std::io::Error> + Send + 'static,
    {
        RequestBody::from_source(Source::test(body), rules)
    }

    /// What the exchange watches; `None` for an empty body.
    pub(super) fn progress(&self) -> Option<Arc<Progress>> {
        self.stream.as_ref().map(|stream| stream.progress.clone())
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.stream {
            Some(stream) => stream.poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream
            .as_ref()
            .is_none_or(|stream| stream.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.stream
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), |stream| stream.size_hint())
    }
}

impl Stream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if !self.progress.gate.is_open() {
            ready!(self.poll_gate(cx));
        }
        if let Some(again) = &mut self.again {
            // They were counted when they came, and so was the end.
            match again.pop_front() {
                Some(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                None if self.progress.ended() => return Poll::Ready(None),
                None => {}
            }
        }
        let frame = match self.source.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return self.fail(error),
            Poll::Ready(None) => {
                self.end();
                return Poll::Ready(None);
            }
            Poll::Pending => {
                self.progress.waiting.store(true, Ordering::Relaxed);
                let Some(limit) = self.rules.timeout else {
                    return Poll::Pending;
                };
                ready!(self.timer.poll(cx, limit));
                if self.progress.gate.is_shut() {
                    // They are in conversation: what is left is the response's limit, for both directions together.
                    self.timer.rest();
                    return Poll::Pending;
                }
                let detail = format!("no piece of the request body within {limit:?}");
                return self.fail(Error::client(StatusCode::REQUEST_TIMEOUT, detail));
            }
        };
        self.timer.rest();
        self.progress.touch();
        if let Some(data) = frame.data_ref() {
            self.taken += data.len() as u64;
            if let Some(cell) = &self.rules.cell {
                cell.receive(data.len() as u64);
            }
            if let Some(limit) = self.rules.limit.filter(|limit| self.taken > *limit) {
                let detail = format!("request body over {limit} bytes");
                return self.fail(Error::client(StatusCode::PAYLOAD_TOO_LARGE, detail));
            }
        }
        // With a known length nobody asks after its last byte, also where trailers follow.
        if frame.is_trailers()
            || self.source.is_end_stream()
            || self.source.size_hint().exact() == Some(0)
        {
            self.end();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.again {
            Some(again) if !again.is_empty() => false,
            Some(_) if self.progress.ended() => true,
            _ => self.source.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.source.size_hint();
        let again = self.again.iter().flatten().map(|p| p.len() as u64).sum();
        match (again, hint.exact()) {
            (0, _) => hint,
            (_, Some(rest)) => SizeHint::with_exact(rest + again),
            (_, None) => SizeHint::default(),
        }
    }

    fn end(&self) {
        self.progress.end();
        if let Some(finished) = &self.rules.finished {
            finished.store(true, Ordering::Release);
        }
    }

    /// Until the origin wants the body, or the client has waited long enough. Never, once the origin has answered: then
    /// nobody wants it any more.
    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let gate = &self.progress.gate;
        if gate.poll_open(cx).is_ready() {
            self.timer.rest();
            return Poll::Ready(());
        }
        if gate.shut.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        ready!(self.timer.poll(cx, EXPECT_WAIT));
        gate.open();
        self.timer.rest();
        Poll::Ready(())
    }

    fn fail(&self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        *self.progress.failure.lock() = Some(error.clone());
        Poll::Ready(Some(Err(error)))
    }
}

/// How far a request body has come, as seen by the exchange that sends it.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) gate: Gate,
    begun: Instant,
    /// Milliseconds from `begun` to the last piece.
    last: AtomicU64,
    /// The last poll found nothing from the client.
    waiting: AtomicBool,
    ended: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl Progress {
    fn new(open: bool) -> Progress {
        Progress {
            gate: Gate {
                open: AtomicBool::new(open),
                ..Gate::default()
            },
            begun: Instant::now(),
            last: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    fn touch(&self) {
        let millis = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Ordering::Relaxed);
        self.waiting.store(false, Ordering::Relaxed);
    }

    fn end(&self) {
        self.touch();
        self.ended.store(true, Ordering::Release);
    }

    /// The origin has the whole body, so that its connection can serve another request.
    pub(super) fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// What the client did wrong, if it did.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.lock().clone()
    }

    /// When the last piece came.
    pub(super) fn last(&self) -> Instant {
        self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    /// Until when the origin may take to answer, given `limit` from its last sign of life. While the client is waited
    /// for, the origin owes nothing and the whole limit is ahead.
    pub(super) fn deadline(&self, limit: Duration) -> Instant {
        if !self.ended() && self.waiting.load(Ordering::Relaxed) {
            return Instant::now() + limit;
        }
        self.last() + limit
    }
}

/// Opened by the origin's `100 Continue` or a short wait; shut for good by its final answer.
#[derive(Debug, Default)]
pub(super) struct Gate {
    open: AtomicBool,
    shut: AtomicBool,
    waker: AtomicWaker,
}

impl Gate {
    pub(super) fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// The origin answered without the body: a gate that is still closed stays so.
    pub(super) fn shut(&self) {
        self.shut.store(true, Ordering::Release);
    }

    fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn poll_open(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.is_open() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
