//! Dialing: from an address to a connection that speaks HTTP, within one time limit.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ::http::HeaderValue;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::connection::{Connection, Slot};
use super::dial::ServiceAt;
use super::error::{Error, Kind};
use super::link::Link;
use super::multiplex;
use super::resolve::Names;
use super::transport::{Tls, Transport};
use super::via::{self, Hop, Way};
use super::wire::Socket;
use crate::config::scalar::TargetAddr;
use crate::config::upstream::Protocol;
use crate::net::proxy_protocol;
use crate::tls::client::Offer;

/// Addresses of a name that are asked of a proxy.
const ADDRESSES: usize = 3;

/// A new connection in what it speaks.
pub(super) enum Dialed {
    H1(Box<Connection>),
    H2(Box<multiplex::Parts>),
}

/// Whom to dial, and for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct To<'a> {
    pub(super) address: &'a TargetAddr,
    /// Of an address that is a name.
    pub(super) names: Option<&'a Names>,
    pub(super) transport: &'a Transport,
    /// The client, and the address of ours that it came to.
    pub(super) client: Option<(SocketAddr, SocketAddr)>,
    /// Where it is dialled from: see [`WorkerContext::index`](crate::metrics::WorkerContext).
    pub(super) worker: usize,
    /// The proxies on the way; `None`: direct.
    pub(super) hops: Option<&'a [Hop]>,
    /// What they are told of those passed before; see [`via::Way`].
    pub(super) passed: Option<&'a HeaderValue>,
    /// As in [`ServiceAt`].
    pub(super) speaks: Offer,
    /// For all of it.
    pub(super) within: Duration,
}

/// Dials on the current runtime. `offer`: what may come of it.
///
/// # Errors
/// All of them unsent: refused, unreachable, timed out, the name is not known, TLS or HTTP/2 could not be agreed on.
pub(super) async fn dial(to: To<'_>, slot: Slot, offer: Offer) -> Result<Dialed, Error> {
    let deadline = Instant::now() + to.within;
    let (address, transport) = (to.address, to.transport);
    // Where it is kept, its requests may be of many clients.
    let client = to.client.filter(|_| transport.proxy_protocol.is_some());
    let speaks = transport.within(offer);
    let to = To {
        client,
        speaks,
        ..to
    };
    let socket = socket(to, deadline).await?;
    if transport.tls.is_none() && transport.protocol == Protocol::Http1 {
        return Ok(Dialed::H1(Connection::new(socket, slot, to.worker)));
    }
    // Boxed: of many dials few come here.
    let settle = Box::pin(settle(socket, slot, to, offer));
    timeout_at(deadline, settle)
        .await
        .map_err(|_| late(address, "agreeing on TLS and HTTP/2", to.within))?
}

/// Dials for what is no HTTP.
///
/// # Errors
/// As [`dial`].
pub(super) async fn link(to: To<'_>, slot: Slot) -> Result<Link, Error> {
    let deadline = Instant::now() + to.within;
    let socket = socket(to, deadline).await?;
    let Some(tls) = &to.transport.tls else {
        return Ok(Link::socket(socket, Some(slot)));
    };
    let secure = Box::pin(secure(socket, tls, Offer::Nothing, to.address));
    let socket = timeout_at(deadline, secure).await;
    let (socket, _) = socket.map_err(|_| late(to.address, "agreeing on TLS", to.within))??;
    Ok(Link::socket(socket, Some(slot)))
}

fn late(address: &TargetAddr, doing: &str, within: Duration) -> Error {
    let detail = format!("{address}: {doing} took more than {within:?}");
    Error::upstream(Kind::ConnectionTimeout, detail).unsent()
}

/// A connection on which nothing was said but who the client is.
async fn socket(to: To<'_>, deadline: Instant) -> Result<Socket, Error> {
    let socket = connected(to, deadline).await?;
    match to.transport.proxy_protocol {
        Some(version) => {
            let header = proxy_protocol::header(version, to.client);
            // Boxed: of many dials few come here.
            Box::pin(introduced(socket, header, to, deadline)).await
        }
        None => Ok(socket),
    }
}

/// The header comes first of all, in one piece.
async fn introduced(
    mut socket: Socket,
    header: Vec<u8>,
    to: To<'_>,
    deadline: Instant,
) -> Result<Socket, Error> {
    let write = timeout_at(deadline, socket.write_all(&header)).await;
    write
        .map_err(|_| late(to.address, "saying who the client is", to.within))?
        .map_err(|e| Error::dial(&e, to.address))?;
    Ok(socket)
}

/// Through the proxies on the way. Where the last one takes no names, some addresses of a name are tried.
async fn through(to: To<'_>, hops: &[Hop], deadline: Instant) -> Result<Socket, Error> {
    let way = Way {
        hops,
        worker: to.worker,
        passed: to.passed,
    };
    let open = async {
        let names = to.names.filter(|_| !via::takes_names(hops));
        let (TargetAddr::Name(..), Some(names)) = (to.address, names) else {
            return via::open(way, to.address, deadline).await;
        };
        let mut last = names.error();
        for address in names.rotated().into_iter().take(ADDRESSES) {
            let address = TargetAddr::Ip(address);
            match via::open(way, &address, deadline).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    let opened = timeout_at(deadline, open).await;
    opened
        .map_err(|_| late(to.address, "connecting through proxies", to.within))?
        .map(Socket::Within)
}

async fn connected(to: To<'_>, deadline: Instant) -> Result<Socket, Error> {
    if let Some(hops) = to.hops {
        // Boxed: of many dials few come here.
        return Box::pin(through(to, hops, deadline)).await;
    }
    let address = to.address;
    let late = |_| late(address, "connecting", to.within);
    match (address, to.names) {
        (TargetAddr::Ip(ip), _) => timeout_at(deadline, tcp(*ip))
            .await
            .map_err(late)?
            .map_err(|e| Error::dial(&e, address)),
        (TargetAddr::Name(..), Some(names)) => any(names, deadline).await,
        #[cfg(unix)]
        (TargetAddr::Unix(path), _) => timeout_at(deadline, UnixStream::connect(path))
            .await
            .map_err(late)?
            .map(Socket::Unix)
            .map_err(|e| Error::dial(&e, address)),
        (TargetAddr::Tunnel(agent, service), _) => {
            let service = ServiceAt {
                agent,
                service,
                client: to.client,
                speaks: to.speaks,
            };
            within_tunnel(service, to.transport, deadline).await
        }
        _ => {
            let error = io::Error::from(io::ErrorKind::Unsupported);
            Err(Error::dial(&error, address))
        }
    }
}

/// A service of an agent.
pub(super) async fn within_tunnel(
    to: ServiceAt<'_>,
    transport: &Transport,
    deadline: Instant,
) -> Result<Socket, Error> {
    let Some(tunnels) = &transport.tunnels else {
        return Err(no_tunnels(to));
    };
    tunnels.dial(to, deadline).await.map(Socket::Within)
}

pub(super) fn no_tunnels(to: ServiceAt<'_>) -> Error {
    let ServiceAt { agent, service, .. } = to;
    let detail = format!("tunnel:{agent}/{service}: there are no tunnels here");
    Error::upstream(Kind::DestinationUnavailable, detail).unsent()
}

/// TLS; whether h2 was chosen in it.
async fn secure(
    socket: Socket,
    tls: &Tls,
    offer: Offer,
    address: &TargetAddr,
) -> Result<(Socket, bool), Error> {
    let connector = TlsConnector::from(tls.client.config(offer));
    let stream = connector
        .connect(tls.name.clone(), socket)
        .await
        .map_err(|error| Error::handshake(&error, address))?;
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Socket::Tls(Box::new(stream)), h2))
}

/// TLS, then what was chosen in it.
async fn settle(socket: Socket, slot: Slot, to: To<'_>, offer: Offer) -> Result<Dialed, Error> {
    let (address, transport) = (to.address, to.transport);
    let http1 = |socket, slot| Ok(Dialed::H1(Connection::new(socket, slot, to.worker)));
    let Some(tls) = &transport.tls else {
        return match offer {
            Offer::H1 | Offer::Nothing => http1(socket, slot),
            Offer::H2 | Offer::Both => http2(socket, slot, address).await,
        };
    };
    let (socket, h2) = secure(socket, tls, offer, address).await?;
    match (h2, offer) {
        (true, _) => http2(socket, slot, address).await,
        (false, Offer::H1 | Offer::Both | Offer::Nothing) => http1(socket, slot),
        (false, Offer::H2) => {
            let detail = format!("{address}: did not choose h2 by ALPN");
            Err(Error::upstream(Kind::TlsProtocolError, detail).unsent())
        }
    }
}

/// Each address of a name in turn. One that does not answer may use its share of the time that is left, so that the
/// next ones are tried before the limit.
async fn any(names: &Names, deadline: Instant) -> Result<Socket, Error> {
    let addresses = names.rotated();
    let mut last = names.error();
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        match tokio::time::timeout(share, tcp(*address)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => last = Error::dial(&error, &format_args!("{names} at {address}")),
            Err(_) => {
                let detail = format!("{names} at {address}: not connected within {share:?}");
                last = Error::upstream(Kind::ConnectionTimeout, detail).unsent();
            }
        }
    }
    Err(last)
}

async fn tcp(address: SocketAddr) -> io::Result<Socket> {
    let stream = TcpStream::connect(address).await?;
    // Heads and bodies are written in whole pieces: waiting for more would only delay them.
    stream.set_nodelay(true)?;
    Ok(Socket::Tcp(stream))
}

async fn http2(socket: Socket, slot: Slot, address: &TargetAddr) -> Result<Dialed, Error> {
    let parts = multiplex::open(socket, slot, address).await?;
    Ok(Dialed::H2(Box::new(parts)))
}
