//! Filters: what a server or a route does to its requests and responses besides the action. They may stand on the server,
//! on the route, or in `[filters.NAME]`, from where `use` takes them. The nearest wins: route, its `use`, server, its
//! `use`, and of several names in one `use` the last; only what `headers` say adds up.

mod access;
mod basic_auth;
mod compress;
mod concurrency;
mod cors;
mod forward_auth;
mod headers;
pub(in crate::config) mod password;
mod rate_limit;
mod rewrite;
mod set;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::super::check::Checker;
use super::super::decode::{Limit, List, Loc, Switch};
use super::super::scalar::{Size, Span, Speed, cidr};
use super::super::tree::At;
use super::super::upstream::References;
use super::FileCoding;

pub use access::AccessSpec;
pub use basic_auth::{BasicAuthRaw, BasicAuthSpec};
pub use compress::CompressSpec;
pub use concurrency::{ConcurrencyRaw, ConcurrencySpec};
pub use cors::{CorsRaw, CorsSpec, OriginPattern};
pub use forward_auth::{ForwardAuthRaw, ForwardAuthSpec};
pub use headers::{EditSpec, HeadersRaw, HeadersSetting, HeadersSpec};
pub use password::{HashKind, HashedPassword, htpasswd};
pub use rate_limit::{MOST_LIMITS, RateLimitRaw, RateLimitSpec};
pub use rewrite::{Piece, RewriteRaw, RewriteSpec};
pub use set::{FilterSets, FiltersRaw};

/// Defines a section that may hold filters: its own keys, then those of every filter, the same everywhere.
macro_rules! filtered {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($fields:tt)* }
        $(one_of = $one_of:expr;)?
        later = $later:expr;
    ) => {
        $crate::config::decode::section! {
            $(#[$meta])*
            pub struct $name {
                $($fields)*
                /// Ranges of client addresses that are served; given, all others are refused with 403. `false`: no such list.
                allow: $crate::config::decode::Switch<$crate::config::decode::List<String>>,
                /// Ranges of client addresses that are refused with 403, also where `allow` has them. `false`: no such list.
                deny: $crate::config::decode::Switch<$crate::config::decode::List<String>>,
                /// How many requests are let through. `false`: no limit.
                rate_limit: $crate::config::decode::Switch<$crate::config::decode::List<$crate::config::http::RateLimitRaw>>,
                /// Who may come, by name and password. `false`: anybody.
                basic_auth: $crate::config::decode::Switch<$crate::config::http::BasicAuthRaw>,
                /// Ask another server whether a request may pass. `false`: nobody is asked.
                forward_auth: $crate::config::decode::Switch<$crate::config::http::ForwardAuthRaw>,
                /// How many requests may be in progress at once. `false`: no limit.
                concurrency: $crate::config::decode::Switch<$crate::config::http::ConcurrencyRaw>,
                /// Largest request body; overrides `limits.body` of the server.
                body_limit: $crate::config::decode::Limit<$crate::config::scalar::Size>,
                /// From the head of a request to the end of its response, whatever is tried: 504 before its head is sent, later
                /// the response is cut. A client that takes nothing is let go by `timeouts.write`. Not for websockets once they are.
                timeout: $crate::config::decode::Limit<$crate::config::scalar::Span>,
                /// How fast the body of a response is sent, each by itself: `4MB/s`. Not for websockets.
                bandwidth: $crate::config::decode::Limit<$crate::config::scalar::Speed>,
                /// Let pages of other origins read responses. `false`: none.
                cors: $crate::config::decode::Switch<$crate::config::http::CorsRaw>,
                /// Another path for what stands behind. `false`: as it came.
                rewrite: $crate::config::decode::Switch<$crate::config::http::RewriteRaw>,
                /// Change the fields of requests and responses; adds up, the route's last. `false`: nothing that is said farther off.
                headers: $crate::config::decode::Switch<$crate::config::http::HeadersRaw>,
                /// Compress responses that gain by it, where the client takes it: our order among those it likes equally. `false`: none.
                compress: $crate::config::decode::Switch<$crate::config::decode::List<$crate::config::http::FileCoding>>,
                /// `false`: its requests have no line in the access log.
                access_log: bool,
            }
            $(one_of = $one_of;)?
            later = $later;
        }

        impl $name {
            /// The keys of filters.
            pub(in $crate::config) fn written(&self) -> $crate::config::http::filters::Written<'_> {
                $crate::config::http::filters::Written {
                    allow: self.allow.as_ref(),
                    deny: self.deny.as_ref(),
                    rate_limit: self.rate_limit.as_ref(),
                    basic_auth: self.basic_auth.as_ref(),
                    forward_auth: self.forward_auth.as_ref(),
                    concurrency: self.concurrency.as_ref(),
                    body_limit: self.body_limit.as_ref(),
                    timeout: self.timeout.as_ref(),
                    bandwidth: self.bandwidth.as_ref(),
                    cors: self.cors.as_ref(),
                    rewrite: self.rewrite.as_ref(),
                    headers: self.headers.as_ref(),
                    compress: self.compress.as_ref(),
                    access_log: self.access_log.as_ref(),
                }
            }
        }
    };
}
pub(in crate::config) use filtered;

/// Keys of filters that are not built.
pub(super) const LATER: &[&str] = &[];

/// The filters of one table as they are written.
#[derive(Debug)]
pub(in crate::config) struct Written<'r> {
    pub(in crate::config) allow: Option<&'r Loc<Switch<List<String>>>>,
    pub(in crate::config) deny: Option<&'r Loc<Switch<List<String>>>>,
    pub(in crate::config) rate_limit: Option<&'r Loc<Switch<List<RateLimitRaw>>>>,
    pub(in crate::config) basic_auth: Option<&'r Loc<Switch<BasicAuthRaw>>>,
    pub(in crate::config) forward_auth: Option<&'r Loc<Switch<ForwardAuthRaw>>>,
    pub(in crate::config) concurrency: Option<&'r Loc<Switch<ConcurrencyRaw>>>,
    pub(in crate::config) body_limit: Option<&'r Loc<Limit<Size>>>,
    pub(in crate::config) timeout: Option<&'r Loc<Limit<Span>>>,
    pub(in crate::config) bandwidth: Option<&'r Loc<Limit<Speed>>>,
    pub(in crate::config) cors: Option<&'r Loc<Switch<CorsRaw>>>,
    pub(in crate::config) rewrite: Option<&'r Loc<Switch<RewriteRaw>>>,
    pub(in crate::config) headers: Option<&'r Loc<Switch<HeadersRaw>>>,
    pub(in crate::config) compress: Option<&'r Loc<Switch<List<FileCoding>>>>,
    pub(in crate::config) access_log: Option<&'r Loc<bool>>,
}

/// A filter where it may be said: `None` is "not here, what lies below counts", [`Setting::Off`] is `false`.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Setting<T> {
    #[default]
    Unsaid,
    Off,
    On(Arc<T>),
}

impl<T> Setting<T> {
    /// What was said, if it says anything; else what lies below.
    fn over(&self, below: &Setting<T>) -> Setting<T> {
        match self {
            Setting::Unsaid => below.another(),
            said => said.another(),
        }
    }

    /// The same again: what it holds is shared, never copied.
    fn another(&self) -> Setting<T> {
        match self {
            Setting::Unsaid => Setting::Unsaid,
            Setting::Off => Setting::Off,
            Setting::On(shared) => Setting::On(shared.clone()),
        }
    }

    /// Reads what is written: nothing, `false`, or what `read` makes of the value (`None`: wrong, which it recorded).
    fn read<R>(raw: Option<&Loc<Switch<R>>>, read: impl FnOnce(&R) -> Option<T>) -> Setting<T> {
        match raw.map(|raw| &raw.value) {
            None => Setting::Unsaid,
            Some(Switch::Off) => Setting::Off,
            Some(Switch::On(value)) => {
                read(value).map_or(Setting::Unsaid, |spec| Setting::On(Arc::new(spec)))
            }
        }
    }

    /// What counts: none if it is off or was never said.
    pub fn get(&self) -> Option<&Arc<T>> {
        match self {
            Setting::On(spec) => Some(spec),
            Setting::Unsaid | Setting::Off => None,
        }
    }
}

/// The checked filters of a server, a route or a named set.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FiltersSpec {
    pub allow: Setting<AccessSpec>,
    pub deny: Setting<AccessSpec>,
    pub rate_limit: Setting<Vec<RateLimitSpec>>,
    pub basic_auth: Setting<BasicAuthSpec>,
    pub forward_auth: Setting<ForwardAuthSpec>,
    pub concurrency: Setting<ConcurrencySpec>,
    /// Largest request body in bytes; the inner `None`: no limit.
    pub body_limit: Option<Option<u64>>,
    /// For a whole exchange; the inner `None`: no limit.
    pub timeout: Option<Option<Duration>>,
    /// Bytes a second of a response's body; the inner `None`: no limit.
    pub bandwidth: Option<Option<u64>>,
    pub cors: Setting<CorsSpec>,
    pub rewrite: Setting<RewriteSpec>,
    /// Adds up.
    pub headers: HeadersSetting,
    pub compress: Setting<CompressSpec>,
    /// Requests have a line in the access log, if there is one. `None`: they do.
    pub access_log: Option<bool>,
}

impl FiltersSpec {
    /// These where they say something, else those `below`.
    pub fn over(&self, below: &FiltersSpec) -> FiltersSpec {
        FiltersSpec {
            allow: self.allow.over(&below.allow),
            deny: self.deny.over(&below.deny),
            rate_limit: self.rate_limit.over(&below.rate_limit),
            basic_auth: self.basic_auth.over(&below.basic_auth),
            forward_auth: self.forward_auth.over(&below.forward_auth),
            concurrency: self.concurrency.over(&below.concurrency),
            body_limit: self.body_limit.or(below.body_limit),
            timeout: self.timeout.or(below.timeout),
            bandwidth: self.bandwidth.or(below.bandwidth),
            cors: self.cors.over(&below.cors),
            rewrite: self.rewrite.over(&below.rewrite),
            headers: self.headers.over(&below.headers),
            compress: self.compress.over(&below.compress),
            access_log: self.access_log.or(below.access_log),
        }
    }
}

impl FiltersSpec {
    /// The files whose contents are part of the configuration, each with the JSON Pointer of its path.
    pub fn files(&self) -> impl Iterator<Item = (&PathBuf, &str)> {
        let htpasswd = self
            .basic_auth
            .get()
            .and_then(|auth| auth.htpasswd.as_ref());
        htpasswd
            .into_iter()
            .map(|(path, pointer)| (path, pointer.as_str()))
    }

    /// Names of the upstreams that are asked.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<str>> {
        self.forward_auth
            .get()
            .into_iter()
            .map(|auth| &auth.upstream)
    }
}

/// Where the filters of one table stand, in words that are put together for those filters only that need them.
#[derive(Debug, Clone, Copy)]
pub(in crate::config) struct Standing<'s> {
    /// What limiters are known by over reloads: `filters/NAME`, `http/NAME`, `http/NAME/routes/ROUTE`.
    pub(in crate::config) scope: fmt::Arguments<'s>,
    /// JSON Pointer of the table.
    pub(in crate::config) pointer: fmt::Arguments<'s>,
    /// It is enabled, so that what it names must exist.
    pub(in crate::config) live: bool,
}

impl Written<'_> {
    /// Checks the filters of one table.
    pub(in crate::config) fn spec(
        &self,
        standing: Standing<'_>,
        references: &mut References<'_>,
        check: &mut Checker<'_>,
    ) -> FiltersSpec {
        let Standing {
            scope,
            pointer,
            live,
        } = standing;
        let mut ranges = |raw: Option<&Loc<Switch<List<String>>>>| {
            Setting::read(raw, |list| {
                let at = raw.map(|raw| raw.at).unwrap_or_default();
                let parsed = check.each_of(list, cidr);
                AccessSpec::new(parsed, at, list, check)
            })
        };
        FiltersSpec {
            allow: ranges(self.allow),
            deny: ranges(self.deny),
            rate_limit: Setting::read(self.rate_limit, |list| {
                let at = self.rate_limit.map(|raw| raw.at).unwrap_or_default();
                rate_limit::rate_limits(list, at, scope, check)
            }),
            basic_auth: Setting::read(self.basic_auth, |raw| {
                let at = self.basic_auth.map(|raw| raw.at).unwrap_or_default();
                BasicAuthSpec::new(raw, at, pointer, check)
            }),
            forward_auth: Setting::read(self.forward_auth, |raw| {
                let at = self.forward_auth.map(|raw| raw.at).unwrap_or_default();
                ForwardAuthSpec::new(raw, at, live, references, check)
            }),
            concurrency: Setting::read(self.concurrency, |raw| {
                let at = self.concurrency.map(|raw| raw.at).unwrap_or_default();
                ConcurrencySpec::new(raw, at, scope, check)
            }),
            body_limit: self.body_limit.map(|limit| limit.get().map(|size| size.0)),
            timeout: self.timeout.map(|limit| check.limit(Some(limit))),
            bandwidth: self.bandwidth.map(|limit| limit.get().map(|speed| speed.0)),
            cors: Setting::read(self.cors, |raw| CorsSpec::new(raw, at(self.cors), check)),
            rewrite: Setting::read(self.rewrite, |raw| {
                RewriteSpec::new(raw, at(self.rewrite), check)
            }),
            headers: HeadersSetting::read(self.headers, check),
            compress: Setting::read(self.compress, |list| {
                CompressSpec::new(list, at(self.compress), check)
            }),
            access_log: self.access_log.map(|lines| lines.value),
        }
    }
}

/// Where a key is written.
fn at<T>(raw: Option<&Loc<T>>) -> At {
    raw.map(|raw| raw.at).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_wins_and_off_is_said_too() {
        let some = |text: &str| {
            let net = cidr(text).ok().into_iter().collect();
            Setting::On(Arc::new(AccessSpec { nets: net }))
        };
        let server = FiltersSpec {
            allow: some("10.0.0.0/8"),
            deny: some("10.1.0.0/16"),
            body_limit: Some(Some(10)),
            access_log: Some(false),
            ..FiltersSpec::default()
        };
        let route = FiltersSpec {
            allow: some("192.0.2.0/24"),
            deny: Setting::Off,
            body_limit: Some(None),
            access_log: Some(true),
            ..FiltersSpec::default()
        };
        let merged = route.over(&server);
        assert_eq!(merged, route);
        assert!(merged.deny.get().is_none());
        assert_eq!(FiltersSpec::default().over(&server), server);
    }
}
