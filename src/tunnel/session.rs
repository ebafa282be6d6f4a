//! One session on the public side: an agent's connection, from its first byte to its last. It owns the carrier's task; all
//! that it started ends with it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::http::{Request, Response, StatusCode};
use bytes::Bytes;
use h2::client::SendRequest;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::carrier::{self, Ear, Mouth, RoundTrip};
use super::flow::{Counted, Counts, Flow, Line};
use super::greeting::{Comes, Credential, Secured, greet};
use super::hub::{self, Ask, Bell, Hub, Reason, Refusal, Tunnel};
use super::offer::{LAST_FLOWS, Offers};
use super::ticket::Tickets;
use super::wire::{self, FromAgent, FromServer};
use crate::config::agent::ServiceKind;
use crate::config::tunnel::TunnelSpec;
use crate::net::Sever;
use crate::tls::client::Offer;

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
    /// Connections that its agent makes for flows.
    tickets: Arc<Tickets>,
    /// It is over: its flows end, also those that have connections of their own.
    over: CancellationToken,
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
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let greeting = Instant::now() + GREETING;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let id = hub.number();
    let by = (&*spec, hub.tickets());
    let greeted = timeout_at(greeting, greet(&mut io, &id, &secured, by, &ends));
    let comes = tokio::select! {
        greeted = greeted => greeted.map_err(late)??,
        () = ends.cut.cancelled() => return Ok("the address is gone".to_owned()),
    };
    let (hello, credential) = match comes {
        Comes::Session(hello, credential) => (hello, credential),
        Comes::Flow(awaited) => return Ok(awaited.hand_over(io, &ends.cut).await.to_owned()),
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
        tickets: hub.tickets().clone(),
        over: CancellationToken::new(),
    });
    let _over = session.over.clone().drop_guard();
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
        let (standing, dedicated) = {
            let offers = self.offers.lock();
            (offers.standing(service), offers.is_dedicated(service))
        };
        let standing = standing.ok_or_else(|| broken(&"the service has just gone"))?;
        let cut = self.over.child_token();
        let waiting = dedicated.then(|| self.tickets.issue(&self.agent, cut.clone()));
        let mut waiting = waiting.transpose().map_err(|error| broken(&error))?;
        let ticket = waiting.as_ref().map(|waiting| &*waiting.ticket);
        let request = request(ask, ticket).map_err(|error| broken(&error))?;
        let opening = async {
            let mut h2 = self.h2.clone().ready().await.map_err(|e| broken(&e))?;
            let (response, send) = h2.send_request(request, false).map_err(|e| broken(&e))?;
            let response = response.await.map_err(|e| broken(&e))?;
            if response.status() != StatusCode::OK {
                return Err(refused(ask, &response));
            }
            let receive = response.into_body();
            let Some(waiting) = &mut waiting else {
                return Ok(Line::stream(send, receive));
            };
            // The agent says that it is there when it is.
            let own = (&mut waiting.own).await;
            let own = own.map_err(|_| broken(&"it has made no connection for the flow"))?;
            Ok(Line::own(own, (send, receive), cut))
        };
        let line = timeout_at(ask.deadline, opening).await.map_err(|_| {
            let detail = format!("service {service} of agent {agent} did not answer in time");
            Refusal::new(Reason::Timeout, detail)
        })??;
        Ok(Flow::new(line, counted, standing))
    }
}

/// How a flow is asked for.
fn request(ask: &Ask<'_>, ticket: Option<&str>) -> ::http::Result<Request<()>> {
    let mut request =
        Request::post(format!("https://tunnel{}", wire::FLOW)).header(wire::SERVICE, ask.service);
    if let Some((client, local)) = ask.client {
        request = request
            .header(wire::CLIENT, client.to_string())
            .header(wire::LOCAL, local.to_string());
    }
    let speaks = match ask.speaks {
        Offer::Nothing => None,
        Offer::H1 => Some(wire::HTTP_1),
        Offer::H2 | Offer::Both => Some(wire::HTTP_2),
    };
    for (name, value) in [(wire::SPEAKS, speaks), (wire::TICKET, ticket)] {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    request.body(())
}

/// Why the agent does not make it.
fn refused<B>(ask: &Ask<'_>, response: &Response<B>) -> Refusal {
    let text = |name| {
        let value = response.headers().get(name);
        value.and_then(|v| v.to_str().ok()).unwrap_or_default()
    };
    let detail = match text(wire::DETAIL) {
        "" => format!("status {}", response.status()),
        detail => detail.to_owned(),
    };
    let (agent, service) = (ask.agent, ask.service);
    Refusal::new(
        Reason::of(text(wire::REASON)),
        format!("service {service} of agent {agent}: {detail}"),
    )
}

/// An address as it stands in a field, and back.
pub(super) fn address(value: Option<&::http::HeaderValue>) -> Option<SocketAddr> {
    value?.to_str().ok()?.parse().ok()
}
