//! The end of things: stop by API and by signal, drain and its deadline, what a swap may cut and what it may not.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::kit::{Call, Conn, Gate, Origin, free_port, get, raw, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn proxy(to: SocketAddr, origin: &Origin, n: u32) -> String {
    format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"http://{}/g{n}\"\n",
        origin.addr
    )
}

fn hold(to: SocketAddr, origin: &Origin) -> Conn {
    let mut conn = Conn::open(to).unwrap();
    let before = origin.requests();
    conn.send("GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    until("the request to be at the origin", || {
        (origin.requests() > before).then_some(())
    });
    conn
}

fn ends_after_its_requests(signal: Signal) {
    let origin = Origin::start("A");
    let to = local(free_port());
    let mut gate = Gate::start(&proxy(to, &origin, 1));
    let mut held = hold(to, &origin);
    gate.signal(signal);
    until("new connections to be refused", || {
        raw::refused(to).then_some(())
    });
    assert!(gate.is_running(), "it ended with a request in flight");
    origin.release_all();
    assert_eq!(held.response().unwrap().text(), "A /g1/hold");
    assert_eq!(gate.wait().code(), Some(0));
}

#[test]
fn sigterm_drains_and_exits_zero() {
    ends_after_its_requests(Signal::TERM);
}

#[test]
fn sigint_drains_and_exits_zero() {
    ends_after_its_requests(Signal::INT);
}

#[test]
fn a_second_signal_exits_at_once() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let mut gate = Gate::setup()
        .runtime("drain_timeout = \"1h\"")
        .start(&proxy(to, &origin, 1));
    let _held = hold(to, &origin);
    gate.signal(Signal::TERM);
    until("new connections to be refused", || {
        raw::refused(to).then_some(())
    });
    gate.signal(Signal::TERM);
    gate.wait();
}

#[test]
fn stop_by_api_answers_once_nothing_is_accepted_and_exits_zero() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let mut gate = Gate::start(&proxy(to, &origin, 1));
    let mut held = hold(to, &origin);
    let answer = gate.call(Call::post("/stop")).expect(200);
    assert_eq!(answer["outcome"], "stopped", "{answer}");
    until("new connections to be refused", || {
        raw::refused(to).then_some(())
    });
    assert!(gate.is_running());
    // While it drains nothing new may begin.
    if let Ok(late) = Call::post("/reload")
        .toml(&gate.document(""))
        .try_send(gate.base.admin)
    {
        assert_eq!(late.status, 503, "{}", late.text());
    }
    if let Ok(ready) = Call::get("/readyz").try_send(gate.base.admin) {
        assert_eq!(ready.status, 503);
    }
    origin.release_all();
    assert_eq!(held.response().unwrap().text(), "A /g1/hold");
    assert_eq!(gate.wait().code(), Some(0));
    assert!(raw::refused(gate.base.admin));
}

#[test]
fn stop_with_wait_drained_answers_at_the_end() {
    let to = local(free_port());
    let mut gate = Gate::start(&format!("[http.web]\nlisten = \"{to}\"\nrespond = \"x\"\n"));
    let answer = gate.call(Call::post("/stop?wait=drained")).expect(200);
    assert_eq!(answer["outcome"], "stopped", "{answer}");
    assert_eq!(gate.wait().code(), Some(0));
}

#[test]
fn a_second_stop_shortens_the_first() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let mut gate = Gate::setup()
        .runtime("drain_timeout = \"1h\"")
        .start(&proxy(to, &origin, 1));
    let mut held = hold(to, &origin);
    gate.call(Call::post("/stop")).expect(200);
    assert!(gate.is_running());
    // Its answer may be lost with the process.
    let _ = Call::post("/stop?drain_timeout=0s").try_send(gate.base.admin);
    assert_eq!(gate.wait().code(), Some(0));
    // What was cut says so, or ends: it never looks whole.
    let ended = held.response();
    assert!(ended.is_err() || ended.is_ok_and(|r| r.status >= 500));
}

#[test]
fn at_the_drain_deadline_a_request_whose_definition_is_gone_is_cut() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let gate = Gate::start(&proxy(to, &origin, 1));
    let mut held = hold(to, &origin);
    let call = Call::post("/reload?drain_timeout=200ms").header("accept", "application/x-ndjson");
    let events = gate
        .call(call.toml(&gate.document(&proxy(to, &origin, 2))))
        .events();
    let last = events.last().unwrap();
    assert_eq!(
        (&last["phase"], &last["closed"]),
        (&json!("cut"), &json!(1)),
        "{last}"
    );
    let ended = held.response();
    assert!(ended.is_err() || ended.is_ok_and(|r| r.status >= 500));
    until("the origin's request to be given up", || {
        (origin.broken() > 0 || gate.status()["generations"].as_array().unwrap().len() == 1)
            .then_some(())
    });
    gate.wait_settled();
}

/// Invariant 4: an unrelated swap never cuts what runs long.
#[test]
fn at_the_drain_deadline_a_request_whose_definition_holds_goes_on() {
    let origin = Origin::start("A");
    let (to, other) = (local(free_port()), local(free_port()));
    let document = |text: &str| {
        format!(
            "{}[http.other]\nlisten = \"{other}\"\nrespond = \"{text}\"\n",
            proxy(to, &origin, 1)
        )
    };
    let gate = Gate::start(&document("one"));
    let mut held = hold(to, &origin);
    for n in 0..3 {
        let answer = gate.call(
            Call::post("/reload?drain_timeout=100ms&wait=drained")
                .toml(&gate.document(&document(&format!("n{n}")))),
        );
        assert_eq!(answer.expect(200)["outcome"], "committed");
    }
    assert_eq!(get(other, "x", "/").text(), "n2");
    gate.wait_settled();
    origin.release_all();
    assert_eq!(held.response().unwrap().text(), "A /g1/hold");
}

#[test]
fn a_body_in_flight_arrives_whole_across_a_swap() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let gate = Gate::start(&proxy(to, &origin, 1));
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /drip HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let head = conn.response_head().unwrap();
    origin.wait_holding(1);
    gate.reload_ok(&proxy(to, &origin, 2));
    origin.release_all();
    let mut body = Vec::new();
    conn.body(head.head.is_chunked(), None, |p| body.extend_from_slice(p))
        .unwrap();
    assert_eq!(body, b"first second");
    // And the connection goes on, with the new configuration.
    assert_eq!(
        conn.exchange("GET /id HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap()
            .text(),
        "A /g2/id"
    );
}

#[test]
fn stop_delay_says_unready_first() {
    let to = local(free_port());
    let mut gate = Gate::setup()
        .runtime("stop_delay = \"1s\"")
        .start(&format!("[http.web]\nlisten = \"{to}\"\nrespond = \"x\"\n"));
    let start = Instant::now();
    gate.signal(Signal::TERM);
    until("readyz to say so", || {
        Call::get("/readyz")
            .try_send(gate.base.admin)
            .is_ok_and(|r| r.status == 503)
            .then_some(())
    });
    // Traffic that does not know yet is still served.
    if start.elapsed() < Duration::from_millis(500) {
        assert_eq!(get(to, "x", "/").text(), "x");
    }
    assert_eq!(gate.wait().code(), Some(0));
    assert!(start.elapsed() >= Duration::from_secs(1));
}

/// The state folder's lock is free again at once after the end, so that a restart works.
#[test]
fn a_restart_takes_the_same_folder_and_addresses() {
    let to = local(free_port());
    let document = format!("[http.web]\nlisten = \"{to}\"\nrespond = \"x\"\n");
    let mut gate = Gate::start(&document);
    let mut conn = Conn::open(to).unwrap();
    conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    gate.signal(Signal::TERM);
    assert_eq!(gate.wait().code(), Some(0));
    // Its connections are in TIME_WAIT now; the next one starts all the same.
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_evergate"));
    command.args(["run", "-c"]).arg(gate.config());
    let (child, output) = crate::kit::process::spawn(command, gate.dir.path());
    let base = gate.base.clone();
    let again = Gate::adopt(child, output, base, tempfile::tempdir().unwrap());
    assert_eq!(get(to, "x", "/").text(), "x");
    drop(again);
}

#[test]
fn a_stop_on_a_condition_that_does_not_hold_stops_nothing() {
    let to = local(free_port());
    let mut gate = Gate::start(&format!("[http.web]\nlisten = \"{to}\"\nrespond = \"x\"\n"));
    let etag = gate
        .call(Call::get("/now"))
        .header("etag")
        .unwrap()
        .to_owned();
    let refused = gate.call(Call::post("/stop").header("if-match", "\"another\""));
    assert_eq!(refused.status, 412);
    assert_eq!(gate.call(Call::get("/readyz")).status, 200);
    gate.call(Call::post("/stop").header("if-match", &etag))
        .expect(200);
    assert_eq!(gate.wait().code(), Some(0));
}

/// `drained` means that nothing older is left, not only that the generation before is empty.
#[test]
fn a_swap_is_drained_when_the_last_of_all_older_generations_is() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let gate = Gate::start(&proxy(to, &origin, 1));
    let mut held = hold(to, &origin);
    gate.reload_ok(&proxy(to, &origin, 2));
    let answer = gate.reload_ok(&proxy(to, &origin, 3));
    let place = format!("/swaps/{}", answer["swap"]);
    let status = gate.status();
    let alive: Vec<_> = status["generations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| g["generation"].clone())
        .collect();
    assert_eq!(alive, [1, 3], "{status}");
    assert_eq!(gate.call(Call::get(&place)).expect(200)["done"], false);
    origin.release_all();
    assert_eq!(held.response().unwrap().status, 200);
    let ended = gate
        .call(Call::get(&format!("{place}?wait=drained")))
        .expect(200);
    assert_eq!(
        (&ended["phase"], &ended["done"]),
        (&"drained".into(), &true.into()),
        "{ended}"
    );
}

/// Connection-level settings are not a request's definition: its connection finishes after it, however long that takes.
#[test]
fn a_download_outlives_a_change_of_its_connections_settings() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let gate = Gate::start(&proxy(to, &origin, 1));
    let mut held = hold(to, &origin);
    let refreshed = proxy(to, &origin, 1).replace("proxy =", "limits.streams = 7\nproxy =");
    let call = Call::post("/reload?wait=drained&drain_timeout=0s");
    let answer = gate.call(call.toml(&gate.document(&refreshed))).expect(200);
    assert_eq!(
        answer["plan"]["listeners"][0]["change"], "refresh",
        "{answer}"
    );
    assert_eq!(answer["phase"], "drained", "{answer}");
    origin.release_all();
    let response = held.response().unwrap();
    assert_eq!(response.status, 200);
    assert_eq!(response.header("connection"), Some("close"));
}
