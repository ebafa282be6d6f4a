//! `bandwidth` and `timeout` at work on a response's body: what it may send now, and when it must end.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use crate::upstream::error::{Error, Kind};

/// Sent at once after a pause, and at most in one piece.
const BURST: u64 = 64 * 1024;
/// Pieces are no smaller, however slow.
const SMALLEST: u64 = 1024;

/// How fast a body is sent: a bucket of [`BURST`] bytes that fills at the rate. A piece may overdraw it; the next one then
/// waits until that is paid.
#[derive(Debug)]
pub struct Pace {
    /// Bytes a second; at least 1.
    rate: u64,
    /// Bytes; less than none after a piece that overdrew it.
    credit: i64,
    /// When that was so; `None` before the first piece.
    at: Option<Instant>,
    /// Made at the first wait; armed while there is one.
    sleep: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    /// What is left of a piece that was larger than one may be.
    rest: Bytes,
}

impl Pace {
    pub fn new(rate: u64) -> Pace {
        Pace {
            rate: rate.max(1),
            credit: BURST as i64,
            at: None,
            sleep: None,
            waiting: false,
            rest: Bytes::new(),
        }
    }

    /// Ready when something may be sent.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiting
            && let Some(sleep) = &mut self.sleep
        {
            ready!(sleep.as_mut().poll(cx));
            self.waiting = false;
        }
        Poll::Ready(())
    }

    /// The rest of a larger piece.
    pub fn rest(&mut self) -> Option<Bytes> {
        (!self.rest.is_empty()).then(|| std::mem::take(&mut self.rest))
    }

    pub fn left(&self) -> u64 {
        self.rest.len() as u64
    }

    /// As much of a piece as may be sent at once, and counts it.
    pub fn take(&mut self, mut piece: Bytes) -> Bytes {
        // A tenth of a second, so that a slow one is sent evenly.
        let most = (self.rate / 10).clamp(SMALLEST, BURST);
        if piece.len() as u64 > most {
            self.rest = piece.split_off(most as usize);
        }
        self.spend(piece.len());
        piece
    }

    fn spend(&mut self, bytes: usize) {
        let now = Instant::now();
        if let Some(at) = self.at {
            let nanos = now.saturating_duration_since(at).as_nanos();
            let earned = nanos * u128::from(self.rate) / 1_000_000_000;
            let earned = i64::try_from(earned).unwrap_or(i64::MAX);
            self.credit = self.credit.saturating_add(earned).min(BURST as i64);
        }
        self.at = Some(now);
        self.credit = self.credit.saturating_sub(bytes as i64);
        if self.credit >= 0 {
            return;
        }
        let owed = u128::from(self.credit.unsigned_abs()) * 1_000_000_000;
        let nanos = u64::try_from(owed / u128::from(self.rate)).unwrap_or(u64::MAX);
        // What can't be added up is for ever, as far as anybody here is concerned.
        let until = now.checked_add(Duration::from_nanos(nanos)).unwrap_or(now);
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(until),
            None => self.sleep = Some(Box::pin(tokio::time::sleep_until(until))),
        }
        self.waiting = true;
    }
}

/// When a response must have ended.
#[derive(Debug)]
pub struct Deadline {
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl Deadline {
    /// `limit` after it began, which is `at`.
    pub fn new(at: Instant, limit: Duration) -> Deadline {
        Deadline {
            limit,
            sleep: Box::pin(tokio::time::sleep_until(at)),
        }
    }

    /// Ready with the error that the body ends with.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        ready!(self.sleep.as_mut().poll(cx));
        Poll::Ready(over(self.limit))
    }
}

/// The exchange took longer than its `timeout`.
pub(in crate::http) fn over(limit: Duration) -> Error {
    let detail = format!("not answered within its timeout of {limit:?}");
    Error::us(Kind::HttpResponseTimeout, detail)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Sends `total` bytes in pieces of `piece`; how long it took.
    async fn sent(pace: &mut Pace, total: usize, piece: usize) -> Duration {
        let began = Instant::now();
        let mut left = total;
        while left > 0 {
            std::future::poll_fn(|cx| pace.poll_ready(cx)).await;
            let next = pace
                .rest()
                .unwrap_or_else(|| Bytes::from(vec![0; piece.min(left)]));
            left -= pace.take(next).len();
        }
        std::future::poll_fn(|cx| pace.poll_ready(cx)).await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn the_burst_is_free_and_the_rest_is_paced() {
        for piece in [1_000, 10_000, 1_000_000] {
            let mut pace = Pace::new(1_000_000);
            let total = 3_000_000 + BURST as usize;
            let took = sent(&mut pace, total, piece).await;
            let fits = Duration::from_millis(2_990)..Duration::from_millis(3_200);
            assert!(fits.contains(&took), "{took:?} in pieces of {piece}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_earns_no_more_than_the_burst() {
        let mut pace = Pace::new(10_000);
        sent(&mut pace, BURST as usize, 1_000).await;
        tokio::time::advance(Duration::from_secs(3_600)).await;
        let took = sent(&mut pace, BURST as usize + 10_000, 1_000).await;
        assert!(took >= Duration::from_millis(990), "{took:?}");
    }
}
