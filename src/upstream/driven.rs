//! An HTTP/1 exchange that is answered while its request is still being sent. Who reads the answer may pause, and wait for
//! the client to have sent its request first: then both would wait for each other. So a task goes on with both, each
//! direction at its own pace, until the answer is read.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::PollSender;
use tokio_util::task::AbortOnDropHandle;

use super::h1::Http1;
use super::response::{Held, Piece};
use super::timer::Deadline;
use crate::config::scalar::TargetAddr;

/// Pieces of the answer that wait for their reader.
const WAITING: usize = 1;

/// The answer. Dropped before its end, it closes the connection.
#[derive(Debug)]
pub(super) struct Driven {
    /// `None`: it has ended. That is told: a task that goes away has told nothing.
    pieces: mpsc::Receiver<Option<Piece>>,
    deadline: Deadline,
    peer: TargetAddr,
    /// Bytes that have not come yet, where that is known.
    rest: Option<u64>,
    _task: AbortOnDropHandle<()>,
}

impl Driven {
    /// `held`: an HTTP/1 connection, which is given back where it belongs.
    pub(super) fn new(held: Held) -> Driven {
        let (peer, rest) = (
            held.peer().clone(),
            held.connection().and_then(|one| one.http.rest()),
        );
        let (out, pieces) = mpsc::channel(WAITING);
        Driven {
            pieces,
            deadline: Deadline::default(),
            peer,
            rest,
            _task: AbortOnDropHandle::new(tokio::spawn(drive(held, PollSender::new(out)))),
        }
    }

    pub(super) fn peer(&self) -> &TargetAddr {
        &self.peer
    }

    pub(super) fn rest(&self) -> Option<u64> {
        self.rest
    }

    /// The next piece; the outer `None`: it is late.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        due: impl FnMut(Option<Instant>) -> Option<Instant>,
    ) -> Poll<Option<Option<Piece>>> {
        let pieces = &mut self.pieces;
        let piece = ready!(self.deadline.watch(cx, |cx| pieces.poll_recv(cx), due));
        let piece = piece.map(|told| told.unwrap_or_else(|| Some(Err("it was given up".into()))));
        if let (Some(rest), Some(Some(Ok(frame)))) = (&mut self.rest, &piece)
            && let Some(data) = frame.data_ref()
        {
            *rest = rest.saturating_sub(data.len() as u64);
        }
        Poll::Ready(piece)
    }
}

async fn drive(mut held: Held, mut out: PollSender<Option<Piece>>) {
    while let Some(connection) = held.connection_mut() {
        let next = poll_fn(|cx| poll_next(&mut connection.http, &mut out, cx)).await;
        // The request broke, which is told by who watches its body, or nobody reads any more.
        let Some(piece) = next else { return };
        let is_free = connection.http.is_answered() && !connection.http.is_sending();
        let is_last = !matches!(piece, Some(Ok(_)));
        if is_free {
            // Before the reader knows that it has all.
            if let Held::H1(lease) = held {
                lease.give_back();
            }
            let _ = out.send_item(piece);
            if !is_last && poll_fn(|cx| out.poll_reserve(cx)).await.is_ok() {
                let _ = out.send_item(None);
            }
            return;
        }
        if out.send_item(piece).is_err() || is_last {
            return;
        }
    }
}

/// Sends what can be sent; ready with the next piece of the answer when there is room for it.
fn poll_next(
    http: &mut Http1,
    out: &mut PollSender<Option<Piece>>,
    cx: &mut Context<'_>,
) -> Poll<Option<Option<Piece>>> {
    if http.is_sending()
        && let Poll::Ready(Err(_)) = http.poll_send(cx)
    {
        return Poll::Ready(None);
    }
    if ready!(out.poll_reserve(cx)).is_err() {
        return Poll::Ready(None);
    }
    let piece = ready!(http.poll_body(cx));
    Poll::Ready(Some(
        piece.map(|piece| piece.map_err(|fault| fault.to_string())),
    ))
}
