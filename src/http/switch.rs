//! What a connection, or one stream of it, becomes when it speaks HTTP no more: a websocket ([`super::tunnel`]), a
//! websocket that carries a stream ([`super::bridge`]), or the passage to wherever a client of a forward proxy wanted to
//! go ([`super::passage`]).

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Face;
use super::bridge::Bridge;
use super::passage::Passage;
use super::progress::Progress;
use super::record::Record;
use super::tunnel::Tunnel;
use crate::config::runtime::OnChange;
use crate::generation::Serving;
use crate::metrics::WorkerContext;
use crate::net::Sever;
use crate::session::{Kind, Start};
use crate::upstream::InFlight;

/// What comes of a request, agreed on its way to the client's connection, which takes it when the answer is certain.
#[derive(Debug)]
pub struct Switch {
    pub becomes: Becomes,
    /// HTTP/2: the stream that becomes it. `None`: the whole connection does.
    pub stream: Option<OnUpgrade>,
}

/// What it becomes. Boxed: it is handed about, and waits in every connection's state.
#[derive(Debug)]
pub enum Becomes {
    Websocket(Box<Tunnel>),
    Passage(Box<Passage>),
    Bridge(Box<Bridge>),
}

impl Becomes {
    /// The request has become a long flow. `newest` is what serves now: if it is not the generation that the request
    /// began in, a commit has passed by that did not know.
    pub fn settle<F: Face>(&self, newest: &Serving<F>) {
        let flight = &self.progress().flight;
        flight.set_long(self.on_change());
        let holds = |definition| newest.entry.holds(definition);
        flight.settle(&newest.generation, holds);
    }

    /// Its place in its generation.
    pub fn progress(&self) -> &Arc<Progress> {
        match self {
            Becomes::Websocket(tunnel) => &tunnel.progress,
            Becomes::Passage(passage) => &passage.progress,
            Becomes::Bridge(bridge) => &bridge.progress,
        }
    }

    fn on_change(&self) -> OnChange {
        match self {
            Becomes::Websocket(tunnel) => tunnel.on_change,
            Becomes::Passage(passage) => passage.on_change,
            Becomes::Bridge(bridge) => bridge.on_change,
        }
    }

    /// Where it is to be written who it is, of one that began with a route.
    pub(super) fn start(&mut self) -> Option<&mut Start> {
        match self {
            Becomes::Websocket(tunnel) => Some(&mut tunnel.start),
            Becomes::Passage(_) => None,
            Becomes::Bridge(bridge) => Some(&mut bridge.start),
        }
    }

    /// The record of the request goes on with it, and an operator sees it from now on.
    pub(super) fn keep(&mut self, mut record: Record, worker: &WorkerContext) {
        match self {
            Becomes::Websocket(tunnel) => {
                record.given_by(&tunnel.in_flight.target);
                let start = std::mem::take(&mut tunnel.start);
                let start = reaching(start, &tunnel.in_flight, &tunnel.progress);
                tunnel.session = Some(worker.sessions.open(Kind::Websocket, start));
                tunnel.record = Some(record);
            }
            Becomes::Passage(passage) => passage.record = Some(record),
            Becomes::Bridge(bridge) => {
                record.given_by(&bridge.in_flight.target);
                let start = std::mem::take(&mut bridge.start);
                let start = reaching(start, &bridge.in_flight, &bridge.progress);
                bridge.session = Some(worker.sessions.open(Kind::Bridge, start));
                bridge.record = Some(record);
            }
        }
    }

    /// Runs it to its end. `early`: what the client has sent after its request; the other side gets it now, for it has agreed.
    pub async fn run<S>(self, client: S, early: Bytes)
    where
        S: AsyncRead + AsyncWrite + Sever + Unpin + Send,
    {
        match self {
            Becomes::Websocket(tunnel) => tunnel.run(client, early).await,
            Becomes::Passage(passage) => passage.run(client, early).await,
            Becomes::Bridge(bridge) => bridge.run(client, early).await,
        }
    }
}

/// With the target that it reached.
fn reaching(start: Start, in_flight: &InFlight, progress: &Progress) -> Start {
    let (upstream, target) = in_flight.target.key();
    Start {
        upstream: Some(upstream.clone()),
        destination: Some(target.to_string().into()),
        watch: Some(progress.flight.watch()),
        ..start
    }
}
