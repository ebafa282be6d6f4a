//! Agents that reach their server through other proxies.

use super::{Pair, TOKEN, home, local, pin, sessions, trouble};
use crate::kit::connect_proxy::{ConnectProxy, Ways};
use crate::kit::{Gate, Origin, free_port, get, until};

#[test]
fn a_proxy_is_told_the_name_and_a_swap_to_another_way_fails_no_request() {
    let pair = Pair::start();
    let proxy = ConnectProxy::start(Ways {
        login: Some("us:sesame"),
        test: Some(pair.agents),
        ..Ways::default()
    });
    let port = pair.agents.port();
    let by = format!("edge.test:{port}");
    let through = |password: &str| {
        let via = format!("via = \"http://us:{password}@{}\"", proxy.addr);
        let direct = format!("server = \"{}\"", pair.agents);
        let document = pair
            .home()
            .replace(&direct, &format!("server = \"{by}\"\n{via}"));
        assert_ne!(document, pair.home());
        document
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
    let others = |before: &[String]| {
        until("other sessions", || {
            let all = pair.published()["sessions"].clone();
            let ids: Vec<_> = all
                .as_array()?
                .iter()
                .map(|s| s["session"].clone())
                .collect();
            let new = ids.iter().all(|id| before.iter().all(|old| id != old));
            (ids.len() == 2 && new).then_some(())
        });
        sessions(&pair.edge, &pair.home)
    };
    pair.home.reload_ok(&through("sesame"));
    let there = others(&before);
    assert_eq!(proxy.asked(), [by.clone(), by.clone()]);
    // The password itself is nowhere.
    assert!(!pair.home.now().text().contains("sesame"));
    // What does not concern the way leaves the sessions alone.
    let other = "[http.other]\nlisten = \"127.0.0.1:0\"\nrespond = \"x\"\n";
    pair.home
        .reload_ok(&format!("{}{other}", through("sesame")));
    assert_eq!(sessions(&pair.edge, &pair.home), there);
    pair.home.reload_ok(&pair.home());
    others(&there);
    assert!(proxy.asked().is_empty());
    stop.send(()).unwrap();
    let statuses = asking.join().unwrap();
    assert!(statuses.iter().all(|s| *s == 200), "{statuses:?}");
}

#[test]
fn a_proxy_that_does_not_let_it_through_is_named() {
    let blog = Origin::start("blog");
    let proxy = ConnectProxy::start(Ways {
        login: Some("us:sesame"),
        ..Ways::default()
    });
    let agents = local(free_port());
    let lines = format!(
        "token = \"{TOKEN}\"\ntls.insecure = true\nvia = \"http://us:wrong@{}\"",
        proxy.addr
    );
    let home_gate = Gate::start(&home(agents, blog.addr, &lines, ""));
    let (kind, why) = trouble(&home_gate);
    assert_eq!(kind, "unreachable", "{why}");
    assert!(why.contains(&format!("via http://{}", proxy.addr)), "{why}");
    assert!(
        why.contains("does not take this user and password"),
        "{why}"
    );
}

#[test]
fn socks_will_do_and_connections_of_flows_go_the_same_way() {
    let blog = Origin::start("blog");
    let (agents, web, socks) = (local(free_port()), local(free_port()), local(free_port()));
    let edge_gate = Gate::start(&super::edge(agents, web, ""));
    let socks_gate = Gate::start(&format!(
        "[forward.out]\nlisten = \"{socks}\"\nprotocols = [\"socks5\"]\n\
         destinations.allow = [\"127.0.0.0/8\"]\n"
    ));
    let lines = format!(
        "token = \"{TOKEN}\"\ntls.pin = \"{}\"\nvia = \"socks5://{socks}\"",
        pin(&edge_gate)
    );
    let document = home(agents, blog.addr, &lines, "").replace(
        &format!("\"http://{}\"", blog.addr),
        &format!("{{ to = \"http://{}\", dedicated = true }}", blog.addr),
    );
    let home_gate = Gate::start(&document);
    sessions(&edge_gate, &home_gate);
    assert_eq!(get(web, "x", "/who").text(), "blog /who");
    let list = socks_gate.status();
    let listeners = list["listeners"].as_array().unwrap();
    let connections = listeners.iter().map(|l| l["connections"].as_u64().unwrap());
    // Two sessions, and a flow.
    assert!(connections.sum::<u64>() >= 3, "{list}");
}
