//! `forward_auth`.

use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderName;
use ::http::uri::PathAndQuery;

use super::super::super::check::{Checker, shorten};
use super::super::super::decode::{List, Loc, section};
use super::super::super::scalar::{Span, Wrong};
use super::super::super::tree::At;
use super::super::super::upstream::References;

section! {
    /// Ask another server whether a request may pass: a GET with the request's fields and `X-Forwarded-Method`, `-Uri`, `-Host`,
    /// `-Proto` and `-For`. On 2xx it passes; any other answer is the client's. No answer: 502, 503 or 504.
    pub struct ForwardAuthRaw {
        /// Name of an upstream, `host:port`, or `http://host:port/path?query`.
        url: String,
        /// Path and query to ask for, where `url` has none.
        path: String,
        /// Fields of a 2xx answer that the request gets; what the client sent under these names is taken away first.
        copy_headers: List<String> = [],
        /// How long the answer may take.
        timeout: Span = "5s",
    }
    short = url;
    later = [];
}

/// Checked `forward_auth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardAuthSpec {
    /// Name of an upstream that the document holds.
    pub upstream: Arc<str>,
    pub target: PathAndQuery,
    pub copy_headers: Vec<HeaderName>,
    pub timeout: Duration,
}

/// Fields that describe the message itself or are set by us.
const OURS: [&str; 8] = [
    "host",
    "connection",
    "content-length",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

impl ForwardAuthSpec {
    /// `live`: what it stands on is enabled, so the upstream that a URL stands for must exist.
    pub(super) fn new(
        raw: &ForwardAuthRaw,
        at: At,
        live: bool,
        references: &mut References<'_>,
        check: &mut Checker<'_>,
    ) -> Option<ForwardAuthSpec> {
        let timeout = check.duration(raw.timeout.as_ref());
        let names = check.each(raw.copy_headers.as_ref(), field_name);
        let Some(url) = &raw.url else {
            if !raw.spoiled.contains(&"url") {
                let wrong = check.findings.error(at, "`forward_auth` needs a `url`");
                wrong.help("such as `url = \"http://127.0.0.1:9091/verify\"`");
            }
            return None;
        };
        // The rest of what takes a URL has no query.
        let (address, query) = match url.split_once('?') {
            Some((address, query)) => (address, Some(query)),
            None => (url.as_str(), None),
        };
        let address = Loc {
            value: address.to_owned(),
            at: url.at,
        };
        let reference = references.resolve(&address, live, check)?;
        if let (Some(path), false) = (&raw.path, reference.base.is_empty() && query.is_none()) {
            check.findings.error(path.at, "`url` has a path already");
        }
        let (target, target_at) = match &raw.path {
            Some(path) => (path.value.clone(), path.at),
            None => {
                let path = if reference.base.is_empty() {
                    "/"
                } else {
                    &reference.base
                };
                let query = query.map_or_else(String::new, |query| format!("?{query}"));
                (format!("{path}{query}"), url.at)
            }
        };
        let parsed = PathAndQuery::try_from(target.as_str()).ok();
        let parsed = parsed.filter(|parsed| parsed.as_str().starts_with('/'));
        let wrong = || {
            let message = format!("`{}` is not a path to ask for", shorten(&target));
            Wrong::new(message).help("it begins with `/` and is percent-encoded")
        };
        Some(ForwardAuthSpec {
            upstream: reference.upstream,
            target: check.take(target_at, parsed.ok_or_else(wrong))?,
            copy_headers: names.into_iter().map(|(name, _)| name).collect(),
            timeout,
        })
    }
}

fn field_name(text: &str) -> Result<HeaderName, Wrong> {
    let wrong = |what: &str| Wrong::new(format!("`{}` {what}", shorten(text)));
    let name = HeaderName::try_from(text).map_err(|_| wrong("is not the name of a header"))?;
    if OURS.contains(&name.as_str()) || name.as_str().starts_with("x-forwarded-") {
        return Err(wrong("is set here, not copied"));
    }
    if name.as_str().contains('_') {
        return Err(wrong("is not sent on").help("many servers can't tell `_` from `-`"));
    }
    Ok(name)
}
