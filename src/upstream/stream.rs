//! A stream to one target of an upstream, or a way for datagrams, for what is no HTTP: picked by its policy, dialled under its
//! limits, and the next target tried where one cannot be had.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::connect::no_tunnels;
use super::dial::{Datagrams, ServiceAt};
use super::error::{Error, Kind};
use super::link::Link;
use super::pool::InFlight;
use super::select::{Picked, Tries};
use super::via::Association;
use super::{Client, Member, SendOptions, Upstream, connect};
use crate::config::scalar::TargetAddr;
use crate::metrics::WorkerContext;
use crate::tls::client::Offer;

/// What a stream asks of its upstream.
#[derive(Debug, Clone, Copy, Default)]
pub struct Connecting {
    /// Hash of what [`Upstream::keyed_by`] asked for.
    pub key: Option<u64>,
    /// The client, and the address of ours that it came to.
    pub client: Option<Client>,
    /// For resolve, dial and handshake of one target together. `None`: the upstream's own.
    pub within: Option<Duration>,
}

/// Where datagrams to a target are sent.
#[derive(Debug)]
pub enum Route {
    /// The target's address at this moment.
    Direct(SocketAddr),
    /// To a proxy on the way.
    Through(Box<Association>),
    /// Into a tunnel.
    Flow(Arc<dyn Datagrams>),
}

impl Upstream {
    /// Picks a target and connects, with TLS where it has that; tries the next target when it cannot.
    ///
    /// # Errors
    /// As [`Upstream::send`]; all of them unsent.
    pub async fn connect(
        &self,
        worker: &Arc<WorkerContext>,
        asking: Connecting,
    ) -> Result<(Link, InFlight), Error> {
        let options = SendOptions {
            key: asking.key,
            ..SendOptions::default()
        };
        let mut tries = Tries::new(self, worker.index, &options);
        while let Some(Picked { member, flight }) = tries.next().await {
            let connecting = async { Ok((self.link(member, worker.index, asking).await?, flight)) };
            let outcome = self.ending_with_target(member, pin!(connecting)).await;
            match outcome {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    self.note_error(member, &error);
                    tries.failed(member, error)?;
                }
            }
        }
        Err(tries.over())
    }

    /// Picks a target for datagrams of `client`: its address at this moment, what a proxy on the way does for it, or a flow
    /// in its tunnel.
    ///
    /// # Errors
    /// No target is usable, or none of those that are has an address, or nobody on the way takes datagrams to it.
    pub async fn datagram(
        &self,
        worker: &Arc<WorkerContext>,
        key: Option<u64>,
        client: Client,
    ) -> Result<(Route, InFlight), Error> {
        let options = SendOptions {
            key,
            ..SendOptions::default()
        };
        let mut tries = Tries::new(self, worker.index, &options);
        while let Some(Picked { member, flight }) = tries.next().await {
            match self.route(member, worker.index, client).await {
                Ok(route) => return Ok((route, self.watched(member, flight))),
                Err(error) => {
                    self.note_error(member, &error);
                    tries.failed(member, error)?;
                }
            }
        }
        Err(tries.over())
    }

    async fn route(&self, member: &Member, worker: usize, client: Client) -> Result<Route, Error> {
        let deadline = Instant::now() + self.timeouts.connect;
        let via = member.transport.via.as_ref();
        let to = match (member.target.address(), member.target.names()) {
            (TargetAddr::Tunnel(agent, service), _) => {
                let to = ServiceAt {
                    agent,
                    service,
                    client: Some(client),
                    speaks: Offer::Nothing,
                };
                let flow = match &member.transport.tunnels {
                    Some(tunnels) => tunnels.datagrams(to, deadline).await?,
                    None => return Err(no_tunnels(to)),
                };
                return Ok(Route::Flow(flow));
            }
            (to @ TargetAddr::Ip(_), _) => Some(to.clone()),
            (to @ TargetAddr::Name(..), _) if via.is_some_and(|via| via.takes_names()) => {
                Some(to.clone())
            }
            (TargetAddr::Name(..), Some(names)) => names
                .rotated()
                .first()
                .map(|address| TargetAddr::Ip(*address)),
            _ => None,
        };
        match (via, to) {
            (Some(via), Some(to)) => {
                let association = via.associate(worker, to, deadline).await?;
                Ok(Route::Through(Box::new(association)))
            }
            (None, Some(TargetAddr::Ip(address))) => Ok(Route::Direct(address)),
            _ => {
                let detail = format!("{}: no address to send to", member.target.address());
                Err(Error::upstream(Kind::DestinationUnavailable, detail).unsent())
            }
        }
    }

    async fn link(
        &self,
        member: &Member,
        worker: usize,
        asking: Connecting,
    ) -> Result<Link, Error> {
        let most = self.most_connections();
        let slot = self.free(member, || {
            member.target.slot(most).or_else(|| {
                // An idle one makes room, as soon as it is closed.
                drop(member.pool.check_out_any());
                member.target.slot(most)
            })
        });
        let slot = slot.await?;
        let within = asking.within.unwrap_or(self.timeouts.connect);
        connect::link(member.to(asking.client, worker, within), slot).await
    }
}
