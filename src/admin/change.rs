//! `POST /reload`, `/adapt` and `/stop`: three requests to the supervisor that differ in what they carry. A handler
//! reads, checks, queues, and from then on only observes: dropping it (the client hung up) changes nothing. A task of
//! the server's own writes the audit line and remembers the answer for `Idempotency-Key`.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Response, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::App;
use super::control::Control;
use super::idempotency::{self, Claim};
use super::incoming::{actor, document, if_match, read, read_only};
use super::media::{self, Media};
use super::problem::{Problem, Refusal};
use super::query::{Query, Wait};
use super::stream;
use crate::config::{Diagnostic, Format};
use crate::supervisor::event::{Kind, Outcome, Phase};
use crate::supervisor::plan::Plan;
use crate::supervisor::{Source, SwapRecord, SwapRequest};

/// Query keys of `/reload` that later versions bring.
const LATER: &[&str] = &[
    "canary",
    "for",
    "confirm",
    "max_errors",
    "max_latency",
    "min_requests",
];

/// Answer of `/reload` and `/stop`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SwapAnswer {
    pub outcome: Outcome,
    /// For `/swaps/{id}`.
    pub swap: u64,
    /// The generation that serves now; 0 after a stop.
    pub generation: u64,
    /// The generation that served before; absent when nothing changed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub previous: Option<u64>,
    /// Of the configuration that runs now, for `If-Match`; absent after a stop.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub etag: Option<String>,
    /// `committed`, or with `wait=drained` how it ended: `cut` says that the deadline closed something.
    pub phase: Phase,
    pub warnings: Vec<Diagnostic>,
    pub plan: Plan,
    /// Anything worth a sentence.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
}

/// Answer of `/adapt`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AdaptAnswer {
    pub outcome: Outcome,
    /// For `/swaps/{id}`.
    pub swap: u64,
    /// The generation that serves, unchanged by this call.
    pub generation: u64,
    /// The normalized document, secrets redacted, as `/now` would show it.
    pub config: serde_json::Map<String, serde_json::Value>,
    pub warnings: Vec<Diagnostic>,
    pub plan: Plan,
}

pub(crate) async fn reload<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let (parts, body) = read(request).await?;
    let query = Query::parse(
        &parts.uri,
        &["wait", "drain_timeout", "strict", "turn"],
        LATER,
    )?;
    let wait = query.wait(&[Wait::Accepted, Wait::Committed, Wait::Drained])?;
    let swap = SwapRequest {
        kind: Kind::Reload,
        source: document(&parts.headers, &body)?,
        if_match: if_match(&parts.headers)?,
        drain_timeout: query.duration("drain_timeout")?,
        strict: query.flag("strict")?,
        turn: query.duration("turn")?,
        actor: actor(&parts),
        read_only: read_only(&parts),
    };
    let form = media::preferred(
        &parts.headers,
        &[Media::Json, Media::Ndjson, Media::EventStream],
    );
    queue(&app, swap, &parts, &body, wait, form).await
}

pub(crate) async fn adapt<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let (parts, body) = read(request).await?;
    let query = Query::parse(&parts.uri, &["strict", "turn"], &[])?;
    let swap = SwapRequest {
        kind: Kind::Adapt,
        source: document(&parts.headers, &body)?,
        if_match: if_match(&parts.headers)?,
        drain_timeout: None,
        strict: query.flag("strict")?,
        turn: query.duration("turn")?,
        actor: actor(&parts),
        read_only: read_only(&parts),
    };
    let offered = [Media::Json, Media::Text, Media::Ndjson, Media::EventStream];
    let form = media::preferred(&parts.headers, &offered);
    queue(&app, swap, &parts, &body, None, form).await
}

pub(crate) async fn stop<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let (parts, body) = read(request).await?;
    let query = Query::parse(&parts.uri, &["wait", "drain_timeout"], &[])?;
    let wait = query.wait(&[Wait::Accepted, Wait::Committed, Wait::Drained])?;
    // A form's content type is refused even with nothing after it: that is what an empty HTML form sends.
    let typed = media::body_format(&parts.headers)?.is_some();
    if !body.iter().all(u8::is_ascii_whitespace) && body.trim_ascii() != b"{}" {
        return Err(match typed {
            true => Problem::new(
                StatusCode::BAD_REQUEST,
                "body-not-expected",
                "/stop takes no body",
            ),
            false => media::unsupported("/stop takes no body"),
        });
    }
    let swap = SwapRequest {
        kind: Kind::Stop,
        source: Source::Embedded {
            bytes: Bytes::new(),
            format: Format::Toml,
        },
        if_match: if_match(&parts.headers)?,
        drain_timeout: query.duration("drain_timeout")?,
        strict: false,
        turn: None,
        actor: actor(&parts),
        read_only: read_only(&parts),
    };
    let form = media::preferred(
        &parts.headers,
        &[Media::Json, Media::Ndjson, Media::EventStream],
    );
    queue(&app, swap, &parts, &body, wait, form).await
}

/// Queues the swap (or finds the one of the same key) and answers as asked.
async fn queue<C: Control>(
    app: &App<C>,
    request: SwapRequest,
    parts: &Parts,
    body: &Bytes,
    wait: Option<Wait>,
    form: Media,
) -> Result<Response<Body>, Refusal> {
    let kind = request.kind;
    let actor = request.actor.clone();
    // An adapt changes nothing, so trying twice is harmless and the key means nothing there.
    let key = if kind == Kind::Adapt {
        None
    } else {
        idempotency::key(&parts.headers)?
    };
    let (swap, known) = match &key {
        Some(key) => {
            let part = |name| {
                parts
                    .headers
                    .get(name)
                    .map_or(&b""[..], HeaderValue::as_bytes)
            };
            let fingerprint = idempotency::fingerprint(&[
                parts.method.as_str().as_bytes(),
                parts.uri.path().as_bytes(),
                parts.uri.query().unwrap_or("").as_bytes(),
                part(header::CONTENT_TYPE),
                body,
            ]);
            match app
                .0
                .keys
                .claim(key, fingerprint, || app.control().submit(request))?
            {
                Claim::New(swap) => (swap, None),
                Claim::Known(swap, answer) => (swap, Some(answer)),
            }
        }
        None => (app.control().submit(request)?, None),
    };
    match &known {
        None => observe(app, swap, kind, actor, parts, key),
        Some(_) => {
            tracing::info!(target: "evergate::audit", swap, actor, "admin call repeated: it gets the first one's answer");
        }
    }
    let remembered = known.flatten();
    if wait == Some(Wait::Accepted) {
        return accepted(app, swap, remembered);
    }
    let until = wait.unwrap_or(Wait::Committed);
    if matches!(form, Media::Ndjson | Media::EventStream) {
        let events = app.control().follow(swap);
        return Ok(stream::answer(
            events,
            form,
            wait == Some(Wait::Committed),
            remembered,
        ));
    }
    let mut record = match app.control().wait(swap, until == Wait::Committed).await {
        Some(record) => record,
        // The history has let it go; the key's answer is kept longer.
        None => remembered
            .map(|record| SwapRecord::clone(&record))
            .ok_or_else(|| lost(swap))?,
    };
    if until == Wait::Committed
        && matches!(record.outcome, Some(Outcome::Committed | Outcome::Stopped))
    {
        // As far as was asked: how far the drain happens to be by now would make a retry's answer another one.
        record.phase = Phase::Committed;
    }
    finished(app, record, form)
}

/// Sees the swap to its end on the server's account.
fn observe<C: Control>(
    app: &App<C>,
    swap: u64,
    kind: Kind,
    actor: String,
    parts: &Parts,
    key: Option<Arc<str>>,
) {
    let what = parts
        .uri
        .path_and_query()
        .map_or_else(|| parts.uri.path().to_owned(), |target| target.to_string());
    let agent = parts
        .headers
        .get(header::USER_AGENT)
        .and_then(|agent| agent.to_str().ok())
        .unwrap_or("-")
        .to_owned();
    tracing::info!(target: "evergate::audit", swap, actor, what = what.as_str(), agent, "admin call received");
    let (control, keys, ended) = (
        app.control().clone(),
        app.0.keys.clone(),
        app.0.ended.clone(),
    );
    let watch = async move {
        if let Some(record) = control.wait(swap, true).await {
            let outcome = record.outcome.map_or_else(String::new, media::name);
            let (status, generation) = (record.status, record.generation);
            let problem = record.problem.as_deref().unwrap_or("");
            tracing::info!(
                target: "evergate::audit",
                swap, kind = media::name(kind), actor, what, outcome, status, generation, problem,
                "admin call decided"
            );
        }
        if let Some(key) = key
            && let Some(record) = control.wait(swap, false).await
        {
            keys.finish(&key, record);
        }
    };
    app.0.observers.spawn(async move {
        tokio::select! {
            () = watch => {}
            () = ended.cancelled() => {}
        }
    });
}

/// 202: the swap goes its way, and here is where to look.
fn accepted<C: Control>(
    app: &App<C>,
    swap: u64,
    remembered: Option<Arc<SwapRecord>>,
) -> Result<Response<Body>, Refusal> {
    let record = match (app.control().swap(swap), remembered) {
        (Some(record), _) => record,
        (None, Some(record)) => SwapRecord::clone(&record),
        (None, None) => return Err(lost(swap)),
    };
    let mut response = media::json_answer(&record);
    *response.status_mut() = StatusCode::ACCEPTED;
    if let Ok(location) = HeaderValue::from_str(&format!("/swaps/{swap}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The plain answer of a swap that has come as far as was asked.
fn finished<C: Control>(
    app: &App<C>,
    record: SwapRecord,
    form: Media,
) -> Result<Response<Body>, Refusal> {
    if let Some(problem) = Problem::of(&record) {
        return Err(problem);
    }
    let running = app.control().running();
    let generation = match (record.generation, record.kind) {
        (Some(generation), Kind::Boot | Kind::Reload) => generation,
        (_, Kind::Stop) => 0,
        _ => running.as_ref().map_or(0, |running| running.generation),
    };
    let plan = record.plan.unwrap_or_default();
    let mut response = match (record.kind, form) {
        (Kind::Adapt, Media::Text) => {
            let text = super::adapt::readable(&plan, &record.warnings);
            media::answer(StatusCode::OK, Media::Text.content_type(), text)
        }
        (Kind::Adapt, _) => {
            let config = match record.config {
                Some(serde_json::Value::Object(config)) => config,
                _ => serde_json::Map::new(),
            };
            let outcome = record.outcome.unwrap_or(Outcome::Adapted);
            let (swap, warnings) = (record.swap, record.warnings);
            media::json_answer(&AdaptAnswer {
                outcome,
                swap,
                generation,
                config,
                warnings,
                plan,
            })
        }
        (kind, _) => media::json_answer(&SwapAnswer {
            outcome: record.outcome.unwrap_or(if kind == Kind::Stop {
                Outcome::Stopped
            } else {
                Outcome::Committed
            }),
            swap: record.swap,
            generation,
            previous: record.previous,
            etag: match kind {
                Kind::Stop => None,
                _ => record
                    .etag
                    .or_else(|| running.map(|running| running.etag.clone())),
            },
            phase: record.phase,
            warnings: record.warnings,
            plan,
            detail: record.detail,
        }),
    };
    response
        .headers_mut()
        .insert("evergate-generation", HeaderValue::from(generation));
    Ok(response)
}

fn lost(swap: u64) -> Refusal {
    let detail = format!("the end of swap {swap} is no longer known");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
}
