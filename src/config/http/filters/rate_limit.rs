//! `rate_limit`.

use std::fmt;
use std::sync::Arc;

use ::http::StatusCode;

use super::super::super::check::Checker;
use super::super::super::decode::{List, Loc, section};
use super::super::super::scalar::Rate;
use super::super::super::template::Template;
use super::super::super::tree::At;
use super::super::action::template;

section! {
    /// How many requests are let through, and which are counted together.
    pub struct RateLimitRaw {
        /// What is counted together, with `{variables}`. In `{client_ip}` an IPv6 client is its /64, which is what one
        /// customer gets; clients of a unix socket have no address and are one. With `{user}` it counts after
        /// `basic_auth` and `forward_auth`.
        key: String = "{client_ip}",
        /// So many in a second, minute, hour or day: `100/s`, `30/m`, `1000/h`.
        rate: Rate,
        /// How many may come at once after a pause. Left out: as many as `rate` names.
        burst: u64,
        /// Status of a refusal, 400 to 599; it says in `Retry-After` when to come again.
        status: u64 = 429,
        /// Keys that are remembered; over it the one that has used least of its burst is forgotten first.
        max_keys: u64 = 100_000,
    }
    short = rate;
    later = [];
}

/// A checked limiter.
#[derive(Debug, Clone, PartialEq)]
pub struct RateLimitSpec {
    /// Who it is over reloads: where it stands, its place in the list and what it counts by.
    pub id: Arc<str>,
    pub key: Template,
    pub rate: Rate,
    /// At least 1.
    pub burst: u64,
    pub status: StatusCode,
    /// At least 1.
    pub max_keys: usize,
}

/// Limits in one list.
pub const MOST_LIMITS: usize = 8;

/// Bursts over this are nobody's need, and their arithmetic would not fit.
const MOST: u64 = 1_000_000_000;

/// Checks all of a list; wrong ones are recorded and left out.
pub(super) fn rate_limits(
    list: &List<RateLimitRaw>,
    at: At,
    scope: fmt::Arguments<'_>,
    check: &mut Checker<'_>,
) -> Option<Vec<RateLimitSpec>> {
    if list.is_empty() && !list.spoiled {
        let wrong = check.findings.error(at, "an empty list of limits");
        wrong.help("`false` for none");
    }
    if let Some(more) = list.get(MOST_LIMITS) {
        let message = format!("more than {MOST_LIMITS} limits in one list");
        check.findings.error(more.at, message);
    }
    let all = list.iter().enumerate();
    let all: Vec<_> = all
        .filter_map(|(index, raw)| one(raw, format_args!("{scope}/{index}"), check))
        .collect();
    (!all.is_empty()).then_some(all)
}

fn one(
    raw: &Loc<RateLimitRaw>,
    scope: fmt::Arguments<'_>,
    check: &mut Checker<'_>,
) -> Option<RateLimitSpec> {
    let key = raw.key.as_ref()?;
    let parsed = template(key.at, key, check);
    let status = raw.status.as_ref().map(|status| {
        let code = check.number(status.at, status.value, 400..=599);
        u16::try_from(code)
            .ok()
            .and_then(|code| StatusCode::from_u16(code).ok())
    });
    let burst = raw.burst.as_ref();
    let burst = burst.map(|burst| check.number(burst.at, burst.value, 1..=MOST));
    let max_keys = raw.max_keys.as_ref();
    let max_keys = max_keys.map_or(1, |n| check.number(n.at, n.value, 1..=10_000_000));
    let Some(rate) = &raw.rate else {
        if !raw.spoiled.contains(&"rate") {
            let wrong = check.findings.error(raw.at, "a limit needs a `rate`");
            wrong.help("such as `rate = \"100/s\"`");
        }
        return None;
    };
    Some(RateLimitSpec {
        id: format!("{scope}/{}", key.value).into(),
        key: parsed?,
        rate: rate.value,
        burst: burst.unwrap_or(rate.count.min(MOST)),
        status: status.flatten().unwrap_or(StatusCode::TOO_MANY_REQUESTS),
        max_keys: usize::try_from(max_keys).unwrap_or(usize::MAX),
    })
}
