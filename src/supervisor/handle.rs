//! The way to the supervisor: a queue for what changes something, plain reads for the rest.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Rejection;
use super::admin_socket::AdminBinding;
use super::certificates::Ask;
use super::event::{Kind, Outcome, Phase};
use super::figures::Figures;
use super::log::{EventReader, Log, SwapState};
use super::request::{Source, SubmitError, SwapRecord, SwapRequest};
use super::status::Status;
use super::view::View;
use crate::document::Document;

/// Swaps that may wait for their turn.
const QUEUE: usize = 64;

/// What runs now.
#[derive(Debug)]
pub struct Running {
    pub generation: u64,
    /// Strong ETag, quotes included; opaque, ends with the process.
    pub etag: String,
    pub document: Arc<Document>,
}

/// The way to the supervisor. Cheap to clone; reads never wait for a swap in progress.
#[derive(Clone)]
pub struct Handle {
    pub(super) inner: Arc<Inner>,
}

/// What the actor and its handles share.
pub(super) struct Inner {
    pub(super) log: Log,
    pub(super) running: ArcSwapOption<Running>,
    pub(super) view: ArcSwap<View>,
    pub(super) admin: watch::Sender<Option<Arc<AdminBinding>>>,
    pub(super) queue: Mutex<VecDeque<Queued>>,
    pub(super) queued: Notify,
    /// What is asked about certificates, between two swaps.
    pub(super) asks: mpsc::Sender<Ask>,
    /// The stop that is queued or going on.
    pub(super) stop: Mutex<Option<Stop>>,
    /// Cancelled as soon as a stop is asked for: ends a prepare that waits.
    pub(super) stopping: CancellationToken,
    /// `/readyz` says no although a generation serves (`runtime.stop_delay`).
    pub(super) leaving: AtomicBool,
    /// The file the process started with; found later by the search, if there was none.
    pub(super) file: Mutex<Option<PathBuf>>,
}

pub(super) struct Queued {
    pub(super) request: SwapRequest,
    pub(super) state: Arc<SwapState>,
    /// When it gives up waiting for its turn.
    pub(super) until: Option<Instant>,
}

/// A stop that was asked for; asking again can only shorten it.
pub(super) struct Stop {
    pub(super) swap: u64,
    pub(super) deadline: watch::Sender<Option<Instant>>,
}

impl Handle {
    /// Queues a swap and returns its id. A stop goes before all that is queued; a second one joins the first and can only
    /// shorten it.
    ///
    /// # Errors
    /// [`SubmitError::Stopping`] once a stop was asked for, [`SubmitError::Busy`] when 64 are waiting.
    pub fn submit(&self, request: SwapRequest) -> Result<u64, SubmitError> {
        let inner = &self.inner;
        if request.kind == Kind::Stop {
            return Ok(self.submit_stop(request));
        }
        let mut queue = inner.queue.lock();
        // Under the queue's lock, as a stop sets it: what is queued after that would never have a turn.
        if inner.stopping.is_cancelled() {
            return Err(SubmitError::Stopping);
        }
        if queue.len() >= QUEUE {
            return Err(SubmitError::Busy);
        }
        let state = self.open(&request);
        let until = request.turn.map(|turn| Instant::now() + turn);
        queue.push_back(Queued {
            request,
            state: state.clone(),
            until,
        });
        drop(queue);
        inner.queued.notify_one();
        Ok(state.id)
    }

    fn submit_stop(&self, request: SwapRequest) -> u64 {
        let inner = &self.inner;
        // A stop has its turn at once, so this is when its condition counts.
        if let Err(rejection) = inner.check_if_match(request.if_match.as_deref()) {
            let state = self.open(&request);
            inner.reject(&state, rejection);
            return state.id;
        }
        let mut stop = inner.stop.lock();
        if let Some(stop) = stop.as_ref() {
            if let Some(timeout) = request.drain_timeout {
                let wanted = Instant::now() + timeout;
                stop.deadline.send_if_modified(|deadline| {
                    let shorter = deadline.is_none_or(|d| wanted < d);
                    if shorter {
                        *deadline = Some(wanted);
                    }
                    shorter
                });
            }
            return stop.swap;
        }
        let state = self.open(&request);
        let deadline = request
            .drain_timeout
            .map(|timeout| Instant::now() + timeout);
        *stop = Some(Stop {
            swap: state.id,
            deadline: watch::Sender::new(deadline),
        });
        let id = state.id;
        let mut queue = inner.queue.lock();
        queue.push_front(Queued {
            request,
            state,
            until: None,
        });
        inner.stopping.cancel();
        drop((queue, stop));
        inner.queued.notify_one();
        id
    }

    fn open(&self, request: &SwapRequest) -> Arc<SwapState> {
        let state = self.inner.log.open(request.kind, request.actor.clone());
        self.inner.log.emit(
            &state,
            Phase::Received,
            self.generation(),
            |event, _| match &request.source {
                _ if request.kind == Kind::Stop => event.source = Some("none".into()),
                Source::Body { bytes, .. } => {
                    event.source = Some("body".into());
                    event.bytes = Some(bytes.len() as u64);
                }
                Source::Embedded { bytes, .. } => {
                    event.source = Some("embedded".into());
                    event.bytes = Some(bytes.len() as u64);
                }
                Source::Running => event.source = Some("running".into()),
                Source::File => {
                    let known = self.inner.file.lock();
                    let path = known
                        .as_ref()
                        .and_then(|path| std::path::absolute(path).ok());
                    event.source =
                        Some(path.map_or_else(|| "file".into(), |path| path.display().to_string()));
                }
            },
        );
        state
    }

    /// What runs; `None` before the first commit and after a stop.
    pub fn running(&self) -> Option<Arc<Running>> {
        self.inner.running.load_full()
    }

    fn generation(&self) -> u64 {
        self.inner
            .running
            .load()
            .as_ref()
            .map_or(0, |running| running.generation)
    }

    /// Swaps, newest first; bounded by `runtime.history` finished ones and everything in progress.
    pub fn swaps(&self) -> Vec<SwapRecord> {
        self.inner.log.records()
    }

    /// One swap, while it is remembered.
    pub fn swap(&self, id: u64) -> Option<SwapRecord> {
        self.inner.log.find(id).map(|state| state.record())
    }

    /// Events of one swap from its first on, as they happen; ends after the terminal event. Dropping it is free.
    pub fn follow(&self, swap: u64) -> EventReader {
        EventReader::new(self.inner.log.find(swap))
    }

    /// Resolves when the swap has an outcome (with `committed_is_enough`) or its terminal phase. `None`: not remembered.
    pub async fn wait(&self, swap: u64, committed_is_enough: bool) -> Option<SwapRecord> {
        let state = self.inner.log.find(swap)?;
        Some(
            state
                .wait(|r| r.done || (committed_is_enough && r.outcome.is_some()))
                .await,
        )
    }

    /// The admin listener to serve, as committed.
    pub fn admin_binding(&self) -> watch::Receiver<Option<Arc<AdminBinding>>> {
        self.inner.admin.subscribe()
    }

    /// Alive generations, listeners, workers, counts: `/status`.
    pub fn status(&self) -> Status {
        self.inner.view.load_full().status(self.generation())
    }

    /// Everything that is counted: `/metrics`.
    pub fn figures(&self) -> Figures {
        let inner = &self.inner;
        let view = inner.view.load_full();
        view.figures(self.generation(), &inner.log.counts)
    }

    /// Whether new clients are served (`/readyz`).
    ///
    /// # Errors
    /// Why they are not.
    pub fn ready(&self) -> Result<(), &'static str> {
        if self.inner.leaving.load(Ordering::Acquire) || self.inner.stopping.is_cancelled() {
            return Err("the process is stopping");
        }
        // Who was told so finds it in `/status`.
        let view = self.inner.view.load();
        if self.inner.running.load().is_none() || !view.is_serving() {
            return Err("no generation serves");
        }
        if view.is_starved() {
            return Err("accepting pauses: the descriptors for clients are in use");
        }
        Ok(())
    }

    /// From now on `/readyz` says no; accepting goes on (`runtime.stop_delay`).
    pub fn leave(&self) {
        self.inner.leaving.store(true, Ordering::Release);
    }
}

impl Inner {
    /// Whether what runs is what the one who asks has seen (RFC 9110 section 13.1.1).
    pub(super) fn check_if_match(&self, wanted: Option<&str>) -> Result<(), Rejection> {
        let Some(wanted) = wanted else {
            return Ok(());
        };
        let running = self.running.load();
        let etag = running.as_ref().map_or("", |running| running.etag.as_str());
        let mut tags = wanted.split(',').map(str::trim);
        if tags.any(|tag| tag == etag || (tag == "*" && !etag.is_empty())) {
            return Ok(());
        }
        let detail = format!("what runs has the ETag {etag}, not {wanted}: read `/now` again");
        Err(Rejection::new(412, "if-match", detail))
    }

    /// Takes the next request whose turn has come; a stop is at the front.
    pub(super) fn next(&self) -> Option<Queued> {
        self.queue.lock().pop_front()
    }

    /// Refuses those who do not want to wait any longer, and returns when the next one gives up.
    pub(super) fn expire(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut expired = Vec::new();
        let next = {
            let mut queue = self.queue.lock();
            let all = std::mem::take(&mut *queue);
            let (gone, stay): (Vec<_>, Vec<_>) = all
                .into_iter()
                .partition(|q| q.until.is_some_and(|u| u <= now));
            expired.extend(gone);
            queue.extend(stay);
            queue.iter().filter_map(|q| q.until).min()
        };
        for queued in expired {
            let waited = queued.request.turn.unwrap_or(Duration::ZERO);
            self.reject(
                &queued.state,
                Rejection::new(
                    409,
                    "busy",
                    format!("its turn did not come within {waited:?}"),
                ),
            );
        }
        next
    }

    pub(super) fn reject(&self, state: &SwapState, rejection: Rejection) {
        let generation = self
            .running
            .load()
            .as_ref()
            .map_or(0, |running| running.generation);
        self.log
            .emit(state, Phase::Rejected, generation, |event, record| {
                event.outcome = Some(Outcome::Rejected);
                event.status = Some(rejection.status);
                event.problem = Some(rejection.problem.into());
                event.detail = Some(rejection.detail.clone());
                event.errors = Some(rejection.errors.clone());
                record.problem = Some(rejection.problem.into());
                record.detail = Some(rejection.detail);
                record.errors = rejection.errors;
            });
    }
}
