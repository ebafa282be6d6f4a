//! HTTP/2 connections: when they are let go, and conversations.

use std::task::Poll;

use super::*;
use crate::config::upstream::Protocol;
use crate::upstream::sweep;

/// An origin that answers over HTTP/2, and ends a connection when its client does.
async fn h2_origin() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let head = Response::builder().body(()).unwrap();
                    let mut body = respond.send_response(head, false).unwrap();
                    body.send_data(Bytes::from_static(b"two"), true).unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_connection_without_streams_is_kept_for_its_time_and_no_longer() {
    let address = h2_origin().await;
    let shared = shared(1);
    let build = |idle, idle_timeout| {
        let mut spec = spec(&[(TargetAddr::Ip(address), 1)]);
        spec.protocol = Protocol::H2c;
        (spec.pool.idle, spec.pool.idle_timeout) = (idle, idle_timeout);
        Upstream::build(&spec, &shared)
    };
    let patient = build(8, PATIENCE);
    let target = patient.targets().next().unwrap().2.clone();
    let (held, flight) = send(&patient, get()).await.unwrap();
    let (again, _) = send(&patient, get()).await.unwrap();
    assert_eq!(
        (text(held).await.as_str(), target.connections()),
        ("two", 1)
    );
    assert_eq!(text(again).await, "two");
    drop(flight);
    let worker = worker(0, 1);
    sweep(&shared, &worker);
    sweep(&shared, &worker);
    assert_eq!((target.idle(), target.connections()), (1, 1));
    // Another generation has less patience, and the same connection.
    let brief = build(8, Duration::from_millis(1));
    let (held, _) = send(&brief, get()).await.unwrap();
    // In use it stays, however long.
    sweep(&shared, &worker);
    tokio::time::sleep(Duration::from_millis(5)).await;
    sweep(&shared, &worker);
    assert_eq!(target.connections(), 1);
    assert_eq!(text(held).await, "two");
    eventually(|| {
        sweep(&shared, &worker);
        target.connections() == 0
    })
    .await;
    // One that keeps none keeps it no longer than to the next sweep.
    let none = build(0, PATIENCE);
    assert_eq!(text(send(&none, get()).await.unwrap().0).await, "two");
    eventually(|| {
        sweep(&shared, &worker);
        target.connections() == 0
    })
    .await;
}

#[tokio::test]
async fn what_was_made_for_one_protocol_serves_no_other() {
    let (address, connections) = always("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none").await;
    let shared = shared(1);
    let build = |protocol| {
        let mut spec = spec(&[(TargetAddr::Ip(address), 1)]);
        spec.protocol = protocol;
        Upstream::build(&spec, &shared)
    };
    let one = build(Protocol::Http1);
    assert_eq!(text(send(&one, get()).await.unwrap().0).await, "one");
    // Over it, this would be an answer.
    let two = build(Protocol::H2c);
    let error = send(&two, get()).await.unwrap_err();
    assert!(error.unsent, "{error}");
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 2);
    // In cleartext `auto` is HTTP/1, and yet another identity than none: so it is the same.
    let auto = build(Protocol::Auto);
    assert_eq!(text(send(&auto, get()).await.unwrap().0).await, "one");
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_answered_may_be_silent_for_longer_than_its_bodys_limit() {
    let rules = BodyRules {
        timeout: Some(Duration::from_secs(1)),
        ..BodyRules::default()
    };
    for answered in [false, true] {
        let (_feed, mut body) = fed(rules.clone());
        if answered {
            body.progress().unwrap().gate.shut();
        }
        let begun = tokio::time::Instant::now();
        let silent = std::future::poll_fn(|cx| {
            let polled = std::pin::Pin::new(&mut body);
            match http_body::Body::poll_frame(polled, cx) {
                Poll::Ready(Some(Err(error))) => Poll::Ready(error.status().as_u16()),
                Poll::Ready(other) => panic!("{other:?}"),
                Poll::Pending => Poll::Pending,
            }
        });
        let ended = tokio::time::timeout(Duration::from_secs(60), silent).await;
        assert_eq!(ended.ok(), (!answered).then_some(408));
        assert!(begun.elapsed() >= Duration::from_secs(if answered { 60 } else { 1 }));
    }
}
