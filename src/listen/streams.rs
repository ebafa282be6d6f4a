//! The tasks of one HTTP/2 connection's streams. They belong to the connection: its end aborts them, and with them the
//! requests they hold at origins. Each also ends, with a reset, when its client takes nothing for `timeouts.write`:
//! a closed stream window stalls no socket, so the connection's own timer can't see it.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use super::resets::Resets;
use crate::http::progress::Progress;
use crate::metrics::{WorkerContext, WorkerCounters};
use crate::net::Sending;

thread_local! {
    /// What hyper wants run beside the stream whose task is being polled, since it was taken over in that poll.
    static TAKEN_OVER: Cell<Option<Sending>> = const { Cell::new(None) };
}

/// hyper's executor for one connection; the clones are one.
#[derive(Debug, Clone)]
pub struct Streams {
    shared: Arc<Shared>,
}

/// The connection's hold on its streams' tasks: dropping it aborts them. (The tasks hold clones of the executor, so no
/// count of clones would ever end them.)
#[derive(Debug)]
pub struct Owner {
    pub streams: Streams,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.streams.shared.tasks.lock().abort_all();
    }
}

#[derive(Debug)]
struct Shared {
    tasks: Mutex<JoinSet<()>>,
    /// Of the request that hyper is about to spawn: it calls the service and spawns its future in one go.
    next: Mutex<Option<Arc<Progress>>>,
    write_timeout: Option<Duration>,
    worker: Arc<WorkerContext>,
    /// Streams that are no requests any more.
    tunnels: AtomicUsize,
    /// What sends on those that have not begun yet.
    sending: Mutex<Vec<(Arc<Progress>, Sending)>>,
    /// There is one more.
    filed: Notify,
    resets: Resets,
}

impl Shared {
    fn file(&self, of: &Arc<Progress>, sending: Sending) {
        self.sending.lock().push((of.clone(), sending));
        self.filed.notify_waiters();
    }

    fn take(&self, of: &Arc<Progress>) -> Option<Sending> {
        let mut all = self.sending.lock();
        let index = all.iter().position(|(other, _)| Arc::ptr_eq(other, of))?;
        Some(all.swap_remove(index).1)
    }
}

impl Owner {
    /// `write_timeout`: how long a stream's client may take nothing.
    pub fn new(write_timeout: Option<Duration>, worker: Arc<WorkerContext>) -> Owner {
        let shared = Shared {
            tasks: Mutex::new(JoinSet::new()),
            next: Mutex::new(None),
            write_timeout,
            worker,
            tunnels: AtomicUsize::new(0),
            sending: Mutex::new(Vec::new()),
            filed: Notify::new(),
            resets: Resets::default(),
        };
        Owner {
            streams: Streams {
                shared: Arc::new(shared),
            },
        }
    }
}

impl Streams {
    /// A stream begins; the next future spawned is its.
    pub fn announce(&self, progress: Arc<Progress>) {
        *self.shared.next.lock() = Some(progress);
    }

    /// What sends on the stream of a request that hyper has agreed to give away. There in the very poll in which it does, which
    /// may be on another thread.
    pub async fn sending(&self, of: &Arc<Progress>) -> Sending {
        loop {
            let mut filed = pin!(self.shared.filed.notified());
            filed.as_mut().enable();
            if let Some(sending) = self.shared.take(of) {
                return sending;
            }
            filed.await;
        }
    }

    /// Runs what streams have become. `ended` is called after each.
    pub fn run_tunnel(
        &self,
        tunnel: impl Future<Output = ()> + Send + 'static,
        ended: impl FnOnce() + Send + 'static,
    ) {
        struct Count<F: FnOnce()>(Arc<Shared>, Option<F>);
        impl<F: FnOnce()> Drop for Count<F> {
            fn drop(&mut self) {
                self.0.tunnels.fetch_sub(1, Ordering::AcqRel);
                if let Some(ended) = self.1.take() {
                    ended();
                }
            }
        }
        self.shared.tunnels.fetch_add(1, Ordering::AcqRel);
        let count = Count(self.shared.clone(), Some(ended));
        self.shared.tasks.lock().spawn(async move {
            let _count = count;
            tunnel.await;
        });
    }

    /// The client gives up more requests than anybody has to.
    pub fn are_abused(&self) -> bool {
        self.shared.resets.are_too_many()
    }

    /// How many run.
    pub fn tunnels(&self) -> usize {
        self.shared.tunnels.load(Ordering::Acquire)
    }

    /// Forgets tasks that have ended, and counts those that panicked.
    pub fn reap(&self) {
        let mut tasks = self.shared.tasks.lock();
        while let Some(ended) = tasks.try_join_next() {
            if ended.is_err_and(|error| error.is_panic()) {
                WorkerCounters::add(&self.shared.worker.counters.panics);
            }
        }
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let progress = self.shared.next.lock().take();
        let mut tasks = self.shared.tasks.lock();
        match progress {
            Some(progress) => tasks.spawn(UntilStalled {
                stream,
                progress,
                limit: self.shared.write_timeout,
                timer: None,
                shared: Arc::downgrade(&self.shared),
            }),
            None => {
                let sending = Sending::new(stream);
                let run = tasks.spawn(sending.run());
                TAKEN_OVER.set(Some(sending));
                run
            }
        };
    }
}

pin_project! {
    /// Runs `stream` to its end, or until its client has taken nothing for `limit`, or takes nothing when the request is
    /// told to end. What ends early is reset by being dropped.
    //
    // Written out, for an `async` block has two places for what it takes and then pins.
    struct UntilStalled<F> {
        #[pin]
        stream: F,
        progress: Arc<Progress>,
        limit: Option<Duration>,
        timer: Option<(Pin<Box<Sleep>>, Instant)>,
        shared: Weak<Shared>,
    }
}

impl<F: Future<Output = ()>> Future for UntilStalled<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.poll(cx).is_ready() {
            if let Some(sending) = TAKEN_OVER.take()
                && let Some(shared) = this.shared.upgrade()
            {
                shared.file(this.progress, sending);
            }
        } else if poll_stall(this.progress, *this.limit, this.timer, cx).is_pending() {
            return Poll::Pending;
        }
        if !this.progress.is_answered()
            && let Some(shared) = this.shared.upgrade()
        {
            shared.resets.count();
        }
        Poll::Ready(())
    }
}

/// Ready when a stream must end that has nothing more to do by itself.
fn poll_stall(
    progress: &Progress,
    limit: Option<Duration>,
    timer: &mut Option<(Pin<Box<Sleep>>, Instant)>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    while let Some(since) = progress.stalled_since() {
        if progress.flight.poll_cut(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(limit) = limit else {
            return Poll::Pending;
        };
        let at = since + limit;
        match poll_timer(timer, at, cx) {
            // It fired for an earlier stall: look again.
            Poll::Ready(fired) if fired < at => {}
            Poll::Ready(_) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
    }
    Poll::Pending
}

/// Ready with the instant it was set for. Set again only after it fired.
fn poll_timer(
    timer: &mut Option<(Pin<Box<Sleep>>, Instant)>,
    at: Instant,
    cx: &mut Context<'_>,
) -> Poll<Instant> {
    let (sleep, armed) = timer.get_or_insert_with(|| (Box::pin(tokio::time::sleep_until(at)), at));
    let armed = *armed;
    match sleep.as_mut().poll(cx) {
        Poll::Ready(()) => {
            *timer = None;
            Poll::Ready(armed)
        }
        Poll::Pending => Poll::Pending,
    }
}
