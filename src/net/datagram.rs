//! UDP sockets of an address. One takes datagrams from the moment that it is bound, so that nothing is bound before a swap is
//! committed: it would take those of a running wildcard. Until then a probe has shown that the address can be had.

mod far;
#[cfg(target_os = "linux")]
mod linux;
mod near;
mod room;
mod send;

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::{BindError, Owned, reuse_port};

pub use far::Far;
pub use near::Near;
pub use room::{BATCH, Room, with_room};
pub use send::Stopped;

/// Bytes that wait in a socket of ours, at most; the kernel cuts it to `net.core.rmem_max`. Its default is a few hundred
/// datagrams, which a worker that is busy for some milliseconds would lose.
const RECEIVE_BUFFER: usize = 4 << 20;

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
                linux::enable(&socket, address)?;
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

/// Who has sent a datagram, and to which address of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Way {
    pub client: SocketAddr,
    /// `None`: the socket has one.
    pub local: Option<IpAddr>,
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

/// True if an error says that a datagram, this one or an earlier one, was too long for its way. Nothing else is wrong then.
pub fn is_too_long(error: &io::Error) -> bool {
    #[cfg(unix)]
    let too_long = rustix::io::Errno::MSGSIZE.raw_os_error();
    // WSAEMSGSIZE
    #[cfg(not(unix))]
    let too_long = 10_040;
    error.raw_os_error() == Some(too_long)
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

    /// The room of this thread after one call: the sizes of what came, and whether there may be more.
    #[cfg(target_os = "linux")]
    fn taken(near: &Near) -> (Vec<usize>, bool) {
        with_room(|room| {
            let more = near.receive(room).unwrap();
            let data = room.datagrams().map(|(way, data)| {
                let way = way.unwrap();
                assert!(way.client.ip().is_loopback() && near.local(way).ip().is_loopback());
                assert!(data.iter().all(|byte| *byte == data.len() as u8));
                data.len()
            });
            (data.collect(), more)
        })
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_batch_is_taken_in_one_call_and_what_comes_after_it_is_heard_of() {
        use futures_util::FutureExt as _;

        for bound in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let reserved = reserve(bound.parse().unwrap(), 1, &none()).unwrap();
            let (port, v6) = (reserved.address().port(), reserved.address().is_ipv6());
            let socket = reserved.bind().unwrap().remove(0);
            let near = Near::new(tokio::net::UdpSocket::from_std(socket).unwrap());
            let any = if v6 { "[::1]:0" } else { "127.0.0.1:0" };
            let Ok(client) = UdpSocket::bind(any) else {
                continue;
            };
            let to = SocketAddr::new(client.local_addr().unwrap().ip(), port);
            let send = |sizes: &[usize]| {
                for size in sizes {
                    client.send_to(&vec![*size as u8; *size], to).unwrap();
                }
            };
            send(&[100; BATCH + 2]);
            near.heard().await.unwrap();
            for expected in [2, 4, 8] {
                assert_eq!(taken(&near), (vec![100; expected], true));
            }
            // Fewer than there is room for: that is all, and the runtime knows.
            assert_eq!(taken(&near), (vec![100; 4], false));
            assert!(near.heard().now_or_never().is_none());
            assert_eq!(taken(&near), (vec![], false));
            send(&[0, 1, 20_000]);
            near.heard().await.unwrap();
            assert_eq!(taken(&near), (vec![0, 1, 20_000], false));
            // Large ones come one by one from now on.
            send(&[20_000, 7, 8]);
            near.heard().await.unwrap();
            assert_eq!(taken(&near), (vec![20_000], true));
            assert_eq!(taken(&near), (vec![7], true));
            assert_eq!(taken(&near), (vec![8], false));
            assert!(near.heard().now_or_never().is_none());
        }
    }

    #[tokio::test]
    async fn a_datagram_that_is_too_long_is_an_error_of_its_own() {
        let target = UdpSocket::bind(local()).unwrap();
        let far = Far::connect(target.local_addr().unwrap(), None).unwrap();
        let long = vec![0; 65_508];
        let stopped = far.send(b"", &[b"one", &long, b"two"]).unwrap_err();
        assert_eq!(stopped.left, 1);
        assert!(is_too_long(&stopped.error) && !is_refusal(&stopped.error));
        far.send(b"", &[b"two"]).unwrap();
        let mut room = [0; 8];
        assert_eq!(target.recv(&mut room).unwrap(), 3);
        assert_eq!(target.recv(&mut room).unwrap(), 3);
        assert_eq!(&room[..3], b"two");
        // Where nobody listens is told at the next call.
        drop(target);
        far.send(b"", &[b"three"]).unwrap();
        let stopped = far.send(b"", &[b"four", b"five"]).unwrap_err();
        assert!(stopped.left == 0 && is_refusal(&stopped.error));
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
