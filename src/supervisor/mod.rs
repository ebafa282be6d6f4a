//! The only writer of "what runs": an actor that takes one swap at a time through plan, prepare, commit and drain.
//! Boot is a swap from nothing, stop a swap to nothing.

pub mod event;
pub mod plan;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::{Diagnostic, Format};
use crate::document::Document;
use event::{Event, Kind, Outcome, Phase};
use plan::Plan;

/// Where the document of a swap comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Posted.
    Body { bytes: Bytes, format: Format },
    /// The file the process started with; none: the start's search again (409 when nothing is found).
    File,
    /// A document given at start (`--config` path is `File`; this is the embedded default or a test's).
    Embedded { bytes: Bytes, format: Format },
}

/// One request to the supervisor. What the caller does afterwards changes nothing about the swap.
#[derive(Debug, Clone)]
pub struct SwapRequest {
    pub kind: Kind,
    pub source: Source,
    /// ETag that must be the running one when the swap's turn comes, else 412 `if-match`. `*` always matches.
    pub if_match: Option<String>,
    /// Overrides `runtime.drain_timeout`.
    pub drain_timeout: Option<Duration>,
    /// A warning refuses.
    pub strict: bool,
    /// How long it may wait for its turn, else 409 `busy`. `None`: as long as it takes.
    pub turn: Option<Duration>,
    /// Who asked: for the log and `/swaps`.
    pub actor: String,
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

/// What runs now.
#[derive(Debug)]
pub struct Running {
    pub generation: u64,
    /// Strong ETag, quotes included; opaque, ends with the process.
    pub etag: String,
    pub document: Arc<Document>,
}

/// The way to the supervisor. Cheap to clone; reads never wait for a swap in progress.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {}

impl Handle {
    /// Queues a swap and returns its id. At most 64 wait.
    pub fn submit(&self, _request: SwapRequest) -> Result<u64, SubmitError> {
        unimplemented!()
    }
    /// What runs, `None` before the first commit and after a stop.
    pub fn running(&self) -> Option<Arc<Running>> {
        unimplemented!()
    }
    /// Swaps, newest first; bounded by `runtime.history` finished ones and everything in progress.
    pub fn swaps(&self) -> Vec<SwapRecord> {
        unimplemented!()
    }
    pub fn swap(&self, _id: u64) -> Option<SwapRecord> {
        unimplemented!()
    }
    /// Events of one swap from its first on, as they happen; ends after the terminal event. Dropping it is free.
    pub fn follow(&self, _swap: u64) -> EventReader {
        unimplemented!()
    }
    /// Resolves when the swap has reached `Committed` or any terminal phase (`committed`), or a terminal phase only.
    pub async fn wait(&self, _swap: u64, _committed_is_enough: bool) -> Option<SwapRecord> {
        unimplemented!()
    }
    /// The admin listener to serve, as committed.
    pub fn admin_binding(&self) -> watch::Receiver<Option<Arc<AdminBinding>>> {
        unimplemented!()
    }
    /// Alive generations, listeners, workers, counts: `/status`.
    pub async fn status(&self) -> Status {
        unimplemented!()
    }
    /// True when at least one generation serves and no stop was asked for (`/readyz`).
    pub fn ready(&self) -> bool {
        unimplemented!()
    }
}

/// Reads the events of one swap.
pub struct EventReader {}

impl EventReader {
    /// The next event; `None` after the terminal one. Cancel-safe.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        unimplemented!()
    }
}

/// The admin address as the running document wants it. The supervisor binds it; `admin` serves it.
#[derive(Debug)]
pub struct AdminBinding {
    pub generation: u64,
    pub spec: crate::config::admin::AdminSpec,
    /// Listening, non-blocking. The supervisor keeps the original: take a `try_clone`. The same `Arc` as in the
    /// binding before when the address did not change: then go on accepting from it without a break.
    pub listener: Arc<AdminListener>,
}

#[derive(Debug)]
pub enum AdminListener {
    Tcp(std::net::TcpListener),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

/// `GET /status`, first form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub version: String,
    /// Version of this API; raised by any change other than an addition.
    pub api: u32,
    pub uptime_s: u64,
    /// The generation that serves (0: none).
    pub generation: u64,
    /// Every generation that is not gone yet, the serving one included.
    pub generations: Vec<GenerationStatus>,
    pub listeners: Vec<ListenerStatus>,
    pub upstreams: Vec<UpstreamStatus>,
    pub workers: u64,
    /// `per-core` or `shared`.
    pub model: String,
    /// Open client connections.
    pub connections: u64,
    /// Requests since start.
    pub requests: u64,
    /// Open descriptors of the process (absent where the platform has no cheap count).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub descriptors: Option<u64>,
    /// Alive tasks on all runtimes.
    pub tasks: u64,
    /// Resident memory in bytes (absent where the platform has no cheap figure).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub resident_bytes: Option<u64>,
    /// Panics caught in connections and requests since start.
    pub panics: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GenerationStatus {
    pub generation: u64,
    /// `serving` or `draining`.
    pub state: String,
    /// Requests in flight on it.
    pub requests: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListenerStatus {
    /// As bound: a port 0 of the document shows the port it got.
    pub address: String,
    /// As written in the document.
    pub configured: String,
    pub servers: Vec<String>,
    /// `serving` or `retiring`.
    pub state: String,
    pub connections: u64,
    /// Sockets of its group.
    pub sockets: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpstreamStatus {
    pub name: String,
    pub targets: Vec<TargetStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TargetStatus {
    pub address: String,
    pub weight: u32,
    /// `up`, or `down` while its name does not resolve.
    pub health: String,
    /// Requests in flight.
    pub in_flight: u64,
    /// Open connections, idle ones included.
    pub connections: u64,
    pub idle: u64,
}
