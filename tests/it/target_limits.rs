//! `limits` of a target: never more at once, the rest waits in turn or is told to come back.

use std::net::SocketAddr;
use std::time::Duration;

use crate::kit::h2origin::{H2Origin, Ways};
use crate::kit::{Conn, Gate, Origin, count, free_port, until};

fn config(to: SocketAddr, origins: &[&Origin], limits: &str) -> String {
    let targets: Vec<_> = origins.iter().map(|o| format!("\"{}\"", o.addr)).collect();
    format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = [{}]\nlimits = {{ {limits} }}\n",
        targets.join(", ")
    )
}

fn ask(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")
}

fn queued(gate: &Gate, wanted: u64) {
    let what = format!("{wanted} requests to wait");
    gate.wait_status(&what, |s| s["upstreams"][0]["queued"] == wanted);
}

fn place() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

#[test]
fn a_target_never_has_more_than_its_limit_over_workers_and_swaps() {
    const LIMIT: usize = 2;
    let origins = ["A", "B", "C"].map(Origin::start);
    let all = origins.each_ref();
    let to = place();
    let limits = format!("requests = {LIMIT}, queue = 1000, wait = \"60s\"");
    let other = format!(
        "{}balance = \"least_requests\"\n",
        config(to, &all, &limits)
    );
    let first = config(to, &all, &limits);
    let gate = Gate::start(&first);
    let each = count(100, 25);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..24)
            .map(|_| {
                scope.spawn(move || {
                    let mut conn = Conn::open(to).unwrap();
                    for _ in 0..each {
                        assert_eq!(conn.exchange(ask("/nap")).unwrap().status, 200);
                    }
                })
            })
            .collect();
        let mut turn = 0;
        while clients.iter().any(|client| !client.is_finished()) {
            turn += 1;
            gate.reload_ok(if turn % 2 == 0 { &first } else { &other });
        }
    });
    for origin in &origins {
        assert_eq!(origin.peak(), LIMIT, "all are busy, none too much");
    }
    queued(&gate, 0);
}

#[test]
fn requests_wait_in_turn_and_who_leaves_or_is_too_many_takes_no_place() {
    let a = Origin::start("A");
    let to = place();
    let gate = Gate::start(&config(
        to,
        &[&a],
        "requests = 1, queue = 2, wait = \"60s\"",
    ));
    let open = |path: &str| {
        let mut conn = Conn::open(to).unwrap();
        conn.send(ask(path)).unwrap();
        conn
    };
    let mut first = open("/hold");
    a.wait_holding(1);
    let mut second = open("/hold?second");
    queued(&gate, 1);
    let leaves = open("/hold?leaves");
    queued(&gate, 2);
    let refused = Conn::open(to).unwrap().exchange(ask("/id")).unwrap();
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(
        refused.header("proxy-status"),
        Some("evergate; error=connection_limit_reached")
    );
    drop(leaves);
    queued(&gate, 1);
    // A swap in between: who comes by the new generation waits behind.
    gate.reload_ok(&config(
        to,
        &[&a],
        "requests = 1, queue = 2, wait = \"59s\"",
    ));
    let mut third = open("/id");
    queued(&gate, 2);
    a.release_one();
    assert_eq!(first.response().unwrap().status, 200);
    // The second is at the origin, so the third cannot be.
    a.wait_holding(1);
    queued(&gate, 1);
    let before = a.requests();
    a.release_one();
    assert_eq!(second.response().unwrap().status, 200);
    assert_eq!(third.response().unwrap().status, 200);
    assert_eq!((a.requests(), a.peak()), (before + 1, 1));
}

#[test]
fn a_full_target_is_passed_over_and_waiting_ends() {
    let [a, b] = ["A", "B"].map(Origin::start);
    let to = place();
    let _gate = Gate::start(&config(
        to,
        &[&a, &b],
        "requests = 1, queue = 5, wait = \"50ms\"",
    ));
    let mut held: Vec<_> = (0..2).map(|_| Conn::open(to).unwrap()).collect();
    for conn in &mut held {
        conn.send(ask("/hold")).unwrap();
    }
    a.wait_holding(1);
    b.wait_holding(1);
    let late = Conn::open(to).unwrap().exchange(ask("/id")).unwrap();
    assert_eq!((late.status, late.header("retry-after")), (503, Some("1")));
    // One is free: all go there.
    b.release_one();
    let mut conn = Conn::open(to).unwrap();
    let who = until("a free target", || {
        let answer = conn.exchange(ask("/id")).unwrap();
        (answer.status == 200).then(|| answer.header("x-origin").unwrap().to_owned())
    });
    assert_eq!(who, "B");
    a.release_all();
}

#[test]
fn connections_are_waited_for() {
    let a = Origin::start("A");
    let to = place();
    let gate = Gate::start(&config(
        to,
        &[&a],
        "connections = 2, queue = 100, wait = \"60s\"",
    ));
    std::thread::scope(|scope| {
        for number in 0..12 {
            scope.spawn(move || {
                for turn in 0..20 {
                    let mut conn = Conn::open(to).unwrap();
                    // Some leave in the middle, which closes the connection to the origin.
                    if (turn + number) % 5 == 0 {
                        conn.send(ask("/nap")).unwrap();
                        conn.stream
                            .set_read_timeout(Some(Duration::from_millis(1)))
                            .unwrap();
                        let _ = conn.some(1);
                    } else {
                        assert_eq!(conn.exchange(ask("/nap")).unwrap().status, 200);
                    }
                }
            });
        }
    });
    let status = gate.status();
    let open = &status["upstreams"][0]["targets"][0]["connections"];
    assert!(open.as_u64().unwrap() <= 2, "{open}");
}

#[test]
fn over_http2_requests_and_connections_are_waited_for_too() {
    let origin = H2Origin::start(Ways {
        streams: Some(2),
        ..Ways::default()
    });
    let to = place();
    let document = |limits: &str| {
        format!(
            "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = \"{}\"\nprotocol = \"h2c\"\nlimits = {{ {limits}, wait = \"60s\" }}\n",
            origin.addr
        )
    };
    let hold = || {
        let mut conn = Conn::open(to).unwrap();
        conn.send(ask("/hold")).unwrap();
        conn
    };
    let in_flight = |gate: &Gate, wanted: u64| {
        let what = format!("{wanted} requests in flight");
        gate.wait_status(&what, |s| {
            s["upstreams"][0]["targets"][0]["in_flight"] == wanted
        });
    };
    let gate = Gate::start(&document("connections = 1, requests = 2"));
    let mut held = vec![hold(), hold()];
    in_flight(&gate, 2);
    held.push(hold());
    queued(&gate, 1);
    in_flight(&gate, 2);
    // One connection with two streams: the next one waits for a stream.
    gate.reload_ok(&document("connections = 1, requests = 10"));
    in_flight(&gate, 2);
    origin.release();
    for conn in &mut held {
        assert_eq!(conn.response().unwrap().status, 200);
    }
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut conn = Conn::open(to).unwrap();
                for _ in 0..20 {
                    assert_eq!(conn.exchange(ask("/x")).unwrap().status, 200);
                }
            });
        }
    });
    let status = gate.status();
    assert_eq!(status["upstreams"][0]["targets"][0]["connections"], 1);
}
