//! Where the lines of requests go. Each worker has a *lane*, a buffer that only it and the sink's thread touch; the thread
//! gathers the lanes and writes them. A worker copies its line and goes on: it never waits for a disk, a pipe or another
//! worker. What does not fit into a lane is dropped and counted.
//!
//! A sink is leased by its path. Dropping the last lease ends the thread after it has written what there is; [`Writers`]
//! owns the threads and waits for them, within bounds, when the process ends.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use super::stamp::Stamp;
use crate::config::log::LogPath;

/// Bytes that wait in a lane; a line more is dropped.
const LANE: usize = 2 * 1024 * 1024;
/// Bytes at which the thread does not gather any longer.
const URGENT: usize = 256 * 1024;
/// How long the thread gathers lines before it writes them.
const GATHER: Duration = Duration::from_millis(50);
/// How long it waits before it tries again what a pipe did not take.
const AGAIN: Duration = Duration::from_millis(20);
/// How long a sink that ends tries to write what is left.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// Where the lines of requests go.
#[derive(Debug)]
pub struct Sink(Arc<State>);

#[derive(Debug)]
struct State {
    path: LogPath,
    lanes: Box<[Lane]>,
    wishes: Mutex<Wishes>,
    wake: Condvar,
    /// Lines that could not be written.
    lost: AtomicU64,
}

/// What the thread is to do.
#[derive(Debug, Default)]
struct Wishes {
    lines: bool,
    urgent: bool,
    reopen: bool,
    end: bool,
}

/// One worker's part: on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane {
    waiting: Mutex<Waiting>,
    /// Lines that did not fit.
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    text: Vec<u8>,
    stamp: Stamp,
}

impl Sink {
    /// Appends what `line` writes, a whole line with its end, to the lane of `worker`.
    pub fn put(&self, worker: usize, line: impl FnOnce(&mut Vec<u8>, &Stamp)) {
        let state = &*self.0;
        let Some(lane) = state.lanes.get(worker % state.lanes.len().max(1)) else {
            return;
        };
        let mut waiting = lane.waiting.lock();
        let before = waiting.text.len();
        if before >= LANE {
            drop(waiting);
            lane.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let Waiting { text, stamp } = &mut *waiting;
        stamp.set(SystemTime::now());
        line(text, stamp);
        let after = text.len();
        drop(waiting);
        if before == 0 {
            state.wish(|wishes| wishes.lines = true);
        } else if before < URGENT && after >= URGENT {
            state.wish(|wishes| wishes.urgent = true);
        }
    }

    /// Closes the file and opens its path again: somebody has moved it away.
    pub fn reopen(&self) {
        self.0.wish(|wishes| wishes.reopen = true);
    }

    pub fn path(&self) -> &LogPath {
        &self.0.path
    }

    /// Lines that were dropped, because they came faster than they could be written or could not be written at all.
    pub fn dropped(&self) -> u64 {
        let lanes = self.0.lanes.iter();
        let full: u64 = lanes.map(|lane| lane.dropped.load(Ordering::Relaxed)).sum();
        full + self.0.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.wish(|wishes| wishes.end = true);
    }
}

impl State {
    fn wish(&self, set: impl FnOnce(&mut Wishes)) {
        set(&mut self.wishes.lock());
        self.wake.notify_one();
    }
}

/// The threads of all sinks.
#[derive(Debug, Default)]
pub struct Writers {
    states: Mutex<Vec<Weak<State>>>,
    running: Mutex<usize>,
    ended: Condvar,
}

/// An open sink without its thread: what can fail is over.
#[derive(Debug)]
pub struct Opened {
    path: LogPath,
    to: To,
}

#[derive(Debug)]
enum To {
    Stdout,
    File(File),
}

impl Opened {
    /// Opens `path` for appending.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn open(path: &LogPath) -> io::Result<Opened> {
        let to = match path {
            LogPath::Stdout => To::Stdout,
            LogPath::File(path) => To::File(open(path)?),
        };
        Ok(Opened {
            path: path.clone(),
            to,
        })
    }
}

/// Sees whether `path` could be opened, and leaves nothing behind.
///
/// # Errors
/// When it could not.
pub fn probe(path: &LogPath) -> io::Result<()> {
    let LogPath::File(path) = path else {
        return Ok(());
    };
    match options(path).create(false).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => room_for(path),
        opened => opened.map(drop),
    }
}

/// Whether a file could be made there.
fn room_for(path: &std::path::Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let folder = parent.unwrap_or(std::path::Path::new("."));
    let meta = std::fs::metadata(folder)?;
    if !meta.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    #[cfg(unix)]
    {
        use rustix::fs::{Access, access};
        access(folder, Access::WRITE_OK | Access::EXEC_OK)?;
    }
    #[cfg(not(unix))]
    if meta.permissions().readonly() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

fn open(path: &std::path::Path) -> io::Result<File> {
    options(path).open(path)
}

/// A new file is readable by its group. A pipe is opened in both directions, so that opening never waits for a reader,
/// and never blocks.
fn options(path: &std::path::Path) -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
        options.mode(0o640);
        if std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo()) {
            let flags = rustix::fs::OFlags::NONBLOCK.bits();
            options.read(true).create(false);
            options.custom_flags(i32::try_from(flags).unwrap_or(0));
        }
    }
    options
}

impl Writers {
    /// Starts a sink with a lane for each of `workers`.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(self: &Arc<Self>, opened: Opened, workers: usize) -> io::Result<Sink> {
        let state = Arc::new(State {
            path: opened.path,
            lanes: (0..workers.max(1)).map(|_| Lane::default()).collect(),
            wishes: Mutex::default(),
            wake: Condvar::new(),
            lost: AtomicU64::new(0),
        });
        {
            let mut states = self.states.lock();
            states.retain(|state| state.strong_count() > 0);
            states.push(Arc::downgrade(&state));
        }
        *self.running.lock() += 1;
        let ends = Ends(self.clone());
        let mut writer = Writer {
            state: state.clone(),
            to: opened.to,
            torn: false,
            failing: false,
        };
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                let _ends = ends;
                writer.run();
            })?;
        Ok(Sink(state))
    }

    /// Opens all files again.
    pub fn reopen(&self) {
        for state in self.states.lock().iter().filter_map(Weak::upgrade) {
            state.wish(|wishes| wishes.reopen = true);
        }
    }

    /// Tells all threads to write what they have, and waits for them. A pipe that nobody reads keeps no process alive:
    /// after `limit` they are left behind.
    pub fn end(&self, limit: Duration) {
        for state in self.states.lock().iter().filter_map(Weak::upgrade) {
            state.wish(|wishes| wishes.end = true);
        }
        let deadline = Instant::now() + limit;
        let mut running = self.running.lock();
        while *running > 0 {
            if self.ended.wait_until(&mut running, deadline).timed_out() {
                tracing::warn!("an access log could not be written to its end");
                return;
            }
        }
    }
}

/// Counts a thread's end, however it comes.
struct Ends(Arc<Writers>);

impl Drop for Ends {
    fn drop(&mut self) {
        *self.0.running.lock() -= 1;
        self.0.ended.notify_all();
    }
}

/// What the thread holds.
struct Writer {
    state: Arc<State>,
    to: To,
    /// What was written last is not a whole line.
    torn: bool,
    failing: bool,
}

impl Writer {
    fn run(&mut self) {
        // One goes to the lanes while the other is written.
        let mut spare = Vec::new();
        loop {
            let (reopen, end) = self.await_wishes();
            self.write_lanes(&mut spare);
            if reopen {
                self.reopen();
            }
            if end {
                return;
            }
        }
    }

    /// Until there is something to do; lines are gathered for a moment.
    fn await_wishes(&self) -> (bool, bool) {
        let mut wishes = self.state.wishes.lock();
        while !(wishes.lines || wishes.urgent || wishes.reopen || wishes.end) {
            self.state.wake.wait(&mut wishes);
        }
        let deadline = Instant::now() + GATHER;
        while !(wishes.urgent || wishes.reopen || wishes.end) {
            if self
                .state
                .wake
                .wait_until(&mut wishes, deadline)
                .timed_out()
            {
                break;
            }
        }
        let taken = std::mem::take(&mut *wishes);
        // Once told to end, it stays told.
        wishes.end = taken.end;
        (taken.reopen, taken.end)
    }

    fn write_lanes(&mut self, spare: &mut Vec<u8>) {
        let state = self.state.clone();
        for lane in &state.lanes {
            let mut text = {
                let mut waiting = lane.waiting.lock();
                std::mem::replace(&mut waiting.text, std::mem::take(spare))
            };
            self.write(&text);
            text.clear();
            // What a burst has taken is given back.
            if text.capacity() <= URGENT * 2 {
                *spare = text;
            }
        }
    }

    /// Writes whole lines, or counts those that cannot be.
    fn write(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        let mut rest = text;
        let mut give_up = None;
        if std::mem::take(&mut self.torn) {
            // The line that was cut short must not swallow the next one.
            let _ = self.to.write(b"\n");
        }
        while !rest.is_empty() {
            match self.to.write(rest) {
                Ok(0) => return self.lose(rest, text, &io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut wishes = self.state.wishes.lock();
                    if wishes.end {
                        let by = *give_up.get_or_insert_with(|| Instant::now() + LAST_WRITE);
                        if Instant::now() >= by {
                            drop(wishes);
                            return self.lose(rest, text, &error);
                        }
                    }
                    self.state.wake.wait_for(&mut wishes, AGAIN);
                }
                Err(error) => return self.lose(rest, text, &error),
            }
        }
        if std::mem::take(&mut self.failing) {
            tracing::info!(path = %self.state.path, "the access log is written again");
        }
    }

    fn lose(&mut self, rest: &[u8], text: &[u8], error: &io::Error) {
        self.torn =
            rest.len() < text.len() && text[..text.len() - rest.len()].last() != Some(&b'\n');
        let lines = memchr::memchr_iter(b'\n', rest).count();
        self.state.lost.fetch_add(lines as u64, Ordering::Relaxed);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(path = %self.state.path, %error, "the access log cannot be written: lines are dropped");
        }
    }

    fn reopen(&mut self) {
        match Opened::open(&self.state.path) {
            Ok(opened) => {
                self.to = opened.to;
                self.torn = false;
            }
            Err(error) => {
                tracing::error!(path = %self.state.path, %error, "the access log cannot be opened again: the old file is kept");
            }
        }
    }
}

impl To {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            To::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()?;
                Ok(bytes.len())
            }
            To::File(file) => file.write(bytes),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sink(path: &std::path::Path, workers: usize) -> (Arc<Writers>, Sink) {
        let writers = Arc::new(Writers::default());
        let opened = Opened::open(&LogPath::File(path.to_owned())).unwrap();
        let sink = writers.start(opened, workers).unwrap();
        (writers, sink)
    }

    fn put(sink: &Sink, worker: usize, line: &str) {
        sink.put(worker, |out, _| {
            out.extend_from_slice(line.as_bytes());
            out.push(b'\n');
        });
    }

    #[test]
    fn what_was_put_is_written_when_the_last_lease_falls() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let (writers, sink) = sink(&path, 2);
        for n in 0..1000 {
            put(&sink, n % 3, &format!("line {n}"));
        }
        assert_eq!(sink.dropped(), 0);
        drop(sink);
        writers.end(Duration::from_secs(10));
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 1000);
    }

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let probed = |path: &str| probe(&LogPath::File(folder.path().join(path)));
        probed("a.log").unwrap();
        assert!(!folder.path().join("a.log").exists());
        std::fs::write(folder.path().join("b.log"), "x\n").unwrap();
        probed("b.log").unwrap();
        let kind = |path: &str| probed(path).unwrap_err().kind();
        assert_eq!(kind("none/a.log"), io::ErrorKind::NotFound);
        assert_eq!(kind("b.log/a.log"), io::ErrorKind::NotADirectory);
        assert_eq!(kind("."), io::ErrorKind::IsADirectory);
        assert_eq!(
            std::fs::read_to_string(folder.path().join("b.log")).unwrap(),
            "x\n"
        );
        assert!(probe(&LogPath::Stdout).is_ok());
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_again_and_no_line_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let moved = folder.path().join("a.log.1");
        let (writers, sink) = sink(&path, 1);
        for n in 0..100 {
            put(&sink, 0, &format!("line {n}"));
            if n == 50 {
                std::fs::rename(&path, &moved).unwrap();
                writers.reopen();
                // The reopening is done when the path is there again.
                while !path.exists() {
                    std::thread::yield_now();
                }
            }
        }
        drop(sink);
        writers.end(Duration::from_secs(10));
        let count = |path| std::fs::read_to_string(path).unwrap().lines().count();
        assert_eq!(count(&moved) + count(&path), 100);
        assert_eq!(count(&moved), 51);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_costs_lines_that_are_counted() {
        let (writers, sink) = sink(std::path::Path::new("/dev/full"), 1);
        for n in 0..10 {
            put(&sink, 0, &format!("line {n}"));
        }
        let state = sink.0.clone();
        drop(sink);
        writers.end(Duration::from_secs(10));
        assert_eq!(state.lost.load(Ordering::Relaxed), 10);
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_that_nobody_reads_blocks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        let (kind, mode) = (rustix::fs::FileType::Fifo, 0o600.into());
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        let (writers, sink) = sink(&path, 1);
        let line = "x".repeat(100_000);
        for _ in 0..60 {
            put(&sink, 0, &line);
        }
        // A pipe takes 64 KiB, a lane 2 MiB, and the thread may hold as much.
        assert!(sink.dropped() > 0);
        let before = Instant::now();
        drop(sink);
        writers.end(Duration::from_secs(10));
        assert!(before.elapsed() < Duration::from_secs(9));
    }

    #[test]
    fn a_folder_is_no_log() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Opened::open(&LogPath::File(folder.path().to_owned())).is_err());
    }
}
