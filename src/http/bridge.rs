//! The action `tcp` after its handshake: a websocket whose messages are a stream to a target, until both sides have ended,
//! one breaks, both are silent for too long, or it is cut: by a swap that took its definition away, by a target that went
//! down, or by an operator. How ends become each other is in [`crate::l4::bridge`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::progress::Progress;
use super::record::Record;
use crate::config::runtime::OnChange;
use crate::l4::bridge::{Spoken, bridge};
use crate::l4::relay::Terms;
use crate::net::websocket::{Carrier, Role};
use crate::session::{Session, Start};
use crate::upstream::InFlight;
use crate::upstream::link::Link;

/// The target's side, until the client's is free to be joined with it.
#[derive(Debug)]
pub struct Bridge {
    pub target: Link,
    pub in_flight: InFlight,
    /// Holds its place in its generation. It outlives the request.
    pub progress: Arc<Progress>,
    /// Of the request that it was.
    pub record: Option<Record>,
    /// Who it is, until it is `session`.
    pub start: Start,
    /// Its place among the long flows, since the answer is certain.
    pub session: Option<Session>,
    /// How long both sides may be silent.
    pub idle: Option<Duration>,
    pub on_change: OnChange,
}

/// What is to be said of it, however it ends: also by the end of the connection that it is a stream of.
struct Counted {
    /// It is told what passes, without frames.
    session: Option<Session>,
    record: Option<Record>,
    in_flight: InFlight,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let (received, sent) = self.session.as_ref().map_or((0, 0), Session::so_far);
        if let Some(record) = &mut self.record {
            record.tunnelled(received, sent);
        }
        self.in_flight.end_session(sent);
    }
}

impl Bridge {
    /// Runs it to its end. `early`: what the client has sent after its request.
    pub(super) async fn run<S>(self, client: S, early: Bytes)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let Bridge {
            target,
            in_flight,
            progress,
            record,
            start: _,
            session,
            idle,
            on_change: _,
        } = self;
        let mut counted = Counted {
            session,
            record,
            in_flight,
        };
        let terms = Terms {
            idle,
            bandwidth: None,
            flight: &progress.flight,
            in_flight: Some(&mut counted.in_flight),
            session: counted.session.as_ref(),
        };
        let client = Carrier::new(Role::Server, client, early);
        let (relayed, last) = bridge(client, target, Bytes::new(), Spoken::ByClient, terms).await;
        tracing::debug!(?relayed, "bridge ended");
        drop(counted);
        last.say().await;
    }
}
