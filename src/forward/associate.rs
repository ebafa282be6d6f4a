//! UDP ASSOCIATE (RFC 1928 section 7): datagrams of one client to anywhere it may go, and back.
//!
//! It promises: what comes from another address than the client's is dropped, and so is what comes from where the client
//! has sent nothing, or another way than it was sent; every destination is judged, and reached, as one of a connection is; names
//! are looked up beside everything else; all that it keeps is bounded. It lives as long as the connection that asked for it.

mod ways;

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use quick_cache::unsync::Cache;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::socks::datagram::{self, HEAD};
use super::socks::v5::To;
use super::target::Destination;
use super::{Ask, Forward, Place, Verdict};
use crate::config::scalar::TargetAddr;
use crate::generation::Flight;
use crate::session::{End, Session};
use crate::upstream::via::Via;
pub use ways::Ways;

/// Bytes of the largest datagram.
const DATAGRAM: usize = 65_535;
/// Addresses from which answers are let through: the latest to which the client has sent.
const PEERS: usize = 1024;
/// Names whose address is remembered, and how long.
const NAMES: usize = 256;
const REMEMBERED: Duration = Duration::from_secs(60);
/// Datagrams that wait for their name's address; more are dropped.
const WAITING: usize = 8;
/// Datagrams of one socket before others have their turn.
const ROUNDS: usize = 16;
/// Ports of the range that are tried.
const TRIES: u16 = 1024;

/// Whose datagrams are taken.
#[derive(Debug, Clone)]
pub struct Who {
    pub ip: IpAddr,
    /// Of ours, as the client reached it.
    pub local: IpAddr,
    pub user: Option<Arc<str>>,
}

/// How it ended.
#[derive(Debug)]
pub enum Ended {
    /// The client's connection did.
    Closed,
    Idle,
    /// A swap or an operator ended it.
    Cut,
    Broken(io::Error),
}

impl From<&Ended> for End {
    fn from(ended: &Ended) -> End {
        match ended {
            Ended::Closed => End::Closed,
            Ended::Idle => End::Idle,
            Ended::Cut => End::Cut,
            Ended::Broken(_) => End::Broken,
        }
    }
}

/// Sockets and what is known of the client.
#[derive(Debug)]
pub struct Association {
    /// Where the client is to send its datagrams.
    pub advertised: SocketAddr,
    proxy: Arc<Forward>,
    who: Who,
    /// Towards the client.
    near: UdpSocket,
    /// Towards everybody else, once there is somebody of that family.
    far: [Option<UdpSocket>; 2],
    /// Towards those that are reached through other proxies.
    ways: Ways,
    _place: Option<Place>,
}

/// How datagrams leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Direct,
    /// By one of the ways.
    Way(usize),
}

/// A datagram whose name has been looked up.
type Found = (Destination, Vec<u8>, Option<SocketAddr>);

/// What grows while it runs.
struct State {
    /// Where the client's datagrams come from: the first one tells.
    client: Option<SocketAddr>,
    asked: Cache<SocketAddr, Route>,
    /// Ways and ports of names that proxies look up: only they know whom those have led to.
    told: Cache<(usize, u16), ()>,
    names: Cache<Destination, (SocketAddr, Route, Instant)>,
    waiting: FuturesUnordered<BoxFuture<'static, Found>>,
    budget: Option<Budget>,
    moved: bool,
}

impl Association {
    /// Binds a port for the client.
    ///
    /// # Errors
    /// That there is none.
    pub fn open(
        proxy: Arc<Forward>,
        who: Who,
        ways: Ways,
        place: Option<Place>,
    ) -> io::Result<Association> {
        let near = bind(who.local, proxy.spec.udp.ports.clone())?;
        let port = near.local_addr()?.port();
        let given = &proxy.spec.udp.advertise;
        let given = given.iter().find(|ip| ip.is_ipv4() == who.local.is_ipv4());
        Ok(Association {
            advertised: SocketAddr::new(given.copied().unwrap_or(who.local), port),
            proxy,
            who,
            near,
            far: [None, None],
            ways,
            _place: place,
        })
    }

    /// Relays until `control` ends, or anything else ends it.
    pub async fn run<S>(mut self, mut control: S, flight: &Flight, session: &Session) -> Ended
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let idle = self.proxy.spec.timeouts.idle;
        let mut state = State {
            client: None,
            asked: Cache::new(PEERS),
            told: Cache::new(NAMES),
            names: Cache::new(NAMES),
            waiting: FuturesUnordered::new(),
            budget: self.proxy.spec.limits.bandwidth.map(Budget::new),
            moved: false,
        };
        let mut buffer = vec![0; HEAD + DATAGRAM];
        let mut ignored = [0; 64];
        let mut last = Instant::now();
        loop {
            let due = idle.map(|idle| last + idle);
            let silent = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let [v4, v6] = &self.far;
            let ways = &mut self.ways;
            let passed = tokio::select! {
                read = control.read(&mut ignored) => match read {
                    // Nothing is due there; what comes is of no meaning.
                    Ok(1..) => Ok(()),
                    _ => return Ended::Closed,
                },
                () = poll_fn(|cx| flight.poll_cut(cx)) => {
                    tokio::time::sleep(flight.cut_delay()).await;
                    return Ended::Cut;
                }
                () = session.closed() => return Ended::Cut,
                ready = self.near.readable() => match ready {
                    Ok(()) => self.hear_client(&mut state, &mut buffer, session),
                    Err(error) => Err(error),
                },
                ready = readable(v4.as_ref()) => match ready {
                    Ok(()) => self.hear_others(0, &mut state, &mut buffer, session),
                    Err(error) => Err(error),
                },
                ready = readable(v6.as_ref()) => match ready {
                    Ok(()) => self.hear_others(1, &mut state, &mut buffer, session),
                    Err(error) => Err(error),
                },
                number = poll_fn(|cx| ways.poll(cx)) => {
                    self.hear_way(number, &mut state, &mut buffer, session)
                }
                Some((name, data, found)) = state.waiting.next() => {
                    if let Some(address) = found
                        && let Some(route) = self.route(&name, address)
                    {
                        let until = Instant::now() + REMEMBERED;
                        state.names.insert(name, (address, route, until));
                        self.send(address, route, &data, &mut state);
                    }
                    Ok(())
                }
                () = silent => return Ended::Idle,
            };
            if let Err(error) = passed {
                return Ended::Broken(error);
            }
            if std::mem::take(&mut state.moved) {
                last = Instant::now();
            }
        }
    }

    /// Takes what has come to the client's port.
    fn hear_client(
        &mut self,
        state: &mut State,
        buffer: &mut [u8],
        session: &Session,
    ) -> io::Result<()> {
        for _ in 0..ROUNDS {
            let Some((size, from)) = received(self.near.try_recv_from(buffer))? else {
                return Ok(());
            };
            let stranger = match state.client {
                Some(client) => client != from,
                None => from.ip().to_canonical() != self.who.ip,
            };
            let read = buffer.get(..size).and_then(datagram::read);
            let (false, Some((to, data))) = (stranger, read) else {
                continue;
            };
            state.client = Some(from);
            state.moved = true;
            session.received(data.len() as u64);
            match to {
                To::Address(address) => self.judged(address, data, state),
                To::Name(name) => self.named(name, data, state),
                To::Nowhere => {}
            }
        }
        Ok(())
    }

    fn judged(&mut self, address: SocketAddr, data: &[u8], state: &mut State) {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        // Whom it has sent to before was judged then.
        if address.port() == 0 {
            return;
        }
        let known = state.asked.get(&address).copied();
        let route = known.or_else(|| {
            let destination = Destination::Address(address);
            if !self.proxy.allows(self.ask(&destination), address) {
                tracing::debug!(client = %self.who.ip, %address, "a datagram to where it may not go");
                return None;
            }
            self.route(&destination, address)
        });
        if let Some(route) = route {
            self.send(address, route, data, state);
        }
    }

    fn ask<'a>(&'a self, destination: &'a Destination) -> Ask<'a> {
        Ask {
            user: self.who.user.as_ref(),
            client: Some(self.who.ip),
            destination,
        }
    }

    /// How datagrams to `destination` leave, for which `address` was found. `None`: they cannot.
    fn route(&mut self, destination: &Destination, address: SocketAddr) -> Option<Route> {
        match self.proxy.way_to(self.ask(destination), address).cloned() {
            Some(via) => self.way(&via),
            None => Some(Route::Direct),
        }
    }

    fn way(&mut self, via: &Arc<Via>) -> Option<Route> {
        let number = self.ways.number(via);
        if number.is_none() {
            tracing::debug!(client = %self.who.ip, "a datagram to where no datagrams go");
        }
        number.map(Route::Way)
    }

    fn named(&mut self, name: Destination, data: &[u8], state: &mut State) {
        if let Some((address, route, until)) = state.names.get(&name).copied()
            && until > Instant::now()
        {
            return self.send(address, route, data, state);
        }
        if let Destination::Name(host, port) = &name
            && let Some((via, verdict)) = self.proxy.way_of_name(self.ask(&name), host, *port)
        {
            let via = via.clone();
            if verdict != Verdict::Allowed {
                tracing::debug!(client = %self.who.ip, %name, "a datagram to where it may not go");
            } else if let Some(Route::Way(number)) = self.way(&via)
                && takes(&mut state.budget, data)
            {
                state.told.insert((number, *port), ());
                let to = TargetAddr::Name(Arc::from(&**host), *port);
                self.ways.send(number, to, data, &self.proxy);
            }
            return;
        }
        if state.waiting.len() >= WAITING {
            return;
        }
        let (proxy, who, data) = (self.proxy.clone(), self.who.clone(), data.to_vec());
        state.waiting.push(Box::pin(async move {
            let ask = Ask {
                user: who.user.as_ref(),
                client: Some(who.ip),
                destination: &name,
            };
            let deadline = Instant::now() + proxy.spec.timeouts.connect;
            let found = proxy.resolve(ask, deadline).await;
            let address = found.ok().and_then(|all| all.first().copied());
            (name, data, address)
        }));
    }

    /// What cannot leave at once is lost, as datagrams are.
    fn send(&mut self, address: SocketAddr, route: Route, data: &[u8], state: &mut State) {
        if let Route::Way(number) = route {
            if takes(&mut state.budget, data) {
                state.asked.insert(address, route);
                self.ways
                    .send(number, TargetAddr::Ip(address), data, &self.proxy);
            }
            return;
        }
        let family = usize::from(address.is_ipv6());
        let [v4, v6] = &mut self.far;
        let far = if family == 0 { v4 } else { v6 };
        if far.is_none() {
            let any: IpAddr = match address {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            *far = bind(any, None)
                .inspect_err(|error| tracing::debug!(%error, "no socket for datagrams"))
                .ok();
        }
        if let Some(far) = far
            && takes(&mut state.budget, data)
        {
            state.asked.insert(address, route);
            send_now(far, data, address);
        }
    }

    /// Takes what has come from elsewhere.
    fn hear_others(
        &mut self,
        family: usize,
        state: &mut State,
        buffer: &mut [u8],
        session: &Session,
    ) -> io::Result<()> {
        let (Some(Some(far)), Some(client)) = (self.far.get(family), state.client) else {
            return Ok(());
        };
        for _ in 0..ROUNDS {
            let Some(room) = buffer.get_mut(HEAD..) else {
                return Ok(());
            };
            let Some((size, from)) = received(far.try_recv_from(room))? else {
                return Ok(());
            };
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            let within = state.budget.as_mut().is_none_or(|b| b.takes(size));
            if state.asked.get(&from) != Some(&Route::Direct) || !within {
                continue;
            }
            state.moved = true;
            session.sent(size as u64);
            let mut head = Vec::with_capacity(HEAD);
            datagram::write(from, &mut head);
            let start = HEAD - head.len().min(HEAD);
            if let Some(place) = buffer.get_mut(start..HEAD) {
                place.copy_from_slice(&head);
            }
            if let Some(whole) = buffer.get(start..HEAD + size) {
                send_now(&self.near, whole, client);
            }
        }
        Ok(())
    }
}

impl Association {
    /// Takes what has come by way `number`.
    fn hear_way(
        &mut self,
        number: usize,
        state: &mut State,
        buffer: &mut [u8],
        session: &Session,
    ) -> io::Result<()> {
        for _ in 0..ROUNDS {
            let Some(whole) = self.ways.next(number, buffer)? else {
                return Ok(());
            };
            let (Some((from, data)), Some(client)) = (datagram::read(whole), state.client) else {
                continue;
            };
            let port = match &from {
                To::Address(address) => address.port(),
                To::Name(Destination::Name(_, port)) => *port,
                To::Name(_) | To::Nowhere => continue,
            };
            let asked = match from {
                To::Address(from) => state.asked.get(&from) == Some(&Route::Way(number)),
                To::Name(_) | To::Nowhere => false,
            };
            if (!asked && state.told.get(&(number, port)).is_none())
                || !takes(&mut state.budget, data)
            {
                continue;
            }
            state.moved = true;
            session.sent(data.len() as u64);
            send_now(&self.near, whole, client);
        }
        Ok(())
    }
}

/// Whether a datagram may pass within its budget.
fn takes(budget: &mut Option<Budget>, data: &[u8]) -> bool {
    budget
        .as_mut()
        .is_none_or(|budget| budget.takes(data.len()))
}

/// Sends past the runtime, which does not know yet that a socket just made can be written. What cannot leave at once is
/// lost, as datagrams are.
fn send_now(socket: &UdpSocket, data: &[u8], to: SocketAddr) {
    if let Err(error) = socket2::SockRef::from(socket).send_to(data, &to.into()) {
        tracing::debug!(%error, %to, "a datagram did not leave");
    }
}

/// Until something has come; for ever if there is no socket.
async fn readable(socket: Option<&UdpSocket>) -> io::Result<()> {
    match socket {
        Some(socket) => socket.readable().await,
        None => std::future::pending().await,
    }
}

/// `None`: nothing more. That an earlier datagram was not wanted somewhere is no end.
fn received(read: io::Result<(usize, SocketAddr)>) -> io::Result<Option<(usize, SocketAddr)>> {
    match read {
        Ok(received) => Ok(Some(received)),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable => Ok(None),
            _ => Err(error),
        },
    }
}

/// A socket on a port of the range, beginning anywhere in it.
fn bind(ip: IpAddr, ports: Option<std::ops::RangeInclusive<u16>>) -> io::Result<UdpSocket> {
    let at = |port: u16| {
        let socket = std::net::UdpSocket::bind((ip, port))?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    };
    let Some(ports) = ports else {
        return at(0);
    };
    let (first, count) = (*ports.start(), ports.end() - ports.start());
    let begin = fastrand::u16(0..=count);
    let mut last = None;
    for step in 0..=count.min(TRIES) {
        let offset = (u32::from(begin) + u32::from(step)) % (u32::from(count) + 1);
        match at(first + u16::try_from(offset).unwrap_or_default()) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

/// Bytes that may pass: a second's worth at most is saved up.
#[derive(Debug)]
struct Budget {
    rate: u64,
    left: u64,
    at: Instant,
}

impl Budget {
    fn new(rate: u64) -> Budget {
        Budget {
            rate,
            left: rate.max(DATAGRAM as u64),
            at: Instant::now(),
        }
    }

    fn takes(&mut self, size: usize) -> bool {
        let now = Instant::now();
        let earned = u128::from(self.rate) * now.duration_since(self.at).as_micros() / 1_000_000;
        if earned > 0 {
            let earned = u64::try_from(earned).unwrap_or(u64::MAX);
            let most = self.rate.max(DATAGRAM as u64);
            self.left = self.left.saturating_add(earned).min(most);
            self.at = now;
        }
        match self.left.checked_sub(size as u64) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_budget_is_earned_by_time() {
        let mut budget = Budget::new(100_000);
        assert!(budget.takes(60_000) && !budget.takes(60_000));
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(budget.takes(60_000) && !budget.takes(1));
    }

    #[tokio::test]
    async fn a_port_of_the_range_is_found_as_long_as_there_is_one() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let free = bind(ip, None).unwrap();
        let port = free.local_addr().unwrap().port();
        assert!(bind(ip, Some(port..=port)).is_err());
        drop(free);
        assert!(bind(ip, Some(port..=port)).is_ok());
    }
}
