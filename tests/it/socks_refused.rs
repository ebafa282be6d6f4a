//! `[forward]` by SOCKS, where it comes to nothing: malformed, half-sent and slow handshakes, wrong credentials, refused and
//! dead destinations. Each has its reply within its time, nothing is dialled for somebody who has not shown who he is, and
//! nothing is left behind.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kit::{Gate, PATIENCE, free_port, until};
use crate::socks::{Client, LOOPBACK, echo, local, name, proxy};

/// Far less than the time for a handshake, where that is left as it is: what is over by then was not over by it.
const SOON: Duration = Duration::from_secs(8);

/// What a SOCKS5 client hears that is refused.
fn refusal(code: u8) -> Vec<u8> {
    vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// The same of SOCKS4, which has one code for all.
const REFUSED4: [u8; 8] = [0, 91, 0, 0, 0, 0, 0, 0];

fn all(pieces: &[&[u8]]) -> Vec<u8> {
    pieces.concat()
}

/// What must be as it was, when everybody has left.
struct Before(Value);

impl Before {
    /// After a first session, which makes what is made once and kept.
    fn of(gate: &Gate, listen: SocketAddr) -> Before {
        let mut first = Client::open(listen);
        first.say(b"\0");
        assert!(first.rest().is_empty());
        drop(first);
        Before(gate.wait_status("the first connection to be gone", |s| s["connections"] == 0))
    }

    fn is_all_that_is_left(&self, gate: &Gate) {
        let most = |what: &str| self.0[what].as_u64().unwrap();
        let (descriptors, tasks) = (most("descriptors"), most("tasks"));
        let after = gate.wait_status("nothing to be left behind", |s| {
            s["connections"] == 0
                && s["descriptors"].as_u64() <= Some(descriptors)
                && s["tasks"].as_u64() <= Some(tasks)
        });
        assert_eq!(after["panics"], 0);
    }
}

/// Everybody says his piece and hears the rest, all at once. `said`, and what must be heard.
fn each_hears(listen: SocketAddr, cases: &[(Vec<u8>, Vec<u8>)]) {
    let begun = Instant::now();
    let clients: Vec<Client> = cases
        .iter()
        .map(|(said, _)| {
            let mut client = Client::open(listen);
            client.say(said);
            client
        })
        .collect();
    for (mut client, (said, heard)) in clients.into_iter().zip(cases) {
        assert_eq!(&client.rest(), heard, "{said:?}");
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[test]
fn each_malformed_message_has_its_reply_at_once() {
    let ((origin, came), listen) = (echo(), local(free_port()));
    let gate = Gate::start(&proxy(listen, ""));
    let before = Before::of(&gate, listen);
    let port = origin.port().to_be_bytes();
    let mut cases: Vec<(Vec<u8>, Vec<u8>)> = vec![
        // Nothing that is spoken here.
        (vec![0], vec![]),
        (vec![6, 1, 0], vec![]),
        (vec![0xff; 600], vec![]),
        (vec![0x16, 3, 1, 2, 0, 1], vec![]),
        // No method that will do.
        (vec![5, 0], vec![5, 255]),
        (vec![5, 1, 1], vec![5, 255]),
        (vec![5, 3, 1, 3, 255], vec![5, 255]),
        // Whoever insists on a password must still say it as RFC 1929 has it.
        (vec![5, 1, 2, 5, 1, b'a', 1, b'a'], vec![5, 2, 1, 1]),
        // SOCKS4: BIND, no such command, port 0, no name, no end.
        (all(&[&[4, 2], &port, &[127, 0, 0, 1, 0]]), REFUSED4.into()),
        (all(&[&[4, 9], &port, &[127, 0, 0, 1, 0]]), REFUSED4.into()),
        (vec![4, 1, 0, 0, 127, 0, 0, 1, 0], REFUSED4.into()),
        (all(&[&[4, 1], &port, &[0, 0, 0, 1, 0, 0]]), REFUSED4.into()),
        (
            all(&[&[4, 1], &port, &[127, 0, 0, 1], &[b'u'; 256]]),
            REFUSED4.into(),
        ),
        (
            all(&[&[4, 1], &port, &[0, 0, 0, 1, 0], &[b'n'; 256]]),
            REFUSED4.into(),
        ),
    ];
    // SOCKS5 requests.
    for (request, code) in [
        (all(&[&[4, 1, 0], LOOPBACK, &port]), 1),
        (all(&[&[5, 0, 0], LOOPBACK, &port]), 7),
        (all(&[&[5, 2, 0], LOOPBACK, &port]), 7),
        (all(&[&[5, 1, 0, 0, 127, 0, 0, 1], &port]), 8),
        (all(&[&[5, 1, 0, 255, 127, 0, 0, 1], &port]), 8),
        (all(&[&[5, 1, 0], LOOPBACK, &[0, 0]]), 1),
        (all(&[&[5, 1, 0], &name(""), &port]), 1),
        (all(&[&[5, 1, 0], &name("local host"), &port]), 1),
        (all(&[&[5, 1, 0], &name("localhost\0"), &port]), 1),
        (all(&[&[5, 1, 0], &name(&"x".repeat(255)), &port]), 1),
        (all(&[&[5, 1, 0, 3, 2, 0xc3, 0x28], &port]), 1),
    ] {
        cases.push((
            all(&[&[5, 1, 0], &request]),
            all(&[&[5, 0], &refusal(code)]),
        ));
        // The same with what would follow a reply that lets in.
        cases.push((
            all(&[&[5, 1, 0], &request, b"GET / HTTP/1.1\r\n\r\n"]),
            all(&[&[5, 0], &refusal(code)]),
        ));
    }
    each_hears(listen, &cases);
    assert_eq!(came.load(Ordering::SeqCst), 0);
    before.is_all_that_is_left(&gate);
}

#[test]
fn who_does_not_wait_for_the_verdict_is_not_dialled_for() {
    let ((origin, came), listen) = (echo(), local(free_port()));
    let gate = Gate::start(&proxy(listen, "users = { alice = \"sesame\" }"));
    let before = Before::of(&gate, listen);
    let port = origin.port().to_be_bytes();
    let connect = all(&[&[5, 1, 0], LOOPBACK, &port]);
    let shown = |name: &[u8], password: &[u8]| {
        let lengths = [name.len() as u8, password.len() as u8];
        let credentials = all(&[&[1, lengths[0]], name, &[lengths[1]], password]);
        all(&[&[5, 1, 2], &credentials, &connect, b"early"])
    };
    let mut cases: Vec<(Vec<u8>, Vec<u8>)> = [
        (&b"alice"[..], &b"guess"[..]),
        (b"alice", b""),
        (b"alice", b"sesame\0"),
        (b"alice", b"Sesame"),
        (b"bob", b"sesame"),
        (b"", b""),
        (b"", b"sesame"),
        (b"\xff\xfe", b"sesame"),
        (&[b'a'; 255], &[b'b'; 255]),
    ]
    .iter()
    .map(|(name, password)| (shown(name, password), vec![5, 2, 1, 1]))
    .collect();
    // Nothing shown at all, and SOCKS4, which has only names.
    cases.push((all(&[&[5, 1, 0], &connect]), vec![5, 255]));
    for host in [
        &[127, 0, 0, 1, b'a', 0][..],
        b"\0\0\0\x01alice\0localhost\0",
    ] {
        cases.push((all(&[&[4, 1], &port, host]), REFUSED4.into()));
    }
    each_hears(listen, &cases);
    // Who is let in comes after all that were not.
    let mut alice = Client::open(listen);
    alice.say(&shown(b"alice", b"sesame"));
    assert_eq!(alice.hear(8), [5, 2, 1, 0, 5, 0, 0, 1]);
    alice.hear(6);
    assert_eq!(alice.hear(5), b"early");
    assert_eq!(came.load(Ordering::SeqCst), 1);
    drop(alice);
    before.is_all_that_is_left(&gate);
}

#[test]
fn a_swap_in_the_midst_of_a_handshake_asks_for_the_users_it_brings() {
    let ((origin, came), listen) = (echo(), local(free_port()));
    let gate = Gate::start(&proxy(listen, ""));
    let mut client = Client::open(listen);
    client.say(&[5, 1, 0]);
    assert_eq!(client.hear(2), [5, 0]);
    gate.reload_ok(&proxy(listen, "users = { alice = \"sesame\" }"));
    client.say(&all(&[&[5, 1, 0], LOOPBACK, &origin.port().to_be_bytes()]));
    assert_eq!(client.rest(), refusal(2));
    // Nor is one let in who is none any more, or who has shown nothing.
    let mut alice = Client::open(listen);
    alice.say(b"\x05\x01\x02\x01\x05alice\x06sesame");
    assert_eq!(alice.hear(4), [5, 2, 1, 0]);
    let mut four = Client::open(listen);
    four.say(&[4, 1]);
    gate.reload_ok(&proxy(listen, "users = { bob = \"x\" }"));
    alice.say(&all(&[&[5, 1, 0], LOOPBACK, &origin.port().to_be_bytes()]));
    assert_eq!(alice.rest(), refusal(2));
    four.say(&all(&[&origin.port().to_be_bytes(), &[127, 0, 0, 1, 0]]));
    assert_eq!(four.rest(), REFUSED4);
    assert_eq!(came.load(Ordering::SeqCst), 0);
}

/// Says a byte every so often, until the other end has enough. How long that took.
fn trickle(listen: SocketAddr, begin: &[u8], heard: usize, then: u8) -> Duration {
    let mut client = Client::open(listen);
    client.say(begin);
    client.hear(heard);
    let begun = Instant::now();
    // The pause between two bytes.
    let pause = Some(Duration::from_millis(50));
    client.0.set_read_timeout(pause).unwrap();
    loop {
        match client.0.read(&mut [0]) {
            Ok(0) => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                break;
            }
            Ok(_) => panic!("a reply to half a message that begins with {begin:?}"),
        }
        assert!(begun.elapsed() < SOON, "{begin:?}");
        if client.0.write_all(&[then]).is_err() {
            break;
        }
    }
    begun.elapsed()
}

#[test]
fn bytes_that_trickle_in_do_not_lengthen_a_handshake() {
    let listen = local(free_port());
    let gate = Gate::start(&proxy(listen, "timeouts.handshake = \"500ms\""));
    let before = Before::of(&gate, listen);
    // Each message has room for more than `SOON` of such bytes.
    let threads: Vec<_> = [
        (vec![5, 255], 0),
        (vec![5, 1, 2, 1, 255], 2),
        (vec![5, 1, 0, 5, 1, 0, 3, 255], 2),
        (vec![4, 1, 0, 80, 127, 0, 0, 1], 0),
        (vec![4, 1, 0, 80, 0, 0, 0, 1, 0], 0),
    ]
    .into_iter()
    .map(|(begin, heard)| std::thread::spawn(move || trickle(listen, &begin, heard, b'x')))
    .collect();
    for thread in threads {
        assert!(thread.join().unwrap() < SOON);
    }
    before.is_all_that_is_left(&gate);
    // Slowly, but in time.
    let (origin, _) = echo();
    gate.reload_ok(&proxy(listen, ""));
    let mut client = Client::open(listen);
    let request = all(&[&[5, 1, 0], &name("localhost"), &origin.port().to_be_bytes()]);
    for byte in [5, 1, 0].iter().chain(&request) {
        client.say(&[*byte]);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(client.hear(12)[..4], [5, 0, 5, 0]);
    client.exchange("in time");
}

#[test]
fn half_a_handshake_and_gone_is_over_at_once() {
    let listen = local(free_port());
    // No deadline that could end it within the patience of a test.
    let more = "users = { alice = \"sesame\" }\ntimeouts.handshake = \"10m\"";
    let gate = Gate::start(&proxy(listen, more));
    let before = Before::of(&gate, listen);
    let halves: [&[u8]; 8] = [
        b"",
        &[5],
        &[5, 2, 0],
        &[5, 1, 2],
        &[5, 1, 2, 1, 5, b'a', b'l'],
        b"\x05\x01\x02\x01\x05alice\x06sesame",
        b"\x05\x01\x02\x01\x05alice\x06sesame\x05\x01\x00\x03\x09local",
        &[4, 1, 0, 80, 127],
    ];
    for half in halves {
        for reset in [false, true] {
            let mut client = Client::open(listen);
            client.say(half);
            if reset {
                let socket = socket2::SockRef::from(&client.0);
                socket.set_linger(Some(Duration::ZERO)).unwrap();
            } else {
                client.0.shutdown(Shutdown::Write).unwrap();
                client.rest();
            }
        }
    }
    before.is_all_that_is_left(&gate);
}

/// A listener that never answers: nobody accepts, and its queue is full. What fills it must be held.
fn silent() -> (SocketAddr, TcpListener, Vec<socket2::Socket>) {
    let (domain, kind) = (socket2::Domain::IPV4, socket2::Type::STREAM);
    let listener = socket2::Socket::new(domain, kind, None).unwrap();
    listener.bind(&local(0).into()).unwrap();
    listener.listen(0).unwrap();
    let listener = TcpListener::from(listener);
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    loop {
        assert!(held.len() < 64, "the queue has no end");
        let socket = socket2::Socket::new(domain, kind, None).unwrap();
        let wait = Duration::from_millis(300);
        let connected = socket.connect_timeout(&address.into(), wait);
        held.push(socket);
        if let Err(error) = connected {
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            return (address, listener, held);
        }
    }
}

#[test]
fn dead_targets_are_told_within_the_time_to_connect() {
    let listen = local(free_port());
    let (silent, _listener, _held) = silent();
    let gate = Gate::start(&proxy(listen, "timeouts.connect = \"400ms\""));
    let before = Before::of(&gate, listen);
    let (silent, dead) = (silent.port().to_be_bytes(), free_port().to_be_bytes());
    let five = |address: &[u8], port: &[u8], code| {
        let said = all(&[&[5, 1, 0, 5, 1, 0], address, port]);
        (said, all(&[&[5, 0], &refusal(code)]))
    };
    let six = [&[4][..], &[0; 15], &[1]].concat();
    let cases = [
        five(LOOPBACK, &silent, 6),
        five(LOOPBACK, &dead, 5),
        five(&name("localhost"), &dead, 5),
        five(&six, &dead, 5),
        // It has no address, or nobody says so in time.
        five(&name("nobody.invalid"), &[0, 80], 4),
        (
            all(&[&[4, 1], &silent, &[127, 0, 0, 1, 0]]),
            REFUSED4.into(),
        ),
        (all(&[&[4, 1], &dead, &[127, 0, 0, 1, 0]]), REFUSED4.into()),
    ];
    each_hears(listen, &cases);
    // Who leaves while it is dialled holds nothing longer than that takes.
    for _ in 0..20 {
        let mut client = Client::open(listen);
        client.say(&cases[0].0);
        client.hear(2);
    }
    before.is_all_that_is_left(&gate);
}

#[test]
fn who_may_not_connect_or_has_all_his_sessions_is_told_so() {
    let ((origin, came), listen) = (echo(), local(free_port()));
    let users = "users = { alice = \"sesame\", bob = \"x\" }\n";
    let limits = format!("{users}limits = {{ connections = 4, connections_per_user = 2 }}");
    let gate = Gate::start(&proxy(listen, &limits));
    let before = Before::of(&gate, listen);
    let connect = all(&[&[5, 1, 0], LOOPBACK, &origin.port().to_be_bytes()]);
    let come = |credentials: &[u8]| {
        let mut client = Client::open(listen);
        client.say(&all(&[&[5, 1, 2], credentials, &connect]));
        client
    };
    let (alice, bob) = (&b"\x01\x05alice\x06sesame"[..], &b"\x01\x03bob\x01x"[..]);
    let mut sessions: Vec<Client> = [alice, alice, bob].into_iter().map(come).collect();
    for session in &mut sessions {
        assert_eq!(session.hear(14)[..6], [5, 2, 1, 0, 5, 0]);
    }
    let told = come(alice).rest();
    assert_eq!(told, all(&[&[5, 2, 1, 0], &refusal(1)]));
    // The next one's place is there when that one's connection has gone.
    gate.wait_status("three connections", |s| s["connections"] == 3);
    sessions.push(come(bob));
    assert_eq!(sessions[3].hear(14)[..6], [5, 2, 1, 0, 5, 0]);
    // Beyond all: closed without a word.
    let mut beyond = Client::open(listen);
    let _ = beyond.0.write_all(&[5, 1, 2]);
    assert!(beyond.rest().is_empty());
    until("the origin to have taken all four", || {
        (came.load(Ordering::SeqCst) >= 4).then_some(())
    });
    assert_eq!(came.load(Ordering::SeqCst), 4);
    for session in &mut sessions {
        session.exchange("still here");
    }
    drop(sessions);
    before.is_all_that_is_left(&gate);
    gate.reload_ok(&proxy(listen, "clients = \"10.0.0.0/8\""));
    let mut stranger = Client::open(listen);
    let _ = stranger.0.write_all(&all(&[&[5, 1, 0], &connect]));
    assert!(stranger.rest().is_empty());
    assert_eq!(came.load(Ordering::SeqCst), 4);
}

#[test]
fn behind_tls_half_a_hello_and_clear_bytes_come_to_nothing() {
    let listen = local(free_port());
    let tls = "tls.self_signed = \"localhost\"\ntimeouts.handshake = \"300ms\"";
    let gate = Gate::start(&proxy(listen, tls));
    let begun = Instant::now();
    for said in [
        &b""[..],
        &[0x16],
        &[0x16, 3, 1, 2, 0, 1, 0],
        &[5, 1, 0],
        &[4, 1, 0, 80],
    ] {
        let mut client = Client::open(listen);
        client.say(said);
        // An alert at most.
        let told = client.rest();
        assert!(told.is_empty() || told[0] == 0x15, "{said:?}: {told:?}");
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let status = gate.wait_status("all to be gone", |s| s["connections"] == 0);
    assert_eq!(status["panics"], 0);
}

#[test]
fn datagrams_of_strangers_and_to_refused_destinations_are_dropped() {
    let listen = local(free_port());
    let bound = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    };
    let ((origin, port), (denied, denied_port)) = (bound(), bound());
    let gate = Gate::start(&proxy(
        listen,
        &format!("destinations.deny = \":{denied_port}\""),
    ));
    let before = Before::of(&gate, listen);
    let mut control = Client::open(listen);
    control.say(&[5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0]);
    let reply = control.hear(12);
    assert_eq!(reply[..4], [5, 0, 5, 0]);
    let relay = local(u16::from_be_bytes([reply[10], reply[11]]));
    let datagram =
        |head: [u8; 3], to: u16, text: &[u8]| all(&[&head, LOOPBACK, &to.to_be_bytes(), text]);
    let ((client, _), (stranger, _)) = (bound(), bound());
    let send = |from: &UdpSocket, bytes: &[u8]| {
        let sent = from.send_to(bytes, relay).unwrap();
        assert_eq!(sent, bytes.len());
    };
    send(&client, &datagram([0; 3], port, b"first"));
    let mut buffer = [0; 64];
    let (size, far) = origin.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..size], b"first");
    // Each of these is there before the last, which goes the same way.
    send(&stranger, &datagram([0; 3], port, b"a stranger's"));
    send(&client, &datagram([0, 0, 1], port, b"a fragment"));
    send(&client, &datagram([1, 0, 0], port, b"no header"));
    send(&client, &datagram([0; 3], denied_port, b"denied"));
    send(&client, &datagram([0; 3], 0, b"nowhere"));
    send(&client, &[0, 0, 0, 1, 127]);
    send(&client, &[]);
    bound().0.send_to(b"unasked", far).unwrap();
    send(&client, &datagram([0; 3], port, b"last"));
    let (size, _) = origin.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..size], b"last");
    denied.set_nonblocking(true).unwrap();
    let nothing = denied.recv_from(&mut buffer).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
    // Nor does the client hear of whom it has not asked.
    origin.send_to(b"answer", far).unwrap();
    let (size, _) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..size], datagram([0; 3], port, b"answer"));
    drop(control);
    before.is_all_that_is_left(&gate);
    assert!(TcpStream::connect(listen).is_ok());
}
