//! How requests go out: bodies, `Expect`, early answers, and when they are sent once more.

use std::sync::atomic::Ordering::SeqCst;

use ::http::HeaderMap;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::oneshot;

use super::super::error::{Kind, Side};
use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn bodies_stream_and_trailers_pass() {
    let (address, connections) = origin(|mut peer, _| async move {
        while let Some(head) = peer.head().await {
            assert!(head.starts_with("POST /x?y=1 HTTP/1.1\r\n"), "{head}");
            let body = peer.until("sum: 7\r\n\r\n").await.unwrap();
            assert_eq!(body, "3\r\none\r\n3\r\ntwo\r\n0\r\nsum: 7\r\n\r\n");
            peer.say(OK).await;
        }
    })
    .await;
    let upstream = one(address, |_| ());
    for _ in 0..2 {
        let (feed, body) = fed(BodyRules::default());
        let mut request = request(Method::POST, body);
        request
            .headers_mut()
            .insert("trailer", "sum".parse().unwrap());
        // An absolute target and another version are put into an origin's terms.
        *request.uri_mut() = "http://elsewhere.test/x?y=1".parse().unwrap();
        *request.version_mut() = ::http::Version::HTTP_2;
        let feeding = async {
            feed.send(data("one")).await.unwrap();
            feed.send(data("two")).await.unwrap();
            let trailers = HeaderMap::from_iter([("sum".parse().unwrap(), "7".parse().unwrap())]);
            feed.send(Ok(Frame::trailers(trailers))).await.unwrap();
        };
        let (answer, ()) = tokio::join!(send(&upstream, request), feeding);
        assert_eq!(text(answer.unwrap().0).await, "ok");
    }
    assert_eq!(connections.load(SeqCst), 1);
}

#[tokio::test]
async fn a_slow_upload_is_not_the_origins_silence() {
    let (address, _) = origin(|mut peer, _| async move {
        peer.head().await.unwrap();
        peer.until("0\r\n\r\n").await.unwrap();
        peer.say(OK).await;
        peer.closed().await;
    })
    .await;
    let upstream = one(address, |s| {
        s.timeouts.response = Some(Duration::from_millis(200))
    });
    let (feed, body) = fed(BodyRules::default());
    let feeding = async move {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            feed.send(data("x")).await.unwrap();
        }
    };
    let (answer, ()) = tokio::join!(send(&upstream, request(Method::POST, body)), feeding);
    assert_eq!(text(answer.unwrap().0).await, "ok");
}

#[tokio::test]
async fn the_clients_faults_are_the_clients() {
    let (address, _) = origin(|peer, _| peer.closed()).await;
    let upstream = one(address, |_| ());
    let limited = BodyRules {
        limit: Some(5),
        ..Default::default()
    };
    let hasty = BodyRules {
        timeout: Some(Duration::from_millis(30)),
        ..Default::default()
    };
    let malformed = || Err(io::Error::new(io::ErrorKind::InvalidInput, "bad chunk"));
    let cases = [
        (limited, vec![data("four"), data("two")], 413),
        (hasty, vec![data("one")], 408),
        (BodyRules::default(), vec![data("one"), malformed()], 400),
    ];
    for (rules, pieces, status) in cases {
        let (feed, body) = fed(rules);
        for piece in pieces {
            feed.send(piece).await.unwrap();
        }
        let error = send(&upstream, request(Method::POST, body))
            .await
            .unwrap_err();
        assert_eq!(
            (error.status().as_u16(), error.side, error.kind),
            (status, Side::Client, Kind::HttpRequestError)
        );
        assert!(!error.unsent);
        drop(feed);
    }
}

#[tokio::test]
async fn a_clients_fault_after_the_answer_began_is_still_the_clients() {
    let (address, _) = origin(|mut peer, _| async move {
        peer.head().await.unwrap();
        peer.say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
            .await;
        peer.closed().await;
    })
    .await;
    let upstream = one(address, |_| ());
    let (feed, body) = fed(BodyRules::default());
    feed.send(data("one")).await.unwrap();
    let (response, _) = send(&upstream, request(Method::POST, body)).await.unwrap();
    feed.send(Err(io::Error::other("gone"))).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    assert_eq!((error.side, error.status().as_u16()), (Side::Client, 400));
}

#[tokio::test]
async fn an_early_answer_arrives_while_the_body_is_unread() {
    let (ended, mut end) = mpsc::channel(1);
    let (address, connections) = origin(move |mut peer, _| {
        let ended = ended.clone();
        async move {
            peer.head().await.unwrap();
            peer.say(OK).await;
            peer.closed().await;
            ended.send(()).await.unwrap();
        }
    })
    .await;
    let upstream = one(address, |_| ());
    for _ in 0..2 {
        let (feed, body) = fed(BodyRules::default());
        feed.send(data("begun")).await.unwrap();
        let (response, flight) = send(&upstream, request(Method::POST, body)).await.unwrap();
        // The upload goes on beside the answer.
        feed.send(data("more")).await.unwrap();
        assert_eq!(text(response).await, "ok");
        // Its connection still owes the rest of the upload: never another request's.
        assert_eq!(flight.target.idle(), 0);
        tokio::time::timeout(PATIENCE, end.recv()).await.unwrap();
        // The body's reader is gone with it.
        eventually(|| feed.is_closed()).await;
    }
    assert_eq!(connections.load(SeqCst), 2);
}

#[tokio::test]
async fn a_refused_upload_brings_the_whole_answer_although_writes_fail() {
    // More than one read, and no more than the sockets hold: a reset discards what was not delivered yet.
    const SIZE: usize = 40_000;
    let (address, _) = origin(|mut peer, _| async move {
        peer.head().await.unwrap();
        let head = format!(
            "HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: {SIZE}\r\n\r\n"
        );
        peer.say(&head).await;
        peer.say(&"a".repeat(SIZE)).await;
        // Closing with unread bytes resets the connection.
    })
    .await;
    let upstream = one(address, |_| ());
    let (feed, body) = fed(BodyRules::default());
    let feeder =
        tokio::spawn(async move { while feed.send(data("0123456789abcdef")).await.is_ok() {} });
    let (response, _) = send(&upstream, request(Method::POST, body)).await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(text(response).await.len(), SIZE);
    tokio::time::timeout(PATIENCE, feeder)
        .await
        .unwrap()
        .unwrap();
}

fn expecting() -> (mpsc::Sender<Piece>, Request<RequestBody>) {
    let (feed, body) = fed(BodyRules {
        expect_continue: true,
        ..Default::default()
    });
    let mut request = request(Method::PUT, body);
    request
        .headers_mut()
        .insert("expect", "100-continue".parse().unwrap());
    request
        .headers_mut()
        .insert("content-length", "5".parse().unwrap());
    (feed, request)
}

#[tokio::test]
async fn expect_holds_the_body_until_the_origin_wants_it() {
    let (go, gone) = oneshot::channel::<()>();
    let gone = Arc::new(tokio::sync::Mutex::new(Some(gone)));
    let (address, _) = origin(move |mut peer, _| {
        let gone = gone.clone();
        async move {
            let head = peer.head().await.unwrap();
            assert!(head.contains("expect: 100-continue\r\n"), "{head}");
            assert!(peer.read.is_empty());
            gone.lock().await.take().unwrap().await.unwrap();
            assert!(
                peer.stream
                    .try_read(&mut [0])
                    .is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
            );
            peer.say("HTTP/1.1 100 Continue\r\n\r\n").await;
            peer.until("hello").await.unwrap();
            peer.say(OK).await;
            peer.closed().await;
        }
    })
    .await;
    let upstream = one(address, |_| ());
    let body = http_body_util::Full::from("hello").map_err(|e| match e {});
    let body = RequestBody::of(
        body,
        BodyRules {
            expect_continue: true,
            ..Default::default()
        },
    );
    let mut request = request(Method::PUT, body);
    request
        .headers_mut()
        .insert("expect", "100-continue".parse().unwrap());
    go.send(()).unwrap();
    let begun = std::time::Instant::now();
    let (response, flight) = send(&upstream, request).await.unwrap();
    assert_eq!(text(response).await, "ok");
    assert!(
        begun.elapsed() < Duration::from_millis(900),
        "the gate was opened by its timer"
    );
    assert_eq!(flight.target.idle(), 1);
}

#[tokio::test]
async fn an_answer_instead_of_100_leaves_the_body_unread() {
    let (address, _) = origin(|mut peer, _| async move {
        peer.head().await.unwrap();
        peer.say("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\n")
            .await;
        // Longer than the gate waits: a final answer shuts it for good.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert!(peer.read.is_empty());
        assert!(
            peer.stream
                .try_read(&mut [0])
                .is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
        );
        peer.say("no").await;
        peer.closed().await;
    })
    .await;
    let upstream = one(address, |_| ());
    let (feed, request) = expecting();
    feed.send(data("hello")).await.unwrap();
    let (response, flight) = send(&upstream, request).await.unwrap();
    assert_eq!(response.status(), 417);
    assert_eq!(text(response).await, "no");
    assert_eq!((feed.capacity(), flight.target.idle()), (3, 0));
}

#[tokio::test]
async fn an_origin_that_never_says_100_gets_the_body_after_a_second() {
    let (address, _) = origin(|mut peer, _| async move {
        peer.head().await.unwrap();
        peer.until("hello").await.unwrap();
        peer.say(OK).await;
        peer.closed().await;
    })
    .await;
    let upstream = one(address, |_| ());
    let (feed, request) = expecting();
    feed.send(data("hello")).await.unwrap();
    drop(feed);
    let begun = std::time::Instant::now();
    assert_eq!(text(send(&upstream, request).await.unwrap().0).await, "ok");
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

/// The origin answers the first request of its first connection, then reads a second one and closes without a word.
async fn forgetful() -> (SocketAddr, Arc<AtomicUsize>) {
    origin(|mut peer, number| async move {
        while peer.head().await.is_some() {
            peer.say(OK).await;
            if number == 0 {
                peer.head().await;
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_pooled_connection_that_ends_unanswered_is_replaced_if_that_is_safe() {
    let (address, connections) = forgetful().await;
    let upstream = one(address, |_| ());
    for _ in 0..2 {
        assert_eq!(text(send(&upstream, get()).await.unwrap().0).await, "ok");
    }
    assert_eq!(connections.load(SeqCst), 2);
    // Neither a method that is not idempotent nor a body is sent twice.
    let with_body = || {
        let (feed, body) = fed(BodyRules::default());
        feed.try_send(data("x")).unwrap();
        body
    };
    for unsafe_one in [
        request(Method::POST, RequestBody::empty()),
        request(Method::PUT, with_body()),
    ] {
        let (address, connections) = forgetful().await;
        let upstream = one(address, |_| ());
        text(send(&upstream, get()).await.unwrap().0).await;
        let error = send(&upstream, unsafe_one).await.unwrap_err();
        assert_eq!(
            (error.kind, error.unsent),
            (Kind::ConnectionTerminated, false)
        );
        assert_eq!(connections.load(SeqCst), 1);
    }
}

#[tokio::test]
async fn a_fresh_connection_that_ends_unanswered_is_not_tried_again() {
    let (address, connections) = origin(|mut peer, _| async move {
        peer.head().await;
    })
    .await;
    let error = send(&one(address, |_| ()), get()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.status().as_u16()),
        (Kind::ConnectionTerminated, 502)
    );
    assert_eq!(connections.load(SeqCst), 1);
}

#[tokio::test]
async fn any_method_survives_an_idle_connection_that_the_origin_closed() {
    let (address, connections) = origin(|mut peer, _| async move {
        peer.head().await;
        peer.say(OK).await;
    })
    .await;
    let upstream = one(address, |_| ());
    let mut seen = 0;
    for round in 0..30 {
        let (response, flight) = send(&upstream, request(Method::POST, RequestBody::empty()))
            .await
            .unwrap();
        assert_eq!(text(response).await, "ok");
        // Noticed by the driver, or not yet polled by it: the socket is closed in either case.
        if round % 2 == 0 {
            eventually(|| flight.target.connections() == 0).await;
        } else {
            std::thread::sleep(Duration::from_millis(2));
        }
        seen = connections.load(SeqCst);
    }
    assert_eq!(seen, 30);
}

/// Runs a hyper server whose handler sends the client's body on to `upstream`; returns the client's end.
fn plane(upstream: Upstream, rules: BodyRules) -> tokio::io::DuplexStream {
    let (client, server) = tokio::io::duplex(1 << 16);
    let upstream = Arc::new(upstream);
    let serve = service_fn(move |incoming: Request<Incoming>| {
        let (upstream, rules) = (upstream.clone(), rules.clone());
        async move {
            let request = incoming.map(|body| RequestBody::new(body, rules));
            match upstream
                .send(&worker(0, 1), request, SendOptions::default())
                .await
            {
                Ok((response, _)) => Ok::<_, Error>(response.map(|b| b.boxed_unsync())),
                Err(error) => {
                    let body = http_body_util::Full::from(error.to_string())
                        .map_err(|e| match e {})
                        .boxed_unsync();
                    Ok(Response::builder()
                        .status(error.status())
                        .body(body)
                        .unwrap())
                }
            }
        }
    });
    tokio::spawn(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(server), serve),
    );
    client
}

/// Reads from the client's end up to and including `end`.
async fn read_until(client: &mut tokio::io::DuplexStream, end: &str) -> String {
    let mut got = Vec::new();
    while !got.windows(end.len()).any(|w| w == end.as_bytes()) {
        let n = tokio::time::timeout(PATIENCE, client.read_buf(&mut got))
            .await
            .unwrap()
            .unwrap();
        assert_ne!(n, 0, "ended after {:?}", String::from_utf8_lossy(&got));
    }
    String::from_utf8(got).unwrap()
}

#[tokio::test]
async fn a_real_client_gets_100_when_the_origin_says_so() {
    let (address, _) = origin(|mut peer, _| async move {
        peer.head().await.unwrap();
        peer.say("HTTP/1.1 100 Continue\r\n\r\n").await;
        peer.until("hello").await.unwrap();
        peer.say(OK).await;
        peer.closed().await;
    })
    .await;
    let mut client = plane(
        one(address, |_| ()),
        BodyRules {
            expect_continue: true,
            ..Default::default()
        },
    );
    let head = "PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(
        read_until(&mut client, "\r\n\r\n").await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    client.write_all(b"hello").await.unwrap();
    assert!(
        read_until(&mut client, "ok")
            .await
            .starts_with("HTTP/1.1 200 OK")
    );
}

#[tokio::test]
async fn a_real_clients_malformed_chunk_is_its_own_fault() {
    let (address, _) = origin(|peer, _| peer.closed()).await;
    let mut client = plane(one(address, |_| ()), BodyRules::default());
    let bad = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nZZ\r\n";
    client.write_all(bad.as_bytes()).await.unwrap();
    let answer = read_until(&mut client, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn an_empty_body_needs_no_progress() {
    assert!(RequestBody::empty().progress().is_none());
    let (address, _) = always(OK).await;
    let mut client = plane(
        one(address, |_| ()),
        BodyRules {
            limit: Some(0),
            ..Default::default()
        },
    );
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    assert!(
        read_until(&mut client, "ok")
            .await
            .starts_with("HTTP/1.1 200 OK")
    );
}

#[tokio::test]
async fn an_idle_connection_that_ended_later_is_noticed_before_it_is_used_and_by_the_sweep() {
    let (end, ends) = tokio::sync::watch::channel(0);
    let (address, connections) = origin(move |mut peer, number| {
        let mut ends = ends.clone();
        async move {
            peer.head().await;
            peer.say(OK).await;
            ends.wait_for(|end| *end > number).await.unwrap();
        }
    })
    .await;
    let shared = shared(1);
    let upstream = Upstream::build(&spec(&[(TargetAddr::Ip(address), 1)]), &shared);
    for round in 1..=3 {
        let (response, flight) = send(&upstream, request(Method::POST, RequestBody::empty()))
            .await
            .unwrap();
        assert_eq!(text(response).await, "ok");
        assert_eq!((connections.load(SeqCst), flight.target.idle()), (round, 1));
        end.send_replace(round);
        // Long enough for the end to arrive.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let target = upstream.targets().next().unwrap().2;
    super::super::sweep(&shared, &worker(0, 1));
    assert_eq!((target.idle(), target.connections()), (0, 0));
}

#[tokio::test]
async fn an_upload_goes_on_while_nobody_reads_the_answer_that_came_early() {
    let (whole, uploaded) = oneshot::channel();
    let whole = std::sync::Mutex::new(Some(whole));
    let (address, _) = origin(move |mut peer, _| {
        let whole = whole.lock().unwrap().take().unwrap();
        async move {
            peer.head().await.unwrap();
            peer.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
                .await;
            peer.until("\r\n0\r\n\r\n").await.unwrap();
            whole.send(()).unwrap();
            peer.say("ok").await;
            assert!(peer.head().await.is_some());
            peer.say(OK).await;
            peer.closed().await;
        }
    })
    .await;
    let upstream = one(address, |_| ());
    let (feed, body) = fed(BodyRules::default());
    let (response, flight) = send(&upstream, request(Method::POST, body)).await.unwrap();
    let piece = Bytes::from(vec![b'a'; 4 * 1024]);
    for _ in 0..32 {
        let sending = feed.send(Ok(Frame::data(piece.clone())));
        tokio::time::timeout(PATIENCE, sending)
            .await
            .unwrap()
            .unwrap();
    }
    drop(feed);
    tokio::time::timeout(PATIENCE, uploaded)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(text(response).await, "ok");
    assert_eq!(flight.target.idle(), 1);
    // It serves on, with the task that it got.
    assert_eq!(text(send(&upstream, get()).await.unwrap().0).await, "ok");
    assert_eq!(flight.target.connections(), 1);
}

#[tokio::test]
async fn a_request_is_polled_only_when_something_happened() {
    let (address, _) = origin(|mut peer, _| async move {
        while peer.head().await.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            peer.say("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nok")
                .await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            peer.say("ok").await;
        }
    })
    .await;
    let upstream = one(address, |_| ());
    for round in 0..3 {
        let worker = worker(0, 1);
        let (mut sends, mut reads) = (0, 0);
        let mut sending = Box::pin(upstream.send(&worker, get(), SendOptions::default()));
        let (response, _flight) = std::future::poll_fn(|cx| {
            sends += 1;
            sending.as_mut().poll(cx)
        })
        .await
        .unwrap();
        let mut reading = Box::pin(response.into_body().collect());
        let body = std::future::poll_fn(|cx| {
            reads += 1;
            reading.as_mut().poll(cx)
        })
        .await;
        assert_eq!(body.unwrap().to_bytes(), "okok");
        // The first round dials. Once to write and once to read; a piece at hand and one that comes.
        assert!(sends == 2 || round == 0, "{sends}");
        assert_eq!(reads, 2);
    }
}
