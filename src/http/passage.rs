//! CONNECT after its answer (RFC 9110 section 9.3.6): the client and where it wanted to go, joined by the loop that joins all
//! that is no HTTP ([`crate::l4::relay`]).

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::progress::Progress;
use super::record::Record;
use crate::config::runtime::OnChange;
use crate::forward::{Forward, Reached};
use crate::l4::relay::{Terms, relay};
use crate::metrics::WorkerContext;
use crate::net::Sever;
use crate::session::{Kind, Session, Start};

/// A way that is open, until the client's side is free to be joined with it.
#[derive(Debug)]
pub struct Passage {
    pub reached: Reached,
    pub proxy: Arc<Forward>,
    pub worker: Arc<WorkerContext>,
    /// As `/sessions` has it.
    pub start: Start,
    /// Holds its place in its generation. It outlives the request.
    pub progress: Arc<Progress>,
    /// Of the request that it was.
    pub record: Option<Record>,
    pub on_change: OnChange,
}

impl Passage {
    pub(super) async fn run<S>(self, client: S, early: Bytes)
    where
        S: AsyncRead + AsyncWrite + Sever + Unpin + Send,
    {
        let Passage {
            reached,
            proxy,
            worker,
            start,
            progress,
            record,
            on_change: _,
        } = self;
        let Reached { link, place, .. } = reached;
        let flight = &progress.flight;
        let start = Start {
            watch: Some(flight.watch()),
            ..start
        };
        let counted = Counted {
            session: worker.sessions.open(Kind::Connect, start),
            record,
        };
        let terms = Terms {
            idle: proxy.spec.timeouts.idle,
            bandwidth: proxy.spec.limits.bandwidth,
            flight,
            in_flight: None,
            session: Some(&counted.session),
        };
        // What it has to know is in hand: neither rules nor users are kept for it.
        drop(proxy);
        let relayed = relay(client, link, early, terms).await;
        tracing::debug!(?relayed, "CONNECT ended");
        let session = &counted.session;
        session.passed(relayed.from_client, relayed.to_client);
        drop(place);
    }
}

/// What passed, told to the record however it ends: also by the end of the connection that it is a stream of.
struct Counted {
    session: Session,
    record: Option<Record>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(record) = &mut self.record {
            let info = self.session.info();
            record.tunnelled(info.received, info.sent);
        }
    }
}
