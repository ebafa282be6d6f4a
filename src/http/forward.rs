//! HTTP with a forward proxy ([`crate::forward`]): CONNECT, which joins the client with where it wants to go, and requests for
//! an absolute URL, which are sent on there, each for itself (RFC 9110 sections 7.6 and 9.3.6, RFC 9112 section 3.2.2).
//!
//! It promises: whoever has to show who he is does so before anything is looked up or dialled, with each request; what he
//! shows never leaves this proxy.

use std::pin::pin;
use std::sync::Arc;

use http::header::{CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RETRY_AFTER, TE, VIA};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::action::proxy::{inbound_response, until_cut};
use super::body::{Content, Exchange, ResponseBody};
use super::error;
use super::extended::Agreed;
use super::filter::basic_auth::credentials;
use super::headers;
use super::passage::Passage;
use super::pipeline::{Handled, local};
use super::progress::Place;
use super::record::Record;
use super::request::{Expectation, RequestContext};
use super::switch::{Becomes, Switch};
use super::vars::Vars;
use crate::forward::{Ask, Denied, Destination, Forward, Reached};
use crate::l4::pace::Paced;
use crate::session::Start;
use crate::upstream::alone;
use crate::upstream::error::Error;

/// What a client asks a forward proxy for.
pub(super) struct Asked<'a> {
    pub(super) parts: &'a mut Parts,
    pub(super) uri: &'a Uri,
    pub(super) body: Incoming,
    pub(super) expectation: Expectation,
    /// A websocket on a stream of HTTP/2, which leads to no origin here.
    pub(super) websocket: bool,
    /// HTTP/2: what becomes the passage.
    pub(super) stream: Option<OnUpgrade>,
}

/// What may be said of a request before it is known where it goes.
pub(super) fn vars<'a>(
    proxy: &'a Forward,
    context: &'a RequestContext<'a>,
    parts: &'a Parts,
    generation: u64,
) -> Vars<'a> {
    Vars {
        context,
        parts,
        server: &proxy.name,
        route: None,
        generation,
    }
}

/// Answers one request, or makes a passage of its connection.
pub(super) async fn handle(
    proxy: &Arc<Forward>,
    exchange: &Exchange,
    context: &mut RequestContext<'_>,
    asked: Asked<'_>,
    record: &mut Record,
) -> Handled {
    let http1 = context.version < Version::HTTP_2;
    let flight = &exchange.progress.flight;
    flight.define(proxy.definition());
    let Asked {
        parts,
        uri,
        body,
        expectation,
        websocket,
        stream,
    } = asked;
    let answer = |response, body| local(response, body, expectation, http1);
    // A swap may have come since it connected.
    if !proxy.may_connect(exchange.connection.peer.ip()) {
        let text = "not one of the clients of this proxy";
        return Handled::answered(error::say(StatusCode::FORBIDDEN, text), true);
    }
    if proxy.asks_for_users() {
        let admitted = pin!(async { Ok(admit(proxy, parts).await) });
        match until_cut(admitted, flight).await {
            Ok(Ok(user)) => {
                record.user = Some(user.clone());
                context.user = Some(user);
            }
            Ok(Err(refusal)) => return answer(*refusal, body),
            Err(error) => return Handled::failed(&error, true),
        }
    }
    if websocket {
        let text = "a websocket goes through CONNECT here";
        return answer(error::say(StatusCode::NOT_IMPLEMENTED, text), body);
    }
    let connects = parts.method == Method::CONNECT;
    let to = match destination(uri, connects) {
        Ok(to) => to,
        Err((status, text)) => return answer(error::say(status, text), body),
    };
    // What is sent on, and what proxies on the way are told: a loop ends.
    if let Err(error) = headers::set_via(&mut parts.headers, context.version) {
        return answer(error::answer(&error), body);
    }
    let passed = parts.headers.get(VIA).cloned();
    let connection = &exchange.connection;
    let ask = Ask {
        user: context.user.as_ref(),
        client: connection.peer.ip(),
        destination: &to,
    };
    let worker = &connection.worker;
    let reaching = pin!(async { Ok(proxy.reach(worker, ask, passed.as_ref()).await) });
    let reached = match until_cut(reaching, flight).await {
        Ok(Ok(reached)) => reached,
        Ok(Err(refused)) => {
            tracing::debug!(peer = %connection.peer, %to, error = %refused.error, "not reached");
            return answer(error::answer(&refused.error), body);
        }
        Err(error) => return Handled::failed(&error, true),
    };
    if !connects {
        let sending = pin!(send(
            proxy,
            exchange,
            context,
            (parts, uri, body, expectation),
            reached,
            record
        ));
        return match until_cut(sending, flight).await {
            Ok(response) => Handled::answered(response, false),
            Err(error) => Handled::failed(&error, false),
        };
    }
    if !http1 && stream.is_none() {
        return Handled::answered(error::plain(StatusCode::BAD_REQUEST), false);
    }
    let passage = Passage {
        reached,
        proxy: proxy.clone(),
        worker: worker.clone(),
        start: Start {
            client: connection.peer.address(),
            user: context.user.clone(),
            listener: Some(proxy.name.clone()),
            destination: Some(to.to_string().into()),
            ..Start::default()
        },
        progress: exchange.progress.clone(),
        record: None,
        on_change: proxy.spec.on_change,
    };
    let mut response = Response::new(ResponseBody::new(Content::Empty));
    response.extensions_mut().insert(Agreed);
    let becomes = Becomes::Passage(Box::new(passage));
    Handled::switched(response, Switch { becomes, stream })
}

/// Who it is.
async fn admit(proxy: &Forward, parts: &Parts) -> Result<Arc<str>, Box<Response<ResponseBody>>> {
    let denied = match credentials(&parts.headers, &PROXY_AUTHORIZATION) {
        None => Denied::Wrong,
        Some((name, password)) => match proxy.authenticate(name, password).await {
            Ok(user) => return Ok(user),
            Err(denied) => denied,
        },
    };
    Err(Box::new(match denied {
        Denied::Wrong => {
            let mut response = error::plain(StatusCode::PROXY_AUTHENTICATION_REQUIRED);
            let challenge = HeaderValue::from_static("Basic realm=\"evergate\", charset=\"UTF-8\"");
            response.headers_mut().insert(PROXY_AUTHENTICATE, challenge);
            response
        }
        Denied::Busy => {
            let mut response = error::plain(StatusCode::SERVICE_UNAVAILABLE);
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(1));
            response
        }
    }))
}

/// Where a request is to go, or what is to be said to one that does not tell.
fn destination(uri: &Uri, connects: bool) -> Result<Destination, (StatusCode, &'static str)> {
    const BAD: StatusCode = StatusCode::BAD_REQUEST;
    let Some(authority) = uri.authority() else {
        return Err((
            BAD,
            "this is a forward proxy: ask for a whole URL, or CONNECT",
        ));
    };
    let port = match (authority.port_u16(), connects) {
        (Some(port), _) => port,
        (None, true) => return Err((BAD, "CONNECT needs a host and a port")),
        (None, false) if authority.port().is_some() => return Err((BAD, "not a port")),
        (None, false) => 80,
    };
    if !connects
        && !uri
            .scheme_str()
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("http"))
    {
        let text = "only http is spoken for clients here: use CONNECT";
        return Err((StatusCode::NOT_IMPLEMENTED, text));
    }
    Destination::new(authority.host(), port).ok_or((
        BAD,
        "not a name or a whole IP address, with a port from 1 to 65535",
    ))
}

/// Sends a request on, and has the answer.
async fn send(
    proxy: &Forward,
    exchange: &Exchange,
    context: &RequestContext<'_>,
    (parts, uri, body, expectation): (&mut Parts, &Uri, Incoming, Expectation),
    reached: Reached,
    record: &Record,
) -> Result<Response<ResponseBody>, Error> {
    let fields = &mut parts.headers;
    let wishes = headers::strip_proxied(fields);
    if context.version == Version::HTTP_2 {
        headers::join_cookies(fields);
    }
    // The connection ends with the answer.
    let options = if wishes.trailers {
        "close, te"
    } else {
        "close"
    };
    fields.insert(CONNECTION, HeaderValue::from_static(options));
    if wishes.trailers {
        fields.insert(TE, HeaderValue::from_static("trailers"));
    }
    let body = context.sent_on(fields, body, expectation, None, record.cell().cloned());
    let mut request = Request::new(body);
    *request.method_mut() = std::mem::take(&mut parts.method);
    *request.uri_mut() = origin_form(uri)?;
    *request.headers_mut() = std::mem::take(fields);
    let Reached {
        link,
        to: peer,
        place,
        ..
    } = reached;
    if let Some(place) = place {
        exchange.progress.hold(Place::User(place));
    }
    let silence = proxy.spec.timeouts.idle;
    let response = match proxy.spec.limits.bandwidth {
        None => alone::send(link, peer, request, silence).await,
        Some(rate) => alone::send(Paced::both_ways(link, rate), peer, request, silence).await,
    };
    let response = inbound_response(response?);
    Ok(response.map(|body| ResponseBody::new(Content::Upstream(body))))
}

/// Path and query as they came: they are between the client and the origin (RFC 9110 section 7.7).
fn origin_form(uri: &Uri) -> Result<Uri, Error> {
    let target = match uri.path_and_query() {
        None => PathAndQuery::from_static("/"),
        Some(target) if target.as_str().starts_with(['/', '*']) => target.clone(),
        Some(target) => PathAndQuery::try_from(format!("/{}", target.as_str()))
            .map_err(|error| Error::client(StatusCode::BAD_REQUEST, error.to_string()))?,
    };
    Ok(Uri::from(target))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_in_the_target_or_nowhere() {
        let ask = |uri: &str, connects| {
            let found = destination(&uri.parse().unwrap(), connects);
            found
                .map(|to| to.to_string())
                .map_err(|(status, _)| status.as_u16())
        };
        assert_eq!(ask("a.test:443", true), Ok("a.test:443".into()));
        assert_eq!(ask("[::1]:443", true), Ok("[::1]:443".into()));
        assert_eq!(ask("http://A.test./x", false), Ok("a.test:80".into()));
        assert_eq!(
            ask("HTTP://127.0.0.1:8080?x", false),
            Ok("127.0.0.1:8080".into())
        );
        assert_eq!(ask("a.test", true), Err(400));
        assert_eq!(ask("a.test:0", true), Err(400));
        assert_eq!(ask("/x", false), Err(400));
        assert_eq!(ask("https://a.test/", false), Err(501));
    }

    #[test]
    fn paths_go_on_as_they_came() {
        let sent = |uri: &str| origin_form(&uri.parse().unwrap()).unwrap().to_string();
        assert_eq!(sent("http://a.test"), "/");
        assert_eq!(sent("http://a.test?q"), "/?q");
        assert_eq!(sent("http://a.test/a/../%ff//b?c"), "/a/../%ff//b?c");
    }
}
