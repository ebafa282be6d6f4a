//! `/sessions`: who is listed, with what, and that a close ends one and nobody else.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use serde_json::{Value, json};

use crate::kit::{Call, Gate, PATIENCE, free_port, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Takes connections and hands them out.
fn origin() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn open(address: SocketAddr) -> TcpStream {
    patient(TcpStream::connect(address).unwrap())
}

fn say(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}

fn hear(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Nothing comes any more: its end, or a reset.
fn ends(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(0) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
        Ok(_) => false,
    }
}

/// A session with the origin, as both ends have it.
fn pair(listen: SocketAddr, origin: &TcpListener) -> (TcpStream, TcpStream) {
    let client = open(listen);
    (client, patient(origin.accept().unwrap().0))
}

fn list(gate: &Gate, query: &str) -> Value {
    gate.call(Call::get(&format!("/sessions{query}")))
        .expect(200)
}

/// The only one there is, once it is as wanted.
fn only(gate: &Gate, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    until(what, || {
        let all = list(gate, "")["sessions"].as_array().unwrap().clone();
        let [one] = &all[..] else { return None };
        wanted(one).then(|| one.clone())
    })
}

fn close(gate: &Gate, id: &Value) -> Value {
    gate.call(Call::post(&format!("/sessions/{id}/close")))
        .expect(200)
}

fn none_is_left(gate: &Gate) {
    until("the table to be empty", || {
        let all = list(gate, "");
        all["sessions"].as_array().unwrap().is_empty().then_some(())
    });
}

fn passing(listen: SocketAddr, origin: &TcpListener) -> String {
    format!(
        "[tcp.numbers]\nlisten = \"{listen}\"\nupstream = \"ten\"\n\
         [upstreams.ten]\ntargets = [\"{}\"]\n",
        origin.local_addr().unwrap()
    )
}

#[test]
fn a_tcp_session_is_listed_and_a_close_ends_it_on_both_sides_and_no_other() {
    let (origin, listen) = (origin(), local(free_port()));
    let document = passing(listen, &origin);
    let gate = Gate::start(&document);
    let (mut client, mut server) = pair(listen, &origin);
    say(&mut client, b"hello");
    hear(&mut server, 5);
    say(&mut server, b"hi");
    hear(&mut client, 2);
    let one = only(&gate, "the bytes to be told", |s| s["sent"] == 2);
    let expected = json!({
        "id": one["id"], "kind": "tcp", "client": client.local_addr().unwrap().to_string(),
        "listener": "numbers", "upstream": "ten",
        "destination": origin.local_addr().unwrap().to_string(),
        "generation": 1, "age_s": one["age_s"], "idle_s": one["idle_s"],
        "received": 5, "sent": 2, "closing": false
    });
    assert_eq!(one, expected);
    // It goes on in the generation that serves.
    gate.reload_ok(&format!(
        "{document}[http.x]\nlisten = \"127.0.0.1:0\"\nrespond = \"\"\n"
    ));
    only(&gate, "the new generation", |s| s["generation"] == 2);
    let (mut other, mut other_server) = pair(listen, &origin);
    let status = gate.status();
    assert_eq!(status["sessions"]["tcp"]["open"], 2, "{status}");
    let closed = close(&gate, &one["id"]);
    assert_eq!(
        (&closed["id"], &closed["closing"]),
        (&one["id"], &json!(true))
    );
    assert!(ends(&mut client) && ends(&mut server));
    say(&mut other, b"still");
    assert_eq!(hear(&mut other_server, 5), b"still");
    only(&gate, "the other one to be left", |s| s["received"] == 5);
    let sum = gate.status()["sessions"]["tcp"].clone();
    let expected = json!({ "open": 1, "opened": 2, "received": 10, "sent": 2 });
    assert_eq!(sum, expected);
    // Who is gone is gone.
    let again = Call::post(&format!("/sessions/{}/close", one["id"]));
    gate.call(again).problem(404, "no-such-session");
}

#[test]
fn pages_and_filters() {
    let (origin, listen) = (origin(), local(free_port()));
    let gate = Gate::start(&passing(listen, &origin));
    let open: Vec<_> = (0..7).map(|_| pair(listen, &origin)).collect();
    until("seven", || {
        (gate.status()["sessions"]["tcp"]["open"] == 7).then_some(())
    });
    let (mut seen, mut after) = (Vec::new(), 0);
    loop {
        let page = list(&gate, &format!("?limit=3&after={after}"));
        let ids = page["sessions"].as_array().unwrap().iter();
        seen.extend(ids.map(|s| s["id"].as_u64().unwrap()));
        let Some(next) = page["next"].as_u64() else {
            break;
        };
        after = next;
    }
    assert!(
        seen.len() == 7 && seen.is_sorted_by(|a, b| a < b),
        "{seen:?}"
    );
    let count = |query: &str| list(&gate, query)["sessions"].as_array().unwrap().len();
    assert_eq!(count("?kind=tcp&listener=numbers&client=127.0.0.1"), 7);
    for other in ["?kind=socks5", "?listener=x", "?client=127.0.0.2"] {
        assert_eq!(count(other), 0, "{other}");
    }
    for wrong in [
        "limit=0",
        "limit=1001",
        "kind=http",
        "client=x",
        "after=-1",
        "a=b",
    ] {
        let call = Call::get(&format!("/sessions?{wrong}"));
        gate.call(call).problem(400, "bad-query");
    }
    drop(open);
    none_is_left(&gate);
}

#[test]
fn a_read_token_lists_and_closes_nothing() {
    let (origin, listen) = (origin(), local(free_port()));
    let tokens = "token = \"full\"\nread_tokens = { graphs = \"of graphs\" }\n[runtime]";
    let gate = Gate::start("");
    let document = gate.document(&passing(listen, &origin));
    let document = document.replacen("[runtime]", tokens, 1);
    gate.call(Call::post("/reload").toml(&document)).expect(200);
    let (mut client, mut server) = pair(listen, &origin);
    let call = |call: Call, token: &str| {
        gate.call(call.header("authorization", &format!("Bearer {token}")))
    };
    let id = until("the session", || {
        let all = call(Call::get("/sessions"), "of graphs").expect(200);
        all["sessions"][0]["id"].as_u64()
    });
    let close = || Call::post(&format!("/sessions/{id}/close"));
    call(close(), "of graphs").problem(403, "read-only");
    say(&mut client, b"x");
    assert_eq!(hear(&mut server, 1), b"x");
    call(close(), "full").expect(200);
    assert!(ends(&mut client) && ends(&mut server));
}

#[test]
fn what_is_no_session_cannot_be_closed() {
    let gate = Gate::start("");
    for id in ["1", "0", "x", "18446744073709551616"] {
        let call = Call::post(&format!("/sessions/{id}/close"));
        gate.call(call).problem(404, "no-such-session");
    }
    let form = Call::post("/sessions/1/close").body("application/x-www-form-urlencoded", "");
    gate.call(form).problem(415, "unsupported-type");
    let body = Call::post("/sessions/1/close").json(&json!({ "a": 1 }));
    gate.call(body).problem(400, "body-not-expected");
}

const PROXY: &str = "destinations.allow = [\"127.0.0.0/8\"]\n";

#[test]
fn socks_sessions_are_listed_with_their_users_and_can_be_closed() {
    let (origin, listen) = (origin(), local(free_port()));
    let users = "users = { alice = \"wonderland\" }\n";
    let gate = Gate::start(&format!(
        "[forward.office]\nlisten = \"{listen}\"\n{PROXY}{users}"
    ));
    let mut client = open(listen);
    say(&mut client, &[5, 1, 2]);
    assert_eq!(hear(&mut client, 2), [5, 2]);
    say(&mut client, b"\x01\x05alice\x0awonderland");
    assert_eq!(hear(&mut client, 2), [1, 0]);
    let port = origin.local_addr().unwrap().port();
    say(
        &mut client,
        &[&[5, 1, 0, 3, 9], &b"localhost"[..], &port.to_be_bytes()].concat(),
    );
    assert_eq!(hear(&mut client, 10)[..2], [5, 0]);
    let mut server = patient(origin.accept().unwrap().0);
    say(&mut client, b"hello");
    hear(&mut server, 5);
    let one = only(&gate, "its bytes", |s| s["received"] == 5);
    let expected = json!({
        "id": one["id"], "kind": "socks5", "client": client.local_addr().unwrap().to_string(),
        "user": "alice", "listener": "office", "destination": format!("localhost:{port}"),
        "generation": 1, "age_s": one["age_s"], "idle_s": one["idle_s"],
        "received": 5, "sent": 0, "closing": false
    });
    assert_eq!(one, expected);
    close(&gate, &one["id"]);
    assert!(ends(&mut client) && ends(&mut server));
    none_is_left(&gate);
}

#[test]
fn a_udp_association_is_listed_with_what_passes_and_can_be_closed() {
    let listen = local(free_port());
    let gate = Gate::start(&format!("[forward.office]\nlisten = \"{listen}\"\n{PROXY}"));
    let mut control = open(listen);
    say(&mut control, &[5, 1, 0]);
    assert_eq!(hear(&mut control, 2), [5, 0]);
    say(&mut control, &[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]);
    let reply = hear(&mut control, 10);
    assert_eq!(reply[..2], [5, 0]);
    let relay = local(u16::from_be_bytes([reply[8], reply[9]]));
    let socket = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let (client, server) = (socket(), socket());
    let port = server.local_addr().unwrap().port().to_be_bytes();
    let head = [&[0, 0, 0, 1, 127, 0, 0, 1], &port[..]].concat();
    client
        .send_to(&[&head, &b"question"[..]].concat(), relay)
        .unwrap();
    let mut buffer = [0; 100];
    let (size, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..size], b"question");
    server.send_to(b"answer", from).unwrap();
    client.recv_from(&mut buffer).unwrap();
    let one = only(&gate, "its bytes", |s| s["received"] == 8 && s["sent"] == 6);
    assert_eq!(one["kind"], "socks_udp", "{one}");
    assert_eq!(one["client"], control.local_addr().unwrap().to_string());
    close(&gate, &one["id"]);
    assert!(ends(&mut control));
    none_is_left(&gate);
}

/// A client of the proxy that is connected with the origin.
fn socks4(listen: SocketAddr, origin: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = open(listen);
    let port = origin.local_addr().unwrap().port().to_be_bytes();
    say(
        &mut client,
        &[&[4, 1], &port[..], &[127, 0, 0, 1, 0]].concat(),
    );
    assert_eq!(hear(&mut client, 8)[..2], [0, 90]);
    (client, patient(origin.accept().unwrap().0))
}

/// Waits until the page has all of these lines.
fn metrics_have(gate: &Gate, lines: &[&str]) {
    let mut page = String::new();
    until(&format!("{lines:?}"), || {
        page = gate.call(Call::get("/metrics")).0.text();
        let has = |line: &&str| page.contains(&format!("\n{line}\n"));
        lines.iter().all(has).then_some(())
    });
}

#[test]
fn metrics_count_sessions_by_kind_and_bytes_by_listener_also_of_open_ones() {
    let (origin, listen, socks) = (origin(), local(free_port()), local(free_port()));
    let proxy = format!("[forward.office]\nlisten = \"{socks}\"\n{PROXY}");
    let document = passing(listen, &origin) + &proxy;
    let gate = Gate::start(&document);
    let (mut client, mut server) = pair(listen, &origin);
    say(&mut client, b"hello");
    hear(&mut server, 5);
    say(&mut server, b"hi");
    hear(&mut client, 2);
    let (mut user, mut other) = socks4(socks, &origin);
    say(&mut user, b"abc");
    hear(&mut other, 3);
    let (tcp, socks4) = (
        "{kind=\"tcp\",name=\"numbers\"}",
        "{kind=\"socks4\",name=\"office\"}",
    );
    let bytes = [
        &*format!("evergate_session_received_bytes_total{tcp} 5"),
        &*format!("evergate_session_sent_bytes_total{tcp} 2"),
        &*format!("evergate_session_received_bytes_total{socks4} 3"),
        "evergate_sessions_opened_total{kind=\"tcp\"} 1",
        "evergate_sessions_opened_total{kind=\"socks4\"} 1",
    ];
    metrics_have(&gate, &bytes);
    metrics_have(
        &gate,
        &[
            "evergate_sessions{kind=\"tcp\"} 1",
            "evergate_sessions{kind=\"socks4\"} 1",
        ],
    );
    // They are no websockets.
    metrics_have(&gate, &["evergate_websockets 0"]);
    drop((client, server, user, other));
    metrics_have(
        &gate,
        &[
            "evergate_sessions{kind=\"tcp\"} 0",
            "evergate_sessions{kind=\"socks4\"} 0",
        ],
    );
    gate.reload_ok(&format!(
        "{document}[http.x]\nlisten = \"127.0.0.1:0\"\nrespond = \"\"\n"
    ));
    // What was counted stays.
    metrics_have(&gate, &bytes);
}

/// The lines of a log, once there are so many.
fn lines(gate: &Gate, count: usize) -> Vec<String> {
    until("the lines", || {
        let text = std::fs::read_to_string(gate.dir.path().join("a.log")).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        (lines.len() >= count).then_some(lines)
    })
}

#[test]
fn each_session_leaves_a_line_at_its_end_that_says_how_it_came() {
    let (origin, listen, socks) = (origin(), local(free_port()), local(free_port()));
    let document = |format: &str| {
        let log = format!("[access_log]\npath = \"a.log\"\nformat = \"{format}\"\n");
        let proxy =
            format!("[forward.office]\nlisten = \"{socks}\"\n{PROXY}timeouts.idle = \"200ms\"\n");
        passing(listen, &origin) + &proxy + &log
    };
    let gate = Gate::start(&document("json"));
    let to = origin.local_addr().unwrap().to_string();
    let (mut client, mut server) = pair(listen, &origin);
    say(&mut client, b"hello");
    hear(&mut server, 5);
    say(&mut server, b"hi");
    hear(&mut client, 2);
    drop(client);
    assert!(ends(&mut server));
    drop(server);
    let line: Value = serde_json::from_str(&lines(&gate, 1)[0]).unwrap();
    let expected = json!({
        "time": line["time"], "client_ip": "127.0.0.1", "user": "", "kind": "tcp", "listener": "numbers",
        "upstream": "ten", "target": to, "ended": "closed",
        "bytes_received": 5, "bytes_sent": 2, "duration_ms": line["duration_ms"], "generation": 1
    });
    assert_eq!(line, expected);
    // One that an operator ends, and one that is silent.
    let (mut client, mut server) = pair(listen, &origin);
    let one = only(&gate, "it", |_| true);
    close(&gate, &one["id"]);
    assert!(ends(&mut client) && ends(&mut server));
    let line: Value = serde_json::from_str(&lines(&gate, 2)[1]).unwrap();
    assert_eq!(line["ended"], "cut", "{line}");
    let (mut silent, _server) = socks4(socks, &origin);
    assert!(ends(&mut silent));
    let line: Value = serde_json::from_str(&lines(&gate, 3)[2]).unwrap();
    assert_eq!(
        (&line["kind"], &line["ended"]),
        (&json!("socks4"), &json!("idle"))
    );
    assert_eq!(
        (&line["target"], &line["listener"]),
        (&json!(to), &json!("office"))
    );
    // Other formats, from the next session on.
    gate.reload_ok(&document("combined"));
    drop(pair(listen, &origin));
    let line = lines(&gate, 4).pop().unwrap();
    let (start, end) = (
        line.starts_with("127.0.0.1 - - ["),
        format!("] \"TCP {to}\" "),
    );
    assert!(
        start && line.contains(&end) && line.ends_with(" 0 \"-\" \"-\""),
        "{line}"
    );
    gate.reload_ok(&document(
        "{scheme} {server} {target} {bytes_received}/{bytes_sent}",
    ));
    drop(pair(listen, &origin));
    let line = lines(&gate, 5).pop().unwrap();
    assert_eq!(line, format!("tcp numbers {to} 0/0"));
}
