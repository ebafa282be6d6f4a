//! What an agent offers over one session: its services, and who is to be told when one is not to be had any more.
//! Connections are kept open between requests; without being told, they would go on to serve what has been withdrawn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::wire;
use crate::config::agent::ServiceKind;

/// How long the flows of a service that is withdrawn may go on.
pub(super) const LAST_FLOWS: Duration = Duration::from_secs(30);

/// Whether flows that were made under one offer may go on.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// What is under way goes on, and nothing else begins.
    pub(super) withdrawn: CancellationToken,
    /// All of it ends.
    pub(super) cut: CancellationToken,
}

#[derive(Debug)]
struct Offer {
    /// `None`: not known here.
    kind: Option<ServiceKind>,
    revision: String,
    dedicated: bool,
    /// Shared with the flows that were made under it.
    standing: Arc<Standing>,
}

/// The services of one session.
#[derive(Debug, Default)]
pub(super) struct Offers {
    by_name: BTreeMap<Box<str>, Offer>,
    /// Withdrawn, and when they are cut. Only those that have flows.
    ending: Vec<(Instant, Arc<Standing>)>,
}

impl Offers {
    /// These are all its services from now on. What is the same as before is not touched.
    pub(super) fn declare(&mut self, services: &[wire::Service]) {
        let mut before = std::mem::take(&mut self.by_name);
        let mut ended = Vec::new();
        for service in services {
            let kind = ServiceKind::of(&service.kind);
            let offer = match before.remove(service.name.as_str()) {
                Some(old)
                    if old.kind == kind
                        && old.revision == service.revision
                        && old.dedicated == service.dedicated =>
                {
                    old
                }
                other => {
                    ended.extend(other);
                    Offer {
                        kind,
                        revision: service.revision.clone(),
                        dedicated: service.dedicated,
                        standing: Arc::default(),
                    }
                }
            };
            // Of two with one name the last one counts.
            ended.extend(self.by_name.insert(service.name.as_str().into(), offer));
        }
        for offer in ended.into_iter().chain(before.into_values()) {
            self.end(offer.standing);
        }
    }

    /// Ends what was made under the offers that `which` picks. Flows that are made after it begin anew.
    pub(super) fn withdraw(&mut self, which: impl Fn(&str, Option<ServiceKind>) -> bool) {
        let mut ended = Vec::new();
        for (name, offer) in &mut self.by_name {
            if which(name, offer.kind) {
                ended.push(std::mem::take(&mut offer.standing));
            }
        }
        ended.into_iter().for_each(|standing| self.end(standing));
    }

    /// Nothing is kept for later any more, and what is made from now on is used once. No flow is cut.
    pub(super) fn retire(&self) {
        for offer in self.by_name.values() {
            offer.standing.withdrawn.cancel();
        }
    }

    fn end(&mut self, standing: Arc<Standing>) {
        standing.withdrawn.cancel();
        self.ending
            .retain(|(_, other)| Arc::strong_count(other) > 1);
        if Arc::strong_count(&standing) > 1 {
            self.ending.push((Instant::now() + LAST_FLOWS, standing));
        }
    }

    /// Cuts what is due; when there is more to cut.
    pub(super) fn cut_due(&mut self, now: Instant) -> Option<Instant> {
        self.ending.retain(|(at, standing)| {
            let due = *at <= now;
            if due {
                standing.cut.cancel();
            }
            !due && Arc::strong_count(standing) > 1
        });
        self.ending.iter().map(|(at, _)| *at).min()
    }

    /// `None`: there is no such service; `Some(None)`: of a kind that is not known here.
    pub(super) fn kind(&self, service: &str) -> Option<Option<ServiceKind>> {
        self.by_name.get(service).map(|offer| offer.kind)
    }

    pub(super) fn standing(&self, service: &str) -> Option<Arc<Standing>> {
        Some(self.by_name.get(service)?.standing.clone())
    }

    /// Whether its flows have connections of their own.
    pub(super) fn is_dedicated(&self, service: &str) -> bool {
        self.by_name
            .get(service)
            .is_some_and(|offer| offer.dedicated)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Option<ServiceKind>)> {
        let all = self.by_name.iter();
        all.map(|(name, offer)| (&**name, offer.kind))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn service(name: &str, kind: &str, revision: &str) -> wire::Service {
        wire::Service {
            name: name.into(),
            kind: kind.into(),
            revision: revision.into(),
            dedicated: false,
        }
    }

    #[test]
    fn what_is_declared_again_as_it_was_stands_and_what_differs_ends() {
        let mut offers = Offers::default();
        offers.declare(&[service("a", "tcp", "1"), service("b", "tcp", "1")]);
        let (a, b) = (offers.standing("a").unwrap(), offers.standing("b").unwrap());
        offers.declare(&[service("a", "tcp", "1"), service("b", "tcp", "2")]);
        assert!(!a.withdrawn.is_cancelled() && b.withdrawn.is_cancelled());
        let new = offers.standing("b").unwrap();
        assert!(!new.withdrawn.is_cancelled());
        // Another kind is another service.
        offers.declare(&[service("b", "http", "2")]);
        assert!(a.withdrawn.is_cancelled() && new.withdrawn.is_cancelled());
        assert!(offers.kind("a").is_none());
    }

    #[test]
    fn flows_of_what_was_withdrawn_are_cut_when_their_time_is_over() {
        let mut offers = Offers::default();
        offers.declare(&[service("a", "tcp", ""), service("b", "tcp", "")]);
        let (a, b) = (offers.standing("a").unwrap(), offers.standing("b").unwrap());
        offers.withdraw(|name, _| name == "a");
        assert!(a.withdrawn.is_cancelled() && !b.withdrawn.is_cancelled());
        let now = Instant::now();
        let due = offers.cut_due(now).unwrap();
        assert!(!a.cut.is_cancelled() && due > now);
        assert_eq!(offers.cut_due(due), None);
        assert!(a.cut.is_cancelled() && !b.cut.is_cancelled());
        // Without flows there is nothing to remember.
        drop(b);
        offers.withdraw(|_, _| true);
        assert!(offers.ending.is_empty());
    }
}
