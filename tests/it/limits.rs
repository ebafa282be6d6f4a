//! Limits and timeouts: each refusal has its status, costs its client only, and ends.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::kit::{Conn, Gate, Origin, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn serve(lines: &str) -> (Gate, SocketAddr) {
    let to = local(free_port());
    (
        Gate::start(&format!(
            "[http.web]\nlisten = \"{to}\"\nrespond = \"ok\"\n{lines}\n"
        )),
        to,
    )
}

fn proxied(lines: &str) -> (Gate, Origin, SocketAddr) {
    let origin = Origin::start("A");
    let to = local(free_port());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"http://{}\"\n{lines}\n",
        origin.addr
    ));
    (gate, origin, to)
}

#[test]
fn a_head_over_the_size_is_a_431() {
    let (_gate, to) = serve("limits = { header_size = \"8KiB\" }");
    let ask = |bytes: usize| {
        let mut conn = Conn::open(to).unwrap();
        conn.exchange(format!(
            "GET / HTTP/1.1\r\nhost: x\r\nx-a: {}\r\n\r\n",
            "y".repeat(bytes)
        ))
    };
    assert_eq!(ask(7000).unwrap().status, 200);
    assert_eq!(ask(9000).unwrap().status, 431);
    // Much over it: refused as well, or cut off while it is still sent.
    assert!(ask(1 << 20).map_or(true, |r| r.status == 431));
    assert_eq!(get(to, "x", "/").status, 200);
}

#[test]
fn too_many_fields_are_a_431() {
    let (_gate, to) = serve("limits = { headers = 20 }");
    let ask = |n: usize| {
        let fields: String = (0..n).map(|i| format!("x-{i}: 1\r\n")).collect();
        Conn::open(to)
            .unwrap()
            .exchange(format!("GET / HTTP/1.1\r\nhost: x\r\n{fields}\r\n"))
            .unwrap()
            .status
    };
    assert_eq!((ask(10), ask(19), ask(20), ask(100)), (200, 200, 431, 431));
}

#[test]
fn a_head_that_does_not_end_is_a_408() {
    let (_gate, to) = serve("timeouts = { header = \"300ms\" }");
    let start = Instant::now();
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET / HTTP/1.1\r\nhost: x\r\nx-slow: ").unwrap();
    let answer = conn.response().unwrap();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (408, Some("close"))
    );
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert!(conn.closed());
}

/// A byte now and then does not keep it alive.
#[test]
fn a_dribbled_head_is_a_408_too() {
    let (_gate, to) = serve("timeouts = { header = \"500ms\" }");
    let mut conn = Conn::open(to).unwrap();
    conn.stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    conn.send("GET / HTTP/1.1\r\nhost: x\r\nx: ").unwrap();
    let answer = until("the answer", || {
        let _ = conn.send("y");
        match conn.response() {
            Ok(answer) => Some(answer.status),
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                None
            }
            // Our own late byte may turn its close into a reset.
            Err(_) => Some(408),
        }
    });
    assert_eq!(answer, 408);
}

#[test]
fn a_silent_client_is_let_go() {
    let (gate, to) = serve("timeouts = { header = \"300ms\" }");
    let mut silent: Vec<Conn> = (0..20).map(|_| Conn::open(to).unwrap()).collect();
    for conn in &mut silent {
        // With or without a 408, it ends.
        while let Ok(piece) = conn.some(1 << 16)
            && !piece.is_empty()
        {}
    }
    gate.wait_status("no connection to be left", |s| s["connections"] == 0);
    assert_eq!(get(to, "x", "/").status, 200);
}

#[test]
fn a_client_silent_after_the_preface_of_http_2_is_let_go() {
    let (gate, to) = serve("timeouts = { header = \"300ms\", idle = \"300ms\" }");
    for bytes in [&b"PRI * HT"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut conn = Conn::open(to).unwrap();
        conn.send(bytes).unwrap();
        while let Ok(piece) = conn.some(1 << 16)
            && !piece.is_empty()
        {}
    }
    gate.wait_status("no connection to be left", |s| s["connections"] == 0);
}

#[test]
fn an_idle_connection_is_closed_without_an_answer() {
    let (_gate, to) = serve("timeouts = { idle = \"300ms\" }");
    let mut conn = Conn::open(to).unwrap();
    let start = Instant::now();
    assert_eq!(
        conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap()
            .status,
        200
    );
    assert!(conn.closed(), "it got an answer to nothing");
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_body_over_the_limit_is_a_413() {
    let (_gate, origin, to) = proxied("limits = { body = \"1KB\" }");
    let post = |bytes: usize| {
        let mut conn = Conn::open(to).unwrap();
        conn.send(format!(
            "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n"
        ))
        .unwrap();
        // What is refused by its length need not be read.
        let _ = conn.send("y".repeat(bytes));
        conn.response().unwrap().status
    };
    assert_eq!(post(1000), 200);
    let before = origin.requests();
    assert_eq!(post(1001), 413);
    assert_eq!(origin.requests(), before);
    // Without a length it is counted as it comes.
    let mut conn = Conn::open(to).unwrap();
    conn.send("POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    let _ = conn.send(format!("800\r\n{}\r\n0\r\n\r\n", "y".repeat(0x800)));
    assert_eq!(conn.response().unwrap().status, 413);
}

#[test]
fn a_body_that_stops_coming_is_a_408() {
    let (_gate, _origin, to) = proxied("timeouts = { body = \"300ms\" }");
    let mut conn = Conn::open(to).unwrap();
    conn.send("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf")
        .unwrap();
    assert_eq!(conn.response().unwrap().status, 408);
    assert!(conn.closed());
}

#[test]
fn connections_over_the_limit_are_closed_and_those_within_go_on() {
    let (_gate, to) = serve("limits = { connections = 3 }");
    let mut kept: Vec<Conn> = (0..3).map(|_| Conn::open(to).unwrap()).collect();
    for conn in &mut kept {
        assert_eq!(
            conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                .unwrap()
                .status,
            200
        );
    }
    let beyond = Conn::open(to).and_then(|mut c| c.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n"));
    assert!(beyond.map_or(true, |r| r.status == 503));
    for conn in &mut kept {
        assert_eq!(
            conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                .unwrap()
                .status,
            200
        );
    }
    drop(kept);
    until("a place to be free again", || {
        Conn::open(to)
            .and_then(|mut c| c.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n"))
            .is_ok_and(|r| r.status == 200)
            .then_some(())
    });
}

#[test]
fn connections_of_one_client_are_limited_by_its_address() {
    let (_gate, to) = serve("limits = { connections_per_client = 2 }");
    let mut kept: Vec<Conn> = (0..2).map(|_| Conn::open(to).unwrap()).collect();
    for conn in &mut kept {
        assert_eq!(
            conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                .unwrap()
                .status,
            200
        );
    }
    let text = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    assert!(
        Conn::open(to)
            .and_then(|mut c| c.exchange(text))
            .map_or(true, |r| r.status == 503)
    );
    let other =
        Conn::open_from("127.0.0.9".parse().unwrap(), to).and_then(|mut c| c.exchange(text));
    assert_eq!(other.unwrap().status, 200);
}

#[test]
fn requests_of_a_connection_are_limited() {
    let (_gate, to) = serve("limits = { requests_per_connection = 3 }");
    let mut conn = Conn::open(to).unwrap();
    for turn in 1..=3 {
        let answer = conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, (turn == 3).then_some("close"))
        );
    }
    assert!(conn.closed());
}

#[test]
fn a_response_body_that_stops_coming_is_given_up() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = [\"{}\"]\ntimeouts = {{ idle = \"300ms\" }}\n",
        origin.addr
    ));
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /drip HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert!(conn.response().is_err(), "a cut answer looked whole");
}

#[test]
fn limits_are_read_for_their_form() {
    let gate = Gate::start("");
    for (line, pointer) in [
        (
            "limits = { header_size = \"8 apples\" }",
            "/http/web/limits/header_size",
        ),
        (
            "limits = { connections = 0 }",
            "/http/web/limits/connections",
        ),
        ("timeouts = { idle = \"5\" }", "/http/web/timeouts/idle"),
        ("limits = { streems = 5 }", "/http/web/limits/streems"),
    ] {
        let answer = gate.reload(&format!(
            "[http.web]\nlisten = \"127.0.0.1:0\"\nrespond = \"x\"\n{line}\n"
        ));
        answer.problem(422, "invalid-document");
        assert_eq!(answer.pointers(), [pointer]);
    }
}
