//! Steady load: keep-alive clients and a stream of new connections, every answer checked. An answer that comes from
//! an older generation than the floor known when its request was sent is a failure like any other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::raw::{Conn, Response};
use super::until;

/// What to send, and how much of it.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) to: SocketAddr,
    pub(crate) host: String,
    pub(crate) path: String,
    /// Clients that keep their connection.
    pub(crate) kept: usize,
    /// New connections a second, one request each; 0 for none.
    pub(crate) fresh: u64,
    /// Pause of a keep-alive client between two requests: shapes the load, nothing waits on it.
    pub(crate) pace: Duration,
    /// Every other request of a keep-alive client is a POST with this many bytes; 0: only GET.
    pub(crate) post: usize,
}

impl Shape {
    pub(crate) fn new(to: SocketAddr) -> Shape {
        Shape {
            to,
            host: "load.test".to_owned(),
            path: "/id".to_owned(),
            kept: 8,
            fresh: 0,
            pace: Duration::from_millis(2),
            post: 0,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answers: AtomicU64,
    fresh: AtomicU64,
    /// Answers must come from this generation mark or a later one.
    floor: AtomicU64,
    failed: AtomicU64,
    failures: Mutex<Vec<String>>,
    times: Mutex<Vec<Duration>>,
}

/// Load that runs until it is finished.
#[derive(Debug)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    started: Instant,
}

/// What the load saw.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) answers: u64,
    pub(crate) fresh: u64,
    pub(crate) took: Duration,
    pub(crate) times: Vec<Duration>,
}

/// The number behind `/g` in a text such as `A /g17/id`: the mark of the generation that answered.
pub(crate) fn mark(text: &str) -> Option<u64> {
    let after = &text[text.find("/g")? + 2..];
    after
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

impl Shared {
    fn fail(&self, what: String) {
        self.failed.fetch_add(1, Ordering::SeqCst);
        let mut failures = self.failures.lock().unwrap();
        if failures.len() < 10 {
            failures.push(what);
        }
    }

    fn judge(
        &self,
        kind: &str,
        floor: u64,
        sent: Instant,
        answer: &std::io::Result<Response>,
        times: &mut Vec<Duration>,
    ) {
        match answer {
            Err(e) => self.fail(format!("{kind}: {e}")),
            Ok(r) if r.status != 200 => {
                self.fail(format!("{kind}: status {}: {}", r.status, r.text()))
            }
            Ok(r) => {
                if let Some(mark) = mark(&r.text()).filter(|m| *m < floor) {
                    self.fail(format!(
                        "{kind}: sent after g{floor} was committed, answered by g{mark}"
                    ));
                }
                self.answers.fetch_add(1, Ordering::SeqCst);
                times.push(sent.elapsed());
            }
        }
    }

    fn keep(&self, shape: &Shape) {
        let mut times = Vec::new();
        let get = format!(
            "GET {} HTTP/1.1\r\nhost: {}\r\n\r\n",
            shape.path, shape.host
        );
        let body = "x".repeat(shape.post);
        let post = format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n{body}",
            shape.path, shape.host, shape.post
        );
        let mut conn = None;
        let mut turn = 0u64;
        while !self.stop.load(Ordering::SeqCst) {
            turn += 1;
            let text = if shape.post > 0 && turn.is_multiple_of(2) {
                &post
            } else {
                &get
            };
            let open = match conn.as_mut() {
                Some(open) => open,
                None => match Conn::open(shape.to) {
                    Ok(open) => conn.insert(open),
                    Err(e) => {
                        self.fail(format!("keep-alive connect: {e}"));
                        break;
                    }
                },
            };
            let floor = self.floor.load(Ordering::SeqCst);
            let sent = Instant::now();
            let answer = open.exchange(text);
            self.judge("keep-alive", floor, sent, &answer, &mut times);
            let closing = answer.is_ok_and(|r| match r.header("connection") {
                Some(c) if c.contains("close") => {
                    self.fail("a keep-alive connection was told to close".to_owned());
                    false
                }
                _ => true,
            });
            if !closing {
                conn = None;
            }
            std::thread::sleep(shape.pace);
        }
        self.times.lock().unwrap().append(&mut times);
    }

    /// One of `of` threads that together open `shape.fresh` connections a second.
    fn renew(&self, shape: &Shape, index: u8, of: u8) {
        let mut times = Vec::new();
        let text = format!(
            "GET {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            shape.path, shape.host
        );
        let gap = Duration::from_secs_f64(f64::from(of) / shape.fresh as f64);
        let start = Instant::now();
        let mut turn = 0u32;
        while !self.stop.load(Ordering::SeqCst) {
            // Source addresses of the loopback net: more ports than one address has.
            let from = IpAddr::V4(Ipv4Addr::new(127, 0, 1 + index, 1 + (turn % 200) as u8));
            turn += 1;
            let floor = self.floor.load(Ordering::SeqCst);
            let sent = Instant::now();
            let answer = Conn::open_from(from, shape.to).and_then(|mut c| c.exchange(&text));
            self.judge("new connection", floor, sent, &answer, &mut times);
            self.fresh.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep((gap * turn).saturating_sub(start.elapsed()));
        }
        self.times.lock().unwrap().append(&mut times);
    }
}

impl Load {
    /// Starts, and waits for the first answers.
    pub(crate) fn start(shape: Shape) -> Load {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for _ in 0..shape.kept {
            let (shared, shape) = (shared.clone(), shape.clone());
            threads.push(std::thread::spawn(move || shared.keep(&shape)));
        }
        let renewers = if shape.fresh == 0 { 0 } else { 8 };
        for index in 0..renewers {
            let (shared, shape) = (shared.clone(), shape.clone());
            threads.push(std::thread::spawn(move || {
                shared.renew(&shape, index, renewers)
            }));
        }
        let load = Load {
            shared,
            threads,
            started: Instant::now(),
        };
        load.wait_more(shape.kept as u64 + u64::from(renewers));
        load
    }

    /// Waits until `n` more answers have come.
    pub(crate) fn wait_more(&self, n: u64) {
        let before = self.shared.answers.load(Ordering::SeqCst);
        until("the load to go on", || {
            let failed = self.shared.failed.load(Ordering::SeqCst);
            (self.shared.answers.load(Ordering::SeqCst) >= before + n || failed > 0).then_some(())
        });
    }

    /// From now on sent requests must be answered by this mark or a later one.
    pub(crate) fn raise_floor(&self, mark: u64) {
        self.shared.floor.store(mark, Ordering::SeqCst);
    }

    /// Stops, and asserts that nothing failed.
    pub(crate) fn finish(mut self) -> Report {
        self.shared.stop.store(true, Ordering::SeqCst);
        let took = self.started.elapsed();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let failed = self.shared.failed.load(Ordering::SeqCst);
        let answers = self.shared.answers.load(Ordering::SeqCst);
        let failures = self.shared.failures.lock().unwrap();
        assert_eq!(
            failed, 0,
            "{failed} failed beside {answers} good answers; the first: {failures:#?}"
        );
        let times = std::mem::take(&mut *self.shared.times.lock().unwrap());
        Report {
            answers,
            fresh: self.shared.fresh.load(Ordering::SeqCst),
            took,
            times,
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}
