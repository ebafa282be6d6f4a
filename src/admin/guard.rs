//! What stands before every call. A loopback API is reachable from every web page that a browser on the same machine
//! shows, so loopback alone protects nothing: `Host` must be one of ours (DNS rebinding), `Origin` and
//! `Sec-Fetch-Site` must not be another page's (cross-site requests, on every method), and no content type of an HTML
//! form gets through. Then the token or the certificate, and bounds on size and time of bodies. Waits and streamed answers are not
//! timed: only what the client still owes us is.

use std::fmt;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use futures_util::FutureExt;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tower_http::csrf::{CsrfLayer, ProtectionError};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::{RequestBodyDeadlineLayer, RequestBodyTimeoutLayer};

use super::App;
use super::control::Control;
use super::media;
use super::origin::{foreign_host, foreign_origin, host, known_host, own_origin};
use super::problem::{Problem, Refusal, Refused};
use super::secure::{Secured, asks_for_certificates};
use crate::config::MAX_BYTES;
use crate::config::admin::AdminSpec;

/// Longest silence within a body.
const BODY_SILENCE: Duration = Duration::from_secs(10);
/// Longest time for a whole body.
const BODY_TIME: Duration = Duration::from_secs(60);

/// Who is at the other end of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    /// With the user id, where the platform tells.
    Unix(Option<u32>),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Unix(Some(uid)) => write!(f, "unix (uid {uid})"),
            Peer::Unix(None) => f.write_str("unix"),
        }
    }
}

/// Puts the guards around the routes; the last layer is the outermost.
pub(crate) fn protect<C: Control>(routes: Router, app: App<C>) -> Router {
    let csrf = CsrfLayer::new()
        .with_rejection_response(|_: ProtectionError| foreign_origin().into_response());
    routes
        .layer(RequestBodyLimitLayer::new(MAX_BYTES))
        .layer(RequestBodyTimeoutLayer::new(BODY_SILENCE))
        .layer(RequestBodyDeadlineLayer::new(BODY_TIME))
        // A second lock for the methods that change something. Ours before it is stricter and covers every method.
        .layer(csrf)
        .layer(middleware::from_fn_with_state(app.clone(), check::<C>))
        .layer(middleware::from_fn(dress))
        .layer(middleware::from_fn_with_state(app, contain::<C>))
}

/// For the address that asks for no token: nothing there changes anything, and it tells no secret. Probes name it as
/// they like, so `Host` is not looked at.
pub(crate) fn contained<C: Control>(routes: Router, app: App<C>) -> Router {
    routes
        .layer(RequestBodyLimitLayer::new(0))
        .layer(middleware::from_fn(dress))
        .layer(middleware::from_fn_with_state(app, contain::<C>))
}

/// A panic costs its request an answer of 500, not the connection.
async fn contain<C: Control>(
    State(app): State<App<C>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            app.0.context.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!("a panic in the admin API; the request got a 500");
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "a bug in this server; see its log",
            )
            .into_response()
        }
    }
}

/// Makes a problem of each refusal that came without one (no such path, wrong method, a layer's), and tells browsers
/// to keep their hands off.
async fn dress(request: Request, next: Next) -> Response<Body> {
    let asked = Asked::of(&request);
    let mut response = next.run(request).await;
    let status = response.status();
    let bare = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_none_or(|kind| kind != "application/problem+json");
    if (status.is_client_error() || status.is_server_error()) && bare {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = Problem::bare(status, asked.detail(status)).into_response();
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    asked.audit(&response);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// What a request was for, kept for the wording of a refusal and its audit line.
struct Asked {
    method: Method,
    path: String,
    /// The API's own URL without path.
    own: String,
    from: Option<Peer>,
}

impl Asked {
    fn of(request: &Request) -> Asked {
        let host = request
            .headers()
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let scheme = match request.extensions().get::<Secured>() {
            Some(_) => "https",
            None => "http",
        };
        Asked {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            own: format!("{scheme}://{}", host.unwrap_or("127.0.0.1:8837")),
            from: request.extensions().get::<Peer>().cloned(),
        }
    }

    /// A line for a call that would have changed something and did not come as far as the supervisor.
    fn audit(&self, response: &Response<Body>) {
        let refused = response.extensions().get::<Refused>();
        if self.method.is_safe() || refused.is_none_or(|refused| refused.swap.is_some()) {
            return;
        }
        let from = self.from.as_ref().map_or_else(String::new, Peer::to_string);
        let problem = refused.map_or("", |refused| refused.slug.as_str());
        let (method, what, status) = (&self.method, self.path.as_str(), response.status().as_u16());
        tracing::info!(target: "evergate::audit", from, %method, what, status, problem, "admin call refused");
    }

    fn detail(&self, status: StatusCode) -> String {
        let Asked {
            method, path, own, ..
        } = self;
        match status {
            StatusCode::METHOD_NOT_ALLOWED
                if matches!(
                    path.as_str(),
                    "/reload" | "/adapt" | "/stop" | "/certificates/refresh"
                ) =>
            {
                let document = match path.as_str() {
                    "/stop" | "/certificates/refresh" => "",
                    _ => " -H 'Content-Type: application/toml' --data-binary @evergate.toml",
                };
                format!(
                    "{path} changes something, so it takes POST: curl -X POST{document} {own}{path}"
                )
            }
            StatusCode::METHOD_NOT_ALLOWED => format!("{path} does not take {method}"),
            StatusCode::NOT_FOUND => {
                format!("there is no {path}; the calls are listed at {own}/openapi.yaml")
            }
            StatusCode::PAYLOAD_TOO_LARGE => "a document is at most 16 MiB".to_owned(),
            _ => status.canonical_reason().unwrap_or("refused").to_owned(),
        }
    }
}

/// All checks on the head, in this order.
async fn check<C: Control>(
    State(app): State<App<C>>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    // Read anew at each request: a swap that changes the token or the names counts at once, also on open connections.
    let binding = app.0.binding.borrow().clone();
    let verdict = match &binding {
        Some(binding) => allowed(&binding.spec, &request),
        None => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "stopping",
            "the process is stopping",
        )),
    };
    match verdict {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        // What the client still sends is read and thrown away behind the answer (see `connection`).
        Err(problem) => problem.into_response(),
    }
}

fn allowed(spec: &AdminSpec, request: &Request) -> Result<Option<Caller>, Refusal> {
    let headers = request.headers();
    let host = host(request)?;
    if let Some(target) = request.uri().authority()
        && !known_host(spec, target.host())
    {
        return Err(foreign_host(target.host()));
    }
    if !known_host(spec, host.host()) {
        return Err(foreign_host(host.host()));
    }
    let secured = request.extensions().get::<Secured>();
    own_origin(headers, &host, secured.is_some())?;
    let caller = match request.uri().path() {
        "/livez" => None,
        _ => caller(spec, request, secured)?,
    };
    if *request.method() == Method::POST {
        media::body_format(headers)?;
    }
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BYTES as u64) {
        return Err(Problem::bare(
            StatusCode::PAYLOAD_TOO_LARGE,
            "a document is at most 16 MiB",
        ));
    }
    Ok(caller)
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The subject of a certificate, or the name of a token in `tokens` or `read_tokens`, `token` for the one without a name.
    pub(crate) name: String,
    /// It is not one of `read_tokens`.
    pub(crate) may_change: bool,
}

/// Whose certificate the connection has shown; where none is asked for, whose token the request carries.
fn caller(
    spec: &AdminSpec,
    request: &Request,
    secured: Option<&Secured>,
) -> Result<Option<Caller>, Refusal> {
    if !asks_for_certificates(spec) {
        return token(spec, request);
    }
    match secured.and_then(|secured| secured.proves(spec)) {
        Some(subject) => Ok(Some(Caller {
            name: subject.to_owned(),
            may_change: true,
        })),
        // It was opened under an earlier configuration.
        None => Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "this connection has not shown the certificate that is asked for by now: open another",
        )),
    }
}

/// The bearer token, if any is set. Both sides are hashed first and all of them are looked at, so neither length nor
/// content shows in the time.
fn token(spec: &AdminSpec, request: &Request) -> Result<Option<Caller>, Refusal> {
    let known = || {
        let full = spec.token.iter().map(|token| ("token", token, true));
        let named = spec
            .tokens
            .iter()
            .map(|(name, token)| (name.as_str(), token, true));
        let reading = spec.read_tokens.iter();
        let reading = reading.map(|(name, token)| (name.as_str(), token, false));
        full.chain(named).chain(reading)
    };
    if known().next().is_none() {
        return Ok(None);
    }
    let mut values = request.headers().get_all(header::AUTHORIZATION).iter();
    let given = match (values.next(), values.next()) {
        (Some(value), None) => bearer(value.as_bytes()).map(Sha256::digest),
        _ => None,
    };
    let mut found = None;
    for (name, token, may_change) in known() {
        let expected = Sha256::digest(token.expose().as_bytes());
        let same = given.is_some_and(|given| bool::from(given.ct_eq(&expected)));
        if same && found.is_none() {
            found = Some((name, may_change));
        }
    }
    let Some((name, may_change)) = found else {
        let detail = "send `Authorization: Bearer TOKEN` with a token of [admin]";
        return Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            detail,
        ));
    };
    if !may_change && !request.method().is_safe() && request.uri().path() != "/adapt" {
        let detail =
            format!("the token of `{name}` is in admin.read_tokens: it may GET and POST /adapt");
        return Err(Problem::new(StatusCode::FORBIDDEN, "read-only", detail));
    }
    Ok(Some(Caller {
        name: name.to_owned(),
        may_change,
    }))
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    let token = rest.strip_prefix(b" ")?.trim_ascii();
    scheme.eq_ignore_ascii_case(b"bearer").then_some(token)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::scalar::{ListenAddr, Secret};
    use proptest::prelude::*;

    fn spec() -> AdminSpec {
        let named = |name: &str, token: &str| [(name.to_owned(), Secret::new(token.into()))].into();
        AdminSpec {
            listen: ListenAddr::Tcp("127.0.0.1:8837".parse().unwrap()),
            token: Some(Secret::new("s3cret".into())),
            tokens: named("ci", "of ci"),
            read_tokens: named("graphs", "of graphs"),
            monitor: None,
            tls: None,
            allowed_hosts: Vec::new(),
        }
    }

    fn ask(spec: &AdminSpec, line: (&str, &str), given: &str) -> Result<Option<String>, u16> {
        let request = Request::builder().method(line.0).uri(line.1);
        let request = request.header(header::AUTHORIZATION, format!("Bearer {given}"));
        let caller = token(spec, &request.body(Body::empty()).unwrap());
        let caller = caller.map_err(|problem| problem.into_response().status().as_u16())?;
        Ok(caller.map(|caller| caller.name))
    }

    #[test]
    fn a_token_has_a_name_and_some_may_only_read() {
        let spec = spec();
        let who = |name: &str| Ok(Some(name.to_owned()));
        assert_eq!(ask(&spec, ("POST", "/reload"), "s3cret"), who("token"));
        assert_eq!(ask(&spec, ("POST", "/reload"), "of ci"), who("ci"));
        assert_eq!(ask(&spec, ("GET", "/now"), "of graphs"), who("graphs"));
        assert_eq!(ask(&spec, ("POST", "/adapt"), "of graphs"), who("graphs"));
        assert_eq!(ask(&spec, ("POST", "/reload"), "of graphs"), Err(403));
        assert_eq!(ask(&spec, ("POST", "/stop"), "of graphs"), Err(403));
        let read_only = AdminSpec {
            token: None,
            tokens: Default::default(),
            ..spec.clone()
        };
        assert_eq!(ask(&read_only, ("GET", "/now"), "s3cret"), Err(401));
        let open = AdminSpec {
            read_tokens: Default::default(),
            ..read_only
        };
        assert_eq!(ask(&open, ("POST", "/reload"), "anything"), Ok(None));
    }

    proptest! {
        #[test]
        fn only_the_very_token_passes(given in "[ -~]{0,40}") {
            let known = ["s3cret", "of ci", "of graphs"].contains(&given.trim());
            prop_assert_eq!(ask(&spec(), ("GET", "/now"), &given).is_ok(), known);
        }
    }
}
