//! Targets that are no address: whoever knows them dials them.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::Error;
use crate::net::Sever;

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
}

/// Connects to services that agents publish (`tunnel:AGENT/SERVICE`).
pub trait Dial: fmt::Debug + Send + Sync {
    /// A stream to a service. Its error is always unsent.
    fn dial<'a>(&'a self, to: ServiceAt<'a>, deadline: Instant) -> Dialing<'a>;
}
