//! The layer 4 side of `scripts/bench`: an origin that sends what it is asked for, and a client that counts it, over TCP
//! (also through CONNECT and SOCKS5) and UDP.
//!
//! ```text
//! streamload origin 127.0.0.1:9000
//! streamload load 127.0.0.1:1080 --through socks5 --origin 127.0.0.1:9000 --size 16777216 --connections 4 --seconds 6
//! ```
//!
//! A request is eight bytes, the number of bytes to answer with; over UDP it is the datagram itself, which comes back. Both
//! run on one thread. `load` keeps one request in flight on each connection; `--fresh` makes a new one for each. Over
//! UDP each socket keeps `--window` datagrams in flight and counts those that do not come back. It prints one line, as
//! `wsload` does.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

#[path = "common/outcome.rs"]
mod outcome;

use outcome::Outcome;

/// Written and read at a time.
const CHUNK: usize = 256 * 1024;
/// How long a handshake may take, and an answer after the end of the measurement.
const WAIT: Duration = Duration::from_secs(10);
/// A datagram that has not come back by then is lost.
const LOST: Duration = Duration::from_millis(500);
const DATAGRAM: usize = 65_536;

const USAGE: &str = "usage: streamload origin ADDRESS | streamload load ADDRESS [--through tcp|connect|socks5|udp] \
                     [--origin ADDRESS] [--size BYTES] [--connections N] [--seconds N] [--fresh yes] [--window N]";

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
        "origin" => runtime.block_on(origin(address)),
        "load" => runtime.block_on(load(Plan::parse(address, arguments)?)),
        _ => Err(USAGE.into()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    Tcp,
    Connect,
    Socks5,
    Udp,
}

/// What `load` does.
#[derive(Debug, Clone, Copy)]
struct Plan {
    server: SocketAddr,
    through: Through,
    /// What a forward proxy is asked for.
    origin: SocketAddr,
    size: usize,
    connections: usize,
    time: Duration,
    fresh: bool,
    window: usize,
}

impl Plan {
    fn parse(
        server: SocketAddr,
        mut arguments: impl Iterator<Item = String>,
    ) -> Result<Self, Box<dyn Error>> {
        let mut plan = Self {
            server,
            through: Through::Tcp,
            origin: server,
            size: 100,
            connections: 16,
            time: Duration::from_secs(6),
            fresh: false,
            window: 4,
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or(USAGE)?;
            match name.as_str() {
                "--through" => {
                    plan.through = match value.as_str() {
                        "tcp" => Through::Tcp,
                        "connect" => Through::Connect,
                        "socks5" => Through::Socks5,
                        "udp" => Through::Udp,
                        _ => return Err(USAGE.into()),
                    };
                }
                "--origin" => plan.origin = value.parse()?,
                "--size" => plan.size = value.parse()?,
                "--connections" => plan.connections = value.parse()?,
                "--seconds" => plan.time = Duration::try_from_secs_f64(value.parse()?)?,
                "--fresh" => plan.fresh = value == "yes",
                "--window" => plan.window = value.parse()?,
                _ => return Err(USAGE.into()),
            }
        }
        if plan.connections == 0 || plan.window == 0 {
            return Err("at least one connection, and one datagram in flight".into());
        }
        if plan.through == Through::Udp && !(8..=65_000).contains(&plan.size) {
            return Err("a datagram has 8 to 65000 bytes".into());
        }
        Ok(plan)
    }
}

/// Answers whoever asks, until the process is ended.
async fn origin(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(address).await?;
    let datagrams = UdpSocket::bind(address).await?;
    tokio::spawn(async move {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            // An error is an earlier datagram's, whose sender is gone.
            if let Ok((size, from)) = datagrams.recv_from(&mut buffer).await {
                let _ = datagrams.send_to(&buffer[..size], from).await;
            }
        }
    });
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A connection that breaks is the client's to count.
            let _ = answer(stream).await;
        });
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let chunk = vec![b'x'; CHUNK];
    loop {
        let mut left = stream.read_u64().await?;
        while left > 0 {
            let size = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            stream.write_all(&chunk[..size]).await?;
            left -= size as u64;
        }
    }
}

async fn load(plan: Plan) -> Result<(), Box<dyn Error>> {
    let mut outcome = Outcome::default();
    let mut open = Vec::with_capacity(plan.connections);
    if !plan.fresh && plan.through != Through::Udp {
        // All are open before the first request goes out: the handshakes are no part of what is timed.
        for _ in 0..plan.connections {
            match tokio::time::timeout(WAIT, connect(plan)).await {
                Ok(Ok(stream)) => open.push(Some(stream)),
                Ok(Err(error)) => outcome.failed(format!("handshake: {error}")),
                Err(_) => outcome.failed("handshake: too late".to_owned()),
            }
        }
    } else {
        open.resize_with(plan.connections, || None);
    }
    let begun = Instant::now();
    let talks: Vec<_> = open
        .into_iter()
        .map(|stream| tokio::spawn(talk(plan, stream, begun + plan.time)))
        .collect();
    let mut bytes = 0;
    for talk in talks {
        let (more, came) = talk.await?;
        outcome.add(more);
        bytes += came;
    }
    println!("JSON {}", outcome.json(begun.elapsed(), bytes));
    Ok(())
}

/// A connection to the origin, through what there is to go through.
async fn connect(plan: Plan) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // Millions of connections to one address would otherwise use up its ports; who asks ends first with a reset.
    socket.set_zero_linger()?;
    let mut stream = socket.connect(plan.server).await?;
    stream.set_nodelay(true)?;
    match plan.through {
        Through::Tcp | Through::Udp => {}
        Through::Connect => {
            let origin = plan.origin;
            let request = format!("CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            if !head.starts_with(b"HTTP/1.1 200") && !head.starts_with(b"HTTP/1.0 200") {
                return Err(io::Error::other("CONNECT was refused"));
            }
        }
        Through::Socks5 => {
            stream.write_all(&[5, 1, 0]).await?;
            let mut method = [0; 2];
            stream.read_exact(&mut method).await?;
            let SocketAddr::V4(origin) = plan.origin else {
                return Err(io::Error::other("an IPv4 origin is asked for"));
            };
            let mut request = vec![5, 1, 0, 1];
            request.extend(origin.ip().octets());
            request.extend(origin.port().to_be_bytes());
            stream.write_all(&request).await?;
            let mut reply = [0; 10];
            stream.read_exact(&mut reply).await?;
            if method != [5, 0] || reply[1] != 0 {
                return Err(io::Error::other("SOCKS5 was refused"));
            }
        }
    }
    Ok(stream)
}

/// One request after the other until `end`. Returns the bytes that came, too.
async fn talk(plan: Plan, stream: Option<TcpStream>, end: Instant) -> (Outcome, u64) {
    let (mut outcome, mut bytes) = (Outcome::default(), 0);
    let requests = async {
        match (plan.through, stream) {
            (Through::Udp, _) => datagrams(plan, end, &mut outcome, &mut bytes).await,
            (_, Some(mut stream)) => {
                let mut buffer = vec![0; CHUNK.min(plan.size.max(1))];
                while Instant::now() < end {
                    ask(&mut stream, plan, &mut buffer, &mut outcome, &mut bytes).await?;
                }
                Ok(())
            }
            (_, None) => {
                let mut buffer = vec![0; CHUNK.min(plan.size.max(1))];
                while Instant::now() < end {
                    let mut stream = connect(plan).await?;
                    ask(&mut stream, plan, &mut buffer, &mut outcome, &mut bytes).await?;
                }
                Ok(())
            }
        }
    };
    match tokio::time::timeout_at((end + WAIT).into(), requests).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => outcome.failed(error.to_string()),
        Err(_) => outcome.failed("an answer did not come".to_owned()),
    }
    (outcome, bytes)
}

async fn ask(
    stream: &mut TcpStream,
    plan: Plan,
    buffer: &mut [u8],
    outcome: &mut Outcome,
    bytes: &mut u64,
) -> io::Result<()> {
    let sent = Instant::now();
    stream.write_u64(plan.size as u64).await?;
    let mut left = plan.size;
    while left > 0 {
        let most = left.min(buffer.len());
        let size = stream.read(&mut buffer[..most]).await?;
        if size == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= size;
        *bytes += size as u64;
    }
    outcome.times.add(sent.elapsed());
    Ok(())
}

/// Datagrams of one socket, which carry their number.
async fn datagrams(
    plan: Plan,
    end: Instant,
    outcome: &mut Outcome,
    bytes: &mut u64,
) -> io::Result<()> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await?;
    socket.connect(plan.server).await?;
    let mut message = vec![b'x'; plan.size];
    let mut buffer = vec![0; DATAGRAM];
    let mut next: u64 = 0;
    while Instant::now() < end {
        let begun = Instant::now();
        let first = next;
        for _ in 0..plan.window {
            message[..8].copy_from_slice(&next.to_be_bytes());
            socket.send(&message).await?;
            next += 1;
        }
        let mut missing = plan.window;
        while missing > 0 {
            let Ok(got) = tokio::time::timeout(LOST, socket.recv(&mut buffer)).await else {
                for _ in 0..missing {
                    outcome.failed("a datagram did not come back".to_owned());
                }
                break;
            };
            let size = got?;
            let number = buffer[..size].first_chunk().map(|n| u64::from_be_bytes(*n));
            // One that was given up for lost may come late.
            if size == plan.size && number.is_some_and(|n| (first..next).contains(&n)) {
                missing -= 1;
                *bytes += size as u64;
                outcome.times.add(begun.elapsed());
            }
        }
    }
    Ok(())
}
