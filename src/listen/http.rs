//! A cleartext HTTP connection: the first bytes choose HTTP/1 or HTTP/2 under a deadline; an I/O wrapper runs the header,
//! idle and write timers (hyper's one timer counts two of them together).

use std::net::SocketAddr;
use std::sync::Arc;

use crate::generation::Slot;
use crate::http::Entry;
use crate::metrics::WorkerContext;

/// One bound address on one worker: what its connections share.
#[derive(Debug)]
pub struct Listener {
    pub slot: Slot<Entry>,
    pub worker: Arc<WorkerContext>,
}

/// Serves one accepted connection to its end. The caller holds permits and counts, catches panics.
///
/// Ends early when `guard.epoch.cut` is cancelled; finishes kindly when `guard.epoch.finish` is.
pub async fn serve<S>(
    _stream: S,
    _peer: SocketAddr,
    _local: SocketAddr,
    _listener: Arc<Listener>,
    _guard: crate::generation::EpochGuard,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    unimplemented!()
}
