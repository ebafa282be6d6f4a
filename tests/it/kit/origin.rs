//! An origin that does what the last segment of the path says: it identifies itself, echoes, hashes, streams, and
//! misbehaves in every way a proxy must survive. A thread per connection; counts and holds let tests wait on events.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::PATIENCE;
use super::raw::{Conn, Head};

/// A running origin; its threads end with the connections.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) addr: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    name: String,
    /// Accepted connections.
    connections: AtomicU64,
    /// Request heads read.
    requests: AtomicU64,
    /// Milliseconds before each answer.
    delay: AtomicU64,
    /// What every answer's status is, but for 0.
    status: AtomicU64,
    /// Requests whose peer went away before the end.
    broken: AtomicU64,
    /// Requests that wait in `hold` or `drip`, and whether they may go on.
    holding: Mutex<Holding>,
    changed: Condvar,
    open: Mutex<Vec<TcpStream>>,
}

#[derive(Debug, Default)]
struct Holding {
    waiting: usize,
    /// The most that waited at once.
    peak: usize,
    /// So many may go on.
    passes: usize,
    open: bool,
}

/// Byte `i` of every download.
fn pattern(i: u64) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 13) as u8
}

pub(crate) fn piece_of_pattern(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(pattern).collect()
}

pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// The hash of a download of `bytes`, as hexadecimal.
pub(crate) fn pattern_hash(bytes: u64) -> String {
    let mut hash = Sha256::new();
    let mut at = 0;
    while at < bytes {
        let len = (bytes - at).min(64 * 1024) as usize;
        hash.update(piece_of_pattern(at, len));
        at += len as u64;
    }
    hex(&hash.finalize())
}

impl Origin {
    pub(crate) fn start(name: &str) -> Origin {
        Origin::on(name, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    pub(crate) fn on(name: &str, addr: SocketAddr) -> Origin {
        let listener = TcpListener::bind(addr).unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State {
            name: name.to_owned(),
            ..State::default()
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = shared.clone();
                state.connections.fetch_add(1, Ordering::SeqCst);
                if let Ok(copy) = stream.try_clone() {
                    state.open.lock().unwrap().push(copy);
                }
                std::thread::spawn(move || state.serve(stream));
            }
        });
        Origin { addr, state }
    }

    pub(crate) fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn broken(&self) -> u64 {
        self.state.broken.load(Ordering::SeqCst)
    }

    /// From now on every answer takes so long.
    pub(crate) fn slow_down(&self, by: Duration) {
        let millis = by.as_millis() as u64;
        self.state.delay.store(millis, Ordering::SeqCst);
    }

    /// From now on every answer has this status.
    pub(crate) fn say(&self, status: u64) {
        self.state.status.store(status, Ordering::SeqCst);
    }

    /// Closes every connection that is open now, as an origin does with idle ones.
    pub(crate) fn close_all(&self) {
        for stream in self.state.open.lock().unwrap().drain(..) {
            // Fails when the peer has closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Waits until at least `n` requests wait in `hold` or `drip`.
    pub(crate) fn wait_holding(&self, n: usize) {
        let holding = self.state.holding.lock().unwrap();
        let (holding, _) = self
            .state
            .changed
            .wait_timeout_while(holding, PATIENCE, |h| h.waiting < n)
            .unwrap();
        assert!(
            holding.waiting >= n,
            "only {} of {n} requests arrived at the origin",
            holding.waiting
        );
    }

    /// The most requests that waited in `hold` or were in `nap` at once.
    pub(crate) fn peak(&self) -> usize {
        self.state.holding.lock().unwrap().peak
    }

    /// Lets one go on that waits in `hold`, or will.
    pub(crate) fn release_one(&self) {
        self.state.holding.lock().unwrap().passes += 1;
        self.state.changed.notify_all();
    }

    /// Lets all go on, now and later.
    pub(crate) fn release_all(&self) {
        self.state.holding.lock().unwrap().open = true;
        self.state.changed.notify_all();
    }
}

impl State {
    fn serve(&self, stream: TcpStream) {
        let Ok(mut conn) = Conn::over(stream) else {
            return;
        };
        if conn.stream.set_read_timeout(None).is_err() {
            return;
        }
        while let Ok(Some(head)) = conn.head() {
            self.requests.fetch_add(1, Ordering::SeqCst);
            match self.answer(&mut conn, &head) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => {
                    self.broken.fetch_add(1, Ordering::SeqCst);
                    break;
                }
            }
        }
        // Fails when the peer has closed it already.
        let _ = conn.stream.shutdown(Shutdown::Both);
    }

    fn wait(&self) {
        let mut holding = self.holding.lock().unwrap();
        holding.waiting += 1;
        holding.peak = holding.peak.max(holding.waiting);
        self.changed.notify_all();
        let (mut holding, _) = self
            .changed
            .wait_timeout_while(holding, PATIENCE, |h| !h.open && h.passes == 0)
            .unwrap();
        holding.passes = holding.passes.saturating_sub(1);
        holding.waiting -= 1;
    }

    /// As long as a small piece of work.
    fn nap(&self) {
        let count = |by: isize| {
            let mut holding = self.holding.lock().unwrap();
            holding.waiting = holding.waiting.saturating_add_signed(by);
            holding.peak = holding.peak.max(holding.waiting);
        };
        count(1);
        std::thread::sleep(Duration::from_millis(3));
        count(-1);
    }

    /// Answers one request; true to keep the connection.
    fn answer(&self, conn: &mut Conn, head: &Head) -> io::Result<bool> {
        let mut line = head.line.split(' ');
        let method = line.next().unwrap_or_default().to_owned();
        let target = line.next().unwrap_or_default().to_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let number = |key: &str| -> Option<u64> {
            query
                .split('&')
                .find_map(|p| p.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
        };
        let verb = path.rsplit('/').next().unwrap_or_default();
        let delay = self.delay.load(Ordering::SeqCst);
        if delay > 0 {
            std::thread::sleep(Duration::from_millis(delay));
        }

        // Those that answer before, or without, reading the body.
        match verb {
            "early" => {
                conn.send(
                    "HTTP/1.1 403 Forbidden\r\ncontent-length: 5\r\nconnection: close\r\n\r\nearly",
                )?;
                conn.stream.shutdown(Shutdown::Write)?;
                while !conn.some(1 << 16)?.is_empty() {}
                return Ok(false);
            }
            "refuse-continue" => {
                conn.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")?;
                return Ok(false);
            }
            "socket" => {
                // For the key of RFC 6455 section 1.3.
                let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
                conn.send(format!("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {accept}\r\nx-origin: {}\r\n\r\n", self.name))?;
                while !conn.some(1 << 16)?.is_empty() {}
                return Ok(false);
            }
            "hang" => {
                while !conn.some(1 << 16)?.is_empty() {}
                return Err(io::Error::other("the peer went away"));
            }
            _ => {}
        }
        if head.get("expect").is_some() {
            conn.send("HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = Vec::new();
        let mut hash = Sha256::new();
        let chunked = head.is_chunked();
        let length = head.length().unwrap_or(0);
        let trailers = conn.body(chunked, Some(length), |piece| match verb {
            "hash" => hash.update(piece),
            _ => body.extend_from_slice(piece),
        })?;

        let id = format!("{} {target}", self.name);
        match verb {
            "head" => self.plain(conn, &method, "", head.text.as_bytes())?,
            "echo" => {
                let trailers: Vec<String> = trailers.iter().map(|(n, v)| format!("{n}={v}")).collect();
                let extra = format!("x-method: {method}\r\nx-request-trailers: {}\r\n", trailers.join(";"));
                self.plain(conn, &method, &extra, &body)?;
            }
            "hash" => self.plain(conn, &method, "", hex(&hash.finalize()).as_bytes())?,
            "download" => download(conn, number("bytes").unwrap_or(1 << 20), number("rate"))?,
            "chunked" => conn.send(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                 6\r\nhello \r\n5\r\nworld\r\n0\r\nx-sum: 42\r\n\r\n",
            )?,
            "drip" => {
                conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nfirst \r\n")?;
                self.wait();
                conn.send("6\r\nsecond\r\n0\r\n\r\n")?;
            }
            "nap" => {
                self.nap();
                self.plain(conn, &method, "", id.as_bytes())?;
            }
            "hold" => {
                self.wait();
                self.plain(conn, &method, "", id.as_bytes())?;
            }
            "hints" => {
                conn.send("HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n")?;
                self.plain(conn, &method, "", id.as_bytes())?;
            }
            "status" => {
                let code = number("code").unwrap_or(200);
                let body = if matches!(code, 204 | 304) { "" } else { "content-length: 6\r\n\r\nstatus" };
                let end = if body.is_empty() { "\r\n" } else { "" };
                conn.send(format!("HTTP/1.1 {code} Some Reason\r\netag: \"x\"\r\n{body}{end}"))?;
            }
            "infinite" => {
                conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
                loop {
                    conn.send(&chunk)?;
                }
            }
            "fields" => self.plain(
                conn,
                &method,
                "connection: x-hop, keep-alive\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nproxy-authenticate: Basic\r\n\
                 x-end: 1\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n",
                id.as_bytes(),
            )?,
            "powered" => self.plain(conn, &method, "x-powered-by: evil/1\r\n", id.as_bytes())?,
            "twice" => {
                let one = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{id}", id.len());
                conn.send(format!("{one}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen"))?;
            }
            "drop" => {
                self.plain(conn, &method, "", id.as_bytes())?;
                return Ok(false);
            }
            "last" => {
                self.plain(conn, &method, "connection: close\r\n", id.as_bytes())?;
                return Ok(false);
            }
            "to-the-end" => {
                conn.send(format!("HTTP/1.1 200 OK\r\n\r\n{id}"))?;
                return Ok(false);
            }
            "cut" => {
                conn.send("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nonly these")?;
                return Ok(false);
            }
            "cut-chunk" => {
                conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n64\r\nonly these")?;
                return Ok(false);
            }
            "garbage" => {
                conn.send("this is not HTTP at all\r\n\r\n")?;
                return Ok(false);
            }
            "empty" => return Ok(false),
            "unasked-101" => {
                conn.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")?;
                return Ok(false);
            }
            "both-lengths" => {
                conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n5\r\nhello\r\n0\r\n\r\n")?;
                return Ok(false);
            }
            "other-coding" => {
                conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")?;
                return Ok(false);
            }
            "huge-head" => {
                conn.send("HTTP/1.1 200 OK\r\n")?;
                for i in 0..3000 {
                    conn.send(format!("x-{i}: {}\r\n", "y".repeat(1000)))?;
                }
                conn.send("content-length: 0\r\n\r\n")?;
            }
            _ => self.plain(conn, &method, "", id.as_bytes())?,
        }
        Ok(true)
    }

    fn plain(&self, conn: &mut Conn, method: &str, fields: &str, body: &[u8]) -> io::Result<()> {
        let status = match self.status.load(Ordering::SeqCst) {
            0 => 200,
            other => other,
        };
        let head = format!(
            "HTTP/1.1 {status} OK\r\nx-origin: {}\r\n{fields}content-length: {}\r\n\r\n",
            self.name,
            body.len()
        );
        let mut bytes = head.into_bytes();
        if method != "HEAD" {
            bytes.extend_from_slice(body);
        }
        conn.send(bytes)
    }
}

/// Sends `bytes` of the pattern, at most `rate` a second.
fn download(conn: &mut Conn, bytes: u64, rate: Option<u64>) -> io::Result<()> {
    conn.send(format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n"
    ))?;
    throttled(bytes, rate, |piece| conn.send(piece))
}

/// Hands out `bytes` of the pattern piece by piece, at most `rate` a second.
pub(crate) fn throttled(
    bytes: u64,
    rate: Option<u64>,
    mut send: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let start = Instant::now();
    let mut at = 0;
    while at < bytes {
        let len = (bytes - at).min(64 * 1024) as usize;
        send(&piece_of_pattern(at, len))?;
        at += len as u64;
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(at as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    Ok(())
}
