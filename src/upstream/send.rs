//! One request to its answer: pick, check out or dial, send, and try again where that is safe.
//!
//! What is safe: a request that hyper hands back was never written, so any method may go elsewhere; a failed dial
//! likewise. One that was written on a *pooled* connection which then ended may have met nothing but a server that was
//! just closing an idle connection: it is sent once more if it is idempotent and has no body (RFC 9110 section 9.2.2).
//! Everything else is the caller's to know.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use ::http::header::HOST;
use ::http::{Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;

use super::body::{Progress, RequestBody};
use super::connect::{Connection, dial};
use super::error::{Error, Kind};
use super::pool::{InFlight, Keep, Lease};
use super::response::UpstreamBody;
use super::{Member, SendOptions, Upstream};
use crate::metrics::WorkerContext;

/// Targets tried for one request.
const TARGETS: usize = 3;
/// Pooled connections tried on one target: after a restart of the origin all are stale, a fresh one is then quicker.
const POOLED: u32 = 2;

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
        let flight = InFlight::begin(&member.target);
        let mut pooled = POOLED;
        loop {
            let (connection, reused) = self.connection(member, plan.worker.index, pooled).await?;
            pooled = pooled.saturating_sub(u32::from(reused));
            // hyper keeps what it writes, so the copy must be made before.
            let spare = reused.then(|| copy(request)).flatten();
            match exchange(connection, request, plan, member).await {
                Ok((connection, response)) => {
                    let (target, keep) = (member.target.clone(), plan.keep);
                    let lease = Lease {
                        connection,
                        target,
                        keep,
                    };
                    let (sent, idle) = (plan.sent.clone(), self.timeouts.idle);
                    return Ok((
                        response.map(|body| UpstreamBody::new(body, lease, sent, idle)),
                        flight,
                    ));
                }
                Err(error) if error.unsent && reused => {}
                Err(error) => match spare {
                    Some(spare) if error.kind == Kind::ConnectionTerminated && !error.unsent => {
                        *request = spare;
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
    ) -> Result<(Connection, bool), Error> {
        let target = &member.target;
        if pooled > 0
            && let Some(idle) = target.check_out(worker)
        {
            return Ok((idle, true));
        }
        match target.slot(self.pool.max_connections) {
            Some(slot) => {
                let within = self.timeouts.connect;
                // Boxed: dialing is rare, and every request's future would carry its state.
                let fresh =
                    Box::pin(dial(target.address(), target.names(), within, worker, slot)).await?;
                Ok((fresh, false))
            }
            None => {
                let idle = (pooled > 0).then(|| target.check_out_any()).flatten();
                let full = || {
                    let detail = format!(
                        "{}: {} connections are open",
                        target.address(),
                        target.connections()
                    );
                    Error::upstream(Kind::ConnectionLimitReached, detail).unsent()
                };
                Ok((idle.ok_or_else(full)?, true))
            }
        }
    }
}

/// Sends on `connection` and waits for the head of the answer, no longer than the response timeout. `request` is left
/// empty, but for an unsent error.
async fn exchange(
    mut connection: Connection,
    request: &mut Request<RequestBody>,
    plan: &Plan<'_>,
    member: &Member,
) -> Result<(Connection, Response<Incoming>), Error> {
    let sent = plan.sent.as_deref();
    let outcome = {
        let sending = std::mem::replace(request, Request::new(RequestBody::empty()));
        let mut answer = pin!(connection.sender.try_send_request(sending));
        let mut timer = pin!(None);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(outcome) = answer.as_mut().poll(cx) {
                return Poll::Ready(Some(outcome));
            }
            let Some(limit) = plan.response_timeout else {
                return Poll::Pending;
            };
            loop {
                let mut sleep = match timer.as_mut().as_pin_mut() {
                    Some(sleep) => sleep,
                    None => {
                        timer.set(Some(tokio::time::sleep(limit)));
                        continue;
                    }
                };
                ready!(sleep.as_mut().poll(cx));
                // The body was under way meanwhile: the origin's time begins with its last piece.
                match sent
                    .map(|sent| sent.deadline(limit))
                    .filter(|later| *later > tokio::time::Instant::now())
                {
                    Some(later) => sleep.reset(later),
                    None => return Poll::Ready(None),
                }
            }
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
        Some(Ok(response)) => {
            if let Some(sent) = sent {
                sent.gate.shut();
            }
            Ok((connection, response))
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

/// A copy to send once more, of a request that may be: idempotent and without a body.
fn copy(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(RequestBody::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Only path and query go to an origin (RFC 9112 section 3.2.1).
fn origin_form(request: &mut Request<RequestBody>) {
    if request.uri().authority().is_some() {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
}
