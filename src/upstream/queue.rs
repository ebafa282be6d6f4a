//! `limits`: how much a target takes at once, and where requests wait while all targets of their upstream are full.
//!
//! The count of a target that has a limit is one for the whole process, so that the limit is exact, and lives in the
//! target. The queue is the upstream's and outlives generations too: a request of an old generation waits in it by its
//! own generation's targets and limits. Whoever makes a place free hands it to the first that can use it, as a value,
//! so nothing that comes later overtakes, and a place given to one who has just left goes to the next when it is
//! dropped.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::pool::{InFlight, Target};
use super::{Member, Shared, Upstream};
use crate::config::upstream::{Protocol, UpstreamSpec};

/// One generation's view of an upstream's limits.
#[derive(Debug)]
pub(super) struct Limits {
    /// Requests that a target may have in flight; `None`: any number.
    pub(super) requests: Option<usize>,
    /// Connections that a target may have open, as far as they are waited for; `None`: any number.
    pub(super) connections: Option<usize>,
    /// Requests that may wait for one target.
    pub(super) queue: usize,
    pub(super) wait: Duration,
    pub(super) waiting: Arc<Queue>,
    /// The targets of a request that comes without a wish and has tried none.
    places: Arc<[Place]>,
}

/// A target that a waiting request may go to.
#[derive(Debug)]
pub(super) struct Place {
    /// Among the members.
    index: usize,
    target: Arc<Target>,
    limit: usize,
    /// Whether it takes such a request now.
    open: fn(&Target) -> bool,
}

/// A place that was free.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) index: usize,
    pub(super) flight: InFlight,
}

/// Requests that wait for a place, first come, first served.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// How many there are: all that is looked at while there is none.
    count: AtomicUsize,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    /// By rising number.
    waiters: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    worker: usize,
    places: Arc<[Place]>,
    to: oneshot::Sender<Given>,
}

/// A request's place in the queue; dropping it leaves the queue.
#[derive(Debug)]
pub(super) struct Waiting {
    queue: Arc<Queue>,
    number: u64,
    given: oneshot::Receiver<Given>,
}

impl Limits {
    pub(super) fn build(
        spec: &UpstreamSpec,
        members: &[Member],
        shared: &Shared,
    ) -> Option<Limits> {
        let limits = spec.limits.as_ref()?;
        // Over HTTP/1 each request needs a connection of its own.
        let by_connection = limits
            .connections
            .filter(|_| spec.protocol == Protocol::Http1);
        let requests = limits.requests.into_iter().chain(by_connection).min();
        let waiting = shared.queues.lease(&spec.name, Queue::default);
        for member in members {
            member.target.has_queue(&waiting);
        }
        let weights = spec.targets.iter().map(|target| target.weight);
        let places = members.iter().zip(weights).enumerate();
        let places = places.filter(|(_, (member, weight))| *weight > 0 && !member.backup);
        Some(Limits {
            places: places
                .map(|(index, (member, _))| Place::new(index, member, requests))
                .collect(),
            requests,
            connections: limits.connections,
            queue: limits.queue,
            wait: limits.wait,
            waiting,
        })
    }
}

impl Limits {
    /// Requests that may wait.
    pub(super) fn most(&self) -> usize {
        self.queue.saturating_mul(self.places.len().max(1))
    }
}

impl Place {
    fn new(index: usize, member: &Member, limit: Option<usize>) -> Place {
        Place {
            index,
            target: member.target.clone(),
            limit: limit.unwrap_or(usize::MAX),
            open: Target::is_for_all,
        }
    }

    fn take(&self, worker: usize) -> Option<Given> {
        let open = (self.open)(&self.target);
        let flight = open.then(|| self.target.admit(self.limit, worker))??;
        Some(Given {
            index: self.index,
            flight,
        })
    }
}

impl Upstream {
    /// Whether a target may take one more; another worker may be quicker.
    pub(super) fn has_room(&self, index: usize) -> bool {
        let limit = self.limits.as_ref().and_then(|limits| limits.requests);
        limit.is_none_or(|limit| self.members[index].target.in_flight() < limit)
    }

    /// Where a request may wait: by its own target if it has one, else by all usable ones.
    pub(super) fn places(&self, own: Option<usize>, tried: &[usize]) -> Arc<[Place]> {
        let Some(limits) = &self.limits else {
            return Arc::default();
        };
        let of = |index: usize| Place::new(index, &self.members[index], limits.requests);
        if let Some(own) = own {
            return Arc::new([Place {
                open: Target::is_up,
                ..of(own)
            }]);
        }
        let fits = |index: &usize| {
            let (member, weight) = (&self.members[*index], self.weights[*index]);
            weight > 0 && !tried.contains(index) && member.target.is_for_all()
        };
        let (first, backup): (Vec<usize>, Vec<usize>) = (0..self.members.len())
            .filter(fits)
            .partition(|index| !self.members[*index].backup);
        if !first.is_empty() && tried.is_empty() {
            // Most share one list, so that a look at the queue ends early. Those that are down are looked at there.
            return limits.places.clone();
        }
        let places = if first.is_empty() { backup } else { first };
        if !places.is_empty() || !self.fails_open() {
            return places.into_iter().map(of).collect();
        }
        // As a pick does when none is up.
        let last = |index: &usize| {
            let is_last = self.members[*index].target.is_last_resort();
            is_last && self.weights[*index] > 0 && !tried.contains(index)
        };
        let places = (0..self.members.len()).filter(last).map(|index| Place {
            open: Target::is_last_resort,
            ..of(index)
        });
        places.collect()
    }
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Waits for one of `places`. `None`: `most` are waiting already.
    pub(super) fn enter(
        self: &Arc<Self>,
        worker: usize,
        places: Arc<[Place]>,
        most: usize,
    ) -> Option<Waiting> {
        let (to, given) = oneshot::channel();
        let number = {
            let mut line = self.line.lock();
            if line.waiters.len() >= most {
                return None;
            }
            let number = line.next;
            line.next += 1;
            line.waiters.push_back(Waiter {
                number,
                worker,
                places,
                to,
            });
            self.count.store(line.waiters.len(), Ordering::SeqCst);
            number
        };
        // What became free before it was seen waiting.
        self.hand_out();
        Some(Waiting {
            queue: self.clone(),
            number,
            given,
        })
    }

    /// Something became free.
    pub(super) fn freed(&self) {
        if !self.is_empty() {
            self.hand_out();
        }
    }

    /// Gives what is free to those who can use it, in their order.
    fn hand_out(&self) {
        let mut line = self.line.lock();
        let mut at = 0;
        let mut unwanted = Vec::new();
        // Who would wait for the same waits on: the list is looked at once.
        let mut full: Option<Arc<[Place]>> = None;
        while let Some(waiter) = line.waiters.get(at) {
            let known = full
                .as_ref()
                .is_some_and(|full| Arc::ptr_eq(full, &waiter.places));
            let given = if known {
                None
            } else {
                waiter
                    .places
                    .iter()
                    .find_map(|place| place.take(waiter.worker))
            };
            let Some(given) = given else {
                full = Some(waiter.places.clone());
                at += 1;
                continue;
            };
            let waiter = line.waiters.remove(at);
            if let Some(Err(back)) = waiter.map(|waiter| waiter.to.send(given)) {
                unwanted.push(back);
            }
        }
        self.count.store(line.waiters.len(), Ordering::SeqCst);
        drop(line);
        // None, for who leaves does so before its receiver goes; were there one, it comes back here.
        drop(unwanted);
    }
}

impl Waiting {
    /// Its turn. Cancel-safe: a place that was given meanwhile is there at the next call, or goes on to the next one.
    pub(super) async fn turn(&mut self) -> Option<Given> {
        // The sender is dropped unused only by whoever waits here.
        (&mut self.given).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut line = self.queue.line.lock();
        let found = line
            .waiters
            .binary_search_by_key(&self.number, |w| w.number);
        let left = found.ok().and_then(|at| line.waiters.remove(at));
        self.queue.count.store(line.waiters.len(), Ordering::SeqCst);
        drop(line);
        // Its list may hold the last reference to a target.
        drop(left);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::config::scalar::TargetAddr;
    use crate::upstream::TargetKey;
    use crate::upstream::health::Health;

    fn health(key: TargetKey) -> Arc<Health> {
        Arc::new(Health::new(key, Arc::default()))
    }

    fn target(name: &str, queue: &Arc<Queue>) -> Arc<Target> {
        let key: TargetKey = ("api".into(), TargetAddr::Unix(name.into()));
        let target = Target::new(key.clone(), &[Arc::default()], None, health(key));
        target.has_queue(queue);
        Arc::new(target)
    }

    fn places(of: &[&Arc<Target>], limit: usize) -> Arc<[Place]> {
        let place = |(index, target): (usize, &&Arc<Target>)| Place {
            index,
            target: (*target).clone(),
            limit,
            open: Target::is_for_all,
        };
        of.iter().enumerate().map(place).collect()
    }

    fn given(waiting: &mut Waiting) -> Option<Given> {
        waiting.turn().now_or_never().flatten()
    }

    #[test]
    fn places_are_given_in_order_and_who_leaves_frees_its_own() {
        let queue = Arc::new(Queue::default());
        let a = target("/a", &queue);
        let busy = a.admit(1, 0).unwrap();
        assert!(a.admit(1, 0).is_none());
        let places = places(&[&a], 1);
        let mut waits: Vec<_> = (0..4)
            .map(|_| queue.enter(0, places.clone(), 4).unwrap())
            .collect();
        assert!(queue.enter(0, places.clone(), 4).is_none());
        assert!(waits.iter_mut().all(|w| given(w).is_none()));
        // One leaves while it waits, one with the place it was given but has not seen.
        drop(waits.remove(1));
        assert_eq!(queue.len(), 3);
        drop(busy);
        drop(waits.remove(0));
        let first = given(&mut waits[0]).unwrap();
        assert!(given(&mut waits[1]).is_none());
        assert_eq!((a.in_flight(), queue.len()), (1, 1));
        drop(first);
        drop(given(&mut waits[1]).unwrap());
        assert_eq!((a.in_flight(), queue.len()), (0, 0));
    }

    #[test]
    fn who_can_use_what_is_free_does_not_wait_for_who_cannot() {
        let queue = Arc::new(Queue::default());
        let (a, b) = (target("/a", &queue), target("/b", &queue));
        let busy = [a.admit(1, 0).unwrap(), b.admit(1, 0).unwrap()];
        let mut first = queue.enter(0, places(&[&a], 1), 4).unwrap();
        let mut second = queue.enter(0, places(&[&a, &b], 1), 4).unwrap();
        let [on_a, on_b] = busy;
        drop(on_b);
        assert!(given(&mut first).is_none());
        assert_eq!(given(&mut second).unwrap().index, 1);
        drop(on_a);
        assert!(given(&mut first).is_some());
    }

    #[test]
    fn another_generation_s_limit_and_those_without_one_count() {
        let queue = Arc::new(Queue::default());
        let a = target("/a", &queue);
        let old = InFlight::begin(&a, 0);
        assert!(a.admit(1, 0).is_none());
        let mut waiting = queue.enter(0, places(&[&a], 1), 1).unwrap();
        let mut wider = queue.enter(0, places(&[&a], 2), 2).unwrap();
        assert!(given(&mut waiting).is_none());
        let more = given(&mut wider).unwrap();
        drop(old);
        assert!(given(&mut waiting).is_none());
        drop(more);
        assert!(given(&mut waiting).is_some());
    }

    #[test]
    fn many_threads_never_see_more_than_the_limit_and_none_is_forgotten() {
        const LIMIT: usize = 3;
        let queue = Arc::new(Queue::default());
        let a = target("/a", &queue);
        let places = places(&[&a], LIMIT);
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (queue, places, inside) = (&queue, &places, &inside);
                scope.spawn(move || {
                    for turn in 0..500 {
                        let mut waiting = queue.enter(0, places.clone(), usize::MAX).unwrap();
                        if (turn + thread) % 7 == 0 {
                            continue;
                        }
                        // Hangs if a wake-up is lost.
                        let given = futures_util::FutureExt::map(waiting.turn(), Option::unwrap);
                        let given = tokio::runtime::Builder::new_current_thread()
                            .build()
                            .unwrap()
                            .block_on(given);
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < LIMIT);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(given);
                    }
                });
            }
        });
        assert_eq!((a.in_flight(), queue.len()), (0, 0));
    }
}
