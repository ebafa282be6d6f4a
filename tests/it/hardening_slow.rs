//! Clients that are slow on purpose: each is let go by its limit, and many of them keep nobody else waiting. (Silent clients
//! and heads that do not end are in `limits.rs`, handshakes in `tls.rs`.)

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use crate::kit::frames::{
    Bystander, CONTINUATION, END_STREAM, HEADERS, Wire, frame, get as get2, request,
};
use crate::kit::{Conn, Gate, Origin, free_port, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

const QUICK: &str =
    "timeouts = { header = \"500ms\", body = \"500ms\", idle = \"500ms\", write = \"500ms\" }";
/// A debug build on a busy machine has more time.
const BAR: Duration = Duration::from_millis(if cfg!(debug_assertions) { 2500 } else { 1000 });

fn start() -> (Gate, Origin, SocketAddr) {
    let origin = Origin::start("A");
    let to = local(free_port());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\n{QUICK}\nproxy = \"http://{}\"\n[[http.web.routes]]\nmatch.path = \"/ok\"\nrespond = \"ok\"\n",
        origin.addr
    ));
    (gate, origin, to)
}

/// Two hundred of each kind at a time, each sending a byte now and then, until all are gone.
#[test]
fn hundreds_of_slow_senders_are_let_go_and_keep_nobody_waiting() {
    let (gate, _origin, to) = start();
    let kinds = [
        ("nothing", String::new()),
        ("a head", "GET / HTTP/1.1\r\nhost: x\r\nx: ".to_owned()),
        ("a request line", "GET /".to_owned()),
        ("a preface", "PRI * HTTP/2.0\r\n\r\nS".to_owned()),
        (
            "a body",
            "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n1".to_owned(),
        ),
        (
            "a chunk",
            "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n64\r\n1"
                .to_owned(),
        ),
        (
            "a trailer",
            "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: "
                .to_owned(),
        ),
    ];
    let bystander = Bystander::start(to, "/ok");
    let mut all: Vec<(&str, Conn)> = Vec::new();
    for (what, text) in &kinds {
        for _ in 0..30 {
            let mut conn = Conn::open(to).unwrap();
            conn.send(text).unwrap();
            all.push((what, conn));
        }
    }
    for (what, conn) in &mut all {
        let mut last = Vec::new();
        loop {
            match conn.some(1 << 12) {
                Ok(piece) if piece.is_empty() => break,
                Ok(piece) => last.extend(piece),
                Err(e) => {
                    assert!(
                        !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                        "{what} was let hang"
                    );
                    break;
                }
            }
        }
        let last = String::from_utf8_lossy(&last);
        // An answer where one is still possible.
        if !matches!(*what, "nothing" | "a preface") {
            assert!(last.starts_with("HTTP/1.1 408 "), "{what}: {last:?}");
        }
    }
    let worst = bystander.worst();
    assert!(worst < BAR, "another client waited {worst:?}");
    gate.wait_status("no connection to be left", |s| s["connections"] == 0);
}

/// A client that asks and does not read: its answer waits in no memory of ours, and not for ever.
#[test]
fn a_client_that_does_not_read_is_let_go() {
    let (gate, origin, to) = start();
    let mut slow: Vec<Conn> = (0..10).map(|_| Conn::open(to).unwrap()).collect();
    for conn in &mut slow {
        conn.send("GET /infinite HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
    }
    until("the origin to lose them", || {
        (origin.broken() >= 10).then_some(())
    });
    gate.wait_status("no connection to be left", |s| s["connections"] == 0);
}

/// Over HTTP/2 a window stays closed while the connection itself goes on.
#[test]
fn a_stream_whose_window_stays_closed_is_let_go() {
    let (gate, origin, to) = start();
    let mut wire = Wire::open(to, &[(4, 0)]);
    for stream in [1, 3, 5] {
        wire.send(&get2(stream, "/infinite")).unwrap();
    }
    until("the origin to lose them", || {
        (origin.broken() >= 3).then_some(())
    });
    gate.wait_status("nothing in flight", |s| {
        s["upstreams"][0]["targets"][0]["in_flight"] == 0
    });
}

/// Pieces of a head over HTTP/2 that come one by one.
#[test]
fn a_head_in_dribbled_frames_is_let_go() {
    let (gate, _origin, to) = start();
    let mut wire = Wire::open(to, &[]);
    wire.send(&frame(HEADERS, END_STREAM, 1, &request("GET", "/id")))
        .unwrap();
    until("the connection to end", || {
        std::thread::sleep(Duration::from_millis(20));
        wire.send(&frame(CONTINUATION, 0, 1, &[]))
            .is_err()
            .then_some(())
    });
    gate.wait_status("no connection to be left", |s| s["connections"] == 0);
}

/// An upload over HTTP/2 that stops.
#[test]
fn a_body_that_stops_over_http_2_is_let_go() {
    let (gate, _origin, to) = start();
    let mut wire = Wire::open(to, &[]);
    wire.send(&frame(HEADERS, 4, 1, &request("POST", "/echo")))
        .unwrap();
    assert!(wire.fate(1).is_refusal());
    gate.wait_status("nothing in flight", |s| {
        s["upstreams"][0]["targets"][0]["in_flight"] == 0
    });
}
