//! A connection to a target, driven by whoever uses it.
//!
//! hyper's half that reads and writes the socket is a future. It is polled by the request that waits for its answer, and
//! then by the answer's body: no task of its own, so no wake-up between tasks. While the connection is idle nobody polls
//! it; its [`Pulse`] notes that something happened, and the next check-out or sweep looks.
//!
//! Only an answer that begins before its request has ended gets a task: a client may upload to the end before it reads,
//! and then nobody would poll the body that drives the upload.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::body::RequestBody;
use super::timer::Deadline;
use super::wire::Wire;

/// Times that one poll drives the connection before it lets others run.
const ROUNDS: usize = 4;

pub(super) type Http1 = http1::Connection<TokioIo<Wire>, RequestBody>;

/// A connection to a target. Dropping it closes the socket.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<RequestBody>,
    driver: Driver,
    pulse: Arc<Pulse>,
    /// Of `pulse`.
    waker: Waker,
    deadline: Deadline,
    /// Room for what a second try would need; kept so that it is not allocated per request.
    pub(super) scratch: Vec<u8>,
    /// The worker whose runtime knows its socket: it goes back to that one's shard.
    pub(super) home: usize,
}

#[derive(Debug)]
enum Driver {
    Here { http: Box<Http1>, slot: Slot },
    Task { _handle: AbortOnDropHandle<()> },
    Ended,
}

/// Collects the wake-ups of one connection. Those that its own user causes while polling it only set the flag.
#[derive(Debug, Default)]
struct Pulse {
    woken: AtomicBool,
    user: AtomicWaker,
}

impl Wake for Pulse {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Whoever finds it set already has the user's attention.
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.user.wake();
        }
    }
}

/// A place among a target's open connections, held while the socket is open.
#[derive(Debug)]
pub(super) struct Slot(Arc<AtomicUsize>);

impl Slot {
    /// `None` when `limit` connections are open.
    pub(super) fn take(open: &Arc<AtomicUsize>, limit: Option<usize>) -> Option<Slot> {
        let limit = limit.unwrap_or(usize::MAX);
        open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
            (n < limit).then(|| n + 1)
        })
        .ok()?;
        Some(Slot(open.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Connection {
    pub(super) fn new(
        sender: http1::SendRequest<RequestBody>,
        http: Http1,
        slot: Slot,
        home: usize,
    ) -> Box<Connection> {
        let pulse = Arc::new(Pulse {
            // A new connection must be polled once.
            woken: AtomicBool::new(true),
            user: AtomicWaker::new(),
        });
        Box::new(Connection {
            sender,
            driver: Driver::Here {
                http: Box::new(http),
                slot,
            },
            waker: Waker::from(pulse.clone()),
            pulse,
            deadline: Deadline::default(),
            scratch: Vec::new(),
            home,
        })
    }

    /// Drives the connection and polls `ask`, as long as either makes the other progress. `None`: it is late.
    ///
    /// `due` is asked when there is nothing to do but wait: until when, without end if `None`. Once that has passed it
    /// is asked again, with the time that passed, for a later one. All waits on the connection share one timer.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut ask: impl FnMut(&mut Context<'_>) -> Poll<T>,
        mut due: impl FnMut(Option<Instant>) -> Option<Instant>,
    ) -> Poll<Option<T>> {
        for _ in 0..ROUNDS {
            self.drive();
            // Here, nothing but `drive` completes an exchange, and it is asked after every drive: it need wake nobody.
            let waker = match self.driver {
                Driver::Task { .. } => &self.waker,
                Driver::Here { .. } | Driver::Ended => Waker::noop(),
            };
            if let Poll::Ready(out) = ask(&mut Context::from_waker(waker)) {
                return Poll::Ready(Some(out));
            }
            if self.is_woken() {
                continue;
            }
            let mut at = due(None);
            while let Some(time) = at {
                let mut cx = Context::from_waker(&self.waker);
                if self.deadline.poll(&mut cx, time).is_pending() {
                    break;
                }
                at = due(at);
                if at.is_none() {
                    return Poll::Ready(None);
                }
            }
            self.pulse.user.register(cx.waker());
            if !self.is_woken() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_woken(&self) -> bool {
        self.pulse.woken.load(Ordering::Acquire)
    }

    /// Reads and writes what can be, if anything has happened since the last time.
    fn drive(&mut self) {
        if !self.is_woken() || !self.pulse.woken.swap(false, Ordering::AcqRel) {
            return;
        }
        if let Driver::Here { http, .. } = &mut self.driver
            && let Poll::Ready(outcome) = Pin::new(http).poll(&mut Context::from_waker(&self.waker))
        {
            ended(&outcome);
            // Closes the socket; an exchange that waits is told.
            self.driver = Driver::Ended;
        }
    }

    /// Gives the connection a task of its own, for an exchange whose two directions overlap.
    pub(super) fn detach(&mut self) {
        self.driver = match std::mem::replace(&mut self.driver, Driver::Ended) {
            Driver::Here { http, slot } => {
                let driving = async move {
                    let _slot = slot;
                    ended(&http.await);
                };
                Driver::Task {
                    _handle: AbortOnDropHandle::new(tokio::spawn(driving)),
                }
            }
            other => other,
        };
    }

    /// Takes apart one that nothing was sent on. `None`: it has ended already.
    pub(super) fn into_parts(self) -> Option<Parts> {
        let Connection { sender, driver, .. } = self;
        match driver {
            Driver::Here { http, slot } => Some(Parts { sender, http, slot }),
            Driver::Task { .. } | Driver::Ended => None,
        }
    }

    /// The exchange is over: lets go of its task, and brings hyper to where it takes the next request.
    pub(super) fn rest(&mut self) -> State {
        self.pulse.user.take();
        self.state()
    }

    /// Whether it can take a request, after a look at what happened meanwhile.
    pub(super) fn state(&mut self) -> State {
        self.drive();
        if self.sender.is_closed() || matches!(self.driver, Driver::Ended) {
            State::Closed
        } else if self.sender.is_ready() {
            State::Ready
        } else {
            State::Busy
        }
    }
}

/// A connection whose owner drives it by hand.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) sender: http1::SendRequest<RequestBody>,
    pub(super) http: Box<Http1>,
    pub(super) slot: Slot,
}

/// What an idle connection is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// The last bytes of its last request are still on their way out.
    Busy,
    Closed,
}

/// Whoever waits for an answer has been told already; an idle connection's end is no event.
fn ended(outcome: &hyper::Result<()>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "upstream connection ended");
    }
}
