//! Answers of our own to gRPC clients. A call that fails here must fail in gRPC's words: a client that gets a bare `502`
//! makes "unknown" or "unimplemented" of it, and a retry policy does not fire. So what we would say to a browser is said
//! as a response without messages, whose status is in its fields (gRPC over HTTP/2, "Trailers-Only").
//!
//! An origin's own answers pass as they are.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::body::ResponseBody;
use crate::upstream::error::Kind;

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The codes that we have a use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum Code {
    Unknown = 2,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// True for a call: `application/grpc`, also with `+proto` and the like, but not gRPC-Web, which has other words.
pub fn is_call(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// An error of ours in gRPC's words; anything else stays what it is.
pub fn in_words(mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    // Not by its content: an origin's may have been compressed.
    if !is_error || response.body().target().is_some() {
        return response;
    }
    let kind = response.extensions().get::<Kind>().copied();
    let code = code(status, kind);
    let message = kind.map_or_else(|| status.canonical_reason().unwrap_or("Error"), Kind::name);
    *response.status_mut() = StatusCode::OK;
    response.body_mut().empty();
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(&GRPC_STATUS, HeaderValue::from(code as u16));
    // Reason phrases and our own names need no escapes.
    headers.insert(&GRPC_MESSAGE, HeaderValue::from_static(message));
    response
}

/// As gRPC's own table for HTTP statuses has it, but where we know better: an answer that took too long did get there,
/// and must not be asked for again as one that never left us.
fn code(status: StatusCode, kind: Option<Kind>) -> Code {
    match kind {
        Some(Kind::HttpResponseTimeout | Kind::ConnectionReadTimeout) => {
            return Code::DeadlineExceeded;
        }
        Some(Kind::ProxyInternalError | Kind::ProxyConfigurationError) => return Code::Internal,
        _ => {}
    }
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        408 => Code::DeadlineExceeded,
        413 => Code::ResourceExhausted,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::http::body::Content;
    use crate::http::error;
    use crate::upstream::error::Error;

    #[test]
    fn only_calls_are_spoken_to_so() {
        let is = |text: &'static str| {
            let value = HeaderValue::from_static(text);
            is_call(&[(CONTENT_TYPE, value)].into_iter().collect())
        };
        assert!(is("application/grpc") && is("application/grpc+proto") && is("application/grpc;x"));
        assert!(!is("application/grpc-web") && !is("application/json") && !is("text/html"));
        assert!(!is_call(&HeaderMap::new()));
    }

    #[test]
    fn failures_have_the_codes_that_retry_policies_look_for() {
        let said = |error: Error| {
            let response = in_words(error::respond(&error));
            assert_eq!(response.status(), 200);
            assert!(matches!(response.body().content(), Content::Empty));
            let field = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(field("content-type"), "application/grpc");
            (field("grpc-status"), field("grpc-message"))
        };
        let is = |code: &str, message: &str| (code.to_owned(), message.to_owned());
        for (kind, code) in [
            (Kind::ConnectionRefused, "14"),
            (Kind::ConnectionTimeout, "14"),
            (Kind::TlsCertificateError, "14"),
            (Kind::DestinationUnavailable, "14"),
            (Kind::HttpResponseTimeout, "4"),
            (Kind::ProxyInternalError, "13"),
        ] {
            assert_eq!(said(Error::upstream(kind, "x")), is(code, kind.name()));
        }
        let large = Error::client(StatusCode::PAYLOAD_TOO_LARGE, "x");
        assert_eq!(said(large), is("8", "http_request_error"));
        let unrouted = in_words(error::plain(StatusCode::NOT_FOUND));
        assert_eq!(unrouted.headers()["grpc-status"], "12");
        let mut fine = error::plain(StatusCode::FOUND);
        fine = in_words(fine);
        assert_eq!(fine.status(), 302);
    }
}
