//! `POST /upstreams/{upstream}/targets/{target}`: an operator takes a target out, or back in, without a reload. It makes
//! no generation and no swap: asking twice is asking once, so it takes no `Idempotency-Key`.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{Response, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::App;
use super::control::Control;
use super::incoming::{actor, if_match, read};
use super::media;
use super::problem::{Problem, Refusal};
use super::query::Query;
use crate::config::Format;
use crate::supervisor::{TargetRequest, TargetState};

/// Body of the call.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetChange {
    pub state: TargetState,
}

pub(crate) async fn set<C: Control>(
    State(app): State<App<C>>,
    Path((upstream, target)): Path<(String, String)>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let (parts, body) = read(request).await?;
    let wait = Query::parse(&parts.uri, &["wait"], &[])?.only("wait", "idle")?;
    if media::body_format(&parts.headers)? != Some(Format::Json) {
        let detail = "a state is sent as application/json: { \"state\": \"drain\" }";
        return Err(media::unsupported(detail));
    }
    let wrong = |status, error: serde_json::Error| {
        let detail = format!("{error}: the body is {{ \"state\": \"drain\" | \"down\" | \"up\" }}");
        Problem::new(status, "bad-request", detail)
    };
    let json: serde_json::Value =
        serde_json::from_slice(&body).map_err(|e| wrong(StatusCode::BAD_REQUEST, e))?;
    let change: TargetChange =
        serde_json::from_value(json).map_err(|e| wrong(StatusCode::UNPROCESSABLE_ENTITY, e))?;
    let request = TargetRequest {
        upstream,
        target,
        state: change.state,
        wait_idle: wait,
        if_match: if_match(&parts.headers)?,
    };
    let agent = parts.headers.get(header::USER_AGENT);
    let agent = agent.and_then(|agent| agent.to_str().ok()).unwrap_or("-");
    let (who, what, state) = (actor(&parts), parts.uri.path(), media::name(change.state));
    tracing::info!(target: "evergate::audit", actor = who, what, state, agent, "admin call received");
    match app.control().set_target(request).await {
        Ok(status) => Ok(media::json_answer(&status)),
        Err(refused) => {
            let status = StatusCode::from_u16(refused.status);
            let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Err(Problem::new(status, refused.problem, refused.detail))
        }
    }
}
