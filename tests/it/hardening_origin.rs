//! Origins that misbehave: what is no answer becomes a 502 of ours, what breaks off never looks whole, and nothing of one
//! client's answer is another's. (`proxy.rs` has the everyday failures.)

use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::time::Duration;

use crate::kit::frames::{Fate, Wire, get as get2};
use crate::kit::{Conn, Gate, free_port, get};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Answers every request on every connection with `bytes`, then closes if `last`.
fn origin(bytes: impl Into<Vec<u8>>, last: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let bytes = bytes.into();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let bytes = bytes.clone();
            std::thread::spawn(move || {
                let mut conn = Conn::over(stream).unwrap();
                while let Ok(Some(_)) = conn.head() {
                    if conn.send(&bytes).is_err() || last {
                        break;
                    }
                }
                // Fails when the peer has closed it already.
                let _ = conn.stream.shutdown(Shutdown::Both);
            });
        }
    });
    addr
}

fn before(origin: SocketAddr) -> (Gate, SocketAddr) {
    let to = local(free_port());
    let gate = Gate::start(&server(to, origin));
    (gate, to)
}

fn server(to: SocketAddr, origin: SocketAddr) -> String {
    format!(
        "[http.web]\nlisten = \"{to}\"\nproxy = \"app\"\n[upstreams.app]\ntargets = [\"{origin}\"]\ntimeouts = {{ response = \"20s\" }}\n"
    )
}

#[test]
fn what_is_no_answer_is_a_502() {
    let head = |line: &str| format!("{line}\r\ncontent-length: 2\r\n\r\nok");
    let field = |field: &str| format!("HTTP/1.1 200 OK\r\n{field}\r\ncontent-length: 2\r\n\r\nok");
    let many: String = (0..1000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let cases = [
        ("status 000", head("HTTP/1.1 000 x")),
        ("status 99", head("HTTP/1.1 99 x")),
        ("status 2000", head("HTTP/1.1 2000 x")),
        ("status abc", head("HTTP/1.1 abc x")),
        ("no status", head("HTTP/1.1")),
        ("a version of the future", head("HTTP/3.0 200 OK")),
        ("HTTP/0.9", "ok".to_owned()),
        ("a NUL in a field", field("x: a\0b")),
        ("a lone CR in a field", field("x: a\rb")),
        ("a space before a colon", field("x : 1")),
        ("an empty name", field(": 1")),
        ("no colon", field("x")),
        ("two lengths", field("content-length: 3")),
        (
            "a signed length",
            "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok".to_owned(),
        ),
        (
            "a list of lengths",
            "HTTP/1.1 200 OK\r\ncontent-length: 2, 3\r\n\r\nok".to_owned(),
        ),
        (
            "a length over 64 bits",
            "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551617\r\n\r\nok".to_owned(),
        ),
        (
            "a thousand fields",
            format!("HTTP/1.1 200 OK\r\n{many}content-length: 2\r\n\r\nok"),
        ),
        (
            "101 unasked",
            "HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n".to_owned(),
        ),
        (
            "a head that breaks off",
            "HTTP/1.1 200 OK\r\ncontent-le".to_owned(),
        ),
        (
            "nothing but a 100",
            "HTTP/1.1 100 Continue\r\n\r\n".to_owned(),
        ),
    ];
    let (gate, to) = before(origin("", true));
    for (what, bytes) in cases {
        gate.reload_ok(&server(to, origin(bytes, true)));
        let answer = get(to, "x", "/");
        assert_eq!(answer.status, 502, "{what}: {:?}", answer.head.text);
        assert!(answer.header("proxy-status").is_some(), "{what}");
    }
}

/// Ten seconds of them would be ten seconds of a core.
#[test]
fn a_flood_of_interim_answers_is_a_502() {
    for one in [
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
        "\r\nHTTP/1.1 100 \n\n",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let many = one.repeat(1000);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut conn = Conn::over(stream).unwrap();
                if conn.head().is_ok_and(|head| head.is_some()) {
                    while conn.send(&many).is_ok() {}
                }
            }
        });
        let (gate, to) = before(addr);
        let start = std::time::Instant::now();
        let answer = get(to, "x", "/");
        assert_eq!(answer.status, 502);
        let named = answer.header("proxy-status").unwrap();
        assert!(named.contains("http_protocol_error"), "{named}");
        assert!(start.elapsed() < Duration::from_secs(10));
        gate.wait_status("nothing in flight", |s| {
            s["upstreams"][0]["targets"][0]["in_flight"] == 0
                && s["upstreams"][0]["targets"][0]["connections"] == 0
        });
    }
}

#[test]
fn a_few_interim_answers_are_none_of_the_clients_business() {
    let some = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(50);
    let (_gate, to) = before(origin(
        format!("{some}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
        false,
    ));
    let mut conn = Conn::open(to).unwrap();
    for _ in 0..5 {
        let answer = conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    }
}

/// Not even to a client that knows the end of the connection only: it must be a reset then.
#[test]
fn an_answer_that_breaks_off_looks_whole_to_nobody() {
    let cases = [
        (
            "a chunk",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n64\r\nonly",
        ),
        (
            "the last chunk",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ),
        (
            "a bad chunk",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
        ),
        (
            "a chunk that wraps",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n10000000000000001\r\nx",
        ),
        (
            "a length",
            "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhello",
        ),
    ];
    let (gate, to) = before(origin("", true));
    for (what, bytes) in cases {
        gate.reload_ok(&server(to, origin(bytes, true)));
        for text in [
            "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            "GET / HTTP/1.0\r\nhost: x\r\n\r\n",
            "GET / HTTP/1.0\r\nhost: x\r\nconnection: keep-alive\r\n\r\n",
        ] {
            let mut conn = Conn::open(to).unwrap();
            match conn.exchange(text) {
                Ok(answer) => assert_eq!(
                    answer.status,
                    502,
                    "{what} for {text:?}: {:?}",
                    answer.text()
                ),
                Err(error) => assert!(
                    !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                    "{what}: left hanging"
                ),
            }
        }
        let mut wire = Wire::open(to, &[]);
        wire.send(&get2(1, "/")).unwrap();
        match wire.fate(1) {
            // What breaks at once may be reset before its head has left.
            Fate::Answer(502) | Fate::Reset(_) => {}
            Fate::Answer(_) => {
                assert!(matches!(wire.fate(1), Fate::Reset(_)), "{what} over HTTP/2")
            }
            other => panic!("{what} over HTTP/2: {other:?}"),
        }
    }
}

/// The end of a generation is no end of an answer either.
#[test]
fn an_answer_that_is_cut_at_the_deadline_looks_whole_to_nobody() {
    let slow = crate::kit::Origin::start("A");
    let to = local(free_port());
    let gate = Gate::start(&server(to, slow.addr));
    let mut conn = Conn::open(to).unwrap();
    conn.send("GET /drip HTTP/1.0\r\nhost: x\r\n\r\n").unwrap();
    slow.wait_holding(1);
    assert_eq!(conn.response_head().unwrap().status, 200);
    gate.call(
        crate::kit::Call::post("/reload?drain_timeout=0s").toml(&gate.document(&format!(
            "[http.web]\nlisten = \"{to}\"\nrespond = \"new\"\n"
        ))),
    )
    .expect(200);
    let cut = conn.body(false, None, |_| {});
    assert!(cut.is_err(), "it looked whole");
    slow.release_all();
}

/// Whole ones are, of course, for each of them.
#[test]
fn an_answer_without_a_length_is_whole_for_an_old_client() {
    let (_gate, to) = before(origin("HTTP/1.0 200 OK\r\n\r\nhello", true));
    for version in ["1.0", "1.1"] {
        let mut conn = Conn::open(to).unwrap();
        let answer = conn
            .exchange(format!("GET / HTTP/{version}\r\nhost: x\r\n\r\n"))
            .unwrap();
        assert_eq!(answer.text(), "hello", "{version}");
    }
}

/// What an origin says beyond its answer belongs to nobody.
#[test]
fn what_follows_an_answer_is_nobodys() {
    for more in [
        "garbage",
        "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen",
        "\r\n\r\n",
    ] {
        let (_gate, to) = before(origin(
            format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{more}"),
            false,
        ));
        let mut conn = Conn::open(to).unwrap();
        for turn in 0..5 {
            let answer = conn.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            assert!(
                answer.status == 502 || answer.text() == "ok",
                "{more:?}, turn {turn}: {}",
                answer.text()
            );
        }
    }
}
