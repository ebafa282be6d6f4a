//! Upstreams split over upstreams: by share, never where the share is 0, and a client stays where its cookie says.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::kit::{Conn, Gate, Origin, free_port};

fn upstreams(blue: &Origin, green: &Origin) -> String {
    format!(
        "[upstreams.blue]\ntargets = \"{}\"\n[upstreams.green]\ntargets = \"{}\"\nsticky = \"own\"\n",
        blue.addr, green.addr
    )
}

fn config(to: SocketAddr, proxy: &str, rest: &str) -> String {
    format!("[http.web]\nlisten = \"{to}\"\nproxy = {proxy}\n{rest}")
}

/// Who answers, and the cookies that are set, by name.
fn ask(conn: &mut Conn, cookies: &str) -> (String, HashMap<String, String>) {
    let request = format!("GET /id HTTP/1.1\r\nhost: x\r\ncookie: {cookies}\r\n\r\n");
    let answer = conn.exchange(request).unwrap();
    let set = answer.head.all("set-cookie").into_iter();
    let set = set.map(|cookie| {
        let pair = cookie.split(';').next().unwrap();
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    });
    (answer.header("x-origin").unwrap().to_owned(), set.collect())
}

fn count(conn: &mut Conn, of: &str) -> usize {
    (0..200).filter(|_| ask(conn, "x=y").0 == of).count()
}

#[test]
fn requests_are_split_by_share_and_a_swap_moves_the_shares() {
    let [blue, green] = ["blue", "green"].map(Origin::start);
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let split = |shares: &str| {
        let app = format!("[upstreams.app]\nsplit = {{ {shares} }}\n");
        config(to, "\"app\"", &(upstreams(&blue, &green) + &app))
    };
    let gate = Gate::start(&split("blue = 80, green = 20"));
    let mut conn = Conn::open(to).unwrap();
    // 40 of 200 are expected, with a deviation of less than 6.
    let got = count(&mut conn, "green");
    assert!((10..=70).contains(&got), "{got}");
    let status = gate.status();
    let app = status["upstreams"].as_array().unwrap().iter();
    let app = app.into_iter().find(|u| u["name"] == "app").unwrap();
    assert_eq!(app["split"][1]["upstream"], "green");
    assert_eq!(app["split"][1]["share"], 20);
    gate.reload_ok(&split("blue = 1, green = 0"));
    assert_eq!(count(&mut conn, "green"), 0);
    gate.reload_ok(&split("blue = 0, green = 1"));
    assert_eq!(count(&mut conn, "green"), 200);
    // In the action itself.
    let own = "{ split = { blue = 1, green = 0 } }";
    gate.reload_ok(&config(to, own, &upstreams(&blue, &green)));
    assert_eq!(count(&mut conn, "blue"), 200);
}

#[test]
fn a_sticky_split_keeps_its_clients_and_its_members_theirs() {
    let [blue, green] = ["blue", "green"].map(Origin::start);
    let to = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let split = |shares: &str| {
        let app = format!("[upstreams.app]\nsplit = {{ {shares} }}\nsticky = \"colour\"\n");
        config(to, "\"app\"", &(upstreams(&blue, &green) + &app))
    };
    let mut gate = Gate::start(&split("blue = 0, green = 1"));
    let mut conn = Conn::open(to).unwrap();
    let (who, set) = ask(&mut conn, "x=y");
    assert_eq!(who, "green");
    let (colour, own) = (&set["colour"], &set["own"]);
    let both = format!("colour={colour}; own={own}");
    let (who, set) = ask(&mut conn, &both);
    assert_eq!((who.as_str(), set.len()), ("green", 0));
    // A small share: still green, also in another process, which has to give the same names to all.
    let canary = split("blue = 1000, green = 1");
    gate.write(&canary);
    gate.signal(rustix::process::Signal::TERM);
    gate = gate.restart();
    let mut conn = Conn::open(to).unwrap();
    for _ in 0..50 {
        let (who, set) = ask(&mut conn, &both);
        assert_eq!((who.as_str(), set.len()), ("green", 0));
    }
    // Nobody, not even sticky.
    gate.reload_ok(&split("blue = 1, green = 0"));
    let (who, set) = ask(&mut conn, &both);
    assert!(who == "blue" && set["colour"] != *colour);
}
