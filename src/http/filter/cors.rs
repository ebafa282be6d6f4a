//! `cors`: which pages of other origins may read what is served here (Fetch, "HTTP extensions"). Only browsers ask and
//! obey; a request is never refused for its origin.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use super::Refusal;
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

/// What the way back must know of a request.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Its origin, if that may.
    allowed: Option<HeaderValue>,
    preflight: Option<Preflight>,
}

/// What a preflight request asks for.
#[derive(Debug)]
struct Preflight {
    method: HeaderValue,
    headers: Option<HeaderValue>,
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
    pub(super) fn ask(&self, parts: &Parts) -> Asked {
        let Some(origin) = parts.headers.get(ORIGIN) else {
            return Asked::default();
        };
        let asked = |name: HeaderName| parts.headers.get(name).cloned();
        let method = asked(ACCESS_CONTROL_REQUEST_METHOD);
        let method = method.filter(|_| parts.method == Method::OPTIONS);
        Asked {
            allowed: self.allows(origin).then(|| origin.clone()),
            preflight: method.map(|method| Preflight {
                method,
                headers: asked(ACCESS_CONTROL_REQUEST_HEADERS),
            }),
        }
    }

    /// # Errors
    /// The answer to a preflight request. What it has to say is said on the way back, as with every answer.
    pub(super) fn admit(&self, asked: &Asked) -> Result<(), Refusal> {
        if asked.preflight.is_none() {
            return Ok(());
        }
        let mut response = Response::new(ResponseBody::new(Content::Empty));
        *response.status_mut() = StatusCode::NO_CONTENT;
        Err(Box::new(response))
    }

    /// Says what an answer has to say; nothing of what it said itself stays.
    pub(super) fn back(&self, asked: &mut Asked, headers: &mut HeaderMap) {
        strip(headers);
        let Asked { allowed, preflight } = std::mem::take(asked);
        if preflight.is_some() && self.methods.is_none() {
            add_vary(headers, "access-control-request-method");
        }
        if preflight.is_some() && self.headers.is_none() {
            add_vary(headers, "access-control-request-headers");
        }
        let origin = match self.origins {
            Origins::Every => Some(HeaderValue::from_static("*")),
            Origins::These(_) => {
                add_vary(headers, "origin");
                allowed
            }
        };
        let Some(origin) = origin else { return };
        let mut say = |name: HeaderName, value: Option<HeaderValue>| {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        };
        say(ACCESS_CONTROL_ALLOW_ORIGIN, Some(origin));
        let credentials = self.credentials.then(|| HeaderValue::from_static("true"));
        say(ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials);
        let Some(preflight) = preflight else {
            say(ACCESS_CONTROL_EXPOSE_HEADERS, self.expose.clone());
            return;
        };
        let methods = self.methods.clone().unwrap_or(preflight.method);
        say(ACCESS_CONTROL_ALLOW_METHODS, Some(methods));
        let fields = self.headers.clone().or(preflight.headers);
        say(
            ACCESS_CONTROL_ALLOW_HEADERS,
            fields.filter(|value| !value.is_empty()),
        );
        say(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
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
