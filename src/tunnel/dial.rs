//! A service as a target of upstreams.

use std::sync::Arc;

use super::flow::Flow;
use super::hub::{Ask, Hub, Reason, Refusal};
use crate::upstream::dial::{Datagrams, Dial, Dialing, DialingDatagrams, ServiceAt, Stream};
use crate::upstream::error::{Error, Kind};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

impl Dial for Hub {
    fn dial<'a>(&'a self, to: ServiceAt<'a>, deadline: Instant) -> Dialing<'a> {
        Box::pin(async move {
            match self.open(ask(to, false, deadline)).await {
                Ok(flow) => Ok(Box::new(flow) as Box<dyn Stream>),
                Err(refusal) => Err(error(refusal)),
            }
        })
    }

    fn datagrams<'a>(&'a self, to: ServiceAt<'a>, deadline: Instant) -> DialingDatagrams<'a> {
        Box::pin(async move {
            let flow = self.open(ask(to, true, deadline)).await.map_err(error)?;
            let carried = flow.into_datagrams();
            let carried = carried.ok_or_else(|| {
                let detail = format!("service {} of agent {} is dedicated", to.service, to.agent);
                error(Refusal::new(Reason::Unreachable, detail))
            })?;
            Ok(Arc::new(carried) as Arc<dyn Datagrams>)
        })
    }
}

fn ask<'a>(to: ServiceAt<'a>, datagrams: bool, deadline: Instant) -> Ask<'a> {
    Ask {
        agent: to.agent,
        service: to.service,
        datagrams,
        client: to.client,
        speaks: to.speaks,
        deadline,
    }
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
