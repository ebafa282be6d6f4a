//! What runs out: descriptors. Accepting pauses, says so, and goes on by itself.

use std::net::SocketAddr;

use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::kit::{Call, Conn, Gate, free_port, get, until};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

const ASK: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

#[test]
fn without_descriptors_accepting_pauses_and_goes_on_by_itself() {
    let to = local(free_port());
    let gate = Gate::setup()
        .descriptors(256)
        .runtime("max_connections = 100000")
        .start(&format!(
            "[http.web]\nlisten = \"{to}\"\nrespond = \"ok\"\n"
        ));
    let mut first = Conn::open(to).unwrap();
    assert_eq!(first.exchange(ASK).unwrap().status, 200);
    let mut many: Vec<Conn> = (0..400).map(|_| Conn::open(to).unwrap()).collect();
    // The admin API has descriptors of its own, and says what is wrong.
    let problem = until("accepting to pause", || {
        let answer = gate.call(Call::get("/readyz"));
        (answer.status == 503).then(|| answer.problem(503, "not-ready"))
    });
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("descriptors"), "{detail}");
    let status = gate.status();
    let open = status["descriptors"].as_u64().unwrap();
    assert!((150..250).contains(&open), "{open} open");
    gate.call(Call::get("/livez")).expect(200);
    // Who is in stays in.
    for _ in 0..100 {
        assert_eq!(first.exchange(ASK).unwrap().status, 200);
    }
    // Paused, not spinning.
    let pauses = gate.output().matches("accept pauses").count();
    assert!((1..20).contains(&pauses), "{pauses} pauses");

    // Who waits in the queue is served as others leave.
    let mut last = many.pop().unwrap();
    last.send(ASK).unwrap();
    many.truncate(300);
    drop(many);
    assert_eq!(last.response().unwrap().status, 200);
    until("accepting to go on", || {
        (gate.call(Call::get("/readyz")).status == 200).then_some(())
    });
    assert_eq!(get(to, "x", "/").status, 200);
    assert_eq!(gate.status()["panics"], 0);
}

/// A client of HTTP/2 takes no descriptor when it asks for a passage.
#[tokio::test]
async fn passages_over_http2_leave_descriptors_for_others() {
    let to = local(free_port());
    let gate = Gate::setup().descriptors(256).start(&format!(
        "[forward.office]\nlisten = \"{to}\"\ndestinations.allow = \"127.0.0.0/8\"\n"
    ));
    let origin = crate::tcp::echo();
    let mut connections = Vec::new();
    let mut passages = Vec::new();
    let (mut refused, mut granted) = (0, 0);
    for _ in 0..4 {
        let stream = tokio::net::TcpStream::connect(to).await.unwrap();
        let (sender, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        connections.push((sender, tokio::spawn(driver)));
    }
    // In turn, so that none comes after the last descriptor.
    for _ in 0..80 {
        for (sender, _) in &mut connections {
            let request = http::Request::connect(origin.addr.to_string())
                .body(http_body_util::Empty::<bytes::Bytes>::new())
                .unwrap();
            let answer = sender.send_request(request).await.unwrap();
            match answer.status().as_u16() {
                200 => granted += 1,
                503 => {
                    refused += 1;
                    let why = answer.headers()["proxy-status"].to_str().unwrap();
                    assert_eq!(why, "evergate; error=connection_limit_reached");
                }
                other => panic!("{other}"),
            }
            passages.push(answer);
        }
    }
    assert!(granted > 80 && refused > 80, "{granted} and {refused}");
    let open = gate.status()["descriptors"].as_u64().unwrap();
    assert!((150..225).contains(&open), "{open} open");
    // As some go, there is room again.
    drop(passages);
    for (_, driver) in connections {
        driver.abort();
        assert!(driver.await.is_err());
    }
    until("room", || {
        let mut conn = Conn::open(to).unwrap();
        let request = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", origin.addr);
        conn.send(request).unwrap();
        (conn.response_head().unwrap().status == 200).then_some(())
    });
}
