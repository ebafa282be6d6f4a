//! Which world a request is in, and when that world is empty. This is the only thing below the supervisor that knows
//! that reloads exist.
//!
//! A [`Slot`] belongs to one worker and one bound address. A request *pins* it once, at its head, and gets the
//! entry and the generation of that instant; the next request of the same connection pins again and so sees the new
//! configuration. A request in flight is a [`Flight`] of its generation: the generation is drained when it has none.
//!
//! Why a table of flights and not a task tracker: at the drain deadline each one must be asked whether its own
//! definition still holds (then it moves to the current generation and is never cut by an unrelated swap), and
//! `/status` wants the exact count. The table is per worker, so its lock is not shared between cores.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// One generation on one worker.
#[derive(Debug)]
pub struct Generation {
    /// Counts from 1 over the life of the process.
    pub id: u64,
    flights: Mutex<Flights>,
}

#[derive(Debug, Default)]
struct Flights {
    slots: Vec<Option<Arc<Shared>>>,
    free: Vec<usize>,
}

/// The part of a flight that the worker sees.
#[derive(Debug)]
struct Shared {
    binding: u32,
    /// Digest of the definition (config.md, `on_change`); 0 while the request has none yet.
    definition: AtomicU64,
    cut: AtomicBool,
    waker: AtomicWaker,
    /// Where it is listed now: moves when the flight outlives its generation.
    home: Mutex<(Arc<Generation>, usize)>,
}

impl Generation {
    pub fn new(id: u64) -> Arc<Generation> {
        Arc::new(Generation {
            id,
            flights: Mutex::default(),
        })
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        let flights = self.flights.lock();
        flights.slots.len() - flights.free.len()
    }

    /// Begins a request behind `binding`.
    pub fn begin(self: &Arc<Self>, binding: u32) -> Flight {
        let mut flights = self.flights.lock();
        let index = flights.free.pop().unwrap_or(flights.slots.len());
        let shared = Arc::new(Shared {
            binding,
            definition: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            home: Mutex::new((self.clone(), index)),
        });
        if index == flights.slots.len() {
            flights.slots.push(Some(shared.clone()));
        } else {
            flights.slots[index] = Some(shared.clone());
        }
        drop(flights);
        Flight { shared }
    }

    /// The drain deadline: each flight is asked by `heir(binding, definition)`. One that gets a generation moves
    /// there; the others are told to end. Returns how many were told to.
    pub fn settle(self: &Arc<Self>, heir: impl Fn(u32, u64) -> Option<Arc<Generation>>) -> usize {
        let all: Vec<Arc<Shared>> = self
            .flights
            .lock()
            .slots
            .iter()
            .flatten()
            .cloned()
            .collect();
        let mut cut = 0;
        for shared in all {
            let definition = shared.definition.load(Ordering::Acquire);
            match heir(shared.binding, definition) {
                Some(next) if definition != 0 => shared.move_to(self, &next),
                _ => {
                    cut += 1;
                    shared.cut.store(true, Ordering::Release);
                    shared.waker.wake();
                }
            }
        }
        cut
    }

    fn insert(&self, shared: Arc<Shared>) -> usize {
        let mut flights = self.flights.lock();
        match flights.free.pop() {
            Some(index) => {
                flights.slots[index] = Some(shared);
                index
            }
            None => {
                flights.slots.push(Some(shared));
                flights.slots.len() - 1
            }
        }
    }

    fn remove(&self, index: usize) {
        let mut flights = self.flights.lock();
        flights.slots[index] = None;
        flights.free.push(index);
        if flights.free.len() == flights.slots.len() {
            // Empty: a burst's table is not kept for the life of the generation.
            if flights.slots.len() > 64 {
                *flights = Flights::default();
            }
        }
    }
}

impl Shared {
    fn move_to(self: &Arc<Self>, from: &Arc<Generation>, next: &Arc<Generation>) {
        let mut home = self.home.lock();
        // `usize::MAX`: the flight ended between the listing and now.
        if home.1 == usize::MAX || !Arc::ptr_eq(&home.0, from) {
            return;
        }
        let index = next.insert(self.clone());
        let old = std::mem::replace(&mut *home, (next.clone(), index));
        old.0.remove(old.1);
    }
}

/// A request in flight; dropping it ends it. It holds its generation's place in the count, not its routing.
#[derive(Debug)]
pub struct Flight {
    shared: Arc<Shared>,
}

impl Flight {
    /// Says by which definition this request lives from now on (a digest, never 0).
    pub fn define(&self, definition: u64) {
        self.shared
            .definition
            .store(definition.max(1), Ordering::Release);
    }

    /// Ready when the request must end now: its generation's deadline has come and its definition is gone.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.cut.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.shared.waker.register(cx.waker());
        if self.shared.cut.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut home = self.shared.home.lock();
        let index = std::mem::replace(&mut home.1, usize::MAX);
        home.0.remove(index);
    }
}

/// What one worker serves behind one address, of which generation.
#[derive(Debug)]
pub struct Serving<T> {
    /// The big part, shared by the workers.
    pub entry: Arc<T>,
    /// This worker's own count.
    pub generation: Arc<Generation>,
}

/// The pointer through which a generation reaches a request: one worker's, for one bound address.
#[derive(Debug)]
pub struct Slot<T> {
    /// Index of the binding; unique in the process's life.
    pub binding: u32,
    current: ArcSwap<Serving<T>>,
    epoch: ArcSwap<Epoch>,
}

impl<T> Slot<T> {
    pub fn new(binding: u32, serving: Serving<T>) -> Slot<T> {
        Slot {
            binding,
            current: ArcSwap::from_pointee(serving),
            epoch: ArcSwap::from_pointee(Epoch::default()),
        }
    }

    /// The entry to use for one request: call once, at its head.
    pub fn pin(&self) -> Arc<Serving<T>> {
        self.current.load_full()
    }

    /// Adopts; an older generation than the present one is ignored.
    pub fn adopt(&self, serving: Serving<T>) {
        if serving.generation.id >= self.current.load().generation.id {
            self.current.store(Arc::new(serving));
        }
    }

    /// The epoch a new connection belongs to.
    pub fn epoch(&self) -> Arc<Epoch> {
        self.epoch.load_full()
    }

    /// Asks every connection accepted so far to finish (its listener goes, or its connection-level settings
    /// changed) and returns their epoch, so that one can wait for its end. Later connections are not concerned.
    pub fn finish_epoch(&self) -> Arc<Epoch> {
        let old = self.epoch.swap(Arc::new(Epoch::default()));
        old.finish.cancel();
        old
    }
}

/// The connections accepted under one set of connection-level settings.
#[derive(Debug, Default)]
pub struct Epoch {
    /// Cancelled: say so on the next response (`Connection: close`, GOAWAY), linger a little, then end.
    pub finish: CancellationToken,
    /// Cancelled: end now.
    pub cut: CancellationToken,
    connections: AtomicUsize,
}

impl Epoch {
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    /// Counts a connection until the guard is dropped.
    pub fn join(self: &Arc<Self>) -> EpochGuard {
        self.connections.fetch_add(1, Ordering::AcqRel);
        EpochGuard {
            epoch: self.clone(),
        }
    }
}

/// One connection's membership of its epoch.
#[derive(Debug)]
pub struct EpochGuard {
    pub epoch: Arc<Epoch>,
}

impl Drop for EpochGuard {
    fn drop(&mut self) {
        self.epoch.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_empty_when_its_last_flight_ends() {
        let g = Generation::new(1);
        let a = g.begin(0);
        let b = g.begin(0);
        assert_eq!(g.in_flight(), 2);
        drop(a);
        assert_eq!(g.in_flight(), 1);
        drop(b);
        assert_eq!(g.in_flight(), 0);
    }

    #[test]
    fn at_the_deadline_a_flight_whose_definition_holds_moves_and_others_are_cut() {
        let old = Generation::new(1);
        let new = Generation::new(2);
        let stays = old.begin(7);
        stays.define(42);
        let goes = old.begin(7);
        goes.define(43);
        let nameless = old.begin(7);
        let heir = new.clone();
        let cut = old.settle(move |binding, definition| {
            (binding == 7 && definition == 42).then(|| heir.clone())
        });
        assert_eq!(cut, 2);
        assert_eq!((old.in_flight(), new.in_flight()), (2, 1));
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        assert!(stays.poll_cut(&mut cx).is_pending());
        assert!(goes.poll_cut(&mut cx).is_ready());
        assert!(nameless.poll_cut(&mut cx).is_ready());
        drop((stays, goes, nameless));
        assert_eq!((old.in_flight(), new.in_flight()), (0, 0));
    }

    #[test]
    fn a_pin_keeps_its_entry_while_the_next_pin_sees_the_new_one() {
        let slot = Slot::new(
            0,
            Serving {
                entry: Arc::new("old"),
                generation: Generation::new(1),
            },
        );
        let pinned = slot.pin();
        slot.adopt(Serving {
            entry: Arc::new("new"),
            generation: Generation::new(2),
        });
        assert_eq!((*pinned.entry, *slot.pin().entry), ("old", "new"));
        slot.adopt(Serving {
            entry: Arc::new("late"),
            generation: Generation::new(1),
        });
        assert_eq!(*slot.pin().entry, "new");
    }

    #[test]
    fn finishing_an_epoch_concerns_only_connections_accepted_before() {
        let slot = Slot::new(
            0,
            Serving {
                entry: Arc::new(()),
                generation: Generation::new(1),
            },
        );
        let before = slot.epoch().join();
        let epoch = slot.finish_epoch();
        let after = slot.epoch().join();
        assert!(before.epoch.finish.is_cancelled() && !after.epoch.finish.is_cancelled());
        assert_eq!(epoch.connections(), 1);
        drop(before);
        assert_eq!(epoch.connections(), 0);
    }
}
