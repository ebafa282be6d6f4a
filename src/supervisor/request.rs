//! What one asks of the supervisor, and what one is told of it.

use std::time::Duration;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::event::{Kind, Outcome, Phase};
use super::plan::Plan;
use crate::config::{Diagnostic, Format};

/// Where the document of a swap comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Posted.
    Body { bytes: Bytes, format: Format },
    /// The file the process started with; none: the start's search again (409 when nothing is found).
    File,
    /// What runs, with the targets that its files name now.
    Running,
    /// The document in the binary, when the search finds no file.
    Embedded { bytes: Bytes, format: Format },
}

/// One request to the supervisor. What the caller does afterwards changes nothing about the swap.
#[derive(Debug, Clone)]
pub struct SwapRequest {
    pub kind: Kind,
    pub source: Source,
    /// ETag that must be the running one when the swap's turn comes, else 412 `if-match`. `*` always matches; several
    /// may be given, separated by commas (RFC 9110 13.1.1).
    pub if_match: Option<String>,
    /// Overrides `runtime.drain_timeout`.
    pub drain_timeout: Option<Duration>,
    /// A warning refuses.
    pub strict: bool,
    /// How long it may wait for its turn, else 409 `busy`. `None`: as long as it takes.
    pub turn: Option<Duration>,
    /// Who asked: for the log and `/swaps`.
    pub actor: String,
    /// Who asked may not change anything, and so not learn through a document of theirs what this machine keeps.
    pub read_only: bool,
}

/// Why a request was not even queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the process is stopping")]
    Stopping,
    #[error("too many swaps are waiting")]
    Busy,
}

/// One swap as `/swaps` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SwapRecord {
    pub swap: u64,
    pub kind: Kind,
    pub actor: String,
    /// When it was received (RFC 3339, UTC).
    pub at: String,
    /// The last phase reached.
    pub phase: Phase,
    /// True once its terminal event is out.
    pub done: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub outcome: Option<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<u16>,
    /// The generation it made (absent: none).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub previous: Option<u64>,
    /// ETag of what ran once it had committed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub etag: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub warnings: Vec<Diagnostic>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub errors: Vec<Diagnostic>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub plan: Option<Plan>,
    /// `/adapt` only: the normalized document, secrets redacted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub config: Option<serde_json::Value>,
}

impl SwapRecord {
    pub(super) fn new(swap: u64, kind: Kind, actor: String, at: String) -> SwapRecord {
        SwapRecord {
            swap,
            kind,
            actor,
            at,
            phase: Phase::Received,
            done: false,
            outcome: None,
            status: None,
            generation: None,
            previous: None,
            etag: None,
            warnings: Vec::new(),
            errors: Vec::new(),
            problem: None,
            detail: None,
            plan: None,
            config: None,
        }
    }
}
