//! Which target a request goes to: by key, by cookie, by how quick it is; and what is tried again.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::kit::tls::{Client, Pair};
use crate::kit::{Call, Conn, Gate, Origin, free_port};

fn config(to: SocketAddr, targets: &str, proxy: &str, upstream: &str) -> String {
    format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = {{ upstream = \"app\"{proxy} }}\n[upstreams.app]\ntargets = [{targets}]\n{upstream}"
    )
}

fn target(origin: &Origin, more: &str) -> String {
    format!("{{ address = \"{}\"{more} }}", origin.addr)
}

/// Who answers a request with these fields, and the cookie it sets.
fn ask(conn: &mut Conn, fields: &str) -> (String, Option<String>) {
    let request = format!("GET /id HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
    let answer = conn.exchange(request).unwrap();
    let origin = answer.header("x-origin").unwrap().to_owned();
    (origin, answer.header("set-cookie").map(str::to_owned))
}

#[test]
fn a_sticky_client_stays_over_swaps_and_while_its_target_drains() {
    let [a, b] = ["A", "B"].map(Origin::start);
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let sticky = "sticky = \"who\"\n";
    let both = format!("{}, {}", target(&a, ""), target(&b, ""));
    let gate = Gate::start(&config(to, &both, "", sticky));
    let mut conn = Conn::open(to).unwrap();
    let (mine, cookie) = ask(&mut conn, "");
    let cookie = cookie.unwrap();
    assert!(
        cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"),
        "{cookie}"
    );
    assert!(!cookie.contains("127.0.0.1"));
    let back = format!("cookie: {}\r\n", cookie.split(';').next().unwrap());
    let (own, other) = if mine == "A" { (&a, &b) } else { (&b, &a) };
    // Drained, in another order, and with another policy: the same target, and no new cookie.
    let drained = format!("{}, {}", target(other, ""), target(own, ", weight = 0"));
    gate.reload_ok(&config(
        to,
        &drained,
        "",
        "sticky = \"who\"\nbalance = \"random\"\n",
    ));
    for _ in 0..10 {
        assert_eq!(ask(&mut conn, &back), (mine.clone(), None));
        let (new, set) = ask(&mut conn, "");
        assert!(new != mine && set.is_some());
    }
    // Gone: another one, and a new cookie.
    gate.reload_ok(&config(to, &target(other, ""), "", sticky));
    let (new, set) = ask(&mut conn, &back);
    assert!(new != mine && set.is_some());
}

#[test]
fn a_key_keeps_its_target_when_another_one_goes() {
    let origins = ["A", "B", "C"].map(Origin::start);
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let all = origins.each_ref().map(|o| target(o, ""));
    let policy = "balance = { hash = \"{header.x-user}\" }\n";
    let gate = Gate::start(&config(to, &all.join(", "), "", policy));
    let mut conn = Conn::open(to).unwrap();
    let mut where_all = || -> Vec<String> {
        let of = |user| ask(&mut conn, &format!("x-user: {user}\r\n")).0;
        (0..60).map(of).collect()
    };
    let before = where_all();
    assert_eq!(before, where_all());
    assert_eq!(before.iter().collect::<HashSet<_>>().len(), 3);
    gate.reload_ok(&config(to, &all[..2].join(", "), "", policy));
    let after = where_all();
    for (before, after) in before.iter().zip(&after) {
        assert!(after != "C" && (before == "C" || before == after));
    }
}

#[test]
fn one_client_address_has_one_target() {
    let [a, b] = ["A", "B"].map(Origin::start);
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let both = format!("{}, {}", target(&a, ""), target(&b, ""));
    let _gate = Gate::start(&config(to, &both, "", "balance = \"ip_hash\"\n"));
    let mut conn = Conn::open(to).unwrap();
    let who: HashSet<_> = (0..10).map(|_| ask(&mut conn, "").0).collect();
    assert_eq!(who.len(), 1);
}

#[test]
fn an_origin_that_hangs_up_is_made_up_for_by_another() {
    let a = Origin::start("A");
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let bad = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let targets = format!("{}, \"{}\"", target(&a, ""), bad.local_addr().unwrap());
    // Takes connections and drops them unread, until the listener goes with the test's process.
    std::thread::spawn(move || while bad.accept().is_ok() {});
    let retries =
        ", buffer = \"1KiB\", retries = { when = [\"connect\", \"reset\"], budget = 100 }";
    let _gate = Gate::start(&config(to, &targets, retries, ""));
    let mut conn = Conn::open(to).unwrap();
    for _ in 0..10 {
        let put = "PUT /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello";
        let answer = conn.exchange(put).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
    }
}

#[test]
fn a_slow_target_is_avoided() {
    let [quick, slow] = ["quick", "slow"].map(Origin::start);
    slow.slow_down(Duration::from_millis(50));
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let both = format!("{}, {}", target(&quick, ""), target(&slow, ""));
    let _gate = Gate::start(&config(to, &both, "", "balance = \"p2c_ewma\"\n"));
    let mut conn = Conn::open(to).unwrap();
    for _ in 0..100 {
        ask(&mut conn, "");
    }
    // It is asked to be known, and now and then whether it still is so slow.
    let asked = slow.requests();
    assert!((1..=10).contains(&asked), "{asked}");
}

#[test]
fn a_backup_serves_while_nobody_else_does() {
    let [a, b] = ["A", "B"].map(Origin::start);
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let both = format!("{}, {}", target(&b, ", backup = true"), target(&a, ""));
    let gate = Gate::start(&config(to, &both, "", ""));
    let mut conn = Conn::open(to).unwrap();
    let mut all = |who: &str| (0..10).all(|_| ask(&mut conn, "").0 == who);
    assert!(all("A"));
    let address = format!("/upstreams/app/targets/{}", a.addr);
    let set = |state: &str| {
        let call = Call::post(&address).json(&serde_json::json!({ "state": state }));
        gate.call(call).expect(200);
    };
    set("down");
    assert!(all("B"));
    set("up");
    assert!(all("A"));
    // One that refuses connections is not there for a request that has found out.
    let gone = format!(
        "\"127.0.0.1:{}\", {}",
        free_port(),
        target(&b, ", backup = true")
    );
    gate.reload_ok(&config(to, &gone, "", ""));
    assert!(all("B"));
}

#[test]
fn a_bad_status_is_tried_elsewhere_within_the_budget() {
    let [good, bad] = ["good", "bad"].map(Origin::start);
    bad.say(503);
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let both = format!("{}, {}", target(&good, ""), target(&bad, ""));
    let retries = |budget: u32| format!(", retries = {{ when = [\"5xx\"], budget = {budget} }}");
    let gate = Gate::start(&config(to, &both, &retries(100), ""));
    let mut conn = Conn::open(to).unwrap();
    let mut failed = |method: &str| {
        let request = format!("{method} /id HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
        let one = |_: &usize| conn.exchange(request.as_str()).unwrap().status == 503;
        (0..100).filter(one).count()
    };
    assert_eq!(failed("GET"), 0);
    assert!(bad.requests() >= 40);
    // Not what may not be sent twice.
    assert!(failed("POST") >= 40);
    // The retries of the last seconds are spent already.
    gate.reload_ok(&config(to, &both, &retries(1), ""));
    let left = failed("GET");
    assert!(left >= 30, "{left}");
}

#[test]
fn a_post_goes_elsewhere_when_nothing_of_it_was_sent() {
    let a = Origin::start("A");
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let targets = format!("{}, \"127.0.0.1:{}\"", target(&a, ""), free_port());
    let gate = Gate::start("");
    for proxy in ["", ", buffer = \"1KiB\""] {
        gate.reload_ok(&config(to, &targets, proxy, ""));
        let mut conn = Conn::open(to).unwrap();
        for _ in 0..10 {
            let post = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello";
            let answer = conn.exchange(post).unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
        }
    }
}

#[test]
fn a_cookie_over_https_is_secure_and_websockets_stick_too() {
    let [a, b] = ["A", "B"].map(Origin::start);
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let both = format!("{}, {}", target(&a, ""), target(&b, ""));
    let sticky = "sticky = { cookie = \"who\", max_age = \"1h\", same_site = \"none\" }\n";
    let tls = "[http.web.tls]\ncertificates = { cert = \"site.crt\", key = \"site.key\" }\n";
    let pair = Pair::new(&["a.test"]);
    let _gate = Gate::setup()
        .file("site.crt", pair.cert.clone())
        .file("site.key", pair.key.clone())
        .start(&(config(to, &both, "", sticky) + tls));
    let client = Client::new();
    let handshake = |cookie: &str| {
        let mut conn = client.open(to, "a.test").unwrap();
        conn.send(format!(
            "GET /socket HTTP/1.1\r\nhost: a.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{cookie}\r\n"
        ))
        .unwrap();
        let head = conn.response_head().unwrap();
        assert_eq!(head.status, 101);
        let cookie = head.header("set-cookie").map(str::to_owned);
        (head.header("x-origin").unwrap().to_owned(), cookie)
    };
    let (mine, cookie) = handshake("");
    let cookie = cookie.unwrap();
    let end = "; Path=/; HttpOnly; Max-Age=3600; SameSite=None; Secure";
    assert!(cookie.ends_with(end), "{cookie}");
    let back = format!("cookie: {}\r\n", cookie.split(';').next().unwrap());
    for _ in 0..6 {
        assert_eq!(handshake(&back), (mine.clone(), None));
    }
}
