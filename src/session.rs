//! Long flows as an operator sees them: websockets, tunnels of forward proxies, TCP and UDP sessions. Who they are, where
//! they go, how much has passed, since when nothing has; and the way to end one.
//!
//! Each worker has a table of its own ([`Sessions`]), so opening and ending take a lock that no other core wants. While
//! bytes pass there is no lock and no clock: two counters and a time on a cache line of the session, written by its own
//! task only. The time is the worker's, told once a second ([`Sessions::tick`]), so `idle` is that exact and no more.
//!
//! A [`Session`] is a guard: dropping it takes it off the table and keeps its bytes in the totals.

mod end;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

use crate::generation::Watch;
use table::Table;

pub use end::End;
pub use table::Name;

/// Entries that are looked at under one lock.
const BATCH: usize = 256;

/// What a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Websocket,
    Connect,
    Socks5,
    Socks4,
    SocksUdp,
    Tcp,
    Udp,
    Bridge,
    Tunnel,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Websocket,
        Kind::Connect,
        Kind::Socks5,
        Kind::Socks4,
        Kind::SocksUdp,
        Kind::Tcp,
        Kind::Udp,
        Kind::Bridge,
        Kind::Tunnel,
    ];

    /// As the API and the metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Websocket => "websocket",
            Kind::Connect => "connect",
            Kind::Socks5 => "socks5",
            Kind::Socks4 => "socks4",
            Kind::SocksUdp => "socks_udp",
            Kind::Tcp => "tcp",
            Kind::Udp => "udp",
            Kind::Bridge => "bridge",
            Kind::Tunnel => "tunnel",
        }
    }

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What is known of a session when it begins. Names are those of the document.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// `None`: it came over a unix socket. Port 0: it is not known.
    pub client: Option<SocketAddr>,
    /// Whom authentication found.
    pub user: Option<Arc<str>>,
    /// The server or listener: `web` of `[http.web]`, `db` of `[tcp.db]`.
    pub listener: Option<Arc<str>>,
    pub route: Option<Arc<str>>,
    pub upstream: Option<Arc<str>>,
    /// The target used, or where a client of a forward proxy wanted to go; may also be told later
    /// ([`Session::destination`]).
    pub destination: Option<Box<str>>,
    /// Tells the generation it lives by (`Flight::watch`).
    pub watch: Option<Watch>,
}

/// Totals of one kind on one worker, or the sum of several workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub open: u64,
    /// Since start, the open ones included.
    pub opened: u64,
    /// Bytes from clients since start.
    pub received: u64,
    /// Bytes to clients since start.
    pub sent: u64,
}

impl Totals {
    fn add(&mut self, other: Totals) {
        self.open += other.open;
        self.opened += other.opened;
        self.received += other.received;
        self.sent += other.sent;
    }
}

/// The sessions of one worker. On cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
pub struct Sessions {
    /// Ids are `index + 1 + n * step`: unique in the process, rising with time, and they tell the worker.
    index: u64,
    step: u64,
    epoch: Instant,
    /// Milliseconds after `epoch`, as of the last tick.
    now: AtomicU64,
    table: Mutex<Table>,
}

/// What a session's task writes and others read.
#[derive(Debug)]
#[repr(align(128))]
struct Shared {
    received: AtomicU64,
    sent: AtomicU64,
    /// When something passed last, on the worker's clock.
    moved: AtomicU64,
    id: u64,
    name: Name,
    begun: Instant,
    start: Start,
    /// Told after the beginning; goes before `start.destination`.
    destination: Mutex<Option<Box<str>>>,
    close: AtomicBool,
    waker: AtomicWaker,
}

impl Sessions {
    /// Of worker `index` (from 0) of so many.
    pub fn new(index: usize, of: usize) -> Arc<Sessions> {
        Arc::new(Sessions {
            index: index as u64,
            step: of.max(1) as u64,
            epoch: Instant::now(),
            now: AtomicU64::new(0),
            table: Mutex::default(),
        })
    }

    /// Puts a session on the table until the guard is dropped.
    pub fn open(self: &Arc<Self>, kind: Kind, start: Start) -> Session {
        let mut table = self.table.lock();
        let id = self.index + 1 + table.begun * self.step;
        let name = table.begin(kind, start.listener.as_ref());
        let begun = Instant::now();
        let shared = Arc::new(Shared {
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            moved: AtomicU64::new(self.millis(begun)),
            id,
            name,
            begun,
            start,
            destination: Mutex::new(None),
            close: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        table.open.insert(id, shared.clone());
        drop(table);
        Session {
            sessions: self.clone(),
            shared,
        }
    }

    /// Tells the time to those that move bytes. The worker calls it once a second.
    pub fn tick(&self) {
        self.now
            .store(self.millis(Instant::now()), Ordering::Relaxed);
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }

    /// What passed and was opened, by kind.
    pub fn totals(&self) -> [Totals; Kind::ALL.len()] {
        let table = self.table.lock();
        let mut totals = table.totals;
        for shared in table.open.values() {
            totals[shared.kind() as usize].add(Totals {
                open: 1,
                ..shared.passed()
            });
        }
        totals
    }

    /// The same by listener.
    fn names(&self) -> BTreeMap<Name, Totals> {
        let table = self.table.lock();
        let mut names = table.names.clone();
        for shared in table.open.values() {
            if let Some(totals) = names.get_mut(&shared.name) {
                totals.add(shared.passed());
            }
        }
        names
    }

    /// The next ones after `cursor` that are `wanted`, at most `limit`, in the order of their ids.
    fn after(&self, cursor: u64, wanted: &Wanted, limit: usize) -> Vec<Info> {
        let mut found = Vec::new();
        let mut from = cursor;
        while found.len() < limit {
            let batch: Vec<Arc<Shared>> = {
                let table = self.table.lock();
                let rest = table.open.range((Bound::Excluded(from), Bound::Unbounded));
                rest.take(BATCH).map(|(_, shared)| shared.clone()).collect()
            };
            let Some(last) = batch.last() else { break };
            from = last.id;
            let chosen = batch.iter().filter(|shared| wanted.is(shared));
            let room = limit - found.len();
            found.extend(chosen.take(room).map(|shared| self.info(shared)));
        }
        found
    }

    fn info(&self, shared: &Shared) -> Info {
        let now = Instant::now();
        let moved = shared.moved.load(Ordering::Relaxed);
        let destination = shared.destination.lock().clone();
        Info {
            id: shared.id,
            kind: shared.kind(),
            client: shared.start.client,
            user: shared.start.user.clone(),
            listener: shared.start.listener.clone(),
            route: shared.start.route.clone(),
            upstream: shared.start.upstream.clone(),
            destination: destination.or_else(|| shared.start.destination.clone()),
            generation: shared.start.watch.as_ref().map(Watch::generation),
            age: now.saturating_duration_since(shared.begun),
            idle: Duration::from_millis(self.millis(now).saturating_sub(moved)),
            received: shared.received.load(Ordering::Relaxed),
            sent: shared.sent.load(Ordering::Relaxed),
            closing: shared.close.load(Ordering::Acquire),
        }
    }

    fn owns(&self, id: u64) -> bool {
        id > 0 && (id - 1) % self.step == self.index
    }
}

impl Shared {
    fn kind(&self) -> Kind {
        self.name.0
    }

    /// Its bytes so far.
    fn passed(&self) -> Totals {
        Totals {
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            ..Totals::default()
        }
    }
}

/// Which sessions are asked for; `None`: all.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub kind: Option<Kind>,
    pub client: Option<IpAddr>,
    pub listener: Option<String>,
}

impl Wanted {
    fn is(&self, shared: &Shared) -> bool {
        let start = &shared.start;
        let listener = start.listener.as_deref();
        self.kind.is_none_or(|kind| kind == shared.kind())
            && (self.client.is_none() || self.client == start.client.map(|client| client.ip()))
            && (self.listener.is_none() || self.listener.as_deref() == listener)
    }
}

/// One session at the moment of asking.
#[derive(Debug, Clone)]
pub struct Info {
    pub id: u64,
    pub kind: Kind,
    pub client: Option<SocketAddr>,
    pub user: Option<Arc<str>>,
    pub listener: Option<Arc<str>>,
    pub route: Option<Arc<str>>,
    pub upstream: Option<Arc<str>>,
    pub destination: Option<Box<str>>,
    pub generation: Option<u64>,
    pub age: Duration,
    /// Since when nothing has passed; a second exact.
    pub idle: Duration,
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
    /// It was told to end.
    pub closing: bool,
}

/// Sums of all workers, by kind.
pub fn totals<'a>(
    workers: impl IntoIterator<Item = &'a Arc<Sessions>>,
) -> [(Kind, Totals); Kind::ALL.len()] {
    let mut sum = Kind::ALL.map(|kind| (kind, Totals::default()));
    for sessions in workers {
        for ((_, sum), one) in sum.iter_mut().zip(sessions.totals()) {
            sum.add(one);
        }
    }
    sum
}

/// The same by listener.
pub fn names<'a>(workers: impl IntoIterator<Item = &'a Arc<Sessions>>) -> BTreeMap<Name, Totals> {
    let mut sum: BTreeMap<Name, Totals> = BTreeMap::new();
    for (name, totals) in workers.into_iter().flat_map(|sessions| sessions.names()) {
        sum.entry(name).or_default().add(totals);
    }
    sum
}

/// Sessions of all workers with ids above `cursor`, at most `limit`, in the order of their ids; and the cursor of the next
/// page if there may be one. Who begins or ends between two pages is seen once or not at all, nobody twice.
pub fn page<'a>(
    workers: impl IntoIterator<Item = &'a Arc<Sessions>>,
    wanted: &Wanted,
    cursor: u64,
    limit: usize,
) -> (Vec<Info>, Option<u64>) {
    let mut all: Vec<Info> = workers
        .into_iter()
        .flat_map(|sessions| sessions.after(cursor, wanted, limit.saturating_add(1)))
        .collect();
    all.sort_unstable_by_key(|info| info.id);
    let more = all.len() > limit;
    all.truncate(limit);
    let next = all.last().map(|info| info.id).filter(|_| more);
    (all, next)
}

/// Tells a session to end, which may take it a moment, and returns what it was then; again is no harm. `None`: there is
/// none of this id.
pub fn close<'a>(workers: impl IntoIterator<Item = &'a Arc<Sessions>>, id: u64) -> Option<Info> {
    let owner = workers.into_iter().find(|sessions| sessions.owns(id))?;
    let shared = owner.table.lock().open.get(&id).cloned()?;
    if !shared.close.swap(true, Ordering::AcqRel) {
        shared.waker.wake();
    }
    Some(owner.info(&shared))
}

/// An open session; dropping it ends it. Each counter is written by one task at a time.
#[derive(Debug)]
pub struct Session {
    sessions: Arc<Sessions>,
    shared: Arc<Shared>,
}

impl Session {
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// All that is known of it now.
    pub fn info(&self) -> Info {
        self.sessions.info(&self.shared)
    }

    /// So many bytes more went to the client.
    pub fn sent(&self, bytes: u64) {
        self.count(&self.shared.sent, bytes);
    }

    /// So many bytes more came from the client.
    pub fn received(&self, bytes: u64) {
        self.count(&self.shared.received, bytes);
    }

    /// The same for those who keep sums: all that came from the client and went to it so far.
    pub fn passed(&self, received: u64, sent: u64) {
        let shared = &*self.shared;
        let before = (
            shared.received.load(Ordering::Relaxed),
            shared.sent.load(Ordering::Relaxed),
        );
        if before != (received, sent) {
            shared.received.store(received, Ordering::Relaxed);
            shared.sent.store(sent, Ordering::Relaxed);
            self.moved();
        }
    }

    /// Bytes from the client and to it.
    pub fn so_far(&self) -> (u64, u64) {
        let passed = self.shared.passed();
        (passed.received, passed.sent)
    }

    fn count(&self, counter: &AtomicU64, bytes: u64) {
        // One writer: no need for an exchange that locks the line.
        let sum = counter.load(Ordering::Relaxed).wrapping_add(bytes);
        counter.store(sum, Ordering::Relaxed);
        self.moved();
    }

    fn moved(&self) {
        let now = self.sessions.now.load(Ordering::Relaxed);
        // The worker's clock may be older than the beginning.
        if now > self.shared.moved.load(Ordering::Relaxed) {
            self.shared.moved.store(now, Ordering::Relaxed);
        }
    }

    /// Where it goes is known now.
    pub fn destination(&self, text: impl Into<Box<str>>) {
        *self.shared.destination.lock() = Some(text.into());
    }

    /// An operator has told it to end.
    pub fn is_closed(&self) -> bool {
        self.shared.close.load(Ordering::Acquire)
    }

    /// Ready once it is so.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_closed() {
            return Poll::Ready(());
        }
        self.shared.waker.register(cx.waker());
        if self.is_closed() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Waits until an operator tells it to end.
    pub async fn closed(&self) {
        poll_fn(|cx| self.poll_closed(cx)).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let shared = &*self.shared;
        shared.waker.take();
        let mut table = self.sessions.table.lock();
        if table.open.remove(&shared.id).is_some() {
            table.end(&shared.name, shared.passed());
        }
    }
}
