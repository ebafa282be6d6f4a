//! Reload as an operator sees it: bodies in three formats, the file, signals, preconditions, streams of events,
//! retries, hanging up.

use std::net::SocketAddr;
use std::sync::{Arc, Barrier};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::kit::{Call, Conn, Gate, Origin, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn respond(listen: SocketAddr, text: &str) -> String {
    format!("[http.web]\nlisten = \"{listen}\"\nrespond = \"{text}\"\n")
}

/// A server that answers `one`, and where.
fn one() -> (Gate, SocketAddr) {
    let to = local(free_port());
    (Gate::start(&respond(to, "one")), to)
}

#[test]
fn a_commit_answers_with_everything_a_script_needs() {
    let (gate, to) = one();
    let before = gate.now();
    let answer = gate.reload_ok(&respond(to, "two"));
    assert_eq!(answer["previous"], json!(1));
    assert_eq!(answer["generation"], json!(2));
    assert!(
        answer["swap"].is_u64() && answer["warnings"].is_array(),
        "{answer}"
    );
    let now = gate.now();
    assert_eq!(answer["etag"], now.header("etag").unwrap());
    assert_ne!(before.header("etag"), now.header("etag"));
    assert_eq!(now.header("evergate-generation"), Some("2"));
    assert_eq!(answer["plan"]["servers"]["changed"], json!(["web"]));
    assert_eq!(get(to, "x", "/").text(), "two");
}

#[test]
fn the_same_document_is_unchanged_in_every_format() {
    let (gate, to) = one();
    let answer = gate.reload(&respond(to, "one")).expect(200);
    assert_eq!(
        (&answer["outcome"], &answer["generation"]),
        (&json!("unchanged"), &json!(1)),
        "{answer}"
    );
    // What `/now` shows, posted back.
    let now = gate.now();
    let answer = gate
        .call(Call::post("/reload").json(&now.json()))
        .expect(200);
    assert_eq!(answer["outcome"], "unchanged", "{answer}");
    let toml = gate.call(Call::get("/now").header("accept", "application/toml"));
    assert_eq!(
        toml.header("content-type")
            .map(|c| c.split(';').next().unwrap()),
        Some("application/toml")
    );
    let answer = gate
        .call(Call::post("/reload").toml(&toml.text()))
        .expect(200);
    assert_eq!(answer["outcome"], "unchanged", "{answer}");
    // JSON is YAML.
    let answer = gate
        .call(Call::post("/reload").body("application/yaml", now.body.clone()))
        .expect(200);
    assert_eq!(answer["outcome"], "unchanged", "{answer}");
    assert_eq!(gate.now().body, now.body);
}

#[test]
fn yaml_commits() {
    let (gate, to) = one();
    let admin = gate.base.admin;
    let state = gate.base.state_dir.display().to_string();
    let yaml = format!(
        "admin:\n  listen: \"{admin}\"\nruntime:\n  state_dir: {state}\nhttp:\n  web:\n    listen: [\"{to}\"]\n    respond: from yaml\n"
    );
    let answer = gate
        .call(Call::post("/reload").body("application/yaml", yaml))
        .expect(200);
    assert_eq!(answer["outcome"], "committed", "{answer}");
    assert_eq!(get(to, "x", "/").text(), "from yaml");
}

#[test]
fn without_a_body_the_file_is_read_again_and_a_named_file_s_contents_count() {
    let to = local(free_port());
    let document = format!("[http.web]\nlisten = \"{to}\"\nrespond = {{ file = \"page.html\" }}\n");
    let gate = Gate::setup().file("page.html", "first").start(&document);
    let reread = || gate.call(Call::post("/reload")).expect(200);
    assert_eq!(reread()["outcome"], "unchanged");
    // The same document, but another page.
    std::fs::write(gate.dir.path().join("page.html"), "second").unwrap();
    assert_eq!(get(to, "x", "/").text(), "first");
    assert_eq!(reread()["outcome"], "committed");
    assert_eq!(get(to, "x", "/").text(), "second");
    gate.write(&respond(to, "from the file"));
    assert_eq!(reread()["outcome"], "committed");
    assert_eq!(get(to, "x", "/").text(), "from the file");
    // A broken file is refused, with its place; what ran runs.
    std::fs::write(gate.config(), "[http.web\n").unwrap();
    let answer = gate.call(Call::post("/reload"));
    let problem = answer.problem(400, "malformed-document");
    assert_eq!(problem["errors"][0]["line"], 1, "{problem}");
    assert_eq!(get(to, "x", "/").text(), "from the file");
    // No file at all: right in itself, but not to be had.
    std::fs::remove_file(gate.config()).unwrap();
    assert_eq!(gate.call(Call::post("/reload")).status, 409);
}

#[test]
fn sighup_reads_the_file_again() {
    let (gate, to) = one();
    gate.write(&respond(to, "two"));
    gate.signal(Signal::HUP);
    until("the reload by SIGHUP", || {
        (get(to, "x", "/").text() == "two").then_some(())
    });
    // A bad file changes nothing, and the process goes on.
    std::fs::write(gate.config(), "nonsense = [").unwrap();
    let swaps = |gate: &Gate| {
        gate.call(Call::get("/swaps")).expect(200)["swaps"]
            .as_array()
            .unwrap()
            .clone()
    };
    let before = swaps(&gate)[0]["swap"].as_u64().unwrap();
    gate.signal(Signal::HUP);
    let record = until("the refusal", || {
        let newest = swaps(&gate)[0].clone();
        (newest["swap"].as_u64() > Some(before) && newest["done"] == true).then_some(newest)
    });
    assert_eq!(record["outcome"], "rejected", "{record}");
    assert_eq!(get(to, "x", "/").text(), "two");
}

fn phases(events: &[Value]) -> Vec<String> {
    let mut phases: Vec<String> = events
        .iter()
        .map(|e| e["phase"].as_str().unwrap().to_owned())
        .collect();
    phases.dedup();
    phases
}

const TERMINAL: [&str; 5] = ["drained", "cut", "rejected", "unchanged", "adapted"];

fn check_stream(events: &[Value]) {
    let seqs: Vec<u64> = events.iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    assert!(seqs.windows(2).all(|w| w[0] < w[1]), "{seqs:?}");
    let terminal = events
        .iter()
        .filter(|e| TERMINAL.contains(&e["phase"].as_str().unwrap()))
        .count();
    assert_eq!(terminal, 1, "{events:?}");
    let last = events.last().unwrap();
    assert!(
        last["outcome"].is_string() && last["status"].is_u64(),
        "{last}"
    );
    let swap = &events[0]["swap"];
    assert!(events.iter().all(|e| &e["swap"] == swap));
}

#[test]
fn ndjson_shows_every_phase_in_order_with_one_end() {
    let (gate, to) = one();
    let post = |document: &str| {
        let call = Call::post("/reload")
            .header("accept", "application/x-ndjson")
            .toml(document);
        let answer = gate.call(call);
        assert_eq!(answer.status, 200);
        answer.events()
    };
    let events = post(&gate.document(&respond(to, "two")));
    check_stream(&events);
    let seen = phases(&events);
    let plain: Vec<&str> = seen
        .iter()
        .map(String::as_str)
        .filter(|p| *p != "draining")
        .collect();
    assert_eq!(
        plain,
        [
            "received",
            "validated",
            "planned",
            "prepared",
            "committed",
            "drained"
        ]
    );
    assert_eq!(events.last().unwrap()["status"], 200);
    assert_eq!(events.last().unwrap()["outcome"], "committed");
    assert_eq!(events[0]["source"], "body");

    let events = post(&gate.document(&respond(to, "two")));
    check_stream(&events);
    assert_eq!(phases(&events).last().unwrap(), "unchanged");

    let events = post(&gate.document("[http.web]\nlisten = 5\n"));
    check_stream(&events);
    let last = events.last().unwrap();
    assert_eq!(
        (&last["phase"], &last["status"]),
        (&json!("rejected"), &json!(422))
    );
    assert!(
        last["errors"][0]["pointer"]
            .as_str()
            .unwrap()
            .starts_with("/http/web/listen"),
        "{last}"
    );
}

#[test]
fn server_sent_events_carry_the_same_with_ids() {
    let (gate, to) = one();
    let call = Call::post("/reload")
        .header("accept", "text/event-stream")
        .toml(&gate.document(&respond(to, "two")));
    let answer = gate.call(call);
    assert_eq!(
        answer
            .header("content-type")
            .map(|c| c.split(';').next().unwrap()),
        Some("text/event-stream")
    );
    let text = answer.text();
    let events: Vec<Value> = text
        .lines()
        .filter_map(|l| l.strip_prefix("data:"))
        .map(|d| serde_json::from_str(d).unwrap())
        .collect();
    let ids: Vec<u64> = text
        .lines()
        .filter_map(|l| l.strip_prefix("id:"))
        .map(|i| i.trim().parse().unwrap())
        .collect();
    check_stream(&events);
    assert_eq!(
        ids,
        events
            .iter()
            .map(|e| e["seq"].as_u64().unwrap())
            .collect::<Vec<_>>()
    );
}

#[test]
fn wait_committed_ends_the_stream_early() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let proxy = |n: u32| {
        format!(
            "[http.web]\nlisten = \"{to}\"\nproxy = \"http://{}/g{n}\"\n",
            origin.addr
        )
    };
    let gate = Gate::start(&proxy(1));
    let mut held = Conn::open(to).unwrap();
    held.send("GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    origin.wait_holding(1);

    let call = Call::post("/reload?wait=committed").header("accept", "application/x-ndjson");
    let events = gate.call(call.toml(&gate.document(&proxy(2)))).events();
    assert_eq!(events.last().unwrap()["phase"], "committed", "{events:?}");
    assert_eq!(events.last().unwrap()["status"], 200);
    origin.release_all();
    assert_eq!(held.response().unwrap().text(), "A /g1/hold");
}

#[test]
fn draining_is_told_while_it_lasts() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let proxy = |n: u32| {
        format!(
            "[http.web]\nlisten = \"{to}\"\nproxy = \"http://{}/g{n}\"\n",
            origin.addr
        )
    };
    let gate = Gate::start(&proxy(1));
    let mut held = Conn::open(to).unwrap();
    held.send("GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    origin.wait_holding(1);
    let call = Call::post("/reload").header("accept", "application/x-ndjson");
    let mut conn = Conn::open(gate.base.admin).unwrap();
    conn.send(
        call.toml(&gate.document(&proxy(2)))
            .bytes(gate.base.admin, false),
    )
    .unwrap();
    assert_eq!(conn.response_head().unwrap().status, 200);
    // Events are lines; what is no event between them are the sizes of chunks.
    let mut next = || {
        serde_json::from_str::<Value>(conn.line().ok()?.trim())
            .ok()
            .or(Some(Value::Null))
    };
    loop {
        let event = next().expect("a stream that goes on while a request is held");
        if event["phase"] == "draining" && event["remaining"]["requests"].as_u64() > Some(0) {
            break;
        }
    }
    origin.release_all();
    let mut last = Value::Null;
    while let Some(event) = next() {
        if event.is_object() {
            last = event;
        }
    }
    assert_eq!(last["phase"], "drained", "{last}");
    assert_eq!(held.response().unwrap().text(), "A /g1/hold");
}

#[test]
fn wait_drained_answers_when_nothing_old_is_left() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let proxy = |n: u32| {
        format!(
            "[http.web]\nlisten = \"{to}\"\nproxy = \"http://{}/g{n}\"\n",
            origin.addr
        )
    };
    let gate = Gate::start(&proxy(1));
    let mut held = Conn::open(to).unwrap();
    held.send("GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    origin.wait_holding(1);
    let accepted = gate.call(Call::post("/reload?wait=accepted").toml(&gate.document(&proxy(2))));
    assert_eq!(accepted.status, 202);
    let place = accepted.header("location").unwrap().to_owned();
    until("the commit", || {
        (get(to, "x", "/id").text() == "A /g2/id").then_some(())
    });
    let record = gate.call(Call::get(&place)).expect(200);
    assert_eq!(
        (&record["done"], &record["outcome"]),
        (&json!(false), &json!("committed")),
        "{record}"
    );
    origin.release_all();
    let record = gate
        .call(Call::get(&format!("{place}?wait=drained")))
        .expect(200);
    assert_eq!(
        (&record["done"], &record["phase"]),
        (&json!(true), &json!("drained")),
        "{record}"
    );
    assert_eq!(held.response().unwrap().text(), "A /g1/hold");
}

/// Done when 7, first part.
#[test]
fn of_fifty_clients_with_the_same_if_match_one_wins() {
    let (gate, to) = one();
    let etag = gate.etag();
    let start = Arc::new(Barrier::new(50));
    let admin = gate.base.admin;
    let clients: Vec<_> = (0..50)
        .map(|i| {
            let call = Call::post("/reload")
                .header("if-match", &etag)
                .toml(&gate.document(&respond(to, &format!("client {i}"))));
            let start = start.clone();
            std::thread::spawn(move || {
                start.wait();
                call.send(admin)
            })
        })
        .collect();
    let answers: Vec<_> = clients.into_iter().map(|c| c.join().unwrap()).collect();
    let winners: Vec<usize> = (0..50).filter(|i| answers[*i].status == 200).collect();
    assert_eq!(
        winners.len(),
        1,
        "{:?}",
        answers.iter().map(|a| a.status).collect::<Vec<_>>()
    );
    for answer in answers.iter().filter(|a| a.status != 200) {
        answer.problem(412, "if-match");
    }
    assert_eq!(get(to, "x", "/").text(), format!("client {}", winners[0]));
    assert_eq!(gate.status()["generation"], 2);
    // With what runs now, and with `*`, it goes through.
    let call = Call::post("/reload")
        .header("if-match", &gate.etag())
        .toml(&gate.document(&respond(to, "next")));
    assert_eq!(gate.call(call).status, 200);
    let call = Call::post("/reload")
        .header("if-match", "*")
        .toml(&gate.document(&respond(to, "last")));
    assert_eq!(gate.call(call).status, 200);
}

/// Done when 7, second part.
#[test]
fn a_client_that_hangs_up_in_the_stream_changes_nothing_about_the_swap() {
    let (gate, to) = one();
    for turn in 2..=10 {
        let text = format!("turn {turn}");
        let call = Call::post("/reload")
            .header("accept", "application/x-ndjson")
            .toml(&gate.document(&respond(to, &text)));
        let mut conn = Conn::open(gate.base.admin).unwrap();
        conn.send(call.bytes(gate.base.admin, false)).unwrap();
        assert_eq!(conn.response_head().unwrap().status, 200);
        if turn % 2 == 0 {
            assert!(!conn.some(1).unwrap().is_empty());
        }
        drop(conn);
        let record = until("the swap to end by itself", || {
            let newest = gate.call(Call::get("/swaps")).expect(200)["swaps"][0].clone();
            (newest["generation"] == turn && newest["done"] == true).then_some(newest)
        });
        assert_eq!(
            (&record["outcome"], &record["phase"]),
            (&json!("committed"), &json!("drained")),
            "{record}"
        );
        assert_eq!(get(to, "x", "/").text(), text);
    }
}

/// Done when 7, third part.
#[test]
fn an_idempotency_key_makes_one_swap_and_one_answer() {
    let (gate, to) = one();
    let call = |key: &str, text: &str| {
        Call::post("/reload")
            .header("idempotency-key", key)
            .toml(&gate.document(&respond(to, text)))
    };
    let first = gate.call(call("k1", "two"));
    let second = gate.call(call("k1", "two"));
    assert_eq!((first.status, &first.body), (second.status, &second.body));
    assert_eq!(gate.status()["generation"], 2);
    // Another request under the same key.
    assert_eq!(gate.call(call("k1", "three")).status, 422);
    assert_eq!(gate.status()["generation"], 2);
    // A refusal is remembered too.
    let bad = |key: &str| {
        Call::post("/reload")
            .header("idempotency-key", key)
            .toml("nonsense = 1")
    };
    assert_eq!(gate.call(bad("k2")).body, gate.call(bad("k2")).body);
    // Many at once join one swap.
    let admin = gate.base.admin;
    let joined: Vec<_> = (0..20)
        .map(|_| {
            let call = call("k3", "three");
            std::thread::spawn(move || call.send(admin).expect(200))
        })
        .collect();
    let answers: Vec<Value> = joined.into_iter().map(|j| j.join().unwrap()).collect();
    assert!(answers.iter().all(|a| a == &answers[0]), "{answers:?}");
    assert_eq!(gate.status()["generation"], 3);
}

#[test]
fn adapt_tells_what_would_happen_and_changes_nothing() {
    let (gate, to) = one();
    let new = local(free_port());
    let before = gate.now();
    let document = gate.document(&format!(
        "[http.web]\nlisten = \"{to}\"\nrespond = \"two\"\n[http.more]\nlisten = \"{new}\"\nrespond = \"more\"\n"
    ));
    let answer = gate.call(Call::post("/adapt").toml(&document)).expect(200);
    assert_eq!(answer["outcome"], "adapted", "{answer}");
    assert_eq!(
        answer["config"]["http"]["more"]["listen"],
        json!([new.to_string()])
    );
    assert_eq!(answer["plan"]["servers"]["added"], json!(["more"]));
    assert!(answer["warnings"].is_array());
    assert!(crate::kit::raw::refused(new), "adapt left an address open");
    assert_eq!(gate.now().body, before.body);
    assert_eq!(get(to, "x", "/").text(), "one");
    // What it answers is a document.
    let adapted = gate
        .call(Call::post("/reload").json(&answer["config"]))
        .expect(200);
    assert_eq!(adapted["outcome"], "committed", "{adapted}");
    assert_eq!(get(new, "x", "/").text(), "more");
    // The stream of an adapt ends with `adapted`.
    let events = gate
        .call(
            Call::post("/adapt")
                .header("accept", "application/x-ndjson")
                .toml(&document),
        )
        .events();
    check_stream(&events);
    let seen = phases(&events);
    assert_eq!(
        seen,
        ["received", "validated", "planned", "prepared", "adapted"]
    );
    // A broken one says what is wrong.
    let broken = gate.call(
        Call::post("/adapt")
            .toml(&gate.document("[http.web]\nlisten = \":1\"\nproxy = \"none\"\n")),
    );
    broken.problem(422, "invalid-document");
}

#[test]
fn a_warning_refuses_only_under_strict() {
    let (gate, to) = one();
    // Nothing can reach the second route.
    let document = gate.document(&format!(
        "[http.web]\nlisten = \"{to}\"\n[[http.web.routes]]\nmatch.path = \"/*\"\nrespond = \"a\"\n\
         [[http.web.routes]]\nmatch.path = \"/x\"\nrespond = \"b\"\n"
    ));
    let refused = gate.call(Call::post("/reload?strict=true").toml(&document));
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert_eq!(get(to, "x", "/").text(), "one");
    let answer = gate.call(Call::post("/reload").toml(&document)).expect(200);
    let warnings = answer["warnings"].as_array().unwrap();
    assert!(
        warnings.iter().any(|w| w["pointer"]
            .as_str()
            .unwrap()
            .starts_with("/http/web/routes/1")),
        "{answer}"
    );
}

#[test]
fn an_empty_document_serves_nothing_but_the_admin_api() {
    let (gate, to) = one();
    gate.reload_drained("");
    assert!(crate::kit::raw::refused(to));
    assert_eq!(gate.call(Call::get("/readyz")).status, 200);
}

#[test]
fn a_secret_comes_back_redacted_and_may_be_posted_back() {
    let to = local(free_port());
    let gate = Gate::start(&respond(to, "one"));
    let document = gate
        .document(&respond(to, "two"))
        .replace("[runtime]", "token = \"s3cret\"\n[runtime]");
    assert_eq!(
        gate.call(Call::post("/reload").toml(&document)).expect(200)["outcome"],
        "committed"
    );
    let with = |call: Call| gate.call(call.header("authorization", "Bearer s3cret"));
    let now = with(Call::get("/now"));
    assert_eq!(now.json()["admin"]["token"], "<redacted>");
    assert!(!now.text().contains("s3cret"));
    let mut edited = now.json();
    edited["http"]["web"]["respond"] = json!("three");
    assert_eq!(
        with(Call::post("/reload").json(&edited)).expect(200)["outcome"],
        "committed"
    );
    assert_eq!(with(Call::get("/now")).status, 200);
    assert_eq!(get(to, "x", "/").text(), "three");
}

#[test]
fn changed_worker_settings_are_a_warning() {
    let (gate, to) = one();
    let document = gate
        .document(&respond(to, "two"))
        .replace("workers = 2", "workers = 1");
    let answer = gate.call(Call::post("/reload").toml(&document)).expect(200);
    let warnings = answer["warnings"].as_array().unwrap();
    assert!(
        warnings.iter().any(|w| w["pointer"] == "/runtime/workers"),
        "{answer}"
    );
}
