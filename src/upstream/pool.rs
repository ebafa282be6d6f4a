//! A target's lasting part: requests in flight, open connections, and its pools of connections in shards by worker.
//!
//! A target has one pool for each way it is spoken to (protocol, TLS: [`TransportKey`]), so that a connection never
//! serves another identity; a pool lives as long as a generation that speaks so. HTTP/1 connections are here while they
//! are idle, HTTP/2 connections as long as they take streams. Sizes and timeouts are not kept here: they come with each request from its generation, so they may change freely.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::connection::{Connection, Open, Slot};
use super::health::{self, Health, Passive};
use super::latency::Latency;
use super::multiplex::{Dial, Entry, Multiplexed, Ticket};
use super::queue::Queue;
use super::resolve::Names;
use super::state::{TargetState, Wish};
use super::transport::TransportKey;
use super::{Shared, TargetKey};
use crate::config::scalar::TargetAddr;
use crate::metrics::WorkerContext;
use crate::metrics::cell::{Cell, Outcome, Totals};
use crate::registry::Registry;

/// A target's lasting part: in-flight count, open connections, pools.
#[derive(Debug)]
pub struct Target {
    key: TargetKey,
    /// Shared with the connections, which must not keep the target alive.
    open: Arc<Open>,
    /// By worker.
    counts: Box<[Count]>,
    /// Requests in flight that a limit counts; the others are with their workers.
    admitted: Admitted,
    /// Where requests wait for a place here; not there as long as no generation had a limit.
    queue: OnceLock<Arc<Queue>>,
    pools: Registry<TransportKey, Pool>,
    /// By worker.
    rounds: Box<[Arc<Round>]>,
    names: Option<Arc<Names>>,
    /// Its name is looked up by a proxy on the way, so nobody here knows whether it is found.
    found_elsewhere: AtomicBool,
    health: Arc<Health>,
    pub(super) latency: Latency,
    pub(super) wish: Wish,
}

/// The requests of one worker: on cache lines of its own (adjacent lines are fetched in pairs), so that
/// workers do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Count {
    in_flight: AtomicUsize,
    /// What became of those it had.
    cell: Cell,
}

/// On cache lines of its own, as all workers write it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Admitted(AtomicUsize);

/// The connections of a target that are spoken to alike, by worker. Dropping it closes the idle ones, but for those of a
/// worker where a response is still under way: they close with that.
#[derive(Debug)]
pub(super) struct Pool {
    shards: Box<[Arc<Shard>]>,
}

/// One worker's part of a pool, allocated for itself and on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Shard {
    held: Mutex<Held>,
    address: TargetAddr,
    /// The worker's list of shards to sweep.
    round: Arc<Round>,
}

#[derive(Debug, Default)]
struct Held {
    /// HTTP/1; the freshest last.
    idle: Vec<Idle>,
    /// HTTP/2, in use or not.
    multiplexed: Vec<Entry>,
    /// The HTTP/2 connection that is being made; who needs one waits for it.
    dial: Option<Arc<Dial>>,
    /// The last connection chose HTTP/1 where both were offered.
    chose_h1: bool,
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
    /// For each worker there is one of `rounds`.
    pub(super) fn new(
        key: TargetKey,
        rounds: &[Arc<Round>],
        names: Option<Arc<Names>>,
        health: Arc<Health>,
    ) -> Target {
        Target {
            open: Arc::default(),
            counts: rounds.iter().map(|_| Count::default()).collect(),
            admitted: Admitted::default(),
            queue: OnceLock::new(),
            pools: Registry::default(),
            rounds: rounds.into(),
            key,
            names,
            found_elsewhere: AtomicBool::new(false),
            health,
            latency: Latency::default(),
            wish: Wish::default(),
        }
    }

    /// The pool of those that are spoken to so.
    pub(super) fn pool(&self, key: &TransportKey) -> Arc<Pool> {
        let shard = |round: &Arc<Round>| {
            Arc::new(Shard {
                held: Mutex::default(),
                address: self.key.1.clone(),
                round: round.clone(),
            })
        };
        self.pools.lease(key, || Pool {
            shards: self.rounds.iter().map(shard).collect(),
        })
    }

    /// Requests in flight, over all generations and workers.
    pub fn in_flight(&self) -> usize {
        self.without_limit() + self.admitted.0.load(Ordering::SeqCst)
    }

    fn without_limit(&self) -> usize {
        let here = |count: &Count| count.in_flight.load(Ordering::SeqCst);
        self.counts.iter().map(here).sum()
    }

    /// One more in flight, if there are fewer than `limit`. Exact, but for requests of generations without a limit.
    pub(super) fn admit(self: &Arc<Self>, limit: usize, worker: usize) -> Option<InFlight> {
        let one_more = |n| (self.without_limit().saturating_add(n) < limit).then(|| n + 1);
        let order = Ordering::SeqCst;
        self.admitted.0.fetch_update(order, order, one_more).ok()?;
        Some(InFlight::counted(self, worker, true))
    }

    /// From now on requests wait in `queue` for a place here: it is told of each that becomes free.
    pub(super) fn has_queue(&self, queue: &Arc<Queue>) {
        // All generations that have this target have the same one.
        self.queue.get_or_init(|| queue.clone());
    }

    pub(super) fn open(&self) -> &Open {
        &self.open
    }

    fn count(&self, worker: usize) -> &Count {
        self.counts.get(worker).unwrap_or(&self.counts[0])
    }

    /// What became of its requests, over all generations and workers.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for count in &self.counts {
            count.cell.add_to(&mut totals);
        }
        totals
    }

    /// Open connections, idle ones included; the whole process.
    pub fn connections(&self) -> usize {
        self.open.count()
    }

    /// Idle connections; the whole process.
    pub fn idle(&self) -> usize {
        let pools = self.pools.alive();
        let shards = pools.iter().flat_map(|(_, pool)| &pool.shards);
        shards.map(|shard| shard.held.lock().idle()).sum()
    }

    /// False while its name does not resolve, its checks fail, it is ejected, or an operator says so.
    pub fn is_up(&self) -> bool {
        self.wish() != TargetState::Down && self.health.is_up() && self.is_resolved()
    }

    /// False while its name has not been found.
    pub(super) fn is_resolved(&self) -> bool {
        self.found_elsewhere.load(Ordering::Relaxed)
            || self.names.as_ref().is_none_or(|names| names.is_up())
    }

    pub(super) fn set_found_elsewhere(&self, elsewhere: bool) {
        self.found_elsewhere.store(elsewhere, Ordering::Relaxed);
    }

    pub(super) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// In one word.
    pub fn state(&self) -> health::State {
        if self.is_resolved() {
            self.health.state()
        } else {
            health::State::Unresolved
        }
    }

    /// What is known of its health.
    pub fn report(&self) -> health::Report {
        self.health.report()
    }

    /// Tells those that wait that something has ended here, or might go here now.
    pub(super) fn freed(&self) {
        self.open.freed();
        if let Some(queue) = self.queue.get() {
            queue.freed();
        }
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

    /// An idle connection of this worker's shards, whatever it speaks.
    #[cfg(test)]
    pub(super) fn check_out(&self, worker: usize) -> Option<Box<Connection>> {
        let pools = self.pools.alive();
        pools.iter().find_map(|(_, pool)| pool.check_out(worker))
    }
}

impl Pool {
    pub(super) fn shard(&self, worker: usize) -> &Arc<Shard> {
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

    /// A stream on a connection of any worker.
    pub(super) fn stream_of_any(&self, keep: Keep) -> Option<Ticket> {
        self.shards.iter().find_map(|shard| shard.stream(keep))
    }
}

impl Held {
    /// Lets go of HTTP/2 connections that take no more streams, or had none for too long.
    fn sweep_multiplexed(&mut self, now: Instant) {
        let mut idle = 0;
        self.multiplexed
            .retain_mut(|entry| entry.stays(now, &mut idle));
    }

    fn idle(&self) -> usize {
        let multiplexed = self.multiplexed.iter().filter(|entry| entry.is_idle());
        self.idle.len() + multiplexed.count()
    }
}

/// How a request that may be multiplexed gets its connection.
pub(super) enum Claim {
    Stream(Ticket),
    /// Somebody makes one.
    Wait(Arc<Dial>),
    /// It is for the asker to make one, and for others to wait for it.
    Dial(Dialing),
    /// Those that offered both got HTTP/1: one of the asker's own.
    Alone,
}

/// The making of an HTTP/2 connection that others wait for. Dropped before its end, the next one makes it.
pub(super) struct Dialing {
    shard: Arc<Shard>,
    dial: Arc<Dial>,
}

impl Dialing {
    /// It came to nothing, also for those that wait.
    pub(super) fn failed(self, error: &super::error::Error) {
        self.dial.fail(error);
    }

    /// HTTP/1 was chosen: each to its own.
    pub(super) fn chose_h1(self) {
        self.shard.held.lock().chose_h1 = true;
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        self.shard.held.lock().dial = None;
        self.dial.done();
    }
}

impl Shard {
    /// A stream on a connection that has room, or how to come by one.
    pub(super) fn claim(self: &Arc<Self>, keep: Keep) -> Claim {
        let mut held = self.held.lock();
        if let Some(ticket) = take_stream(&mut held.multiplexed, keep) {
            return Claim::Stream(ticket);
        }
        if held.chose_h1 {
            return Claim::Alone;
        }
        if let Some(dial) = &held.dial {
            return Claim::Wait(dial.clone());
        }
        let dial = Arc::new(Dial::default());
        held.dial = Some(dial.clone());
        Claim::Dial(Dialing {
            shard: self.clone(),
            dial,
        })
    }

    fn stream(&self, keep: Keep) -> Option<Ticket> {
        take_stream(&mut self.held.lock().multiplexed, keep)
    }

    /// Adds a new connection, and takes its first stream.
    pub(super) fn add(self: &Arc<Self>, connection: Arc<Multiplexed>, keep: Keep) -> Ticket {
        let ticket = Ticket::new(connection.clone());
        let mut held = self.held.lock();
        held.chose_h1 = false;
        held.multiplexed.push(Entry::new(connection, keep));
        if !std::mem::replace(&mut held.listed, true) {
            drop(held);
            self.round.0.lock().push(Arc::downgrade(self));
        }
        ticket
    }

    fn check_out(&self) -> Option<Box<Connection>> {
        loop {
            // One at a time: no lock is held while a connection is looked at.
            let mut connection = self.held.lock().idle.pop()?.connection;
            if connection.is_fresh() {
                return Some(connection);
            }
        }
    }

    fn give_back(self: &Arc<Self>, connection: Box<Connection>, keep: Keep) {
        let mut held = self.held.lock();
        if held.idle.len() >= keep.share {
            drop(held);
            return;
        }
        held.idle.push(Idle {
            connection,
            timeout: keep.timeout,
            seen: None,
        });
        if !std::mem::replace(&mut held.listed, true) {
            drop(held);
            self.round.0.lock().push(Arc::downgrade(self));
        }
    }

    /// Closes what was idle for too long; true if anything is left.
    fn sweep(&self, now: Instant) -> bool {
        let mut idle = std::mem::take(&mut self.held.lock().idle);
        idle.retain_mut(|one| {
            let since = now.saturating_duration_since(*one.seen.get_or_insert(now));
            since < one.timeout && one.connection.is_fresh()
        });
        let mut held = self.held.lock();
        idle.append(&mut held.idle);
        held.idle = idle;
        held.sweep_multiplexed(now);
        held.listed = !held.idle.is_empty() || !held.multiplexed.is_empty();
        held.listed
    }
}

/// A stream on the first connection that has room; forgets those that have ended.
fn take_stream(multiplexed: &mut Vec<Entry>, keep: Keep) -> Option<Ticket> {
    multiplexed.retain(|entry| !entry.is_over());
    multiplexed.iter_mut().find_map(|entry| entry.take(keep))
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

/// An HTTP/1 connection in use, and where it belongs afterwards. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) connection: Box<Connection>,
    /// Of the worker whose runtime knows the connection.
    shard: Arc<Shard>,
    keep: Keep,
}

impl Lease {
    pub(super) fn new(connection: Box<Connection>, pool: &Pool, keep: Keep) -> Lease {
        Lease {
            shard: pool.shard(connection.home).clone(),
            connection,
            keep,
        }
    }

    pub(super) fn peer(&self) -> &TargetAddr {
        &self.shard.address
    }

    /// Puts the connection back, if it still lives and there is room.
    pub(super) fn give_back(mut self) {
        if self.connection.is_fresh() {
            self.connection.http.rest_idle();
            self.shard.give_back(self.connection, self.keep);
        }
    }
}

/// A target that answered: holds its in-flight count until dropped, which is when the response body ends.
#[derive(Debug)]
pub struct InFlight {
    pub target: Arc<Target>,
    worker: usize,
    /// A limit counts it.
    admitted: bool,
    ended: bool,
    /// The target goes down; `None`: that is no matter.
    pub(super) cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Told when the answer breaks.
    pub(super) passive: Option<Arc<Passive>>,
}

impl InFlight {
    pub(super) fn begin(target: &Arc<Target>, worker: usize) -> InFlight {
        let count = target.count(worker);
        count.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight::counted(target, worker, false)
    }

    /// One that is counted already.
    fn counted(target: &Arc<Target>, worker: usize, admitted: bool) -> InFlight {
        target.count(worker).cell.begin();
        InFlight {
            target: target.clone(),
            worker,
            admitted,
            ended: false,
            cut: None,
            passive: None,
        }
    }

    /// It was answered, and the answer has ended.
    pub fn end(&mut self, outcome: Outcome) {
        self.target.count(self.worker).cell.end(&outcome);
        self.ended = true;
    }

    /// It was a session that is no HTTP, and it has ended; so many bytes went to the client.
    pub fn end_session(&mut self, sent: u64) {
        self.target.count(self.worker).cell.end_session(sent);
        self.ended = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let count = self.target.count(self.worker);
        let in_flight = match self.admitted {
            true => &self.target.admitted.0,
            false => &count.in_flight,
        };
        if !self.ended {
            count.cell.fail();
        }
        // In one order with who begins to wait: one of the two sees the other.
        in_flight.fetch_sub(1, Ordering::SeqCst);
        self.target.freed();
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
            Arc::new(Health::new(
                ("api".into(), TargetAddr::Unix("/x".into())),
                Arc::default(),
            )),
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
