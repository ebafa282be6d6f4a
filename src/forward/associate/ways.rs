//! Ways of an association's datagrams through other proxies: each with its connections there and a socket towards the nearest.
//!
//! It promises: a way is made when the first datagram needs it and not again and again where that fails; few datagrams wait for
//! it; what comes is from the proxy, in the form in which the client takes it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::WAITING;
use crate::config::scalar::TargetAddr;
use crate::forward::Forward;
use crate::upstream::error::Error;
use crate::upstream::via::{Relays, Via};

/// Ways of one association: rules may lead to more of them, whose datagrams are lost then.
const MOST: usize = 8;
/// A way that failed, or has ended, is not made again before.
const AGAIN: Duration = Duration::from_secs(1);

/// Of one association.
#[derive(Debug)]
pub struct Ways {
    worker: usize,
    all: Vec<Way>,
    making: FuturesUnordered<BoxFuture<'static, (usize, Result<Open, Error>)>>,
}

#[derive(Debug)]
struct Way {
    via: Arc<Via>,
    state: State,
}

#[derive(Debug)]
enum State {
    Closed(Option<Instant>),
    /// What waits for it.
    Making(Vec<(TargetAddr, Vec<u8>)>),
    Open(Box<Open>),
}

#[derive(Debug)]
struct Open {
    relays: Relays,
    /// To the nearest proxy, and from it alone.
    socket: UdpSocket,
}

impl Ways {
    /// `worker`: see [`WorkerContext::index`](crate::metrics::WorkerContext).
    pub fn new(worker: usize) -> Ways {
        Ways {
            worker,
            all: Vec::new(),
            making: FuturesUnordered::new(),
        }
    }

    /// The number of a way. `None`: no datagrams go there, or there are too many ways.
    pub(super) fn number(&mut self, via: &Arc<Via>) -> Option<usize> {
        let known = self.all.iter().position(|way| Arc::ptr_eq(&way.via, via));
        if known.is_some() || self.all.len() >= MOST || !via.takes_datagrams() {
            return known;
        }
        self.all.push(Way {
            via: via.clone(),
            state: State::Closed(None),
        });
        Some(self.all.len() - 1)
    }

    /// Makes the one way that there is, before the client is told that it may send.
    ///
    /// # Errors
    /// The proxy's, or that there is no socket.
    pub async fn make(&mut self, via: &Arc<Via>, deadline: Instant) -> Result<(), Error> {
        let Some(number) = self.number(via) else {
            return Ok(());
        };
        let open = open(via, self.worker, deadline).await?;
        self.all[number].state = State::Open(Box::new(open));
        Ok(())
    }

    /// Sends by way `number`. What cannot leave, or has to wait among too many, is lost, as datagrams are.
    pub(super) fn send(&mut self, number: usize, to: TargetAddr, data: &[u8], proxy: &Forward) {
        let Some(way) = self.all.get_mut(number) else {
            return;
        };
        match &mut way.state {
            State::Open(open) => open.send(&to, data),
            State::Making(waiting) if waiting.len() < WAITING => waiting.push((to, data.to_vec())),
            State::Making(_) => {}
            State::Closed(again) => {
                if again.is_some_and(|again| Instant::now() < again) || proxy.room().is_err() {
                    return;
                }
                let (via, worker) = (way.via.clone(), self.worker);
                let deadline = Instant::now() + proxy.spec.timeouts.connect;
                way.state = State::Making(vec![(to, data.to_vec())]);
                self.making.push(Box::pin(async move {
                    (number, open(&via, worker, deadline).await)
                }));
            }
        }
    }

    /// Ready with the number of a way on which something has come. Cancel-safe.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        while let Poll::Ready(Some((number, made))) = self.making.poll_next_unpin(cx) {
            let Some(way) = self.all.get_mut(number) else {
                continue;
            };
            let closed = State::Closed(Some(Instant::now() + AGAIN));
            let before = std::mem::replace(&mut way.state, closed);
            match (made, before) {
                (Ok(mut open), State::Making(waiting)) => {
                    for (to, data) in waiting {
                        open.send(&to, &data);
                    }
                    way.state = State::Open(Box::new(open));
                }
                (Ok(_), _) => {}
                (Err(error), _) => tracing::debug!(%error, "no way for datagrams"),
            }
        }
        for (number, way) in self.all.iter_mut().enumerate() {
            let State::Open(open) = &mut way.state else {
                continue;
            };
            if open.relays.poll_ended(cx).is_ready() {
                tracing::debug!("a proxy has ended its part of an association");
                way.state = State::Closed(Some(Instant::now() + AGAIN));
            } else if open.socket.poll_recv_ready(cx).is_ready() {
                return Poll::Ready(number);
            }
        }
        Poll::Pending
    }

    /// What came next on way `number`, into `room`: from the last proxy, with the header of who has sent it. `Some(&[])`: something
    /// that is not from there. `None`: nothing more.
    ///
    /// # Errors
    /// The socket broke.
    pub(super) fn next<'r>(
        &self,
        number: usize,
        room: &'r mut [u8],
    ) -> io::Result<Option<&'r [u8]>> {
        let Some(State::Open(open)) = self.all.get(number).map(|way| &way.state) else {
            return Ok(None);
        };
        let read = open
            .socket
            .try_recv(room)
            .map(|size| (size, open.relays.nearest));
        let Some((size, _)) = super::received(read)? else {
            return Ok(None);
        };
        let datagram = room.get(..size).and_then(|whole| open.relays.read(whole));
        Ok(Some(datagram.unwrap_or_default()))
    }
}

impl Open {
    fn send(&mut self, to: &TargetAddr, data: &[u8]) {
        let Some(mut datagram) = self.relays.header(to) else {
            return;
        };
        datagram.extend_from_slice(data);
        // Past the runtime: see `send_now`.
        if let Err(error) = socket2::SockRef::from(&self.socket).send(&datagram) {
            tracing::debug!(%error, %to, "a datagram did not leave");
        }
    }
}

async fn open(via: &Via, worker: usize, deadline: Instant) -> Result<Open, Error> {
    let relays = via.relays(worker, deadline).await?;
    let nearest = relays.nearest;
    let any: IpAddr = match nearest {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let local = relays.local.filter(|ip| ip.is_ipv4() == nearest.is_ipv4());
    let socket = super::bind(local.unwrap_or(any), None).and_then(|socket| {
        socket2::SockRef::from(&socket).connect(&nearest.into())?;
        Ok(socket)
    });
    let socket = socket.map_err(|error| Error::dial(&error, &nearest))?;
    Ok(Open { relays, socket })
}
