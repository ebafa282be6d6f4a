//! The stream under hyper: it tells the connection when bytes come and when writes stall, puts back what was read to
//! choose the protocol, and hands over HTTP/1 requests that were read together one after the other.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::Framing;
use crate::http::connection::Connection;
use crate::net::Sever;

/// A client's stream. `connection` runs its timers.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    prefix: Bytes,
    connection: Arc<Connection>,
    /// HTTP/1 only.
    framing: Option<Framing>,
    blocked: bool,
    /// The same of a flush: TLS holds bytes of its own that wait for the system.
    unflushed: bool,
    /// The client's side is shut down.
    ended: bool,
    /// The last read found the client's end.
    drained: bool,
}

impl<S> Watched<S> {
    /// `prefix` was read already and is read first.
    pub fn new(
        stream: S,
        prefix: Bytes,
        connection: Arc<Connection>,
        framing: Option<Framing>,
    ) -> Watched<S> {
        Watched {
            stream,
            prefix,
            connection,
            framing,
            blocked: false,
            unflushed: false,
            ended: false,
            drained: false,
        }
    }

    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The stream and what was read of it and not handed on.
    pub fn into_parts(self) -> (S, Bytes) {
        (self.stream, self.prefix)
    }

    /// How many of these bytes, which are next, hyper may have now.
    ///
    /// # Errors
    /// The first of them must not be read.
    fn came(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.connection.received();
        let Some(framing) = &mut self.framing else {
            return Ok(bytes.len());
        };
        let size = framing.follow(bytes, |marks| self.connection.mark_head(marks));
        if size == 0 && framing.is_refused() {
            let why = "a control character in a chunk extension";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(size)
    }

    fn wrote<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let blocked = polled.is_pending();
        if self.ended && !blocked {
            self.connection.set_half_closed();
        }
        self.stalls(blocked, self.unflushed);
        polled
    }

    fn stalls(&mut self, blocked: bool, unflushed: bool) {
        let before = self.blocked || self.unflushed;
        (self.blocked, self.unflushed) = (blocked, unflushed);
        if before != (blocked || unflushed) {
            self.connection.set_blocked(!before);
        }
    }
}

impl<S: Sever> Watched<S> {
    /// [`Sever::sever`].
    pub fn sever(&self) {
        self.stream.sever();
    }
}

impl<S: AsyncRead + Unpin> Watched<S> {
    /// Sees whether the client is still there while it waits for its answer, when hyper does not read: it would take a
    /// shut down side for a client that has gone away, or (with `half_close`) notice neither that nor a reset. What
    /// comes is kept for hyper. Always ready, but for its error.
    fn poll_probe(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended || self.prefix.len() >= HELD || !self.connection.may_probe() {
            return Poll::Ready(Ok(()));
        }
        while self.prefix.len() < HELD {
            let mut room = [std::mem::MaybeUninit::uninit(); PROBE];
            let mut buffer = ReadBuf::uninit(&mut room);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    self.ended = true;
                    self.connection.set_half_closed();
                    break;
                }
                Poll::Ready(Ok(())) => {
                    self.prefix = [&self.prefix, buffer.filled()].concat().into();
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Bytes of pipelined requests that are taken from the system at once while another is answered.
const PROBE: usize = 512;
/// With so many of them held no more are taken: such a client is missed only when its answer is written.
const HELD: usize = 4096;

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if this.prefix.is_empty() {
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            let bytes = &buf.filled()[before..];
            this.drained = bytes.is_empty() && buf.remaining() > 0;
            let size = this.came(bytes)?;
            // Another request, read together with the end of this one: it waits until hyper asks for it.
            if size < bytes.len() {
                this.prefix = Bytes::copy_from_slice(&bytes[size..]);
                buf.set_filled(before + size);
            }
        } else {
            let room = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix[..room]);
            let size = this.came(&buf.filled()[before..])?;
            buf.set_filled(before + size);
            this.prefix.advance(size);
            if this.prefix.is_empty() {
                // Not kept for the life of the connection.
                this.prefix = Bytes::new();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper comes by here whenever it has nothing left to do.
        ready!(this.poll_probe(cx))?;
        let polled = Pin::new(&mut this.stream).poll_flush(cx);
        this.stalls(this.blocked, polled.is_pending());
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.drained {
            // Both sides are done: the close that follows says so without a call of its own.
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.wrote(polled)
    }
}
