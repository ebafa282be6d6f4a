//! What a client connection is doing, shared by its I/O (which runs the timers) and its requests (which begin and end
//! on it). One allocation per connection; what changes with its requests is behind one lock, uncontended on HTTP/1.
//!
//! The timers themselves are in `listen::timers`. Here only *which* of them runs is known: a connection is new, awaits
//! a head, reads one, or is busy with requests.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Wake;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use http::HeaderValue;
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::client;
use super::progress::Progress;
use super::record::Record;
use super::switch::{Becomes, Switch};
use crate::config::http::{ConnectionSpec, Scheme};
use crate::metrics::{WorkerContext, WorkerCounters};
use crate::net::Peer;
use crate::tls::Session;

/// How long an idle connection that must end waits for one more request, which is then told so: closing at once would
/// lose a request that crosses our FIN.
pub const IDLE_LINGER: Duration = Duration::from_secs(2);

/// How long an idle HTTP/1 connection keeps what its next request would need. Those of clients that are busy have another by
/// then; and the timer of the others fires no more often for it.
pub const QUIET: Duration = Duration::from_secs(2);

/// How long a client that shut down its side of an HTTP/1 connection is waited on without sending it anything. It may
/// have done so to say that this was its last request, or have gone away: TCP shows the same. An answer that takes
/// longer is given up, and so is its request at the origin.
pub const HALF_CLOSED: Duration = Duration::from_secs(5);

/// A client connection.
#[derive(Debug)]
pub struct Connection {
    pub peer: Peer,
    /// The address it came to; a unix socket has none.
    pub local: Option<SocketAddr>,
    /// The connection-level settings it was accepted under. Not the entry they came from: an idle connection must not
    /// keep an old generation's routes in memory.
    pub spec: Arc<ConnectionSpec>,
    pub worker: Arc<WorkerContext>,
    /// What the handshake settled; `None`: cleartext.
    pub tls: Option<Session>,
    /// The peer is one of `trusted_proxies`: what it says about its own client is believed.
    pub trusted: bool,
    /// The peer's address as it stands in `X-Forwarded-For`: `unknown` if it has none.
    peer_text: OnceLock<HeaderValue>,
    /// True for HTTP/2, where streams end on tasks of their own and must wake the connection.
    multiplexed: AtomicBool,
    finishing: AtomicBool,
    unread: AtomicBool,
    open_ended: AtomicBool,
    /// Something is in `State::streams`.
    switching: AtomicBool,
    state: Mutex<State>,
    /// Set when a timer or a token of the connection's driver fired.
    signal: AtomicBool,
    driver: AtomicWaker,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Since when that phase is timed; stamped when the connection's task next goes to sleep in it.
    since: Option<Instant>,
    open: u32,
    served: u64,
    /// Nothing is held for its next request.
    parked: bool,
    /// A write could make no progress.
    blocked: bool,
    blocked_since: Option<Instant>,
    /// No body is on its way: the next byte begins a head.
    clean: bool,
    /// Says so for the body in progress.
    finished: Option<Arc<AtomicBool>>,
    /// The client has shut down its side while its request was in progress.
    half_closed: bool,
    head: HeadMarks,
    /// HTTP/1: the request in progress.
    current: Option<Arc<Progress>>,
    /// HTTP/1: what the connection becomes when the answer in progress has left. (It holds no exchange, which would hold
    /// the connection.)
    becomes: Option<Becomes>,
    /// HTTP/2: streams that become something else, until the connection's driver takes them.
    streams: Vec<(Becomes, OnUpgrade)>,
    /// The last `Forwarded` element for this peer, by the host it names: it changes seldom on a connection.
    forwarded: Option<(Box<[u8]>, HeaderValue)>,
}

impl State {
    fn is_clean(&mut self) -> bool {
        if let Some(finished) = &self.finished
            && finished.load(Ordering::Acquire)
        {
            self.clean = true;
            self.finished = None;
        }
        self.clean
    }
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No byte came yet.
    New,
    /// Between two requests.
    Idle,
    /// Part of a head came (HTTP/1 only).
    Head,
    /// At least one request is in progress.
    Busy,
}

/// Which limit a deadline belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// `timeouts.header`: the client stayed silent from the start, or a head did not end.
    Header { partial: bool },
    /// `timeouts.idle`, or the linger of a connection that must end.
    Idle,
    /// [`QUIET`]: nothing ends, but the connection can be parked ([`Connection::park`]).
    Quiet,
    /// `timeouts.write`.
    Write,
    /// [`HALF_CLOSED`].
    Gone,
}

/// What the bytes of a head show that hyper's parser does not hand on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadMarks {
    /// `Content-Length` together with `Transfer-Encoding`, or more than once (RFC 9112 section 6.3).
    pub ambiguous_length: bool,
    /// `#` in the request target (RFC 9112 section 3.2: never sent).
    pub fragment: bool,
}

/// A request that began.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    pub head: HeadMarks,
    /// `requests_per_connection` is reached with it.
    pub last: bool,
}

impl Connection {
    pub fn new(
        peer: Peer,
        local: Option<SocketAddr>,
        spec: Arc<ConnectionSpec>,
        worker: Arc<WorkerContext>,
    ) -> Connection {
        let trusted = peer
            .ip()
            .is_some_and(|ip| client::is_trusted(ip, &spec.trusted_proxies));
        Connection {
            peer,
            local,
            trusted,
            peer_text: OnceLock::new(),
            spec,
            worker,
            tls: None,
            multiplexed: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            open_ended: AtomicBool::new(false),
            switching: AtomicBool::new(false),
            state: Mutex::new(State {
                becomes: None,
                streams: Vec::new(),
                phase: Phase::New,
                since: None,
                open: 0,
                served: 0,
                parked: false,
                blocked: false,
                blocked_since: None,
                clean: true,
                finished: None,
                half_closed: false,
                head: HeadMarks::default(),
                current: None,
                forwarded: None,
            }),
            signal: AtomicBool::new(false),
            driver: AtomicWaker::new(),
        }
    }

    /// The same connection after its handshake.
    pub fn over_tls(self, session: Session) -> Connection {
        Connection {
            tls: Some(session),
            ..self
        }
    }

    /// What is spoken on this hop.
    pub fn scheme(&self) -> Scheme {
        match self.tls {
            Some(_) => Scheme::Https,
            None => Scheme::Http,
        }
    }

    /// The peer as it stands in `X-Forwarded-For`.
    pub(super) fn peer_text(&self) -> HeaderValue {
        let make = || {
            let unknown = HeaderValue::from_static("unknown");
            self.peer.ip().map_or(unknown, client::address_value)
        };
        self.peer_text.get_or_init(make).clone()
    }

    /// A request's head is complete. `has_body`: more of it may follow. `current` is told to [`Connection::poll_cut`].
    pub fn begin(&self, has_body: bool, current: Option<Arc<Progress>>) -> Begun {
        let mut state = self.state.lock();
        state.current = current;
        state.phase = Phase::Busy;
        state.since = None;
        state.open += 1;
        state.served += 1;
        state.clean = !has_body;
        state.finished = None;
        let last = self
            .spec
            .requests_per_connection
            .is_some_and(|most| state.served >= most);
        Begun {
            head: std::mem::take(&mut state.head),
            last,
        }
    }

    /// The body of the request in progress was read to its end, so that the next byte begins a head.
    pub fn body_read(&self) {
        self.state.lock().clean = true;
    }

    /// HTTP/1: true if nothing of the request in progress is still to be read.
    pub fn is_body_read(&self) -> bool {
        self.state.lock().is_clean()
    }

    /// HTTP/1: where the body of the request in progress, read elsewhere, will say that it has ended.
    pub fn expect_end_of_body(&self) -> Option<Arc<AtomicBool>> {
        if self.multiplexed.load(Ordering::Relaxed) {
            return None;
        }
        let finished = Arc::new(AtomicBool::new(false));
        self.state.lock().finished = Some(finished.clone());
        Some(finished)
    }

    /// HTTP/1: true while a request is in progress and its body is not, so that the stream may be read to see whether
    /// the client is still there.
    pub fn may_probe(&self) -> bool {
        if self.multiplexed.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state.lock();
        state.phase == Phase::Busy && state.is_clean()
    }

    /// HTTP/1: the client shut down its side, or did and has now taken something: it may be without an answer for
    /// [`HALF_CLOSED`] from now.
    pub fn set_half_closed(&self) {
        let mut state = self.state.lock();
        state.half_closed = true;
        if state.phase == Phase::Busy {
            state.since = None;
        }
    }

    /// The value `make` made last for `host`, or one made now. `make` must not ask the connection for its state.
    pub(super) fn forwarded(
        &self,
        host: &[u8],
        make: impl FnOnce() -> Option<HeaderValue>,
    ) -> Option<HeaderValue> {
        let last = &mut self.state.lock().forwarded;
        if let Some((of, value)) = last
            && **of == *host
        {
            return Some(value.clone());
        }
        let value = make()?;
        *last = Some((host.into(), value.clone()));
        Some(value)
    }

    /// A request's response has ended or was given up.
    pub fn end(&self) {
        let mut state = self.state.lock();
        state.open = state.open.saturating_sub(1);
        if state.open > 0 {
            return;
        }
        state.phase = Phase::Idle;
        state.since = None;
        state.current = None;
        drop(state);
        // On HTTP/1 this runs inside the driver's own poll: nobody to wake.
        if self.multiplexed.load(Ordering::Relaxed) {
            self.driver.wake();
        }
    }

    /// HTTP/1: ready when the request in progress must end now and its client takes nothing, so that its own body is
    /// not asked.
    pub fn poll_cut(&self, cx: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        let state = self.state.lock();
        match &state.current {
            Some(progress) if state.blocked => progress.flight.poll_cut(cx),
            _ => std::task::Poll::Pending,
        }
    }

    /// The answer in progress agrees to more than an answer: the connection, or one stream of it, is that once it has left.
    /// The request's record goes on with it. A stream counts as a request in progress, which whoever takes it ends.
    pub fn switch(&self, switch: Switch, record: Record) {
        let Switch {
            mut becomes,
            stream,
        } = switch;
        becomes.keep(record, &self.worker);
        if matches!(becomes, Becomes::Websocket(_)) {
            WorkerCounters::add(&self.worker.counters.websockets);
        }
        let mut state = self.state.lock();
        let Some(stream) = stream else {
            state.becomes = Some(becomes);
            return;
        };
        state.open += 1;
        state.streams.push((becomes, stream));
        drop(state);
        self.switching.store(true, Ordering::Release);
        self.driver.wake();
    }

    /// What it became.
    pub fn take_tunnel(&self) -> Option<Becomes> {
        self.state.lock().becomes.take()
    }

    /// HTTP/2: the streams that became something since the last look.
    pub fn take_streams(&self) -> Vec<(Becomes, OnUpgrade)> {
        // Asked at each poll of the connection, and nearly always in vain: a look costs less than a swap.
        if !self.switching.load(Ordering::Relaxed) || !self.switching.swap(false, Ordering::AcqRel)
        {
            return Vec::new();
        }
        std::mem::take(&mut self.state.lock().streams)
    }

    /// Requests begun so far.
    pub fn served(&self) -> u64 {
        self.state.lock().served
    }

    /// Requests in progress.
    pub fn open(&self) -> u32 {
        self.state.lock().open
    }

    /// From now on streams may overlap and end elsewhere than in the connection's task.
    pub fn set_multiplexed(&self) {
        self.multiplexed.store(true, Ordering::Relaxed);
    }

    /// The connection must end: the next response says so, an idle one lingers.
    pub fn finish(&self) {
        self.finishing.store(true, Ordering::Relaxed);
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Idle | Phase::New) {
            state.since = None;
        }
    }

    pub fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::Relaxed)
    }

    /// The connection will be closed while bytes of the client may be unread: close it in two steps, or the reset that
    /// follows would destroy our answer on its way.
    pub fn leave_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    pub fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// HTTP/1: the end of the connection is all that will end the response in progress. It must come only when that is
    /// whole.
    pub fn leave_open_ended(&self) {
        self.open_ended.store(true, Ordering::Relaxed);
    }

    pub fn is_open_ended(&self) -> bool {
        self.open_ended.load(Ordering::Relaxed)
    }

    /// Bytes came.
    pub fn received(&self) {
        let mut state = self.state.lock();
        // Without an end of head there is nothing to time on HTTP/2: its idle time runs on.
        let first = matches!(state.phase, Phase::New | Phase::Idle)
            && !self.multiplexed.load(Ordering::Relaxed);
        if first {
            state.phase = Phase::Head;
            state.since = None;
            state.parked = false;
        }
    }

    /// HTTP/1: nothing is held for the next request until its first byte has come. The time until then counts on.
    pub fn park(&self) {
        self.state.lock().parked = true;
        crate::memory::loosened();
    }

    /// What the head that is being read shows.
    pub fn mark_head(&self, marks: HeadMarks) {
        self.state.lock().head = marks;
    }

    /// A write could make no progress (`true`), or did after that (`false`).
    pub fn set_blocked(&self, blocked: bool) {
        let mut state = self.state.lock();
        state.blocked = blocked;
        state.blocked_since = None;
    }

    /// True if a `408` may still be written: a head is being read and nothing else is on the wire.
    pub fn may_refuse_head(&self) -> bool {
        let mut state = self.state.lock();
        state.phase == Phase::Head && state.is_clean() && !state.blocked
    }

    /// The next deadline, if any. Stamps what begins now: called when the connection's task has nothing to do.
    pub fn deadline(&self) -> Option<(Instant, Expired)> {
        let mut state = self.state.lock();
        let partial = state.phase == Phase::Head;
        let first = state.served == 0 && !partial;
        let linger = self.is_finishing().then_some(IDLE_LINGER);
        let (limit, expired) = match state.phase {
            Phase::Busy => (state.half_closed.then_some(HALF_CLOSED), Expired::Gone),
            Phase::Head => (self.spec.header_timeout, Expired::Header { partial }),
            Phase::New | Phase::Idle if first => (
                shorter(self.spec.header_timeout, linger),
                Expired::Header { partial },
            ),
            Phase::New | Phase::Idle => {
                let limit = shorter(self.spec.idle_timeout, linger);
                let quiet = !state.parked
                    && !state.blocked
                    && limit.is_none_or(|limit| limit > QUIET)
                    && !self.multiplexed.load(Ordering::Relaxed)
                    && state.is_clean();
                match quiet {
                    true => (Some(QUIET), Expired::Quiet),
                    false => (limit, Expired::Idle),
                }
            }
        };
        let mut next = limit.map(|limit| {
            let since = *state.since.get_or_insert_with(Instant::now);
            (since + limit, expired)
        });
        if state.blocked
            && let Some(limit) = self.spec.write_timeout
        {
            let at = *state.blocked_since.get_or_insert_with(Instant::now) + limit;
            if next.is_none_or(|(other, _)| at < other) {
                next = Some((at, Expired::Write));
            }
        }
        next
    }

    /// The task that drives the connection, to be woken by [`Wake`].
    pub fn register(&self, cx: &std::task::Context<'_>) {
        self.driver.register(cx.waker());
    }

    /// True once after a timer or token fired.
    pub fn take_signal(&self) -> bool {
        self.signal.load(Ordering::Relaxed) && self.signal.swap(false, Ordering::AcqRel)
    }
}

/// Timers and tokens of a connection are polled with a waker of their own, so that the driver asks them only when one of
/// them fired and not at each of the connection's wake-ups.
impl Wake for Connection {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.signal.store(true, Ordering::Release);
        self.driver.wake();
    }
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
