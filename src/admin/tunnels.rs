//! `GET /tunnels`: agents and their services, on either side.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;

use super::App;
use super::control::Control;
use super::media;
use super::problem::Refusal;
use super::query::Query;

pub(crate) async fn tunnels<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    Query::parse(request.uri(), &[], &[])?;
    Ok(media::json_answer(&app.control().tunnels()))
}
