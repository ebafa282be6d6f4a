//! Memory that is free goes back to the system. glibc keeps it: its arenas shrink only at their ends, and at the end of
//! the compiler's lies what serves, so that once many swaps came close together the process stays as large as it was then.
//!
//! It is asked for at most once a second, after a swap. For 1,000 routes (14 MB, of which 8 free) it takes 1 to 2 ms;
//! meanwhile a worker that allocates waits for its own arena's part of that. Elsewhere the allocator does so by itself
//! (mimalloc), or there is nothing to ask.

/// Gives free memory back; may take milliseconds.
#[cfg(all(target_os = "linux", target_env = "gnu", not(feature = "mimalloc")))]
#[allow(unsafe_code)]
pub fn give_back() {
    // SAFETY: it takes no pointer, may be called by any thread at any time, and touches only what is free (malloc_trim(3)).
    unsafe { libc::malloc_trim(0) };
}

/// There is nothing to ask.
#[cfg(not(all(target_os = "linux", target_env = "gnu", not(feature = "mimalloc"))))]
pub fn give_back() {}
