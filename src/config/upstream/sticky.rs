//! `sticky`: a client stays with its target.

use std::time::Duration;

use super::super::check::{Checker, shorten};
use super::super::decode::{section, words};
use super::super::scalar::Span;
use super::super::tree::At;

section! {
    /// A cookie that keeps a client with its target, or with its member of a split. Its value shows no address and is the same in
    /// every process and after every restart; it is no secret.
    pub struct StickyRaw {
        /// Name of the cookie.
        cookie: String,
        /// How long the client keeps it; left out: until its session ends.
        max_age: Span,
        /// To which sites' requests the client adds it.
        same_site: SameSite = "lax",
    }
    short = cookie;
    later = [];
}

/// `SameSite` of a cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameSite {
    Lax,
    Strict,
    /// Browsers take it over https only.
    None,
}

words!(SameSite {
    "lax" => SameSite::Lax,
    "strict" => SameSite::Strict,
    "none" => SameSite::None,
});

/// Checked `sticky`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StickySpec {
    /// A token (RFC 6265 section 4.1.1).
    pub cookie: String,
    pub max_age: Option<Duration>,
    pub same_site: SameSite,
}

impl StickyRaw {
    /// `None`: wrong, which has been recorded.
    pub(super) fn spec(&self, at: At, check: &mut Checker<'_>) -> Option<StickySpec> {
        let Some(cookie) = &self.cookie else {
            if !self.spoiled.contains(&"cookie") {
                check
                    .findings
                    .error(at, "`sticky` needs the name of a `cookie`");
            }
            return None;
        };
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if cookie.is_empty() || !cookie.bytes().all(token) {
            let message = format!("`{}` is not the name of a cookie", shorten(cookie));
            check.findings.error(cookie.at, message);
            return None;
        }
        Some(StickySpec {
            cookie: cookie.value.clone(),
            max_age: self.max_age.as_ref().map(|age| check.duration(Some(age))),
            same_site: self.same_site.as_ref().map_or(SameSite::Lax, |s| s.value),
        })
    }
}
