//! Datagrams through a SOCKS5 proxy (RFC 1928 section 7): where they go, what stands before each, and the connection that they
//! live by. They go to the proxy itself, so one proxy is all that is on their way.
//!
//! It promises: what comes back is taken only from whom it was sent to, as far as the proxy tells that.

use std::net::{IpAddr, SocketAddr};

use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, timeout_at};

use super::{Through, Via, Wanted, Way, socks5};
use crate::config::scalar::TargetAddr;
use crate::net::Sever as _;
use crate::upstream::error::{Error, Kind};

/// What a proxy does for the datagrams of one session. Dropping it ends that.
#[derive(Debug)]
pub struct Association {
    /// Where they are to be sent.
    pub relay: SocketAddr,
    /// Of ours, as the proxy knows us: it may drop what comes from another.
    pub local: Option<IpAddr>,
    /// What stands before each.
    pub header: Vec<u8>,
    to: TargetAddr,
    control: Through,
}

impl Via {
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
        let ([hop], Some(header)) = (self.hops(), socks5::header(&to)) else {
            // The document's checks see to it.
            let detail = format!("{to}: no datagrams go there through these proxies");
            return Err(Error::us(Kind::ProxyConfigurationError, detail).unsent());
        };
        // Also a wait for a proxy with room is in it. Boxed: of many sessions few come here.
        let before = Way {
            hops: &[],
            worker,
            passed: None,
        };
        let opening = Box::pin(hop.open(before, Wanted::Relay, deadline));
        let opened = timeout_at(deadline, opening).await.map_err(|_| {
            let detail = format!("{to}: no proxy has agreed to relay in time");
            Error::upstream(Kind::ConnectionTimeout, detail).unsent()
        })?;
        let (control, granted) = opened?;
        let stream = control.link.plain_tcp();
        let peer = stream.and_then(|stream| stream.peer_addr().ok());
        let local = stream.and_then(|stream| stream.local_addr().ok());
        let relay = granted.and_then(|granted| {
            // Then it is where the proxy is.
            let ip = match granted.ip().is_unspecified() {
                true => peer?.ip(),
                false => granted.ip(),
            };
            Some(SocketAddr::new(ip.to_canonical(), granted.port()))
        });
        let relay = relay.ok_or_else(|| {
            let detail = format!("{to}: the proxy does not say where datagrams go");
            Error::upstream(Kind::ConnectionRefused, detail).unsent()
        })?;
        Ok(Association {
            relay,
            local: local.map(|local| local.ip().to_canonical()),
            header,
            to,
            control,
        })
    }
}

impl Association {
    /// What a datagram from the relay holds; `None`: it is not from whom it was asked.
    pub fn read<'d>(&self, datagram: &'d [u8]) -> Option<&'d [u8]> {
        let (from, data) = socks5::read(datagram)?;
        let is_asked = match (&self.to, from) {
            (TargetAddr::Ip(to), Ok(from)) => {
                (to.ip().to_canonical(), to.port()) == (from.ip(), from.port())
            }
            // Whom a name has led to, only the proxy knows.
            (TargetAddr::Name(_, port), Ok(from)) => from.port() == *port,
            (TargetAddr::Name(_, port), Err(from)) => from == *port,
            _ => false,
        };
        is_asked.then_some(data)
    }

    /// Ready when the proxy has ended it. Cancel-safe.
    pub async fn ended(&mut self) {
        // Nothing is due there; what comes is of no meaning.
        while let Ok(1..) = self.control.read(&mut [0; 64]).await {}
    }
}
