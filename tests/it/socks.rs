//! `[forward]` by SOCKS: who may go where, exact replies, datagrams, and sessions over swaps.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::kit::{Gate, PATIENCE, free_port, until};

pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Echoes, and counts who comes.
pub(crate) fn echo() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let came = Arc::new(AtomicU64::new(0));
    let count = came.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let mut write = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut &stream, &mut write);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    (addr, came)
}

pub(crate) fn proxy(listen: SocketAddr, more: &str) -> String {
    format!(
        "[forward.office]\nlisten = \"{listen}\"\ndestinations.allow = [\"127.0.0.0/8\", \"::1/128\"]\n{more}\n"
    )
}

pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) fn open(proxy: SocketAddr) -> Client {
        let stream = TcpStream::connect(proxy).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }

    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn hear(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// All that is said until the end.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Err(error) = self.0.read_to_end(&mut bytes) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        bytes
    }

    /// A greeting without passwords, and a request; the whole reply.
    pub(crate) fn connect(proxy: SocketAddr, address: &[u8], port: u16) -> (Client, Vec<u8>) {
        let mut client = Client::open(proxy);
        client.say(&[5, 1, 0]);
        assert_eq!(client.hear(2), [5, 0]);
        client.say(&[&[5, 1, 0], address, &port.to_be_bytes()[..]].concat());
        let reply = client.hear(10);
        (client, reply)
    }

    pub(crate) fn exchange(&mut self, text: &str) {
        self.say(text.as_bytes());
        assert_eq!(self.hear(text.len()), text.as_bytes());
    }
}

pub(crate) const LOOPBACK: &[u8] = &[1, 127, 0, 0, 1];

pub(crate) fn name(name: &str) -> Vec<u8> {
    [&[3, name.len() as u8], name.as_bytes()].concat()
}

#[test]
fn socks5_and_4_and_4a_reach_addresses_and_names() {
    let ((origin, _), listen) = (echo(), local(free_port()));
    let _gate = Gate::start(&proxy(listen, ""));
    for address in [LOOPBACK.to_vec(), name("localhost")] {
        let (mut client, reply) = Client::connect(listen, &address, origin.port());
        assert_eq!(reply[..4], [5, 0, 0, 1]);
        client.exchange("over socks5");
        client.0.shutdown(Shutdown::Write).unwrap();
        assert!(client.rest().is_empty());
    }
    let port = origin.port().to_be_bytes();
    for (address, host) in [([127, 0, 0, 1], ""), ([0, 0, 0, 1], "localhost\0")] {
        let mut client = Client::open(listen);
        let ask = [&[4, 1], &port[..], &address, b"me\0", host.as_bytes()].concat();
        // In two pieces, and with the first bytes of what follows.
        client.say(&ask[..5]);
        client.say(&[&ask[5..], b"early"].concat());
        assert_eq!(client.hear(8)[..2], [0, 90]);
        assert_eq!(client.hear(5), b"early");
    }
}

#[test]
fn users_are_asked_and_nothing_is_dialled_before() {
    let ((origin, came), listen) = (echo(), local(free_port()));
    let _gate = Gate::start(&proxy(listen, "users = { alice = \"sesame\" }"));
    let mut client = Client::open(listen);
    client.say(&[5, 1, 0]);
    assert_eq!(client.rest(), [5, 0xff]);
    let credentials = |password: &str| {
        let (length, password) = (password.len() as u8, password.as_bytes());
        [&[1, 5], &b"alice"[..], &[length], password].concat()
    };
    let mut client = Client::open(listen);
    client.say(&[5, 2, 0, 2]);
    assert_eq!(client.hear(2), [5, 2]);
    client.say(&credentials("guess"));
    let verdict = client.rest();
    assert!(
        verdict.len() == 2 && verdict[0] == 1 && verdict[1] != 0,
        "{verdict:?}"
    );
    // SOCKS4 has no passwords.
    let mut client = Client::open(listen);
    let port = origin.port().to_be_bytes();
    client.say(&[&[4, 1], &port[..], &[127, 0, 0, 1], b"alice\0"].concat());
    assert_eq!(client.rest()[..2], [0, 91]);
    assert_eq!(came.load(Ordering::SeqCst), 0);
    let mut client = Client::open(listen);
    client.say(&[5, 1, 2]);
    assert_eq!(client.hear(2), [5, 2]);
    client.say(&credentials("sesame"));
    assert_eq!(client.hear(2), [1, 0]);
    client.say(&[&[5, 1, 0], LOOPBACK, &port[..]].concat());
    assert_eq!(client.hear(10)[1], 0);
    client.exchange("let in");
}

#[test]
fn what_is_not_allowed_or_not_there_has_its_own_reply() {
    let ((origin, came), listen) = (echo(), local(free_port()));
    let gate = Gate::start(&format!("[forward.office]\nlisten = \"{listen}\"\n"));
    // By default loopback is denied, whatever it is called.
    for address in [
        LOOPBACK.to_vec(),
        name("localhost"),
        [&[4][..], &[0; 10], &[0xff, 0xff, 127, 0, 0, 1]].concat(),
        vec![1, 0, 0, 0, 0],
        vec![1, 169, 254, 169, 254],
    ] {
        let (mut client, reply) = Client::connect(listen, &address, origin.port());
        assert_eq!(reply[..2], [5, 2], "{address:?}");
        assert!(client.rest().is_empty());
    }
    assert_eq!(came.load(Ordering::SeqCst), 0);
    let admin = gate.base.admin.port();
    gate.reload_ok(&proxy(listen, "destinations.deny = \"*.test\""));
    let refused = Client::connect(listen, LOOPBACK, free_port()).1;
    assert_eq!(refused[..2], [5, 5]);
    assert_eq!(Client::connect(listen, &name("a.test"), 80).1[1], 2);
    assert_eq!(Client::connect(listen, LOOPBACK, 25).1[1], 2);
    assert_eq!(Client::connect(listen, LOOPBACK, admin).1[1], 2);
    // A command that is not there, and an address that is none.
    for (request, reply) in [
        ([5, 2, 0, 1, 127, 0, 0, 1, 0, 80], 7),
        ([5, 1, 0, 9, 127, 0, 0, 1, 0, 80], 8),
    ] {
        let mut client = Client::open(listen);
        client.say(&[5, 1, 0]);
        client.hear(2);
        client.say(&request);
        assert_eq!(client.rest()[1], reply);
    }
}

#[test]
fn handshakes_that_never_end_are_over_in_time() {
    let listen = local(free_port());
    let gate = Gate::start(&proxy(listen, "timeouts.handshake = \"200ms\""));
    for half in [
        &b""[..],
        &[5],
        &[5, 2, 0],
        &[5, 1, 0, 5, 1, 0, 3, 20],
        &[4, 1, 0],
    ] {
        let mut client = Client::open(listen);
        client.say(half);
        let said = client.rest();
        assert!(said.is_empty() || said == [5, 0], "{said:?}");
    }
    // HTTP has a word for it.
    let mut client = Client::open(listen);
    client.say(b"CONNECT a.test:80 HTTP/1.1\r\n");
    assert!(client.rest().starts_with(b"HTTP/1.1 408 "));
    // Where it is not spoken there is none.
    gate.reload_ok(&proxy(listen, "protocols = [\"socks5\"]"));
    let mut client = Client::open(listen);
    client.say(b"GET / HTTP/1.1\r\n\r\n");
    assert!(client.rest().is_empty());
}

#[test]
fn datagrams_are_relayed_as_long_as_their_connection_lives() {
    let listen = local(free_port());
    let origin = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = origin.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((size, from)) = origin.recv_from(&mut buffer) {
            let _ = origin.send_to(&buffer[..size], from);
        }
    });
    let _gate = Gate::start(&proxy(listen, ""));
    let mut control = Client::open(listen);
    control.say(&[5, 1, 0]);
    control.hear(2);
    control.say(&[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]);
    let reply = control.hear(10);
    assert_eq!(reply[..8], [5, 0, 0, 1, 127, 0, 0, 1]);
    let relay = local(u16::from_be_bytes([reply[8], reply[9]]));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let header = [&[0, 0, 0][..], LOOPBACK, &port.to_be_bytes()].concat();
    let mut buffer = [0; 2048];
    for text in ["one", "two"] {
        client
            .send_to(&[&header, text.as_bytes()].concat(), relay)
            .unwrap();
        let (size, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(from, relay);
        assert_eq!(buffer[..size], [&header, text.as_bytes()].concat());
    }
    let named = [
        &[0, 0, 0][..],
        &name("localhost"),
        &port.to_be_bytes()[..],
        b"named",
    ]
    .concat();
    client.send_to(&named, relay).unwrap();
    let (size, _) = client.recv_from(&mut buffer).unwrap();
    assert!(buffer[..size].ends_with(b"named"));
    // Its end is that of the relay: the port is free again.
    drop(control);
    until("the relay to be gone", || UdpSocket::bind(relay).ok());
}

#[test]
fn sessions_never_notice_swaps_of_other_things_and_end_with_their_proxy() {
    let ((origin, _), listen) = (echo(), local(free_port()));
    let document = |n: usize| {
        let more = format!(
            "users = {{ user-{n} = \"x\" }}\ndestinations.deny = \":{}\"",
            1000 + n
        );
        let more = if n == 0 { "" } else { &more };
        proxy(listen, &format!("on_change = \"cut\"\n{more}"))
            + &format!("[http.other]\nlisten = \"127.0.0.1:0\"\nrespond = \"{n}\"\n")
    };
    let gate = Gate::start(&document(0));
    let mut sessions: Vec<Client> = (0..20)
        .map(|_| Client::connect(listen, LOOPBACK, origin.port()).0)
        .collect();
    for n in 1..=20 {
        // Other users and rules are for new ones.
        gate.reload_ok(&document(n));
        for (index, session) in sessions.iter_mut().enumerate() {
            session.exchange(&format!("{n} of {index}"));
        }
    }
    gate.wait_settled();
    gate.reload_ok("");
    for session in &mut sessions {
        assert!(session.rest().is_empty());
    }
}
