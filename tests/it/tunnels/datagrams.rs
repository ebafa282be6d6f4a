//! Datagrams through a tunnel.

use std::net::{SocketAddr, UdpSocket};

use super::{Pair, local, sessions};
use crate::kit::{free_port, until};
use crate::udp::{ask, ask_until_answered, client, echo, wait_sessions};

/// The edge's document with a port that leads to a service.
fn with_port(pair: &Pair, at: SocketAddr, more: &str) -> String {
    let port = format!("[udp.dns]\nlisten = \"{at}\"\nupstream = \"tunnel:home/dns\"\n{more}");
    format!("{}{port}\n", pair.edge())
}

fn service(to: SocketAddr) -> String {
    format!("services.dns = \"udp://{to}\"")
}

/// A pair with a port for datagrams that leads to `to`.
fn start(to: SocketAddr) -> (Pair, SocketAddr) {
    let (pair, at) = (Pair::start(), local(free_port()));
    pair.edge.reload_ok(&with_port(&pair, at, ""));
    pair.home.reload_ok(&pair.with_services(&service(to)));
    pair.wait_services(2);
    (pair, at)
}

/// Dropped at the edge, since its agent is there.
fn dropped(pair: &Pair) -> u64 {
    pair.published()["dropped"].as_u64().unwrap()
}

#[test]
fn they_go_both_ways_in_sessions_that_swaps_leave_alone() {
    let origin = echo();
    let (pair, at) = start(origin.addr);
    let before = sessions(&pair.edge, &pair.home);
    let clients = [(); 3].map(|()| client(at));
    for (n, client) in clients.iter().enumerate() {
        ask(client, &format!("hello {n}"));
        ask(client, "");
    }
    // Each has an address of its own at the service, and keeps it.
    assert_eq!(origin.seen(), (6, 3));
    for n in 0..3 {
        let other = format!("[http.other]\nlisten = \"127.0.0.1:0\"\nrespond = \"{n}\"\n");
        pair.edge.reload_ok(&with_port(&pair, at, &other));
        pair.home.reload_ok(&format!(
            "{}{other}",
            pair.with_services(&service(origin.addr))
        ));
        clients.iter().for_each(|client| ask(client, "still there"));
    }
    assert_eq!(origin.seen(), (15, 3));
    assert_eq!(sessions(&pair.edge, &pair.home), before);
    // The largest that there are.
    let large: Vec<u8> = (0..65_507_u32).map(|n| (n >> 5 ^ n) as u8).collect();
    clients[0].send(&large).unwrap();
    let mut back = vec![0; 1 << 16];
    let size = clients[0].recv(&mut back).unwrap();
    assert!(back[..size] == large, "{size} bytes");
}

#[test]
fn a_session_that_is_answered_ends_its_flow() {
    let origin = echo();
    let (pair, at) = start(origin.addr);
    let header = "[upstreams.dns]\ntargets = \"tunnel:home/dns\"\nproxy_protocol = \"v2\"\n";
    let document = with_port(&pair, at, "replies = 1\n")
        .replace("upstream = \"tunnel:home/dns\"", "upstream = \"dns\"");
    pair.edge.reload_ok(&format!("{document}{header}"));
    let client = client(at);
    client.send(b"who?").unwrap();
    let mut room = [0; 64];
    let size = client.recv(&mut room).unwrap();
    // The first datagram of a session says who the client is: PROXY, UDP over IPv4, 12 bytes of addresses.
    assert_eq!(size, 28 + 4);
    assert_eq!(&room[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c");
    assert_eq!(
        room[24..26],
        client.local_addr().unwrap().port().to_be_bytes()
    );
    assert_eq!(&room[28..32], b"who?");
    wait_sessions(&pair.edge, 0);
    // The agent has let go of it too: what is left are the connections of requests.
    until("the flow to end on both sides", || {
        let flows = |list: serde_json::Value| -> Option<u64> {
            let all = list["sessions"].as_array()?.iter();
            all.map(|session| session["flows"].as_u64()).sum()
        };
        let (there, here) = (pair.published(), super::agent(&pair.home));
        (flows(there)? == flows(here)?).then_some(())
    });
}

#[test]
fn a_session_whose_agent_goes_ends_and_the_next_one_finds_it_again() {
    let origin = echo();
    let (mut pair, at) = start(origin.addr);
    let client = client(at);
    ask(&client, "hello");
    // It starts with what its file says.
    pair.home.write(&pair.with_services(&service(origin.addr)));
    pair.home.signal(rustix::process::Signal::KILL);
    wait_sessions(&pair.edge, 0);
    pair.home = pair.home.restart();
    ask_until_answered(&client);
}

#[test]
fn a_service_that_refuses_them_ends_the_session() {
    let to = local(free_port());
    let (pair, at) = start(to);
    let client = client(at);
    let opened = || pair.published()["opened"].as_u64().unwrap();
    let before = opened();
    client.send(b"nobody").unwrap();
    until("the session to begin", || (opened() > before).then_some(()));
    wait_sessions(&pair.edge, 0);
    let late = UdpSocket::bind(to).unwrap();
    std::thread::spawn(move || {
        let mut room = [0; 64];
        while let Ok((size, from)) = late.recv_from(&mut room) {
            let _ = late.send_to(&room[..size], from);
        }
    });
    ask_until_answered(&client);
}

#[test]
fn what_has_no_room_is_dropped_and_counted_and_keeps_nobody_waiting() {
    let origin = echo();
    let (pair, at) = start(origin.addr);
    let slow = with_port(&pair, at, "").replace(
        "[http.web]",
        "grants.home.bandwidth = \"20kB/s\"\n[http.web]",
    );
    pair.edge.reload_ok(&slow);
    let before = sessions(&pair.edge, &pair.home);
    let client = client(at);
    until("some to be dropped", || {
        (0..200).for_each(|_| drop(client.send(&[7; 1000])));
        (dropped(&pair) > 100).then_some(())
    });
    let metrics = pair.edge.call(crate::kit::Call::get("/metrics")).text();
    let name = "evergate_tunnel_dropped_datagrams_total{tunnel=\"edge\",agent=\"home\"} ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    assert!(line.unwrap().parse::<u64>().unwrap() > 100);
    // A swap that lifts the limit is felt by the flow that is there.
    pair.edge.reload_ok(&with_port(&pair, at, ""));
    let pause = std::time::Duration::from_millis(50);
    client.set_read_timeout(Some(pause)).unwrap();
    until("an answer behind those that were late", || {
        client.send(b"the last one").ok()?;
        let mut room = [0; 1 << 11];
        let mut sizes = std::iter::from_fn(|| client.recv(&mut room).ok());
        sizes.find(|size| *size == 12).map(drop)
    });
    assert_eq!(sessions(&pair.edge, &pair.home), before);
}

/// Answers `flood` with more than there is room for anywhere, and all else with itself.
fn flooding() -> SocketAddr {
    let socket = UdpSocket::bind(local(0)).unwrap();
    let addr = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut room = [0; 2048];
        while let Ok((size, from)) = socket.recv_from(&mut room) {
            if room[..size] != *b"flood" {
                let _ = socket.send_to(&room[..size], from);
                continue;
            }
            for _ in 0..400 {
                (0..10).for_each(|_| drop(socket.send_to(&[7; 1000], from)));
                // Its reader gets a chance.
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    });
    addr
}

#[test]
fn what_an_agents_rate_makes_late_is_dropped_and_keeps_nothing_new_waiting() {
    let (pair, at) = start(flooding());
    let grant = "grants.home.bandwidth = \"1kB/s\"\n[http.web]";
    let slow = with_port(&pair, at, "").replace("[http.web]", grant);
    pair.edge.reload_ok(&slow);
    for from_service in [true, false] {
        let client = client(at);
        let before = dropped(&pair);
        if from_service {
            client.send(b"flood").unwrap();
        }
        until("more than there is room for", || {
            if !from_service {
                (0..200).for_each(|_| drop(client.send(&[7; 1000])));
            }
            (dropped(&pair) > before + 200).then_some(())
        });
        // At this rate what waits would take a minute.
        ask_until_answered(&client);
    }
}

#[test]
fn one_that_is_no_udp_service_says_so() {
    let origin = echo();
    let (pair, at) = start(origin.addr);
    let tcp = format!("services.dns = \"tcp://{}\"", origin.addr);
    pair.home.reload_ok(&pair.with_services(&tcp));
    let client = client(at);
    let error = until("the error to be known", || {
        client.send(b"hello").ok()?;
        let services = pair.published()["services"].clone();
        let dns = services
            .as_array()?
            .iter()
            .find(|s| s["service"] == "dns")?;
        dns["last_error"].as_str().map(str::to_owned)
    });
    assert!(error.contains("is a tcp service"), "{error}");
}
