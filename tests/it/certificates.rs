//! Certificates between two swaps: files that change are taken over by themselves or on demand, what cannot be used is
//! kept out, ends are foreseen, and development has a CA of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

use crate::kit::tls::{Client, Pair, request};
use crate::kit::{Call, Gate, count, free_port, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A server `web` at `to` with `tls`.
fn site(to: SocketAddr, tls: &str, text: &str) -> String {
    format!("[http.web]\nlisten = \"{to}\"\nrespond = \"{text}\"\n[http.web.tls]\n{tls}\n")
}

const PAIR: &str = "certificates = { cert = \"site.crt\", key = \"site.key\" }";

fn put(folder: &Path, name: &str, pair: &Pair) {
    std::fs::write(folder.join(format!("{name}.crt")), &pair.cert).unwrap();
    std::fs::write(folder.join(format!("{name}.key")), &pair.key).unwrap();
}

fn start(pair: &Pair, document: &str) -> Gate {
    Gate::setup()
        .file("site.crt", pair.cert.clone())
        .file("site.key", pair.key.clone())
        .start(document)
}

fn refresh(gate: &Gate) -> Value {
    gate.call(Call::post("/certificates/refresh")).expect(200)
}

fn given(to: SocketAddr, name: &str) -> Vec<u8> {
    Client::new().open(to, name).unwrap().certificate()
}

#[test]
fn a_file_that_changes_is_taken_over_without_a_reload() {
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let gate = start(&pair, &site(to, PAIR, "one"));
    let client = Client::new();
    client.get(to, "a.test", "/");
    let mut kept = Client::new().open(to, "a.test").unwrap();
    let before = gate.etag();
    let next = Pair::new(&["a.test", "b.test"]);
    put(gate.dir.path(), "site", &next);
    until("the new certificate", || {
        (given(to, "a.test") == next.der).then_some(())
    });
    // No generation was made for it, no connection noticed, and sessions go on.
    assert_eq!(gate.etag(), before);
    let answer = kept.exchange(request("a.test", "/", "keep-alive")).unwrap();
    assert_eq!(answer.text(), "one");
    assert!(client.open(to, "a.test").unwrap().is_resumed());
    let list = gate.call(Call::get("/certificates")).expect(200);
    let one = &list["certificates"][0];
    assert_eq!(one["names"], serde_json::json!(["a.test", "b.test"]));
    assert_eq!(one["servers"], serde_json::json!(["web"]));
    assert!(one["source"].as_str().unwrap().ends_with("/site.crt"));
    assert_eq!(one["state"], "valid", "{list}");
    assert_eq!(gate.status()["certificates"], list["certificates"]);
    // What serves is what the files hold, so reading them again changes nothing; and another change keeps it.
    let answer = gate.reload(&site(to, PAIR, "one")).expect(200);
    assert_eq!(answer["outcome"], "unchanged", "{answer}");
    gate.reload_ok(&site(to, PAIR, "two"));
    assert_eq!(given(to, "a.test"), next.der);
    gate.reload_ok(&site(to, &format!("{PAIR}\nmin_version = \"1.3\""), "two"));
    assert_eq!(given(to, "a.test"), next.der);
}

#[test]
fn a_refresh_under_handshakes_fails_none_and_the_first_after_it_shows_the_new_one() {
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let gate = start(&pair, &site(to, PAIR, "x"));
    let stop = Arc::new(AtomicBool::new(false));
    let handshakes = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let (stop, handshakes) = (stop.clone(), handshakes.clone());
            std::thread::spawn(move || {
                let same = Client::new();
                while !stop.load(Ordering::Relaxed) {
                    // Half of them go on with their sessions.
                    let client = if number % 2 == 0 {
                        Client::new()
                    } else {
                        same.clone()
                    };
                    assert_eq!(client.get(to, "a.test", "/").text(), "x");
                    handshakes.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let visitor = Client::new();
    visitor.get(to, "a.test", "/");
    for _ in 0..count(50, 20) {
        let next = Pair::new(&["a.test"]);
        // A moment between the two files: whoever looks then keeps what serves.
        put(gate.dir.path(), "site", &next);
        let before = handshakes.load(Ordering::Relaxed);
        let list = refresh(&gate);
        assert_eq!(list["problems"], serde_json::json!([]), "{list}");
        assert_eq!(given(to, "a.test"), next.der);
        let mut conn = visitor.open(to, "a.test").unwrap();
        assert!(conn.is_resumed());
        conn.exchange(request("a.test", "/", "close")).unwrap();
        until("handshakes to go on", || {
            (handshakes.load(Ordering::Relaxed) > before).then_some(())
        });
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no handshake fails");
    }
    // Whoever looked between the two files of a pair has not cried wolf.
    assert!(!gate.output().contains("kept out"));
    let status = gate.status();
    assert_eq!(status["generation"], 1);
    let counted = &status["handshakes"];
    assert!(counted["full"].as_u64() > Some(20), "{counted}");
    assert!(counted["resumed"].as_u64() > Some(20), "{counted}");
    assert_eq!(counted["failed"]["incompatible"], 0, "{counted}");
}

#[test]
fn a_pair_that_does_not_fit_is_kept_out_and_said() {
    let (to, pair, other) = (
        local(free_port()),
        Pair::new(&["a.test"]),
        Pair::new(&["a.test"]),
    );
    let gate = start(&pair, &site(to, PAIR, "x"));
    let before = gate.etag();
    std::fs::write(gate.dir.path().join("site.key"), &other.key).unwrap();
    let refused = gate.call(Call::post("/certificates/refresh"));
    refused.problem(409, "certificates");
    assert_eq!(refused.pointers(), ["/http/web/tls/certificates/0/key"]);
    let status = gate.wait_status("the problem to be shown", |s| {
        s["certificate_problems"][0]["pointer"] == "/http/web/tls/certificates/0/key"
    });
    let error = status["certificates"][0]["error"].as_str().unwrap();
    assert!(error.contains("is not the key of"), "{status}");
    until("a warning", || {
        gate.output().contains("kept out").then_some(())
    });
    assert_eq!(given(to, "a.test"), pair.der);
    assert_eq!(gate.etag(), before);
    // A file that is gone is no other case.
    std::fs::remove_file(gate.dir.path().join("site.crt")).unwrap();
    gate.wait_status("the missing file to be shown", |s| {
        s["certificate_problems"][0]["pointer"] == "/http/web/tls/certificates/0/cert"
    });
    assert_eq!(given(to, "a.test"), pair.der);
    // Mended, it is taken over.
    let next = Pair::new(&["a.test"]);
    put(gate.dir.path(), "site", &next);
    until("the new certificate", || {
        (given(to, "a.test") == next.der).then_some(())
    });
    gate.wait_status("no problem to be left", |s| {
        s["certificate_problems"] == serde_json::json!([])
            && s["certificates"][0].get("error").is_none()
    });
    assert_eq!(gate.etag(), before);
    let said = gate.output();
    assert_eq!(said.matches("is not the key of").count(), 1, "{said}");
}

#[test]
fn a_folder_is_followed_each_pair_for_itself() {
    let to = local(free_port());
    let (one, two, three) = (
        Pair::new(&["one.test"]),
        Pair::new(&["two.test"]),
        Pair::new(&["three.test"]),
    );
    let gate = Gate::start("");
    let certs = gate.dir.path().join("certs");
    std::fs::create_dir(&certs).unwrap();
    put(&certs, "one", &one);
    gate.reload_ok(&site(to, "certificates = { dir = \"certs\" }", "x"));
    // One that is none, one without a key, one that is good.
    std::fs::write(certs.join("bad.crt"), "nothing").unwrap();
    std::fs::write(certs.join("bad.key"), "nothing").unwrap();
    std::fs::write(certs.join("lone.crt"), &two.cert).unwrap();
    put(&certs, "three", &three);
    until("the new name", || {
        (given(to, "three.test") == three.der).then_some(())
    });
    let status = gate.wait_status("two problems", |s| {
        s["certificate_problems"].as_array().map(Vec::len) == Some(2)
    });
    assert_eq!(status["certificates"].as_array().map(Vec::len), Some(2));
    std::fs::write(certs.join("lone.key"), &two.key).unwrap();
    until("the name that got its key", || {
        (given(to, "two.test") == two.der).then_some(())
    });
    // Taken away, it is gone; the folder emptied, the last ones stay.
    for name in ["bad", "lone", "three"] {
        std::fs::remove_file(certs.join(format!("{name}.crt"))).unwrap();
    }
    until("names to go", || {
        (given(to, "three.test") == one.der).then_some(())
    });
    std::fs::remove_file(certs.join("one.crt")).unwrap();
    gate.wait_status("an empty folder to be said", |s| {
        s["certificate_problems"][0]["pointer"] == "/http/web/tls/certificates/0/dir"
    });
    assert_eq!(given(to, "one.test"), one.der);
}

#[test]
fn what_defaults_name_is_one_for_all_servers() {
    let (to, one, two) = (
        local(free_port()),
        Pair::new(&["one.test"]),
        Pair::new(&["two.test"]),
    );
    let gate = Gate::start("");
    let certs = gate.dir.path().join("certs");
    std::fs::create_dir(&certs).unwrap();
    put(&certs, "one", &one);
    put(&certs, "two", &two);
    gate.reload_ok(&format!(
        "[defaults.http]\nlisten = \"{to}\"\ntls = {{ certificates = {{ dir = \"certs\" }} }}\n\
         [http.a]\nhosts = \"one.test\"\nrespond = \"a\"\n[http.b]\nhosts = \"two.test\"\nrespond = \"b\"\n"
    ));
    let list = gate.call(Call::get("/certificates")).expect(200);
    let all = list["certificates"].as_array().unwrap();
    assert_eq!(all.len(), 2, "{list}");
    assert_eq!(all[0]["servers"], serde_json::json!(["a", "b"]));
    let next = Pair::new(&["two.test"]);
    put(&certs, "two", &next);
    refresh(&gate);
    assert_eq!(given(to, "two.test"), next.der);
    assert_eq!(Client::new().get(to, "one.test", "/").text(), "a");
    std::fs::write(certs.join("one.key"), "nothing").unwrap();
    until("a warning", || {
        gate.output().contains("kept out").then_some(())
    });
    assert_eq!(gate.output().matches("kept out").count(), 1);
}

#[test]
fn a_refresh_minds_conditions_and_forms() {
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let gate = start(&pair, &site(to, PAIR, "x"));
    let path = "/certificates/refresh";
    let etag = gate.etag();
    gate.call(Call::post(path).header("if-match", &etag))
        .expect(200);
    gate.call(Call::post(path).header("if-match", "\"other\""))
        .problem(412, "if-match");
    gate.call(Call::post(path).body("application/json", "{\"a\":1}"))
        .problem(400, "body-not-expected");
    gate.call(Call::post(path).body("text/plain", ""))
        .expect(415);
    gate.call(Call::post("/certificates/refresh?now=1"))
        .problem(400, "bad-query");
    gate.call(Call::get(path))
        .problem(405, "method-not-allowed");
    assert!(gate.output().contains("certificates refresh decided"));
}

#[test]
fn an_end_that_is_near_is_shown_and_said() {
    let (to, key) = (local(free_port()), rcgen::KeyPair::generate().unwrap());
    let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    let make = |params: &rcgen::CertificateParams| {
        let made = params.self_signed(&key).unwrap();
        Pair {
            cert: made.pem(),
            key: key.serialize_pem(),
            der: made.der().to_vec(),
        }
    };
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let gate = start(&make(&params), &site(to, PAIR, "x"));
    let list = gate.call(Call::get("/certificates")).expect(200);
    let one = &list["certificates"][0];
    assert_eq!(one["state"], "expired", "{list}");
    assert!(one["days_left"].as_i64() < Some(-1000), "{list}");
    assert_eq!(one["not_after"], "2021-01-01T00:00:00Z");
    until("a warning", || {
        gate.output()
            .contains("a certificate has expired")
            .then_some(())
    });
    params.not_after = rcgen::date_time_ymd(3000, 1, 1);
    put(gate.dir.path(), "site", &make(&params));
    let list = refresh(&gate);
    assert_eq!(list["certificates"][0]["state"], "valid", "{list}");
}

#[test]
fn self_signed_is_signed_by_a_local_ca_that_outlives_the_process() {
    let (to, names) = (
        local(free_port()),
        "self_signed = [\"localhost\", \"127.0.0.1\"]",
    );
    let document = site(to, names, "{sni}");
    let mut gate = Gate::start(&document);
    let trust = |gate: &Gate, more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_evergate"))
            .args(["trust", "-c"])
            .arg(gate.config())
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let pem = trust(&gate, &["--pem"]);
    let path = gate.base.state_dir.join("local-ca").join("ca.crt");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), pem);
    let text = trust(&gate, &[]);
    assert!(text.contains(&path.display().to_string()), "{text}");
    let client = Client::trusting(&pem);
    assert_eq!(client.get(to, "localhost", "/").text(), "localhost");
    let list = gate.call(Call::get("/certificates")).expect(200);
    assert_eq!(list["certificates"][0]["source"], "local CA", "{list}");
    let first = given(to, "localhost");
    // A swap changes neither.
    gate.reload_ok(&site(to, names, "y"));
    assert_eq!(given(to, "localhost"), first);
    // Nor does another process: who trusted the CA trusts what it presents.
    gate.signal(rustix::process::Signal::TERM);
    assert!(gate.wait().success());
    let again = gate.restart();
    assert_eq!(client.get(to, "127.0.0.1", "/").text(), "");
    assert_ne!(given(to, "localhost"), first);
    assert_eq!(trust(&again, &["--pem"]), pem);
}
