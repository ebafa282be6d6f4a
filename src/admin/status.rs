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

/// At least one generation serves and no stop was asked for.
pub(crate) async fn readyz<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    Query::parse(request.uri(), &[], &[])?;
    if app.control().ready() {
        return Ok(media::json_answer(&Health {
            status: "ready".to_owned(),
        }));
    }
    let detail = "no generation serves, or the process is stopping";
    Err(Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "not-ready",
        detail,
    ))
}
