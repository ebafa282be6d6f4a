//! Which target gets a request, and which the next one: all tries of a request, ordinary or upgrade, go through [`Tries`].
//!
//! Usable is a target that is up and was not tried yet. Backups are looked at only when none of the others is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::{Instant, timeout_at};

use super::error::{Error, Kind};
use super::latency::{FAILED, p2c};
use super::pool::InFlight;
use super::queue::Place;
use super::sticky::StickyId;
use super::{Member, SendOptions, Upstream, balance, hash};
use crate::config::http::{MAX_ATTEMPTS, RetrySpec};
use crate::config::template::Template;
use crate::config::upstream::{Balance, UpstreamSpec};

/// Targets tried for one request.
const TARGETS: usize = 3;
/// The most of them that a configuration may ask for.
const MOST: usize = MAX_ATTEMPTS;

/// What of a request its target depends on.
#[derive(Debug, Clone, Copy)]
pub enum KeyedBy<'a> {
    Nothing,
    ClientIp,
    Template(&'a Template),
}

/// The tries of one request.
pub(super) struct Tries<'a> {
    upstream: &'a Upstream,
    worker: usize,
    key: Option<u64>,
    sticky: Option<StickyId>,
    retries: Option<&'a RetrySpec>,
    tried: [usize; MOST],
    count: usize,
    last: Option<Error>,
    /// When waiting for a place ends, once it has begun.
    due: Option<Instant>,
}

/// A target to try, and the request's place among those that it has in flight.
pub(super) struct Picked<'a> {
    pub(super) member: &'a Member,
    pub(super) flight: InFlight,
}

/// Where to go next.
enum Next<'a> {
    To(Picked<'a>),
    /// There is somewhere to go, but no room.
    Full,
    Nowhere,
}

impl<'a> Tries<'a> {
    pub(super) fn new(
        upstream: &'a Upstream,
        worker: usize,
        options: &'a SendOptions,
    ) -> Tries<'a> {
        Tries {
            upstream,
            worker,
            key: options.key,
            sticky: options.sticky,
            retries: options.retries.as_deref(),
            tried: [usize::MAX; MOST],
            count: 0,
            last: None,
            due: None,
        }
    }

    /// Where to go next, once there is room; `None`: nowhere. Dropped while it waits, it has never been there.
    pub(super) async fn next(&mut self) -> Option<Picked<'a>> {
        match self.at_once() {
            Next::To(picked) => Some(picked),
            Next::Nowhere => None,
            // Boxed: every request's future would carry its state.
            Next::Full => Box::pin(self.wait()).await,
        }
    }

    fn at_once(&mut self) -> Next<'a> {
        let most = self.retries.map_or(TARGETS, |spec| spec.attempts);
        if self.count >= most.min(MOST) {
            return Next::Nowhere;
        }
        let Upstream {
            members, limits, ..
        } = self.upstream;
        let limits = limits.as_ref();
        let Some((limits, limit)) = limits.and_then(|l| Some((l, l.requests?))) else {
            let Some(index) = self.kept().or_else(|| self.pick()) else {
                return Next::Nowhere;
            };
            let flight = InFlight::begin(&members[index].target, self.worker);
            return Next::To(self.go(index, flight));
        };
        let waits = limits.most() > 0;
        // Those who wait come first, unless there are too many: then what is free is nothing for them.
        if limits.waiting.is_empty() || limits.waiting.len() >= limits.most() {
            // Another worker may be quicker each time, but not for ever.
            for _ in 0..=members.len() {
                let kept = self.kept();
                if let Some(index) = kept
                    && let Some(flight) = members[index].target.admit(limit, self.worker)
                {
                    return Next::To(self.go(index, flight));
                }
                if kept.is_some() && waits {
                    break;
                }
                let Some(index) = self.pick() else { break };
                if let Some(flight) = members[index].target.admit(limit, self.worker) {
                    return Next::To(self.go(index, flight));
                }
            }
        }
        if self.places().is_empty() {
            return Next::Nowhere;
        }
        Next::Full
    }

    fn go(&mut self, index: usize, flight: InFlight) -> Picked<'a> {
        self.tried[self.count] = index;
        self.count += 1;
        Picked {
            member: &self.upstream.members[index],
            flight,
        }
    }

    fn pick(&self) -> Option<usize> {
        let tried = &self.tried[..self.count];
        self.upstream.pick(self.worker, self.key, tried)
    }

    fn places(&self) -> Arc<[Place]> {
        self.upstream.places(self.kept(), &self.tried[..self.count])
    }

    /// Waits for room in the order in which requests came.
    async fn wait(&mut self) -> Option<Picked<'a>> {
        let limits = self.upstream.limits.as_ref()?;
        let due = *self.due.get_or_insert_with(|| Instant::now() + limits.wait);
        let why = match limits
            .waiting
            .enter(self.worker, self.places(), limits.most())
        {
            Some(mut waiting) => match timeout_at(due, waiting.turn()).await {
                Ok(given) => return given.map(|given| self.go(given.index, given.flight)),
                Err(_) => format!("none had room within {:?}", limits.wait),
            },
            None => format!("{} requests wait already", limits.waiting.len()),
        };
        // Its own target had no room: then any other.
        if self.sticky.take().is_some()
            && let Next::To(picked) = self.at_once()
        {
            return Some(picked);
        }
        let detail = format!(
            "upstream {}: every target is full, {why}",
            self.upstream.name
        );
        self.last = Some(Error::upstream(Kind::ConnectionLimitReached, detail).unsent());
        None
    }

    /// The client's own target, for the first try. It need have no weight: a target is drained so.
    fn kept(&self) -> Option<usize> {
        let id = self.sticky.filter(|_| self.count == 0)?;
        let index = self.upstream.sticky.as_ref()?.member(id)?;
        self.upstream.members[index].target.is_up().then_some(index)
    }

    /// Where to send once more what was sent already, if another target is there and the budget allows it.
    pub(super) fn once_more(&mut self) -> Option<Picked<'a>> {
        let spec = self.retries?;
        // There is an answer or an error already, which is better than waiting.
        let Next::To(picked) = self.at_once() else {
            return None;
        };
        self.upstream.budget.retry(spec.budget).then_some(picked)
    }

    /// A try ended in `error`.
    ///
    /// # Errors
    /// The same, if the request may have reached the target: then it is the caller's to know.
    pub(super) fn failed(&mut self, member: &Member, error: Error) -> Result<(), Error> {
        if !error.unsent || self.retries.is_some_and(|spec| !spec.connect) {
            return Err(error);
        }
        tracing::debug!(upstream = %self.upstream.name, target = %member.target.address(), %error, "not sent");
        self.last = Some(error);
        Ok(())
    }

    /// What to say when there is nowhere left to go.
    pub(super) fn over(self) -> Error {
        self.last.unwrap_or_else(|| self.upstream.none_usable())
    }
}

/// Hashes of the addresses, if the policy needs them.
pub(super) fn seeds(spec: &UpstreamSpec) -> Box<[u64]> {
    match spec.balance {
        Balance::IpHash | Balance::Hash(_) => {
            let addresses = spec.targets.iter().map(|t| t.address.to_string());
            addresses
                .map(|text| hash::of_bytes(text.as_bytes()))
                .collect()
        }
        Balance::RoundRobin | Balance::LeastRequests | Balance::Random | Balance::P2cEwma => {
            Box::default()
        }
    }
}

impl Upstream {
    /// What its policy hashes; the hash of that goes into [`SendOptions::key`].
    pub fn keyed_by(&self) -> KeyedBy<'_> {
        match &self.balance {
            // With one target there is nothing to choose.
            _ if self.turns.is_empty() => KeyedBy::Nothing,
            Balance::IpHash => KeyedBy::ClientIp,
            Balance::Hash(template) => KeyedBy::Template(template),
            Balance::RoundRobin | Balance::LeastRequests | Balance::Random | Balance::P2cEwma => {
                KeyedBy::Nothing
            }
        }
    }

    /// Whether its policy wants to know how long answers take.
    pub(super) fn watches_latency(&self) -> bool {
        self.balance == Balance::P2cEwma
    }

    /// The next target by policy among the usable ones; a backup only if there is no other. When none is up at
    /// all, any that resolves.
    pub(super) fn pick(&self, worker: usize, key: Option<u64>, tried: &[usize]) -> Option<usize> {
        let up = |index: usize| self.members[index].target.is_for_all() && !tried.contains(&index);
        let found = self.pick_among(worker, key, up);
        if found.is_some() || !self.fails_open_now() {
            return found;
        }
        let resolved = |index: usize| self.members[index].target.is_last_resort();
        self.choose(worker, key, &|index| {
            resolved(index) && self.has_room(index) && !tried.contains(&index)
        })
    }

    fn pick_among(
        &self,
        worker: usize,
        key: Option<u64>,
        is_there: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let usable = |index: usize| is_there(index) && self.has_room(index);
        if !self.backups {
            return self.choose(worker, key, &usable);
        }
        let first = |index: usize| !self.members[index].backup && usable(index);
        let then = |index: usize| self.members[index].backup && usable(index);
        // One that is full is there: backups are not for that.
        let full = |index: usize| {
            !self.members[index].backup && self.weights[index] > 0 && is_there(index)
        };
        self.choose(worker, key, &first).or_else(|| {
            let none = !(0..self.members.len()).any(full);
            none.then(|| self.choose(worker, key, &then)).flatten()
        })
    }

    /// One of those that `usable` lets through.
    fn choose(
        &self,
        worker: usize,
        key: Option<u64>,
        usable: &impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let weights = &*self.weights_now();
        let Some(turn) = self.turns.get(worker).or(self.turns.first()) else {
            return (weights.first() > Some(&0) && usable(0)).then_some(0);
        };
        let in_flight = |index: usize| self.members[index].target.in_flight();
        let chance = |below: u64| fastrand::u64(..below);
        match &self.balance {
            Balance::RoundRobin => {
                let mut credits = turn.credits.lock();
                if credits.is_empty() {
                    // Workers begin at different places, so that few requests to many workers still spread.
                    credits.resize(weights.len(), 0);
                    for _ in 0..worker {
                        balance::smooth(&mut credits, weights, |_| true);
                    }
                }
                balance::smooth(&mut credits, weights, usable)
            }
            Balance::LeastRequests => {
                let start = turn
                    .cursor
                    .fetch_add(1, Ordering::Relaxed)
                    .wrapping_add(worker);
                balance::least_requests(weights, in_flight, start, usable)
            }
            Balance::Random => balance::random(weights, chance, usable),
            Balance::P2cEwma => {
                let now = Instant::now();
                let cost = |index: usize| {
                    let target = &self.members[index].target;
                    target.latency.cost(target.in_flight(), now)
                };
                p2c(weights, cost, chance, usable)
            }
            // Without a key (nobody to ask) any target is as good.
            Balance::IpHash | Balance::Hash(_) if key.is_none() => {
                balance::random(weights, chance, usable)
            }
            Balance::IpHash => {
                hash::pick(key.unwrap_or_default(), &self.seeds, weights, None, usable)
            }
            Balance::Hash(_) => {
                let key = key.unwrap_or_default();
                hash::pick(key, &self.seeds, weights, Some(&in_flight), usable)
            }
        }
    }
}

impl Member {
    /// What a try says of the target's speed.
    pub(super) fn learn(&self, began: Instant, answered: bool) {
        let now = Instant::now();
        let took = now.saturating_duration_since(began);
        let took = if answered { took } else { took.max(FAILED) };
        self.target.latency.learn(took, now);
    }
}
