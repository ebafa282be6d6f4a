//! `rate_limit`: how many requests are let through, over all workers together. The [`Limiter`] behind one is leased by
//! identity, so that its levels outlive a swap; what a generation says of rate and burst comes with each request.

mod level;
mod table;

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;

use super::{Asking, Refusal, Shared};
use crate::config::http::{MOST_LIMITS, RateLimitSpec};
use crate::config::template::{Part, Source, Template, Var};
use crate::http::error;
use crate::http::vars::Vars;
use level::Quota;
use table::Table;

/// Parts of a limiter, each with a lock of its own.
const SHARDS: usize = 16;

/// The levels of one limiter.
#[derive(Debug)]
pub(super) struct Limiter {
    /// Times are counted from here.
    base: Instant,
    /// Keys come from clients, who must not be able to choose where they fall.
    first: RandomState,
    second: RandomState,
    shards: [Mutex<Table>; SHARDS],
}

impl Limiter {
    fn new() -> Limiter {
        Limiter {
            base: Instant::now(),
            first: RandomState::new(),
            second: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// What a text is known by: 128 bits of a secret hash, for a client may send kilobytes of it.
    fn key(&self, text: &str) -> u128 {
        let halves = (self.first.hash_one(text), self.second.hash_one(text));
        u128::from(halves.0) << 64 | u128::from(halves.1)
    }

    fn shard(&self, key: u128) -> &Mutex<Table> {
        // Addresses differ in their low bits, hashes in all.
        let mixed = (key ^ (key >> 64)) as u64;
        let index = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        &self.shards[index as usize % SHARDS]
    }
}

/// One limit as a generation has it.
#[derive(Debug)]
struct Limit {
    limiter: Arc<Limiter>,
    key: Key,
    quota: Quota,
    /// Of each shard.
    most: usize,
    status: StatusCode,
}

/// What is counted together.
#[derive(Debug)]
enum Key {
    /// The client's address alone, which needs no text.
    Client,
    Text(Template),
}

/// The limits of a server or route that are asked at one place.
#[derive(Debug)]
pub(super) struct RateLimits {
    limits: Box<[Limit]>,
}

impl RateLimits {
    /// Those that count before the user is known, and those that count by user.
    pub(super) fn build(specs: &[RateLimitSpec], shared: &Shared) -> [Option<RateLimits>; 2] {
        let (by_user, others): (Vec<_>, Vec<_>) = specs.iter().partition(|spec| {
            let parts = spec.key.parts.iter();
            parts.clone().any(|part| *part == Part::Var(Var::User))
        });
        [others, by_user].map(|specs| {
            let limits: Box<[Limit]> = specs
                .iter()
                .map(|spec| Limit::build(spec, shared))
                .collect();
            (!limits.is_empty()).then_some(RateLimits { limits })
        })
    }

    /// Counts a request.
    ///
    /// # Errors
    /// The refusal of the first limit that is reached; the request then counts for none.
    pub(super) fn admit(&self, asking: &Asking<'_, '_>) -> Result<(), Refusal> {
        let now = Instant::now();
        let mut counted = [None; MOST_LIMITS];
        for (index, limit) in self.limits.iter().enumerate() {
            let key = limit.key(asking);
            match limit.count(key, now) {
                Ok(()) => {
                    if let Some(place) = counted.get_mut(index) {
                        *place = Some(key);
                    }
                }
                Err(wait) => {
                    for (limit, key) in self.limits.iter().zip(counted) {
                        if let Some(key) = key {
                            limit.give_back(key);
                        }
                    }
                    return Err(refusal(limit.status, wait));
                }
            }
        }
        Ok(())
    }
}

/// `status`, and in how many seconds to come again.
fn refusal(status: StatusCode, seconds: u64) -> Refusal {
    let mut response = error::plain(status);
    let headers = response.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    Box::new(response)
}

impl Limit {
    fn build(spec: &RateLimitSpec, shared: &Shared) -> Limit {
        let client = matches!(spec.key.parts.as_slice(), [Part::Var(Var::ClientIp)]);
        Limit {
            limiter: shared.limiters.lease(&spec.id, Limiter::new),
            key: if client {
                Key::Client
            } else {
                Key::Text(spec.key.clone())
            },
            quota: Quota {
                count: spec.rate.count,
                seconds: spec.rate.seconds,
                burst: spec.burst,
            },
            most: spec.max_keys.div_ceil(SHARDS),
            status: spec.status,
        }
    }

    fn key(&self, asking: &Asking<'_, '_>) -> u128 {
        match &self.key {
            Key::Client => match asking.context.client.map(site) {
                Some(IpAddr::V4(v4)) => u128::from(v4.to_bits()),
                Some(IpAddr::V6(v6)) => v6.to_bits(),
                None => u128::MAX,
            },
            Key::Text(template) => {
                let text = template.render(&BySite(asking.vars()));
                self.limiter.key(&text)
            }
        }
    }

    /// `Err`: in how many seconds there is a place.
    fn count(&self, key: u128, now: Instant) -> Result<(), u64> {
        let since = now.saturating_duration_since(self.limiter.base);
        let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let mut table = self.limiter.shard(key).lock();
        table.count(key, &self.quota, self.most, now)
    }

    fn give_back(&self, key: u128) {
        self.limiter.shard(key).lock().give_back(key);
    }
}

/// What an address is counted as: an IPv4 address itself, of an IPv6 address the /64, of which one machine has as many
/// addresses as it likes.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let network = v6.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
    }
}

/// Variables of a request, in which the client is its [`site`].
struct BySite<'a>(Vars<'a>);

impl Source for BySite<'_> {
    fn var(&self, var: &Var) -> Cow<'_, str> {
        match (var, self.0.context.client) {
            (Var::ClientIp, Some(client)) => site(client).to_string().into(),
            _ => self.0.var(var),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_client_is_its_network() {
        let site = |text: &str| site(text.parse().unwrap()).to_string();
        assert_eq!(site("192.0.2.7"), "192.0.2.7");
        assert_eq!(site("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(site("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(site("2001:db8:1:2::1"), "2001:db8:1:2::");
    }

    #[test]
    fn addresses_spread_over_the_shards() {
        let limiter = Limiter::new();
        let mut seen = [0_usize; SHARDS];
        for low in 0..1600_u128 {
            let shard = limiter.shard(0x0a00_0000 + low);
            seen[limiter
                .shards
                .iter()
                .position(|s| std::ptr::eq(s, shard))
                .unwrap()] += 1;
        }
        assert!(seen.iter().all(|n| (50..=200).contains(n)), "{seen:?}");
    }
}
