//! The datagrams of one UDP address on one worker: taken, and passed on by the session of their client. It borrows its
//! socket as an accept loop does, and so do the sessions: their answers leave by it.
//!
//! Told to retire, it passes on what has come, takes nobody new, and stays as long as sessions need the socket: until
//! their generation's deadline at most, or until the address is wanted again.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::accept::{Binding, ConnectionLimit, Held, spawn};
use super::entry::Plane;
use super::http::Listener;
use super::udp_session::{self, Begun};
use crate::l4::flows::{Flows, Found};
use crate::metrics::WorkerCounters;
use crate::net::datagram::{self, BATCH, Near, Stopped, Way};

/// Batches that are taken before others have their turn.
const ROUNDS: usize = 4;
/// Rounds in which a retiring address passes on what has come; more may come all the time.
const LAST_ROUNDS: usize = 64;
/// Pause after an error that reading again will not cure at once.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Takes the datagrams of one address on one worker.
pub struct Receiver {
    pub listener: Arc<Listener>,
    pub binding: Arc<Binding>,
    pub limit: Arc<ConnectionLimit>,
    pub retire: CancellationToken,
}

/// One of several that are counted.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whom datagrams are taken of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Everybody,
    Sessions,
}

impl Receiver {
    /// Runs until `retire` is cancelled, what has come is passed on, and no session needs the socket any more. The caller
    /// has counted it among the binding's loops.
    pub async fn run(self, socket: UdpSocket) {
        let binding = self.binding.clone();
        let taking = Counted(&binding.loops);
        let socket = Arc::new(Near::new(socket));
        let flows = Arc::new(Flows::default());
        // However it ends: no session outlives it.
        let _ending = flows.ending.clone().drop_guard();
        let until = self.retire.clone();
        until
            .run_until_cancelled(self.take(&socket, &flows, From::Everybody))
            .await;
        // What has come is in the kernel's queue: the runtime is given the time to look.
        let mut quiet = 0;
        for _ in 0..LAST_ROUNDS {
            tokio::task::yield_now().await;
            let more = self.round(&socket, &flows, From::Everybody);
            quiet = if more.unwrap_or(false) { 0 } else { quiet + 1 };
            if quiet == 2 {
                break;
            }
        }
        // Counted in one way or the other all the time.
        binding.lingering.fetch_add(1, Ordering::AcqRel);
        let _lingering = Counted(&binding.lingering);
        drop(taking);
        let epoch = self.listener.slot.epoch();
        tokio::select! {
            () = flows.none() => {}
            () = epoch.cut.cancelled() => {}
            () = binding.hurry.cancelled() => {}
            () = self.take(&socket, &flows, From::Sessions) => {}
        }
        flows.ending.cancel();
        flows.none().await;
    }

    /// Takes datagrams for ever.
    async fn take(&self, socket: &Arc<Near>, flows: &Arc<Flows>, from: From) {
        loop {
            let round = match socket.heard().await {
                Ok(()) => self.round(socket, flows, from),
                Err(error) => Err(error),
            };
            match round {
                Ok(true) => tokio::task::yield_now().await,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(address = %self.binding.shown(), %error, "receiving pauses");
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }

    /// Takes so many that others are not kept waiting; true if there may be more.
    fn round(&self, socket: &Arc<Near>, flows: &Arc<Flows>, from: From) -> io::Result<bool> {
        let now = Instant::now();
        datagram::with_room(|room| {
            for _ in 0..ROUNDS {
                let more = match socket.receive(room) {
                    Ok(more) => more,
                    // An answer of ours did not arrive somewhere.
                    Err(error) if datagram::is_refusal(&error) => continue,
                    Err(error) => return Err(error),
                };
                let (mut run, mut count, mut of) = ([&[][..]; BATCH], 0, None);
                for (way, data) in room.datagrams() {
                    if of != way {
                        self.pass(socket, flows, from, (of, &run[..count]), now);
                        (of, count) = (way, 0);
                    }
                    run[count] = data;
                    count += 1;
                }
                self.pass(socket, flows, from, (of, &run[..count]), now);
                if !more {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Passes on what has come one after the other from one client.
    fn pass(
        &self,
        socket: &Arc<Near>,
        flows: &Arc<Flows>,
        from: From,
        (way, mut data): (Option<Way>, &[&[u8]]),
        now: Instant,
    ) {
        let Some(way) = way else { return };
        let client = way.client;
        // A second time where the session's target has just refused an earlier datagram.
        for _ in 0..2 {
            let mut admitted = None;
            let admits = || {
                admitted = (from == From::Everybody)
                    .then(|| self.admit(client))
                    .flatten();
                admitted.is_some()
            };
            let (flow, new) = match flows.find(way, (data.len(), now), admits) {
                Found::Nobody => return,
                Found::Known(flow) => (flow, None),
                Found::New(place) => (place.flow.clone(), Some(place)),
            };
            let mut passed = flow.forward(data);
            // It begins with this datagram, which waits for it by now.
            if let (Some(place), Some((begun, held))) = (new, admitted) {
                let run = udp_session::run(begun, socket.clone(), place);
                spawn(run, client.into(), held);
            }
            loop {
                let Err(Stopped { left, error }) = passed else {
                    return;
                };
                data = data.get(left..).unwrap_or_default();
                if datagram::is_refusal(&error) {
                    flow.refused.notify_one();
                    flows.forget(way, &flow);
                    break;
                }
                WorkerCounters::add(&self.binding.refused);
                tracing::debug!(%client, %error, "a datagram is dropped");
                data = data.get(1..).unwrap_or_default();
                passed = flow.forward(data);
            }
        }
    }

    /// The beginning of a session, and its place in the counts; `None`: there is no room, or the client may not come.
    fn admit(&self, client: SocketAddr) -> Option<(Begun, Held)> {
        let serving = self.listener.slot.pin();
        let Plane::Udp(udp) = &serving.entry.plane else {
            return None;
        };
        if !udp.admits(client.ip()) {
            tracing::debug!(%client, listener = %udp.spec.name, "not allowed");
            return None;
        }
        let most = udp.spec.sessions.unwrap_or(usize::MAX);
        let worker = &self.listener.worker;
        let held = self
            .limit
            .has_room_for_session()
            .then(|| Held::take(&self.limit, &self.binding, worker));
        // Its own place is counted.
        let held = held.filter(|_| self.binding.connections() <= most);
        if held.is_none() {
            WorkerCounters::add(&self.binding.refused);
            tracing::debug!(%client, listener = %udp.spec.name, "session limit reached");
        }
        let begun = Begun {
            udp: udp.clone(),
            flight: udp.begin(&serving.generation, self.listener.slot.binding),
            listener: self.listener.clone(),
            limit: self.limit.clone(),
        };
        Some((begun, held?))
    }
}
