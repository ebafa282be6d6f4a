//! Connections over an in-memory stream, on paused time where a timer is meant.

use std::collections::BTreeMap;

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;

use super::*;
use crate::config::http::{ConnectionSpec, HttpSpec};
use crate::generation::{Generation, Serving, Verdict};
use crate::http::Face as _;
use crate::http::Files;
use crate::http::connection::QUIET;
use crate::http::pipeline::DISCARD_TIME;
use crate::http::record::Recording;
use crate::http::test_kit::{records, server, spec, worker};

fn entry(spec: &HttpSpec) -> Arc<Entry> {
    let recording = Recording {
        shared: &records(),
        log: None,
    };
    Arc::new(Entry::of_http(crate::http::Entry::build(
        &[spec],
        &BTreeMap::new(),
        &Files::new(),
        &Default::default(),
        recording,
    )))
}

fn listener(connection: ConnectionSpec) -> Arc<Listener> {
    let serving = Serving {
        entry: entry(&server("web", connection, "hello")),
        generation: Generation::new(1),
    };
    Arc::new(Listener {
        slot: Slot::new(7, serving),
        worker: worker(),
        handshakes: Arc::default(),
    })
}

struct Client {
    io: DuplexStream,
    served: JoinHandle<()>,
}

impl Client {
    fn connect(listener: &Arc<Listener>) -> Client {
        let (io, theirs) = tokio::io::duplex(256 * 1024);
        let guard = listener.slot.epoch().join();
        let spec = listener.slot.pin().entry.http().connection.clone();
        let peer: std::net::SocketAddr = "192.0.2.1:50000".parse().unwrap();
        let local = Some("192.0.2.2:80".parse().unwrap());
        let served = tokio::spawn(serve(
            theirs,
            peer.into(),
            local,
            listener.clone(),
            spec,
            guard,
        ));
        Client { io, served }
    }

    async fn send(&mut self, text: &str) {
        self.io.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads until `end` has come.
    async fn read_until(&mut self, end: &str) -> String {
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).ends_with(end) {
            let mut buffer = [0; 1024];
            let size = self.io.read(&mut buffer).await.unwrap();
            assert!(size > 0, "ended after {:?}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&buffer[..size]);
        }
        String::from_utf8(all).unwrap()
    }

    /// Reads to the end of the stream.
    async fn rest(&mut self) -> String {
        let mut all = String::new();
        self.io.read_to_string(&mut all).await.unwrap();
        all
    }

    async fn ended(self) {
        drop(self.io);
        self.served.await.unwrap();
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

#[tokio::test]
async fn requests_follow_each_other_and_may_be_pipelined() {
    let listener = listener(spec());
    let mut client = Client::connect(&listener);
    client.send(GET).await;
    let answer = client.read_until("hello").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("content-length: 5\r\n") && answer.contains("date: "),
        "{answer}"
    );
    client.send(&GET.repeat(3)).await;
    let mut answers = String::new();
    while answers.matches("hello").count() < 3 {
        answers.push_str(&client.read_until("hello").await);
    }
    client.ended().await;
    let generation = &listener.slot.pin().generation;
    assert_eq!(generation.in_flight(), 0);
    assert_eq!(
        listener
            .worker
            .counters
            .requests
            .load(std::sync::atomic::Ordering::Relaxed),
        4
    );
}

#[tokio::test]
async fn a_post_to_a_fixed_answer_keeps_the_connection() {
    let listener = listener(spec());
    let mut client = Client::connect(&listener);
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        .await;
    tokio::task::yield_now().await;
    client.send("12345").await;
    assert!(
        !client
            .read_until("hello")
            .await
            .contains("connection: close")
    );
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    client.send("3\r\nabc\r\n0\r\n\r\n").await;
    assert!(
        !client
            .read_until("hello")
            .await
            .contains("connection: close")
    );
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n")
        .await;
    assert!(
        client
            .read_until("hello")
            .await
            .contains("connection: close")
    );
    assert_eq!(client.rest().await, "");
    client.ended().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_it_comes() {
    let mut web = server("web", spec(), "hello");
    web.filters.body_limit = Some(Some(10));
    let serving = Serving {
        entry: entry(&web),
        generation: Generation::new(1),
    };
    let listener = Arc::new(Listener {
        slot: Slot::new(0, serving),
        worker: worker(),
        handshakes: Arc::default(),
    });
    let mut client = Client::connect(&listener);
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n")
        .await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(
        answer.contains("connection: close")
            && answer.contains("proxy-status: evergate; error=http_request_error")
    );
    client.ended().await;
}

#[tokio::test]
async fn head_and_http_1_0() {
    let listener = listener(spec());
    let mut client = Client::connect(&listener);
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let answer = client.read_until("\r\n\r\n").await;
    assert!(answer.contains("content-length: 5\r\n"), "{answer}");
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let answer = client.rest().await;
    assert!(
        answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("hello"),
        "{answer}"
    );
    client.ended().await;
}

#[tokio::test]
async fn a_client_that_shut_its_side_gets_the_answer() {
    let listener = listener(spec());
    let mut client = Client::connect(&listener);
    client.send(GET).await;
    client.io.shutdown().await.unwrap();
    assert!(client.rest().await.ends_with("hello"));
    client.ended().await;
}

#[tokio::test]
async fn ambiguous_requests_are_refused_and_end_the_connection() {
    for head in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let listener = listener(spec());
        let mut client = Client::connect(&listener);
        // Two requests before it, one with a body: the look at heads must find its place again.
        client.send(GET).await;
        client.read_until("hello").await;
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
            .await;
        client.read_until("hello").await;
        client.send(head).await;
        client.io.shutdown().await.unwrap();
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer:?}");
        assert_eq!(
            answer.matches("HTTP/1.1").count(),
            1,
            "{head:?}: {answer:?}"
        );
        client.ended().await;
    }
}

#[tokio::test]
async fn too_large_heads_are_431() {
    let mut limits = spec();
    limits.header_size = 1024;
    limits.headers = 10;
    for head in [
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            "y".repeat(2000)
        ),
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(20)),
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(100_000)),
    ] {
        let listener = listener(limits.clone());
        let mut client = Client::connect(&listener);
        client.send(&head).await;
        client.io.shutdown().await.unwrap();
        assert!(
            client.rest().await.starts_with("HTTP/1.1 431 "),
            "{}",
            &head[..60]
        );
        client.ended().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_let_go() {
    let listener = listener(spec());
    let begun = tokio::time::Instant::now();
    let mut client = Client::connect(&listener);
    assert_eq!(client.rest().await, "");
    assert_eq!(begun.elapsed().as_secs(), 10);
    client.ended().await;
    // Part of a preface is silence too.
    let mut client = Client::connect(&listener);
    client.send("PRI * HT").await;
    assert_eq!(client.rest().await, "");
    client.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_end_is_408() {
    let listener = listener(spec());
    for before in ["", GET] {
        let mut client = Client::connect(&listener);
        if !before.is_empty() {
            client.send(before).await;
            client.read_until("hello").await;
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        let begun = tokio::time::Instant::now();
        client.send("GET / HT").await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        client.send("TP/1.1\r\nHo").await;
        assert!(
            client
                .rest()
                .await
                .starts_with("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n")
        );
        assert_eq!(begun.elapsed().as_secs(), 10);
        client.ended().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_its_time_and_not_before() {
    let listener = listener(spec());
    let mut client = Client::connect(&listener);
    for _ in 0..3 {
        client.send(GET).await;
        client.read_until("hello").await;
        tokio::time::sleep(Duration::from_secs(74)).await;
    }
    client.send(GET).await;
    client.read_until("hello").await;
    let begun = tokio::time::Instant::now();
    assert_eq!(client.rest().await, "");
    assert_eq!(begun.elapsed().as_secs(), 75);
    client.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_let_go() {
    let mut web = server("web", spec(), &"x".repeat(1024 * 1024));
    web.connection.write_timeout = Some(Duration::from_secs(5));
    let serving = Serving {
        entry: entry(&web),
        generation: Generation::new(1),
    };
    let listener = Arc::new(Listener {
        slot: Slot::new(0, serving),
        worker: worker(),
        handshakes: Arc::default(),
    });
    let mut client = Client::connect(&listener);
    client.send(GET).await;
    let begun = tokio::time::Instant::now();
    (&mut client.served).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_client_takes_nothing_can_still_be_cut() {
    let mut web = server("web", spec(), &"x".repeat(1024 * 1024));
    web.connection.write_timeout = None;
    let serving = Serving {
        entry: entry(&web),
        generation: Generation::new(1),
    };
    let listener = Arc::new(Listener {
        slot: Slot::new(0, serving),
        worker: worker(),
        handshakes: Arc::default(),
    });
    let mut client = Client::connect(&listener);
    client.send(GET).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let generation = listener.slot.pin().generation.clone();
    assert_eq!(generation.in_flight(), 1);
    assert_eq!(generation.settle(false, |_| Verdict::Ends), 1);
    (&mut client.served).await.unwrap();
    assert_eq!(generation.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_accepted_from_a_retired_queue_is_served_and_told() {
    let listener = listener(spec());
    let (mut io, theirs) = tokio::io::duplex(1024);
    let guard = listener.slot.epoch().join();
    listener.slot.finish_epoch();
    io.write_all(GET.as_bytes()).await.unwrap();
    let peer = crate::net::Peer::Unix;
    let spec = listener.slot.pin().entry.http().connection.clone();
    let served = tokio::spawn(serve(theirs, peer, None, listener.clone(), spec, guard));
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.contains("connection: close\r\n") && answer.ends_with("hello"),
        "{answer}"
    );
    drop(io);
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_finishing_connection_says_so_on_its_next_response() {
    let listener = listener(spec());
    let mut client = Client::connect(&listener);
    client.send(GET).await;
    client.read_until("hello").await;
    listener.slot.finish_epoch();
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.send(GET).await;
    let answer = client.rest().await;
    assert!(
        answer.contains("connection: close\r\n") && answer.ends_with("hello"),
        "{answer}"
    );
    client.ended().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_finishing_connection_lingers_two_seconds() {
    let listener = listener(spec());
    let mut client = Client::connect(&listener);
    client.send(GET).await;
    client.read_until("hello").await;
    let mut silent = Client::connect(&listener);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let begun = tokio::time::Instant::now();
    let epoch = listener.slot.finish_epoch();
    assert_eq!(client.rest().await, "");
    assert_eq!(silent.rest().await, "");
    assert_eq!(begun.elapsed().as_secs(), 2);
    client.ended().await;
    silent.ended().await;
    assert_eq!(epoch.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cut_epoch_ends_its_connections_at_once() {
    let listener = listener(spec());
    let mut client = Client::connect(&listener);
    client.send(GET).await;
    client.read_until("hello").await;
    let begun = tokio::time::Instant::now();
    listener.slot.epoch().cut.cancel();
    assert_eq!(client.rest().await, "");
    assert_eq!(begun.elapsed().as_secs(), 0);
    client.ended().await;
}

#[tokio::test]
async fn the_last_request_of_a_connection_says_so() {
    let mut limits = spec();
    limits.requests_per_connection = Some(2);
    let listener = listener(limits);
    let mut client = Client::connect(&listener);
    client.send(GET).await;
    assert!(
        !client
            .read_until("hello")
            .await
            .contains("connection: close")
    );
    client.send(GET).await;
    assert!(client.rest().await.contains("connection: close"));
    client.ended().await;
}

#[tokio::test]
async fn the_next_request_sees_the_new_generation() {
    let listener = listener(spec());
    let mut client = Client::connect(&listener);
    client.send(GET).await;
    client.read_until("hello").await;
    let serving = Serving {
        entry: entry(&server("web", spec(), "goodbye")),
        generation: Generation::new(2),
    };
    listener.slot.adopt(serving);
    client.send(GET).await;
    client.read_until("goodbye").await;
    client.ended().await;
}

/// Sends all of `text` at once, shuts its side and returns what comes back.
async fn answers_to(text: &str) -> String {
    let listener = listener(spec());
    let mut client = Client::connect(&listener);
    client.send(text).await;
    client.io.shutdown().await.unwrap();
    let answers = client.rest().await;
    client.ended().await;
    answers
}

#[tokio::test]
async fn a_pipelined_request_is_looked_at_like_any_other() {
    let bad = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let fixed = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    for before in [GET, fixed, &GET.repeat(3), &[GET, fixed, fixed].concat()] {
        let answers = answers_to(&format!("{before}{bad}")).await;
        let good = before.matches("HTTP/1.1").count();
        assert_eq!(
            (
                answers.matches("HTTP/1.1 200 ").count(),
                answers.matches("HTTP/1.1 400 ").count()
            ),
            (good, 1),
            "{before:?}: {answers:?}"
        );
    }
}

#[tokio::test]
async fn a_pipelined_head_in_two_pieces_is_not_taken_for_another() {
    let chunked =
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let fixed = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let tail = "erer: http://x/#f\r\n\r\n";
    for before in [GET, fixed, chunked] {
        let listener = listener(spec());
        let mut client = Client::connect(&listener);
        client
            .send(&format!("{before}GET / HTTP/1.1\r\nHost: a\r\nRef"))
            .await;
        client.read_until("hello").await;
        client.send(tail).await;
        let answer = client.read_until("hello").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{before:?}: {answer}");
        // In step again.
        client.send("GET /#f HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{before:?}: {answer}");
        client.ended().await;
    }
}

/// A body of a byte now and then, which is only thrown away.
async fn drip(client: &mut Client) {
    client
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n")
        .await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.send("x").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_wants_is_waited_for_only_so_long() {
    let listener = listener(spec());
    let mut client = Client::connect(&listener);
    let begun = tokio::time::Instant::now();
    drip(&mut client).await;
    let mut first = [0; 1];
    loop {
        tokio::select! {
            read = client.io.read(&mut first) => { assert_eq!(read.unwrap(), 1); break }
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        client.send("x").await;
    }
    assert!(begun.elapsed() <= DISCARD_TIME + Duration::from_secs(1));
    let answer = client.rest().await;
    assert!(
        answer.contains("connection: close\r\n") && answer.ends_with("hello"),
        "{answer}"
    );
    client.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_wants_keeps_no_routes_and_can_be_cut() {
    let listener = listener(spec());
    let old = listener.slot.pin();
    let (routes, generation) = (Arc::downgrade(&old.entry), old.generation.clone());
    drop(old);
    let mut client = Client::connect(&listener);
    drip(&mut client).await;
    listener.slot.adopt(Serving {
        entry: entry(&server("web", spec(), "goodbye")),
        generation: Generation::new(2),
    });
    assert_eq!(routes.strong_count(), 0);
    let begun = tokio::time::Instant::now();
    assert_eq!(generation.settle(false, |_| Verdict::Ends), 1);
    let answer = client.read_until("hello").await;
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert_eq!(begun.elapsed().as_secs(), 0);
    client.ended().await;
}

mod http2 {
    use super::*;
    use http_body_util::{BodyExt as _, Empty, Full};
    use hyper::client::conn::http2::{self, SendRequest};
    use hyper_util::rt::TokioExecutor;

    type Sender = SendRequest<Full<Bytes>>;

    async fn connect(
        listener: &Arc<Listener>,
    ) -> (Sender, JoinHandle<Result<(), hyper::Error>>, JoinHandle<()>) {
        let Client { io, served } = Client::connect(listener);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
        (sender, tokio::spawn(connection), served)
    }

    fn get() -> Request<Full<Bytes>> {
        Request::get("http://a.test/")
            .body(Full::default())
            .unwrap()
    }

    async fn text(sender: &mut Sender, request: Request<Full<Bytes>>) -> String {
        let response = sender.send_request(request).await.unwrap();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn streams_overlap_and_see_the_new_generation() {
        let listener = listener(spec());
        let (mut sender, _connection, served) = connect(&listener).await;
        assert_eq!(text(&mut sender, get()).await, "hello");
        let (mut a, mut b) = (sender.clone(), sender.clone());
        let (x, y) = tokio::join!(text(&mut a, get()), text(&mut b, get()));
        assert_eq!((x.as_str(), y.as_str()), ("hello", "hello"));
        let serving = Serving {
            entry: entry(&server("web", spec(), "goodbye")),
            generation: Generation::new(2),
        };
        listener.slot.adopt(serving);
        assert_eq!(text(&mut sender, get()).await, "goodbye");
        drop((sender, a, b));
        served.await.unwrap();
        assert_eq!(listener.slot.pin().generation.in_flight(), 0);
    }

    #[tokio::test]
    async fn head_has_a_length_and_no_content() {
        let listener = listener(spec());
        let (mut sender, _connection, _served) = connect(&listener).await;
        let request = Request::head("http://a.test/")
            .body(Full::default())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.headers()["content-length"], "5");
        assert!(
            response
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .is_empty()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_finishing_connection_goes_away() {
        let listener = listener(spec());
        let (mut sender, connection, served) = connect(&listener).await;
        assert_eq!(text(&mut sender, get()).await, "hello");
        listener.slot.finish_epoch();
        served.await.unwrap();
        connection.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_goes_away_after_its_time() {
        let listener = listener(spec());
        let (mut sender, _connection, served) = connect(&listener).await;
        assert_eq!(text(&mut sender, get()).await, "hello");
        let begun = tokio::time::Instant::now();
        served.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), 75);
    }

    #[tokio::test(start_paused = true)]
    async fn a_preface_in_single_bytes_and_then_silence() {
        let listener = listener(spec());
        let mut client = Client::connect(&listener);
        let begun = tokio::time::Instant::now();
        for byte in PREFACE {
            client.io.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut answer = Vec::new();
        client.io.read_to_end(&mut answer).await.unwrap();
        // A SETTINGS frame first: it was taken for HTTP/2.
        assert_eq!(answer[3], 4);
        assert!((10..=12).contains(&begun.elapsed().as_secs()));
        client.ended().await;
    }

    #[tokio::test]
    async fn a_method_that_begins_like_the_preface_is_http_1() {
        let listener = listener(spec());
        for method in ["PUT", "PRI", "PROPFIND", "P"] {
            let mut client = Client::connect(&listener);
            for byte in format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n").bytes() {
                client.io.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            client.read_until("hello").await;
            client.ended().await;
        }
    }

    #[tokio::test]
    async fn a_protocol_that_is_not_allowed_gets_nothing() {
        for (h1, h2, sent) in [
            (true, false, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            (false, true, GET),
        ] {
            let listener = listener(ConnectionSpec { h1, h2, ..spec() });
            let mut client = Client::connect(&listener);
            client.send(sent).await;
            assert_eq!(client.rest().await, "", "{sent:?}");
            client.ended().await;
        }
    }

    /// A response that its client does not take: its window is too small for it.
    async fn stalled(
        write_timeout: Option<Duration>,
    ) -> (Arc<Listener>, http::Response<Incoming>, impl Sized) {
        let mut web = server("web", spec(), &"x".repeat(1024 * 1024));
        web.connection.write_timeout = write_timeout;
        web.connection.idle_timeout = None;
        let serving = Serving {
            entry: entry(&web),
            generation: Generation::new(1),
        };
        let listener = Arc::new(Listener {
            slot: Slot::new(0, serving),
            worker: worker(),
            handshakes: Arc::default(),
        });
        let Client { io, served } = Client::connect(&listener);
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1024)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(io))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::get("http://a.test/").body(Empty::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        (listener, response, (sender, connection, served))
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_client_takes_nothing_is_reset() {
        let (listener, response, _connection) = stalled(Some(Duration::from_secs(5))).await;
        let begun = tokio::time::Instant::now();
        let generation = listener.slot.pin().generation.clone();
        while generation.in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(
            (4..=6).contains(&begun.elapsed().as_secs()),
            "{:?}",
            begun.elapsed()
        );
        assert!(response.into_body().collect().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_client_takes_nothing_can_still_be_cut() {
        let (listener, response, _connection) = stalled(None).await;
        tokio::time::sleep(Duration::from_secs(100)).await;
        let generation = listener.slot.pin().generation.clone();
        assert_eq!(generation.in_flight(), 1);
        assert_eq!(
            generation.settle(false, |_| crate::generation::Verdict::Ends),
            1
        );
        assert!(response.into_body().collect().await.is_err());
        assert_eq!(generation.in_flight(), 0);
    }
}

/// Lets a connection fall idle for longer than it keeps anything, unless it ends before.
async fn fall_quiet() {
    tokio::time::sleep(QUIET + Duration::from_millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn a_parked_connection_serves_on_as_often_as_it_falls_quiet() {
    let listener = listener(spec());
    let mut client = Client::connect(&listener);
    for round in 0..3 {
        client.send(GET).await;
        let answer = client.read_until("hello").await;
        assert!(!answer.contains("connection: close"), "{answer}");
        fall_quiet().await;
        // A head that comes in pieces, and two that come as one.
        client.send(&GET[..round * 5 + 1]).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        client.send(&GET[round * 5 + 1..]).await;
        client.read_until("hello").await;
        fall_quiet().await;
        client.send(&GET.repeat(2)).await;
        let mut answers = String::new();
        while answers.matches("hello").count() < 2 {
            answers.push_str(&client.read_until("hello").await);
        }
        fall_quiet().await;
    }
    client.ended().await;
    let counters = &listener.worker.counters;
    let served = counters.requests.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(served, 12);
}

#[tokio::test(start_paused = true)]
async fn a_parked_connection_has_the_time_it_would_have_had() {
    let idle = Duration::from_secs(20);
    let listener = listener(ConnectionSpec {
        idle_timeout: Some(idle),
        header_timeout: Some(Duration::from_secs(5)),
        ..spec()
    });
    let mut client = Client::connect(&listener);
    client.send(GET).await;
    client.read_until("hello").await;
    let begun = tokio::time::Instant::now();
    assert_eq!(client.rest().await, "");
    assert_eq!(begun.elapsed().as_secs(), idle.as_secs());
    // A head that does not end has its own from its first byte.
    let mut client = Client::connect(&listener);
    client.send(GET).await;
    client.read_until("hello").await;
    tokio::time::sleep(idle - Duration::from_secs(1)).await;
    client.send("GET / HT").await;
    let begun = tokio::time::Instant::now();
    assert!(client.rest().await.starts_with("HTTP/1.1 408 "));
    assert_eq!(begun.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_parked_connection_ends_when_it_is_told_to_and_with_its_client() {
    let listener = listener(spec());
    let parked = async || {
        let mut client = Client::connect(&listener);
        client.send(GET).await;
        client.read_until("hello").await;
        fall_quiet().await;
        client
    };
    let client = parked().await;
    assert!(!client.served.is_finished());
    client.ended().await;
    // It lingers for one more request, which is told.
    let (mut asks, mut silent, mut cut) = (parked().await, parked().await, parked().await);
    listener.slot.epoch().finish.cancel();
    let begun = tokio::time::Instant::now();
    // All have heard of it once there is nothing to do but to wait.
    tokio::time::sleep(Duration::from_millis(1)).await;
    asks.send(GET).await;
    cut.send("GET / ").await;
    assert!(asks.rest().await.contains("connection: close"));
    assert_eq!(begun.elapsed().as_secs(), 0);
    assert_eq!(silent.rest().await, "");
    assert_eq!(begun.elapsed().as_secs(), 2);
    listener.slot.epoch().cut.cancel();
    assert_eq!(cut.rest().await, "");
}

/// What a parked connection keeps of its task.
#[tokio::test]
async fn the_task_of_a_connection_is_small() {
    let listener = listener(spec());
    let (_io, theirs) = tokio::io::duplex(1);
    let spec = listener.slot.pin().entry.http().connection.clone();
    let peer: std::net::SocketAddr = "192.0.2.1:50000".parse().unwrap();
    let guard = listener.slot.epoch().join();
    let task = serve(theirs, peer.into(), None, listener.clone(), spec, guard);
    let size = std::mem::size_of_val(&task);
    assert!(size <= 768, "{size} bytes");
}
