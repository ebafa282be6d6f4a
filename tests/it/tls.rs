//! HTTPS as clients see it: which certificate they get, in what they speak, and that a swap of certificates costs
//! nobody a handshake, a connection or a session.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;
use serde_json::json;

use crate::kit::tls::{Client, Pair, request};
use crate::kit::{Call, Conn, Gate, Origin, count, free_port, get, h2c, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A server `web` at `to` with the pair `site.crt`, `site.key`.
fn site(to: SocketAddr, more: &str, text: &str) -> String {
    format!(
        "[http.web]\nlisten = \"{to}\"\nrespond = \"{text}\"\n{more}\n\
         [http.web.tls]\ncertificates = {{ cert = \"site.crt\", key = \"site.key\" }}\n"
    )
}

fn put(gate: &Gate, pair: &Pair) {
    std::fs::write(gate.dir.path().join("site.crt"), &pair.cert).unwrap();
    std::fs::write(gate.dir.path().join("site.key"), &pair.key).unwrap();
}

fn start(pair: &Pair, document: &str) -> Gate {
    Gate::setup()
        .file("site.crt", pair.cert.clone())
        .file("site.key", pair.key.clone())
        .start(document)
}

#[test]
fn http1_in_both_versions_and_what_templates_see() {
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let gate = start(&pair, &site(to, "", "{scheme} {tls_version} {sni} {host}"));
    let client = Client::new();
    let mut conn = client.open(to, "a.test").unwrap();
    assert_eq!(conn.certificate(), pair.der);
    assert_eq!(conn.version(), ProtocolVersion::TLSv1_3);
    assert_eq!(conn.alpn(), None);
    for _ in 0..3 {
        let answer = conn.exchange(request("a.test", "/", "keep-alive")).unwrap();
        assert_eq!(answer.text(), "https TLSv1.3 a.test a.test");
    }
    // The end is told, so that the client knows that nothing was cut off.
    conn.exchange(request("a.test", "/", "close")).unwrap();
    assert_eq!(conn.stream.read(&mut [0; 16]).unwrap(), 0);

    let old = Client::versions(&[&rustls::version::TLS12]).without_name();
    assert_eq!(old.get(to, "x.test", "/").text(), "https TLSv1.2  x.test");
    let answer = gate.reload_ok(&site(to, "", "x").replace(
        "[http.web.tls]\n",
        "[http.web.tls]\nmin_version = \"1.3\"\n",
    ));
    assert_eq!(
        answer["plan"]["listeners"][0]["change"], "refresh",
        "{answer}"
    );
    assert!(old.open(to, "a.test").is_err());
    assert_eq!(client.get(to, "a.test", "/").text(), "x");
}

#[test]
fn the_protocol_is_chosen_by_alpn() {
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let gate = start(&pair, &site(to, "", "{scheme} {host}"));
    let chosen = |protocols: &[&str]| {
        let client = Client::new().alpn(protocols);
        client.open(to, "a.test").map(|conn| conn.alpn())
    };
    assert_eq!(chosen(&["http/1.1", "h2"]).unwrap().as_deref(), Some("h2"));
    assert_eq!(chosen(&["http/1.1"]).unwrap().as_deref(), Some("http/1.1"));
    assert_eq!(chosen(&["http/1.0"]).unwrap().as_deref(), Some("http/1.0"));
    assert!(chosen(&["spdy/3"]).is_err());
    gate.reload_ok(&site(to, "protocols = \"h1\"", "x"));
    assert_eq!(
        chosen(&["h2", "http/1.1"]).unwrap().as_deref(),
        Some("http/1.1")
    );
    assert!(chosen(&["h2"]).is_err());
    // HTTP/2 alone, to a client that offers nothing: there is no version they have in common.
    gate.reload_ok(&site(to, "protocols = \"h2\"", "x"));
    let mut conn = Client::new().open(to, "a.test").unwrap();
    // The reset may already be here.
    let _ = conn.send(request("a.test", "/", "close"));
    assert!(conn.response().is_err());
}

async fn open_h2(to: SocketAddr, name: &str) -> h2c::H2 {
    let config = Client::new().alpn(&["h2"]).config();
    let connector = tokio_rustls::TlsConnector::from(config);
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    h2c::H2::over(connector.connect(name, stream).await.unwrap()).await
}

#[test]
fn http2_with_many_streams_and_the_origin_learns_the_scheme() {
    let origin = Origin::start("o");
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let document = site(to, "", "x").replace(
        "respond = \"x\"",
        &format!("proxy = \"http://{}\"", origin.addr),
    );
    let _gate = start(&pair, &document);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = open_h2(to, "a.test").await;
        let mut streams = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let stream = client.stream();
            streams.spawn(async move {
                let (head, ..) = h2c::send(stream, "GET", "https://a.test/chunked", "")
                    .await
                    .unwrap();
                head.status.as_u16()
            });
        }
        while let Some(status) = streams.join_next().await {
            assert_eq!(status.unwrap(), 200);
        }
        let (_, body, _) = h2c::send(client.stream(), "GET", "https://a.test/head", "")
            .await
            .unwrap();
        let head = String::from_utf8_lossy(&body).to_lowercase();
        assert!(head.contains("x-forwarded-proto: https"), "{head}");
        assert!(head.contains("proto=https"), "{head}");
    });
}

#[test]
fn the_certificate_is_chosen_by_name_over_all_servers_of_the_address() {
    let to = local(free_port());
    let names: [&[&str]; 4] = [&["a.test"], &["*.b.test"], &["www.b.test"], &["any.test"]];
    let pairs = names.map(Pair::new);
    let mut setup = Gate::setup();
    for (index, pair) in pairs.iter().enumerate() {
        setup = setup
            .file(&format!("{index}.crt"), pair.cert.clone())
            .file(&format!("{index}.key"), pair.key.clone());
    }
    let document = format!(
        "[http.a]\nlisten = '{to}'\nhosts = 'a.test'\nrespond = 'a'\n\
         tls.certificates = [{{ cert = '0.crt', key = '0.key' }}, {{ cert = '2.crt', key = '2.key' }}]\n\
         [http.b]\nlisten = '{to}'\nhosts = ['*.b.test']\nrespond = 'b'\ntls.certificates = {{ cert = '1.crt', key = '1.key' }}\n\
         [http.any]\nlisten = '{to}'\nrespond = 'any'\ntls.certificates = {{ cert = '3.crt', key = '3.key' }}\n"
    );
    let _gate = setup.start(&document);
    for (name, index, text) in [
        ("a.test", 0, "a"),
        ("x.b.test", 1, "b"),
        ("www.b.test", 2, "b"),
        // The server without hosts is there for those that nobody knows.
        ("nobody.test", 3, "any"),
    ] {
        let mut conn = Client::new().open(to, name).unwrap();
        assert_eq!(conn.certificate(), pairs[index].der, "{name}");
        let answer = conn.exchange(request(name, "/", "close")).unwrap();
        assert_eq!(answer.text(), text, "{name}");
    }
    let mut conn = Client::new().without_name().open(to, "a.test").unwrap();
    assert_eq!(conn.certificate(), pairs[3].der);
    assert_eq!(
        conn.exchange(request("a.test", "/", "close"))
            .unwrap()
            .text(),
        "a"
    );

    // A connection made for one name does not do for another server, unless its certificate is good for both.
    let mut conn = Client::new().open(to, "a.test").unwrap();
    let mut ask = |host: &str| conn.exchange(request(host, "/", "keep-alive")).unwrap();
    assert_eq!(ask("x.b.test").status, 421);
    assert_eq!(ask("nobody.test").status, 421);
    assert_eq!(ask("A.test.").text(), "a");
    let mut conn = Client::new().open(to, "x.b.test").unwrap();
    let mut ask = |host: &str| conn.exchange(request(host, "/", "keep-alive")).unwrap();
    assert_eq!(ask("y.b.test").text(), "b");
    assert_eq!(ask("a.test").status, 421);
}

#[test]
fn a_folder_holds_certificates_that_come_and_go() {
    let to = local(free_port());
    let gate = Gate::start("");
    let certs = gate.dir.path().join("certs");
    std::fs::create_dir(&certs).unwrap();
    let document = format!(
        "[http.web]\nlisten = \"{to}\"\nrespond = \"x\"\ntls = {{ certificates = {{ dir = \"certs\" }} }}\n"
    );
    let refused = gate.reload(&document);
    assert_eq!(refused.pointers(), ["/http/web/tls/certificates/0/dir"]);
    refused.problem(409, "not-prepared");
    let write = |name: &str, pair: &Pair| {
        std::fs::write(certs.join(format!("{name}.crt")), &pair.cert).unwrap();
        std::fs::write(certs.join(format!("{name}.key")), &pair.key).unwrap();
    };
    let (one, two) = (Pair::new(&["one.test"]), Pair::new(&["two.test"]));
    write("one", &one);
    gate.reload_ok(&document);
    assert_eq!(gate.reload(&document).expect(200)["outcome"], "unchanged");
    let given = |name: &str| Client::new().open(to, name).unwrap().certificate();
    assert_eq!(
        (given("one.test"), given("two.test")),
        (one.der.clone(), one.der.clone())
    );
    write("two", &two);
    gate.reload(&document).expect(200);
    assert_eq!(
        (given("one.test"), given("two.test")),
        (one.der.clone(), two.der)
    );
    std::fs::remove_file(certs.join("two.key")).unwrap();
    let refused = gate.reload(&document);
    let problem = refused.problem(409, "not-prepared");
    let message = problem["errors"][0]["message"].as_str().unwrap();
    assert!(
        message.contains("two.crt is there without two.key"),
        "{problem}"
    );
    std::fs::remove_file(certs.join("two.crt")).unwrap();
    gate.reload(&document).expect(200);
    assert_eq!(given("two.test"), one.der);
}

#[test]
fn a_bad_pair_is_refused_with_its_place_and_nothing_changes() {
    let (to, pair, other) = (
        local(free_port()),
        Pair::new(&["a.test"]),
        Pair::new(&["a.test"]),
    );
    let document = site(to, "", "one");
    let gate = start(&pair, &document);
    let before = gate.etag();
    std::fs::write(gate.dir.path().join("site.key"), &other.key).unwrap();
    for target in ["/reload", "/adapt"] {
        let answer = gate.call(Call::post(target).toml(&gate.document(&document)));
        assert_eq!(answer.pointers(), ["/http/web/tls/certificates/0/key"]);
        let problem = answer.problem(409, "not-prepared");
        let error = &problem["errors"][0];
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("is not the key of"), "{problem}");
        assert!(error["line"].is_u64(), "{problem}");
    }
    std::fs::remove_file(gate.dir.path().join("site.crt")).unwrap();
    let answer = gate.reload(&document);
    assert_eq!(answer.pointers(), ["/http/web/tls/certificates/0/cert"]);
    assert_eq!(gate.etag(), before);
    let conn = Client::new().open(to, "a.test").unwrap();
    assert_eq!(conn.certificate(), pair.der);
    // Servers of one address are all HTTPS or none is.
    put(&gate, &pair);
    let both =
        format!("{document}\n[http.plain]\nlisten = '{to}'\nhosts = 'p.test'\nrespond = 'p'\n");
    let answer = gate.reload(&both);
    assert_eq!(answer.status, 422);
    assert_eq!(
        answer.pointers(),
        ["/http/web/tls", "/http/plain"],
        "{}",
        answer.text()
    );
}

#[test]
fn check_judges_certificates_without_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let (pair, other) = (Pair::new(&["a.test"]), Pair::new(&["a.test"]));
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("evergate.toml", &site(local(1), "", "x"));
    write("site.crt", &pair.cert);
    let check = || {
        let output = Command::new(env!("CARGO_BIN_EXE_evergate"))
            .args(["check", "-c"])
            .arg(dir.path().join("evergate.toml"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    for (key, code, word) in [(&other.key, 5, "is not the key of"), (&pair.key, 0, "")] {
        write("site.key", key);
        let (status, text) = check();
        assert_eq!(status, Some(code), "{text}");
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn a_key_in_the_document_is_a_secret_that_comes_back_redacted() {
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let gate = Gate::start("");
    let mut document = gate.now().json();
    document["http"] = json!({ "web": {
        "listen": to.to_string(), "respond": "x",
        "tls": { "certificates": { "cert": pair.cert, "key": pair.key } }
    } });
    let answer = gate.call(Call::post("/reload").json(&document)).expect(200);
    assert_eq!(answer["outcome"], "committed", "{answer}");
    let now = gate.now().json();
    let shown = &now["http"]["web"]["tls"]["certificates"][0];
    assert_eq!(shown["key"], "<redacted>");
    assert_eq!(shown["cert"], pair.cert);
    // Read, edited, posted back: the key stays.
    let mut edited = now.clone();
    edited["http"]["web"]["respond"] = json!("y");
    gate.call(Call::post("/reload").json(&edited)).expect(200);
    let mut conn = Client::new().open(to, "a.test").unwrap();
    assert_eq!(conn.certificate(), pair.der);
    assert_eq!(
        conn.exchange(request("a.test", "/", "close"))
            .unwrap()
            .text(),
        "y"
    );
    assert!(!gate.output().contains("PRIVATE KEY"));
}

#[test]
fn cleartext_clients_are_redirected_in_one_line() {
    let (to, from, pair) = (
        local(free_port()),
        local(free_port()),
        Pair::new(&["a.test"]),
    );
    let document = format!(
        "{}redirect_http = \"{from}\"\n",
        site(to, "hosts = \"a.test\"", "x")
    );
    let gate = start(&pair, &document);
    let answer = get(from, "a.test:80", "/path?query=1");
    assert_eq!(answer.status, 308);
    let location = format!("https://a.test:{}/path?query=1", to.port());
    assert_eq!(answer.header("location"), Some(location.as_str()));
    assert_eq!(get(from, "other.test", "/").status, 404);
    // An address that cannot be had is told at the line that names it.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = taken.local_addr().unwrap().to_string();
    let answer = gate.reload(&document.replace(&from.to_string(), &other));
    assert_eq!(
        answer.pointers(),
        ["/http/web/tls/redirect_http/0"],
        "{}",
        answer.text()
    );
    // Another plain server may stand at the same address.
    let more = format!("[http.plain]\nlisten = '{from}'\nhosts = 'p.test'\nrespond = 'p'\n");
    gate.reload_ok(&format!("{document}{more}"));
    assert_eq!(get(from, "p.test", "/").text(), "p");
    assert_eq!(get(from, "a.test", "/").status, 308);
}

#[test]
fn a_certificate_is_replaced_under_handshakes_and_none_fails() {
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let document = site(to, "", "x");
    let gate = start(&pair, &document);
    let stop = Arc::new(AtomicBool::new(false));
    let handshakes = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, handshakes) = (stop.clone(), handshakes.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // A new client each time: no session, a whole handshake.
                    let answer = Client::new().get(to, "a.test", "/");
                    assert_eq!(answer.text(), "x");
                    handshakes.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut kept = Client::new().open(to, "a.test").unwrap();
    // Connected before each swap, silent until after it: the certificate is that of the hello's moment.
    for _ in 0..count(50, 20) {
        let next = Pair::new(&["a.test"]);
        put(&gate, &next);
        let early = TcpStream::connect(to).unwrap();
        let before = handshakes.load(Ordering::Relaxed);
        // Committed, or unchanged: the look at the files may have come first.
        gate.call(Call::post("/reload")).expect(200);
        assert_eq!(
            Client::new().open(to, "a.test").unwrap().certificate(),
            next.der
        );
        assert_eq!(
            Client::new().over(early, "a.test").unwrap().certificate(),
            next.der
        );
        let answer = kept.exchange(request("a.test", "/", "keep-alive")).unwrap();
        assert_eq!(answer.text(), "x");
        until("handshakes to go on", || {
            (handshakes.load(Ordering::Relaxed) > before).then_some(())
        });
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no handshake fails");
    }
    assert_eq!(kept.certificate(), pair.der);
}

#[test]
fn sessions_are_resumed_across_swaps() {
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let gate = start(&pair, &site(to, "", "one"));
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let client = Client::versions(&[version]);
        let visit = || {
            let mut conn = client.open(to, "a.test").unwrap();
            conn.exchange(request("a.test", "/", "close")).unwrap();
            conn.is_resumed()
        };
        assert!(!visit());
        assert!(visit());
        for text in ["two", "three"] {
            put(&gate, &Pair::new(&["a.test"]));
            gate.reload_drained(&site(to, "", text));
            assert!(visit(), "after the swap to {text}");
        }
        // Connection settings too.
        gate.reload_ok(&site(to, "limits.headers = 50", "one"));
        assert!(visit());
        gate.reload_ok(&site(to, "", "one"));
    }
}

#[test]
fn a_silent_or_nonsensical_client_is_let_go() {
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let gate = start(&pair, &site(to, "timeouts.header = \"300ms\"", "x"));
    // Nothing at all; a hello that does not end; cleartext.
    let hello = [22, 3, 1, 2, 0, 1, 0, 1, 0xfc];
    for bytes in [&b""[..], &hello, b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n"] {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(crate::kit::PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // A reset ends it as well.
        let _ = stream.read_to_end(&mut answer);
        // At most an alert.
        assert!(answer.len() <= 7, "{answer:?}");
    }
    // A handshake, then nothing; half a head.
    for bytes in ["", "GET / HTTP/1.1\r\nhos"] {
        let mut conn = Client::new().open(to, "a.test").unwrap();
        conn.send(bytes).unwrap();
        match conn.response() {
            Ok(answer) => assert_eq!(answer.status, 408),
            Err(_) => assert!(bytes.is_empty()),
        }
    }
    gate.wait_status("no connection to be left", |s| {
        s["listeners"][0]["connections"] == 0
    });
    assert_eq!(Client::new().get(to, "a.test", "/").text(), "x");
}

#[test]
fn an_address_becomes_https_and_cleartext_again() {
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let plain = format!("[http.web]\nlisten = \"{to}\"\nrespond = \"plain\"\n");
    let gate = start(&pair, &plain);
    let mut kept = Conn::open(to).unwrap();
    assert_eq!(
        kept.exchange(request("a.test", "/", "keep-alive"))
            .unwrap()
            .text(),
        "plain"
    );
    gate.reload_ok(&site(to, "", "secure"));
    // The old connection is asked to finish: one more request, which is told so.
    let answer = kept.exchange(request("a.test", "/", "keep-alive")).unwrap();
    assert_eq!(
        (answer.text().as_str(), answer.header("connection")),
        ("secure", Some("close"))
    );
    assert_eq!(Client::new().get(to, "a.test", "/").text(), "secure");
    let mut kept = Client::new().open(to, "a.test").unwrap();
    gate.reload_ok(&plain);
    let answer = kept.exchange(request("a.test", "/", "keep-alive")).unwrap();
    assert_eq!(
        (answer.text().as_str(), answer.header("connection")),
        ("plain", Some("close"))
    );
    assert_eq!(get(to, "a.test", "/").text(), "plain");
}

#[test]
fn a_large_body_is_whole_across_a_swap() {
    let origin = Origin::start("o");
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let document = site(to, "", "x").replace(
        "respond = \"x\"",
        &format!("proxy = \"http://{}\"", origin.addr),
    );
    let gate = start(&pair, &document);
    let mut conn = Client::new().open(to, "a.test").unwrap();
    conn.send(request("a.test", "/download?bytes=8000000", "keep-alive"))
        .unwrap();
    let head = conn.response_head().unwrap();
    assert_eq!(head.status, 200, "{}", head.head.text);
    // In the middle of it the certificate changes and the server's text with it.
    put(&gate, &Pair::new(&["a.test"]));
    gate.reload_ok(&site(to, "", "x"));
    let mut bytes = 0;
    conn.body(head.head.is_chunked(), head.head.length(), |piece| {
        bytes += piece.len()
    })
    .unwrap();
    assert_eq!(bytes, 8_000_000);
    assert_eq!(
        conn.exchange(request("a.test", "/", "close"))
            .unwrap()
            .text(),
        "x"
    );
}

#[test]
fn a_client_that_takes_nothing_is_let_go() {
    let origin = Origin::start("o");
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let document = site(to, "timeouts.write = \"300ms\"", "x").replace(
        "respond = \"x\"",
        &format!("proxy = \"http://{}\"", origin.addr),
    );
    let gate = start(&pair, &document);
    for (before, protocol) in ["http/1.1", "h2"].into_iter().enumerate() {
        let client = Client::new().alpn(&[protocol]);
        let mut conn = client.open(to, "a.test").unwrap();
        match protocol {
            "h2" => {
                // Preface, settings with a window of 2^31-1 for streams and the connection, one request.
                let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
                bytes.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff]);
                bytes.extend([0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0, 0]);
                // HPACK: GET, https, then literals without indexing for :authority and :path.
                let mut block = vec![0x82, 0x87, 0x01, 6];
                block.extend(b"a.test");
                let path = b"/download?bytes=50000000";
                block.extend([0x04, path.len() as u8]);
                block.extend(path);
                bytes.extend([0, 0, block.len() as u8, 1, 5, 0, 0, 0, 1]);
                bytes.extend(block);
                conn.send(bytes).unwrap();
            }
            _ => conn
                .send(request("a.test", "/download?bytes=50000000", "close"))
                .unwrap(),
        }
        // It reads nothing more. First the request is there, then it is gone.
        until("the request to reach the origin", || {
            (origin.requests() > before as u64).then_some(())
        });
        gate.wait_status("the connection to be let go", |s| {
            s["listeners"][0]["connections"] == 0
        });
        drop(conn);
    }
}

/// An origin that takes one websocket and sends back every byte.
fn echo() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut conn = Conn::over(listener.accept().unwrap().0).unwrap();
        let head = conn.head().unwrap().unwrap();
        assert_eq!(
            head.get("x-forwarded-proto"),
            Some("https"),
            "{}",
            head.text
        );
        conn.send(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        )
        .unwrap();
        while let Ok(bytes) = conn.some(1 << 16) {
            if bytes.is_empty() || conn.send(bytes).is_err() {
                break;
            }
        }
    });
    addr
}

#[test]
fn a_websocket_outlives_its_certificate_and_is_told_when_its_route_goes() {
    let (to, pair) = (local(free_port()), Pair::new(&["a.test"]));
    let document =
        site(to, "", "x").replace("respond = \"x\"", &format!("proxy = \"http://{}\"", echo()));
    let gate = start(&pair, &document);
    let mut conn = Client::new()
        .alpn(&["http/1.1"])
        .open(to, "a.test")
        .unwrap();
    conn.send(
        "GET / HTTP/1.1\r\nhost: a.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .unwrap();
    assert_eq!(conn.response_head().unwrap().status, 101);
    // Binary frames with a mask of zeros; a large one is more than TLS takes at once.
    let mut exchange = |size: usize| {
        let mut frame = vec![0x82, 0xff];
        frame.extend((size as u64).to_be_bytes());
        frame.extend([0; 4]);
        frame.extend((0..size).map(|i| i as u8));
        let mut back = Vec::new();
        for piece in frame.chunks(32 * 1024) {
            conn.send(piece).unwrap();
            let until = back.len() + piece.len();
            while back.len() < until {
                back.extend(conn.some(until - back.len()).unwrap());
            }
        }
        assert!(
            back == frame,
            "the frame of {size} bytes came back otherwise"
        );
    };
    exchange(5);
    for _ in 0..3 {
        put(&gate, &Pair::new(&["a.test"]));
        gate.reload_ok(&format!(
            "{document}[upstreams.other{}]\ntargets = \"127.0.0.1:9\"\n",
            free_port()
        ));
        exchange(1_000_000);
    }
    gate.call(Call::post("/reload?drain_timeout=0s").toml(&gate.document(&site(to, "", "x"))))
        .expect(200);
    // Going Away, and the end of TLS as well.
    let close = [0x88, 2, 0x03, 0xe9];
    let mut last = Vec::new();
    while last.len() < close.len() {
        let some = conn.some(16).unwrap();
        assert!(!some.is_empty(), "{last:?}");
        last.extend(some);
    }
    assert_eq!(last, close);
    assert_eq!(conn.stream.read(&mut [0; 16]).unwrap(), 0);
}

#[test]
fn curl_speaks_it() {
    let to = local(free_port());
    let document = format!(
        "[http.web]\nlisten = \"{to}\"\nrespond = \"{{scheme}} {{host}}\"\ntls = {{ self_signed = [\"localhost\", \"127.0.0.1\"] }}\n"
    );
    let _gate = Gate::start(&document);
    let Ok(output) = Command::new("curl")
        .args(["-sSk", "--max-time", "20", "-w", " %{http_version}"])
        .arg(format!("https://{to}/"))
        .output()
    else {
        return; // no curl here
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text == "https 127.0.0.1 2" || text == "https 127.0.0.1 1.1",
        "{text}"
    );
}
