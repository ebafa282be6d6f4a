//! Which listening sockets are ours, and whether a stranger shares an address with them. Where one of our own sockets
//! overlaps a new address, a probe by bind would find ourselves: then the kernel's socket list is read instead.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, TcpListener};

use crate::config::scalar::conflict;

/// The addresses of this process, and the sockets that listen on them.
#[derive(Debug, Default)]
pub struct Owned {
    addresses: Vec<SocketAddr>,
    inodes: HashSet<u64>,
}

impl Owned {
    pub fn add<'a>(
        &mut self,
        address: SocketAddr,
        sockets: impl IntoIterator<Item = &'a TcpListener>,
    ) {
        self.addresses.push(address);
        self.inodes.extend(sockets.into_iter().filter_map(inode));
    }

    /// An address that this process has reserved and does not listen on yet: no stranger, though in no list.
    pub fn reserved(&mut self, address: SocketAddr) {
        self.addresses.push(address);
    }

    /// True when a socket of ours would conflict with a bind of `address` that does not share.
    pub(super) fn overlaps(&self, address: SocketAddr) -> bool {
        self.addresses.iter().any(|&ours| conflict(ours, address))
    }

    /// True when a socket that is not ours listens where `address` would. Without a readable list: false.
    pub(super) fn stranger_on(&self, address: SocketAddr) -> bool {
        listening()
            .into_iter()
            .any(|(other, inode)| conflict(other, address) && !self.inodes.contains(&inode))
    }
}

#[cfg(unix)]
fn inode(socket: &TcpListener) -> Option<u64> {
    rustix::fs::fstat(socket).ok().map(|stat| stat.st_ino)
}
#[cfg(not(unix))]
fn inode(_: &TcpListener) -> Option<u64> {
    None
}

/// Every listening TCP socket of this network namespace with its inode (Linux: `/proc/net/tcp`, `tcp6`).
fn listening() -> Vec<(SocketAddr, u64)> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    if !cfg!(target_os = "linux") {
        return Vec::new();
    }
    let (v4, v6) = (read("/proc/net/tcp"), read("/proc/net/tcp6"));
    v4.lines()
        .chain(v6.lines())
        .filter_map(parse_line)
        .collect()
}

/// One line of `/proc/net/tcp`: `sl local remote st tx:rx tr:when retrnsmt uid timeout inode …`; state 0A listens.
fn parse_line(line: &str) -> Option<(SocketAddr, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    if state != "0A" {
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
            parse_line(line),
            Some(("127.0.0.1:8080".parse().unwrap(), 12345))
        );
        let v6 = "   1: 00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 77 1";
        assert_eq!(parse_line(v6), Some(("[::1]:8081".parse().unwrap(), 77)));
        assert_eq!(parse_line(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(parse_line("  sl  local_address rem_address   st"), None);
    }
}
