//! Passive health: requests that fail say something of their target.
//!
//! At most half of an upstream's targets are ejected at once, and never the last one that is used: whatever ails them all
//! (a broken release, a network) is not mended by leaving everybody alone.

use std::sync::{Arc, Weak};

use ::http::StatusCode;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::super::error::{Error, Kind, Side};
use super::{EJECTED, Ejection, Health, Ordering, SystemTime};
use crate::config::upstream::PassiveSpec;

/// One generation's rules of ejection, and the targets they are about.
#[derive(Debug)]
pub(in crate::upstream) struct Passive {
    spec: PassiveSpec,
    members: Box<[Arc<Health>]>,
    /// Where ejections end.
    control: tokio::runtime::Handle,
}

/// Whether an answer's status counts: those by which a gateway or an overloaded server says that it cannot serve. A 500
/// is what one request did to the application, so it does not.
pub(in crate::upstream) fn is_failure(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Whether an error counts: everything that is the target's or its network's doing, but for names (which have a state of
/// their own) and limits (which are ours).
fn counts(error: &Error) -> bool {
    error.side == Side::Upstream
        && !matches!(
            error.kind,
            Kind::DnsError
                | Kind::DnsTimeout
                | Kind::ConnectionLimitReached
                | Kind::HttpUpgradeFailed
        )
}

impl Passive {
    pub(in crate::upstream) fn new(
        spec: PassiveSpec,
        members: Box<[Arc<Health>]>,
        control: tokio::runtime::Handle,
    ) -> Passive {
        Passive {
            spec,
            members,
            control,
        }
    }

    /// A request to a target ended in `error`.
    pub(in crate::upstream) fn failed(&self, target: &Arc<Health>, error: &Error) {
        if counts(error) {
            self.count(target, || format!("{}: {}", error.kind, error.detail));
        }
    }

    /// A target answered with `status`.
    pub(in crate::upstream) fn answered(&self, target: &Arc<Health>, status: StatusCode) {
        if is_failure(status) {
            self.count(target, || format!("status {status}"));
        }
    }

    fn count(&self, target: &Arc<Health>, why: impl FnOnce() -> String) {
        // Of one that is out of use nothing new is learnt: what it had under way may have been cut for that.
        if !target.is_up() {
            return;
        }
        let now = Instant::now();
        {
            let mut book = target.book.lock();
            let window = self.spec.window;
            while book.failures.len() >= self.spec.failures
                || book
                    .failures
                    .front()
                    .is_some_and(|t| now.saturating_duration_since(*t) > window)
            {
                book.failures.pop_front();
            }
            book.failures.push_back(now);
            if book.failures.len() < self.spec.failures {
                return;
            }
        }
        self.eject(target, why);
    }

    fn eject(&self, target: &Arc<Health>, why: impl FnOnce() -> String) {
        let _turn = target.ward.ejecting.lock();
        let out = |h: &&Arc<Health>| h.out.load(Ordering::Relaxed) & EJECTED != 0;
        let ejected = self.members.iter().filter(out).count();
        let another_is_up = self
            .members
            .iter()
            .any(|h| !Arc::ptr_eq(h, target) && h.is_up());
        if (ejected + 1) * 2 > self.members.len() || !another_is_up {
            return;
        }
        let mut book = target.book.lock();
        if book.ejection.is_some() {
            return;
        }
        book.failures.clear();
        let why = why();
        let eject = self.spec.eject;
        let (upstream, address) = &target.key;
        tracing::warn!(%upstream, target = %address, why, "target is ejected for {eject:?}");
        let weak = Arc::downgrade(target);
        let task = self.control.spawn(async move {
            tokio::time::sleep(eject).await;
            if let Some(target) = Weak::upgrade(&weak) {
                target.pardon();
            }
        });
        book.ejection = Some(Ejection {
            why,
            _task: AbortOnDropHandle::new(task),
        });
        let before = target.out.fetch_or(EJECTED, Ordering::Relaxed);
        if before == 0 {
            book.since = SystemTime::now();
        }
    }
}

impl Health {
    /// Its time is over.
    fn pardon(&self) {
        let mut book = self.book.lock();
        if book.ejection.take().is_some() {
            self.back(&mut book, EJECTED, "its ejection is over");
        }
    }
}
