//! The acts of a swap that others can see: listen, commit, and a stop. Listening is the last that can fail, and comes
//! before the first worker hears of the generation.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Rejection;
use super::actor::{Crew, Current, Supervisor};
use super::admin_socket::{AdminBinding, AdminSocket};
use super::drain::{self, Draining};
use super::event::{Kind, Outcome, Phase};
use super::handle::{Handle, Running};
use super::log::SwapState;
use super::plan::{self, Change, Step};
use super::prepare::Prepared;
use super::request::{Source, SwapRequest};
use super::table::Bound;
use super::targets::Watch;
use crate::config::scalar::ListenAddr;
use crate::generation::Generation;
use crate::listen::accept::Binding;
use crate::net::{self, Transport};
use crate::snapshot::{BindingKey, Snapshot};
use crate::worker::{Adopt, Leaving, Message};

/// How often a worker that does not acknowledge is named.
const ACK_REMINDER: Duration = Duration::from_secs(1);
/// Old generations that may drain at once; above it the oldest is hurried.
const MAX_DRAINING: usize = 8;
/// How long a stop waits for the queues of its addresses before it says that nothing is accepted.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Steps 9a to 11. An error here is still a refusal without a trace; after the first `Adopt` nothing fails.
    pub(super) async fn commit(
        &mut self,
        state: &SwapState,
        request: &SwapRequest,
        prepared: Prepared,
    ) -> Result<(), Rejection> {
        let Prepared {
            document,
            snapshot,
            steps,
            opened,
            admin,
            crew,
            state_lock,
            file,
            targets,
        } = prepared;
        // The admin address first: if it cannot be had, no client has queued on a new one.
        let admin = admin.listen().map_err(|error| {
            Rejection::new(409, "not-prepared", format!("the admin address: {error}"))
        })?;
        let opened = self.listen(&crew, opened).await?;

        let id = self.next_generation;
        self.next_generation += 1;
        self.crew = Some(crew.clone());
        self.state_lock = state_lock.or(self.state_lock.take());
        // The same document keeps its author.
        if !matches!(request.source, Source::Running) {
            self.posted = matches!(request.source, Source::Body { .. });
        }
        if file.is_some() {
            *self.inner.file.lock() = file;
        }
        for bound in opened {
            self.table.map.insert(bound.key.clone(), bound);
        }
        let before = self.current.as_ref().map(|current| &*current.snapshot);
        snapshot.begin(before, &crew.tunnels);
        let (generations, leaving) = self.adopt(state, &crew, id, &snapshot, &steps, false).await;
        let retired = self.retire(&steps);
        // Whoever rotates files may have moved them away.
        self.options.writers.reopen();
        crate::log::switch::adopt(&document.log);
        crew.limit.set(document.runtime.max_connections);
        self.inner.log.keep(document.runtime.history);

        let drain_timeout = request
            .drain_timeout
            .unwrap_or(document.runtime.drain_timeout);
        let admin_tls = snapshot.admin.clone();
        let previous = self.current.replace(Current {
            id,
            document: document.clone(),
            snapshot,
            generations,
        });
        let running = self.inner.running.load_full();
        let etag = match (&request.source, running) {
            (Source::Running, Some(running)) => running.etag.clone(),
            _ => format!("\"{:016x}-{id}\"", self.nonce),
        };
        self.inner.running.store(Some(Arc::new(Running {
            generation: id,
            etag: etag.clone(),
            document: document.clone(),
        })));
        if let Some(listener) = admin.api {
            self.admin = Some(AdminSocket {
                address: document.admin.listen.clone(),
                listener: Arc::new(listener),
            });
        }
        self.monitor = match (&document.admin.monitor, admin.monitor) {
            (None, _) => None,
            (Some(address), Some(listener)) => Some(AdminSocket {
                address: address.clone(),
                listener: Arc::new(listener),
            }),
            (Some(_), None) => self.monitor.take(),
        };
        if let Some(socket) = &self.admin {
            self.inner.admin.send_replace(Some(Arc::new(AdminBinding {
                generation: id,
                spec: document.admin.clone(),
                listener: socket.listener.clone(),
                tls: admin_tls,
                monitor: self.monitor.as_ref().map(|socket| socket.listener.clone()),
            })));
        }
        let handle = Handle {
            inner: self.inner.clone(),
        };
        self.watch = Watch::start(&document, targets, handle);
        let before = previous.as_ref().map(|previous| previous.id);
        let draining = self.begin_drain(previous.as_ref(), leaving, retired);
        self.publish();
        tracing::info!(swap = state.id, generation = id, "committed");
        self.inner
            .log
            .emit(state, Phase::Committed, id, |event, record| {
                event.outcome = Some(Outcome::Committed);
                event.status = Some(200);
                event.previous = before;
                event.warnings = Some(record.warnings.clone());
                event.plan = record.plan.clone();
                record.generation = Some(id);
                record.previous = before;
                record.etag = Some(etag);
            });
        let deadline = tokio::time::Instant::now() + drain_timeout;
        self.spawn_drain(state, id, draining, deadline);
        // Taking a large table apart takes its time, and nobody waits for it.
        self.options.compiler.spawn_blocking(move || drop(previous));
        Ok(())
    }

    /// The stop: a swap to nothing. Returns when all is drained or cut; the admin API answers until then.
    pub(super) async fn stop(&mut self, state: &SwapState, request: &SwapRequest) {
        let old = self
            .current
            .as_ref()
            .map(|current| current.document.clone());
        let (summary, steps) = plan::plan(old.as_deref(), None);
        let before = self.current.as_ref().map(|current| current.id);
        self.inner.log.emit(
            state,
            Phase::Planned,
            before.unwrap_or(0),
            |event, record| {
                event.plan = Some(summary.clone());
                record.plan = Some(summary);
            },
        );
        let id = self.next_generation;
        self.watch = None;
        let mut leaving = Leaving::default();
        if let Some(crew) = self.crew.clone() {
            (_, leaving) = self
                .adopt(state, &crew, id, &Snapshot::default(), &steps, true)
                .await;
        }
        let retired = self.retire(&steps);
        let previous = self.current.take();
        self.inner.running.store(None);
        let timeout = request
            .drain_timeout
            .or(old.map(|d| d.runtime.drain_timeout))
            .unwrap_or_default();
        let deadline = tokio::time::Instant::now() + timeout;
        let draining = self.begin_drain(previous.as_ref(), leaving, retired);
        self.publish();
        if let Some(draining) = &draining {
            // "Nothing is accepted any more" is said when it is true.
            let closed =
                tokio::time::timeout(CLOSE_WAIT.max(timeout), draining.listeners_closed()).await;
            if closed.is_err() {
                tracing::error!("a listener is still open");
            }
        }
        tracing::info!(swap = state.id, "nothing is accepted any more");
        self.inner
            .log
            .emit(state, Phase::Committed, 0, |event, record| {
                event.outcome = Some(Outcome::Stopped);
                event.status = Some(200);
                event.previous = before;
                event.plan = record.plan.clone();
                record.previous = before;
            });
        self.spawn_drain(state, 0, draining, deadline);
        while let Some(ended) = self.drains.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a drain ended badly");
            }
        }
        self.draining.clear();
        self.publish();
    }

    /// Listens on every reserved socket and registers it with its worker, which does not accept yet.
    async fn listen(
        &mut self,
        crew: &Crew,
        opened: Vec<(BindingKey, net::Reservation)>,
    ) -> Result<Vec<Arc<Bound>>, Rejection> {
        let refuse = |message: String| Rejection::new(409, "not-prepared", message);
        let mut bound = Vec::new();
        for (key, reserved) in opened {
            let address = reserved.address();
            let sockets = reserved.listen().map_err(refuse)?;
            let id = self.table.next_id;
            let binding = Arc::new(Binding::new(id, key.transport, address));
            self.table.next_id += 1;
            bound.push(Arc::new(Bound {
                key,
                binding,
                sockets,
            }));
        }
        if bound.is_empty() {
            return Ok(bound);
        }
        for (index, worker) in crew.workers.iter().enumerate() {
            let staged = async {
                let sockets: std::io::Result<Vec<_>> = bound
                    .iter()
                    // What is one client's comes to one worker, where one socket is all there is.
                    .filter(|b| b.key.transport == Transport::Stream || index < b.sockets.len())
                    .map(|b| {
                        Ok((
                            b.binding.clone(),
                            b.sockets[index % b.sockets.len()].try_clone()?,
                        ))
                    })
                    .collect();
                let (reply, answer) = oneshot::channel();
                worker
                    .send(Message::Stage {
                        sockets: sockets?,
                        reply,
                    })
                    .await
                    .map_err(std::io::Error::other)?;
                answer.await.map_err(std::io::Error::other)?
            };
            if let Err(error) = staged.await {
                unstage(crew).await;
                return Err(refuse(format!(
                    "worker {index} cannot take the new sockets: {error}"
                )));
            }
        }
        Ok(bound)
    }

    /// Every worker adopts and acknowledges. Waits as long as it takes: a worker that is silent is a bug or a blocked
    /// thread, and "committed" may not be said before it has answered.
    async fn adopt(
        &self,
        state: &SwapState,
        crew: &Crew,
        id: u64,
        snapshot: &Snapshot,
        steps: &[Step],
        last: bool,
    ) -> (Vec<Arc<Generation>>, Leaving) {
        let ids: HashMap<&BindingKey, u32> = self
            .table
            .map
            .iter()
            .map(|(key, bound)| (key, bound.binding.id))
            .collect();
        let of = |change| {
            steps
                .iter()
                .filter(move |s| s.change == change)
                .filter_map(|s| ids.get(&s.key).copied())
                .collect::<Vec<_>>()
        };
        let mut generations = Vec::new();
        let mut answers = Vec::new();
        for worker in &crew.workers {
            let generation = Generation::new(id);
            let (reply, answer) = oneshot::channel();
            let adopt = Adopt {
                generation: generation.clone(),
                entries: snapshot
                    .entries
                    .iter()
                    .filter_map(|(k, e)| Some((*ids.get(k)?, e.clone())))
                    .collect(),
                refresh: of(Change::Refresh),
                retire: of(Change::Close),
                last,
                reply,
            };
            generations.push(generation);
            match worker.send(Message::Adopt(Box::new(adopt))).await {
                Ok(()) => answers.push((worker.context.index, answer)),
                Err(gone) => self.report(gone.to_string()),
            }
        }
        let mut leaving = Leaving::default();
        for (index, mut answer) in answers {
            loop {
                match tokio::time::timeout(ACK_REMINDER, &mut answer).await {
                    Ok(Ok(mut more)) => {
                        leaving.refreshed.append(&mut more.refreshed);
                        leaving.retired.append(&mut more.retired);
                        leaving.cut += more.cut;
                        break;
                    }
                    Ok(Err(_)) => {
                        self.report(format!(
                            "worker {index} ended while it adopted generation {id}"
                        ));
                        break;
                    }
                    Err(_) => {
                        tracing::error!(worker = index, generation = id, "has not acknowledged");
                        self.inner.log.emit(state, Phase::Prepared, id, |event, _| {
                            event.detail = Some(format!("worker {index} has not acknowledged yet"));
                        });
                    }
                }
            }
        }
        (generations, leaving)
    }

    fn report(&self, message: String) {
        // Full: the process is ending for another reason already.
        let _ = self.options.fatal.try_send(message);
    }

    /// Takes what the plan closes out of the table; the drain closes it.
    fn retire(&mut self, steps: &[Step]) -> Vec<Arc<Bound>> {
        let closes = steps.iter().filter(|step| step.change == Change::Close);
        let retired: Vec<_> = closes
            .filter_map(|step| self.table.map.remove(&step.key))
            .collect();
        self.table
            .retiring
            .lock()
            .extend(retired.iter().map(|bound| bound.place()));
        retired
    }

    fn begin_drain(
        &mut self,
        previous: Option<&Current>,
        leaving: Leaving,
        retired: Vec<Arc<Bound>>,
    ) -> Option<Arc<Draining>> {
        let previous = previous?;
        let now = self.current.as_ref().map(|now| &now.snapshot.agents);
        let gone = previous.snapshot.agents.iter();
        let gone = gone.filter(|(name, _)| now.is_none_or(|now| !now.contains_key(*name)));
        let agents = gone.map(|(_, (agent, _))| agent.retire()).collect();
        let draining = Arc::new(Draining::new(
            previous,
            leaving,
            retired,
            self.table.retiring.clone(),
            agents,
        ));
        self.draining.retain(|draining| !draining.is_over());
        self.draining.push(draining.clone());
        if self.draining.len() > MAX_DRAINING
            && let Some(oldest) = self.draining.iter().find(|d| !d.is_hurried())
        {
            tracing::warn!(
                generation = oldest.generation(),
                "more than {MAX_DRAINING} generations drain: the oldest is hurried"
            );
            oldest.hurry();
        }
        Some(draining)
    }

    fn spawn_drain(
        &mut self,
        state: &SwapState,
        generation: u64,
        draining: Option<Arc<Draining>>,
        deadline: tokio::time::Instant,
    ) {
        let (Some(draining), Some(crew)) = (draining, self.crew.clone()) else {
            drain::finish(&self.inner, state, generation, 0);
            return;
        };
        let Some(state) = self.inner.log.find(state.id) else {
            return;
        };
        let stop = (state.record().kind == Kind::Stop).then(|| {
            let stop = self.inner.stop.lock();
            stop.as_ref().map(|stop| stop.deadline.subscribe())
        });
        let others = self
            .draining
            .iter()
            .filter(|other| !Arc::ptr_eq(other, &draining));
        let older = others.cloned().collect();
        let inner = self.inner.clone();
        self.drains.spawn(drain::run(
            inner,
            crew,
            state,
            generation,
            draining,
            deadline,
            stop.flatten(),
            older,
        ));
    }
}

async fn unstage(crew: &Crew) {
    for worker in &crew.workers {
        // A worker that is gone has nothing staged.
        let _ = worker.send(Message::Unstage).await;
    }
}

impl Bound {
    /// What is bound there.
    pub(super) fn place(&self) -> (Transport, ListenAddr) {
        (self.key.transport, self.binding.address.clone())
    }

    /// Whether a worker still needs its sockets.
    pub(super) fn is_in_use(&self) -> bool {
        self.loops() > 0 || self.binding.lingering.load(Ordering::Acquire) > 0
    }

    /// Accept loops that have not ended.
    pub(super) fn loops(&self) -> usize {
        self.binding.loops.load(Ordering::Acquire)
    }
}
