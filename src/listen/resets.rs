//! How often the client of an HTTP/2 connection gives up its requests before they are answered (CVE-2023-44487). h2 counts
//! those it was given up before we came to them; a client that waits a moment longer costs an origin just as much.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Given up at once: a page that is left with all it was loading, a map that is dragged.
const BURST: u32 = 500;
/// One more after each such time: a request now and then costs no more than any other.
const REFILL: Duration = Duration::from_millis(20);

/// A bucket that is looked at by nobody else than those who give up.
#[derive(Debug, Default)]
pub(super) struct Resets {
    /// How many there were less those forgiven, and until when they are.
    level: Mutex<Option<(u32, Instant)>>,
    too_many: AtomicBool,
}

impl Resets {
    pub(super) fn count(&self) {
        let now = Instant::now();
        let mut level = self.level.lock();
        let (count, since) = level.get_or_insert((0, now));
        let passed = now.duration_since(*since).as_millis() / REFILL.as_millis();
        let forgiven = u32::try_from(passed).unwrap_or(u32::MAX);
        *since += REFILL.saturating_mul(forgiven);
        *count = count.saturating_sub(forgiven) + 1;
        if *count > BURST {
            self.too_many.store(true, Ordering::Release);
        }
    }

    /// Once true it stays so.
    pub(super) fn are_too_many(&self) -> bool {
        self.too_many.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_forgiven_and_a_flood_is_not() {
        let resets = Resets::default();
        for _ in 0..3 {
            (0..BURST).for_each(|_| resets.count());
            assert!(!resets.are_too_many());
            tokio::time::advance(REFILL * BURST).await;
        }
        for _ in 0..5000 {
            resets.count();
            tokio::time::advance(REFILL).await;
        }
        assert!(!resets.are_too_many());
        (0..=BURST).for_each(|_| resets.count());
        assert!(resets.are_too_many());
    }
}
