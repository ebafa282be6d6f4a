//! A service as a target of upstreams.

use super::flow::Flow;
use super::hub::{Ask, Hub, Reason, Refusal};
use crate::net::Sever;
use crate::upstream::dial::{Dial, Dialing, ServiceAt, Stream};
use crate::upstream::error::{Error, Kind};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

impl Dial for Hub {
    fn dial<'a>(&'a self, to: ServiceAt<'a>, deadline: Instant) -> Dialing<'a> {
        Box::pin(async move {
            let ask = Ask {
                agent: to.agent,
                service: to.service,
                datagrams: false,
                client: to.client,
                deadline,
            };
            match self.open(ask).await {
                Ok(flow) => Ok(Box::new(flow) as Box<dyn Stream>),
                Err(refusal) => Err(error(refusal)),
            }
        })
    }
}

/// Dropping it before both sides have ended resets it, and its agent the connection to the service.
impl Sever for Flow {
    fn sever(&self) {}
}

impl Stream for Flow {
    fn withdrawn(&self) -> Option<CancellationToken> {
        Some(Flow::withdrawn(self))
    }
}

/// The same in the words of the data plane.
fn error(refusal: Refusal) -> Error {
    let kind = match refusal.reason {
        Reason::Absent | Reason::Unreachable => Kind::DestinationUnavailable,
        Reason::Full => Kind::ConnectionLimitReached,
        Reason::Refused => Kind::ConnectionRefused,
        Reason::Timeout => Kind::ConnectionTimeout,
        Reason::Broken => Kind::ConnectionTerminated,
    };
    Error::upstream(kind, refusal.detail).unsent()
}
