//! What came of a load: times, errors, and the line of JSON that `scripts/bench` reads.

use std::time::Duration;

/// What came of it.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) times: Times,
    errors: u64,
    note: Option<String>,
}

impl Outcome {
    pub(crate) fn failed(&mut self, note: String) {
        self.errors += 1;
        self.note.get_or_insert(note);
    }

    pub(crate) fn add(&mut self, other: Self) {
        for (sum, count) in self.times.counts.iter_mut().zip(&other.times.counts) {
            *sum += count;
        }
        self.errors += other.errors;
        self.note = self.note.take().or(other.note);
    }

    /// Those that were answered.
    pub(crate) fn requests(&self) -> u64 {
        self.times.counts.iter().sum()
    }

    /// `bytes`: that came, of all requests.
    pub(crate) fn json(&self, time: Duration, bytes: u64) -> String {
        let requests = self.requests();
        format!(
            "{{\"requests\":{requests},\"seconds\":{:.6},\"bytes\":{},\"p50\":{:.3},\"p99\":{:.3},\"p999\":{:.3},\
             \"errors\":{},\"note\":\"{}\"}}",
            time.as_secs_f64(),
            bytes,
            self.times.percentile(requests, 0.5),
            self.times.percentile(requests, 0.99),
            self.times.percentile(requests, 0.999),
            self.errors,
            plain(self.note.as_deref().unwrap_or_default()),
        )
    }
}

/// What may stand in a JSON string as it is: a peer's status line may hold anything.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|c| matches!(c, ' '..='~') && !matches!(c, '"' | '\\'))
        .collect()
}

/// Counts of times in microseconds, in steps of at most 1/64.
pub(crate) struct Times {
    counts: Vec<u64>,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            counts: vec![0; Self::place(u32::MAX) + 1],
        }
    }
}

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        self.counts[Self::place(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))] += 1;
    }

    fn place(micros: u32) -> usize {
        let step = micros.max(64).ilog2() - 6;
        step as usize * 64 + (micros >> step) as usize
    }

    /// The shortest time of a place.
    fn time(place: usize) -> u64 {
        if place < 128 {
            return place as u64;
        }
        let step = place / 64 - 1;
        ((place - step * 64) as u64) << step
    }

    /// In milliseconds; 0 if there was nothing.
    fn percentile(&self, total: u64, share: f64) -> f64 {
        let rank = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (place, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return Self::time(place) as f64 / 1000.0;
            }
        }
        0.0
    }
}
