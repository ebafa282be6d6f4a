//! A websocket joined with a stream: one end of a session speaks websocket, the other bytes. It is the same whichever end the
//! client is: of the action `tcp` (`http::bridge`) the websocket is the client's, of `[tcp] websocket` the target's.
//!
//! Ends become each other: a Close 1000 ends what is written to the stream, and what the stream still sends goes to the
//! websocket; the stream's end is a Close 1000. A stream that breaks is a Close 1011, a cut or silence a Close 1001, what is no
//! websocket a Close 1002, and a Close for another reason is answered with the same. Unless both ended, the stream sees a
//! reset, so that nobody takes the end for that of the data.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::pace::Paced;
use super::relay::{Cause, Joined, Relayed, Terms, run};
use crate::net::copy::{Anywhere, End, Pair, Way};
use crate::net::websocket::{
    Carrier, Fault, GOING_AWAY, INTERNAL_ERROR, NORMAL, PROTOCOL_ERROR, Role,
};
use crate::net::{Sever, SeverOnDrop};
use crate::upstream::link::Duplex;
use crate::upstream::upgrade::Switched;

/// How long nothing may move once one side has ended: the other side of a websocket waits for the answer to its Close.
const LAST: Duration = Duration::from_secs(10);

/// Which end of the session speaks websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    ByClient,
    ByTarget,
}

/// The last word that is due to a websocket whose session has ended.
#[derive(Debug)]
pub struct Last<W> {
    websocket: Carrier<W>,
    /// `None`: there is nobody to say it to.
    code: Option<u16>,
}

impl<W: AsyncRead + AsyncWrite + Unpin> Last<W> {
    /// Says it and ends the connection; see [`Carrier::finish`].
    pub async fn say(self) {
        if let Some(code) = self.code {
            self.websocket.finish(code).await;
        }
    }
}

struct Both<W, S> {
    pair: Pair<Carrier<W>, S, Anywhere>,
    spoken: Spoken,
    hurried: bool,
}

impl<W, S> Joined for Both<W, S>
where
    W: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<End>> {
        let pair = &mut self.pair;
        let mut polled = pair.poll(cx);
        if polled.is_pending() && !self.hurried && (pair.a.is_closed() || pair.a.is_closing()) {
            self.hurried = true;
            pair.hurry(LAST);
            polled = pair.poll(cx);
        }
        if pair.a.heard() {
            pair.stir();
        }
        polled
    }

    fn passed(&self) -> (u64, u64) {
        let (forth, back) = (self.pair.forth.bytes, self.pair.back.bytes);
        match self.spoken {
            Spoken::ByClient => (forth, back),
            Spoken::ByTarget => (back, forth),
        }
    }
}

/// Joins a client with a target that speaks websocket, as [`relay`](super::relay::relay) does with one that does not.
pub async fn with_target<S>(
    client: S,
    target: Switched,
    early: Bytes,
    terms: Terms<'_>,
) -> (Relayed, Last<Box<dyn Duplex>>)
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send,
{
    let Switched { stream, first } = target;
    // Frames and all: what a message has around it is little.
    let below: Box<dyn Duplex> = match terms.bandwidth {
        Some(rate) => Box::new(Paced::new(stream, rate)),
        None => Box::new(stream),
    };
    let websocket = Carrier::new(Role::Client, below, first);
    match terms.bandwidth {
        Some(rate) => {
            let client = Paced::new(client, rate);
            bridge(websocket, client, early, Spoken::ByTarget, terms).await
        }
        None => bridge(websocket, client, early, Spoken::ByTarget, terms).await,
    }
}

/// Joins them until the end. `early`: what the stream has said already. `terms.bandwidth` is the caller's to see to: it knows
/// what is below the websocket.
pub async fn bridge<W, S>(
    websocket: Carrier<W>,
    stream: S,
    early: Bytes,
    spoken: Spoken,
    terms: Terms<'_>,
) -> (Relayed, Last<W>)
where
    W: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Sever + Unpin,
{
    let (forth, back) = (Way::new(Anywhere, Bytes::new()), Way::new(Anywhere, early));
    let stream = SeverOnDrop::new(stream);
    let mut both = Both {
        pair: Pair::new(websocket, stream, forth, back, terms.idle),
        spoken,
        hurried: false,
    };
    let relayed = run(&mut both, terms).await;
    let Pair {
        a: websocket,
        b: mut stream,
        ..
    } = both.pair;
    let whole = matches!(relayed.cause, Cause::Closed);
    // A target that has said all and is not answered got all that came.
    let answerless = spoken == Spoken::ByClient
        && matches!(relayed.cause, Cause::Idle)
        && websocket.is_closing();
    if whole || answerless {
        stream.spare();
    }
    drop(stream);
    let code = match (&relayed.cause, websocket.fault()) {
        (Cause::Broken(_), Some(Fault::Broken)) => None,
        (Cause::Broken(_), Some(Fault::Violation)) => Some(PROTOCOL_ERROR),
        (Cause::Broken(_), Some(Fault::Closed(code))) => Some(code),
        (Cause::Broken(_), None) => Some(INTERNAL_ERROR),
        (Cause::Closed, _) => Some(NORMAL),
        (Cause::Idle, _) if websocket.is_closed() => Some(NORMAL),
        (Cause::Idle | Cause::Cut, _) => Some(GOING_AWAY),
    };
    (relayed, Last { websocket, code })
}
