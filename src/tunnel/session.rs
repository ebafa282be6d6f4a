//! One session on the public side: an agent's connection, from its first byte to its last. It owns the carrier's task; all
//! that it started ends with it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::http::{Request, StatusCode};
use bytes::Bytes;
use h2::client::SendRequest;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::auth::{self, Claim, Prover};
use super::carrier::{self, Ear, Mouth, RoundTrip, hear, tell};
use super::flow::{Counted, Counts, Flow};
use super::hub::{self, Ask, Bell, Hub, Reason, Refusal, Tunnel};
use super::offer::{LAST_FLOWS, Offers};
use super::wire::{self, Challenge, FromAgent, FromServer, Hello, Verdict};
use crate::config::agent::ServiceKind;
use crate::config::scalar::Secret;
use crate::config::tunnel::TunnelSpec;

/// From the end of the TLS handshake to a running session.
const GREETING: Duration = Duration::from_secs(10);
/// How long one is kept that was told to end and has no flows: its agent needs a moment to make another.
const LINGER: Duration = Duration::from_secs(2);

/// An agent's connection.
#[derive(Debug)]
pub struct Session {
    pub id: String,
    pub agent: Arc<str>,
    pub(super) tunnel: Arc<Tunnel>,
    pub instance: String,
    /// The agent's program.
    pub program: String,
    pub peer: String,
    pub since: Timestamp,
    pub counts: Arc<Counts>,
    pub round_trip: RoundTrip,
    offers: Mutex<Offers>,
    draining: AtomicBool,
    h2: SendRequest<Bytes>,
    /// What let it in.
    credential: Credential,
    /// Its rules have changed.
    pub(super) recheck: Bell,
    /// A flow has ended.
    pub(super) ended: Arc<Notify>,
}

/// What an agent was let in by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Credential {
    Secret(Secret),
    Certificate,
}

/// What the TLS handshake has told.
#[derive(Debug)]
pub struct Secured {
    pub exporter: auth::Exporter,
    /// Names of the certificate that the agent showed.
    pub names: Vec<String>,
}

/// What ends a session from outside.
#[derive(Debug, Clone)]
pub struct Ends {
    /// No new flows; it ends with those that it has.
    pub finish: CancellationToken,
    /// At once.
    pub cut: CancellationToken,
}

/// Serves an agent that has shaken hands. Returns why it ended.
///
/// # Errors
/// Why there was no session.
pub async fn serve<S>(
    mut io: S,
    peer: String,
    secured: Secured,
    (hub, tunnel, spec): (Arc<Hub>, Arc<Tunnel>, Arc<TunnelSpec>),
    ends: Ends,
) -> io::Result<String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let greeting = Instant::now() + GREETING;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let id = hub.number();
    let greeted = timeout_at(greeting, greet(&mut io, &id, &secured, &spec, &ends));
    let (hello, credential) = tokio::select! {
        greeted = greeted => greeted.map_err(late)??,
        () = ends.cut.cancelled() => return Ok("the address is gone".to_owned()),
    };
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(carrier::STREAM_WINDOW)
        .initial_connection_window_size(carrier::CONNECTION_WINDOW)
        .max_frame_size(carrier::FRAME)
        .max_send_buffer_size(carrier::SEND_BUFFER)
        .max_header_list_size(carrier::HEAD)
        .enable_push(false);
    let (h2, mut connection) = timeout_at(greeting, builder.handshake(io))
        .await
        .map_err(late)?
        .map_err(io::Error::other)?;
    let ping = connection.ping_pong();
    let mut carrier = AbortOnDropHandle::new(tokio::spawn(connection));
    let agent: Arc<str> = hello.agent.as_str().into();
    let mut offers = Offers::default();
    offers.declare(&hello.services);
    let session = Arc::new(Session {
        id,
        agent: agent.clone(),
        tunnel,
        instance: hello.instance,
        program: hello.program,
        peer,
        since: Timestamp::now(),
        counts: Arc::default(),
        round_trip: RoundTrip::default(),
        offers: Mutex::new(offers),
        draining: AtomicBool::new(false),
        h2,
        credential,
        recheck: Arc::default(),
        ended: Arc::default(),
    });
    let control = timeout_at(greeting, session.control()).await;
    let (ear, mouth) = control.map_err(late)??;
    if !hub.join(&session) {
        return Err(io::Error::other(format!(
            "agent {agent} has too many sessions"
        )));
    }
    let _joined = Joined(&hub, &session);
    tracing::info!(%agent, session = session.id, peer = session.peer, program = session.program, "agent connected");
    let dead = async {
        match ping {
            Some(ping) => carrier::until_dead(ping, &session.round_trip).await,
            None => std::future::pending().await,
        }
    };
    let why = tokio::select! {
        why = session.run(ear, mouth, &ends) => why,
        why = dead => why,
        ended = &mut carrier => match ended {
            Ok(Ok(())) => "the agent has closed the connection".to_owned(),
            Ok(Err(error)) => format!("the connection broke: {error}"),
            Err(error) => format!("the carrier's task ended: {error}"),
        },
        () = ends.cut.cancelled() => "the address is gone".to_owned(),
    };
    tracing::info!(%agent, session = session.id, why, "agent's session ended");
    Ok(why)
}

/// A session's place in the table.
struct Joined<'a>(&'a Hub, &'a Arc<Session>);

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

/// Who is it, and may it come?
async fn greet(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    id: &str,
    secured: &Secured,
    spec: &TunnelSpec,
    ends: &Ends,
) -> io::Result<(Hello, Credential)> {
    let nonce = auth::random::<32>()?;
    let challenge = Challenge {
        evergate: env!("CARGO_PKG_VERSION").to_owned(),
        version: wire::VERSION,
        nonce: auth::hex(&nonce),
    };
    tell(io, &challenge).await?;
    let hello: Hello = hear(io).await?;
    let refusal = |reason, detail: String| (reason, detail);
    let claim = Claim {
        exporter: &secured.exporter,
        nonce: &nonce,
        agent: &hello.agent,
    };
    let judged = if hello.version != wire::VERSION {
        Err(refusal(
            wire::Refusal::Version,
            format!("version {} of the tunnel is not spoken here", hello.version),
        ))
    } else if ends.finish.is_cancelled() {
        Err(refusal(
            wire::Refusal::Stopping,
            "this tunnel is going".to_owned(),
        ))
    } else {
        judge(&hello, &claim, &secured.names, spec).ok_or_else(|| {
            let detail = format!(
                "agent {} is not known here, or its secret is wrong",
                hello.agent
            );
            refusal(wire::Refusal::Unauthorized, detail)
        })
    };
    match judged {
        Ok((credential, proof)) => {
            let session = id.to_owned();
            tell(io, &Verdict::Welcome { session, proof }).await?;
            Ok((hello, credential))
        }
        Err((reason, detail)) => {
            let told = detail.clone();
            tell(io, &Verdict::Refused { reason, detail }).await?;
            // It is read before the connection goes.
            let _ = io.shutdown_now().await;
            Err(io::Error::new(io::ErrorKind::PermissionDenied, told))
        }
    }
}

/// Ends what was written, and waits a moment for the other side to have read it.
trait ShutdownNow {
    async fn shutdown_now(&mut self) -> io::Result<()>;
}

impl<S: AsyncRead + AsyncWrite + Unpin> ShutdownNow for S {
    async fn shutdown_now(&mut self) -> io::Result<()> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        self.shutdown().await?;
        let mut rest = [0; 64];
        while self.read(&mut rest).await? > 0 {}
        Ok(())
    }
}

/// What lets it in, and our own proof.
fn judge(
    hello: &Hello,
    claim: &Claim<'_>,
    names: &[String],
    spec: &TunnelSpec,
) -> Option<(Credential, Option<String>)> {
    let known = spec.tokens.get(hello.agent.as_str());
    if let Some(proof) = &hello.proof {
        let secret = claim.which(known.map_or(&[], |list| list.as_slice()), proof)?;
        let ours = claim.prove(Prover::Server, secret);
        return Some((Credential::Secret(secret.clone()), Some(ours)));
    }
    let named = names.contains(&hello.agent) && crate::config::check::is_name(&hello.agent);
    let asked = spec.tls.client_auth.is_some();
    (asked && named).then_some((Credential::Certificate, None))
}

impl Session {
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub fn tunnel_name(&self) -> &Arc<str> {
        &self.tunnel.name
    }

    /// Its services, each with its kind, and why it is not to be had.
    pub fn services(&self) -> Vec<(String, Option<ServiceKind>, Option<String>)> {
        let rules = self.tunnel.rules();
        let grant = rules.grants.get(&self.agent);
        let offers = self.offers.lock();
        offers
            .iter()
            .map(|(name, kind)| (name.to_owned(), kind, hub::forbidden(grant, name, kind)))
            .collect()
    }

    /// `None`: it has no such service; `Some(None)`: of a kind that is not known here.
    pub(super) fn kind(&self, service: &str) -> Option<Option<ServiceKind>> {
        self.offers.lock().kind(service)
    }

    /// Its rules have changed: what they do not grant any more is not to be had from here on.
    pub(super) fn review(&self) {
        let rules = self.tunnel.rules();
        let grant = rules.grants.get(&self.agent);
        let barred = !self.is_welcome();
        let mut offers = self.offers.lock();
        offers.withdraw(|name, kind| barred || hub::forbidden(grant, name, kind).is_some());
        if self.is_draining() {
            offers.retire();
        }
        drop(offers);
        self.recheck.notify_one();
    }

    /// It gets no new flows where another will do, and none of those that it has is used for anything else.
    fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.offers.lock().retire();
    }

    async fn control(&self) -> io::Result<(Ear, Mouth)> {
        let mut h2 = self.h2.clone().ready().await.map_err(io::Error::other)?;
        let request = Request::post(format!("https://tunnel{}", wire::CONTROL))
            .body(())
            .map_err(io::Error::other)?;
        let (response, send) = h2.send_request(request, false).map_err(io::Error::other)?;
        let response = response.await.map_err(io::Error::other)?;
        if response.status() != StatusCode::OK {
            return Err(io::Error::other("the agent has no control stream"));
        }
        Ok((Ear::new(response.into_body()), Mouth::new(send)))
    }

    /// Talks with the agent until there is nothing more to say. Returns why.
    async fn run(&self, mut ear: Ear, mut mouth: Mouth, ends: &Ends) -> String {
        let mut judged = None;
        let mut told = false;
        // When it ends although it has flows.
        let mut last: Option<Instant> = None;
        loop {
            let refused = self.refused();
            if judged.as_ref() != Some(&refused) {
                for one in &refused {
                    tracing::warn!(agent = %self.agent, service = one.service, why = one.why, "a service is refused");
                }
                let message = FromServer::Judged {
                    refused: refused.clone(),
                };
                if let Err(error) = mouth.say(&message).await {
                    return format!("it does not listen: {error}");
                }
                judged = Some(refused);
            }
            let gone = !self.is_welcome();
            if (gone || ends.finish.is_cancelled()) && !told {
                told = true;
                self.drain();
                let limit = gone.then(|| Instant::now() + LAST_FLOWS);
                last = limit;
                if let Err(error) = mouth.say(&FromServer::Drain).await {
                    return format!("it does not listen: {error}");
                }
            }
            let idle = self.is_draining() && self.counts.open.load(Ordering::Acquire) == 0;
            let linger = async {
                match idle {
                    true => tokio::time::sleep(LINGER).await,
                    false => std::future::pending().await,
                }
            };
            // Withdrawn ones are cut in their time.
            let due = self.offers.lock().cut_due(Instant::now());
            let deadline = async {
                match last {
                    Some(last) => tokio::time::sleep_until(last).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                said = ear.next::<FromAgent>() => match said {
                    Ok(Some(FromAgent::Services { services })) => {
                        let mut offers = self.offers.lock();
                        offers.declare(&services);
                        if self.is_draining() {
                            offers.retire();
                        }
                    }
                    Ok(Some(FromAgent::Drain)) => self.drain(),
                    Ok(Some(FromAgent::Unknown)) => {}
                    Ok(None) => return "the agent has ended it".to_owned(),
                    Err(error) => return format!("the agent's words broke off: {error}"),
                },
                () = self.recheck.notified() => {}
                () = self.ended.notified(), if self.is_draining() => {}
                () = ends.finish.cancelled(), if !told => {}
                () = linger => return "it was to end, and its flows have".to_owned(),
                () = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                } => {}
                () = deadline => return "its agent may not come any more".to_owned(),
            }
        }
    }

    fn refused(&self) -> Vec<wire::Refused> {
        self.services()
            .into_iter()
            .filter_map(|(service, _, why)| Some(wire::Refused { service, why: why? }))
            .collect()
    }

    /// Whether it would be let in today.
    pub(super) fn is_welcome(&self) -> bool {
        let rules = self.tunnel.rules();
        match &self.credential {
            Credential::Secret(secret) => rules
                .tokens
                .get(&self.agent)
                .is_some_and(|list| list.contains(secret)),
            Credential::Certificate => rules.tls.client_auth.is_some(),
        }
    }

    /// Asks the agent for a connection to a service.
    pub(super) async fn open(&self, ask: &Ask<'_>, counted: Counted) -> Result<Flow, Refusal> {
        let (agent, service) = (ask.agent, ask.service);
        let broken = |error: &dyn std::fmt::Display| {
            Refusal::new(Reason::Broken, format!("agent {agent}: {error}"))
        };
        let standing = self.offers.lock().standing(service);
        let standing = standing.ok_or_else(|| broken(&"the service has just gone"))?;
        let mut request =
            Request::post(format!("https://tunnel{}", wire::FLOW)).header(wire::SERVICE, service);
        if let Some((client, local)) = ask.client {
            request = request
                .header(wire::CLIENT, client.to_string())
                .header(wire::LOCAL, local.to_string());
        }
        let request = request.body(()).map_err(|error| broken(&error))?;
        let opening = async {
            let mut h2 = self.h2.clone().ready().await.map_err(|e| broken(&e))?;
            let (response, send) = h2.send_request(request, false).map_err(|e| broken(&e))?;
            let response = response.await.map_err(|e| broken(&e))?;
            Ok((response, send))
        };
        let (response, send) = timeout_at(ask.deadline, opening).await.map_err(|_| {
            let detail = format!("service {service} of agent {agent} did not answer in time");
            Refusal::new(Reason::Timeout, detail)
        })??;
        if response.status() == StatusCode::OK {
            return Ok(Flow::new(send, response.into_body(), counted, standing));
        }
        let text = |name| {
            let value = response.headers().get(name);
            value.and_then(|v| v.to_str().ok()).unwrap_or_default()
        };
        let detail = match text(wire::DETAIL) {
            "" => format!("status {}", response.status()),
            detail => detail.to_owned(),
        };
        Err(Refusal::new(
            Reason::of(text(wire::REASON)),
            format!("service {service} of agent {agent}: {detail}"),
        ))
    }
}

/// Who the peer is by its handshake.
///
/// # Errors
/// When it is not TLS 1.3, or its certificate cannot be read.
pub fn secured<T>(tls: &T, names: Vec<String>) -> io::Result<Secured>
where
    T: Exports,
{
    Ok(Secured {
        exporter: tls.exporter()?,
        names,
    })
}

/// A TLS connection of either side.
pub trait Exports {
    /// What only the two ends of it have.
    ///
    /// # Errors
    /// When it is not TLS 1.3.
    fn exporter(&self) -> io::Result<auth::Exporter>;
}

macro_rules! exports {
    ($type:ty) => {
        impl Exports for $type {
            fn exporter(&self) -> io::Result<auth::Exporter> {
                if self.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
                    return Err(io::Error::other("a tunnel needs TLS 1.3"));
                }
                self.export_keying_material([0; 32], auth::LABEL, None)
                    .map_err(io::Error::other)
            }
        }
    };
}

exports!(rustls::ServerConnection);
exports!(rustls::ClientConnection);

/// An address as it stands in a field, and back.
pub(super) fn address(value: Option<&::http::HeaderValue>) -> Option<SocketAddr> {
    value?.to_str().ok()?.parse().ok()
}
