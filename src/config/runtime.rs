//! `[runtime]`: the process as a whole.
use std::path::PathBuf;
use std::time::Duration;

/// Whether each core has a runtime, sockets and pools of its own, or all share one. Read at start-up only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    PerCore,
    Shared,
}

/// What happens to a long flow whose own definition a swap changed or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnChange {
    #[default]
    Drain,
    Keep,
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
