//! Datagrams through SOCKS5 proxies (RFC 1928 section 7): where they go, what stands before each, and the connections that they
//! live by.
//!
//! They go to the relay of the nearest proxy, with a header for each relay behind it and the last one for the destination: each
//! proxy takes one off, and puts one on what comes back. The connection to a proxy goes through those before it.
//!
//! It promises: what comes back is taken only from whom it was sent to, as far as the proxies tell that.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::time::{Instant, timeout_at};

use super::{Hop, Through, Via, Wanted, Way, socks5};
use crate::config::scalar::TargetAddr;
use crate::config::via::HopProtocol;
use crate::net::Sever as _;
use crate::upstream::Upstream;
use crate::upstream::error::{Error, Kind};

/// What proxies do for datagrams, wherever those go. Dropping it ends that.
#[derive(Debug)]
pub struct Relays {
    /// Of the nearest: where datagrams are to be sent.
    pub nearest: SocketAddr,
    /// Of ours, as the nearest knows us: it may drop what comes from another.
    pub local: Option<IpAddr>,
    /// The relays behind that, and the headers for them.
    behind: Vec<TargetAddr>,
    outer: Vec<u8>,
    controls: Vec<Through>,
}

/// What proxies do for the datagrams of one session. Dropping it ends that.
#[derive(Debug)]
pub struct Association {
    pub relays: Relays,
    /// What stands before each.
    pub header: Vec<u8>,
    to: TargetAddr,
}

/// Who has sent a datagram, as a proxy tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Address(SocketAddr),
    /// A name, of which only the port is told here.
    Port(u16),
}

impl Via {
    /// Whether datagrams go this way: through SOCKS5 alone, not over TLS, and past no proxy of which there are several, since
    /// one would have the connection and another the datagrams.
    pub fn takes_datagrams(&self) -> bool {
        let Some((_, before)) = self.hops.split_last() else {
            return false;
        };
        let alone = |hop: &Hop| hop.upstream.members.len() == 1 && hop.upstream.split.is_none();
        self.hops.iter().all(Hop::takes_datagrams) && before.iter().all(alone)
    }

    /// Has every proxy of the way relay.
    ///
    /// # Errors
    /// All of them unsent, with the proxy that failed.
    pub async fn relays(&self, worker: usize, deadline: Instant) -> Result<Relays, Error> {
        // Also a wait for a proxy with room is in it. Boxed: of many sessions few come here.
        let opened = timeout_at(deadline, Box::pin(self.open_relays(worker, deadline))).await;
        opened.map_err(|_| {
            let detail = "no proxy has agreed to relay datagrams in time";
            Error::upstream(Kind::ConnectionTimeout, detail).unsent()
        })?
    }

    async fn open_relays(&self, worker: usize, deadline: Instant) -> Result<Relays, Error> {
        let mut all = Vec::with_capacity(self.hops.len());
        let mut controls: Vec<Through> = Vec::with_capacity(self.hops.len());
        for (index, hop) in self.hops.iter().enumerate() {
            let before = Way {
                hops: self.hops.get(..index).unwrap_or_default(),
                worker,
                passed: None,
            };
            let (control, relay) = hop.open(before, Wanted::Relay, deadline).await?;
            all.extend(relay);
            controls.push(control);
        }
        let mut all = all.into_iter();
        let Some(TargetAddr::Ip(nearest)) = all.next() else {
            // The document's checks see to it.
            let detail = "no datagrams go through these proxies";
            return Err(Error::us(Kind::ProxyConfigurationError, detail).unsent());
        };
        let behind: Vec<TargetAddr> = all.collect();
        let outer = behind.iter().filter_map(socks5::header).flatten().collect();
        let stream = controls.first().and_then(|first| first.link.plain_tcp());
        let local = stream.and_then(|stream| stream.local_addr().ok());
        Ok(Relays {
            nearest,
            local: local.map(|local| local.ip().to_canonical()),
            behind,
            outer,
            controls,
        })
    }

    /// Has datagrams to `to` relayed, which is an address, or a name where it [takes them](Via::takes_names).
    ///
    /// # Errors
    /// All of them unsent, with the proxy that failed.
    pub(in crate::upstream) async fn associate(
        &self,
        worker: usize,
        to: TargetAddr,
        deadline: Instant,
    ) -> Result<Association, Error> {
        let relays = self.relays(worker, deadline).await?;
        let header = relays.header(&to).ok_or_else(|| {
            // The document's checks see to it.
            let detail = format!("{to}: no datagrams go there through proxies");
            Error::us(Kind::ProxyConfigurationError, detail).unsent()
        })?;
        Ok(Association { relays, header, to })
    }
}

impl Hop {
    fn takes_datagrams(&self) -> bool {
        let socks = matches!(self.protocol, HopProtocol::Socks5 | HopProtocol::Socks5h);
        socks && are_plain(&self.upstream)
    }
}

/// Whether all targets are at an address of the network, and spoken to as they are.
fn are_plain(upstream: &Upstream) -> bool {
    let mut own = upstream.members.iter();
    own.all(|member| {
        let near = member.target.address();
        let plain = member.transport.tls.is_none() && member.transport.via.is_none();
        plain && matches!(near, TargetAddr::Ip(_) | TargetAddr::Name(..))
    }) && upstream.members().all(|(part, _)| are_plain(part))
}

impl Relays {
    /// What is to stand before a datagram to `to`; `None`: SOCKS cannot say it.
    pub fn header(&self, to: &TargetAddr) -> Option<Vec<u8>> {
        Some([&*self.outer, &*socks5::header(to)?].concat())
    }

    /// What the last proxy has said, the header of who sent it with it; `None`: it is not from that.
    pub fn read<'d>(&self, datagram: &'d [u8]) -> Option<&'d [u8]> {
        self.behind.iter().try_fold(datagram, |datagram, relay| {
            let (sender, inner) = sent_by(datagram)?;
            sender.may_be(relay).then_some(inner)
        })
    }

    /// Ready when a proxy has ended its part.
    pub fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for control in &mut self.controls {
            // Nothing is due there; what comes is of no meaning.
            let mut room = [0; 64];
            loop {
                let mut room = ReadBuf::new(&mut room);
                match Pin::new(&mut *control).poll_read(cx, &mut room) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(())) if !room.filled().is_empty() => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                }
            }
        }
        Poll::Pending
    }
}

/// Who has sent a datagram, and what it holds; `None`: it has no header, or is a fragment.
fn sent_by(datagram: &[u8]) -> Option<(Sender, &[u8])> {
    let (from, data) = socks5::read(datagram)?;
    let sender = match from {
        Ok(address) => Sender::Address(address),
        Err(port) => Sender::Port(port),
    };
    Some((sender, data))
}

impl Sender {
    fn port(self) -> u16 {
        match self {
            Sender::Address(address) => address.port(),
            Sender::Port(port) => port,
        }
    }

    /// Whether it may be who was asked.
    fn may_be(self, asked: &TargetAddr) -> bool {
        match (asked, self) {
            (TargetAddr::Ip(asked), Sender::Address(from)) => {
                (asked.ip().to_canonical(), asked.port()) == (from.ip(), from.port())
            }
            // Whom a name has led to, only the proxy knows.
            (TargetAddr::Name(_, port), from) => from.port() == *port,
            _ => false,
        }
    }
}

impl Association {
    /// What a datagram from the relay holds; `None`: it is not from whom it was asked.
    pub fn read<'d>(&self, datagram: &'d [u8]) -> Option<&'d [u8]> {
        let (sender, data) = sent_by(self.relays.read(datagram)?)?;
        sender.may_be(&self.to).then_some(data)
    }

    /// Ready when a proxy has ended it. Cancel-safe.
    pub async fn ended(&mut self) {
        poll_fn(|cx| self.relays.poll_ended(cx)).await;
    }
}
