//! Services whose flows have connections of their own.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};

use super::streams::{accept, close_visitor, expect_reset};
use super::{Pair, TOKEN, local, sessions};
use crate::kit::{free_port, get, until};
use crate::tcp::{echo, exchange, open};

fn with_port(pair: &Pair, at: SocketAddr) -> String {
    let port = format!("[tcp.bulk]\nlisten = \"{at}\"\nupstream = \"tunnel:home/bulk\"");
    format!("{}{port}\n", pair.edge())
}

fn service(to: SocketAddr) -> String {
    format!("services.bulk = {{ to = \"tcp://{to}\", dedicated = true }}")
}

fn start(to: SocketAddr) -> (Pair, SocketAddr) {
    let (pair, at) = (Pair::start(), local(free_port()));
    pair.edge.reload_ok(&with_port(&pair, at));
    pair.home.reload_ok(&pair.with_services(&service(to)));
    pair.wait_services(2);
    (pair, at)
}

/// Waits until the agent has so many connections to its server.
fn wait_connections(pair: &Pair, count: u64) {
    let agents = pair.agents.to_string();
    pair.edge.wait_status("so many connections", |status| {
        let mut all = status["listeners"].as_array().unwrap().iter();
        let one = all.find(|l| l["address"].as_str().unwrap().ends_with(&agents));
        one.unwrap()["connections"] == count
    });
}

#[test]
fn each_has_one_that_swaps_leave_alone_and_ends_with_it() {
    let origin = echo();
    let (pair, at) = start(origin.addr);
    let before = sessions(&pair.edge, &pair.home);
    wait_connections(&pair, 2);
    let (mut one, mut other) = (open(at), open(at));
    exchange(&mut one, "hello");
    exchange(&mut other, "hello");
    wait_connections(&pair, 4);
    for n in 0..3 {
        let more = format!("[http.other]\nlisten = \"127.0.0.1:0\"\nrespond = \"{n}\"\n");
        pair.edge
            .reload_ok(&format!("{}{more}", with_port(&pair, at)));
        pair.home.reload_ok(&format!(
            "{}{more}",
            pair.with_services(&service(origin.addr))
        ));
        exchange(&mut one, "still there");
    }
    let large: Vec<u8> = (0..5_000_000_u32).map(|n| (n >> 7 ^ n) as u8).collect();
    let (mut write, sent) = (one.try_clone().unwrap(), large.clone());
    let writing = std::thread::spawn(move || {
        write.write_all(&sent).unwrap();
        write.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    one.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == large, "{} bytes", back.len());
    exchange(&mut other, "and again");
    drop((one, other));
    wait_connections(&pair, 2);
    assert_eq!(sessions(&pair.edge, &pair.home), before);
}

#[test]
fn a_reset_of_the_service_is_one_for_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (pair, at) = start(listener.local_addr().unwrap());
    let mut client = open(at);
    client.write_all(b"hello").unwrap();
    let (mut there, _) = listener.accept().unwrap();
    there.read_exact(&mut [0; 5]).unwrap();
    there.write_all(b"so far").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    let linger = Some(std::time::Duration::ZERO);
    socket2::SockRef::from(&there).set_linger(linger).unwrap();
    drop(there);
    let ended = client.read(&mut [0; 1]).unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
    wait_connections(&pair, 2);
}

#[test]
fn what_is_cut_is_a_reset_for_the_service_also_after_half_an_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (pair, at) = start(listener.local_addr().unwrap());
    for half in [false, true] {
        let mut client = open(at);
        client.write_all(b"hello").unwrap();
        let mut service = accept(&listener);
        service.read_exact(&mut [0; 5]).unwrap();
        if half {
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(service.read(&mut [0]).unwrap(), 0);
        }
        close_visitor(&pair);
        expect_reset(&mut service, half);
        wait_connections(&pair, 2);
    }
    // Also where nothing of it is read.
    let mut client = open(at);
    client.write_all(b"hello").unwrap();
    let mut service = accept(&listener);
    service.read_exact(&mut [0; 5]).unwrap();
    let writing = std::thread::spawn(move || client.write_all(&vec![0; 64 << 20]).unwrap_err());
    let sent = || pair.published()["sent"].as_u64().unwrap();
    until("nothing more to pass", || {
        let before = sent();
        std::thread::sleep(std::time::Duration::from_millis(100));
        (before > 1 << 20 && before == sent()).then_some(())
    });
    close_visitor(&pair);
    until("the reset", || service.take_error().unwrap());
    writing.join().unwrap();
    wait_connections(&pair, 2);
}

#[test]
fn an_agent_whose_new_secret_or_server_is_none_goes_on_with_the_old_ones() {
    let origin = echo();
    let (pair, at) = start(origin.addr);
    let working = pair.with_services(&service(origin.addr));
    let nobody = local(free_port());
    for (document, said) in [
        (
            working.replace(TOKEN, "wrong-horse-battery-staple"),
            "its secret is wrong".to_owned(),
        ),
        (
            working.replace(&pair.agents.to_string(), &nobody.to_string()),
            format!("connect to {nobody}"),
        ),
    ] {
        assert_ne!(document, working);
        pair.home.reload_ok(&document);
        until("the agent to say so", || {
            pair.home.output().contains(&said).then_some(())
        });
        exchange(&mut open(at), "hello");
        // What does not change that leaves it as it is.
        pair.home.reload_ok(&format!(
            "{document}
[http.other]
listen = \"127.0.0.1:0\"\nrespond = \"x\"\n"
        ));
        exchange(&mut open(at), "hello");
        pair.home.reload_ok(&working);
    }
    exchange(&mut open(at), "hello");
}

#[test]
fn it_ends_with_the_session_that_it_was_asked_for_over() {
    let origin = echo();
    let (pair, at) = start(origin.addr);
    let mut client = open(at);
    exchange(&mut client, "hello");
    pair.home.signal(rustix::process::Signal::KILL);
    // Reset, or at its end: it is over.
    match client.read(&mut [0; 1]) {
        Ok(size) => assert_eq!(size, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn an_agent_that_stops_lets_it_come_to_its_end() {
    let origin = echo();
    let (mut pair, at) = start(origin.addr);
    let mut client = open(at);
    exchange(&mut client, "hello");
    pair.home.signal(rustix::process::Signal::TERM);
    pair.wait_draining();
    exchange(&mut client, "still there");
    drop(client);
    assert_eq!(pair.home.wait().code(), Some(0));
}

#[test]
fn requests_take_one_too_and_use_it_again() {
    let pair = Pair::start();
    let to = pair.blog.addr;
    let blog = format!("services.blog = {{ to = \"http://{to}\", dedicated = true }}");
    let plain = format!("services.blog = \"http://{to}\"");
    let document = pair.home().replace(&plain, &blog);
    assert_ne!(document, pair.home());
    pair.home.reload_ok(&document);
    until("the service to have connections of its own", || {
        assert_eq!(get(pair.web, "x", "/who").status, 200);
        let status = pair.edge.status();
        let all = status["listeners"].as_array()?.iter();
        let mut agents = all.filter(|l| {
            let address = l["address"].as_str().unwrap_or_default();
            address.ends_with(&pair.agents.to_string())
        });
        (agents.next()?["connections"].as_u64()? > 2).then_some(())
    });
    let before = pair.published()["opened"].as_u64().unwrap();
    assert_eq!(pair.statuses(), [200; 20]);
    let opened = pair.published()["opened"].as_u64().unwrap() - before;
    assert!(opened < 20, "{opened}");
}

#[test]
fn a_dial_that_is_refused_is_explained() {
    let nobody = local(free_port());
    let (pair, at) = start(nobody);
    let error = until("the error to be known", || {
        let _ = open(at).read(&mut [0; 1]);
        let services = pair.published()["services"].clone();
        let bulk = services
            .as_array()?
            .iter()
            .find(|s| s["service"] == "bulk")?;
        bulk["last_error"].as_str().map(str::to_owned)
    });
    let wanted = format!("connect to {nobody}: Connection refused");
    assert!(error.contains(&wanted), "{error}");
}
