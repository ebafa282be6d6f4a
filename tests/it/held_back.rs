//! Done when 3, last variant: in process, accept held back by the kit until the reload has committed, so that every
//! client is surely still in the kernel's queue when the configuration changes under it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use evergate::app::{App, Options};
use tokio::sync::watch;

use crate::kit::process::Base;
use crate::kit::{Call, Conn, free_port, get, raw, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn respond(listen: &str, text: &str) -> String {
    format!("[http.web]\nlisten = \"{listen}\"\nrespond = \"{text}\"\n")
}

/// Queues 200 requests at `to` under `before`, commits `next`, and only then lets anything be accepted.
fn held_back(before: &str, next: &str, to: SocketAddr, after: impl FnOnce()) {
    let dir = tempfile::tempdir().unwrap();
    let base = Base {
        admin: local(free_port()),
        state_dir: dir.path().join("state"),
        runtime: String::new(),
    };
    let config = dir.path().join("evergate.toml");
    std::fs::write(&config, base.document(before)).unwrap();
    let (accept, gate) = watch::channel(false);
    let app = App::start(Options {
        config: Some(config),
        embedded: bytes::Bytes::new(),
        search: Arc::new(|| None),
        signals: false,
        gate: Some(gate),
    })
    .unwrap();
    let mut clients: Vec<Conn> = (0..200)
        .map(|i| {
            let mut conn = Conn::open(to).unwrap_or_else(|e| panic!("client {i}: {e}"));
            conn.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            conn
        })
        .collect();
    let ready = until("the admin API to answer", || {
        Call::get("/readyz").try_send(base.admin).ok()
    });
    assert_eq!(ready.status, 200);
    let answer = Call::post("/reload")
        .toml(&base.document(next))
        .send(base.admin)
        .expect(200);
    assert_eq!(answer["outcome"], "committed", "{answer}");
    accept.send(true).unwrap();
    for (i, client) in clients.iter_mut().enumerate() {
        let response = client
            .response()
            .unwrap_or_else(|e| panic!("client {i} of 200: {e}"));
        assert_eq!(response.status, 200);
    }
    drop(clients);
    let swap = format!("/swaps/{}?wait=drained", answer["swap"]);
    let record = Call::get(&swap).send(base.admin).expect(200);
    assert_eq!(record["phase"], "drained", "{record}");
    after();
    app.stop(Duration::from_secs(5)).unwrap();
}

#[test]
fn with_a_reload_that_keeps_the_address() {
    let to = local(free_port());
    let listen = to.to_string();
    held_back(
        &respond(&listen, "one"),
        &respond(&listen, "two"),
        to,
        || {
            assert_eq!(get(to, "x", "/").text(), "two");
        },
    );
}

#[test]
fn with_a_reload_that_removes_the_address() {
    let (to, other) = (local(free_port()), local(free_port()));
    let (before, next) = (
        respond(&to.to_string(), "one"),
        respond(&other.to_string(), "two"),
    );
    held_back(&before, &next, to, || {
        assert!(raw::refused(to));
        assert_eq!(get(other, "x", "/").text(), "two");
    });
}

#[test]
fn with_a_listener_moved_from_any_to_loopback() {
    let port = free_port();
    let (before, next) = (format!("0.0.0.0:{port}"), format!("127.0.0.1:{port}"));
    held_back(
        &respond(&before, "one"),
        &respond(&next, "two"),
        local(port),
        || {
            assert_eq!(get(local(port), "x", "/").text(), "two");
            assert!(raw::refused(SocketAddr::from(([127, 0, 0, 2], port))));
        },
    );
}
