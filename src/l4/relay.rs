//! The one loop that joins a client with what it was connected to, for everything that is no HTTP: until both have ended,
//! one breaks, both are silent for too long, or it is told to end: by a swap that took its definition away, by a target
//! that went down, or by an operator.
//!
//! Two plain TCP sockets are joined in the kernel ([`crate::net::splice`]), everything else by copying.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::pace::Paced;
use crate::generation::Flight;
use crate::net::copy::{Anywhere, End, Pair, Way};
#[cfg(target_os = "linux")]
use crate::net::splice::Spliced;
use crate::net::{Sever, SeverOnDrop};
use crate::session::{self, Session};
use crate::upstream::InFlight;
use crate::upstream::link::Link;

/// Under which conditions two are joined.
#[derive(Debug)]
pub struct Terms<'a> {
    /// How long both may be silent; `None`: no limit.
    pub idle: Option<Duration>,
    /// Bytes a second in each direction; `None`: no limit.
    pub bandwidth: Option<u64>,
    pub flight: &'a Flight,
    /// Its place at a target, if it is one of an upstream.
    pub in_flight: Option<&'a mut InFlight>,
    /// Told of what passes; an operator may end it.
    pub session: Option<&'a Session>,
}

/// How it ended.
#[derive(Debug)]
pub enum Cause {
    /// Both sides ended.
    Closed,
    /// Nothing moved for the idle time.
    Idle,
    /// A swap, its target or an operator ended it.
    Cut,
    Broken(io::Error),
}

impl From<&Cause> for session::End {
    fn from(cause: &Cause) -> session::End {
        match cause {
            Cause::Closed => session::End::Closed,
            Cause::Idle => session::End::Idle,
            Cause::Cut => session::End::Cut,
            Cause::Broken(_) => session::End::Broken,
        }
    }
}

/// What passed, and how it ended.
#[derive(Debug)]
pub struct Relayed {
    pub from_client: u64,
    pub to_client: u64,
    pub cause: Cause,
}

/// Two that are joined.
pub(super) trait Joined {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<End>>;

    /// Bytes of the client, and to it.
    fn passed(&self) -> (u64, u64);

    /// As [`Sever::poll_severed`] of the client has it.
    fn poll_severed(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl<A, B> Joined for Pair<A, B, Anywhere>
where
    A: AsyncRead + AsyncWrite + Sever + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<End>> {
        Pair::poll(self, cx)
    }

    fn poll_severed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.a.poll_severed(cx)
    }

    fn passed(&self) -> (u64, u64) {
        (self.forth.bytes, self.back.bytes)
    }
}

#[cfg(target_os = "linux")]
impl Joined for Spliced<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<End>> {
        Spliced::poll(self, cx)
    }

    fn passed(&self) -> (u64, u64) {
        (self.forth.bytes, self.back.bytes)
    }
}

/// Joins `client` and `target` until the end. `early`: what the client has sent already. What is broken or cut ends with a
/// reset, so that neither side takes the end for that of its data; and so does what is dropped.
pub async fn relay<S>(client: S, target: Link, early: Bytes, terms: Terms<'_>) -> Relayed
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send,
{
    let (mut client, mut target) = (SeverOnDrop::new(client), SeverOnDrop::new(target));
    if let Some(rate) = terms.bandwidth {
        let (client, target) = (Paced::new(client, rate), Paced::new(target, rate));
        let mut pair = pair(client, target, early, terms.idle);
        let relayed = run(&mut pair, terms).await;
        relayed.spare(pair.a.get_mut(), pair.b.get_mut());
        return relayed;
    }
    #[cfg(target_os = "linux")]
    if let (Some(a), Some(b)) = (client.plain_tcp(), target.plain_tcp()) {
        let relayed = run(&mut Spliced::new((a, b), early, terms.idle), terms).await;
        relayed.spare(&mut client, &mut target);
        return relayed;
    }
    let mut pair = pair(client, target, early, terms.idle);
    let relayed = run(&mut pair, terms).await;
    relayed.spare(&mut pair.a, &mut pair.b);
    relayed
}

fn pair<A, B>(a: A, b: B, early: Bytes, idle: Option<Duration>) -> Pair<A, B, Anywhere>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (forth, back) = (Way::new(Anywhere, early), Way::new(Anywhere, Bytes::new()));
    Pair::new(a, b, forth, back, idle)
}

/// Moves what can be moved until the end; nobody is told of it here.
pub(super) async fn run(joined: &mut impl Joined, mut terms: Terms<'_>) -> Relayed {
    let mut told = false;
    // Whom the flight and the session would wake. That is the same task all along: it need not be told again with each message.
    let mut watching: Option<Waker> = None;
    let mut ended = poll_fn(|cx| {
        let polled = joined.poll(cx);
        if let Some(session) = terms.session {
            let (received, sent) = joined.passed();
            session.passed(received, sent);
        }
        if let Poll::Ready(end) = polled {
            return Poll::Ready(Some(end));
        }
        if joined.poll_severed(cx).is_ready() {
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
        }
        let down = terms.in_flight.as_mut();
        if down.is_some_and(|target| target.poll_cut(cx).is_ready()) {
            told = true;
            return Poll::Ready(None);
        }
        let (closed, cut) = match &watching {
            Some(waker) if waker.will_wake(cx.waker()) => (
                terms.session.is_some_and(Session::is_closed),
                terms.flight.is_cut(),
            ),
            _ => {
                watching = Some(cx.waker().clone());
                let closed = |s: &Session| s.poll_closed(cx).is_ready();
                (
                    terms.session.is_some_and(closed),
                    terms.flight.poll_cut(cx).is_ready(),
                )
            }
        };
        told = closed;
        match closed || cut {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    })
    .await;
    if ended.is_none() && !told {
        // Not all at once.
        let mut wait = pin!(tokio::time::sleep(terms.flight.cut_delay()));
        ended = poll_fn(|cx| match joined.poll(cx) {
            Poll::Ready(end) => Poll::Ready(Some(end)),
            Poll::Pending => wait.as_mut().poll(cx).map(|()| None),
        })
        .await;
    }
    let (from_client, to_client) = joined.passed();
    if let Some(session) = terms.session {
        session.passed(from_client, to_client);
    }
    Relayed {
        from_client,
        to_client,
        cause: match ended {
            Some(Ok(End::Closed)) => Cause::Closed,
            Some(Ok(End::Idle)) => Cause::Idle,
            Some(Err(error)) => Cause::Broken(error),
            None => Cause::Cut,
        },
    }
}

impl Relayed {
    /// Nothing is missing on either side, if both have ended.
    fn spare(&self, client: &mut SeverOnDrop<impl Sever>, target: &mut SeverOnDrop<Link>) {
        if matches!(self.cause, Cause::Closed) {
            client.spare();
            target.spare();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::Instant;

    use super::*;
    use crate::config::runtime::OnChange;
    use crate::generation::{Generation, Verdict};

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap());
        let (there, here) = tokio::join!(there, listener.accept());
        (there.unwrap(), here.unwrap().0)
    }

    fn long(generation: &std::sync::Arc<Generation>) -> Flight {
        let flight = generation.begin(1);
        flight.define(7);
        flight.set_long(OnChange::Drain);
        flight
    }

    fn terms(flight: &Flight) -> Terms<'_> {
        Terms {
            idle: None,
            bandwidth: None,
            flight,
            in_flight: None,
            session: None,
        }
    }

    /// In the kernel and by copying, with ends that come one by one.
    #[tokio::test]
    async fn every_byte_goes_both_ways_and_each_end_is_passed_on() {
        for plain in [true, false] {
            let (client, a) = connected().await;
            let (b, origin) = connected().await;
            let generation = Generation::new(1);
            let flight = long(&generation);
            let relaying = tokio::spawn(async move {
                let target = match plain {
                    true => Link::of_tcp(b),
                    false => Link::within(Box::new(Link::of_tcp(b))),
                };
                relay(a, target, Bytes::from_static(b"first "), terms(&flight)).await
            });
            let large: Vec<u8> = (0..20_000_000_u32).map(|n| (n >> 8 ^ n) as u8).collect();
            let (mut client_in, mut client_out) = client.into_split();
            let (mut origin_in, mut origin_out) = origin.into_split();
            let sent = large.clone();
            let up = tokio::spawn(async move {
                client_out.write_all(&sent).await.unwrap();
                client_out.shutdown().await.unwrap();
                client_out
            });
            let mut got = Vec::new();
            origin_in.read_to_end(&mut got).await.unwrap();
            assert!(
                got.starts_with(b"first ") && got[6..] == large[..],
                "plain: {plain}"
            );
            // The other direction lives on.
            let sent = large.clone();
            let down = tokio::spawn(async move {
                for piece in sent.chunks(70_001) {
                    origin_out.write_all(piece).await.unwrap();
                }
                origin_out.shutdown().await.unwrap();
            });
            let mut got = Vec::new();
            client_in.read_to_end(&mut got).await.unwrap();
            assert!(got == large, "plain: {plain}");
            down.await.unwrap();
            drop(up.await.unwrap());
            let relayed = relaying.await.unwrap();
            assert!(matches!(relayed.cause, Cause::Closed), "{relayed:?}");
            let size = large.len() as u64;
            assert_eq!((relayed.from_client, relayed.to_client), (size + 6, size));
        }
    }

    #[tokio::test]
    async fn one_that_does_not_read_is_not_read_for() {
        let (mut client, a) = connected().await;
        let (b, origin) = connected().await;
        let generation = Generation::new(1);
        let flight = long(&generation);
        let mut given = terms(&flight);
        given.idle = Some(Duration::from_millis(300));
        let writing = tokio::spawn(async move {
            let mut sent = 0_u64;
            while client.write_all(&[0; 65_536]).await.is_ok() {
                sent += 65_536;
                assert!(sent < 1 << 30);
            }
        });
        let relayed = relay(a, Link::of_tcp(b), Bytes::new(), given).await;
        assert!(matches!(relayed.cause, Cause::Idle), "{relayed:?}");
        writing.await.unwrap();
        drop(origin);
    }

    #[tokio::test]
    async fn what_a_swap_takes_away_ends_with_a_reset() {
        let (mut client, a) = connected().await;
        let (b, mut origin) = connected().await;
        let generation = Generation::new(1);
        let flight = long(&generation);
        let relaying =
            tokio::spawn(
                async move { relay(a, Link::of_tcp(b), Bytes::new(), terms(&flight)).await },
            );
        client.write_all(b"x").await.unwrap();
        assert_eq!(origin.read_u8().await.unwrap(), b'x');
        assert_eq!(generation.settle(false, |_| Verdict::Ends), 1);
        assert!(matches!(relaying.await.unwrap().cause, Cause::Cut));
        for side in [&mut client, &mut origin] {
            let error = side.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    /// As with the connection that a client's stream is one of.
    #[tokio::test]
    async fn what_is_dropped_ends_with_a_reset_however_it_is_joined() {
        for (plain, bandwidth) in [(true, None), (false, None), (true, Some(1 << 20))] {
            let (mut client, a) = connected().await;
            let (b, mut origin) = connected().await;
            let generation = Generation::new(1);
            let flight = long(&generation);
            let relaying = tokio::spawn(async move {
                let target = match plain {
                    true => Link::of_tcp(b),
                    false => Link::within(Box::new(Link::of_tcp(b))),
                };
                let given = Terms {
                    bandwidth,
                    ..terms(&flight)
                };
                relay(a, target, Bytes::new(), given).await
            });
            client.write_all(b"x").await.unwrap();
            assert_eq!(origin.read_u8().await.unwrap(), b'x');
            relaying.abort();
            for side in [&mut client, &mut origin] {
                let error = side.read_u8().await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{plain}");
            }
        }
    }

    #[tokio::test]
    async fn bandwidth_bounds_each_direction() {
        let (mut client, a) = connected().await;
        let (b, mut origin) = connected().await;
        let generation = Generation::new(1);
        let flight = long(&generation);
        let relaying = tokio::spawn(async move {
            let mut given = terms(&flight);
            given.bandwidth = Some(200_000);
            relay(a, Link::of_tcp(b), Bytes::new(), given).await
        });
        let begun = Instant::now();
        let mut all = vec![0; 164_000];
        client.write_all(&all).await.unwrap();
        origin.read_exact(&mut all).await.unwrap();
        // What is beyond the burst takes its time.
        assert!(
            begun.elapsed() >= Duration::from_millis(450),
            "{:?}",
            begun.elapsed()
        );
        drop((client, origin));
        relaying.await.unwrap();
    }
}
