//! What an operator says of a target: that it is to be used, to run dry, or to get nothing. It is no part of any
//! document and lives in the target: reloads leave it as it is, and it is gone with the target.

use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Target;

/// What an operator says of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TargetState {
    /// Used as the document says.
    #[default]
    Up,
    /// Only for clients whose `sticky` cookie names it; its open flows go on.
    Drain,
    /// No new requests; what is in flight goes on.
    Down,
}

/// The same in a target.
#[derive(Debug, Default)]
pub(super) struct Wish(AtomicU8);

impl Wish {
    const ALL: [TargetState; 3] = [TargetState::Up, TargetState::Drain, TargetState::Down];

    fn get(&self) -> TargetState {
        let index = usize::from(self.0.load(Ordering::Relaxed));
        Self::ALL.get(index).copied().unwrap_or_default()
    }

    fn set(&self, state: TargetState) {
        let index = Self::ALL.iter().position(|known| *known == state);
        let index = index.and_then(|index| u8::try_from(index).ok());
        self.0.store(index.unwrap_or_default(), Ordering::Relaxed);
    }
}

impl Target {
    /// What an operator says of it.
    pub fn wish(&self) -> TargetState {
        self.wish.get()
    }

    /// Counts from the next request on.
    pub fn set_wish(&self, state: TargetState) {
        self.wish.set(state);
        // Who waits may go there now.
        self.freed();
    }

    /// Whether it may get requests of any client. One that drains is up for its own clients only.
    pub(super) fn is_for_all(&self) -> bool {
        self.wish() == TargetState::Up && self.is_up()
    }

    /// Whether it may get requests although its health says no: no other is better.
    pub(super) fn is_last_resort(&self) -> bool {
        self.wish() == TargetState::Up && self.is_resolved()
    }

    /// Waits until nothing is in flight. Cancel-safe; it may have something again when this returns.
    pub async fn idle_at_last(&self) {
        let Some(_waiting) = self.open().wait(usize::MAX) else {
            return;
        };
        loop {
            let mut ended = pin!(self.open().ended());
            // From here on nothing is missed.
            ended.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::TargetKey;
    use super::super::health::Health;
    use super::super::pool::InFlight;
    use super::*;
    use crate::config::scalar::TargetAddr;
    use std::sync::Arc;

    #[test]
    fn what_was_said_is_known_and_idle_is_waited_for() {
        let key: TargetKey = ("api".into(), TargetAddr::Unix("/x".into()));
        let health = Arc::new(Health::new(key.clone(), Arc::default()));
        let target = Arc::new(Target::new(key.clone(), &[Arc::default()], None, health));
        for (state, up, for_all) in [
            (TargetState::Drain, true, false),
            (TargetState::Down, false, false),
            (TargetState::Up, true, true),
        ] {
            target.set_wish(state);
            let now = (target.wish(), target.is_up(), target.is_for_all());
            assert_eq!(now, (state, up, for_all));
        }
        let flights = [0, 0].map(|worker| InFlight::begin(&target, worker));
        let mut idle = pin!(target.idle_at_last());
        assert!((&mut idle).now_or_never().is_none());
        let [first, second] = flights;
        drop(first);
        assert!((&mut idle).now_or_never().is_none());
        drop(second);
        assert!((&mut idle).now_or_never().is_some());
    }
}
