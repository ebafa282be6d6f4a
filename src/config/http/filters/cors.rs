//! `cors`: which pages of other origins may read what is served here (Fetch, "CORS protocol").

use std::time::Duration;

use ::http::{HeaderName, Method};

use super::super::super::check::{Checker, shorten};
use super::super::super::decode::{List, Loc, section};
use super::super::super::scalar::{Span, Wrong};
use super::super::super::tree::At;

section! {
    /// Let pages of other origins read responses. Preflight requests are answered from here, before anything that asks who
    /// the user is; what an upstream says about it is replaced.
    pub struct CorsRaw {
        /// Origins that may: `https://app.example.com`, `https://*.example.com` (any depth, not the name itself), or `"*"`.
        origins: List<String>,
        /// Methods that may be used; `"*"`: every one.
        methods: List<String> = ["GET", "HEAD", "POST"],
        /// Fields that requests may have; `"*"`: every one.
        headers: List<String> = ["*"],
        /// Fields of responses that a page may read besides the usual ones.
        expose: List<String> = [],
        /// Whether requests may carry cookies and other credentials. Not with `"*"` in `origins`.
        credentials: bool = false,
        /// How long a browser may keep the answer to a preflight request; left out: as the browser has it (5 s).
        max_age: Span,
    }
    short = origins;
    later = [];
}

/// Checked `cors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorsSpec {
    /// Empty: every origin.
    pub origins: Vec<OriginPattern>,
    /// `None`: every one.
    pub methods: Option<Vec<Method>>,
    pub headers: Option<Vec<HeaderName>>,
    pub expose: Vec<HeaderName>,
    pub credentials: bool,
    pub max_age: Option<Duration>,
}

/// An origin as browsers write it: lower case, without the scheme's own port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginPattern {
    Exact(String),
    /// `https://*.example.com:8443` in its two parts: `https://`, `.example.com:8443`.
    Below(String, String),
}

impl CorsSpec {
    pub(super) fn new(raw: &CorsRaw, at: At, check: &mut Checker<'_>) -> Option<CorsSpec> {
        let Some(origins) = raw.origins.as_ref().filter(|list| !list.is_empty()) else {
            let said = raw.origins.as_ref().is_some_and(|list| list.spoiled);
            if !said && !raw.spoiled.contains(&"origins") {
                let finding = check.findings.error(at, "`cors` needs `origins`");
                finding.help("such as `[\"https://app.example.com\"]`, or `\"*\"`");
            }
            return None;
        };
        let credentials = raw.credentials.as_ref().is_some_and(|c| c.value);
        let any = origins.iter().find(|origin| origin.value == "*");
        if let Some(any) = any
            && credentials
        {
            let message = "every origin with `credentials`: any page could act as its visitor";
            let finding = check.findings.error(any.at, message);
            finding.help("name the origins");
        }
        if let Some(any) = any
            && origins.len() > 1
        {
            let message = "`*` is every origin: the others say nothing";
            check.findings.error(any.at, message);
        }
        let patterns = match any {
            Some(_) => Vec::new(),
            None => {
                let parsed = check.each_of(origins, origin);
                parsed.into_iter().map(|(origin, _)| origin).collect()
            }
        };
        if any.is_none() && patterns.is_empty() {
            return None;
        }
        let methods = all_or(raw.methods.as_ref(), check, |text| {
            let method = Method::from_bytes(text.as_bytes());
            method.map_err(|_| Wrong::new(format!("`{}` is not a method", shorten(text))))
        });
        let headers = all_or(raw.headers.as_ref(), check, field);
        let expose = check.each(raw.expose.as_ref(), field);
        Some(CorsSpec {
            origins: patterns,
            methods,
            headers,
            expose: expose.into_iter().map(|(name, _)| name).collect(),
            credentials,
            max_age: raw.max_age.as_ref().map(|age| age.value.0),
        })
    }
}

fn field(text: &str) -> Result<HeaderName, Wrong> {
    HeaderName::try_from(text)
        .map_err(|_| Wrong::new(format!("`{}` is not the name of a header", shorten(text))))
}

/// `None`: `*` is in it.
fn all_or<T>(
    list: Option<&Loc<List<String>>>,
    check: &mut Checker<'_>,
    parse: impl Fn(&str) -> Result<T, Wrong>,
) -> Option<Vec<T>> {
    if list.is_some_and(|list| list.iter().any(|item| item.value == "*")) {
        return None;
    }
    let parsed = check.each(list, parse);
    Some(parsed.into_iter().map(|(item, _)| item).collect())
}

fn origin(text: &str) -> Result<OriginPattern, Wrong> {
    let wrong = |why: &str| {
        Wrong::new(format!("`{}` is not an origin: {why}", shorten(text)))
            .help("such as `https://app.example.com` or `https://*.example.com`")
    };
    if text == "null" {
        return Err(wrong("every page in a sandbox is `null`"));
    }
    let lower = text.to_ascii_lowercase();
    let Some((scheme, authority)) = lower.split_once("://") else {
        return Err(wrong("it has no scheme"));
    };
    let scheme_fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    if scheme.is_empty() || !scheme.bytes().all(scheme_fits) {
        return Err(wrong("its scheme is none"));
    }
    if authority.contains(['/', '?', '#', '@']) {
        return Err(wrong("it is scheme, host and port only"));
    }
    let own_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let authority = match authority.strip_suffix(own_port) {
        Some(host) if !own_port.is_empty() => host,
        _ => authority,
    };
    let (below, host) = match authority.strip_prefix('*') {
        Some(host) if host.starts_with('.') && host.len() > 1 => (true, host),
        _ => (false, authority),
    };
    let named = host.trim_start_matches('.');
    if named.contains('*') || ::http::uri::Authority::try_from(named).is_err() {
        return Err(wrong("its host is none"));
    }
    Ok(if below {
        OriginPattern::Below(format!("{scheme}://"), host.to_owned())
    } else {
        OriginPattern::Exact(format!("{scheme}://{authority}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_as_browsers_write_them() {
        let exact = |text: &str| Ok(OriginPattern::Exact(text.into()));
        let of = |text: &str| origin(text).map_err(|_| ());
        assert_eq!(of("https://A.Example.com"), exact("https://a.example.com"));
        assert_eq!(of("https://a.test:443"), exact("https://a.test"));
        assert_eq!(of("http://a.test:8080"), exact("http://a.test:8080"));
        assert_eq!(of("http://[::1]:3000"), exact("http://[::1]:3000"));
        assert_eq!(of("app://x"), exact("app://x"));
        let below = OriginPattern::Below("https://".into(), ".a.test:8443".into());
        assert_eq!(of("https://*.a.test:8443"), Ok(below));
        for wrong in [
            "a.test",
            "https://",
            "https://a.test/",
            "https://a@b",
            "null",
            "https://*",
            "https://*a.test",
            "https://a.*.test",
            "://a",
            "",
        ] {
            assert_eq!(of(wrong), Err(()), "{wrong}");
        }
    }
}
