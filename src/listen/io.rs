//! The stream under hyper: it tells the connection when bytes come and when writes stall, puts back what was read to
//! choose the protocol, and looks at each HTTP/1 head for what hyper's parser resolves without a word.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::connection::{Connection, FirstBytes, HeadMarks};

/// A client's stream. `connection` runs its timers.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    prefix: Bytes,
    connection: Arc<Connection>,
    scan: HeadScan,
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
    pub fn new(stream: S, prefix: Bytes, connection: Arc<Connection>) -> Watched<S> {
        Watched {
            stream,
            prefix,
            connection,
            scan: HeadScan::default(),
            blocked: false,
            unflushed: false,
            ended: false,
            drained: false,
        }
    }

    fn came(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let Some(FirstBytes(first)) = self.connection.received() {
            if first {
                self.scan = HeadScan::default();
            }
            if !self.scan.done {
                self.scan.feed(bytes);
                let marks = self.scan.marks();
                if marks != HeadMarks::default() {
                    self.connection.mark_head(marks);
                }
            }
        }
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

impl<S: AsyncRead + Unpin> Watched<S> {
    /// Sees whether the client is still there while it waits for its answer, when hyper does not read: it would take a
    /// shut down side for a client that has gone away, or (with `half_close`) notice neither that nor a reset. What
    /// comes is kept for hyper. Always ready, but for its error.
    fn poll_probe(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended || !self.prefix.is_empty() || !self.connection.may_probe() {
            return Poll::Ready(Ok(()));
        }
        let mut room = [std::mem::MaybeUninit::uninit(); PROBE];
        let mut buffer = ReadBuf::uninit(&mut room);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                self.ended = true;
                self.connection.set_half_closed();
            }
            Poll::Ready(Ok(())) => self.prefix = Bytes::copy_from_slice(buffer.filled()),
        }
        Poll::Ready(Ok(()))
    }
}

/// Bytes of a pipelined request that are taken from the system while another is answered.
const PROBE: usize = 512;

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
            match Pin::new(&mut this.stream).poll_read(cx, buf) {
                Poll::Ready(Ok(())) => {
                    this.drained = buf.filled().len() == before && buf.remaining() > 0
                }
                other => return other,
            }
        } else {
            let size = this.prefix.len().min(buf.remaining());
            buf.put_slice(&this.prefix[..size]);
            this.prefix.advance(size);
            if this.prefix.is_empty() {
                // Not kept for the life of the connection.
                this.prefix = Bytes::new();
            }
        }
        this.came(&buf.filled()[before..]);
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

/// Reads the bytes of one head as they come, line by line, for ambiguous framing.
///
/// hyper gives `Transfer-Encoding` the word over `Content-Length`, hides the latter and ends the connection afterwards,
/// which is safe; RFC 9112 section 6.1 lets a server refuse such a request instead, and so do we. It cuts a fragment off
/// the target too. Neither can be seen in the parsed request.
#[derive(Debug, Default)]
struct HeadScan {
    /// Beginning of a line whose end has not come.
    partial: [u8; LONGEST],
    partial_len: usize,
    /// The request line is over.
    started: bool,
    done: bool,
    /// Counted to two.
    lengths: u8,
    encoding: bool,
    fragment: bool,
}

const LENGTH: &[u8] = b"content-length:";
const ENCODING: &[u8] = b"transfer-encoding:";
/// As much of a line as is ever compared.
const LONGEST: usize = ENCODING.len();

impl HeadScan {
    fn feed(&mut self, mut bytes: &[u8]) {
        while !self.done && !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes);
            let piece = &bytes[..end.unwrap_or(bytes.len())];
            if !self.started && memchr::memchr(b'#', piece).is_some() {
                self.fragment = true;
            }
            let Some(end) = end else {
                self.keep(piece);
                return;
            };
            if self.partial_len == 0 {
                self.line(piece);
            } else {
                self.keep(piece);
                let (line, len) = (self.partial, self.partial_len);
                self.line(&line[..len]);
            }
            self.partial_len = 0;
            bytes = &bytes[end + 1..];
        }
    }

    fn keep(&mut self, piece: &[u8]) {
        let size = piece.len().min(LONGEST - self.partial_len);
        self.partial[self.partial_len..self.partial_len + size].copy_from_slice(&piece[..size]);
        self.partial_len += size;
    }

    fn line(&mut self, line: &[u8]) {
        match line {
            // Empty lines before a request line are skipped (RFC 9112 section 2.2).
            [] | [b'\r'] => self.done = self.started,
            _ if !self.started => self.started = true,
            [b'c' | b'C', ..] => {
                self.lengths = (self.lengths + u8::from(begins(line, LENGTH))).min(2)
            }
            [b't' | b'T', ..] => self.encoding |= begins(line, ENCODING),
            _ => {}
        }
    }

    fn marks(&self) -> HeadMarks {
        HeadMarks {
            ambiguous_length: self.lengths > 1 || (self.lengths == 1 && self.encoding),
            fragment: self.fragment,
        }
    }
}

fn begins(line: &[u8], name: &[u8]) -> bool {
    line.get(..name.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(pieces: &[&[u8]]) -> (HeadMarks, bool) {
        let mut scan = HeadScan::default();
        for piece in pieces {
            scan.feed(piece);
        }
        (scan.marks(), scan.done)
    }

    #[test]
    fn what_a_head_shows() {
        let both = HeadMarks {
            ambiguous_length: true,
            fragment: false,
        };
        let fragment = HeadMarks {
            ambiguous_length: false,
            fragment: true,
        };
        let none = HeadMarks::default();
        let table: &[(&[u8], HeadMarks, bool)] = &[
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", none, true),
            (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", both, true),
            (b"\r\n\r\nPOST / HTTP/1.1\ntransfer-encoding: chunked\ncontent-length: 3\n\n", both, true),
            (
                b"POST / HTTP/1.1\r\nContent-Length: 3\r\nX: 1\r\nContent-Length: 3\r\n\r\n",
                both,
                true,
            ),
            (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", fragment, true),
            (b"GET /a HTTP/1.1\r\nX: #\r\n\r\n", none, true),
            // The next request's head is another matter.
            (
                b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\nPOST /# HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                none,
                true,
            ),
            (b"GET / HTTP/1.1\r\nHost: a\r\n", none, false),
        ];
        for (head, marks, done) in table {
            assert_eq!(
                scan(&[head]),
                (*marks, *done),
                "{}",
                String::from_utf8_lossy(head)
            );
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            lines in prop::collection::vec(
                prop::sample::select(vec![
                    "GET /x#y HTTP/1.1", "Content-Length: 1", "Transfer-Encoding: chunked", "T: 1", "content-lengthy: 2",
                    "transfer-encoding", "",
                ]),
                0..6,
            ),
            cuts in prop::collection::vec(0usize..160, 0..6),
        ) {
            let text = lines.join("\r\n");
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(scan(&pieces), scan(&[bytes]));
        }
    }
}
