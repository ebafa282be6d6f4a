//! `concurrency`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::super::super::check::Checker;
use super::super::super::decode::section;
use super::super::super::scalar::Span;
use super::super::super::tree::At;

section! {
    /// How many requests may be in progress at once, the whole process together. A request counts until its response has
    /// ended, a websocket until it has.
    pub struct ConcurrencyRaw {
        /// Requests in progress.
        requests: u64,
        /// Requests beyond, which wait for a place in the order they came; those beyond these get 503.
        queue: u64 = 0,
        /// How long one waits at most, up to `5m`; then it gets 503.
        wait: Span = "1s",
    }
    later = [];
}

/// Checked `concurrency`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConcurrencySpec {
    /// Who it is over reloads.
    pub id: Arc<str>,
    /// At least 1.
    pub requests: usize,
    pub queue: usize,
    pub wait: Duration,
}

/// Longer than any client waits; and what waits must end.
const LONGEST: Duration = Duration::from_secs(300);

impl ConcurrencySpec {
    pub(super) fn new(
        raw: &ConcurrencyRaw,
        at: At,
        scope: fmt::Arguments<'_>,
        check: &mut Checker<'_>,
    ) -> Option<ConcurrencySpec> {
        let wait = check.duration(raw.wait.as_ref());
        if let Some(span) = raw.wait.as_ref().filter(|_| wait > LONGEST) {
            check.findings.error(span.at, "longer than `5m`");
        }
        let queue = raw.queue.as_ref();
        let queue = queue.map_or(0, |n| check.number(n.at, n.value, 0..=1_000_000));
        let Some(requests) = &raw.requests else {
            if !raw.spoiled.contains(&"requests") {
                let wrong = check.findings.error(at, "`concurrency` needs `requests`");
                wrong.help("such as `concurrency = { requests = 100, queue = 50 }`");
            }
            return None;
        };
        Some(ConcurrencySpec {
            id: scope.to_string().into(),
            requests: check.count(requests.at, requests.value),
            queue: usize::try_from(queue).unwrap_or(usize::MAX),
            wait,
        })
    }
}
