//! `GET /sessions` and `POST /sessions/{id}/close`: the long flows, a page at a time, and ending one. A close makes no
//! generation and no swap: asking twice is asking once, so it takes no `Idempotency-Key`.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{Response, StatusCode, header};

use super::App;
use super::control::Control;
use super::incoming::{actor, read};
use super::media;
use super::problem::{Problem, Refusal};
use super::query::Query;
use crate::session::{Kind, Wanted};

/// Sessions of a page, where nothing is said, and at most.
const PAGE: u64 = 100;
const LARGEST_PAGE: u64 = 1000;

pub(crate) async fn list<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let known = ["kind", "client", "listener", "limit", "after"];
    let query = Query::parse(request.uri(), &known, &[])?;
    let wanted = Wanted {
        kind: query.get("kind").map(kind).transpose()?,
        client: query.get("client").map(client).transpose()?,
        listener: query.get("listener").map(str::to_owned),
    };
    let limit = query.number("limit", 1..=LARGEST_PAGE)?.unwrap_or(PAGE);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let after = query.number("after", 0..=u64::MAX)?.unwrap_or(0);
    let page = app.control().sessions(&wanted, after, limit);
    Ok(media::json_answer(&page))
}

fn kind(text: &str) -> Result<Kind, Refusal> {
    Kind::parse(text).ok_or_else(|| {
        let names = Kind::ALL.map(Kind::name).join(", ");
        Problem::bad_query(format!("`kind` is one of {names}, not `{text}`"))
    })
}

fn client(text: &str) -> Result<std::net::IpAddr, Refusal> {
    text.parse().map_err(|_| {
        let detail = format!("`client` is an IP address without a port, not `{text}`");
        Problem::bad_query(detail)
    })
}

pub(crate) async fn close<C: Control>(
    State(app): State<App<C>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let (parts, body) = read(request).await?;
    Query::parse(&parts.uri, &[], &[])?;
    // A form's content type is refused even with nothing after it: that is what an empty HTML form sends.
    let typed = media::body_format(&parts.headers)?.is_some();
    if !body.iter().all(u8::is_ascii_whitespace) && body.trim_ascii() != b"{}" {
        let detail = "the closing of a session takes no body";
        return Err(match typed {
            true => Problem::new(StatusCode::BAD_REQUEST, "body-not-expected", detail),
            false => media::unsupported(detail),
        });
    }
    let agent = parts.headers.get(header::USER_AGENT);
    let agent = agent.and_then(|agent| agent.to_str().ok()).unwrap_or("-");
    let (who, what) = (actor(&parts), parts.uri.path());
    tracing::info!(target: "evergate::audit", actor = who, what, agent, "admin call received");
    let closed = id
        .parse()
        .ok()
        .and_then(|id| app.control().close_session(id));
    closed
        .map(|session| media::json_answer(&session))
        .ok_or_else(|| {
            let detail = format!("there is no session `{id}`: it has ended, or never was; `GET /sessions` has those that are");
            Problem::new(StatusCode::NOT_FOUND, "no-such-session", detail)
        })
}
