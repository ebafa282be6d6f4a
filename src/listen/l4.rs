//! Connections of `[tcp]`: let in, connected to a target, and passed on until they end. Where TLS is ended here, that comes
//! first, within `timeouts.header`; where they go by the name in a hello, `names` has read it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::entry::{Entry, Plane};
use super::http::Listener;
use super::tls::{hello, late, take_in};
use crate::generation::{EpochGuard, Flight, Serving};
use crate::http::Face as _;
use crate::http::record::session::{SessionLine, came_to_nothing};
use crate::l4::bridge::with_target;
use crate::l4::names::Way;
use crate::l4::relay::{Terms, relay};
use crate::l4::tcp::{Client, Target, Tcp};
use crate::net::{Peer, Sever};
use crate::session::{Kind, Start};
use crate::tls::{Failure, Handshake, Session};

/// A connection that has been let in.
pub(super) struct Coming {
    pub(super) peer: Peer,
    /// The address of ours that it came to.
    pub(super) local: Option<SocketAddr>,
    pub(super) listener: Arc<Listener>,
    pub(super) guard: EpochGuard,
}

/// Serves one accepted connection to its end. `accepted` is what the address did when it came. It is a long flow from the moment
/// that it has a target: then it lives and ends by its own definition, not with the connections of its epoch.
pub(super) async fn serve<S>(stream: S, coming: Coming, accepted: Arc<Tcp>)
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    // A swap may have come between.
    let accepted = match &coming.listener.slot.pin().entry.plane {
        Plane::Tcp(tcp) => tcp.clone(),
        _ => accepted,
    };
    let peer = coming.peer;
    if !accepted.admits(peer.ip()) {
        tracing::debug!(%peer, listener = %accepted.spec.name, "not allowed");
        stream.sever();
        return;
    }
    if accepted.tls.is_some() {
        // Boxed: the larger of them would be the size of all.
        Box::pin(coming.secure(stream, Bytes::new(), accepted)).await;
    } else if let Some((way, flight)) = coming.way(accepted) {
        coming.join(stream, way, flight, Bytes::new()).await;
    }
}

/// What serves now. An address that is another thing by now, or treats the first bytes in another way, goes on as it was
/// accepted.
fn now(serving: &Serving<Entry>, accepted: &Arc<Tcp>) -> Arc<Tcp> {
    match &serving.entry.plane {
        Plane::Tcp(tcp) if tcp.tls.is_some() == accepted.tls.is_some() => tcp.clone(),
        _ => accepted.clone(),
    }
}

impl Coming {
    /// What must be over before there is a target, `limit` after the connection came.
    pub(super) async fn in_time<T>(
        &self,
        limit: Option<std::time::Duration>,
        what: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        tokio::select! {
            biased;
            done = what => done,
            () = late(limit, Instant::now(), &self.guard) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Ends TLS. `first`: what was read of it.
    pub(super) async fn secure<S>(self, stream: S, first: Bytes, accepted: Arc<Tcp>)
    where
        S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
    {
        let counters = &self.listener.handshakes;
        let handshake = self.handshake(stream, first, &accepted);
        match self.in_time(accepted.spec.header, handshake).await {
            Ok((stream, session)) => {
                counters.done(session.resumed);
                if let Some((way, flight)) = self.way(accepted) {
                    self.join(stream, way, flight, Bytes::new()).await;
                }
            }
            Err(error) => {
                counters.failed(match error.kind() {
                    io::ErrorKind::TimedOut => Failure::Timeout,
                    _ => Failure::of(&error),
                });
                tracing::debug!(peer = %self.peer, %error, "TLS handshake failed");
            }
        }
    }

    async fn handshake<S>(
        &self,
        stream: S,
        first: Bytes,
        accepted: &Arc<Tcp>,
    ) -> io::Result<(TlsStream<S>, Session)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (hello, rest) = hello(stream, first).await?;
        let now = now(&self.listener.slot.pin(), accepted);
        let Some(server) = &now.tls else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let Handshake {
            config,
            client_auth,
        } = server.handshake(hello.client_hello().server_name());
        drop(now);
        let stream = hello.into_stream_with(config, |session| take_in(session, &rest));
        let stream = stream.await?;
        let session = Session::of(stream.get_ref().1, client_auth)?;
        Ok((stream, session))
    }

    /// Where it goes now, by the one upstream that its listener has. What it goes on with needs no routes: a session must not keep
    /// those of an old generation in memory.
    fn way(&self, accepted: Arc<Tcp>) -> Option<(Way, Flight)> {
        let serving = self.listener.slot.pin();
        let tcp = now(&serving, &accepted);
        let upstream = tcp.upstream()?.clone();
        let flight = serving.generation.begin(self.listener.slot.binding);
        Some((Way { tcp, upstream }, flight))
    }

    /// Joins it with a target. `read`: what was read of it. `flight` has begun in the generation that `way` is of, or in a later
    /// one.
    pub(super) async fn join<S>(self, stream: S, way: Way, flight: Flight, read: Bytes)
    where
        S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
    {
        let Way { tcp, upstream } = way;
        let Coming {
            peer,
            local,
            listener,
            guard,
        } = self;
        let worker = listener.worker.clone();
        if !tcp.admits(peer.ip()) {
            tracing::debug!(%peer, listener = %tcp.spec.name, "not allowed");
            stream.sever();
            return;
        }
        let client = Client {
            peer: peer.address(),
            local,
        };
        let began = std::time::Instant::now();
        let connecting = tcp.connect(&worker, client, &upstream, &flight);
        let Some(connected) = guard.epoch.cut.run_until_cancelled(connecting).await else {
            stream.sever();
            return;
        };
        let start = Start {
            client: client.peer,
            listener: Some(tcp.spec.name.clone()),
            upstream: Some(upstream.name().clone()),
            watch: Some(flight.watch()),
            ..Start::default()
        };
        let (target, mut in_flight) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                tracing::warn!(%peer, listener = %tcp.spec.name, %error, "no target");
                stream.sever();
                let (log, status) = (tcp.log.as_ref(), error.status().as_u16());
                came_to_nothing(log, worker.index, Kind::Tcp, start, began, status);
                return;
            }
        };
        let newest = listener.slot.pin();
        flight.settle(&newest.generation, |definition| {
            newest.entry.holds(definition)
        });
        drop((newest, listener, guard));
        let session = worker.sessions.open(
            Kind::Tcp,
            Start {
                destination: Some(in_flight.target.key().1.to_string().into()),
                ..start
            },
        );
        let line = SessionLine::new(tcp.log.clone(), worker.index, &session);
        let (idle, bandwidth) = (tcp.spec.idle, tcp.spec.bandwidth);
        drop((tcp, upstream));
        let terms = Terms {
            idle,
            bandwidth,
            flight: &flight,
            in_flight: Some(&mut in_flight),
            session: Some(&session),
        };
        let (relayed, last) = match target {
            Target::Stream(link) => (relay(stream, link, read, terms).await, None),
            Target::Websocket(switched) => {
                // Boxed: of many sessions few come here.
                let (relayed, last) = Box::pin(with_target(stream, switched, read, terms)).await;
                (relayed, Some(last))
            }
        };
        in_flight.end_session(relayed.to_client);
        drop(in_flight);
        line.end((&relayed.cause).into());
        tracing::debug!(%peer, ?relayed, "session ended");
        if let Some(last) = last {
            Box::pin(last.say()).await;
        }
    }
}
