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

/// One generation on one worker. On cache lines of its own, for one thread makes those of all workers back to back.
#[derive(Debug)]
#[repr(align(128))]
pub struct Generation {
    /// Counts from 1 over the life of the process.
    pub id: u64,
    flights: Mutex<Flights>,
}

#[derive(Debug, Default)]
struct Flights {
    places: Vec<Place>,
    free: Vec<usize>,
}

/// A flight, or room for one: what a flight shares stays where it was and serves the next one.
#[derive(Debug)]
struct Place {
    shared: Arc<Shared>,
    taken: bool,
}

/// The part of a flight that the worker sees.
#[derive(Debug)]
struct Shared {
    binding: u32,
    /// Digest of the definition (config.md, `on_change`); 0 while the request has none yet.
    definition: AtomicU64,
    cut: AtomicBool,
    waker: AtomicWaker,
    /// Where it is listed since it outlived a generation. Written under the lock of the one that it leaves.
    moved: Mutex<Option<(Arc<Generation>, usize)>>,
}

impl Shared {
    fn new(binding: u32) -> Shared {
        Shared {
            binding,
            definition: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            moved: Mutex::new(None),
        }
    }
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
        flights.places.len() - flights.free.len()
    }

    /// Begins a request behind `binding`.
    pub fn begin(self: &Arc<Self>, binding: u32) -> Flight {
        let (index, shared) = self.flights.lock().begin(binding);
        Flight {
            shared,
            generation: self.clone(),
            index,
        }
    }

    /// The drain deadline: each flight is asked by `heir(binding, definition)`. One that gets a generation moves
    /// there; the others are told to end. Returns how many were told to.
    pub fn settle(self: &Arc<Self>, heir: impl Fn(u32, u64) -> Option<Arc<Generation>>) -> usize {
        let all: Vec<(usize, Arc<Shared>)> = {
            let flights = self.flights.lock();
            let taken = flights.places.iter().enumerate().filter(|(_, p)| p.taken);
            taken.map(|(i, p)| (i, p.shared.clone())).collect()
        };
        let mut cut = 0;
        for (index, shared) in all {
            let definition = shared.definition.load(Ordering::Acquire);
            match heir(shared.binding, definition) {
                Some(next) if definition != 0 => self.hand_over(index, shared, &next),
                _ => {
                    cut += 1;
                    shared.cut.store(true, Ordering::Release);
                    shared.waker.wake();
                }
            }
        }
        cut
    }

    /// Ends a flight; false if it is not here any more.
    fn end(&self, index: usize, shared: &Arc<Shared>) -> bool {
        let mut flights = self.flights.lock();
        let here = flights.holds(index, shared);
        if here {
            flights.leave(index);
        }
        here
    }

    /// Moves a flight to `next`, unless it has ended meanwhile. Locks are taken from the older generation to the newer.
    fn hand_over(&self, index: usize, shared: Arc<Shared>, next: &Arc<Generation>) {
        if next.id <= self.id {
            return;
        }
        let mut flights = self.flights.lock();
        if flights.holds(index, &shared) {
            let place = next.flights.lock().insert(shared.clone());
            *shared.moved.lock() = Some((next.clone(), place));
            // The place must not keep what now belongs to the other one.
            flights.places[index].shared = Arc::new(Shared::new(0));
            flights.leave(index);
        }
    }
}

impl Flights {
    fn begin(&mut self, binding: u32) -> (usize, Arc<Shared>) {
        let Some(index) = self.free.pop() else {
            let shared = Arc::new(Shared::new(binding));
            return (self.insert(shared.clone()), shared);
        };
        let place = &mut self.places[index];
        place.taken = true;
        match Arc::get_mut(&mut place.shared) {
            Some(last) => {
                last.binding = binding;
                *last.definition.get_mut() = 0;
                *last.cut.get_mut() = false;
            }
            // A settling still looks at it, or the last flight is just about to let go.
            None => place.shared = Arc::new(Shared::new(binding)),
        }
        (index, place.shared.clone())
    }

    fn insert(&mut self, shared: Arc<Shared>) -> usize {
        let place = Place {
            shared,
            taken: true,
        };
        match self.free.pop() {
            Some(index) => {
                self.places[index] = place;
                index
            }
            None => {
                self.places.push(place);
                self.places.len() - 1
            }
        }
    }

    fn holds(&self, index: usize, shared: &Arc<Shared>) -> bool {
        let place = self.places.get(index);
        place.is_some_and(|p| p.taken && Arc::ptr_eq(&p.shared, shared))
    }

    fn leave(&mut self, index: usize) {
        self.places[index].taken = false;
        self.free.push(index);
        // Empty: a burst's table is not kept for the life of the generation.
        if self.free.len() == self.places.len() && self.places.len() > 64 {
            *self = Flights::default();
        }
    }
}

/// A request in flight; dropping it ends it. It holds its generation's place in the count, not its routing.
#[derive(Debug)]
pub struct Flight {
    shared: Arc<Shared>,
    /// Where it began.
    generation: Arc<Generation>,
    index: usize,
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
        // The place is used again: it must not keep the task's memory.
        self.shared.waker.take();
        if self.generation.end(self.index, &self.shared) {
            return;
        }
        // It moved, perhaps once more while we look.
        loop {
            let moved = self.shared.moved.lock().clone();
            match moved {
                Some((generation, index)) if !generation.end(index, &self.shared) => {}
                _ => break,
            }
        }
        // The place it has left may be used again.
        *self.shared.moved.lock() = None;
    }
}

/// What one worker serves behind one address, of which generation. Every request counts a reference to it: on cache
/// lines of its own.
#[derive(Debug)]
#[repr(align(128))]
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
#[repr(align(128))]
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
    fn a_place_is_used_again_with_nothing_of_its_last_flight() {
        let old = Generation::new(1);
        let new = Generation::new(2);
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        let first = old.begin(1);
        first.define(42);
        assert_eq!(old.settle(|_, _| None), 1);
        assert!(first.poll_cut(&mut cx).is_ready());
        drop(first);
        let second = old.begin(2);
        assert!(second.poll_cut(&mut cx).is_pending());
        // It has no definition of its own yet.
        assert_eq!(old.settle(|_, _| Some(new.clone())), 1);
        drop(second);
        assert_eq!((old.in_flight(), new.in_flight()), (0, 0));
    }

    #[test]
    fn a_flight_that_moved_twice_ends_where_it_is_and_frees_its_generations() {
        let chain = [1, 2, 3].map(Generation::new);
        let flight = chain[0].begin(7);
        flight.define(42);
        for (from, to) in [(0, 1), (1, 2)] {
            assert_eq!(chain[from].settle(|_, _| Some(chain[to].clone())), 0);
        }
        let next = chain[0].begin(8);
        assert_eq!(chain.each_ref().map(|g| g.in_flight()), [1, 0, 1]);
        drop(flight);
        assert_eq!(chain.each_ref().map(|g| g.in_flight()), [1, 0, 0]);
        drop(next);
        // Nothing that is left behind in a table holds a generation.
        let again = chain[2].begin(9);
        drop(again);
        assert!(chain.iter().all(|g| Arc::strong_count(g) == 1));
    }

    #[test]
    fn flights_may_end_while_they_are_moved() {
        for _ in 0..50 {
            let chain = [1, 2, 3].map(Generation::new);
            let flights: Vec<Flight> = (0..40).map(|_| chain[0].begin(7)).collect();
            flights.iter().for_each(|f| f.define(42));
            std::thread::scope(|scope| {
                scope.spawn(|| drop(flights));
                chain[0].settle(|_, _| Some(chain[1].clone()));
                chain[1].settle(|_, _| Some(chain[2].clone()));
            });
            assert_eq!(chain.each_ref().map(|g| g.in_flight()), [0, 0, 0]);
            assert!(chain.iter().all(|g| Arc::strong_count(g) == 1));
        }
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
