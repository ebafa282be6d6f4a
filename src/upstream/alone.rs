//! One HTTP/1 request on a stream that somebody else has reached, and that ends with its answer: what a forward proxy sends
//! on. It has no target: neither a pool nor health nor counts.

use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, Response};

use super::body::RequestBody;
use super::connection::{Connection, Open, Slot};
use super::dial::Stream;
use super::error::{Error, Kind};
use super::exchange::{exchange, origin_form};
use super::response::{Alone, Held, UpstreamBody};
use super::wire::Socket;
use crate::config::scalar::TargetAddr;

/// Sends `request` on `stream`, which leads to `peer`, and waits for the head of the answer. `silence`: how long the origin
/// may take to answer, and between two pieces of its body; `None`: no limit.
///
/// # Errors
/// As [`super::Upstream::send`].
pub async fn send(
    stream: impl Stream + 'static,
    peer: TargetAddr,
    mut request: Request<RequestBody>,
    silence: Option<Duration>,
) -> Result<Response<UpstreamBody>, Error> {
    origin_form(&mut request);
    let sent = request.body().progress();
    let Some(slot) = Slot::take(&Arc::new(Open::default()), None) else {
        let detail = format!("{peer}: no place for a connection");
        return Err(Error::us(Kind::ProxyInternalError, detail));
    };
    let mut connection = Connection::new(Socket::Within(Box::new(stream)), slot, 0);
    let answer = exchange(
        &mut connection,
        &mut request,
        sent.as_deref(),
        silence,
        &peer,
    )
    .await?;
    let held = Held::Alone(Box::new(Alone { connection, peer }));
    Ok(answer.map(|()| UpstreamBody::new(held, sent, silence)))
}
