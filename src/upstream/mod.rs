//! Where requests go: named sets of targets, and what of them outlives a generation.

pub mod body;
pub mod error;

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;

use crate::config::scalar::TargetAddr;
use crate::config::upstream::UpstreamSpec;
use crate::metrics::WorkerContext;
use crate::registry::Registry;
use body::RequestBody;
use error::Error;

/// Identity of a target: the same address under another upstream is another target.
pub type TargetKey = (Arc<str>, TargetAddr);

/// The state of the reach layer that generations lease from. One per process.
#[derive(Debug)]
pub struct Shared {
    pub targets: Registry<TargetKey, Target>,
    /// Runtime of background work (names); never a worker's.
    pub control: tokio::runtime::Handle,
    /// Number of workers, hence of pool shards.
    pub workers: usize,
}

/// A target's lasting part: in-flight count, idle connections by worker.
#[derive(Debug)]
pub struct Target {}

/// One generation's view of an upstream.
#[derive(Debug)]
pub struct Upstream {}

impl Upstream {
    /// Builds from the spec, leasing its targets. Never blocks; names that are not resolved yet leave their target down.
    pub fn build(_spec: &UpstreamSpec, _shared: &Arc<Shared>) -> Upstream {
        unimplemented!()
    }

    /// Waits until every DNS name of this upstream has been looked up once, at most `resolve.timeout`. Returns the
    /// names that were not found (their targets are down; a warning).
    pub async fn resolved(&self) -> Vec<String> {
        unimplemented!()
    }
}

/// What a request asks of its upstream besides the request itself.
#[derive(Debug, Clone, Default)]
pub struct SendOptions {
    /// For one try: from the request's last byte to the response's head. `None`: the upstream's own.
    pub response_timeout: Option<Duration>,
    /// Put the target's `host:port` into `Host`.
    pub host_from_target: bool,
}

/// A target that answered: holds its in-flight count until dropped, which is when the response body ends.
#[derive(Debug)]
pub struct InFlight {
    pub target: Arc<Target>,
}

impl Upstream {
    /// Picks a target, checks out or dials a connection, sends, and returns the response's head with its streaming body. Tries
    /// again on another target or connection only where that is safe: the request was not sent, or it is idempotent
    /// (RFC 9110 9.2.2), has no body, and a *pooled* connection ended before the first byte of an answer.
    ///
    /// The connection goes back to this worker's pool when the response body has ended (hyper's sender is ready again).
    ///
    /// # Errors
    /// [`Error`] in the vocabulary of RFC 9209. Dropping the future cancels the request and its connection.
    pub async fn send(
        &self,
        _worker: &Arc<WorkerContext>,
        _request: ::http::Request<RequestBody>,
        _options: SendOptions,
    ) -> Result<(::http::Response<UpstreamBody>, InFlight), Error> {
        unimplemented!()
    }

    pub fn name(&self) -> &Arc<str> {
        unimplemented!()
    }

    /// Targets of this generation's view: for `/status` and for `Entry::holds`.
    pub fn targets(&self) -> impl Iterator<Item = (&TargetAddr, u32, &Arc<Target>)> {
        std::iter::empty()
    }
}

impl Target {
    pub fn in_flight(&self) -> usize {
        unimplemented!()
    }
    /// Open connections, idle ones included; the whole process.
    pub fn connections(&self) -> usize {
        unimplemented!()
    }
    pub fn idle(&self) -> usize {
        unimplemented!()
    }
    /// False while its name does not resolve.
    pub fn is_up(&self) -> bool {
        unimplemented!()
    }
    pub fn key(&self) -> &TargetKey {
        unimplemented!()
    }
}

/// The response body as it comes from a target, with the idle limit between its pieces; a cut one is an error, never a
/// clean end. It hands the connection back to the pool when it has ended.
#[derive(Debug)]
pub struct UpstreamBody {
    _incoming: Incoming,
}

impl http_body::Body for UpstreamBody {
    type Data = bytes::Bytes;
    type Error = Error;
    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Error>>> {
        unimplemented!()
    }
}

/// Closes this worker's pooled connections that were idle for too long. Called about once a second on the worker.
pub fn sweep(_shared: &Shared, _worker: &WorkerContext) {
    unimplemented!()
}

impl Shared { pub fn new(control: tokio::runtime::Handle, workers: usize) -> Shared { Shared { targets: Registry::default(), control, workers } } }
