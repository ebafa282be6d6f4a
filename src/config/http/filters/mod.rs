//! Filters: what a server or a route does to its requests and responses besides the action. They may stand on the server,
//! on the route, or in `[filters.NAME]`, from where `use` takes them. The nearest wins: route, its `use`, server, its
//! `use`, and of several names in one `use` the last; only what `headers` say adds up.

mod access;
mod compress;
mod cors;
mod headers;
mod rewrite;
mod set;

use std::sync::Arc;

use super::super::check::Checker;
use super::super::decode::{Limit, List, Loc, Switch};
use super::super::scalar::{Size, cidr};
use super::super::tree::At;
use super::FileCoding;

pub use access::AccessSpec;
pub use compress::CompressSpec;
pub use cors::{CorsRaw, CorsSpec, OriginPattern};
pub use headers::{EditSpec, HeadersRaw, HeadersSetting, HeadersSpec};
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
                /// Let pages of other origins read responses. `false`: none.
                cors: $crate::config::decode::Switch<$crate::config::http::CorsRaw>,
                /// Largest request body; overrides `limits.body` of the server.
                body_limit: $crate::config::decode::Limit<$crate::config::scalar::Size>,
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
                    cors: self.cors.as_ref(),
                    body_limit: self.body_limit.as_ref(),
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
pub(super) const LATER: &[&str] = &[
    "rate_limit",
    "basic_auth",
    "forward_auth",
    "concurrency",
    "bandwidth",
    "timeout",
];

/// The filters of one table as they are written.
#[derive(Debug)]
pub(in crate::config) struct Written<'r> {
    pub(in crate::config) allow: Option<&'r Loc<Switch<List<String>>>>,
    pub(in crate::config) deny: Option<&'r Loc<Switch<List<String>>>>,
    pub(in crate::config) cors: Option<&'r Loc<Switch<CorsRaw>>>,
    pub(in crate::config) body_limit: Option<&'r Loc<Limit<Size>>>,
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
    pub cors: Setting<CorsSpec>,
    /// Largest request body in bytes; the inner `None`: no limit.
    pub body_limit: Option<Option<u64>>,
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
            cors: self.cors.over(&below.cors),
            body_limit: self.body_limit.or(below.body_limit),
            rewrite: self.rewrite.over(&below.rewrite),
            headers: self.headers.over(&below.headers),
            compress: self.compress.over(&below.compress),
            access_log: self.access_log.or(below.access_log),
        }
    }
}

impl Written<'_> {
    /// Checks the filters of one table. `scope` is what limiters in it are known by over reloads: `filters/NAME`,
    /// `http/NAME`, `http/NAME/routes/ROUTE`.
    pub(in crate::config) fn spec(&self, _scope: &str, check: &mut Checker<'_>) -> FiltersSpec {
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
            cors: Setting::read(self.cors, |raw| CorsSpec::new(raw, at(self.cors), check)),
            body_limit: self.body_limit.map(|limit| limit.get().map(|size| size.0)),
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
