//! `proxy` for a request that asks for a websocket: the origin is asked, and only its `101` with the right `Upgrade` makes a
//! tunnel of the connection. Anything else it says is an ordinary answer, and the connection goes on with HTTP.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT};
use http::{Request, StatusCode};

use super::proxy::{Answered, Chosen, inbound_response};
use super::with_target;
use crate::config::runtime::OnChange;
use crate::http::body::{Content, ResponseBody};
use crate::http::extended::{Agreed, Handshake};
use crate::http::progress::Progress;
use crate::http::request::RequestContext;
use crate::http::switch::{Becomes, Switch};
use crate::http::tunnel::Tunnel;
use crate::http::websocket;
use crate::session::Start;
use crate::upstream::body::RequestBody;
use crate::upstream::error::{Error, Kind};
use crate::upstream::upgrade::Answer;
use crate::upstream::{SendOptions, handshake};

/// A request that is ready to be sent.
pub(super) struct Outbound {
    pub(super) request: Request<RequestBody>,
    pub(super) options: SendOptions,
    /// Where the client is to be found over HTTP/2.
    pub(super) handshake: Option<Handshake>,
}

/// What the configuration says of the websocket that may come of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Switching {
    pub(super) idle: Option<Duration>,
    pub(super) on_change: OnChange,
}

/// Sends the handshake; with the answer there is a tunnel if the origin agreed.
pub(super) async fn run(
    chosen: Chosen<'_>,
    context: &RequestContext<'_>,
    outbound: Outbound,
    progress: &Arc<Progress>,
    definition: u64,
    switching: Switching,
) -> Result<Answered, Error> {
    let Outbound {
        mut request,
        options,
        handshake,
    } = outbound;
    // Over HTTP/2 a client has no key, but the origin may need one.
    let key = handshake
        .as_ref()
        .map(|_| handshake::complete(request.headers_mut()));
    let worker = &context.connection.worker;
    let (answer, in_flight) = chosen.upstream.upgrade(worker, request, options).await?;
    let target = in_flight.target.key().1.clone();
    let (response, switched) = match answer {
        Answer::Refused(response) => {
            progress.flight.define(with_target(definition, &target));
            let mut response = inbound_response(response);
            if handshake.is_some() && response.status().is_success() {
                let detail = format!("{target}: answered a websocket's handshake as a request");
                return Err(Error::upstream(Kind::HttpUpgradeFailed, detail));
            }
            chosen.stick(&mut response, &in_flight.target, context);
            let response = response.map(|body| ResponseBody::streamed(body, in_flight));
            return Ok((response, None));
        }
        Answer::Switched(response, switched) => (response, switched),
    };
    if !websocket::is_upgrade(response.headers()) {
        let detail = format!("{target}: switched to something other than websocket");
        return Err(Error::upstream(Kind::HttpUpgradeFailed, detail));
    }
    let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT);
    if key.is_some_and(|key| accepted != Some(&handshake::accept(&key))) {
        let detail = format!("{target}: a wrong Sec-WebSocket-Accept");
        return Err(Error::upstream(Kind::HttpUpgradeFailed, detail));
    }
    progress.flight.define(with_target(definition, &target));
    let mut response = inbound_response(response);
    chosen.stick(&mut response, &in_flight.target, context);
    let tunnel = Tunnel {
        origin: switched.stream,
        first: switched.first,
        progress: progress.clone(),
        in_flight,
        record: None,
        start: Start::default(),
        session: None,
        idle: switching.idle,
        on_change: switching.on_change,
    };
    let stream = handshake.map(|Handshake(stream)| stream);
    if stream.is_some() {
        // There is no other way to agree on a stream (RFC 8441 section 5).
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
        response.headers_mut().remove(CONTENT_LENGTH);
        response.extensions_mut().insert(Agreed);
    } else {
        websocket::set_upgrade(response.headers_mut());
    }
    let response = response.map(|()| ResponseBody::new(Content::Empty));
    let becomes = Becomes::Websocket(Box::new(tunnel));
    Ok((response, Some(Switch { becomes, stream })))
}
