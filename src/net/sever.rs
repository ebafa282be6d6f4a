//! Closing a connection in the middle of what it carries. A close is the end of some messages (an HTTP/1.0 answer without a
//! length), so that one which has been cut must end in another way.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that can be closed so that its reader knows that something is missing.
pub trait Sever {
    /// Makes the close that follows a reset. A unix socket has none: there a cut end looks like any other.
    fn sever(&self);

    /// Ready when the other end has severed it. Only for those whose reads cannot tell once they have come to their end, and
    /// only what a read of them does not tell.
    fn poll_severed(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    /// The socket itself, if its bytes are what the other end sent: nothing is encrypted, nothing waits in a buffer.
    fn plain_tcp(&self) -> Option<&tokio::net::TcpStream> {
        None
    }
}

impl Sever for tokio::net::TcpStream {
    fn sever(&self) {
        let socket = socket2::SockRef::from(self);
        if let Err(error) = socket.set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "a connection can't be reset");
        }
    }

    fn plain_tcp(&self) -> Option<&tokio::net::TcpStream> {
        Some(self)
    }
}

#[cfg(unix)]
impl Sever for tokio::net::UnixStream {
    fn sever(&self) {}
}

/// Over TLS the end is also one without a `close_notify`.
impl<S: Sever> Sever for tokio_rustls::server::TlsStream<S> {
    fn sever(&self) {
        self.get_ref().0.sever();
    }
}

impl<S: Sever> Sever for tokio_rustls::client::TlsStream<S> {
    fn sever(&self) {
        self.get_ref().0.sever();
    }
}

/// A stream that is severed when it is dropped, unless it is spared: also with the task that has it, as streams of an HTTP/2
/// connection that dies are.
#[derive(Debug)]
pub struct SeverOnDrop<S: Sever> {
    stream: S,
    spared: bool,
}

impl<S: Sever> SeverOnDrop<S> {
    pub fn new(stream: S) -> SeverOnDrop<S> {
        SeverOnDrop {
            stream,
            spared: false,
        }
    }

    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Nothing is missing: it is closed as it is.
    pub fn spare(&mut self) {
        self.spared = true;
    }
}

impl<S: Sever> Drop for SeverOnDrop<S> {
    fn drop(&mut self) {
        if !self.spared {
            self.stream.sever();
        }
    }
}

impl<S: Sever> Sever for SeverOnDrop<S> {
    fn sever(&self) {
        self.stream.sever();
    }

    fn poll_severed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_severed(cx)
    }

    fn plain_tcp(&self) -> Option<&tokio::net::TcpStream> {
        self.stream.plain_tcp()
    }
}

impl<S: AsyncRead + Sever + Unpin> AsyncRead for SeverOnDrop<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Sever + Unpin> AsyncWrite for SeverOnDrop<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
impl Sever for tokio::io::DuplexStream {
    fn sever(&self) {}
}
