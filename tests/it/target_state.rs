//! A target taken out, and back in, by the admin API: without a reload, and across reloads.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::kit::{Answer, Call, Conn, Gate, Origin, free_port, until};

fn config(to: SocketAddr, targets: &str) -> String {
    format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = [{targets}]\nsticky = \"who\"\n"
    )
}

fn path(target: &str) -> String {
    format!("/upstreams/app/targets/{}", target.replace('/', "%2F"))
}

fn set(gate: &Gate, target: &Origin, state: &str) -> Value {
    let call = Call::post(&path(&target.addr.to_string())).json(&json!({ "state": state }));
    gate.call(call).expect(200)
}

fn state(gate: &Gate, target: &Origin) -> Value {
    let status = gate.status();
    let targets = status["upstreams"][0]["targets"].as_array().unwrap();
    let address = target.addr.to_string();
    let found = targets.iter().find(|t| t["address"] == *address).unwrap();
    found["state"].clone()
}

/// Who answers, and the cookie.
fn ask(conn: &mut Conn, cookie: &str) -> (String, Option<String>) {
    let request = format!("GET /id HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\n\r\n");
    let answer = conn.exchange(request).unwrap();
    let cookie = answer.header("set-cookie");
    let pair = cookie.map(|c| c.split(';').next().unwrap().to_owned());
    (answer.header("x-origin").unwrap_or("").to_owned(), pair)
}

#[test]
fn drained_it_is_its_own_clients_only_and_down_nobodys() {
    let [a, b] = ["A", "B"].map(Origin::start);
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let both = format!("\"{}\", \"{}\"", a.addr, b.addr);
    let gate = Gate::start(&config(to, &both));
    let mut conn = Conn::open(to).unwrap();
    let cookie = until("a client of A", || {
        let (who, cookie) = ask(&mut conn, "x=y");
        (who == "A").then_some(cookie).flatten()
    });
    let answer = set(&gate, &a, "drain");
    assert_eq!(
        (&answer["state"], &answer["health"]),
        (&json!("drain"), &json!("up"))
    );
    let others = |conn: &mut Conn| (0..10).all(|_| ask(conn, "x=y").0 == "B");
    assert!(others(&mut conn));
    assert_eq!(ask(&mut conn, &cookie), ("A".to_owned(), None));
    // A reload that changes the upstream leaves it so.
    gate.reload_ok(&(config(to, &both) + "balance = \"random\"\n"));
    assert!(others(&mut conn) && state(&gate, &a) == "drain");
    assert_eq!(ask(&mut conn, &cookie).0, "A");
    set(&gate, &a, "down");
    assert_eq!(ask(&mut conn, &cookie).0, "B");
    assert_eq!(state(&gate, &a), "down");
    // Nobody is left: an error, until one is back.
    set(&gate, &b, "down");
    assert_eq!(
        conn.exchange("GET /id HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap()
            .status,
        503
    );
    set(&gate, &a, "up");
    assert_eq!(ask(&mut conn, "x=y").0, "A");
    // It goes with the target.
    gate.reload_ok(&config(to, &format!("\"{}\"", a.addr)));
    gate.reload_ok(&config(to, &both));
    until("B to be a new target", || {
        (state(&gate, &b) == "up").then_some(())
    });
}

#[test]
fn idle_is_waited_for_and_the_state_counts_meanwhile() {
    let a = Origin::start("A");
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let gate = Gate::start(&config(to, &format!("\"{}\"", a.addr)));
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    a.wait_holding(1);
    let waits = format!("{}?wait=idle", path(&a.addr.to_string()));
    let call = Call::post(&waits).json(&json!({ "state": "down" }));
    let answer: Answer = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| gate.call(call));
        gate.wait_status("the target to be down", |s| {
            s["upstreams"][0]["targets"][0]["state"] == "down"
        });
        assert!(!waiting.is_finished());
        a.release_all();
        waiting.join().unwrap()
    });
    assert_eq!(answer.expect(200)["in_flight"], 0);
    assert_eq!(conn.response().unwrap().status, 200);
}

#[test]
fn what_is_not_there_or_not_allowed_is_refused() {
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let gate = Gate::start(&config(to, "\"127.0.0.1:1\", \"unix:/nowhere/a.sock\""));
    let call = |target: &str, body: &Value| gate.call(Call::post(&path(target)).json(body));
    let drain = json!({ "state": "drain" });
    let unix = call("unix:/nowhere/a.sock", &drain).expect(200);
    assert_eq!(unix["address"], "unix:/nowhere/a.sock");
    call("127.0.0.1:2", &drain).problem(404, "no-such-target");
    call("127.0.0.1:1", &json!({ "state": "sleep" })).problem(422, "bad-request");
    call("127.0.0.1:1", &json!({ "state": "up", "x": 1 })).problem(422, "bad-request");
    let elsewhere = Call::post("/upstreams/none/targets/a").json(&drain);
    gate.call(elsewhere).problem(404, "no-such-target");
    let query = format!("{}?wait=drained", path("127.0.0.1:1"));
    gate.call(Call::post(&query).json(&drain))
        .problem(400, "bad-query");
    let plain = Call::post(&path("127.0.0.1:1")).body("application/json", "{");
    gate.call(plain).problem(400, "bad-request");
    let stale = Call::post(&path("127.0.0.1:1")).header("if-match", "\"x\"");
    gate.call(stale.json(&drain)).problem(412, "if-match");
    // Who may only read may not do this.
    let tokens = "read_tokens = { graphs = \"of graphs\" }\n[runtime]";
    let document = gate.document(&config(to, "\"127.0.0.1:1\""));
    let document = document.replacen("[runtime]", tokens, 1);
    gate.call(Call::post("/reload").toml(&document)).expect(200);
    let reader = Call::post(&path("127.0.0.1:1")).header("authorization", "Bearer of graphs");
    assert_eq!(gate.call(reader.json(&drain)).status, 403);
}
