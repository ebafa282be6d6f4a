//! A stream of bytes in the messages of a websocket (RFC 6455): [`Carrier`] reads what they carry and writes binary ones, as
//! the server or as the client ([`Role`]).
//!
//! It promises: a frame of any size passes in constant memory, since payload is handed on as it comes and no message is
//! gathered; at most one frame waits to be written; a Ping is answered, the newest one if several wait (section 5.5.3). A
//! Close of the other side that says that all is well (1000, or nothing) is the end of what is read while writing goes on, as
//! with a TCP stream: libraries, for which messages are the point, end both at once, so that none is used here. Any other Close
//! is a break, as a reset is: who reads must not take it for the end of the data. Text is carried like bytes; extensions are
//! never agreed on, so a reserved bit is an error.

mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

pub use frame::Role;
use frame::{BINARY, CLOSE, Decoder, PONG, Violation, put_frame};

/// Most of the payload of a frame that is written.
const FRAME: usize = 16 * 1024;
/// Reads in one poll that may bring nothing but headers and Pings, before others may run.
const ROUNDS: usize = 16;
/// How long last words may take to leave, and the other side to end then.
const LAST_WRITE: Duration = Duration::from_secs(1);
const LAST_READ: Duration = Duration::from_secs(1);

/// Reasons to close (section 7.4.1).
pub const NORMAL: u16 = 1000;
pub const GOING_AWAY: u16 = 1001;
pub const PROTOCOL_ERROR: u16 = 1002;
pub const INTERNAL_ERROR: u16 = 1011;

/// One side of a websocket as the stream that it carries. Its reader's end is the other side's Close, its shutdown a Close with
/// [`NORMAL`].
#[derive(Debug)]
pub struct Carrier<S> {
    inner: S,
    /// Came before, and is read first.
    early: Bytes,
    decoder: Decoder,
    /// Frames on their way out, of which `sent` bytes have left.
    out: Vec<u8>,
    sent: usize,
    /// Our Close is among them, or has left.
    closing: bool,
    /// Something came since the last look, if only a Ping.
    heard: bool,
    fault: Option<Fault>,
}

/// What it is that cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection: there is nobody to say anything to.
    Broken,
    /// What comes is no websocket.
    Violation,
    /// The other side has closed it for this reason, which is not that it was done.
    Closed(u16),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Carrier<S> {
    /// `role`: which side is ours; `early`: what has come behind the handshake.
    pub fn new(role: Role, inner: S, early: Bytes) -> Carrier<S> {
        Carrier {
            inner,
            early,
            decoder: Decoder::new(role),
            out: Vec::new(),
            sent: 0,
            closing: false,
            heard: false,
            fault: None,
        }
    }

    /// Why reading or writing failed, if it was this side.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// The other side has sent its Close.
    pub fn is_closed(&self) -> bool {
        self.decoder.closed.is_some()
    }

    /// We have said Close.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether anything came since the last call.
    pub fn heard(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }

    fn say_close(&mut self, code: u16) -> io::Result<()> {
        if !std::mem::replace(&mut self.closing, true) {
            self.put(CLOSE, &code.to_be_bytes())?;
        }
        Ok(())
    }

    /// Puts a frame at the end of what waits, with a mask that nobody could guess if one is due (section 5.3).
    fn put(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        let key = match self.decoder.role {
            Role::Server => None,
            Role::Client => {
                let mut key = [0; 4];
                if aws_lc_rs::rand::fill(&mut key).is_err() {
                    self.fault = Some(Fault::Broken);
                    return Err(io::Error::other("no randomness for a mask"));
                }
                Some(key)
            }
        };
        put_frame(&mut self.out, opcode, key, payload);
        Ok(())
    }

    /// Says Close, unless that was said, and ends the connection. Waits for the other side to end too, for closing with
    /// unread bytes would be a reset, which may overtake the Close. Takes two seconds at most.
    pub async fn finish(mut self, code: u16) {
        let write = async {
            self.say_close(code)?;
            self.flush().await?;
            self.inner.shutdown().await
        };
        if !matches!(tokio::time::timeout(LAST_WRITE, write).await, Ok(Ok(()))) {
            return;
        }
        let read = async {
            let mut buffer = vec![0; 4096];
            while let Ok(1..) = self.inner.read(&mut buffer).await {}
        };
        let _ = tokio::time::timeout(LAST_READ, read).await;
    }

    /// Writes what waits.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.sent < self.out.len() {
                let written = Pin::new(&mut self.inner).poll_write(cx, &self.out[self.sent..]);
                let size = ready!(self.unbroken(written))?;
                if size == 0 {
                    self.fault = Some(Fault::Broken);
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.sent += size;
            }
            self.out.clear();
            self.sent = 0;
            match self.decoder.ping.take() {
                Some(ping) if !self.closing => self.put(PONG, &ping)?,
                _ => return Poll::Ready(Ok(())),
            }
        }
    }

    /// While nothing comes: sees to it that a Pong leaves. Never ready but with an error.
    fn poll_pong(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.decoder.ping.is_some() || !self.out.is_empty() {
            ready!(self.poll_out(cx))?;
            let flushed = Pin::new(&mut self.inner).poll_flush(cx);
            ready!(self.unbroken(flushed))?;
        }
        Poll::Pending
    }

    fn unbroken<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(_)) = polled {
            self.fault = Some(Fault::Broken);
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Carrier<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        for _ in 0..ROUNDS {
            match this.decoder.closed {
                Some(None | Some(NORMAL)) => return Poll::Ready(Ok(())),
                Some(Some(code)) => {
                    this.fault = Some(Fault::Closed(code));
                    let why = format!("it was closed with {code}");
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, why)));
                }
                None => {}
            }
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            // What frames carry is never longer than they are: it has room where they came.
            if this.early.is_empty() {
                let read = Pin::new(&mut this.inner).poll_read(cx, buf);
                if this.unbroken(read)?.is_pending() {
                    return this.poll_pong(cx);
                }
            } else {
                let size = this.early.len().min(buf.remaining());
                buf.put_slice(&this.early.split_to(size));
            }
            if buf.filled().len() == before {
                if this.closing && this.decoder.is_between_frames() {
                    // It has our Close and leaves without an answer.
                    return Poll::Ready(Ok(()));
                }
                this.fault = Some(Fault::Broken);
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            this.heard = true;
            let decoded = this.decoder.decode(&mut buf.filled_mut()[before..]);
            buf.set_filled(before + decoded.as_ref().map_or(0, |size| *size));
            if let Err(Violation(why)) = decoded {
                this.fault = Some(Fault::Violation);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Carrier<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        if this.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let size = buf.len().min(FRAME);
        if size > 0 {
            this.put(BINARY, &buf[..size])?;
            let _ = this.poll_out(cx)?;
        }
        Poll::Ready(Ok(size))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        // Nothing is kept while it waits for more.
        this.out = Vec::new();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        this.unbroken(flushed)
    }

    /// The connection stays: the other side may still send, and answers the Close.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.say_close(NORMAL)?;
        self.poll_flush(cx)
    }
}
