//! The socket under a connection to a target.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::dial::Stream;
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

    /// Nothing of it is to be read, and it has not ended, as far as the last event tells.
    pub(super) fn is_silent(&mut self) -> bool {
        let mut byte = [0];
        let read = match self {
            Socket::Tcp(tcp) => tcp.try_read(&mut byte),
            #[cfg(unix)]
            Socket::Unix(unix) => unix.try_read(&mut byte),
            Socket::Tls(_) | Socket::Within(_) => {
                let mut cx = Context::from_waker(Waker::noop());
                let mut byte = ReadBuf::new(&mut byte);
                return Pin::new(self).poll_read(&mut cx, &mut byte).is_pending();
            }
        };
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
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
