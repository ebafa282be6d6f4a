//! `[forward]` by HTTP: CONNECT and requests for whole URLs, over HTTP/1, HTTP/2 and TLS; who may go where, what reaches
//! the origin and what does not, and passages over swaps.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::kit::origin::Origin;
use crate::kit::tls::{Authority, Client, Pair};
use crate::kit::{Conn, Gate, PATIENCE, free_port, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn proxy(listen: SocketAddr, more: &str) -> String {
    format!(
        "[forward.office]\nlisten = \"{listen}\"\ndestinations.allow = [\"127.0.0.0/8\", \"::1/128\"]\n{more}\n"
    )
}

/// Echoes until the end.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut write = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut &stream, &mut write);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    addr
}

/// The head of the answer to a CONNECT, and the stream after it.
fn connect(proxy: SocketAddr, to: &str, more: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{more}\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    (stream, String::from_utf8(head).unwrap())
}

fn exchange(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut got = vec![0; text.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, text.as_bytes());
}

/// `alice:sesame`.
const ALICE: &str = "Proxy-Authorization: Basic YWxpY2U6c2VzYW1l\r\n";

#[test]
fn connect_joins_with_addresses_and_names_and_ends_side_by_side() {
    let (origin, listen) = (echo(), local(free_port()));
    let _gate = Gate::start(&proxy(listen, ""));
    for to in [origin.to_string(), format!("LocalHost:{}", origin.port())] {
        let (mut stream, head) = connect(listen, &to, "");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let framed = head.to_ascii_lowercase();
        assert!(
            !framed.contains("content-length") && !framed.contains("transfer-encoding"),
            "{head}"
        );
        exchange(&mut stream, "over http");
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
    // As some clients write it.
    let six = TcpListener::bind("[::1]:0").unwrap();
    let port = six.local_addr().unwrap().port();
    for to in [format!("[::1]:{port}"), format!("::1:{port}")] {
        let (mut stream, head) = connect(listen, &to, "");
        assert!(head.starts_with("HTTP/1.1 200 "), "{to}: {head}");
        let (mut origin, _) = six.accept().unwrap();
        stream.write_all(b"six").unwrap();
        let mut got = [0; 3];
        origin.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"six");
    }
    // What follows the request at once, as clients do that trust the answer; without `Host`, as old ones do.
    let mut stream = TcpStream::connect(listen).unwrap();
    write!(stream, "CONNECT {origin} HTTP/1.1\r\n\r\nearly").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all.ends_with("\r\n\r\nearly"), "{all}");
}

#[test]
fn whole_urls_go_to_their_own_origins_on_one_connection() {
    let (a, b, listen) = (Origin::start("a"), Origin::start("b"), local(free_port()));
    let _gate = Gate::start(&proxy(listen, "users = { alice = \"sesame\" }"));
    let mut conn = Conn::open(listen).unwrap();
    for (origin, name) in [(&a, "a"), (&b, "b"), (&a, "a")] {
        let url = format!("http://{}/x//../%ff/who?q", origin.addr);
        let answer = conn
            .exchange(format!(
                "GET {url} HTTP/1.1\r\nHost: wrong.test\r\n{ALICE}\r\n"
            ))
            .unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.text(), format!("{name} /x//../%ff/who?q"));
    }
    let fields = "Proxy-Connection: keep-alive\r\nConnection: x-hop\r\nX-Hop: 1\r\nX_End: 1\r\nX-Forwarded-For: 10.9.8.7\r\nTE: trailers\r\n";
    let url = format!("http://{}/head", a.addr);
    let answer = conn
        .exchange(format!(
            "GET {url} HTTP/1.1\r\nHost: wrong.test\r\n{ALICE}{fields}\r\n"
        ))
        .unwrap();
    let head = answer.text().to_ascii_lowercase();
    for gone in ["proxy-", "x-hop", "wrong.test", "sesame"] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    for kept in [
        "get /head http/1.1\r\n".to_owned(),
        format!("host: {}\r\n", a.addr),
        "via: 1.1 evergate\r\n".to_owned(),
        "x_end: 1\r\n".to_owned(),
        "x-forwarded-for: 10.9.8.7\r\n".to_owned(),
    ] {
        assert!(head.contains(&kept), "{kept}: {head}");
    }
    // A body each way, in chunks.
    let url = format!("http://{}/echo", b.addr);
    let answer = conn
        .exchange(format!(
            "POST {url} HTTP/1.1\r\nHost: x\r\n{ALICE}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        ))
        .unwrap();
    assert_eq!(answer.text(), "hello");
    let url = format!("http://{}/chunked", b.addr);
    let answer = conn
        .exchange(format!("GET {url} HTTP/1.1\r\nHost: x\r\n{ALICE}\r\n"))
        .unwrap();
    assert_eq!(answer.text(), "hello world");
    let url = format!("http://{}/fields", b.addr);
    let answer = conn
        .exchange(format!("GET {url} HTTP/1.1\r\nHost: x\r\n{ALICE}\r\n"))
        .unwrap();
    assert_eq!(answer.header("x-end"), Some("1"));
    for gone in ["x-hop", "keep-alive", "proxy-authenticate"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }
}

#[test]
fn a_body_for_a_whole_url_goes_no_faster_than_the_bandwidth_either_way() {
    let (origin, listen) = (Origin::start("a"), local(free_port()));
    let _gate = Gate::start(&proxy(listen, "limits.bandwidth = \"200kB/s\""));
    let url = format!("http://{}/hash", origin.addr);
    let mut conn = Conn::open(listen).unwrap();
    let body = vec![7; 164_000];
    let begun = std::time::Instant::now();
    let head = format!("POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 164000\r\n\r\n");
    let answer = conn.exchange([head.as_bytes(), &body].concat()).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    // What is beyond the burst takes its time.
    let took = begun.elapsed().as_millis();
    assert!(took >= 450, "{took} ms");
    let begun = std::time::Instant::now();
    let url = format!("http://{}/download?bytes=164000", origin.addr);
    let answer = conn
        .exchange(format!("GET {url} HTTP/1.1\r\nHost: x\r\n\r\n"))
        .unwrap();
    assert_eq!(answer.body.len(), 164_000);
    let took = begun.elapsed().as_millis();
    assert!(took >= 450, "{took} ms");
}

#[test]
fn users_are_asked_each_time_and_nothing_is_dialled_before() {
    let (origin, listen) = (Origin::start("a"), local(free_port()));
    let _gate = Gate::start(&proxy(listen, "users = { alice = \"sesame\" }"));
    let mut conn = Conn::open(listen).unwrap();
    let wrong = "Proxy-Authorization: Basic YWxpY2U6Z3Vlc3M=\r\n";
    let url = format!("http://{}/who", origin.addr);
    for fields in ["", wrong, "Authorization: Basic YWxpY2U6c2VzYW1l\r\n"] {
        let answer = conn
            .exchange(format!("GET {url} HTTP/1.1\r\nHost: x\r\n{fields}\r\n"))
            .unwrap();
        assert_eq!(answer.status, 407);
        let challenge = answer.header("proxy-authenticate").unwrap();
        assert!(challenge.starts_with("Basic realm="), "{challenge}");
        let (_, head) = connect(listen, &origin.addr.to_string(), fields);
        assert!(head.starts_with("HTTP/1.1 407 "), "{head}");
    }
    assert_eq!(origin.connections(), 0);
    // The connection is as good as before; nobody is remembered.
    let request = |fields| format!("GET {url} HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    assert_eq!(conn.exchange(request(ALICE)).unwrap().status, 200);
    assert_eq!(conn.exchange(request("")).unwrap().status, 407);
    let (mut stream, head) = connect(listen, &echo().to_string(), ALICE);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    exchange(&mut stream, "let in");
}

#[test]
fn what_is_not_allowed_or_not_there_is_told_apart() {
    let (origin, listen) = (Origin::start("a"), local(free_port()));
    let nobody = free_port();
    let gate = Gate::start(&format!(
        "{}[forward.strict]\nlisten = \"127.0.0.1:{}\"\n",
        proxy(listen, "destinations.deny = [\"*.denied.test\", \":81\"]"),
        free_port(),
    ));
    let strict = gate.now().expect(200)["forward"]["strict"]["listen"].clone();
    let strict: SocketAddr = strict
        .as_str()
        .or_else(|| strict[0].as_str())
        .unwrap()
        .parse()
        .unwrap();
    let status = |head: &str| head.split(' ').nth(1).unwrap().parse::<u16>().unwrap();
    let admin = gate.base.admin;
    for (at, to, wanted, why) in [
        (
            listen,
            "a.denied.test:80".to_owned(),
            403,
            "http_request_denied",
        ),
        (
            listen,
            "127.0.0.1:81".to_owned(),
            403,
            "http_request_denied",
        ),
        (
            listen,
            format!("127.0.0.1:{nobody}"),
            502,
            "connection_refused",
        ),
        (listen, "nobody.invalid:80".to_owned(), 502, "dns_error"),
        (
            strict,
            origin.addr.to_string(),
            403,
            "destination_ip_prohibited",
        ),
        (
            strict,
            "169.254.169.254:80".to_owned(),
            403,
            "destination_ip_prohibited",
        ),
        (
            strict,
            format!("[::ffff:127.0.0.1]:{}", origin.addr.port()),
            403,
            "destination_ip_prohibited",
        ),
        (
            strict,
            format!("localhost:{}", origin.addr.port()),
            403,
            "destination_ip_prohibited",
        ),
        (strict, admin.to_string(), 403, "destination_ip_prohibited"),
    ] {
        let (_, head) = connect(at, &to, "");
        assert_eq!(status(&head), wanted, "{to}: {head}");
        assert!(head.contains(&format!("error={why}")), "{to}: {head}");
        // The same for a URL, and the connection goes on.
        let mut conn = Conn::open(at).unwrap();
        for _ in 0..2 {
            let answer = conn
                .exchange(format!("GET http://{to}/who HTTP/1.1\r\nHost: x\r\n\r\n"))
                .unwrap();
            assert_eq!(answer.status, wanted, "{to}: {}", answer.text());
            assert!(answer.header("proxy-status").unwrap().contains(why), "{to}");
        }
    }
    assert_eq!(origin.connections(), 0);
    let ask = |line: &str| {
        let mut conn = Conn::open(listen).unwrap();
        let (line, more) = line.split_once("\r\n").unwrap_or((line, "X: y"));
        let answer = conn
            .exchange(format!("{line} HTTP/1.1\r\nHost: a.test\r\n{more}\r\n\r\n"))
            .unwrap();
        (answer.status, answer.text())
    };
    let (bad, text) = ask("GET /who");
    assert_eq!(bad, 400);
    assert!(text.contains("forward proxy"), "{text}");
    assert_eq!(ask("CONNECT a.test").0, 400);
    assert_eq!(ask("CONNECT a.test:0").0, 400);
    assert_eq!(ask("GET https://a.test/").0, 501);
    assert_eq!(ask("TRACE http://a.test/\r\nMax-Forwards: 0").0, 405);
    // A loop: more passages than any chain has.
    let url = format!("GET http://{}/who", origin.addr);
    let via = "1.1 evergate, ".repeat(16);
    assert_eq!(ask(&format!("{url}\r\nVia: {via}1.1 x")).0, 502);
}

#[tokio::test]
async fn streams_of_http2_become_passages_and_carry_requests() {
    let (origin, web, listen) = (echo(), Origin::start("a"), local(free_port()));
    let gate = Gate::start(&proxy(listen, "users = { alice = \"sesame\" }"));
    let stream = tokio::net::TcpStream::connect(listen).await.unwrap();
    let (mut sender, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let driver = tokio::spawn(driver);
    let request = |method: &str, uri: String, user: bool| {
        let mut request = http::Request::builder().method(method).uri(uri);
        if user {
            request = request.header("proxy-authorization", "Basic YWxpY2U6c2VzYW1l");
        }
        request.body(Empty::<Bytes>::new()).unwrap()
    };
    let refused = sender
        .send_request(request("CONNECT", origin.to_string(), false))
        .await
        .unwrap();
    assert_eq!(refused.status(), 407);
    let mut passages = Vec::new();
    for n in 0..3 {
        let mut answer = sender
            .send_request(request("CONNECT", origin.to_string(), true))
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("content-length"));
        let passage = hyper::upgrade::on(&mut answer).await.unwrap();
        passages.push((n, TokioIo::new(passage)));
    }
    gate.reload_ok(&format!(
        "{}[http.other]\nlisten = \"127.0.0.1:{}\"\nrespond = \"x\"\n",
        proxy(listen, "users = { alice = \"sesame\" }"),
        free_port()
    ));
    for (n, passage) in &mut passages {
        let text = format!("passage {n}");
        passage.write_all(text.as_bytes()).await.unwrap();
        let mut got = vec![0; text.len()];
        passage.read_exact(&mut got).await.unwrap();
        assert_eq!(got, text.as_bytes());
    }
    // One ends, by its own side, and the others go on.
    let (_, mut first) = passages.remove(0);
    first.shutdown().await.unwrap();
    assert_eq!(first.read(&mut [0; 8]).await.unwrap(), 0);
    let (_, second) = &mut passages[0];
    second.write_all(b"still here").await.unwrap();
    second.read_exact(&mut [0; 10]).await.unwrap();
    let url = format!("http://{}/who", web.addr);
    let answer = sender
        .send_request(request("GET", url, true))
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    drop((passages, sender));
    driver.abort();
}

#[test]
fn over_tls_a_client_certificate_lets_in() {
    let (origin, web, listen) = (echo(), Origin::start("a"), local(free_port()));
    let authority = Authority::new("ours");
    let pair = Pair::new(&["proxy.test"]);
    let tls = "tls = { certificates = { cert = \"p.crt\", key = \"p.key\" }, client_auth = { ca = \"ca.pem\" } }";
    let _gate = Gate::setup()
        .file("p.crt", pair.cert.clone())
        .file("p.key", pair.key.clone())
        .file("ca.pem", authority.cert.clone())
        .start(&proxy(listen, tls));
    let request = format!("CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n\r\n");
    let stranger = Client::new().open(listen, "proxy.test");
    assert!(
        stranger
            .and_then(|mut conn| conn.exchange(&request))
            .is_err()
    );
    let alice = authority.client("alice");
    let mut conn = Client::new()
        .showing(&alice)
        .open(listen, "proxy.test")
        .unwrap();
    let head = {
        conn.send(&request).unwrap();
        conn.head().unwrap().unwrap()
    };
    assert!(head.line.starts_with("HTTP/1.1 200"), "{}", head.line);
    conn.send("through TLS").unwrap();
    let mut got = Vec::new();
    while got.len() < 11 {
        got.extend(conn.some(64).unwrap());
    }
    assert_eq!(got, b"through TLS");
    let mut conn = Client::new()
        .showing(&alice)
        .open(listen, "proxy.test")
        .unwrap();
    let answer = conn
        .exchange(format!(
            "GET http://{}/who HTTP/1.1\r\nHost: x\r\n\r\n",
            web.addr
        ))
        .unwrap();
    assert_eq!(answer.text(), "a /who");
}

#[test]
fn who_is_no_client_any_more_gets_nowhere_over_a_connection_from_before() {
    let (web, listen) = (Origin::start("a"), local(free_port()));
    let gate = Gate::start(&proxy(listen, "clients = \"127.0.0.0/8\""));
    let mut conn = Conn::open(listen).unwrap();
    let request = format!("GET http://{}/who HTTP/1.1\r\nHost: x\r\n\r\n", web.addr);
    assert_eq!(conn.exchange(&request).unwrap().status, 200);
    gate.reload_ok(&proxy(listen, "clients = \"10.0.0.0/8\""));
    let ended = conn.exchange(&request);
    assert!(ended.is_err() || ended.unwrap().status == 403);
    assert_eq!(web.requests(), 1);
}

#[test]
fn passages_never_notice_swaps_of_other_things_and_end_with_their_proxy() {
    let (origin, listen, other) = (echo(), local(free_port()), local(free_port()));
    let document = |n: usize| {
        format!(
            "{}[http.other]\nlisten = \"{other}\"\nrespond = \"{n}\"\n",
            proxy(listen, "")
        )
    };
    let gate = Gate::setup()
        .runtime("drain_timeout = \"1s\"")
        .start(&document(0));
    let (mut stream, _) = connect(listen, &origin.to_string(), "");
    for n in 1..=10 {
        exchange(&mut stream, "over swaps");
        gate.reload_ok(&document(n));
    }
    exchange(&mut stream, "still");
    gate.wait_settled();
    gate.reload_ok("");
    // It goes on until the deadline, and then ends without looking whole.
    exchange(&mut stream, "draining");
    let ended = stream.read(&mut [0; 8]);
    assert!(
        matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset),
        "{ended:?}"
    );
}

#[test]
fn a_passage_is_counted_and_written_down_when_it_ends() {
    let (origin, web, listen) = (echo(), Origin::start("a"), local(free_port()));
    let gate = Gate::start(&format!(
        "[access_log]\npath = \"access.log\"\nformat = \"combined\"\n{}",
        proxy(listen, "users = { alice = \"sesame\" }")
    ));
    let (mut stream, _) = connect(listen, &origin.to_string(), ALICE);
    exchange(&mut stream, "0123456789");
    drop(stream);
    let mut conn = Conn::open(listen).unwrap();
    let url = format!("http://{}/who", web.addr);
    conn.exchange(format!("GET {url} HTTP/1.1\r\nHost: x\r\n{ALICE}\r\n"))
        .unwrap();
    let log = gate.config().with_file_name("access.log");
    let connected = format!("\"CONNECT {origin} HTTP/1.1\" 200 10 ");
    let asked = format!("\"GET {url} HTTP/1.1\" 200 ");
    until("the lines of both", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let line = |what: &str| {
            text.lines()
                .any(|l| l.contains(" alice ") && l.contains(what))
        };
        (line(&connected) && line(&asked)).then_some(())
    });
}

/// `config/forward.toml`.
#[test]
fn the_sample_holds_its_users_to_its_rules() {
    let sample = crate::samples::Sample::start("forward.toml");
    let at = sample.at(3128);
    let status = |to: &str, fields: &str| {
        let (_, head) = connect(at, to, fields);
        head.split(' ').nth(1).unwrap().to_owned()
    };
    // `ci:chips`.
    let ci = "Proxy-Authorization: Basic Y2k6Y2hpcHM=\r\n";
    assert_eq!(status("127.0.0.1:80", ""), "407");
    assert_eq!(status("127.0.0.1:80", ALICE), "403");
    assert_eq!(status("x.ads.example:80", ALICE), "403");
    assert_eq!(status("example.com:443", ci), "403");
}
