//! A client and an origin after both have switched to websocket: bytes are copied until one of four things ends it: both
//! sides are done, one breaks, both are silent for too long, or it is cut: a swap took its definition away, its target
//! went down and `on_down` says so, or an operator tells it to end.
//!
//! In the last two cases it says goodbye: each direction runs on to the end of the frame that is passing and then ends
//! with a Close 1001, so that the client knows that it may come back. A direction that does not get there in time, or is no
//! websocket after all, just ends.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::progress::Progress;
use super::record::Record;
use super::websocket::{Frames, going_away, going_away_masked};
use crate::config::runtime::OnChange;
use crate::net::copy::{Pair, Way};
use crate::session::{Session, Start};
use crate::upstream::InFlight;
use crate::upstream::upgrade::Stream;

/// How long a direction may take to come to the end of its frame, how long the Close may take to leave, and how long the
/// others may take to answer it.
const LAST_FRAME: Duration = Duration::from_secs(1);
const LAST_WRITE: Duration = Duration::from_secs(1);
const LAST_READ: Duration = Duration::from_secs(1);

/// The origin's side of a switched connection, until the client's side is free to be joined with it.
#[derive(Debug)]
pub struct Tunnel {
    pub origin: Stream,
    /// What the origin has sent after its head.
    pub first: Bytes,
    /// Holds its place in its generation. It outlives the request.
    pub progress: Arc<Progress>,
    pub in_flight: InFlight,
    /// Of the request that it was.
    pub record: Option<Record>,
    /// Who it is, until it is `session`.
    pub start: Start,
    /// Its place among the long flows, since the answer is certain.
    pub session: Option<Session>,
    /// How long both sides may be silent.
    pub idle: Option<Duration>,
    pub on_change: OnChange,
}

impl Tunnel {
    /// Runs it to its end. `early`: what the client has sent after its request; the origin gets it now, for it has agreed.
    pub async fn run<S>(self, client: S, early: Bytes)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let Tunnel {
            origin,
            first,
            progress,
            in_flight,
            record,
            start: _,
            session,
            idle,
            on_change: _,
        } = self;
        let flight = &progress.flight;
        let forth = Way::new(Frames::default(), early);
        let back = Way::new(Frames::default(), first);
        let mut counted = Counted {
            pair: Pair::new(client, origin, forth, back, idle),
            record,
            in_flight,
        };
        let Counted {
            pair, in_flight, ..
        } = &mut counted;
        let mut ended = poll_fn(|cx| {
            let polled = pair.poll(cx);
            if let Some(session) = &session {
                session.passed(pair.forth.bytes, pair.back.bytes);
            }
            let closed = |session: &Session| session.poll_closed(cx).is_ready();
            let told = session.as_ref().is_some_and(closed);
            match polled {
                Poll::Ready(end) => Poll::Ready(Some(end)),
                Poll::Pending if told || in_flight.poll_cut(cx).is_ready() => Poll::Ready(None),
                Poll::Pending => flight.poll_cut(cx).map(|()| None),
            }
        })
        .await;
        if ended.is_none() {
            // Not all at once.
            let mut wait = pin!(tokio::time::sleep(flight.cut_delay()));
            ended = poll_fn(|cx| match pair.poll(cx) {
                Poll::Ready(end) => Poll::Ready(Some(end)),
                Poll::Pending => wait.as_mut().poll(cx).map(|()| None),
            })
            .await;
        }
        tracing::debug!(?ended, "websocket ended");
        counted.end();
        match ended {
            Some(Err(_)) | Some(Ok(crate::net::copy::End::Closed)) => {}
            Some(Ok(crate::net::copy::End::Idle)) | None => say_goodbye(&mut counted.pair).await,
        }
    }
}

/// What passes, and what is to be said of it, however it ends: also by the end of the connection that it is a stream of.
struct Counted<S> {
    pair: Pair<S, Stream, Frames>,
    record: Option<Record>,
    in_flight: InFlight,
}

impl<S> Counted<S> {
    fn end(&mut self) {
        let Some(mut record) = self.record.take() else {
            return;
        };
        record.tunnelled(self.pair.forth.bytes, self.pair.back.bytes);
        if let Some(outcome) = record.finish() {
            self.in_flight.end(outcome);
        }
    }
}

impl<S> Drop for Counted<S> {
    fn drop(&mut self) {
        self.end();
    }
}

async fn say_goodbye<S>(pair: &mut Pair<S, Stream, Frames>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let rest = poll_fn(|cx| pair.poll_rest(cx));
    if let Ok(Err(_)) = tokio::time::timeout(LAST_FRAME, rest).await {
        return;
    }
    let may_close = |way: &Way<Frames>| way.is_at_rest() && way.tap.may_close();
    let key = fastrand::u32(..).to_be_bytes();
    let to_client = may_close(&pair.back).then(going_away);
    let to_origin = may_close(&pair.forth).then(|| going_away_masked(key));
    let Pair {
        a: client,
        b: origin,
        ..
    } = pair;
    // Best effort: both end either way.
    let _ = tokio::join!(
        end(client, to_client.as_ref().map(|close| &close[..])),
        end(origin, to_origin.as_ref().map(|close| &close[..])),
    );
}

/// Writes the last words, ends our side and reads what still comes: closing with unread bytes would be a reset, which may
/// overtake them.
async fn end<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, last: Option<&[u8]>) {
    let write = async {
        if let Some(last) = last {
            stream.write_all(last).await?;
        }
        stream.shutdown().await
    };
    if !matches!(tokio::time::timeout(LAST_WRITE, write).await, Ok(Ok(()))) {
        return;
    }
    let read = async {
        let mut buffer = vec![0; 4096];
        while let Ok(1..) = stream.read(&mut buffer).await {}
    };
    let _ = tokio::time::timeout(LAST_READ, read).await;
}
