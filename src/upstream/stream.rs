//! A stream to one target of an upstream, for what is no HTTP: picked by its policy, dialled under its limits, and the next
//! target tried where one cannot be had.

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

/// Where datagrams go.
#[derive(Debug)]
pub enum Towards {
    /// The target's at this moment.
    Address(SocketAddr),
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

    /// Picks a target for datagrams of `client`.
    ///
    /// # Errors
    /// No target is usable, or none of those that are is to be had.
    pub async fn datagram(
        &self,
        worker: &Arc<WorkerContext>,
        key: Option<u64>,
        client: Client,
    ) -> Result<(Towards, InFlight), Error> {
        let options = SendOptions {
            key,
            ..SendOptions::default()
        };
        let mut tries = Tries::new(self, worker.index, &options);
        while let Some(Picked { member, flight }) = tries.next().await {
            if member.transport.via.is_some() {
                let detail = "datagrams through a proxy are not supported yet";
                let error = Error::us(Kind::ProxyConfigurationError, detail).unsent();
                tries.failed(member, error)?;
                continue;
            }
            if let TargetAddr::Tunnel(agent, service) = member.target.address() {
                let to = ServiceAt {
                    agent,
                    service,
                    client: Some(client),
                    speaks: Offer::Nothing,
                };
                match self.datagrams(member, to).await {
                    Ok(flow) => return Ok((Towards::Flow(flow), self.watched(member, flight))),
                    Err(error) => {
                        self.note_error(member, &error);
                        tries.failed(member, error)?;
                        continue;
                    }
                }
            }
            let address = match (member.target.address(), member.target.names()) {
                (TargetAddr::Ip(address), _) => Some(*address),
                (TargetAddr::Name(..), Some(names)) => names.rotated().first().copied(),
                _ => None,
            };
            if let Some(address) = address {
                return Ok((Towards::Address(address), self.watched(member, flight)));
            }
            let detail = format!("{}: no address to send to", member.target.address());
            let error = Error::upstream(Kind::DestinationUnavailable, detail).unsent();
            self.note_error(member, &error);
            tries.failed(member, error)?;
        }
        Err(tries.over())
    }

    async fn datagrams(
        &self,
        member: &Member,
        to: ServiceAt<'_>,
    ) -> Result<Arc<dyn Datagrams>, Error> {
        let deadline = Instant::now() + self.timeouts.connect;
        match &member.transport.tunnels {
            Some(tunnels) => tunnels.datagrams(to, deadline).await,
            None => Err(no_tunnels(to)),
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
