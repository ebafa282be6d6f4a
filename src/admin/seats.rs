//! Who is connected. There are only so many seats, and a connection that asks nothing must not hold one against those
//! that do: when all are taken, the connection that has been without a request for longest makes room. One with a
//! request in flight is never sent away for another. At the end of the process only answers are waited for: a request
//! that has not arrived whole may never do so.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a connection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No request, or the head of one that has not arrived whole; since when.
    Idle(Instant),
    /// A handler runs, and the body of its request has not arrived whole: nothing was asked of the supervisor yet.
    Receiving,
    /// The request is here; its answer is not out.
    Answering,
    /// Told to end; no request is taken from it any more.
    Closed,
}

#[derive(Debug)]
struct Taken {
    phase: Phase,
    /// The peer has not sent all of the last request's body, or nobody has read it.
    owes: bool,
    /// The peer has not read what was written.
    unsent: bool,
    close: CancellationToken,
}

impl Taken {
    fn idle_since(&self) -> Option<Instant> {
        match self.phase {
            Phase::Idle(since) if !self.unsent => Some(since),
            _ => None,
        }
    }

    fn close(&mut self) {
        self.phase = Phase::Closed;
        self.close.cancel();
    }
}

#[derive(Debug, Default)]
struct Table {
    taken: BTreeMap<u64, Taken>,
    next: u64,
    ending: bool,
}

/// All connections of the API.
#[derive(Debug)]
pub(super) struct Seats {
    most: usize,
    table: Mutex<Table>,
    /// A connection has ended or become idle. One waits: the accept loop.
    freed: Notify,
}

impl Seats {
    pub(super) fn new(most: usize) -> Arc<Seats> {
        Arc::new(Seats {
            most,
            table: Mutex::default(),
            freed: Notify::new(),
        })
    }

    /// Waits until [`Seats::take`] finds a seat, free or held by an idle connection. Cancel-safe.
    pub(super) async fn room(&self) {
        loop {
            {
                let table = self.table.lock();
                let idle = || table.taken.values().any(|one| one.idle_since().is_some());
                if table.taken.len() < self.most || idle() {
                    return;
                }
            }
            self.freed.notified().await;
        }
    }

    /// A seat for a new connection. At the bound the one that is idle for longest is closed for it; if none is idle
    /// any more since [`Seats::room`], there is one more than the bound until the next has ended.
    pub(super) fn take(self: &Arc<Self>) -> Arc<Seat> {
        let mut table = self.table.lock();
        if table.taken.len() >= self.most {
            let idlest = table
                .taken
                .iter()
                .filter_map(|(id, one)| Some((one.idle_since()?, *id)))
                .min();
            if let Some((_, id)) = idlest
                && let Some(mut one) = table.taken.remove(&id)
            {
                one.close();
            }
        }
        let id = table.next;
        table.next += 1;
        let close = CancellationToken::new();
        table.taken.insert(
            id,
            Taken {
                phase: Phase::Idle(Instant::now()),
                owes: false,
                unsent: false,
                close: close.clone(),
            },
        );
        Arc::new(Seat {
            id,
            seats: self.clone(),
            close,
        })
    }

    /// The process ends: closes all that wait for their peer; those that answer go on.
    pub(super) fn end(&self) {
        let mut table = self.table.lock();
        table.ending = true;
        for one in table.taken.values_mut() {
            if matches!(one.phase, Phase::Idle(_) | Phase::Receiving) && !one.unsent {
                one.close();
            }
        }
    }
}

/// One connection's place. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Seat {
    id: u64,
    seats: Arc<Seats>,
    close: CancellationToken,
}

impl Seat {
    /// Resolves when the connection has to end at once.
    pub(super) async fn closed(&self) {
        self.close.cancelled().await;
    }

    /// Whether the process ends: no time for courtesies.
    pub(super) fn ending(&self) -> bool {
        self.seats.table.lock().ending
    }

    /// A request has come, with the rest of its body still to come or not. `None`: the connection was told to end.
    pub(super) fn request(self: &Arc<Self>, whole: bool) -> Option<Turn> {
        let phase = if whole {
            Phase::Answering
        } else {
            Phase::Receiving
        };
        self.change(|one| (one.phase, one.owes) = (phase, !whole))
            .then(|| Turn(self.clone()))
    }

    /// The body has arrived whole, or nobody wants the rest of it.
    pub(super) fn received(&self, whole: bool) {
        self.change(|one| {
            one.owes &= !whole;
            if one.phase == Phase::Receiving {
                one.phase = Phase::Answering;
            }
        });
    }

    /// Whether a part of the last request's body was not read.
    pub(super) fn owes(&self) -> bool {
        let table = self.seats.table.lock();
        table.taken.get(&self.id).is_some_and(|one| one.owes)
    }

    /// Whether the peer leaves unread what was written.
    pub(super) fn unsent(&self, unsent: bool) {
        self.change(|one| one.unsent = unsent);
        if !unsent {
            self.seats.freed.notify_one();
        }
    }

    /// False, and nothing is changed, once the connection was told to end.
    fn change(&self, change: impl FnOnce(&mut Taken)) -> bool {
        let mut table = self.seats.table.lock();
        // One that made room is no longer in the table.
        match table.taken.get_mut(&self.id) {
            Some(one) if one.phase != Phase::Closed => {
                change(one);
                true
            }
            _ => false,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.table.lock().taken.remove(&self.id);
        self.seats.freed.notify_one();
    }
}

/// A request in flight: from its head to the end of its answer, where it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Seat>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.change(|one| one.phase = Phase::Idle(Instant::now()));
        self.0.seats.freed.notify_one();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::time::Duration;

    fn is_closed(seat: &Seat) -> bool {
        seat.closed().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_idle_for_longest_makes_room() {
        let seats = Seats::new(3);
        let (busy, first, second) = (seats.take(), seats.take(), seats.take());
        let turn = busy.request(true).unwrap();
        // It was idle first, but had a request since.
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(first.request(true));
        seats.room().await;
        let _third = seats.take();
        assert!(is_closed(&second) && !is_closed(&first) && !is_closed(&busy));
        assert!(second.request(true).is_none());
        drop(second);
        let _fourth = seats.take();
        assert!(is_closed(&first) && !is_closed(&busy));
        drop(turn);
    }

    #[tokio::test]
    async fn requests_in_flight_keep_their_seats() {
        let seats = Seats::new(2);
        let (one, two) = (seats.take(), seats.take());
        let _receiving = one.request(false).unwrap();
        let turn = two.request(true).unwrap();
        assert!(seats.room().now_or_never().is_none());
        // Out of the handler, but not yet with the peer.
        two.unsent(true);
        drop(turn);
        assert!(seats.room().now_or_never().is_none());
        two.unsent(false);
        seats.room().await;
        let _three = seats.take();
        assert!(!is_closed(&one) && is_closed(&two));
    }

    #[tokio::test]
    async fn the_end_waits_for_answers_only() {
        let seats = Seats::new(8);
        let (idle, half, whole, unread) = (seats.take(), seats.take(), seats.take(), seats.take());
        let _half = half.request(false).unwrap();
        let _whole = whole.request(false).unwrap();
        whole.received(true);
        unread.unsent(true);
        seats.end();
        assert!(is_closed(&idle) && is_closed(&half));
        assert!(!is_closed(&whole) && !is_closed(&unread));
        assert!(whole.ending());
    }
}
