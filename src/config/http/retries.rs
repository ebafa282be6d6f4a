//! `proxy.retries`: which failed tries are repeated on another target.

use super::super::check::{Checker, shorten};
use super::super::decode::{List, Loc, list_of, section};
use super::super::findings::did_you_mean;

/// More would be a way to take a whole upstream down with one request.
pub const MAX_ATTEMPTS: usize = 10;

section! {
    /// Which failed tries are repeated on another target.
    pub struct RetriesRaw {
        /// Targets tried for one request, 1 to 10.
        attempts: u64 = 3,
        /// After what: `connect` (nothing was sent), and of idempotent requests also `reset` (the connection ended without an
        /// answer), `timeout`, `5xx` or a status from 500 to 599.
        when: List<String> = ["connect"],
        /// Retries of what was sent, in percent of the upstream's requests within 10 seconds, 0 to 100; a few are always free.
        budget: u64 = 20,
    }
    later = [];
}

/// Checked `proxy.retries`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RetrySpec {
    /// Targets tried for one request, 1 to [`MAX_ATTEMPTS`].
    pub attempts: usize,
    /// The request never reached a target.
    pub connect: bool,
    /// The connection ended without an answer.
    pub reset: bool,
    /// No answer in time.
    pub timeout: bool,
    /// Any status from 500.
    pub server_error: bool,
    /// Single statuses.
    pub statuses: Vec<u16>,
    /// Percent.
    pub budget: u32,
}

const WORDS: [&str; 4] = ["connect", "reset", "timeout", "5xx"];

impl RetriesRaw {
    pub(super) fn spec(&self, check: &mut Checker<'_>) -> RetrySpec {
        let number = |raw: &Option<Loc<u64>>,
                      range: std::ops::RangeInclusive<u64>,
                      check: &mut Checker<'_>| {
            raw.as_ref()
                .map_or(*range.start(), |n| check.number(n.at, n.value, range))
        };
        let attempts = number(&self.attempts, 1..=MAX_ATTEMPTS as u64, check);
        let budget = number(&self.budget, 0..=100, check);
        let mut spec = RetrySpec {
            attempts: usize::try_from(attempts).unwrap_or(1).min(MAX_ATTEMPTS),
            connect: false,
            reset: false,
            timeout: false,
            server_error: false,
            statuses: Vec::new(),
            budget: u32::try_from(budget).unwrap_or(100),
        };
        for word in self.when.iter().flat_map(|list| list.iter()) {
            match word.as_str() {
                "connect" => spec.connect = true,
                "reset" => spec.reset = true,
                "timeout" => spec.timeout = true,
                "5xx" => spec.server_error = true,
                other => match other.parse() {
                    Ok(status @ 500..=599) => spec.statuses.push(status),
                    _ => {
                        let known = list_of(&WORDS);
                        let message = format!(
                            "`{}` is not one of {known}, nor a status from 500 to 599",
                            shorten(other)
                        );
                        let finding = check.findings.error(word.at, message);
                        finding.help_if(did_you_mean(other, WORDS));
                    }
                },
            }
        }
        spec
    }
}

impl Default for RetrySpec {
    fn default() -> RetrySpec {
        RetrySpec {
            attempts: 3,
            connect: true,
            reset: false,
            timeout: false,
            server_error: false,
            statuses: Vec::new(),
            budget: 20,
        }
    }
}

impl RetrySpec {
    /// Only what was not sent goes elsewhere, to as many targets as an upstream tries of itself.
    pub fn is_default(&self) -> bool {
        self.attempts == 3 && self.connect && !self.repeats_sent()
    }

    /// Whether anything that was sent may be sent again.
    pub fn repeats_sent(&self) -> bool {
        self.reset || self.timeout || self.server_error || !self.statuses.is_empty()
    }

    pub fn repeats_status(&self, status: u16) -> bool {
        (self.server_error && (500..=599).contains(&status)) || self.statuses.contains(&status)
    }
}
