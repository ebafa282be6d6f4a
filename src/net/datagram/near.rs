//! A bound socket, towards clients: it hears all of them, and answers each from the address that it has sent to.

use std::io;
use std::net::SocketAddr;

use tokio::io::Interest;
use tokio::net::UdpSocket;

#[cfg(target_os = "linux")]
use super::linux::Said;
use super::room::Expected;
use super::send::{self, Cutting, Stopped, To};
use super::{Room, Way};

/// The socket.
#[derive(Debug)]
pub struct Near {
    socket: UdpSocket,
    bound: SocketAddr,
    #[cfg(target_os = "linux")]
    said: Said,
    expected: Expected,
    cutting: Cutting,
}

impl Near {
    pub fn new(socket: UdpSocket) -> Near {
        let bound = socket.local_addr();
        Near {
            #[cfg(target_os = "linux")]
            said: Said {
                v6: bound.as_ref().is_ok_and(SocketAddr::is_ipv6),
                local: bound.as_ref().is_ok_and(|b| b.ip().is_unspecified()),
            },
            bound: bound.unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0))),
            expected: Expected::new(),
            cutting: Cutting::of(&socket),
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

    /// Takes what has come; true if there may be more.
    ///
    /// # Errors
    /// Those of the system; nothing is in the room then.
    pub fn receive(&self, room: &mut Room) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        let kind = self.said;
        #[cfg(not(target_os = "linux"))]
        let kind = false;
        room.fill(&self.socket, (kind, &self.expected), Interest::READABLE)
    }

    /// The address of ours that a client has sent to; the one that is bound, where the system does not say more.
    pub fn local(&self, way: Way) -> SocketAddr {
        let ip = way.local.unwrap_or_else(|| self.bound.ip());
        SocketAddr::new(ip, self.bound.port())
    }

    /// Answers a client.
    ///
    /// # Errors
    /// Those of the system, at the first that has not left.
    pub fn send(&self, data: &[&[u8]], way: Way) -> Result<(), Stopped> {
        let to = To {
            client: Some(way.client),
            local: way.local,
        };
        send::all((&self.socket, &self.cutting), to, &[], data)
    }
}
