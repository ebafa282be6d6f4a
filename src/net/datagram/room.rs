//! Room for datagrams that are received together: as many as wait, up to a batch, in one call where the system has such a
//! call. None is ever cut short.
//!
//! A thread has one room. It has a slot for the largest datagram as often as a batch has datagrams, but memory only where
//! datagrams have been: a socket's next batch is as large as the last one lets expect, and large datagrams are taken one by
//! one.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Way;
#[cfg(target_os = "linux")]
use super::linux::{self, Headers, Said};

/// Datagrams of a batch, at most.
pub const BATCH: usize = 16;
/// More than the largest datagram has. No power of two: the beginnings of all slots would share the same few places of the
/// processor's caches.
pub(super) const SLOT: usize = (1 << 16) + 9 * 64;
/// Of so large ones a batch would save nothing that counts.
const LARGE: usize = 16 << 10;

/// What has been received.
pub struct Room {
    slots: Vec<u8>,
    /// By slot.
    came: Vec<Came>,
    #[cfg(target_os = "linux")]
    headers: Headers,
}

/// A datagram in its slot.
pub(super) struct Came {
    pub(super) size: usize,
    /// `None`: the system has not said.
    pub(super) way: Option<Way>,
}

/// How many datagrams the next call takes of a socket, at most: one more than there will be tells that there are no more.
#[derive(Debug)]
pub(super) struct Expected(AtomicUsize);

impl Expected {
    /// Of a socket from which nothing has come.
    pub(super) fn new() -> Expected {
        Expected(AtomicUsize::new(2))
    }

    #[cfg(target_os = "linux")]
    fn most(&self) -> usize {
        self.0.load(Ordering::Relaxed).clamp(1, BATCH)
    }

    /// So many came of `most`.
    #[cfg(target_os = "linux")]
    fn learn(&self, most: usize, came: &[Came]) {
        let largest = came.iter().map(|came| came.size).max();
        let next = match largest {
            None => return,
            Some(largest) if largest > LARGE => 1,
            Some(_) if came.len() == most => 2 * most,
            Some(_) => came.len() + 1,
        };
        if next != most {
            self.0.store(next.min(BATCH), Ordering::Relaxed);
        }
    }
}

/// Lends the thread's room: nothing may lend it once more meanwhile.
pub fn with_room<T>(f: impl FnOnce(&mut Room) -> T) -> T {
    thread_local! {
        static ROOM: RefCell<Room> = RefCell::new(Room::new());
    }
    ROOM.with(|room| match room.try_borrow_mut() {
        Ok(mut room) => f(&mut room),
        Err(_) => f(&mut Room::new()),
    })
}

impl Room {
    fn new() -> Room {
        let slots = if cfg!(target_os = "linux") { BATCH } else { 1 };
        Room {
            slots: vec![0; slots * SLOT],
            came: Vec::with_capacity(slots),
            #[cfg(target_os = "linux")]
            headers: Headers::default(),
        }
    }

    /// The datagrams of the last call, in the order in which they came, with where they came from.
    pub fn datagrams(&self) -> impl Iterator<Item = (Option<Way>, &[u8])> {
        let slots = self.slots.chunks(SLOT).zip(&self.came);
        slots.map(|(slot, came)| (came.way, slot.get(..came.size).unwrap_or_default()))
    }

    pub fn is_empty(&self) -> bool {
        self.came.is_empty()
    }

    /// Takes what has come; true if there may be more.
    #[cfg(target_os = "linux")]
    pub(super) fn fill(
        &mut self,
        socket: &UdpSocket,
        (said, expected): (Said, &Expected),
        interest: Interest,
    ) -> io::Result<bool> {
        let Room {
            slots,
            came,
            headers,
        } = self;
        came.clear();
        let most = expected.most();
        let read = socket.try_io(interest, || {
            let count = linux::receive(socket, said, headers, (slots, most), came)?;
            // That there are no more, the runtime has to learn within this call: after it, it would forget what comes
            // in between.
            if count < most {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        expected.learn(most, came);
        Ok(super::unless_empty(read)?.is_some())
    }

    /// Takes one that has come; true if there may be more. `connected`: nobody else sends to it.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn fill(
        &mut self,
        socket: &UdpSocket,
        (connected, _): (bool, &Expected),
        interest: Interest,
    ) -> io::Result<bool> {
        use std::io::Read as _;

        self.came.clear();
        let slot = &mut self.slots;
        let read = if connected {
            let read = || (&*socket2::SockRef::from(socket)).read(slot);
            socket.try_io(interest, read).map(|size| (size, None))
        } else {
            let read = socket.try_recv_from(slot);
            read.map(|(size, client)| {
                let local = None;
                (size, Some(Way { client, local }))
            })
        };
        let read = super::unless_empty(read)?;
        self.came.extend(read.map(|(size, way)| Came { size, way }));
        Ok(read.is_some())
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("came", &self.came.len())
            .finish_non_exhaustive()
    }
}
