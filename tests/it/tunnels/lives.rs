//! Either side ends, well or badly, and comes back.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Pair, TOKEN, pin, sessions};
use crate::kit::{Gate, full, get, until};

/// Back within 5 s of its return; on a debug build the clock does not count.
fn back(pair: &Pair, since: Instant) {
    until("the service to be back", || {
        (get(pair.web, "x", "/who").status == 200).then_some(())
    });
    let took = since.elapsed();
    assert!(!full() || took < Duration::from_secs(5), "{took:?}");
}

/// Kills it and starts it again.
fn reborn(gate: Gate) -> Gate {
    gate.signal(Signal::KILL);
    gate.restart()
}

#[test]
fn an_edge_that_is_killed_comes_back_with_the_key_that_agents_pin() {
    let mut pair = Pair::start();
    let before = pin(&pair.edge);
    pair.edge = reborn(pair.edge);
    assert_eq!(pin(&pair.edge), before);
    back(&pair, Instant::now());
    assert_eq!(sessions(&pair.edge, &pair.home).len(), 2);
}

#[test]
fn an_agent_that_is_killed_comes_back() {
    let mut pair = Pair::start();
    pair.home.signal(Signal::KILL);
    until("the edge to notice", || {
        (get(pair.web, "x", "/who").status == 503).then_some(())
    });
    pair.home = pair.home.restart();
    back(&pair, Instant::now());
    assert_eq!(sessions(&pair.edge, &pair.home).len(), 2);
}

#[test]
fn an_agent_that_stops_ends_what_it_has_begun() {
    let mut pair = Pair::start();
    let held = pair.held();
    pair.home.signal(Signal::TERM);
    pair.wait_draining();
    assert!(pair.home.is_running());
    pair.blog.release_all();
    assert_eq!(held.join().unwrap().status, 200);
    assert_eq!(pair.home.wait().code(), Some(0));
}

#[test]
fn an_agent_that_stops_waits_no_longer_than_it_was_told() {
    let mut pair = Pair::with("drain_timeout = \"1s\"");
    let held = pair.held();
    pair.home.signal(Signal::TERM);
    assert_eq!(pair.home.wait().code(), Some(0));
    let status = held.join().unwrap().status;
    assert!(matches!(status, 502 | 503), "{status}");
}

#[test]
fn an_agent_that_a_swap_takes_away_ends_what_it_has_begun_and_may_come_again() {
    let pair = Pair::start();
    let before = sessions(&pair.edge, &pair.home);
    let held = pair.held();
    pair.home.reload_ok("");
    pair.wait_draining();
    // While the flow goes on.
    pair.home.reload_ok(&pair.home());
    let after = until("other sessions", || {
        let all = pair.published()["sessions"].clone();
        let ids = all.as_array()?.iter().filter(|s| s["draining"] == false);
        let ids: Vec<_> = ids
            .filter_map(|s| s["session"].as_str().map(str::to_owned))
            .collect();
        (ids.len() == 2).then_some(ids)
    });
    assert!(after.iter().all(|id| !before.contains(id)));
    assert_eq!(pair.statuses(), [200; 20]);
    pair.blog.release_all();
    assert_eq!(held.join().unwrap().status, 200);
}

#[test]
fn a_secret_is_exchanged_while_requests_go_on() {
    let pair = Pair::start();
    let new = "another-horse-battery-staple";
    let edge = |tokens: &str| {
        let one = format!("home = \"{TOKEN}\"");
        let other = pair.edge().replace(&one, &format!("home = {tokens}"));
        assert_ne!(other, pair.edge());
        other
    };
    let before = sessions(&pair.edge, &pair.home);
    let web = pair.web;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let asking = std::thread::spawn(move || {
        let mut statuses = Vec::new();
        while stopped.try_recv().is_err() {
            statuses.push(get(web, "x", "/who").status);
        }
        statuses
    });
    pair.edge
        .reload_ok(&edge(&format!("[\"{TOKEN}\", \"{new}\"]")));
    assert_eq!(sessions(&pair.edge, &pair.home), before);
    pair.home.reload_ok(&pair.home().replace(TOKEN, new));
    let fresh = until("sessions under the new secret", || {
        let all = pair.published()["sessions"].clone();
        let mut ids: Vec<_> = all
            .as_array()?
            .iter()
            .map(|s| s["session"].clone())
            .collect();
        // They come in any order.
        ids.sort_by_key(serde_json::Value::to_string);
        let other = ids.iter().all(|id| before.iter().all(|old| id != old));
        (ids.len() == 2 && other).then_some(ids)
    });
    pair.edge.reload_ok(&edge(&format!("\"{new}\"")));
    stop.send(()).unwrap();
    let statuses = asking.join().unwrap();
    assert!(statuses.iter().all(|s| *s == 200), "{statuses:?}");
    assert_eq!(sessions(&pair.edge, &pair.home), fresh);
}
