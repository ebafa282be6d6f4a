//! A request that asks the origin for a websocket. Over HTTP/1 it goes out on a connection of its own, never a pooled one:
//! if the origin agrees, the connection is no HTTP any more; a pooled one might just be closing, and a handshake is not
//! sent twice. Over HTTP/2 it is an extended CONNECT (RFC 8441) on a stream, where the target takes that.
//!
//! Whoever asks speaks as in HTTP/1 (`GET`, `Upgrade`, `101`), with a key that [`handshake`] has made up if need be.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::header::{CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use ::http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::body::RequestBody;
use super::connection::Slot;
use super::error::{Error, Kind};
use super::exchange::{Spare, ask, origin_form};
use super::multiplex::Ticket;
use super::outgoing::Outgoing;
use super::pool::{InFlight, Keep, Lease};
use super::response::{Held, UpstreamBody};
use super::select::{Picked, Tries};
use super::send::dial_h1;
use super::streams::{Channel, as_h2, broken};
use super::wire::Socket;
use super::{Client, Member, SendOptions, Upstream, handshake};
use crate::config::scalar::TargetAddr;
use crate::config::upstream::Protocol;
use crate::metrics::WorkerContext;

/// What the origin said.
#[derive(Debug)]
pub enum Answer {
    /// `101`. Whether it agreed to the right protocol is the caller's to look at.
    Switched(Response<()>, Switched),
    /// Anything else is an ordinary response.
    Refused(Response<UpstreamBody>),
}

/// A connection that is no HTTP any more.
#[derive(Debug)]
pub struct Switched {
    pub stream: Stream,
    /// What came after the head.
    pub first: Bytes,
}

/// Its bytes. Dropping it closes the connection, or ends the stream, and frees its place among the target's.
pub struct Stream {
    link: Link,
}

enum Link {
    H1 {
        link: Socket,
        _slot: Slot,
    },
    H2 {
        link: TokioIo<Upgraded>,
        _ticket: Ticket,
    },
}

/// What does not change between the tries of one handshake.
pub(super) struct Asking<'a> {
    pub(super) worker: &'a WorkerContext,
    /// For the answer's head.
    pub(super) limit: Option<Duration>,
    pub(super) client: Option<Client>,
    /// For a connection.
    pub(super) within: Duration,
}

impl Upstream {
    /// Picks a target, dials, sends the request, which has no body, and returns the answer's head. Tries another target
    /// only when nothing was sent.
    ///
    /// # Errors
    /// As [`Upstream::send`].
    pub async fn upgrade(
        &self,
        worker: &Arc<WorkerContext>,
        mut request: Request<RequestBody>,
        options: SendOptions,
    ) -> Result<(Answer, InFlight), Error> {
        *request.version_mut() = Version::HTTP_11;
        origin_form(&mut request);
        let asking = Asking {
            worker,
            limit: options.response_timeout.or(self.timeouts.response),
            client: options.client.as_deref().copied(),
            within: self.timeouts.connect,
        };
        let mut tries = Tries::new(self, worker.index, &options);
        while let Some(Picked { member, flight }) = tries.next().await {
            if options.host_from_target {
                request.headers_mut().insert(HOST, member.host.clone());
            }
            let outcome = {
                let switching = pin!(self.switch(member, &asking, &mut request, flight));
                self.ending_with_target(member, switching).await
            };
            if let Err(error) = &outcome {
                self.note_error(member, error);
            }
            match outcome {
                Ok(answer) => return Ok(answer),
                Err(error) => tries.failed(member, error)?,
            }
        }
        Err(tries.over())
    }

    /// One target. After an unsent error `request` is as it was.
    pub(super) async fn switch(
        &self,
        member: &Member,
        asking: &Asking<'_>,
        request: &mut Request<RequestBody>,
        in_flight: InFlight,
    ) -> Result<(Answer, InFlight), Error> {
        let protocol = member.transport.protocol;
        if protocol != Protocol::Http1 {
            // Boxed: see `Upstream::send`.
            let stream = Box::pin(self.switch_stream(member, asking, request)).await?;
            if let Some(answer) = stream {
                return Ok((answer, in_flight));
            }
            if protocol != Protocol::Auto {
                let address = member.target.address();
                let detail = format!("{address}: takes no websockets over HTTP/2");
                return Err(Error::upstream(Kind::HttpUpgradeFailed, detail).unsent());
            }
        }
        let answer = self.switch_connection(member, asking, request).await?;
        Ok((answer, in_flight))
    }

    /// On a stream. `None`: the target takes none, and nothing was sent.
    async fn switch_stream(
        &self,
        member: &Member,
        asking: &Asking<'_>,
        request: &mut Request<RequestBody>,
    ) -> Result<Option<Answer>, Error> {
        let Asking { worker, limit, .. } = *asking;
        let keep = self.keep(worker);
        let mut ticket = match self.channel(member, worker.index, keep).await? {
            Channel::Stream(ticket, _) => ticket,
            Channel::H1(Some(fresh)) => {
                // Somebody else's: a handshake has a connection to itself.
                Lease::new(fresh, &member.pool, keep).give_back();
                return Ok(None);
            }
            Channel::H1(None) => return Ok(None),
        };
        if !ticket.connection.takes_extended_connect() {
            return Ok(None);
        }
        let peer = ticket.connection.peer().clone();
        let spare = Spare::head(request);
        let (mut parts, _) =
            std::mem::replace(request, Request::new(RequestBody::empty())).into_parts();
        let key = handshake::strip(&mut parts.headers);
        parts.method = Method::CONNECT;
        parts
            .extensions
            .insert(hyper::ext::Protocol::from_static("websocket"));
        let sending = as_h2(parts, member.transport.scheme())?;
        let outcome = {
            let sending = Request::from_parts(sending, Outgoing::empty());
            let mut answer = pin!(ticket.connection.send(sending));
            let due = limit.map(|limit| Instant::now() + limit);
            let deadline = &mut ticket.deadline;
            poll_fn(|cx| {
                let ask = |cx: &mut Context<'_>| answer.as_mut().poll(cx);
                deadline.watch(cx, ask, |passed| due.filter(|_| passed.is_none()))
            })
            .await
        };
        let response = match outcome {
            Some(Ok(response)) => response,
            Some(Err(mut error)) => {
                let returned = error.take_message().is_some();
                let error = broken(error.error(), &ticket.connection);
                let unsent = returned || error.unsent;
                if let Some(again) = spare.and_then(Spare::request).filter(|_| unsent) {
                    *request = again;
                }
                return Err(Error { unsent, ..error });
            }
            None => return Err(no_head(&peer, limit)),
        };
        if response.status() != StatusCode::OK {
            let idle = self.timeouts.idle;
            let refused =
                response.map(|body| UpstreamBody::new(Held::H2(ticket, body), None, idle));
            return Ok(Some(Answer::Refused(refused)));
        }
        let mut response = response;
        let upgraded = hyper::upgrade::on(&mut response)
            .await
            .map_err(|e| Error::exchange(&e, &peer))?;
        // As the client's own handshake has it.
        let mut response = response.map(drop);
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let fields = response.headers_mut();
        fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
        if let Some(key) = key {
            fields.insert(SEC_WEBSOCKET_ACCEPT, handshake::accept(&key));
        }
        let stream = Stream {
            link: Link::H2 {
                link: TokioIo::new(upgraded),
                _ticket: ticket,
            },
        };
        let first = Bytes::new();
        Ok(Some(Answer::Switched(response, Switched { stream, first })))
    }

    /// On a connection of its own.
    async fn switch_connection(
        &self,
        member: &Member,
        asking: &Asking<'_>,
        request: &mut Request<RequestBody>,
    ) -> Result<Answer, Error> {
        let Asking {
            worker,
            limit,
            client,
            within,
        } = *asking;
        let target = &member.target;
        let most = self.most_connections();
        let slot = self.free(member, || {
            target.slot(most).or_else(|| {
                // An idle one makes room, as soon as it is closed.
                drop(member.pool.check_out_any());
                target.slot(most)
            })
        });
        let slot = slot.await?;
        let to = member.to(client, worker.index, within);
        let mut connection = dial_h1(to, slot).await?;
        let response = ask(&mut connection, request, None, limit, target.address()).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // Not kept: what was asked of it is not what pooled connections are for.
            let keep = Keep::new(0, Duration::ZERO, worker.index, worker.of);
            let held = Held::H1(Lease::new(connection, &member.pool, keep));
            let idle = self.timeouts.idle;
            let response = response.map(|()| UpstreamBody::new(held, None, idle));
            return Ok(Answer::Refused(response));
        }
        let (link, first, slot) = connection.into_parts();
        let switched = Switched {
            stream: Stream {
                link: Link::H1 { link, _slot: slot },
            },
            first,
        };
        Ok(Answer::Switched(response, switched))
    }
}

fn no_head(peer: &TargetAddr, limit: Option<Duration>) -> Error {
    let limit = limit.unwrap_or_default();
    let detail = format!("{peer}: no response head within {limit:?}");
    Error::upstream(Kind::HttpResponseTimeout, detail)
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.link {
            Link::H1 { .. } => "Stream(HTTP/1)",
            Link::H2 { .. } => "Stream(HTTP/2)",
        })
    }
}

macro_rules! either {
    ($this:expr, $link:ident => $call:expr) => {
        match &mut $this.link {
            Link::H1 { link: $link, .. } => $call,
            Link::H2 { link: $link, .. } => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, link => Pin::new(link).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, link => Pin::new(link).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, link => Pin::new(link).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, link => Pin::new(link).poll_shutdown(cx))
    }
}
