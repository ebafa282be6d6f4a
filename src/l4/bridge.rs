//! A websocket joined with a stream: one end of a session speaks websocket, the other bytes. It is the same whichever end the
//! client is: of the action `tcp` (`http::bridge`) the websocket is the client's, of `[tcp] websocket` the target's.
//!
//! Ends become each other: a Close 1000 ends what is written to the stream, and what the stream still sends goes to the
//! websocket; the stream's end is a Close 1000. A stream that breaks is a Close 1011, a cut or silence a Close 1001, what is no
//! websocket a Close 1002, and a Close for another reason is answered with the same. Unless it was given all
//! that the websocket said, and the end of it, the stream sees a reset, so that nobody takes the end for that of the data.

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
        // A reader that pauses is waited for as long as before.
        if polled.is_pending() && !self.hurried && (pair.forth.is_ended() || pair.a.is_closing()) {
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
        forth,
        ..
    } = both.pair;
    // A target that has said all and is not answered got all that came.
    let answerless = spoken == Spoken::ByClient
        && matches!(relayed.cause, Cause::Idle)
        && websocket.is_closing();
    // What is behind its end is whole, and the kernel may still have some of it.
    if forth.is_ended() || answerless {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::generation::Generation;

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap());
        let (there, here) = tokio::join!(there, listener.accept());
        (there.unwrap(), here.unwrap().0)
    }

    /// A session whose websocket says so many bytes and that it is done; `stream` is its other side.
    fn saying<S>(size: usize, stream: S, spoken: Spoken) -> JoinHandle<(Relayed, Option<u16>)>
    where
        S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
    {
        tokio::spawn(async move {
            let (near, far) = duplex(1000);
            let mut far = Carrier::new(Role::Server, far, Bytes::new());
            let saying = async {
                far.write_all(&vec![7; size]).await.unwrap();
                far.shutdown().await.unwrap();
            };
            let flight = Generation::new(1).begin(1);
            let terms = Terms {
                idle: None,
                bandwidth: None,
                flight: &flight,
                in_flight: None,
                session: None,
            };
            let near = Carrier::new(Role::Client, near, Bytes::new());
            let bridging = bridge(near, stream, Bytes::new(), spoken, terms);
            let ((), (relayed, last)) = tokio::join!(saying, bridging);
            (relayed, last.code)
        })
    }

    async fn all_is_read(mut reader: impl AsyncRead + Unpin, size: usize) {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), size);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_kernel_has_of_a_websocket_that_is_done_waits_for_who_pauses() {
        for spoken in [Spoken::ByClient, Spoken::ByTarget] {
            let (reader, stream) = connected().await;
            // More than the reader's own kernel takes at once.
            let size = 1_000_000;
            socket2::SockRef::from(&stream)
                .set_send_buffer_size(2 * size)
                .unwrap();
            let (relayed, code) = saying(size, stream, spoken).await.unwrap();
            assert!(matches!(relayed.cause, Cause::Idle), "{relayed:?}");
            assert_eq!(code, Some(NORMAL));
            all_is_read(reader, size).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_kernel_did_not_take_waits_too() {
        let (reader, stream) = duplex(4);
        let bridging = saying(10, stream, Spoken::ByTarget);
        tokio::time::sleep(LAST * 6).await;
        all_is_read(reader, 10).await;
        let (relayed, code) = bridging.await.unwrap();
        assert!(matches!(relayed.cause, Cause::Closed), "{relayed:?}");
        assert_eq!(code, Some(NORMAL));
    }
}
