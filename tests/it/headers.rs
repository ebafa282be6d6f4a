//! What the origin and the client get to see: hop-by-hop fields end here, forwarding fields are ours, Host stays,
//! ambiguous requests do not pass.

use std::net::SocketAddr;

use crate::kit::{Conn, Gate, Origin, free_port, get};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn proxied(server: &str, action: &str) -> (Gate, Origin, SocketAddr) {
    let origin = Origin::start("A");
    let to = local(free_port());
    let action = action.replace("ORIGIN", &origin.addr.to_string());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\n{server}\nproxy = {action}\n"
    ));
    (gate, origin, to)
}

/// The head that the origin saw, lower case.
fn seen(to: SocketAddr, fields: &str) -> String {
    let mut conn = Conn::open(to).unwrap();
    let answer = conn
        .exchange(format!("GET /head HTTP/1.1\r\n{fields}\r\n"))
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text().to_lowercase()
}

#[test]
fn hop_by_hop_fields_of_a_request_end_here() {
    let (_gate, _origin, to) = proxied("", "\"http://ORIGIN\"");
    let head = seen(
        to,
        "host: x\r\nconnection: x-mine, keep-alive\r\nx-mine: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\n\
         proxy-authorization: Basic x\r\nte: trailers, deflate\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\nx-end: 1\r\n",
    );
    for gone in [
        "x-mine",
        "keep-alive:",
        "proxy-connection",
        "proxy-authorization",
        "upgrade:",
        "http2-settings",
        "deflate",
    ] {
        assert!(!head.contains(gone), "{gone} reached the origin: {head}");
    }
    assert!(head.contains("\r\nx-end: 1\r\n"), "{head}");
}

#[test]
fn connection_cannot_name_what_belongs_to_the_message() {
    let (_gate, _origin, to) = proxied("", "\"http://ORIGIN\"");
    let head = seen(
        to,
        "host: x\r\nconnection: host, x-forwarded-for, authorization, cookie, content-length\r\nauthorization: Basic x\r\ncookie: a=b\r\n",
    );
    for kept in [
        "\r\nhost: x\r\n",
        "\r\nx-forwarded-for: 127.0.0.1\r\n",
        "\r\nauthorization: basic x\r\n",
        "\r\ncookie: a=b\r\n",
    ] {
        assert!(head.contains(kept), "{kept:?} is missing: {head}");
    }
}

#[test]
fn hop_by_hop_fields_of_a_response_end_here() {
    let (_gate, _origin, to) = proxied("", "\"http://ORIGIN\"");
    let answer = Conn::open(to)
        .unwrap()
        .exchange("GET /fields HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    for gone in ["x-hop", "keep-alive", "proxy-authenticate", "connection"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }
    assert_eq!(answer.header("x-end"), Some("1"));
    assert_eq!(answer.head.all("set-cookie"), ["a=1", "b=2"]);
}

#[test]
fn forwarding_fields_replace_what_an_untrusted_client_sent() {
    let (_gate, _origin, to) = proxied("", "\"http://ORIGIN\"");
    let head = seen(
        to,
        "host: some.host\r\nforwarded: for=1.2.3.4\r\nx-forwarded-for: 1.2.3.4\r\nx-forwarded-host: evil\r\nx-forwarded-proto: https\r\nx-real-ip: 1.2.3.4\r\n",
    );
    assert!(
        !head.contains("1.2.3.4") && !head.contains("evil"),
        "{head}"
    );
    assert!(
        head.contains("\r\nx-forwarded-for: 127.0.0.1\r\n"),
        "{head}"
    );
    assert!(
        head.contains("\r\nx-forwarded-host: some.host\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nx-forwarded-proto: http\r\n"), "{head}");
    let forwarded = head.lines().find(|l| l.starts_with("forwarded:")).unwrap();
    assert!(
        forwarded.contains("for=127.0.0.1") && forwarded.contains("proto=http"),
        "{forwarded}"
    );
    assert!(
        forwarded.contains("host=some.host") || forwarded.contains("host=\"some.host\""),
        "{forwarded}"
    );
}

#[test]
fn forwarding_fields_of_a_trusted_proxy_are_appended_to() {
    let (_gate, _origin, to) = proxied("trusted_proxies = [\"127.0.0.0/8\"]", "\"http://ORIGIN\"");
    let head = seen(
        to,
        "host: x\r\nx-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\nforwarded: for=1.2.3.4;proto=https\r\n",
    );
    assert!(
        head.contains("\r\nx-forwarded-for: 1.2.3.4, 127.0.0.1\r\n"),
        "{head}"
    );
    let forwarded = head.lines().find(|l| l.starts_with("forwarded:")).unwrap();
    assert!(
        forwarded.contains("for=1.2.3.4") && forwarded.contains("for=127.0.0.1"),
        "{forwarded}"
    );
}

#[test]
fn the_client_address_behind_a_trusted_proxy_is_the_forwarded_one() {
    let to = local(free_port());
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\ntrusted_proxies = [\"127.0.0.1/32\", \"10.0.0.0/8\"]\nrespond = \"{{client_ip}}\"\n"
    ));
    for (sent, wanted) in [
        ("", "127.0.0.1"),
        ("x-forwarded-for: 1.2.3.4\r\n", "1.2.3.4"),
        // From the right: what our own proxies added is skipped, what came before it is not believed.
        ("x-forwarded-for: 9.9.9.9, 1.2.3.4, 10.0.0.7\r\n", "1.2.3.4"),
    ] {
        let answer = Conn::open(to)
            .unwrap()
            .exchange(format!("GET / HTTP/1.1\r\nhost: x\r\n{sent}\r\n"))
            .unwrap();
        assert_eq!(answer.text(), wanted, "{sent}");
    }
}

#[test]
fn host_is_kept_unless_asked_otherwise() {
    let (_gate, _origin, to) = proxied("", "\"http://ORIGIN\"");
    assert!(seen(to, "host: Some.Host:81\r\n").contains("\r\nhost: some.host:81\r\n"));
    let (_gate, origin, to) = proxied(
        "",
        "{ upstream = \"http://ORIGIN\", host_header = \"upstream\" }",
    );
    assert!(seen(to, "host: some.host\r\n").contains(&format!("\r\nhost: {}\r\n", origin.addr)));
    let (_gate, _origin, to) = proxied(
        "",
        "{ upstream = \"http://ORIGIN\", host_header = \"fixed.test\" }",
    );
    assert!(seen(to, "host: some.host\r\n").contains("\r\nhost: fixed.test\r\n"));
}

#[test]
fn the_absolute_form_replaces_host() {
    let (_gate, _origin, to) = proxied("", "\"http://ORIGIN\"");
    let answer = Conn::open(to)
        .unwrap()
        .exchange("GET http://real.test/head HTTP/1.1\r\nhost: other\r\n\r\n")
        .unwrap();
    let head = answer.text().to_lowercase();
    assert!(
        head.starts_with("get /head http/1.1\r\n") && head.contains("\r\nhost: real.test\r\n"),
        "{head}"
    );
    assert!(!head.contains("other"), "{head}");
}

#[test]
fn the_proxy_names_itself_in_via_or_not_but_never_loops() {
    let to = local(free_port());
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"http://{to}\"\n"
    ));
    let answer = get(to, "x", "/");
    assert!(
        matches!(answer.status, 502 | 503 | 508),
        "{}",
        answer.status
    );
}

/// What two parties could read in two ways does not pass.
#[test]
fn ambiguous_requests_are_refused_and_never_reach_the_origin() {
    let (_gate, origin, to) = proxied("", "\"http://ORIGIN\"");
    let cases = [
        ("no Host", "GET /id HTTP/1.1\r\n\r\n"),
        (
            "two Hosts",
            "GET /id HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        ),
        (
            "a Host with a space",
            "GET /id HTTP/1.1\r\nhost: a b\r\n\r\n",
        ),
        (
            "a Host with a path",
            "GET /id HTTP/1.1\r\nhost: a/b\r\n\r\n",
        ),
        (
            "two lengths",
            "POST /id HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        ),
        (
            "a signed length",
            "POST /id HTTP/1.1\r\nhost: x\r\ncontent-length: +3\r\n\r\nabc",
        ),
        (
            "a hexadecimal length",
            "POST /id HTTP/1.1\r\nhost: x\r\ncontent-length: 0x3\r\n\r\nabc",
        ),
        (
            "a list of lengths",
            "POST /id HTTP/1.1\r\nhost: x\r\ncontent-length: 3, 4\r\n\r\nabc",
        ),
        (
            "chunked not last",
            "POST /id HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        ),
        (
            "an unknown coding",
            "POST /id HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a space before the colon",
            "GET /id HTTP/1.1\r\nhost: x\r\nx-a : 1\r\n\r\n",
        ),
        (
            "an empty name",
            "GET /id HTTP/1.1\r\nhost: x\r\n: 1\r\n\r\n",
        ),
        (
            "a folded line",
            "GET /id HTTP/1.1\r\nhost: x\r\nx-a: 1\r\n  2\r\n\r\n",
        ),
        ("a NUL", "GET /id HTTP/1.1\r\nhost: x\r\nx-a: 1\0\r\n\r\n"),
        (
            "a version of the future",
            "GET /id HTTP/3.7\r\nhost: x\r\n\r\n",
        ),
        (
            "CONNECT",
            "CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n",
        ),
    ];
    for (what, text) in cases {
        let before = origin.requests();
        let mut conn = Conn::open(to).unwrap();
        match conn.exchange(text) {
            Ok(answer) => assert!(
                (400..600).contains(&answer.status) && answer.status != 502,
                "{what}: {}",
                answer.status
            ),
            // Closing without a word is safe too, where no answer could be understood.
            Err(e) => assert!(
                e.kind() != std::io::ErrorKind::WouldBlock,
                "{what}: left hanging"
            ),
        }
        assert_eq!(origin.requests(), before, "{what} reached the origin");
    }
    assert_eq!(get(to, "x", "/id").text(), "A /id");
}

/// Both lengths: at best 400; at least the connection ends, so that nothing can hide behind it.
#[test]
fn content_length_with_chunked_never_smuggles() {
    let (_gate, origin, to) = proxied("", "\"http://ORIGIN\"");
    let mut conn = Conn::open(to).unwrap();
    conn.send(
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n\
         GET /smuggled/id HTTP/1.1\r\nhost: x\r\n\r\n",
    )
    .unwrap();
    let first = conn.response().unwrap();
    assert!(matches!(first.status, 200 | 400), "{}", first.status);
    assert!(
        conn.closed(),
        "the connection goes on after an ambiguous request"
    );
    assert!(origin.requests() <= 1);
}

#[test]
fn a_broken_chunk_of_the_client_is_its_own_fault() {
    let (_gate, _origin, to) = proxied("", "\"http://ORIGIN\"");
    let mut conn = Conn::open(to).unwrap();
    let answer = conn
        .exchange(
            "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        )
        .unwrap();
    assert_eq!(answer.status, 400);
}
