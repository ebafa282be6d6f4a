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
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::config::runtime::OnChange;

/// The ends of many long flows are spread over so much time at most, so that their clients do not all come back at once;
/// and this far apart if there are few.
const SPREAD: Duration = Duration::from_secs(1);
const APART: Duration = Duration::from_millis(1);

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
    /// Of those taken, how many are long.
    long: usize,
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
    /// 0: a request; else a long flow, see [`code`]. Written under the lock of the generation that lists it.
    long: AtomicU8,
    cut: AtomicBool,
    /// Microseconds that a long flow may wait after the cut.
    delay: AtomicU32,
    waker: AtomicWaker,
    /// Where it is listed since it outlived a generation. Written under the lock of the one that it leaves.
    moved: Mutex<Option<(Arc<Generation>, usize)>>,
}

impl Shared {
    fn new(binding: u32, definition: u64) -> Shared {
        Shared {
            binding,
            definition: AtomicU64::new(definition),
            long: AtomicU8::new(0),
            cut: AtomicBool::new(false),
            delay: AtomicU32::new(0),
            waker: AtomicWaker::new(),
            moved: Mutex::new(None),
        }
    }

    fn asked(&self) -> Asked {
        Asked {
            binding: self.binding,
            definition: self.definition.load(Ordering::Acquire),
            long: decode(self.long.load(Ordering::Acquire)),
        }
    }

    /// Tells it to end; false if it knows already.
    fn cut(&self, delay: Duration) -> bool {
        let delay = u32::try_from(delay.as_micros()).unwrap_or(u32::MAX);
        if self.cut.load(Ordering::Acquire) {
            return false;
        }
        self.delay.store(delay, Ordering::Relaxed);
        let first = !self.cut.swap(true, Ordering::AcqRel);
        self.waker.wake();
        first
    }
}

fn code(long: OnChange) -> u8 {
    match long {
        OnChange::Drain => 1,
        OnChange::Keep => 2,
        OnChange::Cut => 3,
    }
}

fn decode(long: u8) -> Option<OnChange> {
    match long {
        1 => Some(OnChange::Drain),
        2 => Some(OnChange::Keep),
        3 => Some(OnChange::Cut),
        _ => None,
    }
}

/// What is asked about one flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub binding: u32,
    /// 0: none yet.
    pub definition: u64,
    /// `None`: a request. A long flow has said what shall become of it when its definition is gone.
    pub long: Option<OnChange>,
}

/// What becomes of a flight.
#[derive(Debug)]
pub enum Verdict {
    /// Its definition holds there.
    Moves(Arc<Generation>),
    Stays,
    Ends,
}

impl Generation {
    pub fn new(id: u64) -> Arc<Generation> {
        Arc::new(Generation {
            id,
            flights: Mutex::default(),
        })
    }

    /// Everything in flight, long flows included.
    pub fn in_flight(&self) -> usize {
        let flights = self.flights.lock();
        flights.places.len() - flights.free.len()
    }

    /// Long flows in flight.
    pub fn long(&self) -> usize {
        self.flights.lock().long
    }

    /// Begins a request behind `binding`, which has no definition yet: one that is asked before it has is told to end.
    pub fn begin(self: &Arc<Self>, binding: u32) -> Flight {
        self.begin_defined(binding, 0)
    }

    /// Begins what lives by `definition` from its first instant: what is started here may run only after it was asked.
    pub fn begin_defined(self: &Arc<Self>, binding: u32, definition: u64) -> Flight {
        let (index, shared) = self.flights.lock().begin(binding, definition);
        Flight {
            shared,
            generation: self.clone(),
            index,
        }
    }

    /// Asks each flight, or only the long ones, what becomes of it. Returns how many were told to end.
    pub fn settle(self: &Arc<Self>, only_long: bool, judge: impl Fn(Asked) -> Verdict) -> usize {
        let all: Vec<(usize, Arc<Shared>)> = {
            let flights = self.flights.lock();
            if only_long && flights.long == 0 {
                return 0;
            }
            let taken = flights.places.iter().enumerate().filter(|(_, p)| {
                p.taken && (!only_long || p.shared.long.load(Ordering::Acquire) != 0)
            });
            taken.map(|(i, p)| (i, p.shared.clone())).collect()
        };
        let mut cut = 0;
        let mut ending = Vec::new();
        for (index, shared) in all {
            let asked = shared.asked();
            match judge(asked) {
                Verdict::Moves(next) if asked.definition != 0 => {
                    self.hand_over(index, shared, &next);
                }
                Verdict::Stays => {}
                Verdict::Ends if asked.long.is_some() => ending.push(shared),
                Verdict::Moves(_) | Verdict::Ends => {
                    cut += usize::from(shared.cut(Duration::ZERO));
                }
            }
        }
        let most = u32::try_from(ending.len()).unwrap_or(u32::MAX).max(1);
        let apart = APART.min(SPREAD / most);
        for (place, shared) in (0_u32..).zip(&ending) {
            cut += usize::from(shared.cut(apart * place));
        }
        cut
    }

    /// Makes a flight a long one; false if it is not here any more.
    fn lengthen(&self, index: usize, shared: &Arc<Shared>, long: OnChange) -> bool {
        let mut flights = self.flights.lock();
        let here = flights.holds(index, shared);
        if here && shared.long.swap(code(long), Ordering::AcqRel) == 0 {
            flights.long += 1;
        }
        here
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
            flights.leave(index);
            // The place must not keep what now belongs to the other one.
            if let Some(place) = flights.places.get_mut(index) {
                place.shared = Arc::new(Shared::new(0, 0));
            }
        }
    }
}

impl Flights {
    fn begin(&mut self, binding: u32, definition: u64) -> (usize, Arc<Shared>) {
        let Some(index) = self.free.pop() else {
            let shared = Arc::new(Shared::new(binding, definition));
            return (self.insert(shared.clone()), shared);
        };
        let place = &mut self.places[index];
        place.taken = true;
        match Arc::get_mut(&mut place.shared) {
            Some(last) => {
                last.binding = binding;
                *last.definition.get_mut() = definition;
                *last.long.get_mut() = 0;
                *last.cut.get_mut() = false;
            }
            // A settling still looks at it, or the last flight is just about to let go.
            None => place.shared = Arc::new(Shared::new(binding, definition)),
        }
        (index, place.shared.clone())
    }

    fn insert(&mut self, shared: Arc<Shared>) -> usize {
        self.long += usize::from(shared.long.load(Ordering::Acquire) != 0);
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
        let place = &mut self.places[index];
        place.taken = false;
        self.long -= usize::from(place.shared.long.load(Ordering::Acquire) != 0);
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

    /// From now on it is a long flow (a websocket), which may outlive many generations: it is asked at each commit, and
    /// moves on at once where its definition holds. `on_change` says what else becomes of it.
    pub fn set_long(&self, on_change: OnChange) {
        loop {
            let (generation, index) = self.home();
            // Not there: it has just moved.
            if generation.lengthen(index, &self.shared, on_change) {
                return;
            }
        }
    }

    /// Asks this flight alone if its generation is older than `newest`: it became long after the commit.
    pub fn reconsider(&self, newest: &Generation, judge: impl Fn(Asked) -> Verdict) {
        let (generation, index) = self.home();
        if generation.id >= newest.id {
            return;
        }
        match judge(self.shared.asked()) {
            Verdict::Moves(next) => generation.hand_over(index, self.shared.clone(), &next),
            Verdict::Stays => {}
            Verdict::Ends => _ = self.shared.cut(Duration::ZERO),
        }
    }

    /// Tells others the generation that it lives by, wherever it moves. (A place that was watched is not used again.)
    pub fn watch(&self) -> Watch {
        Watch {
            shared: self.shared.clone(),
            began: self.generation.id,
        }
    }

    /// The flow has become a long one. `newest` is what serves now, `holds` whether a definition is one of its own: if a
    /// commit has passed by that did not know of it, it is asked now.
    pub fn settle(&self, newest: &Arc<Generation>, holds: impl Fn(u64) -> bool) {
        self.reconsider(newest, |asked| match asked.long {
            Some(OnChange::Keep) => Verdict::Moves(newest.clone()),
            _ if holds(asked.definition) => Verdict::Moves(newest.clone()),
            Some(OnChange::Cut) => Verdict::Ends,
            Some(OnChange::Drain) | None => Verdict::Stays,
        });
    }

    fn home(&self) -> (Arc<Generation>, usize) {
        let moved = self.shared.moved.lock().clone();
        moved.unwrap_or_else(|| (self.generation.clone(), self.index))
    }

    /// How long a long flow that is told to end may take to begin with it: many are not to end at once.
    pub fn cut_delay(&self) -> Duration {
        Duration::from_micros(self.shared.delay.load(Ordering::Relaxed).into())
    }

    /// The request must end now: its generation's deadline has come and its definition is gone.
    pub fn is_cut(&self) -> bool {
        self.shared.cut.load(Ordering::Acquire)
    }

    /// Ready when it is so.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_cut() {
            return Poll::Ready(());
        }
        self.shared.waker.register(cx.waker());
        if self.is_cut() {
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

/// Looks at a flight from outside. It keeps no generation in memory.
#[derive(Debug, Clone)]
pub struct Watch {
    shared: Arc<Shared>,
    began: u64,
}

impl Watch {
    /// The generation that the flight lives by now.
    pub fn generation(&self) -> u64 {
        let moved = self.shared.moved.lock();
        moved.as_ref().map_or(self.began, |(to, _)| to.id)
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

    fn heir(find: impl Fn(u32, u64) -> Option<Arc<Generation>>) -> impl Fn(Asked) -> Verdict {
        move |asked| find(asked.binding, asked.definition).map_or(Verdict::Ends, Verdict::Moves)
    }

    #[test]
    fn long_flights_are_asked_alone_and_counted_where_they_are() {
        let (old, new) = (Generation::new(1), Generation::new(2));
        let request = old.begin(1);
        request.define(5);
        let flows: Vec<Flight> = (1..=4)
            .map(|definition| {
                let flow = old.begin(1);
                flow.define(definition);
                flow.set_long(OnChange::Drain);
                flow
            })
            .collect();
        assert_eq!((old.in_flight(), old.long()), (5, 4));
        let cut = old.settle(true, |asked| match asked.definition {
            1 => Verdict::Moves(new.clone()),
            2 => Verdict::Stays,
            _ => Verdict::Ends,
        });
        assert_eq!(cut, 2);
        assert_eq!((old.in_flight(), old.long()), (4, 3));
        assert_eq!((new.in_flight(), new.long()), (1, 1));
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        let told: Vec<bool> = flows
            .iter()
            .map(|f| f.poll_cut(&mut cx).is_ready())
            .collect();
        assert_eq!(told, [false, false, true, true]);
        assert!(request.poll_cut(&mut cx).is_pending());
        // One after the other.
        assert_eq!(flows[2].cut_delay(), Duration::ZERO);
        assert_eq!(flows[3].cut_delay(), APART);
        // Who knows already is not counted again.
        assert_eq!(old.settle(false, |_| Verdict::Ends), 2);
        drop((flows, request));
        assert_eq!(
            (old.long(), new.long(), old.in_flight(), new.in_flight()),
            (0, 0, 0, 0)
        );
        // The places that they leave are those of requests again.
        let _next = (old.begin(1), new.begin(1));
        assert_eq!((old.long(), new.long()), (0, 0));
    }

    #[test]
    fn a_flight_that_becomes_long_after_the_commit_is_asked_then() {
        let (old, new) = (Generation::new(1), Generation::new(2));
        let flow = old.begin(1);
        flow.define(1);
        flow.set_long(OnChange::Keep);
        flow.reconsider(&old, |_| Verdict::Ends);
        flow.reconsider(&new, |asked| {
            assert_eq!(asked.long, Some(OnChange::Keep));
            Verdict::Moves(new.clone())
        });
        flow.reconsider(&new, |_| Verdict::Ends);
        assert_eq!((old.long(), new.long()), (0, 1));
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        assert!(flow.poll_cut(&mut cx).is_pending());
    }

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
        let next = new.clone();
        let cut = old.settle(
            false,
            heir(move |binding, definition| {
                (binding == 7 && definition == 42).then(|| next.clone())
            }),
        );
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
        assert_eq!(old.settle(false, heir(|_, _| None)), 1);
        assert!(first.poll_cut(&mut cx).is_ready());
        drop(first);
        let second = old.begin(2);
        assert!(second.poll_cut(&mut cx).is_pending());
        // It has no definition of its own yet.
        assert_eq!(old.settle(false, heir(|_, _| Some(new.clone()))), 1);
        drop(second);
        assert_eq!((old.in_flight(), new.in_flight()), (0, 0));
    }

    #[test]
    fn a_flight_that_moved_twice_ends_where_it_is_and_frees_its_generations() {
        let chain = [1, 2, 3].map(Generation::new);
        let flight = chain[0].begin(7);
        flight.define(42);
        for (from, to) in [(0, 1), (1, 2)] {
            assert_eq!(
                chain[from].settle(false, heir(|_, _| Some(chain[to].clone()))),
                0
            );
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
                chain[0].settle(false, heir(|_, _| Some(chain[1].clone())));
                chain[1].settle(false, heir(|_, _| Some(chain[2].clone())));
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
