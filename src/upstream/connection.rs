//! An HTTP/1 connection to a target. hyper's half that reads and writes the socket is a task of the worker, owned here.
//!
//! Driving it from the request that waits (no task, no wake-up between tasks) was tried and measured: 14 % less CPU in
//! user space, but as much more in the kernel, because each request is then written on its own, where the tasks write
//! in bursts and wake a sleeping origin once.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::body::RequestBody;
use super::interim::Awaited;
use super::timer::Deadline;
use super::wire::Wire;

/// A new connection, before it is known who drives it.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) sender: http1::SendRequest<RequestBody>,
    pub(super) http: http1::Connection<TokioIo<Wire>, RequestBody>,
    pub(super) awaited: Arc<Awaited>,
    pub(super) withdrawn: Option<CancellationToken>,
    pub(super) slot: Slot,
}

/// A connection to a target. Dropping it closes the socket.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<RequestBody>,
    /// What its socket knows of the answer that is waited for.
    pub(super) awaited: Arc<Awaited>,
    _task: AbortOnDropHandle<()>,
    deadline: Deadline,
    /// Room for what a second try would need; kept so that it is not allocated per request.
    pub(super) scratch: Vec<u8>,
    /// The worker whose runtime knows its socket: it goes back to that one's shard.
    pub(super) home: usize,
    /// Of one that leads through another connection.
    withdrawn: Option<CancellationToken>,
}

/// A place among a target's open connections, held while the socket is open.
#[derive(Debug)]
pub(super) struct Slot(Arc<Open>);

/// The open connections of a target.
#[derive(Debug, Default)]
pub(super) struct Open {
    count: AtomicUsize,
    /// Requests that wait for a connection to end or to be free.
    waiting: AtomicUsize,
    freed: Notify,
    /// For those who wait for an end and take nothing.
    ended: Notify,
}

/// One that waits for a connection.
pub(super) struct ForFree<'a>(&'a Open);

impl Open {
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// `None`: `most` wait already.
    pub(super) fn wait(&self, most: usize) -> Option<ForFree<'_>> {
        let one_more = |n| (n < most).then(|| n + 1);
        let order = Ordering::SeqCst;
        self.waiting.fetch_update(order, order, one_more).ok()?;
        Some(ForFree(self))
    }

    /// A connection has ended, or what was under way on one.
    pub(super) fn freed(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.freed.notify_one();
            self.ended.notify_waiters();
        }
    }

    /// Ready when something ends. Only told while one has [`ForFree`].
    pub(super) fn ended(&self) -> Notified<'_> {
        self.ended.notified()
    }
}

impl ForFree<'_> {
    /// Tries until it has something; cancel-safe, and in turn with the others that wait.
    pub(super) async fn until<T>(&self, mut attempt: impl FnMut() -> Option<T>) -> T {
        loop {
            let mut freed = pin!(self.0.freed.notified());
            // From here on nothing is missed.
            freed.as_mut().enable();
            if let Some(got) = attempt() {
                return got;
            }
            freed.await;
        }
    }
}

impl Drop for ForFree<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Slot {
    /// `None` when `limit` connections are open.
    pub(super) fn take(open: &Arc<Open>, limit: Option<usize>) -> Option<Slot> {
        let limit = limit.unwrap_or(usize::MAX);
        let order = Ordering::SeqCst;
        open.count
            .fetch_update(order, order, |n| (n < limit).then(|| n + 1))
            .ok()?;
        Some(Slot(open.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        self.0.freed();
    }
}

impl Connection {
    /// Starts the connection's task on the current worker; its slot is given back when it ends.
    pub(super) fn new(parts: Parts, home: usize) -> Box<Connection> {
        let Parts {
            sender,
            http,
            awaited,
            withdrawn,
            slot,
        } = parts;
        let task = tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = http.await {
                // Whoever waits for an answer has been told; an idle connection's end is no event.
                tracing::debug!(%error, "upstream connection ended");
            }
        });
        Box::new(Connection {
            sender,
            awaited,
            _task: AbortOnDropHandle::new(task),
            deadline: Deadline::default(),
            scratch: Vec::new(),
            home,
            withdrawn,
        })
    }

    /// [`Deadline::watch`]: all waits on the connection share one timer.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        ask: impl FnOnce(&mut Context<'_>) -> Poll<T>,
        due: impl FnMut(Option<Instant>) -> Option<Instant>,
    ) -> Poll<Option<T>> {
        self.deadline.watch(cx, ask, due)
    }

    /// Whether it can take a request now.
    pub(super) fn state(&self) -> State {
        let withdrawn = self.withdrawn.as_ref();
        if self.sender.is_closed() || withdrawn.is_some_and(CancellationToken::is_cancelled) {
            State::Closed
        } else if self.sender.is_ready() {
            State::Ready
        } else {
            State::Busy
        }
    }
}

/// What an idle connection is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// The last bytes of its last request are still on their way out.
    Busy,
    Closed,
}
