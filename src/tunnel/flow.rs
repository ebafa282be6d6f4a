//! One connection to a service, as the public side holds it: a stream of the carrier that reads and writes like a socket.
//!
//! It promises: what the reader does not take is not asked for, beyond the stream's window; what the other side does not
//! take is not accepted, beyond the stream's buffer; half a close is half a close on the other side; dropping it before
//! its end resets it, and so does the end of what it was made under ([`Standing`]).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::carrier::{FRAME, broken};
use super::offer::Standing;

/// What flows through something, and has.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counts {
    pub open: AtomicUsize,
    pub opened: AtomicU64,
    /// Bytes to the service.
    pub sent: AtomicU64,
    /// Bytes from the service.
    pub received: AtomicU64,
}

/// A place in counts, from the first try to the end of the flow.
#[derive(Debug)]
pub struct Counted {
    counts: [Arc<Counts>; 2],
    /// Told at the end.
    ended: Arc<tokio::sync::Notify>,
}

impl Counted {
    /// Of the agent and of the session. `None`: the agent has `limit` of them already.
    pub fn take(
        agent: &Arc<Counts>,
        session: &Arc<Counts>,
        limit: Option<usize>,
        ended: &Arc<tokio::sync::Notify>,
    ) -> Option<Counted> {
        let limit = limit.unwrap_or(usize::MAX);
        let order = Ordering::AcqRel;
        agent
            .open
            .fetch_update(order, Ordering::Acquire, |n| (n < limit).then_some(n + 1))
            .ok()?;
        session.open.fetch_add(1, Ordering::AcqRel);
        Some(Counted {
            counts: [agent.clone(), session.clone()],
            ended: ended.clone(),
        })
    }

    /// The service has taken it.
    pub fn opened(&self) {
        for counts in &self.counts {
            counts.opened.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn sent(&self, bytes: usize) {
        for counts in &self.counts {
            counts.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    pub fn received(&self, bytes: usize) {
        for counts in &self.counts {
            counts.received.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        for counts in &self.counts {
            counts.open.fetch_sub(1, Ordering::AcqRel);
        }
        self.ended.notify_one();
    }
}

/// A connection to a service.
#[derive(Debug)]
pub struct Flow {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Came, and was not read yet.
    chunk: Bytes,
    shut: bool,
    counted: Counted,
    /// Of what it was made under.
    withdrawn: CancellationToken,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    // Whoever withdraws it sees by it that there are flows.
    _standing: Arc<Standing>,
}

impl Flow {
    pub(super) fn new(
        send: SendStream<Bytes>,
        receive: RecvStream,
        counted: Counted,
        standing: Arc<Standing>,
    ) -> Flow {
        counted.opened();
        Flow {
            send,
            receive,
            chunk: Bytes::new(),
            shut: false,
            counted,
            withdrawn: standing.withdrawn.clone(),
            cut: Box::pin(standing.cut.clone().cancelled_owned()),
            _standing: standing,
        }
    }

    /// Cancelled when nothing new may begin on it.
    pub(super) fn withdrawn(&self) -> CancellationToken {
        self.withdrawn.clone()
    }

    /// Its parts, for those who have bytes of their own.
    pub fn into_parts(self) -> (SendStream<Bytes>, RecvStream, Counted) {
        (self.send, self.receive, self.counted)
    }
}

impl AsyncRead for Flow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.chunk.is_empty() {
            if this.cut.as_mut().poll(cx).is_ready() {
                let why = "the service is withdrawn";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, why)));
            }
            match ready!(this.receive.poll_data(cx)) {
                Some(Ok(chunk)) => this.chunk = chunk,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let size = this.chunk.len().min(out.remaining());
        out.put_slice(&this.chunk[..size]);
        this.chunk.advance(size);
        if this.chunk.is_empty() {
            this.chunk = Bytes::new();
        }
        this.counted.received(size);
        // It fails for more than came, which this is not.
        let _ = this.receive.flow_control().release_capacity(size);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Flow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let this = &mut *self;
        let wanted = bytes.len().min(FRAME as usize);
        this.send.reserve_capacity(wanted);
        while this.send.capacity() == 0 {
            match ready!(this.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let size = wanted.min(this.send.capacity());
        let piece = Bytes::copy_from_slice(&bytes[..size]);
        this.send.send_data(piece, false).map_err(broken)?;
        this.counted.sent(size);
        Poll::Ready(Ok(size))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The carrier's task writes what it has.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.shut, true) {
            self.send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}
