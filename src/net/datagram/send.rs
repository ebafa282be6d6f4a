//! Several datagrams to one receiver. Where they are of one size, and the system cuts (`UDP_SEGMENT` of Linux), they pass
//! through it as one piece, which costs a fraction; else one by one.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use socket2::SockRef;
use tokio::net::UdpSocket;

use super::is_too_long;
use super::room::BATCH;

/// Bytes of a piece that is cut, at most; with its headers it must fit into a packet of 65,535.
#[cfg(target_os = "linux")]
const PIECE: usize = 65_000;
/// `EIO` of Linux.
const IO_ERROR: i32 = 5;

/// Not all have left.
#[derive(Debug)]
pub struct Stopped {
    /// How many left before.
    pub left: usize,
    /// Why the next one did not. [`is_refusal`](super::is_refusal): because of an earlier one.
    pub error: io::Error,
}

/// Where datagrams go.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct To {
    /// `None`: where the socket is connected to.
    pub(super) client: Option<SocketAddr>,
    /// The address of ours that they come from; `None`: the socket has one.
    pub(super) local: Option<IpAddr>,
}

/// Up to which size the system cuts datagrams for a socket.
#[derive(Debug)]
pub(super) struct Cutting(AtomicUsize);

impl Cutting {
    pub(super) fn of(socket: &UdpSocket) -> Cutting {
        #[cfg(target_os = "linux")]
        let most = if super::linux::cuts(socket) { PIECE } else { 0 };
        #[cfg(not(target_os = "linux"))]
        let most = {
            let _ = socket;
            0
        };
        Cutting(AtomicUsize::new(most))
    }

    /// How many of the first of `data` go together, and the size of each with what stands before it; only the last may be
    /// shorter. At least one.
    fn together(&self, head: usize, data: &[&[u8]]) -> (usize, usize) {
        let size = head + data.first().map_or(0, |first| first.len());
        let most = self.0.load(Ordering::Relaxed);
        if size == 0 || size > most {
            return (1, size);
        }
        let most = (most / size).min(BATCH);
        let sizes = data.iter().map(|data| head + data.len());
        let equal = sizes.clone().take(most).take_while(|s| *s == size).count();
        let last = sizes.skip(equal).take(1).filter(|s| (1..size).contains(s));
        let last = if equal < most { last.count() } else { 0 };
        (equal + last, size)
    }

    /// Whether datagrams of this size may leave one by one that did not together; then it cuts no more like them.
    fn failed(&self, size: usize, error: &io::Error) -> bool {
        let most = match error.kind() {
            // Too long for the way: shorter ones may be cut.
            io::ErrorKind::InvalidInput => size.saturating_sub(1),
            _ if is_too_long(error) => size.saturating_sub(1),
            // The device cannot do it.
            _ if error.raw_os_error() == Some(IO_ERROR) => 0,
            _ => return false,
        };
        self.0.fetch_min(most, Ordering::Relaxed);
        true
    }
}

/// Sends all of `data`, with `head` before each.
pub(super) fn all(
    (socket, cutting): (&UdpSocket, &Cutting),
    to: To,
    head: &[u8],
    data: &[&[u8]],
) -> Result<(), Stopped> {
    let (mut left, mut again) = (0, false);
    while let Some(rest) = data.get(left..).filter(|rest| !rest.is_empty()) {
        let (count, size) = cutting.together(head.len(), rest);
        let mut parts = [IoSlice::new(&[]); 2 * BATCH];
        let together = rest.get(..count).unwrap_or_default();
        let pieces = together.iter().flat_map(|data| [head, data]);
        let pieces = pieces.filter(|piece| !piece.is_empty());
        let mut used = 0;
        for (part, piece) in parts.iter_mut().zip(pieces) {
            *part = IoSlice::new(piece);
            used += 1;
        }
        let parts = parts.get(..used).unwrap_or_default();
        let cut = (count > 1).then(|| u16::try_from(size).unwrap_or(u16::MAX));
        match send(socket, parts, to, cut) {
            Ok(()) => (left, again) = (left + count, false),
            Err(error) if cut.is_some() && cutting.failed(size, &error) => {}
            // Of an earlier one: each is told once.
            Err(error) if is_too_long(&error) && !again => again = true,
            Err(error) => return Err(Stopped { left, error }),
        }
    }
    Ok(())
}

/// Past the runtime, which does not know yet that a socket just made can be written.
fn send(socket: &UdpSocket, parts: &[IoSlice<'_>], to: To, cut: Option<u16>) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if cut.is_some() || to.local.is_some() {
        return super::linux::send(socket, parts, to, cut);
    }
    let _ = cut;
    let socket = SockRef::from(socket);
    match to.client {
        Some(client) => socket.send_to_vectored(parts, &client.into()),
        None => socket.send_vectored(parts),
    }?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn those_of_one_size_go_together_and_a_shorter_one_ends_them() {
        let cutting = Cutting(AtomicUsize::new(1000));
        let of = |sizes: &[usize], head: usize| {
            let bytes = [0; 2000];
            let data: Vec<&[u8]> = sizes.iter().map(|size| &bytes[..*size]).collect();
            cutting.together(head, &data)
        };
        assert_eq!(of(&[100, 100, 100], 0), (3, 100));
        assert_eq!(of(&[100, 100, 50, 50], 0), (3, 100));
        assert_eq!(of(&[100, 101], 0), (1, 100));
        // Nothing would be left of it.
        assert_eq!(of(&[100, 100, 0], 0), (2, 100));
        assert_eq!(of(&[100, 100, 0], 10), (3, 110));
        assert_eq!(of(&[0, 0], 0), (1, 0));
        assert_eq!(of(&[0, 0], 10), (2, 10));
        // No piece is larger than it may be, nor is a batch.
        assert_eq!(of(&[300, 300, 300, 300], 0), (3, 300));
        assert_eq!(of(&[300, 300, 300, 100], 0), (3, 300));
        assert_eq!(of(&[1001, 1001], 0), (1, 1001));
        assert_eq!(of(&[1; BATCH + 1], 0), (BATCH, 1));
        assert!(cutting.failed(300, &io::ErrorKind::InvalidInput.into()));
        assert_eq!(of(&[300, 300], 0), (1, 300));
        assert_eq!(of(&[149, 149], 0), (2, 149));
        assert!(!cutting.failed(149, &io::ErrorKind::WouldBlock.into()));
        assert_eq!(of(&[149, 149], 0), (2, 149));
        assert!(cutting.failed(149, &io::Error::from_raw_os_error(IO_ERROR)));
        assert_eq!(of(&[1, 1], 0), (1, 1));
    }
}
