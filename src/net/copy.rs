//! Two streams joined: what comes on one goes out on the other, both ways, until both have ended.
//!
//! It promises: bytes keep their order and none is lost or made up; what one side can't take is not read from the other
//! (at most [`CHUNK`] bytes wait per direction); one side's end is passed on while the other direction goes on; memory is
//! held only for bytes that wait, so that a silent pair costs none. Dropping it closes both.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Bytes read at a time, and the most that wait for the other side (besides what was there from the start).
pub const CHUNK: usize = 16 * 1024;
/// Reads of one direction in one poll, before others may run.
const ROUNDS: usize = 16;

/// Looks at the bytes of one direction as they pass.
pub trait Tap {
    /// They were read and will be written.
    fn pass(&mut self, bytes: &[u8]);

    /// How many bytes may follow before the next place where the direction may be ended; 0 is such a place.
    fn rest(&self) -> usize;
}

/// Every byte may be the last one.
#[derive(Debug, Default)]
pub struct Anywhere;

impl Tap for Anywhere {
    fn pass(&mut self, _: &[u8]) {}

    fn rest(&self) -> usize {
        0
    }
}

/// One direction.
#[derive(Debug)]
pub struct Way<T> {
    pub tap: T,
    /// Bytes that came.
    pub bytes: u64,
    pending: Bytes,
    state: State,
    /// Written and not flushed.
    dirty: bool,
    /// Something moved since the last look.
    moved: bool,
    /// Reads only as far as the tap allows.
    ending: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The reader's end came; it is to be passed on.
    Closing,
    Closed,
}

impl<T: Tap> Way<T> {
    /// `first` came already and goes out first.
    pub fn new(mut tap: T, first: Bytes) -> Way<T> {
        tap.pass(&first);
        Way {
            tap,
            bytes: first.len() as u64,
            pending: first,
            state: State::Open,
            dirty: false,
            moved: false,
            ending: false,
        }
    }

    /// All that came was written, and the stream may be ended here with words of our own.
    pub fn is_at_rest(&self) -> bool {
        self.state == State::Open && self.pending.is_empty() && self.tap.rest() == 0
    }

    /// All that came was written, and its end passed on.
    pub fn is_ended(&self) -> bool {
        self.state == State::Closed
    }

    /// Ready when it has ended, or is at rest if that is wanted.
    fn poll<A, B>(&mut self, cx: &mut Context<'_>, from: &mut A, to: &mut B) -> Poll<io::Result<()>>
    where
        A: AsyncRead + Unpin,
        B: AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS {
            while !self.pending.is_empty() {
                let size = ready!(Pin::new(&mut *to).poll_write(cx, &self.pending))?;
                if size == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.pending.advance(size);
                (self.dirty, self.moved) = (true, true);
            }
            // Nothing of it is kept while it waits for more.
            self.pending = Bytes::new();
            match self.state {
                State::Open => {}
                State::Closing => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Closed;
                    return Poll::Ready(Ok(()));
                }
                State::Closed => return Poll::Ready(Ok(())),
            }
            let room = if self.ending { self.tap.rest() } else { CHUNK };
            if room == 0 {
                return self.poll_flush(cx, to);
            }
            let mut chunk = [MaybeUninit::uninit(); CHUNK];
            let mut chunk = ReadBuf::uninit(&mut chunk[..room.min(CHUNK)]);
            match Pin::new(&mut *from).poll_read(cx, &mut chunk)? {
                Poll::Ready(()) => {}
                Poll::Pending => {
                    ready!(self.poll_flush(cx, to))?;
                    return Poll::Pending;
                }
            }
            self.moved = true;
            let bytes = chunk.filled();
            if bytes.is_empty() {
                self.state = State::Closing;
                continue;
            }
            self.tap.pass(bytes);
            self.bytes += bytes.len() as u64;
            let written = match Pin::new(&mut *to).poll_write(cx, bytes)? {
                Poll::Ready(size) => size,
                Poll::Pending => 0,
            };
            self.dirty = true;
            if written < bytes.len() {
                self.pending = Bytes::copy_from_slice(&bytes[written..]);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_flush<B: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut B,
    ) -> Poll<io::Result<()>> {
        if self.dirty {
            ready!(Pin::new(to).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }
}

/// How a pair came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides ended.
    Closed,
    /// Nothing moved for the idle time.
    Idle,
}

/// Two streams and what is between them.
#[derive(Debug)]
pub struct Pair<A, B, T> {
    pub a: A,
    pub b: B,
    /// From `a` to `b`.
    pub forth: Way<T>,
    /// From `b` to `a`.
    pub back: Way<T>,
    idle: Option<Idle>,
}

/// When nothing has moved for too long. One timer, moved only when it fires: a busy pair pays a look at the clock.
#[derive(Debug)]
pub struct Idle {
    limit: Duration,
    last: Instant,
    sleep: Pin<Box<Sleep>>,
    /// Whom `sleep` would wake.
    waker: Option<Waker>,
}

impl Idle {
    pub fn new(limit: Duration) -> Idle {
        let last = Instant::now();
        Idle {
            limit,
            last,
            sleep: Box::pin(tokio::time::sleep_until(last + limit)),
            waker: None,
        }
    }

    /// Ready when nothing has moved for the limit. `moved`: since the last call.
    pub fn poll(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<()> {
        let knows = |waker: &Waker| waker.will_wake(cx.waker());
        if moved {
            self.last = Instant::now();
            // It is set already, for no later than it must be.
            if self.last < self.sleep.deadline() && self.waker.as_ref().is_some_and(knows) {
                return Poll::Pending;
            }
        }
        if !self.waker.as_ref().is_some_and(knows) {
            self.waker = Some(cx.waker().clone());
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let due = self.last + self.limit;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(due);
        }
    }
}

impl<A, B, T> Pair<A, B, T>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
    T: Tap,
{
    /// `idle`: how long nothing may move in either direction.
    pub fn new(a: A, b: B, forth: Way<T>, back: Way<T>, idle: Option<Duration>) -> Pair<A, B, T> {
        Pair {
            a,
            b,
            forth,
            back,
            idle: idle.map(Idle::new),
        }
    }

    /// Moves what can be moved. Ready when both sides have ended or nothing moved for the idle time.
    ///
    /// # Errors
    /// One side is broken; then there is nobody to pass the rest on to.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<End>> {
        if self.poll_ways(cx)?.is_ready() {
            return Poll::Ready(Ok(End::Closed));
        }
        let moved = std::mem::take(&mut self.forth.moved) | std::mem::take(&mut self.back.moved);
        let Some(idle) = &mut self.idle else {
            return Poll::Pending;
        };
        idle.poll(cx, moved).map(|()| Ok(End::Idle))
    }

    /// One side gave a sign of life that is nothing to pass on.
    pub fn stir(&mut self) {
        if let Some(idle) = &mut self.idle {
            idle.last = Instant::now();
        }
    }

    /// From now on it is idle after `limit`, if it was not before. To be polled after this.
    pub fn hurry(&mut self, limit: Duration) {
        let before = self.idle.as_ref().map(|idle| idle.limit);
        self.idle = Some(Idle::new(before.map_or(limit, |before| before.min(limit))));
    }

    /// Moves on until each direction has ended or is where it may be ended ([`Way::is_at_rest`]), and no further.
    ///
    /// # Errors
    /// As with [`Pair::poll`].
    pub fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        (self.forth.ending, self.back.ending) = (true, true);
        self.poll_ways(cx)
    }

    fn poll_ways(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let forth = self.forth.poll(cx, &mut self.a, &mut self.b)?;
        let back = self.back.poll(cx, &mut self.b, &mut self.a)?;
        ready!(forth);
        ready!(back);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;

    /// Lines may be ended.
    #[derive(Debug, Default)]
    struct Lines(bool);

    impl Tap for Lines {
        fn pass(&mut self, bytes: &[u8]) {
            if let Some(last) = bytes.last() {
                self.0 = *last != b'\n';
            }
        }

        fn rest(&self) -> usize {
            usize::from(self.0)
        }
    }

    fn pair(
        idle: Option<Duration>,
        first: &'static str,
    ) -> (
        DuplexStream,
        DuplexStream,
        Pair<DuplexStream, DuplexStream, Lines>,
    ) {
        let (client, a) = duplex(64);
        let (b, origin) = duplex(64);
        let forth = Way::new(Lines::default(), Bytes::from_static(first.as_bytes()));
        let back = Way::new(Lines::default(), Bytes::new());
        (client, origin, Pair::new(a, b, forth, back, idle))
    }

    type Running = JoinHandle<(io::Result<End>, Pair<DuplexStream, DuplexStream, Lines>)>;

    fn run(mut pair: Pair<DuplexStream, DuplexStream, Lines>) -> Running {
        tokio::spawn(async move {
            let end = poll_fn(|cx| pair.poll(cx)).await;
            (end, pair)
        })
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_go_both_ways_and_an_end_is_passed_on_alone() {
        let (mut client, mut origin, pair) = pair(None, "first ");
        let running = run(pair);
        let large = vec![b'x'; 100_000];
        let sent = large.clone();
        let client_side = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            all
        });
        let mut all = Vec::new();
        origin.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.split_off(6), large);
        assert_eq!(all, b"first ");
        // The other direction lives on after the first one's end.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        origin.write_all(b"late").await.unwrap();
        drop(origin);
        assert_eq!(client_side.await.unwrap(), b"late");
        let (end, pair) = running.await.unwrap();
        assert_eq!(end.unwrap(), End::Closed);
        assert_eq!((pair.forth.bytes, pair.back.bytes), (100_006, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_either_direction_breaks_the_silence() {
        let idle = Duration::from_secs(10);
        let (mut client, mut origin, pair) = pair(Some(idle), "");
        let begin = Instant::now();
        let running = run(pair);
        let mut byte = [0];
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(7)).await;
            client.write_all(b"a").await.unwrap();
            origin.read_exact(&mut byte).await.unwrap();
            tokio::time::sleep(Duration::from_secs(7)).await;
            origin.write_all(b"b").await.unwrap();
            client.read_exact(&mut byte).await.unwrap();
        }
        let (end, _) = running.await.unwrap();
        assert_eq!(end.unwrap(), End::Idle);
        assert_eq!(begin.elapsed().as_secs(), 42 + 10);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_other_side_does_not_take_is_not_read() {
        let (mut client, mut origin, pair) = pair(Some(Duration::from_secs(5)), "");
        let running = run(pair);
        let writing = tokio::spawn(async move {
            let mut sent = 0;
            while sent < 1_000_000 && client.write_all(&[7; 32]).await.is_ok() {
                sent += 32;
            }
            sent
        });
        // Stalled on both sides: that is silence too.
        let (end, pair) = running.await.unwrap();
        assert_eq!(end.unwrap(), End::Idle);
        assert!(pair.forth.bytes <= 64 * 2 + CHUNK as u64);
        drop(pair);
        assert!(writing.await.unwrap() < 1000 + CHUNK);
        let mut all = Vec::new();
        origin.read_to_end(&mut all).await.unwrap();
        assert!(all.iter().all(|byte| *byte == 7) && !all.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn it_comes_to_rest_where_the_tap_says() {
        let (mut client, mut origin, mut pair) = pair(None, "");
        client.write_all(b"half a line").await.unwrap();
        assert!(
            tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| pair.poll(cx)))
                .await
                .is_err()
        );
        assert!(!pair.forth.is_at_rest() && pair.back.is_at_rest());
        client.write_all(b" and its end\nmore").await.unwrap();
        poll_fn(|cx| pair.poll_rest(cx)).await.unwrap();
        assert!(pair.forth.is_at_rest());
        let mut line = [0; 24];
        origin.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"half a line and its end\n");
        drop(client);
        pair.b.shutdown().await.unwrap();
        let mut rest = Vec::new();
        origin.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_side_ends_it() {
        let (client, origin, pair) = pair(None, "for nobody");
        drop(origin);
        let (end, _) = run(pair).await.unwrap();
        assert!(end.is_err());
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_may_be_hurried_but_not_drawn_out_and_a_sign_of_life_counts() {
        let (_client, _origin, mut pair) = pair(Some(Duration::from_secs(60)), "");
        pair.hurry(Duration::from_secs(10));
        pair.hurry(Duration::from_secs(90));
        let start = Instant::now();
        tokio::time::sleep(Duration::from_secs(4)).await;
        pair.stir();
        let end = poll_fn(|cx| pair.poll(cx)).await;
        assert!(matches!(end, Ok(End::Idle)));
        assert_eq!(start.elapsed().as_secs(), 14);
    }
}
