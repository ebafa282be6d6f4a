//! What flows through a tunnel, and what is said where nothing can.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use rustix::process::Signal;

use super::{Pair, home, local, sessions};
use crate::kit::{Call, Conn, PATIENCE, free_port, get, until};
use crate::tcp::{echo, exchange, open};

/// The edge's document with a port that leads to a service.
fn with_port(pair: &Pair, at: SocketAddr) -> String {
    let port = format!("[tcp.ssh]\nlisten = \"{at}\"\nupstream = \"tunnel:home/ssh\"");
    format!("{}{port}\n", pair.edge())
}

pub(super) fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn tcp_goes_through_byte_for_byte_while_other_services_come_and_go() {
    let (pair, origin, at) = (Pair::start(), echo(), local(free_port()));
    let ssh = format!("services.ssh = \"tcp://{}\"", origin.addr);
    pair.edge.reload_ok(&with_port(&pair, at));
    pair.home.reload_ok(&pair.with_services(&ssh));
    let published = |count| {
        until("the services to be known", || {
            let services = pair.published()["services"].clone();
            (services.as_array()?.len() == count).then_some(())
        });
    };
    published(2);
    let before = sessions(&pair.edge, &pair.home);
    let mut long = open(at);
    exchange(&mut long, "hello");
    for n in 0..5 {
        let other = format!("{ssh}\nservices.n{n} = \"tcp://127.0.0.1:{}\"", n + 1);
        pair.home.reload_ok(&pair.with_services(&other));
        published(3);
        exchange(&mut long, "still there");
        pair.home.reload_ok(&pair.with_services(&ssh));
        published(2);
        exchange(&mut long, "and again");
    }
    assert_eq!(sessions(&pair.edge, &pair.home), before);
    let large: Vec<u8> = (0..5_000_000_u32).map(|n| (n >> 7 ^ n) as u8).collect();
    let (mut write, sent) = (long.try_clone().unwrap(), large.clone());
    let writing = std::thread::spawn(move || {
        write.write_all(&sent).unwrap();
        write.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    long.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == large, "{} bytes", back.len());
}

/// Ends the only TCP session that there is at the edge.
pub(super) fn close_visitor(pair: &Pair) {
    let id = until("the session", || {
        let list = pair.edge.call(Call::get("/sessions?kind=tcp")).expect(200);
        let [one] = &list["sessions"].as_array()?[..] else {
            return None;
        };
        one["id"].as_u64()
    });
    let close = Call::post(&format!("/sessions/{id}/close"));
    pair.edge.call(close).expect(200);
}

/// `half`: it has been read to its end.
pub(super) fn expect_reset(service: &mut TcpStream, half: bool) {
    let (error, kind) = match half {
        false => (
            service.read(&mut [0]).unwrap_err(),
            ErrorKind::ConnectionReset,
        ),
        // The kernel tells all the same.
        true => (
            until("the reset", || service.take_error().unwrap()),
            ErrorKind::BrokenPipe,
        ),
    };
    assert_eq!(error.kind(), kind);
}

#[test]
fn what_is_cut_is_a_reset_for_the_service_also_after_half_an_end() {
    let (pair, at) = (Pair::start(), local(free_port()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ssh = format!(
        "services.ssh = \"tcp://{}\"",
        listener.local_addr().unwrap()
    );
    pair.edge.reload_ok(&with_port(&pair, at));
    pair.home.reload_ok(&pair.with_services(&ssh));
    until("the service to be known", || {
        let services = pair.published()["services"].clone();
        (services.as_array()?.len() == 2).then_some(())
    });
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
    }
    // The end of the whole session is no end of what it carries either.
    let mut client = open(at);
    client.write_all(b"hello").unwrap();
    let mut service = accept(&listener);
    service.read_exact(&mut [0; 5]).unwrap();
    pair.edge.signal(Signal::KILL);
    let error = service.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_tcp_service_is_told_who_the_client_is_if_it_wants() {
    let (pair, at) = (Pair::start(), local(free_port()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let service = |version: &str| {
        let ssh =
            format!("services.ssh = {{ to = \"tcp://{to}\", proxy_protocol = \"{version}\" }}");
        pair.with_services(&ssh)
    };
    pair.edge.reload_ok(&with_port(&pair, at));
    pair.home.reload_ok(&service("v1"));
    until("the service to be known", || {
        let services = pair.published()["services"].clone();
        (services.as_array()?.len() == 2).then_some(())
    });
    let mut client = open(at);
    client.write_all(b"hello\n").unwrap();
    let mut lines = BufReader::new(accept(&listener)).lines();
    let port = client.local_addr().unwrap().port();
    let wanted = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {port} {}", at.port());
    assert_eq!(lines.next().unwrap().unwrap(), wanted);
    assert_eq!(lines.next().unwrap().unwrap(), "hello");

    pair.home.reload_ok(&service("v2"));
    let mut client = open(at);
    client.write_all(b"hello").unwrap();
    let mut head = [0; 28 + 5];
    accept(&listener).read_exact(&mut head).unwrap();
    assert_eq!(&head[..12], b"\r\n\r\n\0\r\nQUIT\n");
    // PROXY, TCP over IPv4, 12 bytes of addresses.
    assert_eq!(&head[12..16], [0x21, 0x11, 0, 12]);
    assert_eq!(&head[16..24], [127, 0, 0, 1, 127, 0, 0, 1]);
    let port = client.local_addr().unwrap().port();
    assert_eq!(&head[24..26], port.to_be_bytes());
    assert_eq!(&head[26..28], at.port().to_be_bytes());
    assert_eq!(&head[28..], b"hello");

    let wrong = pair.home().replace(
        "services.blog = ",
        "services.x = { to = \"http://127.0.0.1:1\", proxy_protocol = \"v1\" }\nservices.blog = ",
    );
    let answer = pair.home.reload(&wrong);
    assert_eq!(answer.status, 422);
    assert!(answer.text().contains("is for `tcp` services"));
}

#[test]
fn a_websocket_goes_through_and_swaps_leave_it_alone() {
    let (pair, at) = (Pair::start(), TcpListener::bind("127.0.0.1:0").unwrap());
    let socket = at.local_addr().unwrap();
    let document = |more: &str| home(pair.agents, socket, &pair.lines, more);
    pair.home.reload_ok(&document(""));
    let serving = std::thread::spawn(move || {
        let mut conn = Conn::over(accept(&at)).unwrap();
        let head = conn.head().unwrap().unwrap();
        let visitor = head.get("x-forwarded-for").map(str::to_owned);
        conn.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n").unwrap();
        loop {
            let some = conn.some(1 << 16).unwrap();
            if some.is_empty() {
                return visitor;
            }
            conn.send(some).unwrap();
        }
    });
    until("the service to be the other", || {
        let error = pair.published();
        (error["flows"] == 0).then_some(())
    });
    let mut conn = Conn::open(pair.web).unwrap();
    conn.send("GET /socket HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").unwrap();
    assert_eq!(conn.response_head().unwrap().status, 101);
    let mut echoed = |payload: &[u8; 4]| {
        let mut frame = vec![0x82, 0x84, 0, 0, 0, 0];
        frame.extend(payload);
        conn.send(&frame).unwrap();
        let mut back = Vec::new();
        while back.len() < frame.len() {
            let some = conn.some(frame.len() - back.len()).unwrap();
            assert!(!some.is_empty(), "it has ended");
            back.extend(some);
        }
        assert_eq!(back, frame);
    };
    echoed(b"one ");
    let other = "[http.other]\nlisten = \"127.0.0.1:0\"\nrespond = \"x\"";
    pair.edge.reload_ok(&format!("{}{other}", pair.edge()));
    pair.home.reload_ok(&document(other));
    echoed(b"two ");
    drop(conn);
    assert_eq!(serving.join().unwrap().as_deref(), Some("127.0.0.1"));
}

#[test]
fn slow_readers_do_not_slow_a_fast_one_on_the_same_session() {
    let pair = Pair::start();
    let one = format!("sessions = 1\n{}", pair.lines);
    pair.home
        .reload_ok(&home(pair.agents, pair.blog.addr, &one, ""));
    until("one session", || {
        (pair.published()["sessions"].as_array()?.len() == 1).then_some(())
    });
    // They ask for much and read nothing: what they are sent waits.
    let slow: Vec<Conn> = (0..8)
        .map(|_| {
            let mut conn = Conn::open(pair.web).unwrap();
            let request = "GET /infinite HTTP/1.1\r\nhost: x\r\n\r\n";
            conn.send(request).unwrap();
            assert_eq!(conn.response_head().unwrap().status, 200);
            conn
        })
        .collect();
    until("their windows to be full", || {
        let received = || pair.published()["received"].as_u64();
        let before = received()?;
        std::thread::sleep(std::time::Duration::from_millis(200));
        (received()? == before).then_some(())
    });
    for _ in 0..5 {
        let answer = get(pair.web, "x", "/download?bytes=3000000");
        assert_eq!((answer.status, answer.body.len()), (200, 3_000_000));
    }
    drop(slow);
}

#[test]
fn a_dial_that_is_refused_or_not_permitted_is_explained_on_both_sides() {
    let pair = Pair::start();
    let nobody = local(free_port());
    let explained = |lines: &str, to: SocketAddr, wanted: &str| {
        let lines = format!("{}\n{lines}", pair.lines);
        pair.home.reload_ok(&home(pair.agents, to, &lines, ""));
        let error = until("the error to be known", || {
            let status = get(pair.web, "x", "/who").status;
            let error = pair.published()["services"][0]["last_error"].clone();
            let error = error.as_str()?.to_owned();
            (status != 200 && error.contains(wanted)).then_some(error)
        });
        assert!(error.contains("service blog of agent home"), "{error}");
        for gate in [&pair.edge, &pair.home] {
            until("the log to say so", || {
                gate.output().contains(wanted).then_some(())
            });
        }
    };
    explained(
        "",
        nobody,
        &format!("connect to {nobody}: Connection refused"),
    );
    let elsewhere = "127.0.0.2:80".parse().unwrap();
    let permit = "permit = [\"127.0.0.1:*\"]";
    let wanted = "the agent's `permit` does not let it dial 127.0.0.2:80";
    explained(permit, elsewhere, wanted);
}
