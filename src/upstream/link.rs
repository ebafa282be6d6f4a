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
#[derive(Debug)]
pub struct Link {
    socket: Socket,
    _slot: Option<Slot>,
}

impl Link {
    /// A stream within another connection.
    pub fn within(stream: Box<dyn Stream>) -> Link {
        Link::socket(Socket::Within(stream), None)
    }

    /// A connected socket.
    pub fn of_tcp(stream: TcpStream) -> Link {
        Link::socket(Socket::Tcp(stream), None)
    }

    pub(super) fn socket(socket: Socket, slot: Option<Slot>) -> Link {
        Link {
            socket,
            _slot: slot,
        }
    }
}

impl Sever for Link {
    fn sever(&self) {
        self.socket.sever();
    }

    fn plain_tcp(&self) -> Option<&TcpStream> {
        self.socket.plain_tcp()
    }
}

impl Stream for Link {
    fn withdrawn(&self) -> Option<CancellationToken> {
        self.socket.withdrawn()
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
