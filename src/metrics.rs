//! Counters of one worker, summed when read: no shared cache line on the request path.

pub mod cell;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::session::Sessions;

/// What one worker counts.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Open client connections.
    pub connections: AtomicU64,
    /// Requests begun since start.
    pub requests: AtomicU64,
    /// Panics caught in a connection or request since start.
    pub panics: AtomicU64,
    /// Client connections accepted since start.
    pub accepted: AtomicU64,
    /// Websockets begun since start.
    pub websockets: AtomicU64,
}

impl WorkerCounters {
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Which worker this is, for sharded state, and where it counts. On cache lines of its own, for one thread makes those of
/// all workers back to back.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerContext {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub of: usize,
    pub counters: WorkerCounters,
    /// Its long flows.
    pub sessions: Arc<Sessions>,
}
