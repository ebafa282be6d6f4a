//! UDP ASSOCIATE (RFC 1928 section 7): datagrams of one client to anywhere it may go, and back.
//!
//! It promises: what comes from another address than the client's is dropped, and so is what comes from where the client
//! has sent nothing; every destination is judged as one of a connection is; names are looked up beside everything else;
//! all that it keeps is bounded. It lives as long as the connection that asked for it.

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
use super::{Ask, Forward, Place};
use crate::generation::Flight;
use crate::session::{End, Session};

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
    _place: Option<Place>,
}

/// A datagram whose name has been looked up.
type Found = (Destination, Vec<u8>, Option<SocketAddr>);

/// What grows while it runs.
struct State {
    /// Where the client's datagrams come from: the first one tells.
    client: Option<SocketAddr>,
    asked: Cache<SocketAddr, ()>,
    names: Cache<Destination, (SocketAddr, Instant)>,
    waiting: FuturesUnordered<BoxFuture<'static, Found>>,
    budget: Option<Budget>,
    moved: bool,
}

impl Association {
    /// Binds a port for the client.
    ///
    /// # Errors
    /// That there is none.
    pub fn open(proxy: Arc<Forward>, who: Who, place: Option<Place>) -> io::Result<Association> {
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
                Some((name, data, found)) = state.waiting.next() => {
                    if let Some(address) = found {
                        state.names.insert(name, (address, Instant::now() + REMEMBERED));
                        self.send(address, &data, &mut state);
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
        if state.asked.get(&address).is_none() {
            let destination = Destination::Address(address);
            let ask = Ask {
                user: self.who.user.as_ref(),
                client: Some(self.who.ip),
                destination: &destination,
            };
            if !self.proxy.allows(ask, address) {
                tracing::debug!(client = %self.who.ip, %address, "a datagram to where it may not go");
                return;
            }
        }
        self.send(address, data, state);
    }

    fn named(&mut self, name: Destination, data: &[u8], state: &mut State) {
        if let Some((address, until)) = state.names.get(&name)
            && *until > Instant::now()
        {
            let address = *address;
            return self.send(address, data, state);
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
    fn send(&mut self, address: SocketAddr, data: &[u8], state: &mut State) {
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
        let within = state.budget.as_mut().is_none_or(|b| b.takes(data.len()));
        if let (Some(far), true) = (far, within) {
            state.asked.insert(address, ());
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
            if state.asked.get(&from).is_none() || !within {
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
