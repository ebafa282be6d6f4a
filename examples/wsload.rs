//! The websocket side of `scripts/bench`: an origin that echoes, and a client that counts echoes.
//!
//! ```text
//! wsload echo 127.0.0.1:9000
//! wsload load 127.0.0.1:8080 --path /echo --connections 64 --size 100 --seconds 6
//! ```
//!
//! Both run on one thread, so that the bench can say which core they take. `load` keeps one message in flight on each
//! connection: it sends, waits for the same bytes, sends again. Only an echo that is the message to the byte counts. It
//! prints one line, `JSON {"requests": …}`, in the form the bench takes from its other load generators; times in
//! milliseconds. Anything that went wrong is counted in `errors` and the first of it is told in `note`.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

#[path = "common/outcome.rs"]
mod outcome;

use outcome::{Outcome, Times};

type Stream = BufReader<TcpStream>;

/// The nonce and its answer of RFC 6455 section 1.3. The origin takes no other: neither side then needs SHA-1.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Longest request or response head, in bytes.
const HEAD: u64 = 16 * 1024;
/// Longest message, in bytes.
const MESSAGE: usize = 1024 * 1024;
/// How long a handshake may take, and an echo after the end of the measurement.
const WAIT: Duration = Duration::from_secs(10);
const FIN_TEXT: u8 = 0x81;
const CLOSE: u8 = 0x08;
const PING: u8 = 0x09;
const PONG: u8 = 0x0a;
const MASKED: u8 = 0x80;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

const USAGE: &str = "usage: wsload echo ADDRESS | wsload load ADDRESS [--path PATH] [--connections N] [--size BYTES] \
                     [--seconds N]";

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(mode), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err(USAGE.into());
    };
    let address: SocketAddr = address.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match mode.as_str() {
        "echo" => runtime.block_on(echo(address)),
        "load" => runtime.block_on(load(address, Plan::parse(arguments)?)),
        _ => Err(USAGE.into()),
    }
}

/// What `load` does.
struct Plan {
    path: String,
    connections: usize,
    size: usize,
    time: Duration,
}

impl Plan {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut plan = Self {
            path: "/".to_owned(),
            connections: 64,
            size: 100,
            time: Duration::from_secs(6),
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or(USAGE)?;
            match name.as_str() {
                "--path" => plan.path = value,
                "--connections" => plan.connections = value.parse()?,
                "--size" => plan.size = value.parse()?,
                "--seconds" => plan.time = Duration::try_from_secs_f64(value.parse()?)?,
                _ => return Err(USAGE.into()),
            }
        }
        if plan.connections == 0 || plan.size > MESSAGE {
            return Err(
                format!("at least one connection, at most {MESSAGE} bytes a message").into(),
            );
        }
        Ok(plan)
    }
}

/// Echoes whatever comes, until the process is ended.
async fn echo(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A connection that breaks is the client's to count.
            let _ = serve(stream).await;
        });
    }
}

async fn serve(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let head = read_head(&mut stream).await?;
    if field(&head, "sec-websocket-key") != Some(KEY) {
        let answer = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        return stream.get_mut().write_all(answer.as_bytes()).await;
    }
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {ACCEPT}\r\n\r\n"
    );
    stream.get_mut().write_all(answer.as_bytes()).await?;
    let mut payload = Vec::new();
    let mut out = Vec::new();
    loop {
        let first = read_frame(&mut stream, &mut payload).await?;
        let first = if first & 0x0f == PING {
            (first & 0xf0) | PONG
        } else {
            first
        };
        out.clear();
        put_frame(&mut out, first, None, &payload);
        stream.get_mut().write_all(&out).await?;
        if first & 0x0f == CLOSE {
            return Ok(());
        }
    }
}

/// Reads one frame, its payload unmasked into `payload`; returns its first byte.
async fn read_frame(stream: &mut Stream, payload: &mut Vec<u8>) -> io::Result<u8> {
    let mut start = [0; 2];
    stream.read_exact(&mut start).await?;
    let length = match start[1] & !MASKED {
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MESSAGE {
        return Err(io::Error::other("a message is too long"));
    }
    let mut mask = [0; 4];
    if start[1] & MASKED != 0 {
        stream.read_exact(&mut mask).await?;
    }
    payload.resize(length, 0);
    stream.read_exact(payload).await?;
    apply(mask, payload);
    Ok(start[0])
}

/// Appends a frame.
fn put_frame(out: &mut Vec<u8>, first: u8, mask: Option<[u8; 4]>, payload: &[u8]) {
    let bit = if mask.is_some() { MASKED } else { 0 };
    out.push(first);
    match payload.len() {
        short @ 0..126 => out.push(bit | short as u8),
        medium @ 126..=0xffff => {
            out.push(bit | 126);
            out.extend((medium as u16).to_be_bytes());
        }
        long => {
            out.push(bit | 127);
            out.extend((long as u64).to_be_bytes());
        }
    }
    out.extend(mask.iter().flatten());
    let at = out.len();
    out.extend(payload);
    apply(mask.unwrap_or_default(), &mut out[at..]);
}

/// Masks or unmasks (RFC 6455 section 5.3).
fn apply(mask: [u8; 4], payload: &mut [u8]) {
    if mask == [0; 4] {
        return;
    }
    for (byte, mask) in payload.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

async fn load(address: SocketAddr, plan: Plan) -> Result<(), Box<dyn Error>> {
    let message: Vec<u8> = (0..plan.size).map(|n| b'a' + (n % 26) as u8).collect();
    let mut frame = Vec::new();
    put_frame(&mut frame, FIN_TEXT, Some(MASK), &message);
    let mut wanted = Vec::new();
    put_frame(&mut wanted, FIN_TEXT, None, &message);
    let (frame, wanted): (Arc<[u8]>, Arc<[u8]>) = (frame.into(), wanted.into());

    let mut outcome = Outcome::default();
    // All are open before the first message goes out: the handshakes are no part of what is timed.
    let mut open = Vec::with_capacity(plan.connections);
    for _ in 0..plan.connections {
        match tokio::time::timeout(WAIT, connect(address, &plan.path)).await {
            Ok(Ok(stream)) => open.push(stream),
            Ok(Err(error)) => outcome.failed(format!("handshake: {error}")),
            Err(_) => outcome.failed("handshake: too late".to_owned()),
        }
    }
    let begun = Instant::now();
    let end = begun + plan.time;
    let talks: Vec<_> = open
        .into_iter()
        .map(|stream| tokio::spawn(talk(stream, Arc::clone(&frame), Arc::clone(&wanted), end)))
        .collect();
    for talk in talks {
        outcome.add(talk.await?);
    }
    let bytes = outcome.requests() * wanted.len() as u64;
    println!("JSON {}", outcome.json(begun.elapsed(), bytes));
    Ok(())
}

/// Opens a websocket.
async fn connect(address: SocketAddr, path: &str) -> io::Result<Stream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\n"
    );
    stream.get_mut().write_all(request.as_bytes()).await?;
    let head = read_head(&mut stream).await?;
    if !head.starts_with("HTTP/1.1 101 ") || field(&head, "sec-websocket-accept") != Some(ACCEPT) {
        let line = head.lines().next().unwrap_or_default();
        return Err(io::Error::other(format!("no websocket: {line}")));
    }
    Ok(stream)
}

/// One message after the other until `end`.
async fn talk(mut stream: Stream, frame: Arc<[u8]>, wanted: Arc<[u8]>, end: Instant) -> Outcome {
    let mut outcome = Outcome::default();
    let messages = exchange(&mut stream, &frame, &wanted, end, &mut outcome.times);
    // One timer for the whole talk, not one for each message.
    let result = tokio::time::timeout_at((end + WAIT).into(), messages).await;
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => outcome.failed(error.to_string()),
        Err(_) => outcome.failed("an echo did not come".to_owned()),
    }
    outcome
}

async fn exchange(
    stream: &mut Stream,
    frame: &[u8],
    wanted: &[u8],
    end: Instant,
    times: &mut Times,
) -> io::Result<()> {
    let mut got = vec![0; wanted.len()];
    let mut sent = Instant::now();
    while sent < end {
        stream.get_mut().write_all(frame).await?;
        stream.read_exact(&mut got).await?;
        if got != wanted {
            return Err(io::Error::other("an echo is not what was sent"));
        }
        let now = Instant::now();
        times.add(now - sent);
        sent = now;
    }
    Ok(())
}

/// Reads up to the empty line that ends a request or response head.
async fn read_head<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<String> {
    let mut reader = reader.take(HEAD);
    let mut head = String::new();
    loop {
        let before = head.len();
        reader.read_line(&mut head).await?;
        let line = &head[before..];
        if !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line == "\r\n" {
            return Ok(head);
        }
    }
}

/// The value of a header field.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}
