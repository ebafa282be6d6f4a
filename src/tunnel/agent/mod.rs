//! The private side: an agent and its sessions. It is leased by name, so that it outlives generations: a swap that leaves
//! it alone is not noticed by its sessions, other services are told over them, and where the session itself is to be
//! another (server, secret, TLS), each is replaced by a new one before it goes.

mod backoff;
mod connect;
mod slot;

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::auth;
use super::carrier::RoundTrip;
use crate::config::agent::{AgentSpec, ServiceSpec};
use crate::config::scalar::{Secret, TargetAddr};
use crate::registry::Registry;
use crate::tls::client::{Client, Identity};
use crate::upstream::via::Via;

pub(super) use connect::{Connection, dedicated};

/// The agents of a process.
#[derive(Debug)]
pub struct Agents {
    agents: Registry<Arc<str>, Agent>,
    /// Where sessions run, in turn.
    runtimes: Vec<Handle>,
    next: AtomicUsize,
}

/// What a generation makes of `[agents.NAME]`.
#[derive(Debug)]
pub struct Settings {
    pub spec: AgentSpec,
    pub client: Arc<Client>,
    /// How TLS is spoken with `https` services, by their names.
    pub services: BTreeMap<Arc<str>, Arc<Client>>,
    /// The proxies on the way to the server.
    pub via: Option<Arc<Via>>,
}

impl Settings {
    /// Whether it says the same, but for the upstreams on the way.
    pub fn same(&self, other: &Settings) -> bool {
        let mut pairs = self.services.iter().zip(&other.services);
        self.spec == other.spec
            && Arc::ptr_eq(&self.client, &other.client)
            && self.services.len() == other.services.len()
            && pairs.all(|((a, one), (b, other))| a == b && Arc::ptr_eq(one, other))
    }

    fn terms(&self) -> Terms {
        Terms {
            server: self.spec.server.clone(),
            token: self.spec.token.clone(),
            client: *self.client.identity(),
            via: self.via.as_ref().map(|via| *via.identity()),
        }
    }
}

/// What a session is made under: one that was made under the same is as good. It outlives its settings, and keeps none of
/// what they hold, such as the upstreams on the way.
#[derive(Debug, PartialEq)]
struct Terms {
    server: TargetAddr,
    token: Option<Secret>,
    client: Identity,
    via: Option<[u8; 32]>,
}

impl Shared {
    /// The services of `settings`, as the server is told.
    fn services(&self, settings: &Settings) -> Vec<super::wire::Service> {
        let AgentSpec {
            services, permit, ..
        } = &settings.spec;
        let one = |(name, service): (&Arc<str>, &ServiceSpec)| super::wire::Service {
            name: name.to_string(),
            kind: service.kind.word().to_owned(),
            // All that decides where it leads to; the server learns no more of it than whether it is the same.
            revision: {
                let client = settings.services.get(name).map(|client| client.identity());
                let all = format!("{service:?} {permit:?} {client:?}");
                format!("{:016x}", self.revisions.hash_one(all))
            },
            dedicated: service.dedicated,
        };
        services.iter().map(one).collect()
    }
}

/// An agent that runs. Dropping it lets its sessions end with the flows that they have.
#[derive(Debug)]
pub struct Agent {
    pub name: Arc<str>,
    shared: Arc<Shared>,
    /// How many sessions run, with what ends each slot.
    slots: Mutex<Vec<Slot>>,
    runtimes: Vec<Handle>,
    first: usize,
}

#[derive(Debug)]
struct Slot {
    control: Arc<Control>,
    state: Arc<Mutex<State>>,
}

/// What ends a slot.
#[derive(Debug, Default)]
struct Control {
    /// Its session takes no new flows; it ends with those that it has.
    ends: CancellationToken,
    /// At once.
    cut: CancellationToken,
    /// Somebody waits for its flows, and cuts what does not end.
    awaited: AtomicBool,
    /// Of all its sessions.
    flows: AtomicUsize,
}

/// Sessions that end with their flows. Dropping it cuts what is left.
#[derive(Debug)]
pub struct Retired(Vec<Slot>);

impl Retired {
    /// Those that have not ended.
    pub fn flows(&self) -> usize {
        let of = |slot: &Slot| slot.control.flows.load(Ordering::Acquire);
        self.0.iter().map(of).sum()
    }

    pub fn cut(&self) {
        self.0.iter().for_each(|slot| slot.control.cut.cancel());
    }
}

impl Drop for Retired {
    fn drop(&mut self) {
        self.cut();
    }
}

/// What the slots of an agent share.
#[derive(Debug)]
pub(super) struct Shared {
    /// `None` until the first commit.
    settings: watch::Sender<Option<Arc<Settings>>>,
    /// One slot at a time makes a new session in the place of one that is good.
    rolling: Semaphore,
    /// Tells the sessions of this agent from those of another process with its name.
    instance: String,
    revisions: RandomState,
    /// Why the server refuses services.
    refused: Mutex<Vec<super::wire::Refused>>,
}

/// What a slot is doing.
#[derive(Debug, Clone)]
pub enum State {
    Connecting,
    Connected(Arc<Running>),
    /// Until the next try.
    Waiting {
        why: String,
        kind: Trouble,
        since: Timestamp,
    },
}

/// What keeps an agent from its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody answers, or the connection breaks.
    Unreachable,
    /// The server does not let it in.
    Refused,
    /// The agent does not take it for its server.
    Distrusted,
}

impl Trouble {
    pub fn word(self) -> &'static str {
        match self {
            Trouble::Unreachable => "unreachable",
            Trouble::Refused => "refused",
            Trouble::Distrusted => "distrusted",
        }
    }
}

/// A session that runs, as the agent sees it.
#[derive(Debug)]
pub struct Running {
    /// As the server calls it.
    pub session: String,
    pub server: String,
    /// Which of its addresses; `None`: a proxy knows.
    pub peer: Option<SocketAddr>,
    pub since: Timestamp,
    pub round_trip: RoundTrip,
    pub flows: AtomicUsize,
    /// Datagrams from its services for which there was no room.
    pub dropped: AtomicU64,
    by: By,
}

/// What a session has been made by, as the newest of those that say the same have it: what is wanted now may be something else,
/// and not to be had. `None`: another session has taken its place.
#[derive(Debug)]
struct By(Mutex<Option<Arc<Settings>>>);

impl By {
    fn new(settings: Arc<Settings>) -> By {
        By(Mutex::new(Some(settings)))
    }

    fn set(&self, settings: Option<Arc<Settings>>) {
        *self.0.lock() = settings;
    }
}

impl Running {
    /// What its server is reached and convinced by.
    pub(super) fn by(&self) -> Option<Arc<Settings>> {
        self.by.0.lock().clone()
    }
}

impl Agents {
    /// Sessions run on `runtimes`, at least one.
    pub fn new(runtimes: Vec<Handle>) -> Agents {
        Agents {
            agents: Registry::default(),
            runtimes,
            next: AtomicUsize::new(0),
        }
    }

    /// The agent that is there, or a new one that does nothing before [`Agent::adopt`].
    pub fn lease(&self, spec: &AgentSpec) -> Arc<Agent> {
        self.agents.lease(&spec.name, || Agent {
            name: spec.name.clone(),
            shared: Arc::new(Shared {
                settings: watch::Sender::new(None),
                rolling: Semaphore::new(1),
                // Without randomness no session could be proved either.
                instance: auth::random::<8>().map_or_else(|_| "0".into(), |n| auth::hex(&n)),
                revisions: RandomState::new(),
                refused: Mutex::default(),
            }),
            slots: Mutex::default(),
            runtimes: self.runtimes.clone(),
            first: self.next.fetch_add(1, Ordering::Relaxed),
        })
    }
}

impl Agent {
    /// A generation with these settings is committed.
    pub fn adopt(&self, settings: Arc<Settings>) {
        let wanted = settings.spec.sessions;
        self.shared.settings.send_replace(Some(settings));
        let mut slots = self.slots.lock();
        slots.truncate(wanted);
        while slots.len() < wanted && !self.runtimes.is_empty() {
            let runtime = &self.runtimes[(self.first + slots.len()) % self.runtimes.len()];
            let slot = Slot {
                control: Arc::default(),
                state: Arc::new(Mutex::new(State::Connecting)),
            };
            let (shared, control) = (self.shared.clone(), slot.control.clone());
            // It owns all that it starts, and ends as it is told.
            runtime.spawn(slot::run(shared, control, slot.state.clone()));
            slots.push(slot);
        }
    }

    /// No generation has it any more, or the process stops: its sessions end with their flows, for which the caller waits.
    pub fn retire(&self) -> Retired {
        let slots = std::mem::take(&mut *self.slots.lock());
        for slot in &slots {
            slot.control.awaited.store(true, Ordering::Release);
            slot.control.ends.cancel();
        }
        Retired(slots)
    }

    /// What each slot is doing.
    pub fn states(&self) -> Vec<State> {
        let slots = self.slots.lock();
        slots.iter().map(|slot| slot.state.lock().clone()).collect()
    }

    /// What holds now; `None`: it has not begun.
    pub fn settings(&self) -> Option<Arc<Settings>> {
        self.shared.settings.borrow().clone()
    }

    /// The services that the server does not grant, each with its reason.
    pub fn refused(&self) -> Vec<super::wire::Refused> {
        self.shared.refused.lock().clone()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.control.ends.cancel();
    }
}
