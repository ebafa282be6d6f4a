//! Which bound sockets are ours, and whether a stranger shares an address with them. Where one of our own sockets
//! overlaps a new address, a probe by bind would find ourselves: then the kernel's socket list is read instead.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use socket2::SockRef;

use super::Transport;
use crate::config::scalar::conflict;

/// The addresses of this process for one transport, and the sockets that are bound to them.
#[derive(Debug, Default)]
pub struct Owned {
    transport: Transport,
    addresses: Vec<SocketAddr>,
    inodes: HashSet<u64>,
}

impl Owned {
    /// None yet.
    pub fn of(transport: Transport) -> Owned {
        Owned {
            transport,
            ..Owned::default()
        }
    }

    pub fn add<'a, S: 'a>(&mut self, address: SocketAddr, sockets: impl IntoIterator<Item = &'a S>)
    where
        SockRef<'a>: From<&'a S>,
    {
        self.addresses.push(address);
        let sockets = sockets.into_iter().map(SockRef::from);
        self.inodes.extend(sockets.filter_map(|s| inode(&s)));
    }

    /// An address that this process has reserved and does not take anything from yet: no stranger, though in no list.
    pub fn reserved(&mut self, address: SocketAddr) {
        self.addresses.push(address);
    }

    /// True when a socket of ours would conflict with a bind of `address` that does not share.
    pub(super) fn overlaps(&self, address: SocketAddr) -> bool {
        self.addresses.iter().any(|&ours| conflict(ours, address))
    }

    /// True when a socket that is not ours is bound where `address` would. Without a readable list: false.
    pub(super) fn stranger_on(&self, address: SocketAddr) -> bool {
        taken(self.transport)
            .into_iter()
            .any(|(other, inode)| conflict(other, address) && !self.inodes.contains(&inode))
    }
}

#[cfg(unix)]
fn inode(socket: &SockRef<'_>) -> Option<u64> {
    rustix::fs::fstat(&**socket).ok().map(|stat| stat.st_ino)
}
#[cfg(not(unix))]
fn inode(_: &SockRef<'_>) -> Option<u64> {
    None
}

/// Every listening TCP socket, or bound UDP socket without a peer, of this network namespace with its inode (Linux:
/// `/proc/net/tcp`, `tcp6`, `udp`, `udp6`).
fn taken(transport: Transport) -> Vec<(SocketAddr, u64)> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    if !cfg!(target_os = "linux") {
        return Vec::new();
    }
    let (v4, v6, state) = match transport {
        Transport::Stream => ("/proc/net/tcp", "/proc/net/tcp6", "0A"),
        Transport::Datagram => ("/proc/net/udp", "/proc/net/udp6", "07"),
    };
    let (v4, v6) = (read(v4), read(v6));
    v4.lines()
        .chain(v6.lines())
        .filter_map(|line| parse_line(line, state))
        .collect()
}

/// One line of `/proc/net/tcp`: `sl local remote st tx:rx tr:when retrnsmt uid timeout inode …`; in state 0A TCP listens, in
/// 07 UDP has no peer.
fn parse_line(line: &str, wanted: &str) -> Option<(SocketAddr, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    if state != wanted {
        return None;
    }
    let (ip, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Each 32-bit word is printed as the machine reads it.
    let mut bytes = Vec::with_capacity(16);
    for word in ip.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let ip: IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        16 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    Some((SocketAddr::new(ip, port), inode))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_line_of_the_kernels_list_is_read() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0 0 10 0";
        assert_eq!(
            parse_line(line, "0A"),
            Some(("127.0.0.1:8080".parse().unwrap(), 12345))
        );
        let v6 = "   1: 00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 77 1";
        assert_eq!(
            parse_line(v6, "0A"),
            Some(("[::1]:8081".parse().unwrap(), 77))
        );
        assert_eq!(parse_line(&line.replace(" 0A ", " 01 "), "0A"), None);
        assert_eq!(
            parse_line("  sl  local_address rem_address   st", "0A"),
            None
        );
    }
}
