//! Health of targets: who is asked, who is used, and that swaps change neither.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kit::authority::Authority;
use crate::kit::h2origin::{H2Origin, Ways};
use crate::kit::load::{Load, Shape};
use crate::kit::mortal::Mortal;
use crate::kit::{Call, Conn, Gate, Origin, count, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn target<'s>(status: &'s Value, upstream: &str, address: SocketAddr) -> &'s Value {
    let upstreams = status["upstreams"].as_array().unwrap();
    let upstream = upstreams.iter().find(|u| u["name"] == upstream).unwrap();
    let targets = upstream["targets"].as_array().unwrap();
    let address = address.to_string();
    targets.iter().find(|t| t["address"] == address).unwrap()
}

/// Waits until a target's state is `health`, and returns it.
fn wait_health(gate: &Gate, upstream: &str, address: SocketAddr, health: &str) -> Value {
    let status = gate.wait_status(&format!("{address} to be {health}"), |status| {
        target(status, upstream, address)["health"] == health
    });
    target(&status, upstream, address).clone()
}

/// Clients that never stop asking; each failure is kept with when it was asked.
struct Clients {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<(Instant, String)>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Clients {
    fn start(to: SocketAddr, many: usize) -> Clients {
        let mut clients = Clients {
            stop: Arc::default(),
            answers: Arc::default(),
            failures: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..many {
            let stop = clients.stop.clone();
            let answers = clients.answers.clone();
            let failures = clients.failures.clone();
            clients.threads.push(std::thread::spawn(move || {
                let mut conn = Conn::open(to).unwrap();
                while !stop.load(Ordering::SeqCst) {
                    let asked = Instant::now();
                    let answer = conn.exchange("GET /app HTTP/1.1\r\nhost: x\r\n\r\n");
                    match answer {
                        Ok(answer) if answer.status == 200 => {
                            answers.fetch_add(1, Ordering::SeqCst);
                        }
                        other => {
                            let what = format!("{:?}", other.map(|a| (a.status, a.text())));
                            failures.lock().unwrap().push((asked, what));
                            conn = Conn::open(to).unwrap();
                        }
                    }
                    // Shapes the load; nothing waits on it.
                    std::thread::sleep(Duration::from_millis(2));
                }
            }));
        }
        clients.wait_more(many as u64);
        clients
    }

    fn wait_more(&self, n: u64) {
        let before = self.answers.load(Ordering::SeqCst);
        until("more answers", || {
            (self.answers.load(Ordering::SeqCst) >= before + n).then_some(())
        });
    }

    fn finish(mut self) -> Vec<(Instant, String)> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.failures.lock().unwrap())
    }
}

/// Done when 3.
#[test]
fn a_target_that_dies_under_load_fails_nothing_and_gets_nothing_until_it_is_well() {
    let mut sick = Mortal::start("sick");
    let well = [Mortal::start("a"), Mortal::start("b")];
    let listen = local(free_port());
    let (a, b, c) = (sick.addr, well[0].addr, well[1].addr);
    let document = |n: u64| {
        // Weights and the check's settings change too, so that everything is made anew.
        let (weight, interval) = (1 + n % 2, 100 + n % 3);
        format!(
            "[http.web]\nlisten = \"{listen}\"\nproxy = \"api\"\n\
             [[http.web.routes]]\nname = \"n\"\nmatch.path = \"/n\"\nrespond = \"{n}\"\n\
             [upstreams.api]\ntargets = [\"{a}\", {{ address = \"{b}\", weight = {weight} }}, \"{c}\"]\n\
             health = {{ path = \"/healthz\", interval = \"{interval}ms\", timeout = \"10s\", healthy_after = 2, unhealthy_after = 3 }}\n"
        )
    };
    let gate = Gate::start(&document(0));
    let clients = Clients::start(listen, 8);
    until("all three to be used", || {
        let all = [&sick, &well[0], &well[1]];
        all.iter()
            .all(|o| o.requests() > 10 && o.checks() > 0)
            .then_some(())
    });

    sick.kill();
    let killed = Instant::now();
    let down = wait_health(&gate, "api", sick.addr, "down");
    assert!(down["check"]["streak"].as_u64().unwrap() >= 3, "{down}");
    assert_eq!(down["check"]["result"], "failed", "{down}");
    assert!(
        down["check"]["reason"]
            .as_str()
            .unwrap()
            .starts_with("connect: "),
        "{down}"
    );

    // It listens again, but is not well: nothing reaches it, over twenty swaps.
    sick.set_healthy(false);
    sick.revive();
    let (requests, checks) = (sick.requests(), sick.checks());
    for n in 1..=20 {
        gate.reload_ok(&document(n));
        clients.wait_more(20);
        assert_eq!(get(listen, "x", "/n").text(), n.to_string());
    }
    until("checks of the sick one", || {
        (sick.checks() > checks + 3).then_some(())
    });
    assert_eq!(sick.requests(), requests);
    let still = wait_health(&gate, "api", sick.addr, "down");
    assert!(
        still["check"]["streak"].as_u64() > down["check"]["streak"].as_u64(),
        "{still}"
    );
    assert_eq!(still["since"], down["since"]);

    sick.set_healthy(true);
    let up = wait_health(&gate, "api", sick.addr, "up");
    assert!(up["check"]["streak"].as_u64().unwrap() >= 2, "{up}");
    until("requests to come again", || {
        (sick.requests() > requests + 10).then_some(())
    });

    let failures = clients.finish();
    let after: Vec<_> = failures
        .iter()
        .filter(|(asked, _)| *asked >= killed)
        .collect();
    assert!(after.is_empty(), "asked after it had died: {after:?}");
    assert!(
        failures.len() <= 8,
        "more than were under way: {failures:?}"
    );
    let said = |text: &str| gate.output().matches(text).count();
    assert_eq!((said("target is down"), said("target is up")), (1, 1));
}

#[test]
fn when_all_are_down_all_are_used_and_it_is_said_once() {
    let origin = Mortal::start("only");
    origin.set_healthy(false);
    let listen = local(free_port());
    let document = format!(
        "[http.web]\nlisten = \"{listen}\"\nproxy = \"api\"\n\
         [upstreams.api]\ntargets = \"{}\"\nhealth = {{ path = \"/healthz\", interval = \"20ms\", unhealthy_after = 1, healthy_after = 1 }}\n",
        origin.addr
    );
    let gate = Gate::start(&document);
    let down = wait_health(&gate, "api", origin.addr, "down");
    assert_eq!(
        down["check"]["reason"], "status 503 Service Unavailable",
        "{down}"
    );
    for _ in 0..3 {
        let answer = get(listen, "x", "/");
        assert_eq!((answer.status, answer.text().as_str()), (200, "only"));
    }
    assert_eq!(gate.status()["upstreams"][0]["fail_open"], true);
    origin.set_healthy(true);
    wait_health(&gate, "api", origin.addr, "up");
    assert_eq!(gate.status()["upstreams"][0]["fail_open"], false);
    until("the log to say so", || {
        let output = gate.output();
        let once = |text| output.matches(text).count() == 1;
        (once("every target is down: all of them are used")
            && once("not every target is down any more"))
        .then_some(())
    });
}

#[test]
fn at_most_half_of_the_targets_are_ejected() {
    let origins: Vec<Origin> = (0..4).map(|_| Origin::start("x")).collect();
    let listen = local(free_port());
    let targets: Vec<String> = origins.iter().map(|o| format!("\"{}\"", o.addr)).collect();
    let document = |passive: &str| {
        format!(
            "[http.web]\nlisten = \"{listen}\"\nproxy = \"api\"\n[upstreams.api]\ntargets = [{}]\npassive = {passive}\n",
            targets.join(", ")
        )
    };
    let gate = Gate::start(&document(
        "{ failures = 2, window = \"1h\", eject = \"1h\" }",
    ));
    for _ in 0..40 {
        assert_eq!(get(listen, "x", "/status?code=503").status, 503);
    }
    let ejected = |status: &Value| -> usize {
        let targets = status["upstreams"][0]["targets"].as_array().unwrap();
        targets.iter().filter(|t| t["health"] == "ejected").count()
    };
    let status = gate.status();
    assert_eq!(ejected(&status), 2, "{status}");
    let one = status["upstreams"][0]["targets"].as_array().unwrap();
    let why = one.iter().find_map(|t| t["ejected"].as_str()).unwrap();
    assert_eq!(why, "status 503 Service Unavailable");
    // It outlives a swap, but not the rule.
    gate.reload_ok(&document(
        "{ failures = 3, window = \"1h\", eject = \"1h\" }",
    ));
    assert_eq!(ejected(&gate.status()), 2);
    gate.reload_ok(&document("false"));
    assert_eq!(ejected(&gate.status()), 0);
}

#[test]
fn checks_of_a_removed_upstream_end_and_an_adapt_asks_nobody() {
    let origin = Origin::start("x");
    let listen = local(free_port());
    let server = |proxy: &str| format!("[http.web]\nlisten = \"{listen}\"\n{proxy}\n");
    let plain = server("respond = \"hello\"");
    let targets: Vec<String> = (1..=40)
        .map(|n| format!("\"127.0.0.{n}:{}\"", origin.addr.port()))
        .collect();
    let checked = format!(
        "{}[upstreams.api]\ntargets = [{}]\nhealth = {{ interval = \"50ms\" }}\n",
        server("proxy = \"api\""),
        targets.join(", ")
    );
    let gate = Gate::start(&plain);
    let tasks = |status: &Value| status["tasks"].as_u64().unwrap();
    let before = tasks(&gate.wait_settled());
    let adapted = gate.call(Call::post("/adapt").toml(&gate.document(&checked)));
    adapted.expect(200);
    assert_eq!(origin.connections(), 0);
    gate.reload_drained(&checked);
    gate.wait_status("a check of each", |status| tasks(status) >= before + 40);
    until("checks", || (origin.connections() > 3).then_some(()));
    // Other settings: as many checks as before.
    gate.reload_drained(&checked.replace("50ms", "60ms"));
    gate.wait_status("one check of each", |status| tasks(status) < before + 50);
    gate.reload_drained(&plain);
    gate.wait_status("no check", |status| tasks(status) < before + 10);
}

#[test]
fn a_tcp_check_says_and_hears_what_it_is_told_to() {
    let origin = Origin::start("x");
    let listen = local(free_port());
    let document = format!(
        "[http.web]\nlisten = \"{listen}\"\nproxy = \"said\"\n[[http.web.routes]]\nname = \"o\"\nmatch.path = \"/o\"\nproxy = \"other\"\n\
         [upstreams.said]\ntargets = \"{0}\"\nhealth = {{ send = \"GET / HTTP/1.0\\r\\n\\r\\n\", receive = \"x-origin\", interval = \"20ms\" }}\n\
         [upstreams.other]\ntargets = \"{0}\"\nhealth = {{ send = \"GET / HTTP/1.0\\r\\n\\r\\n\", receive = \"x-other\", interval = \"20ms\", timeout = \"100ms\", unhealthy_after = 1 }}\n",
        origin.addr
    );
    let gate = Gate::start(&document);
    let other = wait_health(&gate, "other", origin.addr, "down");
    assert_eq!(
        other["check"]["reason"], "no answer within 100ms",
        "{other}"
    );
    let status = gate.wait_status("a check", |status| {
        target(status, "said", origin.addr)["check"]["result"] == "passed"
    });
    let said = target(&status, "said", origin.addr);
    assert_eq!(said["health"], "up");
}

#[test]
fn a_file_of_targets_changes_them_under_load_without_a_reload() {
    let (a, b) = (Origin::start("A"), Origin::start("B"));
    let listen = local(free_port());
    let document = format!(
        "[http.web]\nlisten = \"{listen}\"\nproxy = \"api\"\n[upstreams.api]\ntargets_file = \"targets.txt\"\n"
    );
    let gate = Gate::setup()
        .file("targets.txt", format!("# one\n{}\n", a.addr))
        .start(&document);
    let path = gate.dir.path().join("targets.txt");
    // As whoever knows a file system does it.
    let write = |text: String| {
        let draft = gate.dir.path().join("draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(&draft, &path).unwrap();
    };
    let etag = gate.etag();
    let generation = gate.status()["generation"].as_u64().unwrap();
    let load = Load::start(Shape {
        post: 100,
        ..Shape::new(listen)
    });
    let changes = count(10, 3);
    for n in 0..changes {
        let (to, text) = if n % 2 == 0 {
            (&b, format!("{} weight=5\n", b.addr))
        } else {
            (&a, format!("{}\n", a.addr))
        };
        write(text);
        gate.wait_status("the new target", |status| {
            let targets = status["upstreams"][0]["targets"].as_array().unwrap();
            targets.len() == 1 && targets[0]["address"] == to.addr.to_string()
        });
        load.wait_more(50);
    }
    load.finish();
    assert!(a.requests() > 0 && b.requests() > 0);
    let status = gate.wait_settled();
    assert_eq!(
        status["generation"].as_u64().unwrap(),
        generation + changes as u64
    );
    // The document is the same, and so is its tag.
    assert_eq!(gate.etag(), etag);
    let swaps = gate.call(Call::get("/swaps")).expect(200);
    let actor = swaps.as_array().or(swaps["swaps"].as_array()).unwrap()[0]["actor"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        actor.starts_with("targets_file ") && actor.ends_with("/targets.txt"),
        "{actor}"
    );

    // One that is wrong changes nothing, unless somebody asks for it.
    write(format!("{}\nnonsense\n", a.addr));
    until("a warning", || {
        gate.output()
            .contains("targets.txt:2: it does not begin with an address")
            .then_some(())
    });
    assert_eq!(gate.status()["generation"], status["generation"]);
    assert_eq!(get(listen, "x", "/").text(), "B /");
    let refused = gate.reload(&document);
    let problem = refused.problem(409, "not-prepared");
    let error = &problem["errors"][0];
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("targets.txt:2: "),
        "{problem}"
    );
    assert_eq!(error["pointer"], "/upstreams/api/targets_file");
    std::fs::remove_file(&path).unwrap();
    until("another warning", || {
        gate.output()
            .contains("targets cannot be read; the old ones stay")
            .then_some(())
    });
    assert_eq!(get(listen, "x", "/").text(), "B /");
    write(format!("{}\n", a.addr));
    until("the file to be right again", || {
        (get(listen, "x", "/").text() == "A /").then_some(())
    });
}

#[test]
fn a_start_without_its_file_of_targets_is_refused() {
    let listen = local(free_port());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{listen}\"\nrespond = \"x\"\n"
    ));
    let wanted = format!(
        "[http.web]\nlisten = \"{listen}\"\nproxy = \"api\"\n[upstreams.api]\ntargets_file = \"none.txt\"\n"
    );
    let refused = gate.reload(&wanted);
    assert_eq!(
        refused.problem(409, "not-prepared")["errors"][0]["pointer"],
        "/upstreams/api/targets_file"
    );
    std::fs::write(gate.dir.path().join("none.txt"), "# nobody\n").unwrap();
    let problem = gate.reload(&wanted).problem(409, "not-prepared");
    let message = problem["errors"][0]["message"].as_str().unwrap();
    assert!(
        message.ends_with("none.txt: it names no target"),
        "{problem}"
    );
}

#[test]
fn long_flows_end_with_their_target_if_that_is_wanted() {
    let listen = local(free_port());
    for (on_down, ends) in [("keep", false), ("cut", true)] {
        let origin = Mortal::start("ws");
        let gate = Gate::start(&format!(
            "[http.web]\nlisten = \"{listen}\"\nproxy = \"api\"\n[upstreams.api]\ntargets = \"{}\"\n\
             health = {{ path = \"/healthz\", interval = \"20ms\", unhealthy_after = 1, on_down = \"{on_down}\" }}\n",
            origin.addr
        ));
        let mut client = Conn::open(listen).unwrap();
        client
            .send("GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
            .unwrap();
        assert_eq!(client.response_head().unwrap().status, 101);
        origin.set_healthy(false);
        wait_health(&gate, "api", origin.addr, "down");
        if ends {
            let mut said = Vec::new();
            while said.len() < 4 {
                said.extend(client.some(4).unwrap());
            }
            assert_eq!(said, [0x88, 2, 0x03, 0xe9], "no Close with 1001");
        } else {
            // Still echoing.
            client.send([0x82, 1, 7]).unwrap();
            assert_eq!(client.some(3).unwrap(), [0x82, 1, 7]);
        }
    }
}

#[test]
fn a_check_speaks_as_the_requests_do() {
    let authority = Authority::new();
    let secure = H2Origin::start(Ways {
        tls: Some(Authority::server(
            &authority.issue(&["api.test"]),
            &["h2", "http/1.1"],
            None,
        )),
        ..Ways::default()
    });
    let plain = H2Origin::start(Ways::default());
    let listen = local(free_port());
    let health = "health = { path = \"/well\", interval = \"50ms\", unhealthy_after = 1, healthy_after = 1 }";
    let document = |ca: &str| {
        let proxies: String = ["h1", "h2", "auto", "wrong"]
            .map(|name| format!("[[http.web.routes]]\nname = \"{name}\"\nmatch.path = \"/{name}\"\nproxy = \"{name}\"\n"))
            .concat();
        let secures: String = ["h1", "h2", "auto"]
            .map(|protocol| {
                format!(
                    "[upstreams.{protocol}]\ntargets = \"{}\"\nprotocol = \"{protocol}\"\ntls = {{ ca = \"{ca}\", server_name = \"api.test\" }}\n{health}\n",
                    secure.addr
                )
            })
            .concat();
        format!(
            "[http.web]\nlisten = \"{listen}\"\nproxy = \"plain\"\n{proxies}{secures}\
             [upstreams.plain]\ntargets = \"{}\"\nprotocol = \"h2c\"\n{health}\n\
             [upstreams.wrong]\ntargets = \"{}\"\ntls = {{ ca = \"ca.pem\", server_name = \"other.test\" }}\n{health}\n",
            plain.addr, secure.addr
        )
    };
    let gate = Gate::setup()
        .file("ca.pem", authority.pem())
        .file("other.pem", Authority::new().pem())
        .start(&document("ca.pem"));
    for (upstream, origin) in [
        ("plain", &plain),
        ("h1", &secure),
        ("h2", &secure),
        ("auto", &secure),
    ] {
        let status = gate.wait_status("a check", |status| {
            target(status, upstream, origin.addr)["check"]["result"] == "passed"
        });
        assert_eq!(
            target(&status, upstream, origin.addr)["check"]["reason"],
            "status 200 OK"
        );
    }
    let wrong = wait_health(&gate, "wrong", secure.addr, "down");
    assert!(
        wrong["check"]["reason"]
            .as_str()
            .unwrap()
            .starts_with("TLS: "),
        "{wrong}"
    );
    // Another CA is another check.
    gate.reload_ok(&document("other.pem"));
    wait_health(&gate, "h2", secure.addr, "down");
    gate.reload_ok(&document("ca.pem"));
    wait_health(&gate, "h2", secure.addr, "up");
}
