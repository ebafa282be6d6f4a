//! `passive` of an upstream: a target that fails the requests it gets is left alone for a while.

use std::time::Duration;

use super::super::check::Checker;
use super::super::decode::section;
use super::super::scalar::Span;

section! {
    /// Ejection of targets that fail requests: a connection that fails or is reset, a timeout, a broken answer, or a
    /// status of 502, 503 or 504. At most half of an upstream's targets are ejected at once.
    pub struct PassiveRaw {
        /// So many failures within `window` eject a target.
        failures: u64 = 3,
        /// How long a failure counts.
        window: Span = "10s",
        /// For how long an ejected target gets no request.
        eject: Span = "30s",
    }
    later = [];
}

/// Checked `passive`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassiveSpec {
    /// 1 to 10000.
    pub failures: usize,
    pub window: Duration,
    pub eject: Duration,
}

impl PassiveRaw {
    /// Checks it, with its defaults in.
    pub fn spec(&self, check: &mut Checker<'_>) -> PassiveSpec {
        let failures = self.failures.as_ref();
        let failures = failures.map_or(1, |n| check.number(n.at, n.value, 1..=10_000));
        PassiveSpec {
            failures: usize::try_from(failures).unwrap_or(usize::MAX),
            window: check.duration(self.window.as_ref()),
            eject: check.duration(self.eject.as_ref()),
        }
    }
}
