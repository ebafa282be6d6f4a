//! `[runtime]`: the process as a whole.
use std::path::PathBuf;
use std::time::Duration;

use super::check::Checker;
use super::decode::{Auto, Loc, section, words};
use super::scalar::Span;

section! {
    /// The process as a whole.
    pub struct RuntimeRaw {
        /// Number of workers; `"auto"` is one per core. Read at start-up only.
        workers: Auto<u64> = "auto",
        /// Whether each core has a runtime, sockets and pools of its own (`per-core`), or all share one (`shared`). Read
        /// at start-up only.
        model: Model = "per-core",
        /// How long an old generation may take to come to its end.
        drain_timeout: Span = "30s",
        /// On SIGTERM, how long `/readyz` says 503 before accepting ends.
        stop_delay: Span = "0s",
        /// What happens to a websocket when a swap changed or removed its own definition (server, action, target): `drain` (it
        /// ends at the drain deadline), `keep` (only a stop ends it) or `cut` (it ends at once).
        on_change: OnChange = "drain",
        /// Bound of everything that waits before a commit: files, names, sockets.
        prepare_timeout: Span = "30s",
        /// How many finished swaps `/swaps` remembers.
        history: u64 = 32,
        /// Connections of the whole process; `"auto"` is half of the limit of open files, after a reserve of 5 %, at least 64.
        /// Sessions of UDP get half of it at most.
        max_connections: Auto<u64> = "auto",
        /// Folder of the lock that keeps two processes apart; left out: the platform's state folder. Read at start-up only.
        state_dir: String,
    }
    later = [];
}

words!(Model { "per-core" => Model::PerCore, "shared" => Model::Shared });
words!(OnChange {
    "drain" => OnChange::Drain,
    "keep" => OnChange::Keep,
    "cut" => OnChange::Cut,
});

/// Whether each core has a runtime, sockets and pools of its own, or all share one. Read at start-up only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    PerCore,
    Shared,
}

/// What happens to a long flow whose own definition a swap changed or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum OnChange {
    /// It lives on until the drain deadline of the generation it began in.
    #[default]
    Drain,
    /// It is never ended by a swap; only a stop ends it.
    Keep,
    /// It ends at the commit.
    Cut,
}

/// Checked `[runtime]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeSpec {
    /// Number of workers; `auto` is resolved to the number of cores.
    pub workers: usize,
    pub model: Model,
    /// How long an old generation may take to come to its end.
    pub drain_timeout: Duration,
    /// On SIGTERM, how long `/readyz` says 503 before accepting ends.
    pub stop_delay: Duration,
    pub on_change: OnChange,
    /// Bound of everything that waits in prepare: files, names, sockets.
    pub prepare_timeout: Duration,
    /// How many finished swaps and generations are remembered.
    pub history: usize,
    /// Connections of the whole process; `auto` is resolved from the descriptor limit.
    pub max_connections: usize,
    /// Where the lock and later the history lie; `None`: the platform's default.
    pub state_dir: Option<PathBuf>,
}

impl RuntimeRaw {
    /// Checks `[runtime]`, whose defaults are in.
    pub fn spec(&self, check: &mut Checker<'_>) -> RuntimeSpec {
        let mut auto =
            |value: Option<&Loc<Auto<u64>>>, most: u64, otherwise: fn() -> usize| match value {
                Some(Loc {
                    value: Auto::Value(n),
                    at,
                }) => usize::try_from(check.number(*at, *n, 1..=most)).unwrap_or(usize::MAX),
                _ => otherwise(),
            };
        let workers = auto(self.workers.as_ref(), 1_024, cores);
        let max_connections = auto(
            self.max_connections.as_ref(),
            u64::MAX,
            connections_of_descriptors,
        );
        let history = self
            .history
            .as_ref()
            .map_or(0, |h| check.number(h.at, h.value, 1..=10_000));
        RuntimeSpec {
            workers,
            model: self.model.as_ref().map_or(Model::PerCore, |m| m.value),
            drain_timeout: self.drain_timeout.as_ref().map_or(Duration::ZERO, |d| d.0),
            stop_delay: self.stop_delay.as_ref().map_or(Duration::ZERO, |d| d.0),
            on_change: self.on_change.as_ref().map_or(OnChange::Drain, |o| o.value),
            prepare_timeout: check.duration(self.prepare_timeout.as_ref()),
            history: usize::try_from(history).unwrap_or(usize::MAX),
            max_connections,
            state_dir: self.state_dir.as_ref().map(|p| check.base.join(&p.value)),
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Least number of descriptors kept for listeners, reactors, files, the admin API and what the libraries open.
const RESERVED_DESCRIPTORS: u64 = 64;

/// Least number of connections, with which a process can still be asked what is wrong.
const LEAST_CONNECTIONS: u64 = 16;

/// The connections that the limit of open files leaves room for.
fn connections_of_descriptors() -> usize {
    #[cfg(unix)]
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(1 << 21);
    #[cfg(not(unix))]
    let descriptors = 1 << 16;
    usize::try_from(connections_of(descriptors)).unwrap_or(usize::MAX)
}

/// Of a limit of `descriptors`, what clients may not have: one in twenty.
pub fn reserved_descriptors(descriptors: u64) -> u64 {
    RESERVED_DESCRIPTORS.max(descriptors / 20)
}

/// A proxied connection takes two descriptors, the client's and the target's. One in twenty is kept, at least
/// [`RESERVED_DESCRIPTORS`].
fn connections_of(descriptors: u64) -> u64 {
    let connections = descriptors.saturating_sub(reserved_descriptors(descriptors)) / 2;
    connections.clamp(LEAST_CONNECTIONS, 1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_targets_and_the_admin_api() {
        let cases = [(0, 16), (96, 16), (128, 32), (256, 96), (1_024, 480)];
        for (descriptors, connections) in cases {
            assert_eq!(connections_of(descriptors), connections, "{descriptors}");
        }
        assert_eq!(connections_of(100_000), 47_500);
        assert_eq!(connections_of(u64::MAX), 1 << 20);
        for descriptors in 96..20_000 {
            let taken = 2 * connections_of(descriptors);
            assert!(descriptors - taken >= RESERVED_DESCRIPTORS.max(descriptors / 20));
        }
    }
}
