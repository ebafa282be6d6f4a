//! How quick a target is, for `p2c_ewma`: a moving average that jumps to every peak and comes down slowly, and that fades
//! while nothing is heard, so that a target that was slow once is tried again.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Seconds in which what is known loses all but 1/e of its weight.
const FADE: f32 = 10.0;
/// A failure counts as an answer that took this long: one that fails at once is not quick.
pub(super) const FAILED: Duration = Duration::from_secs(1);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Seconds as `f32` in the upper half, milliseconds since the start when they were learnt in the lower: one word, so that
/// no lock is needed. It wraps around after 49 days, which makes an old value older.
#[derive(Debug, Default)]
pub(super) struct Latency(AtomicU64);

impl Latency {
    pub(super) fn learn(&self, took: Duration, now: Instant) {
        let took = took.as_secs_f32();
        let stamp = millis(now);
        let learn = |word: u64| {
            let (known, at) = unpack(word);
            let kept = (-age(at, stamp) / FADE).exp();
            let next = if took > known * kept {
                took
            } else {
                // At least a little of each answer counts, however close they come.
                let kept = kept.min(0.95);
                known * kept + took * (1.0 - kept)
            };
            Some((u64::from(next.to_bits()) << 32) | u64::from(stamp))
        };
        // The closure never says no.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, learn);
    }

    /// What one more request would have to expect, in seconds times requests.
    pub(super) fn cost(&self, in_flight: usize, now: Instant) -> f32 {
        let (known, at) = unpack(self.0.load(Ordering::Relaxed));
        if known == 0.0 {
            // Unknown: one request finds out, the others do not wait with it.
            return if in_flight == 0 {
                0.0
            } else {
                FAILED.as_secs_f32() * (in_flight + 1) as f32
            };
        }
        known * (-age(at, millis(now)) / FADE).exp() * (in_flight + 1) as f32
    }
}

fn millis(now: Instant) -> u32 {
    // Cut off on purpose: ages are differences.
    now.saturating_duration_since(*START).as_millis() as u32
}

fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

/// Seconds between two stamps. Another thread may have been there later.
fn age(at: u32, now: u32) -> f32 {
    let passed = now.wrapping_sub(at);
    if passed > u32::MAX / 2 {
        0.0
    } else {
        passed as f32 / 1000.0
    }
}

/// Two different targets by weight and chance, then the one that costs less; `chance(n)` is below `n`.
pub(super) fn p2c(
    weights: &[u32],
    cost: impl Fn(usize) -> f32,
    mut chance: impl FnMut(u64) -> u64,
    usable: impl Fn(usize) -> bool,
) -> Option<usize> {
    let first = super::balance::random(weights, &mut chance, &usable)?;
    let other = |index| index != first && usable(index);
    let Some(second) = super::balance::random(weights, &mut chance, other) else {
        return Some(first);
    };
    Some(if cost(second) < cost(first) {
        second
    } else {
        first
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_jumps_up_comes_down_and_fades() {
        let latency = Latency::default();
        let at = |seconds| *START + Duration::from_secs(seconds);
        assert_eq!(latency.cost(0, at(1)), 0.0);
        latency.learn(Duration::from_millis(10), at(1));
        latency.learn(Duration::from_millis(500), at(1));
        assert!((latency.cost(0, at(1)) - 0.5).abs() < 0.001);
        assert!((latency.cost(3, at(1)) - 2.0).abs() < 0.001);
        for _ in 0..20 {
            latency.learn(Duration::from_millis(10), at(1));
        }
        let down = latency.cost(0, at(1));
        assert!(down < 0.3 && down > 0.01, "{down}");
        assert!(latency.cost(0, at(101)) < 0.001);
    }

    #[test]
    fn of_two_the_cheaper_and_one_alone_is_taken() {
        let mut random = fastrand::Rng::with_seed(7);
        let cost = |index: usize| [1.0, 0.1, 5.0][index];
        let mut got = [0; 3];
        for _ in 0..600 {
            if let Some(index) = p2c(&[1, 1, 1], cost, |n| random.u64(..n), |_| true) {
                got[index] += 1;
            }
        }
        // The cheapest wins both of its three pairs, the dearest none.
        assert!(got[1] > 350 && got[2] == 0, "{got:?}");
        assert_eq!(p2c(&[1, 1], cost, |_| 0, |i| i == 1), Some(1));
        assert_eq!(p2c(&[0, 1], cost, |_| 0, |i| i == 0), None);
    }
}
