//! A worker: a runtime with sockets of its own and a mailbox through which it adopts a generation. `per-core` starts one
//! single-threaded worker per core, `shared` one worker of many threads; both run this code.
//!
//! It promises: an adoption is one instant (all its addresses change together and are acknowledged after that), older
//! generations are ignored, and no message can fail once its sockets are registered.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::config::runtime::{Model, OnChange};
use crate::generation::{Asked, Epoch, Generation, Serving, Slot, Verdict};
use crate::http::Face as _;
use crate::listen::accept::{Acceptor, Binding, ConnectionLimit};
use crate::listen::entry::Entry;
use crate::listen::http::Listener;
use crate::listen::udp::Receiver;
use crate::metrics::{WorkerContext, WorkerCounters};
use crate::net;
use crate::session::Sessions;
use crate::tls;
use crate::upstream;

/// Messages waiting for a worker; the supervisor sends one at a time, so this is never full.
const MAILBOX: usize = 16;
/// Threads for blocking calls of one worker.
const BLOCKING_THREADS: usize = 8;

/// What the supervisor tells a worker.
pub enum Message {
    /// Registers listening sockets with this runtime; nothing is accepted yet. Answers the first error.
    Stage {
        sockets: Vec<(Arc<Binding>, net::Opened)>,
        reply: oneshot::Sender<io::Result<()>>,
    },
    /// Forgets what was staged and not adopted.
    Unstage,
    /// Adopts a generation.
    Adopt(Box<Adopt>),
    /// The deadline of an old generation: see `Generation::settle`. Answers how many requests were told to end.
    Settle {
        generation: Arc<Generation>,
        reply: oneshot::Sender<usize>,
    },
}

/// One adoption.
pub struct Adopt {
    pub generation: Arc<Generation>,
    /// Every address of the generation.
    pub entries: Vec<(u32, Arc<Entry>)>,
    /// Addresses whose connections must finish because their connection-level settings changed.
    pub refresh: Vec<u32>,
    /// Addresses that are gone.
    pub retire: Vec<u32>,
    /// The process stops: no long flow is kept.
    pub last: bool,
    pub reply: oneshot::Sender<Leaving>,
}

/// Connections that were told to finish by an adoption.
#[derive(Debug, Default)]
pub struct Leaving {
    /// Their address stays, its connection-level settings changed: they end after their current work.
    pub refreshed: Vec<Arc<Epoch>>,
    /// Their address is gone: they end at the drain deadline at the latest.
    pub retired: Vec<Arc<Epoch>>,
    /// Long flows that end at once, as their `on_change` wants it.
    pub cut: usize,
}

/// A worker as the supervisor sees it.
pub struct Worker {
    pub context: Arc<WorkerContext>,
    /// TLS handshakes of its clients.
    pub handshakes: Arc<tls::Counters>,
    pub runtime: tokio::runtime::Handle,
    mailbox: mpsc::Sender<Message>,
    /// Dropped: the worker's loop ends and its runtime with it.
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What every worker is started with.
pub struct Plan {
    pub model: Model,
    pub workers: usize,
    pub shared: Arc<upstream::Shared>,
    pub limit: Arc<ConnectionLimit>,
    pub gate: Option<watch::Receiver<bool>>,
    /// Told when a worker's loop ends by a panic: half a proxy is worse than a restart.
    pub fatal: mpsc::Sender<String>,
}

/// Starts the workers.
///
/// # Errors
/// When a thread or a runtime cannot be made; those already started end.
pub fn start(plan: &Plan) -> io::Result<Vec<Worker>> {
    let count = match plan.model {
        Model::PerCore => plan.workers,
        Model::Shared => 1,
    };
    (0..count)
        .map(|index| Worker::start(index, count, plan))
        .collect()
}

impl Worker {
    fn start(index: usize, of: usize, plan: &Plan) -> io::Result<Worker> {
        let runtime = match plan.model {
            Model::PerCore => tokio::runtime::Builder::new_current_thread(),
            Model::Shared => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                builder.worker_threads(plan.workers);
                builder
            }
        }
        .enable_all()
        .thread_name(format!("worker-{index}"))
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
        let context = Arc::new(WorkerContext {
            index,
            of,
            counters: WorkerCounters::default(),
            sessions: Sessions::new(index, of),
        });
        let (mailbox, inbox) = mpsc::channel(MAILBOX);
        let handle = runtime.handle().clone();
        let handshakes = Arc::new(tls::Counters::default());
        let state = State {
            context: context.clone(),
            handshakes: handshakes.clone(),
            shared: plan.shared.clone(),
            limit: plan.limit.clone(),
            gate: plan.gate.clone(),
            fatal: plan.fatal.clone(),
            staged: HashMap::new(),
            bindings: HashMap::new(),
            newest: None,
            stopping: false,
        };
        let fatal = plan.fatal.clone();
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let loop_ = std::panic::AssertUnwindSafe(|| runtime.block_on(state.run(inbox)));
                if std::panic::catch_unwind(loop_).is_err() {
                    // Full: another worker has said so already.
                    let _ = fatal.try_send(format!("worker {index} panicked"));
                }
                runtime.shutdown_background();
            })?;
        Ok(Worker {
            context,
            handshakes,
            runtime: handle,
            mailbox,
            thread: Some(thread),
        })
    }

    /// Puts a message into the mailbox. An error means that the worker is gone.
    pub async fn send(&self, message: Message) -> Result<(), Gone> {
        self.mailbox
            .send(message)
            .await
            .map_err(|_| Gone(self.context.index))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let (closed, _) = mpsc::channel(1);
        self.mailbox = closed;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!(worker = self.context.index, "ended by a panic");
        }
    }
}

/// The worker's thread has ended.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("worker {0} is gone")]
pub struct Gone(pub usize);

struct State {
    context: Arc<WorkerContext>,
    handshakes: Arc<tls::Counters>,
    shared: Arc<upstream::Shared>,
    limit: Arc<ConnectionLimit>,
    gate: Option<watch::Receiver<bool>>,
    fatal: mpsc::Sender<String>,
    staged: HashMap<u32, (Arc<Binding>, net::Registered)>,
    bindings: HashMap<u32, Bound>,
    /// The generation adopted last.
    newest: Option<Arc<Generation>>,
    stopping: bool,
}

/// One address as this worker serves it.
struct Bound {
    listener: Arc<Listener>,
    retire: CancellationToken,
}

impl State {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let mut sweep = tokio::time::interval(Duration::from_secs(1));
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    None => return,
                    Some(message) => self.handle(message),
                },
                _ = sweep.tick() => {
                    self.context.sessions.tick();
                    upstream::sweep(&self.shared, &self.context);
                }
            }
        }
    }

    /// Replies that nobody waits for are not an error: the supervisor's wait is bounded, its message stands.
    fn handle(&mut self, message: Message) {
        match message {
            Message::Stage { sockets, reply } => {
                let _ = reply.send(self.stage(sockets));
            }
            Message::Unstage => self.staged.clear(),
            Message::Adopt(adopt) => self.adopt(*adopt),
            Message::Settle { generation, reply } => {
                let cut = generation.settle(false, |asked| {
                    match self.heir(asked, &generation).or_else(|| self.keeper(asked)) {
                        Some(next) => Verdict::Moves(next),
                        None => Verdict::Ends,
                    }
                });
                let _ = reply.send(cut);
            }
        }
    }

    /// The newer generation in which its definition holds.
    fn heir(&self, asked: Asked, than: &Generation) -> Option<Arc<Generation>> {
        let serving = self.bindings.get(&asked.binding)?.listener.slot.pin();
        (serving.generation.id > than.id && serving.entry.holds(asked.definition))
            .then(|| serving.generation.clone())
    }

    /// Where a flow goes on whose definition is gone but that is to be kept.
    fn keeper(&self, asked: Asked) -> Option<Arc<Generation>> {
        self.newest
            .clone()
            .filter(|_| asked.long == Some(OnChange::Keep) && !self.stopping)
    }

    fn stage(&mut self, sockets: Vec<(Arc<Binding>, net::Opened)>) -> io::Result<()> {
        for (binding, socket) in sockets {
            self.staged
                .insert(binding.id, (binding, socket.register()?));
        }
        Ok(())
    }

    /// Runs what takes clients at an address. If it breaks, half a proxy would be left.
    fn spawn(&self, taking: impl Future<Output = ()> + Send + 'static) {
        let (fatal, index) = (self.fatal.clone(), self.context.index);
        tokio::spawn(async move {
            let taking = std::panic::AssertUnwindSafe(taking);
            if taking.catch_unwind().await.is_err() {
                // Full: another part has said so already.
                let _ = fatal.try_send(format!("an accept loop of worker {index} panicked"));
            }
        });
    }

    fn adopt(&mut self, adopt: Adopt) {
        let generation = adopt.generation;
        let serving = |entry| Serving {
            entry,
            generation: generation.clone(),
        };
        // Every pointer first, so that the whole adoption is one instant; then what it starts and ends.
        let mut started = Vec::new();
        for (id, entry) in adopt.entries {
            match self.bindings.get(&id) {
                Some(bound) => bound.listener.slot.adopt(serving(entry)),
                None => started.push((id, entry)),
            }
        }
        for (id, entry) in started {
            // Never staged: this worker has no socket of that group (one-socket systems start it elsewhere).
            let Some((binding, socket)) = self.staged.remove(&id) else {
                continue;
            };
            let listener = Arc::new(Listener {
                slot: Slot::new(id, serving(entry)),
                worker: self.context.clone(),
                handshakes: self.handshakes.clone(),
            });
            let retire = CancellationToken::new();
            binding.loops.fetch_add(1, Ordering::AcqRel);
            // Ends by its retire token; with the runtime at the latest.
            match socket {
                net::Registered::Stream(socket) => {
                    let acceptor = Acceptor {
                        listener: listener.clone(),
                        binding,
                        limit: self.limit.clone(),
                        gate: self.gate.clone(),
                        retire: retire.clone(),
                    };
                    self.spawn(acceptor.run(socket));
                }
                net::Registered::Datagram(socket) => {
                    let receiver = Receiver {
                        listener: listener.clone(),
                        binding,
                        limit: self.limit.clone(),
                        retire: retire.clone(),
                    };
                    self.spawn(receiver.run(socket));
                }
            }
            self.bindings.insert(id, Bound { listener, retire });
        }
        let mut leaving = Leaving::default();
        for id in adopt.refresh {
            if let Some(bound) = self.bindings.get(&id) {
                leaving.refreshed.push(bound.listener.slot.finish_epoch());
            }
        }
        for id in adopt.retire {
            if let Some(bound) = self.bindings.remove(&id) {
                // The same epoch goes on: who is accepted from the queue now is told to finish from the start.
                let epoch = bound.listener.slot.epoch();
                epoch.finish.cancel();
                bound.retire.cancel();
                leaving.retired.push(epoch);
            }
        }
        self.staged.clear();
        self.stopping = adopt.last;
        // Long flows do not wait for the deadline where nothing changed for them: what they leave behind is then drained.
        if let Some(before) = self.newest.replace(generation) {
            leaving.cut = before.settle(true, |asked| {
                match self.heir(asked, &before).or_else(|| self.keeper(asked)) {
                    Some(next) => Verdict::Moves(next),
                    None if asked.long == Some(OnChange::Cut) => Verdict::Ends,
                    None => Verdict::Stays,
                }
            });
        }
        let _ = adopt.reply.send(leaving);
    }
}
