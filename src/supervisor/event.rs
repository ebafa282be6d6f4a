//! What a swap says while it goes: phases and events. `log` keeps them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::config::Diagnostic;

/// Where a swap is. `committed` is not the end: it drains after that. `rejected`, `unchanged`, `drained`, `cut` (and
/// for an adapt `adapted`) are terminal: exactly one of them ends each swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Received,
    Validated,
    Planned,
    Prepared,
    Committed,
    Draining,
    Drained,
    Cut,
    Rejected,
    Unchanged,
    Adapted,
}

impl Phase {
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Phase::Drained | Phase::Cut | Phase::Rejected | Phase::Unchanged | Phase::Adapted
        )
    }
}

/// How a swap ended, or stands, for the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The new generation serves.
    Committed,
    /// The document equals what runs (contents of the files it names included): no new generation.
    Unchanged,
    /// `/adapt`: everything but the commit was done, and undone.
    Adapted,
    /// Nothing was touched.
    Rejected,
    /// `/stop`: nothing is accepted any more.
    Stopped,
}

/// What asked for a swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Boot,
    Reload,
    Adapt,
    Stop,
}

/// What still runs on older generations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Remaining {
    /// Requests in flight.
    pub requests: u64,
    /// Websockets whose definition is gone and that have not ended, and the flows of agents that are gone.
    pub tunnels: u64,
    /// Connections that were told to end and have not.
    pub connections: u64,
    /// Retired addresses whose queue is not empty yet.
    pub listeners: u64,
}

/// One event of a swap. Flat on purpose: fields that a phase does not have are absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Position in the process's event log, from 1.
    pub seq: u64,
    /// When (RFC 3339, UTC).
    pub at: String,
    /// Which swap.
    pub swap: u64,
    pub kind: Kind,
    /// The generation this is about: the new one from `committed` on, before that the one that runs (0: none).
    pub generation: u64,
    pub phase: Phase,
    /// Microseconds since the swap's turn began (for `received`: 0).
    pub elapsed_us: u64,
    /// `received`: where the document came from: `body`, a file's path, `running` (a
    /// `targets_file` changed), or `none`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<String>,
    /// `received`: size of the document.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes: Option<u64>,
    /// `validated`, and the last event.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub warnings: Option<Vec<Diagnostic>>,
    /// `rejected`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub errors: Option<Vec<Diagnostic>>,
    /// `planned`, and the last event.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub plan: Option<Plan>,
    /// `prepared`: addresses newly reserved.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bound: Option<Vec<String>>,
    /// `committed`: the generation before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub previous: Option<u64>,
    /// `draining`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remaining: Option<Remaining>,
    /// `cut`: how many requests and connections were closed at the deadline.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub closed: Option<u64>,
    /// On `committed` and every terminal event.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub outcome: Option<Outcome>,
    /// On `committed` and every terminal event: the status of the plain answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<u16>,
    /// `rejected`: the stable problem slug (`invalid-document`, `not-prepared`, `if-match`, `busy`, `stopping` …).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    /// Anything worth a sentence (a hurried generation, a worker that does not answer).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

impl Event {
    pub(super) fn new(
        seq: u64,
        at: String,
        swap: u64,
        kind: Kind,
        generation: u64,
        phase: Phase,
        elapsed_us: u64,
    ) -> Event {
        Event {
            seq,
            at,
            swap,
            kind,
            generation,
            phase,
            elapsed_us,
            source: None,
            bytes: None,
            warnings: None,
            errors: None,
            plan: None,
            bound: None,
            previous: None,
            remaining: None,
            closed: None,
            outcome: None,
            status: None,
            problem: None,
            detail: None,
        }
    }
}
