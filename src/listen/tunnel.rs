//! Connections of agents: TLS with what the address presents when the hello has come, then the tunnel's own words.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::entry::Plane;
use super::http::Listener;
use crate::config::tunnel::TunnelSpec;
use crate::generation::EpochGuard;
use crate::net::{Peer, Sever};
use crate::tls::{Failure, Server, names_of};
use crate::tunnel::greeting::secured;
use crate::tunnel::session::{self, Ends};
use crate::tunnel::{Hub, Tunnel};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a generation does for agents at one address.
#[derive(Debug)]
pub struct Accepting {
    pub hub: Arc<Hub>,
    pub tunnel: Arc<Tunnel>,
    pub spec: Arc<TunnelSpec>,
    pub server: Server,
}

/// Serves one accepted connection to its end.
pub async fn serve<S>(
    stream: S,
    peer: Peer,
    listener: Arc<Listener>,
    accepted: Arc<Accepting>,
    guard: EpochGuard,
) where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let counters = listener.handshakes.clone();
    let ends = Ends {
        finish: guard.epoch.finish.clone(),
        cut: guard.epoch.cut.clone(),
    };
    let shaken = tokio::time::timeout(HANDSHAKE, handshake(stream, &listener, accepted));
    let (stream, accepting) = match ends.cut.run_until_cancelled(shaken).await {
        Some(Ok(Ok(done))) => done,
        Some(Ok(Err(error))) => {
            counters.failed(Failure::of(&error));
            tracing::info!(%peer, %error, "an agent's TLS handshake failed");
            return;
        }
        Some(Err(_)) => return counters.failed(Failure::Timeout),
        None => return,
    };
    drop(listener);
    let connection = stream.get_ref().1;
    counters.done(false);
    drop(counters);
    let names = names_of(connection).unwrap_or_default();
    let secured = match secured(connection, names) {
        Ok(secured) => secured,
        Err(error) => {
            tracing::warn!(%peer, %error, "an agent is not let in");
            return;
        }
    };
    let Accepting {
        hub, tunnel, spec, ..
    } = &*accepting;
    let of = (hub.clone(), tunnel.clone(), spec.clone());
    let name = tunnel.name.clone();
    // A session outlives the entry that it came by.
    drop(accepting);
    if let Err(error) = session::serve(stream, peer.to_string(), secured, of, ends).await {
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                tracing::warn!(tunnel = %name, %peer, %error, "an agent is refused");
            }
            _ => tracing::info!(tunnel = %name, %peer, %error, "no agent's session"),
        }
    }
}

async fn handshake<S>(
    stream: S,
    listener: &Listener,
    accepted: Arc<Accepting>,
) -> io::Result<(TlsStream<S>, Arc<Accepting>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello = LazyConfigAcceptor::new(Default::default(), stream).await?;
    let accepting = match &listener.slot.pin().entry.plane {
        Plane::Tunnel(now) => now.clone(),
        // The address is something else by now; this connection came before.
        _ => accepted,
    };
    let name = hello.client_hello().server_name().map(str::to_owned);
    let config = accepting.server.handshake(name.as_deref()).config;
    let stream = hello.into_stream(config).await?;
    Ok((stream, accepting))
}
