//! A target's lasting part: requests in flight, open connections, and the idle ones in shards by worker.
//!
//! The pool key is upstream, address and protocol (HTTP/1 only so far): a connection never serves another identity.
//! Sizes and timeouts are not kept here: they come with each request from its generation, so they may change freely.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::connect::{Connection, Slot};
use super::resolve::Names;
use super::{Shared, TargetKey};
use crate::config::scalar::TargetAddr;
use crate::metrics::WorkerContext;

/// A target's lasting part: in-flight count, idle connections by worker. Dropping it closes its idle connections.
#[derive(Debug)]
pub struct Target {
    key: TargetKey,
    in_flight: AtomicUsize,
    /// Shared with the drivers, which must not keep the target alive.
    open: Arc<AtomicUsize>,
    shards: Box<[Shard]>,
    names: Option<Arc<Names>>,
}

/// One worker's idle connections, the freshest last. On a cache line of its own, so that workers do not disturb each
/// other.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(Mutex<Vec<Idle>>);

#[derive(Debug)]
struct Idle {
    connection: Connection,
    timeout: Duration,
    /// When a sweep first saw it here. Giving back reads no clock; the price is up to one sweep more of life.
    seen: Option<Instant>,
}

impl Target {
    pub(super) fn new(key: TargetKey, workers: usize, names: Option<Arc<Names>>) -> Target {
        Target {
            key,
            in_flight: AtomicUsize::new(0),
            open: Arc::default(),
            shards: (0..workers.max(1)).map(|_| Shard::default()).collect(),
            names,
        }
    }

    /// Requests in flight, over all generations and workers.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Open connections, idle ones included; the whole process.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Idle connections; the whole process.
    pub fn idle(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().len()).sum()
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

    fn shard(&self, worker: usize) -> &Shard {
        self.shards.get(worker).unwrap_or(&self.shards[0])
    }

    /// The freshest idle connection of this worker.
    pub(super) fn check_out(&self, worker: usize) -> Option<Connection> {
        self.shard(worker).check_out()
    }

    /// An idle connection of any worker: at the connection limit, others may hold what this one may not open.
    pub(super) fn check_out_any(&self) -> Option<Connection> {
        self.shards.iter().find_map(Shard::check_out)
    }
}

impl Shard {
    fn check_out(&self) -> Option<Connection> {
        // Dropped after the lock: ending a connection wakes its driver.
        let mut dead = Vec::new();
        let mut idle = self.0.lock();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let sender = &idle[at].connection.sender;
            if sender.is_ready() {
                return Some(idle.remove(at).connection);
            }
            // Neither ready nor closed: its last bytes are still on their way out; it is passed over.
            if sender.is_closed() {
                dead.push(idle.remove(at));
            }
        }
        None
    }

    fn sweep(&self, now: Instant) {
        let mut dead = Vec::new();
        let mut idle = self.0.lock();
        let mut at = 0;
        while at < idle.len() {
            let one = &mut idle[at];
            let since = now.saturating_duration_since(*one.seen.get_or_insert(now));
            if one.connection.sender.is_closed() || since >= one.timeout {
                dead.push(idle.remove(at));
            } else {
                at += 1;
            }
        }
        drop(idle);
        drop(dead);
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
    pub(super) connection: Connection,
    pub(super) target: Arc<Target>,
    pub(super) keep: Keep,
}

impl Lease {
    pub(super) fn peer(&self) -> &TargetAddr {
        self.target.address()
    }

    /// Puts the connection back, if it still lives and there is room.
    pub(super) fn give_back(self) {
        let Lease {
            connection,
            target,
            keep,
        } = self;
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = target.shard(connection.home).0.lock();
        if idle.len() < keep.share {
            idle.push(Idle {
                connection,
                timeout: keep.timeout,
                seen: None,
            });
        }
    }
}

/// A target that answered: holds its in-flight count until dropped, which is when the response body ends.
#[derive(Debug)]
pub struct InFlight {
    pub target: Arc<Target>,
}

impl InFlight {
    pub(super) fn begin(target: &Arc<Target>) -> InFlight {
        target.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight {
            target: target.clone(),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.target.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Closes this worker's pooled connections that were idle for too long. Called about once a second on the worker.
pub fn sweep(shared: &Shared, worker: &WorkerContext) {
    let now = Instant::now();
    for (_, target) in shared.targets.alive() {
        target.shard(worker.index).sweep(now);
    }
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
        let target = Target::new(("api".into(), TargetAddr::Unix("/x".into())), 2, None);
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
