//! Datagrams in a stream: each is a capsule of type DATAGRAM (RFC 9297 section 3.5) with context 0 in front of what was
//! sent, as RFC 9298 section 5 has it. What cannot be sent at once waits in a short queue, and what does not fit there is
//! dropped and counted: datagrams that are late are worth less than those that come after them, and nothing waits for them.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::carrier::{broken, send_all};
use crate::net::datagram::{is_refusal, is_too_long};

/// Datagrams and bytes that wait.
const QUEUE: usize = 64;
const QUEUE_BYTES: usize = 128 * 1024;
/// The largest that UDP has, and its context.
const LARGEST: usize = 65_528;

/// A datagram as a capsule.
pub fn encode(datagram: &[u8]) -> Bytes {
    let length = datagram.len() + 1;
    let mut out = BytesMut::with_capacity(length + 6);
    out.put_u8(0);
    match length {
        0..=63 => out.put_u8(u8::try_from(length).unwrap_or(0)),
        64..=16_383 => out.put_u16(0x4000 | u16::try_from(length).unwrap_or(0)),
        _ => out.put_u32(0x8000_0000 | u32::try_from(length).unwrap_or(0)),
    }
    out.put_u8(0);
    out.put_slice(datagram);
    out.freeze()
}

/// A variable-length integer (RFC 9000 section 16), and how many bytes it has.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let size = 1usize << (first >> 6);
    let whole = bytes.get(..size)?;
    let rest = whole[1..].iter();
    let value = rest.fold(u64::from(first & 0x3f), |n, byte| n << 8 | u64::from(*byte));
    Some((value, size))
}

/// Takes the next datagram off what came; capsules and contexts that are not known are skipped.
///
/// # Errors
/// When a capsule is too large.
pub fn take(buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
    loop {
        let Some((kind, one)) = varint(buffer) else {
            return Ok(None);
        };
        let Some((length, two)) = varint(&buffer[one..]) else {
            return Ok(None);
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > LARGEST {
            return Err(io::Error::other("a capsule that is too large"));
        }
        if buffer.len() < one + two + length {
            return Ok(None);
        }
        buffer.advance(one + two);
        let mut value = buffer.split_to(length).freeze();
        if kind == 0 && value.first() == Some(&0) {
            value.advance(1);
            return Ok(Some(value));
        }
    }
}

/// Datagrams that wait, each since it came: as they are, or as capsules.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<(Instant, Bytes)>,
    bytes: usize,
}

impl Queue {
    /// Puts one at its end; false: it is dropped.
    pub fn push(&mut self, datagram: Bytes) -> bool {
        if self.waiting.len() >= QUEUE || self.bytes + datagram.len() > QUEUE_BYTES {
            return false;
        }
        self.bytes += datagram.len();
        self.waiting.push_back((Instant::now(), datagram));
        true
    }

    /// The first one.
    pub fn pop(&mut self) -> Option<Bytes> {
        let (_, first) = self.waiting.pop_front()?;
        self.bytes -= first.len();
        Some(first)
    }

    /// The first one and those behind it that come to no more than `most` bytes with it.
    pub fn take(&mut self, most: usize) -> Option<Bytes> {
        let first = self.pop()?;
        let more = |queue: &Queue, bytes: usize| {
            let next = queue.waiting.front();
            next.is_some_and(|(_, next)| bytes + next.len() <= most)
        };
        if !more(self, first.len()) {
            return Some(first);
        }
        let mut all = BytesMut::with_capacity(most.min(first.len() + self.bytes));
        all.put(first);
        while more(self, all.len()) {
            self.pop().into_iter().for_each(|next| all.put(next));
        }
        Some(all.freeze())
    }

    /// Drops those that have waited for longer, and says how many.
    pub fn drop_older(&mut self, than: Duration) -> u64 {
        let mut dropped = 0;
        let Some(since) = Instant::now().checked_sub(than) else {
            return dropped;
        };
        while self.waiting.front().is_some_and(|(came, _)| *came < since) {
            self.pop();
            dropped += 1;
        }
        dropped
    }
}

/// An agent's side of a flow: passes on datagrams both ways until the flow ends, or the service refuses what it is sent.
/// `dropped`: counts what had no room.
pub(super) async fn relay(
    socket: UdpSocket,
    mut receive: RecvStream,
    mut send: SendStream<Bytes>,
    dropped: &AtomicU64,
) {
    let queue = parking_lot::Mutex::new(Queue::default());
    let there = tokio::sync::Notify::new();
    let read = async {
        let mut buffer = vec![0; LARGEST];
        loop {
            match socket.recv(&mut buffer).await {
                Ok(size) if queue.lock().push(encode(&buffer[..size])) => there.notify_one(),
                Ok(_) => {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
                // One that was too long for its path has gone; that ends no flow.
                Err(error) if is_too_long(&error) => {}
                Err(error) => return Err(error),
            }
        }
    };
    let up = async {
        loop {
            there.notified().await;
            let waiting = queue.lock().take(usize::MAX);
            if let Some(waiting) = waiting {
                send_all(&mut send, waiting).await?;
            }
        }
    };
    let down = async {
        let mut buffer = BytesMut::new();
        while let Some(chunk) = receive.data().await {
            let chunk = chunk.map_err(broken)?;
            let flow = receive.flow_control();
            flow.release_capacity(chunk.len()).map_err(broken)?;
            buffer.extend_from_slice(&chunk);
            while let Some(datagram) = take(&mut buffer)? {
                match socket.send(&datagram).await {
                    Err(error) if is_refusal(&error) => return Err(error),
                    // What is not taken is lost, as UDP has it.
                    _ => {}
                }
            }
        }
        Ok(())
    };
    let ended: io::Result<()> = tokio::select! {
        ended = down => ended,
        ended = up => ended,
        ended = read => ended,
    };
    match ended {
        Ok(()) => {
            // It fails where the other side has ended it.
            let _ = send.send_data(Bytes::new(), true);
        }
        Err(error) => {
            tracing::debug!(%error, "a flow of datagrams broke");
            send.send_reset(h2::Reason::CANCEL);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn datagrams_keep_their_bounds_however_the_stream_is_cut(
            sizes in proptest::collection::vec(prop_oneof![0usize..70, 16_300usize..16_400, Just(65_527usize)], 1..6),
            cut in 1usize..5_000,
        ) {
            let all: Vec<Vec<u8>> = sizes.iter().map(|n| vec![*n as u8; *n]).collect();
            let stream: Vec<u8> = all.iter().flat_map(|d| encode(d)).collect();
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for piece in stream.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(datagram) = take(&mut buffer).unwrap() {
                    got.push(datagram.to_vec());
                }
            }
            prop_assert_eq!(got, all);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut buffer) {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_waited_too_long_is_dropped_and_the_rest_is_taken_piece_by_piece() {
        let (mut queue, bound) = (Queue::default(), Duration::from_millis(200));
        for n in 0..5 {
            assert!(queue.push(Bytes::from(vec![n; 10])));
            tokio::time::advance(Duration::from_millis(60)).await;
        }
        assert_eq!((queue.drop_older(bound), queue.drop_older(bound)), (2, 0));
        assert_eq!(queue.take(29).unwrap().len(), 20);
        // One goes, however long it is.
        assert_eq!(queue.take(1).unwrap()[..], [4; 10]);
        assert!(queue.take(1).is_none() && queue.bytes == 0);
    }

    #[test]
    fn the_newest_is_dropped_when_there_is_no_room() {
        let mut queue = Queue::default();
        let pushed = (0..QUEUE + 3).filter(|n| queue.push(encode(&[*n as u8])));
        assert_eq!(pushed.count(), QUEUE);
        let mut all = BytesMut::from(&queue.take(usize::MAX).unwrap()[..]);
        for n in 0..QUEUE {
            assert_eq!(take(&mut all).unwrap().unwrap()[..], [n as u8]);
        }
        assert!(all.is_empty() && queue.take(usize::MAX).is_none());
        let large = [0; 60_000];
        assert!(queue.push(encode(&large)) && queue.push(encode(&large)));
        assert!(!queue.push(encode(&large)));
    }
}
