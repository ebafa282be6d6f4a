//! How responses come back, and what becomes of their connections.

use std::sync::atomic::Ordering::SeqCst;

use http_body::Body;

use super::super::error::{Kind, Side};
use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn one_connection_serves_one_request_after_another() {
    let (address, connections) = always(OK).await;
    let upstream = one(address, |_| ());
    for _ in 0..20 {
        let (response, flight) = send(&upstream, get()).await.unwrap();
        assert_eq!(
            (
                response.body().size_hint().exact(),
                flight.target.in_flight()
            ),
            (Some(2), 1)
        );
        assert_eq!(text(response).await, "ok");
        assert_eq!((flight.target.idle(), flight.target.connections()), (1, 1));
        let target = flight.target.clone();
        drop(flight);
        assert_eq!(target.in_flight(), 0);
    }
    assert_eq!(connections.load(SeqCst), 1);
}

#[tokio::test]
async fn chunked_trailers_and_bodiless_answers_give_the_connection_back() {
    let (address, connections) = origin(|mut peer, _| async move {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: sum\r\n\r\n2\r\nok\r\n0\r\nsum: 7\r\n\r\n";
        while let Some(head) = peer.head().await {
            match head.split(' ').next() {
                Some("HEAD") => peer.say("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await,
                Some("DELETE") => peer.say("HTTP/1.1 204 No Content\r\n\r\n").await,
                Some("OPTIONS") => peer.say("HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n").await,
                _ => peer.say(chunked).await,
            }
        }
    })
    .await;
    let upstream = one(address, |_| ());
    for method in [Method::HEAD, Method::DELETE, Method::OPTIONS] {
        let (response, flight) = send(&upstream, request(method, RequestBody::empty()))
            .await
            .unwrap();
        assert!(response.body().is_end_stream());
        // Nothing to read, so it is free before anybody reads.
        assert_eq!(flight.target.idle(), 1);
    }
    let (response, _) = send(&upstream, get()).await.unwrap();
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["sum"], "7");
    assert_eq!(body.to_bytes(), "ok");
    send(&upstream, get()).await.unwrap();
    assert_eq!(connections.load(SeqCst), 1);
}

#[tokio::test]
async fn connection_close_and_a_full_pool_close() {
    let (address, connections) =
        always("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
    let upstream = one(address, |_| ());
    for _ in 0..2 {
        let (response, flight) = send(&upstream, get()).await.unwrap();
        assert_eq!(text(response).await, "ok");
        eventually(|| flight.target.connections() == 0).await;
    }
    assert_eq!(connections.load(SeqCst), 2);

    let (address, _) = always(OK).await;
    let upstream = one(address, |s| s.pool.idle = 1);
    let (a, b) = (
        send(&upstream, get()).await.unwrap(),
        send(&upstream, get()).await.unwrap(),
    );
    assert_eq!(a.1.target.connections(), 2);
    text(a.0).await;
    text(b.0).await;
    eventually(|| a.1.target.connections() == 1).await;
    assert_eq!(a.1.target.idle(), 1);
}

#[tokio::test]
async fn a_cut_body_is_an_error_not_an_end() {
    for head in [
        "content-length: 10\r\n\r\nhalf",
        "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let (address, _) = origin(move |mut peer, _| async move {
            peer.head().await.unwrap();
            peer.say(&format!("HTTP/1.1 200 OK\r\n{head}")).await;
        })
        .await;
        let upstream = one(address, |_| ());
        let (response, flight) = send(&upstream, get()).await.unwrap();
        let error = response.into_body().collect().await.unwrap_err();
        assert_eq!(
            (error.kind, error.side),
            (Kind::HttpResponseIncomplete, Side::Upstream)
        );
        assert!(
            error.detail.contains(&address.to_string()),
            "{}",
            error.detail
        );
        assert_eq!(flight.target.idle(), 0);
    }
}

#[tokio::test]
async fn garbage_and_oversized_heads_are_protocol_errors() {
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(70_000));
    for answer in [
        "SSH-2.0-OpenSSH\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n".to_owned(),
        long,
    ] {
        let (address, _) = origin(move |mut peer, _| {
            let answer = answer.clone();
            async move {
                peer.head().await.unwrap();
                // It may be refused halfway.
                let _ = peer.stream.write_all(answer.as_bytes()).await;
                peer.closed().await;
            }
        })
        .await;
        let error = send(&one(address, |_| ()), get()).await.unwrap_err();
        assert_eq!(
            (error.kind, error.unsent, error.status().as_u16()),
            (Kind::HttpProtocolError, false, 502)
        );
    }
}

#[tokio::test]
async fn an_upgrade_nobody_asked_for_is_refused() {
    let (address, _) =
        always("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n")
            .await;
    let error = send(&one(address, |_| ()), get()).await.unwrap_err();
    assert_eq!(error.kind, Kind::HttpUpgradeFailed);
}

#[tokio::test]
async fn bytes_after_a_response_never_answer_the_next_request() {
    let (address, connections) = origin(|mut peer, number| async move {
        peer.head().await.unwrap();
        peer.say(OK).await;
        if number == 0 {
            peer.say("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
                .await;
        }
        peer.closed().await;
    })
    .await;
    let upstream = one(address, |_| ());
    let (response, flight) = send(&upstream, get()).await.unwrap();
    assert_eq!(text(response).await, "ok");
    eventually(|| flight.target.connections() == 0).await;
    assert_eq!(text(send(&upstream, get()).await.unwrap().0).await, "ok");
    assert_eq!(connections.load(SeqCst), 2);
}

#[tokio::test]
async fn a_silent_origin_is_a_timeout_and_its_connection_is_closed() {
    let (ended, mut end) = mpsc::channel(1);
    let (address, _) = origin(move |mut peer, _| {
        let ended = ended.clone();
        async move {
            peer.head().await.unwrap();
            peer.closed().await;
            ended.send(()).await.unwrap();
        }
    })
    .await;
    let upstream = one(address, |s| {
        s.timeouts.response = Some(Duration::from_millis(50))
    });
    let error = send(&upstream, get()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.unsent, error.status().as_u16()),
        (Kind::HttpResponseTimeout, false, 504)
    );
    end.recv().await.unwrap();
    // A request's own limit goes before the upstream's.
    let options = SendOptions {
        response_timeout: Some(Duration::from_millis(1)),
        ..Default::default()
    };
    let upstream = one(address, |_| ());
    let error = upstream
        .send(&worker(0, 1), get(), options)
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::HttpResponseTimeout);
}

#[tokio::test]
async fn a_body_that_stops_is_a_read_timeout() {
    let (address, _) = origin(|mut peer, _| async move {
        peer.head().await.unwrap();
        peer.say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")
            .await;
        for _ in 0..4 {
            // Together longer than the limit, each within it.
            tokio::time::sleep(Duration::from_millis(100)).await;
            peer.say("a").await;
        }
        peer.closed().await;
    })
    .await;
    let upstream = one(address, |s| {
        s.timeouts.idle = Some(Duration::from_millis(300))
    });
    let (response, flight) = send(&upstream, get()).await.unwrap();
    let mut body = response.into_body();
    let mut got = 0;
    let error = loop {
        match body.frame().await.unwrap() {
            Ok(frame) => got += frame.data_ref().unwrap().len(),
            Err(error) => break error,
        }
    };
    assert_eq!((got, error.kind), (4, Kind::ConnectionReadTimeout));
    eventually(|| flight.target.connections() == 0).await;
}

#[tokio::test]
async fn a_body_dropped_early_closes_the_connection() {
    let (ended, mut end) = mpsc::channel(1);
    let (address, _) = origin(move |mut peer, _| {
        let ended = ended.clone();
        async move {
            peer.head().await.unwrap();
            peer.say("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nbeginning")
                .await;
            peer.closed().await;
            ended.send(()).await.unwrap();
        }
    })
    .await;
    let upstream = one(address, |_| ());
    let (response, flight) = send(&upstream, get()).await.unwrap();
    drop(response);
    tokio::time::timeout(PATIENCE, end.recv()).await.unwrap();
    assert_eq!(flight.target.idle(), 0);
}

#[tokio::test]
async fn a_reader_that_waits_makes_the_origin_wait() {
    const SIZE: usize = 64 << 20;
    let written = Arc::new(AtomicUsize::new(0));
    let counter = written.clone();
    let (address, _) = origin(move |mut peer, _| {
        let counter = counter.clone();
        async move {
            peer.head().await.unwrap();
            peer.say(&format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n"
            ))
            .await;
            let piece = vec![b'a'; 1 << 16];
            while counter.load(SeqCst) < SIZE {
                peer.stream.write_all(&piece).await.unwrap();
                counter.fetch_add(piece.len(), SeqCst);
            }
            peer.closed().await;
        }
    })
    .await;
    let upstream = one(address, |_| ());
    let (response, flight) = send(&upstream, get()).await.unwrap();
    // The origin writes until the sockets' buffers are full, then no further.
    let mut before = usize::MAX;
    while before != written.load(SeqCst) {
        before = written.load(SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        before < SIZE / 2,
        "{before} bytes were taken without a reader"
    );
    assert_eq!(
        response
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .len(),
        SIZE
    );
    assert_eq!(flight.target.idle(), 1);
}
