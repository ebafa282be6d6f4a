//! The action `tcp`: a websocket whose messages are a stream to a target.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use crate::kit::websocket::{BINARY, CLOSE, PING, PONG, TEXT, frame, read_frame};
use crate::kit::{Call, Conn, Gate, PATIENCE, Response, free_port, until};
use crate::tcp::echo;

const MASK: Option<[u8; 4]> = Some([7, 11, 13, 17]);
const UPGRADE: &str = "connection: Upgrade\r\nupgrade: websocket\r\n";
const KEY: &str = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const VERSION: &str = "sec-websocket-version: 13\r\n";

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn bridging(listen: SocketAddr, target: SocketAddr, rest: &str) -> String {
    format!(
        "[http.web]\nlisten = \"{listen}\"\nrespond = \"\"\n{rest}\n\
         [[http.web.routes]]\nname = \"stream\"\nmatch.path = \"/stream\"\ntcp = \"numbers\"\n\
         [upstreams.numbers]\ntargets = \"{target}\"\n"
    )
}

fn target() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(to: SocketAddr, fields: &str) -> (Conn, Response) {
    let mut conn = Conn::open(to).unwrap();
    conn.send(format!("GET /stream HTTP/1.1\r\nhost: x\r\n{fields}\r\n"))
        .unwrap();
    let answer = conn.response_head().unwrap();
    (conn, answer)
}

fn open(to: SocketAddr) -> Conn {
    let (conn, answer) = ask(to, &[UPGRADE, KEY, VERSION].concat());
    assert_eq!(answer.status, 101, "{:?}", answer.head.text);
    conn
}

fn say(conn: &mut Conn, opcode: u8, payload: &[u8]) {
    conn.send(frame(opcode, MASK, payload)).unwrap();
}

/// So many bytes of binary messages.
fn hear(conn: &mut Conn, size: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < size {
        let (opcode, payload) = read_frame(conn).unwrap();
        assert_eq!(opcode, BINARY);
        all.extend(payload);
    }
    all
}

fn closes_with(conn: &mut Conn, code: u16) {
    let close = (CLOSE, code.to_be_bytes().to_vec());
    assert_eq!(read_frame(conn).unwrap(), close);
    assert!(conn.some(1).unwrap().is_empty(), "more came after a Close");
}

fn is_reset(stream: &mut TcpStream) -> bool {
    let error = stream.read(&mut [0]).unwrap_err();
    error.kind() == std::io::ErrorKind::ConnectionReset
}

#[test]
fn messages_are_a_stream_in_both_directions_over_swaps_and_an_operator_sees_it() {
    let (origin, to) = (echo(), local(free_port()));
    let document = bridging(to, origin.addr, "");
    let gate = Gate::start(&document);
    let fields = [
        UPGRADE,
        KEY,
        VERSION,
        "sec-websocket-protocol: x, binary\r\n",
    ];
    let (mut conn, answer) = ask(to, &fields.concat());
    assert_eq!(answer.status, 101);
    assert_eq!(
        answer.header("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(answer.header("sec-websocket-protocol"), Some("binary"));
    say(&mut conn, BINARY, b"hello");
    assert_eq!(hear(&mut conn, 5), b"hello");
    say(&mut conn, TEXT, b" text");
    assert_eq!(hear(&mut conn, 5), b" text");
    say(&mut conn, PING, b"there?");
    assert_eq!(read_frame(&mut conn).unwrap(), (PONG, b"there?".to_vec()));
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n >> 7 ^ n) as u8).collect();
    let (mut write, message) = (
        conn.stream.try_clone().unwrap(),
        frame(BINARY, MASK, &large),
    );
    let writing = std::thread::spawn(move || write.write_all(&message).unwrap());
    assert!(hear(&mut conn, large.len()) == large);
    writing.join().unwrap();
    // A change of something else does not touch it.
    gate.reload_ok(&format!(
        "{document}[http.x]\nlisten = \"127.0.0.1:0\"\nrespond = \"\"\n"
    ));
    say(&mut conn, BINARY, b"again");
    assert_eq!(hear(&mut conn, 5), b"again");
    let size = large.len() + 15;
    let one = until("its bytes to be told", || {
        let list = gate.call(Call::get("/sessions?kind=bridge")).json();
        let one = list["sessions"][0].clone();
        (one["sent"] == size && one["generation"] == 2).then_some(one)
    });
    let expected = json!({
        "id": one["id"], "kind": "bridge", "client": conn.stream.local_addr().unwrap().to_string(),
        "listener": "web", "route": "stream", "upstream": "numbers",
        "destination": origin.addr.to_string(),
        "generation": 2, "age_s": one["age_s"], "idle_s": one["idle_s"],
        "received": size, "sent": size, "closing": false
    });
    assert_eq!(one, expected);
    let close = format!("/sessions/{}/close", one["id"]);
    gate.call(Call::post(&close)).expect(200);
    closes_with(&mut conn, 1001);
}

#[test]
fn what_is_no_handshake_is_told_so_and_the_connection_goes_on() {
    let (origin, to) = (echo(), local(free_port()));
    let _gate = Gate::start(&bridging(to, origin.addr, ""));
    let mut conn = Conn::open(to).unwrap();
    let wrong_key = "sec-websocket-key: dGhlIHNhbXBsZQ==\r\n";
    for (fields, status) in [
        ("", 426),
        (KEY, 426),
        (&[UPGRADE, KEY].concat(), 400),
        (&[UPGRADE, VERSION].concat(), 400),
        (&[UPGRADE, VERSION, wrong_key].concat(), 400),
        (&[UPGRADE, VERSION, KEY, KEY].concat(), 400),
        (
            &[UPGRADE, KEY, "sec-websocket-version: 8\r\n"].concat(),
            400,
        ),
    ] {
        let request = format!("GET /stream HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
        let answer = conn.exchange(request).unwrap();
        assert_eq!(answer.status, status, "{fields}");
        match status {
            426 => assert_eq!(answer.header("upgrade"), Some("websocket")),
            _ => assert_eq!(answer.header("sec-websocket-version"), Some("13")),
        }
    }
}

#[test]
fn a_dead_target_is_a_502_and_no_websocket() {
    let to = local(free_port());
    let _gate = Gate::start(&bridging(to, local(free_port()), ""));
    let (_, answer) = ask(to, &[UPGRADE, KEY, VERSION].concat());
    assert_eq!(answer.status, 502);
}

#[test]
fn a_close_ends_one_side_and_the_target_may_go_on() {
    let ((listener, addr), to) = (target(), local(free_port()));
    let _gate = Gate::start(&bridging(to, addr, ""));
    let mut conn = open(to);
    let mut server = accept(&listener);
    say(&mut conn, BINARY, b"all of it");
    say(&mut conn, CLOSE, &1000_u16.to_be_bytes());
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"all of it");
    server.write_all(b"the answer").unwrap();
    assert_eq!(hear(&mut conn, 10), b"the answer");
    server.shutdown(Shutdown::Write).unwrap();
    closes_with(&mut conn, 1000);
}

#[test]
fn the_end_of_a_target_is_a_close_and_its_failure_another() {
    let ((listener, addr), to) = (target(), local(free_port()));
    let _gate = Gate::start(&bridging(to, addr, ""));
    let mut conn = open(to);
    let mut server = accept(&listener);
    server.write_all(b"bye").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(hear(&mut conn, 3), b"bye");
    let normal = 1000_u16.to_be_bytes();
    assert_eq!(read_frame(&mut conn).unwrap(), (CLOSE, normal.to_vec()));
    // What was on its way, and the answer.
    say(&mut conn, BINARY, b"late");
    say(&mut conn, CLOSE, &normal);
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"late");
    assert!(conn.some(1).unwrap().is_empty());

    let mut conn = open(to);
    let server = accept(&listener);
    socket2::SockRef::from(&server)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(server);
    closes_with(&mut conn, 1011);
}

#[test]
fn a_client_that_goes_without_a_close_or_is_no_websocket_is_a_reset_for_the_target() {
    let ((listener, addr), to) = (target(), local(free_port()));
    let _gate = Gate::start(&bridging(to, addr, ""));
    let conn = open(to);
    let mut server = accept(&listener);
    drop(conn);
    assert!(is_reset(&mut server));
    let mut conn = open(to);
    let mut server = accept(&listener);
    conn.send(frame(BINARY, None, b"unmasked")).unwrap();
    closes_with(&mut conn, 1002);
    assert!(is_reset(&mut server));
}

#[test]
fn silence_and_a_swap_of_its_route_end_it_with_going_away() {
    let ((listener, addr), to) = (target(), local(free_port()));
    let gate = Gate::start(&bridging(to, addr, "on_change = \"cut\""));
    let mut conn = open(to);
    let mut server = accept(&listener);
    gate.reload_ok(&format!("[http.web]\nlisten = \"{to}\"\nrespond = \"\"\n"));
    closes_with(&mut conn, 1001);
    assert!(is_reset(&mut server));
    gate.reload_ok(&bridging(to, addr, "timeouts.upgraded = \"100ms\""));
    let mut conn = open(to);
    closes_with(&mut conn, 1001);
}

/// Neither side reads, so that nothing more is taken; then all of it arrives.
#[test]
fn what_a_slow_side_does_not_take_is_not_read_for_it() {
    let ((listener, addr), to) = (target(), local(free_port()));
    let gate = Gate::start(&bridging(to, addr, ""));
    let conn = open(to);
    let mut server = accept(&listener);
    let message = frame(BINARY, MASK, &vec![1; 64 << 20]);
    let mut write = conn.stream.try_clone().unwrap();
    let before = gate.own_memory();
    let writing = std::thread::spawn(move || write.write_all(&message));
    // It stands still: the kernel's buffers are full.
    let told = || {
        let list = gate.call(Call::get("/sessions?kind=bridge")).json();
        list["sessions"][0]["received"].as_u64().unwrap()
    };
    let mut last = 0;
    until("it to stand still", || {
        let now = told();
        std::thread::sleep(Duration::from_millis(200));
        (std::mem::replace(&mut last, now) == now && now > 0).then_some(())
    });
    assert!(last < 64 << 20, "{last} bytes were taken");
    let grown = gate.own_memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes of memory");
    let mut left = 64 << 20;
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let size = server.read(&mut buffer).unwrap();
        assert!(size > 0, "{left} bytes are missing");
        left -= size;
    }
    writing.join().unwrap().unwrap();
}

#[test]
fn it_is_the_same_on_a_stream_of_http2() {
    let (origin, to) = (echo(), local(free_port()));
    let _gate = Gate::start(&bridging(to, origin.addr, ""));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(to).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut client = client.ready().await.unwrap();
        let get = http::Request::get("http://x/stream").body(()).unwrap();
        let answer = client.send_request(get, true).unwrap().0.await.unwrap();
        assert_eq!(answer.status(), 426);
        let connect = http::Request::builder()
            .method("CONNECT")
            .uri("http://x/stream")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "binary")
            .extension(h2::ext::Protocol::from_static("websocket"))
            .body(())
            .unwrap();
        let (answer, mut send) = client.send_request(connect, false).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["sec-websocket-protocol"], "binary");
        assert!(!answer.headers().contains_key("sec-websocket-accept"));
        let mut body = answer.into_body();
        let message = frame(BINARY, MASK, b"over a stream");
        send.send_data(Bytes::from(message), false).unwrap();
        let mut back = Vec::new();
        while back.len() < 15 {
            let piece = tokio::time::timeout(PATIENCE, body.data()).await.unwrap();
            back.extend(piece.unwrap().unwrap());
        }
        assert_eq!(back, frame(BINARY, None, b"over a stream"));
        let close = frame(CLOSE, MASK, &1000_u16.to_be_bytes());
        send.send_data(Bytes::from(close), false).unwrap();
        let mut last = Vec::new();
        while let Some(piece) = tokio::time::timeout(PATIENCE, body.data()).await.unwrap() {
            last.extend(piece.unwrap());
        }
        assert_eq!(last, frame(CLOSE, None, &1000_u16.to_be_bytes()));
        driver.abort();
    });
}
