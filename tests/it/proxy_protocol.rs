//! The PROXY protocol in front of HTTP: who the client is, said by those who are trusted to, and by nobody else.

use std::net::SocketAddr;

use crate::kit::{Call, Conn, Gate, free_port, get, tls};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn gate(lines: &str) -> (Gate, SocketAddr) {
    let to = local(free_port());
    let text = format!(
        "[http.web]\nlisten = \"{to}\"\nproxy_protocol = true\nrespond = \"{{client_ip}} {{client_port}}\"\n{lines}\n"
    );
    (Gate::start(&text), to)
}

const HEADER: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n";

#[test]
fn the_client_is_who_the_balancer_says() {
    let (_gate, to) = gate("trusted_proxies = \"127.0.0.1\"");
    let mut conn = Conn::open(to).unwrap();
    conn.send(HEADER).unwrap();
    for _ in 0..2 {
        // What the client itself says of others is not believed: it is not the balancer.
        let ask = "GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 6.6.6.6\r\n\r\n";
        assert_eq!(conn.exchange(ask).unwrap().text(), "192.0.2.7 4711");
    }
    // A health check of the balancer.
    let mut conn = Conn::open(to).unwrap();
    let ask = "PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n";
    assert!(conn.exchange(ask).unwrap().text().starts_with("127.0.0.1 "));
}

#[test]
fn from_the_balancer_it_must_come() {
    let (_gate, to) = gate("trusted_proxies = \"127.0.0.1\"");
    let mut conn = Conn::open(to).unwrap();
    assert!(conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").is_err());
}

#[test]
fn from_others_it_is_not_read() {
    let (_gate, to) = gate("trusted_proxies = \"192.0.2.1\"");
    assert!(get(to, "x", "/").text().starts_with("127.0.0.1 "));
    let mut conn = Conn::open(to).unwrap();
    let ask = format!("{HEADER}GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(
        conn.exchange(ask)
            .map_or(true, |answer| answer.status == 400)
    );
}

#[test]
fn it_comes_before_tls_and_clients_are_counted_by_what_it_says() {
    let lines = "trusted_proxies = \"127.0.0.1\"\ntls = { self_signed = \"localhost\" }\n\
                 limits = { connections_per_client = 1 }";
    let (_gate, to) = gate(lines);
    let open = |client: &str| {
        let mut stream = std::net::TcpStream::connect(to)?;
        let header = HEADER.replace("192.0.2.7", client);
        std::io::Write::write_all(&mut stream, header.as_bytes())?;
        tls::Client::new().over(stream, "localhost")
    };
    let mut first = open("192.0.2.7").unwrap();
    let ask = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    assert_eq!(first.exchange(ask).unwrap().text(), "192.0.2.7 4711");
    assert!(
        open("192.0.2.7").is_err(),
        "a second one of the same client"
    );
    let mut other = open("192.0.2.8").unwrap();
    assert_eq!(other.exchange(ask).unwrap().text(), "192.0.2.8 4711");
}

#[test]
fn nobody_trusted_is_an_error() {
    let gate = Gate::start("");
    let text = "[http.web]\nlisten = \"127.0.0.1:1\"\nproxy_protocol = true\nrespond = \"\"\n";
    let answer = gate.call(Call::post("/adapt").toml(&gate.document(text)));
    assert_eq!(answer.status, 422);
    assert!(answer.text().contains("trusted_proxies"));
}
