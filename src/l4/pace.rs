//! A stream that is read no faster than a rate, so that whoever sends feels it.

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

/// Bytes that are read at once after a pause.
const BURST: u64 = 64 * 1024;
/// Pieces are no smaller, however slow.
const SMALLEST: u64 = 1024;

/// Reads at a rate.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    stream: S,
    /// Bytes a second; at least 1.
    rate: u64,
    /// When what was read so far is paid for; in the past while there is credit.
    paid: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub(crate) fn new(stream: S, rate: u64) -> Paced<S> {
        Paced {
            stream,
            rate: rate.max(1),
            paid: Instant::now(),
            sleep: None,
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

impl<S: Stream> Stream for Paced<S> {}

impl<S: Sever> Sever for Paced<S> {
    fn sever(&self) {
        self.stream.sever();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(sleep) = &mut self.sleep {
            ready!(sleep.as_mut().poll(cx));
            self.sleep = None;
        }
        // A tenth of a second, so that a slow one goes evenly.
        let most = (self.rate / 10).clamp(SMALLEST, CHUNK as u64) as usize;
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        let mut piece = ReadBuf::uninit(&mut chunk[..most.min(buf.remaining())]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut piece))?;
        let size = piece.filled().len();
        buf.put_slice(piece.filled());
        let now = Instant::now();
        let credit = self.time_of(BURST);
        let from = now
            .checked_sub(credit)
            .map_or(self.paid, |past| self.paid.max(past));
        self.paid = from + self.time_of(size as u64);
        if self.paid > now {
            self.sleep = Some(Box::pin(tokio::time::sleep_until(self.paid)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
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
