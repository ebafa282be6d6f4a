//! The arithmetic of one bucket: a meter that every request raises by one and time lowers by the rate. It is GCRA
//! (ITU-T I.371) told as a level, not as a time, so that a swap that changes the rate leaves the level as it is.

/// A request, in the units of a level.
const ONE: u64 = 1_000_000_000;

/// How many requests may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quota {
    /// At least 1, in `seconds`.
    pub(super) count: u64,
    /// At least 1.
    pub(super) seconds: u64,
    /// At least 1, at most a billion.
    pub(super) burst: u64,
}

/// How much of its burst a key has used, and when that was so. Two words, no clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Level {
    /// Billionths of a request.
    used: u64,
    /// Nanoseconds.
    at: u64,
}

impl Quota {
    /// What is used of a level at `now` (nanoseconds). Rounded so that time never lowers it by too much.
    pub(super) fn used(&self, level: Level, now: u64) -> u64 {
        // Billionths in a nanosecond are requests in a second.
        let passed = u128::from(now.saturating_sub(level.at));
        let gone = passed * u128::from(self.count) / u128::from(self.seconds);
        let gone = u64::try_from(gone).unwrap_or(u64::MAX);
        level.used.saturating_sub(gone)
    }

    /// Counts one more request, or says in how many whole seconds (at least 1) there is a place for it. A refused one
    /// changes nothing: else rounding, once for each, would hold back a flood for ever.
    pub(super) fn count(&self, level: &mut Level, now: u64) -> Result<(), u64> {
        let used = self.used(*level, now);
        let most = self.burst.saturating_mul(ONE);
        let over = used.saturating_add(ONE).saturating_sub(most);
        if over == 0 {
            // A thread that read the clock before another one may come after it.
            let at = now.max(level.at);
            *level = Level {
                used: used + ONE,
                at,
            };
            return Ok(());
        }
        let wait = u128::from(over) * u128::from(self.seconds);
        let wait = wait.div_ceil(u128::from(self.count) * u128::from(ONE));
        Err(u64::try_from(wait).unwrap_or(u64::MAX).max(1))
    }
}

impl Level {
    /// As if one request had not been counted.
    pub(super) fn give_back(&mut self) {
        self.used = self.used.saturating_sub(ONE);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quota() -> impl Strategy<Value = Quota> {
        let seconds = prop::sample::select(vec![1, 60, 3_600, 86_400]);
        (1..=1_000_u64, seconds, 1..=1_000_u64).prop_map(|(count, seconds, burst)| Quota {
            count,
            seconds,
            burst,
        })
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_the_burst(
            quota in quota(),
            steps in prop::collection::vec(0..3_000_000_000_u64, 1..300),
        ) {
            let (mut level, mut now, mut times) = (Level::default(), 0, Vec::new());
            for step in steps {
                now += step;
                if quota.count(&mut level, now).is_ok() {
                    times.push(now);
                }
            }
            // Between any two admissions, not only since the first.
            for (first, from) in times.iter().enumerate() {
                for (last, to) in times.iter().enumerate().skip(first) {
                    let admitted = (last - first + 1) as u128;
                    let span = u128::from(to - from) * u128::from(quota.count);
                    let bound = span / (u128::from(quota.seconds) * u128::from(ONE)) + u128::from(quota.burst);
                    prop_assert!(admitted <= bound, "{admitted} > {bound}");
                }
            }
        }

        #[test]
        fn who_waits_as_told_is_admitted(quota in quota(), before in 0..2_000_usize) {
            let (mut level, now) = (Level::default(), 7);
            for _ in 0..before {
                let _ = quota.count(&mut level, now);
            }
            if let Err(wait) = quota.count(&mut level, now) {
                prop_assert!(quota.count(&mut level, now + wait * ONE).is_ok());
            }
        }

        #[test]
        fn refusals_hold_nobody_back(quota in quota(), gap in 1..1_000_u64) {
            let (mut level, mut now) = (Level::default(), 0);
            while quota.count(&mut level, now).is_ok() {}
            let due = ONE * quota.seconds.div_ceil(quota.count);
            // A flood of refusals until just before it is due.
            for _ in 0..1_000 {
                now += gap;
                let _ = quota.count(&mut level, now);
            }
            prop_assert!(now < due && quota.count(&mut level, due).is_ok());
        }
    }

    #[test]
    fn a_changed_rate_keeps_the_level() {
        let quota = |count, burst| Quota {
            count,
            seconds: 1,
            burst,
        };
        let mut level = Level::default();
        let (fast, slow) = (quota(1_000, 100), quota(1, 100));
        for _ in 0..100 {
            fast.count(&mut level, 0).unwrap();
        }
        assert_eq!(slow.count(&mut level, 0), Err(1));
        assert_eq!(fast.count(&mut level, 0), Err(1));
        // One of the hundred is free again, at either rate.
        assert_eq!(fast.used(level, 1_000_000), 99 * ONE);
        assert_eq!(slow.used(level, ONE), 99 * ONE);
    }

    #[test]
    fn a_clock_that_was_read_earlier_does_no_harm() {
        let quota = Quota {
            count: 1,
            seconds: 1,
            burst: 2,
        };
        let mut level = Level::default();
        quota.count(&mut level, 5 * ONE).unwrap();
        quota.count(&mut level, 4 * ONE).unwrap();
        assert_eq!(quota.count(&mut level, 5 * ONE), Err(1));
    }
}
