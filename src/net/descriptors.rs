//! The descriptors that clients may not have: kept so that the admin API can still be reached, and targets be dialed, when
//! clients have taken all others.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use crate::config::runtime::reserved_descriptors;

/// Where the reserve begins. The system numbers a new descriptor as low as it can: one above this says that all below
/// are in use, without counting.
#[derive(Debug, Clone, Copy)]
pub struct Ceiling(RawFd);

impl Ceiling {
    /// For the limit that the process has now.
    pub fn of_process() -> Ceiling {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Ceiling::of(limit.unwrap_or(u64::MAX))
    }

    fn of(limit: u64) -> Ceiling {
        let below = limit - reserved_descriptors(limit).min(limit / 2);
        Ceiling(RawFd::try_from(below).unwrap_or(RawFd::MAX))
    }

    /// True if `socket` has one of the reserve.
    pub fn is_passed_by(self, socket: &impl AsRawFd) -> bool {
        socket.as_raw_fd() >= self.0
    }

    /// True if the next descriptor would be of the reserve, or there is none. Tries it.
    pub fn is_reached(self) -> bool {
        use rustix::io::{Errno, fcntl_dupfd_cloexec};
        match fcntl_dupfd_cloexec(std::io::stderr().as_fd(), 0) {
            Ok(next) => next.as_raw_fd() >= self.0,
            Err(error) => matches!(error, Errno::MFILE | Errno::NFILE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_part_of_the_limit() {
        for (limit, ceiling) in [
            (0, 0),
            (64, 32),
            (256, 192),
            (1024, 960),
            (100_000, 95_000),
            (u64::MAX, RawFd::MAX),
        ] {
            assert_eq!(Ceiling::of(limit).0, ceiling, "{limit}");
        }
    }

    #[test]
    fn it_is_reached_by_the_number_of_the_next() {
        assert!(Ceiling(0).is_reached());
        assert!(!Ceiling(RawFd::MAX).is_reached());
    }
}
