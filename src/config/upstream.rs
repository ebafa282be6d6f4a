//! `[upstreams.NAME]`: where requests go.
use std::sync::Arc;
use std::time::Duration;

use super::scalar::TargetAddr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    LeastRequests,
}

/// One target of an upstream. Its identity is (upstream, address); the weight may change freely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetSpec {
    pub address: TargetAddr,
    /// Share of the traffic, 0 to 1000; 0 gets none.
    pub weight: u32,
}

/// Checked `[upstreams.NAME]`, or the upstream that a URL in a `proxy` key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamSpec {
    pub name: Arc<str>,
    /// Never empty.
    pub targets: Vec<TargetSpec>,
    pub balance: Balance,
    pub pool: PoolSpec,
    pub timeouts: UpstreamTimeouts,
    pub resolve: ResolveSpec,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    /// Idle connections kept per target, the whole process together.
    pub idle: usize,
    pub idle_timeout: Duration,
    /// Open connections per target, the whole process together; `None`: no limit.
    pub max_connections: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTimeouts {
    /// Resolve, dial and handshake together.
    pub connect: Duration,
    /// From the request's last byte (or the last sign of life while it is sent) to the response's head; `None`: no limit.
    pub response: Option<Duration>,
    /// Between two pieces of a response body; `None`: no limit.
    pub idle: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolveSpec {
    pub interval: Duration,
    pub timeout: Duration,
}
