//! An old generation coming to its end: what it has begun goes on until it is done or its deadline comes; then each
//! request is asked whether its own definition still holds (it moves on) or not (it is cut). Addresses close as soon as
//! their queues are served.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::actor::{Crew, Current};
use super::event::{Outcome, Phase, Remaining};
use super::handle::Inner;
use super::log::SwapState;
use super::prepare::Bound;
use crate::generation::Epoch;
use crate::worker::Message;

/// How often the counts are looked at: first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// Time between two `draining` events.
const TICK: Duration = Duration::from_secs(1);
/// How long those that were cut may take to be gone.
const CUT_WAIT: Duration = Duration::from_secs(5);

/// A generation that is superseded and not empty yet. It keeps what its requests may still look up.
pub(super) struct Draining {
    current: Current,
    epochs: Vec<Arc<Epoch>>,
    retired: Mutex<Vec<Arc<Bound>>>,
    retiring: Arc<Mutex<Vec<SocketAddr>>>,
    hurry: CancellationToken,
    over: AtomicBool,
}

impl Draining {
    pub(super) fn new(
        current: Current,
        epochs: Vec<Arc<Epoch>>,
        retired: Vec<Arc<Bound>>,
        retiring: Arc<Mutex<Vec<SocketAddr>>>,
    ) -> Draining {
        let (hurry, over) = (CancellationToken::new(), AtomicBool::new(false));
        Draining {
            current,
            epochs,
            retired: Mutex::new(retired),
            retiring,
            hurry,
            over,
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.current.id
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(super) fn is_hurried(&self) -> bool {
        self.hurry.is_cancelled()
    }

    /// Its deadline is now.
    pub(super) fn hurry(&self) {
        self.hurry.cancel();
    }

    pub(super) fn requests(&self) -> usize {
        self.current
            .generations
            .iter()
            .map(|generation| generation.in_flight())
            .sum()
    }

    pub(super) fn retired(&self) -> Vec<Arc<Bound>> {
        self.retired.lock().clone()
    }

    fn remaining(&self) -> Remaining {
        self.close_served();
        Remaining {
            requests: self.requests() as u64,
            connections: self
                .epochs
                .iter()
                .map(|epoch| epoch.connections() as u64)
                .sum(),
            listeners: self.retired.lock().len() as u64,
        }
    }

    /// Closes the addresses whose accept loops have ended: here their sockets are dropped.
    fn close_served(&self) {
        let mut retired = self.retired.lock();
        let mut retiring = self.retiring.lock();
        retired.retain(|bound| {
            let served = bound.loops() == 0;
            if served && let Some(index) = retiring.iter().position(|a| *a == bound.binding.address)
            {
                retiring.swap_remove(index);
            }
            !served
        });
    }

    /// Resolves when every retired address is closed.
    pub(super) async fn listeners_closed(&self) {
        let mut pause = LOOK.0;
        while self.remaining().listeners > 0 {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK.1);
        }
    }
}

fn is_empty(remaining: &Remaining) -> bool {
    *remaining == Remaining::default()
}

/// Drains to the end and says the terminal event. `stop` may shorten the deadline while it runs; `others` are hurried
/// with it.
#[allow(clippy::too_many_arguments)]
pub(super) async fn run(
    inner: Arc<Inner>,
    crew: Arc<Crew>,
    state: Arc<SwapState>,
    generation: u64,
    draining: Arc<Draining>,
    mut deadline: Instant,
    mut stop: Option<watch::Receiver<Option<std::time::Instant>>>,
    others: Vec<Arc<Draining>>,
) {
    let mut pause = LOOK.0;
    let mut tick = Instant::now();
    loop {
        let remaining = draining.remaining();
        let empty = is_empty(&remaining);
        if Instant::now() >= tick {
            tick = Instant::now() + TICK;
            inner
                .log
                .emit(&state, Phase::Draining, generation, |event, _| {
                    event.remaining = Some(remaining)
                });
        }
        if empty {
            break;
        }
        if let Some(stop) = &mut stop
            && let Some(shorter) = *stop.borrow_and_update()
        {
            deadline = deadline.min(Instant::from_std(shorter));
        }
        if Instant::now() >= deadline || draining.is_hurried() {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(pause.min(deadline.saturating_duration_since(Instant::now()))) => {}
            () = draining.hurry.cancelled() => {}
        }
        pause = (pause * 2).min(LOOK.1);
    }
    for other in &others {
        if !Arc::ptr_eq(other, &draining) {
            other.hurry();
        }
    }
    let remaining = draining.remaining();
    let mut closed = 0;
    if !is_empty(&remaining) {
        closed = remaining.connections.max(settle(&crew, &draining).await);
        for epoch in &draining.epochs {
            epoch.cut.cancel();
        }
        let end = Instant::now() + CUT_WAIT;
        let mut pause = LOOK.0;
        while !is_empty(&draining.remaining()) && Instant::now() < end {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK.1);
        }
        let left = draining.remaining();
        if !is_empty(&left) {
            tracing::error!(
                generation = draining.generation(),
                ?left,
                "something does not end although it was cut"
            );
        }
    }
    draining.over.store(true, Ordering::Release);
    finish(&inner, &state, generation, closed);
}

/// Asks every request of the generation; answers how many were told to end.
async fn settle(crew: &Crew, draining: &Draining) -> u64 {
    let mut cut = 0;
    for (worker, generation) in crew.workers.iter().zip(&draining.current.generations) {
        let (reply, answer) = oneshot::channel();
        let message = Message::Settle {
            generation: generation.clone(),
            reply,
        };
        if worker.send(message).await.is_ok() {
            // A worker that ends now takes its requests with it.
            cut += answer.await.unwrap_or(0) as u64;
        }
    }
    cut
}

/// The terminal event.
pub(super) fn finish(inner: &Inner, state: &SwapState, generation: u64, closed: u64) {
    let phase = if closed > 0 {
        Phase::Cut
    } else {
        Phase::Drained
    };
    inner.log.emit(state, phase, generation, |event, record| {
        event.outcome = record.outcome.or(Some(Outcome::Committed));
        event.status = record.status.or(Some(200));
        event.previous = record.previous;
        event.warnings = Some(record.warnings.clone());
        event.plan = record.plan.clone();
        event.closed = (closed > 0).then_some(closed);
    });
}
