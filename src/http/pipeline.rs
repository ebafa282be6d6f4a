//! The phases of a request, in order, in one function. The order is part of what they promise: nothing is routed that
//! was not admitted, nothing is sent that is over its limit.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use super::Entry;
use super::action::Kind;
use super::action::proxy::Inbound;
use super::body::{Answer, Exchange, ResponseBody};
use super::connection::Begun;
use super::error;
use super::request::{Expectation, RequestContext, expectation, last_forward};
use super::vars::Vars;
use crate::generation::Serving;
use crate::metrics::WorkerCounters;
use crate::upstream::error::Error;

/// Bytes of a request body that are read and thrown away so that the connection can go on after an answer that did not
/// need it. A longer one ends the connection.
const DISCARD: u64 = 64 * 1024;

/// A response on its way out.
struct Handled {
    response: Response<ResponseBody>,
    /// HTTP/1: the connection can't take another request after this.
    close: bool,
}

impl Handled {
    fn failed(error: &Error, close: bool) -> Handled {
        Handled {
            response: error::respond(error),
            close,
        }
    }
}

/// Answers one request. The caller has pinned `serving` and begun the exchange at its head.
pub async fn serve(
    exchange: Exchange,
    begun: Begun,
    serving: Arc<Serving<Entry>>,
    request: Request<Incoming>,
) -> Answer {
    let http1 = request.version() < Version::HTTP_2;
    let is_head = request.method() == Method::HEAD;
    let counters = &exchange.connection.worker.counters;
    WorkerCounters::add(&counters.requests);
    // A panic costs this request only. What it may have left half done is its own: nothing is shared mutably.
    let handled = AssertUnwindSafe(handle(&exchange, begun, &serving, request))
        .catch_unwind()
        .await;
    let Handled {
        mut response,
        close,
    } = handled.unwrap_or_else(|_| {
        WorkerCounters::add(&counters.panics);
        Handled {
            response: error::plain(StatusCode::INTERNAL_SERVER_ERROR),
            close: true,
        }
    });
    // A 304 tells of another response's content, a 204 has none: a length of 0 would be wrong (RFC 9110 section 8.6).
    let has_length = !matches!(
        response.status(),
        StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT
    );
    if is_head
        && let Some(length) = response.body_mut().suppress()
        && has_length
    {
        response
            .headers_mut()
            .entry(CONTENT_LENGTH)
            .or_insert_with(|| HeaderValue::from(length));
    }
    let connection = &exchange.connection;
    if http1 && (close || begun.last || connection.is_finishing()) {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
        connection.leave_unread();
    }
    response.body_mut().hold(exchange);
    Ok(response)
}

async fn handle(
    exchange: &Exchange,
    begun: Begun,
    serving: &Serving<Entry>,
    request: Request<Incoming>,
) -> Handled {
    let connection = &*exchange.connection;
    let (mut parts, body) = request.into_parts();
    // hyper's offer to upgrade: nothing here takes it.
    parts.extensions.clear();
    let uri = std::mem::take(&mut parts.uri);
    let has_body = !body.is_end_stream();

    // Admission.
    let context = match RequestContext::admit(connection, &mut parts, &uri, begun.head) {
        Ok(context) => context,
        Err(error) => return Handled::failed(&error, true),
    };
    let expectation = match expectation(&mut parts) {
        Ok(expectation) => expectation,
        Err(error) => return Handled::failed(&error, true),
    };
    match last_forward(&mut parts) {
        Ok(false) => {}
        Ok(true) => {
            // What is left of OPTIONS here says nothing; TRACE would only show the client its own fields.
            let is_options = parts.method == Method::OPTIONS;
            let status = if is_options {
                StatusCode::NO_CONTENT
            } else {
                StatusCode::METHOD_NOT_ALLOWED
            };
            let mut response = error::plain(status);
            if is_options {
                response.body_mut().suppress();
                response.headers_mut().clear();
            }
            return Handled {
                response,
                close: has_body,
            };
        }
        Err(error) => return Handled::failed(&error, true),
    }

    // Routing.
    let entry = &*serving.entry;
    let Some(server) = entry.server(context.host_name()) else {
        return local(
            error::plain(StatusCode::NOT_FOUND),
            &context,
            body,
            expectation,
        )
        .await;
    };
    let (route, action) = server.find(&context.head(&parts));
    let Some(action) = action else {
        return local(
            error::plain(StatusCode::NOT_FOUND),
            &context,
            body,
            expectation,
        )
        .await;
    };
    exchange.progress.flight.define(action.definition);

    // Limits.
    let limit = route.map_or(server.body_limit, |route| route.body_limit);
    if let Some(limit) = limit
        && let Some(length) = body.size_hint().exact()
        && length > limit
    {
        let error = Error::client(
            StatusCode::PAYLOAD_TOO_LARGE,
            "Content-Length is over the limit",
        );
        return Handled::failed(&error, true);
    }

    // Action.
    let vars = |parts| Vars {
        context: &context,
        parts,
        server: &server.name,
        route: route.and_then(|route| route.name.as_deref()),
        generation: serving.generation.id,
    };
    match &action.kind {
        Kind::Respond(respond) => {
            local(respond.respond(&vars(&parts)), &context, body, expectation).await
        }
        Kind::Files(files) => {
            let flight = &exchange.progress.flight;
            let response = match files.respond(&vars(&parts), flight).await {
                Ok(response) => response,
                Err(error) => error::respond(&error),
            };
            local(response, &context, body, expectation).await
        }
        Kind::Redirect(redirect) => {
            local(redirect.respond(&vars(&parts)), &context, body, expectation).await
        }
        Kind::Proxy(proxy) => {
            let inbound = Inbound {
                parts,
                body,
                expectation,
                limit,
            };
            match proxy
                .forward(
                    &context,
                    inbound,
                    &exchange.progress.flight,
                    action.definition,
                )
                .await
            {
                Ok(response) => Handled {
                    response,
                    close: false,
                },
                // Part of the body may be read, part not: the next request's start is lost.
                Err(error) => Handled::failed(&error, has_body),
            }
        }
    }
}

/// An answer of our own, which needs no request body: reads a small one away so that the connection goes on, ends the
/// connection for any other.
async fn local(
    response: Response<ResponseBody>,
    context: &RequestContext<'_>,
    body: Incoming,
    expectation: Expectation,
) -> Handled {
    if body.is_end_stream() || context.version == Version::HTTP_2 {
        // An HTTP/2 stream ends alone.
        return Handled {
            response,
            close: false,
        };
    }
    let small = body
        .size_hint()
        .exact()
        .is_none_or(|length| length <= DISCARD);
    // A client that waits for 100 Continue has sent nothing yet, and must not be asked for it now.
    let done = expectation == Expectation::None
        && small
        && discard(body, context.connection.spec.body_timeout).await;
    if done {
        context.connection.body_read();
    }
    Handled {
        response,
        close: !done,
    }
}

/// True if the body ended within [`DISCARD`] bytes, each piece within `timeout`.
async fn discard(mut body: Incoming, timeout: Option<Duration>) -> bool {
    let mut left = DISCARD;
    loop {
        let next = match timeout {
            Some(timeout) => tokio::time::timeout(timeout, body.frame()).await.ok(),
            None => Some(body.frame().await),
        };
        match next {
            None | Some(Some(Err(_))) => return false,
            Some(None) => return true,
            Some(Some(Ok(frame))) => {
                let size = frame.data_ref().map_or(0, |data| data.len() as u64);
                match left.checked_sub(size) {
                    Some(rest) => left = rest,
                    None => return false,
                }
            }
        }
    }
}
