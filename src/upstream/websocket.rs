//! A websocket to one target of an upstream, for a stream that is carried in it: picked by the upstream's policy, dialled as for
//! a request, and the next target tried where the handshake comes to nothing. Nothing of the client's has been sent then, so
//! that this is always safe.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONNECTION, HOST, LOCATION, UPGRADE};
use ::http::uri::PathAndQuery;
use ::http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use tokio::time::{Instant, timeout};

use super::body::RequestBody;
use super::error::{Error, Kind};
use super::handshake;
use super::pool::InFlight;
use super::select::{Picked, Tries};
use super::stream::Connecting;
use super::upgrade::{Answer, Asking, Switched};
use super::{Member, SendOptions, Upstream};
use crate::metrics::WorkerContext;
use crate::metrics::cell::Outcome;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub path: &'a PathAndQuery,
    /// `None`: the target's own address.
    pub host: Option<&'a HeaderValue>,
}

impl Upstream {
    /// Picks a target and agrees with it on a websocket (RFC 6455 section 4.1; over HTTP/2, RFC 8441) without extensions and
    /// subprotocols, each within `asking.within`; tries the next target when it cannot.
    ///
    /// # Errors
    /// As [`Upstream::connect`]; also that a target answers in another way, which says how.
    pub async fn websocket(
        &self,
        worker: &Arc<WorkerContext>,
        wanted: Wanted<'_>,
        asking: Connecting,
    ) -> Result<(Switched, InFlight), Error> {
        let options = SendOptions {
            key: asking.key,
            ..SendOptions::default()
        };
        let asking = Asking {
            worker,
            limit: None,
            client: asking.client,
            within: asking.within.unwrap_or(self.timeouts.connect),
        };
        let mut tries = Tries::new(self, worker.index, &options);
        while let Some(Picked { member, flight }) = tries.next().await {
            let opening = async {
                let agreeing = self.agree(member, wanted, &asking, flight);
                timeout(asking.within, agreeing)
                    .await
                    .unwrap_or_else(|_| Err(late(member, asking.within)))
            };
            let outcome = self.ending_with_target(member, pin!(opening)).await;
            match outcome {
                Ok(agreed) => return Ok(agreed),
                Err(error) => {
                    self.note_error(member, &error);
                    tries.failed(member, error.unsent())?;
                }
            }
        }
        Err(tries.over())
    }

    /// One target.
    async fn agree(
        &self,
        member: &Member,
        wanted: Wanted<'_>,
        asking: &Asking<'_>,
        flight: InFlight,
    ) -> Result<(Switched, InFlight), Error> {
        let began = Instant::now();
        let mut request = Request::new(RequestBody::empty());
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = Uri::from(wanted.path.clone());
        let fields = request.headers_mut();
        fields.insert(HOST, wanted.host.unwrap_or(&member.host).clone());
        fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
        let key = handshake::complete(fields);
        let (answer, mut flight) = self.switch(member, asking, &mut request, flight).await?;
        let address = member.target.address();
        let failed = |why: String| {
            let detail = format!("{address}: {why}");
            Error::upstream(Kind::HttpUpgradeFailed, detail)
        };
        match answer {
            Answer::Switched(response, switched) => {
                match handshake::faults(response.headers(), &key) {
                    None => Ok((switched, flight)),
                    Some(fault) => Err(failed(fault)),
                }
            }
            Answer::Refused(response) => {
                self.note_status(member, response.status());
                flight.end(Outcome {
                    status: response.status().as_u16(),
                    took: began.elapsed(),
                    sent: 0,
                });
                Err(failed(refusal(&response)))
            }
        }
    }
}

fn late(member: &Member, within: Duration) -> Error {
    let address = member.target.address();
    let detail = format!("{address}: no websocket within {within:?}");
    Error::upstream(Kind::ConnectionTimeout, detail)
}

/// What an answer that is no websocket says to whoever has to mend it.
fn refusal<B>(response: &Response<B>) -> String {
    let status = response.status();
    let place = response
        .headers()
        .get(LOCATION)
        .filter(|_| status.is_redirection());
    let why = match (status, place) {
        // Quoted: it is somebody else's text.
        (_, Some(place)) => {
            format!(": a redirect to {place:?}, which is not followed: name that place")
        }
        (StatusCode::UPGRADE_REQUIRED, _) => ": it wants another protocol".to_owned(),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
            ": it does not let us in".to_owned()
        }
        (status, _) if status.is_success() => ": there is no websocket at this path".to_owned(),
        _ => String::new(),
    };
    format!("the handshake was answered with {status}{why}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let of = |status: u16, place: Option<&'static str>| {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            if let Some(place) = place {
                let value = HeaderValue::from_static(place);
                response.headers_mut().insert(LOCATION, value);
            }
            refusal(&response)
        };
        assert_eq!(
            of(301, Some("wss://a.test/")),
            "the handshake was answered with 301 Moved Permanently: a redirect to \"wss://a.test/\", which is not followed: name that place"
        );
        assert!(of(200, Some("x")).ends_with("there is no websocket at this path"));
        assert_eq!(
            of(503, None),
            "the handshake was answered with 503 Service Unavailable"
        );
    }
}
