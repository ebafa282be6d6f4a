//! What a call that changes something brings along: its body within the bounds that the layers set, the document in
//! it, the conditions, and who sent it.

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError};
use tower_http::timeout::TimeoutError;

use super::guard::{Caller, Peer};
use super::media;
use super::problem::{Problem, Refusal};
use crate::supervisor::Source;

/// The whole body, within the bounds that the layers set. It is read before anything else is refused, so that the
/// client gets to read the refusal.
pub(super) async fn read(request: Request) -> Result<(Parts, Bytes), Refusal> {
    let (parts, body) = request.into_parts();
    match body.collect().await {
        Ok(body) => Ok((parts, body.to_bytes())),
        Err(error) => {
            let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
            while let Some(error) = cause {
                if error.is::<LengthLimitError>() {
                    let detail = "a document is at most 16 MiB";
                    return Err(Problem::new(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        "too-large",
                        detail,
                    ));
                }
                if error.is::<TimeoutError>() {
                    let detail = "the rest of the body did not come";
                    return Err(Problem::new(
                        StatusCode::REQUEST_TIMEOUT,
                        "slow-body",
                        detail,
                    ));
                }
                cause = error.source();
            }
            Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "bad-request",
                format!("the body broke off: {error}"),
            ))
        }
    }
}

/// The document that a request brings: its body, or the server's own file when it has neither body nor content type.
pub(super) fn document(headers: &HeaderMap, body: &Bytes) -> Result<Source, Refusal> {
    match (media::body_format(headers)?, body.is_empty()) {
        (None, true) => Ok(Source::File),
        (None, false) => Err(media::unsupported(
            "a document needs a Content-Type: application/json, application/toml or application/yaml",
        )),
        (Some(_), true) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "empty-body",
            "a Content-Type without a body; to read the server's own file again leave both out, \
             an empty document is `{}`",
        )),
        (Some(format), false) => Ok(Source::Body {
            bytes: body.clone(),
            format,
        }),
    }
}

/// The tags of `If-Match` as one list; whether one fits is decided when the swap's turn comes.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut tags = Vec::new();
    for value in headers.get_all(header::IF_MATCH) {
        let text = value
            .to_str()
            .map_err(|_| Problem::bad_header("If-Match is a list of ETags of /now, or *"))?;
        tags.push(text.trim());
    }
    Ok((!tags.is_empty()).then(|| tags.join(", ")))
}

/// Whether a read token came along.
pub(super) fn read_only(parts: &Parts) -> bool {
    let caller = parts.extensions.get::<Caller>();
    caller.is_some_and(|caller| !caller.may_change)
}

/// Who asked, for the log and `/swaps`.
pub(super) fn actor(parts: &Parts) -> String {
    let from = parts
        .extensions
        .get::<Peer>()
        .map_or_else(|| "unknown".to_owned(), Peer::to_string);
    match parts.extensions.get::<Caller>() {
        Some(Caller { name, .. }) => format!("{name}@{from}"),
        None => from,
    }
}
