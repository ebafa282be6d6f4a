//! The real binary as a child process: its folder, its file, its ports, its output, its end.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{free_port, raw, until};

/// Chooses the worker model of every configuration the kit writes: `per-core` or `shared`.
const MODEL: &str = "EVERGATE_TEST_MODEL";

/// The `[admin]` and `[runtime]` tables that every document of one process carries.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    pub(crate) admin: SocketAddr,
    pub(crate) state_dir: PathBuf,
    /// More lines of `[runtime]`.
    pub(crate) runtime: String,
}

impl Base {
    /// A whole document around `rest`.
    pub(crate) fn document(&self, rest: &str) -> String {
        let model = std::env::var(MODEL)
            .map(|m| format!("model = \"{m}\"\n"))
            .unwrap_or_default();
        let Base {
            admin,
            state_dir,
            runtime,
        } = self;
        format!(
            "[admin]\nlisten = \"{admin}\"\n\n[runtime]\nworkers = 2\nstate_dir = \"{}\"\n{model}{runtime}\n{rest}",
            state_dir.display()
        )
    }
}

/// A running evergate. Killed on drop.
#[derive(Debug)]
pub(crate) struct Gate {
    child: Child,
    pub(crate) base: Base,
    pub(crate) dir: TempDir,
    output: Arc<Mutex<String>>,
}

/// What to start.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    runtime: String,
    files: Vec<(String, Vec<u8>)>,
    descriptors: Option<u64>,
}

impl Setup {
    /// Adds lines to `[runtime]`.
    pub(crate) fn runtime(mut self, lines: &str) -> Setup {
        self.runtime.push_str(lines);
        self.runtime.push('\n');
        self
    }

    /// Gives the process no more descriptors than that.
    pub(crate) fn descriptors(mut self, most: u64) -> Setup {
        self.descriptors = Some(most);
        self
    }

    /// Puts a file beside the configuration.
    pub(crate) fn file(mut self, name: &str, contents: impl Into<Vec<u8>>) -> Setup {
        self.files.push((name.to_owned(), contents.into()));
        self
    }

    /// Starts with a document of these tables and `rest`, and waits until it is ready.
    pub(crate) fn start(self, rest: &str) -> Gate {
        let dir = tempfile::Builder::new()
            .prefix("evergate-test")
            .tempdir()
            .unwrap();
        for (name, contents) in &self.files {
            std::fs::write(dir.path().join(name), contents).unwrap();
        }
        let base = Base {
            admin: SocketAddr::from(([127, 0, 0, 1], free_port())),
            state_dir: dir.path().join("state"),
            runtime: self.runtime,
        };
        let config = dir.path().join("evergate.toml");
        std::fs::write(&config, base.document(rest)).unwrap();
        let binary = env!("CARGO_BIN_EXE_evergate");
        let mut command = match self.descriptors {
            None => Command::new(binary),
            Some(most) => {
                let mut shell = Command::new("sh");
                let limit = format!("ulimit -n {most} && exec \"$0\" \"$@\"");
                shell.arg("-c").arg(limit).arg(binary);
                shell
            }
        };
        command.args(["run", "-c"]).arg(&config);
        let (child, output) = spawn(command, dir.path());
        let mut gate = Gate {
            child,
            base,
            dir,
            output,
        };
        gate.wait_ready();
        gate
    }
}

/// Starts `command` with nothing of the user's own configuration in sight, its output kept.
pub(crate) fn spawn(mut command: Command, home: &Path) -> (Child, Arc<Mutex<String>>) {
    command
        .current_dir(home)
        .env("HOME", home)
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_STATE_HOME");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = Arc::new(Mutex::new(String::new()));
    let streams: [Option<Box<dyn std::io::Read + Send>>; 2] = [
        child
            .stdout
            .take()
            .map(|s| Box::new(s) as Box<dyn std::io::Read + Send>),
        child
            .stderr
            .take()
            .map(|s| Box::new(s) as Box<dyn std::io::Read + Send>),
    ];
    for stream in streams.into_iter().flatten() {
        let output = output.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let mut output = output.lock().unwrap();
                // The end of a chatty log is what explains a failure; its beginning is not worth the memory.
                if output.len() > 1 << 20 {
                    output.clear();
                }
                output.push_str(&line);
                output.push('\n');
            }
        });
    }
    (child, output)
}

impl Gate {
    pub(crate) fn setup() -> Setup {
        Setup::default()
    }

    pub(crate) fn start(rest: &str) -> Gate {
        Setup::default().start(rest)
    }

    /// Adopts a process that was started in another way (samples, the README's tour).
    pub(crate) fn adopt(
        child: Child,
        output: Arc<Mutex<String>>,
        base: Base,
        dir: TempDir,
    ) -> Gate {
        let mut gate = Gate {
            child,
            base,
            dir,
            output,
        };
        gate.wait_ready();
        gate
    }

    fn wait_ready(&mut self) {
        until("the process to be ready", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended at start with {status}:\n{}", self.output());
            }
            let host = self.base.admin.to_string();
            raw::try_get(self.base.admin, &host, "/readyz")
                .is_ok_and(|r| r.status == 200)
                .then_some(())
        });
    }

    /// A whole document with this process's `[admin]` and `[runtime]`.
    pub(crate) fn document(&self, rest: &str) -> String {
        self.base.document(rest)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("evergate.toml")
    }

    /// Overwrites the configuration file.
    pub(crate) fn write(&self, rest: &str) {
        std::fs::write(self.config(), self.document(rest)).unwrap();
    }

    pub(crate) fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Stops every thread of the process and waits until the kernel says that it stands still.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.child.id());
        until("the process to stand still", || {
            let stat = std::fs::read_to_string(&stat).unwrap();
            stat.rsplit(')')
                .next()
                .is_some_and(|s| s.trim_start().starts_with('T'))
                .then_some(())
        });
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Starts it once more, after its end, with the same file and folders.
    pub(crate) fn restart(mut self) -> Gate {
        self.wait();
        let mut command = Command::new(env!("CARGO_BIN_EXE_evergate"));
        command.args(["run", "-c"]).arg(self.config());
        (self.child, self.output) = spawn(command, self.dir.path());
        self.wait_ready();
        self
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        until("the process to end", || self.child.try_wait().unwrap())
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Resident memory in bytes, from the kernel.
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The same without what is mapped from files, its code above all, which the kernel loads and drops as it likes.
    pub(crate) fn own_memory(&self) -> u64 {
        self.memory("RssAnon:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kilobytes * 1024
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let output = self.output();
            let from = output.char_indices().rev().nth(4000).map_or(0, |(i, _)| i);
            eprintln!("--- output of the process ---\n{}\n---", &output[from..]);
        }
    }
}
