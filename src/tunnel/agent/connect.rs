//! From settings to a session: dial, TLS, proof and counter-proof.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Running, Settings, Shared, Trouble};
use crate::config::scalar::TargetAddr;
use crate::net::Sever as _;
use crate::tls::client::{Offer, OtherKey};
use crate::tunnel::auth::{self, Claim, Prover};
use crate::tunnel::carrier::{self, hear, tell};
use crate::tunnel::greeting::Exports as _;
use crate::tunnel::wire::{self, Challenge, Hello, Refusal, Verdict};
use crate::upstream::link::Link;
use crate::upstream::via::Via;

/// How long dialling may take, so that a path which comes back is used soon.
const DIAL: Duration = Duration::from_secs(2);
/// The same through proxies, which dial too.
const THROUGH: Duration = Duration::from_secs(5);
/// TLS and proofs.
const GREETING: Duration = Duration::from_secs(10);
/// Agents belong to no worker; the first one's place in a round is as good as any.
const WORKER: usize = 0;

/// A connection to the server, after all that is said on it first.
pub(in crate::tunnel) type Connection = TlsStream<Link>;

/// The agent's end of the carrier.
pub(super) type Carrier = h2::server::Connection<Connection, Bytes>;

/// Why there is no session.
#[derive(Debug)]
pub(in crate::tunnel) struct Failed {
    pub(super) trouble: Trouble,
    pub(in crate::tunnel) why: String,
}

impl Failed {
    fn unreachable(why: impl Into<String>) -> Failed {
        Failed {
            trouble: Trouble::Unreachable,
            why: why.into(),
        }
    }

    fn distrusted(why: impl Into<String>) -> Failed {
        Failed {
            trouble: Trouble::Distrusted,
            why: why.into(),
        }
    }
}

/// Makes a session; with it comes what the server calls it, and which of the server's addresses it is at.
pub(super) async fn connect(
    settings: &Settings,
    shared: &Shared,
) -> Result<(Carrier, String, Option<SocketAddr>), Failed> {
    let (stream, session) = introduced(settings, shared, None).await?;
    let peer = stream.get_ref().0.plain_tcp();
    let peer = peer.and_then(|stream| stream.peer_addr().ok());
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(carrier::STREAM_WINDOW)
        .initial_connection_window_size(carrier::CONNECTION_WINDOW)
        .max_frame_size(carrier::FRAME)
        .max_send_buffer_size(carrier::SEND_BUFFER)
        .max_header_list_size(carrier::HEAD)
        .max_concurrent_streams(carrier::STREAMS);
    let server = &settings.spec.server;
    let carrier = timeout(GREETING, builder.handshake(stream)).await;
    let carrier = carrier
        .map_err(|_| Failed::unreachable(format!("{server}: no HTTP/2 within {GREETING:?}")))?
        .map_err(|error| Failed::unreachable(format!("{server}: {error}")))?;
    Ok((carrier, session, peer))
}

/// What a connection for one flow is made with.
#[derive(Debug, Clone, Copy)]
struct Pass<'a> {
    ticket: &'a str,
    /// The address of the server that has handed it out: others of the same name do not know it.
    at: Option<SocketAddr>,
}

/// Makes a connection for one flow, for which the server has handed out a ticket.
pub(in crate::tunnel) async fn dedicated(
    settings: &Settings,
    shared: &Shared,
    running: &Running,
    ticket: &str,
) -> Result<Connection, Failed> {
    let is_there = running.server == settings.spec.server.to_string();
    let at = running.peer.filter(|_| is_there);
    let pass = Pass { ticket, at };
    let (stream, _) = introduced(settings, shared, Some(pass)).await?;
    Ok(stream)
}

/// A connection on which both sides have proved who they are.
async fn introduced(
    settings: &Settings,
    shared: &Shared,
    pass: Option<Pass<'_>>,
) -> Result<(Connection, String), Failed> {
    let server = &settings.spec.server;
    let at = pass.and_then(|pass| pass.at).map(TargetAddr::Ip);
    let stream = match &settings.via {
        Some(via) => through(via, server)
            .await
            .map_err(|error| Failed::unreachable(format!("connect to {server}: {error}")))?,
        None => {
            let dialled = timeout(DIAL, dial(at.as_ref().unwrap_or(server))).await;
            let stream = dialled
                .map_err(|_| {
                    Failed::unreachable(format!("{server}: not connected within {DIAL:?}"))
                })?
                .map_err(|error| Failed::unreachable(format!("connect to {server}: {error}")))?;
            carrier::tune(&stream);
            Link::of_tcp(stream)
        }
    };
    let ticket = pass.map(|pass| pass.ticket);
    let greeted = timeout(GREETING, greet(stream, settings, shared, ticket)).await;
    greeted.map_err(|_| {
        Failed::unreachable(format!(
            "{server}: no greeting within {GREETING:?}; is it a tunnel?"
        ))
    })?
}

/// Through the proxies on the way. Where the last one takes no names, each address of a name is tried in its turn.
async fn through(via: &Via, server: &TargetAddr) -> Result<Link, String> {
    let deadline = Instant::now() + THROUGH;
    let (TargetAddr::Name(name, port), false) = (server, via.takes_names()) else {
        let opened = via.connect(WORKER, server, deadline, None).await;
        return opened.map_err(|error| error.detail);
    };
    let found = timeout_at(deadline, tokio::net::lookup_host((&**name, *port))).await;
    let found = found.map_err(|_| format!("{name} is not found within {THROUGH:?}"))?;
    let found: Vec<_> = found.map_err(|error| error.to_string())?.collect();
    let mut last = "it has no address".to_owned();
    for (tried, address) in found.iter().enumerate() {
        let until = Instant::now() + share(deadline, found.len() - tried);
        match via
            .connect(WORKER, &TargetAddr::Ip(*address), until, None)
            .await
        {
            Ok(link) => return Ok(link),
            Err(error) => last = error.detail,
        }
    }
    Err(last)
}

/// What of the time until then is due to the first of so many.
fn share(deadline: Instant, of: usize) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left / u32::try_from(of.max(1)).unwrap_or(u32::MAX)
}

/// Each address of the server in its turn, with its share of the time.
async fn dial(server: &TargetAddr) -> io::Result<TcpStream> {
    let deadline = Instant::now() + DIAL;
    let found: Vec<SocketAddr> = match server {
        TargetAddr::Ip(ip) => vec![*ip],
        TargetAddr::Name(name, port) => tokio::net::lookup_host((&**name, *port)).await?.collect(),
        TargetAddr::Unix(_) | TargetAddr::Tunnel(..) => Vec::new(),
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for (tried, address) in found.iter().enumerate() {
        let until = Instant::now() + share(deadline, found.len() - tried);
        match timeout_at(until, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

async fn greet(
    stream: Link,
    settings: &Settings,
    shared: &Shared,
    ticket: Option<&str>,
) -> Result<(Connection, String), Failed> {
    let server = &settings.spec.server;
    let connector = TlsConnector::from(settings.client.config(Offer::H2));
    let name = settings.client.name_of(server);
    let mut stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| untrusted(server, &error))?;
    let broken = |error: io::Error| match rustls_says(&error) {
        // Our certificate, or that we have none (RFC 8446 section 4.4.2: told after the handshake).
        Some(why @ rustls::Error::AlertReceived(_)) => Failed {
            trouble: Trouble::Refused,
            why: format!("{server} refuses our certificate: {why}"),
        },
        _ => Failed::unreachable(format!("{server} is no tunnel, or goes: {error}")),
    };
    let exporter = stream
        .get_ref()
        .1
        .exporter()
        .map_err(|error| Failed::distrusted(format!("{server}: {error}")))?;
    let challenge: Challenge = hear(&mut stream).await.map_err(broken)?;
    let nonce = auth::unhex(&challenge.nonce)
        .ok_or_else(|| Failed::unreachable(format!("{server} is no tunnel")))?;
    let spec = &settings.spec;
    let claim = Claim {
        exporter: &exporter,
        nonce: &nonce,
        agent: &spec.name,
    };
    let hello = Hello {
        version: wire::VERSION,
        agent: spec.name.to_string(),
        proof: spec.token.as_ref().map(|t| claim.prove(Prover::Agent, t)),
        program: format!("evergate/{}", env!("CARGO_PKG_VERSION")),
        instance: shared.instance.clone(),
        services: match ticket {
            None => shared.services(settings),
            Some(_) => Vec::new(),
        },
        ticket: ticket.map(str::to_owned),
    };
    tell(&mut stream, &hello).await.map_err(broken)?;
    let (session, proof) = match hear(&mut stream).await.map_err(broken)? {
        Verdict::Welcome { session, proof } => (session, proof),
        Verdict::Refused { reason, detail } => {
            return Err(Failed {
                trouble: match reason {
                    Refusal::Stopping => Trouble::Unreachable,
                    _ => Trouble::Refused,
                },
                why: format!("{server} refuses this agent: {detail}"),
            });
        }
    };
    if let Some(token) = &spec.token {
        let proved = proof.is_some_and(|proof| claim.verify(Prover::Server, token, &proof));
        if !proved {
            let why = format!(
                "{server} has a good certificate, but does not know the token: it is not the server that it says it is"
            );
            return Err(Failed::distrusted(why));
        }
    }
    Ok((stream, session))
}

fn rustls_says(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What a handshake that failed says about the server.
fn untrusted(server: &TargetAddr, error: &io::Error) -> Failed {
    use rustls::{CertificateError, Error as E};
    match rustls_says(error) {
        Some(E::InvalidCertificate(CertificateError::Other(other)))
            if other.0.downcast_ref::<OtherKey>().is_some() =>
        {
            Failed::distrusted(format!("{server}: {}", other.0))
        }
        Some(E::InvalidCertificate(why)) => {
            Failed::distrusted(format!("{server}: its certificate is not trusted: {why:?}"))
        }
        Some(E::AlertReceived(alert)) => Failed {
            trouble: Trouble::Refused,
            why: format!("{server} ends the handshake: {alert:?}"),
        },
        _ => Failed::unreachable(format!("TLS with {server}: {error}")),
    }
}
