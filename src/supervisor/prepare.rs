//! Everything of a swap that can fail, before anything of it can be seen: read, parse, load files, plan, resolve names,
//! compile, reserve addresses. All of it owns what it makes; dropping [`Prepared`] undoes it.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::Rejection;
use super::actor::{Crew, Supervisor};
use super::admin_socket::{AdminReserved, AdminSockets};
use super::certificates::Watched;
use super::event::{Kind, Phase};
use super::log::SwapState;
use super::plan::{self, Step};
use super::reading::{load, look_for_folders};
use super::request::{Source, SwapRequest};
use super::state_dir::{self, LockError, StateLock};
use super::targets::TargetLists;
use crate::config::Diagnostic;
use crate::config::log::LogPath;
use crate::document::{Document, Parsed};
use crate::forward;
use crate::http::{filter, record};
use crate::listen::accept::ConnectionLimit;
use crate::log::sink;
use crate::net;
use crate::snapshot::{BindingKey, Contents, Lasting, Snapshot};
use crate::tls;
use crate::tls::store::Fault;
use crate::tunnel::Hub;
use crate::tunnel::agent::Agents;
use crate::upstream::Shared;
use crate::worker;

/// A generation that could be committed.
pub(super) struct Prepared {
    pub(super) document: Arc<Document>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) steps: Vec<Step>,
    pub(super) opened: Vec<(BindingKey, net::Reservation)>,
    /// New admin addresses.
    pub(super) admin: AdminSockets<AdminReserved>,
    pub(super) crew: Arc<Crew>,
    pub(super) state_lock: Option<StateLock>,
    /// The file the document was read from.
    pub(super) file: Option<PathBuf>,
    /// What its files of targets said.
    pub(super) targets: TargetLists,
}

impl Supervisor {
    /// Steps 3 to 7 of a swap. `None`: the document equals what runs.
    pub(super) async fn prepare(
        &mut self,
        state: &SwapState,
        request: &SwapRequest,
    ) -> Result<Option<Box<Prepared>>, Rejection> {
        self.inner.check_if_match(request.if_match.as_deref())?;
        let generation = self.current.as_ref().map_or(0, |current| current.id);
        let (parsed, file) = self.parsed(request).await?;
        let mut document = parsed.document.clone();
        let mut warnings = parsed.warnings.clone();
        if let Some(current) = &self.current {
            let changed = plan::boot_only(&current.document, &document).into_iter();
            warnings
                .extend(changed.map(|(pointer, message)| parsed.locate(pointer, message, None)));
        }
        if self.posted && matches!(request.source, Source::File) {
            let message = "what runs was posted: reading the file again drops what it changed";
            let help = "`GET /now` shows it; keep it in the file if you need it";
            warnings.push(parsed.locate("", message, Some(help.into())));
        }
        self.inner
            .log
            .emit(state, Phase::Validated, generation, |event, record| {
                event.warnings = Some(warnings.clone());
                record.warnings = warnings.clone();
            });

        let timeout = document.runtime.prepare_timeout;
        let deadline = Instant::now() + timeout;
        let again = self
            .current
            .as_ref()
            .filter(|_| matches!(request.source, Source::Running));
        let same_pems = again.is_some();
        let contents = match again {
            // Nobody asked to read anything but targets.
            Some(current) => Contents {
                answers: current.snapshot.files.clone(),
                pems: current.snapshot.pems.clone(),
            },
            None => {
                look_for_folders(&parsed, deadline, timeout).await?;
                let stamps = Arc::new(Watched::of(&document).stamps(deadline).await);
                load(&parsed, stamps, deadline, timeout).await?
            }
        };
        let targets = self
            .take_targets(
                &parsed,
                &mut document,
                again.is_some(),
                deadline,
                &mut warnings,
            )
            .await?;
        if request.kind == Kind::Reload
            && let Some(current) = &self.current
            && *current.document == *document
            && current.snapshot.files == contents.answers
            && current.snapshot.pems.files == contents.pems.files
        {
            strict(request, &warnings)?;
            if file.is_some() {
                // What runs is what the file says, whoever posted it.
                self.posted = false;
            }
            return Ok(None);
        }

        let old = self.current.as_ref().map(|current| &*current.document);
        let (summary, steps) = plan::plan(old, Some(&document));
        self.inner
            .log
            .emit(state, Phase::Planned, generation, |event, record| {
                event.plan = Some(summary.clone());
                record.plan = Some(summary);
            });

        let state_lock = self.lock_state(&parsed, &mut warnings)?;
        let crew = match &self.crew {
            Some(crew) => crew.clone(),
            None => {
                let folder = state_lock.as_ref().map(|lock| lock.dir().to_owned());
                Arc::new(self.hire(&document, folder)?)
            }
        };
        let (snapshot, faults) = self
            .compile(request.kind, &parsed, &document, contents, &crew, same_pems)
            .await?;
        warnings.extend(faults);
        warnings.extend(resolve(&parsed, &snapshot, deadline).await);
        let (opened, admin) = self.reserve(&parsed, &steps, deadline).await?;
        strict(request, &warnings)?;
        self.inner
            .log
            .emit(state, Phase::Prepared, generation, |event, record| {
                event.bound = Some(
                    opened
                        .iter()
                        .map(|(key, reserved)| key.transport.show(&reserved.address()))
                        .collect(),
                );
                record.warnings = warnings;
            });
        Ok(Some(Box::new(Prepared {
            document,
            snapshot,
            steps,
            opened,
            admin,
            crew,
            state_lock,
            file,
            targets,
        })))
    }

    /// Only at boot: the folder is read then, and stays locked.
    fn lock_state(
        &self,
        parsed: &Parsed,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<Option<StateLock>, Rejection> {
        if self.current.is_some() || self.state_lock.is_some() {
            return Ok(None);
        }
        let document = &parsed.document;
        let Some(dir) = state_dir::folder(document) else {
            return Ok(None);
        };
        match state_dir::lock(&dir) {
            Ok(lock) => Ok(Some(lock)),
            Err(LockError::Held(dir)) => {
                let message = format!(
                    "{} is locked: another evergate runs with this state folder",
                    dir.display()
                );
                let help = "give this one another `runtime.state_dir` and another `admin.listen`, or stop the other one";
                let error = parsed.locate("/runtime/state_dir", message, Some(help.into()));
                Err(Rejection::with(409, "not-prepared", vec![error]))
            }
            Err(LockError::Unwritable(dir, error)) => {
                let message = format!("{}: {error}; nothing is kept there", dir.display());
                warnings.push(parsed.locate("/runtime/state_dir", message, None));
                Ok(None)
            }
        }
    }

    /// The workers, at boot.
    fn hire(&self, document: &Document, state_folder: Option<PathBuf>) -> Result<Crew, Rejection> {
        let runtime = &document.runtime;
        let count = match runtime.model {
            crate::config::runtime::Model::PerCore => runtime.workers,
            crate::config::runtime::Model::Shared => 1,
        };
        let tunnels = Arc::new(Hub::default());
        let shared = Shared::new(tokio::runtime::Handle::current(), count);
        let shared = Arc::new(shared.with_tunnels(tunnels.clone()));
        let tls = tls::Shared::new().map_err(|error| {
            Rejection::new(
                409,
                "not-prepared",
                format!("TLS is not possible here: {error}"),
            )
        })?;
        let limit = Arc::new(ConnectionLimit::new(runtime.max_connections));
        let workers = worker::start(&worker::Plan {
            model: runtime.model,
            workers: runtime.workers,
            shared: shared.clone(),
            limit: limit.clone(),
            gate: self.options.gate.clone(),
            fatal: self.options.fatal.clone(),
        })
        .map_err(|error| {
            Rejection::new(
                409,
                "not-prepared",
                format!("the workers could not be started: {error}"),
            )
        })?;
        let runtimes = workers.iter().map(|worker| worker.runtime.clone());
        Ok(Crew {
            tunnels,
            agents: Agents::new(runtimes.collect()),
            workers,
            forward: forward::Shared::new(&shared),
            shared,
            tls: Arc::new(tls.with_state_folder(state_folder)),
            filters: filter::Shared::default(),
            records: record::Shared::new(self.options.writers.clone(), count),
            limit,
            model: runtime.model,
        })
    }

    /// What the document is made into, and what of its certificates is worth a warning.
    async fn compile(
        &self,
        kind: Kind,
        parsed: &Parsed,
        document: &Arc<Document>,
        contents: Contents,
        crew: &Arc<Crew>,
        same_pems: bool,
    ) -> Result<(Arc<Snapshot>, Vec<Diagnostic>), Rejection> {
        let before = self
            .current
            .as_ref()
            .map(|current| (current.document.clone(), current.snapshot.clone()));
        let document = document.clone();
        let crew = crew.clone();
        // A large table takes its time: not on a thread that has other work.
        let built = self.options.compiler.spawn_blocking(move || {
            let before = before
                .as_ref()
                .map(|(document, snapshot)| (&**document, &**snapshot));
            let running = before.map(|(_, snapshot)| (&snapshot.certificates, &snapshot.clients));
            let (pems, answers) = (&contents.pems.files, &contents.answers);
            let (certificates, clients, warnings) = match running {
                // Nothing was read anew: also what was kept out of them stays as it was.
                Some((certificates, clients)) if same_pems => {
                    (certificates.clone(), clients.clone(), Vec::new())
                }
                _ => tls::store::load(&document, pems, answers, running, &crew.tls)?,
            };
            let log = document.access_log.as_ref().map(|spec| {
                let log = match kind {
                    // It leaves nothing behind, no empty file either.
                    Kind::Adapt => sink::probe(&spec.path).map(|()| None),
                    _ => crew.records.access_log(spec).map(Arc::new).map(Some),
                };
                log.map_err(|error| vec![unwritable(&spec.path, &error)])
            });
            let lasting = Lasting {
                upstreams: &crew.shared,
                tls: &crew.tls,
                filters: &crew.filters,
                forward: &crew.forward,
                records: &crew.records,
                tunnels: &crew.tunnels,
                agents: &crew.agents,
            };
            let log = log.transpose()?.flatten();
            let snapshot = Snapshot::build(
                &document,
                contents,
                (certificates, clients),
                log,
                lasting,
                before,
            );
            Ok((Arc::new(snapshot), warnings))
        });
        let located = |faults: Vec<Fault>| -> Vec<Diagnostic> {
            let place = |f: Fault| parsed.locate(&f.pointer, f.message, f.help.map(Into::into));
            let mut all: Vec<_> = faults.into_iter().map(place).collect();
            // A certificate that `[defaults]` name is wrong for every server, in one place.
            all.dedup();
            all
        };
        match built.await {
            Ok(Ok((snapshot, warnings))) => Ok((snapshot, located(warnings))),
            Ok(Err(faults)) => Err(Rejection::with(409, "not-prepared", located(faults))),
            Err(error) => {
                let detail = format!("compiling failed: {error}");
                Err(Rejection::new(500, "internal", detail))
            }
        }
    }
}

/// Names of targets, looked up once; one that is not found is a warning and its target is down.
async fn resolve(parsed: &Parsed, snapshot: &Snapshot, deadline: Instant) -> Vec<Diagnostic> {
    let lookups = snapshot
        .upstreams
        .iter()
        .map(|(name, upstream)| async move {
            let missing = tokio::time::timeout_at(deadline, upstream.resolved())
                .await
                .unwrap_or_default();
            missing.into_iter().map(move |host| {
                let message = format!("{host} is not found; this target is down until it is");
                parsed.locate(&format!("/upstreams/{name}/targets"), message, None)
            })
        });
    join_all(lookups).await.into_iter().flatten().collect()
}

fn unwritable(path: &LogPath, error: &std::io::Error) -> Fault {
    Fault {
        pointer: "/access_log/path".into(),
        message: format!("{path}: {error}"),
        help: None,
    }
}

fn strict(request: &SwapRequest, warnings: &[Diagnostic]) -> Result<(), Rejection> {
    if request.strict && !warnings.is_empty() {
        return Err(Rejection::with(422, "warnings", warnings.to_vec()));
    }
    Ok(())
}
