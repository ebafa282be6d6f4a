//! A target's lasting part: requests in flight, open connections, and the idle ones in shards by worker.
//!
//! The pool key is upstream, address and protocol (HTTP/1 only so far): a connection never serves another identity.
//! Sizes and timeouts are not kept here: they come with each request from its generation, so they may change freely.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::connection::{Connection, Slot, State};
use super::latency::Latency;
use super::resolve::Names;
use super::{Shared, TargetKey};
use crate::config::scalar::TargetAddr;
use crate::metrics::WorkerContext;

/// A target's lasting part: in-flight count, idle connections by worker. Dropping it closes its idle connections, but
/// for those of a worker where a response is still under way: they close with that.
#[derive(Debug)]
pub struct Target {
    key: TargetKey,
    /// Shared with the connections, which must not keep the target alive.
    open: Arc<AtomicUsize>,
    shards: Box<[Arc<Shard>]>,
    names: Option<Arc<Names>>,
    pub(super) latency: Latency,
}

/// One worker's part of a target, allocated for itself and on cache lines of its own (adjacent lines are fetched in
/// pairs), so that workers do not disturb each other.
#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    /// Requests that this worker has in flight.
    in_flight: AtomicUsize,
    pool: Mutex<Pool>,
    address: TargetAddr,
    /// The worker's list of shards to sweep.
    round: Arc<Round>,
}

#[derive(Debug, Default)]
struct Pool {
    /// The freshest last.
    idle: Vec<Idle>,
    /// It is on the worker's round, or about to be.
    listed: bool,
}

/// The shards of one worker that have idle connections: all that its sweep looks at.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Round(Mutex<Vec<Weak<Shard>>>);

#[derive(Debug)]
struct Idle {
    connection: Box<Connection>,
    timeout: Duration,
    /// When a sweep first saw it here. Giving back reads no clock; the price is up to one sweep more of life.
    seen: Option<Instant>,
}

impl Target {
    /// With a shard for each worker, which is one for each of `rounds`.
    pub(super) fn new(key: TargetKey, rounds: &[Arc<Round>], names: Option<Arc<Names>>) -> Target {
        let shard = |round: &Arc<Round>| {
            Arc::new(Shard {
                in_flight: AtomicUsize::new(0),
                pool: Mutex::default(),
                address: key.1.clone(),
                round: round.clone(),
            })
        };
        Target {
            open: Arc::default(),
            shards: rounds.iter().map(shard).collect(),
            key,
            names,
            latency: Latency::default(),
        }
    }

    /// Requests in flight, over all generations and workers.
    pub fn in_flight(&self) -> usize {
        let here = |shard: &Arc<Shard>| shard.in_flight.load(Ordering::Relaxed);
        self.shards.iter().map(here).sum()
    }

    /// Open connections, idle ones included; the whole process.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Idle connections; the whole process.
    pub fn idle(&self) -> usize {
        let here = |shard: &Arc<Shard>| shard.pool.lock().idle.len();
        self.shards.iter().map(here).sum()
    }

    /// False while its name does not resolve.
    pub fn is_up(&self) -> bool {
        self.names.as_ref().is_none_or(|names| names.is_up())
    }

    pub fn key(&self) -> &TargetKey {
        &self.key
    }

    pub(super) fn address(&self) -> &TargetAddr {
        &self.key.1
    }

    pub(super) fn names(&self) -> Option<&Names> {
        self.names.as_deref()
    }

    /// A place for one more connection; `None` at the limit.
    pub(super) fn slot(&self, limit: Option<usize>) -> Option<Slot> {
        Slot::take(&self.open, limit)
    }

    fn shard(&self, worker: usize) -> &Arc<Shard> {
        self.shards.get(worker).unwrap_or(&self.shards[0])
    }

    /// The freshest idle connection of this worker.
    pub(super) fn check_out(&self, worker: usize) -> Option<Box<Connection>> {
        self.shard(worker).check_out()
    }

    /// An idle connection of any worker: at the connection limit, others may hold what this one may not open.
    pub(super) fn check_out_any(&self) -> Option<Box<Connection>> {
        self.shards.iter().find_map(|shard| shard.check_out())
    }
}

impl Shard {
    fn check_out(&self) -> Option<Box<Connection>> {
        let mut busy = Vec::new();
        let found = loop {
            // One at a time: no lock is held while a connection is looked at.
            let Some(one) = self.pool.lock().idle.pop() else {
                break None;
            };
            match one.connection.state() {
                State::Ready => break Some(one.connection),
                State::Busy => busy.push(one),
                State::Closed => {}
            }
        };
        if !busy.is_empty() {
            busy.reverse();
            self.pool.lock().idle.append(&mut busy);
        }
        found
    }

    fn give_back(self: &Arc<Self>, connection: Box<Connection>, keep: Keep) {
        let mut pool = self.pool.lock();
        if pool.idle.len() >= keep.share {
            drop(pool);
            return;
        }
        pool.idle.push(Idle {
            connection,
            timeout: keep.timeout,
            seen: None,
        });
        if !std::mem::replace(&mut pool.listed, true) {
            drop(pool);
            self.round.0.lock().push(Arc::downgrade(self));
        }
    }

    /// Closes what was idle for too long; true if anything is left.
    fn sweep(&self, now: Instant) -> bool {
        let mut idle = std::mem::take(&mut self.pool.lock().idle);
        idle.retain_mut(|one| {
            let since = now.saturating_duration_since(*one.seen.get_or_insert(now));
            since < one.timeout && one.connection.state() != State::Closed
        });
        let mut pool = self.pool.lock();
        idle.append(&mut pool.idle);
        pool.idle = idle;
        pool.listed = !pool.idle.is_empty();
        pool.listed
    }
}

/// What a generation says about keeping connections, for one worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keep {
    /// Idle connections of one target in one worker's shard.
    pub(super) share: usize,
    pub(super) timeout: Duration,
}

impl Keep {
    /// This worker's exact share of `idle`; the first ones take the remainder.
    pub(super) fn new(idle: usize, timeout: Duration, worker: usize, of: usize) -> Keep {
        let of = of.max(1);
        Keep {
            share: idle / of + usize::from(worker < idle % of),
            timeout,
        }
    }
}

/// A connection in use, and where it belongs afterwards. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) connection: Box<Connection>,
    /// Of the worker whose runtime knows the connection.
    shard: Arc<Shard>,
    keep: Keep,
}

impl Lease {
    pub(super) fn new(connection: Box<Connection>, target: &Target, keep: Keep) -> Lease {
        Lease {
            shard: target.shard(connection.home).clone(),
            connection,
            keep,
        }
    }

    pub(super) fn peer(&self) -> &TargetAddr {
        &self.shard.address
    }

    /// Puts the connection back, if it still lives and there is room.
    pub(super) fn give_back(self) {
        if self.connection.state() != State::Closed {
            self.shard.give_back(self.connection, self.keep);
        }
    }
}

/// A target that answered: holds its in-flight count until dropped, which is when the response body ends.
#[derive(Debug)]
pub struct InFlight {
    pub target: Arc<Target>,
    worker: usize,
}

impl InFlight {
    pub(super) fn begin(target: &Arc<Target>, worker: usize) -> InFlight {
        let count = &target.shard(worker).in_flight;
        count.fetch_add(1, Ordering::Relaxed);
        InFlight {
            target: target.clone(),
            worker,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let count = &self.target.shard(self.worker).in_flight;
        count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Closes this worker's pooled connections that were idle for too long or have ended. Called about once a second on the
/// worker; it takes only locks that this worker takes.
pub fn sweep(shared: &Shared, worker: &WorkerContext) {
    let Some(round) = shared.rounds.get(worker.index) else {
        return;
    };
    let mut shards = std::mem::take(&mut *round.0.lock());
    let now = Instant::now();
    shards.retain(|shard| shard.upgrade().is_some_and(|shard| shard.sweep(now)));
    let mut listed = round.0.lock();
    shards.append(&mut listed);
    *listed = shards;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_workers_shares_add_up_to_the_whole(idle in 0_usize..1000, of in 1_usize..64) {
            let share = |worker| Keep::new(idle, Duration::ZERO, worker, of).share;
            prop_assert_eq!((0..of).map(share).sum::<usize>(), idle);
            prop_assert!(share(0) - share(of - 1) <= 1);
        }
    }

    #[test]
    fn slots_stop_at_the_limit_and_come_back() {
        let target = Target::new(
            ("api".into(), TargetAddr::Unix("/x".into())),
            &[Arc::default()],
            None,
        );
        let first = target.slot(Some(2));
        let second = target.slot(Some(2));
        assert!(first.is_some() && second.is_some() && target.slot(Some(2)).is_none());
        // A generation with another limit sees the same connections.
        assert!(target.slot(Some(3)).is_some());
        assert_eq!(target.connections(), 2);
        drop(first);
        assert!(target.slot(Some(2)).is_some());
    }
}
