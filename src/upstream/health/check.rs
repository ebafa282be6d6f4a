//! The task that checks one target with one set of settings. Generations lease it by both, so a swap that changes neither
//! does not even move the moment of the next check.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::super::resolve::Names;
use super::super::transport::{Transport, TransportKey};
use super::probe::Probe;
use super::streak::Rules;
use super::{Health, TargetKey};
use crate::config::upstream::{HealthSpec, OnDown};

/// The shortest wait between two checks while a state is in doubt, unless `interval` itself is shorter.
const SHORTEST: Duration = Duration::from_millis(250);
/// How often it is looked whether a name has been found.
const NAMELESS: Duration = Duration::from_millis(250);

/// Identity of a check: target and settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::upstream) struct CheckKey {
    pub(in crate::upstream) target: TargetKey,
    pub(in crate::upstream) spec: HealthSpec,
    pub(in crate::upstream) transport: TransportKey,
}

/// A check that generations lease. It runs while it is in charge of its target and ends when this is dropped.
#[derive(Debug)]
pub(in crate::upstream) struct Check {
    id: u64,
    health: Arc<Health>,
    probe: Arc<Probe>,
    permits: Arc<Semaphore>,
    control: tokio::runtime::Handle,
}

impl Check {
    pub(in crate::upstream) fn new(
        key: &CheckKey,
        health: Arc<Health>,
        names: Option<Arc<Names>>,
        transport: Transport,
        permits: Arc<Semaphore>,
        control: tokio::runtime::Handle,
    ) -> Check {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let address = key.target.1.clone();
        Check {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            health,
            probe: Arc::new(Probe::new(address, names, key.spec.clone(), transport)),
            permits,
            control,
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Starts checking, on the control runtime.
    pub(super) fn start(&self, health: &Arc<Health>) -> AbortOnDropHandle<()> {
        let (probe, permits) = (self.probe.clone(), self.permits.clone());
        let run = run(self.id, health.clone(), probe, permits);
        AbortOnDropHandle::new(self.control.spawn(run))
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        self.health.end(self.id);
    }
}

async fn run(id: u64, health: Arc<Health>, probe: Arc<Probe>, permits: Arc<Semaphore>) {
    let spec = probe.spec();
    let rules = Rules {
        healthy_after: spec.healthy_after,
        unhealthy_after: spec.unhealthy_after,
    };
    let mut spread = 0.5..1.0;
    while let Some(wait) = health.wait(id, spec.interval) {
        // From the last check on, whoever did it: swaps that change the settings neither put it off nor hurry it.
        if let Some((last, wait)) = wait {
            let factor = spread.start + fastrand::f64() * (spread.end - spread.start);
            tokio::time::sleep_until(last + wait.mul_f64(factor)).await;
            spread = 0.9..1.1;
        }
        while !probe.is_resolved() {
            tokio::time::sleep(NAMELESS).await;
        }
        let Ok(permit) = permits.acquire().await else {
            return;
        };
        let answer = probe.ask().await;
        drop(permit);
        if !health.checked(id, answer, rules, spec.on_down == OnDown::Cut) {
            return;
        }
    }
}

impl Health {
    /// When the last check was and how long to wait after it; `Some(None)`: there was none, so it is time now. `None`:
    /// the check is not in charge.
    fn wait(&self, check: u64, interval: Duration) -> Option<Option<(Instant, Duration)>> {
        let book = self.book.lock();
        book.charge.as_ref().filter(|c| c.check == check)?;
        let settled = book.streak.is_settled();
        let wait = if settled { interval } else { quick(interval) };
        Some(book.last.as_ref().map(|last| (last.instant, wait)))
    }
}

/// The interval while a target is down, or its last check contradicts its state.
fn quick(interval: Duration) -> Duration {
    (interval / 4).max(SHORTEST).min(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_is_checked_four_times_as_often_within_reason() {
        let quick = |ms| quick(Duration::from_millis(ms)).as_millis();
        assert_eq!(
            (quick(5000), quick(800), quick(100), quick(60_000)),
            (1250, 250, 100, 15_000)
        );
    }
}
