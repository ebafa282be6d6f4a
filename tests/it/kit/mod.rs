//! The kit: starts the real binary on ports of its own, speaks raw bytes to it, and provides origins that misbehave
//! on request. Everything waits for events (an answer, a count, an end of file) under a generous deadline; nothing
//! sleeps and hopes.

use std::time::{Duration, Instant};

pub(crate) mod admin;
pub(crate) mod authority;
pub(crate) mod bulk;
pub(crate) mod connect_proxy;
pub(crate) mod contract;
pub(crate) mod frames;
pub(crate) mod grpc;
pub(crate) mod h2c;
pub(crate) mod h2origin;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) mod link;
pub(crate) mod load;
pub(crate) mod mortal;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) mod netns;
pub(crate) mod origin;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod tls;
pub(crate) mod websocket;

pub(crate) use admin::{Answer, Call};
pub(crate) use origin::Origin;
pub(crate) use port::free_port;
pub(crate) use process::Gate;
pub(crate) use raw::{Conn, Response, get};

/// How long anything may take that is expected to happen: long enough for a debug build on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// True when the counts of the issue are run in full: release builds, or `EVERGATE_TEST_FULL=1`.
pub(crate) fn full() -> bool {
    !cfg!(debug_assertions) || std::env::var_os("EVERGATE_TEST_FULL").is_some()
}

/// The count on a full run, a smaller one on a quick run.
pub(crate) fn count(in_full: usize, quick: usize) -> usize {
    if full() { in_full } else { quick }
}

/// Asks `ready` until it gives something. The pause keeps a busy machine usable; the answer decides, not the time.
pub(crate) fn until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The `share` (0 to 1) percentile of `times`.
pub(crate) fn percentile(times: &mut [Duration], share: f64) -> Duration {
    assert!(!times.is_empty(), "no times were taken");
    times.sort_unstable();
    let index = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len());
    times[index - 1]
}

/// Every `from` as its `to`, in one pass: what was put in is not looked at again, and of two that begin at one place the longer
/// one counts.
pub(crate) fn replaced<'m>(
    text: &str,
    moved: impl IntoIterator<Item = (&'m str, &'m str)>,
) -> String {
    let moved: Vec<_> = moved.into_iter().collect();
    let (mut out, mut rest) = (String::new(), text);
    while let Some(next) = rest.chars().next() {
        let here = moved.iter().filter(|(from, _)| rest.starts_with(from));
        let size = match here.max_by_key(|(from, _)| from.len()) {
            Some((from, to)) => {
                out.push_str(to);
                from.len()
            }
            None => {
                out.push(next);
                next.len_utf8()
            }
        };
        rest = &rest[size..];
    }
    out
}
