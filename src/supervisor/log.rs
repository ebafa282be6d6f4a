//! The bounded memory of swaps: per swap its record and an append-only list of events with a `watch` of its head.
//! Readers keep the number of the last event they saw, so a late one replays, none lags, and none blocks the supervisor.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::SwapRecord;
use super::event::{Event, Kind, Phase};
use super::figures::SwapCounts;

/// Draining ticks kept of one swap; later ones replace the last.
const TICKS: usize = 128;
/// Finished `/adapt` answers whose document is kept (it may be large).
const CONFIGS: usize = 4;

/// All swaps that are remembered.
#[derive(Debug)]
pub(super) struct Log {
    next_swap: AtomicU64,
    next_seq: AtomicU64,
    keep: AtomicUsize,
    swaps: Mutex<VecDeque<Arc<SwapState>>>,
    pub(super) counts: SwapCounts,
}

/// One swap: what it has said so far.
#[derive(Debug)]
pub(super) struct SwapState {
    pub(super) id: u64,
    began: Mutex<Instant>,
    head: watch::Sender<u64>,
    body: Mutex<Body>,
}

#[derive(Debug)]
struct Body {
    record: SwapRecord,
    events: Vec<Arc<Event>>,
}

pub(super) fn now() -> String {
    jiff::Timestamp::now().to_string()
}

impl Log {
    pub(super) fn new() -> Log {
        Log {
            next_swap: AtomicU64::new(1),
            next_seq: AtomicU64::new(1),
            keep: AtomicUsize::new(32),
            swaps: Mutex::default(),
            counts: SwapCounts::default(),
        }
    }

    /// How many finished swaps are kept from now on.
    pub(super) fn keep(&self, count: usize) {
        self.keep.store(count.max(1), Ordering::Relaxed);
    }

    pub(super) fn open(&self, kind: Kind, actor: String) -> Arc<SwapState> {
        let id = self.next_swap.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(SwapState {
            id,
            began: Mutex::new(Instant::now()),
            head: watch::Sender::new(0),
            body: Mutex::new(Body {
                record: SwapRecord::new(id, kind, actor, now()),
                events: Vec::new(),
            }),
        });
        let mut swaps = self.swaps.lock();
        swaps.push_back(state.clone());
        self.trim(&mut swaps);
        state
    }

    fn trim(&self, swaps: &mut VecDeque<Arc<SwapState>>) {
        let keep = self.keep.load(Ordering::Relaxed);
        let mut finished = swaps.iter().filter(|s| s.is_done()).count();
        swaps.retain(|state| {
            let drop = finished > keep && state.is_done();
            finished -= usize::from(drop);
            !drop
        });
        let with_config = swaps
            .iter()
            .rev()
            .filter(|s| s.is_done() && s.body.lock().record.config.is_some());
        for state in with_config.skip(CONFIGS) {
            state.body.lock().record.config = None;
        }
    }

    pub(super) fn find(&self, id: u64) -> Option<Arc<SwapState>> {
        self.swaps.lock().iter().find(|s| s.id == id).cloned()
    }

    /// Newest first.
    pub(super) fn records(&self) -> Vec<SwapRecord> {
        self.swaps.lock().iter().rev().map(|s| s.record()).collect()
    }

    /// Appends an event; `fill` adds what its phase has and may change the record with it.
    pub(super) fn emit(
        &self,
        state: &SwapState,
        phase: Phase,
        generation: u64,
        fill: impl FnOnce(&mut Event, &mut SwapRecord),
    ) {
        let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
        let elapsed = if phase == Phase::Received {
            0
        } else {
            state.began.lock().elapsed().as_micros() as u64
        };
        let mut body = state.body.lock();
        let mut event = Event::new(
            seq,
            now(),
            state.id,
            body.record.kind,
            generation,
            phase,
            elapsed,
        );
        fill(&mut event, &mut body.record);
        body.record.phase = phase;
        if let Some(outcome) = event.outcome {
            if body.record.outcome.is_none() {
                self.counts.count(outcome, Duration::from_micros(elapsed));
            }
            body.record.outcome = event.outcome;
            body.record.status = event.status;
        }
        if phase.is_terminal() {
            body.record.done = true;
        }
        let tick = phase == Phase::Draining && body.events.len() > TICKS;
        if tick
            && body
                .events
                .last()
                .is_some_and(|last| last.phase == Phase::Draining)
        {
            body.events.pop();
        }
        body.events.push(Arc::new(event));
        drop(body);
        // No reader is not an error.
        state.head.send_replace(seq);
        if phase.is_terminal() {
            self.trim(&mut self.swaps.lock());
        }
    }
}

impl SwapState {
    pub(super) fn record(&self) -> SwapRecord {
        self.body.lock().record.clone()
    }

    /// Its turn has come: times count from here.
    pub(super) fn turn(&self) {
        *self.began.lock() = Instant::now();
    }

    fn is_done(&self) -> bool {
        self.body.lock().record.done
    }

    fn after(&self, seq: u64) -> Option<Arc<Event>> {
        let body = self.body.lock();
        let index = body.events.partition_point(|event| event.seq <= seq);
        body.events.get(index).cloned()
    }

    /// Resolves when `reached` holds of the record.
    pub(super) async fn wait(&self, reached: impl Fn(&SwapRecord) -> bool) -> SwapRecord {
        let mut head = self.head.subscribe();
        loop {
            head.mark_unchanged();
            let record = self.record();
            if reached(&record) || head.changed().await.is_err() {
                return record;
            }
        }
    }
}

/// Reads the events of one swap from its first on, as they happen.
#[derive(Debug)]
pub struct EventReader {
    state: Option<(Arc<SwapState>, watch::Receiver<u64>)>,
    last: u64,
}

impl EventReader {
    pub(super) fn new(state: Option<Arc<SwapState>>) -> EventReader {
        EventReader {
            state: state.map(|s| (s.clone(), s.head.subscribe())),
            last: 0,
        }
    }

    /// The next event; `None` after the terminal one. Cancel-safe.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        let (state, head) = self.state.as_mut()?;
        loop {
            head.mark_unchanged();
            // In this order: done is set before the terminal event is seen as the last.
            let done = state.is_done();
            if let Some(event) = state.after(self.last) {
                self.last = event.seq;
                return Some(event);
            }
            if done || head.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::supervisor::event::Outcome;

    #[tokio::test]
    async fn a_late_reader_replays_and_ends_after_the_terminal_event() {
        let log = Log::new();
        let state = log.open(Kind::Reload, "t".into());
        log.emit(&state, Phase::Received, 0, |_, _| {});
        let mut early = EventReader::new(Some(state.clone()));
        assert_eq!(early.next().await.unwrap().phase, Phase::Received);
        let waiting = tokio::spawn(async move { early.next().await.unwrap().phase });
        log.emit(&state, Phase::Rejected, 0, |event, _| {
            event.outcome = Some(Outcome::Rejected)
        });
        assert_eq!(waiting.await.unwrap(), Phase::Rejected);
        let mut late = EventReader::new(log.find(state.id));
        let mut phases = Vec::new();
        while let Some(event) = late.next().await {
            phases.push(event.phase);
        }
        assert_eq!(phases, [Phase::Received, Phase::Rejected]);
        assert!(EventReader::new(None).next().await.is_none());
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_in_progress() {
        let log = Log::new();
        log.keep(3);
        let open = log.open(Kind::Reload, "open".into());
        for _ in 0..10 {
            let state = log.open(Kind::Reload, "done".into());
            log.emit(&state, Phase::Drained, 1, |_, _| {});
        }
        assert_eq!(log.records().len(), 4);
        assert!(log.find(open.id).is_some());
        for _ in 0..1000 {
            log.emit(&open, Phase::Draining, 1, |_, _| {});
        }
        assert!(open.body.lock().events.len() <= TICKS + 2);
    }
}
