//! Where log lines go: one writer thread behind a bounded queue. A worker that has something to say never waits for
//! whoever reads our standard error; what does not fit is counted, and the count is said.

pub mod escape;
pub mod sink;
pub mod stamp;
pub mod switch;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait to be written.
const QUEUE: usize = 4096;

/// Makes a writer for each line; cheap to clone.
#[derive(Debug, Clone)]
pub struct Lines {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
    /// Escape sequences in lines are ours.
    colour: bool,
}

impl Lines {
    /// The same for lines that may be in colour.
    pub fn coloured(self, colour: bool) -> Lines {
        Lines { colour, ..self }
    }
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    End,
}

/// Dropping it writes what waits and ends the thread.
#[derive(Debug)]
pub struct Flush {
    queue: SyncSender<Message>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Starts the writer thread.
///
/// # Errors
/// When the thread cannot be made.
pub fn to(sink: impl Write + Send + 'static) -> io::Result<(Lines, Flush)> {
    let (queue, lines) = sync_channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let counter = dropped.clone();
    let thread = std::thread::Builder::new()
        .name("log".into())
        .spawn(move || write(&lines, &counter, sink))?;
    Ok((
        Lines {
            queue: queue.clone(),
            dropped,
            colour: false,
        },
        Flush {
            queue,
            thread: Some(thread),
        },
    ))
}

fn write(lines: &Receiver<Message>, dropped: &AtomicU64, mut sink: impl Write) {
    while let Ok(Message::Line(line)) = lines.recv() {
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            // A sink that cannot be written has nobody to be told.
            let _ = writeln!(
                sink,
                "{lost} log lines were dropped: they came faster than they could be written"
            );
        }
        let _ = sink.write_all(&line);
    }
    let _ = sink.flush();
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            lines: self,
            text: Vec::new(),
        }
    }
}

/// One line; it is queued when dropped.
#[derive(Debug)]
pub struct Line<'a> {
    lines: &'a Lines,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if self.text.is_empty() {
            return;
        }
        escape::one_line(&mut self.text, self.lines.colour);
        let line = Message::Line(std::mem::take(&mut self.text));
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.lines.queue.try_send(line)
        {
            self.lines.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        // An error means that the thread has ended.
        let _ = self.queue.send(Message::End);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("evergate: the log's thread panicked");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use parking_lot::{Condvar, Mutex};

    /// A sink that takes nothing until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<Sink>);

    #[derive(Default)]
    struct Sink {
        open: Mutex<bool>,
        opened: Condvar,
        text: Mutex<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .opened
                .wait_while(&mut self.0.open.lock(), |open| !*open);
            self.0.text.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_sink_that_blocks_never_blocks_who_logs_and_the_loss_is_said() {
        let gate = Gate::default();
        let (lines, flush) = to(gate.clone()).unwrap();
        for n in 0..QUEUE + 100 {
            writeln!(lines.make_writer(), "line {n}").unwrap();
        }
        *gate.0.open.lock() = true;
        gate.0.opened.notify_all();
        drop(flush);
        let text = String::from_utf8(gate.0.text.lock().clone()).unwrap();
        assert!(text.starts_with("line 0\n") || text.contains("\nline 0\n"));
        let said = text
            .lines()
            .find(|line| line.contains("log lines were dropped"))
            .unwrap();
        let lost: usize = said.split(' ').next().unwrap().parse().unwrap();
        assert!((98..=100).contains(&lost), "{said}");
    }
}
