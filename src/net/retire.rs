//! How an address is let go without losing who is on the way: new handshakes are shut out first, then the queue is
//! accepted until it is empty, then the sockets close. Closing a listener resets its queue, so the order is all.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

/// A listener that takes no new handshakes while those under way still end well.
#[derive(Debug)]
pub struct Shutter(());

impl Shutter {
    /// Drops every bare SYN that reaches `listener` (a classic BPF filter of five instructions): a client then waits
    /// and tries again, and is refused once the socket is closed, instead of being admitted and reset.
    ///
    /// # Errors
    /// Where the system or our rights do not allow it (Linux: CAP_NET_ADMIN); the address can still be drained, but a
    /// client that completes its handshake between the last accept and the close is reset.
    pub fn close(listener: &TcpListener) -> io::Result<Shutter> {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            use socket2::{SockFilter, SockRef};
            const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
            const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
            const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
            const RETURN: u16 = 0x06; // BPF_RET | BPF_K
            const FLAGS: u32 = 13; // offset in the TCP header
            const SYN: u32 = 0x02;
            const SYN_ACK: u32 = 0x12;
            SockRef::from(listener).attach_filter(&[
                SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
                SockFilter::new(AND, 0, 0, SYN_ACK),
                SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
                SockFilter::new(RETURN, 0, 0, 0),
                SockFilter::new(RETURN, 0, 0, u32::MAX),
            ])?;
            Ok(Shutter(()))
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            let _ = listener;
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

/// The next queued connection, `None` when the queue is empty now. A connection that was reset while it waited is
/// skipped.
pub fn accept_queued(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                #[cfg(any(target_os = "linux", target_os = "android"))]
                // An accepted socket inherits the shutter; it never sees a bare SYN, so a failure costs nothing.
                if let Err(error) = socket2::SockRef::from(&stream).detach_filter() {
                    tracing::trace!(%error, "no filter to detach");
                }
                return Ok(Some((stream, peer)));
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(None),
                io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::net::{Owned, reserve};
    use std::io::{Read, Write};

    #[test]
    fn what_is_queued_is_served_and_later_ones_are_refused() {
        let reserved = reserve("127.0.0.1:0".parse().unwrap(), 2, &Owned::default()).unwrap();
        let address = reserved.address();
        let listeners = reserved.listen().unwrap();
        let mut clients: Vec<TcpStream> = (0..50)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        if listeners.iter().any(|l| Shutter::close(l).is_err()) {
            return; // no right to: the case is covered where there is
        }
        let mut served = 0;
        for listener in &listeners {
            while let Some((mut stream, _)) = accept_queued(listener).unwrap() {
                stream.write_all(b"x").unwrap();
                served += 1;
            }
        }
        drop(listeners);
        assert_eq!(served, 50);
        for client in &mut clients {
            let mut byte = [0; 1];
            client.read_exact(&mut byte).unwrap();
        }
        assert!(TcpStream::connect(address).is_err());
    }
}
