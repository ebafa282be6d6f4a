//! A stream that goes no faster than a rate, so that whoever sends feels it.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::net::Sever;
use crate::net::copy::CHUNK;
use crate::upstream::dial::Stream;

/// Bytes that pass at once after a pause.
const BURST: u64 = 64 * 1024;
/// Pieces are no smaller, however slow.
const SMALLEST: u64 = 1024;

/// One direction's rate.
#[derive(Debug)]
struct Meter {
    /// Bytes a second; at least 1.
    rate: u64,
    /// When what has passed is paid for; in the past while there is credit.
    paid: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Meter {
    fn new(rate: u64) -> Meter {
        Meter {
            rate: rate.max(1),
            paid: Instant::now(),
            sleep: None,
        }
    }

    /// Ready when more may pass.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.sleep {
            ready!(sleep.as_mut().poll(cx));
            self.sleep = None;
        }
        Poll::Ready(())
    }

    /// Bytes of one piece: a tenth of a second, so that a slow one goes evenly.
    fn piece(&self) -> usize {
        (self.rate / 10).clamp(SMALLEST, CHUNK as u64) as usize
    }

    /// So many bytes have passed.
    fn passed(&mut self, size: usize) {
        let now = Instant::now();
        let credit = self.time_of(BURST);
        let from = now
            .checked_sub(credit)
            .map_or(self.paid, |past| self.paid.max(past));
        self.paid = from + self.time_of(size as u64);
        if self.paid > now {
            self.sleep = Some(Box::pin(tokio::time::sleep_until(self.paid)));
        }
    }

    /// How long so many bytes take.
    fn time_of(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        // Longer than anybody waits.
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            .min(Duration::from_secs(3600))
    }
}

/// Reads at a rate, and writes at one if that is wanted.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    stream: S,
    reads: Meter,
    writes: Option<Meter>,
}

impl<S> Paced<S> {
    /// Reads at `rate` bytes a second.
    pub(crate) fn new(stream: S, rate: u64) -> Paced<S> {
        Paced {
            stream,
            reads: Meter::new(rate),
            writes: None,
        }
    }

    /// Writes at that rate as well: what is written comes from a stream that cannot be read at one.
    pub(crate) fn both_ways(stream: S, rate: u64) -> Paced<S> {
        Paced {
            writes: Some(Meter::new(rate)),
            ..Paced::new(stream, rate)
        }
    }

    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: Sever> Sever for Paced<S> {
    fn sever(&self) {
        self.stream.sever();
    }

    fn poll_severed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_severed(cx)
    }
}

impl<S: Stream> Stream for Paced<S> {}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.reads.poll(cx));
        let most = self.reads.piece().min(buf.remaining());
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        let mut piece = ReadBuf::uninit(&mut chunk[..most]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut piece))?;
        buf.put_slice(piece.filled());
        self.reads.passed(piece.filled().len());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(writes) = &mut this.writes else {
            return Pin::new(&mut this.stream).poll_write(cx, buf);
        };
        ready!(writes.poll(cx));
        let most = writes.piece().min(buf.len());
        let size = ready!(Pin::new(&mut this.stream).poll_write(cx, &buf[..most]))?;
        writes.passed(size);
        Poll::Ready(Ok(size))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
