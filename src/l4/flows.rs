//! The sessions of one UDP address on one worker, by client address (and the address of ours that it has sent to). No socket is read here, and nobody waits.
//!
//! It promises: a client has one session at a time; a datagram that was taken for a session is passed on by it, or by the
//! next one; a session that has been asked something meanwhile does not end for having been silent or answered; what waits
//! for a target is bounded.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::net::datagram::{self, Way};
use crate::session::Session;
use crate::upstream::dial::Datagrams;

/// Datagrams of a session that wait while it has no target, and their bytes; one may be larger.
const WAITING: usize = 16;
const WAITING_BYTES: usize = 16 * 1024;

/// The sessions.
#[derive(Debug)]
pub struct Flows {
    epoch: Instant,
    open: Mutex<HashMap<Way, Arc<Flow>>>,
    /// Those on the table, and those that have been taken off and are about to end.
    alive: AtomicUsize,
    /// Told when the last one has ended.
    emptied: Notify,
    /// Cancelled: all must end.
    pub ending: CancellationToken,
}

/// One session, as both directions see it.
#[derive(Debug)]
pub struct Flow {
    /// Datagrams of the client. Written under the lock of the table.
    asked: AtomicU64,
    /// When one passed last, in either direction: milliseconds after the table's epoch.
    moved: AtomicU64,
    /// Towards the target, once there is one.
    line: OnceLock<Line>,
    waiting: Mutex<Waiting>,
    /// Told that the target refuses what is sent.
    pub refused: Notify,
}

#[derive(Debug)]
struct Line {
    far: Far,
    session: Session,
}

/// What leads to the target.
#[derive(Debug, Clone)]
pub enum Far {
    Socket(Arc<UdpSocket>),
    /// Within another connection.
    Flow(Arc<dyn Datagrams>),
}

#[derive(Debug, Default)]
struct Waiting {
    datagrams: Vec<Vec<u8>>,
    bytes: usize,
}

/// Where a datagram belongs.
#[derive(Debug)]
pub enum Found {
    Known(Arc<Flow>),
    /// The session has just been put on the table.
    New(Place),
    /// It is not for somebody new.
    Nobody,
}

/// A session's place on the table; dropping it takes it off.
#[derive(Debug)]
pub struct Place {
    pub flow: Arc<Flow>,
    pub way: Way,
    flows: Arc<Flows>,
}

impl Default for Flows {
    fn default() -> Flows {
        Flows {
            epoch: Instant::now(),
            open: Mutex::default(),
            alive: AtomicUsize::new(0),
            emptied: Notify::new(),
            ending: CancellationToken::new(),
        }
    }
}

impl Flows {
    /// The session of a client that has sent something at `now`, a new one if `admits` says so.
    pub fn find(self: &Arc<Self>, way: Way, now: Instant, admits: impl FnOnce() -> bool) -> Found {
        let moved = self.millis(now);
        let mut open = self.open.lock();
        match open.entry(way) {
            Entry::Occupied(known) => {
                let flow = known.get();
                flow.asked.fetch_add(1, Ordering::Relaxed);
                flow.moved.store(moved, Ordering::Relaxed);
                Found::Known(flow.clone())
            }
            Entry::Vacant(place) if admits() => {
                let flow = Arc::new(Flow {
                    asked: AtomicU64::new(1),
                    moved: AtomicU64::new(moved),
                    line: OnceLock::new(),
                    waiting: Mutex::default(),
                    refused: Notify::new(),
                });
                place.insert(flow.clone());
                self.alive.fetch_add(1, Ordering::AcqRel);
                Found::New(Place {
                    flow,
                    way,
                    flows: self.clone(),
                })
            }
            Entry::Vacant(_) => Found::Nobody,
        }
    }

    /// Takes a session off, so that the client's next datagram begins another.
    pub fn forget(&self, way: Way, flow: &Arc<Flow>) {
        let mut open = self.open.lock();
        if open.get(&way).is_some_and(|f| Arc::ptr_eq(f, flow)) {
            open.remove(&way);
        }
    }

    /// Waits until there is none. Cancel-safe.
    pub async fn none(&self) {
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.alive.load(Ordering::Acquire) == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.epoch);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Flow {
    /// Passes a datagram of the client on, or lets it wait for the target.
    ///
    /// # Errors
    /// It did not leave. [`datagram::is_refusal`]: because of an earlier one, and another session may pass it on.
    pub fn forward(&self, data: &[u8]) -> io::Result<()> {
        if let Some(line) = self.line.get() {
            return line.send(data);
        }
        let mut waiting = self.waiting.lock();
        // It may have got its target just now.
        if let Some(line) = self.line.get() {
            drop(waiting);
            return line.send(data);
        }
        let fits = waiting.datagrams.len() < WAITING && waiting.bytes + data.len() <= WAITING_BYTES;
        if !waiting.datagrams.is_empty() && !fits {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        waiting.bytes += data.len();
        waiting.datagrams.push(data.to_vec());
        Ok(())
    }

    /// It has a target: what has waited goes there, the first of it behind `header`; with that it may be too large to leave.
    ///
    /// # Errors
    /// The first datagram that did not leave.
    pub fn connect(&self, far: Far, session: Session, header: &[u8]) -> io::Result<()> {
        // Nothing may overtake what waits.
        let mut waiting = self.waiting.lock();
        let line = self.line.get_or_init(|| Line { far, session });
        let mut datagrams = std::mem::take(&mut *waiting).datagrams;
        if let Some(first) = datagrams.first_mut() {
            first.splice(..0, header.iter().copied());
        }
        datagrams.iter().try_for_each(|data| line.send(data))
    }

    /// An operator's view of it, once it has a target.
    pub fn session(&self) -> Option<&Session> {
        self.line.get().map(|line| &line.session)
    }
}

impl Line {
    fn send(&self, data: &[u8]) -> io::Result<()> {
        match &self.far {
            Far::Socket(socket) => datagram::send(socket, data)?,
            Far::Flow(flow) => flow.send(data)?,
        }
        self.session.received(data.len() as u64);
        Ok(())
    }
}

impl Place {
    /// An answer has passed at `now`.
    pub fn answered(&self, now: Instant) {
        let moved = self.flows.millis(now);
        self.flow.moved.store(moved, Ordering::Relaxed);
    }

    /// True if each datagram of the client has had `replies` of `answers`; then it is off the table.
    pub fn ends_answered(&self, answers: u64, replies: u64) -> bool {
        self.ends_if(|flow| answers >= replies.saturating_mul(flow.asked.load(Ordering::Relaxed)))
    }

    /// `None`: it has been silent for so long at `now`, and is off the table. Else when to ask again.
    pub fn ends_idle(&self, idle: Duration, now: Instant) -> Option<Instant> {
        let last = |flow: &Flow| {
            let moved = flow.moved.load(Ordering::Relaxed);
            self.flows.epoch + Duration::from_millis(moved)
        };
        let ended = self.ends_if(|flow| last(flow) + idle <= now);
        (!ended).then(|| last(&self.flow) + idle)
    }

    fn ends_if(&self, over: impl FnOnce(&Flow) -> bool) -> bool {
        let mut open = self.flows.open.lock();
        let over = over(&self.flow);
        if over
            && open
                .get(&self.way)
                .is_some_and(|f| Arc::ptr_eq(f, &self.flow))
        {
            open.remove(&self.way);
        }
        over
    }

    /// Ready when all sessions of the address must end.
    pub fn ending(&self) -> &CancellationToken {
        &self.flows.ending
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.flows.forget(self.way, &self.flow);
        if self.flows.alive.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.flows.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::session::{Kind, Sessions, Start};

    fn client() -> Way {
        Way {
            client: "192.0.2.1:5000".parse().unwrap(),
            local: None,
        }
    }

    fn new(flows: &Arc<Flows>) -> Place {
        match flows.find(client(), Instant::now(), || true) {
            Found::New(place) => place,
            found => panic!("{found:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_when_all_is_answered_or_silent_but_not_if_asked_meanwhile() {
        let flows = Arc::new(Flows::default());
        let place = new(&flows);
        let ask = || match flows.find(client(), Instant::now(), || false) {
            Found::Known(flow) => Some(flow),
            _ => None,
        };
        assert!(Arc::ptr_eq(&ask().unwrap(), &place.flow));
        assert!(!place.ends_answered(1, 1));
        assert!(place.ends_answered(2, 1));
        // Off the table at once, not when its task has ended.
        assert!(ask().is_none());
        let next = new(&flows);
        drop(place);
        let idle = Duration::from_secs(10);
        tokio::time::advance(idle - Duration::from_secs(1)).await;
        ask().unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let again = next.ends_idle(idle, Instant::now()).unwrap();
        assert_eq!(again, Instant::now() + idle - Duration::from_secs(1));
        tokio::time::advance(idle).await;
        assert!(next.ends_idle(idle, Instant::now()).is_none());
        assert!(ask().is_none());
        drop(next);
        flows.none().await;
    }

    #[tokio::test]
    async fn what_waits_for_a_target_is_bounded_and_leaves_in_order() {
        let flows = Arc::new(Flows::default());
        let place = new(&flows);
        let target = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        target
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        for n in 0..WAITING as u8 {
            place.flow.forward(&[n]).unwrap();
        }
        assert!(place.flow.forward(b"too many").is_err());
        let socket = Arc::new(datagram::connect(target.local_addr().unwrap()).unwrap());
        let session = Sessions::new(0, 1).open(Kind::Udp, Start::default());
        let far = Far::Socket(socket);
        place.flow.connect(far, session, b"header").unwrap();
        place.flow.forward(b"\xff").unwrap();
        let mut came = Vec::new();
        let mut room = [0; 16];
        let size = target.recv(&mut room).unwrap();
        assert_eq!(&room[..size], b"header\0");
        while came.last() != Some(&0xff) {
            assert_eq!(target.recv(&mut room).unwrap(), 1);
            came.push(room[0]);
        }
        let after = (1..WAITING as u8).collect::<Vec<_>>();
        assert_eq!(came[..WAITING - 1], after);
        // One alone may be large.
        let other = Flow {
            asked: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            line: OnceLock::new(),
            waiting: Mutex::default(),
            refused: Notify::new(),
        };
        other.forward(&vec![0; 60_000]).unwrap();
        assert!(other.forward(b"x").is_err());
    }

    #[tokio::test]
    async fn one_that_was_forgotten_does_not_take_the_next_ones_place() {
        let flows = Arc::new(Flows::default());
        let old = new(&flows);
        flows.forget(client(), &old.flow);
        let new = new(&flows);
        drop(old);
        assert!(matches!(
            flows.find(client(), Instant::now(), || false),
            Found::Known(flow) if Arc::ptr_eq(&flow, &new.flow)
        ));
    }
}
