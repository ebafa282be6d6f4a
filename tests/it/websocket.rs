//! Websockets: the handshake, bytes in both directions, and what a swap does to those that are open.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kit::websocket::{BINARY, CLOSE, TEXT, exact, frame, read_frame};
use crate::kit::{Call, Conn, Gate, PATIENCE, count, free_port, get, until};

const GOING_AWAY: [u8; 2] = 1001_u16.to_be_bytes();

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// An origin whose paths say how it behaves.
struct Echo {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    heads: Mutex<Vec<String>>,
    open: AtomicUsize,
    /// Close frames that came from the proxy or its clients, with their payload.
    closes: Mutex<Vec<Vec<u8>>>,
    go: AtomicBool,
}

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

impl Echo {
    fn start() -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let of = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), shared) = (stream, of.clone()) else {
                    continue;
                };
                let serve = move || {
                    // How a connection ends is the client's to judge.
                    let _ = shared.serve(stream);
                };
                std::thread::Builder::new()
                    .stack_size(128 * 1024)
                    .spawn(serve)
                    .unwrap();
            }
        });
        Echo { addr, shared }
    }

    fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    fn last_head(&self) -> String {
        self.shared.heads.lock().unwrap().last().unwrap().clone()
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut conn = Conn::over(stream)?;
        // Open websockets may be silent for as long as a test takes.
        conn.stream.set_read_timeout(Some(PATIENCE * 4))?;
        while let Some(head) = conn.head()? {
            let path = head.line.split(' ').nth(1).unwrap_or_default().to_owned();
            let upgrade = head.get("upgrade").is_some();
            self.heads.lock().unwrap().push(head.text.clone());
            match path.as_str() {
                _ if !upgrade => conn.send("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nplain")?,
                "/refuse" => {
                    conn.send("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")?;
                }
                "/ordinary" => conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?,
                "/other" => conn.send(
                    "HTTP/1.1 101 Switching Protocols\r\nupgrade: chat\r\nconnection: upgrade\r\n\r\n",
                )?,
                "/late" => {
                    conn.stream.set_nonblocking(true)?;
                    let mut byte = [0];
                    while !self.go.load(Ordering::SeqCst) {
                        if let Ok(n) = conn.stream.read(&mut byte) {
                            panic!("{n} bytes came before the answer");
                        }
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    conn.stream.set_nonblocking(false)?;
                    return self.echo(conn);
                }
                "/raw" => {
                    conn.send(SWITCH)?;
                    let mut all = Vec::new();
                    loop {
                        let some = conn.some(4096)?;
                        if some.is_empty() {
                            break;
                        }
                        all.extend(some);
                    }
                    // The client is done; we are not.
                    all.reverse();
                    conn.send(all)?;
                    return conn.stream.shutdown(Shutdown::Write);
                }
                _ => return self.echo(conn),
            }
        }
        Ok(())
    }

    fn echo(&self, mut conn: Conn) -> io::Result<()> {
        self.open.fetch_add(1, Ordering::SeqCst);
        // With the head at once, as a server that greets may do.
        let ended = conn
            .send([SWITCH.as_bytes(), &frame(TEXT, None, b"hello")].concat())
            .and_then(|()| {
                loop {
                    let (opcode, payload) = read_frame(&mut conn)?;
                    conn.send(frame(opcode, None, &payload))?;
                    if opcode == CLOSE {
                        self.closes.lock().unwrap().push(payload);
                        return Ok(());
                    }
                }
            });
        self.open.fetch_sub(1, Ordering::SeqCst);
        ended
    }
}

const HANDSHAKE: &str = "host: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n";

fn ask(to: SocketAddr, path: &str) -> Conn {
    let mut conn = Conn::open(to).unwrap();
    conn.send(format!("GET {path} HTTP/1.1\r\n{HANDSHAKE}"))
        .unwrap();
    conn
}

/// An open websocket whose greeting was read.
fn open(to: SocketAddr, path: &str) -> Conn {
    let mut conn = ask(to, path);
    let head = conn.response_head().unwrap();
    assert_eq!(head.status, 101, "{:?}", head.head.text);
    assert_eq!(read_frame(&mut conn).unwrap(), (TEXT, b"hello".to_vec()));
    conn
}

fn echoes(conn: &mut Conn, message: &[u8]) {
    conn.send(frame(BINARY, Some([1, 2, 3, 4]), message))
        .unwrap();
    let (opcode, payload) = read_frame(conn).unwrap();
    assert!(opcode == BINARY && payload == message);
}

fn ends_with_going_away(conn: &mut Conn) {
    assert_eq!(read_frame(conn).unwrap(), (CLOSE, GOING_AWAY.to_vec()));
    assert!(
        conn.some(1).unwrap().is_empty(),
        "more came after the Close"
    );
}

/// `rest` belongs to the server.
fn server(to: SocketAddr, origin: &Echo, rest: &str) -> String {
    let origin = origin.addr;
    format!(
        "[http.web]\nlisten = \"{to}\"\n{rest}\n[[http.web.routes]]\nmatch.path = \"/*\"\nproxy = \"http://{origin}\"\n"
    )
}

fn without_route(to: SocketAddr) -> String {
    format!("[http.web]\nlisten = \"{to}\"\nrespond = \"gone\"\n")
}

fn tunnels(status: &Value) -> Vec<(u64, u64)> {
    let all = status["generations"].as_array().unwrap().iter();
    all.map(|g| {
        (
            g["tunnels"].as_u64().unwrap(),
            g["requests"].as_u64().unwrap(),
        )
    })
    .collect()
}

#[test]
fn frames_of_every_size_go_both_ways_and_the_handshake_is_as_it_came() {
    let origin = Echo::start();
    let to = local(free_port());
    let gate = Gate::start(&server(to, &origin, ""));
    let mut conn = ask(to, "/chat?room=1");
    let answer = conn.response_head().unwrap();
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    assert_eq!(answer.header("connection"), Some("upgrade"));
    assert_eq!(
        answer.header("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(read_frame(&mut conn).unwrap().1, b"hello");
    let head = origin.last_head().to_ascii_lowercase();
    for line in [
        "get /chat?room=1 http/1.1\r\n",
        "\r\nconnection: upgrade\r\n",
        "\r\nupgrade: websocket\r\n",
        "\r\nsec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n",
        "\r\nsec-websocket-version: 13\r\n",
        "\r\nsec-websocket-extensions: permessage-deflate\r\n",
        "\r\nx-forwarded-for: 127.0.0.1\r\n",
    ] {
        assert!(head.contains(line), "{line:?} in {head}");
    }
    for size in [0, 1, 125, 126, 65_535, 65_536, 3_000_000] {
        let message: Vec<u8> = (0..size).map(|n| n as u8).collect();
        echoes(&mut conn, &message);
    }
    let status = gate.wait_status("the websocket to be counted", |s| tunnels(s) == [(1, 0)]);
    assert_eq!(status["upstreams"][0]["targets"][0]["in_flight"], 1);
    assert_eq!(status["upstreams"][0]["targets"][0]["connections"], 1);
    conn.send(frame(CLOSE, Some([9; 4]), &1000_u16.to_be_bytes()))
        .unwrap();
    assert_eq!(
        read_frame(&mut conn).unwrap(),
        (CLOSE, 1000_u16.to_be_bytes().to_vec())
    );
    assert!(conn.some(1).unwrap().is_empty());
    drop(conn);
    let status = gate.wait_status("the websocket to be gone", |s| tunnels(s) == [(0, 0)]);
    assert_eq!(status["upstreams"][0]["targets"][0]["in_flight"], 0);
    assert_eq!(status["upstreams"][0]["targets"][0]["connections"], 0);
}

#[test]
fn a_side_that_is_done_may_still_listen() {
    let origin = Echo::start();
    let to = local(free_port());
    let _gate = Gate::start(&server(to, &origin, ""));
    let mut conn = ask(to, "/raw");
    assert_eq!(conn.response_head().unwrap().status, 101);
    conn.send("abc").unwrap();
    conn.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(exact(&mut conn, 3).unwrap(), b"cba");
    assert!(conn.some(1).unwrap().is_empty());
}

#[test]
fn a_silent_one_ends_with_a_close_to_both_sides() {
    let origin = Echo::start();
    let to = local(free_port());
    let _gate = Gate::start(&server(to, &origin, "timeouts.upgraded = \"700ms\""));
    let mut conn = open(to, "/");
    let start = Instant::now();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(300));
        echoes(&mut conn, b"not silent");
    }
    assert!(start.elapsed() > Duration::from_millis(1000));
    ends_with_going_away(&mut conn);
    until("the origin to be told", || {
        (*origin.shared.closes.lock().unwrap() == [GOING_AWAY]).then_some(())
    });
}

#[test]
fn what_is_not_101_is_an_ordinary_answer() {
    let origin = Echo::start();
    let to = local(free_port());
    let gate = Gate::start(&server(to, &origin, ""));
    let mut conn = Conn::open(to).unwrap();
    for (path, status, text) in [("/refuse", 403, "no"), ("/ordinary", 200, "ok")] {
        let answer = conn
            .exchange(format!("GET {path} HTTP/1.1\r\n{HANDSHAKE}"))
            .unwrap();
        assert_eq!((answer.status, &*answer.text()), (status, text));
        assert_eq!(answer.header("upgrade"), None);
    }
    // And the connection goes on.
    let answer = conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!(answer.text(), "plain");
    let answer = conn
        .exchange(format!("GET /other HTTP/1.1\r\n{HANDSHAKE}"))
        .unwrap();
    assert_eq!(answer.status, 502);
    gate.wait_status("no tunnel", |s| tunnels(s) == [(0, 0)]);
}

#[test]
fn only_a_handshake_over_http_1_1_is_passed_on_and_only_if_allowed() {
    let origin = Echo::start();
    let to = local(free_port());
    let gate = Gate::start(&server(to, &origin, ""));
    let ordinary = |request: &str| {
        let answer = Conn::open(to).unwrap().exchange(request).unwrap();
        assert_eq!(
            (answer.status, &*answer.text()),
            (200, "plain"),
            "{request}"
        );
        assert!(!origin.last_head().to_ascii_lowercase().contains("upgrade"));
    };
    let ws = "host: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
    ordinary(&format!("GET / HTTP/1.0\r\n{ws}\r\n"));
    ordinary(&format!("POST / HTTP/1.1\r\n{ws}content-length: 0\r\n\r\n"));
    ordinary(&format!("GET / HTTP/1.1\r\n{ws}content-length: 1\r\n\r\nx"));
    ordinary(
        "GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
    );
    ordinary("GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n\r\n");
    // Among others it is found, and goes alone.
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c, websocket\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n").unwrap();
    assert_eq!(conn.response_head().unwrap().status, 101);
    assert!(!origin.last_head().contains("h2c"));
    assert!(!origin.last_head().contains("http2-settings"));
    let off = format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = {{ upstream = \"http://{}\", websocket = false }}\n",
        origin.addr
    );
    gate.reload_ok(&off);
    ordinary(&format!("GET / HTTP/1.1\r\n{ws}\r\n"));
}

/// hyper leaves the stream alone when another protocol was asked for; the end must come all the same.
#[test]
fn a_refused_upgrade_on_a_last_request_ends_the_connection_at_once() {
    let to = local(free_port());
    let _gate = Gate::start(&without_route(to));
    for fields in [
        "connection: close, upgrade\r\nupgrade: websocket\r\n\r\n",
        "connection: close, upgrade\r\nupgrade: h2c\r\n\r\n",
        // More than is read away.
        "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 1000000\r\n\r\n",
    ] {
        let mut conn = Conn::open(to).unwrap();
        let start = Instant::now();
        let answer = conn
            .exchange(format!("GET / HTTP/1.1\r\nhost: x\r\n{fields}"))
            .unwrap();
        assert_eq!((answer.status, &*answer.text()), (200, "gone"));
        assert!(conn.some(1).unwrap().is_empty());
        assert!(start.elapsed() < Duration::from_secs(1), "{fields}");
    }
}

#[test]
fn what_the_client_sends_too_early_waits_for_the_origin_to_agree() {
    let origin = Echo::start();
    let to = local(free_port());
    let gate = Gate::start(&server(to, &origin, ""));
    let early = frame(TEXT, Some([7; 4]), b"early");
    let mut conn = Conn::open(to).unwrap();
    let request = format!("GET /late HTTP/1.1\r\n{HANDSHAKE}");
    conn.send([request.as_bytes(), &early].concat()).unwrap();
    gate.wait_status("the handshake to be on its way", |s| {
        s["upstreams"][0]["targets"][0]["in_flight"] == 1
    });
    for _ in 0..100 {
        conn.send(&early).unwrap();
    }
    until("the handshake to be at the origin", || {
        (!origin.shared.heads.lock().unwrap().is_empty()).then_some(())
    });
    origin.shared.go.store(true, Ordering::SeqCst);
    assert_eq!(conn.response_head().unwrap().status, 101);
    assert_eq!(read_frame(&mut conn).unwrap().1, b"hello");
    for _ in 0..101 {
        assert_eq!(read_frame(&mut conn).unwrap(), (TEXT, b"early".to_vec()));
    }
    echoes(&mut conn, b"and on");
}

#[test]
fn an_open_websocket_counts_as_a_request_of_its_target() {
    let (a, b) = (Echo::start(), Echo::start());
    let to = local(free_port());
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"both\"\n[upstreams.both]\nbalance = \"least_requests\"\ntargets = [\"{}\", \"{}\"]\n",
        a.addr, b.addr
    ));
    let _conns: Vec<Conn> = (0..10).map(|_| open(to, "/")).collect();
    assert_eq!((a.open(), b.open()), (5, 5));
}

/// Done when 4, first part.
#[test]
fn release_websockets_do_not_notice_swaps_of_other_routes() {
    let origin = Echo::start();
    let to = local(free_port());
    let document = |n: usize| {
        format!(
            "{}[[http.web.routes]]\nname = \"other\"\nmatch.path = \"/other/{n}\"\nrespond = \"{n}\"\n[http.web{n}]\nlisten = \"127.0.0.1:0\"\nrespond = \"x\"\n",
            server(to, &origin, "").replace(
                "[[http.web.routes]]",
                &format!("[[http.web.routes]]\nmatch.path = \"/first/{n}\"\nrespond = \"{n}\"\n[[http.web.routes]]"),
            )
        )
    };
    let gate = Gate::start(&document(0));
    let sockets = count(1000, 200);
    let (threads, swaps) = (8, count(100, 20));
    let stop = AtomicBool::new(false);
    let ready = Barrier::new(threads + 1);
    let echoed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut conns: Vec<Conn> = (0..sockets / threads).map(|_| open(to, "/")).collect();
                ready.wait();
                let mut round = 0_u32;
                let mut last = false;
                while !last {
                    // Once more after the last swap.
                    last = stop.load(Ordering::SeqCst);
                    round += 1;
                    for conn in &mut conns {
                        let message = frame(TEXT, Some([5, 6, 7, 8]), &round.to_be_bytes());
                        conn.send(message).unwrap();
                    }
                    for conn in &mut conns {
                        let back = read_frame(conn).unwrap();
                        assert_eq!(back, (TEXT, round.to_be_bytes().to_vec()));
                        echoed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        ready.wait();
        for n in 1..=swaps {
            let before = echoed.load(Ordering::SeqCst);
            let answer = gate.reload_drained(&document(n));
            // The websockets have moved on, so that nothing waits for a deadline.
            assert_eq!(answer["phase"], "drained", "{answer}");
            until("echoes between two swaps", || {
                (echoed.load(Ordering::SeqCst) > before).then_some(())
            });
        }
        let status = gate.status();
        assert_eq!(tunnels(&status).len(), 1, "{status}");
        assert_eq!(tunnels(&status)[0].0 as usize, sockets);
        stop.store(true, Ordering::SeqCst);
    });
    println!(
        "{} echoes of {sockets} websockets over {swaps} swaps",
        echoed.into_inner()
    );
}

/// Done when 4, second part.
#[test]
fn release_on_a_removed_route_they_end_at_the_deadline_with_a_close() {
    let origin = Echo::start();
    let to = local(free_port());
    let gate = Gate::start(&server(to, &origin, ""));
    let sockets = count(1000, 100);
    let mut conns: Vec<Conn> = (0..sockets).map(|_| open(to, "/")).collect();
    // One stands within a frame, another has said goodbye itself.
    let begun = frame(BINARY, Some([1; 4]), &[0; 100]);
    conns[0].send(&begun[..50]).unwrap();
    let call = Call::post("/reload?drain_timeout=1s");
    let start = Instant::now();
    let answer = gate
        .call(call.toml(&gate.document(&without_route(to))))
        .expect(200);
    assert_eq!(get(to, "x", "/").text(), "gone");
    // Until then they live.
    echoes(&mut conns[1], b"still here");
    let status = gate.wait_status("the websockets to drain", |s| tunnels(s).len() == 2);
    assert_eq!(tunnels(&status)[0].0 as usize, sockets);
    let mut times = Vec::new();
    for conn in &mut conns {
        ends_with_going_away(conn);
        times.push(start.elapsed());
    }
    assert!(times[0] >= Duration::from_secs(1), "{:?}", times[0]);
    drop(conns);
    let place = format!("/swaps/{}?wait=drained", answer["swap"]);
    let ended = gate.call(Call::get(&place)).expect(200);
    assert_eq!(ended["phase"], "cut", "{ended}");
    gate.wait_status("all to be gone", |s| tunnels(s) == [(0, 0)]);
    // The origin was told by all but the one whose client stopped within a frame.
    until("the origin to be told", || {
        let closes = origin.shared.closes.lock().unwrap();
        (closes.len() == sockets - 1 && closes.iter().all(|c| *c == GOING_AWAY)).then_some(())
    });
}

#[test]
fn on_change_cut_ends_at_the_commit() {
    let origin = Echo::start();
    let to = local(free_port());
    let gate = Gate::setup()
        .runtime("drain_timeout = \"1h\"\non_change = \"cut\"")
        .start(&server(to, &origin, ""));
    let mut conn = open(to, "/");
    // Another route: nothing happens to it.
    let with = format!(
        "{}[[http.web.routes]]\nmatch.path = \"/x\"\nrespond = \"x\"\n",
        server(to, &origin, "")
    );
    gate.reload_drained(&with);
    echoes(&mut conn, b"still here");
    let answer = gate.reload_drained(&without_route(to));
    assert_eq!(answer["phase"], "cut", "{answer}");
    ends_with_going_away(&mut conn);
}

#[test]
fn on_change_keep_is_ended_by_a_stop_only() {
    let origin = Echo::start();
    let (to, other) = (local(free_port()), local(free_port()));
    let proxy = format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = {{ upstream = \"http://{}\", on_change = \"keep\" }}\n",
        origin.addr
    );
    let mut gate = Gate::setup()
        .runtime("drain_timeout = \"0s\"")
        .start(&proxy);
    let mut conn = open(to, "/");
    assert_eq!(gate.reload_drained(&without_route(to))["phase"], "drained");
    echoes(&mut conn, b"the route is gone");
    assert_eq!(
        gate.reload_drained(&without_route(other))["phase"],
        "drained"
    );
    echoes(&mut conn, b"the address is gone");
    let status = gate.status();
    assert_eq!(tunnels(&status), [(1, 0)], "{status}");
    gate.call(Call::post("/stop")).expect(200);
    ends_with_going_away(&mut conn);
    assert_eq!(gate.wait().code(), Some(0));
}

#[test]
fn the_nearest_on_change_counts() {
    let origin = Echo::start();
    let to = local(free_port());
    let document = |server: &str, proxy: &str| {
        format!(
            "[http.web]\nlisten = \"{to}\"\non_change = \"{server}\"\nproxy = {{ upstream = \"http://{}\"{proxy} }}\n",
            origin.addr
        )
    };
    let gate = Gate::setup()
        .runtime("drain_timeout = \"1h\"\non_change = \"keep\"")
        .start(&document("cut", ""));
    let mut conn = open(to, "/");
    // To say otherwise is no change of what it lives by.
    gate.reload_drained(&document("drain", ", on_change = \"keep\""));
    echoes(&mut conn, b"still here");
    // But a new one goes by it.
    let mut later = open(to, "/");
    assert_eq!(gate.reload_drained(&without_route(to))["phase"], "cut");
    ends_with_going_away(&mut conn);
    echoes(&mut later, b"kept");
}

#[test]
fn a_stop_drains_them() {
    let origin = Echo::start();
    let to = local(free_port());
    let mut gate = Gate::start(&server(to, &origin, ""));
    let mut conn = open(to, "/");
    let mut leaver = open(to, "/");
    gate.call(Call::post("/stop?drain_timeout=2s")).expect(200);
    echoes(&mut conn, b"still here");
    leaver.send(frame(CLOSE, Some([0; 4]), b"")).unwrap();
    assert_eq!(read_frame(&mut leaver).unwrap().0, CLOSE);
    ends_with_going_away(&mut conn);
    drop((conn, leaver));
    assert_eq!(gate.wait().code(), Some(0));
}

#[test]
fn a_client_that_goes_away_ends_it_at_the_origin() {
    let origin = Echo::start();
    let to = local(free_port());
    let gate = Gate::start(&server(to, &origin, ""));
    let conn = open(to, "/");
    assert_eq!(origin.open(), 1);
    drop(conn);
    until("the origin to see it", || {
        (origin.open() == 0).then_some(())
    });
    gate.wait_status("the tunnel to be gone", |s| tunnels(s) == [(0, 0)]);
}

/// What one side does not take stays where it is: nothing piles up between them.
#[test]
fn a_reader_that_does_not_read_holds_the_writer_back() {
    let origin = Echo::start();
    let to = local(free_port());
    let gate = Gate::start(&server(to, &origin, ""));
    let mut conn = open(to, "/");
    let before = gate.resident();
    conn.stream
        .set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let message = frame(BINARY, Some([3; 4]), &[0; 60_000]);
    let mut sent = 0_u64;
    // The origin echoes, and nobody reads that: soon nothing moves.
    while sent < 1 << 30 && conn.stream.write_all(&message).is_ok() {
        sent += message.len() as u64;
    }
    assert!(sent < 1 << 30, "it took {sent} bytes");
    let grown = gate.resident().saturating_sub(before);
    assert!(grown < 4 << 20, "it holds {grown} bytes more");
}

#[test]
fn one_is_listed_with_what_passes_and_an_operator_ends_it_with_a_close() {
    let origin = Echo::start();
    let to = local(free_port());
    let gate = Gate::start(&server(to, &origin, "trusted_proxies = \"127.0.0.0/8\""));
    let mut conn = open(to, "/chat");
    let mut other = open(to, "/");
    echoes(&mut conn, b"four");
    let list = |count: usize| {
        until("the websockets to be told", || {
            let list = gate.call(Call::get("/sessions?kind=websocket")).expect(200);
            let all = list["sessions"].as_array().unwrap();
            // The greeting has 7 bytes, a message of four 6 and its mask.
            let told = |s: &&Value| s["received"] == 10 && s["sent"] == 13;
            let one = all.iter().find(told)?.clone();
            (all.len() == count).then_some(one)
        })
    };
    let one = list(2);
    let (addr, name) = (origin.addr.to_string(), format!("http://{}", origin.addr));
    assert_eq!(one["destination"], addr, "{one}");
    assert_eq!(
        (&one["listener"], &one["generation"]),
        (&"web".into(), &1.into())
    );
    assert!(one["upstream"] == addr || one["upstream"] == name, "{one}");
    assert!(
        one["client"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{one}"
    );
    let close = format!("/sessions/{}/close", one["id"]);
    assert_eq!(gate.call(Call::post(&close)).expect(200)["closing"], true);
    ends_with_going_away(&mut conn);
    drop(conn);
    until("the origin to be told", || {
        let closes = origin.shared.closes.lock().unwrap();
        (*closes == [GOING_AWAY]).then_some(())
    });
    echoes(&mut other, b"still here");
    gate.wait_status("one to be left", |s| {
        s["sessions"]["websocket"]["open"] == 1
    });
    gate.call(Call::post(&close))
        .problem(404, "no-such-session");
}
