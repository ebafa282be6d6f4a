//! `/status` for people and monitoring, `/livez` and `/readyz` for whatever restarts or routes to us.

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::App;
use super::control::Control;
use super::media;
use super::problem::{Problem, Refusal};
use super::query::Query;

/// Answer of `/livez` and `/readyz`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `live` or `ready`.
    pub status: String,
}

pub(crate) async fn status<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    Query::parse(request.uri(), &[], &[])?;
    let mut status = app.control().status();
    // The supervisor knows those of the workers, this side its own.
    status.panics += app.0.context.panics.load(Ordering::Relaxed);
    Ok(media::json_answer(&status))
}

/// The process is up and this thread answers.
pub(crate) async fn livez(request: Request) -> Result<Response<Body>, Refusal> {
    Query::parse(request.uri(), &[], &[])?;
    Ok(media::json_answer(&Health {
        status: "live".to_owned(),
    }))
}

/// A generation serves, no stop was asked for, and new clients are accepted.
pub(crate) async fn readyz<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    Query::parse(request.uri(), &[], &[])?;
    match app.control().ready() {
        Ok(()) => Ok(media::json_answer(&Health {
            status: "ready".to_owned(),
        })),
        Err(why) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not-ready",
            why,
        )),
    }
}
