//! The reverse proxy: bodies and trailers both ways, interim responses, pooled connections, origins that fail, and how
//! targets share the traffic.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};

use crate::kit::{Conn, Gate, Origin, free_port, get, h2c, raw, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn proxied(origin: &Origin) -> (Gate, SocketAddr) {
    with(origin, "")
}

/// One server that leads to `origin` as the upstream `app`, with more lines for that upstream.
fn with(origin: &Origin, upstream: &str) -> (Gate, SocketAddr) {
    let to = local(free_port());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = [\"{}\"]\n{upstream}",
        origin.addr
    ));
    (gate, to)
}

#[test]
fn methods_and_targets_pass_as_they_came() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    let mut conn = Conn::open(to).unwrap();
    for method in [
        "GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND",
    ] {
        let body = if method == "GET" { "" } else { "abc" };
        conn.send(format!(
            "{method} /x/echo?a=1&b=%2F HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .unwrap();
        let answer = conn.response().unwrap();
        assert_eq!(
            (answer.header("x-method"), answer.text().as_str()),
            (Some(method), body)
        );
    }
    assert_eq!(
        get(to, "x", "/a%20b/%C3%A4/id?q=a+b&r=%25").text(),
        "A /a%20b/%C3%A4/id?q=a+b&r=%25"
    );
}

#[test]
fn a_base_path_is_put_before_the_target() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"http://{}/base\"\n",
        origin.addr
    ));
    assert_eq!(get(to, "x", "/id?q=1").text(), "A /base/id?q=1");
    assert_eq!(get(to, "x", "/").text(), "A /base/");
}

#[test]
fn head_and_bodiless_statuses_keep_the_connection_in_step() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    let mut conn = Conn::open(to).unwrap();
    conn.send("HEAD /id HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let answer = conn.response_to("HEAD").unwrap();
    assert_eq!(
        (answer.status, answer.header("content-length")),
        (200, Some("5"))
    );
    for code in [204, 304, 200, 404, 500] {
        let answer = conn
            .exchange(format!(
                "GET /status?code={code} HTTP/1.1\r\nhost: x\r\n\r\n"
            ))
            .unwrap();
        assert_eq!(
            (answer.status, answer.header("etag")),
            (code, Some("\"x\""))
        );
        assert_eq!(
            answer.text(),
            if matches!(code, 204 | 304) {
                ""
            } else {
                "status"
            }
        );
    }
    assert_eq!(
        conn.exchange("GET /id HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap()
            .text(),
        "A /id"
    );
}

#[test]
fn chunked_bodies_and_trailers_pass_both_ways() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    let mut conn = Conn::open(to).unwrap();
    let answer = conn
        .exchange("GET /chunked HTTP/1.1\r\nhost: x\r\nte: trailers\r\n\r\n")
        .unwrap();
    assert_eq!(answer.text(), "hello world");
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "42".to_owned())]);
    let mut conn = Conn::open(to).unwrap();
    let answer = conn
        .exchange(
            "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntrailer: x-check\r\n\r\n\
             3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nx-check: 7\r\n\r\n",
        )
        .unwrap();
    assert_eq!(
        (answer.text().as_str(), answer.header("x-request-trailers")),
        ("abcdefg", Some("x-check=7"))
    );
}

#[test]
fn a_body_to_the_end_of_the_connection_is_whole() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    assert_eq!(get(to, "x", "/to-the-end").text(), "A /to-the-end");
}

#[test]
fn http_1_0_clients_are_served_and_closed() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /chunked HTTP/1.0\r\nhost: x\r\n\r\n")
        .unwrap();
    let answer = conn.response().unwrap();
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, "hello world")
    );
    assert!(!answer.head.is_chunked());
    assert!(conn.closed());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    let mut conn = Conn::open(to).unwrap();
    let all: String = (0..20)
        .map(|i| format!("GET /p{i}/id HTTP/1.1\r\nhost: x\r\n\r\n"))
        .collect();
    conn.send(all).unwrap();
    for i in 0..20 {
        assert_eq!(conn.response().unwrap().text(), format!("A /p{i}/id"));
    }
}

#[test]
fn expect_continue_is_answered_when_the_origin_wants_the_body() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    let mut conn = Conn::open(to).unwrap();
    conn.send(
        "POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
    )
    .unwrap();
    // Nothing of the body is sent before the interim response.
    let head = conn.head().unwrap().unwrap();
    assert!(head.line.starts_with("HTTP/1.1 100"), "{}", head.line);
    let answer = conn.exchange("hello").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
}

#[test]
fn an_origin_that_refuses_the_expectation_answers_for_itself() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    let mut conn = Conn::open(to).unwrap();
    conn.send("POST /refuse-continue HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n").unwrap();
    let answer = conn.response().unwrap();
    assert_eq!(
        (answer.status, answer.interim.as_slice()),
        (417, [].as_slice())
    );
}

#[test]
fn an_early_answer_reaches_the_client_and_the_next_request_works() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    let mut conn = Conn::open(to).unwrap();
    conn.send("POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nsome")
        .unwrap();
    let answer = conn.response().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (403, "early"));
    assert_eq!(answer.header("connection"), Some("close"));
    drop(conn);
    assert_eq!(get(to, "x", "/id").text(), "A /id");
}

/// The client sends on, far more than any buffer holds, and reads only then: it must be neither reset nor left in doubt
/// whether the connection goes on.
#[test]
fn an_early_answer_outlives_a_long_upload() {
    const UPLOAD: usize = 32 << 20;
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    for framing in ["content-length: 33554432", "transfer-encoding: chunked"] {
        let mut conn = Conn::open(to).unwrap();
        conn.send(format!(
            "POST /early HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n"
        ))
        .unwrap();
        let piece = "y".repeat(1 << 16);
        let piece = if framing.starts_with('t') {
            format!("10000\r\n{piece}\r\n")
        } else {
            piece
        };
        for at in 0..UPLOAD >> 16 {
            if let Err(error) = conn.send(&piece) {
                panic!("{framing}: reset after {at} pieces: {error}");
            }
        }
        let answer = conn.response().unwrap();
        assert_eq!(
            (
                answer.status,
                answer.text().as_str(),
                answer.header("connection")
            ),
            (403, "early", Some("close"))
        );
        assert!(conn.closed());
    }
    assert_eq!(get(to, "x", "/id").text(), "A /id");
}

#[test]
fn interim_hints_do_not_confuse_the_answer() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    let answer = get(to, "x", "/hints");
    assert_eq!((answer.status, answer.text().as_str()), (200, "A /hints"));
    assert!(answer.interim.is_empty() || answer.interim == [103]);
}

#[test]
fn upstream_connections_are_reused() {
    let origin = Origin::start("A");
    let (gate, to) = proxied(&origin);
    let mut conn = Conn::open(to).unwrap();
    for _ in 0..50 {
        assert_eq!(
            conn.exchange("GET /id HTTP/1.1\r\nhost: x\r\n\r\n")
                .unwrap()
                .status,
            200
        );
    }
    assert_eq!(origin.connections(), 1);
    let status = gate.status();
    let target = &status["upstreams"][0]["targets"][0];
    assert_eq!(
        (&target["connections"], &target["idle"]),
        (&1.into(), &1.into()),
        "{status}"
    );
}

#[test]
fn pooled_connections_survive_a_swap_that_keeps_the_upstream() {
    let origin = Origin::start("A");
    let (gate, to) = proxied(&origin);
    let mut conn = Conn::open(to).unwrap();
    for n in 0..5 {
        assert_eq!(
            conn.exchange("GET /id HTTP/1.1\r\nhost: x\r\n\r\n")
                .unwrap()
                .status,
            200
        );
        let answer = gate.reload_ok(&format!(
            "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[[http.web.routes]]\nmatch.path = \"/n{n}\"\nrespond = \"n\"\n\
             [upstreams.app]\ntargets = [\"{}\"]\n",
            origin.addr
        ));
        assert_eq!(answer["plan"]["targets"]["kept"], 1, "{answer}");
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_pooled_connection_that_the_origin_closed_is_not_an_error() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    let mut conn = Conn::open(to).unwrap();
    for turn in 0..30 {
        assert_eq!(
            conn.exchange("GET /id HTTP/1.1\r\nhost: x\r\n\r\n")
                .unwrap()
                .status,
            200,
            "turn {turn}"
        );
        origin.close_all();
    }
    // Said and unsaid closes.
    for verb in ["drop", "last", "drop", "drop", "last"] {
        let answer = conn
            .exchange(format!("GET /{verb} HTTP/1.1\r\nhost: x\r\n\r\n"))
            .unwrap();
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, None),
            "{verb}"
        );
    }
}

/// Every failure of an origin is a 502 or 504 of ours with its RFC 9209 name, and the next request is served.
#[test]
fn failing_origins_are_named_in_proxy_status() {
    let origin = Origin::start("A");
    let (_gate, to) = with(
        &origin,
        "timeouts = { connect = \"2s\", response = \"300ms\" }\n",
    );
    for (verb, status, name) in [
        ("garbage", 502, "http_protocol_error"),
        ("empty", 502, "connection_terminated"),
        ("hang", 504, "http_response_timeout"),
        ("unasked-101", 502, "http_"),
        ("both-lengths", 502, "http_protocol_error"),
        ("other-coding", 502, "http_protocol_error"),
    ] {
        let answer = get(to, "x", &format!("/{verb}"));
        assert_eq!(answer.status, status, "{verb}: {}", answer.text());
        let proxy_status = answer
            .header("proxy-status")
            .unwrap_or_else(|| panic!("{verb}: no Proxy-Status"));
        assert!(proxy_status.contains(name), "{verb}: {proxy_status}");
        assert_eq!(get(to, "x", "/id").text(), "A /id");
    }
    assert_eq!(get(to, "x", "/huge-head").status, 502);
    assert_eq!(get(to, "x", "/id").text(), "A /id");
}

#[test]
fn a_refused_connection_is_a_502() {
    let nobody = local(free_port());
    let to = local(free_port());
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"http://{nobody}\"\n"
    ));
    let mut conn = Conn::open(to).unwrap();
    for _ in 0..3 {
        let answer = conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert_eq!(answer.status, 502);
        assert!(
            answer
                .header("proxy-status")
                .unwrap()
                .contains("connection_refused")
        );
        // Where it went is not for the client to know.
        assert!(!answer.text().contains(&nobody.port().to_string()));
    }
}

#[test]
fn a_name_that_does_not_resolve_is_a_warning_and_the_target_down() {
    let to = local(free_port());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = [\"nobody.invalid:80\"]\nresolve = {{ timeout = \"1s\" }}\n"
    ));
    let answer = get(to, "x", "/");
    assert!(matches!(answer.status, 502 | 503), "{}", answer.status);
    assert_eq!(
        gate.status()["upstreams"][0]["targets"][0]["health"],
        "unresolved"
    );
}

#[test]
fn a_name_in_the_hosts_file_is_resolved() {
    let origin = Origin::start("A");
    let to = local(free_port());
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = [\"localhost:{}\"]\n",
        origin.addr.port()
    ));
    assert_eq!(get(to, "x", "/id").text(), "A /id");
}

#[test]
fn a_cut_body_is_never_a_whole_answer() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    for verb in ["cut", "cut-chunk"] {
        let mut conn = Conn::open(to).unwrap();
        conn.send(format!("GET /{verb} HTTP/1.1\r\nhost: x\r\n\r\n"))
            .unwrap();
        assert!(conn.response().is_err(), "{verb}");
    }
    assert_eq!(get(to, "x", "/id").text(), "A /id");
}

#[test]
fn an_extra_answer_of_the_origin_never_reaches_another_client() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    for turn in 0..10 {
        assert_eq!(get(to, "x", "/twice").text(), "A /twice");
        let next = get(to, "x", &format!("/t{turn}/id"));
        assert_eq!((next.status, next.text()), (200, format!("A /t{turn}/id")));
    }
}

#[test]
fn a_client_that_goes_away_ends_its_request_at_the_origin() {
    let origin = Origin::start("A");
    let (gate, to) = proxied(&origin);
    // The last with another request behind it, which is not its turn yet.
    for (verb, more) in [
        ("hang", ""),
        ("infinite", ""),
        ("hang", "GET /id HTTP/1.1\r\nhost: x\r\n\r\n"),
    ] {
        let (before, broken) = (origin.requests(), origin.broken());
        let mut conn = Conn::open(to).unwrap();
        conn.send(format!("GET /{verb} HTTP/1.1\r\nhost: x\r\n\r\n{more}"))
            .unwrap();
        until("the request at the origin", || {
            (origin.requests() > before).then_some(())
        });
        drop(conn);
        until(&format!("the origin to notice ({verb})"), || {
            (origin.broken() > broken).then_some(())
        });
    }
    gate.wait_status("nothing in flight", |s| {
        s["upstreams"][0]["targets"][0]["in_flight"] == 0
    });
}

#[test]
fn a_slow_reader_holds_the_origin_back() {
    let origin = Origin::start("A");
    let (gate, to) = proxied(&origin);
    let before = gate.resident();
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /infinite HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    assert_eq!(conn.response_head().unwrap().status, 200);
    // Others are served meanwhile, again and again; an unbounded buffer would grow by gigabytes.
    for _ in 0..200 {
        assert_eq!(get(to, "x", "/id").status, 200);
    }
    let grown = gate.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes for one slow reader");
}

#[test]
fn response_streams_before_it_is_complete() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /drip HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    conn.response_head().unwrap();
    let mut seen = String::new();
    while !seen.contains("first ") {
        seen.push_str(&String::from_utf8(conn.some(100).unwrap()).unwrap());
    }
    assert!(!seen.contains("second"));
    origin.release_all();
    while !seen.contains("second") {
        seen.push_str(&String::from_utf8(conn.some(100).unwrap()).unwrap());
    }
}

/// How many of `n` requests on one connection each origin answered.
fn shares(to: SocketAddr, n: usize) -> HashMap<String, usize> {
    let mut shares = HashMap::new();
    let mut conn = Conn::open(to).unwrap();
    for _ in 0..n {
        let answer = conn
            .exchange("GET /id HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        *shares
            .entry(answer.header("x-origin").unwrap().to_owned())
            .or_default() += 1;
    }
    shares
}

#[test]
fn round_robin_follows_the_weights_exactly() {
    let [a, b, c, d] = ["A", "B", "C", "D"].map(Origin::start);
    let to = local(free_port());
    let gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = [\"{}\", {{ address = \"{}\", weight = 3 }}, \
         {{ address = \"{}\", weight = 2 }}, {{ address = \"{}\", weight = 0 }}]\n",
        a.addr, b.addr, c.addr, d.addr
    ));
    let seen = shares(to, 600);
    assert_eq!(
        (seen["A"], seen["B"], seen["C"], seen.get("D")),
        (100, 300, 200, None)
    );
    // New weights with the next request.
    gate.reload_ok(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = [\"{}\", \"{}\"]\n",
        a.addr, d.addr
    ));
    let seen = shares(to, 100);
    assert_eq!((seen["A"], seen["D"]), (50, 50));
}

#[test]
fn least_requests_avoids_the_busy_target() {
    let [a, b] = ["A", "B"].map(Origin::start);
    let to = local(free_port());
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\nbalance = \"least_requests\"\ntargets = [\"{}\", \"{}\"]\n",
        a.addr, b.addr
    ));
    let mut held = Conn::open(to).unwrap();
    held.send("GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    until("the request at an origin", || {
        (a.requests() + b.requests() == 1).then_some(())
    });
    let (busy, free) = if a.requests() == 1 {
        (&a, "B")
    } else {
        (&b, "A")
    };
    assert_eq!(shares(to, 50), HashMap::from([(free.to_owned(), 50)]));
    busy.release_all();
    held.response().unwrap();
}

#[test]
fn a_target_that_refuses_is_passed_over() {
    let a = Origin::start("A");
    let to = local(free_port());
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = [\"{}\", \"127.0.0.1:{}\"]\n",
        a.addr,
        free_port()
    ));
    let mut conn = Conn::open(to).unwrap();
    let mut good = 0;
    for _ in 0..20 {
        let answer = conn
            .exchange("GET /id HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        assert!(matches!(answer.status, 200 | 502), "{}", answer.status);
        good += usize::from(answer.status == 200);
    }
    assert!(good >= 10);
}

#[test]
fn h2c_with_prior_knowledge_is_proxied_with_trailers_and_bodies() {
    let origin = Origin::start("A");
    let (_gate, to) = proxied(&origin);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = h2c::H2::open(to).await;
        let (parts, body, trailers) =
            h2c::send(client.stream(), "GET", "http://h2.test/chunked", "")
                .await
                .unwrap();
        assert_eq!(
            (parts.status.as_u16(), &body[..]),
            (200, &b"hello world"[..])
        );
        assert!(parts.headers.get("transfer-encoding").is_none());
        assert_eq!(trailers.unwrap()["x-sum"], "42");
        let (_, body, _) = h2c::send(
            client.stream(),
            "POST",
            "http://h2.test/echo",
            vec![7u8; 300_000],
        )
        .await
        .unwrap();
        assert_eq!(body.len(), 300_000);
        let (_, head, _) = h2c::send(client.stream(), "GET", "http://h2.test/head", "")
            .await
            .unwrap();
        let head = String::from_utf8_lossy(&head).to_lowercase();
        assert!(
            head.starts_with("get /head http/1.1\r\n") && head.contains("\r\nhost: h2.test\r\n"),
            "{head}"
        );
        let many: Vec<_> = (0..50)
            .map(|i| {
                let stream = client.stream();
                tokio::spawn(async move {
                    h2c::send(stream, "GET", &format!("http://h2.test/s{i}/id"), "").await
                })
            })
            .collect();
        for (i, answer) in many.into_iter().enumerate() {
            assert_eq!(answer.await.unwrap().unwrap().1, format!("A /s{i}/id"));
        }
        assert!(client.is_open());
    });
}

#[test]
fn h1_and_h2c_may_be_switched_off() {
    let to = local(free_port());
    let document = |protocol: &str| {
        format!("[http.web]\nlisten = \"{to}\"\nprotocols = [\"{protocol}\"]\nrespond = \"x\"\n")
    };
    let gate = Gate::start(&document("h1"));
    let mut conn = Conn::open(to).unwrap();
    conn.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .unwrap();
    assert!(conn.response().map_or(true, |r| r.status >= 400));
    assert_eq!(get(to, "x", "/").text(), "x");
    gate.reload_ok(&document("h2"));
    let mut conn = Conn::open(to).unwrap();
    assert!(
        conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .map_or(true, |r| r.status >= 400)
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = h2c::H2::open(to).await;
        assert_eq!(
            h2c::send(client.stream(), "GET", "http://x/", "")
                .await
                .unwrap()
                .1,
            "x"
        );
    });
}

#[test]
fn an_upstream_may_be_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        while let Ok((mut stream, _)) = listener.accept() {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nunix",
            );
        }
    });
    let to = local(free_port());
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = [\"unix:{}\"]\n",
        path.display()
    ));
    assert_eq!(get(to, "x", "/").text(), "unix");
}

/// A connection attempt that is never answered ends with the connect timeout.
#[test]
fn a_connect_that_hangs_times_out() {
    // A listener whose queue is full swallows new connections silently.
    let full: TcpListener = {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&local(0).into()).unwrap();
        socket.listen(0).unwrap();
        socket.into()
    };
    let address = full.local_addr().unwrap();
    let _queued = std::net::TcpStream::connect(address).unwrap();
    let to = local(free_port());
    let _gate = Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = [\"{address}\"]\ntimeouts = {{ connect = \"300ms\" }}\n"
    ));
    let answer = get(to, "x", "/");
    assert_eq!(answer.status, 504);
    assert!(
        answer
            .header("proxy-status")
            .unwrap()
            .contains("connection_timeout")
    );
}

#[test]
fn nothing_listens_after_the_kit_is_done() {
    let to = local(free_port());
    drop(Gate::start(&format!(
        "[http.web]\nlisten = \"{to}\"\nrespond = \"x\"\n"
    )));
    assert!(raw::refused(to));
}
