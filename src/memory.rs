//! How memory that is free comes back to the system, where the allocator is glibc's. It keeps what swaps have once used:
//! what a document is parsed with lies in the compiler's arena between what lives on, and that arena is as large as what was
//! once there at the same time. With 1,000 routes, of which a generation keeps 4.3 MB, that is 12 MB; after [`give_back`] 8 to
//! 9.5. After a document of 10,000 routes it is 100 MB whatever comes then; after [`give_back`] 3 to 10.
//!
//! Mapping large blocks by themselves instead (`M_MMAP_THRESHOLD`) spares as much, but a response that is compressed then
//! takes up to four times the CPU, for the encoders' tables are such blocks.
//!
//! Clients' connections let go of their buffers when they are idle: many at a time, from among what is still used.
//!
//! Other allocators (musl's, mimalloc) do without.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Connections that let go of what they held, since the last [`give_back`]; and how many of them were known before.
static LOOSENED: AtomicUsize = AtomicUsize::new(0);
static KNOWN: AtomicUsize = AtomicUsize::new(0);
/// So many of them leave some 16 MB; and so many more since the last look say that it will soon be used again.
const MANY: usize = 1000;
const MORE: usize = 100;

/// A connection let go of its buffers.
pub fn loosened() {
    LOOSENED.fetch_add(1, Ordering::Relaxed);
}

/// Much is free because of them, and it has become calm since this was asked last: where they come and go it is used again, and
/// giving back 100 MB takes a worker some 15 ms.
pub fn is_loose() -> bool {
    let now = LOOSENED.load(Ordering::Relaxed);
    let before = KNOWN.swap(now, Ordering::Relaxed);
    now >= MANY && now.saturating_sub(before) < MORE
}

/// Gives back every page that is free. Takes 1 ms for 1,000 routes, 28 ms after a document of 10,000; meanwhile a worker
/// that allocates waits for the part of that that is its own arena's.
#[cfg(all(target_os = "linux", target_env = "gnu", not(feature = "mimalloc")))]
#[allow(unsafe_code)]
pub fn give_back() {
    LOOSENED.store(0, Ordering::Relaxed);
    KNOWN.store(0, Ordering::Relaxed);
    // SAFETY: it takes no pointer, may be called by any thread at any time, and touches only what is free (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

/// There is nobody to ask.
#[cfg(not(all(target_os = "linux", target_env = "gnu", not(feature = "mimalloc"))))]
pub fn give_back() {
    LOOSENED.store(0, Ordering::Relaxed);
    KNOWN.store(0, Ordering::Relaxed);
}
