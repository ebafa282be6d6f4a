//! A stream of HTTP/2 that has become bytes both ways (CONNECT), with ends that are told apart (RFC 9113 section 8.5) until
//! our own END_STREAM: what is cut on our side leaves as RST_STREAM, and the client's RST_STREAM is an error, not the end of
//! its data.
//!
//! Behind our END_STREAM they are not: the client's RST_STREAM then reads as the end of its data, and a cut is a RST_STREAM
//! that only says that no more is wanted (NO_ERROR), for the client has all that was for it.
//!
//! hyper tells neither: its half of such a stream ends cleanly when it is dropped, and reads a stream that the client
//! cancels as one that ended. But what sends is a task that it gives to the connection's executor. Dropping that task resets
//! the stream; and it is over when the stream was reset.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Sever;

/// What hyper runs beside a stream that was taken over: it alone sends and ends it.
#[derive(Clone)]
pub struct Sending {
    state: Arc<Mutex<State>>,
}

struct State {
    /// `None`: it has ended, or was dropped.
    task: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Of whoever runs it.
    waker: Option<Waker>,
    /// Of whoever waits for its end.
    watch: Option<Waker>,
}

impl State {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(task) = &mut self.task else {
            return Poll::Ready(());
        };
        ready!(task.as_mut().poll(cx));
        self.task = None;
        if let Some(watch) = self.watch.take() {
            watch.wake();
        }
        Poll::Ready(())
    }
}

impl Sending {
    /// Of what hyper's executor was given.
    pub fn new(task: impl Future<Output = ()> + Send + 'static) -> Sending {
        let state = State {
            task: Some(Box::pin(task)),
            waker: None,
            watch: None,
        };
        Sending {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Runs it to its end: to be spawned.
    pub fn run(&self) -> impl Future<Output = ()> + Send + use<> {
        let state = self.state.clone();
        poll_fn(move |cx| {
            let mut state = state.lock();
            match &state.waker {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => state.waker = Some(cx.waker().clone()),
            }
            state.poll(cx)
        })
    }

    /// Whether it has ended. It is asked itself: what ended the stream may have woken others first.
    fn is_over(&self) -> bool {
        let mut state = self.state.lock();
        // Not yet run, it will be polled anyhow.
        let waker = state.waker.clone();
        let waker = waker.as_ref().unwrap_or(Waker::noop());
        state.poll(&mut Context::from_waker(waker)).is_ready()
    }

    fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.task.is_none() {
            return Poll::Ready(());
        }
        match &state.watch {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => state.watch = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn sever(&self) {
        let (task, waker) = {
            let mut state = self.state.lock();
            (state.task.take(), state.waker.take())
        };
        // h2 resets what is dropped before its end.
        drop(task);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl std::fmt::Debug for Sending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sending").finish_non_exhaustive()
    }
}

/// Its bytes.
#[derive(Debug)]
pub struct H2Stream {
    io: TokioIo<Upgraded>,
    sending: Sending,
    /// Our side was ended: from then on hyper does not tell a reset from an end.
    shut: bool,
}

impl H2Stream {
    /// `sending`: what hyper runs for this very stream.
    pub fn new(stream: Upgraded, sending: Sending) -> H2Stream {
        H2Stream {
            io: TokioIo::new(stream),
            sending,
            shut: false,
        }
    }
}

/// A RST_STREAM, if our side has not ended.
impl Sever for H2Stream {
    fn sever(&self) {
        self.sending.sever();
    }

    /// What sends ends before our side does only by a reset.
    fn poll_severed(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.shut {
            true => Poll::Pending,
            false => self.sending.poll_over(cx),
        }
    }
}

impl AsyncRead for H2Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() == before
            && buf.remaining() > 0
            && !self.shut
            && self.sending.is_over()
        {
            let why = "the stream was reset";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, why)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
