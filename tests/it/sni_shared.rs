//! One address for `[tcp]` listeners that go by names, and for an HTTP server over TLS beside them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustls::AlertDescription;
use serde_json::json;

use crate::kit::tls::{Client, Pair, request};
use crate::kit::{Call, Gate, PATIENCE, free_port, until};
use crate::sni::{Site, exchange, given, in_bytes, local, refused, site, told, with_files};
use crate::tcp::open;

/// An HTTP server over TLS that answers with the name it was asked for in the hello.
fn web(listen: SocketAddr, more: &str) -> String {
    format!(
        "[http.web]\nlisten = \"{listen}\"\nrespond = \"web {{sni}} {{client_ip}}\"\n{more}\n\
         tls.certificates = {{ cert = \"site.crt\", key = \"site.key\" }}\n"
    )
}

fn pass(listener: &str, listen: SocketAddr, names: &[(&str, &Site)], more: &str) -> String {
    let of = |(name, site): &(&str, &Site)| format!("\"{name}\" = \"{}\"", site.addr);
    let all: Vec<_> = names.iter().map(of).collect();
    let sni = all.join(", ");
    format!("[tcp.{listener}]\nlisten = \"{listen}\"\nsni = {{ {sni} }}\n{more}\n")
}

fn answered(client: &Client, to: SocketAddr, name: &str) -> String {
    client.get(to, name, "/").text()
}

#[test]
fn names_of_tcp_go_on_unopened_and_all_others_end_here() {
    let (a, below, pair) = (site("a.test"), site("b.test"), Pair::new(&["w.test"]));
    let listen = local(free_port());
    let names = pass("names", listen, &[("a.test", &a), ("*.b.test", &below)], "");
    let gate = with_files(&pair).start(&(web(listen, "") + &names));
    for (name, site) in [("a.test", &a), ("x.b.test", &below), ("A.Test", &a)] {
        assert!(given(listen, name) == site.pair.der, "{name}");
    }
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = Client::versions(&[version]);
        let conn = client.open(listen, "w.test").unwrap();
        assert!(conn.certificate() == pair.der);
        for name in ["w.test", "b.test", "x.a.test"] {
            let text = answered(&client, listen, name);
            assert_eq!(text, format!("web {name} 127.0.0.1"));
        }
        let nameless = client.without_name();
        assert_eq!(answered(&nameless, listen, "w.test"), "web  127.0.0.1");
    }
    let h2 = Client::new().alpn(&["h2", "http/1.1"]);
    assert_eq!(
        h2.open(listen, "w.test").unwrap().alpn().as_deref(),
        Some("h2")
    );
    let client = Client::versions(&[&rustls::version::TLS12]);
    client.open(listen, "w.test").unwrap();
    assert!(client.open(listen, "w.test").unwrap().is_resumed());
    let status = gate.status();
    assert_eq!(status["listeners"][0]["servers"], json!(["web", "names"]));
    assert_eq!(status["listeners"].as_array().unwrap().len(), 1);
    assert_eq!(status["handshakes"]["failed"]["protocol"], 0);
}

#[test]
fn hosts_count_as_names_and_the_nearest_wins() {
    let (below, rest, pair) = (site("b.test"), site("rest.test"), Pair::new(&["w.b.test"]));
    let listen = local(free_port());
    let more = "hosts = [\"w.b.test\", \"*.h.test\"]";
    let names = pass(
        "names",
        listen,
        &[("*.b.test", &below), ("x.h.test", &below), ("*", &rest)],
        "",
    );
    let _gate = with_files(&pair).start(&(web(listen, more) + &names));
    for (name, site) in [
        ("x.b.test", &below),
        ("x.h.test", &below),
        ("else.test", &rest),
        // No name at all.
        ("127.0.0.1", &rest),
    ] {
        assert!(given(listen, name) == site.pair.der, "{name}");
    }
    for name in ["w.b.test", "y.h.test"] {
        let text = answered(&Client::new(), listen, name);
        assert_eq!(text, format!("web {name} 127.0.0.1"));
    }
}

#[test]
fn several_listeners_share_an_address_with_a_rest_or_without() {
    let (a, b, rest) = (site("a.test"), site("b.test"), site("rest.test"));
    let listen = local(free_port());
    let two = pass("a", listen, &[("a.test", &a)], "")
        + &pass("b", listen, &[("b.test", &b)], "deny = \"127.0.0.1\"");
    let gate = Gate::start(&two);
    assert!(given(listen, "a.test") == a.pair.der);
    let unknown = AlertDescription::UnrecognisedName;
    assert_eq!(refused(&Client::new(), listen, "c.test"), unknown);
    // Who may come is asked of the one that has the name.
    assert!(Client::new().open(listen, "b.test").is_err());
    let mut kept = Client::new().open(listen, "a.test").unwrap();
    exchange(&mut kept, "one");
    let two = pass("a", listen, &[("a.test", &a)], "")
        + &pass("b", listen, &[("b.test", &b), ("*", &rest)], "");
    gate.reload_ok(&two);
    for (name, site) in [("a.test", &a), ("b.test", &b), ("c.test", &rest)] {
        assert!(given(listen, name) == site.pair.der, "{name}");
    }
    exchange(&mut kept, "two");
    let sessions = gate.call(Call::get("/sessions")).expect(200);
    assert_eq!(sessions["sessions"][0]["listener"], "a", "{sessions}");
}

#[test]
fn protocols_tell_clients_of_one_name_apart() {
    let (db, other, pair) = (site("db.test"), site("other.test"), Pair::new(&["w.test"]));
    let listen = local(free_port());
    let text = [
        web(listen, ""),
        pass(
            "db",
            listen,
            &[("*", &db), ("a.test", &db)],
            "alpn = [\"postgresql\", \"pg\"]",
        ),
        pass("other", listen, &[("a.test", &other)], ""),
    ];
    let _gate = with_files(&pair).start(&text.concat());
    let offered = |protocols: &[&str], name: &str| {
        let conn = Client::new().alpn(protocols).open(listen, name).unwrap();
        conn.certificate()
    };
    for (protocols, name, pair) in [
        (&["pg"][..], "w.test", &db.pair),
        (&["x", "postgresql"][..], "a.test", &db.pair),
        (&[][..], "a.test", &other.pair),
        (&["h2", "http/1.1"][..], "a.test", &other.pair),
        (&["h2", "http/1.1"][..], "w.test", &pair),
        (&[][..], "w.test", &pair),
    ] {
        assert!(offered(protocols, name) == pair.der, "{protocols:?} {name}");
    }
}

/// Sends all that its client says first in records of one byte: its hello, and nothing more.
fn in_records(to: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let through = between.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut client, _) = between.accept().unwrap();
        let mut there = TcpStream::connect(to).unwrap();
        let mut header = [0; 5];
        client.read_exact(&mut header).unwrap();
        let size = u16::from_be_bytes([header[3], header[4]]);
        let mut hello = vec![0; size.into()];
        client.read_exact(&mut hello).unwrap();
        let records = hello.iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]);
        there.write_all(&records.collect::<Vec<_>>()).unwrap();
        let (mut from, mut back) = (there.try_clone().unwrap(), client.try_clone().unwrap());
        let backward = std::thread::spawn(move || std::io::copy(&mut from, &mut back));
        let _ = std::io::copy(&mut client, &mut there);
        let _ = there.shutdown(std::net::Shutdown::Both);
        let _ = backward.join();
    });
    (through, thread)
}

#[test]
fn a_hello_in_pieces_of_any_kind_is_whole_for_whoever_gets_it() {
    let (a, pair) = (site("a.test"), Pair::new(&["w.test"]));
    let listen = local(free_port());
    let text = web(listen, "") + &pass("names", listen, &[("a.test", &a)], "");
    let _gate = with_files(&pair).start(&text);
    for cut in [in_bytes, in_records] {
        let (through, cutting) = cut(listen);
        assert!(given(through, "a.test") == a.pair.der);
        cutting.join().unwrap();
        let (through, cutting) = cut(listen);
        assert_eq!(
            answered(&Client::new(), through, "w.test"),
            "web w.test 127.0.0.1"
        );
        cutting.join().unwrap();
    }
}

/// What a client of TLS 1.1 says that asks for `a.test`; nobody here speaks it.
fn old_hello() -> Vec<u8> {
    let mut body = vec![3, 2];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    body.extend(b"\0\x0f\0\0\0\x0b\0\x09\0\0\x06a.test");
    let size = body.len() as u8;
    [&[22, 3, 1, 0, size + 4, 1, 0, 0, size], &body[..]].concat()
}

#[test]
fn clients_of_old_versions_are_passed_on_too_and_here_are_told_why_not() {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = target.local_addr().unwrap();
    let (listen, pair) = (local(free_port()), Pair::new(&["w.test"]));
    let names = |name: &str| {
        format!("[tcp.old]\nlisten = \"{listen}\"\nsni = {{ \"{name}\" = \"{to}\" }}\n")
    };
    let gate = with_files(&pair).start(&(web(listen, "") + &names("a.test")));
    let mut client = open(listen);
    client.write_all(&old_hello()).unwrap();
    let (mut came, _) = target.accept().unwrap();
    let mut hello = vec![0; old_hello().len()];
    came.read_exact(&mut hello).unwrap();
    assert!(hello == old_hello());
    gate.reload_ok(&(web(listen, "") + &names("b.test")));
    let mut client = open(listen);
    client.write_all(&old_hello()).unwrap();
    let mut alert = [0; 7];
    client.read_exact(&mut alert).unwrap();
    // Alert, fatal.
    assert_eq!((alert[0], alert[5]), (21, 2), "{alert:?}");
}

#[test]
fn what_is_no_hello_is_for_http_to_answer_and_silence_ends() {
    let (a, pair) = (site("a.test"), Pair::new(&["w.test"]));
    let listen = local(free_port());
    let limit = "timeouts.header = \"300ms\"";
    let text = web(listen, limit) + &pass("names", listen, &[("a.test", &a)], limit);
    let gate = with_files(&pair).start(&text);
    let mut other = open(listen);
    other
        .write_all(b"GET / HTTP/1.1\r\nhost: w.test\r\n\r\n")
        .unwrap();
    let mut alert = [0; 7];
    other.read_exact(&mut alert).unwrap();
    assert_eq!((alert[0], alert[5]), (21, 2), "{alert:?}");
    // Half a hello, then nothing; and one that leaves.
    let mut silent = open(listen);
    silent.write_all(&[22, 3, 1]).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(!matches!(silent.read(&mut [0]), Ok(1..)));
    drop(open(listen));
    gate.wait_status("all three to be counted", |s| {
        let failed = &s["handshakes"]["failed"];
        failed["protocol"] == 1 && failed["timeout"] == 1 && failed["gone"] == 1
    });
    gate.wait_status("nobody to be left", |s| s["connections"] == 0);
}

#[test]
fn who_asks_over_another_connection_for_what_is_passed_on_is_told_to_come_again() {
    let (a, pair) = (site("a.test"), Pair::new(&["w.test", "a.test"]));
    let listen = local(free_port());
    let gate = with_files(&pair).start(&web(listen, ""));
    let mut kept = Client::new().open(listen, "a.test").unwrap();
    let ask = request("a.test", "/", "keep-alive");
    assert_eq!(kept.exchange(&ask).unwrap().status, 200);
    gate.reload_ok(&(web(listen, "") + &pass("names", listen, &[("a.test", &a)], "")));
    // From before, by a name that was HTTP's then; and with a certificate that is good for both.
    assert_eq!(kept.exchange(&ask).unwrap().status, 421);
    let mut conn = Client::new().open(listen, "w.test").unwrap();
    assert_eq!(conn.exchange(&ask).unwrap().status, 421);
    let other = request("w.test", "/", "keep-alive");
    assert_eq!(conn.exchange(&other).unwrap().status, 200);
    assert_eq!(kept.exchange(&other).unwrap().status, 200);
}

#[test]
fn a_proxy_header_comes_before_the_hello_and_clients_are_counted_by_it() {
    let (a, pair) = (site("a.test"), Pair::new(&["w.test"]));
    let listen = local(free_port());
    let more =
        "proxy_protocol = true\ntrusted_proxies = \"127.0.0.1\"\nlimits.connections_per_client = 1";
    let text = web(listen, more) + &pass("names", listen, &[("a.test", &a)], more);
    let gate = with_files(&pair).start(&text);
    let from = |client: u8, name: &str| {
        let mut stream = TcpStream::connect(listen).unwrap();
        let header = format!("PROXY TCP4 192.0.2.{client} 198.51.100.1 4711 443\r\n");
        stream.write_all(header.as_bytes()).unwrap();
        Client::new().over(stream, name)
    };
    let mut one = from(1, "a.test").unwrap();
    exchange(&mut one, "hello");
    let sessions = gate.call(Call::get("/sessions")).expect(200);
    let client = sessions["sessions"][0]["client"].as_str().unwrap();
    assert!(client.starts_with("192.0.2.1:"), "{sessions}");
    let mut two = from(2, "w.test").unwrap();
    let answer = two.exchange(request("w.test", "/", "keep-alive")).unwrap();
    assert_eq!(answer.text(), "web w.test 192.0.2.2");
    // One of each has come.
    assert!(from(1, "w.test").is_err());
    assert!(from(2, "a.test").is_err());
    // Without a header nobody gets in.
    assert!(Client::new().open(listen, "w.test").is_err());
}

#[test]
fn limits_count_all_of_an_address() {
    let (a, pair) = (site("a.test"), Pair::new(&["w.test"]));
    let listen = local(free_port());
    let more = "limits.connections = 2";
    let text = web(listen, more) + &pass("names", listen, &[("a.test", &a)], more);
    let gate = with_files(&pair).start(&text);
    let mut session = Client::new().open(listen, "a.test").unwrap();
    exchange(&mut session, "hello");
    let held = Client::new().open(listen, "w.test").unwrap();
    assert!(Client::new().open(listen, "w.test").is_err());
    assert!(Client::new().open(listen, "a.test").is_err());
    drop(held);
    gate.wait_status("a place", |s| s["connections"] == 1);
    assert_eq!(
        answered(&Client::new(), listen, "w.test"),
        "web w.test 127.0.0.1"
    );
}

/// Connects again and again with one name, and has an answer each time, from one of these.
struct Visits {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Visits {
    fn start(to: SocketAddr, name: &'static str, text: &'static str, from: &[&Pair]) -> Visits {
        let (stop, count) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let good: Vec<_> = from.iter().map(|pair| pair.der.clone()).collect();
        let told = (stop.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            let client = Client::new();
            while !told.0.load(Ordering::SeqCst) {
                let number = told.1.load(Ordering::SeqCst);
                let visit = || -> std::io::Result<()> {
                    let mut conn = client.open(to, name)?;
                    assert!(good.contains(&conn.certificate()), "of a third");
                    conn.stream.write_all(text.as_bytes())?;
                    let mut back = [0; 5];
                    conn.stream.read_exact(&mut back)
                };
                visit().unwrap_or_else(|e| panic!("{name}, after {number} answers: {e}"));
                told.1.fetch_add(1, Ordering::SeqCst);
            }
        });
        Visits {
            stop,
            count,
            thread,
        }
    }

    /// So many more, or the end.
    fn more(&self, n: u64) {
        let before = self.count.load(Ordering::SeqCst);
        until("more visits", || {
            let enough = self.count.load(Ordering::SeqCst) >= before + n;
            (enough || self.thread.is_finished()).then_some(())
        });
    }

    fn finish(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

const ASK: &str = "GET / HTTP/1.1\r\nhost: w.test\r\nconnection: close\r\n\r\n";

#[test]
fn names_come_and_go_under_load_and_no_connection_of_http_notices() {
    let (a, pair) = (site("a.test"), Pair::new(&["w.test"]));
    let listen = local(free_port());
    let alone = web(listen, "");
    let both = alone.clone() + &pass("names", listen, &[("a.test", &a)], "");
    // Sessions of a listener that has gone live on until then.
    let far = with_files(&pair).runtime("drain_timeout = \"10m\"");
    let gate = far.start(&alone);
    let mut kept = Client::new().open(listen, "w.test").unwrap();
    let ask = request("w.test", "/", "keep-alive");
    let visits = [
        Visits::start(listen, "w.test", ASK, &[&pair]),
        // It has an answer with TCP and without.
        Visits::start(listen, "a.test", ASK, &[&pair, &a.pair]),
    ];
    let mut sessions = Vec::new();
    for _ in 0..8 {
        gate.reload_ok(&both);
        assert!(given(listen, "a.test") == a.pair.der);
        let mut session = Client::new().open(listen, "a.test").unwrap();
        exchange(&mut session, "begun");
        sessions.push(session);
        visits.iter().for_each(|v| v.more(10));
        assert_eq!(kept.exchange(&ask).unwrap().status, 200);
        gate.reload_ok(&alone);
        let conn = Client::new().open(listen, "a.test").unwrap();
        assert!(conn.certificate() == pair.der);
        visits.iter().for_each(|v| v.more(10));
        assert_eq!(kept.exchange(&ask).unwrap().status, 200);
    }
    visits.into_iter().for_each(Visits::finish);
    sessions.iter_mut().for_each(|s| exchange(s, "on"));
    assert_eq!(gate.status()["panics"], 0);
}

#[test]
fn http_comes_and_goes_under_load_and_no_session_of_tcp_notices() {
    let (a, pair) = (site("a.test"), Pair::new(&["w.test"]));
    let listen = local(free_port());
    let alone = pass("names", listen, &[("a.test", &a)], "");
    let both = alone.clone() + &web(listen, "");
    let gate = with_files(&pair).start(&alone);
    let mut session = Client::new().open(listen, "a.test").unwrap();
    exchange(&mut session, "one");
    let visits = Visits::start(listen, "a.test", "hello", &[&a.pair]);
    for _ in 0..4 {
        gate.reload_ok(&both);
        assert_eq!(
            answered(&Client::new(), listen, "w.test"),
            "web w.test 127.0.0.1"
        );
        let mut kept = Client::new().open(listen, "w.test").unwrap();
        let ask = request("w.test", "/", "keep-alive");
        assert_eq!(kept.exchange(&ask).unwrap().status, 200);
        visits.more(10);
        gate.reload_ok(&alone);
        let unknown = AlertDescription::UnrecognisedName;
        assert_eq!(refused(&Client::new(), listen, "w.test"), unknown);
        // It is told to finish, in its own time.
        assert!(!matches!(kept.stream.read(&mut [0]), Ok(1..)));
        visits.more(10);
        exchange(&mut session, "two");
    }
    visits.finish();
    until("the one session to be left", || {
        let listed = gate.call(Call::get("/sessions")).expect(200);
        (listed["sessions"].as_array().unwrap().len() == 1).then_some(())
    });
}

/// A client that has connected, and whose hello comes after the swap.
#[test]
fn a_hello_that_a_swap_overtakes_goes_where_its_name_leads_now() {
    let (a, pair) = (site("a.test"), Pair::new(&["w.test"]));
    let listen = local(free_port());
    let http = web(listen, "");
    let names = pass("names", listen, &[("a.test", &a)], "");
    let both = http.clone() + &names;
    let gate = with_files(&pair).start(&both);
    let connected = |n: u64| {
        let stream = TcpStream::connect(listen).unwrap();
        gate.wait_status("the connection", |s| s["connections"] == n);
        stream
    };
    let (one, two) = (connected(1), connected(2));
    gate.reload_ok(&http);
    let conn = Client::new().over(one, "a.test").unwrap();
    assert!(conn.certificate() == pair.der);
    drop(conn);
    gate.reload_ok(&names);
    let mut conn = Client::new().over(two, "a.test").unwrap();
    exchange(&mut conn, "hello");
    assert!(conn.certificate() == a.pair.der);
    drop(conn);
    gate.wait_status("nobody to be left", |s| s["connections"] == 0);
    let three = connected(1);
    gate.reload_ok(&both);
    let mut conn = Client::new().over(three, "w.test").unwrap();
    let answer = conn.exchange(request("w.test", "/", "close")).unwrap();
    assert_eq!(answer.status, 200);
}

/// The address speaks no TLS any more: nobody has the listener's names, and what came for HTTP may finish.
#[test]
fn a_hello_that_comes_when_its_listener_is_gone_begins_no_session() {
    let (a, pair) = (site("a.test"), Pair::new(&["w.test"]));
    let listen = local(free_port());
    let both = web(listen, "") + &pass("names", listen, &[("a.test", &a)], "");
    let gate = with_files(&pair).start(&both);
    let connected = |n: u64| {
        let stream = TcpStream::connect(listen).unwrap();
        gate.wait_status("the connection", |s| s["connections"] == n);
        stream
    };
    let (one, two) = (connected(1), connected(2));
    let clear = format!("[http.web]\nlisten = \"{listen}\"\nrespond = \"clear\"\n");
    gate.reload_ok(&clear);
    let unknown = AlertDescription::UnrecognisedName;
    assert_eq!(told(Client::new().over(one, "a.test")), unknown);
    let mut conn = Client::new().over(two, "w.test").unwrap();
    assert!(conn.certificate() == pair.der);
    let answer = conn.exchange(request("w.test", "/", "close")).unwrap();
    assert_eq!(answer.text(), "clear");
    drop(conn);
    // It goes by no names any more, and ends TLS itself.
    gate.reload_ok(&both);
    gate.wait_status("nobody to be left", |s| s["connections"] == 0);
    let three = connected(1);
    let tls = "tls.certificates = { cert = \"site.crt\", key = \"site.key\" }";
    let to = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = to.local_addr().unwrap();
    gate.reload_ok(&format!(
        "[tcp.names]\nlisten = \"{listen}\"\nupstream = \"{upstream}\"\n{tls}\n"
    ));
    let mut conn = Client::new().over(three, "a.test").unwrap();
    assert!(conn.certificate() == pair.der);
    conn.stream.write_all(b"clear").unwrap();
    let mut got = [0; 5];
    to.accept().unwrap().0.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"clear");
}

#[test]
fn sessions_end_with_their_listener_and_certificates_are_renewed_beside_them() {
    let (a, pair) = (site("a.test"), Pair::new(&["w.test"]));
    let listen = local(free_port());
    let cut = "on_change = \"cut\"";
    let both = web(listen, "") + &pass("names", listen, &[("a.test", &a)], cut);
    let gate = with_files(&pair).start(&both);
    let mut session = Client::new().open(listen, "a.test").unwrap();
    exchange(&mut session, "one");
    let renewed = Pair::new(&["w.test"]);
    std::fs::write(gate.dir.path().join("site.key"), &renewed.key).unwrap();
    std::fs::write(gate.dir.path().join("site.crt"), &renewed.cert).unwrap();
    until("the new certificate", || {
        let conn = Client::new().open(listen, "w.test").unwrap();
        (conn.certificate() == renewed.der).then_some(())
    });
    exchange(&mut session, "two");
    gate.reload_ok(&web(listen, ""));
    assert!(!matches!(session.stream.read(&mut [0]), Ok(1..)));
    // All of it goes: what runs is drained, and nobody waits for names.
    let text = both.replace(cut, "on_change = \"drain\"");
    gate.reload_ok(&text);
    let mut session = Client::new().open(listen, "a.test").unwrap();
    exchange(&mut session, "three");
    gate.reload_ok("");
    exchange(&mut session, "four");
    until("the address to be closed", || {
        TcpStream::connect(listen).err()
    });
}

#[test]
fn what_cannot_share_is_refused_with_the_place() {
    let gate = Gate::start("");
    let listen = local(free_port());
    let tls = "tls.self_signed = \"w.test\"\n";
    let http = |name: &str, more: &str| {
        format!("[http.{name}]\nlisten = \"{listen}\"\nrespond = \"\"\n{more}")
    };
    let tcp = |name: &str, sni: &str, more: &str| {
        let all: Vec<_> = sni
            .split(' ')
            .map(|n| format!("\"{n}\" = \"127.0.0.1:9\""))
            .collect();
        let sni = all.join(", ");
        format!("[tcp.{name}]\nlisten = \"{listen}\"\nsni = {{ {sni} }}\n{more}")
    };
    let plain = format!("[tcp.p]\nlisten = \"{listen}\"\nupstream = \"127.0.0.1:9\"\n");
    let named = |more: &str| http("web", &format!("hosts = \"w.test\"\n{more}{tls}"));
    let refused = |text: String, told: &[(&str, &str)]| {
        let answer = gate.reload(&text).problem(422, "invalid-document");
        let errors = answer["errors"].as_array().unwrap();
        for (pointer, message) in told {
            let has = |e: &serde_json::Value| {
                e["pointer"] == *pointer && e["message"].as_str().unwrap().contains(message)
            };
            assert!(errors.iter().any(has), "{pointer}: {message}: {answer}");
        }
        assert_eq!(errors.len(), told.len(), "{answer}");
    };
    refused(
        http("web", "") + &tcp("a", "a.test", ""),
        &[("/tcp/a/listen", "and is cleartext")],
    );
    refused(
        http("web", tls) + &tcp("a", "a.test *", ""),
        &[("/tcp/a/sni/*", "all names are its")],
    );
    refused(
        named("") + &tcp("a", "W.test", ""),
        &[("/tcp/a/sni/W.test", "`http.web` answers for `w.test`")],
    );
    refused(
        tcp("a", "a.test *.a.test *", "") + &tcp("b", "a.test *.a.test *", ""),
        &[
            ("/tcp/b/sni/a.test", "`tcp.a` has `a.test`"),
            ("/tcp/b/sni/*.a.test", "`tcp.a` has `*.a.test`"),
            ("/tcp/b/sni/*", "`tcp.a` has `*`"),
        ],
    );
    refused(
        tcp("a", "a.test", "alpn = [\"x\", \"h2\"]\n")
            + &tcp("b", "a.test", "alpn = [\"h2\", \"x\"]\n"),
        &[("/tcp/b/sni/a.test", "`tcp.a` has `a.test`")],
    );
    refused(
        http("web", tls) + &plain,
        &[("/tcp/p/listen", "`http.web` has the address")],
    );
    refused(
        tcp("a", "a.test", "") + &plain,
        &[("/tcp/p/listen", "`tcp.a` has the address")],
    );
    let proxies = "proxy_protocol = true\ntrusted_proxies = \"10.0.0.0/8\"\n";
    refused(
        named("timeouts.header = \"5s\"\nlimits.connections = 5\n") + &tcp("a", "a.test", proxies),
        &[
            ("/tcp/a/proxy_protocol", "differs from that of `http.web`"),
            ("/http/web", "`proxy_protocol` differs from that of `tcp.a`"),
            ("/tcp/a", "`timeouts.header` differs"),
            ("/http/web/timeouts/header", "`timeouts.header` differs"),
            ("/tcp/a", "`limits.connections` differs"),
            (
                "/http/web/limits/connections",
                "differs from that of `tcp.a`",
            ),
        ],
    );
    let others = proxies.replace("10.", "11.");
    refused(
        named(proxies) + &tcp("a", "a.test", proxies) + &tcp("b", "b.test", &others),
        &[
            ("/tcp/b/trusted_proxies", "differs from that of `http.web`"),
            ("/http/web/trusted_proxies", "differs from that of `tcp.b`"),
        ],
    );
    // Of HTTP alone, where there are no PROXY headers; and protocols tell apart.
    let trusting = named("trusted_proxies = \"10.0.0.0/8\"\n");
    gate.reload_ok(
        &(trusting + &tcp("a", "a.test *", "") + &tcp("b", "w.test *", "alpn = \"x\"\n")),
    );
}
