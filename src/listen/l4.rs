//! Connections of `[tcp]`: let in, connected to a target, and passed on until they end. Where it ends TLS, or goes by the name
//! in a hello, that comes first, within `timeouts.header`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::entry::{Entry, Plane};
use super::http::Listener;
use super::tls::late;
use crate::generation::{EpochGuard, Serving};
use crate::http::Face as _;
use crate::http::record::session::{SessionLine, came_to_nothing};
use crate::l4::bridge::with_target;
use crate::l4::relay::{Terms, relay};
use crate::l4::tcp::{Client, Target, Tcp};
use crate::net::{Peer, Sever};
use crate::session::{Kind, Start};
use crate::tls::hello::{self, Hello};
use crate::tls::{Failure, Handshake, Session};

/// How long an alert may take to leave.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// A connection on its way to a target.
struct Coming {
    peer: Peer,
    local: Option<SocketAddr>,
    listener: Arc<Listener>,
    /// What the address did when it looked at the first byte.
    accepted: Arc<Tcp>,
    guard: EpochGuard,
}

/// Serves one accepted connection to its end. It is a long flow from the moment that it has a target: then it lives and ends by
/// its own definition, not with the connections of its epoch.
pub async fn serve<S>(
    mut stream: S,
    peer: Peer,
    local: Option<SocketAddr>,
    listener: Arc<Listener>,
    accepted: Arc<Tcp>,
    guard: EpochGuard,
) where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    // A swap may have come between.
    let accepted = match &listener.slot.pin().entry.plane {
        Plane::Tcp(tcp) => tcp.clone(),
        _ => accepted,
    };
    if !accepted.admits(peer.ip()) {
        tracing::debug!(%peer, listener = %accepted.spec.name, "not allowed");
        stream.sever();
        return;
    }
    let coming = Coming {
        peer,
        local,
        listener,
        accepted,
        guard,
    };
    if coming.accepted.tls.is_some() {
        // Boxed: the larger of them would be the size of all.
        return Box::pin(coming.secure(stream)).await;
    }
    if !coming.accepted.asks_for_sni() {
        return coming.pass(stream, None).await;
    }
    match coming.in_time(hello::read(&mut stream)).await {
        Ok(hello) => coming.pass(stream, Some(hello)).await,
        Err(error) => {
            let listener = &coming.accepted.spec.name;
            tracing::debug!(%peer, %listener, %error, "no TLS hello");
        }
    }
}

impl Coming {
    /// What must be over before there is a target.
    async fn in_time<T>(&self, what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::select! {
            biased;
            done = what => done,
            () = late(self.accepted.spec.header, &self.guard) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Ends TLS.
    async fn secure<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
    {
        let counters = &self.listener.handshakes;
        match self.in_time(self.handshake(stream)).await {
            Ok((stream, session)) => {
                counters.done(session.resumed);
                self.pass(stream, None).await;
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

    async fn handshake<S>(&self, stream: S) -> io::Result<(TlsStream<S>, Session)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello = LazyConfigAcceptor::new(Default::default(), stream).await?;
        let now = self.now(&self.listener.slot.pin(), false);
        let Some(server) = &now.tls else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let Handshake {
            config,
            client_auth,
        } = server.handshake(hello.client_hello().server_name());
        drop(now);
        let stream = hello.into_stream(config).await?;
        let session = Session::of(stream.get_ref().1, client_auth)?;
        Ok((stream, session))
    }

    /// What serves now. An address that is another thing by now, or treats the first bytes in another way, goes on as it was
    /// accepted. `read`: the hello was.
    fn now(&self, serving: &Serving<Entry>, read: bool) -> Arc<Tcp> {
        let accepted = &self.accepted;
        match &serving.entry.plane {
            Plane::Tcp(tcp)
                if tcp.tls.is_some() == accepted.tls.is_some() && (read || !tcp.asks_for_sni()) =>
            {
                tcp.clone()
            }
            _ => accepted.clone(),
        }
    }

    /// Joins it with a target. `hello`: what was read of it.
    async fn pass<S>(self, stream: S, hello: Option<Hello>)
    where
        S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
    {
        let serving = self.listener.slot.pin();
        let tcp = self.now(&serving, hello.is_some());
        let flight = serving.generation.begin(self.listener.slot.binding);
        // What it goes on with needs no other routes: a session must not keep those of an old generation in memory.
        drop(serving);
        let Coming {
            peer,
            local,
            listener,
            accepted,
            guard,
        } = self;
        drop(accepted);
        let worker = listener.worker.clone();
        if !tcp.admits(peer.ip()) {
            tracing::debug!(%peer, listener = %tcp.spec.name, "not allowed any more");
            stream.sever();
            return;
        }
        let Hello { sni, bytes } = hello.unwrap_or_default();
        let Some(upstream) = tcp.upstream(sni.as_deref()).cloned() else {
            tracing::debug!(%peer, listener = %tcp.spec.name, ?sni, "nobody has this name");
            return refuse(stream).await;
        };
        let client = Client {
            peer: peer.address(),
            local,
        };
        let began = Instant::now();
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
            Target::Stream(link) => (relay(stream, link, bytes, terms).await, None),
            Target::Websocket(switched) => {
                // Boxed: of many sessions few come here.
                let (relayed, last) = Box::pin(with_target(stream, switched, bytes, terms)).await;
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

/// Says that no server has the name that was asked for, and closes.
async fn refuse<S: AsyncWrite + Unpin>(mut stream: S) {
    let last = async {
        stream.write_all(&hello::UNRECOGNIZED_NAME).await?;
        stream.shutdown().await
    };
    let _ = timeout(LAST_WRITE, last).await;
}
