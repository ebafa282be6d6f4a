//! Sending once more what was sent already: only idempotent requests whose body is at hand, only on another target, and
//! only within the upstream's budget, so that retries never make an outage worse.
//!
//! What was never sent may go elsewhere at no cost to anybody, and asks for no budget.

use std::time::Duration;

use ::http::{HeaderMap, Method, Request, Uri};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::body::RequestBody;
use super::error::{Error, Kind};
use crate::config::http::RetrySpec;

/// Seconds that the budget looks back.
const WINDOW: usize = 10;
/// Retries within the window that are free: few requests make no storm.
const FREE: u64 = 10;

/// An upstream's requests and retries of the last seconds; outlives generations.
#[derive(Debug)]
pub(super) struct Budget {
    began: Instant,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    /// The second that was counted last.
    second: u64,
    requests: [u64; WINDOW],
    retries: [u64; WINDOW],
}

impl Budget {
    pub(super) fn new() -> Budget {
        Budget {
            began: Instant::now(),
            window: Mutex::default(),
        }
    }

    /// Counts a request.
    pub(super) fn request(&self) {
        let age = self.began.elapsed();
        let mut window = self.window.lock();
        let place = window.turn(age);
        window.requests[place] += 1;
    }

    /// Counts a retry, if `percent` of the requests allow one more.
    pub(super) fn retry(&self, percent: u32) -> bool {
        let age = self.began.elapsed();
        let mut window = self.window.lock();
        let place = window.turn(age);
        let requests: u64 = window.requests.iter().sum();
        let retries: u64 = window.retries.iter().sum();
        let allowed = FREE.max(requests.saturating_mul(u64::from(percent)) / 100);
        let allowed = if percent == 0 { 0 } else { allowed };
        let one_more = retries < allowed;
        window.retries[place] += u64::from(one_more);
        one_more
    }
}

impl Window {
    /// The place of the current second; those that passed since the last count are emptied.
    fn turn(&mut self, age: Duration) -> usize {
        // Another thread may have been here with a later second.
        let now = age.as_secs().max(self.second);
        for second in (self.second + 1..=now).rev().take(WINDOW) {
            let place = place(second);
            (self.requests[place], self.retries[place]) = (0, 0);
        }
        self.second = now;
        place(now)
    }
}

fn place(second: u64) -> usize {
    // Less than WINDOW.
    (second % WINDOW as u64) as usize
}

/// A request as it was, to be sent again.
pub(super) struct Again {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: RequestBody,
}

impl Again {
    /// `None`: it must not be sent twice, or its body is not at hand.
    pub(super) fn of(request: &Request<RequestBody>) -> Option<Again> {
        if !request.method().is_idempotent() {
            return None;
        }
        Some(Again {
            body: request.body().again()?,
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        })
    }

    pub(super) fn request(&self) -> Option<Request<RequestBody>> {
        let mut request = Request::new(self.body.again()?);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        Some(request)
    }
}

/// Whether an error of a request that was sent is one to try again after.
pub(super) fn repeats(spec: &RetrySpec, error: &Error) -> bool {
    match error.kind {
        Kind::ConnectionTerminated | Kind::HttpResponseIncomplete => spec.reset,
        Kind::HttpResponseTimeout | Kind::ConnectionReadTimeout => spec.timeout,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_stopped_and_the_window_moves_on() {
        let budget = Budget::new();
        let spend = |n: usize| (0..n).filter(|_| budget.retry(20)).count();
        assert_eq!(spend(100), 10);
        for _ in 0..1000 {
            budget.request();
        }
        assert_eq!(spend(1000), 190);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(spend(10), 0);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(spend(100), 10);
        assert!(!Budget::new().retry(0));
    }
}
