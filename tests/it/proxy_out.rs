//! PROXY headers that are sent: what the origin hears of the client before anything else, whatever is spoken after it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::kit::authority::Authority;
use crate::kit::{Call, Conn, Gate, PATIENCE, free_port, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What a header says: both addresses, `None` for a connection that speaks for itself. Panics at what is no header.
type Told = Option<(SocketAddr, SocketAddr)>;

fn read_header(stream: &mut impl Read) -> Told {
    let mut exact = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    };
    let mut first = exact(12);
    if first == SIGNATURE {
        let rest = exact(4);
        let body = exact(usize::from(u16::from_be_bytes([rest[2], rest[3]])));
        let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        let v4 = |at: usize| <[u8; 4]>::try_from(&body[at..at + 4]).unwrap();
        let v6 = |at: usize| <[u8; 16]>::try_from(&body[at..at + 16]).unwrap();
        return match (rest[0], rest[1]) {
            (0x20, _) => None,
            (0x21, 0x11) => Some(((v4(0), port(8)).into(), (v4(4), port(10)).into())),
            (0x21, 0x21) => Some(((v6(0), port(32)).into(), (v6(16), port(34)).into())),
            other => panic!("{other:?}"),
        };
    }
    while !first.ends_with(b"\r\n") {
        first.extend(exact(1));
    }
    let line = String::from_utf8(first).unwrap();
    let words: Vec<&str> = line.trim_end().split(' ').collect();
    match words[..] {
        ["PROXY", "UNKNOWN"] => None,
        ["PROXY", "TCP4" | "TCP6", from, to, from_port, to_port] => {
            let address =
                |ip: &str, port: &str| SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap());
            Some((address(from, from_port), address(to, to_port)))
        }
        _ => panic!("{line:?}"),
    }
}

/// Reads a header, then, over TLS if that is given, answers requests with who the client is; to the first line `echo` it
/// says the same once and ends.
struct Origin {
    addr: SocketAddr,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Origin {
    fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let told: Arc<Mutex<Vec<Told>>> = Arc::default();
        let heard = told.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (heard, tls) = (heard.clone(), tls.clone());
                std::thread::spawn(move || {
                    let mut stream = stream;
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let said = read_header(&mut stream);
                    heard.lock().unwrap().push(said);
                    match tls {
                        None => answer(stream, said),
                        Some(config) => {
                            let connection = rustls::ServerConnection::new(config).unwrap();
                            answer(rustls::StreamOwned::new(connection, stream), said);
                        }
                    }
                });
            }
        });
        Origin { addr, told }
    }

    /// Who came, since it was asked last.
    fn told(&self) -> Vec<Told> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

fn answer(stream: impl Read + Write, said: Told) {
    let mut stream = BufReader::new(stream);
    let who = said.map_or("nobody".to_owned(), |(from, to)| format!("{from} to {to}"));
    let mut upgrade = false;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        upgrade |= line.to_ascii_lowercase().starts_with("upgrade:");
        let answer = match line.as_str() {
            "echo\r\n" => format!("{who}\n"),
            "\r\n" if upgrade => format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-who: {who}\r\n\r\n"
            ),
            "\r\n" => format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{who}",
                who.len()
            ),
            _ => continue,
        };
        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn web(to: SocketAddr, origin: &Origin, version: &str, more: &str) -> String {
    format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"o\"\n\
         [upstreams.o]\ntargets = \"{}\"\nproxy_protocol = \"{version}\"\n{more}\n",
        origin.addr
    )
}

/// The address of a connection's own end, and what it is answered.
fn ask(conn: &mut Conn, own: SocketAddr, to: SocketAddr, more: &str) {
    let answer = conn.exchange(format!("GET / HTTP/1.1\r\nhost: x\r\n{more}\r\n"));
    assert_eq!(answer.unwrap().text(), format!("{own} to {to}"));
}

fn connect(to: SocketAddr) -> (Conn, SocketAddr) {
    let stream = TcpStream::connect(to).unwrap();
    let own = stream.local_addr().unwrap();
    (Conn::over(stream).unwrap(), own)
}

#[test]
fn each_request_tells_its_own_client_in_both_versions_and_families() {
    let origin = Origin::start(None);
    let v6 = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], free_port()));
    let gate = Gate::start("");
    for to in [local(free_port()), v6] {
        for version in ["v1", "v2"] {
            gate.reload_ok(&web(to, &origin, version, ""));
            let mut clients: Vec<_> = (0..3).map(|_| connect(to)).collect();
            // A connection that was kept for the next request would tell the client of the last one.
            for _ in 0..3 {
                for (conn, own) in &mut clients {
                    ask(conn, *own, to, "");
                }
            }
            assert_eq!(origin.told().len(), 9);
        }
    }
}

#[test]
fn whom_trusted_proxies_name_is_the_client() {
    let (origin, to) = (Origin::start(None), local(free_port()));
    let text = web(to, &origin, "v2", "")
        .replace("[upstreams", "trusted_proxies = \"127.0.0.1\"\n[upstreams");
    let _gate = Gate::start(&text);
    let (mut conn, _) = connect(to);
    let client = "192.0.2.7:0".parse().unwrap();
    ask(&mut conn, client, to, "x-forwarded-for: 192.0.2.7\r\n");
}

#[test]
fn it_comes_before_tls() {
    let ca = Authority::new();
    let config = Authority::server(&ca.issue(&["o.test"]), &[], None);
    let (origin, to) = (Origin::start(Some(config)), local(free_port()));
    let more = "tls = { ca = \"ca.pem\", server_name = \"o.test\" }";
    let _gate = Gate::setup()
        .file("ca.pem", ca.pem())
        .start(&web(to, &origin, "v1", more));
    let (mut conn, own) = connect(to);
    ask(&mut conn, own, to, "");
}

#[test]
fn a_websocket_and_a_tcp_session_tell_their_client() {
    let origin = Origin::start(None);
    let (to, tcp) = (local(free_port()), local(free_port()));
    let text = format!(
        "{}[tcp.t]\nlisten = \"{tcp}\"\nupstream = \"o\"\n",
        web(to, &origin, "v2", "")
    );
    let _gate = Gate::start(&text);
    let (mut conn, own) = connect(to);
    conn.send(
        "GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .unwrap();
    let head = conn.response_head().unwrap();
    assert_eq!(head.status, 101);
    assert_eq!(head.header("x-who"), Some(&*format!("{own} to {to}")));
    let mut stream = TcpStream::connect(tcp).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let own = stream.local_addr().unwrap();
    stream.write_all(b"echo\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert_eq!(line, format!("{own} to {tcp}\n"));
}

#[test]
fn checks_speak_for_themselves_and_another_port_hears_nothing_of_it() {
    let (origin, to) = (Origin::start(None), local(free_port()));
    let gate = Gate::start("");
    for version in ["v1", "v2"] {
        gate.reload_ok(&web(
            to,
            &origin,
            version,
            "health = { path = \"/\", interval = \"50ms\" }",
        ));
        until("two checks", || {
            (origin.told.lock().unwrap().len() >= 2).then_some(())
        });
        assert!(origin.told().iter().all(Option::is_none));
        gate.reload_ok("");
        origin.told();
    }
    // Such as an agent of the database beside it.
    let plain = crate::kit::Origin::start("plain");
    let more = format!(
        "health = {{ path = \"/id\", port = {}, interval = \"50ms\" }}",
        plain.addr.port()
    );
    gate.reload_ok(&web(to, &origin, "v1", &more));
    until("two checks", || (plain.requests() >= 2).then_some(()));
}

#[test]
fn a_swap_of_the_version_reaches_the_next_request() {
    let (origin, to) = (Origin::start(None), local(free_port()));
    let gate = Gate::start(&web(to, &origin, "v1", ""));
    let (mut conn, own) = connect(to);
    for version in ["v2", "v1"] {
        ask(&mut conn, own, to, "");
        gate.reload_ok(&web(to, &origin, version, ""));
    }
    ask(&mut conn, own, to, "");
    // Without it, connections are kept: none that began with a header is used for them, nor the other way round.
    let plain = crate::kit::Origin::start("plain");
    let text = |more: &str| {
        format!(
            "[http.web]\nlisten = \"{to}\"\nproxy = \"o\"\n[upstreams.o]\ntargets = \"{}\"\n{more}\n",
            plain.addr
        )
    };
    gate.reload_ok(&text(""));
    // On one connection, for each worker keeps its own.
    let mut conn = Conn::open(to).unwrap();
    let mut get = || {
        conn.exchange("GET /id HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap()
    };
    for _ in 0..2 {
        assert_eq!(get().status, 200);
    }
    assert_eq!(plain.connections(), 1);
    gate.reload_ok(&text("proxy_protocol = \"v1\""));
    get();
    assert_eq!(plain.connections(), 2);
}

#[test]
fn what_is_shared_has_no_one_client() {
    let gate = Gate::start("");
    for more in ["protocol = \"h2c\"", "protocol = \"auto\"\ntls = {}"] {
        let text = format!(
            "[http.web]\nlisten = \"127.0.0.1:1\"\nproxy = \"o\"\n\
             [upstreams.o]\ntargets = \"127.0.0.1:1\"\nproxy_protocol = \"v2\"\n{more}\n"
        );
        let answer = gate.call(Call::post("/adapt").toml(&gate.document(&text)));
        answer.problem(422, "invalid-document");
        assert_eq!(answer.pointers(), ["/upstreams/o/proxy_protocol"]);
    }
}
