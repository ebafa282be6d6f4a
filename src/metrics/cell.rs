//! What is counted of the requests of one route, or of one target, by one worker. A request adds to lines of memory that
//! no other worker writes; whoever asks sums up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Upper bounds of the latency histogram, in microseconds: proxied requests take from a fraction of a millisecond to a
/// client's whole patience.
pub const BOUNDS: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 10_000_000, 60_000_000,
];
/// Classes of a status: `1xx` to `5xx`.
pub const CLASSES: usize = 5;
/// Those of [`BOUNDS`], and the one above.
const BUCKETS: usize = BOUNDS.len() + 1;

/// The counters of one worker. On cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Cell {
    begun: AtomicU64,
    ended: [AtomicU64; CLASSES],
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// Without a status: of a target, tries that came to nothing.
    failed: AtomicU64,
    /// Without a status either: of a target, sessions that came to their end.
    sessions: AtomicU64,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub status: u16,
    pub took: Duration,
    /// Bytes of the response's body.
    pub sent: u64,
}

impl Outcome {
    fn micros(&self) -> u64 {
        u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX)
    }

    fn class(&self) -> usize {
        usize::from(self.status / 100).clamp(1, CLASSES) - 1
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Cell {
    pub fn begin(&self) {
        add(&self.begun, 1);
    }

    pub fn end(&self, outcome: &Outcome) {
        let micros = outcome.micros();
        // The bounds are few and most requests are quick.
        let bucket = BOUNDS
            .iter()
            .position(|bound| micros <= *bound)
            .unwrap_or(BOUNDS.len());
        add(&self.ended[outcome.class()], 1);
        add(&self.buckets[bucket], 1);
        add(&self.micros, micros);
        if outcome.sent > 0 {
            add(&self.sent, outcome.sent);
        }
    }

    /// It came to nothing.
    pub fn fail(&self) {
        add(&self.failed, 1);
    }

    /// A session that is no HTTP has ended; so many bytes went to the client.
    pub fn end_session(&self, sent: u64) {
        add(&self.sessions, 1);
        add(&self.sent, sent);
    }

    /// So many bytes of a request's body came.
    pub fn receive(&self, bytes: u64) {
        add(&self.received, bytes);
    }

    /// So many bytes went to the client besides those of [`Cell::end`].
    pub fn send(&self, bytes: u64) {
        add(&self.sent, bytes);
    }

    pub fn add_to(&self, totals: &mut Totals) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Before `begun`: what ends meanwhile has begun already, so that none is in flight less than never.
        for (total, counter) in totals.ended.iter_mut().zip(&self.ended) {
            *total += get(counter);
        }
        for (total, counter) in totals.buckets.iter_mut().zip(&self.buckets) {
            *total += get(counter);
        }
        totals.micros += get(&self.micros);
        totals.received += get(&self.received);
        totals.sent += get(&self.sent);
        totals.failed += get(&self.failed);
        totals.sessions += get(&self.sessions);
        totals.begun += get(&self.begun);
    }
}

/// The sum over workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    pub begun: u64,
    /// By class.
    pub ended: [u64; CLASSES],
    /// Not cumulative.
    pub buckets: [u64; BUCKETS],
    pub micros: u64,
    pub received: u64,
    pub sent: u64,
    pub failed: u64,
    pub sessions: u64,
}

impl Totals {
    pub fn in_flight(&self) -> u64 {
        self.begun
            .saturating_sub(self.ended.iter().sum::<u64>() + self.failed + self.sessions)
    }

    /// Bounds in seconds and counts, the last one without bound.
    pub fn histogram(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS.iter().map(|micros| *micros as f64 / 1e6);
        bounds.chain([f64::INFINITY]).zip(self.buckets).collect()
    }

    pub fn seconds(&self) -> f64 {
        self.micros as f64 / 1e6
    }
}

/// The cells of one thing that is counted: a cell for each worker, made at its first request. Leased by the thing's name,
/// so that it outlives swaps.
#[derive(Debug)]
pub struct Series(Box<[OnceLock<Arc<Cell>>]>);

impl Series {
    pub fn new(workers: usize) -> Series {
        Series((0..workers.max(1)).map(|_| OnceLock::new()).collect())
    }

    /// That of `worker`. A count of its own for each worker, so that taking it disturbs no other.
    pub fn cell(&self, worker: usize) -> &Arc<Cell> {
        self.0[worker % self.0.len()].get_or_init(Arc::default)
    }

    /// `None`: nothing was ever counted.
    pub fn totals(&self) -> Option<Totals> {
        let mut cells = self.0.iter().filter_map(OnceLock::get).peekable();
        cells.peek()?;
        let mut totals = Totals::default();
        for cell in cells {
            cell.add_to(&mut totals);
        }
        Some(totals)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn outcome(status: u16, micros: u64) -> Outcome {
        Outcome {
            status,
            took: Duration::from_micros(micros),
            sent: 10,
        }
    }

    #[test]
    fn workers_add_up() {
        let series = Series::new(2);
        assert_eq!(series.totals(), None);
        for (worker, status, micros) in [
            (0, 200, 500),
            (1, 204, 501),
            (1, 502, 70_000_000),
            (0, 101, 0),
        ] {
            series.cell(worker).begin();
            series.cell(worker).end(&outcome(status, micros));
        }
        series.cell(1).begin();
        series.cell(1).receive(7);
        let totals = series.totals().unwrap();
        assert_eq!(totals.ended, [1, 2, 0, 0, 1]);
        assert_eq!((totals.begun, totals.in_flight()), (5, 1));
        assert_eq!((totals.sent, totals.received), (40, 7));
        assert_eq!(totals.micros, 70_001_001);
        let histogram = totals.histogram();
        assert_eq!(histogram[0], (0.0005, 2));
        assert_eq!(histogram[1], (0.001, 1));
        assert_eq!(histogram.last(), Some(&(f64::INFINITY, 1)));
        assert_eq!(histogram.iter().map(|(_, n)| n).sum::<u64>(), 4);
    }

    #[test]
    fn bounds_rise_and_odd_statuses_have_a_class() {
        assert!(BOUNDS.is_sorted());
        assert_eq!(
            [0, 100, 299, 499, 599, 999].map(|s| outcome(s, 0).class()),
            [0, 0, 1, 3, 4, 4]
        );
    }
}
