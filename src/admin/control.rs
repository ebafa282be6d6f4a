//! What the API asks of a supervisor, as a trait: the router is tested against a supervisor of a few lines, and it
//! shows at a glance that nothing here reaches further than the handle.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use crate::session::Wanted;
use crate::supervisor::event::Event;
use crate::supervisor::{
    AdminBinding, CertificateList, EventReader, Figures, Handle, LiveSession, RefreshRefused,
    RefreshRequest, Running, SessionList, Status, SubmitError, SwapRecord, SwapRequest,
    TargetRefused, TargetRequest, TargetStatus, TunnelList,
};

/// The supervisor as seen from here. Same meaning as the methods of [`Handle`].
pub(crate) trait Control: Clone + Send + Sync + 'static {
    type Events: Events;
    /// Must not block: it is called under the lock of the idempotency table.
    fn submit(&self, request: SwapRequest) -> Result<u64, SubmitError>;
    fn running(&self) -> Option<Arc<Running>>;
    fn swaps(&self) -> Vec<SwapRecord>;
    fn swap(&self, id: u64) -> Option<SwapRecord>;
    fn follow(&self, swap: u64) -> Self::Events;
    fn wait(
        &self,
        swap: u64,
        committed_is_enough: bool,
    ) -> impl Future<Output = Option<SwapRecord>> + Send;
    fn binding(&self) -> watch::Receiver<Option<Arc<AdminBinding>>>;
    fn status(&self) -> Status;
    fn sessions(&self, wanted: &Wanted, after: u64, limit: usize) -> SessionList;
    fn close_session(&self, id: u64) -> Option<LiveSession>;
    fn tunnels(&self) -> TunnelList;
    fn certificates(&self) -> CertificateList;
    /// It is done whether or not its future is polled to its end.
    fn refresh_certificates(
        &self,
        request: RefreshRequest,
    ) -> impl Future<Output = Result<CertificateList, RefreshRefused>> + Send;
    /// It is done at the first poll; the rest is waiting.
    fn set_target(
        &self,
        request: TargetRequest,
    ) -> impl Future<Output = Result<TargetStatus, TargetRefused>> + Send;
    fn figures(&self) -> Figures;
    fn ready(&self) -> Result<(), &'static str>;
}

/// The events of one swap.
pub(crate) trait Events: Send + 'static {
    /// The next event; `None` after the terminal one. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<Arc<Event>>> + Send;
}

impl Control for Handle {
    type Events = EventReader;
    fn submit(&self, request: SwapRequest) -> Result<u64, SubmitError> {
        Handle::submit(self, request)
    }
    fn running(&self) -> Option<Arc<Running>> {
        Handle::running(self)
    }
    fn swaps(&self) -> Vec<SwapRecord> {
        Handle::swaps(self)
    }
    fn swap(&self, id: u64) -> Option<SwapRecord> {
        Handle::swap(self, id)
    }
    fn follow(&self, swap: u64) -> EventReader {
        Handle::follow(self, swap)
    }
    async fn wait(&self, swap: u64, committed_is_enough: bool) -> Option<SwapRecord> {
        Handle::wait(self, swap, committed_is_enough).await
    }
    fn binding(&self) -> watch::Receiver<Option<Arc<AdminBinding>>> {
        Handle::admin_binding(self)
    }
    fn status(&self) -> Status {
        Handle::status(self)
    }
    fn sessions(&self, wanted: &Wanted, after: u64, limit: usize) -> SessionList {
        Handle::sessions(self, wanted, after, limit)
    }
    fn close_session(&self, id: u64) -> Option<LiveSession> {
        Handle::close_session(self, id)
    }
    fn tunnels(&self) -> TunnelList {
        Handle::tunnels(self)
    }
    fn certificates(&self) -> CertificateList {
        Handle::certificates(self)
    }
    async fn refresh_certificates(
        &self,
        request: RefreshRequest,
    ) -> Result<CertificateList, RefreshRefused> {
        Handle::refresh_certificates(self, request).await
    }
    async fn set_target(&self, request: TargetRequest) -> Result<TargetStatus, TargetRefused> {
        Handle::set_target(self, request).await
    }
    fn figures(&self) -> Figures {
        Handle::figures(self)
    }
    fn ready(&self) -> Result<(), &'static str> {
        Handle::ready(self)
    }
}

impl Events for EventReader {
    async fn next(&mut self) -> Option<Arc<Event>> {
        EventReader::next(self).await
    }
}
