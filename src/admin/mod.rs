//! The control surface: a JSON API on its own address, thread and runtime, so that saturated workers never delay it.
//! It only talks to the supervisor's handle and holds no state of its own beside the idempotency keys. What it
//! promises: a swap that was accepted goes its way whatever the client does, every refusal is a
//! `application/problem+json` (RFC 9457), and no web page can drive it (see `guard`).
//!
//! `admin-openapi.yaml` at the project's root is the contract. [`ROUTES`] is the one list from which the router is
//! built, and a test keeps both equal.

mod adapt;
mod assets;
mod certificates;
mod change;
mod connection;
#[cfg(test)]
mod contract;
mod control;
#[cfg(test)]
mod fake;
mod guard;
mod idempotency;
mod incoming;
mod media;
mod metrics;
mod monitor;
mod now;
mod origin;
mod problem;
mod query;
mod seats;
mod secure;
mod serve;
mod sessions;
mod status;
mod stream;
mod swaps;
mod targets;
#[cfg(test)]
mod tests;
mod tunnels;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::Router;
use axum::routing::{MethodRouter, get, post};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use adapt::plan_text;
pub use change::{AdaptAnswer, SwapAnswer};
pub use problem::Problem;
pub use serve::serve;
pub use status::Health;
pub use swaps::SwapList;
pub use targets::TargetChange;

use crate::supervisor::AdminBinding;
use control::Control;
use idempotency::Keys;

/// What the admin API needs from the rest of the process beside the supervisor's handle.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Panics caught in admin requests and connections since start; `/status` adds them to the workers'.
    pub panics: Arc<AtomicU64>,
    /// Cancelled: nothing is accepted any more, and [`serve()`] returns after its last answers.
    pub stop: CancellationToken,
}

/// One call of the API, named by its `operationId`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Now,
    NowSection,
    NowPart,
    NowList,
    NowItem,
    Reload,
    Adapt,
    Stop,
    ListSwaps,
    GetSwap,
    Status,
    Sessions,
    CloseSession,
    Tunnels,
    Certificates,
    RefreshCertificates,
    SetTarget,
    Livez,
    Readyz,
    Metrics,
    Openapi,
    Schema,
}

/// Every route: method, path, operation. The router is built from this list and nothing else.
pub(crate) const ROUTES: &[(&str, &str, Operation)] = &[
    ("GET", "/now", Operation::Now),
    ("GET", "/now/{section}", Operation::NowSection),
    ("GET", "/now/{section}/{name}", Operation::NowPart),
    ("GET", "/now/{section}/{name}/{list}", Operation::NowList),
    (
        "GET",
        "/now/{section}/{name}/{list}/{item}",
        Operation::NowItem,
    ),
    ("POST", "/reload", Operation::Reload),
    ("POST", "/adapt", Operation::Adapt),
    ("POST", "/stop", Operation::Stop),
    ("GET", "/swaps", Operation::ListSwaps),
    ("GET", "/swaps/{id}", Operation::GetSwap),
    ("GET", "/status", Operation::Status),
    ("GET", "/sessions", Operation::Sessions),
    ("POST", "/sessions/{id}/close", Operation::CloseSession),
    ("GET", "/tunnels", Operation::Tunnels),
    ("GET", "/certificates", Operation::Certificates),
    (
        "POST",
        "/certificates/refresh",
        Operation::RefreshCertificates,
    ),
    (
        "POST",
        "/upstreams/{upstream}/targets/{target}",
        Operation::SetTarget,
    ),
    ("GET", "/livez", Operation::Livez),
    ("GET", "/readyz", Operation::Readyz),
    ("GET", "/metrics", Operation::Metrics),
    ("GET", "/openapi.yaml", Operation::Openapi),
    ("GET", "/schema.json", Operation::Schema),
];

/// Shared by all handlers and guards.
struct Shared<C> {
    control: C,
    /// Token and allowed hosts are read from here at each request, so a swap that changes them counts at once.
    binding: watch::Receiver<Option<Arc<AdminBinding>>>,
    keys: Arc<Keys>,
    /// Observers of swaps: they write the audit line and remember answers, also when the client is gone.
    observers: TaskTracker,
    /// Ends the observers with the server.
    ended: CancellationToken,
    context: Context,
}

/// Cheap to clone.
pub(crate) struct App<C>(Arc<Shared<C>>);

impl<C> Clone for App<C> {
    fn clone(&self) -> Self {
        App(self.0.clone())
    }
}

impl<C: Control> App<C> {
    fn new(control: C, context: Context) -> Self {
        let binding = control.binding();
        App(Arc::new(Shared {
            control,
            binding,
            keys: Arc::default(),
            observers: TaskTracker::new(),
            ended: CancellationToken::new(),
            context,
        }))
    }

    fn control(&self) -> &C {
        &self.0.control
    }
}

/// The whole API with its guards around it.
fn router<C: Control>(app: App<C>) -> Router {
    let mut router = Router::new();
    for (method, path, operation) in ROUTES {
        let endpoint = endpoint::<C>(*operation);
        debug_assert_eq!(
            *method == "POST",
            matches!(
                operation,
                Operation::Reload
                    | Operation::Adapt
                    | Operation::Stop
                    | Operation::CloseSession
                    | Operation::RefreshCertificates
                    | Operation::SetTarget
            )
        );
        router = router.route(path, endpoint);
    }
    guard::protect(router.with_state(app.clone()), app)
}

fn endpoint<C: Control>(operation: Operation) -> MethodRouter<App<C>> {
    match operation {
        Operation::Now
        | Operation::NowSection
        | Operation::NowPart
        | Operation::NowList
        | Operation::NowItem => get(now::now::<C>),
        Operation::Reload => post(change::reload::<C>),
        Operation::Adapt => post(change::adapt::<C>),
        Operation::Stop => post(change::stop::<C>),
        Operation::ListSwaps => get(swaps::list::<C>),
        Operation::GetSwap => get(swaps::one::<C>),
        Operation::Status => get(status::status::<C>),
        Operation::Sessions => get(sessions::list::<C>),
        Operation::CloseSession => post(sessions::close::<C>),
        Operation::Tunnels => get(tunnels::tunnels::<C>),
        Operation::Certificates => get(certificates::list::<C>),
        Operation::RefreshCertificates => post(certificates::refresh::<C>),
        Operation::SetTarget => post(targets::set::<C>),
        Operation::Livez => get(status::livez),
        Operation::Readyz => get(status::readyz::<C>),
        Operation::Metrics => get(metrics::metrics::<C>),
        Operation::Openapi => get(assets::openapi),
        Operation::Schema => get(assets::schema),
    }
}
