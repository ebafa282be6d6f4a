//! HTTP/1 requests that two parties could read in two ways: where a head, a field or a body ends. What `headers.rs` has is
//! not said again here.

use std::net::SocketAddr;

use crate::kit::{Conn, Gate, Origin, free_port, get};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn proxied() -> (Gate, Origin, SocketAddr) {
    let origin = Origin::start("A");
    let to = local(free_port());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"http://{}\"\n",
        origin.addr
    ));
    (gate, origin, to)
}

/// Refused with a 4xx or 5xx of ours, or by the end of the connection, and over with it.
fn refused(to: SocketAddr, what: &str, text: impl AsRef<[u8]>) {
    let mut conn = Conn::open(to).unwrap();
    conn.send(text).unwrap();
    match conn.response() {
        Ok(answer) => {
            assert!(
                (400..600).contains(&answer.status) && answer.status != 502,
                "{what}: {}",
                answer.status
            );
            assert!(conn.closed(), "{what}: the connection goes on");
        }
        Err(e) => assert!(
            !matches!(
                e.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            ),
            "{what}: left hanging"
        ),
    }
}

fn chunked(body: &str) -> String {
    format!("POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{body}")
}

/// RUSTSEC-2021-0079, CVE-2023-47627, TERM.EXT: only what RFC 9112 section 7.1 calls a chunk is one, and what follows one
/// that is none is not a request.
#[test]
fn only_chunks_are_chunks() {
    let (_gate, _origin, to) = proxied();
    let next = "GET /evil/id HTTP/1.1\r\nhost: x\r\n\r\n";
    let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(17 << 10));
    let padded = format!("{}3\r\nabc\r\n0\r\n\r\n", "0".repeat(70_000));
    let cases = [
        ("a size over 64 bits", "fffffffffffffffff\r\nabc"),
        (
            "a size that wraps to 3",
            "10000000000000003\r\nabc\r\n0\r\n\r\n",
        ),
        ("a prefix", "0x3\r\nabc\r\n0\r\n\r\n"),
        ("a sign", "+3\r\nabc\r\n0\r\n\r\n"),
        ("a negative size", "-3\r\nabc\r\n0\r\n\r\n"),
        ("no size", "\r\nabc\r\n0\r\n\r\n"),
        ("an extension without a size", ";a\r\nabc\r\n0\r\n\r\n"),
        ("a space before", " 3\r\nabc\r\n0\r\n\r\n"),
        ("two sizes", "3 3\r\nabc\r\n0\r\n\r\n"),
        ("an underscore", "0_3\r\nabc\r\n0\r\n\r\n"),
        ("a lone LF after the size", "3\nabc\r\n0\r\n\r\n"),
        ("a lone CR after the size", "3\rabc\r\n0\r\n\r\n"),
        ("a lone LF after the data", "3\r\nabc\n0\r\n\r\n"),
        ("no line end after the data", "3\r\nabc0\r\n\r\n"),
        ("more data than was said", "3\r\nabcde\r\n0\r\n\r\n"),
        ("a lone LF in an extension", "3;a\nb\r\nabc\r\n0\r\n\r\n"),
        ("a lone CR in an extension", "3;a\rb\r\nabc\r\n0\r\n\r\n"),
        ("a NUL in an extension", "3;a\0b\r\nabc\r\n0\r\n\r\n"),
        ("an ESC in an extension", "3;a\x1b\r\nabc\r\n0\r\n\r\n"),
        ("a long extension", long.as_str()),
        ("a NUL in a trailer", "3\r\nabc\r\n0\r\nx-a: \0\r\n\r\n"),
        (
            "a lone CR in a trailer",
            "3\r\nabc\r\n0\r\nx-a: 1\rx\r\n\r\n",
        ),
        (
            "a trailer without a colon",
            "3\r\nabc\r\n0\r\nGET /evil/id HTTP/1.1\r\n\r\n",
        ),
        (
            "a space before a trailer's colon",
            "3\r\nabc\r\n0\r\nx : 1\r\n\r\n",
        ),
    ];
    for (what, body) in cases {
        // A second answer would be no close.
        refused(to, what, format!("{}{next}", chunked(body)));
    }
    // Zeros before a size are grammar, however many.
    let mut conn = Conn::open(to).unwrap();
    if let Ok(answer) = conn.exchange(chunked(&padded)) {
        assert!(matches!(answer.status, 200 | 400));
    }
    let answer = get(to, "x", "/id");
    assert_eq!(answer.text(), "A /id");
}

/// Where a chunked body ends the next request begins, whatever is in the body.
#[test]
fn requests_behind_a_chunked_body_are_read_as_such() {
    let (_gate, _origin, to) = proxied();
    let mut conn = Conn::open(to).unwrap();
    let body = "5;x=\"y\"\r\n0\r\n\r\n\r\n0\r\nx-b: 1\r\n\r\n";
    let next = "GET /a/id HTTP/1.1\r\nhost: x\r\n\r\n";
    conn.send(format!("{}{next}{}{next}", chunked(body), chunked(body)))
        .unwrap();
    for wanted in ["0\r\n\r\n", "A /a/id", "0\r\n\r\n", "A /a/id"] {
        assert_eq!(conn.response().unwrap().text(), wanted);
    }
    // And it is looked at like any other.
    conn.send(format!(
        "{}POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        chunked(body)
    ))
    .unwrap();
    assert_eq!(conn.response().unwrap().status, 200);
    assert_eq!(conn.response().unwrap().status, 400);
    assert!(conn.closed());
}

/// What frames a message, or says who asks, is no trailer (RFC 9110 section 6.5.1).
#[test]
fn trailers_carry_no_framing() {
    let (_gate, _origin, to) = proxied();
    let names = "content-length, transfer-encoding, host, authorization, x-ok";
    let mut conn = Conn::open(to).unwrap();
    let answer = conn
        .exchange(format!(
            "POST /echo HTTP/1.1\r\nhost: x\r\ntrailer: {names}\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\
             content-length: 7\r\ntransfer-encoding: gzip\r\nhost: evil\r\nauthorization: Basic x\r\nx-ok: 1\r\n\r\n"
        ))
        .unwrap();
    assert_eq!(
        (answer.text().as_str(), answer.header("x-request-trailers")),
        ("abc", Some("x-ok=1"))
    );
}

#[test]
fn a_length_is_one_run_of_digits() {
    let (_gate, origin, to) = proxied();
    for length in [
        "",
        " ",
        "-1",
        "+1",
        "1,1",
        "1, 1",
        "1 1",
        "0x1",
        "1.0",
        "1e0",
        "\u{661}",
        "18446744073709551616",
        "99999999999999999999999999999999",
    ] {
        refused(
            to,
            &format!("the length {length:?}"),
            format!("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\na"),
        );
    }
    for twice in ["1", "2"] {
        refused(
            to,
            "two lengths",
            format!(
                "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\nContent-Length: {twice}\r\n\r\na"
            ),
        );
    }
    assert_eq!(origin.requests(), 0);
}

#[test]
fn what_is_no_coding_of_ours_is_refused() {
    let (_gate, origin, to) = proxied();
    for coding in [
        "transfer-encoding: \x0bchunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: identity",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked;x=1",
        "transfer-encoding:",
        "transfer-encoding : chunked",
        "transfer-encoding\t: chunked",
        " transfer-encoding: chunked",
        "x: y\r\n transfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
    ] {
        refused(
            to,
            coding,
            format!("POST /echo HTTP/1.1\r\nhost: x\r\n{coding}\r\n\r\n0\r\n\r\n"),
        );
    }
    refused(
        to,
        "a coding in HTTP/1.0",
        "POST /echo HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    );
    assert_eq!(origin.requests(), 0);
}

#[test]
fn request_lines_that_are_none() {
    let (_gate, origin, to) = proxied();
    for line in [
        "GET /id",
        "GET /id HTTP/0.9",
        "GET /id HTTP/1.10",
        "GET /id HTTP/1",
        "GET /id http/1.1",
        "GET /id HTTP/2.0",
        "GET /id XTTP/1.1",
        "GET /i d HTTP/1.1",
        "GET /id HTTP/1.1 HTTP/1.1",
        "GET  /id  HTTP/1.1",
        "GET\t/id\tHTTP/1.1",
        " GET /id HTTP/1.1",
        "GET /id\0 HTTP/1.1",
        "GET /i\rd HTTP/1.1",
        "GET /i\x0bd HTTP/1.1",
        "GET /id#x HTTP/1.1",
        "GET id HTTP/1.1",
        "GET ?x HTTP/1.1",
        "GET * HTTP/1.1",
        "GET http:///id HTTP/1.1",
        "GET http://user@x/id HTTP/1.1",
        "GET ftp://x/id HTTP/1.1",
        "G(T /id HTTP/1.1",
        "GE\0T /id HTTP/1.1",
        "/id HTTP/1.1",
    ] {
        refused(
            to,
            &format!("{line:?}"),
            format!("{line}\r\nhost: x\r\n\r\n"),
        );
    }
    assert_eq!(origin.requests(), 0);
}

#[test]
fn fields_that_are_none() {
    let (_gate, origin, to) = proxied();
    for field in [
        "x",
        "x y: 1",
        "x\0: 1",
        "x\r: 1",
        "x: 1\ry: 2",
        "x: \0",
        "x: \x01",
        "x: \x7f",
        "(x): 1",
        "x\u{e4}: 1",
        "host: x",
        "host: y",
    ] {
        refused(
            to,
            &format!("{field:?}"),
            format!("GET /id HTTP/1.1\r\nhost: x\r\n{field}\r\n\r\n"),
        );
    }
    assert_eq!(origin.requests(), 0);
}

/// A lone LF may be read as the end of a line, but leaves as CRLF.
#[test]
fn lone_line_feeds_do_not_leave_as_they_came() {
    let (_gate, _origin, to) = proxied();
    let mut conn = Conn::open(to).unwrap();
    let answer = conn
        .exchange("GET /head HTTP/1.1\nhost: x\nx-a: 1\n\n")
        .unwrap();
    match answer.status {
        200 => {
            let head = answer.text();
            assert_eq!(
                head.matches('\n').count(),
                head.matches("\r\n").count(),
                "{head:?}"
            );
            assert!(head.contains("\r\nx-a: 1\r\n"), "{head:?}");
        }
        status => assert_eq!(status, 400),
    }
}

/// Origins that make environment variables of fields can't tell `_` from `-`, and take `Proxy` for a setting (httpoxy).
#[test]
fn names_that_origins_confuse_are_dropped() {
    let (_gate, _origin, to) = proxied();
    let mut conn = Conn::open(to).unwrap();
    let answer = conn
        .exchange(
            "GET /head HTTP/1.1\r\nhost: x\r\nx_forwarded_for: 1.2.3.4\r\ncontent_length: 7\r\nX_User: root\r\n\
             proxy: http://evil\r\nx-kept: a_b\r\n\r\n",
        )
        .unwrap();
    let head = answer.text().to_lowercase();
    for gone in ["x_forwarded_for", "content_length", "x_user", "evil"] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    assert!(head.contains("\r\nx-kept: a_b\r\n"), "{head}");
}

/// What a client sends behind an upgrade that is not granted is a request, or the end.
#[test]
fn bytes_behind_a_refused_upgrade_are_no_tunnel() {
    let (_gate, origin, to) = proxied();
    for upgrade in [
        "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        "upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA",
        "upgrade: x\r\nconnection: upgrade",
    ] {
        let before = origin.requests();
        let mut conn = Conn::open(to).unwrap();
        conn.send(format!(
            "GET /id HTTP/1.1\r\nhost: x\r\n{upgrade}\r\n\r\nGET /next/id HTTP/1.1\r\nhost: x\r\n\r\n"
        ))
        .unwrap();
        assert_eq!(conn.response().unwrap().text(), "A /id");
        match conn.response() {
            Ok(next) => assert_eq!(next.text(), "A /next/id"),
            Err(_) => assert_eq!(origin.requests(), before + 1),
        }
    }
}
