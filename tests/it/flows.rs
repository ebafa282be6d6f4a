//! Heavy: long flows that number what they say, both ways, over swaps of other things; and new connections to listeners
//! around which others come and go.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::kit::{Conn, Gate, PATIENCE, count, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// How long each end waits between two frames.
const PACE: Duration = Duration::from_millis(20);

/// Asks a listener for the way to an origin, on a connection that has just begun.
type Ask = fn(&mut TcpStream, SocketAddr) -> io::Result<()>;

/// The ways to an origin: a table, to be followed by `listen = …`, its other keys, and how it is asked.
const WAYS: [(&str, &str, Ask); 3] = [
    ("tcp", "upstream = \"flows\"", |_, _| Ok(())),
    ("forward", ALLOW, socks5),
    ("forward", ALLOW, connect),
];

const ALLOW: &str = "destinations.allow = \"127.0.0.0/8\"";

fn socks5(stream: &mut TcpStream, to: SocketAddr) -> io::Result<()> {
    say(stream, &[5, 1, 0], |heard| heard == [5, 0])?;
    let port = to.port().to_be_bytes();
    let request = [&[5, 1, 0, 1, 127, 0, 0, 1], &port[..]].concat();
    say(stream, &request, |heard| {
        heard.len() == 10 && heard.starts_with(&[5, 0, 0, 1])
    })
}

fn connect(stream: &mut TcpStream, to: SocketAddr) -> io::Result<()> {
    let request = format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n");
    say(stream, request.as_bytes(), |heard| {
        heard.starts_with(b"HTTP/1.1 200 ") && heard.ends_with(b"\r\n\r\n")
    })
}

/// Says a thing, and hears until it was answered; not one byte more.
fn say(stream: &mut TcpStream, what: &[u8], answered: fn(&[u8]) -> bool) -> io::Result<()> {
    stream.write_all(what)?;
    let mut heard = Vec::new();
    while !answered(&heard) {
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(|error| {
            io::Error::new(error.kind(), format!("{error}, after {heard:?} was heard"))
        })?;
        heard.extend(byte);
    }
    Ok(())
}

fn open(listen: SocketAddr, origin: SocketAddr, ask: Ask) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(listen)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    ask(&mut stream, origin)?;
    Ok(stream)
}

/// What is said in one go: who says it, the how manieth time, and how many times the other was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    flow: u64,
    number: u64,
    heard: u64,
}

impl Frame {
    const SIZE: usize = 24;

    fn bytes(self) -> [u8; Frame::SIZE] {
        let mut bytes = [0; Frame::SIZE];
        for (place, field) in bytes
            .chunks_exact_mut(8)
            .zip([self.flow, self.number, self.heard])
        {
            place.copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }

    fn read(bytes: [u8; Frame::SIZE]) -> Frame {
        let field = |n: usize| u64::from_be_bytes(bytes[8 * n..8 * n + 8].try_into().unwrap());
        Frame {
            flow: field(0),
            number: field(1),
            heard: field(2),
        }
    }
}

/// One end of a flow: what it has heard, and what the other end says that it has heard.
#[derive(Debug, Default)]
struct Progress {
    heard: AtomicU64,
    acknowledged: AtomicU64,
}

impl Progress {
    /// Both directions, whichever is behind.
    fn least(&self) -> u64 {
        let heard = self.heard.load(Ordering::SeqCst);
        heard.min(self.acknowledged.load(Ordering::SeqCst))
    }
}

/// Talks and listens until `stop`, which is asked whether the other has ended; then it says its end, and hears that of the
/// other. `Err`: a gap, or the other's end when it is no reason to stop.
async fn talk(
    stream: tokio::net::TcpStream,
    flow: u64,
    progress: &Progress,
    stop: impl Fn(bool) -> bool,
) -> io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let ended = AtomicBool::new(false);
    let said = async {
        let mut number = 0;
        while !stop(ended.load(Ordering::SeqCst)) {
            let heard = progress.heard.load(Ordering::SeqCst);
            let frame = Frame {
                flow,
                number,
                heard,
            };
            write.write_all(&frame.bytes()).await?;
            number += 1;
            tokio::time::sleep(PACE).await;
        }
        write.shutdown().await
    };
    let heard = async {
        let mut expected = 0;
        loop {
            let mut bytes = [0; Frame::SIZE];
            // The end is one only between two frames.
            if read.read(&mut bytes[..1]).await? == 0 {
                if expected == 0 || !stop(true) {
                    return Err(io::Error::other(format!("ended after {expected} frames")));
                }
                ended.store(true, Ordering::SeqCst);
                return Ok(());
            }
            read.read_exact(&mut bytes[1..]).await?;
            let frame = Frame::read(bytes);
            if (frame.flow, frame.number) != (flow, expected) {
                let detail = format!("{frame:?} instead of number {expected} of flow {flow}");
                return Err(io::Error::other(detail));
            }
            expected += 1;
            progress.heard.store(expected, Ordering::SeqCst);
            progress.acknowledged.store(frame.heard, Ordering::SeqCst);
        }
    };
    tokio::try_join!(said, heard).map(drop)
}

/// The other end of all flows: it learns of each who it is, and ends after the client.
async fn origin(listener: tokio::net::TcpListener, failures: Arc<Mutex<Vec<String>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let failures = failures.clone();
        tokio::spawn(async move {
            let mut name = [0; 8];
            let talked = async {
                stream.set_nodelay(true)?;
                stream.read_exact(&mut name).await?;
                let flow = u64::from_be_bytes(name);
                let progress = Progress::default();
                talk(stream, flow, &progress, |ended| ended).await
            };
            if let Err(error) = talked.await {
                let flow = u64::from_be_bytes(name);
                failures
                    .lock()
                    .unwrap()
                    .push(format!("flow {flow} at the origin: {error}"));
            }
        });
    }
}

/// What every swap changes beside the flows: routes, servers, listeners of each kind, and the weight of the target in use.
fn other_things(n: usize, web: SocketAddr, around: SocketAddr, origin: SocketAddr) -> String {
    let mut text = format!(
        "[upstreams.flows]\ntargets = [{{ address = \"{origin}\", weight = {} }}]\n\
         [http.other]\nlisten = \"{web}\"\nrespond = \"{n}\"\n",
        1 + n % 3
    );
    text += &match n % 3 {
        0 => format!("[tcp.around]\nlisten = \"{around}\"\nupstream = \"flows\"\n"),
        1 => format!("[forward.around]\nlisten = \"{around}\"\nusers = {{ user-{n} = \"x\" }}\n"),
        _ => String::new(),
    };
    text
}

/// Done when 3: no gap, no close.
#[test]
fn release_numbered_flows_never_notice_swaps_of_other_things() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let failures: Arc<Mutex<Vec<String>>> = Arc::default();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let to = listener.local_addr().unwrap();
    runtime.spawn(origin(listener, failures.clone()));

    let (web, around) = (local(free_port()), local(free_port()));
    let ways = WAYS.map(|(table, keys, ask)| (table, keys, ask, local(free_port())));
    let document = |n: usize| {
        let stable = ways.iter().map(|(table, keys, _, listen)| {
            format!(
                "[{table}.flows-{}]\nlisten = \"{listen}\"\n{keys}\n",
                listen.port()
            )
        });
        stable.collect::<String>() + &other_things(n, web, around, to)
    };
    // Who is not carried over is cut soon.
    let setup = Gate::setup().runtime("drain_timeout = \"300ms\"");
    let gate = setup.start(&document(0));

    let stop = Arc::new(AtomicBool::new(false));
    let mut flows: Vec<(String, Arc<Progress>)> = Vec::new();
    let mut tasks = Vec::new();
    for (table, _, ask, listen) in ways {
        for _ in 0..count(200, 40) {
            let flow = flows.len() as u64;
            let name = format!("flow {flow} by [{table}] at {listen}");
            let mut stream = open(listen, to, ask).unwrap_or_else(|e| panic!("{name}: {e}"));
            stream.write_all(&flow.to_be_bytes()).unwrap();
            stream.set_nonblocking(true).unwrap();
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            let progress = Arc::new(Progress::default());
            flows.push((name.clone(), progress.clone()));
            let (failures, stop) = (failures.clone(), stop.clone());
            tasks.push(runtime.spawn(async move {
                let stop = |_| stop.load(Ordering::SeqCst);
                if let Err(error) = talk(stream, flow, &progress, stop).await {
                    failures.lock().unwrap().push(format!("{name}: {error}"));
                }
            }));
        }
    }
    let all_go_on = |after: &str| {
        let before: Vec<u64> = flows.iter().map(|(_, progress)| progress.least()).collect();
        until(&format!("all flows to go on after {after}"), || {
            let failures = failures.lock().unwrap().clone();
            assert!(failures.is_empty(), "after {after}: {failures:#?}");
            let mut both = flows.iter().zip(&before);
            // What is acknowledged now may have been on its way before: the second one was not.
            both.all(|((_, progress), before)| progress.least() >= before + 2)
                .then_some(())
        });
    };
    all_go_on("the start");
    let swaps = count(50, 15);
    for n in 1..=swaps {
        gate.reload_ok(&document(n));
        assert_eq!(get(web, "x", "/").text(), n.to_string());
        all_go_on(&format!("swap {n}"));
    }
    // Nothing older is left that could end them later.
    gate.wait_settled();
    all_go_on("the end of all that was old");
    stop.store(true, Ordering::SeqCst);
    runtime.block_on(async {
        for task in tasks {
            tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
        }
    });
    let status = gate.wait_status("no connection to be left", |s| s["connections"] == 0);
    assert_eq!(status["panics"], 0);
    let failures = failures.lock().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
    let frames: u64 = flows.iter().map(|(_, progress)| progress.least()).sum();
    println!(
        "{} flows, {frames} frames each way, {swaps} swaps",
        flows.len()
    );
}

/// Gives back what comes.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let echoing = std::thread::Builder::new().stack_size(128 * 1024);
            let echoing = echoing.spawn(move || io::copy(&mut &stream, &mut &stream));
            drop(echoing.unwrap());
        }
    });
    address
}

/// What listens, and what a new connection to it must come to.
#[derive(Debug, Clone, Copy)]
enum Plane {
    Http,
    Way(usize),
}

impl Plane {
    /// Of HTTP, and each of the ways.
    fn of(n: usize) -> Plane {
        match n % (WAYS.len() + 1) {
            0 => Plane::Http,
            n => Plane::Way(n - 1),
        }
    }

    fn table(self, name: &str, listen: &[SocketAddr]) -> String {
        let (table, keys) = match self {
            Plane::Http => ("http", "respond = \"here\""),
            Plane::Way(n) => (WAYS[n].0, WAYS[n].1),
        };
        let listen: Vec<String> = listen.iter().map(ToString::to_string).collect();
        format!("[{table}.{name}]\nlisten = {listen:?}\n{keys}\n")
    }

    fn visit(self, listen: SocketAddr, origin: SocketAddr) -> io::Result<()> {
        let (said, heard) = match self {
            Plane::Http => {
                let mut conn = Conn::open(listen)?;
                let answer = conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
                (b"here".to_vec(), answer.body)
            }
            Plane::Way(n) => {
                let mut stream = open(listen, origin, WAYS[n].2)?;
                let said = listen.port().to_be_bytes().to_vec();
                stream.write_all(&said)?;
                let mut heard = vec![0; said.len()];
                stream.read_exact(&mut heard)?;
                (said, heard)
            }
        };
        match said == heard {
            true => Ok(()),
            false => Err(io::Error::other(format!("heard {heard:?}"))),
        }
    }
}

/// New connections, one after the other, until it is stopped.
struct Visitor {
    visits: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), String>>,
}

impl Visitor {
    fn start(plane: Plane, listen: SocketAddr, origin: SocketAddr) -> Visitor {
        let (visits, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (visits.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let visited = plane.visit(listen, origin);
                visited.map_err(|error| format!("{plane:?} at {listen}: {error}"))?;
                counted.fetch_add(1, Ordering::SeqCst);
                // The pace of the load; nothing waits on it.
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        });
        Visitor {
            visits,
            stop,
            thread,
        }
    }
}

/// Done when 4: none fails.
#[test]
fn release_new_connections_go_on_while_listeners_come_and_go_around_them() {
    let origin = echo();
    let planes = std::array::from_fn::<_, { WAYS.len() + 1 }, _>(Plane::of);
    let kept = planes.map(|_| local(free_port()));
    let passing = planes.map(|_| local(free_port()));
    let more = planes.map(|_| local(free_port()));
    // In round `n` each of the passing addresses is another thing, and each kept listener has one more address.
    let document = |round: Option<usize>| {
        let mut text = format!("[upstreams.flows]\ntargets = \"{origin}\"\n");
        for (n, plane) in planes.into_iter().enumerate() {
            match round {
                None => text += &plane.table(&format!("kept-{n}"), &kept[n..=n]),
                Some(round) => {
                    text += &plane.table(&format!("kept-{n}"), &[kept[n], more[n]]);
                    text += &Plane::of(n + round).table(&format!("passing-{n}"), &passing[n..=n]);
                }
            }
        }
        text
    };
    let gate = Gate::start(&document(None));
    let visitors: Vec<Visitor> = (0..planes.len() * 3)
        .map(|n| n % planes.len())
        .map(|n| Visitor::start(planes[n], kept[n], origin))
        .collect();
    let all_go_on = || {
        let counts = || visitors.iter().map(|v| v.visits.load(Ordering::SeqCst));
        let before: Vec<u64> = counts().collect();
        until("visitors to come in", || {
            let on = counts().zip(&before).all(|(now, before)| now > before + 3);
            (on || visitors.iter().any(|v| v.thread.is_finished())).then_some(())
        });
    };
    all_go_on();
    let rounds = count(20, 6);
    for round in 1..=rounds {
        gate.reload_ok(&document(Some(round)));
        for n in 0..planes.len() {
            let at = |plane: Plane, listen| {
                plane
                    .visit(listen, origin)
                    .unwrap_or_else(|e| panic!("round {round}: {plane:?} at {listen}: {e}"));
            };
            at(planes[n], more[n]);
            at(Plane::of(n + round), passing[n]);
        }
        all_go_on();
        gate.reload_ok(&document(None));
        // Until then whoever comes to them may still be served.
        gate.wait_settled();
        for gone in more.iter().chain(&passing) {
            let refused = TcpStream::connect(gone).map(drop).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{gone}");
        }
        all_go_on();
    }
    let mut visits = 0;
    let failures: Vec<String> = visitors
        .into_iter()
        .filter_map(|visitor| {
            visitor.stop.store(true, Ordering::SeqCst);
            let ended = visitor.thread.join().unwrap();
            visits += visitor.visits.load(Ordering::SeqCst);
            ended.err()
        })
        .collect();
    assert!(failures.is_empty(), "{failures:#?}");
    let status = gate.wait_status("no connection to be left", |s| s["connections"] == 0);
    assert_eq!(status["panics"], 0);
    gate.wait_settled();
    println!("{visits} new connections over {rounds} rounds");
}
