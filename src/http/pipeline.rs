//! The phases of a request, in order, in one function. The order is part of what they promise: nothing is routed that
//! was not admitted, nothing is sent that is over its limit.

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, timeout_at};

use super::action::proxy::{Answered, Inbound};
use super::action::{Action, Kind, tcp};
use super::body::{Answer, Exchange, ResponseBody};
use super::connection::{Begun, HeadMarks};
use super::error;
use super::extended;
use super::filter::pace::over;
use super::filter::{Asking, Passed};
use super::forward;
use super::grpc;
use super::progress;
use super::record::Record;
use super::record::id::X_REQUEST_ID;
use super::request::{Expectation, RequestContext, expectation, last_forward};
use super::switch::Switch;
use super::vars::Vars;
use super::{Entry, Face};
use crate::generation::Serving;
use crate::metrics::WorkerCounters;
use crate::session::Start;
use crate::upstream::error::Error;

/// Bytes of a request body that are read and thrown away so that the connection can go on after an answer that did not
/// need it. A longer one ends the connection.
const DISCARD: u64 = 64 * 1024;
/// How long that may take in all, unless `timeouts.body` is less.
pub(crate) const DISCARD_TIME: Duration = Duration::from_secs(5);

/// A response on its way out.
pub(super) struct Handled {
    response: Response<ResponseBody>,
    /// HTTP/1: the connection can't take another request after this.
    close: bool,
    /// What must be read away first, if the connection is to go on.
    unread: Option<Incoming>,
    /// What the connection, or the stream, becomes with it.
    switch: Option<Switch>,
}

impl Handled {
    /// What the connection, or the stream, becomes with an answer.
    pub(super) fn switched(response: Response<ResponseBody>, switch: Switch) -> Handled {
        Handled {
            switch: Some(switch),
            ..Handled::answered(response, false)
        }
    }

    pub(super) fn answered(response: Response<ResponseBody>, close: bool) -> Handled {
        Handled {
            response,
            close,
            unread: None,
            switch: None,
        }
    }

    pub(super) fn failed(error: &Error, close: bool) -> Handled {
        Handled::answered(error::respond(error), close)
    }
}

/// Answers one request. The caller has pinned `serving` and begun the exchange at its head.
//
// No `async fn`: that keeps a place for what it is given beside the one where it has it, and all of the future is copied
// to where it runs. For the same reason what is called here gets the head by reference.
pub fn serve<F: Face>(
    exchange: Exchange,
    begun: Begun,
    serving: Arc<Serving<F>>,
    request: Request<Incoming>,
) -> impl Future<Output = Answer> + Send + use<F> {
    let http1 = request.version() < Version::HTTP_2;
    let http10 = request.version() == Version::HTTP_10;
    let is_head = request.method() == Method::HEAD;
    let has_body = !request.body().is_end_stream();
    // Neither exists on HTTP/1.
    let grpc = !http1 && grpc::is_call(request.headers());
    let connects = !http1 && request.method() == Method::CONNECT;
    let (mut parts, body) = request.into_parts();
    async move {
        let counters = &exchange.connection.worker.counters;
        WorkerCounters::add(&counters.requests);
        let mut record = Record::new();
        let handled = {
            let head = (&mut parts, begun.head);
            let place = (serving.entry.http(), serving.generation.id);
            contain(pin!(handle(&exchange, head, body, place, &mut record))).await
        };
        // What is left needs no routes: a slow client must not keep those of an old generation in memory.
        drop(serving);
        let Handled {
            mut response,
            close,
            unread,
            switch,
        } = handled.unwrap_or_else(|answer| {
            WorkerCounters::add(&counters.panics);
            answer
        });
        if grpc {
            response = grpc::in_words(response);
        }
        if connects {
            response = extended::answer(response);
        }
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
        if let Some(body) = unread
            && discard(body, &exchange).await
        {
            connection.body_read();
        }
        // An answer that comes before all of the body was read ends the connection: nobody will read the rest.
        let half_read = || has_body && !connection.is_body_read();
        if http1
            && switch.is_none()
            && (close || begun.last || connection.is_finishing() || half_read())
        {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
            connection.leave_unread();
        }
        if http10 && !is_head && response.body().size_hint().exact().is_none() {
            connection.leave_open_ended();
        }
        let mut id = record.id();
        // It never comes again: in the client's table of HTTP/2 fields it would only push out what does.
        id.set_sensitive(!http1);
        response.headers_mut().insert(&X_REQUEST_ID, id);
        record.answered(&response);
        // Only here is the answer certain: before, whatever failed would have left a tunnel behind that nobody agreed to.
        let record = match switch {
            Some(switch) => {
                connection.switch(switch, record);
                None
            }
            None => Some(record),
        };
        response.body_mut().hold(exchange, record);
        Ok(response)
    }
}

/// A panic costs this request only, and its connection. What it may have left half done is its own: nothing is shared
/// mutably. `Err`: the answer to it. The caller pins it: taken by value it would have two places in the request's future.
async fn contain(handling: Pin<&mut impl Future<Output = Handled>>) -> Result<Handled, Handled> {
    let handled = AssertUnwindSafe(handling).catch_unwind().await;
    handled.map_err(|_| Handled::answered(error::plain(StatusCode::INTERNAL_SERVER_ERROR), true))
}

async fn handle(
    exchange: &Exchange,
    (parts, marks): (&mut Parts, HeadMarks),
    body: Incoming,
    (entry, generation): (&Entry, u64),
    record: &mut Record,
) -> Handled {
    let connection = &*exchange.connection;
    let handshake = extended::take(parts);
    // hyper's offer to upgrade: whoever drives the connection takes it apart by hand, but for a stream of HTTP/2.
    let stream = entry.forward.as_ref().and_then(|_| extended::stream(parts));
    parts.extensions.clear();
    let uri = std::mem::take(&mut parts.uri);
    let http1 = parts.version < Version::HTTP_2;

    // Admission.
    let (handshake, mut context) = match handshake.and_then(|handshake| {
        let context =
            RequestContext::admit(connection, parts, &uri, marks, entry.forward.is_some())?;
        Ok((handshake, context))
    }) {
        Ok(admitted) => admitted,
        Err(error) => {
            let watch = &entry.watch;
            record.place_stranger(watch, connection, (parts, &uri), generation);
            return Handled::failed(&error, true);
        }
    };
    let nowhere = |record: &mut Record, parts: &Parts| {
        let vars = Vars {
            context: &context,
            parts,
            server: "",
            route: None,
            generation,
        };
        record.place(&entry.watch, &vars);
    };
    let expectation = match expectation(parts) {
        Ok(expectation) => expectation,
        Err(error) => {
            nowhere(record, parts);
            return Handled::failed(&error, true);
        }
    };
    match last_forward(parts) {
        Ok(false) => {}
        Ok(true) => {
            nowhere(record, parts);
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
            return Handled::answered(response, false);
        }
        Err(error) => {
            nowhere(record, parts);
            return Handled::failed(&error, true);
        }
    }

    if let Some(proxy) = &entry.forward {
        record.place(
            &entry.watch,
            &forward::vars(proxy, &context, parts, generation),
        );
        let asked = forward::Asked {
            parts,
            uri: &uri,
            body,
            expectation,
            websocket: handshake.is_some(),
            stream,
        };
        // Boxed: every request's future would carry its state.
        return Box::pin(forward::handle(
            proxy,
            exchange,
            &mut context,
            asked,
            record,
        ))
        .await;
    }

    // Routing.
    let host = context.host_name();
    let found = match entry.server(host) {
        _ if entry.is_elsewhere(host) => Err(StatusCode::MISDIRECTED_REQUEST),
        None => Err(StatusCode::NOT_FOUND),
        Some(server) if entry.misdirected(connection.tls.as_ref(), host, server) => {
            Err(StatusCode::MISDIRECTED_REQUEST)
        }
        Some(server) => Ok(server),
    };
    let server = match found {
        Ok(server) => server,
        Err(status) => {
            nowhere(record, parts);
            return local(error::plain(status), body, expectation, http1);
        }
    };
    if server.client_auth.is_some() {
        let session = connection.tls.as_ref();
        context.client_cert = session.and_then(|session| session.client.as_deref());
    }
    let (route, action) = server.find(&context.head(parts));
    let filters = route.map_or(&*server.filters, |route| &route.filters);
    if let Some(action) = action {
        exchange.progress.flight.define(action.definition);
    }

    let place = Place {
        server: &server.name,
        route: route.and_then(|route| route.name.as_deref()),
        generation,
    };
    let watch = route.map_or(&server.watch, |route| &route.watch);
    record.place(watch, &place.vars(&context, parts));
    let pages = server.error_pages.as_ref().filter(|_| !is_grpc(parts));

    let ends = filters.timeout.map(|limit| (Instant::now() + limit, limit));
    // Boxed: few have filters, and every request's future would carry its room.
    let mut passed = (!filters.is_empty()).then(|| Box::new(Passed::until(ends)));
    let mut late = false;
    let mut handled = {
        let mut work = pin!(async {
            // Filters, on the way in.
            if let Some(passed) = &mut passed {
                let asking = Asking {
                    context: &mut context,
                    parts,
                    server: place.server,
                    route: place.route,
                    generation: place.generation,
                    flight: &exchange.progress.flight,
                };
                if let Err(refusal) = filters.admit(asking, passed).await {
                    record.user.clone_from(&context.user);
                    return local(*refusal, body, expectation, http1);
                }
                if let Some(place) = passed.place.take() {
                    exchange.progress.hold(progress::Place::Filter(place));
                }
            }
            let edits = passed
                .as_mut()
                .map(|passed| std::mem::take(&mut passed.request));
            let has_body = !body.is_end_stream();
            let inbound = Inbound {
                parts,
                body,
                expectation,
                handshake,
                limit: filters.body_limit,
                edits: edits.unwrap_or_default(),
                cell: record.cell().filter(|_| has_body).cloned(),
                upgraded_timeout: server.upgraded_timeout,
                on_change: server.on_change,
            };
            record.user.clone_from(&context.user);
            record.heads_for(action.and_then(Action::upstream));
            act(exchange, &context, action, inbound, &place).await
        });
        match ends {
            None => work.await,
            // Boxed: few have one, and every request's future would carry its timer.
            Some((at, limit)) => match Box::pin(timeout_at(at, work.as_mut())).await {
                Ok(handled) => handled,
                Err(_) => {
                    late = true;
                    Handled::failed(&over(limit), false)
                }
            },
        }
    };
    if late && let Some(passed) = &mut passed {
        // What says so is not held to it.
        passed.ends = None;
    }
    if let Some(pages) = pages {
        pages.replace(&mut handled.response);
    }
    if let Some(passed) = passed {
        filters.back(*passed, &mut handled.response);
    }
    let switch = handled.switch.as_mut();
    if let Some(start) = switch.and_then(|switch| switch.becomes.start()) {
        *start = Start {
            client: context.client_address(),
            user: context.user.clone(),
            listener: Some(server.name.clone()),
            route: route.and_then(|route| route.name.clone()),
            ..Start::default()
        };
    }
    handled
}

/// Such a client reads trailers, not pages.
fn is_grpc(parts: &Parts) -> bool {
    let kind = parts.headers.get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Where in the configuration a request is.
struct Place<'a> {
    server: &'a str,
    route: Option<&'a str>,
    generation: u64,
}

impl Place<'_> {
    fn vars<'v>(&'v self, context: &'v RequestContext<'v>, parts: &'v Parts) -> Vars<'v> {
        Vars {
            context,
            parts,
            server: self.server,
            route: self.route,
            generation: self.generation,
        }
    }
}

/// The action, for what the filters let through.
async fn act(
    exchange: &Exchange,
    context: &RequestContext<'_>,
    action: Option<&Action>,
    inbound: Inbound<'_>,
    place: &Place<'_>,
) -> Handled {
    let http1 = context.version < Version::HTTP_2;
    let answer = |response, inbound: Inbound<'_>| {
        let Inbound {
            body, expectation, ..
        } = inbound;
        local(response, body, expectation, http1)
    };
    if let Some(limit) = inbound.limit
        && let Some(length) = inbound.body.size_hint().exact()
        && length > limit
    {
        let error = Error::client(
            StatusCode::PAYLOAD_TOO_LARGE,
            "Content-Length is over the limit",
        );
        return Handled::failed(&error, true);
    }
    let Some(action) = action else {
        return answer(error::plain(StatusCode::NOT_FOUND), inbound);
    };
    match &action.kind {
        Kind::Respond(respond) => {
            let response = respond.respond(&place.vars(context, inbound.parts));
            answer(response, inbound)
        }
        Kind::Redirect(redirect) => {
            let response = redirect.respond(&place.vars(context, inbound.parts));
            answer(response, inbound)
        }
        Kind::Files(files) => {
            let flight = &exchange.progress.flight;
            let response = match files
                .respond(&place.vars(context, inbound.parts), flight)
                .await
            {
                Ok(response) => response,
                Err(error) => error::respond(&error),
            };
            answer(response, inbound)
        }
        Kind::Tcp(tcp) => {
            if let Err(refusal) = tcp::check(context, &inbound) {
                return answer(*refusal, inbound);
            }
            let chosen = match tcp.choose(&place.vars(context, inbound.parts)) {
                Ok(chosen) => chosen,
                Err(error) => return Handled::failed(&error, false),
            };
            let progress = &exchange.progress;
            let bridging = tcp.bridge(context, inbound, progress, action.definition, chosen);
            // Boxed: every request's future would carry its state.
            finished(Box::pin(bridging).await)
        }
        Kind::Proxy(proxy) => {
            let chosen = match proxy.choose(&place.vars(context, inbound.parts)) {
                Ok(chosen) => chosen,
                Err(error) => return Handled::failed(&error, false),
            };
            let progress = &exchange.progress;
            finished(
                proxy
                    .forward(context, inbound, progress, action.definition, chosen)
                    .await,
            )
        }
    }
}

fn finished(answered: Result<Answered, Error>) -> Handled {
    match answered {
        Ok((response, Some(switch))) => Handled::switched(response, switch),
        Ok((response, None)) => Handled::answered(response, false),
        Err(error) => Handled::failed(&error, false),
    }
}

/// An answer of our own, which needs no request body: a small one is read away so that the connection goes on, any other
/// ends it. An HTTP/2 stream ends alone.
pub(super) fn local(
    response: Response<ResponseBody>,
    body: Incoming,
    expectation: Expectation,
    http1: bool,
) -> Handled {
    let small = body
        .size_hint()
        .exact()
        .is_none_or(|length| length <= DISCARD);
    // A client that waits for 100 Continue has sent nothing yet, and must not be asked for it now.
    let wanted = http1 && small && !body.is_end_stream() && expectation == Expectation::None;
    Handled {
        response,
        close: false,
        unread: wanted.then_some(body),
        switch: None,
    }
}

/// True if the body ended within [`DISCARD`] bytes and [`DISCARD_TIME`], before the request was cut.
async fn discard(mut body: Incoming, exchange: &Exchange) -> bool {
    let read = async {
        let mut left = DISCARD;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            let size = frame.data_ref().map_or(0, |data| data.len() as u64);
            let Some(rest) = left.checked_sub(size) else {
                return false;
            };
            left = rest;
        }
        true
    };
    let limit = exchange.connection.spec.body_timeout;
    let limit = limit.map_or(DISCARD_TIME, |limit| limit.min(DISCARD_TIME));
    let mut read = pin!(tokio::time::timeout(limit, read));
    poll_fn(|cx| match exchange.progress.flight.poll_cut(cx) {
        Poll::Ready(()) => Poll::Ready(false),
        Poll::Pending => read.as_mut().poll(cx).map(|done| done.unwrap_or(false)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_500_and_the_end_of_its_connection() {
        let broken = pin!(async { panic!("in a handler") });
        let answer = contain(broken).await.err();
        let answer = answer.map(|handled| (handled.response.status().as_u16(), handled.close));
        assert_eq!(answer, Some((500, true)));
        let fine = pin!(async { Handled::answered(error::plain(StatusCode::OK), false) });
        assert!(contain(fine).await.is_ok());
    }
}
