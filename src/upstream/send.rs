//! One request to its answer: pick, check out or dial, send, and try again where that is safe.
//!
//! What is safe: a request that hyper hands back was never written, so any method may go elsewhere; a failed dial
//! likewise. One that was written on a *pooled* connection which then ended may have met nothing but a server that was
//! just closing an idle connection: it is sent once more if it is idempotent and has no body (RFC 9110 section 9.2.2).
//! Everything else is the caller's to know.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, TRANSFER_ENCODING};
use ::http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::{Progress, RequestBody};
use super::connect::dial;
use super::connection::Connection;
use super::error::{Error, Kind};
use super::pool::{InFlight, Keep, Lease};
use super::response::UpstreamBody;
use super::{Member, SendOptions, Upstream};
use crate::metrics::WorkerContext;

/// Targets tried for one request.
pub(super) const TARGETS: usize = 3;
/// Pooled connections tried on one target: after a restart of the origin all are stale, a fresh one is then quicker.
const POOLED: u32 = 2;
/// Bytes of a second try's copy that a connection keeps room for.
const SCRATCH: usize = 4 * 1024;

/// What does not change between the tries of one request.
struct Plan<'a> {
    worker: &'a WorkerContext,
    /// `None` when the body is empty.
    sent: Option<Arc<Progress>>,
    response_timeout: Option<Duration>,
    keep: Keep,
}

impl Upstream {
    /// Picks a target, checks out or dials a connection, sends, and returns the response's head with its streaming body. Tries
    /// again on another target or connection only where that is safe: the request was not sent, or it is idempotent
    /// (RFC 9110 9.2.2), has no body, and a *pooled* connection ended before the head of an answer was complete.
    ///
    /// The connection goes back to this worker's pool when the response body has ended (hyper's sender is ready again).
    ///
    /// # Errors
    /// [`Error`] in the vocabulary of RFC 9209. Dropping the future cancels the request and its connection.
    //
    // The tries borrow the request's place here and put it back when it was not sent: handing it down by value would
    // keep a copy of its place in every future on the way.
    pub async fn send(
        &self,
        worker: &Arc<WorkerContext>,
        mut request: Request<RequestBody>,
        options: SendOptions,
    ) -> Result<(Response<UpstreamBody>, InFlight), Error> {
        *request.version_mut() = Version::HTTP_11;
        origin_form(&mut request);
        let plan = Plan {
            worker,
            sent: request.body().progress(),
            response_timeout: options.response_timeout.or(self.timeouts.response),
            keep: Keep::new(
                self.pool.idle,
                self.pool.idle_timeout,
                worker.index,
                worker.of,
            ),
        };
        if let Some(sent) = plan.sent.clone().filter(|sent| !sent.gate.is_open()) {
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == StatusCode::CONTINUE {
                    sent.gate.open();
                }
            });
        }
        let mut tried = [usize::MAX; TARGETS];
        let mut last = None;
        for count in 0..TARGETS {
            let Some(index) = self.pick(worker.index, &tried[..count]) else {
                break;
            };
            tried[count] = index;
            let member = &self.members[index];
            if options.host_from_target {
                request.headers_mut().insert(HOST, member.host.clone());
            }
            match self.try_member(member, &plan, &mut request).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.unsent => {
                    tracing::debug!(upstream = %self.name, target = %member.target.address(), %error, "not sent");
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| self.none_usable()))
    }

    /// One target: a pooled connection or two, then a fresh one. After an unsent error `request` is as it was.
    async fn try_member(
        &self,
        member: &Member,
        plan: &Plan<'_>,
        request: &mut Request<RequestBody>,
    ) -> Result<(Response<UpstreamBody>, InFlight), Error> {
        let flight = InFlight::begin(&member.target, plan.worker.index);
        let mut pooled = POOLED;
        loop {
            let (mut connection, reused) =
                self.connection(member, plan.worker.index, pooled).await?;
            pooled = pooled.saturating_sub(u32::from(reused));
            // hyper keeps what it writes, so the copy must be made before.
            let spare = if reused {
                Spare::of(request, &mut connection.scratch)
            } else {
                None
            };
            match exchange(&mut connection, request, plan, member).await {
                Ok(response) => {
                    if let Some(spare) = spare {
                        connection.scratch = spare.into_scratch();
                    }
                    let lease = Lease::new(connection, &member.target, plan.keep);
                    let (sent, idle) = (plan.sent.clone(), self.timeouts.idle);
                    return Ok((
                        response.map(|body| UpstreamBody::new(body, lease, sent, idle)),
                        flight,
                    ));
                }
                Err(error) if error.unsent && reused => {}
                Err(error) => match spare.and_then(Spare::request) {
                    Some(again) if error.kind == Kind::ConnectionTerminated && !error.unsent => {
                        *request = again;
                        pooled = 0;
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    /// An idle connection while `pooled` is not used up, else a fresh one; at the limit, another worker's idle one. The
    /// flag says whether it was in use before.
    async fn connection(
        &self,
        member: &Member,
        worker: usize,
        pooled: u32,
    ) -> Result<(Box<Connection>, bool), Error> {
        let target = &member.target;
        if pooled > 0
            && let Some(idle) = target.check_out(worker)
        {
            return Ok((idle, true));
        }
        let mut slot = target.slot(self.pool.max_connections);
        if slot.is_none() {
            if pooled > 0
                && let Some(idle) = target.check_out_any()
            {
                return Ok((idle, true));
            }
            // The search may have closed some that had ended.
            slot = target.slot(self.pool.max_connections);
        }
        let Some(slot) = slot else {
            let (address, open) = (target.address(), target.connections());
            let detail = format!("{address}: {open} connections are open");
            return Err(Error::upstream(Kind::ConnectionLimitReached, detail).unsent());
        };
        let within = self.timeouts.connect;
        // Boxed: dialing is rare, and every request's future would carry its state.
        let fresh = Box::pin(dial(target.address(), target.names(), within, slot)).await?;
        Ok((Connection::new(fresh, worker), false))
    }
}

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
async fn exchange(
    connection: &mut Connection,
    request: &mut Request<RequestBody>,
    plan: &Plan<'_>,
    member: &Member,
) -> Result<Response<Incoming>, Error> {
    let sent = plan.sent.as_deref();
    let sending = std::mem::replace(request, Request::new(RequestBody::empty()));
    let outcome = {
        let mut answer = pin!(connection.sender.try_send_request(sending));
        let mut due = None;
        std::future::poll_fn(|cx| {
            connection.poll(
                cx,
                |cx| answer.as_mut().poll(cx),
                |passed| {
                    let limit = plan.response_timeout?;
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
    let peer = member.target.address();
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
            let limit = plan.response_timeout.unwrap_or_default();
            let detail = format!("{peer}: no response head within {limit:?}");
            Err(Error::upstream(Kind::HttpResponseTimeout, detail))
        }
    }
}

/// What it takes to send a request once more that may be: idempotent and without a body. Its fields lie one after
/// another in one buffer, for copying a header map costs several allocations and a count per field.
struct Spare {
    method: Method,
    uri: Uri,
    /// Per field: two lengths, the name, the value.
    fields: Vec<u8>,
}

impl Spare {
    /// Takes `scratch` for its buffer.
    fn of(request: &Request<RequestBody>, scratch: &mut Vec<u8>) -> Option<Spare> {
        if !request.method().is_idempotent() || !request.body().is_end_stream() {
            return None;
        }
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
    fn request(self) -> Option<Request<RequestBody>> {
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
    fn into_scratch(self) -> Vec<u8> {
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
