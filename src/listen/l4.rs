//! Connections of `[tcp]`: let in, connected to a target, and passed on until they end.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::entry::Plane;
use super::http::Listener;
use crate::generation::EpochGuard;
use crate::http::Face as _;
use crate::http::record::session::SessionLine;
use crate::l4::relay::{Terms, relay};
use crate::l4::tcp::{Client, Tcp};
use crate::net::{Peer, Sever};
use crate::session::{Kind, Start};

/// Serves one accepted connection to its end. It is a long flow from the moment that it has a target: then it lives and ends by
/// its own definition, not with the connections of its epoch.
pub async fn serve<S>(
    stream: S,
    peer: Peer,
    local: Option<std::net::SocketAddr>,
    listener: Arc<Listener>,
    accepted: Arc<Tcp>,
    guard: EpochGuard,
) where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let worker = listener.worker.clone();
    let serving = listener.slot.pin();
    // A swap may have come between.
    let tcp = match &serving.entry.plane {
        Plane::Tcp(tcp) => tcp.clone(),
        _ => accepted,
    };
    let flight = serving.generation.begin(listener.slot.binding);
    // What it goes on with needs no other routes: a session must not keep those of an old generation in memory.
    drop(serving);
    if !tcp.admits(peer.ip()) {
        tracing::debug!(%peer, listener = %tcp.spec.name, "not allowed");
        stream.sever();
        return;
    }
    let client = Client {
        peer: peer.address(),
        local,
    };
    let connecting = tcp.connect(&worker, client, &flight);
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
            upstream: Some(tcp.spec.upstream.clone()),
            destination: Some(in_flight.target.key().1.to_string().into()),
            watch: Some(flight.watch()),
            ..Start::default()
        },
    );
    let line = SessionLine::new(tcp.log.clone(), worker.index, &session);
    let (idle, bandwidth) = (tcp.spec.idle, tcp.spec.bandwidth);
    drop(tcp);
    let terms = Terms {
        idle,
        bandwidth,
        flight: &flight,
        in_flight: Some(&mut in_flight),
        session: Some(&session),
    };
    let relayed = relay(stream, target, Bytes::new(), terms).await;
    in_flight.end_session(relayed.to_client);
    line.end((&relayed.cause).into());
    tracing::debug!(%peer, ?relayed, "session ended");
}
