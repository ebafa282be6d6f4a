//! THE socket module: what is bound, how, and every difference between platforms. Nothing else sets a socket option.
//!
//! The order of acts for a new address (`reserve`, then `listen`) is what makes a swap lossless and a refusal traceless:
//! a TCP socket with `SO_REUSEPORT` takes nothing before `listen`, so a prepared address can be let go without a
//! client having seen it. A taken address is found by a probe *without* `SO_REUSEPORT`, because with it a second
//! process of the same user could bind beside us and silently get half of the connections.

pub mod copy;
pub mod datagram;
#[cfg(unix)]
mod descriptors;
mod h2_stream;
mod listening;
mod owned;
pub mod proxy_protocol;
mod retire;
mod sever;
#[cfg(target_os = "linux")]
pub mod splice;
#[cfg(unix)]
pub mod unix;
pub mod websocket;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::scalar::ListenAddr;

#[cfg(unix)]
pub use descriptors::Ceiling;
pub use h2_stream::{H2Stream, Sending};
pub use listening::{Listener, Listening, Opened, Peer, Registered, Reservation, Stream};
pub use owned::Owned;
pub use retire::{Shutter, accept_queued};
pub use sever::{Sever, SeverOnDrop};

/// What a socket carries: the same address may be bound for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    #[default]
    Stream,
    Datagram,
}

impl Transport {
    /// An address as operators see it: one of datagrams must not be taken for that of streams.
    pub fn show(self, address: &ListenAddr) -> String {
        match self {
            Transport::Stream => address.to_string(),
            Transport::Datagram => format!("udp://{address}"),
        }
    }
}

/// Length of each accept queue; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Why an address cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("address {0} is in use")]
    InUse(SocketAddr),
    #[error("address {0} does not exist on this machine")]
    NotHere(SocketAddr),
    #[error("no permission to bind {0}")]
    Forbidden(SocketAddr),
    #[error("binding {0} failed: {1}")]
    Other(SocketAddr, io::Error),
}

impl BindError {
    fn new(address: SocketAddr, error: io::Error) -> BindError {
        match error.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse(address),
            io::ErrorKind::AddrNotAvailable => BindError::NotHere(address),
            io::ErrorKind::PermissionDenied => BindError::Forbidden(address),
            _ => BindError::Other(address, error),
        }
    }

    /// What an operator can do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            BindError::InUse(a) => Some(format!(
                "see who holds it with `ss -ltunp 'sport = :{}'`, or choose another port",
                a.port()
            )),
            BindError::NotHere(_) => Some("see the machine's addresses with `ip addr`".into()),
            BindError::Forbidden(a) if a.port() < 1024 => {
                Some("ports below 1024 need root or CAP_NET_BIND_SERVICE".into())
            }
            _ => None,
        }
    }
}

/// Whether several sockets of one address share its connections evenly (`SO_REUSEPORT` on Linux). Elsewhere, or when
/// `EVERGATE_ONE_SOCKET=1` asks for it, an address has one socket that all workers accept from.
pub fn balances() -> bool {
    cfg!(any(target_os = "linux", target_os = "android"))
        && std::env::var_os("EVERGATE_ONE_SOCKET").is_none_or(|v| v != "1")
}

/// An address that is ours and takes nothing yet: bound, not listening. Dropping it lets go without a trace.
#[derive(Debug)]
pub struct Reserved {
    address: SocketAddr,
    sockets: Vec<Socket>,
}

/// Probes and reserves `address` with `count` sockets of one group. Port 0 gets a free one, the same for all.
///
/// `owned` are the addresses this process has already: where one overlaps, the probe would find ourselves, so a
/// stranger is looked for in the kernel's socket list instead.
///
/// # Errors
/// [`BindError`]; nothing stays bound.
pub fn reserve(address: SocketAddr, count: usize, owned: &Owned) -> Result<Reserved, BindError> {
    if address.port() != 0 {
        if owned.overlaps(address) {
            if owned.stranger_on(address) {
                return Err(BindError::InUse(address));
            }
        } else {
            probe(address)?;
        }
    }
    let first = match bind(address, false) {
        Ok(socket) => socket,
        // The rest of a server that had SO_REUSEADDR: its TIME_WAIT is passed only with both options (the probe has
        // shown that nobody listens).
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            bind(address, true).map_err(|e| BindError::new(address, e))?
        }
        Err(error) => return Err(BindError::new(address, error)),
    };
    let bound = first
        .local_addr()
        .and_then(|a| {
            a.as_socket()
                .ok_or_else(|| io::ErrorKind::InvalidData.into())
        })
        .map_err(|e| BindError::new(address, e))?;
    let reuse_address = first.reuse_address().unwrap_or(false);
    let mut sockets = vec![first];
    while sockets.len() < count {
        sockets.push(bind(bound, reuse_address).map_err(|e| BindError::new(bound, e))?);
    }
    Ok(Reserved {
        address: bound,
        sockets,
    })
}

impl Reserved {
    /// The address as bound: a port 0 has become a number.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to take connections: the last act of a swap that can fail.
    ///
    /// # Errors
    /// [`BindError::InUse`] when a stranger took the address since; all of it is let go.
    pub fn listen(self) -> Result<Vec<TcpListener>, BindError> {
        for socket in &self.sockets {
            socket
                .listen(BACKLOG)
                .map_err(|e| BindError::new(self.address, e))?;
        }
        for socket in &self.sockets {
            // After `listen`, so that a stranger with SO_REUSEADDR could not slip in before; now it lets our next
            // start pass what this one leaves in TIME_WAIT. Its failure costs only that.
            if let Err(error) = socket.set_reuse_address(true) {
                tracing::debug!(%error, "SO_REUSEADDR after listen");
            }
        }
        Ok(self.sockets.into_iter().map(TcpListener::from).collect())
    }
}

/// Binds one plain socket (no group) without listening: the admin address.
///
/// # Errors
/// [`BindError`].
pub fn reserve_single(address: SocketAddr) -> Result<Reserved, BindError> {
    let socket = open(address).and_then(|s| {
        reuse_time_wait(&s)?;
        s.bind(&address.into())?;
        Ok(s)
    });
    let socket = socket.map_err(|e| BindError::new(address, e))?;
    let bound = socket
        .local_addr()
        .ok()
        .and_then(|a| a.as_socket())
        .unwrap_or(address);
    Ok(Reserved {
        address: bound,
        sockets: vec![socket],
    })
}

fn probe(address: SocketAddr) -> Result<(), BindError> {
    let tried = open(address).and_then(|socket| {
        reuse_time_wait(&socket)?;
        socket.bind(&address.into())
    });
    tried.map_err(|e| BindError::new(address, e))
}

fn bind(address: SocketAddr, reuse_address: bool) -> io::Result<Socket> {
    let socket = open(address)?;
    reuse_port(&socket)?;
    // Every accepted socket inherits it: one call for the address instead of one for each connection.
    socket.set_tcp_nodelay(true)?;
    if reuse_address {
        reuse_time_wait(&socket)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// On Unix `SO_REUSEADDR` passes TIME_WAIT; on Windows it would let anybody seize the port, so it is never set there.
#[cfg(unix)]
fn reuse_time_wait(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}
#[cfg(not(unix))]
fn reuse_time_wait(_: &Socket) -> io::Result<()> {
    Ok(())
}

/// Lets the kernel find out that the other end of a connection which many share is gone: silent for long, or deaf to
/// what was sent.
///
/// # Errors
/// Those of the system; the connection is as good as before.
pub fn watch_peer(stream: &tokio::net::TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    let probes = socket2::TcpKeepalive::new()
        .with_time(PEER_SILENT)
        .with_interval(PEER_PROBES);
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(PEER_DEAF))?;
    Ok(())
}

const PEER_SILENT: Duration = Duration::from_secs(20);
const PEER_PROBES: Duration = Duration::from_secs(5);
#[cfg(target_os = "linux")]
const PEER_DEAF: Duration = Duration::from_secs(30);

/// A group only where groups balance; one socket needs no option.
#[cfg(unix)]
fn reuse_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}
#[cfg(not(unix))]
fn reuse_port(_: &Socket) -> io::Result<()> {
    Ok(())
}

/// Raises the soft descriptor limit to the hard one and returns it; `None` where there is none to ask.
pub fn raise_descriptor_limit() -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => limit.maximum,
            Err(_) => limit.current,
        }
    }
    #[cfg(not(unix))]
    None
}

/// Open descriptors of this process, without the one this look costs.
pub fn open_descriptors() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        Some(
            std::fs::read_dir("/proc/self/fd")
                .ok()?
                .count()
                .saturating_sub(1) as u64,
        )
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Resident memory of this process in bytes.
pub fn resident_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        // Not `statm`, which counts pages: rustix looks their size up where valgrind has nothing, and faults there.
        let text = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        let kilobytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
        Some(kilobytes * 1024)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn local() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn a_group_shares_one_free_port() {
        let reserved = reserve(local(), 3, &Owned::default()).unwrap();
        let address = reserved.address();
        let listeners = reserved.listen().unwrap();
        assert_eq!(listeners.len(), 3);
        assert!(listeners.iter().all(|l| l.local_addr().unwrap() == address));
    }

    #[test]
    fn a_reserved_address_takes_nothing_and_is_let_go_by_drop() {
        let reserved = reserve(local(), 2, &Owned::default()).unwrap();
        let address = reserved.address();
        assert!(std::net::TcpStream::connect(address).is_err());
        drop(reserved);
        reserve(address, 1, &Owned::default()).unwrap();
    }

    #[test]
    fn a_stranger_is_found_with_and_without_reuse_port() {
        let plain = TcpListener::bind(local()).unwrap();
        let address = plain.local_addr().unwrap();
        assert!(matches!(
            reserve(address, 1, &Owned::default()),
            Err(BindError::InUse(_))
        ));
        let twin = reserve(local(), 1, &Owned::default()).unwrap();
        let address = twin.address();
        assert!(
            matches!(
                reserve(address, 1, &Owned::default()),
                Err(BindError::InUse(_))
            ),
            "only reserved"
        );
        let _listening = twin.listen().unwrap();
        assert!(
            matches!(
                reserve(address, 1, &Owned::default()),
                Err(BindError::InUse(_))
            ),
            "listening"
        );
    }

    #[test]
    fn a_specific_address_beside_our_wildcard_is_ours_to_take_but_not_beside_a_strangers() {
        let wild = reserve("0.0.0.0:0".parse().unwrap(), 2, &Owned::default()).unwrap();
        let port = wild.address().port();
        let listeners = wild.listen().unwrap();
        let specific: SocketAddr = ([127, 0, 0, 1], port).into();
        let mut owned = Owned::default();
        assert!(matches!(
            reserve(specific, 1, &owned),
            Err(BindError::InUse(_))
        ));
        owned.add(listeners[0].local_addr().unwrap(), &listeners);
        reserve(specific, 1, &owned).unwrap().listen().unwrap();
        // A stranger in the same group (same user, SO_REUSEPORT) is seen in the kernel's list.
        let stranger = bind(([0, 0, 0, 0], port).into(), false).unwrap();
        stranger.listen(1).unwrap();
        if cfg!(target_os = "linux") {
            assert!(matches!(
                reserve(specific, 1, &owned),
                Err(BindError::InUse(_))
            ));
        }
    }

    #[test]
    fn time_wait_of_an_earlier_listener_does_not_block() {
        use std::io::Read;
        let listener = TcpListener::bind(local()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = std::net::TcpStream::connect(address).unwrap();
        drop(listener.accept().unwrap().0); // the server closes first: TIME_WAIT is here
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        drop((client, listener));
        reserve(address, 2, &Owned::default())
            .unwrap()
            .listen()
            .unwrap();
    }
}
