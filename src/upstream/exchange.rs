//! One request on one connection: sent, and waited for until the head of its answer.

use std::pin::pin;
use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, TRANSFER_ENCODING};
use ::http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::{Progress, RequestBody};
use super::connection::Connection;
use super::error::{Error, Kind};
use super::interim;
use crate::config::scalar::TargetAddr;

/// Bytes of a second try's copy that a connection keeps room for.
const SCRATCH: usize = 4 * 1024;

/// What makes the length of an answer a matter of taste. hyper lets `chunked` win and hands on what else was said of the
/// length, so another hop would see another body (RFC 9112 section 6.3).
pub(super) fn ambiguous(head: &HeaderMap) -> Option<&'static str> {
    let mut codings = head.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next()?;
    if head.contains_key(CONTENT_LENGTH) {
        return Some("both Transfer-Encoding and Content-Length");
    }
    let plain = coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
    (!plain).then_some("a transfer coding that is not chunked alone")
}

/// Sends on `connection` and waits for the head of the answer, no longer than the response timeout. `request` is left
/// empty, but for an unsent error.
pub(super) async fn exchange(
    connection: &mut Connection,
    request: &mut Request<RequestBody>,
    sent: Option<&Progress>,
    response_timeout: Option<Duration>,
    peer: &TargetAddr,
) -> Result<Response<Incoming>, Error> {
    let sending = std::mem::replace(request, Request::new(RequestBody::empty()));
    connection.awaited.expect();
    let outcome = {
        let mut answer = pin!(connection.sender.try_send_request(sending));
        let mut due = None;
        std::future::poll_fn(|cx| {
            connection.poll(
                cx,
                |cx| answer.as_mut().poll(cx),
                |passed| {
                    let limit = response_timeout?;
                    match passed {
                        None => Some(*due.get_or_insert_with(|| Instant::now() + limit)),
                        // The body was under way meanwhile: the origin's time begins with its last piece.
                        Some(passed) => {
                            let later = sent?.deadline(limit);
                            due = Some(later);
                            (later > passed && later > Instant::now()).then_some(later)
                        }
                    }
                },
            )
        })
        .await
    };
    match outcome {
        Some(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            // No upgrade was asked for: what follows on this connection would be no HTTP.
            let detail = format!("{peer}: 101 without an upgrade");
            Err(Error::upstream(Kind::HttpUpgradeFailed, detail))
        }
        Some(Ok(response)) if let Some(fault) = ambiguous(response.headers()) => {
            let detail = format!("{peer}: {fault}");
            Err(Error::upstream(Kind::HttpProtocolError, detail))
        }
        Some(Ok(response)) => {
            if let Some(sent) = sent {
                sent.gate.shut();
            }
            Ok(response)
        }
        Some(Err(_)) if connection.awaited.flooded() => {
            let detail = format!("{peer}: more than {} interim responses", interim::MOST);
            Err(Error::upstream(Kind::HttpProtocolError, detail))
        }
        Some(Err(mut error)) => {
            let unsent = error
                .take_message()
                .map(|message| *request = message)
                .is_some();
            // hyper ends the exchange when the client's body breaks; the cause is then the client's.
            let cause = sent.and_then(Progress::failure);
            let error = cause.unwrap_or_else(|| Error::exchange(error.error(), peer));
            Err(Error { unsent, ..error })
        }
        None => {
            let limit = response_timeout.unwrap_or_default();
            let detail = format!("{peer}: no response head within {limit:?}");
            Err(Error::upstream(Kind::HttpResponseTimeout, detail))
        }
    }
}

/// What it takes to send a request once more that may be: idempotent and without a body. Its fields lie one after
/// another in one buffer, for copying a header map costs several allocations and a count per field.
pub(super) struct Spare {
    method: Method,
    uri: Uri,
    /// Per field: two lengths, the name, the value.
    fields: Vec<u8>,
}

impl Spare {
    /// Takes `scratch` for its buffer.
    pub(super) fn of(request: &Request<RequestBody>, scratch: &mut Vec<u8>) -> Option<Spare> {
        if !request.method().is_idempotent() || !request.body().is_end_stream() {
            return None;
        }
        Spare::head(request, scratch)
    }

    /// The head alone, whatever it is.
    pub(super) fn head(request: &Request<RequestBody>, scratch: &mut Vec<u8>) -> Option<Spare> {
        let mut fields = std::mem::take(scratch);
        fields.clear();
        for (name, value) in request.headers() {
            let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
            fields.extend_from_slice(&u32::try_from(name.len()).ok()?.to_ne_bytes());
            fields.extend_from_slice(&u32::try_from(value.len()).ok()?.to_ne_bytes());
            fields.extend_from_slice(name);
            fields.extend_from_slice(value);
        }
        Some(Spare {
            method: request.method().clone(),
            uri: request.uri().clone(),
            fields,
        })
    }

    /// The request again.
    pub(super) fn request(self) -> Option<Request<RequestBody>> {
        let mut request = Request::new(RequestBody::empty());
        let mut rest = self.fields.as_slice();
        while !rest.is_empty() {
            let name_len = usize::try_from(u32::from_ne_bytes(take(&mut rest)?)).ok()?;
            let value_len = usize::try_from(u32::from_ne_bytes(take(&mut rest)?)).ok()?;
            let (name, value) = rest
                .split_at_checked(name_len)
                .and_then(|(name, after)| Some((name, after.split_at_checked(value_len)?)))
                .map(|(name, (value, after))| {
                    rest = after;
                    (name, value)
                })?;
            request.headers_mut().append(
                HeaderName::from_bytes(name).ok()?,
                HeaderValue::from_bytes(value).ok()?,
            );
        }
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        Some(request)
    }

    /// The buffer, unless an unusual request made it big.
    pub(super) fn into_scratch(self) -> Vec<u8> {
        if self.fields.capacity() > SCRATCH {
            return Vec::new();
        }
        self.fields
    }
}

fn take(rest: &mut &[u8]) -> Option<[u8; 4]> {
    let (first, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*first)
}

/// Only path and query go to an origin (RFC 9112 section 3.2.1).
pub(super) fn origin_form(request: &mut Request<RequestBody>) {
    if request.uri().authority().is_some() {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http_body_util::{BodyExt, Full};
    use proptest::prelude::*;

    use super::super::body::BodyRules;
    use super::*;

    proptest! {
        #[test]
        fn a_copy_is_the_request_again(fields in proptest::collection::vec(
            ("[a-z][a-z0-9-]{0,20}", proptest::collection::vec(0x20_u8..0x7f, 0..60)), 0..20,
        )) {
            let mut request = Request::delete("/a?b=c").body(RequestBody::empty()).unwrap();
            for (name, value) in fields {
                let name = HeaderName::try_from(name).unwrap();
                request.headers_mut().append(name, HeaderValue::from_bytes(&value).unwrap());
            }
            let mut scratch = b"of another request".to_vec();
            let again = Spare::of(&request, &mut scratch).and_then(Spare::request).unwrap();
            prop_assert_eq!(again.method(), request.method());
            prop_assert_eq!(again.uri(), request.uri());
            prop_assert_eq!(again.headers(), request.headers());
        }
    }

    #[test]
    fn only_what_may_be_sent_twice_is_copied() {
        let mut scratch = Vec::new();
        let post = Request::post("/").body(RequestBody::empty()).unwrap();
        assert!(Spare::of(&post, &mut scratch).is_none());
        let body = Full::from("x").map_err(|never| match never {});
        let put = Request::put("/").body(RequestBody::of(body, BodyRules::default()));
        assert!(Spare::of(&put.unwrap(), &mut scratch).is_none());
    }
}
