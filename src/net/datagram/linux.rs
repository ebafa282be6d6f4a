//! What Linux does more: it takes a batch of datagrams in one call, cuts several out of one piece, and tells which of our
//! addresses a datagram came to. An answer must come from there, or its reader drops it; left to itself the kernel takes the
//! address by which it leaves.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;

use nix::cmsg_space;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrStorage,
    recvmmsg, sendmsg, setsockopt, sockopt,
};
use socket2::Socket;
use tokio::net::UdpSocket;

use super::Way;
use super::room::{BATCH, Came, SLOT};
use super::send::To;

/// Asks for the address that a datagram came to, before anything comes.
pub(super) fn enable(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

/// What the kernel says of a datagram besides its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said {
    pub(super) v6: bool,
    /// It was [asked](enable) for the address of ours.
    pub(super) local: bool,
}

/// Where it says that, for a batch. It leaves behind how long each part was, as the room for the next, so that sockets of
/// which it says different things must not share one.
#[derive(Default)]
pub(super) struct Headers([Option<MultiHeaders<SockaddrStorage>>; 4]);

/// Takes up to `most` datagrams, each into a slot of its own, and returns how many. Fewer: there are no more.
pub(super) fn receive(
    socket: &UdpSocket,
    said: Said,
    headers: &mut Headers,
    (slots, most): (&mut [u8], usize),
    came: &mut Vec<Came>,
) -> io::Result<usize> {
    let index = usize::from(said.v6) + 2 * usize::from(said.local);
    let Some(place) = headers.0.get_mut(index) else {
        return Ok(0);
    };
    let (mut count, mut whole) = (0, true);
    {
        let headers = place.get_or_insert_with(|| {
            let space = said.local.then(|| cmsg_space!(in6_pktinfo));
            MultiHeaders::preallocate(BATCH, space)
        });
        let mut slots = slots.chunks_mut(SLOT).take(most);
        let mut parts: [[IoSliceMut<'_>; 1]; BATCH] =
            std::array::from_fn(|_| [IoSliceMut::new(slots.next().unwrap_or_default())]);
        let parts = parts.iter_mut().take(most);
        let flags = MsgFlags::MSG_DONTWAIT;
        for message in recvmmsg(socket.as_raw_fd(), headers, parts, flags, None)? {
            let way = way(&message).filter(|way| way.local.is_some() == said.local);
            whole &= way.is_some();
            count += 1;
            came.push(Came {
                size: message.bytes,
                way,
            });
        }
    }
    if !whole {
        *place = None;
    }
    Ok(count)
}

fn way(message: &RecvMsg<'_, '_, SockaddrStorage>) -> Option<Way> {
    let from = message.address?;
    let v4 = from.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
    let v6 = || from.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into()));
    let local = message.cmsgs().ok()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            let ip = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr));
            Some(IpAddr::V4(ip))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
        }
        _ => None,
    });
    Some(Way {
        client: v4.or_else(v6)?,
        local,
    })
}

/// Sends one piece; with `cut` it leaves as datagrams of so many bytes, the last of what is left.
pub(super) fn send(
    socket: &UdpSocket,
    parts: &[IoSlice<'_>],
    to: To,
    cut: Option<u16>,
) -> io::Result<()> {
    let cut = cut.as_ref().map(ControlMessage::UdpGsoSegments);
    let (v4, v6);
    let from = match to.local {
        Some(IpAddr::V4(ip)) => {
            v4 = in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr {
                    s_addr: u32::from(ip).to_be(),
                },
                ipi_addr: in_addr { s_addr: 0 },
            };
            Some(ControlMessage::Ipv4PacketInfo(&v4))
        }
        Some(IpAddr::V6(ip)) => {
            v6 = in6_pktinfo {
                ipi6_addr: in6_addr {
                    s6_addr: ip.octets(),
                },
                ipi6_ifindex: 0,
            };
            Some(ControlMessage::Ipv6PacketInfo(&v6))
        }
        None => None,
    };
    let to = to.client.map(SockaddrStorage::from);
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    let send = |messages: &[ControlMessage<'_>]| sendmsg(fd, parts, messages, flags, to.as_ref());
    match (from, cut) {
        (None, None) => send(&[]),
        (Some(from), None) => send(&[from]),
        (None, Some(cut)) => send(&[cut]),
        (Some(from), Some(cut)) => send(&[from, cut]),
    }?;
    Ok(())
}

/// Whether this kernel cuts (Linux 4.18): an older one would send it all as one datagram.
pub(super) fn cuts(socket: &impl AsFd) -> bool {
    static CUTS: OnceLock<bool> = OnceLock::new();
    *CUTS.get_or_init(|| setsockopt(&socket.as_fd(), sockopt::UdpGsoSegment, &0).is_ok())
}
