//! On a socket of all addresses: which of ours a datagram came to. An answer must come from there, or its reader drops it;
//! left to itself the kernel takes the address by which it leaves.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::Socket;
use tokio::net::UdpSocket;

use super::Way;

/// Asks for it, before anything comes.
pub(super) fn enable(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Way)> {
    let mut space = cmsg_space!(in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let fd = socket.as_raw_fd();
    let flags = MsgFlags::MSG_DONTWAIT;
    let came = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), flags)?;
    let from = came.address.and_then(|from| {
        let v4 = from.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
        v4.or_else(|| from.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
    });
    let local = came.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            let ip = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr));
            Some(IpAddr::V4(ip))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
        }
        _ => None,
    });
    let client = from.ok_or(io::ErrorKind::InvalidData)?;
    Ok((came.bytes, Way { client, local }))
}

pub(super) fn send(
    socket: &UdpSocket,
    data: &[u8],
    to: SocketAddr,
    from: IpAddr,
) -> io::Result<()> {
    let (v4, v6);
    let from = match from {
        IpAddr::V4(ip) => {
            v4 = in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr {
                    s_addr: u32::from(ip).to_be(),
                },
                ipi_addr: in_addr { s_addr: 0 },
            };
            ControlMessage::Ipv4PacketInfo(&v4)
        }
        IpAddr::V6(ip) => {
            v6 = in6_pktinfo {
                ipi6_addr: in6_addr {
                    s6_addr: ip.octets(),
                },
                ipi6_ifindex: 0,
            };
            ControlMessage::Ipv6PacketInfo(&v6)
        }
    };
    let (parts, to) = ([IoSlice::new(data)], SockaddrStorage::from(to));
    let fd = socket.as_raw_fd();
    sendmsg(fd, &parts, &[from], MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}
