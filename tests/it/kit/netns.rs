//! Network namespaces (network_namespaces(7)): a machine of its own, as far as the network goes. A thread enters one; what
//! it starts, threads and processes, is there too.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::process::Command;

/// It goes with its last thread, process and socket.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// With nothing in it but its own loopback.
    ///
    /// # Errors
    /// Where the system has none, or does not let us.
    pub(crate) fn new() -> io::Result<Namespace> {
        let made = std::thread::spawn(|| {
            // SAFETY: it takes a number, and concerns this thread alone, which has done nothing yet (unshare(2)).
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            ip("link set lo up")?;
            // What an earlier connection to an address has seen is nothing that the next one of a test should know.
            std::fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1")?;
            File::open("/proc/thread-self/ns/net").map(Namespace)
        });
        made.join().unwrap()
    }

    /// Does something there, on a thread of its own.
    pub(crate) fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let done = std::thread::scope(|scope| {
            let there = || {
                self.enter().unwrap();
                what()
            };
            scope.spawn(there).join()
        });
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn enter(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open, and it concerns this thread alone (setns(2)).
        match unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// ip(8), where this thread is.
///
/// # Errors
/// What it says.
pub(crate) fn ip(arguments: &str) -> io::Result<()> {
    let said = Command::new("ip").args(arguments.split(' ')).output()?;
    if said.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&said.stderr);
    Err(io::Error::other(format!("ip {arguments}: {}", why.trim())))
}

/// A network interface whose packets (IP, without any header before) are read and written by us, where this thread is.
///
/// # Errors
/// Where the system has none, or does not let us.
pub(crate) fn tun(name: &str) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: all zeroes is a value of this struct, which is numbers and characters.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // Its last one stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and the pointer is to what this call takes (Documentation/networking/tuntap.rst).
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}
