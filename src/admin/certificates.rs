//! `GET /certificates` and `POST /certificates/refresh`: what is presented to clients, and reading its files again now.
//! A refresh makes no generation and no swap: asking twice is asking once, so it takes no `Idempotency-Key`.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, header};

use super::App;
use super::control::Control;
use super::incoming::{actor, if_match, read};
use super::media;
use super::problem::{Problem, Refusal};
use super::query::Query;
use crate::supervisor::RefreshRequest;

pub(crate) async fn list<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    Query::parse(request.uri(), &[], &[])?;
    Ok(media::json_answer(&app.control().certificates()))
}

pub(crate) async fn refresh<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let (parts, body) = read(request).await?;
    Query::parse(&parts.uri, &[], &[])?;
    // A form's content type is refused even with nothing after it: that is what an empty HTML form sends.
    let typed = media::body_format(&parts.headers)?.is_some();
    if !body.iter().all(u8::is_ascii_whitespace) && body.trim_ascii() != b"{}" {
        let detail = "/certificates/refresh takes no body";
        return Err(match typed {
            true => Problem::new(StatusCode::BAD_REQUEST, "body-not-expected", detail),
            false => media::unsupported(detail),
        });
    }
    let request = RefreshRequest {
        if_match: if_match(&parts.headers)?,
        actor: actor(&parts),
    };
    let agent = parts.headers.get(header::USER_AGENT);
    let agent = agent.and_then(|agent| agent.to_str().ok()).unwrap_or("-");
    let (who, what) = (request.actor.as_str(), "/certificates/refresh");
    tracing::info!(target: "evergate::audit", actor = who, what, agent, "admin call received");
    match app.control().refresh_certificates(request).await {
        Ok(list) => Ok(media::json_answer(&list)),
        Err(refused) => {
            let status = StatusCode::from_u16(refused.status);
            let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut problem = Problem::new(status, refused.problem, refused.detail);
            problem.errors = refused.errors;
            Err(problem)
        }
    }
}
