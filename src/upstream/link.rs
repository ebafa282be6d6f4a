//! A raw stream of bytes to a target or a destination: what TCP listeners, forward proxies and tunnels join a client with.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::connection::Slot;
use super::dial::Stream;
use super::wire::Socket;
use crate::net::Sever;

/// Any stream of bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// A stream to a target. Dropping it closes it, and frees its place among the target's connections.
pub struct Link {
    inner: Inner,
    _slot: Option<Slot>,
}

enum Inner {
    Socket(Socket),
    Boxed(Box<dyn Duplex>),
}

impl Link {
    /// Something that is no socket of ours: a stream within another connection.
    pub fn boxed(stream: impl Duplex + 'static) -> Link {
        Link {
            inner: Inner::Boxed(Box::new(stream)),
            _slot: None,
        }
    }

    /// A connected socket.
    pub fn of_tcp(stream: TcpStream) -> Link {
        Link::socket(Socket::Tcp(stream), None)
    }

    pub(super) fn socket(socket: Socket, slot: Option<Slot>) -> Link {
        Link {
            inner: Inner::Socket(socket),
            _slot: slot,
        }
    }
}

/// What is no socket of its own ends as it does: TLS without a `close_notify`, a stream within a connection by its end.
impl Sever for Link {
    fn sever(&self) {
        if let Some(socket) = self.plain_tcp() {
            socket.sever();
        }
    }

    fn plain_tcp(&self) -> Option<&TcpStream> {
        match &self.inner {
            Inner::Socket(Socket::Tcp(stream)) => Some(stream),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.inner {
            Inner::Socket(socket) => f.debug_tuple("Link").field(socket).finish(),
            Inner::Boxed(_) => f.write_str("Link(boxed)"),
        }
    }
}

macro_rules! either {
    ($this:expr, $stream:ident => $call:expr) => {
        match &mut $this.inner {
            Inner::Socket($stream) => $call,
            Inner::Boxed($stream) => $call,
        }
    };
}

impl Stream for Link {
    fn withdrawn(&self) -> Option<CancellationToken> {
        match &self.inner {
            Inner::Socket(socket) => socket.withdrawn(),
            Inner::Boxed(_) => None,
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Inner::Socket(stream) => stream.is_write_vectored(),
            Inner::Boxed(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
