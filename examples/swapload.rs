//! The client of `scripts/bench --swaps`: steady HTTP/1 load whose every failure has a name.
//!
//! ```text
//! swapload 127.0.0.1:8080 --host h77.bench.test --path / --kept 32 --fresh 100 --rate 20000 --seconds 6
//! ```
//!
//! Runs on one thread. `--kept` clients keep their connection and send `--rate` requests a second together (0: as many as
//! go), and `--fresh` new connections a second ask once each. An answer must be 200 with a `Content-Length` and the body `g`, the
//! number of the configuration, and a space and 'y' to `--size` bytes. A time counts from when the request was due, where
//! its client still waited for the answer before: a stall is seen in full. It prints one line, as `wsload` does, with
//! `failures` by kind beside.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

#[path = "common/outcome.rs"]
mod outcome;

use outcome::Outcome;

/// Longest answer, in bytes.
const MOST: usize = 1024 * 1024;
/// An answer that has not come by then does not count as one.
const WAIT: Duration = Duration::from_secs(10);
/// New connections that may be under way together.
const UNDER_WAY: usize = 1024;

const USAGE: &str = "usage: swapload ADDRESS [--host NAME] [--path PATH] [--kept N] [--fresh PER-SECOND] [--rate PER-SECOND] \
                     [--size BYTES] [--late MILLISECONDS] [--seconds N]";

/// What can go wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No connection.
    Refused,
    /// The connection was reset, or written to when it was gone.
    Reset,
    /// It was closed before any byte of an answer.
    Closed,
    /// It was closed within an answer.
    Truncated,
    /// Another status than 200, or no HTTP.
    Status,
    /// Another body than was to come.
    Body,
    /// The answer of an older configuration than the one before on this connection.
    Old,
    /// After more than `--late`, or not at all.
    Late,
}

const KINDS: [(Kind, &str); 8] = [
    (Kind::Refused, "refused"),
    (Kind::Reset, "reset"),
    (Kind::Closed, "closed"),
    (Kind::Truncated, "truncated"),
    (Kind::Status, "status"),
    (Kind::Body, "body"),
    (Kind::Old, "old"),
    (Kind::Late, "late"),
];

type Failure = (Kind, String);

#[derive(Debug, Clone)]
struct Plan {
    server: SocketAddr,
    host: String,
    path: String,
    kept: usize,
    fresh: u64,
    rate: u64,
    size: usize,
    late: Duration,
    time: Duration,
}

impl Plan {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut plan = Self {
            server: arguments.next().ok_or(USAGE)?.parse()?,
            host: "bench.test".to_owned(),
            path: "/".to_owned(),
            kept: 32,
            fresh: 0,
            rate: 0,
            size: 100,
            late: Duration::from_secs(1),
            time: Duration::from_secs(6),
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or(USAGE)?;
            match name.as_str() {
                "--host" => plan.host = value,
                "--path" => plan.path = value,
                "--kept" => plan.kept = value.parse()?,
                "--fresh" => plan.fresh = value.parse()?,
                "--rate" => plan.rate = value.parse()?,
                "--size" => plan.size = value.parse()?,
                "--late" => plan.late = Duration::from_millis(value.parse()?),
                "--seconds" => plan.time = Duration::try_from_secs_f64(value.parse()?)?,
                _ => return Err(USAGE.into()),
            }
        }
        Ok(plan)
    }

    fn request(&self, more: &str) -> Vec<u8> {
        format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\n{more}\r\n",
            self.path, self.host
        )
        .into_bytes()
    }
}

/// What came of the requests of one or all.
#[derive(Default)]
struct Seen {
    outcome: Outcome,
    failures: [u64; KINDS.len()],
    bytes: u64,
    /// Connections that their server announced to close, and did.
    announced: u64,
}

impl Seen {
    fn failed(&mut self, (kind, what): Failure) {
        for (count, (of, name)) in self.failures.iter_mut().zip(KINDS) {
            if of == kind {
                *count += 1;
                self.outcome.failed(format!("{name}: {what}"));
            }
        }
    }

    /// An answer came; late ones are failures and have a time all the same.
    fn answered(&mut self, plan: &Plan, since: Instant) {
        let took = since.elapsed();
        self.outcome.times.add(took);
        self.bytes += plan.size as u64;
        if took > plan.late {
            self.failed((Kind::Late, format!("after {took:?}")));
        }
    }

    fn add(&mut self, other: Self) {
        self.outcome.add(other.outcome);
        self.bytes += other.bytes;
        self.announced += other.announced;
        for (sum, count) in self.failures.iter_mut().zip(other.failures) {
            *sum += count;
        }
    }

    fn json(&self, time: Duration) -> String {
        let kinds: Vec<String> = KINDS
            .iter()
            .zip(self.failures)
            .map(|((_, name), count)| format!("\"{name}\":{count}"))
            .collect();
        let whole = self.outcome.json(time, self.bytes);
        format!(
            "{},\"announced\":{},\"failures\":{{{}}}}}",
            whole.trim_end_matches('}'),
            self.announced,
            kinds.join(",")
        )
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let plan = Plan::parse(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(load(plan));
    Ok(())
}

async fn load(plan: Plan) {
    let start = Instant::now();
    let end = start + plan.time;
    let mut clients = JoinSet::new();
    for number in 0..plan.kept {
        clients.spawn(keep(plan.clone(), number, start, end));
    }
    if plan.fresh > 0 {
        clients.spawn(renew(plan.clone(), start, end));
    }
    let mut all = Seen::default();
    while let Some(done) = clients.join_next().await {
        match done {
            Ok(seen) => all.add(seen),
            Err(error) => all.failed((Kind::Late, error.to_string())),
        }
    }
    println!("JSON {}", all.json(start.elapsed()));
}

/// A client that keeps its connection.
async fn keep(plan: Plan, number: usize, start: Instant, end: Instant) -> Seen {
    let request = plan.request("");
    let every = match plan.rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64(plan.kept as f64 / rate as f64),
    };
    // Not all at once.
    let mut due = start + every.mul_f64(number as f64 / plan.kept as f64);
    let (mut seen, mut open, mut buffer) = (Seen::default(), None, Vec::new());
    while Instant::now() < end {
        if Instant::now() < due {
            sleep_until(due.into()).await;
        }
        // The timer's own lateness is not the server's.
        let behind = Instant::now() - due > every;
        let since = if plan.rate > 0 && behind {
            due
        } else {
            Instant::now()
        };
        due += every;
        let (mut stream, newest) = match open.take() {
            Some(kept) => kept,
            None => match connect(&plan).await {
                Ok(stream) => (stream, 0),
                Err(failure) => {
                    seen.failed(failure);
                    // Nothing listens: a loop without a wait would only count that.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
            },
        };
        match ask(&plan, &mut stream, &request, &mut buffer).await {
            Ok((mark, _)) if mark < newest => {
                seen.failed((Kind::Old, format!("g{mark} after g{newest}")));
            }
            Ok((mark, more)) => {
                seen.answered(&plan, since);
                if more {
                    open = Some((stream, mark));
                } else {
                    seen.announced += 1;
                }
            }
            Err(failure) => seen.failed(failure),
        }
    }
    seen
}

/// A new connection for each request, so many a second.
async fn renew(plan: Plan, start: Instant, end: Instant) -> Seen {
    let every = Duration::from_secs_f64(1.0 / plan.fresh as f64);
    let (mut seen, mut due, mut under_way) = (Seen::default(), start, JoinSet::new());
    while due < end {
        sleep_until(due.into()).await;
        due += every;
        while let Some(done) = under_way.try_join_next() {
            match done {
                Ok(one) => seen.add(one),
                Err(error) => seen.failed((Kind::Late, error.to_string())),
            }
        }
        if under_way.len() >= UNDER_WAY {
            seen.failed((Kind::Late, format!("{UNDER_WAY} connections under way")));
            continue;
        }
        let plan = plan.clone();
        under_way.spawn(async move {
            let (mut seen, since) = (Seen::default(), Instant::now());
            let request = plan.request("Connection: close\r\n");
            let answer = async {
                let mut stream = connect(&plan).await?;
                ask(&plan, &mut stream, &request, &mut Vec::new()).await
            };
            match answer.await {
                Ok(_) => seen.answered(&plan, since),
                Err(failure) => seen.failed(failure),
            }
            seen
        });
    }
    for one in under_way.join_all().await {
        seen.add(one);
    }
    seen
}

async fn connect(plan: &Plan) -> Result<TcpStream, Failure> {
    match timeout(WAIT, TcpStream::connect(plan.server)).await {
        Ok(Ok(stream)) => {
            // Not essential: requests are written at once.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err((Kind::Refused, error.to_string())),
        Err(_) => Err((Kind::Late, "no connection".to_owned())),
    }
}

/// One exchange: the number in the answer, and whether the connection goes on.
async fn ask(
    plan: &Plan,
    stream: &mut TcpStream,
    request: &[u8],
    buffer: &mut Vec<u8>,
) -> Result<(u64, bool), Failure> {
    let whole = async {
        stream.write_all(request).await.map_err(|e| broken(&e, 0))?;
        buffer.clear();
        loop {
            if let Some(answer) = read(plan, buffer)? {
                return Ok(answer);
            }
            match stream.read_buf(buffer).await {
                Ok(0) if buffer.is_empty() => {
                    return Err((Kind::Closed, "no answer".to_owned()));
                }
                Ok(0) => {
                    return Err((Kind::Truncated, format!("after {} bytes", buffer.len())));
                }
                Ok(_) if buffer.len() > MOST => {
                    return Err((Kind::Body, "it is too long".to_owned()));
                }
                Ok(_) => {}
                Err(error) => return Err(broken(&error, buffer.len())),
            }
        }
    };
    timeout(WAIT, whole)
        .await
        .unwrap_or_else(|_| Err((Kind::Late, format!("no answer in {WAIT:?}"))))
}

fn broken(error: &io::Error, read: usize) -> Failure {
    match read {
        0 => (Kind::Reset, error.to_string()),
        _ => (Kind::Truncated, format!("{error} after {read} bytes")),
    }
}

/// The answer in `bytes`; `None`: not whole yet.
fn read(plan: &Plan, bytes: &[u8]) -> Result<Option<(u64, bool)>, Failure> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200 ") {
        let line = head.lines().next().unwrap_or_default();
        return Err((Kind::Status, line.to_owned()));
    }
    let field = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let length = field("content-length").and_then(|text| text.parse::<usize>().ok());
    if length != Some(plan.size) {
        return Err((Kind::Body, format!("{length:?} bytes are announced")));
    }
    let body = &bytes[end + 4..];
    if body.len() < plan.size {
        return Ok(None);
    }
    match mark(body, plan.size) {
        Some(mark) => Ok(Some((mark, field("connection") != Some("close")))),
        None => {
            let text = String::from_utf8_lossy(&body[..body.len().min(40)]);
            Err((Kind::Body, format!("{} bytes, {text}", body.len())))
        }
    }
}

/// The number in a body that is as it must be.
fn mark(body: &[u8], size: usize) -> Option<u64> {
    let text = std::str::from_utf8(body).ok()?;
    let (number, rest) = text.strip_prefix('g')?.split_once(' ')?;
    let right = body.len() == size && rest.bytes().all(|b| b == b'y');
    right.then(|| number.parse().ok())?
}
