//! A session of UDP: a client, one target, and a socket of our own (or a flow in a tunnel) between them. It is a long flow: it
//! lives and ends by its own definition, goes on over swaps of other things, and keeps its port towards the target.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::accept::ConnectionLimit;
use super::http::Listener;
use crate::generation::Flight;
use crate::http::Face as _;
use crate::l4::flows::{Far, Place};
use crate::l4::udp::{Picked, Udp};
use crate::net::datagram::{self, Near};
use crate::session::{Kind, Start};
use crate::upstream::InFlight;
use crate::upstream::dial::Datagrams;
use crate::upstream::error::{self, Error};
use crate::upstream::stream::Towards;

/// Answers that are passed on before others have their turn.
const ROUNDS: usize = 64;

/// What a session begins with: all of one instant.
pub(super) struct Begun {
    pub(super) udp: Arc<Udp>,
    pub(super) flight: Flight,
    pub(super) listener: Arc<Listener>,
    pub(super) limit: Arc<ConnectionLimit>,
}

/// How it ended.
#[derive(Debug)]
enum Ended {
    /// All that was asked is answered.
    Answered,
    /// Nothing passed for the idle time.
    Idle,
    /// A swap, its target or an operator ended it, or its address is gone.
    Cut,
    /// The target does not take what is sent to it.
    Refused(io::Error),
}

/// Passes datagrams between a client and a target until it ends. `near`: where the client is.
pub(super) async fn run(begun: Begun, near: Arc<Near>, place: Place) {
    let Begun {
        udp,
        flight,
        listener,
        limit,
    } = begun;
    let (client, worker) = (place.way.client, listener.worker.clone());
    let picking = udp.pick(&worker, (client, near.local(place.way)), &flight);
    let picked = match place.ending().run_until_cancelled(picking).await {
        Some(Ok(picked)) => picked,
        Some(Err(error)) => {
            tracing::debug!(%client, listener = %udp.spec.name, %error, "no target");
            return;
        }
        None => return,
    };
    let Picked {
        target,
        mut in_flight,
        header,
    } = picked;
    let newest = listener.slot.pin();
    flight.settle(&newest.generation, |definition| {
        newest.entry.holds(definition)
    });
    drop((newest, listener));
    let to = in_flight.target.key().1.clone();
    let far = match target {
        Towards::Flow(flow) => Far::Flow(flow),
        Towards::Address(target) => match datagram::connect(target) {
            Ok(far) if !limit.is_last_for(&far) => Far::Socket(Arc::new(far)),
            Ok(_) => {
                tracing::warn!(%client, "no session: the descriptors that are left are kept");
                return;
            }
            Err(error) => {
                tracing::debug!(%client, %target, %error, "no socket for a session");
                in_flight.broken(&refused(&target, &error));
                return;
            }
        },
    };
    let session = worker.sessions.open(
        Kind::Udp,
        Start {
            client: Some(client),
            listener: Some(udp.spec.name.clone()),
            upstream: Some(udp.spec.upstream.clone()),
            destination: Some(to.to_string().into()),
            watch: Some(flight.watch()),
            ..Start::default()
        },
    );
    if let Err(error) = place.flow.connect(far.clone(), session, &header) {
        tracing::debug!(%client, %to, %error, "a datagram did not leave");
    }
    let (idle, replies) = (udp.spec.idle, udp.spec.replies);
    // What it goes on with needs nothing else of its generation.
    drop((udp, limit));
    let mut relay = Relay {
        near: &near,
        far: &far,
        place: &place,
        answers: 0,
        bytes: 0,
        replies,
    };
    let ended = {
        let mut silent = pin!(tokio::time::sleep(idle.unwrap_or_default()));
        let mut ending = pin!(place.ending().cancelled());
        let mut refusing = pin!(place.flow.refused.notified());
        loop {
            tokio::select! {
                biased;
                () = poll_fn(|cx| told(cx, &flight, &mut in_flight, &place)) => break Ended::Cut,
                () = &mut ending => break Ended::Cut,
                () = &mut refusing => {
                    break Ended::Refused(io::ErrorKind::ConnectionRefused.into());
                }
                passed = relay.next() => match passed {
                    Ok(Round::Answered) => break Ended::Answered,
                    Ok(Round::More) => tokio::task::yield_now().await,
                    Ok(Round::Empty) => {}
                    Err(error) => break Ended::Refused(error),
                },
                () = &mut silent, if idle.is_some() => {
                    match idle.and_then(|idle| place.ends_idle(idle, Instant::now())) {
                        Some(again) => silent.as_mut().reset(again),
                        None => break Ended::Idle,
                    }
                }
            }
        }
    };
    tracing::debug!(%client, %to, ?ended, answers = relay.answers, "session ended");
    if let Ended::Refused(error) = &ended {
        in_flight.broken(&refused(&to, error));
    }
    // One that was refused and never answered has come to nothing.
    if relay.answers > 0 || !matches!(ended, Ended::Refused(_)) {
        in_flight.end_session(relay.bytes);
    }
    // Who waits for the end of the sessions may close the socket then.
    drop(near);
    drop(place);
}

/// What comes after some answers.
enum Round {
    Empty,
    More,
    /// All that was asked is answered.
    Answered,
}

/// Answers on their way.
struct Relay<'a> {
    near: &'a Near,
    far: &'a Far,
    place: &'a Place,
    /// Passed on, and their bytes.
    answers: u64,
    bytes: u64,
    /// See `UdpSpec::replies`.
    replies: Option<u64>,
}

impl Relay<'_> {
    /// Waits for answers and passes them on. Cancel-safe: what came is passed on before this gives way.
    async fn next(&mut self) -> io::Result<Round> {
        match self.far {
            Far::Socket(socket) => {
                datagram::heard(socket).await?;
                self.round(socket)
            }
            Far::Flow(flow) => poll_fn(|cx| self.poll_round(flow, cx)).await,
        }
    }

    /// As [`Relay::round`], of those that come in a tunnel.
    fn poll_round(
        &mut self,
        flow: &Arc<dyn Datagrams>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Round>> {
        for passed in 0..ROUNDS {
            match flow.poll_receive(cx)? {
                Poll::Ready(data) => {
                    if self.answer(&data, Instant::now()) {
                        return Poll::Ready(Ok(Round::Answered));
                    }
                }
                Poll::Pending if passed == 0 => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Ok(Round::Empty)),
            }
        }
        Poll::Ready(Ok(Round::More))
    }

    /// Passes on so many that others are not kept waiting.
    fn round(&mut self, socket: &UdpSocket) -> io::Result<Round> {
        let now = Instant::now();
        datagram::with_room(|room| {
            for _ in 0..ROUNDS {
                let size = match datagram::receive(socket, room) {
                    Ok(Some(size)) => size,
                    Ok(None) => return Ok(Round::Empty),
                    Err(error) if datagram::is_refusal(&error) => return Err(error),
                    // Such as one that was too long for the path: the sender's protocol has to mend that.
                    Err(error) => {
                        tracing::debug!(client = %self.place.way.client, %error, "a datagram did not arrive");
                        continue;
                    }
                };
                if self.answer(room.get(..size).unwrap_or_default(), now) {
                    return Ok(Round::Answered);
                }
            }
            Ok(Round::More)
        })
    }

    /// Passes an answer on; true: all that was asked is answered.
    fn answer(&mut self, data: &[u8], now: Instant) -> bool {
        // What cannot leave at once is lost, as datagrams are.
        if let Err(error) = self.near.send(data, self.place.way) {
            tracing::debug!(client = %self.place.way.client, %error, "an answer did not leave");
        }
        self.answers += 1;
        self.bytes += data.len() as u64;
        if let Some(session) = self.place.flow.session() {
            session.sent(data.len() as u64);
        }
        self.place.answered(now);
        self.replies
            .is_some_and(|replies| self.place.ends_answered(self.answers, replies))
    }
}

/// Ready when a swap, its target or an operator has told it to end.
fn told(
    cx: &mut Context<'_>,
    flight: &Flight,
    in_flight: &mut InFlight,
    place: &Place,
) -> Poll<()> {
    let closed = place.flow.session();
    if flight.poll_cut(cx).is_ready()
        || in_flight.poll_cut(cx).is_ready()
        || closed.is_some_and(|session| session.poll_closed(cx).is_ready())
    {
        return Poll::Ready(());
    }
    Poll::Pending
}

fn refused(target: &impl fmt::Display, error: &io::Error) -> Error {
    let detail = format!("{target}: {error}");
    let kind = match error.kind() {
        io::ErrorKind::ConnectionAborted => error::Kind::ConnectionTerminated,
        _ => error::Kind::ConnectionRefused,
    };
    Error::upstream(kind, detail)
}
