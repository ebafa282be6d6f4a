//! What `/status` says, first form: types only; the figures come from `view`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::upstream::TargetState;

use super::certificates::CertificateStatus;
use super::sessions::SessionTotals;
use crate::config::Diagnostic;

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
    /// Certificates that serve, by source.
    pub certificates: Vec<CertificateStatus>,
    /// What lies in their files now and is not used, since it cannot be.
    pub certificate_problems: Vec<Diagnostic>,
    /// TLS handshakes since start.
    pub handshakes: HandshakeStatus,
    /// Long flows by kind, of the kinds that there have been; `/sessions` has them one by one.
    #[serde(default)]
    pub sessions: BTreeMap<String, SessionTotals>,
    /// Where agents come to; `/tunnels` says more.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tunnels: Vec<TunnelSummary>,
    /// Agents that run here; `/tunnels` says more.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub agents: Vec<AgentSummary>,
}

/// A tunnel in figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TunnelSummary {
    pub name: String,
    /// Agents that may come, and those that came by a certificate.
    pub agents: u64,
    /// Those that are there.
    pub connected: u64,
    pub sessions: u64,
    /// Services that are to be had.
    pub services: u64,
    /// Connections through it that are open.
    pub flows: u64,
}

/// An agent that runs here, in figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentSummary {
    pub agent: String,
    pub server: String,
    /// Sessions that it wants, and those that it has.
    pub sessions: u64,
    pub connected: u64,
    /// Connections through it that are open.
    pub flows: u64,
    /// What keeps it from its server, if nothing is connected.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandshakeStatus {
    /// Whole ones.
    pub full: u64,
    /// Those that went on with an earlier session.
    pub resumed: u64,
    /// Those that came to nothing, by reason: `timeout`, `gone`, `protocol`, `incompatible`, `client_certificate`, `alert`,
    /// `other`.
    pub failed: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GenerationStatus {
    pub generation: u64,
    /// `serving` or `draining`.
    pub state: String,
    /// Requests in flight on it.
    pub requests: u64,
    /// Long flows that live by it: websockets, sessions.
    pub tunnels: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListenerStatus {
    /// As bound: a port 0 of the document shows the port it got; one of UDP begins with `udp://`.
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
    /// Every target is down or ejected, so all that resolve are used.
    pub fail_open: bool,
    /// None for a split.
    pub targets: Vec<TargetStatus>,
    /// The members of a split, which have their targets under their own names.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub split: Vec<ShareStatus>,
    /// Requests that wait because every target is full (`limits`).
    #[serde(default)]
    pub queued: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShareStatus {
    pub upstream: String,
    /// Share of the requests, of the sum of all.
    pub share: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TargetStatus {
    pub address: String,
    pub weight: u32,
    /// What an operator says of it.
    #[serde(default)]
    pub state: TargetState,
    /// `up`; `down`: its checks fail; `ejected`: its requests failed; `unresolved`: its name has not been found yet.
    pub health: String,
    /// Since when (RFC 3339, UTC); for `unresolved`: since it is here.
    pub since: String,
    /// Why it is ejected.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ejected: Option<String>,
    /// The last check (absent: none so far, or no `health`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub check: Option<CheckStatus>,
    /// Requests in flight.
    pub in_flight: u64,
    /// Open connections, idle ones included.
    pub connections: u64,
    pub idle: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckStatus {
    /// When it ended (RFC 3339, UTC).
    pub at: String,
    /// `passed` or `failed`.
    pub result: String,
    /// What came of it, such as `status 200 OK`.
    pub reason: String,
    /// How many checks in a row ended so.
    pub streak: u64,
}
