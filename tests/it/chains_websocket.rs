//! `via`: websockets through other proxies, those that pass and those of `[tcp] websocket`.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use crate::kit::authority::Authority;
use crate::kit::connect_proxy::{ConnectProxy, Ways};
use crate::kit::websocket::{BINARY, CLOSE, agree_on, frame, read_frame};
use crate::kit::{Call, Conn, Gate, PATIENCE, free_port, until};
use crate::tcp::{exchange, open};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A server of websockets, over TLS if that is given: each gets a `hello`, then its frames come back as the server's.
fn origin(tls: Option<Arc<rustls::ServerConfig>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let tls = tls.clone();
            std::thread::spawn(move || {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                // How a connection ends is the client's to judge.
                let _ = match tls {
                    None => serve(Conn::with(stream)),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).unwrap();
                        serve(Conn::with(rustls::StreamOwned::new(connection, stream)))
                    }
                };
            });
        }
    });
    addr
}

fn serve<S: std::io::Read + std::io::Write>(mut conn: Conn<S>) -> std::io::Result<()> {
    agree_on(&mut conn, "")?;
    conn.send(frame(BINARY, None, b"hello"))?;
    loop {
        let head = exact(&mut conn, 6)?;
        let size = usize::from(head[1] & 0x7f);
        assert!(size < 126 && head[1] & 0x80 != 0, "{head:?}");
        let masked = exact(&mut conn, size)?;
        let key = head[2..].iter().cycle();
        let payload: Vec<u8> = masked.iter().zip(key).map(|(b, k)| b ^ k).collect();
        conn.send(frame(head[0] & 0x0f, None, &payload))?;
        if head[0] & 0x0f == CLOSE {
            return Ok(());
        }
    }
}

fn exact<S: std::io::Read + std::io::Write>(
    conn: &mut Conn<S>,
    size: usize,
) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while all.len() < size {
        let some = conn.some(size - all.len())?;
        if some.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        all.extend(some);
    }
    Ok(all)
}

/// A client's websocket through `to`, which must be one that [`origin`] has served.
fn passes(to: SocketAddr) -> Conn {
    let mut conn = Conn::open(to).unwrap();
    conn.send(
        "GET /chat HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .unwrap();
    let answer = conn.response_head().unwrap();
    assert_eq!(answer.status, 101, "{}", answer.head.text);
    let accept = answer.header("sec-websocket-accept");
    assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(read_frame(&mut conn).unwrap(), (BINARY, b"hello".to_vec()));
    echoes(&mut conn, b"through");
    conn
}

fn echoes(conn: &mut Conn, payload: &[u8]) {
    conn.send(frame(BINARY, Some([1, 2, 3, 4]), payload))
        .unwrap();
    assert_eq!(read_frame(conn).unwrap(), (BINARY, payload.to_vec()));
}

fn web(to: SocketAddr, target: &str, more: &str) -> String {
    format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"o\"\n[upstreams.o]\ntargets = \"{target}\"\n{more}\n"
    )
}

/// In cleartext, and with TLS to the origin within the tunnel, whose certificate is for a name that only the proxy knows.
#[test]
fn a_websocket_goes_through_connect_and_lives_over_swaps() {
    let ca = Authority::new();
    let to = local(free_port());
    let gate = Gate::setup().file("ca.pem", ca.pem()).start("");
    let config = Authority::server(&ca.issue(&["origin.test"]), &[], None);
    for (tls, lines) in [(None, ""), (Some(config), "tls = { ca = \"ca.pem\" }")] {
        let proxy = ConnectProxy::start(Ways {
            login: Some("me:secret"),
            test: Some(origin(tls)),
            ..Ways::default()
        });
        let via = format!("via = \"http://me:secret@{}\"\n{lines}", proxy.addr);
        let document = web(to, "origin.test:443", &via);
        gate.reload_ok(&document);
        let mut conn = passes(to);
        assert_eq!(proxy.asked(), ["origin.test:443"]);
        let other = "[http.x]\nlisten = \"127.0.0.1:0\"\nrespond = \"\"\n";
        gate.reload_ok(&format!("{document}{other}"));
        echoes(&mut conn, b"still");
        // A handshake has a connection of its own.
        passes(to);
        assert_eq!(proxy.asked(), ["origin.test:443"]);
        conn.send(frame(CLOSE, Some([0; 4]), &1000_u16.to_be_bytes()))
            .unwrap();
        assert_eq!(read_frame(&mut conn).unwrap().0, CLOSE);
    }
}

#[test]
fn a_websocket_goes_through_socks_with_tls_to_the_origin_and_refusals_are_answers() {
    let ca = Authority::new();
    let (to, socks) = (local(free_port()), local(free_port()));
    let origin = origin(Some(Authority::server(
        &ca.issue(&["localhost", "127.0.0.1"]),
        &[],
        None,
    )));
    let office = format!(
        "[forward.office]\nlisten = \"{socks}\"\nusers = {{ alice = \"sesame\" }}\n\
         destinations.allow = [\"127.0.0.0/8\", \"::1/128\"]\n"
    );
    let text = |scheme: &str, password: &str, name: &str| {
        let via =
            format!("via = \"{scheme}://alice:{password}@{socks}\"\ntls = {{ ca = \"ca.pem\" }}\n");
        web(to, &format!("{name}:{}", origin.port()), &via) + &office
    };
    let gate = Gate::setup().file("ca.pem", ca.pem()).start("");
    for (scheme, name) in [
        ("socks5h", "localhost"),
        ("socks5", "localhost"),
        ("socks5", "127.0.0.1"),
    ] {
        gate.reload_ok(&text(scheme, "sesame", name));
        let conn = passes(to);
        until("it to be a session at the proxy", || {
            let list = gate.call(Call::get("/sessions?kind=socks5")).json();
            let target = format!("{name}:{}", origin.port());
            let one = &list["sessions"][0];
            let named = one["destination"] == target || scheme == "socks5";
            (one["user"] == "alice" && named).then_some(())
        });
        drop(conn);
        until("it to be gone", || {
            let list = gate.call(Call::get("/sessions?kind=socks5")).json();
            list["sessions"]
                .as_array()
                .unwrap()
                .is_empty()
                .then_some(())
        });
    }
    gate.reload_ok(&text("socks5h", "guess", "localhost"));
    let mut conn = Conn::open(to).unwrap();
    let answer = conn
        .exchange("GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        .unwrap();
    assert_eq!(answer.status, 502);
    let told = format!("via socks5h://{socks}: it does not take this user and password");
    until("the log", || gate.output().contains(&told).then_some(()));
}

#[test]
fn a_tcp_session_goes_through_a_proxy_in_a_websocket_over_tls() {
    let ca = Authority::new();
    let config = Authority::server(&ca.issue(&["origin.test"]), &[], None);
    let proxy = ConnectProxy::start(Ways {
        test: Some(origin(Some(config))),
        ..Ways::default()
    });
    let listen = local(free_port());
    let _gate = Gate::setup().file("ca.pem", ca.pem()).start(&format!(
        "[tcp.out]\nlisten = \"{listen}\"\nupstream = \"o\"\nwebsocket = \"/\"\n\
         [upstreams.o]\ntargets = \"origin.test:443\"\nvia = \"http://{}\"\ntls = {{ ca = \"ca.pem\" }}\n",
        proxy.addr
    ));
    let mut stream = open(listen);
    let mut hello = [0; 5];
    std::io::Read::read_exact(&mut stream, &mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    exchange(&mut stream, "through");
    assert_eq!(proxy.asked(), ["origin.test:443"]);
}
