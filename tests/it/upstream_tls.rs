//! TLS towards origins: whom the proxy believes, who it says it is, and what a swap of either does to connections.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use crate::kit::authority::Authority;
use crate::kit::h2origin::{H2Origin, Ways};
use crate::kit::{Gate, free_port, get};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn origin(config: Arc<rustls::ServerConfig>) -> H2Origin {
    H2Origin::start(Ways {
        tls: Some(config),
        ..Ways::default()
    })
}

/// A server at `to` that sends all to `target`, with these lines of its upstream.
fn document(to: SocketAddr, target: SocketAddr, lines: &str) -> String {
    format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"o\"\n[upstreams.o]\ntargets = \"{target}\"\n{lines}\n"
    )
}

#[test]
fn only_a_target_that_proves_its_name_is_spoken_to() {
    let (ca, other) = (Authority::new(), Authority::new());
    let good = origin(Authority::server(
        &ca.issue(&["o.test", "127.0.0.1"]),
        &[],
        None,
    ));
    let expired = ca.issue_until(&["o.test"], 2020);
    let old = origin(Authority::server(&expired, &[], None));
    let to = local(free_port());
    let gate = Gate::setup()
        .file("ca.pem", ca.pem())
        .file("other.pem", other.pem())
        .start(&document(
            to,
            good.addr,
            "tls = { ca = \"ca.pem\", server_name = \"o.test\" }",
        ));
    let ask = || {
        let answer = get(to, "x", "/");
        let error = answer.header("proxy-status").map(str::to_owned);
        (answer.status, error)
    };
    assert_eq!(ask(), (200, None));
    let head = good.seen.heads.lock().unwrap().last().unwrap().clone();
    // Nothing but the name the target proves: `Host` stays the client's.
    assert!(head.contains("host: x\r\n"), "{head}");
    let refused = (
        502,
        Some("evergate; error=tls_certificate_error".to_owned()),
    );
    for (target, lines, expected) in [
        // The address is a name as well.
        (&good, "tls = { ca = \"ca.pem\" }", (200, None)),
        (
            &good,
            "tls = { ca = \"ca.pem\", server_name = \"p.test\" }",
            refused.clone(),
        ),
        (
            &good,
            "tls = { ca = \"other.pem\", server_name = \"o.test\" }",
            refused.clone(),
        ),
        // The system's CAs did not sign it.
        (&good, "tls = {}", refused.clone()),
        (&good, "tls = { insecure = true }", (200, None)),
        (
            &old,
            "tls = { ca = \"ca.pem\", server_name = \"o.test\" }",
            refused.clone(),
        ),
        (&old, "tls = { insecure = true }", (200, None)),
    ] {
        gate.reload_ok(&document(to, target.addr, lines));
        assert_eq!(ask(), expected, "{lines}");
    }
    // A URL is an upstream with the system's CAs.
    gate.reload_ok(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"https://{}/base\"\n",
        good.addr
    ));
    assert_eq!(ask(), refused);
    // No TLS at its other end.
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = plain.accept().unwrap();
        // Its client may have gone already.
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    gate.reload_ok(&document(to, address, "tls = { insecure = true }"));
    let (status, error) = ask();
    assert_eq!(status, 502);
    assert_eq!(error.as_deref(), Some("evergate; error=tls_protocol_error"));
}

#[test]
fn a_target_that_wants_to_know_who_asks_is_told() {
    let (ca, clients) = (Authority::new(), Authority::new());
    let issued = ca.issue(&["127.0.0.1"]);
    let origin = origin(Authority::server(
        &issued,
        &["h2", "http/1.1"],
        Some(&clients),
    ));
    let us = clients.issue(&["proxy.test"]);
    let to = local(free_port());
    let known = "tls = { ca = \"ca.pem\", client_cert = \"us.crt\", client_key = \"us.key\" }";
    let gate = Gate::setup()
        .file("ca.pem", ca.pem())
        .file("us.crt", us.cert)
        .file("us.key", us.key)
        .start(&document(to, origin.addr, known));
    assert_eq!(get(to, "x", "/").text(), "h1");
    for protocol in ["h1", "h2"] {
        let unknown = format!("tls = {{ ca = \"ca.pem\" }}\nprotocol = \"{protocol}\"");
        gate.reload_ok(&document(to, origin.addr, &unknown));
        let answer = get(to, "x", "/");
        assert_eq!(answer.status, 502, "{protocol}");
        // In TLS 1.3 the alert follows the handshake, and an origin that closes on it may reset what we write meanwhile.
        let error = answer.header("proxy-status").unwrap_or_default();
        let told =
            ["tls_alert_received", "connection_terminated"].map(|e| format!("evergate; error={e}"));
        assert!(told.iter().any(|t| t == error), "{protocol}: {error}");
    }
    gate.reload_ok(&document(
        to,
        origin.addr,
        &format!("{known}\nprotocol = \"h2\""),
    ));
    assert_eq!(get(to, "x", "/").text(), "h2 https x 0");
    gate.reload_ok(&document(to, origin.addr, known));
    assert_eq!(get(to, "x", "/").text(), "h1");
}

#[test]
fn connections_stay_over_swaps_until_what_they_were_made_under_changes() {
    let ca = Authority::new();
    let server = Authority::server(&ca.issue(&["127.0.0.1"]), &["http/1.1"], None);
    let origin = origin(server);
    let to = local(free_port());
    let lines = "tls = { ca = \"ca.pem\" }";
    // One worker: one pool.
    let gate = Gate::setup()
        .file("ca.pem", ca.pem())
        .start(&document(to, origin.addr, lines));
    let mut conn = crate::kit::Conn::open(to).unwrap();
    let mut ask = || {
        let answer = conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert_eq!(answer.text(), "h1");
    };
    ask();
    assert_eq!(origin.connections(), 1);
    for connect in ["4s", "5s", "6s"] {
        let more = format!("{lines}\ntimeouts.connect = \"{connect}\"");
        gate.reload_ok(&document(to, origin.addr, &more));
        ask();
    }
    assert_eq!(origin.connections(), 1);
    // The same CA and one more: other contents of the same file.
    let more = [ca.pem(), Authority::new().pem()].concat();
    std::fs::write(gate.dir.path().join("ca.pem"), more).unwrap();
    gate.reload_ok(&document(to, origin.addr, lines));
    ask();
    assert_eq!(origin.connections(), 2);
    // The pool that nobody can use any more is gone with its connection.
    gate.wait_status("one connection", |status| {
        status["upstreams"][0]["targets"][0]["connections"] == 1
    });
    assert_eq!(origin.seen.resumed.load(SeqCst), 0);
    gate.reload_ok(&document(
        to,
        origin.addr,
        &format!("{lines}\npool.idle = 0"),
    ));
    for _ in 0..3 {
        ask();
    }
    assert!(origin.seen.resumed.load(SeqCst) >= 2);
}

#[test]
fn what_is_wrong_with_files_and_keys_is_said_before_anything_moves() {
    let ca = Authority::new();
    let (one, two) = (ca.issue(&["a"]), ca.issue(&["b"]));
    let to = local(free_port());
    let good = document(to, local(9), "");
    let gate = Gate::setup()
        .file("ca.pem", ca.pem())
        .file("one.crt", one.cert)
        .file("two.key", two.key)
        .file("text.pem", "nothing")
        .start(&good);
    let refused = |lines: &str| gate.reload(&document(to, local(9), lines));
    for (lines, pointer) in [
        ("tls = { ca = \"lost.pem\" }", "/upstreams/o/tls/ca"),
        ("tls = { ca = \"text.pem\" }", "/upstreams/o/tls/ca"),
        (
            "tls = { client_cert = \"one.crt\", client_key = \"two.key\" }",
            "/upstreams/o/tls/client_key",
        ),
        (
            "tls = { client_cert = \"text.pem\", client_key = \"two.key\" }",
            "/upstreams/o/tls/client_cert",
        ),
    ] {
        let answer = refused(lines);
        assert_eq!(answer.pointers(), [pointer], "{lines}");
        answer.problem(409, "not-prepared");
    }
    for (lines, pointer) in [
        (
            "tls = { client_cert = \"one.crt\" }",
            "/upstreams/o/tls/client_cert",
        ),
        (
            "tls = { server_name = \"a b\" }",
            "/upstreams/o/tls/server_name",
        ),
        (
            "tls = { ca = \"ca.pem\", insecure = true }",
            "/upstreams/o/tls/ca",
        ),
        ("protocol = \"h2\"", "/upstreams/o/protocol"),
        ("protocol = \"h2c\"\ntls = {}", "/upstreams/o/protocol"),
    ] {
        let answer = refused(lines);
        assert_eq!(answer.pointers(), [pointer], "{lines}");
        answer.problem(422, "invalid-document");
    }
    assert_eq!(gate.reload(&good).expect(200)["outcome"], "unchanged");
}
