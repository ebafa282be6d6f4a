//! The action `tcp` after its handshake: a websocket whose messages are a stream to a target, until both sides have ended,
//! one breaks, both are silent for too long, or it is cut: by a swap that took its definition away, by a target that went
//! down, or by an operator.
//!
//! Ends become each other: the client's Close ends what is written to the target, and what the target still sends goes
//! to the client; the target's end is a Close 1000. A target that breaks is a Close 1011, a cut or silence a Close 1001,
//! what is no websocket a Close 1002. Unless both ended, the target sees a reset, so that it does not take the end for
//! that of the data.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::progress::Progress;
use super::record::Record;
use crate::config::runtime::OnChange;
use crate::net::SeverOnDrop;
use crate::net::copy::{Anywhere, End, Pair, Way};
use crate::net::websocket::{Carrier, Fault, GOING_AWAY, INTERNAL_ERROR, NORMAL, PROTOCOL_ERROR};
use crate::session::{Session, Start};
use crate::upstream::InFlight;
use crate::upstream::link::Link;

/// How long nothing may move once one side has ended: a client waits for the answer to its Close.
const LAST: Duration = Duration::from_secs(10);

/// The target's side, until the client's is free to be joined with it.
#[derive(Debug)]
pub struct Bridge {
    pub target: Link,
    pub in_flight: InFlight,
    /// Holds its place in its generation. It outlives the request.
    pub progress: Arc<Progress>,
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

type Joined<S> = Pair<Carrier<S>, SeverOnDrop<Link>, Anywhere>;

/// What is to be said of it, however it ends: also by the end of the connection that it is a stream of.
struct Counted {
    /// Bytes from and to the client, without frames.
    passed: (u64, u64),
    record: Option<Record>,
    in_flight: InFlight,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(record) = &mut self.record {
            record.tunnelled(self.passed.0, self.passed.1);
        }
        self.in_flight.end_session(self.passed.1);
    }
}

impl Bridge {
    /// Runs it to its end. `early`: what the client has sent after its request.
    pub(super) async fn run<S>(self, client: S, early: Bytes)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let Bridge {
            target,
            in_flight,
            progress,
            record,
            start: _,
            session,
            idle,
            on_change: _,
        } = self;
        let flight = &progress.flight;
        let way = || Way::new(Anywhere, Bytes::new());
        let target = SeverOnDrop::new(target);
        let mut pair = Pair::new(Carrier::new(client, early), target, way(), way(), idle);
        let mut counted = Counted {
            passed: (0, 0),
            record,
            in_flight,
        };
        let mut hurried = false;
        let mut poll = |pair: &mut Joined<S>, cx: &mut Context<'_>| {
            let mut polled = pair.poll(cx);
            if polled.is_pending() && !hurried && (pair.a.is_closed() || pair.a.is_closing()) {
                hurried = true;
                pair.hurry(LAST);
                polled = pair.poll(cx);
            }
            if pair.a.heard() {
                pair.stir();
            }
            polled
        };
        let mut ended = poll_fn(|cx| {
            let polled = poll(&mut pair, cx);
            counted.passed = (pair.forth.bytes, pair.back.bytes);
            if let Some(session) = &session {
                session.passed(pair.forth.bytes, pair.back.bytes);
            }
            let closed = |session: &Session| session.poll_closed(cx).is_ready();
            let told = session.as_ref().is_some_and(closed);
            match polled {
                Poll::Ready(end) => Poll::Ready(Some(end)),
                Poll::Pending if told || counted.in_flight.poll_cut(cx).is_ready() => {
                    Poll::Ready(None)
                }
                Poll::Pending => flight.poll_cut(cx).map(|()| None),
            }
        })
        .await;
        if ended.is_none() {
            // Not all at once.
            let mut wait = pin!(tokio::time::sleep(flight.cut_delay()));
            ended = poll_fn(|cx| match poll(&mut pair, cx) {
                Poll::Ready(end) => Poll::Ready(Some(end)),
                Poll::Pending => wait.as_mut().poll(cx).map(|()| None),
            })
            .await;
        }
        tracing::debug!(?ended, "bridge ended");
        counted.passed = (pair.forth.bytes, pair.back.bytes);
        drop(counted);
        let Pair {
            a: client,
            b: mut target,
            ..
        } = pair;
        let whole = matches!(ended, Some(Ok(End::Closed)));
        // A target that has said all and is not answered got all that came.
        let answerless = matches!(ended, Some(Ok(End::Idle))) && client.is_closing();
        if whole || answerless {
            target.spare();
        }
        drop(target);
        let code = match (ended, client.fault()) {
            (Some(Err(_)), Some(Fault::Broken)) => return,
            (Some(Err(_)), Some(Fault::Violation)) => PROTOCOL_ERROR,
            (Some(Err(_)), None) => INTERNAL_ERROR,
            (Some(Ok(End::Closed)), _) => NORMAL,
            (Some(Ok(End::Idle)), _) if client.is_closed() => NORMAL,
            (Some(Ok(End::Idle)) | None, _) => GOING_AWAY,
        };
        client.finish(code).await;
    }
}
