//! A timer for waits that rarely happen: it costs nothing until something really is pending, and little afterwards.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Measures one wait after another; made at the first one, then moved on (which takes no lock while it moves later).
#[derive(Debug, Default)]
pub(super) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl Timer {
    /// Called while something is pending: ready when that has lasted for `limit`.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| {
            self.armed = true;
            Box::pin(tokio::time::sleep(limit))
        });
        if !self.armed {
            self.armed = true;
            sleep.as_mut().reset(Instant::now() + limit);
        }
        sleep.as_mut().poll(cx)
    }

    /// The wait is over; the next one begins anew.
    pub(super) fn rest(&mut self) {
        self.armed = false;
    }
}

/// A timer for deadlines that are mostly not met. It is not moved when a deadline comes later than it fires: it then
/// fires for nothing, and is set to what is due. One request after another waits on it, each with a waker of its own.
#[derive(Debug, Default)]
pub(super) struct Deadline {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// Ready once `at` has come. Takes a lock only when the timer must be set.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        loop {
            // Every time, also when it is set already: it knows only the waker of who polled it last.
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }

    /// Polls `ask`. `None`: it is late.
    ///
    /// `due` is asked when there is nothing to do but wait: until when, without end if `None`. Once that has passed it
    /// is asked again, with the time that passed, for a later one.
    pub(super) fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        ask: impl FnOnce(&mut Context<'_>) -> Poll<T>,
        mut due: impl FnMut(Option<Instant>) -> Option<Instant>,
    ) -> Poll<Option<T>> {
        if let Poll::Ready(out) = ask(cx) {
            return Poll::Ready(Some(out));
        }
        let mut at = due(None);
        while let Some(time) = at {
            if self.poll(cx, time).is_pending() {
                return Poll::Pending;
            }
            at = due(at);
            if at.is_none() {
                return Poll::Ready(None);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_met_although_its_timer_was_set_for_another_one() {
        let mut deadline = Deadline::default();
        let begun = Instant::now();
        let mut met = |due| {
            let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
            let at = begun + Duration::from_millis(due);
            deadline.poll(&mut cx, at).is_ready()
        };
        // Set for 100, which passes; then for 300, although 400 is asked for next; then back to 350.
        assert!(!met(100));
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(!met(300) && !met(400) && !met(350));
        tokio::time::advance(Duration::from_millis(110)).await;
        assert!(!met(350) && met(300));
        tokio::time::advance(Duration::from_millis(50)).await;
        assert!(met(350) && !met(500));
    }

    /// Each request has a task of its own: the one that waits now must be woken, not the one that waited first.
    #[tokio::test(start_paused = true)]
    async fn whoever_waits_last_is_woken() {
        let mut deadline = Deadline::default();
        let at = Instant::now() + Duration::from_millis(100);
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        assert!(deadline.poll(&mut cx, at).is_pending());
        let waited = std::future::poll_fn(|cx| deadline.poll(cx, at));
        tokio::time::timeout(Duration::from_secs(10), waited)
            .await
            .unwrap();
        assert_eq!(Instant::now(), at);
    }
}
