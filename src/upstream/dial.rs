//! Targets that are no address: whoever knows them dials them.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::Error;
use crate::net::Sever;
use crate::tls::client::Offer;

/// A stream that somebody else has made.
pub trait Stream: AsyncRead + AsyncWrite + Sever + Unpin + Send + fmt::Debug {
    /// Cancelled when what it leads to is not to be had any more: what is under way on it may go on, and nothing else
    /// begins. `None`: that ends with the stream.
    fn withdrawn(&self) -> Option<CancellationToken> {
        None
    }
}

/// What a dial comes to.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, Error>> + Send + 'a>>;

/// Whose connection it is.
#[derive(Debug, Clone, Copy)]
pub struct ServiceAt<'a> {
    pub agent: &'a str,
    pub service: &'a str,
    /// The client, and the address of ours that it came to.
    pub client: Option<(SocketAddr, SocketAddr)>,
    /// The protocol that its bytes are, for services with which somebody nearer to them speaks TLS; [`Offer::Nothing`]: they
    /// are passed on as they are.
    pub speaks: Offer,
}

/// A flow of datagrams that somebody else has made. It ends when it is dropped.
pub trait Datagrams: fmt::Debug + Send + Sync {
    /// Passes one on, as soon as there is room. Never waits.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: there is no room, and it is dropped; [`io::ErrorKind::ConnectionReset`]: the flow has
    /// ended.
    fn send(&self, data: &[u8]) -> io::Result<()>;

    /// The next one that comes. Whoever has the flow calls this all the time: what was sent leaves by it too.
    ///
    /// # Errors
    /// Why the flow has ended.
    fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>>;
}

/// What a dial for datagrams comes to.
pub type DialingDatagrams<'a> =
    Pin<Box<dyn Future<Output = Result<Arc<dyn Datagrams>, Error>> + Send + 'a>>;

/// Connects to services that agents publish (`tunnel:AGENT/SERVICE`).
pub trait Dial: fmt::Debug + Send + Sync {
    /// A stream to a service. Its error is always unsent.
    fn dial<'a>(&'a self, to: ServiceAt<'a>, deadline: Instant) -> Dialing<'a>;

    /// A flow of datagrams to a service. Its error is always unsent.
    fn datagrams<'a>(&'a self, to: ServiceAt<'a>, deadline: Instant) -> DialingDatagrams<'a>;
}
