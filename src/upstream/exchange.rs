//! One request on one connection: sent, and waited for until the head of its answer.

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, TRANSFER_ENCODING};
use ::http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::ext::ReasonPhrase;
use tokio::time::Instant;

use super::body::{Progress, RequestBody};
use super::connection::Connection;
use super::error::{Error, Kind};
use super::h1::{Fault, Heard};
use crate::config::scalar::TargetAddr;

/// What makes the length of an answer a matter of taste: another hop would see another body (RFC 9112 section 6.3).
pub(super) fn ambiguous(head: &HeaderMap) -> Option<&'static str> {
    let mut codings = head.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next()?;
    if head.contains_key(CONTENT_LENGTH) {
        return Some("both Transfer-Encoding and Content-Length");
    }
    let plain = coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
    (!plain).then_some("a transfer coding that is not chunked alone")
}

/// Sends on `connection` and waits for the head of the answer, no longer than the response timeout. Of `request` the head is
/// as it was after an error, the body after an unsent one.
pub(super) async fn exchange(
    connection: &mut Connection,
    request: &mut Request<RequestBody>,
    sent: Option<&Progress>,
    response_timeout: Option<Duration>,
    peer: &TargetAddr,
) -> Result<Response<()>, Error> {
    let response = ask(connection, request, sent, response_timeout, peer).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // No upgrade was asked for: what follows on this connection would be no HTTP.
        let detail = format!("{peer}: 101 without an upgrade");
        return Err(Error::upstream(Kind::HttpUpgradeFailed, detail));
    }
    Ok(response)
}

/// The same, where `101` is an answer like others.
pub(super) async fn ask(
    connection: &mut Connection,
    request: &mut Request<RequestBody>,
    sent: Option<&Progress>,
    response_timeout: Option<Duration>,
    peer: &TargetAddr,
) -> Result<Response<()>, Error> {
    let Connection { http, deadline, .. } = connection;
    http.begin(request);
    let mut due = None;
    let heard = poll_fn(|cx| {
        let fields = request.headers_mut();
        deadline.watch(
            cx,
            |cx| {
                if http.is_sending()
                    && let Poll::Ready(Err(error)) = http.poll_send(cx)
                {
                    return Poll::Ready(Err(Stopped::Request(error)));
                }
                loop {
                    match ready!(http.poll_head(cx, fields)).map_err(Stopped::Answer)? {
                        Heard::Interim(StatusCode::CONTINUE) => {
                            if let Some(sent) = sent {
                                sent.gate.open();
                            }
                        }
                        Heard::Interim(_) => {}
                        Heard::Answer(head) => return Poll::Ready(Ok(head)),
                    }
                }
            },
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
    .await;
    let head = match heard {
        Some(Ok(head)) => head,
        Some(Err(Stopped::Request(error))) => return Err(error),
        Some(Err(Stopped::Answer(fault))) => {
            let error = fault.error(peer);
            return Err(match http.unsent() {
                // It says what is no HTTP, or has closed, before anything was said to it.
                Some(body) if error.kind == Kind::ConnectionTerminated => {
                    *request.body_mut() = body;
                    error.unsent()
                }
                _ => error,
            });
        }
        None => {
            let limit = response_timeout.unwrap_or_default();
            let detail = format!("{peer}: no response head within {limit:?}");
            return Err(Error::upstream(Kind::HttpResponseTimeout, detail));
        }
    };
    if let Some(fault) = ambiguous(request.headers()) {
        let detail = format!("{peer}: {fault}");
        return Err(Error::upstream(Kind::HttpProtocolError, detail));
    }
    if let Some(sent) = sent {
        sent.gate.shut();
    }
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.version_mut() = head.version;
    // The map that the request came in: there is room in it already.
    *response.headers_mut() = std::mem::take(request.headers_mut());
    if let Some(reason) = head.reason.and_then(|r| ReasonPhrase::try_from(r).ok()) {
        response.extensions_mut().insert(reason);
    }
    Ok(response)
}

/// What ended an exchange.
enum Stopped {
    /// The client's body broke.
    Request(Error),
    Answer(Fault),
}

/// The head of a request that hyper takes away, for another try. Its fields lie one after another in one buffer, for copying
/// a header map costs several allocations and a count per field.
pub(super) struct Spare {
    method: Method,
    uri: Uri,
    /// Per field: two lengths, the name, the value.
    fields: Vec<u8>,
}

impl Spare {
    /// Of any request, without its body.
    pub(super) fn head(request: &Request<RequestBody>) -> Option<Spare> {
        let mut fields = Vec::new();
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
    use proptest::prelude::*;

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
            let again = Spare::head(&request).and_then(Spare::request).unwrap();
            prop_assert_eq!(again.method(), request.method());
            prop_assert_eq!(again.uri(), request.uri());
            prop_assert_eq!(again.headers(), request.headers());
        }
    }
}
