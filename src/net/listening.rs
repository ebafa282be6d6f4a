//! Listening sockets of either kind, TCP or unix: reserved, listening, registered with a runtime, retired. What differs
//! between the two is settled here, so that accepting and swapping know one kind of address.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
#[cfg(unix)]
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

#[cfg(unix)]
use super::unix;
use super::{BACKLOG, BindError, Owned, Reserved, Shutter, accept_queued, datagram, reserve};
use crate::config::scalar::ListenAddr;

/// How long the handshakes under way when a TCP socket shuts may take: one round trip.
const LAST_HANDSHAKES: Duration = Duration::from_millis(200);

/// An address that is ours and takes nothing yet. Dropping it lets go without a trace.
#[derive(Debug)]
pub enum Reservation {
    Tcp(Reserved),
    #[cfg(unix)]
    Unix(unix::Reserved),
    Udp(datagram::Reserved),
}

/// Why an address cannot be had, and what an operator can do about it.
#[derive(Debug)]
pub struct Unavailable {
    pub message: String,
    pub help: Option<String>,
}

impl Reservation {
    /// Reserves `address`: TCP as a group of `count` sockets, a unix path as one that all share.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing stays behind.
    pub fn new(
        address: &ListenAddr,
        count: usize,
        owned: &Owned,
    ) -> Result<Reservation, Unavailable> {
        match address {
            ListenAddr::Tcp(address) => reserve(*address, count, owned)
                .map(Reservation::Tcp)
                .map_err(Unavailable::of),
            #[cfg(unix)]
            ListenAddr::Unix(path) => unix::reserve(path, unix::PUBLIC)
                .map(Reservation::Unix)
                .map_err(|error| Unavailable {
                    message: format!("{}: {error}", path.display()),
                    help: (error.kind() == io::ErrorKind::AddrInUse)
                        .then(|| "stop who listens there, or choose another path".into()),
                }),
            #[cfg(not(unix))]
            ListenAddr::Unix(_) => Err(Unavailable {
                message: "there are no unix sockets on this system".into(),
                help: None,
            }),
        }
    }

    /// The same for datagrams, as a group of `count` sockets.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing stays behind.
    pub fn of_datagrams(
        address: &ListenAddr,
        count: usize,
        owned: &Owned,
    ) -> Result<Reservation, Unavailable> {
        let ListenAddr::Tcp(address) = address else {
            return Err(Unavailable {
                message: format!("{address}: UDP needs an IP address and a port"),
                help: None,
            });
        };
        datagram::reserve(*address, count, owned)
            .map(Reservation::Udp)
            .map_err(Unavailable::of)
    }

    /// The address as bound: a port 0 has become a number.
    pub fn address(&self) -> ListenAddr {
        match self {
            Reservation::Tcp(reserved) => ListenAddr::Tcp(reserved.address()),
            #[cfg(unix)]
            Reservation::Unix(reserved) => ListenAddr::Unix(reserved.path().to_owned()),
            Reservation::Udp(reserved) => ListenAddr::Tcp(reserved.address()),
        }
    }

    /// Begins to take connections, or datagrams.
    ///
    /// # Errors
    /// A sentence: a stranger took the address since. All of it is let go.
    pub fn listen(self) -> Result<Vec<Opened>, String> {
        match self {
            Reservation::Tcp(reserved) => {
                let sockets = reserved.listen().map_err(|error| error.to_string())?;
                let sockets = sockets.into_iter().map(Listening::Tcp);
                Ok(sockets.map(Opened::Stream).collect())
            }
            #[cfg(unix)]
            Reservation::Unix(reserved) => {
                let path = reserved.path().to_owned();
                match reserved.listen(BACKLOG) {
                    Ok(listener) => Ok(vec![Opened::Stream(Listening::Unix(Arc::new(listener)))]),
                    Err(error) => Err(format!("{}: {error}", path.display())),
                }
            }
            Reservation::Udp(reserved) => {
                let sockets = reserved.bind().map_err(|error| error.to_string())?;
                Ok(sockets.into_iter().map(Opened::Datagram).collect())
            }
        }
    }
}

impl Unavailable {
    fn of(error: BindError) -> Unavailable {
        Unavailable {
            message: error.to_string(),
            help: error.help(),
        }
    }
}

/// A socket that takes what comes, outside of any runtime.
#[derive(Debug)]
pub enum Opened {
    Stream(Listening),
    Datagram(UdpSocket),
}

/// The same in a runtime.
#[derive(Debug)]
pub enum Registered {
    Stream(Listener),
    Datagram(tokio::net::UdpSocket),
}

impl Opened {
    /// The same socket once more: it closes when both are dropped.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<Opened> {
        match self {
            Opened::Stream(socket) => socket.try_clone().map(Opened::Stream),
            Opened::Datagram(socket) => socket.try_clone().map(Opened::Datagram),
        }
    }

    /// Registers it with the runtime this runs in.
    ///
    /// # Errors
    /// Those of the reactor, or no descriptor left.
    pub fn register(self) -> io::Result<Registered> {
        match self {
            Opened::Stream(socket) => socket.register().map(Registered::Stream),
            Opened::Datagram(socket) => {
                tokio::net::UdpSocket::from_std(socket).map(Registered::Datagram)
            }
        }
    }

    pub(crate) fn tcp(&self) -> Option<&std::net::TcpListener> {
        match self {
            Opened::Stream(Listening::Tcp(socket)) => Some(socket),
            Opened::Stream(_) | Opened::Datagram(_) => None,
        }
    }

    pub(crate) fn udp(&self) -> Option<&UdpSocket> {
        match self {
            Opened::Datagram(socket) => Some(socket),
            Opened::Stream(_) => None,
        }
    }
}

/// A listening, non-blocking socket outside of any runtime.
#[derive(Debug)]
pub enum Listening {
    Tcp(std::net::TcpListener),
    #[cfg(unix)]
    Unix(Arc<unix::Listener>),
}

impl Listening {
    /// The same socket once more: it closes when both are dropped.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<Listening> {
        match self {
            Listening::Tcp(socket) => socket.try_clone().map(Listening::Tcp),
            #[cfg(unix)]
            Listening::Unix(listener) => Ok(Listening::Unix(listener.clone())),
        }
    }

    /// Registers it with the runtime this runs in.
    ///
    /// # Errors
    /// Those of the reactor, or no descriptor left.
    pub fn register(self) -> io::Result<Listener> {
        match self {
            Listening::Tcp(socket) => tokio::net::TcpListener::from_std(socket).map(Listener::Tcp),
            #[cfg(unix)]
            Listening::Unix(listener) => unix::Accepting::new(listener).map(Listener::Unix),
        }
    }

    /// Shuts newcomers out while those under way still end well. Answers how long these may take to be in the queue.
    ///
    /// # Errors
    /// Where the system or our rights do not allow it: see [`Shutter::close`] and `unix::Listener::shut`.
    pub fn shut(&self) -> io::Result<Duration> {
        match self {
            Listening::Tcp(socket) => Shutter::close(socket).map(|_| LAST_HANDSHAKES),
            // There is no handshake: a client is in the queue or it is not.
            #[cfg(unix)]
            Listening::Unix(listener) => listener.shut().map(|()| Duration::ZERO),
        }
    }

    /// The next queued connection, registered with the runtime this runs in; `None` when the queue is empty now.
    ///
    /// # Errors
    /// Those of `accept` that a later try may cure.
    pub fn accept_queued(&self) -> io::Result<Option<(Stream, Peer)>> {
        match self {
            Listening::Tcp(socket) => {
                let Some((stream, peer)) = accept_queued(socket)? else {
                    return Ok(None);
                };
                stream.set_nonblocking(true)?;
                let stream = TcpStream::from_std(stream)?;
                Ok(Some((Stream::Tcp(stream), Peer::Tcp(peer))))
            }
            #[cfg(unix)]
            Listening::Unix(listener) => {
                let Some(stream) = listener.accept_queued()? else {
                    return Ok(None);
                };
                stream.set_nonblocking(true)?;
                let stream = tokio::net::UnixStream::from_std(stream)?;
                Ok(Some((Stream::Unix(stream), Peer::Unix)))
            }
        }
    }
}

/// A listening socket of a runtime.
#[derive(Debug)]
pub enum Listener {
    Tcp(tokio::net::TcpListener),
    #[cfg(unix)]
    Unix(unix::Accepting),
}

impl Listener {
    /// The next connection. Cancel-safe.
    ///
    /// # Errors
    /// Those of `accept`.
    pub async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Listener::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                Ok((Stream::Tcp(stream), Peer::Tcp(peer)))
            }
            #[cfg(unix)]
            Listener::Unix(socket) => Ok((Stream::Unix(socket.accept().await?), Peer::Unix)),
        }
    }

    /// Takes it out of its runtime: what the kernel says from now on, not what the reactor saw.
    ///
    /// # Errors
    /// Those of the reactor.
    pub fn into_std(self) -> io::Result<Listening> {
        match self {
            Listener::Tcp(socket) => socket.into_std().map(Listening::Tcp),
            #[cfg(unix)]
            Listener::Unix(socket) => Ok(Listening::Unix(socket.into_listener())),
        }
    }
}

/// An accepted connection.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// A process of this machine, through a unix socket. It has no address.
    Unix,
}

impl Peer {
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Peer::Tcp(address) => Some(*address),
            Peer::Unix => None,
        }
    }

    /// An IPv4 address that came over an IPv6 socket is IPv4.
    pub fn ip(&self) -> Option<IpAddr> {
        self.address().map(|address| address.ip().to_canonical())
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        Peer::Tcp(address)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address) => address.fmt(f),
            Peer::Unix => f.write_str("unix"),
        }
    }
}
