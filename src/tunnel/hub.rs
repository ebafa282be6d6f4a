//! The public side's table: which agents are there, over which sessions, with which services, and what they may do. It
//! outlives generations: a session stays while its tunnel does, and what it may do is asked anew with each flow.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::allowance::Allowance;
use super::flow::{Counted, Counts, Flow};
use super::session::Session;
use super::ticket::Tickets;
use crate::config::agent::ServiceKind;
use crate::config::tunnel::{GrantSpec, TunnelSpec};
use crate::registry::Registry;
use crate::tls::client::Offer;

/// Sessions of one agent: as many as it can have, twice, for a while in which it makes new ones.
pub(super) const MAX_SESSIONS: usize = 32;

/// All that is published here. One per process.
#[derive(Debug, Default)]
pub struct Hub {
    tunnels: Registry<Arc<str>, Tunnel>,
    table: Mutex<Table>,
    numbers: AtomicU64,
    tickets: Arc<Tickets>,
}

#[derive(Debug, Default)]
struct Table {
    /// By name; those that have a session, and those that had one and may come again by their token.
    agents: HashMap<Arc<str>, Arc<Agent>>,
    /// Those that have a token.
    known: HashSet<Arc<str>>,
}

impl Table {
    /// Forgets an agent that has no session and is not awaited.
    fn tidy(&mut self) {
        let Table { agents, known } = self;
        agents.retain(|name, agent| known.contains(name) || !agent.is_away());
    }
}

/// One `[tunnels.NAME]`, for as long as any generation has it.
#[derive(Debug)]
pub struct Tunnel {
    pub name: Arc<str>,
    rules: ArcSwap<TunnelSpec>,
}

/// An agent that came.
#[derive(Debug, Default)]
struct Agent {
    counts: Arc<Counts>,
    allowance: Arc<Allowance>,
    state: Mutex<AgentState>,
}

#[derive(Debug, Default)]
struct AgentState {
    sessions: Vec<Arc<Session>>,
    /// By service: what went wrong last.
    errors: BTreeMap<String, (Timestamp, String)>,
}

/// Services whose last error is remembered.
const MAX_ERRORS: usize = 256;

/// Whose connection is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub agent: &'a str,
    pub service: &'a str,
    /// UDP services take datagrams, all others a stream.
    pub datagrams: bool,
    /// The client, and the address that it reached.
    pub client: Option<(SocketAddr, SocketAddr)>,
    /// As in [`ServiceAt`](crate::upstream::dial::ServiceAt).
    pub speaks: Offer,
    pub deadline: Instant,
}

/// Why there is no flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The agent is not there, or has no such service, or may not have it.
    Absent,
    /// The agent has as many flows as it may.
    Full,
    /// The service refused the agent's dial.
    Refused,
    Timeout,
    /// The agent does not let itself dial it, or cannot.
    Unreachable,
    /// The carrier broke.
    Broken,
}

/// Why there is no flow, and a sentence about it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    pub reason: Reason,
    pub detail: String,
}

impl Refusal {
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Refusal {
        Refusal {
            reason,
            detail: detail.into(),
        }
    }
}

impl Reason {
    /// As it goes over the wire.
    pub(super) fn word(self) -> &'static str {
        match self {
            Reason::Absent => "absent",
            Reason::Full => "full",
            Reason::Refused => "refused",
            Reason::Timeout => "timeout",
            Reason::Unreachable => "unreachable",
            Reason::Broken => "broken",
        }
    }

    pub(super) fn of(word: &str) -> Reason {
        let all = [
            Reason::Absent,
            Reason::Full,
            Reason::Refused,
            Reason::Timeout,
            Reason::Broken,
        ];
        let known = all.into_iter().find(|reason| reason.word() == word);
        known.unwrap_or(Reason::Unreachable)
    }
}

impl Hub {
    /// The tunnel of a generation: the one that is there, with its sessions, or a new one.
    pub fn lease(&self, spec: &TunnelSpec) -> Arc<Tunnel> {
        self.tunnels.lease(&spec.name, || Tunnel {
            name: spec.name.clone(),
            rules: ArcSwap::from_pointee(spec.clone()),
        })
    }

    /// A generation with this spec is committed: its sessions go by it from now on.
    pub fn adopt(&self, tunnel: &Tunnel, spec: &TunnelSpec) {
        if **tunnel.rules.load() == *spec {
            return;
        }
        tunnel.rules.store(Arc::new(spec.clone()));
        for (name, agent) in &self.table.lock().agents {
            for session in &agent.state.lock().sessions {
                if session.tunnel.name == tunnel.name {
                    agent.allow(name, spec);
                    session.review();
                }
            }
        }
    }

    /// Connections that agents are asked to make for flows.
    pub(super) fn tickets(&self) -> &Arc<Tickets> {
        &self.tickets
    }

    /// What a new session is called: unlike any other's.
    pub(super) fn number(&self) -> String {
        format!("s{}", self.numbers.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// These are all agents that have a token from now on.
    pub fn know<'n>(&self, names: impl Iterator<Item = &'n Arc<str>>) {
        let mut table = self.table.lock();
        table.known = names.cloned().collect();
        table.tidy();
    }

    /// A session joins its agent; false: that has too many.
    pub(super) fn join(&self, session: &Arc<Session>) -> bool {
        let mut table = self.table.lock();
        let agent = table.agents.entry(session.agent.clone()).or_default();
        agent.allow(&session.agent, &session.tunnel.rules.load());
        agent.join(session)
    }

    pub(super) fn leave(&self, session: &Arc<Session>) {
        let mut table = self.table.lock();
        if let Some(agent) = table.agents.get(&session.agent) {
            agent.leave(session);
        }
        table.tidy();
    }

    /// Connects to a service.
    ///
    /// # Errors
    /// Why not; nothing has been sent then.
    pub async fn open(&self, ask: Ask<'_>) -> Result<Flow, Refusal> {
        let Ask {
            agent: name,
            service,
            ..
        } = ask;
        let absent = |what: String| Refusal::new(Reason::Absent, what);
        let agent = self.table.lock().agents.get(name).cloned();
        let agent = agent.ok_or_else(|| absent(format!("agent {name} is not connected")))?;
        let mut tried = Vec::new();
        loop {
            let chosen = agent.choose(&ask, &tried);
            // What nobody will mend but by the configuration of either side is told there.
            if let Err(refusal) = &chosen
                && refusal.reason == Reason::Unreachable
            {
                agent.note(service, &refusal.detail);
            }
            let (session, limit) = chosen?;
            let of = (&agent.counts, &agent.allowance);
            let Some(counted) = Counted::take(of, &session.counts, limit, &session.ended) else {
                let detail = format!(
                    "agent {name} has {} flows, as many as it may",
                    limit.unwrap_or(0)
                );
                return Err(Refusal::new(Reason::Full, detail));
            };
            match session.open(&ask, counted).await {
                Ok(flow) => return Ok(flow),
                // Nobody has seen it: another session may do.
                Err(refusal) if refusal.reason == Reason::Broken => tried.push(session.id.clone()),
                Err(refusal) => {
                    agent.note(service, &refusal.detail);
                    return Err(refusal);
                }
            }
        }
    }

    /// Every agent that is there or has been, by name.
    pub fn agents(&self) -> Vec<AgentView> {
        let agents: Vec<_> = {
            let table = self.table.lock();
            table
                .agents
                .iter()
                .map(|(n, a)| (n.clone(), a.clone()))
                .collect()
        };
        let mut all: Vec<_> = agents
            .into_iter()
            .map(|(name, agent)| agent.view(name))
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

/// An agent as it is shown.
#[derive(Debug)]
pub struct AgentView {
    pub name: Arc<str>,
    pub counts: Arc<Counts>,
    pub sessions: Vec<Arc<Session>>,
    pub errors: BTreeMap<String, (Timestamp, String)>,
}

impl Tunnel {
    /// What holds now.
    pub fn rules(&self) -> Arc<TunnelSpec> {
        self.rules.load_full()
    }
}

/// Why a grant does not have a service; `None`: it has.
pub(super) fn forbidden(
    grant: Option<&GrantSpec>,
    service: &str,
    kind: Option<ServiceKind>,
) -> Option<String> {
    let Some(kind) = kind else {
        return Some("this kind of service is not known here".to_owned());
    };
    let grant = grant?;
    let named = |list: &Vec<_>| {
        list.iter()
            .any(|p: &crate::config::tunnel::NamePattern| p.matches(service))
    };
    if !grant.services.as_ref().is_none_or(named) {
        return Some("it is not granted: `services` does not name it".to_owned());
    }
    if !grant
        .kinds
        .as_ref()
        .is_none_or(|kinds| kinds.contains(&kind))
    {
        return Some(format!("it is not granted: `kinds` has no `{kind}`"));
    }
    None
}

impl Agent {
    fn is_away(&self) -> bool {
        self.state.lock().sessions.is_empty()
    }

    /// How fast it may be, from now on.
    fn allow(&self, name: &str, spec: &TunnelSpec) {
        let grant = spec.grants.get(name);
        self.allowance.set(grant.and_then(|grant| grant.bandwidth));
    }

    fn join(&self, session: &Arc<Session>) -> bool {
        let mut state = self.state.lock();
        if state.sessions.len() >= MAX_SESSIONS {
            return false;
        }
        // It may come because one of them is dead.
        state.sessions.iter().for_each(|s| s.round_trip.ask());
        state.sessions.push(session.clone());
        true
    }

    fn leave(&self, session: &Arc<Session>) {
        let sessions = &mut self.state.lock().sessions;
        sessions.retain(|other| !Arc::ptr_eq(other, session));
    }

    fn note(&self, service: &str, what: &str) {
        let mut state = self.state.lock();
        let errors = &mut state.errors;
        if errors.len() < MAX_ERRORS || errors.contains_key(service) {
            errors.insert(service.to_owned(), (Timestamp::now(), what.to_owned()));
        }
    }

    /// The least loaded session with the service: one of the agent's newest process before others, and one that is told
    /// to end only if there is nothing else; so one that may be dead. With it, how many flows the agent may have.
    fn choose(
        &self,
        ask: &Ask<'_>,
        tried: &[String],
    ) -> Result<(Arc<Session>, Option<usize>), Refusal> {
        let (name, service) = (ask.agent, ask.service);
        let absent = |what: String| Refusal::new(Reason::Absent, what);
        let state = self.state.lock();
        // One whose credential was withdrawn has a while for its flows, not for new ones.
        let welcome = || state.sessions.iter().filter(|s| s.is_welcome());
        let Some(newest) = welcome().next_back() else {
            return Err(absent(format!("agent {name} is not connected")));
        };
        let having = welcome().filter(|s| s.kind(service).is_some());
        let best = having
            .filter(|session| !tried.contains(&session.id))
            .min_by_key(|session| {
                let old = session.instance != newest.instance;
                let flows = session.counts.open.load(Ordering::Relaxed);
                let overdue = session.round_trip.is_overdue();
                (overdue, session.is_draining(), old, flows)
            });
        let Some(best) = best else {
            return Err(match tried.is_empty() {
                true => absent(format!("agent {name} has no service {service}")),
                false => Refusal::new(
                    Reason::Broken,
                    format!("agent {name}: its connections broke"),
                ),
            });
        };
        let kind = best.kind(service).flatten();
        let rules = best.tunnel.rules.load();
        let grant = rules.grants.get(name);
        if let Some(why) = forbidden(grant, service, kind) {
            return Err(absent(format!("service {service} of agent {name}: {why}")));
        }
        let datagrams = kind == Some(ServiceKind::Udp);
        if datagrams != ask.datagrams {
            let kind = kind.map_or("", |kind| kind.word());
            let asked = match ask.datagrams {
                true => "datagrams go",
                false => "stream goes",
            };
            let detail =
                format!("service {service} of agent {name} is a {kind} service: no {asked} there");
            return Err(Refusal::new(Reason::Unreachable, detail));
        }
        Ok((best.clone(), grant.and_then(|grant| grant.flows)))
    }

    fn view(&self, name: Arc<str>) -> AgentView {
        let state = self.state.lock();
        AgentView {
            name,
            counts: self.counts.clone(),
            sessions: state.sessions.clone(),
            errors: state.errors.clone(),
        }
    }
}

/// Told when something about a session is to be looked at again.
pub(super) type Bell = Arc<Notify>;

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_is_away_is_forgotten_with_its_token() {
        let hub = Hub::default();
        let (home, away): (Arc<str>, Arc<str>) = ("home".into(), "away".into());
        hub.know([&home, &away].into_iter());
        for name in [&home, &away] {
            hub.table.lock().agents.insert(name.clone(), Arc::default());
        }
        hub.know([&home].into_iter());
        let names: Vec<_> = hub.agents().into_iter().map(|view| view.name).collect();
        assert_eq!(names, [home]);
    }
}
