//! `[udp]` through a SOCKS5 proxy: one of our own, and one that follows a script.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use crate::kit::{Call, Gate, PATIENCE, free_port, until};
use crate::udp::{
    ask, ask_until_answered, client, echo, is_deaf, passing, sessions, wait_sessions,
};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A listener whose datagrams go to `target` through `via`.
fn through(listen: SocketAddr, target: &str, via: &str) -> String {
    let upstream = format!("[upstreams.far]\ntargets = \"{target}\"\nvia = {via}\n");
    passing(listen, "far", "on_change = \"cut\"") + &upstream
}

/// A SOCKS5 proxy that may go to this machine.
fn office(listen: SocketAddr, more: &str) -> String {
    format!(
        "[forward.office]\nlisten = \"{listen}\"\nusers = {{ alice = \"sesame\" }}\n\
         destinations.allow = [\"127.0.0.0/8\", \"::1/128\"]\n{more}\n"
    )
}

/// Associations of a proxy, by those who have them.
fn associations(gate: &Gate) -> Vec<String> {
    let all = gate.call(Call::get("/sessions?kind=socks_udp")).json();
    let all = all["sessions"].as_array().unwrap().iter();
    all.map(|s| s["user"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn wait_associations(gate: &Gate, count: usize) {
    until("so many associations", || {
        (associations(gate).len() == count).then_some(())
    });
}

#[test]
fn datagrams_go_through_a_proxy_and_back() {
    let (origin, listen, socks) = (echo(), local(free_port()), local(free_port()));
    let proxy = Gate::start(&office(socks, ""));
    let gate = Gate::start("");
    let port = origin.addr.port();
    let mut ports = 0;
    for (scheme, target) in [
        ("socks5", format!("127.0.0.1:{port}")),
        ("socks5h", format!("localhost:{port}")),
    ] {
        let via = format!("\"{scheme}://alice:sesame@{socks}\"");
        gate.reload_ok(&through(listen, &target, &via));
        let clients = [client(listen), client(listen)];
        for round in 0..5 {
            for (index, client) in clients.iter().enumerate() {
                ask(client, &format!("{round} of {index}"));
            }
        }
        // Many at once, of several sizes.
        let mut room = vec![0; 1 << 16];
        for sizes in [&[100; 20][..], &[1400, 1400, 3, 0, 9000, 9000, 60_000]] {
            for (n, size) in sizes.iter().enumerate() {
                clients[0].send(&vec![n as u8; *size]).unwrap();
            }
            for (n, size) in sizes.iter().enumerate() {
                let came = clients[0].recv(&mut room).unwrap();
                assert!(
                    room[..came] == vec![n as u8; *size],
                    "{n}: {came} of {size}"
                );
            }
        }
        // Each has an association, and a port of its own there.
        ports += 2;
        assert_eq!(origin.seen().1, ports, "{scheme} {target}");
        assert_eq!(associations(&proxy), ["alice", "alice"]);
        // With the header it is too long: it is lost, and nothing else.
        clients[0].send(&vec![0; 65_507]).unwrap();
        ask(&clients[0], "goes on");
        assert_eq!(origin.seen().1, ports);
        // Their end is that of the associations.
        gate.reload_ok("");
        wait_associations(&proxy, 0);
    }
}

#[test]
fn sessions_through_a_proxy_never_notice_swaps_of_other_things_on_either_side() {
    let (origin, listen, socks) = (echo(), local(free_port()), local(free_port()));
    let other = |n: usize| format!("[http.other]\nlisten = \"127.0.0.1:0\"\nrespond = \"{n}\"\n");
    let setup = || Gate::setup().runtime("drain_timeout = \"300ms\"");
    let proxy = setup().start(&office(socks, ""));
    let via = format!("\"socks5://alice:sesame@{socks}\"");
    let to = through(listen, &origin.addr.to_string(), &via);
    let gate = setup().start(&to);
    let clients: Vec<UdpSocket> = (0..10).map(|_| client(listen)).collect();
    for client in &clients {
        ask(client, "hello");
    }
    for n in 1..=10 {
        gate.reload_ok(&(to.clone() + &other(n)));
        proxy.reload_ok(&(office(socks, "") + &other(n)));
        for (index, client) in clients.iter().enumerate() {
            ask(client, &format!("{n} of {index}"));
        }
    }
    gate.wait_settled();
    proxy.wait_settled();
    for client in &clients {
        ask(client, "after all that was old is gone");
    }
    assert_eq!(origin.seen(), (10 * 12, 10));
}

#[test]
fn a_proxy_that_ends_is_left_and_asked_again() {
    let (origin, listen, socks) = (echo(), local(free_port()), local(free_port()));
    let proxy = Gate::start(&office(socks, "on_change = \"cut\""));
    let via = format!("\"socks5://alice:sesame@{socks}\"");
    let gate = Gate::start(&through(listen, &origin.addr.to_string(), &via));
    let client = client(listen);
    ask(&client, "hello");
    proxy.reload_ok("");
    // Without a datagram: its connection tells.
    wait_sessions(&gate, 0);
    assert!(is_deaf(&client));
    proxy.reload_ok(&office(socks, ""));
    ask_until_answered(&client);
    assert_eq!(origin.seen().1, 2);
    // An operator's close ends it on both sides.
    let all = gate.call(Call::get("/sessions?kind=udp")).json();
    let id = &all["sessions"][0]["id"];
    gate.call(Call::post(&format!("/sessions/{id}/close")));
    wait_associations(&proxy, 0);
}

#[test]
fn who_is_not_let_in_by_the_proxy_is_told_so() {
    let (origin, listen, socks) = (echo(), local(free_port()), local(free_port()));
    let _proxy = Gate::start(&office(socks, ""));
    let via = |password: &str| format!("\"socks5://alice:{password}@{socks}\"");
    let to = |password: &str| through(listen, &origin.addr.to_string(), &via(password));
    let gate = Gate::start(&(to("guess") + "[log]\nlevel = \"debug\"\n"));
    let client = client(listen);
    assert!(is_deaf(&client));
    let told = format!("via socks5://{socks}: it does not take this user and password");
    until("the log", || gate.output().contains(&told).then_some(()));
    wait_sessions(&gate, 0);
    gate.reload_ok(&to("sesame"));
    ask_until_answered(&client);
}

/// A proxy that says of its relay only the port.
struct Scripted {
    control: TcpStream,
    relay: UdpSocket,
    us: SocketAddr,
}

impl Scripted {
    /// Waits for one association, and its first datagram.
    fn accept(listener: &TcpListener, header: &[u8]) -> Scripted {
        let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
        relay.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut control, _) = listener.accept().unwrap();
        let mut said = [0; 3];
        control.read_exact(&mut said).unwrap();
        assert_eq!(said, [5, 1, 0]);
        control.write_all(&[5, 0]).unwrap();
        let mut said = [0; 10];
        control.read_exact(&mut said).unwrap();
        assert_eq!(said, [5, 3, 0, 1, 0, 0, 0, 0, 0, 0]);
        let port = relay.local_addr().unwrap().port().to_be_bytes();
        control
            .write_all(&[&[5, 0, 0, 1, 0, 0, 0, 0][..], &port].concat())
            .unwrap();
        let mut room = [0; 64];
        let (size, us) = relay.recv_from(&mut room).unwrap();
        assert_eq!(room[..size], [header, b"question"].concat());
        Scripted { control, relay, us }
    }

    fn say(&self, pieces: &[&[u8]]) {
        self.relay.send_to(&pieces.concat(), self.us).unwrap();
    }
}

#[test]
fn an_unspecified_address_is_the_proxys_and_only_the_targets_answers_are_taken() {
    let (listen, listener) = (
        local(free_port()),
        TcpListener::bind("127.0.0.1:0").unwrap(),
    );
    let socks = listener.local_addr().unwrap();
    // Nobody is asked for the name here.
    let gate = Gate::start("");
    for (scheme, target, header, others) in [
        (
            "socks5",
            "192.0.2.7:53",
            &[0, 0, 0, 1, 192, 0, 2, 7, 0, 53][..],
            [
                &[0, 0, 0, 1, 192, 0, 2, 8, 0, 53][..],
                &[0, 0, 0, 1, 192, 0, 2, 7, 0, 54],
            ],
        ),
        (
            "socks5h",
            "dns.test:53",
            b"\0\0\0\x03\x08dns.test\0\x35",
            [
                b"\0\0\0\x03\x08dns.test\0\x36",
                b"\0\0\0\x01\x7f\0\0\x01\0\x36",
            ],
        ),
    ] {
        let to = through(listen, target, &format!("\"{scheme}://{socks}\""));
        gate.reload_ok(&to);
        let client = client(listen);
        client.send(b"question").unwrap();
        let proxy = Scripted::accept(&listener, header);
        // Others, a fragment, no header, and nothing at all.
        for other in others {
            proxy.say(&[other, b"a stranger's"]);
        }
        proxy.say(&[&[0, 0, 1], &header[3..], b"a fragment"]);
        proxy.say(&[&header[..5]]);
        proxy.say(&[]);
        proxy.say(&[header, b"answer"]);
        let mut room = [0; 64];
        let size = client.recv(&mut room).unwrap();
        assert_eq!(&room[..size], b"answer");
        // What it says on its connection means nothing, but for its end.
        let mut control = proxy.control;
        control.write_all(b"hello?").unwrap();
        client.send(b"more").unwrap();
        let size = proxy.relay.recv(&mut room).unwrap();
        assert_eq!(room[..size], [header, b"more"].concat());
        assert_eq!(sessions(&gate), 1);
        drop(control);
        wait_sessions(&gate, 0);
    }
}

#[test]
fn the_next_proxy_is_tried_where_one_is_dead() {
    let (origin, listen, socks) = (echo(), local(free_port()), local(free_port()));
    let _proxy = Gate::start(&office(socks, ""));
    let via = "{ upstream = \"parents\", protocol = \"socks5\", user = \"alice\", password = \"sesame\" }";
    let mut document = through(listen, &origin.addr.to_string(), via);
    document += &format!(
        "[upstreams.parents]\ntargets = [\"{}\", \"{socks}\"]\n",
        local(free_port())
    );
    let _gate = Gate::start(&document);
    for _ in 0..6 {
        ask(&client(listen), "at once");
    }
    assert_eq!(origin.seen(), (6, 6));
}

#[test]
fn datagrams_go_through_several_proxies() {
    let (origin, listen) = (echo(), local(free_port()));
    let addresses = [0; 3].map(|_| local(free_port()));
    let proxies = addresses.map(|address| Gate::start(&office(address, "on_change = \"cut\"")));
    let port = origin.addr.port();
    let url = |scheme: &str, at: usize| format!("\"{scheme}://alice:sesame@{}\"", addresses[at]);
    let gate = Gate::start("");
    let mut ports = 0;
    for (scheme, target, hops) in [
        ("socks5", format!("127.0.0.1:{port}"), 2),
        ("socks5h", format!("localhost:{port}"), 3),
    ] {
        let via: Vec<String> = (0..hops).map(|at| url(scheme, at)).collect();
        let to = through(listen, &target, &format!("[{}]", via.join(", ")));
        gate.reload_ok(&to);
        let clients = [client(listen), client(listen)];
        for round in 0..3 {
            for (index, client) in clients.iter().enumerate() {
                ask(client, &format!("{round} of {index}"));
            }
        }
        ports += 2;
        assert_eq!(origin.seen().1, ports, "{scheme} {target}");
        for (at, proxy) in proxies.iter().enumerate() {
            // Each relays for each, and has the connections to those behind it.
            let expected = if at < hops { 2 } else { 0 };
            assert_eq!(associations(proxy).len(), expected, "{at} of {hops}");
        }
        // A swap of other things on the way is not noticed.
        let other = "[http.other]\nlisten = \"127.0.0.1:0\"\nrespond = \"x\"\n";
        gate.reload_ok(&(to + other));
        proxies[1].reload_ok(&(office(addresses[1], "on_change = \"cut\"") + other));
        ask(&clients[0], "after a swap");
        assert_eq!(origin.seen().1, ports);
        // Any of them ends the session.
        let last = hops - 1;
        proxies[last].reload_ok("");
        wait_sessions(&gate, 0);
        for proxy in &proxies {
            wait_associations(proxy, 0);
        }
        proxies[last].reload_ok(&office(addresses[last], "on_change = \"cut\""));
        ask_until_answered(&clients[0]);
        ports += 1;
        gate.reload_ok("");
        wait_associations(&proxies[0], 0);
    }
}
