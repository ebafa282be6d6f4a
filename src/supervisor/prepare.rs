//! Everything of a swap that can fail, before anything of it can be seen: read, parse, load files, plan, resolve names,
//! compile, reserve addresses. All of it owns what it makes; dropping [`Prepared`] undoes it.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Rejection;
use super::actor::{Crew, Supervisor};
use super::admin_socket::{AdminReserved, AdminSocket, AdminSockets};
use super::certificates::{self, Watched};
use super::event::{Kind, Phase};
use super::files;
use super::log::SwapState;
use super::plan::{self, Change, Step};
use super::request::{Source, SwapRequest};
use super::state_dir::{self, LockError, StateLock};
use super::targets::TargetLists;
use crate::config::log::LogPath;
use crate::config::scalar::ListenAddr;
use crate::config::{Diagnostic, Format};
use crate::document::{Context, Document, Parsed, Refused};
use crate::forward;
use crate::http::{Files, filter, record};
use crate::listen::accept::{Binding, ConnectionLimit};
use crate::log::sink;
use crate::net;
use crate::snapshot::{BindingKey, Contents, Lasting, Pems, Snapshot};
use crate::tls;
use crate::tls::stamp::Stamps;
use crate::tls::store::Fault;
use crate::tunnel::Hub;
use crate::tunnel::agent::Agents;
use crate::upstream::Shared;
use crate::worker;

/// How long reading the configuration file itself, or what it includes, may take.
const READ_FILE: Duration = Duration::from_secs(30);
/// How often it is looked whether an address that retires is free.
const RETIRE_LOOK: Duration = Duration::from_millis(5);

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

/// A document as it came.
struct Read {
    bytes: Bytes,
    format: Format,
    /// Relative paths begin here.
    base: PathBuf,
    file: Option<PathBuf>,
}

impl Read {
    fn new(bytes: Bytes, format: Format, base: PathBuf) -> Read {
        Read {
            bytes,
            format,
            base,
            file: None,
        }
    }
}

/// One bound address: its sockets are closed when this is dropped, and only then.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) key: BindingKey,
    pub(super) binding: Arc<Binding>,
    pub(super) sockets: Vec<net::Opened>,
}

/// Addresses that are being let go.
pub(super) type Retiring = Arc<Mutex<Vec<(net::Transport, ListenAddr)>>>;

/// The socket table: the only thing that closes a listener.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) map: BTreeMap<BindingKey, Arc<Bound>>,
    pub(super) next_id: u32,
    /// Addresses that are being let go; not bound again before.
    pub(super) retiring: Retiring,
}

impl Table {
    pub(super) fn bound(&self) -> Vec<Arc<Bound>> {
        self.map.values().cloned().collect()
    }

    fn owned(&self, transport: net::Transport) -> net::Owned {
        let mut owned = net::Owned::of(transport);
        let all = self.map.values();
        for bound in all.filter(|bound| bound.key.transport == transport) {
            let Some(address) = bound.binding.address.tcp() else {
                continue;
            };
            let sockets = bound.sockets.iter();
            match transport {
                net::Transport::Stream => owned.add(address, sockets.filter_map(net::Opened::tcp)),
                net::Transport::Datagram => {
                    owned.add(address, sockets.filter_map(net::Opened::udp));
                }
            }
        }
        owned
    }
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

    /// The document that a swap is to, and the file that it was read from.
    async fn parsed(&self, request: &SwapRequest) -> Result<(Parsed, Option<PathBuf>), Rejection> {
        let source = &request.source;
        if let (Source::Running, Some(current)) = (source, &self.current) {
            return Ok((current.document.again(), None));
        }
        let Read {
            bytes,
            format,
            base,
            file,
        } = self.read(source).await?;
        let running = self
            .current
            .as_ref()
            .map(|current| current.document.clone());
        // The file of the process itself is no secret to who may see what runs.
        let sealed = request.read_only && matches!(source, Source::Body { .. });
        let parsed = parse(
            &self.options.compiler,
            (bytes, format),
            base,
            running,
            sealed,
        )
        .await?;
        Ok((parsed, file))
    }

    /// Puts in the targets that stand in files, and returns what the files said. `lenient`: of a file that is wrong, the
    /// running targets stay.
    async fn take_targets(
        &self,
        parsed: &Parsed,
        document: &mut Arc<Document>,
        lenient: bool,
        deadline: Instant,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<TargetLists, Rejection> {
        let timeout = document.runtime.prepare_timeout;
        let named = document.target_files();
        if named.is_empty() {
            return Ok(TargetLists::default());
        }
        let (contents, mut errors) = read_all(parsed, named, deadline, timeout).await;
        let running = self.current.as_ref().map(|current| &*current.document);
        let read = |path: &Path| contents.get(path).map(|bytes| &bytes[..]);
        let faults = Arc::make_mut(document).take_targets(read, running.filter(|_| lenient));
        if lenient {
            warnings.append(&mut errors);
        }
        for (pointer, message, kept) in faults {
            let help = kept.then(|| "the targets that it named before stay".to_owned());
            let list = if kept { &mut *warnings } else { &mut errors };
            list.push(parsed.locate(&pointer, message, help));
        }
        if errors.is_empty() {
            Ok(contents)
        } else {
            Err(Rejection::with(409, "not-prepared", errors))
        }
    }

    async fn read(&self, source: &Source) -> Result<Read, Rejection> {
        let folder = |path: &Path| {
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            std::path::absolute(parent.unwrap_or(Path::new(".")))
                .unwrap_or_else(|_| PathBuf::from("."))
        };
        let known = self.inner.file.lock().clone();
        match source {
            Source::Body { bytes, format } => {
                let base = known
                    .as_deref()
                    .map_or_else(|| folder(Path::new("x")), folder);
                Ok(Read::new(bytes.clone(), *format, base))
            }
            // Nothing runs, so nothing runs again.
            Source::Running => Err(Rejection::new(409, "no-file", "nothing runs")),
            Source::Embedded { bytes, format } => {
                Ok(Read::new(bytes.clone(), *format, folder(Path::new("x"))))
            }
            Source::File => {
                let Some(path) = known.or_else(|| (self.options.search)()) else {
                    let detail = "the process was started without a file, and none is found now; post a document";
                    return Err(Rejection::new(409, "no-file", detail));
                };
                let Some(format) = Document::format_of(&path) else {
                    let detail = format!(
                        "{}: the name must end in .toml, .json, .yaml or .yml",
                        path.display()
                    );
                    return Err(Rejection::new(409, "no-file", detail));
                };
                let read = tokio::time::timeout(READ_FILE, files::read(&path)).await;
                let bytes = read
                    .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
                    .map_err(|error| {
                        Rejection::new(409, "no-file", format!("{}: {error}", path.display()))
                    })?;
                let base = folder(&path);
                let file = Some(path);
                Ok(Read {
                    bytes,
                    format,
                    base,
                    file,
                })
            }
        }
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

    /// Reserves every new address, the admin's too; gathers all that cannot be had.
    async fn reserve(
        &self,
        parsed: &Parsed,
        steps: &[Step],
        deadline: Instant,
    ) -> Result<
        (
            Vec<(BindingKey, net::Reservation)>,
            AdminSockets<AdminReserved>,
        ),
        Rejection,
    > {
        let count = if net::balances() {
            self.shards(&parsed.document)
        } else {
            1
        };
        let mut streams = self.table.owned(net::Transport::Stream);
        let mut datagrams = self.table.owned(net::Transport::Datagram);
        let mut opened = Vec::new();
        let mut errors = Vec::new();
        for step in steps.iter().filter(|step| step.change == Change::Open) {
            let pointer = place_of(&parsed.document, &step.key);
            let address = &step.key.address;
            self.wait_until_retired(&step.key, deadline).await;
            let owned = match step.key.transport {
                net::Transport::Stream => &mut streams,
                net::Transport::Datagram => &mut datagrams,
            };
            let reserved = match step.key.transport {
                net::Transport::Stream => net::Reservation::new(address, count, owned),
                net::Transport::Datagram => net::Reservation::of_datagrams(address, count, owned),
            };
            match reserved {
                Ok(reserved) => {
                    if let ListenAddr::Tcp(address) = address {
                        owned.reserved(*address);
                    }
                    opened.push((step.key.clone(), reserved));
                }
                Err(error) => errors.push(parsed.locate(&pointer, error.message, error.help)),
            }
        }
        let spec = &parsed.document.admin;
        let mut take = |wanted: &ListenAddr, has: &Option<AdminSocket>, pointer| {
            if has.as_ref().is_some_and(|socket| socket.address == *wanted) {
                return None;
            }
            let reserved = AdminReserved::reserve(wanted);
            reserved
                .map_err(|(message, help)| errors.push(parsed.locate(pointer, message, help)))
                .ok()
        };
        let admin = AdminSockets {
            api: take(&spec.listen, &self.admin, "/admin/listen"),
            monitor: spec
                .monitor
                .as_ref()
                .and_then(|wanted| take(wanted, &self.monitor, "/admin/monitor")),
        };
        if errors.is_empty() {
            Ok((opened, admin))
        } else {
            Err(Rejection::with(409, "not-prepared", errors))
        }
    }

    fn shards(&self, document: &Document) -> usize {
        match (&self.crew, document.runtime.model) {
            (Some(crew), _) => crew.workers.len(),
            (None, crate::config::runtime::Model::PerCore) => document.runtime.workers,
            (None, crate::config::runtime::Model::Shared) => 1,
        }
    }

    /// An address that is being let go is free in a moment; after the deadline binding it tells.
    async fn wait_until_retired(&self, key: &BindingKey, deadline: Instant) {
        let same = |transport: net::Transport, ours: &ListenAddr| {
            let alike = match (ours.tcp(), key.address.tcp()) {
                (Some(ours), Some(address)) => ours.port() == address.port(),
                _ => *ours == key.address,
            };
            alike && transport == key.transport
        };
        let busy = || {
            let retiring = self.table.retiring.lock();
            retiring
                .iter()
                .any(|(transport, ours)| same(*transport, ours))
        };
        // Sessions of UDP would hold it until their deadline.
        let retired = self.draining.iter().flat_map(|draining| draining.retired());
        for bound in retired.filter(|b| same(b.key.transport, &b.binding.address)) {
            bound.binding.hurry.cancel();
        }
        while busy() && Instant::now() < deadline {
            tokio::time::sleep(RETIRE_LOOK).await;
        }
    }
}

/// Where the document names an address: its first server's `listen`.
fn place_of(document: &Document, key: &BindingKey) -> String {
    if key.transport == net::Transport::Datagram {
        return place_of_alone(document, key);
    }
    let named = document.http.values().find_map(|server| {
        let owned = key
            .owner
            .as_ref()
            .is_none_or(|(name, _)| *name == server.name);
        let index = match &key.owner {
            Some((_, index)) => Some(*index),
            None => server
                .listen
                .iter()
                .position(|address| *address == key.address),
        };
        index
            .filter(|_| owned)
            .map(|index| document.listen_pointer(&server.name, index))
    });
    named.unwrap_or_else(|| place_of_alone(document, key))
}

/// The same for what has its addresses alone.
fn place_of_alone(document: &Document, key: &BindingKey) -> String {
    let forward = document.forward.values();
    let forward = forward.map(|f| ("forward", &f.name, &f.listen));
    let tcp = document.tcp.values().map(|t| ("tcp", &t.name, &t.listen));
    let udp = document.udp.values().map(|u| ("udp", &u.name, &u.listen));
    let tunnels = document.tunnels.values();
    let tunnels = tunnels.map(|t| ("tunnels", &t.name, &t.listen));
    let mut all = forward.chain(tcp).chain(udp).chain(tunnels);
    let found = all.find(|(section, name, listen)| match &key.owner {
        _ if (*section == "udp") != (key.transport == net::Transport::Datagram) => false,
        Some((owner, _)) => **owner == format!("[{section}.{name}]"),
        None => listen.contains(&key.address),
    });
    found.map_or(String::new(), |(section, name, _)| {
        format!("/{section}/{name}/listen")
    })
}

async fn parse(
    compiler: &tokio::runtime::Handle,
    (bytes, format): (Bytes, Format),
    base: PathBuf,
    running: Option<Arc<Document>>,
    sealed: bool,
) -> Result<Parsed, Rejection> {
    let parsed = compiler.spawn_blocking(move || {
        let context = Context {
            base,
            running: running.as_deref(),
        };
        match sealed {
            true => Document::parse_sealed(&bytes, format, &context),
            false => Document::parse(&bytes, format, &context),
        }
    });
    // It reads what the document includes and its secrets, and a file may hang.
    let Ok(parsed) = tokio::time::timeout(READ_FILE, parsed).await else {
        let detail = format!("the document and its files could not be read within {READ_FILE:?}");
        return Err(Rejection::new(409, "not-prepared", detail));
    };
    match parsed {
        Ok(Ok(parsed)) => Ok(parsed),
        Ok(Err(Refused::Syntax(errors))) => Err(Rejection::with(400, "malformed-document", errors)),
        Ok(Err(Refused::Invalid { errors, .. })) => {
            Err(Rejection::with(422, "invalid-document", errors))
        }
        Ok(Err(Refused::Unavailable(errors))) => Err(Rejection::with(409, "not-prepared", errors)),
        Err(error) => Err(Rejection::new(
            500,
            "internal",
            format!("parsing failed: {error}"),
        )),
    }
}

/// Reads every file the document names, all at once. `stamps`: of those of certificates, from before.
async fn load(
    parsed: &Parsed,
    stamps: Arc<Stamps>,
    deadline: Instant,
    timeout: Duration,
) -> Result<Contents, Rejection> {
    let (mut named, mut errors) = (parsed.document.file_pointers(), Vec::new());
    let mut folders = parsed.document.certificate_folders();
    let mut seen = HashSet::new();
    folders.retain(|(folder, _)| seen.insert(folder.clone()));
    for (folder, pointer) in &folders {
        let listed = tokio::time::timeout_at(deadline, files::pairs(folder)).await;
        match listed.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(paths) => named.extend(paths.into_iter().map(|path| (path, pointer.clone()))),
            Err(error) => {
                let message = format!("{}: {error}", folder.display());
                errors.push(parsed.locate(pointer, message, None));
            }
        }
    }
    // What `[defaults]` name is named by every server, and read once.
    let mut seen = HashSet::new();
    named.retain(|(path, _)| seen.insert(path.clone()));
    let (mut files, more) = read_all(parsed, named, deadline, timeout).await;
    errors.extend(more);
    if errors.is_empty() {
        let faults = parsed.document.judge_htpasswd(&files).into_iter();
        errors.extend(faults.map(|f| parsed.locate(&f.pointer, f.message, f.help)));
    }
    if !errors.is_empty() {
        return Err(Rejection::with(409, "not-prepared", errors));
    }
    let folders: Vec<PathBuf> = folders.into_iter().map(|(folder, _)| folder).collect();
    let pems = certificates::pems(&parsed.document, &folders, &files);
    let answers: HashSet<_> = parsed
        .document
        .answer_pointers()
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    files.retain(|path, _| answers.contains(path));
    Ok(Contents {
        answers: files,
        pems: Pems {
            files: pems,
            stamps,
        },
    })
}

/// Reads files at once. Returns what they say, and what could not be read.
async fn read_all(
    parsed: &Parsed,
    named: Vec<(PathBuf, String)>,
    deadline: Instant,
    timeout: Duration,
) -> (Files, Vec<Diagnostic>) {
    let reads = named.into_iter().map(|(path, pointer)| async move {
        let read = tokio::time::timeout_at(deadline, files::read(&path)).await;
        let error = match read {
            Ok(Ok(bytes)) => return Ok((path, bytes)),
            Ok(Err(error)) => format!("{}: {error}", path.display()),
            Err(_) => format!(
                "{}: could not be read within `prepare_timeout` ({timeout:?})",
                path.display()
            ),
        };
        Err(parsed.locate(&pointer, error, None))
    });
    let (mut files, mut errors) = (Files::new(), Vec::new());
    for read in join_all(reads).await {
        match read {
            Ok((path, bytes)) => drop(files.insert(path, bytes)),
            Err(error) => errors.push(error),
        }
    }
    (files, errors)
}

/// Sees that every folder to be served is one.
async fn look_for_folders(
    parsed: &Parsed,
    deadline: Instant,
    timeout: Duration,
) -> Result<(), Rejection> {
    let mut named = parsed.document.folder_pointers();
    let mut seen = HashSet::new();
    named.retain(|(folder, _)| seen.insert(folder.clone()));
    let looks = named.into_iter().map(|(path, pointer)| async move {
        let error = match tokio::time::timeout_at(deadline, files::folder(&path)).await {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => format!("{}: {error}", path.display()),
            Err(_) => format!(
                "{}: could not be looked at within `prepare_timeout` ({timeout:?})",
                path.display()
            ),
        };
        Some(parsed.locate(&pointer, error, None))
    });
    let errors: Vec<_> = join_all(looks).await.into_iter().flatten().collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Rejection::with(409, "not-prepared", errors))
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
