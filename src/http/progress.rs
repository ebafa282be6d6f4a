//! A request in progress, as seen from outside its own future: whether it was told to end, and since when its client
//! takes nothing. hyper does not poll a body that can't be sent, so a body can't tell either by itself; the task that
//! owns the connection (HTTP/1) or the stream (HTTP/2) asks here.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::filter;
use crate::forward;
use crate::generation::Flight;

/// A request's place among those that are counted.
#[derive(Debug)]
pub(super) enum Place {
    /// By `concurrency`.
    Filter(#[expect(dead_code, reason = "held")] filter::Place),
    /// By a forward proxy, for its user.
    User(#[expect(dead_code, reason = "held")] forward::Place),
}

/// A request's place in its generation, and how its response fares.
#[derive(Debug)]
pub struct Progress {
    pub flight: Flight,
    /// HTTP/2 only: a closed stream window stalls no socket, so each stream is timed by itself.
    base: Option<Instant>,
    /// Milliseconds after `base`, plus one, since when a piece waits to be taken; 0: it waits for us or the origin.
    since: AtomicU64,
    /// HTTP/2: the last of the response was handed over.
    answered: AtomicBool,
    /// Free again when the request, or what came of it, has ended.
    place: OnceLock<Place>,
}

impl Progress {
    /// `timed`: its stalls are to be seen in [`Progress::stalled_since`].
    pub fn new(flight: Flight, timed: bool) -> Progress {
        Progress {
            flight,
            base: timed.then(Instant::now),
            since: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            place: OnceLock::new(),
        }
    }

    /// Keeps its place until the request has ended.
    pub(super) fn hold(&self, place: Place) {
        // A request passes its filters once; a second place would be free at once.
        drop(self.place.set(place));
    }

    /// The body was asked for a piece and had one (`true`), or has none yet.
    pub(super) fn handed_over(&self, piece: bool) {
        let Some(base) = self.base else { return };
        let since = if piece {
            u64::try_from(base.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
        } else {
            0
        };
        self.since.store(since, Ordering::Release);
    }

    /// It is a stream of HTTP/2.
    pub(super) fn is_stream(&self) -> bool {
        self.base.is_some()
    }

    /// The response has come to its end, a good or a bad one.
    pub(super) fn set_answered(&self) {
        self.answered.store(true, Ordering::Release);
    }

    /// False for a stream whose client did not wait for the end of the response.
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    /// Since when the last piece of the body waits for the client.
    pub fn stalled_since(&self) -> Option<Instant> {
        let since = self.since.load(Ordering::Acquire).checked_sub(1)?;
        self.base?.checked_add(Duration::from_millis(since))
    }
}
