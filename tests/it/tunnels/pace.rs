//! How fast an agent may be.

use std::time::{Duration, Instant};

use super::{Pair, sessions};
use crate::kit::get;

#[test]
fn its_bandwidth_is_shared_by_its_flows_and_a_swap_changes_it() {
    let pair = Pair::start();
    let before = sessions(&pair.edge, &pair.home);
    let with = |speed: &str| {
        let grant = format!("grants.home.bandwidth = \"{speed}\"\n[http.web]");
        pair.edge().replace("[http.web]", &grant)
    };
    let web = pair.web;
    let fetch = move |bytes: usize| {
        let answer = get(web, "x", &format!("/download?bytes={bytes}"));
        assert_eq!((answer.status, answer.body.len()), (200, bytes));
    };
    pair.edge.reload_ok(&with("100kB/s"));
    let start = Instant::now();
    let other = std::thread::spawn(move || fetch(120_000));
    fetch(120_000);
    other.join().unwrap();
    // 64 KiB of these 240 kB are free.
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?}");
    // A flow that crawls goes on at once when it may.
    pair.edge.reload_ok(&with("10kB/s"));
    let large = std::thread::spawn(move || fetch(10_000_000));
    pair.edge.reload_ok(&with("unlimited"));
    large.join().unwrap();
    assert_eq!(sessions(&pair.edge, &pair.home), before);
}
