//! HTTP/2 towards origins: what is shared, what is not lost when a connection ends, and calls that talk both ways.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::kit::authority::Authority;
use crate::kit::h2origin::{H2Origin, Ways};
use crate::kit::tls::{Client, Pair};
use crate::kit::{Conn, Gate, Origin, PATIENCE, count, free_port, get, h2c, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn document(to: SocketAddr, target: SocketAddr, lines: &str) -> String {
    format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"o\"\n[upstreams.o]\ntargets = \"{target}\"\n{lines}\n"
    )
}

const H2C: &str = "protocol = \"h2c\"";

/// In flight, as `/status` has it.
fn in_flight(gate: &Gate) -> u64 {
    gate.status()["upstreams"][0]["targets"][0]["in_flight"]
        .as_u64()
        .unwrap()
}

#[test]
fn many_requests_share_few_connections_and_a_slow_one_stops_nobody() {
    let origin = H2Origin::start(Ways {
        streams: Some(50),
        ..Ways::default()
    });
    let to = local(free_port());
    let gate = Gate::start(&document(to, origin.addr, H2C));
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let client = h2c::H2::open(to).await;
        let (head, body, _) = h2c::send(client.stream(), "GET", "http://a.test/x", "")
            .await
            .unwrap();
        assert_eq!(
            (head.status.as_u16(), &body[..]),
            (200, &b"h2 http a.test 0"[..])
        );
        // One that is not read: its windows fill up.
        let slow = h2c::send(client.stream(), "GET", "http://a.test/half", "");
        let slow = tokio::spawn(slow);
        let mut streams = tokio::task::JoinSet::new();
        for number in 0..80 {
            let stream = client.stream();
            streams.spawn(async move {
                let body = vec![b'x'; number * 100];
                let (head, text, _) = h2c::send(stream, "POST", "http://a.test/post", body)
                    .await
                    .unwrap();
                assert_eq!(head.status, 200);
                assert_eq!(text, format!("h2 http a.test {}", number * 100));
            });
        }
        while let Some(done) = streams.join_next().await {
            done.unwrap();
        }
        assert!(!slow.is_finished());
        origin.release();
        let (_, body, _) = slow.await.unwrap().unwrap();
        assert_eq!(body, "halfwhole");
    });
    // Two workers, and beyond 50 streams another.
    assert!(origin.connections() <= 4, "{}", origin.connections());
    // Cleartext h1 clients get there, too.
    assert_eq!(get(to, "b.test", "/y").text(), "h2 http b.test 0");
    until("nothing in flight", || {
        (in_flight(&gate) == 0).then_some(())
    });
}

#[test]
fn the_targets_limit_of_streams_makes_more_connections_and_ours_of_connections_an_error() {
    let origin = H2Origin::start(Ways {
        streams: Some(2),
        ..Ways::default()
    });
    let to = local(free_port());
    let gate = Gate::start(&document(
        to,
        origin.addr,
        "protocol = \"h2c\"\npool.max_connections = 3",
    ));
    let mut waiting: Vec<Conn> = Vec::new();
    for n in 1..=6 {
        let mut conn = Conn::open(to).unwrap();
        conn.send("GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        waiting.push(conn);
        until("one more stream", || {
            (origin.seen.open.load(SeqCst) == n).then_some(())
        });
    }
    assert_eq!(origin.connections(), 3);
    let full = get(to, "x", "/");
    assert_eq!(full.status, 503);
    assert_eq!(
        full.header("proxy-status"),
        Some("evergate; error=connection_limit_reached")
    );
    assert_eq!(in_flight(&gate), 6);
    origin.release();
    for mut conn in waiting {
        assert_eq!(conn.response().unwrap().text(), "held");
    }
}

#[test]
fn a_connection_that_goes_away_in_the_midst_of_load_loses_nothing() {
    let origin = Arc::new(H2Origin::start(Ways::default()));
    let to = local(free_port());
    let _gate = Gate::start(&document(to, origin.addr, H2C));
    let total = count(4000, 800);
    let silent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let client = Arc::new(h2c::H2::open(to).await);
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..8 {
            let (client, silent) = (client.clone(), silent.clone());
            workers.spawn(async move {
                for number in 0..total / 8 {
                    // Bodies, so that none may be sent twice.
                    let body = vec![b'x'; if worker % 2 == 0 { 0 } else { 10 + number % 50 }];
                    let size = body.len();
                    let (head, text, _) =
                        h2c::send(client.stream(), "POST", "http://a.test/", body)
                            .await
                            .unwrap();
                    // The origin closed without a word about this one: it may have been done, so it is not sent again.
                    let lost = "evergate; error=connection_terminated";
                    if head.headers.get("proxy-status").is_some_and(|s| s == lost) {
                        silent.fetch_add(1, SeqCst);
                        continue;
                    }
                    assert_eq!(head.status, 200, "{text:?}");
                    assert_eq!(text, format!("h2 http a.test {size}"));
                }
            });
        }
        // However slow the machine, each connection is of some use first.
        let seen = || origin.seen.requests.load(SeqCst);
        let (mut look, mut last) = (tokio::time::interval(Duration::from_millis(1)), 0);
        loop {
            tokio::select! {
                done = workers.join_next() => match done {
                    Some(done) => done.unwrap(),
                    None => break,
                },
                _ = look.tick() => if seen() >= last + 20 {
                    last = seen();
                    origin.go_away();
                },
            }
        }
    });
    let silent = silent.load(SeqCst);
    // Each such close may take what all eight have in flight.
    assert!(silent <= total / 25, "{silent} of {total} are nobody's");
    // None was sent twice either.
    let seen = origin.seen.requests.load(SeqCst);
    assert!(
        (total - silent..=total).contains(&(seen as usize)),
        "{seen}"
    );
    assert!(origin.connections() > 2, "{}", origin.connections());
}

#[test]
fn a_refused_stream_goes_to_another_target_whatever_its_method() {
    let (one, two) = (
        H2Origin::start(Ways::default()),
        H2Origin::start(Ways::default()),
    );
    let to = local(free_port());
    let _gate = Gate::setup().start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"o\"\n[upstreams.o]\ntargets = [\"{}\", \"{}\"]\nprotocol = \"h2c\"\n",
        one.addr, two.addr
    ));
    // Both refuse their first: so is the request refused.
    let post = "POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello";
    let refused = Conn::open(to).unwrap().exchange(post).unwrap();
    assert_eq!(refused.status, 502);
    let all = || [&one, &two].map(|origin| origin.seen.requests.load(SeqCst));
    assert_eq!(all(), [1, 1]);
    // One takes it: it has it whichever was asked first, with all of its body.
    two.accept();
    for _ in 0..4 {
        let answer = Conn::open(to).unwrap().exchange(post).unwrap();
        assert_eq!(answer.text(), "h2 http x 5");
    }
    assert!(all()[0] > 1, "{:?}", all());
}

#[test]
fn who_leaves_or_waits_too_long_resets_its_stream_and_no_other() {
    let origin = H2Origin::start(Ways::default());
    let to = local(free_port());
    let gate = Gate::start(&document(
        to,
        origin.addr,
        "protocol = \"h2c\"\ntimeouts.response = \"300ms\"",
    ));
    let late = get(to, "x", "/never");
    assert_eq!(late.status, 504);
    assert_eq!(
        late.header("proxy-status"),
        Some("evergate; error=http_response_timeout")
    );
    until("a reset", || {
        (origin.seen.resets.load(SeqCst) == 1).then_some(())
    });
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let client = h2c::H2::open(to).await;
        let stays = tokio::spawn(h2c::send(client.stream(), "GET", "http://a/half", ""));
        let mut leaves = client.stream();
        let request = Request::get("http://a/half").body(http_body_util::Full::default());
        let response = leaves.send_request(request.unwrap()).await.unwrap();
        drop(response);
        until("its reset", || {
            (origin.seen.resets.load(SeqCst) == 2).then_some(())
        });
        origin.release();
        let (_, body, _) = stays.await.unwrap().unwrap();
        assert_eq!(body, "halfwhole");
    });
    until("nothing in flight", || {
        (in_flight(&gate) == 0).then_some(())
    });
}

#[test]
fn what_speaks_no_http2_is_told_apart_before_anything_is_sent() {
    let origin = Origin::start("o");
    let to = local(free_port());
    let gate = Gate::start(&document(to, origin.addr, H2C));
    let answer = get(to, "x", "/");
    assert_eq!(answer.status, 502);
    assert_eq!(
        answer.header("proxy-status"),
        Some("evergate; error=http_protocol_error")
    );
    // Over TLS ALPN tells, and `auto` takes either.
    let ca = Authority::new();
    let issued = ca.issue(&["127.0.0.1"]);
    let tls = |alpn: &[&str]| {
        H2Origin::start(Ways {
            tls: Some(Authority::server(&issued, alpn, None)),
            ..Ways::default()
        })
    };
    let (only_h1, both, silent) = (tls(&["http/1.1"]), tls(&["h2", "http/1.1"]), tls(&[]));
    std::fs::write(gate.dir.path().join("ca.pem"), ca.pem()).unwrap();
    let ask = |target: &H2Origin, protocol: &str| {
        let lines = format!("protocol = \"{protocol}\"\ntls = {{ ca = \"ca.pem\" }}");
        gate.reload_ok(&document(to, target.addr, &lines));
        let answer = get(to, "x", "/");
        match answer.header("proxy-status") {
            Some(status) => status.to_owned(),
            None => answer.text(),
        }
    };
    assert_eq!(ask(&both, "auto"), "h2 https x 0");
    assert_eq!(ask(&both, "h2"), "h2 https x 0");
    assert_eq!(ask(&both, "h1"), "h1");
    assert_eq!(ask(&only_h1, "auto"), "h1");
    assert_eq!(ask(&silent, "auto"), "h1");
    assert_eq!(ask(&only_h1, "h2"), "evergate; error=tls_alert_received");
    assert_eq!(ask(&silent, "h2"), "evergate; error=tls_protocol_error");
    // Each to its own on HTTP/1: none waits for another.
    gate.reload_ok(&document(
        to,
        only_h1.addr,
        "protocol = \"auto\"\ntls = { ca = \"ca.pem\" }",
    ));
    for _ in 0..5 {
        assert_eq!(get(to, "x", "/").text(), "h1");
    }
}

/// A client that sends and receives on one stream at the same time.
async fn call(
    mut client: SendRequest<Bytes>,
    uri: &str,
    pieces: usize,
) -> Result<HeaderMap, h2::Error> {
    let request = Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    client = client.ready().await?;
    let (response, mut send) = client.send_request(request, false)?;
    send.send_data("0".into(), false)?;
    let response = response.await?;
    assert_eq!(response.status(), 200);
    if let Some(status) = response.headers().get("grpc-status") {
        // Trailers only.
        return Ok([("grpc-status".parse().unwrap(), status.clone())]
            .into_iter()
            .collect());
    }
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let mut body = response.into_body();
    for number in 1..=pieces {
        let piece = body.data().await.unwrap()?;
        assert_eq!(piece, (number - 1).to_string());
        body.flow_control().release_capacity(piece.len())?;
        // Only now is there a next one: nothing gathers them.
        if number < pieces {
            send.send_data(number.to_string().into(), false)?;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    send.send_trailers(trailers)?;
    assert!(body.data().await.is_none());
    Ok(body.trailers().await?.unwrap())
}

#[test]
fn a_call_talks_both_ways_and_ends_with_trailers_over_tls_and_not() {
    let ca = Authority::new();
    let secure = H2Origin::start(Ways {
        tls: Some(Authority::server(&ca.issue(&["127.0.0.1"]), &["h2"], None)),
        ..Ways::default()
    });
    let plain = H2Origin::start(Ways::default());
    let (to, over_tls, pair) = (
        local(free_port()),
        local(free_port()),
        Pair::new(&["a.test"]),
    );
    let text = |lines: &str, target: SocketAddr| {
        format!(
            "[http.web]\nlisten = \"{to}\"\nproxy = \"o\"\n[http.tls]\nlisten = \"{over_tls}\"\nproxy = \"o\"\n\
             tls = {{ certificates = {{ cert = \"site.crt\", key = \"site.key\" }} }}\n\
             [upstreams.o]\ntargets = \"{target}\"\n{lines}\n"
        )
    };
    let gate = Gate::setup()
        .file("site.crt", pair.cert)
        .file("site.key", pair.key)
        .file("ca.pem", ca.pem())
        .start(&text(H2C, plain.addr));
    let runtime = Runtime::new().unwrap();
    let try_both = || {
        runtime.block_on(async {
            let stream = TcpStream::connect(to).await.unwrap();
            let (client, connection) = h2::client::handshake(stream).await.unwrap();
            let driver = tokio::spawn(connection);
            let trailers = call(client.clone(), "http://a.test/chat", 20)
                .await
                .unwrap();
            assert_eq!(trailers["grpc-status"], "0");
            assert_eq!(trailers["x-sum"], "7");
            // What we say ourselves is said in its words.
            let lost = call(client, "http://a.test/refuse", 0).await.unwrap();
            driver.abort();
            let connector = tokio_rustls::TlsConnector::from(Client::new().alpn(&["h2"]).config());
            let stream = TcpStream::connect(over_tls).await.unwrap();
            let name = ServerName::try_from("a.test").unwrap();
            let stream = connector.connect(name, stream).await.unwrap();
            let (client, connection) = h2::client::handshake(stream).await.unwrap();
            let driver = tokio::spawn(connection);
            let trailers = call(client, "https://a.test/chat", 20).await.unwrap();
            assert_eq!(trailers["grpc-status"], "0");
            driver.abort();
            lost["grpc-status"].to_str().unwrap().to_owned()
        })
    };
    assert_eq!(try_both(), "14");
    gate.reload_ok(&text(
        "protocol = \"h2\"\ntls = { ca = \"ca.pem\" }",
        secure.addr,
    ));
    assert_eq!(try_both(), "14");
    let head = secure.seen.heads.lock().unwrap()[0].clone();
    assert!(head.contains("\"te\": \"trailers\""), "{head}");
}

#[test]
fn a_websocket_on_a_stream_reaches_both_kinds_of_origin_and_stays_over_swaps() {
    let ca = Authority::new();
    let issued = ca.issue(&["127.0.0.1"]);
    let tls = |alpn: &[&str], websockets| {
        H2Origin::start(Ways {
            tls: Some(Authority::server(&issued, alpn, None)),
            websockets,
            ..Ways::default()
        })
    };
    let (one, two, three) = (
        tls(&["http/1.1"], false),
        tls(&["h2", "http/1.1"], true),
        // Speaks HTTP/2, but takes websockets over HTTP/1 only.
        tls(&["h2", "http/1.1"], false),
    );
    let fake = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let fake_addr = fake.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut conn = Conn::over(fake.accept().unwrap().0).unwrap();
        conn.head().unwrap();
        conn.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n").unwrap();
        // Until it is let go.
        let _ = conn.some(1);
    });
    let to = local(free_port());
    let text = |more: &str| {
        let mut text = format!("[http.web]\nlisten = \"{to}\"\n{more}\n");
        text +=
            &format!("[[http.web.routes]]\nmatch.path = \"/4\"\nproxy = \"http://{fake_addr}\"\n");
        for (path, target) in [("/1", &one), ("/2", &two), ("/3", &three)] {
            text += &format!(
                "[[http.web.routes]]\nmatch.path = \"{path}\"\nmatch.method = \"GET\"\nproxy = \"https{}\"\n",
                target.addr.port()
            );
        }
        for target in [&one, &two, &three] {
            text += &format!(
                "[upstreams.https{}]\ntargets = \"{}\"\nprotocol = \"auto\"\ntls = {{ ca = \"ca.pem\" }}\n",
                target.addr.port(),
                target.addr
            );
        }
        text
    };
    let gate = Gate::setup()
        .file("ca.pem", ca.pem())
        .start(&text("respond = \"x\""));
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let stream = TcpStream::connect(to).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut client = client.ready().await.unwrap();
        // The setting has come with the first frames.
        let warm = Request::get("http://a.test/").body(()).unwrap();
        client.send_request(warm, true).unwrap().0.await.unwrap();
        assert!(client.is_extended_connect_protocol_enabled());
        let ask = |mut client: SendRequest<Bytes>, path: &str| {
            let mut request = Request::builder()
                .method("CONNECT")
                .uri(format!("http://a.test{path}"))
                .header("sec-websocket-version", "13")
                .body(())
                .unwrap();
            request
                .extensions_mut()
                .insert(h2::ext::Protocol::from_static("websocket"));
            client.send_request(request, false).unwrap()
        };
        let mut open = Vec::new();
        for path in ["/1", "/2", "/3"] {
            let (response, send) = ask(client.clone(), path);
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200, "{path}");
            assert!(!response.headers().contains_key("sec-websocket-accept"));
            open.push((send, response.into_body()));
        }
        // An origin that only pretends: it was given a key, and has no answer to it.
        let (response, _) = ask(client.clone(), "/4");
        assert_eq!(response.await.unwrap().status(), 502);
        // Nobody agrees on these.
        for (path, status) in [("/", 501), ("/lost", 501)] {
            let (response, _) = ask(client.clone(), path);
            assert_eq!(response.await.unwrap().status(), status, "{path}");
        }
        for round in 0..5 {
            for (send, body) in &mut open {
                let frame = Bytes::from(format!("\u{1}\u{2}{round}x"));
                send.send_data(frame.clone(), false).unwrap();
                let mut back = Vec::new();
                while back.len() < frame.len() {
                    let piece = body.data().await.unwrap().unwrap();
                    body.flow_control().release_capacity(piece.len()).unwrap();
                    back.extend(piece);
                }
                assert_eq!(back, frame);
            }
            gate.reload_ok(&text(&format!("respond = \"{round}\"")));
        }
        // One ends its side; the origin does the same.
        let (mut send, mut body) = open.swap_remove(0);
        send.send_data(Bytes::new(), true).unwrap();
        while let Some(piece) = tokio::time::timeout(PATIENCE, body.data()).await.unwrap() {
            assert!(piece.unwrap().is_empty());
        }
        // The routes of the others go: Going Away at the deadline, and then the end.
        gate.call(
            crate::kit::Call::post("/reload?drain_timeout=0s")
                .toml(&gate.document(&format!("[http.web]\nlisten = \"{to}\"\nrespond = \"y\"\n"))),
        )
        .expect(200);
        for (_send, mut body) in open {
            let mut last = Vec::new();
            while let Some(piece) = tokio::time::timeout(PATIENCE, body.data()).await.unwrap() {
                last.extend(piece.unwrap());
            }
            assert_eq!(last, [0x88, 2, 0x03, 0xe9]);
        }
        // The connection goes on.
        let again = Request::get("http://a.test/").body(()).unwrap();
        let answer = client.send_request(again, true).unwrap().0.await.unwrap();
        assert_eq!(answer.status(), 200);
        driver.abort();
    });
}

#[test]
fn a_websocket_over_http1_reaches_an_origin_over_http2() {
    let origin = H2Origin::start(Ways {
        websockets: true,
        ..Ways::default()
    });
    let without = H2Origin::start(Ways::default());
    let to = local(free_port());
    let gate = Gate::start(&document(to, origin.addr, H2C));
    let handshake = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                     sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";
    let mut conn = Conn::open(to).unwrap();
    conn.send(handshake).unwrap();
    let answer = conn.response_head().unwrap();
    assert_eq!(answer.status, 101);
    assert_eq!(
        answer.header("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    conn.send("abc").unwrap();
    let mut back = Vec::new();
    while back.len() < 3 {
        back.extend(conn.some(3).unwrap());
    }
    assert_eq!(back, b"abc");
    assert_eq!(in_flight(&gate), 1);
    drop(conn);
    until("nothing in flight", || {
        (in_flight(&gate) == 0).then_some(())
    });
    gate.reload_ok(&document(to, without.addr, H2C));
    let answer = Conn::open(to).unwrap().exchange(handshake).unwrap();
    assert_eq!(answer.status, 502);
    assert_eq!(
        answer.header("proxy-status"),
        Some("evergate; error=http_upgrade_failed")
    );
}
