//! The accept loop of one address on one worker: accept, count, spawn, nothing slower. It borrows its socket: only the
//! supervisor's table closes an address. Told to retire, it shuts new handshakes out, serves what is queued, and ends.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::CatchUnwind;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::entry::{Entry, Plane};
use super::http::{self, Listener};
use super::l4::Coming;
use super::{forward, l4, names, proxy_protocol, tls, tunnel};
use crate::config::scalar::ListenAddr;
use crate::generation::{EpochGuard, Serving};
use crate::http::Face as _;
use crate::metrics::{WorkerContext, WorkerCounters};
use crate::net::{self, Peer, Sever, Stream, Transport};

/// How long accepting pauses, at least, after an error that a retry will not cure at once (no descriptor, no memory).
const BACK_OFF: Duration = Duration::from_millis(50);
/// How long an address that retires without descriptors left tries to serve its queue.
const DRAIN_TRIES: u32 = 100;

/// The process-wide bound on client connections (`runtime.max_connections`). It may be passed by one connection per
/// worker: room is looked for before accepting, so that no accepted client is thrown away.
#[derive(Debug)]
pub struct ConnectionLimit {
    max: AtomicUsize,
    now: AtomicUsize,
    /// Those of `now` that are sessions of UDP.
    sessions: AtomicUsize,
    freed: Notify,
    #[cfg(unix)]
    ceiling: net::Ceiling,
    /// Accept loops that wait for descriptors.
    paused: AtomicUsize,
}

impl ConnectionLimit {
    pub fn new(max: usize) -> ConnectionLimit {
        ConnectionLimit {
            max: AtomicUsize::new(max),
            now: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            freed: Notify::new(),
            #[cfg(unix)]
            ceiling: net::Ceiling::of_process(),
            paused: AtomicUsize::new(0),
        }
    }

    /// True while an address accepts nobody because descriptors (or the system's memory) have run out.
    pub fn is_starved(&self) -> bool {
        self.paused.load(Ordering::Relaxed) > 0
    }

    /// Whether clients have all descriptors that they may have, given the last one.
    fn is_last(&self, stream: &Stream) -> bool {
        #[cfg(unix)]
        return match stream {
            Stream::Tcp(stream) => self.ceiling.is_passed_by(stream),
            Stream::Unix(stream) => self.ceiling.is_passed_by(stream),
        };
        #[cfg(not(unix))]
        {
            let _ = stream;
            false
        }
    }

    /// The same for the socket of a session.
    pub(super) fn is_last_for(&self, socket: &UdpSocket) -> bool {
        #[cfg(unix)]
        return self.ceiling.is_passed_by(socket);
        #[cfg(not(unix))]
        {
            let _ = socket;
            false
        }
    }

    /// The same, found out.
    fn is_used_up(&self) -> bool {
        #[cfg(unix)]
        return self.ceiling.is_reached();
        #[cfg(not(unix))]
        false
    }

    pub fn set(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
        self.freed.notify_waiters();
    }

    fn has_room(&self) -> bool {
        self.now.load(Ordering::Relaxed) < self.max.load(Ordering::Relaxed)
    }

    /// Whether another session of UDP may begin. Senders of datagrams can be forged, so they get half of the room at most.
    pub(super) fn has_room_for_session(&self) -> bool {
        let most = self.max.load(Ordering::Relaxed).div_ceil(2);
        self.has_room() && self.sessions.load(Ordering::Relaxed) < most
    }

    /// Waits until another connection may be accepted. Cancel-safe.
    async fn room(&self) {
        while !self.has_room() {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.has_room() {
                return;
            }
            freed.await;
        }
    }

    fn leave(&self) {
        if self.now.fetch_sub(1, Ordering::Relaxed) >= self.max.load(Ordering::Relaxed) {
            self.freed.notify_waiters();
        }
    }
}

/// One bound address, all its sockets together: what outlives generations and is counted over the workers.
#[derive(Debug)]
pub struct Binding {
    /// Unique in the process's life.
    pub id: u32,
    pub transport: Transport,
    /// As bound.
    pub address: ListenAddr,
    connections: AtomicUsize,
    clients: Mutex<HashMap<IpAddr, usize>>,
    /// Connections closed at once because a limit was reached.
    pub refused: AtomicU64,
    /// Accept loops that have not ended.
    pub loops: AtomicUsize,
    /// Workers that take nothing new here, but need their socket for sessions of UDP.
    pub lingering: AtomicUsize,
    /// Cancelled: the address is wanted again, so those sessions end.
    pub hurry: CancellationToken,
}

impl Binding {
    pub fn new(id: u32, transport: Transport, address: ListenAddr) -> Binding {
        Binding {
            id,
            transport,
            address,
            connections: AtomicUsize::new(0),
            clients: Mutex::default(),
            refused: AtomicU64::new(0),
            loops: AtomicUsize::new(0),
            lingering: AtomicUsize::new(0),
            hurry: CancellationToken::new(),
        }
    }

    /// As operators see it.
    pub fn shown(&self) -> String {
        self.transport.show(&self.address)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// The place of a connection, or of a session of UDP, in every count; dropping it gives them back. Not the listener, which knows routes: a websocket
/// may outlive those of its address.
pub(super) struct Held {
    limit: Arc<ConnectionLimit>,
    binding: Arc<Binding>,
    worker: Arc<WorkerContext>,
    client: Option<IpAddr>,
}

impl Held {
    /// Takes a place.
    pub(super) fn take(
        limit: &Arc<ConnectionLimit>,
        binding: &Arc<Binding>,
        worker: &Arc<WorkerContext>,
    ) -> Held {
        binding.connections.fetch_add(1, Ordering::Relaxed);
        limit.now.fetch_add(1, Ordering::Relaxed);
        if binding.transport == Transport::Datagram {
            limit.sessions.fetch_add(1, Ordering::Relaxed);
        }
        WorkerCounters::add(&worker.counters.connections);
        WorkerCounters::add(&worker.counters.accepted);
        Held {
            limit: limit.clone(),
            binding: binding.clone(),
            worker: worker.clone(),
            client: None,
        }
    }

    /// Counts the client; false if it has too many connections. Clients of a unix socket cannot be told apart.
    fn admits(&mut self, peer: Peer, max: Option<usize>) -> bool {
        let (Some(max), Some(ip)) = (max, peer.ip()) else {
            return true;
        };
        let mut clients = self.binding.clients.lock();
        let count = clients.entry(ip).or_default();
        *count += 1;
        self.client = Some(ip);
        *count <= max
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.binding.transport == Transport::Datagram {
            self.limit.sessions.fetch_sub(1, Ordering::Relaxed);
        }
        self.limit.leave();
        self.binding.connections.fetch_sub(1, Ordering::Relaxed);
        self.worker
            .counters
            .connections
            .fetch_sub(1, Ordering::Relaxed);
        if let Some(ip) = self.client {
            let mut clients = self.binding.clients.lock();
            if let Some(count) = clients.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    clients.remove(&ip);
                }
            }
        }
    }
}

/// Accepts for one address on one worker.
pub struct Acceptor {
    pub listener: Arc<Listener>,
    pub binding: Arc<Binding>,
    pub limit: Arc<ConnectionLimit>,
    /// Accepting waits while this says false (tests hold a queue full with it).
    pub gate: Option<watch::Receiver<bool>>,
    pub retire: CancellationToken,
}

impl Acceptor {
    /// Runs until `retire` is cancelled and the queue is empty.
    pub async fn run(self, socket: net::Listener) {
        struct Ends(Arc<Binding>);
        impl Drop for Ends {
            fn drop(&mut self) {
                self.0.loops.fetch_sub(1, Ordering::AcqRel);
            }
        }
        let _ends = Ends(self.binding.clone());
        {
            let retired = self.retire.cancelled();
            tokio::pin!(retired);
            loop {
                tokio::select! {
                    biased;
                    () = &mut retired => break,
                    accepted = self.next(&socket) => match accepted {
                        Ok((stream, peer)) => {
                            let last = self.limit.is_last(&stream);
                            self.serve(stream, peer);
                            if last {
                                self.pause(&"the descriptors that are left are kept").await;
                            }
                        }
                        Err(error) => self.back_off(&error).await,
                    },
                }
            }
        }
        if let Err(error) = self.drain(socket).await {
            tracing::warn!(address = %self.binding.address, %error, "the queue of a retired address could not be served to its end");
        }
    }

    async fn next(&self, socket: &net::Listener) -> io::Result<(Stream, Peer)> {
        if let Some(gate) = &self.gate {
            // The gate's other end is gone: nothing is held back any more.
            let _ = gate.clone().wait_for(|open| *open).await;
        }
        self.limit.room().await;
        socket.accept().await
    }

    async fn back_off(&self, error: &io::Error) {
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
        ) {
            return; // that client is gone; the next one waits
        }
        self.pause(error).await;
    }

    /// Until there are descriptors to give away again. Whoever comes meanwhile waits in the queue.
    async fn pause(&self, why: &(dyn fmt::Display + Sync)) {
        struct Paused<'a>(&'a AtomicUsize);
        impl Drop for Paused<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        tracing::warn!(address = %self.binding.address, error = %why, "accept pauses");
        self.limit.paused.fetch_add(1, Ordering::Relaxed);
        let _paused = Paused(&self.limit.paused);
        loop {
            tokio::select! {
                () = tokio::time::sleep(BACK_OFF) => {}
                () = self.retire.cancelled() => return,
            }
            if !self.limit.is_used_up() {
                return;
            }
        }
    }

    /// Serves everyone who is in the queue or on the way into it, and nobody later.
    async fn drain(&self, socket: net::Listener) -> io::Result<()> {
        // Back to plain accept calls: what the kernel says now, not what the reactor saw.
        let socket = socket.into_std()?;
        let shut = socket.shut();
        self.accept_all(&socket).await?;
        match shut {
            Ok(last) => tokio::time::sleep(last).await,
            Err(error) => {
                tracing::debug!(%error, "no shutter: a client that comes in this instant may be reset")
            }
        }
        self.accept_all(&socket).await
    }

    async fn accept_all(&self, socket: &net::Listening) -> io::Result<()> {
        let mut tries = 0;
        loop {
            match socket.accept_queued() {
                Ok(None) => return Ok(()),
                Ok(Some((stream, peer))) => self.serve(stream, peer),
                Err(error) if tries == DRAIN_TRIES => return Err(error),
                Err(_) => {
                    tries += 1;
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }

    fn serve(&self, stream: Stream, peer: Peer) {
        let serving = self.listener.slot.pin();
        let limits = &serving.entry.admission;
        let mut held = Held::take(&self.limit, &self.binding, &self.listener.worker);
        let now = self.binding.connections();
        let mut admitted = limits.connections.is_none_or(|max| now <= max);
        // Who the client of a balancer is, is not known yet.
        let behind = limits.behind(peer).map(|behind| behind.within);
        let per_client = limits.connections_per_client;
        admitted = admitted && (behind.is_some() || held.admits(peer, per_client));
        if !admitted {
            WorkerCounters::add(&self.binding.refused);
            tracing::debug!(%peer, address = %self.binding.address, "connection limit reached");
            return;
        }
        let guard = self.listener.slot.epoch().join();
        let accepted = Accepted {
            peer,
            local: self.binding.address.tcp(),
            listener: self.listener.clone(),
            serving,
            guard,
            held,
        };
        if let (Stream::Tcp(stream), Plane::Tunnel(_)) = (&stream, &accepted.serving.entry.plane) {
            crate::tunnel::carrier::tune(stream);
        }
        match (stream, behind) {
            (Stream::Tcp(stream), Some(within)) => accepted.start_behind(stream, within),
            (Stream::Tcp(stream), None) => accepted.start(stream),
            #[cfg(unix)]
            (Stream::Unix(stream), _) => accepted.start(stream),
        }
    }
}

/// A connection with all that it needs to be served.
struct Accepted {
    peer: Peer,
    local: Option<SocketAddr>,
    listener: Arc<Listener>,
    /// Of the instant in which it was accepted.
    serving: Arc<Serving<Entry>>,
    guard: EpochGuard,
    held: Held,
}

impl Accepted {
    /// Once the balancer has said who its client is.
    fn start_behind(mut self, mut stream: tokio::net::TcpStream, within: Option<Duration>) {
        tokio::spawn(async move {
            let reading = proxy_protocol::read(&mut stream, within);
            let reading = AssertUnwindSafe(self.guard.epoch.cut.run_until_cancelled(reading));
            match reading.catch_unwind().await {
                Ok(Some(Ok(Some((source, destination))))) => {
                    (self.peer, self.local) = (source.into(), Some(destination));
                }
                Ok(Some(Ok(None))) => {}
                Ok(Some(Err(error))) => {
                    tracing::debug!(peer = %self.peer, %error, "no PROXY header, and one was due");
                    return WorkerCounters::add(&self.held.binding.refused);
                }
                Ok(None) => return,
                Err(_) => {
                    WorkerCounters::add(&self.held.worker.counters.panics);
                    let peer = self.peer;
                    tracing::error!(%peer, "reading a PROXY header panicked; only that connection ended");
                    return;
                }
            }
            let per_client = self.serving.entry.admission.connections_per_client;
            if !self.held.admits(self.peer, per_client) {
                return WorkerCounters::add(&self.held.binding.refused);
            }
            self.start(stream);
        });
    }

    fn start<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
    {
        let Accepted {
            peer,
            local,
            listener,
            serving,
            guard,
            held,
        } = self;
        let entry = &*serving.entry;
        // Each its own kind of task, so that none has room for what only another needs.
        match &entry.plane {
            Plane::Forward(proxy) => {
                let proxy = proxy.clone();
                drop(serving);
                let session = forward::serve(stream, peer, listener, proxy, guard);
                spawn(session, peer, held);
            }
            Plane::Tunnel(accepting) => {
                let accepting = accepting.clone();
                drop(serving);
                let connection = tunnel::serve(stream, peer, listener, accepting, guard);
                spawn(connection, peer, held);
            }
            Plane::Tcp(tcp) => {
                let tcp = tcp.clone();
                drop(serving);
                let coming = Coming {
                    peer,
                    local,
                    listener,
                    guard,
                };
                spawn(l4::serve(stream, coming, tcp), peer, held);
            }
            Plane::Names(names) => {
                let accepted = names::Accepted {
                    names: names.clone(),
                    secure: entry.http().secure(),
                };
                drop(serving);
                let coming = Coming {
                    peer,
                    local,
                    listener,
                    guard,
                };
                spawn(names::serve(stream, coming, accepted), peer, held);
            }
            // It has no connections.
            Plane::Udp(_) => {}
            Plane::Http => match entry.http().secure() {
                Some(secure) => spawn(
                    tls::serve(stream, peer, local, listener, secure, guard),
                    peer,
                    held,
                ),
                None => {
                    let spec = entry.http().connection.clone();
                    let connection = http::serve(stream, peer, local, listener, spec, guard);
                    spawn(connection, peer, held);
                }
            },
        }
    }
}

/// Runs a connection in a task of its own: owned by its epoch (told to finish, cut at the deadline) and by the worker's
/// runtime.
pub(super) fn spawn(connection: impl Future<Output = ()> + Send + 'static, peer: Peer, held: Held) {
    tokio::spawn(Guarded {
        connection: AssertUnwindSafe(connection).catch_unwind(),
        peer,
        held,
    });
}

pin_project! {
    /// A connection's task. No `async` block: that would have room for the connection twice, as what it is given and as what
    /// it waits for.
    struct Guarded<F> {
        #[pin]
        connection: CatchUnwind<AssertUnwindSafe<F>>,
        peer: Peer,
        held: Held,
    }
}

impl<F: Future<Output = ()>> Future for Guarded<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if ready!(this.connection.poll(cx)).is_err() {
            WorkerCounters::add(&this.held.worker.counters.panics);
            let peer = this.peer;
            tracing::error!(%peer, "a connection's task panicked; only that connection ended");
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::http::test_kit::worker;

    #[tokio::test]
    async fn a_panic_ends_its_connection_only_and_gives_its_place_back() {
        let limit = Arc::new(ConnectionLimit::new(1));
        let address = ListenAddr::Tcp("127.0.0.1:1".parse().unwrap());
        let (binding, worker) = (
            Arc::new(Binding::new(1, Transport::Stream, address)),
            worker(),
        );
        let held = Held::take(&limit, &binding, &worker);
        let peer: std::net::SocketAddr = "192.0.2.1:50000".parse().unwrap();
        spawn(async { panic!("in a connection") }, peer.into(), held);
        limit.room().await;
        let counters = &worker.counters;
        assert_eq!(counters.panics.load(Ordering::Relaxed), 1);
        assert_eq!(counters.connections.load(Ordering::Relaxed), 0);
        assert_eq!(binding.connections(), 0);
    }
}
