//! Every refusal of the API in one shape: `application/problem+json` (RFC 9457) with a stable `type`. The only place
//! of the admin side that knows titles, and with `change` the only one that chooses statuses.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Diagnostic;
use crate::supervisor::{SubmitError, SwapRecord};

/// The prefix of every `type`; what follows is the slug that scripts branch on.
pub(crate) const TYPE_PREFIX: &str = "urn:evergate:problem:";

/// Why a call was refused (RFC 9457).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `urn:evergate:problem:` and a stable slug, such as `invalid-document`, `if-match` or `busy`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in words; the same for every occurrence.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong this time.
    pub detail: String,
    /// Every error of the document with its place; empty for a problem that is not about a document.
    pub errors: Vec<Diagnostic>,
    /// Warnings about the same document.
    pub warnings: Vec<Diagnostic>,
    /// The swap that was refused; absent when none was begun.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub swap: Option<u64>,
}

/// What handlers and guards return instead of an answer.
pub(crate) type Refusal = Box<Problem>;

impl Problem {
    pub(crate) fn new(status: StatusCode, slug: &str, detail: impl Into<String>) -> Refusal {
        Box::new(Problem {
            kind: format!("{TYPE_PREFIX}{slug}"),
            title: title(slug, status),
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
            warnings: Vec::new(),
            swap: None,
        })
    }

    /// The stable name of the problem.
    pub fn slug(&self) -> &str {
        self.kind.strip_prefix(TYPE_PREFIX).unwrap_or(&self.kind)
    }

    pub(crate) fn bad_query(detail: impl Into<String>) -> Refusal {
        Problem::new(StatusCode::BAD_REQUEST, "bad-query", detail)
    }

    pub(crate) fn bad_header(detail: impl Into<String>) -> Refusal {
        Problem::new(StatusCode::BAD_REQUEST, "bad-header", detail)
    }

    /// What a refused swap means to the one who asked; `None` when it was not refused.
    pub(crate) fn of(record: &SwapRecord) -> Option<Refusal> {
        let status = record
            .status
            .unwrap_or(if record.problem.is_some() { 500 } else { 200 });
        if record.problem.is_none() && status < 400 {
            return None;
        }
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let slug = record.problem.as_deref().unwrap_or("refused");
        let detail = match (&record.detail, record.errors.len()) {
            (Some(detail), _) => detail.clone(),
            (None, 0) => title(slug, status),
            (None, 1) => record.errors[0].message.clone(),
            (None, many) => format!("{many} errors; nothing was changed"),
        };
        let mut problem = Problem::new(status, slug, detail);
        problem.errors = record.errors.clone();
        problem.warnings = record.warnings.clone();
        problem.swap = Some(record.swap);
        Some(problem)
    }

    /// For what a layer or the router refused without saying why.
    pub(crate) fn bare(status: StatusCode, detail: impl Into<String>) -> Refusal {
        let slug = match status {
            StatusCode::NOT_FOUND => "not-found",
            StatusCode::METHOD_NOT_ALLOWED => "method-not-allowed",
            StatusCode::PAYLOAD_TOO_LARGE => "too-large",
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported-type",
            StatusCode::REQUEST_TIMEOUT => "slow-body",
            status if status.is_server_error() => "internal",
            _ => "bad-request",
        };
        Problem::new(status, slug, detail)
    }
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Refusal {
        match error {
            SubmitError::Stopping => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "stopping",
                "the process is stopping and takes no swaps",
            ),
            SubmitError::Busy => Problem::new(
                StatusCode::CONFLICT,
                "busy",
                "too many swaps are waiting already; try again later",
            ),
        }
    }
}

/// Goes with a response that refuses, for the audit line.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) slug: String,
    /// The swap that was refused; its observer writes the line then.
    pub(crate) swap: Option<u64>,
}

impl IntoResponse for Box<Problem> {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(super::media::json(&*self)));
        let (slug, swap) = (self.slug().to_owned(), self.swap);
        response.extensions_mut().insert(Refused { slug, swap });
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"evergate\"");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

fn title(slug: &str, status: StatusCode) -> String {
    let known = match slug {
        "bad-header" => "A header cannot be understood",
        "bad-host" => "The Host header is missing or cannot be understood",
        "bad-query" => "A query parameter is unknown or cannot be understood",
        "body-not-expected" => "This call takes no body",
        "certificates" => "A certificate cannot be used; those before stay",
        "busy" => "Its turn did not come in time",
        "empty-body" => "A content type was given, but no document",
        "foreign-host" => "Host is not in admin.allowed_hosts",
        "foreign-origin" => "Requests of other web pages are refused",
        "idempotency-key" => "The Idempotency-Key was used for another request",
        "if-match" => "Another configuration runs than the one named",
        "invalid-document" => "The document is wrong in itself",
        "malformed-document" => "The document is not well-formed",
        "method-not-allowed" => "This path does not take this method",
        "no-document" => "There is no file to read again",
        "no-such-part" => "The running configuration has no such part",
        "no-such-session" => "No such session is open",
        "no-such-swap" => "No such swap is known",
        "no-such-target" => "No such target is used",
        "not-acceptable" => "This part cannot be shown in that format",
        "not-found" => "There is no such path",
        "not-prepared" => "The document cannot be had here and now",
        "not-ready" => "No generation serves",
        "not-supported-yet" => "Not supported yet",
        "read-only" => "The token may only read",
        "slow-body" => "The body did not arrive in time",
        "stopping" => "The process is stopping",
        "too-large" => "The body is larger than 16 MiB",
        "unauthorized" => "A bearer token is needed",
        "unsupported-type" => "The body needs a JSON, TOML or YAML content type",
        "warnings" => "A warning refuses with strict=true",
        _ => status.canonical_reason().unwrap_or("Refused"),
    };
    known.to_owned()
}
