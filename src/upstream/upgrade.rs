//! A request that asks the origin to switch protocols. It goes out on a connection of its own, never a pooled one: if the
//! origin agrees, the connection is no HTTP any more; a pooled one might just be closing, and a handshake is not sent twice.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::header::HOST;
use ::http::{Request, Response, StatusCode, Version};
use bytes::Bytes;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::RequestBody;
use super::connect::dial;
use super::connection::{Connection, Parts, Slot};
use super::error::{Error, Kind};
use super::exchange::{ambiguous, origin_form};
use super::pool::{InFlight, Keep, Lease};
use super::response::UpstreamBody;
use super::select::Tries;
use super::wire::Wire;
use super::{Member, SendOptions, Upstream};
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

/// Its bytes. Dropping it closes the connection and frees its place among the target's.
#[derive(Debug)]
pub struct Stream {
    wire: Wire,
    _slot: Slot,
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
        let limit = options.response_timeout.or(self.timeouts.response);
        let mut tries = Tries::new(self, worker.index, &options);
        while let Some(member) = tries.next() {
            if options.host_from_target {
                request.headers_mut().insert(HOST, member.host.clone());
            }
            match self.switch(member, worker, &mut request, limit).await {
                Ok(answer) => return Ok(answer),
                Err(error) => tries.failed(member, error)?,
            }
        }
        Err(tries.over())
    }

    /// One target. After an unsent error `request` is as it was.
    async fn switch(
        &self,
        member: &Member,
        worker: &WorkerContext,
        request: &mut Request<RequestBody>,
        limit: Option<Duration>,
    ) -> Result<(Answer, InFlight), Error> {
        let target = &member.target;
        let in_flight = InFlight::begin(target, worker.index);
        let address = target.address();
        let Some(slot) = target.slot(self.pool.max_connections) else {
            let open = target.connections();
            let detail = format!("{address}: {open} connections are open");
            return Err(Error::upstream(Kind::ConnectionLimitReached, detail).unsent());
        };
        let within = self.timeouts.connect;
        let mut parts = dial(address, target.names(), within, slot).await?;
        let response = ask(&mut parts, request, limit, member).await?;
        if let Some(fault) = ambiguous(response.headers()) {
            let detail = format!("{address}: {fault}");
            return Err(Error::upstream(Kind::HttpProtocolError, detail));
        }
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let connection = Connection::new(parts, worker.index);
            // Not kept: what was asked of it is not what pooled connections are for.
            let keep = Keep::new(0, Duration::ZERO, worker.index, worker.of);
            let lease = Lease::new(connection, target, keep);
            let idle = self.timeouts.idle;
            let response = response.map(|body| UpstreamBody::new(body, lease, None, idle));
            return Ok((Answer::Refused(response), in_flight));
        }
        let Parts {
            sender: _sender,
            mut http,
            slot,
        } = parts;
        // The head is read and the request written: hyper has nothing left to do but to let go.
        poll_fn(|cx| http.poll_without_shutdown(cx))
            .await
            .map_err(|e| Error::exchange(&e, address))?;
        let http = http.into_parts();
        let switched = Switched {
            stream: Stream {
                wire: http.io.into_inner(),
                _slot: slot,
            },
            first: http.read_buf,
        };
        let answer = Answer::Switched(response.map(|_| ()), switched);
        Ok((answer, in_flight))
    }
}

/// Sends and waits for the answer's head, no longer than `limit`. `request` is left empty, but for an unsent error.
async fn ask(
    parts: &mut Parts,
    request: &mut Request<RequestBody>,
    limit: Option<Duration>,
    member: &Member,
) -> Result<Response<Incoming>, Error> {
    let address = member.target.address();
    let sending = std::mem::replace(request, Request::new(RequestBody::empty()));
    let outcome = {
        let http = &mut parts.http;
        let mut over = false;
        let mut answer = pin!(parts.sender.try_send_request(sending));
        let both = poll_fn(|cx| {
            // hyper first: what it reads is then at hand. Its end is told through the answer.
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            if over {
                return Poll::Pending;
            }
            over = http.poll_without_shutdown(cx).is_ready();
            answer.as_mut().poll(cx)
        });
        match limit {
            Some(limit) => tokio::time::timeout(limit, both).await.ok(),
            None => Some(both.await),
        }
    };
    match outcome {
        Some(Ok(response)) => Ok(response),
        Some(Err(mut error)) => {
            let unsent = error
                .take_message()
                .map(|message| *request = message)
                .is_some();
            let error = Error::exchange(error.error(), address);
            Err(Error { unsent, ..error })
        }
        None => {
            let limit = limit.unwrap_or_default();
            let detail = format!("{address}: no response head within {limit:?}");
            Err(Error::upstream(Kind::HttpResponseTimeout, detail))
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
