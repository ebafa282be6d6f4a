//! One request on a stream of an HTTP/2 connection: had, sent, and waited for until the head of its answer.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONNECTION, EXPECT, HOST, TRANSFER_ENCODING};
use ::http::uri::{Authority, PathAndQuery, Scheme};
use ::http::{Request, Response, StatusCode, Uri, Version};
use bytes::Bytes;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::{Progress, RequestBody};
use super::connect::Dialed;
use super::connection::Connection;
use super::error::{Error, Kind};
use super::exchange::Spare;
use super::multiplex::{Multiplexed, Ticket};
use super::outgoing::Outgoing;
use super::pool::{Claim, InFlight, Keep};
use super::response::{Held, UpstreamBody};
use super::send::Plan;
use super::{Member, Upstream};
use crate::config::upstream::Protocol;
use crate::tls::client::Offer;

/// Connections tried on one target, as they turn out to take no more streams.
const CONNECTIONS: usize = 3;
/// Connections made by others that one request waits for before it makes one of its own.
const WAITS: usize = 8;

/// What a request may be sent on.
pub(super) enum Channel {
    /// A stream, on a connection that was in use before (`true`) or was made for it.
    Stream(Ticket, bool),
    /// The target chose HTTP/1: a connection made for the request, or none so far.
    H1(Option<Box<Connection>>),
}

impl Upstream {
    /// One target that speaks HTTP/2, or may. After an unsent error `request` is as it was.
    pub(super) async fn try_multiplexed(
        &self,
        member: &Member,
        plan: &Plan<'_>,
        request: &mut Request<RequestBody>,
        flight: InFlight,
    ) -> Result<(Response<UpstreamBody>, InFlight), Error> {
        let repeatable = request.method().is_idempotent() && plan.sent.is_none();
        let mut left = CONNECTIONS;
        loop {
            left -= 1;
            let channel = self.channel(member, plan.worker.index, plan.keep);
            let (mut ticket, reused) = match channel.await {
                Ok(Channel::Stream(ticket, reused)) => (ticket, reused),
                Ok(Channel::H1(fresh)) => {
                    return self.try_h1(member, plan, request, flight, fresh).await;
                }
                // A server that restarts may let go of a connection as it makes it.
                Err(error) if error.kind == Kind::ConnectionTerminated && left > 0 => continue,
                Err(error) => return Err(error),
            };
            let spare = Spare::head(request);
            let sending = exchange(&mut ticket, request, plan, member.transport.scheme());
            match sending.await {
                Ok(response) => {
                    let (sent, idle) = (plan.sent.clone(), self.timeouts.idle);
                    let body = |body| UpstreamBody::new(Held::H2(ticket, body), sent, idle);
                    return Ok((response.map(body), flight));
                }
                Err(failure) => {
                    let Failure { error, body } = *failure;
                    let over = ticket.connection.is_over() && left > 0;
                    if let Some((body, again)) = body.zip(spare.and_then(Spare::request)) {
                        *request = again.map(|_| body);
                        // Not the target, but this connection takes no more.
                        if over && error.unsent {
                            continue;
                        }
                        // As on a pooled HTTP/1 connection.
                        if over && reused && repeatable && error.kind == Kind::ConnectionTerminated
                        {
                            left = 1;
                            continue;
                        }
                        return Err(error);
                    }
                    return Err(Error {
                        unsent: false,
                        ..error
                    });
                }
            }
        }
    }

    /// A stream on a connection that is there or is made, or what it takes to speak HTTP/1 if the target chose that.
    pub(super) async fn channel(
        &self,
        member: &Member,
        worker: usize,
        keep: Keep,
    ) -> Result<Channel, Error> {
        let shard = member.pool.shard(worker);
        let either = member.transport.protocol == Protocol::Auto;
        let mut dialing = None;
        for _ in 0..WAITS {
            match shard.claim(keep) {
                Claim::Stream(ticket) => return Ok(Channel::Stream(ticket, true)),
                Claim::Wait(dial) => dial.wait().await?,
                Claim::Dial(mine) => {
                    dialing = Some(mine);
                    break;
                }
                Claim::Alone => {
                    if let Some(idle) = member.pool.check_out(worker) {
                        // Back to where it was: the way of HTTP/1 finds it, and knows what to do if it is stale.
                        super::pool::Lease::new(idle, &member.pool, keep).give_back();
                        return Ok(Channel::H1(None));
                    }
                    break;
                }
            }
        }
        let most = self.most_connections();
        let mut slot = member.target.slot(most);
        if slot.is_none() {
            // Others may hold what this one may not open.
            if let Some(ticket) = member.pool.stream_of_any(keep) {
                return Ok(Channel::Stream(ticket, true));
            }
            if either {
                return Ok(Channel::H1(None));
            }
            // A stream that ends, or a connection.
            let any = || match member.pool.stream_of_any(keep) {
                Some(ticket) => Some(Err(ticket)),
                None => member.target.slot(most).map(Ok),
            };
            match self.free(member, any).await? {
                Ok(free) => slot = Some(free),
                Err(ticket) => return Ok(Channel::Stream(ticket, true)),
            }
        }
        let slot = slot.ok_or_else(|| member.no_slot())?;
        let offer = if either { Offer::Both } else { Offer::H2 };
        match self.dial(member, slot, worker, offer).await {
            Ok(Dialed::H2(parts)) => {
                let connection = Multiplexed::new(*parts, member.target.address().clone());
                // Before those that wait for it look.
                let ticket = shard.add(connection, keep);
                drop(dialing);
                Ok(Channel::Stream(ticket, false))
            }
            Ok(Dialed::H1(connection)) => {
                if let Some(dialing) = dialing {
                    dialing.chose_h1();
                }
                Ok(Channel::H1(Some(connection)))
            }
            Err(error) => {
                if let Some(dialing) = dialing {
                    dialing.failed(&error);
                }
                Err(error)
            }
        }
    }
}

/// Why there is no answer.
pub(super) struct Failure {
    pub(super) error: Error,
    /// The request's body from its beginning, if that can still be had.
    body: Option<RequestBody>,
}

/// Sends on `ticket` and waits for the head of the answer, no longer than the response timeout. `request` is left empty.
async fn exchange(
    ticket: &mut Ticket,
    request: &mut Request<RequestBody>,
    plan: &Plan<'_>,
    scheme: Scheme,
) -> Result<Response<Incoming>, Box<Failure>> {
    let taken = std::mem::replace(request, Request::new(RequestBody::empty()));
    let peer = ticket.connection.peer().clone();
    let (parts, body) = taken.into_parts();
    if let Some(sent) = &plan.sent {
        // HTTP/2 targets are not asked for leave: their flow control keeps a body back that they do not read.
        sent.gate.open();
    }
    let (body, loan) = Outgoing::lend(body);
    let sending = match as_h2(parts, scheme) {
        Ok(parts) => Request::from_parts(parts, body),
        Err(error) => {
            return Err(Box::new(Failure { error, body: None }));
        }
    };
    ticket.body = loan;
    let heard = ticket.connection.heard();
    let outcome = {
        let mut answer = pin!(ticket.connection.send(sending));
        let sent = plan.sent.as_deref();
        let mut due = None;
        let deadline = &mut ticket.deadline;
        std::future::poll_fn(|cx| {
            deadline.watch(
                cx,
                |cx| answer.as_mut().poll(cx),
                |passed| later(plan.response_timeout, sent, &mut due, passed),
            )
        })
        .await
    };
    let error = match outcome {
        Some(Ok(response)) if response.status() != StatusCode::SWITCHING_PROTOCOLS => {
            if let Some(sent) = &plan.sent {
                sent.gate.shut();
            }
            if let Some(loan) = &ticket.body {
                loan.accepted();
            }
            return Ok(response);
        }
        Some(Ok(_)) => {
            let detail = format!("{peer}: 101 over HTTP/2");
            Error::upstream(Kind::HttpProtocolError, detail)
        }
        Some(Err(mut error)) => {
            let returned = error.take_message().is_some();
            let cause = plan.sent.as_deref().and_then(Progress::failure);
            let error = cause.unwrap_or_else(|| broken(error.error(), &ticket.connection));
            let unsent = returned || error.unsent;
            if returned {
                ticket.connection.retire();
            }
            Error { unsent, ..error }
        }
        None => {
            if ticket.connection.heard() == heard {
                // Nothing came at all, to nobody: there may be no one at its other end.
                ticket.connection.retire();
            }
            let limit = plan.response_timeout.unwrap_or_default();
            let detail = format!("{peer}: no response head within {limit:?}");
            Error::upstream(Kind::HttpResponseTimeout, detail)
        }
    };
    let body = match ticket.body.take() {
        Some(loan) => loan.take_back(),
        None => Some(RequestBody::empty()),
    };
    Err(Box::new(Failure { error, body }))
}

/// What hyper says of a stream; ends the connection's use if it is the connection's end.
pub(super) fn broken(error: &hyper::Error, connection: &Arc<Multiplexed>) -> Error {
    let stream = super::error::cause::<h2::Error>(error);
    if stream.is_none_or(|error| error.is_go_away() || error.is_io()) {
        connection.retire();
    }
    Error::exchange(error, connection.peer())
}

/// Until when the answer may take; see `exchange::exchange`.
fn later(
    limit: Option<Duration>,
    sent: Option<&Progress>,
    due: &mut Option<Instant>,
    passed: Option<Instant>,
) -> Option<Instant> {
    let limit = limit?;
    match passed {
        None => Some(*due.get_or_insert_with(|| Instant::now() + limit)),
        Some(passed) => {
            let later = sent?.deadline(limit);
            *due = Some(later);
            (later > passed && later > Instant::now()).then_some(later)
        }
    }
}

/// A head for HTTP/2: `Host` is `:authority` there (RFC 9113 section 8.3.1), and nothing is said of the connection.
pub(super) fn as_h2(
    mut parts: ::http::request::Parts,
    scheme: Scheme,
) -> Result<::http::request::Parts, Error> {
    let bad = |what: &dyn std::fmt::Display| {
        let detail = format!("cannot be said in HTTP/2: {what}");
        Error::us(Kind::ProxyInternalError, detail)
    };
    let fields = &mut parts.headers;
    for name in [CONNECTION, TRANSFER_ENCODING, EXPECT] {
        fields.remove(name);
    }
    let host = fields
        .remove(HOST)
        .unwrap_or_else(|| ::http::HeaderValue::from_static(""));
    let authority = Authority::from_maybe_shared(Bytes::from_owner(host));
    let mut uri = ::http::uri::Parts::default();
    uri.scheme = Some(scheme);
    uri.authority = Some(authority.map_err(|error| bad(&error))?);
    let path = std::mem::take(&mut parts.uri).into_parts().path_and_query;
    uri.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    parts.uri = Uri::from_parts(uri).map_err(|error| bad(&error))?;
    parts.version = Version::HTTP_2;
    Ok(parts)
}
