//! Connections of `[tcp]`: let in, connected to a target, and passed on until they end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::entry::{Entry, Plane};
use super::http::Listener;
use super::tls::late;
use crate::generation::{EpochGuard, Serving};
use crate::http::Face as _;
use crate::http::record::session::SessionLine;
use crate::l4::relay::{Terms, relay};
use crate::l4::tcp::{Client, Tcp};
use crate::net::{Peer, Sever};
use crate::session::{Kind, Start};
use crate::tls::hello::{self, Hello};

/// How long an alert may take to leave.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// Serves one accepted connection to its end. It is a long flow from the moment that it has a target: then it lives and ends by
/// its own definition, not with the connections of its epoch.
pub async fn serve<S>(
    mut stream: S,
    peer: Peer,
    local: Option<std::net::SocketAddr>,
    listener: Arc<Listener>,
    accepted: Arc<Tcp>,
    guard: EpochGuard,
) where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let worker = listener.worker.clone();
    // A swap may have come between.
    let accepted = now(&listener.slot.pin(), &accepted);
    if !accepted.admits(peer.ip()) {
        tracing::debug!(%peer, listener = %accepted.spec.name, "not allowed");
        stream.sever();
        return;
    }
    let mut hello = Hello::default();
    if accepted.asks_for_sni() {
        let read = tokio::select! {
            biased;
            read = hello::read(&mut stream) => read,
            () = late(accepted.spec.header, &guard) => Err(io::ErrorKind::TimedOut.into()),
        };
        match read {
            Ok(read) => hello = read,
            Err(error) => {
                tracing::debug!(%peer, listener = %accepted.spec.name, %error, "no TLS hello");
                return;
            }
        }
    }
    let serving = listener.slot.pin();
    let tcp = now(&serving, &accepted);
    let flight = serving.generation.begin(listener.slot.binding);
    // What it goes on with needs no other routes: a session must not keep those of an old generation in memory.
    drop((serving, accepted));
    let Some(upstream) = tcp.upstream(hello.sni.as_deref()).cloned() else {
        tracing::debug!(%peer, listener = %tcp.spec.name, sni = ?hello.sni, "nobody has this name");
        return refuse(stream).await;
    };
    let client = Client {
        peer: peer.address(),
        local,
    };
    let connecting = tcp.connect(&worker, client, &upstream, &flight);
    let Some(connected) = guard.epoch.cut.run_until_cancelled(connecting).await else {
        stream.sever();
        return;
    };
    let (target, mut in_flight) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            tracing::debug!(%peer, listener = %tcp.spec.name, %error, "no target");
            stream.sever();
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
            client: client.peer,
            listener: Some(tcp.spec.name.clone()),
            upstream: Some(upstream.name().clone()),
            destination: Some(in_flight.target.key().1.to_string().into()),
            watch: Some(flight.watch()),
            ..Start::default()
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
    let relayed = relay(stream, target, hello.bytes, terms).await;
    in_flight.end_session(relayed.to_client);
    line.end((&relayed.cause).into());
    tracing::debug!(%peer, ?relayed, "session ended");
}

/// What serves now; an address that is another thing by now goes on as it was accepted.
fn now(serving: &Serving<Entry>, accepted: &Arc<Tcp>) -> Arc<Tcp> {
    match &serving.entry.plane {
        Plane::Tcp(tcp) => tcp.clone(),
        _ => accepted.clone(),
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
