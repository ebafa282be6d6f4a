//! What `/status` reads: the figures are taken from the counters at the moment of asking, without a word to the actor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use jiff::Timestamp;

use super::actor::{Crew, Current};
use super::certificates::{self, CertificateList};
use super::drain::{self, Draining};
use super::status::HandshakeStatus;
use super::status::{
    CheckStatus, GenerationStatus, ListenerStatus, ShareStatus, Status, TargetStatus,
    UpstreamStatus,
};
use super::table::Bound;
use crate::config::runtime::Model;
use crate::document::Document;
use crate::metrics::WorkerCounters;
use crate::net;
use crate::snapshot::{Snapshot, bindings};
use crate::tls;
use crate::upstream::Target;
use crate::upstream::health::CheckReport;

/// Version of the admin API: raised by any change that is not an addition.
const API: u32 = 1;

/// References to everything alive, as of the last change.
pub(super) struct View {
    pub(super) started: Instant,
    pub(super) runtimes: Vec<tokio::runtime::Handle>,
    pub(super) crew: Option<Arc<Crew>>,
    pub(super) serving: Option<Current>,
    pub(super) bound: Vec<Arc<Bound>>,
    pub(super) draining: Vec<Arc<Draining>>,
}

impl View {
    pub(super) fn new(started: Instant, runtimes: Vec<tokio::runtime::Handle>) -> View {
        View {
            started,
            runtimes,
            crew: None,
            serving: None,
            bound: Vec::new(),
            draining: Vec::new(),
        }
    }

    pub(super) fn with(
        &self,
        crew: Option<Arc<Crew>>,
        current: Option<&Current>,
        bound: Vec<Arc<Bound>>,
        draining: Vec<Arc<Draining>>,
    ) -> View {
        View {
            started: self.started,
            runtimes: self.runtimes.clone(),
            crew,
            serving: current.cloned(),
            bound,
            draining,
        }
    }

    /// What serves, for those who look at its files.
    pub(super) fn serving(&self) -> Option<(Arc<Document>, Arc<Snapshot>)> {
        let serving = self.serving.as_ref()?;
        Some((serving.document.clone(), serving.snapshot.clone()))
    }

    pub(super) fn certificates(&self) -> CertificateList {
        let serving = self.serving.as_ref();
        serving
            .map(|current| certificates::list(&current.snapshot.certificates, Timestamp::now()))
            .unwrap_or_default()
    }

    /// Handshakes of all workers since start.
    pub(super) fn handshakes(&self) -> HandshakeStatus {
        let mut sum = tls::Handshakes::default();
        let workers = self.crew.iter().flat_map(|crew| &crew.workers);
        workers.for_each(|worker| sum.add(&worker.handshakes));
        let failed = tls::Failure::ALL
            .iter()
            .map(|failure| failure.name().to_owned());
        HandshakeStatus {
            full: sum.full,
            resumed: sum.resumed,
            failed: failed.zip(sum.failed).collect(),
        }
    }

    /// A generation has begun to serve, and is seen here.
    pub(super) fn is_serving(&self) -> bool {
        self.serving.is_some()
    }

    /// Accepting pauses somewhere for want of descriptors.
    pub(super) fn is_starved(&self) -> bool {
        self.crew
            .as_ref()
            .is_some_and(|crew| crew.limit.is_starved())
    }

    pub(super) fn status(&self, generation: u64) -> Status {
        let CertificateList {
            certificates,
            problems,
        } = self.certificates();
        let workers = self.crew.as_ref().map_or(&[][..], |crew| &crew.workers);
        let sum = |counter: fn(&WorkerCounters) -> &AtomicU64| -> u64 {
            workers
                .iter()
                .map(|worker| counter(&worker.context.counters).load(Ordering::Relaxed))
                .sum()
        };
        let runtimes = workers
            .iter()
            .map(|worker| &worker.runtime)
            .chain(&self.runtimes);
        let (tunnels, agents) = self.tunnels().summary();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            api: API,
            uptime_s: self.started.elapsed().as_secs(),
            generation,
            generations: self.generations(),
            listeners: self.listeners(),
            upstreams: self.upstreams(),
            workers: workers.len() as u64,
            model: match self.crew.as_ref().map(|crew| crew.model) {
                Some(Model::Shared) => "shared".into(),
                Some(Model::PerCore) | None => "per-core".into(),
            },
            connections: sum(|counters| &counters.connections),
            requests: sum(|counters| &counters.requests),
            descriptors: net::open_descriptors(),
            tasks: runtimes
                .map(|runtime| runtime.metrics().num_alive_tasks() as u64)
                .sum(),
            resident_bytes: net::resident_bytes(),
            panics: sum(|counters| &counters.panics),
            certificates,
            certificate_problems: problems,
            handshakes: self.handshakes(),
            sessions: self.session_status(),
            tunnels,
            agents,
        }
    }

    fn generations(&self) -> Vec<GenerationStatus> {
        let draining = self
            .draining
            .iter()
            .filter(|d| !d.is_over())
            .map(|d| GenerationStatus {
                generation: d.generation(),
                state: "draining".into(),
                requests: d.requests() as u64,
                tunnels: d.tunnels() as u64,
            });
        let serving = self.serving.iter().map(|current| GenerationStatus {
            generation: current.id,
            state: "serving".into(),
            requests: drain::requests(&current.generations) as u64,
            tunnels: drain::tunnels(&current.generations) as u64,
        });
        draining.chain(serving).collect()
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        let servers = self
            .serving
            .as_ref()
            .map(|current| bindings(&current.document))
            .unwrap_or_default();
        let one = |bound: &Bound, state: &str| ListenerStatus {
            address: bound.binding.shown(),
            configured: bound.key.shown(),
            servers: servers.get(&bound.key).map_or_else(Vec::new, |behind| {
                behind.names().map(ToString::to_string).collect()
            }),
            state: state.into(),
            connections: bound.binding.connections() as u64,
            sockets: bound.sockets.len() as u64,
        };
        let serving = self.bound.iter().map(|bound| one(bound, "serving"));
        let retired = self.draining.iter().flat_map(|draining| draining.retired());
        serving
            .chain(retired.map(|bound| one(&bound, "retiring")))
            .collect()
    }

    fn upstreams(&self) -> Vec<UpstreamStatus> {
        let snapshot = self
            .serving
            .iter()
            .flat_map(|current| &current.snapshot.upstreams);
        snapshot
            .map(|(name, upstream)| UpstreamStatus {
                name: name.to_string(),
                fail_open: upstream.fails_open(),
                queued: upstream.queued() as u64,
                split: upstream
                    .members()
                    .map(|(member, share)| ShareStatus {
                        upstream: member.name().to_string(),
                        share,
                    })
                    .collect(),
                targets: upstream
                    .targets()
                    .map(|(_, weight, target)| target_status(weight, target))
                    .collect(),
            })
            .collect()
    }
}

/// What `/status` says of a target.
pub(super) fn target_status(weight: u32, target: &Target) -> TargetStatus {
    let report = target.report();
    TargetStatus {
        address: target.key().1.to_string(),
        weight,
        state: target.wish(),
        health: target.state().word().into(),
        since: at(report.since),
        ejected: report.ejected,
        check: report.check.map(check),
        in_flight: target.in_flight() as u64,
        connections: target.connections() as u64,
        idle: target.idle() as u64,
    }
}

fn check(report: CheckReport) -> CheckStatus {
    CheckStatus {
        at: at(report.at),
        result: if report.passed { "passed" } else { "failed" }.into(),
        reason: report.reason,
        streak: u64::from(report.streak),
    }
}

/// RFC 3339, UTC. A clock beyond what a timestamp can hold shows the epoch.
fn at(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .unwrap_or_default()
        .to_string()
}
