//! The socket under a connection to a target.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::dial::Stream;
use super::interim::{Awaited, Interim};
use crate::net::{self, Sever};

/// A connected socket, in cleartext or after its TLS handshake.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
    Tls(Box<TlsStream<Socket>>),
    /// A stream within another connection.
    Within(Box<dyn Stream>),
}

impl Socket {
    /// What it says when nothing new may be sent on it; `None`: it never does.
    pub(super) fn withdrawn(&self) -> Option<CancellationToken> {
        match self {
            Socket::Within(stream) => stream.withdrawn(),
            Socket::Tls(tls) => tls.get_ref().0.withdrawn(),
            Socket::Tcp(_) => None,
            #[cfg(unix)]
            Socket::Unix(_) => None,
        }
    }

    /// Lets the kernel find out that the other end is gone while others wait on it. Only a hint: a socket that cannot be
    /// watched does as well.
    pub(super) fn watch_peer(&self) {
        let tcp = match self {
            Socket::Tcp(tcp) => tcp,
            Socket::Tls(tls) => return tls.get_ref().0.watch_peer(),
            #[cfg(unix)]
            Socket::Unix(_) => return,
            Socket::Within(_) => return,
        };
        if let Err(error) = net::watch_peer(tcp) {
            tracing::debug!(%error, "an upstream connection is not watched");
        }
    }
}

/// Down to the innermost one: a reset under TLS, or of what it is a stream of, is one for whoever is at the other end.
impl Sever for Socket {
    fn sever(&self) {
        match self {
            Socket::Tcp(tcp) => tcp.sever(),
            #[cfg(unix)]
            Socket::Unix(unix) => unix.sever(),
            Socket::Tls(tls) => tls.get_ref().0.sever(),
            Socket::Within(stream) => stream.sever(),
        }
    }

    fn plain_tcp(&self) -> Option<&TcpStream> {
        match self {
            Socket::Tcp(tcp) => Some(tcp),
            _ => None,
        }
    }
}

/// A socket whose broken write side never hides an answer. An origin may refuse a large body and close: the next write
/// fails while its answer is still to be read, and hyper would give up at the write. So after a failed write the
/// rest is swallowed; the read side then brings the answer, or the same failure.
#[derive(Debug)]
pub(super) struct Wire {
    socket: Socket,
    deaf: bool,
    interim: Interim,
}

impl Wire {
    pub(super) fn new(socket: Socket) -> Wire {
        Wire {
            socket,
            deaf: false,
            interim: Interim::default(),
        }
    }

    /// Where it is told that a request is about to be sent.
    pub(super) fn awaited(&self) -> Arc<Awaited> {
        self.interim.awaited.clone()
    }

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
    ($this:expr, $socket:ident => $call:expr) => {
        match &mut *$this {
            Socket::Tcp($socket) => $call,
            #[cfg(unix)]
            Socket::Unix($socket) => $call,
            Socket::Tls($socket) => $call,
            Socket::Within($socket) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, socket => Pin::new(socket).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, socket => Pin::new(socket).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, socket => Pin::new(socket).poll_write_vectored(cx, bufs))
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

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        Poll::Ready(self.interim.look(&buf.filled()[before..]))
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
        let result = Pin::new(&mut self.socket).poll_write(cx, buf);
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
        let result = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.swallow(result, len())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        let result = Pin::new(&mut self.socket).poll_flush(cx);
        // Of TLS this may be the first write that fails.
        self.swallow(result.map_ok(|()| 0), 0).map_ok(drop)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
