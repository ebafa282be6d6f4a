//! `[tcp]`: connections passed on byte for byte, over swaps.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use crate::kit::{Call, Gate, PATIENCE, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Echoes whatever comes, and counts who comes.
pub(crate) struct Echo {
    pub(crate) addr: SocketAddr,
    came: Arc<AtomicU64>,
}

pub(crate) fn echo() -> Echo {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let echo = Echo {
        addr: listener.local_addr().unwrap(),
        came: Arc::default(),
    };
    let came = echo.came.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            came.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let mut write = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut &stream, &mut write);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    echo
}

pub(crate) fn open(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub(crate) fn exchange(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text.as_bytes());
}

/// Nothing comes any more: its end, or a reset.
fn ends(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(0) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
        Ok(_) => false,
    }
}

fn passing(listen: SocketAddr, upstream: &str, more: &str) -> String {
    format!("[tcp.numbers]\nlisten = \"{listen}\"\nupstream = \"{upstream}\"\n{more}\n")
}

#[test]
fn bytes_go_both_ways_and_each_end_alone() {
    let (origin, listen) = (echo(), local(free_port()));
    let _gate = Gate::start(&passing(listen, &origin.addr.to_string(), ""));
    let mut stream = open(listen);
    exchange(&mut stream, "hello");
    let large: Vec<u8> = (0..5_000_000_u32).map(|n| (n >> 7 ^ n) as u8).collect();
    let (mut write, sent) = (stream.try_clone().unwrap(), large.clone());
    let writing = std::thread::spawn(move || {
        write.write_all(&sent).unwrap();
        write.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == large, "{} bytes", back.len());
}

#[test]
fn the_next_target_is_tried_and_where_none_is_the_client_is_told_by_a_close() {
    let (origin, listen) = (echo(), local(free_port()));
    let two = |b: &str| {
        format!(
            "{}[upstreams.two]\ntargets = [\"127.0.0.1:{}\", \"{b}\"]\n",
            passing(listen, "two", ""),
            free_port()
        )
    };
    let gate = Gate::start(&two(&origin.addr.to_string()));
    for _ in 0..6 {
        exchange(&mut open(listen), "again");
    }
    gate.reload_ok(&two(&local(free_port()).to_string()));
    assert!(ends(&mut open(listen)));
    assert_eq!(origin.came.load(Ordering::SeqCst), 6);
}

#[test]
fn a_target_that_does_not_agree_in_time_is_left_by_the_listeners_own_limit() {
    // It takes connections, and never says anything: TLS is not agreed on.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = local(free_port());
    let _gate = Gate::start(&format!(
        "{}[upstreams.mute]\ntargets = \"{}\"\ntls = {{}}\ntimeouts.connect = \"10m\"\n",
        passing(listen, "mute", "timeouts.connect = \"50ms\""),
        mute.local_addr().unwrap()
    ));
    assert!(ends(&mut open(listen)));
}

#[test]
fn who_is_denied_is_closed_and_reaches_nobody() {
    let (origin, listen) = (echo(), local(free_port()));
    let upstream = origin.addr.to_string();
    let gate = Gate::start(&passing(listen, &upstream, "deny = \"127.0.0.0/8\""));
    assert!(ends(&mut open(listen)));
    gate.reload_ok(&passing(listen, &upstream, "allow = \"10.0.0.0/8\""));
    assert!(ends(&mut open(listen)));
    gate.reload_ok(&passing(listen, &upstream, "allow = \"127.0.0.1/32\""));
    exchange(&mut open(listen), "me");
    assert_eq!(origin.came.load(Ordering::SeqCst), 1);
}

#[test]
fn limits_and_silence_end_sessions() {
    let (origin, listen) = (echo(), local(free_port()));
    let upstream = origin.addr.to_string();
    let gate = Gate::start(&passing(listen, &upstream, "limits.connections = 1"));
    let mut first = open(listen);
    exchange(&mut first, "first");
    assert!(ends(&mut open(listen)));
    exchange(&mut first, "still");
    drop(first);
    until("its place to be free", || {
        let mut next = open(listen);
        next.write_all(b"x").unwrap();
        (next.read(&mut [0]).unwrap_or(0) == 1).then_some(())
    });
    gate.reload_ok(&passing(listen, &upstream, "timeouts.idle = \"100ms\""));
    let mut silent = open(listen);
    exchange(&mut silent, "last words");
    assert!(ends(&mut silent));
}

#[test]
fn a_session_that_ended_is_no_failure_of_its_target() {
    let (origin, listen) = (echo(), local(free_port()));
    let target = origin.addr.to_string();
    let gate = Gate::start(&passing(listen, &target, ""));
    for _ in 0..3 {
        exchange(&mut open(listen), "hello");
    }
    let labels = format!("{{upstream=\"{target}\",target=\"{target}\"}}");
    until("three sessions to be counted", || {
        let page = gate.call(Call::get("/metrics")).0.text();
        let has = |name: &str, n: u64| page.contains(&format!("{name}{labels} {n}\n"));
        let ended = has("evergate_target_sessions_total", 3);
        ended.then(|| {
            assert!(has("evergate_target_unanswered_total", 0), "{page}");
            assert!(has("evergate_target_requests_in_flight", 0), "{page}");
        })
    });
}

#[test]
fn a_proxy_header_says_who_the_client_is() {
    let (origin, listen) = (echo(), local(free_port()));
    let more = "proxy_protocol = true\ntrusted_proxies = \"127.0.0.0/8\"\nallow = \"192.0.2.0/24\"";
    let _gate = Gate::start(&passing(listen, &origin.addr.to_string(), more));
    let mut known = open(listen);
    known
        .write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 5000\r\n")
        .unwrap();
    exchange(&mut known, "known");
    let mut other = open(listen);
    other
        .write_all(b"PROXY TCP4 198.51.100.7 192.0.2.1 4000 5000\r\n")
        .unwrap();
    assert!(ends(&mut other));
}

#[test]
fn sessions_never_notice_swaps_of_other_things() {
    let (origin, other) = (echo(), echo());
    let (listen, web, around) = (local(free_port()), local(free_port()), local(free_port()));
    let document = |n: usize| {
        let mut text = passing(listen, "numbers", "");
        // Its upstream changes too, but for the target in use.
        text += &format!(
            "[upstreams.numbers]\ntargets = [{{ address = \"{}\", weight = {} }}]\n",
            origin.addr,
            1 + n % 2
        );
        text += &format!("[http.other]\nlisten = \"{web}\"\nrespond = \"{n}\"\n");
        if n % 2 == 1 {
            text += &format!(
                "[tcp.around]\nlisten = \"{around}\"\nupstream = \"{}\"\n",
                other.addr
            );
        }
        text
    };
    // Who is not carried over is cut soon.
    let setup = Gate::setup().runtime("drain_timeout = \"300ms\"");
    let gate = setup.start(&document(0));
    let mut sessions: Vec<TcpStream> = (0..20).map(|_| open(listen)).collect();
    for n in 1..=20 {
        gate.reload_ok(&document(n));
        assert_eq!(get(web, "x", "/").text(), n.to_string());
        for (index, session) in sessions.iter_mut().enumerate() {
            exchange(session, &format!("{n} of {index}"));
        }
        // New ones get what is there now.
        exchange(&mut open(listen), "new");
        if n % 2 == 1 {
            exchange(&mut open(around), "around");
        }
    }
    assert_eq!(origin.came.load(Ordering::SeqCst), 20 + 20);
    // They live in the newest generation: nothing older is left.
    gate.wait_settled();
    let status: Value = gate.status();
    assert_eq!(
        status["generations"].as_array().unwrap().len(),
        1,
        "{status}"
    );
    for session in &mut sessions {
        exchange(session, "after all that was old is gone");
    }
}

#[test]
fn what_a_swap_removes_ends_as_on_change_says() {
    for (on_change, goes_on) in [("keep", true), ("cut", false)] {
        let (origin, listen) = (echo(), local(free_port()));
        let more = format!("on_change = \"{on_change}\"");
        let gate = Gate::start(&passing(listen, &origin.addr.to_string(), &more));
        let mut session = open(listen);
        exchange(&mut session, "here");
        gate.reload_ok("");
        if goes_on {
            exchange(&mut session, "still here");
        } else {
            assert!(ends(&mut session));
        }
        let refused = TcpStream::connect(listen).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    // Drain: at the deadline.
    let (origin, listen) = (echo(), local(free_port()));
    let runtime = Gate::setup().runtime("drain_timeout = \"300ms\"");
    let gate = runtime.start(&passing(listen, &origin.addr.to_string(), ""));
    let mut session = open(listen);
    exchange(&mut session, "here");
    gate.reload_ok("");
    exchange(&mut session, "for a while");
    assert!(ends(&mut session));
}

#[test]
fn an_address_goes_from_one_plane_to_another_and_back() {
    let (origin, listen) = (echo(), local(free_port()));
    let http = format!("[http.web]\nlisten = \"{listen}\"\nrespond = \"web\"\n");
    let gate = Gate::start(&http);
    for _ in 0..3 {
        assert_eq!(get(listen, "x", "/").text(), "web");
        gate.reload_ok(&passing(listen, &origin.addr.to_string(), ""));
        exchange(&mut open(listen), "GET / HTTP/1.1\r\nhost: x\r\n\r\n");
        gate.reload_ok(&http);
    }
}

/// `config/layer4.toml`: the backup while the first is down, then the first.
#[test]
fn the_sample_passes_sessions_on() {
    let sample = crate::samples::Sample::start("layer4.toml");
    let serve = |port: u16, name: &'static [u8]| {
        let listener = TcpListener::bind(sample.at(port)).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                // A check asks nothing.
                let _ = stream.write_all(name);
            }
        });
    };
    let answer = || {
        let mut stream = open(sample.at(5432));
        let mut name = Vec::new();
        // Reset while there is none.
        let _ = stream.read_to_end(&mut name);
        name
    };
    serve(6433, b"backup");
    until("the backup to serve", || {
        (answer() == b"backup").then_some(())
    });
    serve(6432, b"first");
    until("the first to serve", || {
        (answer() == b"first").then_some(())
    });
}

#[test]
fn wrong_documents_are_refused_with_the_place() {
    let gate = Gate::start("");
    let listen = local(free_port());
    let wrong = format!(
        "[tcp.a]\nlisten = \"{listen}\"\nupstream = \"nobody\"\nwebsocket = {{}}\nmirror = 1\n\
         [tcp.b]\nlisten = \"{listen}\"\nupstream = \"http://127.0.0.1:1\"\nproxy_protocol = true\n\
         [http.c]\nlisten = \"{listen}\"\nrespond = \"\"\n"
    );
    let text = gate.reload(&wrong).json().to_string();
    for told in [
        "/tcp/a/upstream",
        "/tcp/a/websocket",
        "expected a string",
        "unknown key `mirror`",
        "/tcp/b/upstream",
        "/tcp/b/proxy_protocol",
        "has the address",
    ] {
        assert!(text.contains(told), "{told}: {text}");
    }
}
