//! The composition root: runtimes, supervisor, admin thread, signals. It decides nothing about traffic; it starts what
//! does, in the order in which it may fail, and takes it down in the reverse order.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::config::Format;
use crate::log::sink::Writers;
use crate::net;
use crate::supervisor::event::Kind;
use crate::supervisor::{self, Handle, Source, SubmitError, SwapRecord, SwapRequest};

/// The document that runs when no file is found: a welcome page on 127.0.0.1:8080, and a forward
/// proxy on 127.0.0.1:8090.
pub const WELCOME: &str = include_str!("../config/welcome.toml");

/// How long the admin API may take to give its last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How long the access logs may take to be written to their ends.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Within this time a signal that comes twice is one: `timeout` and terminals send it to the process and to its group.
#[cfg(unix)]
const SAME_SIGNAL: Duration = Duration::from_millis(100);

/// Finds the configuration file when none is named.
pub type Search = Arc<dyn Fn() -> Option<PathBuf> + Send + Sync>;

/// How to start.
pub struct Options {
    /// `-c FILE`, or what the search found.
    pub config: Option<PathBuf>,
    /// What runs without a file: TOML.
    pub embedded: Bytes,
    /// The search, asked again by a reload without body when the start found nothing.
    pub search: Search,
    /// Takes SIGTERM, SIGINT, SIGHUP and SIGUSR1 (off when several run in one process).
    pub signals: bool,
    /// Accepting waits while this says false: tests fill an accept queue with it.
    pub gate: Option<watch::Receiver<bool>>,
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The first configuration was refused.
    #[error("{}", .0.detail.as_deref().unwrap_or("the configuration was refused"))]
    Refused(Box<SwapRecord>),
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
}

/// Why it ended although nobody asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(pub String);

/// A running evergate.
pub struct App {
    handle: Handle,
    control: tokio::runtime::Runtime,
    compiler: tokio::runtime::Runtime,
    supervisor: tokio::task::JoinHandle<()>,
    admin: std::thread::JoinHandle<()>,
    /// Cancelled: the admin thread ends after its last answers.
    admin_stop: CancellationToken,
    writers: Arc<Writers>,
    fatal: mpsc::Receiver<String>,
}

impl App {
    /// Starts everything and commits the first generation.
    ///
    /// # Errors
    /// [`StartError::Refused`] with every error of the configuration; nothing is left running then.
    pub fn start(options: Options) -> Result<App, StartError> {
        net::raise_descriptor_limit();
        let control = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(16)
            .thread_name("control")
            .enable_all()
            .build()
            .map_err(|error| StartError::System("the control runtime", error))?;
        let admin_runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(4)
            .enable_all()
            .build()
            .map_err(|error| StartError::System("the admin runtime", error))?;
        let compiler = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .thread_name("compiler")
            .build()
            .map_err(|error| StartError::System("the compiler's runtime", error))?;
        let writers = Arc::new(Writers::default());
        let (fatal_in, fatal) = mpsc::channel(8);
        let source = match &options.config {
            Some(_) => Source::File,
            None => Source::Embedded {
                bytes: options.embedded,
                format: Format::Toml,
            },
        };
        let supervisor_options = supervisor::Options {
            file: options.config,
            search: options.search,
            gate: options.gate,
            compiler: compiler.handle().clone(),
            runtimes: vec![control.handle().clone(), admin_runtime.handle().clone()],
            writers: writers.clone(),
            fatal: fatal_in.clone(),
        };
        let (handle, supervisor) =
            control.block_on(async { supervisor::start(supervisor_options) });
        let admin_stop = CancellationToken::new();
        let admin = {
            let handle = handle.clone();
            let context = admin::Context {
                stop: admin_stop.clone(),
                ..admin::Context::default()
            };
            std::thread::Builder::new()
                .name("admin".into())
                .spawn(move || {
                    let served = std::panic::AssertUnwindSafe(|| {
                        admin_runtime.block_on(admin::serve(handle, context));
                    });
                    if std::panic::catch_unwind(served).is_err() {
                        // Full: another part has said so already.
                        let _ = fatal_in.try_send("the admin thread panicked".into());
                    }
                    admin_runtime.shutdown_timeout(LAST_ANSWERS);
                })
                .map_err(|error| StartError::System("the admin thread", error))?
        };
        let mut app = App {
            handle,
            control,
            compiler,
            supervisor,
            admin,
            admin_stop,
            writers,
            fatal,
        };
        if let Err(error) = app
            .take_signals(options.signals)
            .and_then(|()| app.boot(source))
        {
            app.end();
            return Err(error);
        }
        Ok(app)
    }

    /// Before the boot: who sees that it is ready may send a signal at once.
    fn take_signals(&self, wanted: bool) -> Result<(), StartError> {
        if wanted {
            let _context = self.control.enter();
            let signals = Signals::new().map_err(|error| StartError::System("signals", error))?;
            self.control
                .spawn(signals.run(self.handle.clone(), self.writers.clone()));
        }
        Ok(())
    }

    fn boot(&mut self, source: Source) -> Result<(), StartError> {
        let boot = request(Kind::Boot, source, "start");
        let broken =
            |message: String| StartError::System("the start", std::io::Error::other(message));
        self.control.block_on(async {
            let id = self.handle.submit(boot).map_err(|error| broken(error.to_string()))?;
            let record = tokio::select! {
                record = self.handle.wait(id, true) => record,
                Some(message) = self.fatal.recv() => return Err(broken(message)),
                ended = &mut self.supervisor => return Err(broken(format!("the supervisor ended: {ended:?}"))),
            };
            match record {
                Some(record) if record.generation.is_none() => Err(StartError::Refused(Box::new(record))),
                _ => Ok(()),
            }
        })
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs until a stop has drained.
    ///
    /// # Errors
    /// [`Fatal`] when a worker, a drain or the admin thread has panicked.
    pub fn wait(mut self) -> Result<(), Fatal> {
        let ended = self.control.block_on(async {
            tokio::select! {
                biased;
                Some(message) = self.fatal.recv() => Err(Fatal(message)),
                ended = &mut self.supervisor => ended.map_err(|error| Fatal(format!("the supervisor ended: {error}"))),
            }
        });
        self.end();
        ended
    }

    /// Stops with the given deadline and waits; for tests that run it in their own process.
    ///
    /// # Errors
    /// See [`App::wait`].
    pub fn stop(self, drain_timeout: Duration) -> Result<(), Fatal> {
        let mut stop = request(Kind::Stop, Source::File, "owner");
        stop.drain_timeout = Some(drain_timeout);
        // An error means that it stops already.
        let _ = self.handle.submit(stop);
        self.wait()
    }

    fn end(self) {
        // The admin thread gives its last answers while the rest is still there.
        self.admin_stop.cancel();
        drop(self.handle);
        if self.admin.join().is_err() {
            tracing::error!("the admin thread ended by a panic");
        }
        self.supervisor.abort();
        self.compiler.shutdown_timeout(LAST_ANSWERS);
        self.control.shutdown_timeout(LAST_ANSWERS);
        self.writers.end(LAST_LINES);
    }
}

fn request(kind: Kind, source: Source, actor: &str) -> SwapRequest {
    SwapRequest {
        kind,
        source,
        if_match: None,
        drain_timeout: None,
        strict: false,
        turn: None,
        actor: actor.into(),
        read_only: false,
    }
}

/// SIGHUP reads the file again; SIGUSR1 opens the access logs again; SIGTERM and SIGINT stop, a second one exits at once.
#[cfg(unix)]
struct Signals {
    hangup: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    user1: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }

    async fn run(mut self, handle: Handle, writers: Arc<Writers>) {
        let mut first: Option<std::time::Instant> = None;
        loop {
            let (name, gently) = tokio::select! {
                Some(()) = self.hangup.recv() => {
                    report(handle.submit(request(Kind::Reload, Source::File, "SIGHUP")));
                    continue;
                }
                Some(()) = self.user1.recv() => {
                    tracing::info!("SIGUSR1: access logs are opened again");
                    writers.reopen();
                    continue;
                }
                Some(()) = self.terminate.recv() => ("SIGTERM", true),
                Some(()) = self.interrupt.recv() => ("SIGINT", false),
                else => return,
            };
            match first {
                None => first = Some(std::time::Instant::now()),
                Some(first) if first.elapsed() < SAME_SIGNAL => continue,
                Some(_) => {
                    eprintln!("evergate: a second {name}: out at once");
                    std::process::exit(130);
                }
            }
            handle.leave();
            let running = handle.running();
            let delay = running.map_or(Duration::ZERO, |r| r.document.runtime.stop_delay);
            let handle = handle.clone();
            // Beside the loop, so that a second signal is heard during the delay; ends by itself after it.
            tokio::spawn(async move {
                if gently {
                    tokio::time::sleep(delay).await;
                }
                report(handle.submit(request(Kind::Stop, Source::File, name)));
            });
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals)
    }

    async fn run(self, handle: Handle, _writers: Arc<Writers>) {
        let mut stopping = false;
        while tokio::signal::ctrl_c().await.is_ok() {
            if stopping {
                std::process::exit(130);
            }
            stopping = true;
            report(handle.submit(request(Kind::Stop, Source::File, "Ctrl-C")));
        }
    }
}

fn report(submitted: Result<u64, SubmitError>) {
    if let Err(error) = submitted {
        tracing::warn!(%error, "a signal changed nothing");
    }
}
