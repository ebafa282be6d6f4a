//! A session of UDP: a client, one target, and a socket of our own between them, towards the target or a proxy on the way, or a
//! flow in a tunnel. It is a long flow: it lives and ends by its own definition, goes on over swaps of other things, and keeps
//! its port.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::accept::ConnectionLimit;
use super::http::Listener;
use crate::generation::Flight;
use crate::http::Face as _;
use crate::l4::flows::{Far, Line, Place};
use crate::l4::udp::{Picked, Udp};
use crate::net::datagram::{self, BATCH, Near, Room, Stopped};
use crate::session::{Kind, Start};
use crate::upstream::InFlight;
use crate::upstream::dial::Datagrams;
use crate::upstream::error::{self, Error};
use crate::upstream::stream::Route;
use crate::upstream::via::Association;

/// Batches of answers that are passed on before others have their turn.
const ROUNDS: usize = 4;

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
    /// The proxy on the way did.
    Left,
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
    let picked = tokio::select! {
        biased;
        () = place.ending().cancelled() => return,
        picked = udp.pick(&worker, (client, near.local(place.way)), &flight) => picked,
    };
    let picked = match picked {
        Ok(picked) => picked,
        Err(error) => {
            tracing::debug!(%client, listener = %udp.spec.name, %error, "no target");
            return;
        }
    };
    let Picked {
        route,
        mut in_flight,
        header,
    } = picked;
    let newest = listener.slot.pin();
    flight.settle(&newest.generation, |definition| {
        newest.entry.holds(definition)
    });
    drop((newest, listener));
    let to = in_flight.target.key().1.clone();
    let connect = |target, local| match datagram::Far::connect(target, local) {
        Ok(far) if !limit.is_last_for(far.socket()) => Ok(Far::Socket(Arc::new(far))),
        Ok(_) => {
            tracing::warn!(%client, "no session: the descriptors that are left are kept");
            Err(None)
        }
        Err(error) => {
            tracing::debug!(%client, %target, %error, "no socket for a session");
            Err(Some(refused(&target, &error)))
        }
    };
    let (far, hop) = match route {
        Route::Direct(target) => (connect(target, None), None),
        Route::Through(hop) => (connect(hop.relays.nearest, hop.relays.local), Some(hop)),
        Route::Flow(flow) => (Ok(Far::Flow(flow)), None),
    };
    let far = match far {
        Ok(far) => far,
        Err(error) => {
            // Of what is behind a proxy it says nothing.
            if let (Some(error), None) = (error, &hop) {
                in_flight.broken(&error);
            }
            return;
        }
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
    let head = hop.as_ref().map(|hop| hop.header.clone());
    let line = Line::new(far.clone(), session, head.unwrap_or_default(), header);
    if let Err(error) = place.flow.connect(line) {
        tracing::debug!(%client, %to, %error, "a datagram did not leave");
        if datagram::is_refusal(&error) {
            // The socket tells it once.
            place.flow.refused.notify_one();
        }
    }
    let (idle, replies) = (udp.spec.idle, udp.spec.replies);
    // What it goes on with needs nothing else of its generation.
    drop((udp, limit));
    let mut relay = Relay {
        near: &near,
        far: &far,
        hop,
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
                    Ok(Round::Left) => break Ended::Left,
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
    // Of what is behind a proxy it says nothing.
    if let (Ended::Refused(error), None) = (&ended, &relay.hop) {
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
    /// The proxy on the way has ended it.
    Left,
}

/// Answers on their way.
struct Relay<'a> {
    near: &'a Near,
    far: &'a Far,
    /// The proxy on the way to that.
    hop: Option<Box<Association>>,
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
                tokio::select! {
                    biased;
                    () = left(&mut self.hop) => return Ok(Round::Left),
                    heard = socket.heard() => heard?,
                }
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
        for passed in 0..ROUNDS * BATCH {
            match flow.poll_receive(cx)? {
                Poll::Ready(data) => {
                    if self.answer(&[&data], Instant::now()) {
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
    fn round(&mut self, socket: &datagram::Far) -> io::Result<Round> {
        let now = Instant::now();
        datagram::with_room(|room| {
            for _ in 0..ROUNDS {
                let more = match socket.receive(room) {
                    Ok(more) => more,
                    Err(error) if datagram::is_refusal(&error) => return Err(error),
                    // Such as one that was too long for the path: the sender's protocol has to mend that.
                    Err(error) => {
                        tracing::debug!(client = %self.place.way.client, %error, "a datagram did not arrive");
                        continue;
                    }
                };
                if self.pass(room, now) {
                    return Ok(Round::Answered);
                }
                if !more {
                    return Ok(Round::Empty);
                }
            }
            Ok(Round::More)
        })
    }

    /// Passes on what has come; true if all that was asked is answered with it.
    fn pass(&mut self, room: &Room, now: Instant) -> bool {
        let (mut answers, mut count) = ([&[][..]; BATCH], 0);
        for (_, data) in room.datagrams() {
            let read = |hop: &Association| hop.read(data);
            let Some(data) = self.hop.as_deref().map_or(Some(data), read) else {
                continue;
            };
            answers[count] = data;
            count += 1;
        }
        self.answer(answers.get(..count).unwrap_or_default(), now)
    }

    /// Passes answers on; true if all that was asked is answered, and then what came after that is dropped.
    fn answer(&mut self, answers: &[&[u8]], now: Instant) -> bool {
        let (mut count, mut answered) = (0, false);
        for data in answers {
            count += 1;
            self.answers += 1;
            self.bytes += data.len() as u64;
            let ends = |replies| self.place.ends_answered(self.answers, replies);
            if self.replies.is_some_and(ends) {
                answered = true;
                break;
            }
        }
        let Some(mut rest) = answers.get(..count).filter(|rest| !rest.is_empty()) else {
            return false;
        };
        if let Some(session) = self.place.flow.session() {
            session.sent(rest.iter().map(|data| data.len() as u64).sum());
        }
        self.place.answered(now);
        // What cannot leave at once is lost, as datagrams are.
        while let Err(Stopped { left, error }) = self.near.send(rest, self.place.way) {
            tracing::debug!(client = %self.place.way.client, %error, "an answer did not leave");
            rest = rest.get(left + 1..).unwrap_or_default();
        }
        answered
    }
}

/// Ready when a proxy on the way has ended its part.
async fn left(hop: &mut Option<Box<Association>>) {
    match hop {
        Some(hop) => hop.ended().await,
        None => std::future::pending().await,
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
