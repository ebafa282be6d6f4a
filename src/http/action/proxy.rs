//! The reverse proxy: one request, made fit for an origin, sent through its upstream; the answer made fit for the
//! client. Bodies stream both ways and are never gathered.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_KEY, SET_COOKIE, TE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};
use hyper::ext::ReasonPhrase;

use super::upgrade::{self, Outbound, Switching};
use crate::config::http::{HostHeader, ProxySpec, RetrySpec, Scheme};
use crate::config::runtime::OnChange;
use crate::generation::Flight;
use crate::http::action::with_target;
use crate::http::body::ResponseBody;
use crate::http::extended::Handshake;
use crate::http::filter::Edit;
use crate::http::headers;
use crate::http::progress::Progress;
use crate::http::record::id::X_REQUEST_ID;
use crate::http::request::{Expectation, RequestContext};
use crate::http::switch::Switch;
use crate::http::text;
use crate::http::vars::Vars;
use crate::http::websocket;
use crate::metrics::cell::Cell;
use crate::upstream::body::RequestBody;
use crate::upstream::error::{Error, Kind};
use crate::upstream::sticky::StickyId;
use crate::upstream::{Choice, KeyedBy, SendOptions, Target, Upstream, hash};

/// `proxy`.
#[derive(Debug)]
pub struct Proxy {
    /// `None` only if a document broke its promise to hold every upstream it names.
    pub upstream: Option<Arc<Upstream>>,
    base: String,
    host_header: HostHeader,
    timeout: Option<Duration>,
    websocket: bool,
    /// `None`: what an upstream does of itself.
    retries: Option<Arc<RetrySpec>>,
    buffer: u64,
    on_change: Option<OnChange>,
}

/// What a proxied request brings with it.
#[derive(Debug)]
pub struct Inbound<'a> {
    /// What is sent on of it is taken from here.
    pub parts: &'a mut Parts,
    pub body: Incoming,
    pub expectation: Expectation,
    /// It asks for a websocket on an HTTP/2 stream.
    pub handshake: Option<Handshake>,
    /// Largest body in bytes.
    pub limit: Option<u64>,
    /// Changes of fields that filters want.
    pub edits: Vec<Edit>,
    /// Where the body's bytes are counted; none is needed for one that is empty.
    pub cell: Option<Arc<Cell>>,
    /// How long a websocket may be silent.
    pub upgraded_timeout: Option<Duration>,
    /// As the server says.
    pub on_change: OnChange,
}

/// An origin's answer; with one that agrees to a websocket, what comes of it.
pub(in crate::http) type Answered = (Response<ResponseBody>, Option<Switch>);

/// Where a request goes, and what keeps it there.
#[derive(Debug)]
pub struct Chosen<'a> {
    /// It has targets of its own.
    pub upstream: &'a Upstream,
    /// The hash that its policy chooses the target by, if it wants one.
    key: Option<u64>,
    /// What the client's cookie says.
    sticky: Option<StickyId>,
    /// Of the splits on the way.
    cookies: Vec<HeaderValue>,
}

impl Chosen<'_> {
    /// Tells the client which target, and which members of splits, are its own from now on, unless it knows.
    pub(super) fn stick<B>(
        self,
        response: &mut Response<B>,
        target: &Target,
        context: &RequestContext<'_>,
    ) {
        let secure = context.scheme == Scheme::Https;
        let own = self.upstream.set_cookie(target, self.sticky, secure);
        for cookie in self.cookies.into_iter().chain(own) {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
    }
}

impl Proxy {
    pub fn build(spec: &ProxySpec, upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>) -> Proxy {
        Proxy {
            upstream: upstreams.get(&spec.upstream).cloned(),
            base: spec.base.clone(),
            host_header: spec.host_header.clone(),
            timeout: spec.timeout,
            websocket: spec.websocket,
            retries: (!spec.retries.is_default()).then(|| Arc::new(spec.retries.clone())),
            buffer: spec.buffer,
            on_change: spec.on_change,
        }
    }

    /// The upstream that takes the request, of the members if it is a split, and what its policy asks of the request.
    ///
    /// # Errors
    /// There is none: a document broke its promise.
    pub fn choose(&self, vars: &Vars<'_>) -> Result<Chosen<'_>, Error> {
        let upstream = self.upstream.as_ref().ok_or_else(|| {
            Error::us(
                Kind::ProxyConfigurationError,
                "the route's upstream does not exist",
            )
        })?;
        let cookie = |name: &str| {
            text::cookies(&vars.parts.headers)
                .find(|(key, _)| *key == name.as_bytes())
                .and_then(|(_, value)| StickyId::read(value))
        };
        let Choice { upstream, cookies } =
            upstream.lead(cookie, vars.context.scheme == Scheme::Https);
        let key = match upstream.keyed_by() {
            KeyedBy::Nothing => None,
            KeyedBy::ClientIp => vars.context.client.map(hash::of_ip),
            // A request without the text it asks for has none: all such would meet at one target.
            KeyedBy::Template(template) => {
                let text = template.render(vars);
                (!text.is_empty()).then(|| hash::of_bytes(text.as_bytes()))
            }
        };
        Ok(Chosen {
            upstream,
            sticky: upstream.sticky_cookie().and_then(cookie),
            key,
            cookies,
        })
    }

    /// Sends the request to what [`Proxy::choose`] has chosen and answers with the origin's response. `definition` is the
    /// action's; with the answer the flight also lives by the target that gave it.
    ///
    /// # Errors
    /// In the vocabulary of RFC 9209. Nothing was sent to the client then.
    pub async fn forward(
        &self,
        context: &RequestContext<'_>,
        mut inbound: Inbound<'_>,
        progress: &Arc<Progress>,
        definition: u64,
        chosen: Chosen<'_>,
    ) -> Result<Answered, Error> {
        let upstream = chosen.upstream;
        let switching = Switching {
            idle: inbound.upgraded_timeout,
            on_change: self.on_change.unwrap_or(inbound.on_change),
        };
        let handshake = inbound.handshake.take().filter(|_| self.websocket);
        let extended = handshake.is_some();
        let (mut request, mut options, websocket) = self.outbound(context, inbound, extended)?;
        (options.key, options.sticky) = (chosen.key, chosen.sticky);
        options.retries = self.retries.clone();
        if upstream.tells_client() {
            options.client = context.client_and_local().map(Box::new);
        }
        let flight = &progress.flight;
        if websocket {
            let outbound = Outbound {
                request,
                options,
                handshake,
            };
            // Boxed: it happens once in the life of a connection, and every request's future would carry its state.
            let upgrading =
                upgrade::run(chosen, context, outbound, progress, definition, switching);
            return until_cut(Box::pin(upgrading).as_mut(), flight).await;
        }
        if self.buffer > 0 && !request.body().is_end_stream() {
            let body = std::mem::replace(request.body_mut(), RequestBody::empty());
            // Boxed: every request's future would carry its state.
            let mut keeping = Box::pin(body.keep(self.buffer));
            *request.body_mut() = until_cut(keeping.as_mut(), flight).await?;
        }
        let worker = &context.connection.worker;
        let sending = pin!(upstream.send_from(worker, &mut request, &options));
        let (response, in_flight) = until_cut(sending, flight).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::upstream(
                Kind::HttpUpgradeFailed,
                "an answer of 101 that nobody asked for",
            ));
        }
        flight.define(with_target(definition, &in_flight.target.key().1));
        let mut response = inbound_response(response);
        chosen.stick(&mut response, &in_flight.target, context);
        let response = response.map(|body| ResponseBody::streamed(body, in_flight));
        Ok((response, None))
    }

    fn outbound(
        &self,
        context: &RequestContext<'_>,
        inbound: Inbound<'_>,
        extended: bool,
    ) -> Result<(Request<RequestBody>, SendOptions, bool), Error> {
        let Inbound {
            parts,
            body,
            expectation,
            limit,
            edits,
            cell,
            ..
        } = inbound;
        let fields = &mut parts.headers;
        let wishes = headers::strip_request(fields, context.connection.trusted);
        // Room for what is set below, at once.
        fields.reserve(8);
        headers::set_forwarded(
            fields,
            context.connection,
            context.host.as_ref(),
            context.scheme,
        );
        fields.insert(&X_REQUEST_ID, context.request_id.clone());
        headers::set_via(fields, context.version)?;
        if context.version == Version::HTTP_2 {
            headers::join_cookies(fields);
        }
        if wishes.trailers {
            fields.insert(TE, HeaderValue::from_static("trailers"));
            fields.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        // A handshake is a GET without a body (RFC 6455 section 4.1); what else asks for it asks in vain.
        let websocket = extended
            || (self.websocket
                && wishes.websocket
                && context.version == Version::HTTP_11
                && parts.method == Method::GET
                && body.is_end_stream());
        if extended {
            // Of no use to its sender, and ours may follow.
            fields.remove(SEC_WEBSOCKET_KEY);
        }
        if websocket {
            websocket::set_upgrade(fields);
        }
        let body = context.sent_on(fields, body, expectation, limit, cell);
        // HTTP/1.0 may name no host; an HTTP/1.1 origin must get one.
        let mut host_from_target = context.host.is_none();
        match &self.host_header {
            HostHeader::Preserve => {}
            HostHeader::Upstream => host_from_target = true,
            HostHeader::Fixed(value) => {
                host_from_target = false;
                fields.insert(HOST, value.clone());
            }
        }
        for edit in edits {
            host_from_target &= !matches!(&edit, Edit::Set(name, _) if *name == HOST);
            edit.apply(fields);
        }
        let mut request = Request::new(body);
        *request.method_mut() = std::mem::take(&mut parts.method);
        *request.uri_mut() = Uri::from(self.target(context)?);
        *request.headers_mut() = std::mem::take(fields);
        let options = SendOptions {
            response_timeout: self.timeout,
            host_from_target,
            ..SendOptions::default()
        };
        Ok((request, options, websocket))
    }

    fn target(&self, context: &RequestContext<'_>) -> Result<PathAndQuery, Error> {
        match context.as_received() {
            // `OPTIONS *` is about the server, not about a path.
            Some(target) if self.base.is_empty() || target.as_str() == "*" => Ok(target.clone()),
            _ => PathAndQuery::from_maybe_shared(Bytes::from(format!(
                "{}{}",
                self.base,
                context.target()
            )))
            .map_err(|error| Error::client(StatusCode::BAD_REQUEST, error.to_string())),
        }
    }
}

/// An origin's answer as it goes on to the client.
pub(in crate::http) fn inbound_response<B>(response: Response<B>) -> Response<B> {
    let (mut parts, body) = response.into_parts();
    parts.version = Version::HTTP_11;
    let reason = parts.extensions.remove::<ReasonPhrase>();
    parts.extensions.clear();
    if let Some(reason) = reason {
        parts.extensions.insert(reason);
    }
    headers::strip_response(&mut parts.headers);
    Response::from_parts(parts, body)
}

/// Waits for `work`, unless the request is told to end before. The caller pins it: taken by value it would have two places
/// in the request's future.
pub(in crate::http) async fn until_cut<T>(
    mut work: Pin<&mut impl Future<Output = Result<T, Error>>>,
    flight: &Flight,
) -> Result<T, Error> {
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        flight.poll_cut(cx).map(|()| {
            Err(Error::us(
                Kind::DestinationUnavailable,
                "cut at the drain deadline of its generation",
            ))
        })
    })
    .await
}
