//! A timer for waits that rarely happen: it costs nothing until something really is pending, and little afterwards.

use std::pin::Pin;
use std::task::{Context, Poll};
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
