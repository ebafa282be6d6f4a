//! `cors`: which pages of other origins may read what is served here (Fetch, "HTTP extensions"). Only browsers ask and
//! obey; a request is never refused for its origin.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::{Passed, Refusal};
use crate::config::http::{CorsSpec, FiltersSpec, OriginPattern};
use crate::http::body::{Content, ResponseBody};
use crate::http::headers::add_vary;

/// The compiled `cors` of a server or a route.
#[derive(Debug)]
pub(super) struct Cors {
    origins: Origins,
    /// `None`: what is asked for.
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: Option<HeaderValue>,
}

#[derive(Debug)]
enum Origins {
    /// To all the same is said.
    Every,
    These(Vec<OriginPattern>),
}

/// What the way back says of a request's origin.
#[derive(Debug, Default)]
pub(super) enum Verdict {
    /// Nothing: it has none, or one that may not.
    #[default]
    Silent,
    Allowed(HeaderValue),
    /// As `Allowed`, and the answer is ours.
    Preflight(Option<HeaderValue>),
}

impl Cors {
    pub(super) fn build(spec: &FiltersSpec) -> Option<Cors> {
        let spec: &CorsSpec = spec.cors.get()?;
        let origins = if spec.origins.is_empty() {
            Origins::Every
        } else {
            Origins::These(spec.origins.clone())
        };
        let methods = spec.methods.as_deref();
        let headers = spec.headers.as_deref();
        Some(Cors {
            origins,
            methods: methods.and_then(|all| list(all.iter().map(Method::as_str))),
            headers: headers.and_then(|all| list(all.iter().map(HeaderName::as_str))),
            expose: list(spec.expose.iter().map(HeaderName::as_str))
                .filter(|value| !value.is_empty()),
            credentials: spec.credentials,
            max_age: spec.max_age.map(|age| HeaderValue::from(age.as_secs())),
        })
    }

    /// Looks at a request before any other filter does: whatever answers it, the way back has to know.
    pub(super) fn ask(&self, parts: &Parts) -> Verdict {
        let origin = parts.headers.get(ORIGIN);
        let allowed = origin.filter(|origin| self.allows(origin)).cloned();
        let preflight = parts.method == Method::OPTIONS
            && origin.is_some()
            && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        match allowed {
            allowed if preflight => Verdict::Preflight(allowed),
            Some(origin) => Verdict::Allowed(origin),
            None => Verdict::Silent,
        }
    }

    /// The answer to a preflight request, less what every answer has.
    ///
    /// # Errors
    /// That answer, as filters give theirs.
    pub(super) fn admit(&self, parts: &Parts, verdict: &Verdict) -> Result<(), Refusal> {
        let Verdict::Preflight(allowed) = verdict else {
            return Ok(());
        };
        let mut response = Response::new(ResponseBody::new(Content::Empty));
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        if allowed.is_some() {
            let asked = |name: HeaderName| parts.headers.get(name).cloned();
            let methods = self.methods.clone();
            let methods = methods.or_else(|| asked(ACCESS_CONTROL_REQUEST_METHOD));
            if let Some(methods) = methods {
                headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
            }
            let fields = self.headers.clone();
            let fields = fields.or_else(|| asked(ACCESS_CONTROL_REQUEST_HEADERS));
            if let Some(fields) = fields.filter(|value| !value.is_empty()) {
                headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, fields);
            }
            if let Some(age) = &self.max_age {
                headers.insert(ACCESS_CONTROL_MAX_AGE, age.clone());
            }
        }
        if self.methods.is_none() {
            add_vary(headers, "access-control-request-method");
        }
        if self.headers.is_none() {
            add_vary(headers, "access-control-request-headers");
        }
        Err(Box::new(response))
    }

    /// Says what an answer has to say; nothing of what it said itself stays.
    pub(super) fn back(&self, passed: &mut Passed, headers: &mut HeaderMap) {
        let verdict = std::mem::take(&mut passed.cors);
        let allowed = match verdict {
            Verdict::Preflight(allowed) => allowed,
            other => {
                strip(headers);
                match other {
                    Verdict::Allowed(origin) => Some(origin),
                    _ => None,
                }
            }
        };
        let every = matches!(self.origins, Origins::Every);
        if !every {
            add_vary(headers, "origin");
        }
        let Some(origin) = allowed else {
            if every {
                let any = HeaderValue::from_static("*");
                headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, any);
            }
            return;
        };
        let origin = if every {
            HeaderValue::from_static("*")
        } else {
            origin
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        if let Some(expose) = &self.expose {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        match &self.origins {
            Origins::Every => true,
            Origins::These(patterns) => patterns.iter().any(|p| holds(p, origin.as_bytes())),
        }
    }
}

fn holds(pattern: &OriginPattern, origin: &[u8]) -> bool {
    match pattern {
        OriginPattern::Exact(exact) => origin == exact.as_bytes(),
        OriginPattern::Below(scheme, domain) => {
            let host = origin.strip_prefix(scheme.as_bytes());
            let labels = host.and_then(|host| host.strip_suffix(domain.as_bytes()));
            labels.is_some_and(|labels| {
                let fits = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
                !labels.is_empty() && labels.iter().all(fits)
            })
        }
    }
}

fn strip(headers: &mut HeaderMap) {
    let ours = |name: &&HeaderName| name.as_str().starts_with("access-control-");
    let names: Vec<HeaderName> = headers.keys().filter(ours).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> Option<HeaderValue> {
    let words: Vec<&str> = words.collect();
    HeaderValue::try_from(words.join(", ")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_hold_whole_labels() {
        let pattern = OriginPattern::Below("https://".into(), ".a.test".into());
        for (origin, allowed) in [
            ("https://x.a.test", true),
            ("https://x.y.a.test", true),
            ("https://a.test", false),
            ("https://.a.test", false),
            ("http://x.a.test", false),
            ("https://xa.test", false),
            ("https://x.a.test.evil.test", false),
            ("https://evil.test/.a.test", false),
            ("https://evil.test:1@x.a.test", false),
            ("https://x.a.test:8443", false),
            ("null", false),
        ] {
            assert_eq!(holds(&pattern, origin.as_bytes()), allowed, "{origin}");
        }
    }
}
