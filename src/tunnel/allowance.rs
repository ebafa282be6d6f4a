//! How many bytes a second an agent may pass: one account for each direction, of which all its flows take. Who has taken
//! more than there is waits until it is paid for, so that whoever sends feels it. It is asked at every piece: a swap that
//! changes the rate is felt by the flows that are there.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

use super::carrier::FRAME;

/// Bytes that may pass at once after a pause.
const BURST: u64 = 64 * 1024;
/// Pieces are no smaller, however slow it goes.
const SMALLEST: u64 = 1024;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    ToService = 0,
    FromService = 1,
}

/// What an agent may pass.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    /// Bytes a second; 0: as many as there are.
    rate: AtomicU64,
    /// When what has passed is paid for.
    paid: [Mutex<Option<Instant>>; 2],
}

impl Allowance {
    /// `None`: no limit.
    pub(super) fn set(&self, rate: Option<u64>) {
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
    }

    /// Bytes that may pass in one piece: a tenth of a second, so that a slow one goes evenly.
    pub(super) fn piece(&self) -> usize {
        match self.rate.load(Ordering::Relaxed) {
            0 => FRAME as usize,
            rate => usize::try_from((rate / 10).clamp(SMALLEST, u64::from(FRAME)))
                .unwrap_or(FRAME as usize),
        }
    }

    /// Takes bytes off it. `Some`: nothing more may pass before.
    pub(super) fn take(&self, direction: Direction, bytes: usize) -> Option<Instant> {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return None;
        }
        let now = Instant::now();
        let from = now.checked_sub(time_of(BURST, rate)).unwrap_or(now);
        let mut paid = self.paid[direction as usize].lock();
        let next = paid.map_or(from, |paid| paid.max(from)) + time_of(bytes as u64, rate);
        *paid = Some(next);
        (next > now).then_some(next)
    }
}

/// How long so many bytes take.
fn time_of(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    // Longer than anybody waits.
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(Duration::from_secs(3600))
}

/// A flow's wait in one direction.
#[derive(Debug, Default)]
pub(super) struct Pause(Option<Pin<Box<Sleep>>>);

impl Pause {
    /// Nothing passes before.
    pub(super) fn until(&mut self, until: Option<Instant>) {
        self.0 = until.map(|until| Box::pin(tokio::time::sleep_until(until)));
    }

    /// Ready when something may pass.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.0 {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.0 = None;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_over_the_rate_is_waited_for_in_each_direction_for_itself() {
        let allowance = Allowance::default();
        assert_eq!(allowance.take(Direction::ToService, 1 << 30), None);
        allowance.set(Some(1000));
        let start = Instant::now();
        // The burst is free.
        assert_eq!(allowance.take(Direction::ToService, 64 * 1024), None);
        let until = allowance.take(Direction::ToService, 500).unwrap();
        assert_eq!(until - start, Duration::from_millis(500));
        // Another flow takes from the same account, the other direction from its own.
        let until = allowance.take(Direction::ToService, 500).unwrap();
        assert_eq!(until - start, Duration::from_secs(1));
        assert_eq!(allowance.take(Direction::FromService, 500), None);
        let mut pause = Pause::default();
        pause.until(Some(until));
        std::future::poll_fn(|cx| pause.poll(cx)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        allowance.set(None);
        assert_eq!(allowance.take(Direction::ToService, 1 << 30), None);
    }
}
