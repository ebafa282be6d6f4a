//! The plan of a swap: a pure function of the old and the new document.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens to one listening address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Same address, same definition: nothing moves.
    Keep,
    /// Same address, other routes: its next request sees them.
    Update,
    /// Same address, other connection settings: its connections are asked to finish.
    Refresh,
    /// New address.
    Open,
    /// No longer in the document.
    Close,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListenerPlan {
    pub address: String,
    pub change: Change,
    /// Names of the servers behind it after the swap (before it, for `close`).
    pub servers: Vec<String>,
}

/// Counts of state that is carried over by identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Carried {
    pub kept: u64,
    pub dropped: u64,
    pub new: u64,
}

/// What a swap changes, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    pub listeners: Vec<ListenerPlan>,
    /// Servers by name: added, removed, changed.
    pub servers: Named,
    pub upstreams: Named,
    /// Targets (`upstream/address`) whose pools and counts are carried.
    pub targets: Carried,
    /// Other sections that changed: `admin`, `runtime`.
    pub sections: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Named {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
}
