//! How what passes ends: an end on one side is one on the other, and what is cut or broken a reset, over HTTP/1 and HTTP/2, through
//! other proxies and TLS with them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::kit::authority::Authority;
use crate::kit::frames::{DATA, END_HEADERS, END_STREAM, Fate, HEADERS, Wire, field, frame, reset};
use crate::kit::websocket::{BINARY, frame as message};
use crate::kit::{Call, Gate, PATIENCE, free_port, until};

/// RFC 9113 section 7.
const CANCEL: u32 = 8;

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn proxy(listen: SocketAddr) -> String {
    format!("[forward.office]\nlisten = \"{listen}\"\ndestinations.allow = [\"127.0.0.0/8\"]\n")
}

/// Where everybody wants to go.
struct Target(TcpListener);

impl Target {
    fn start() -> Target {
        Target(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn addr(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn accept(&self) -> TcpStream {
        let (stream, _) = self.0.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

fn break_off(stream: TcpStream) {
    let socket = socket2::SockRef::from(&stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

#[track_caller]
fn is_reset(stream: &mut TcpStream) {
    let ended = stream.read(&mut [0; 8]);
    assert!(
        matches!(&ended, Err(error) if error.kind() == ErrorKind::ConnectionReset),
        "{ended:?}"
    );
}

#[track_caller]
fn has_ended(stream: &mut TcpStream) {
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

fn hear(stream: &mut TcpStream, text: &[u8]) {
    let mut got = vec![0; text.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, text);
}

/// CONNECT on a stream, and what the target has of it. Something has passed.
fn connect(wire: &mut Wire, stream: u32, target: &Target) -> TcpStream {
    let fields = [
        field(":method", "CONNECT"),
        field(":authority", target.addr().to_string()),
    ];
    wire.send(&frame(HEADERS, END_HEADERS, stream, &fields.concat()))
        .unwrap();
    assert_eq!(wire.fate(stream), Fate::Answer(200));
    let mut there = target.accept();
    wire.send(&frame(DATA, 0, stream, b"hello")).unwrap();
    hear(&mut there, b"hello");
    there
}

/// The only session of a kind, ended by an operator.
fn close(gate: &Gate, kind: &str) {
    let id = until("it to be the only one", || {
        let list = gate.call(Call::get(&format!("/sessions?kind={kind}")));
        let list = list.expect(200);
        let [one] = &list["sessions"].as_array()?[..] else {
            return None;
        };
        one["id"].as_u64()
    });
    let call = Call::post(&format!("/sessions/{id}/close"));
    gate.call(call).expect(200);
}

#[test]
fn on_a_stream_of_http2_what_breaks_is_a_reset_and_an_end_an_end() {
    let (target, listen) = (Target::start(), local(free_port()));
    let gate = Gate::start(&proxy(listen));
    let mut wire = Wire::open(listen, &[]);
    // The target breaks off: also after it has sent something.
    let mut there = connect(&mut wire, 1, &target);
    there.write_all(b"half of").unwrap();
    break_off(there);
    assert_eq!(wire.ending(1), Fate::Reset(CANCEL));
    // The client does.
    let mut there = connect(&mut wire, 3, &target);
    wire.send(&reset(3)).unwrap();
    is_reset(&mut there);
    // Also after its end, while the target has nothing to say.
    let mut there = connect(&mut wire, 13, &target);
    wire.send(&frame(DATA, END_STREAM, 13, b"")).unwrap();
    has_ended(&mut there);
    wire.send(&reset(13)).unwrap();
    let error = until("the reset", || there.take_error().unwrap());
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    // An operator ends it.
    let mut there = connect(&mut wire, 15, &target);
    close(&gate, "connect");
    assert_eq!(wire.ending(15), Fate::Reset(CANCEL));
    is_reset(&mut there);
    // Ends, side by side.
    let mut there = connect(&mut wire, 17, &target);
    wire.send(&frame(DATA, END_STREAM, 17, b"")).unwrap();
    has_ended(&mut there);
    there.write_all(b"the answer").unwrap();
    there.shutdown(Shutdown::Write).unwrap();
    assert_eq!(wire.ending(17), Fate::Ended);
    let mut there = connect(&mut wire, 19, &target);
    there.shutdown(Shutdown::Write).unwrap();
    assert_eq!(wire.ending(19), Fate::Ended);
    wire.send(&frame(DATA, END_STREAM, 19, b" and more"))
        .unwrap();
    hear(&mut there, b" and more");
    has_ended(&mut there);
    // And what is large is all there before its end.
    let mut there = connect(&mut wire, 21, &target);
    there.write_all(&[7; 40_000]).unwrap();
    drop(there);
    let mut size = 0;
    loop {
        let frame = wire.next().unwrap();
        if frame.stream == 21 && frame.kind == DATA {
            size += frame.payload.len();
            if frame.flags & END_STREAM != 0 {
                break;
            }
        }
    }
    assert_eq!(size, 40_000);
}

#[test]
fn a_connection_of_http2_that_dies_is_a_reset_for_all_that_its_streams_lead_to() {
    let (target, listen, web) = (Target::start(), local(free_port()), local(free_port()));
    let _gate = Gate::start(&format!(
        "{}[http.web]\nlisten = \"{web}\"\ntcp = \"numbers\"\n[upstreams.numbers]\ntargets = \"{}\"\n",
        proxy(listen),
        target.addr()
    ));
    let mut wire = Wire::open(listen, &[]);
    let mut all: Vec<_> = [1, 3, 5].map(|n| connect(&mut wire, n, &target)).into();
    drop(wire);
    all.iter_mut().for_each(is_reset);
    // The same of a websocket whose messages are a stream.
    let mut wire = Wire::open(web, &[]);
    let fields = [
        field(":method", "CONNECT"),
        field(":protocol", "websocket"),
        field(":scheme", "http"),
        field(":authority", "x"),
        field(":path", "/"),
        field("sec-websocket-version", "13"),
    ];
    wire.send(&frame(HEADERS, END_HEADERS, 1, &fields.concat()))
        .unwrap();
    assert_eq!(wire.fate(1), Fate::Answer(200));
    let mut there = target.accept();
    let hello = message(BINARY, Some([1, 2, 3, 4]), b"hello");
    wire.send(&frame(DATA, 0, 1, &hello)).unwrap();
    hear(&mut there, b"hello");
    drop(wire);
    is_reset(&mut there);
}

#[test]
fn what_is_cut_reaches_the_far_end_through_another_proxy_as_a_reset() {
    let (target, tcp, hop) = (Target::start(), local(free_port()), local(free_port()));
    let ca = Authority::new();
    let issued = ca.issue(&["127.0.0.1"]);
    let document = |scheme: &str, hop_tls: &str, tls: &str| {
        format!(
            "{}{hop_tls}\n[tcp.t]\nlisten = \"{tcp}\"\nupstream = \"o\"\n\
             [upstreams.o]\ntargets = \"{}\"\nvia = {{ url = \"{scheme}://{hop}\"{tls} }}\n",
            proxy(hop),
            target.addr()
        )
    };
    let gate = Gate::setup()
        .file("ca.pem", ca.pem())
        .file("p.crt", issued.cert.clone())
        .file("p.key", issued.key.clone())
        .start("");
    let certificate = "tls = { certificates = { cert = \"p.crt\", key = \"p.key\" } }";
    let trust = ", tls = { ca = \"ca.pem\" }";
    for (scheme, hop_tls, tls) in [
        ("http", "", ""),
        ("socks5", "", ""),
        ("https", certificate, trust),
    ] {
        gate.reload_ok(&document(scheme, hop_tls, tls));
        let session = || {
            let mut client = TcpStream::connect(tcp).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.write_all(b"hello").unwrap();
            let mut there = target.accept();
            hear(&mut there, b"hello");
            (client, there)
        };
        let (mut client, mut there) = session();
        close(&gate, "tcp");
        is_reset(&mut client);
        is_reset(&mut there);
        // And what breaks there, here.
        let (mut client, there) = session();
        break_off(there);
        is_reset(&mut client);
        // An end is an end.
        let (client, mut there) = session();
        client.shutdown(Shutdown::Write).unwrap();
        has_ended(&mut there);
        drop(there);
        drop(client);
    }
}
