//! Proxies on the way to a target: the stream through them, whoever dials (requests, websockets, sessions, checks, forward
//! proxies).
//!
//! Each hop is an upstream whose targets are proxies: its policy picks one, its checks, limits and TLS hold, and the next is tried
//! where one cannot be had or breaks off. What a proxy *answers* is final: it speaks of the destination, or of us. A hop behind
//! another is dialled through that, so a chain is the last hop over those before it.
//!
//! It promises: nothing outlives the deadline; no more is kept of an answer than [`connect::MOST`] bytes; an error says which
//! proxy it was and what that said, and nothing of what was to be sent has been sent then.

mod association;
mod connect;
#[cfg(fuzzing)]
pub mod fuzzing;
mod socks5;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash as _, Hasher};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::HeaderValue;
use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::connect::{To, link};
use super::dial::{Dialing, Stream};
use super::error::{Error, Kind, Side};
use super::link::Link;
use super::pool::InFlight;
use super::select::{Picked, Tries};
use super::{Member, SendOptions, Upstream};
use crate::config::scalar::TargetAddr;
use crate::config::via::{HopProtocol, LoginSpec, ViaSpec};
use crate::net::Sever;

pub use association::{Association, Relays};

/// The proxies through which something is reached.
pub struct Via {
    /// The nearest first. Empty: nothing is reached.
    hops: Box<[Hop]>,
    identity: [u8; 32],
}

/// A way through proxies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way<'a> {
    /// The nearest first.
    pub(super) hops: &'a [Hop],
    /// Where it is dialled from.
    pub(super) worker: usize,
    /// What is said in `Via` of those that the request has passed, us included; `None`: it begins here.
    pub(super) passed: Option<&'a HeaderValue>,
}

/// One of them.
pub(super) struct Hop {
    upstream: Arc<Upstream>,
    protocol: HopProtocol,
    login: Option<LoginSpec>,
}

/// What a proxy is asked for.
#[derive(Debug, Clone, Copy)]
enum Wanted<'a> {
    Stream(&'a TargetAddr),
    /// Of datagrams.
    Relay,
}

/// How a proxy is asked for a stream.
#[derive(Clone, Copy)]
struct Question<'a> {
    /// What the proxy is called in errors.
    hop: &'a str,
    to: &'a TargetAddr,
    login: Option<&'a LoginSpec>,
    passed: Option<&'a HeaderValue>,
}

/// Why there is no stream through a proxy.
enum Fault {
    /// It said so.
    Answered(Error),
    /// It said nothing that could be understood, or nothing at all, or is not there.
    Broken(Kind, String),
}

impl Fault {
    fn not_understood(why: impl Into<String>) -> Fault {
        Fault::Broken(Kind::HttpProtocolError, why.into())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        let why = match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                "it closed the connection instead of an answer".to_owned()
            }
            _ => error.to_string(),
        };
        Fault::Broken(Kind::ConnectionTerminated, why)
    }
}

/// What a proxy has agreed to.
enum Granted {
    /// With the bytes that followed its answer.
    Stream(Bytes),
    /// Datagrams, sent to there: an address, or a name that the proxy before it takes.
    Relay(TargetAddr),
}

impl Via {
    /// Every upstream that it names is in `upstreams` (the document's checks see to it). Were one missing, nothing would be
    /// reached: certainly not past the proxies.
    pub fn build(spec: &ViaSpec, upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>) -> Arc<Via> {
        let hops = spec.hops.iter().map(|hop| {
            Some(Hop {
                upstream: upstreams.get(&hop.upstream)?.clone(),
                protocol: hop.protocol,
                login: hop.login.clone(),
            })
        });
        let hops: Box<[Hop]> = hops.collect::<Option<_>>().unwrap_or_default();
        let mut digest = Digest(Sha256::new());
        hops.iter().for_each(|hop| hop.digest(&mut digest));
        Arc::new(Via {
            hops,
            identity: digest.0.finalize().into(),
        })
    }

    /// The digest of all that tells connections through it from others: proxies, TLS with them, and who we are there.
    pub fn identity(&self) -> &[u8; 32] {
        &self.identity
    }

    pub(super) fn hops(&self) -> &[Hop] {
        &self.hops
    }

    /// The upstreams whose targets are the proxies.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.hops.iter().map(|hop| &hop.upstream)
    }

    /// Whether names are looked up at its far end, not here.
    pub fn takes_names(&self) -> bool {
        takes_names(&self.hops)
    }

    /// A stream to `to`, which is an address, or a name where it [takes them](Via::takes_names). `passed`: `Via` of the request
    /// that it is for, us included; `None`: there is none.
    ///
    /// # Errors
    /// All of them unsent, with the proxy that failed.
    pub async fn connect(
        &self,
        worker: usize,
        to: &TargetAddr,
        deadline: Instant,
        passed: Option<&HeaderValue>,
    ) -> Result<Link, Error> {
        let way = Way {
            hops: &self.hops,
            worker,
            passed,
        };
        // Also a wait for a proxy with room is in it.
        let opened = timeout_at(deadline, open(way, to, deadline)).await;
        let stream = opened.map_err(|_| {
            let detail = format!("{to}: not reached through proxies in time");
            Error::upstream(Kind::ConnectionTimeout, detail).unsent()
        })??;
        Ok(Link::within(stream))
    }
}

pub(super) fn takes_names(hops: &[Hop]) -> bool {
    hops.last().is_none_or(|last| last.protocol.takes_names())
}

/// A stream through proxies. Boxed: a hop may be reached through others.
pub(super) fn open<'a>(way: Way<'a>, to: &'a TargetAddr, deadline: Instant) -> Dialing<'a> {
    Box::pin(async move {
        match way.hops.split_last() {
            Some((last, hops)) => {
                let wanted = Wanted::Stream(to);
                let (stream, _) = last.open(Way { hops, ..way }, wanted, deadline).await?;
                Ok(Box::new(stream) as Box<dyn Stream>)
            }
            None => {
                Err(Error::us(Kind::ProxyConfigurationError, "a chain without a proxy").unsent())
            }
        }
    })
}

/// Where a proxy takes datagrams that has said `granted`. `peer`: where it is, if nothing is before it.
fn relay(
    granted: SocketAddr,
    peer: Option<SocketAddr>,
    before: Way<'_>,
    member: &Member,
) -> Option<TargetAddr> {
    let port = granted.port();
    let at = |ip: IpAddr| TargetAddr::Ip(SocketAddr::new(ip.to_canonical(), port));
    if !granted.ip().is_unspecified() {
        return Some(at(granted.ip()));
    }
    // Then it is where the proxy is.
    if before.hops.is_empty() {
        return Some(at(peer?.ip()));
    }
    match member.target.address() {
        TargetAddr::Ip(address) => Some(at(address.ip())),
        TargetAddr::Name(name, _) if takes_names(before.hops) => {
            Some(TargetAddr::Name(name.clone(), port))
        }
        TargetAddr::Name(..) => Some(at(member.target.names()?.rotated().first()?.ip())),
        TargetAddr::Unix(_) | TargetAddr::Tunnel(..) => None,
    }
}

fn broken(error: Error) -> Fault {
    Fault::Broken(error.kind, error.detail)
}

impl Hop {
    /// `before`: the way to it. With the stream comes where datagrams go, if that was asked for.
    async fn open(
        &self,
        before: Way<'_>,
        wanted: Wanted<'_>,
        deadline: Instant,
    ) -> Result<(Through, Option<TargetAddr>), Error> {
        let upstream = self.upstream.lead(|_| None, false).upstream;
        let options = SendOptions::default();
        let mut tries = Tries::new(upstream, before.worker, &options);
        while let Some(Picked { member, flight }) = tries.next().await {
            // One that is silent leaves time for the next.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = if upstream.members.len() > 1 {
                left / 2
            } else {
                left
            };
            let until = Instant::now() + share;
            let mut asked = false;
            let attempt = self.attempt(upstream, member, before, wanted, until, &mut asked);
            let tried = timeout_at(until, attempt).await;
            // It may be waiting for the destination.
            let blameless = tried.is_err() && asked;
            let fault = match tried {
                Ok(Ok((link, granted))) => {
                    let (first, relay) = match granted {
                        Granted::Stream(first) => (first, None),
                        Granted::Relay(relay) => (Bytes::new(), Some(relay)),
                    };
                    let through = Through {
                        link,
                        first,
                        flight,
                    };
                    return Ok((through, relay));
                }
                Ok(Err(fault)) => fault,
                Err(_) => Fault::Broken(
                    Kind::ConnectionTimeout,
                    format!("no answer within {share:?}"),
                ),
            };
            match fault {
                Fault::Answered(error) => return Err(error),
                Fault::Broken(kind, why) => {
                    let detail = format!("via {}: {why}", self.at(member));
                    let error = Error::upstream(kind, detail).unsent();
                    if !blameless {
                        upstream.note_error(member, &error);
                    }
                    tries.failed(member, error)?;
                }
            }
        }
        let error = tries.over();
        let detail = match error.detail.starts_with("via ") {
            true => error.detail,
            false => format!("via {}: {}", upstream.name, error.detail),
        };
        // Not the doing of what lies behind.
        let side = Side::Us;
        Err(Error {
            detail,
            side,
            ..error
        }
        .unsent())
    }

    /// One proxy: connects, with TLS where the upstream has that, and asks it. `asked` is set once it may be waiting for the
    /// destination.
    async fn attempt(
        &self,
        upstream: &Upstream,
        member: &Member,
        before: Way<'_>,
        wanted: Wanted<'_>,
        until: Instant,
        asked: &mut bool,
    ) -> Result<(Link, Granted), Fault> {
        let slot = member.target.slot(upstream.most_connections());
        let slot = slot.ok_or_else(|| broken(member.no_slot()))?;
        let within = upstream
            .timeouts
            .connect
            .min(until.saturating_duration_since(Instant::now()));
        let dial = To {
            passed: before.passed,
            ..member.to(None, before.worker, within)
        };
        let dial = match before.hops {
            [] => dial,
            hops => To {
                hops: Some(hops),
                ..dial
            },
        };
        let mut link = link(dial, slot).await.map_err(broken)?;
        let (hop, login) = (&*self.at(member), self.login.as_ref());
        let question = |to| Question {
            hop,
            to,
            login,
            passed: before.passed,
        };
        let granted =
            match (self.protocol, wanted) {
                (HopProtocol::Http | HopProtocol::Https, Wanted::Stream(to)) => {
                    Granted::Stream(connect::ask(&mut link, question(to), asked).await?)
                }
                (HopProtocol::Socks5 | HopProtocol::Socks5h, Wanted::Stream(to)) => {
                    socks5::ask(&mut link, question(to), asked).await?;
                    Granted::Stream(Bytes::new())
                }
                (HopProtocol::Socks5 | HopProtocol::Socks5h, Wanted::Relay) => {
                    let granted = socks5::associate(&mut link, hop, login).await?;
                    let peer = link.plain_tcp().and_then(|tcp| tcp.peer_addr().ok());
                    let relay = relay(granted, peer, before, member);
                    Granted::Relay(relay.ok_or_else(|| {
                        Fault::not_understood("it does not say where datagrams go")
                    })?)
                }
                (HopProtocol::Http | HopProtocol::Https, Wanted::Relay) => {
                    return Err(Fault::not_understood("it takes no datagrams"));
                }
            };
        Ok((link, granted))
    }

    /// What it is called in errors.
    fn at(&self, member: &Member) -> String {
        format!("{}://{}", self.protocol.word(), member.target.address())
    }

    fn digest(&self, digest: &mut Digest) {
        self.protocol.hash(digest);
        let login = self.login.as_ref();
        login
            .map(|login| (&login.user, login.password.expose()))
            .hash(digest);
        digest_upstream(&self.upstream, digest);
    }
}

/// Which proxies an upstream has, and how they are spoken to.
fn digest_upstream(upstream: &Upstream, digest: &mut Digest) {
    upstream.name.hash(digest);
    for member in &upstream.members {
        member.target.address().hash(digest);
        member.transport.key().hash(digest);
    }
    for (member, _) in upstream.members() {
        digest_upstream(member, digest);
    }
}

impl fmt::Debug for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.hops).finish()
    }
}

impl fmt::Debug for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {}", self.protocol.word(), self.upstream.name)
    }
}

/// A cryptographic digest where a hash is asked for: two chains that differ in a password must never be taken for one.
struct Digest(Sha256);

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        // Nobody asks.
        0
    }
}

/// The stream behind a proxy: what came with the answer is read first. As long as it lives it counts at the proxy.
#[derive(Debug)]
struct Through {
    link: Link,
    first: Bytes,
    flight: InFlight,
}

impl Sever for Through {
    fn sever(&self) {
        self.link.sever();
    }
}

impl Stream for Through {
    fn withdrawn(&self) -> Option<CancellationToken> {
        self.link.withdrawn()
    }
}

impl Drop for Through {
    fn drop(&mut self) {
        // What became of it is known to whoever had it; the proxy did its part.
        self.flight.end_session(0);
    }
}

impl AsyncRead for Through {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.link).poll_read(cx, buf);
        }
        let size = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..size]);
        self.first.advance(size);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Through {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.link).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.link).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.link.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_shutdown(cx)
    }
}
