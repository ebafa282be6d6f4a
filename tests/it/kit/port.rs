//! Free ports that no parallel test, and no other test process, is given at the same time: outside the ephemeral
//! range, probed, and reserved by a lock file for the life of this process.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_000;
const LAST: u32 = 32_000;

static NEXT: AtomicU32 = AtomicU32::new(0);
static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());

pub(crate) fn free_port() -> u16 {
    let folder = std::env::temp_dir().join("evergate-test-ports");
    std::fs::create_dir_all(&folder).unwrap();
    let start = std::process::id().wrapping_mul(331) % (LAST - FIRST);
    for _ in FIRST..LAST {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = (FIRST + (start + step) % (LAST - FIRST)) as u16;
        let Ok(lock) = File::create(folder.join(port.to_string())) else {
            continue;
        };
        if lock.try_lock().is_err() || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_err() {
            continue;
        }
        HELD.lock().unwrap().push(lock);
        return port;
    }
    panic!("no free port between {FIRST} and {LAST}");
}
