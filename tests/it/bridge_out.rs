//! `[tcp] websocket`: connections that go on in a websocket, to a server by hand and to the action `tcp` of our own.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::authority::Authority;
use crate::kit::websocket::{BINARY, CLOSE, PING, PONG, TEXT, agree, frame, read_masked};
use crate::kit::{Call, Conn, Gate, PATIENCE, free_port, until};
use crate::tcp::{echo, exchange, open};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn server() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// A listener of these lines.
fn sending(listen: SocketAddr, lines: &str) -> String {
    format!("[tcp.out]\nlisten = \"{listen}\"\n{lines}\n")
}

fn to_url(listen: SocketAddr, server: SocketAddr, more: &str) -> String {
    let url = format!("websocket = \"ws://{server}/stream?a=b\"\n{more}");
    sending(listen, &url)
}

/// A session, as both ends have it.
fn pair(listen: SocketAddr, server: &TcpListener) -> (TcpStream, Conn) {
    let client = open(listen);
    let (conn, _) = agree(server.accept().unwrap().0, "");
    (client, conn)
}

fn say(conn: &mut Conn, opcode: u8, payload: &[u8]) {
    conn.send(frame(opcode, None, payload)).unwrap();
}

/// So many bytes of binary messages.
fn hear(conn: &mut Conn, size: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < size {
        let (_, opcode, payload) = read_masked(conn).unwrap();
        assert_eq!(opcode, BINARY);
        all.extend(payload);
    }
    all
}

fn closes_with(conn: &mut Conn, code: u16) {
    let (_, opcode, payload) = read_masked(conn).unwrap();
    assert_eq!((opcode, payload), (CLOSE, code.to_be_bytes().to_vec()));
}

fn is_reset(stream: &mut TcpStream) {
    let read = stream.read(&mut [0]);
    let reset = |e: &std::io::Error| e.kind() == ErrorKind::ConnectionReset;
    assert!(read.as_ref().is_err_and(reset), "{read:?}");
}

/// Bytes that are everywhere others.
fn bytes(size: usize) -> Vec<u8> {
    (0..size as u32)
        .map(|n| (n >> 9 ^ n >> 3 ^ n) as u8)
        .collect()
}

/// Sends all of it and its end, and reads what comes until the end.
fn both_ways(mut stream: TcpStream, all: &[u8]) -> Vec<u8> {
    let (mut write, sent) = (stream.try_clone().unwrap(), all.to_vec());
    let writing = std::thread::spawn(move || {
        write.write_all(&sent).unwrap();
        write.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    back
}

/// Through the action `tcp`: cleartext by a URL, TLS by an upstream, TLS with HTTP/2; one end after the other.
#[test]
fn both_ends_are_ours_and_a_stream_is_what_it_was() {
    let (ca, origin) = (Authority::new(), echo());
    let issued = ca.issue(&["127.0.0.1"]);
    let (listen, web) = (local(free_port()), local(free_port()));
    let tls = "tls = { certificates = [{ cert = \"web.pem\", key = \"web.key\" }] }";
    let far = |protocol: &str| {
        format!(
            "upstream = \"far\"\nwebsocket = \"/stream\"\n[upstreams.far]\ntargets = \"{web}\"\n\
             protocol = \"{protocol}\"\ntls = {{ ca = \"ca.pem\" }}"
        )
    };
    let document = |out: &str, tls: &str| {
        format!(
            "[http.web]\nlisten = \"{web}\"\nrespond = \"\"\n{tls}\n\
             [[http.web.routes]]\nmatch.path = \"/stream\"\ntcp = \"{}\"\n{}",
            origin.addr,
            sending(listen, out)
        )
    };
    let gate = Gate::setup()
        .file("ca.pem", ca.pem())
        .file("web.pem", issued.cert.clone())
        .file("web.key", issued.key.clone())
        .start("");
    let all = bytes(10_000_000);
    for (out, tls) in [
        (format!("websocket = \"ws://{web}/stream\""), ""),
        (far("h1"), tls),
        (far("h2"), tls),
    ] {
        gate.reload_drained(&document(&out, tls));
        let back = both_ways(open(listen), &all);
        assert!(back == all, "{} bytes, {out}", back.len());
        // Small ones, and in turn.
        let mut stream = open(listen);
        for n in 0..100 {
            exchange(&mut stream, &format!("number {n}"));
        }
    }
    // A certificate that nobody here knows.
    gate.reload_ok(&document(
        &format!("websocket = \"wss://{web}/stream\""),
        tls,
    ));
    is_reset(&mut open(listen));
    until("the log", || {
        gate.output().contains("TLS with 127.0.0.1").then_some(())
    });
}

#[test]
fn a_server_sees_a_handshake_masked_frames_and_its_pings_answered_over_swaps() {
    let ((server, addr), listen) = (server(), local(free_port()));
    let log = "[access_log]\npath = \"a.log\"\nformat = \"json\"\n";
    let document = to_url(listen, addr, log);
    let gate = Gate::start(&document);
    let mut client = open(listen);
    client.write_all(b"hello").unwrap();
    // A frame comes with the answer.
    let mut conn = Conn::over(server.accept().unwrap().0).unwrap();
    let head = conn.head().unwrap().unwrap();
    let key = head.get("sec-websocket-key").unwrap();
    let switch = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nconnection: x, upgrade\r\n\
         sec-websocket-accept: {}\r\n\r\n",
        crate::kit::h2origin::accept(key)
    );
    let welcome = frame(TEXT, None, b"welcome");
    conn.send([switch.as_bytes(), &welcome].concat()).unwrap();
    assert_eq!(head.line, "GET /stream?a=b HTTP/1.1");
    for (name, value) in [
        ("host", &*addr.to_string()),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
    ] {
        assert_eq!(head.get(name), Some(value), "{}", head.text);
    }
    assert_eq!(head.get("sec-websocket-key").unwrap().len(), 24);
    for none in [
        "sec-websocket-extensions",
        "sec-websocket-protocol",
        "origin",
    ] {
        assert_eq!(head.get(none), None);
    }
    let mut welcome = [0; 7];
    client.read_exact(&mut welcome).unwrap();
    assert_eq!(&welcome, b"welcome");
    let (first, opcode, payload) = read_masked(&mut conn).unwrap();
    assert_eq!((opcode, &payload[..]), (BINARY, &b"hello"[..]));
    client.write_all(b"hello").unwrap();
    let (second, ..) = read_masked(&mut conn).unwrap();
    assert_ne!(first, second, "the same mask twice");
    say(&mut conn, PING, b"there?");
    let (_, opcode, payload) = read_masked(&mut conn).unwrap();
    assert_eq!((opcode, &payload[..]), (PONG, &b"there?"[..]));
    // A change of something else does not touch it.
    gate.reload_ok(&format!(
        "{document}[http.x]\nlisten = \"127.0.0.1:0\"\nrespond = \"\"\n"
    ));
    say(&mut conn, BINARY, b"!");
    client.read_exact(&mut [0]).unwrap();
    let one = until("its bytes to be told", || {
        let list = gate.call(Call::get("/sessions?kind=tcp")).json();
        let one = list["sessions"][0].clone();
        (one["sent"] == 8 && one["generation"] == 2).then_some(one)
    });
    let target = addr.to_string();
    let expected = json!({
        "id": one["id"], "kind": "tcp", "client": client.local_addr().unwrap().to_string(),
        "listener": "out", "upstream": target, "destination": target,
        "generation": 2, "age_s": one["age_s"], "idle_s": one["idle_s"],
        "received": 10, "sent": 8, "closing": false
    });
    assert_eq!(one, expected);
    let close = format!("/sessions/{}/close", one["id"]);
    gate.call(Call::post(&close)).expect(200);
    closes_with(&mut conn, 1001);
    is_reset(&mut client);
    let line = line(&gate, 1);
    let expected = json!({
        "time": line["time"], "client_ip": "127.0.0.1", "user": "", "kind": "tcp", "listener": "out",
        "upstream": target, "target": target, "ended": "cut",
        "bytes_received": 10, "bytes_sent": 8, "duration_ms": line["duration_ms"], "generation": 2
    });
    assert_eq!(line, expected);
}

/// The last line of the access log once there are `count`.
fn line(gate: &Gate, count: usize) -> Value {
    until("a line", || {
        let text = std::fs::read_to_string(gate.dir.path().join("a.log")).unwrap();
        assert!(text.lines().count() <= count, "{text}");
        let last = text.lines().nth(count - 1)?;
        text.ends_with('\n')
            .then(|| serde_json::from_str(last).unwrap())
    })
}

#[test]
fn each_end_becomes_the_other_ones() {
    let ((server, addr), listen) = (server(), local(free_port()));
    let _gate = Gate::start(&to_url(listen, addr, ""));
    // The client first: the server may still send.
    let (mut client, mut conn) = pair(listen, &server);
    client.write_all(b"all of it").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(hear(&mut conn, 9), b"all of it");
    closes_with(&mut conn, 1000);
    say(&mut conn, BINARY, b"the answer");
    say(&mut conn, CLOSE, &1000_u16.to_be_bytes());
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"the answer");
    assert!(conn.some(1).unwrap().is_empty(), "more came after a Close");
    // The server first: the client may still send.
    let (mut client, mut conn) = pair(listen, &server);
    say(&mut conn, BINARY, b"bye");
    say(&mut conn, CLOSE, &[]);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"bye");
    client.write_all(b"late").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(hear(&mut conn, 4), b"late");
    closes_with(&mut conn, 1000);
}

#[test]
fn what_breaks_is_a_reset_on_one_side_and_a_close_that_says_so_on_the_other() {
    let ((server, addr), listen) = (server(), local(free_port()));
    let _gate = Gate::start(&to_url(listen, addr, ""));
    // No websocket: a mask, a text in the middle of another, a Close that is none.
    for wrong in [
        frame(BINARY, Some([1, 2, 3, 4]), b"masked"),
        vec![TEXT, 0, 0x80 | BINARY, 0],
        frame(CLOSE, None, &[3]),
        frame(3, None, b""),
    ] {
        let (mut client, mut conn) = pair(listen, &server);
        conn.send(&wrong).unwrap();
        closes_with(&mut conn, 1002);
        is_reset(&mut client);
    }
    // It closes, but is not done; what it sent before arrives.
    for code in [1001, 1011, 4000] {
        let (mut client, mut conn) = pair(listen, &server);
        say(&mut conn, BINARY, b"half");
        client.read_exact(&mut [0; 4]).unwrap();
        say(&mut conn, CLOSE, &u16::to_be_bytes(code));
        is_reset(&mut client);
        closes_with(&mut conn, code);
    }
    // It goes without a word.
    let (mut client, conn) = pair(listen, &server);
    drop(conn);
    is_reset(&mut client);
    // So does the client.
    let (client, mut conn) = pair(listen, &server);
    let socket = socket2::SockRef::from(&client);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    closes_with(&mut conn, 1011);
}

#[test]
fn silence_and_a_swap_of_the_listener_are_a_going_away() {
    let ((server, addr), listen) = (server(), local(free_port()));
    let gate = Gate::start(&to_url(listen, addr, "on_change = \"cut\""));
    let (mut client, mut conn) = pair(listen, &server);
    exchange_by_hand(&mut client, &mut conn);
    gate.reload_ok("");
    closes_with(&mut conn, 1001);
    is_reset(&mut client);
    // Another path is another session.
    gate.reload_ok(&to_url(listen, addr, "on_change = \"cut\""));
    let (mut client, mut conn) = pair(listen, &server);
    let other = to_url(listen, addr, "on_change = \"cut\"").replace("/stream", "/other");
    gate.reload_ok(&other);
    closes_with(&mut conn, 1001);
    is_reset(&mut client);
    gate.reload_ok(&to_url(listen, addr, "timeouts.idle = \"100ms\""));
    let (mut client, mut conn) = pair(listen, &server);
    closes_with(&mut conn, 1001);
    is_reset(&mut client);
}

fn exchange_by_hand(client: &mut TcpStream, conn: &mut Conn) {
    client.write_all(b"x").unwrap();
    assert_eq!(hear(conn, 1), b"x");
    say(conn, BINARY, b"y");
    client.read_exact(&mut [0]).unwrap();
}

#[test]
fn an_answer_that_is_no_websocket_is_told_and_the_next_target_tried() {
    let ((server, addr), listen) = (server(), local(free_port()));
    let good = "sec-websocket-accept: KEY\r\nupgrade: websocket\r\nconnection: upgrade\r\n";
    let switch = |fields: &str| format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
    let cases = [
        (
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno".to_owned(),
            "answered with 403 Forbidden: it does not let us in",
        ),
        (
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: wss://a.test/b\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "a redirect to \"wss://a.test/b\", which is not followed",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "answered with 200 OK: there is no websocket at this path",
        ),
        (
            switch(&good.replace("KEY", "dGhlIHNhbXBsZSBub25jZQ==")),
            "a wrong Sec-WebSocket-Accept",
        ),
        (
            switch(&format!("{good}sec-websocket-extensions: permessage-deflate\r\n")),
            "agreed on an extension that was not offered",
        ),
        (
            switch(&format!("{good}sec-websocket-protocol: binary\r\n")),
            "agreed on a subprotocol that was not offered",
        ),
        (
            switch(&good.replace("websocket\r\nconnection", "chat\r\nconnection")),
            "switched to something other than websocket",
        ),
        ("SSH-2.0-x\r\n".to_owned(), "http_protocol_error"),
        (String::new(), "connection_terminated"),
    ];
    let log = "[access_log]\npath = \"a.log\"\nformat = \"json\"\n";
    let gate = Gate::start(&to_url(listen, addr, log));
    for (index, (answer, told)) in cases.iter().enumerate() {
        let mut client = open(listen);
        client.write_all(b"nobody reads this").unwrap();
        let mut conn = Conn::over(server.accept().unwrap().0).unwrap();
        let head = conn.head().unwrap().unwrap();
        let key = crate::kit::h2origin::accept(head.get("sec-websocket-key").unwrap());
        conn.send(answer.replace("KEY", &key)).unwrap();
        if answer.is_empty() {
            drop(conn);
        } else {
            // Nothing of the client's is sent to whoever did not agree.
            assert!(!matches!(conn.some(1), Ok(some) if !some.is_empty()));
        }
        is_reset(&mut client);
        until(told, || gate.output().contains(told).then_some(()));
        let line = line(&gate, index + 1);
        let found = (&line["ended"], &line["target"], &line["upstream"]);
        let expected = (&json!("failed"), &json!(""), &json!(addr.to_string()));
        assert_eq!(found, expected, "{line}");
    }
    // Mute.
    gate.reload_ok(&to_url(listen, addr, "timeouts.connect = \"100ms\""));
    let mut client = open(listen);
    let _mute = server.accept().unwrap();
    is_reset(&mut client);
    until("the time to be told", || {
        let told = "no websocket within 100ms";
        gate.output().contains(told).then_some(())
    });
    // Whoever comes next in the list gets it.
    let (second, other) = self::server();
    gate.reload_ok(&sending(
        listen,
        &format!(
            "upstream = \"two\"\nwebsocket = \"/\"\n[upstreams.two]\ntargets = [\"{addr}\", \
             {{ address = \"{other}\", backup = true }}]"
        ),
    ));
    let mut client = open(listen);
    let mut conn = Conn::over(server.accept().unwrap().0).unwrap();
    conn.head().unwrap().unwrap();
    conn.send("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
        .unwrap();
    let (mut conn, head) = agree(second.accept().unwrap().0, "");
    assert_eq!(head.get("host"), Some(&*other.to_string()));
    exchange_by_hand(&mut client, &mut conn);
}

/// Neither side is read, and nothing more is taken for it; then all of it arrives.
#[test]
fn what_a_slow_side_does_not_take_is_not_read_for_it() {
    let ((server, addr), listen) = (server(), local(free_port()));
    let gate = Gate::start(&to_url(listen, addr, ""));
    const ALL: usize = 64 << 20;
    let told = |key: &str| {
        let list = gate.call(Call::get("/sessions?kind=tcp")).json();
        list["sessions"][0][key].as_u64().unwrap_or(0)
    };
    let stands_still = |key: &str| {
        let mut last = 0;
        until("it to stand still", || {
            let now = told(key);
            std::thread::sleep(Duration::from_millis(200));
            (std::mem::replace(&mut last, now) == now && now > 0).then_some(())
        });
        assert!(last < ALL as u64, "{last} bytes were taken");
    };
    let before = gate.own_memory();
    let (client, mut conn) = pair(listen, &server);
    let mut write = client.try_clone().unwrap();
    let writing = std::thread::spawn(move || write.write_all(&vec![1; ALL]));
    stands_still("received");
    let mut far = conn.stream.try_clone().unwrap();
    let message = frame(BINARY, None, &vec![2; ALL]);
    let answering = std::thread::spawn(move || far.write_all(&message));
    stands_still("sent");
    let grown = gate.own_memory().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes of memory");
    let reading = std::thread::spawn(move || {
        let (mut client, mut left, mut buffer) = (client, ALL, vec![0; 1 << 16]);
        while left > 0 {
            let size = client.read(&mut buffer).unwrap();
            assert!(size > 0 && buffer[..size].iter().all(|b| *b == 2));
            left -= size;
        }
        // Else its end would be a reset for what is on its way.
        client
    });
    let mut left = ALL;
    while left > 0 {
        let (_, opcode, payload) = read_masked(&mut conn).unwrap();
        assert!(opcode == BINARY && payload.iter().all(|b| *b == 1));
        left -= payload.len();
    }
    writing.join().unwrap().unwrap();
    answering.join().unwrap().unwrap();
    reading.join().unwrap();
}

#[test]
fn bandwidth_bounds_both_directions() {
    let ((server, addr), listen) = (server(), local(free_port()));
    let _gate = Gate::start(&to_url(listen, addr, "limits.bandwidth = \"200KB/s\""));
    let (mut client, mut conn) = pair(listen, &server);
    let begun = Instant::now();
    client.write_all(&[1; 164_000]).unwrap();
    hear(&mut conn, 164_000);
    // What is beyond the burst takes its time.
    assert!(begun.elapsed() >= Duration::from_millis(450));
    let begun = Instant::now();
    say(&mut conn, BINARY, &[2; 164_000]);
    client.read_exact(&mut vec![0; 164_000]).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(450));
    assert!(begun.elapsed() < PATIENCE);
}

#[test]
fn wrong_ones_are_refused_with_the_place() {
    let gate = Gate::start("");
    for (lines, told) in [
        ("websocket = \"http://a.test/\"", "is no websocket's URL"),
        ("websocket = \"a.test\"", "is not the URL of a websocket"),
        ("websocket = \"ws://a.test/#x\"", "has no fragment"),
        (
            "websocket = \"ws://me@a.test/\"",
            "is not `host` or `host:port`",
        ),
        ("websocket = \"/path\"", "needs an `upstream`, or `sni`"),
        (
            "websocket = \"ws://a.test/\"\nupstream = \"127.0.0.1:1\"",
            "stands instead of an upstream",
        ),
    ] {
        let answer = gate.reload(&sending(local(1), lines));
        answer.problem(422, "invalid-document");
        let place = match lines {
            "websocket = \"/path\"" => "/tcp/out",
            _ => "/tcp/out/websocket",
        };
        assert_eq!(answer.pointers(), [place], "{lines}");
        assert!(answer.text().contains(told), "{told}: {}", answer.text());
    }
}
