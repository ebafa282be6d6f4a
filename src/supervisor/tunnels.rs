//! What `GET /tunnels` says: the agents that come here with what they publish, and the agents that run here. Taken from
//! the counters at the moment of asking.

use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::handle::Handle;
use super::status::{AgentSummary, TunnelSummary};
use super::view::View;
use crate::config::agent::ServiceSpec;
use crate::snapshot::{Snapshot, Tunnelling};
use crate::tls::client::pin_of;
use crate::tls::store::tunnel_name;
use crate::tunnel::agent::{Agent, Settings, State};
use crate::tunnel::session::Session;
use crate::tunnel::{AgentView, Hub};

/// `GET /tunnels`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TunnelList {
    /// Where agents come to.
    pub tunnels: Vec<TunnelStatus>,
    /// Those that run here.
    pub agents: Vec<AgentStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TunnelStatus {
    pub name: String,
    /// What agents may pin: of each certificate's key.
    pub pins: Vec<String>,
    /// Those that have a token, and those that came by a certificate.
    pub agents: Vec<PublishingStatus>,
}

/// An agent as its server sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PublishingStatus {
    pub agent: String,
    /// It has a session.
    pub connected: bool,
    /// Connections through it that are open.
    pub flows: u64,
    /// Connections through it since its tunnel is there.
    pub opened: u64,
    /// Bytes to its services.
    pub sent: u64,
    /// Bytes from its services.
    pub received: u64,
    /// Datagrams to its services for which there was no room, and those that its `bandwidth` made late, either way.
    pub dropped: u64,
    pub sessions: Vec<SessionStatus>,
    pub services: Vec<PublishedStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionStatus {
    /// The agent's log and its own `/tunnels` call it the same.
    pub session: String,
    pub peer: String,
    /// The agent's program and version.
    pub program: String,
    /// Since when (RFC 3339, UTC).
    pub since: String,
    /// Absent until the first sign of life.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub round_trip_us: Option<u64>,
    /// It gets no new flows while another will do, and ends with those that it has.
    pub draining: bool,
    /// A sign of life is late, so that it gets no new flows while another will do.
    pub overdue: bool,
    pub flows: u64,
    pub opened: u64,
    pub sent: u64,
    pub received: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PublishedStatus {
    pub service: String,
    /// `http`, `https`, `tcp`, `udp`, or `unknown`.
    pub kind: String,
    /// `up`, or `refused`: it may not be used.
    pub state: String,
    /// Why it is refused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// The last connection that could not be made, and when (RFC 3339, UTC).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error_at: Option<String>,
}

/// An agent that runs here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentStatus {
    pub agent: String,
    pub server: String,
    pub sessions: Vec<AgentSessionStatus>,
    pub services: Vec<AgentServiceStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentSessionStatus {
    /// `connecting`, `connected`, or `waiting` for the next try.
    pub state: String,
    /// As the server calls it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub round_trip_us: Option<u64>,
    pub flows: u64,
    /// Datagrams from its services for which there was no room.
    pub dropped: u64,
    /// What is wrong: `unreachable`; `refused`: the server does not let it in; `distrusted`: it does not take it for its
    /// server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trouble: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// Since when it is connected, or the last try failed (RFC 3339, UTC).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentServiceStatus {
    pub service: String,
    pub kind: String,
    pub to: String,
    /// Why the server does not take it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
}

impl TunnelList {
    /// In figures, for `/status`.
    pub(super) fn summary(&self) -> (Vec<TunnelSummary>, Vec<AgentSummary>) {
        let tunnel = |one: &TunnelStatus| {
            let there = || one.agents.iter().filter(|agent| agent.connected);
            let up = |agent: &PublishingStatus| {
                let services = agent.services.iter();
                services.filter(|service| service.state == "up").count()
            };
            TunnelSummary {
                name: one.name.clone(),
                agents: one.agents.len() as u64,
                connected: there().count() as u64,
                sessions: there().map(|agent| agent.sessions.len()).sum::<usize>() as u64,
                services: there().map(up).sum::<usize>() as u64,
                flows: one.agents.iter().map(|agent| agent.flows).sum(),
            }
        };
        let agent = |one: &AgentStatus| {
            let connected = one.sessions.iter().filter(|s| s.session.is_some()).count();
            let why = one.sessions.iter().find_map(|session| session.why.clone());
            AgentSummary {
                agent: one.agent.clone(),
                server: one.server.clone(),
                sessions: one.sessions.len() as u64,
                connected: connected as u64,
                flows: one.sessions.iter().map(|session| session.flows).sum(),
                why: why.filter(|_| connected == 0),
            }
        };
        let tunnels = self.tunnels.iter().map(tunnel).collect();
        (tunnels, self.agents.iter().map(agent).collect())
    }
}

impl Handle {
    /// Agents and their services, on either side.
    pub fn tunnels(&self) -> TunnelList {
        self.inner.view.load_full().tunnels()
    }
}

impl View {
    pub(super) fn tunnels(&self) -> TunnelList {
        let Some((crew, current)) = self.crew.as_ref().zip(self.serving.as_ref()) else {
            return TunnelList::default();
        };
        let snapshot = &current.snapshot;
        let views = Hub::agents(&crew.tunnels);
        TunnelList {
            tunnels: snapshot
                .tunnels
                .values()
                .map(|made| tunnel(made, snapshot, &views))
                .collect(),
            agents: snapshot
                .agents
                .values()
                .map(|(running, settings)| agent(running, settings))
                .collect(),
        }
    }
}

fn tunnel(made: &Tunnelling, snapshot: &Snapshot, views: &[AgentView]) -> TunnelStatus {
    let name = &made.tunnel.name;
    let certificates = snapshot.certificates.of(&tunnel_name(name));
    let pins = certificates.iter().filter_map(|c| pin_of(c.der()?).ok());
    let known = made.spec.tokens.keys();
    let mut agents: Vec<PublishingStatus> = known
        .map(|agent| publishing(agent, views.iter().find(|view| view.name == *agent)))
        .collect();
    let others = views.iter().filter(|view| {
        let here = view.sessions.iter().any(|s| s.tunnel_name() == name);
        here && !made.spec.tokens.contains_key(&view.name)
    });
    agents.extend(others.map(|view| publishing(&view.name, Some(view))));
    TunnelStatus {
        name: name.to_string(),
        pins: pins.map(|pin| pin.to_string()).collect(),
        agents,
    }
}

fn publishing(name: &str, view: Option<&AgentView>) -> PublishingStatus {
    let Some(view) = view else {
        return PublishingStatus {
            agent: name.to_owned(),
            connected: false,
            flows: 0,
            opened: 0,
            sent: 0,
            received: 0,
            dropped: 0,
            sessions: Vec::new(),
            services: Vec::new(),
        };
    };
    // The newest session says what there is.
    let services = view.sessions.last().map(|session| session.services());
    let service = |(service, kind, why): (String, Option<_>, Option<String>)| {
        let error = view.errors.get(&service);
        PublishedStatus {
            kind: kind
                .map_or("unknown", |kind: crate::config::agent::ServiceKind| {
                    kind.word()
                })
                .to_owned(),
            state: if why.is_some() { "refused" } else { "up" }.to_owned(),
            why,
            last_error: error.map(|(_, what)| what.clone()),
            last_error_at: error.map(|(at, _)| at.to_string()),
            service,
        }
    };
    PublishingStatus {
        agent: name.to_owned(),
        connected: !view.sessions.is_empty(),
        flows: view.counts.open.load(Ordering::Relaxed) as u64,
        opened: view.counts.opened.load(Ordering::Relaxed),
        sent: view.counts.sent.load(Ordering::Relaxed),
        received: view.counts.received.load(Ordering::Relaxed),
        dropped: view.counts.dropped.load(Ordering::Relaxed),
        sessions: view.sessions.iter().map(|s| session(s)).collect(),
        services: services.into_iter().flatten().map(service).collect(),
    }
}

fn session(session: &Session) -> SessionStatus {
    let counts = &session.counts;
    SessionStatus {
        session: session.id.clone(),
        peer: session.peer.clone(),
        program: session.program.clone(),
        since: session.since.to_string(),
        round_trip_us: session.round_trip.get().map(micros),
        draining: session.is_draining(),
        overdue: session.round_trip.is_overdue(),
        flows: counts.open.load(Ordering::Relaxed) as u64,
        opened: counts.opened.load(Ordering::Relaxed),
        sent: counts.sent.load(Ordering::Relaxed),
        received: counts.received.load(Ordering::Relaxed),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn agent(running: &Agent, settings: &Settings) -> AgentStatus {
    let refused = running.refused();
    let service = |(name, spec): (&std::sync::Arc<str>, &ServiceSpec)| AgentServiceStatus {
        service: name.to_string(),
        kind: spec.kind.word().to_owned(),
        to: spec.to.to_string(),
        refused: refused
            .iter()
            .find(|one| one.service == **name)
            .map(|one| one.why.clone()),
    };
    AgentStatus {
        agent: running.name.to_string(),
        server: settings.spec.server.to_string(),
        sessions: running.states().into_iter().map(slot).collect(),
        services: settings.spec.services.iter().map(service).collect(),
    }
}

fn slot(state: State) -> AgentSessionStatus {
    let none = AgentSessionStatus {
        state: "connecting".to_owned(),
        session: None,
        round_trip_us: None,
        flows: 0,
        dropped: 0,
        trouble: None,
        why: None,
        since: None,
    };
    let told = |time: Timestamp| Some(time.to_string());
    match state {
        State::Connecting => none,
        State::Connected(running) => AgentSessionStatus {
            state: "connected".to_owned(),
            session: Some(running.session.clone()),
            round_trip_us: running.round_trip.get().map(micros),
            flows: running.flows.load(Ordering::Relaxed) as u64,
            dropped: running.dropped.load(Ordering::Relaxed),
            since: told(running.since),
            ..none
        },
        State::Waiting { why, kind, since } => AgentSessionStatus {
            state: "waiting".to_owned(),
            trouble: Some(kind.word().to_owned()),
            why: Some(why),
            since: told(since),
            ..none
        },
    }
}
