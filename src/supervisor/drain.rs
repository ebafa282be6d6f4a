//! An old generation coming to its end: what it has begun goes on until it is done or its deadline comes; then each
//! request is asked whether its own definition still holds (it moves on) or not (it is cut). Addresses close as soon as
//! their queues are served.

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
use super::table::{Bound, Retiring};
use crate::generation::Generation;
use crate::tunnel::agent::Retired;
use crate::worker::{Leaving, Message};

/// How often the counts are looked at: first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// Time between two `draining` events.
const TICK: Duration = Duration::from_secs(1);
/// How long those that were cut may take to be gone.
const CUT_WAIT: Duration = Duration::from_secs(5);

/// A generation that is superseded and not empty yet.
pub(super) struct Draining {
    /// The generation, and each worker's count of it. Nothing else of it is kept: what a request needs, it holds.
    id: u64,
    generations: Vec<Arc<Generation>>,
    leaving: Mutex<Leaving>,
    retired: Mutex<Vec<Arc<Bound>>>,
    retiring: Retiring,
    /// Agents that are gone with it.
    agents: Vec<Retired>,
    hurry: CancellationToken,
    over: AtomicBool,
    given_up: AtomicBool,
}

impl Draining {
    pub(super) fn new(
        current: &Current,
        leaving: Leaving,
        retired: Vec<Arc<Bound>>,
        retiring: Retiring,
        agents: Vec<Retired>,
    ) -> Draining {
        Draining {
            id: current.id,
            generations: current.generations.clone(),
            leaving: Mutex::new(leaving),
            retired: Mutex::new(retired),
            retiring,
            agents,
            hurry: CancellationToken::new(),
            over: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.id
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
        requests(&self.generations)
    }

    pub(super) fn tunnels(&self) -> usize {
        tunnels(&self.generations)
    }

    pub(super) fn retired(&self) -> Vec<Arc<Bound>> {
        self.retired.lock().clone()
    }

    fn connections(&self) -> u64 {
        let leaving = self.leaving.lock();
        let epochs = leaving.refreshed.iter().chain(&leaving.retired);
        epochs.map(|epoch| epoch.connections() as u64).sum()
    }

    fn remaining(&self) -> Remaining {
        self.close_served();
        if self.given_up.load(Ordering::Acquire) {
            return Remaining::default();
        }
        Remaining {
            requests: self.requests() as u64,
            tunnels: (self.tunnels() + self.agents.iter().map(Retired::flows).sum::<usize>())
                as u64,
            connections: self.connections(),
            listeners: self.retired.lock().len() as u64,
        }
    }

    /// Closes the addresses that no worker uses any more: here their sockets are dropped.
    fn close_served(&self) {
        let mut retired = self.retired.lock();
        let mut retiring = self.retiring.lock();
        retired.retain(|bound| {
            let served = !bound.is_in_use();
            if served && let Some(index) = retiring.iter().position(|a| *a == bound.place()) {
                retiring.swap_remove(index);
            }
            !served
        });
    }

    /// Resolves when nothing new is taken at any retired address.
    pub(super) async fn listeners_closed(&self) {
        let mut pause = LOOK.0;
        let taking = || self.retired.lock().iter().any(|bound| bound.loops() > 0);
        while taking() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK.1);
        }
    }
}

impl Remaining {
    /// With what the older generations still have.
    fn and(mut self, older: &[Arc<Draining>]) -> Remaining {
        for other in older.iter().filter(|older| !older.is_over()) {
            let more = other.remaining();
            self.requests += more.requests;
            self.tunnels += more.tunnels;
            self.connections += more.connections;
            self.listeners += more.listeners;
        }
        self
    }
}

/// In flight, without tunnels. Looked at one after the other while they move: never less than nothing.
pub(super) fn requests(generations: &[Arc<Generation>]) -> usize {
    let of = |generation: &Arc<Generation>| {
        let all = generation.in_flight();
        all.saturating_sub(generation.long())
    };
    generations.iter().map(of).sum()
}

/// Long flows: websockets, sessions.
pub(super) fn tunnels(generations: &[Arc<Generation>]) -> usize {
    generations.iter().map(|generation| generation.long()).sum()
}

fn is_empty(remaining: &Remaining) -> bool {
    *remaining == Remaining::default()
}

/// Drains to the end and says the terminal event, when nothing older than the swap's generation is left. `older` are the
/// generations that drain already: each has its own deadline; a stop, which may be shortened while it runs, hurries them.
#[allow(clippy::too_many_arguments)]
pub(super) async fn run(
    inner: Arc<Inner>,
    crew: Arc<Crew>,
    state: Arc<SwapState>,
    generation: u64,
    draining: Arc<Draining>,
    mut deadline: Instant,
    mut stop: Option<watch::Receiver<Option<std::time::Instant>>>,
    older: Vec<Arc<Draining>>,
) {
    let remaining = || draining.remaining().and(&older);
    let mut pause = LOOK.0;
    let mut tick = Instant::now();
    let mut closed = None;
    loop {
        let left = remaining();
        if Instant::now() >= tick {
            tick = Instant::now() + TICK;
            inner
                .log
                .emit(&state, Phase::Draining, generation, |event, _| {
                    event.remaining = Some(left.clone())
                });
        }
        if is_empty(&left) {
            break;
        }
        if let Some(stop) = &mut stop
            && let Some(shorter) = *stop.borrow_and_update()
        {
            deadline = deadline.min(Instant::from_std(shorter));
        }
        if closed.is_none() && (Instant::now() >= deadline || draining.is_hurried()) {
            closed = Some(cut(&crew, &draining).await);
            if stop.is_some() {
                older.iter().for_each(|older| older.hurry());
            }
            pause = LOOK.0;
            continue;
        }
        if is_empty(&draining.remaining()) {
            draining.over.store(true, Ordering::Release);
        }
        let wait = if closed.is_none() {
            deadline.saturating_duration_since(Instant::now())
        } else {
            LOOK.1
        };
        tokio::select! {
            () = tokio::time::sleep(pause.min(wait)) => {}
            () = draining.hurry.cancelled(), if closed.is_none() => {}
        }
        pause = (pause * 2).min(LOOK.1);
    }
    draining.over.store(true, Ordering::Release);
    let at_once = draining.leaving.lock().cut as u64;
    finish(&inner, &state, generation, closed.unwrap_or(0) + at_once);
}

/// The deadline: requests are asked and connections end; waits a moment for those that were told to. Answers how many
/// those were.
async fn cut(crew: &Crew, draining: &Draining) -> u64 {
    // A refreshed connection has nothing to do but a request that has just been asked: it ends after that, and is not
    // waited for.
    draining.leaving.lock().refreshed.clear();
    let connections = draining.connections();
    let mut closed = connections.max(settle(crew, draining).await);
    for agent in &draining.agents {
        closed += agent.flows() as u64;
        agent.cut();
    }
    for epoch in &draining.leaving.lock().retired {
        epoch.cut.cancel();
    }
    let end = Instant::now() + CUT_WAIT;
    let mut pause = LOOK.0;
    while !is_empty(&draining.remaining()) {
        if Instant::now() >= end {
            let left = draining.remaining();
            tracing::error!(
                generation = draining.generation(),
                ?left,
                "something does not end although it was cut"
            );
            // It is not waited for any longer; what it holds stays until it ends.
            draining.given_up.store(true, Ordering::Release);
            break;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK.1);
    }
    closed
}

/// Asks every request of the generation; answers how many were told to end.
async fn settle(crew: &Crew, draining: &Draining) -> u64 {
    let mut cut = 0;
    for (worker, generation) in crew.workers.iter().zip(&draining.generations) {
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
