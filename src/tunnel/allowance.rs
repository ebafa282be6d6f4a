//! How many bytes a second an agent may pass: one account for each direction, of which all its flows take. Who has taken
//! more than there is waits until it is paid for, so that whoever sends feels it. It is asked at every piece: a swap that
//! changes the rate is felt by the flows that are there.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

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
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    /// When what has passed is paid for, in each direction.
    paid: [Option<Instant>; 2],
    /// Cancelled when that need not be waited for any more.
    freed: CancellationToken,
}

/// Until when nothing more may pass.
#[derive(Debug)]
pub(super) struct Until {
    at: Instant,
    freed: CancellationToken,
}

impl Allowance {
    /// `None`: no limit. Where it may be faster than before, nobody waits for what has passed.
    pub(super) fn set(&self, rate: Option<u64>) {
        let rate = rate.unwrap_or(0);
        let mut account = self.account.lock();
        let before = self.rate.swap(rate, Ordering::Relaxed);
        if before != 0 && (rate == 0 || rate > before) {
            std::mem::take(&mut *account).freed.cancel();
        }
    }

    pub(super) fn is_limited(&self) -> bool {
        self.rate.load(Ordering::Relaxed) != 0
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
    pub(super) fn take(&self, direction: Direction, bytes: usize) -> Option<Until> {
        if !self.is_limited() {
            return None;
        }
        let mut account = self.account.lock();
        // As it is now: what was freed is not to be waited for.
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return None;
        }
        let now = Instant::now();
        let from = now.checked_sub(time_of(BURST, rate)).unwrap_or(now);
        let paid = &mut account.paid[direction as usize];
        let at = paid.map_or(from, |paid| paid.max(from)) + time_of(bytes as u64, rate);
        *paid = Some(at);
        let freed = &account.freed;
        (at > now).then(|| Until {
            at,
            freed: freed.clone(),
        })
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
pub(super) struct Pause(Option<Pin<Box<Waits>>>);

pin_project! {
    #[derive(Debug)]
    struct Waits {
        #[pin]
        sleep: Sleep,
        #[pin]
        freed: WaitForCancellationFutureOwned,
    }
}

impl Pause {
    /// Nothing passes before.
    pub(super) fn until(&mut self, until: Option<Until>) {
        self.0 = until.map(|until| {
            Box::pin(Waits {
                sleep: tokio::time::sleep_until(until.at),
                freed: until.freed.cancelled_owned(),
            })
        });
    }

    /// Ready when something may pass.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(waits) = &mut self.0 {
            let waits = waits.as_mut().project();
            if waits.sleep.poll(cx).is_pending() && waits.freed.poll(cx).is_pending() {
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
        assert!(allowance.take(Direction::ToService, 1 << 30).is_none());
        allowance.set(Some(1000));
        let start = Instant::now();
        // The burst is free.
        assert!(allowance.take(Direction::ToService, 64 * 1024).is_none());
        let until = allowance.take(Direction::ToService, 500).unwrap();
        assert_eq!(until.at - start, Duration::from_millis(500));
        // Another flow takes from the same account, the other direction from its own.
        let until = allowance.take(Direction::ToService, 500).unwrap();
        assert_eq!(until.at - start, Duration::from_secs(1));
        assert!(allowance.take(Direction::FromService, 500).is_none());
        let mut pause = Pause::default();
        pause.until(Some(until));
        std::future::poll_fn(|cx| pause.poll(cx)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        allowance.set(None);
        assert!(allowance.take(Direction::ToService, 1 << 30).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_may_be_faster_than_before_waits_for_nothing_that_has_passed() {
        let allowance = Allowance::default();
        for (before, after, freed) in [
            (Some(1000), None, true),
            (Some(1000), Some(2000), true),
            (Some(1000), Some(500), false),
            (None, Some(1000), true),
        ] {
            allowance.set(None);
            allowance.set(before);
            let start = Instant::now();
            let mut pause = Pause::default();
            pause.until(allowance.take(Direction::ToService, 70_000));
            let waiting = tokio::spawn(async move {
                std::future::poll_fn(|cx| pause.poll(cx)).await;
                start.elapsed()
            });
            tokio::task::yield_now().await;
            allowance.set(after);
            let took = waiting.await.unwrap();
            assert_eq!(took.is_zero(), freed, "{before:?}, {after:?}: {took:?}");
            // Nor do those that come then.
            let next = allowance.take(Direction::ToService, 100);
            assert_eq!(next.is_none(), freed, "{before:?}, {after:?}");
        }
    }
}
