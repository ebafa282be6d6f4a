//! What `/metrics` shows: the sums over workers, taken from the counters at the moment of asking, without a word to the
//! actor. Labels are names of the document and addresses of targets, so no client can add to them; a series is there
//! from its first request on, and until the last generation that has its name is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::event::Outcome;
use super::status::HandshakeStatus;
use super::view::View;
use crate::metrics::WorkerCounters;
use crate::metrics::cell::{self, Cell, Totals};
use crate::net;
use crate::session;

/// Swaps by outcome, and how long those took that committed.
#[derive(Debug, Default)]
pub(super) struct SwapCounts {
    outcomes: [AtomicU64; OUTCOMES.len()],
    took: Cell,
}

/// Those that are counted, as the label has them.
const OUTCOMES: [(Outcome, &str); 5] = [
    (Outcome::Committed, "committed"),
    (Outcome::Unchanged, "unchanged"),
    (Outcome::Adapted, "adapted"),
    (Outcome::Rejected, "rejected"),
    (Outcome::Stopped, "stopped"),
];

impl SwapCounts {
    /// A swap has come to this; `elapsed` since its turn.
    pub(super) fn count(&self, outcome: Outcome, elapsed: Duration) {
        let known = OUTCOMES.iter().zip(&self.outcomes);
        for (_, counter) in known.filter(|((one, _), _)| *one == outcome) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if outcome == Outcome::Committed {
            self.took.begin();
            self.took.end(&cell::Outcome {
                status: 200,
                took: elapsed,
                sent: 0,
            });
        }
    }

    fn outcomes(&self) -> Vec<(&'static str, u64)> {
        let count = |((_, name), counter): (&(Outcome, &'static str), &AtomicU64)| {
            (*name, counter.load(Ordering::Relaxed))
        };
        OUTCOMES.iter().zip(&self.outcomes).map(count).collect()
    }
}

/// Everything that is counted.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// The generation that serves (0: none).
    pub generation: u64,
    /// Generations that are not gone yet.
    pub generations: u64,
    pub swaps: Vec<(&'static str, u64)>,
    /// From a swap's turn to its commit.
    pub swap_time: Totals,
    pub routes: Vec<RouteFigures>,
    pub targets: Vec<TargetFigures>,
    pub listeners: Vec<ListenerFigures>,
    pub connections: u64,
    pub accepted: u64,
    pub panics: u64,
    pub websockets: u64,
    pub open_websockets: u64,
    /// Long flows by kind, of the kinds that there have been.
    pub sessions: Vec<(session::Kind, session::Totals)>,
    /// The same by kind and listener.
    pub session_names: Vec<(session::Name, session::Totals)>,
    /// TLS handshakes by how they went.
    pub handshakes: HandshakeStatus,
    /// Dropped lines, by path.
    pub access_logs: Vec<(String, u64)>,
    pub tasks: u64,
    pub uptime: Duration,
    pub descriptors: Option<u64>,
    pub resident_bytes: Option<u64>,
    /// User and system time.
    pub cpu: Option<Duration>,
}

/// Requests of one route; its name is empty for those without a name and for what no route takes.
#[derive(Debug, Clone)]
pub struct RouteFigures {
    pub server: Arc<str>,
    pub route: Arc<str>,
    pub totals: Totals,
}

#[derive(Debug, Clone)]
pub struct TargetFigures {
    pub upstream: Arc<str>,
    pub target: String,
    pub up: bool,
    pub connections: u64,
    pub idle: u64,
    pub totals: Totals,
}

#[derive(Debug, Clone)]
pub struct ListenerFigures {
    pub address: String,
    pub connections: u64,
    /// Connections that a limit refused.
    pub refused: u64,
}

impl View {
    pub(super) fn figures(&self, generation: u64, swaps: &SwapCounts) -> Figures {
        let workers = self.crew.as_ref().map_or(&[][..], |crew| &crew.workers);
        let sum = |counter: fn(&WorkerCounters) -> &AtomicU64| -> u64 {
            let one =
                |w: &crate::worker::Worker| counter(&w.context.counters).load(Ordering::Relaxed);
            workers.iter().map(one).sum()
        };
        let mut swap_time = Totals::default();
        swaps.took.add_to(&mut swap_time);
        let draining = self.draining.iter().filter(|d| !d.is_over());
        let sessions = self.session_totals();
        let open = |wanted| -> u64 {
            let of = sessions.iter().filter(|(kind, _)| *kind == wanted);
            of.map(|(_, totals)| totals.open).sum()
        };
        let runtimes = workers.iter().map(|w| &w.runtime).chain(&self.runtimes);
        Figures {
            generation,
            generations: (draining.count() + usize::from(self.serving.is_some())) as u64,
            swaps: swaps.outcomes(),
            swap_time,
            routes: self.route_figures(),
            targets: self.target_figures(),
            listeners: self.listener_figures(),
            connections: sum(|c| &c.connections),
            accepted: sum(|c| &c.accepted),
            panics: sum(|c| &c.panics),
            websockets: sum(|c| &c.websockets),
            open_websockets: open(session::Kind::Websocket),
            sessions,
            session_names: self.session_names(),
            handshakes: self.handshakes(),
            access_logs: self.log_figures(),
            tasks: runtimes.map(|r| r.metrics().num_alive_tasks() as u64).sum(),
            uptime: Instant::now().duration_since(self.started),
            descriptors: net::open_descriptors(),
            resident_bytes: net::resident_bytes(),
            cpu: cpu_time(),
        }
    }

    fn route_figures(&self) -> Vec<RouteFigures> {
        let alive = self
            .crew
            .iter()
            .flat_map(|crew| crew.records.series.alive());
        let counted = alive.filter_map(|((server, route), series)| {
            let totals = series.totals()?;
            Some(RouteFigures {
                server,
                route,
                totals,
            })
        });
        let mut all: Vec<_> = counted.collect();
        all.sort_by(|a, b| (&a.server, &a.route).cmp(&(&b.server, &b.route)));
        all
    }

    fn target_figures(&self) -> Vec<TargetFigures> {
        let alive = self
            .crew
            .iter()
            .flat_map(|crew| crew.shared.targets.alive());
        let mut all: Vec<_> = alive
            .map(|((upstream, address), target)| TargetFigures {
                upstream,
                target: address.to_string(),
                up: target.is_up(),
                connections: target.connections() as u64,
                idle: target.idle() as u64,
                totals: target.totals(),
            })
            .collect();
        all.sort_by(|a, b| (&a.upstream, &a.target).cmp(&(&b.upstream, &b.target)));
        all
    }

    fn listener_figures(&self) -> Vec<ListenerFigures> {
        let retired = self.draining.iter().flat_map(|draining| draining.retired());
        let mut all: Vec<ListenerFigures> = Vec::new();
        for bound in self.bound.iter().cloned().chain(retired) {
            let address = bound.binding.address.to_string();
            let connections = bound.binding.connections() as u64;
            let refused = bound.binding.refused.load(Ordering::Relaxed);
            // An address that is bound again while its last connections end is one line.
            match all.iter_mut().find(|one| one.address == address) {
                Some(same) => {
                    same.connections += connections;
                    same.refused += refused;
                }
                None => all.push(ListenerFigures {
                    address,
                    connections,
                    refused,
                }),
            }
        }
        all
    }

    fn log_figures(&self) -> Vec<(String, u64)> {
        let alive = self.crew.iter().flat_map(|crew| crew.records.sinks.alive());
        alive
            .map(|(path, sink)| (path.to_string(), sink.dropped()))
            .collect()
    }
}

/// User and system time of this process.
fn cpu_time() -> Option<Duration> {
    #[cfg(target_os = "linux")]
    {
        let text = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the command in parentheses, which may hold anything.
        let fields = text.rsplit_once(')')?.1;
        let mut times = fields.split_ascii_whitespace().skip(11);
        let (user, system): (u64, u64) = (times.next()?.parse().ok()?, times.next()?.parse().ok()?);
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        Some(Duration::from_millis((user + system) * 1000 / ticks))
    }
    #[cfg(not(target_os = "linux"))]
    None
}
