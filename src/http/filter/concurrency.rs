//! `concurrency`: how many requests may be in progress at once, over all workers together. Those beyond wait in the order
//! they came, no more of them and no longer than agreed; the rest is refused.
//!
//! The [`Gate`] is leased by identity, so that what a generation let in counts in the next. How many it lets in is what
//! the newest generation says that has asked: one that was prepared and never served has no say.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Refusal, Shared};
use crate::config::http::ConcurrencySpec;
use crate::http::error;

/// Who is in and who waits.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Places that are taken.
    taken: usize,
    limit: usize,
    /// Which generation's compilation said so.
    said_by: u64,
    waiting: VecDeque<(u64, oneshot::Sender<Place>)>,
    next: u64,
}

/// A request's place. Dropping it lets the next one in.
#[derive(Debug)]
pub struct Place {
    /// `None` once it was passed on.
    gate: Option<Arc<Gate>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.leave();
        }
    }
}

impl Gate {
    /// A place, a ticket to wait with, or neither: the queue is full.
    fn enter(self: &Arc<Self>, spec: &Concurrency) -> Result<Place, Option<Ticket>> {
        let mut state = self.state.lock();
        if spec.build >= state.said_by {
            let more = spec.requests > state.limit;
            (state.said_by, state.limit) = (spec.build, spec.requests);
            // Whoever waited under a smaller limit came before.
            if more {
                self.let_in(&mut state);
            }
        }
        if state.taken < state.limit && state.waiting.is_empty() {
            state.taken += 1;
            return Ok(Place {
                gate: Some(self.clone()),
            });
        }
        if state.waiting.len() >= spec.queue {
            return Err(None);
        }
        let (give, place) = oneshot::channel();
        let number = state.next;
        state.next += 1;
        state.waiting.push_back((number, give));
        Err(Some(Ticket {
            gate: self.clone(),
            number,
            place,
        }))
    }

    fn leave(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.taken = state.taken.saturating_sub(1);
        self.let_in(&mut state);
    }

    /// Gives free places to those that wait longest.
    fn let_in(self: &Arc<Self>, state: &mut State) {
        while state.taken < state.limit
            && let Some((_, give)) = state.waiting.pop_front()
        {
            let place = Place {
                gate: Some(self.clone()),
            };
            match give.send(place) {
                Ok(()) => state.taken += 1,
                // Gone meanwhile. Dropping the place as it is would ask for the lock that is held here.
                Err(mut place) => place.gate = None,
            }
        }
    }
}

/// A place in the queue. Dropping it leaves the queue; a place that was given meanwhile goes on to the next.
#[derive(Debug)]
struct Ticket {
    gate: Arc<Gate>,
    number: u64,
    place: oneshot::Receiver<Place>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        // Numbers rise, so the queue is in their order.
        let found = state
            .waiting
            .binary_search_by_key(&self.number, |(number, _)| *number);
        if let Ok(index) = found {
            drop(state.waiting.remove(index));
        }
    }
}

/// `concurrency` as a generation has it.
#[derive(Debug)]
pub(super) struct Concurrency {
    gate: Arc<Gate>,
    /// Later compilations have larger numbers.
    build: u64,
    requests: usize,
    queue: usize,
    wait: Duration,
}

impl Concurrency {
    pub(super) fn build(spec: &ConcurrencySpec, shared: &Shared) -> Concurrency {
        Concurrency {
            gate: shared.gates.lease(&spec.id, Gate::default),
            build: shared.next_build(),
            requests: spec.requests,
            queue: spec.queue,
            wait: spec.wait,
        }
    }

    /// A place at once, if there is one.
    ///
    /// # Errors
    /// What to wait with, or the refusal.
    pub(super) fn enter(&self) -> Result<Place, Result<Waiting<'_>, Refusal>> {
        self.gate.enter(self).map_err(|ticket| match ticket {
            Some(ticket) => Ok(Waiting {
                ticket,
                wait: self.wait,
                of: self,
            }),
            None => Err(self.refusal()),
        })
    }

    fn refusal(&self) -> Refusal {
        let mut response = error::plain(StatusCode::SERVICE_UNAVAILABLE);
        let seconds = self.wait.as_secs().max(1);
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        Box::new(response)
    }
}

/// A request in the queue.
#[derive(Debug)]
pub(super) struct Waiting<'c> {
    ticket: Ticket,
    wait: Duration,
    of: &'c Concurrency,
}

impl Waiting<'_> {
    /// Waits for the place. Cancel-safe: who goes away leaves the queue.
    ///
    /// # Errors
    /// The refusal, when it took too long.
    pub(super) async fn place(mut self) -> Result<Place, Refusal> {
        match tokio::time::timeout(self.wait, &mut self.ticket.place).await {
            Ok(Ok(place)) => Ok(place),
            // The gate never drops one that waits; who sees it is refused, not let in.
            Ok(Err(_)) | Err(_) => Err(self.of.refusal()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt;
    use tokio::time::Instant;

    use super::*;

    fn spec(requests: usize, queue: usize) -> ConcurrencySpec {
        ConcurrencySpec {
            id: "here".into(),
            requests,
            queue,
            wait: Duration::from_secs(2),
        }
    }

    async fn place(of: &Concurrency) -> Result<Place, Refusal> {
        match of.enter() {
            Ok(place) => Ok(place),
            Err(Ok(waiting)) => waiting.place().await,
            Err(Err(refusal)) => Err(refusal),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_beyond_wait_in_order_and_the_rest_is_refused() {
        let shared = Shared::default();
        let gate = Concurrency::build(&spec(1, 2), &shared);
        let first = place(&gate).await.unwrap();
        let mut second = Box::pin(place(&gate));
        let mut third = Box::pin(place(&gate));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        let refused = place(&gate).await.unwrap_err();
        assert_eq!(
            (refused.status().as_u16(), &refused.headers()["retry-after"]),
            (503, &HeaderValue::from(2))
        );
        drop(first);
        assert!((&mut third).now_or_never().is_none());
        let second = (&mut second).now_or_never().unwrap().unwrap();
        drop(second);
        assert!((&mut third).now_or_never().unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_refused_and_who_leaves_is_no_hindrance() {
        let shared = Shared::default();
        let gate = Concurrency::build(&spec(1, 1), &shared);
        let first = place(&gate).await.unwrap();
        let began = Instant::now();
        assert_eq!(place(&gate).await.unwrap_err().status(), 503);
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        // Cancelled while it waits: its place in the queue is free.
        let mut gone = Box::pin(place(&gate));
        assert!((&mut gone).now_or_never().is_none());
        drop(gone);
        let mut next = Box::pin(place(&gate));
        assert!((&mut next).now_or_never().is_none());
        // Cancelled when the place was given but not yet taken: it goes on.
        drop(first);
        drop(next);
        assert!(place(&gate).await.is_ok());
        assert_eq!(gate.gate.state.lock().taken, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_generation_says_how_many_once_it_serves() {
        let shared = Shared::default();
        let old = Concurrency::build(&spec(1, 5), &shared);
        let new = Concurrency::build(&spec(3, 5), &shared);
        let never = Concurrency::build(&spec(100, 5), &shared);
        let _first = place(&old).await.unwrap();
        let mut waiting = Box::pin(place(&old));
        assert!((&mut waiting).now_or_never().is_none());
        // It came before, so it is let in before.
        let _third = place(&new).await.unwrap();
        let _second = (&mut waiting).now_or_never().unwrap().unwrap();
        // An old one has no say any more.
        let mut fourth = Box::pin(place(&old));
        assert!((&mut fourth).now_or_never().is_none());
        drop(never);
        assert_eq!(new.gate.state.lock().taken, 3);
    }
}
