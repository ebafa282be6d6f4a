//! Dialing: from an address to an HTTP/1 connection with its driver, within one time limit.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::body::RequestBody;
use super::error::{Error, Kind};
use super::resolve::Names;
use crate::config::scalar::TargetAddr;

/// Bytes of a response head, and of its trailers. The number of fields stays at hyper's 100: another one would cost two
/// heap allocations per response.
const HEAD: usize = 64 * 1024;
/// Bytes that one connection may buffer in each direction.
const BUFFER: usize = 128 * 1024;

/// A connection to a target. Dropping it ends its driver, which closes the socket.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: SendRequest<RequestBody>,
    _driver: AbortOnDropHandle<()>,
    /// The worker whose runtime drives it: it goes back to that one's shard.
    pub(super) home: usize,
}

/// A place among a target's open connections, held by the driver.
#[derive(Debug)]
pub(super) struct Slot(Arc<AtomicUsize>);

impl Slot {
    /// `None` when `limit` connections are open.
    pub(super) fn take(open: &Arc<AtomicUsize>, limit: Option<usize>) -> Option<Slot> {
        let limit = limit.unwrap_or(usize::MAX);
        open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
            (n < limit).then(|| n + 1)
        })
        .ok()?;
        Some(Slot(open.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Dials `address` and starts the connection's driver on the current runtime, all `within` the limit.
///
/// # Errors
/// All of them unsent: refused, unreachable, timed out, the name is not known.
pub(super) async fn dial(
    address: &TargetAddr,
    names: Option<&Names>,
    within: Duration,
    home: usize,
    slot: Slot,
) -> Result<Connection, Error> {
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
        (TargetAddr::Name(..), Some(names)) => return any(names, deadline, home, slot).await,
        #[cfg(unix)]
        (TargetAddr::Unix(path), _) => timeout_at(deadline, UnixStream::connect(path))
            .await
            .map_err(|_| late())?
            .map(Socket::Unix),
        _ => Err(io::Error::from(io::ErrorKind::Unsupported)),
    };
    let socket = socket.map_err(|e| Error::dial(&e, address))?;
    handshake(socket, home, slot)
        .await
        .map_err(|e| Error::exchange(&e, address).unsent())
}

/// Each address of a name in turn. One that does not answer may use its share of the time that is left, so that the
/// next ones are tried before the limit.
async fn any(
    names: &Names,
    deadline: Instant,
    home: usize,
    slot: Slot,
) -> Result<Connection, Error> {
    let addresses = names.rotated();
    let mut last = names.error();
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        match tokio::time::timeout(share, tcp(*address)).await {
            Ok(Ok(socket)) => {
                return handshake(socket, home, slot)
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
async fn handshake(socket: Socket, home: usize, slot: Slot) -> hyper::Result<Connection> {
    let io = TokioIo::new(Wire {
        socket,
        deaf: false,
    });
    let (sender, driver) = Builder::new()
        .max_header_size(HEAD)
        .max_buf_size(BUFFER)
        .handshake(io)
        .await?;
    let driver = tokio::spawn(async move {
        let _slot = slot;
        // Whoever waits for an answer has been told already; an idle connection's end is no event.
        if let Err(error) = driver.await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(Connection {
        sender,
        _driver: AbortOnDropHandle::new(driver),
        home,
    })
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// A socket whose broken write side never hides an answer. An origin may refuse a large body and close: the next write
/// fails while its answer is still to be read, and hyper would give up at the write. So after a failed write the
/// rest is swallowed; the read side then brings the answer, or the same failure.
#[derive(Debug)]
struct Wire {
    socket: Socket,
    deaf: bool,
}

impl Wire {
    fn swallow(&mut self, result: Poll<io::Result<usize>>, len: usize) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "upstream write failed; reading what the origin still said");
                self.deaf = true;
                Poll::Ready(Ok(len))
            }
            other => other,
        }
    }
}

macro_rules! either {
    ($wire:expr, $socket:ident => $call:expr) => {
        match &mut $wire.socket {
            Socket::Tcp($socket) => $call,
            #[cfg(unix)]
            Socket::Unix($socket) => $call,
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, socket => Pin::new(socket).poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let result = either!(self, socket => Pin::new(socket).poll_write(cx, buf));
        self.swallow(result, buf.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = || bufs.iter().map(|buf| buf.len()).sum();
        if self.deaf {
            return Poll::Ready(Ok(len()));
        }
        let result = either!(self, socket => Pin::new(socket).poll_write_vectored(cx, bufs));
        self.swallow(result, len())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => Pin::new(socket).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => Pin::new(socket).poll_shutdown(cx))
    }
}
