//! `[admin] monitor`: an address of its own for probes and graphs. It has three calls, all of which only read, and asks
//! for no token: a kubelet or a Prometheus need not hold a key to the whole API.

use axum::Router;
use axum::routing::get;

use super::control::Control;
use super::secure::Opening;
use super::serve::Face;
use super::{App, guard, metrics, status};

/// Open connections; beyond, an idle one makes room.
const CONNECTIONS: usize = 64;

pub(super) fn face<C: Control>(app: &App<C>) -> Face {
    let routes = Router::new()
        .route("/livez", get(status::livez))
        .route("/readyz", get(status::readyz::<C>))
        .route("/metrics", get(metrics::metrics::<C>))
        .with_state(app.clone());
    Face {
        router: guard::contained(routes, app.clone()),
        listener: |binding| binding.monitor.as_ref(),
        // Probes hold no CA, and there is nothing to hide.
        opening: |_| Some(Opening::Cleartext),
        connections: CONNECTIONS,
    }
}
