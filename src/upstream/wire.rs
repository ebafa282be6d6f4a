//! The socket under an HTTP/1 connection to a target.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// A socket whose broken write side never hides an answer. An origin may refuse a large body and close: the next write
/// fails while its answer is still to be read, and hyper would give up at the write. So after a failed write the
/// rest is swallowed; the read side then brings the answer, or the same failure.
#[derive(Debug)]
pub(super) struct Wire {
    socket: Socket,
    deaf: bool,
}

impl Wire {
    pub(super) fn new(socket: Socket) -> Wire {
        Wire {
            socket,
            deaf: false,
        }
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
