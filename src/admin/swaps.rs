//! `GET /swaps` and `/swaps/{id}`: what was asked of the supervisor and how it went.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::App;
use super::control::Control;
use super::media;
use super::problem::{Problem, Refusal};
use super::query::{Query, Wait};
use crate::supervisor::SwapRecord;

/// Answer of `GET /swaps`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SwapList {
    /// Newest first, without their plans and documents: those are in `/swaps/{id}`.
    pub swaps: Vec<SwapRecord>,
}

pub(crate) async fn list<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    Query::parse(request.uri(), &[], &[])?;
    let mut swaps = app.control().swaps();
    for swap in &mut swaps {
        swap.config = None;
        swap.plan = None;
    }
    Ok(media::json_answer(&SwapList { swaps }))
}

pub(crate) async fn one<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let query = Query::parse(request.uri(), &["wait"], &[])?;
    let wait = query.wait(&[Wait::Committed, Wait::Drained])?;
    let text = request.uri().path().strip_prefix("/swaps/").unwrap_or("");
    let missing = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            "no-such-swap",
            format!("no swap `{text}` is known"),
        )
    };
    let id: u64 = text.parse().map_err(|_| missing())?;
    let record = match wait {
        None | Some(Wait::Accepted) => app.control().swap(id),
        Some(_) if app.control().swap(id).is_none() => None,
        Some(wait) => app.control().wait(id, wait == Wait::Committed).await,
    };
    record
        .map(|record| media::json_answer(&record))
        .ok_or_else(missing)
}
