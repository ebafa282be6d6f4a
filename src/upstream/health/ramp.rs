//! Slow start: a target that comes, or comes back, gets a small share at first and its whole weight after `slow_start`.
//! Only when it began is kept; how long it takes comes with each request from its generation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The whole of a weight.
pub(super) const WHOLE: u32 = 100;
/// Of [`WHOLE`], what a target begins with.
const FIRST: u32 = 10;

/// When a target began to warm up.
#[derive(Debug)]
pub(super) struct Ramp {
    base: Instant,
    /// Milliseconds after `base`, plus one; 0: it is warm.
    since: AtomicU64,
}

impl Ramp {
    /// Warm.
    pub(super) fn new() -> Ramp {
        Ramp {
            base: Instant::now(),
            since: AtomicU64::new(0),
        }
    }

    pub(super) fn begin(&self) {
        let now = Instant::now().saturating_duration_since(self.base);
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX - 1);
        self.since.store(now + 1, Ordering::Relaxed);
    }

    pub(super) fn is_warming(&self) -> bool {
        self.since.load(Ordering::Relaxed) != 0
    }

    /// The share of its weight in [`WHOLE`]ths, when it takes `over` to reach all of it. Reads the clock only while it
    /// may be warming.
    pub(super) fn share(&self, over: Duration) -> u32 {
        let since = self.since.load(Ordering::Relaxed);
        if since == 0 || over.is_zero() {
            return WHOLE;
        }
        let begun = self.base + Duration::from_millis(since - 1);
        let passed = Instant::now().saturating_duration_since(begun);
        if passed >= over {
            // From now on no clock is read, unless it has begun anew meanwhile.
            let _ = self
                .since
                .compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed);
            return WHOLE;
        }
        let part = passed.as_secs_f64() / over.as_secs_f64();
        // Between 0 and 90: no cast can fail.
        FIRST + (part * f64::from(WHOLE - FIRST)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_share_grows_from_a_tenth_to_the_whole() {
        let ramp = Ramp::new();
        let over = Duration::from_secs(10);
        assert_eq!(ramp.share(over), WHOLE);
        tokio::time::advance(Duration::from_secs(100)).await;
        ramp.begin();
        assert_eq!(
            (ramp.share(over), ramp.share(Duration::ZERO)),
            (FIRST, WHOLE)
        );
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!((ramp.share(over), ramp.share(over * 2)), (55, 32));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(ramp.share(over), WHOLE);
    }
}
