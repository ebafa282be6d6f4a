//! UDP sockets of an address. One takes datagrams from the moment that it is bound, so that nothing is bound before a swap is
//! committed: it would take those of a running wildcard. Until then a probe has shown that the address can be had.

#[cfg(target_os = "linux")]
mod pktinfo;

use std::cell::RefCell;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;

use super::{BindError, Owned, reuse_port};

/// Bytes that wait in a socket of ours, at most; the kernel cuts it to `net.core.rmem_max`. Its default is a few hundred
/// datagrams, which a worker that is busy for some milliseconds would lose.
const RECEIVE_BUFFER: usize = 4 << 20;

/// More than the largest datagram has.
const LARGEST: usize = 1 << 16;

/// An address that can be had, as far as a probe tells.
#[derive(Debug)]
pub struct Reserved {
    address: SocketAddr,
    count: usize,
    /// Only of a port that the kernel has chosen: nobody knows it yet.
    bound: Vec<Socket>,
}

/// Probes `address` for `count` sockets of one group. Port 0 gets a free one, the same for all.
///
/// # Errors
/// [`BindError`]; nothing stays bound.
pub fn reserve(address: SocketAddr, count: usize, owned: &Owned) -> Result<Reserved, BindError> {
    if address.port() != 0 {
        if !owned.overlaps(address) {
            // Without SO_REUSEPORT, so that nobody who has it is passed by. It is closed at once.
            let probed = open(address).and_then(|socket| socket.bind(&address.into()));
            probed.map_err(|error| BindError::new(address, error))?;
        } else if owned.stranger_on(address) {
            return Err(BindError::InUse(address));
        }
        return Ok(Reserved {
            address,
            count,
            bound: Vec::new(),
        });
    }
    let bound = group(address, count)?;
    let first = bound.first().and_then(|s| s.local_addr().ok());
    let first = first.and_then(|address| address.as_socket());
    Ok(Reserved {
        address: first.unwrap_or(address),
        count,
        bound,
    })
}

impl Reserved {
    /// The address as bound: a port 0 has become a number.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to take datagrams.
    ///
    /// # Errors
    /// [`BindError::InUse`] when a stranger took the address since; all of it is let go.
    pub fn bind(self) -> Result<Vec<UdpSocket>, BindError> {
        let sockets = match self.bound.is_empty() {
            true => group(self.address, self.count)?,
            false => self.bound,
        };
        Ok(sockets.into_iter().map(UdpSocket::from).collect())
    }
}

fn group(address: SocketAddr, count: usize) -> Result<Vec<Socket>, BindError> {
    let mut sockets: Vec<Socket> = Vec::with_capacity(count);
    let mut address = address;
    while sockets.len() < count.max(1) {
        let socket = open(address).and_then(|socket| {
            // Also one alone: a specific address may come beside it.
            reuse_port(&socket)?;
            // What the system does not grant is no reason not to run.
            let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
            #[cfg(target_os = "linux")]
            if address.ip().is_unspecified() {
                pktinfo::enable(&socket, address)?;
            }
            socket.bind(&address.into())?;
            Ok(socket)
        });
        let socket = socket.map_err(|error| BindError::new(address, error))?;
        let bound = socket.local_addr().ok().and_then(|a| a.as_socket());
        address = bound.unwrap_or(address);
        sockets.push(socket);
    }
    Ok(sockets)
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// A socket of our own towards `target` alone: it hears nobody else, and is told where nobody listens there.
///
/// # Errors
/// Those of the system: no descriptor, no port, no route.
pub fn connect(target: SocketAddr) -> io::Result<tokio::net::UdpSocket> {
    let socket = open(target)?;
    socket.connect(&target.into())?;
    tokio::net::UdpSocket::from_std(socket.into())
}

/// Sends to whom the socket is connected to, past the runtime, which does not know yet that a socket just made can be
/// written.
///
/// # Errors
/// Those of the system; also what became of an earlier datagram ([`is_refusal`]): then this one has not left.
pub fn send(socket: &tokio::net::UdpSocket, data: &[u8]) -> io::Result<()> {
    SockRef::from(socket).send(data).map(|_| ())
}

/// Waits until something has come: a datagram, or word of what became of one that was sent. Cancel-safe.
///
/// # Errors
/// Those of the runtime, which ends.
pub async fn heard(socket: &tokio::net::UdpSocket) -> io::Result<()> {
    // Such word alone does not make it readable.
    let heard = Interest::READABLE.add(Interest::ERROR);
    socket.ready(heard).await.map(|_| ())
}

/// The next datagram for a connected socket; `None`: there is none now.
///
/// # Errors
/// Those of the system, and what became of a datagram that was sent ([`is_refusal`]).
pub fn receive(socket: &tokio::net::UdpSocket, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // By way of the runtime: it must learn that there is nothing more, or it would call this task for ever. It knows the
    // two apart, and takes no sum of them here.
    for interest in [Interest::READABLE, Interest::ERROR] {
        let read = socket.try_io(interest, || (&*SockRef::from(socket)).read(buffer));
        if let Some(size) = unless_empty(read)? {
            return Ok(Some(size));
        }
    }
    Ok(None)
}

/// Who has sent a datagram, and to which address of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Way {
    pub client: SocketAddr,
    /// `None`: the socket has one.
    pub local: Option<IpAddr>,
}

/// A bound socket, towards clients.
#[derive(Debug)]
pub struct Near {
    socket: tokio::net::UdpSocket,
    bound: SocketAddr,
    /// It is bound to all addresses.
    everywhere: bool,
}

impl Near {
    pub fn new(socket: tokio::net::UdpSocket) -> Near {
        let bound = socket.local_addr();
        Near {
            everywhere: cfg!(target_os = "linux")
                && bound
                    .as_ref()
                    .is_ok_and(|address| address.ip().is_unspecified()),
            bound: bound.unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0))),
            socket,
        }
    }

    /// Waits until something has come. Cancel-safe.
    ///
    /// # Errors
    /// Those of the runtime, which ends.
    pub async fn heard(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// The next datagram; `None`: there is none now.
    ///
    /// # Errors
    /// Those of the system.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, Way)>> {
        let socket = &self.socket;
        #[cfg(target_os = "linux")]
        if self.everywhere {
            let read = || pktinfo::receive(socket, buffer);
            return unless_empty(socket.try_io(Interest::READABLE, read));
        }
        let read = unless_empty(socket.try_recv_from(buffer))?;
        Ok(read.map(|(size, client)| {
            let local = None;
            (size, Way { client, local })
        }))
    }

    /// The address of ours that a client has sent to; the one that is bound, where the system does not say more.
    pub fn local(&self, way: Way) -> SocketAddr {
        let ip = way.local.unwrap_or_else(|| self.bound.ip());
        SocketAddr::new(ip, self.bound.port())
    }

    /// Answers a client, from the address that it has sent to.
    ///
    /// # Errors
    /// Those of the system: it has not left.
    pub fn send(&self, data: &[u8], way: Way) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(local) = way.local {
            return pktinfo::send(&self.socket, data, way.client, local);
        }
        let socket = SockRef::from(&self.socket);
        socket.send_to(data, &way.client.into()).map(|_| ())
    }
}

fn unless_empty<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// True if an error says that datagrams do not arrive where they were sent.
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

/// Lends room for the largest datagram, so that none is cut short. It is the thread's: nothing may lend it once more
/// meanwhile.
pub fn with_room<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static ROOM: RefCell<Vec<u8>> = RefCell::new(vec![0; LARGEST]);
    }
    ROOM.with(|room| match room.try_borrow_mut() {
        Ok(mut room) => f(&mut room),
        Err(_) => f(&mut vec![0; LARGEST]),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::net::Transport;

    fn local() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn none() -> Owned {
        Owned::of(Transport::Datagram)
    }

    #[test]
    fn a_group_shares_one_free_port() {
        let reserved = reserve(local(), 3, &none()).unwrap();
        let address = reserved.address();
        let sockets = reserved.bind().unwrap();
        assert_eq!(sockets.len(), 3);
        assert!(sockets.iter().all(|s| s.local_addr().unwrap() == address));
    }

    #[test]
    fn a_stranger_is_found_and_nothing_is_bound_before_it_is_due() {
        let plain = UdpSocket::bind(local()).unwrap();
        let address = plain.local_addr().unwrap();
        assert!(matches!(
            reserve(address, 2, &none()),
            Err(BindError::InUse(_))
        ));
        drop(plain);
        let reserved = reserve(address, 2, &none()).unwrap();
        // It is still anybody's, and then not to be had.
        let thief = UdpSocket::bind(address).unwrap();
        assert!(reserved.bind().is_err());
        drop(thief);
        let ours = reserve(address, 2, &none()).unwrap().bind().unwrap();
        assert!(reserve(address, 2, &none()).is_err(), "of the same user");
        drop(ours);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn beside_our_wildcard_only_strangers_are_in_the_way() {
        let wild = reserve("0.0.0.0:0".parse().unwrap(), 2, &none()).unwrap();
        let port = wild.address().port();
        let sockets = wild.bind().unwrap();
        let specific: SocketAddr = ([127, 0, 0, 1], port).into();
        let mut owned = none();
        assert!(reserve(specific, 1, &owned).is_err());
        owned.add(sockets[0].local_addr().unwrap(), &sockets);
        reserve(specific, 2, &owned).unwrap().bind().unwrap();
        let stranger = group(([0, 0, 0, 0], port).into(), 2).unwrap();
        assert!(reserve(specific, 2, &owned).is_err());
        drop(stranger);
    }
}
