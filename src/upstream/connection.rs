//! A target's HTTP/1 connections: what each of them holds, and how many there are.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio_util::sync::CancellationToken;

use super::h1::Http1;
use super::timer::Deadline;
use super::wire::Socket;

/// A connection to a target. Dropping it closes the socket.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) http: Http1,
    /// All waits on it share one timer.
    pub(super) deadline: Deadline,
    /// The worker whose runtime knows its socket: it goes back to that one's shard.
    pub(super) home: usize,
    /// Of one that leads through another connection.
    withdrawn: Option<CancellationToken>,
    /// Given back after the socket is closed.
    slot: Slot,
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
    pub(super) fn new(socket: Socket, slot: Slot, home: usize) -> Box<Connection> {
        Box::new(Connection {
            withdrawn: socket.withdrawn(),
            http: Http1::new(socket),
            deadline: Deadline::default(),
            home,
            slot,
        })
    }

    /// It can take a request.
    pub(super) fn is_fresh(&mut self) -> bool {
        let withdrawn = self.withdrawn.as_ref();
        self.http.is_fresh() && !withdrawn.is_some_and(CancellationToken::is_cancelled)
    }

    /// What is left of it when it is no HTTP any more: the socket, what came on it, its place.
    pub(super) fn into_parts(self) -> (Socket, bytes::Bytes, Slot) {
        let (socket, first) = self.http.into_parts();
        (socket, first, self.slot)
    }
}
