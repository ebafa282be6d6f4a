//! Which target a request goes to: by key, by cookie, by how quick it is; and what is tried again.

use std::collections::HashSet;
use std::net::SocketAddr;

use crate::kit::{Conn, Gate, Origin, free_port};

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
