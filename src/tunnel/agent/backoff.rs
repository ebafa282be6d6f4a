//! How long to wait before the next try. Waits are drawn at random up to their bound, so that the agents of a server that
//! comes back do not all come at once.

use std::time::Duration;

use tokio::time::Instant;

use super::Trouble;

const FIRST: Duration = Duration::from_millis(200);
/// The bound within the first [`SOON`] of an outage, and after.
const CAP: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(300);
const LATER: Duration = Duration::from_secs(20);
/// The first wait, and the bound, of one that is refused: trying again changes nothing before somebody does something.
const REFUSED_FIRST: Duration = Duration::from_secs(5);
const REFUSED_CAP: Duration = Duration::from_secs(60);
/// A session that lived so long has ended an outage.
const STABLE: Duration = Duration::from_secs(30);

/// The waits of one slot.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
    refused: u32,
    /// Since when there is no stable session.
    outage: Option<Instant>,
}

impl Backoff {
    /// A session has ended that lived for `lived`.
    pub(super) fn ended(&mut self, lived: Duration) {
        if lived >= STABLE {
            *self = Backoff::default();
        }
    }

    /// The longest that the next wait may be.
    fn bound(&mut self, trouble: Trouble, now: Instant) -> Duration {
        let since = *self.outage.get_or_insert(now);
        let (first, count, cap) = match trouble {
            Trouble::Unreachable => {
                self.refused = 0;
                let soon = now.saturating_duration_since(since) < SOON;
                (FIRST, &mut self.tries, if soon { CAP } else { LATER })
            }
            Trouble::Refused | Trouble::Distrusted => {
                (REFUSED_FIRST, &mut self.refused, REFUSED_CAP)
            }
        };
        let bound = first.saturating_mul(1 << (*count).min(10)).min(cap);
        *count = count.saturating_add(1);
        bound
    }

    /// The next wait.
    pub(super) fn next(&mut self, trouble: Trouble) -> Duration {
        let bound = self.bound(trouble, Instant::now());
        match trouble {
            Trouble::Unreachable => bound.mul_f64(fastrand::f64()),
            // Never at once.
            Trouble::Refused | Trouble::Distrusted => bound.mul_f64(0.5 + fastrand::f64() / 2.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_two_seconds_and_after_five_minutes_to_twenty() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        let bounds: Vec<u128> = (0..6)
            .map(|_| backoff.bound(Trouble::Unreachable, start).as_millis())
            .collect();
        assert_eq!(bounds, [200, 400, 800, 1600, 2000, 2000]);
        let later = start + SOON;
        assert_eq!(
            backoff.bound(Trouble::Unreachable, later),
            Duration::from_millis(12_800)
        );
        assert_eq!(backoff.bound(Trouble::Unreachable, later), LATER);
        // A session that breaks at once is no end of it.
        backoff.ended(Duration::from_secs(29));
        assert_eq!(backoff.bound(Trouble::Unreachable, later), LATER);
        backoff.ended(STABLE);
        assert_eq!(backoff.bound(Trouble::Unreachable, later), FIRST);
    }

    #[test]
    fn one_that_is_refused_waits_longer_and_never_tries_at_once() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            let wait = backoff.next(Trouble::Refused);
            assert!(
                (REFUSED_FIRST / 2..=REFUSED_CAP).contains(&wait),
                "{wait:?}"
            );
        }
        assert!(backoff.next(Trouble::Unreachable) <= FIRST);
    }
}
