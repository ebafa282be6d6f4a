//! `tcp`: a websocket that carries a stream to a target of an upstream. The target is connected first, so that a client
//! learns by the answer to its handshake whether there is one.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use hyper::body::Body as _;

use super::proxy::{Answered, Inbound, until_cut};
use super::with_target;
use crate::http::body::{Content, ResponseBody};
use crate::http::bridge::Bridge;
use crate::http::error;
use crate::http::extended::Agreed;
use crate::http::headers::lists_token;
use crate::http::progress::Progress;
use crate::http::request::RequestContext;
use crate::http::switch::{Becomes, Switch};
use crate::http::vars::Vars;
use crate::http::websocket;
use crate::session::Start;
use crate::upstream::error::{Error, Kind};
use crate::upstream::stream::Connecting;
use crate::upstream::{KeyedBy, Upstream, handshake, hash};

const VERSION: HeaderValue = HeaderValue::from_static("13");

/// `tcp`.
#[derive(Debug)]
pub struct Tcp {
    /// `None` only if a document broke its promise to hold every upstream it names.
    pub upstream: Option<Arc<Upstream>>,
}

/// Where a stream goes, and the hash that its policy chooses the target by.
#[derive(Debug)]
pub struct Chosen<'a>(&'a Upstream, Option<u64>);

impl Tcp {
    pub fn build(upstream: &str, upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>) -> Tcp {
        Tcp {
            upstream: upstreams.get(upstream).cloned(),
        }
    }

    /// The upstream that takes the stream, and what its policy asks of the request.
    ///
    /// # Errors
    /// There is none: a document broke its promise.
    pub fn choose(&self, vars: &Vars<'_>) -> Result<Chosen<'_>, Error> {
        let upstream = self.upstream.as_ref().ok_or_else(|| {
            let detail = "the route's upstream does not exist";
            Error::us(Kind::ProxyConfigurationError, detail)
        })?;
        let upstream = upstream.lead(|_| None, false).upstream;
        let key = match upstream.keyed_by() {
            KeyedBy::Nothing => None,
            KeyedBy::ClientIp => vars.context.client.map(hash::of_ip),
            KeyedBy::Template(template) => {
                let text = template.render(vars);
                (!text.is_empty()).then(|| hash::of_bytes(text.as_bytes()))
            }
        };
        Ok(Chosen(upstream, key))
    }

    /// Connects the target and agrees to the handshake, which [`check`] has found good.
    ///
    /// # Errors
    /// No target is to be had.
    pub async fn bridge(
        &self,
        context: &RequestContext<'_>,
        inbound: Inbound<'_>,
        progress: &Arc<Progress>,
        definition: u64,
        Chosen(upstream, key): Chosen<'_>,
    ) -> Result<Answered, Error> {
        let asking = Connecting {
            key,
            client: context.client_and_local(),
            within: None,
        };
        let worker = &context.connection.worker;
        let connecting = pin!(upstream.connect(worker, asking));
        let (target, in_flight) = until_cut(connecting, &progress.flight).await?;
        let address = &in_flight.target.key().1;
        progress.flight.define(with_target(definition, address));
        let mut response = Response::new(ResponseBody::new(Content::Empty));
        let asked = &inbound.parts.headers;
        let fields = response.headers_mut();
        if lists_token(asked, &SEC_WEBSOCKET_PROTOCOL, "binary") {
            let binary = HeaderValue::from_static("binary");
            fields.insert(SEC_WEBSOCKET_PROTOCOL, binary);
        }
        let stream = inbound.handshake.map(|handshake| handshake.0);
        if stream.is_some() {
            response.extensions_mut().insert(Agreed);
        } else {
            if let Some(key) = asked.get(SEC_WEBSOCKET_KEY) {
                fields.insert(SEC_WEBSOCKET_ACCEPT, handshake::accept(key));
            }
            websocket::set_upgrade(fields);
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        let bridge = Bridge {
            target,
            in_flight,
            progress: progress.clone(),
            record: None,
            start: Start::default(),
            session: None,
            idle: inbound.upgraded_timeout,
            on_change: inbound.on_change,
        };
        let becomes = Becomes::Bridge(Box::new(bridge));
        Ok((response, Some(Switch { becomes, stream })))
    }
}

/// Whether a request is a handshake that can be agreed to (RFC 6455 section 4.2.1; over HTTP/2, RFC 8441 section 5).
///
/// # Errors
/// The answer: 426 to what asks for no websocket, 400 to a handshake that is wrong.
pub fn check(
    context: &RequestContext<'_>,
    inbound: &Inbound<'_>,
) -> Result<(), Box<Response<ResponseBody>>> {
    let fields = &inbound.parts.headers;
    let http1 = context.version < Version::HTTP_2;
    let extended = inbound.handshake.is_some();
    let asks = extended
        || (context.version == Version::HTTP_11
            && inbound.parts.method == Method::GET
            && websocket::is_upgrade(fields)
            && inbound.body.is_end_stream());
    if !asks {
        let text = "here is a websocket and nothing else";
        let mut response = error::say(StatusCode::UPGRADE_REQUIRED, text);
        if http1 {
            let fields = response.headers_mut();
            fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
            fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        return Err(Box::new(response));
    }
    let bad = |text| {
        let mut response = error::say(StatusCode::BAD_REQUEST, text);
        let fields = response.headers_mut();
        fields.insert(SEC_WEBSOCKET_VERSION, VERSION);
        Err(Box::new(response))
    };
    match one(fields, SEC_WEBSOCKET_VERSION.as_str()) {
        Some(version) if version.as_bytes() == VERSION.as_bytes() => {}
        None if extended && !fields.contains_key(SEC_WEBSOCKET_VERSION) => {}
        _ => return bad("Sec-WebSocket-Version is 13 here"),
    }
    let key = one(fields, SEC_WEBSOCKET_KEY.as_str()).and_then(|key| STANDARD.decode(key).ok());
    if !extended && key.is_none_or(|key| key.len() != 16) {
        return bad("Sec-WebSocket-Key is 16 bytes in base64");
    }
    Ok(())
}

/// The value of a field that is there once.
fn one<'f>(fields: &'f HeaderMap, name: &str) -> Option<&'f HeaderValue> {
    let mut all = fields.get_all(name).iter();
    all.next().filter(|_| all.next().is_none())
}
