//! Dialing: from an address to an HTTP/1 connection, within one time limit.

use std::io;
use std::time::Duration;

use hyper::client::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use super::connection::{Parts, Slot};
use super::error::{Error, Kind};
use super::resolve::Names;
use super::wire::{Socket, Wire};
use crate::config::scalar::TargetAddr;

/// Bytes of a response head, and of its trailers. The number of fields stays at hyper's 100: another one would cost two
/// heap allocations per response.
const HEAD: usize = 64 * 1024;
/// Bytes that one connection may buffer in each direction.
const BUFFER: usize = 128 * 1024;

/// Dials `address` on the current runtime, all `within` the limit.
///
/// # Errors
/// All of them unsent: refused, unreachable, timed out, the name is not known.
pub(super) async fn dial(
    address: &TargetAddr,
    names: Option<&Names>,
    within: Duration,
    slot: Slot,
) -> Result<Parts, Error> {
    let deadline = Instant::now() + within;
    let late = || {
        Error::upstream(
            Kind::ConnectionTimeout,
            format!("{address}: not connected within {within:?}"),
        )
        .unsent()
    };
    let socket = match (address, names) {
        (TargetAddr::Ip(ip), _) => timeout_at(deadline, tcp(*ip)).await.map_err(|_| late())?,
        (TargetAddr::Name(..), Some(names)) => return any(names, deadline, slot).await,
        #[cfg(unix)]
        (TargetAddr::Unix(path), _) => timeout_at(deadline, UnixStream::connect(path))
            .await
            .map_err(|_| late())?
            .map(Socket::Unix),
        _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
    };
    let socket = socket.map_err(|e| Error::dial(&e, address))?;
    handshake(socket, slot)
        .await
        .map_err(|e| Error::exchange(&e, address).unsent())
}

/// Each address of a name in turn. One that does not answer may use its share of the time that is left, so that the
/// next ones are tried before the limit.
async fn any(names: &Names, deadline: Instant, slot: Slot) -> Result<Parts, Error> {
    let addresses = names.rotated();
    let mut last = names.error();
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        match tokio::time::timeout(share, tcp(*address)).await {
            Ok(Ok(socket)) => {
                return handshake(socket, slot)
                    .await
                    .map_err(|e| Error::exchange(&e, names).unsent());
            }
            Ok(Err(error)) => last = Error::dial(&error, &format_args!("{names} at {address}")),
            Err(_) => {
                let detail = format!("{names} at {address}: not connected within {share:?}");
                last = Error::upstream(Kind::ConnectionTimeout, detail).unsent();
            }
        }
    }
    Err(last)
}

async fn tcp(address: std::net::SocketAddr) -> io::Result<Socket> {
    let stream = TcpStream::connect(address).await?;
    // Heads and bodies are written in whole pieces: waiting for more would only delay them.
    stream.set_nodelay(true)?;
    Ok(Socket::Tcp(stream))
}

/// HTTP/1 needs no round trip: this only sets up hyper's two halves, so it has no time limit of its own.
async fn handshake(socket: Socket, slot: Slot) -> hyper::Result<Parts> {
    let (sender, http) = Builder::new()
        .max_header_size(HEAD)
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(Wire::new(socket)))
        .await?;
    Ok(Parts { sender, http, slot })
}
