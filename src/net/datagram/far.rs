//! A socket of our own towards one receiver alone: it hears nobody else, and is told where nobody listens there.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Room;
#[cfg(target_os = "linux")]
use super::linux::Said;
use super::room::Expected;
use super::send::{self, Cutting, Stopped, To};

/// The socket.
#[derive(Debug)]
pub struct Far {
    socket: UdpSocket,
    #[cfg(target_os = "linux")]
    said: Said,
    expected: Expected,
    cutting: Cutting,
}

impl Far {
    /// `from`: the address of ours to send from, if it is of the same family; else the system chooses.
    ///
    /// # Errors
    /// Those of the system: no descriptor, no port, no route.
    pub fn connect(target: SocketAddr, from: Option<IpAddr>) -> io::Result<Far> {
        let socket = super::open(target)?;
        if let Some(from) = from.filter(|from| from.is_ipv4() == target.is_ipv4()) {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.connect(&target.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Far {
            #[cfg(target_os = "linux")]
            said: Said {
                v6: target.is_ipv6(),
                local: false,
            },
            expected: Expected::new(),
            cutting: Cutting::of(&socket),
            socket,
        })
    }

    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Waits until something has come: a datagram, or word of what became of one that was sent. Cancel-safe.
    ///
    /// # Errors
    /// Those of the runtime, which ends.
    pub async fn heard(&self) -> io::Result<()> {
        // Such word alone does not make it readable.
        let heard = Interest::READABLE.add(Interest::ERROR);
        self.socket.ready(heard).await.map(|_| ())
    }

    /// Takes what has come; true if there may be more.
    ///
    /// # Errors
    /// Those of the system, and what became of a datagram that was sent ([`is_refusal`](super::is_refusal)); nothing is in
    /// the room then.
    pub fn receive(&self, room: &mut Room) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        let kind = self.said;
        #[cfg(not(target_os = "linux"))]
        let kind = true;
        // The runtime knows the two apart, and takes no sum of them here.
        let more = room.fill(&self.socket, (kind, &self.expected), Interest::READABLE)?;
        if more || !room.is_empty() {
            return Ok(more);
        }
        room.fill(&self.socket, (kind, &self.expected), Interest::ERROR)
    }

    /// Sends `data`, with `head` before each.
    ///
    /// # Errors
    /// Those of the system, at the first that has not left; also what became of an earlier one
    /// ([`is_refusal`](super::is_refusal)).
    pub fn send(&self, head: &[u8], data: &[&[u8]]) -> Result<(), Stopped> {
        send::all((&self.socket, &self.cutting), To::default(), head, data)
    }
}
