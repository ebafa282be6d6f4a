//! The one place where a failure becomes a response and a log line. The client learns the status and the registered
//! name of the failure (RFC 9209); addresses and reasons go to the log only.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::body::{Content, ResponseBody};
use crate::upstream::error::{Error, Kind, Side};

static PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// Marks a response as an error of ours: `error_pages` are for these.
#[derive(Debug, Clone, Copy)]
pub struct Ours;

/// The response to a request that failed.
///
/// A client's own mistake is normal traffic and logged at debug; an origin's or our own failure is a warning.
pub fn respond(error: &Error) -> Response<ResponseBody> {
    let status = error.status();
    match error.side {
        Side::Client => tracing::debug!(status = status.as_u16(), %error, "request refused"),
        Side::Upstream | Side::Us => {
            tracing::warn!(status = status.as_u16(), %error, "request failed")
        }
    }
    answer(error)
}

/// The same without a word in the log: nobody here can do anything about it.
pub fn answer(error: &Error) -> Response<ResponseBody> {
    let mut response = plain(error.status());
    if error.kind == Kind::ConnectionLimitReached {
        // Whatever it is that was full changes with every request that ends.
        let soon = HeaderValue::from_static("1");
        response.headers_mut().insert(RETRY_AFTER, soon);
    }
    if let Ok(value) = HeaderValue::try_from(format!("evergate; error={}", error.kind.name())) {
        response.headers_mut().insert(&PROXY_STATUS, value);
    }
    response.extensions_mut().insert(error.kind);
    response
}

/// A response of a status and its reason phrase: what no route took, or a caught panic.
pub fn plain(status: StatusCode) -> Response<ResponseBody> {
    say(status, status.canonical_reason().unwrap_or("Error"))
}

/// A response of a status and a few words.
pub fn say(status: StatusCode, words: &str) -> Response<ResponseBody> {
    let text = Bytes::from(format!("{} {words}\n", status.as_u16()));
    let mut response = Response::new(ResponseBody::new(Content::Full(text)));
    *response.status_mut() = status;
    response.extensions_mut().insert(Ours);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    // Some of these statuses are cacheable by default (404, 405, 414, 501).
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::upstream::error::Kind;

    #[test]
    fn the_client_learns_the_name_and_nothing_else() {
        let response = respond(&Error::upstream(
            Kind::ConnectionRefused,
            "10.1.2.3:80: refused",
        ));
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        assert_eq!(
            response.headers()["proxy-status"],
            "evergate; error=connection_refused"
        );
        let Content::Full(text) = response.body().content() else {
            panic!("no text")
        };
        assert_eq!(text, "502 Bad Gateway\n");
    }

    #[test]
    fn a_status_that_fits_better_is_used() {
        let response = respond(&Error::client(
            StatusCode::PAYLOAD_TOO_LARGE,
            "more than 10 bytes",
        ));
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(
            response.headers()["proxy-status"],
            "evergate; error=http_request_error"
        );
    }
}
