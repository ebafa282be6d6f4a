//! The actor: one loop, one swap at a time, in the order they came.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::FutureExt as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Rejection;
use super::admin_socket::AdminSocket;
use super::certificates::{self, Ask};
use super::drain::Draining;
use super::event::{Kind, Outcome, Phase};
use super::handle::{Handle, Inner, Queued};
use super::log::Log;
use super::state_dir::StateLock;
use super::table::Table;
use super::targets::Watch;
use super::view::View;
use crate::document::Document;
use crate::forward;
use crate::generation::Generation;
use crate::http::{filter, record};
use crate::listen::accept::ConnectionLimit;
use crate::log::sink::Writers;
use crate::snapshot::Snapshot;
use crate::tls::{self, store::Fault};
use crate::tunnel::Hub;
use crate::tunnel::agent::Agents;
use crate::upstream::Shared;
use crate::worker::Worker;

/// Free memory is given back so long after a swap or a drain: once for many, and at most so often.
const GIVE_BACK: Duration = Duration::from_secs(1);

/// How often it is looked whether clients' connections have let go of much.
const TIDY: Duration = Duration::from_secs(5);

/// What the supervisor is started with.
pub struct Options {
    /// `-c FILE`, or what the search found.
    pub file: Option<PathBuf>,
    /// The search, for a reload when the start found nothing.
    pub search: Arc<dyn Fn() -> Option<PathBuf> + Send + Sync>,
    /// Accepting waits while this says false (tests hold a queue full with it).
    pub gate: Option<watch::Receiver<bool>>,
    /// Parses and compiles documents on its one blocking thread. One thread, because an allocator keeps what each thread
    /// has once used: with a pool, memory would grow by a document's size per thread.
    pub compiler: tokio::runtime::Handle,
    /// Runtimes besides the workers', counted in `/status`.
    pub runtimes: Vec<tokio::runtime::Handle>,
    /// Owns the threads that write access logs.
    pub writers: Arc<Writers>,
    /// Told when the process cannot go on.
    pub fatal: mpsc::Sender<String>,
}

/// Starts the supervisor on the current runtime. It ends after a stop; the task resolves then.
pub fn start(options: Options) -> (Handle, tokio::task::JoinHandle<()>) {
    let (asks, asked) = mpsc::channel(certificates::WAITING);
    let inner = Arc::new(Inner {
        asks,
        log: Log::new(),
        running: ArcSwapOption::empty(),
        view: ArcSwap::from_pointee(View::new(Instant::now(), options.runtimes.clone())),
        admin: watch::Sender::new(None),
        queue: parking_lot::Mutex::default(),
        queued: Notify::new(),
        stop: parking_lot::Mutex::default(),
        stopping: CancellationToken::new(),
        leaving: AtomicBool::new(false),
        file: parking_lot::Mutex::new(options.file.clone()),
    });
    let supervisor = Supervisor {
        inner: inner.clone(),
        options,
        crew: None,
        current: None,
        table: Table::default(),
        admin: None,
        monitor: None,
        drains: JoinSet::new(),
        asked,
        said: Vec::new(),
        draining: Vec::new(),
        next_generation: 1,
        nonce: fastrand::u64(..),
        state_lock: None,
        posted: false,
        watch: None,
        give_back: None,
    };
    let task = tokio::spawn(supervisor.run());
    (Handle { inner }, task)
}

pub(super) struct Supervisor {
    pub(super) inner: Arc<Inner>,
    pub(super) options: Options,
    /// Made by the boot.
    pub(super) crew: Option<Arc<Crew>>,
    pub(super) current: Option<Current>,
    pub(super) table: Table,
    pub(super) admin: Option<AdminSocket>,
    pub(super) monitor: Option<AdminSocket>,
    pub(super) drains: JoinSet<()>,
    /// Questions about certificates, which are answered between two swaps.
    asked: mpsc::Receiver<Ask>,
    /// What of the files was said to be kept out.
    pub(super) said: Vec<Fault>,
    pub(super) draining: Vec<Arc<Draining>>,
    pub(super) next_generation: u64,
    /// Makes ETags end with the process.
    pub(super) nonce: u64,
    pub(super) state_lock: Option<StateLock>,
    /// What runs was posted, not read from the file.
    pub(super) posted: bool,
    /// Looks at the files of targets that what runs names.
    pub(super) watch: Option<Watch>,
    /// When memory that is free is given back; `None`: nothing has ended since it was.
    give_back: Option<tokio::time::Instant>,
}

/// What outlives every generation: the workers and what they share.
pub(super) struct Crew {
    pub(super) workers: Vec<Worker>,
    pub(super) shared: Arc<Shared>,
    pub(super) tls: Arc<tls::Shared>,
    pub(super) filters: filter::Shared,
    pub(super) forward: forward::Shared,
    pub(super) records: record::Shared,
    /// Which agents are there.
    pub(super) tunnels: Arc<Hub>,
    /// Those that run here.
    pub(super) agents: Agents,
    pub(super) limit: Arc<ConnectionLimit>,
    pub(super) model: crate::config::runtime::Model,
}

/// The generation that serves.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) id: u64,
    pub(super) document: Arc<Document>,
    pub(super) snapshot: Arc<Snapshot>,
    /// Each worker's own count.
    pub(super) generations: Vec<Arc<Generation>>,
}

impl Supervisor {
    async fn run(mut self) {
        let inner = self.inner.clone();
        // Ends with this loop.
        let (watched, fatal) = (inner.clone(), self.options.fatal.clone());
        let _watch = AbortOnDropHandle::new(tokio::spawn(async move {
            let watch = AssertUnwindSafe(super::watch::run(watched));
            if watch.catch_unwind().await.is_err() {
                // Full: another part has said so already.
                let _ = fatal.try_send("the watch over certificates panicked".into());
            }
        }));
        let mut tidy = tokio::time::interval(TIDY);
        tidy.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let Some(queued) = inner.next() else {
                let wake = inner.expire().map(tokio::time::Instant::from_std);
                tokio::select! {
                    () = inner.queued.notified() => {}
                    () = sleep_until(wake) => {}
                    () = sleep_until(self.give_back) => self.give_back(),
                    _ = tidy.tick() => {
                        if crate::memory::is_loose() {
                            self.give_back();
                        }
                    }
                    Some(ended) = self.drains.join_next() => self.drained(ended),
                    Some(ask) = self.asked.recv() => self.answer(ask).await,
                }
                continue;
            };
            let stop = queued.request.kind == Kind::Stop;
            {
                let turn = self.turn(queued);
                tokio::pin!(turn);
                // While it goes, those behind it may run out of patience.
                loop {
                    let wake = inner.expire().map(tokio::time::Instant::from_std);
                    tokio::select! {
                        () = &mut turn => break,
                        () = inner.queued.notified() => {}
                        () = sleep_until(wake) => {}
                    }
                }
            }
            if stop {
                return;
            }
            self.plan_to_give_back();
            // However many swaps are waiting.
            if let Ok(ask) = self.asked.try_recv() {
                self.answer(ask).await;
            }
            if self
                .give_back
                .is_some_and(|at| at <= tokio::time::Instant::now())
            {
                self.give_back();
            }
        }
    }

    /// One swap from its turn to its commit, or to its refusal.
    async fn turn(&mut self, queued: Queued) {
        let Queued { request, state, .. } = queued;
        state.turn();
        while let Some(ended) = self.drains.try_join_next() {
            self.drained(ended);
        }
        if request.kind == Kind::Stop {
            self.refuse_queued();
            self.stop(&state, &request).await;
            return;
        }
        let stopping = self.inner.stopping.clone();
        let prepared = tokio::select! {
            biased;
            () = stopping.cancelled() => Err(Rejection::stopping()),
            prepared = self.prepare(&state, &request) => prepared,
        };
        match prepared {
            Err(rejection) => {
                let (swap, status) = (state.id, rejection.status);
                if request.kind == Kind::Boot {
                    // Whoever starts it draws the errors.
                    tracing::debug!(swap, status, "{}", rejection.detail);
                } else {
                    tracing::warn!(swap, status, "{}", rejection.detail);
                }
                self.inner.reject(&state, rejection);
            }
            Ok(None) => {
                self.options.writers.reopen();
                let generation = self.current.as_ref().map_or(0, |current| current.id);
                let etag = self
                    .inner
                    .running
                    .load()
                    .as_ref()
                    .map(|running| running.etag.clone());
                self.inner
                    .log
                    .emit(&state, Phase::Unchanged, generation, |event, record| {
                        event.outcome = Some(Outcome::Unchanged);
                        event.status = Some(200);
                        event.warnings = Some(record.warnings.clone());
                        event.plan = record.plan.clone();
                        record.generation = Some(generation);
                        record.etag = etag;
                    });
            }
            Ok(Some(prepared)) if request.kind == Kind::Adapt => {
                let config = prepared.document.normal.clone();
                // What was bound is let go before anybody is told.
                drop(prepared);
                let generation = self.current.as_ref().map_or(0, |current| current.id);
                self.inner
                    .log
                    .emit(&state, Phase::Adapted, generation, |event, record| {
                        event.outcome = Some(Outcome::Adapted);
                        event.status = Some(200);
                        event.warnings = Some(record.warnings.clone());
                        event.plan = record.plan.clone();
                        record.config = Some(config);
                    });
            }
            Ok(Some(prepared)) => {
                if let Err(rejection) = self.commit(&state, &request, *prepared).await {
                    self.inner.reject(&state, rejection);
                }
            }
        }
    }

    fn plan_to_give_back(&mut self) {
        self.give_back
            .get_or_insert_with(|| tokio::time::Instant::now() + GIVE_BACK);
    }

    /// On the compiler's thread, whose memory most of it is: after the old generation has been taken apart there.
    fn give_back(&mut self) {
        self.give_back = None;
        let crew = self.crew.clone();
        self.options.compiler.spawn_blocking(move || {
            if let Some(crew) = crew {
                crew.shared.sweep();
                crew.filters.sweep();
                crew.records.sweep();
            }
            crate::memory::give_back();
        });
    }

    /// After a stop nothing waits in vain.
    fn refuse_queued(&self) {
        while let Some(queued) = self.inner.next() {
            self.inner.reject(&queued.state, Rejection::stopping());
        }
    }

    fn drained(&mut self, ended: Result<(), tokio::task::JoinError>) {
        if let Err(error) = ended
            && error.is_panic()
        {
            // Full: somebody has said so already.
            let _ = self
                .options
                .fatal
                .try_send(format!("a drain panicked: {error}"));
        }
        self.draining.retain(|draining| !draining.is_over());
        self.publish();
        self.plan_to_give_back();
    }

    /// Lets `/status` see what is there now.
    pub(super) fn publish(&self) {
        let view = self.inner.view.load();
        self.inner.view.store(Arc::new(view.with(
            self.crew.clone(),
            self.current.as_ref(),
            self.table.bound(),
            self.draining.clone(),
        )));
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
