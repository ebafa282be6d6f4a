//! One request to its answer: pick, check out or dial, send, and try again where that is safe.
//!
//! What is safe: a request of which nothing was written may go elsewhere, whatever its method; a failed dial likewise. One that was written on a *pooled* connection which then ended may have met nothing but a server that was
//! just closing an idle connection: it is sent once more if it is idempotent and has no body (RFC 9110 section 9.2.2).
//! Everything else is the caller's to know.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::HOST;
use ::http::{Request, Response, Version};
use http_body::Body as _;
use tokio::time::{Instant, timeout};

use super::body::{Progress, RequestBody};
use super::connect::{Dialed, To, dial};
use super::connection::{Connection, Slot};
use super::error::{Error, Kind};
use super::exchange::{exchange, origin_form};
use super::pool::{InFlight, Keep, Lease};
use super::response::{Held, UpstreamBody};
use super::retry::{Again, repeats};
use super::select::{Picked, Tries};
use super::{Client, Member, SendOptions, Upstream};
use crate::config::upstream::Protocol;
use crate::metrics::WorkerContext;
use crate::tls::client::Offer;

/// Pooled connections tried on one target: after a restart of the origin all are stale, a fresh one is then quicker.
const POOLED: u32 = 2;

/// What a request may have at the limit.
enum Free {
    Idle(Box<Connection>),
    Slot(Slot),
}

/// What does not change between the tries of one request.
pub(super) struct Plan<'a> {
    pub(super) worker: &'a WorkerContext,
    /// `None` when the body is empty.
    pub(super) sent: Option<Arc<Progress>>,
    pub(super) response_timeout: Option<Duration>,
    pub(super) keep: Keep,
    pub(super) client: Option<Client>,
}

impl Upstream {
    /// Picks a target, checks out or dials a connection, sends, and returns the response's head with its streaming body. Tries
    /// again on another target or connection only where that is safe: the request was not sent, or it is idempotent
    /// (RFC 9110 9.2.2), has no body, and a *pooled* connection ended before the head of an answer was complete.
    ///
    /// The connection goes back to this worker's pool when the response body has ended.
    ///
    /// # Errors
    /// [`Error`] in the vocabulary of RFC 9209. Dropping the future cancels the request and its connection.
    pub async fn send(
        &self,
        worker: &Arc<WorkerContext>,
        mut request: Request<RequestBody>,
        options: SendOptions,
    ) -> Result<(Response<UpstreamBody>, InFlight), Error> {
        self.send_from(worker, &mut request, &options).await
    }

    /// [`Upstream::send`] of a request that is left empty.
    ///
    /// # Errors
    /// As there.
    //
    // The tries borrow the request's place and put it back when it was not sent: handing it down by value would keep a
    // copy of its place in every future on the way.
    pub async fn send_from(
        &self,
        worker: &Arc<WorkerContext>,
        request: &mut Request<RequestBody>,
        options: &SendOptions,
    ) -> Result<(Response<UpstreamBody>, InFlight), Error> {
        *request.version_mut() = Version::HTTP_11;
        origin_form(request);
        let mut plan = Plan {
            worker,
            sent: request.body().progress(),
            response_timeout: options.response_timeout.or(self.timeouts.response),
            keep: self.keep(worker),
            client: options.client.as_deref().copied(),
        };
        let again = match &options.retries {
            Some(spec) if spec.repeats_sent() => {
                self.budget.request();
                // Boxed: every request's future would carry its room.
                Again::of(request).map(Box::new)
            }
            _ => None,
        };
        let mut tries = Tries::new(self, worker.index, options);
        let mut next = tries.next().await;
        while let Some(Picked { member, flight }) = next {
            if options.host_from_target {
                request.headers_mut().insert(HOST, member.host.clone());
            }
            let began = self.watches_latency().then(Instant::now);
            let mut outcome = {
                let trying = pin!(self.try_member(member, &plan, request, flight));
                self.ending_with_target(member, trying).await
            };
            self.note(member, &mut outcome);
            if let Some(began) = began {
                member.learn(began, outcome.is_ok());
            }
            let repeat = match (&options.retries, &outcome) {
                (None, _) => false,
                (Some(spec), Ok((answer, _))) => spec.repeats_status(answer.status().as_u16()),
                (Some(spec), Err(error)) => !error.unsent && repeats(spec, error),
            };
            if repeat
                && let Some(copy) = again.as_ref().and_then(|again| again.request())
                && let Some(other) = tries.once_more()
            {
                tracing::debug!(upstream = %self.name, target = %member.target.address(), "tried again elsewhere");
                plan.sent = copy.body().progress();
                *request = copy;
                next = Some(other);
                continue;
            }
            match outcome {
                Ok(answer) => return Ok(answer),
                Err(error) => tries.failed(member, error)?,
            }
            next = tries.next().await;
        }
        Err(tries.over())
    }

    /// One target: a pooled connection or two, then a fresh one. After an unsent error `request` is as it was.
    async fn try_member(
        &self,
        member: &Member,
        plan: &Plan<'_>,
        request: &mut Request<RequestBody>,
        flight: InFlight,
    ) -> Result<(Response<UpstreamBody>, InFlight), Error> {
        match member.transport.protocol {
            Protocol::Http1 => self.try_h1(member, plan, request, flight, None).await,
            // Boxed: every request's future would carry its state.
            Protocol::H2c | Protocol::H2 | Protocol::Auto => {
                Box::pin(self.try_multiplexed(member, plan, request, flight)).await
            }
        }
    }

    /// The same over HTTP/1. `fresh`: a connection that was made for it.
    pub(super) async fn try_h1(
        &self,
        member: &Member,
        plan: &Plan<'_>,
        request: &mut Request<RequestBody>,
        flight: InFlight,
        mut fresh: Option<Box<Connection>>,
    ) -> Result<(Response<UpstreamBody>, InFlight), Error> {
        let mut pooled = if member.tells_client() { 0 } else { POOLED };
        loop {
            let (mut connection, reused) = match fresh.take() {
                Some(connection) => (connection, false),
                None => self.connection(member, plan, pooled).await?,
            };
            pooled = pooled.saturating_sub(u32::from(reused));
            let repeatable =
                reused && request.method().is_idempotent() && request.body().is_end_stream();
            match exchange(
                &mut connection,
                request,
                plan.sent.as_deref(),
                plan.response_timeout,
                member.target.address(),
            )
            .await
            {
                Ok(response) => {
                    let held = Held::H1(Lease::new(connection, &member.pool, plan.keep));
                    let (sent, idle) = (plan.sent.clone(), self.timeouts.idle);
                    return Ok((
                        response.map(|()| UpstreamBody::new(held, sent, idle)),
                        flight,
                    ));
                }
                Err(error) if error.unsent && reused => {}
                Err(error) if repeatable && error.kind == Kind::ConnectionTerminated => {
                    pooled = 0;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// An idle connection while `pooled` is not used up, else a fresh one; at the limit, another worker's idle one. The
    /// flag says whether it was in use before.
    async fn connection(
        &self,
        member: &Member,
        plan: &Plan<'_>,
        pooled: u32,
    ) -> Result<(Box<Connection>, bool), Error> {
        let worker = plan.worker.index;
        if pooled > 0
            && let Some(idle) = member.pool.check_out(worker)
        {
            return Ok((idle, true));
        }
        let limit = self.most_connections();
        let slot = match member.target.slot(limit) {
            Some(slot) => slot,
            None => {
                let any = || {
                    if pooled > 0
                        && let Some(idle) = member.pool.check_out_any()
                    {
                        return Some(Free::Idle(idle));
                    }
                    // The search may have closed some that had ended.
                    member.target.slot(limit).map(Free::Slot)
                };
                match self.free(member, any).await? {
                    Free::Idle(idle) => return Ok((idle, true)),
                    Free::Slot(slot) => slot,
                }
            }
        };
        // Boxed: dialing is rare, and every request's future would carry its state.
        let to = member.to(plan.client, worker, self.timeouts.connect);
        let fresh = Box::pin(dial_h1(to, slot)).await?;
        Ok((fresh, false))
    }

    /// Connections that one target may have open.
    pub(super) fn most_connections(&self) -> Option<usize> {
        let limits = self.limits.as_ref().and_then(|limits| limits.connections);
        self.pool.max_connections.into_iter().chain(limits).min()
    }

    /// What `attempt` gets, as soon as it gets something, if `limits` say that connections are waited for.
    ///
    /// # Errors
    /// There is none, or not in time. Unsent.
    pub(super) async fn free<T>(
        &self,
        member: &Member,
        mut attempt: impl FnMut() -> Option<T>,
    ) -> Result<T, Error> {
        if let Some(got) = attempt() {
            return Ok(got);
        }
        let limits = self.limits.as_ref().filter(|l| l.connections.is_some());
        let limits = limits.ok_or_else(|| member.no_slot())?;
        let open = member.target.open();
        let waiting = open.wait(limits.queue).ok_or_else(|| member.no_slot())?;
        // Boxed: it is rare, and every request's future would carry its state.
        let waiting = Box::pin(timeout(limits.wait, waiting.until(attempt)));
        waiting.await.map_err(|_| member.no_slot())
    }

    /// What this generation says about keeping connections.
    pub(super) fn keep(&self, worker: &WorkerContext) -> Keep {
        let (mut idle, timeout) = (self.pool.idle, self.pool.idle_timeout);
        if self.tells_client() {
            idle = 0;
        }
        Keep::new(idle, timeout, worker.index, worker.of)
    }

    /// A fresh connection that speaks what is offered, for any client.
    pub(super) async fn dial(
        &self,
        member: &Member,
        slot: Slot,
        worker: usize,
        offer: Offer,
    ) -> Result<Dialed, Error> {
        // What is shared is nobody's in particular.
        let to = member.to(None, worker, self.timeouts.connect);
        dial(to, slot, offer).await
    }
}

/// A fresh connection that speaks HTTP/1.
pub(super) async fn dial_h1(to: To<'_>, slot: Slot) -> Result<Box<Connection>, Error> {
    let address = to.address;
    match dial(to, slot, Offer::H1).await? {
        Dialed::H1(connection) => Ok(connection),
        Dialed::H2(_) => {
            let detail = format!("{address}: chose h2 unasked");
            Err(Error::upstream(Kind::TlsProtocolError, detail).unsent())
        }
    }
}
