//! One connection to a service, as the public side holds it: a stream of the carrier, or a connection of its own, that reads
//! and writes like a socket.
//!
//! It promises: what the reader does not take is not asked for, beyond the stream's window; what the other side does not
//! take is not accepted, beyond the stream's buffer; half a close is half a close on the other side; dropping it before
//! its end resets it, and so does the end of what it was made under ([`Standing`]). It goes no faster than its agent may.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::allowance::{Allowance, Direction, Pause, Until};
use super::carried::Carried;
use super::carrier::broken;
use super::offer::Standing;
use super::ticket::Own;
use crate::net::Sever;

/// What flows through something, and has.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counts {
    pub open: AtomicUsize,
    pub opened: AtomicU64,
    /// Bytes to the service.
    pub sent: AtomicU64,
    /// Bytes from the service.
    pub received: AtomicU64,
    /// Datagrams for which there was no room on their way to the service, or which the agent's rate made late, either way.
    pub dropped: AtomicU64,
}

/// A place in counts, from the first try to the end of the flow.
#[derive(Debug)]
pub struct Counted {
    counts: [Arc<Counts>; 2],
    /// The agent's.
    allowance: Arc<Allowance>,
    /// Told at the end.
    ended: Arc<tokio::sync::Notify>,
}

impl Counted {
    /// Of the agent and of the session. `None`: the agent has `limit` of them already.
    pub(super) fn take(
        (agent, allowance): (&Arc<Counts>, &Arc<Allowance>),
        session: &Arc<Counts>,
        limit: Option<usize>,
        ended: &Arc<tokio::sync::Notify>,
    ) -> Option<Counted> {
        let limit = limit.unwrap_or(usize::MAX);
        let order = Ordering::AcqRel;
        agent
            .open
            .fetch_update(order, Ordering::Acquire, |n| (n < limit).then_some(n + 1))
            .ok()?;
        session.open.fetch_add(1, Ordering::AcqRel);
        Some(Counted {
            counts: [agent.clone(), session.clone()],
            allowance: allowance.clone(),
            ended: ended.clone(),
        })
    }

    /// The service has taken it.
    pub fn opened(&self) {
        for counts in &self.counts {
            counts.opened.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Bytes to the service; until when no more may follow.
    pub(super) fn sent(&self, bytes: usize) -> Option<Until> {
        for counts in &self.counts {
            counts.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        self.allowance.take(Direction::ToService, bytes)
    }

    /// Bytes from the service; until when no more may follow.
    pub(super) fn received(&self, bytes: usize) -> Option<Until> {
        for counts in &self.counts {
            counts.received.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        self.allowance.take(Direction::FromService, bytes)
    }

    /// Datagrams that had no room, or were late.
    pub(super) fn dropped(&self, datagrams: u64) {
        for counts in &self.counts {
            counts.dropped.fetch_add(datagrams, Ordering::Relaxed);
        }
    }

    /// Bytes that may pass in one piece.
    pub(super) fn piece(&self) -> usize {
        self.allowance.piece()
    }

    /// It may have to wait for what has passed.
    pub(super) fn is_limited(&self) -> bool {
        self.allowance.is_limited()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        for counts in &self.counts {
            counts.open.fetch_sub(1, Ordering::AcqRel);
        }
        self.ended.notify_one();
    }
}

/// When a flow is cut.
pub(super) type Cut = Pin<Box<WaitForCancellationFutureOwned>>;

/// A connection to a service.
#[derive(Debug)]
pub struct Flow {
    line: Line,
    counted: Counted,
    pauses: [Pause; 2],
    /// Of what it was made under.
    withdrawn: CancellationToken,
    cut: Cut,
    // Whoever withdraws it sees by it that there are flows.
    standing: Arc<Standing>,
}

/// What carries a flow.
#[derive(Debug)]
pub(super) struct Line(Way);

#[derive(Debug)]
enum Way {
    Stream {
        send: SendStream<Bytes>,
        receive: RecvStream,
        /// Came, and was not read yet.
        chunk: Bytes,
        shut: bool,
    },
    /// A connection of its own.
    Own {
        own: Own,
        /// With the session, too.
        cut: Cut,
        /// What it was asked for on. Dropping it before its end is a reset, which the agent hears while it does not read.
        _asked: (SendStream<Bytes>, RecvStream),
    },
}

impl Line {
    pub(super) fn stream(send: SendStream<Bytes>, receive: RecvStream) -> Line {
        Line(Way::Stream {
            send,
            receive,
            chunk: Bytes::new(),
            shut: false,
        })
    }

    pub(super) fn own(
        own: Own,
        asked: (SendStream<Bytes>, RecvStream),
        cut: CancellationToken,
    ) -> Line {
        Line(Way::Own {
            own,
            cut: Box::pin(cut.cancelled_owned()),
            _asked: asked,
        })
    }
}

impl Flow {
    pub(super) fn new(line: Line, counted: Counted, standing: Arc<Standing>) -> Flow {
        counted.opened();
        Flow {
            line,
            counted,
            pauses: Default::default(),
            withdrawn: standing.withdrawn.clone(),
            cut: Box::pin(standing.cut.clone().cancelled_owned()),
            standing,
        }
    }

    /// Cancelled when nothing new may begin on it.
    pub(super) fn withdrawn(&self) -> CancellationToken {
        self.withdrawn.clone()
    }

    /// The same for datagrams. `None`: a connection of its own carries none.
    pub(super) fn into_datagrams(self) -> Option<Carried> {
        match self.line.0 {
            Way::Stream { send, receive, .. } => {
                let stands = (self.cut, self.standing);
                Some(Carried::new((send, receive), self.counted, stands))
            }
            Way::Own { .. } => None,
        }
    }

    /// Nothing is here that could be read.
    fn waits(&self) -> bool {
        match &self.line.0 {
            Way::Stream { chunk, .. } => chunk.is_empty(),
            Way::Own { .. } => true,
        }
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Way::Own { cut, .. } = &mut self.line.0
            && cut.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(());
        }
        self.cut.as_mut().poll(cx)
    }

    /// What waits may be cut meanwhile.
    fn or_cut<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match polled.is_pending() && self.poll_cut(cx).is_ready() {
            true => Poll::Ready(Err(withdrawn())),
            false => polled,
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let pause = &mut self.pauses[Direction::ToService as usize];
        ready!(pause.poll(cx));
        let wanted = bytes.len().min(self.counted.piece());
        let size = match &mut self.line.0 {
            Way::Stream { send, .. } => {
                send.reserve_capacity(wanted);
                while send.capacity() == 0 {
                    match ready!(send.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                        None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                    }
                }
                let size = wanted.min(send.capacity());
                let piece = Bytes::copy_from_slice(&bytes[..size]);
                send.send_data(piece, false).map_err(broken)?;
                size
            }
            Way::Own { own, .. } => ready!(Pin::new(&mut own.io).poll_write(cx, &bytes[..wanted]))?,
        };
        pause.until(self.counted.sent(size));
        Poll::Ready(Ok(size))
    }
}

/// Down to the socket, where it has its own. Dropping a stream before both sides have ended resets it.
impl Sever for Flow {
    fn sever(&self) {
        if let Way::Own { own, .. } = &self.line.0 {
            own.io.sever();
        }
    }
}

fn withdrawn() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        "the service is withdrawn, or its session over",
    )
}

/// A connection that ends without the word for it has broken.
fn cut_short(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(io::ErrorKind::ConnectionReset, error),
        _ => error,
    }
}

impl AsyncRead for Flow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.waits() && this.poll_cut(cx).is_ready() {
            return Poll::Ready(Err(withdrawn()));
        }
        let pause = &mut this.pauses[Direction::FromService as usize];
        ready!(pause.poll(cx));
        let most = this.counted.piece().min(out.remaining());
        let size = match &mut this.line.0 {
            Way::Stream { receive, chunk, .. } => {
                while chunk.is_empty() {
                    match ready!(receive.poll_data(cx)) {
                        Some(Ok(came)) => *chunk = came,
                        Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                        None => return Poll::Ready(Ok(())),
                    }
                }
                let size = chunk.len().min(most);
                out.put_slice(&chunk[..size]);
                chunk.advance(size);
                if chunk.is_empty() {
                    *chunk = Bytes::new();
                }
                // It fails for more than came, which this is not.
                let _ = receive.flow_control().release_capacity(size);
                size
            }
            Way::Own { own, .. } => {
                let mut piece = ReadBuf::new(out.initialize_unfilled_to(most));
                ready!(Pin::new(&mut own.io).poll_read(cx, &mut piece)).map_err(cut_short)?;
                let size = piece.filled().len();
                out.advance(size);
                size
            }
        };
        pause.until(this.counted.received(size));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Flow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let polled = self.poll_piece(cx, bytes);
        self.or_cut(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = match &mut self.line.0 {
            // The carrier's task writes what it has.
            Way::Stream { .. } => Poll::Ready(Ok(())),
            Way::Own { own, .. } => Pin::new(&mut own.io).poll_flush(cx),
        };
        self.or_cut(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = match &mut self.line.0 {
            Way::Stream { send, shut, .. } => {
                if !std::mem::replace(shut, true) {
                    send.send_data(Bytes::new(), true).map_err(broken)?;
                }
                Poll::Ready(Ok(()))
            }
            Way::Own { own, .. } => Pin::new(&mut own.io).poll_shutdown(cx),
        };
        self.or_cut(cx, polled)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// The public side's end of a stream that is open both ways, and what carries it.
    async fn asked() -> ((SendStream<Bytes>, RecvStream), tokio::task::JoinHandle<()>) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (client, server) =
            tokio::join!(h2::client::handshake(near), h2::server::handshake(far));
        let ((mut client, connection), mut server) = (client.unwrap(), server.unwrap());
        let carrier = tokio::spawn(async move {
            let serving = async move {
                let mut held = Vec::new();
                while let Some(Ok((request, mut respond))) = server.accept().await {
                    let answer = ::http::Response::new(());
                    held.push((request, respond.send_response(answer, false).unwrap()));
                }
            };
            let _ = tokio::join!(connection, serving);
        });
        let request = ::http::Request::post("https://tunnel/flow")
            .body(())
            .unwrap();
        let (response, send) = client.send_request(request, false).unwrap();
        ((send, response.await.unwrap().into_body()), carrier)
    }

    #[tokio::test]
    async fn what_waits_to_be_written_is_cut_with_the_session_and_with_the_service() {
        for with_session in [true, false] {
            let (asked, carrier) = asked().await;
            let (io, _nobody_reads) = tokio::io::duplex(1);
            let over = CancellationToken::new();
            let own = Own {
                io: Box::new(io),
                _over: over.clone().drop_guard(),
            };
            let (cut, standing) = (CancellationToken::new(), Arc::<Standing>::default());
            let counts = Arc::default();
            let ended = Arc::default();
            let of = (&counts, &Arc::default());
            let counted = Counted::take(of, &counts, None, &ended).unwrap();
            let line = Line::own(own, asked, cut.clone());
            let mut flow = Flow::new(line, counted, standing.clone());
            let writing = tokio::spawn(async move { flow.write_all(b"two").await });
            tokio::task::yield_now().await;
            match with_session {
                true => cut.cancel(),
                false => standing.cut.cancel(),
            }
            let ended = tokio::time::timeout(std::time::Duration::from_secs(30), writing).await;
            let error = ended.unwrap().unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert!(over.is_cancelled());
            carrier.abort();
        }
    }
}
