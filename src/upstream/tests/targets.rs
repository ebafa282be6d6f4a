//! Which target is used, by which address, and what outlives a generation.

use std::sync::atomic::Ordering::SeqCst;

use super::super::error::Kind;
use super::super::{resolve, sweep};
use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn ip(address: SocketAddr) -> TargetAddr {
    TargetAddr::Ip(address)
}

#[tokio::test]
async fn a_refused_target_is_passed_over_for_any_method() {
    let (good, _) = always(OK).await;
    let (bad, worse) = (nobody().await, nobody().await);
    let upstream = Upstream::build(
        &spec(&[(ip(bad), 1), (ip(worse), 1), (ip(good), 1)]),
        &shared(1),
    );
    for _ in 0..6 {
        let (feed, body) = fed(BodyRules::default());
        feed.try_send(data("x")).unwrap();
        let answer = send(&upstream, request(Method::POST, body)).await;
        let (response, flight) = answer.unwrap();
        assert_eq!(flight.target.key().1, ip(good));
        assert_eq!(text(response).await, "ok");
    }
    let upstream = Upstream::build(&spec(&[(ip(bad), 1), (ip(worse), 1)]), &shared(1));
    let error = send(&upstream, get()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.unsent, error.status().as_u16()),
        (Kind::ConnectionRefused, true, 502)
    );
    assert!(
        upstream
            .targets()
            .all(|(_, _, target)| target.in_flight() == 0 && target.connections() == 0)
    );
}

#[tokio::test]
async fn weights_share_the_requests_and_workers_begin_apart() {
    let ((a, _), (b, _), (c, _)) = tokio::join!(always(OK), always(OK), always(OK));
    let upstream = Upstream::build(&spec(&[(ip(a), 3), (ip(b), 1), (ip(c), 0)]), &shared(2));
    let mut got = Vec::new();
    for _ in 0..8 {
        let (_, flight) = send(&upstream, get()).await.unwrap();
        got.push(flight.target.key().1.clone());
    }
    let count = |address| got.iter().filter(|t| **t == ip(address)).count();
    assert_eq!((count(a), count(b), count(c)), (6, 2, 0));
    let even = Upstream::build(&spec(&[(ip(a), 1), (ip(b), 1)]), &shared(2));
    assert_eq!(
        (even.pick(0, None, &[]), even.pick(1, None, &[])),
        (Some(0), Some(1))
    );
}

#[tokio::test]
async fn least_requests_counts_what_is_in_flight_everywhere() {
    let ((a, _), (b, _)) = tokio::join!(always(OK), always(OK));
    let mut spec = spec(&[(ip(a), 1), (ip(b), 1)]);
    spec.balance = Balance::LeastRequests;
    let upstream = Upstream::build(&spec, &shared(2));
    let held = send(&upstream, get()).await.unwrap();
    for index in [0, 1, 0, 1] {
        let (_, flight) = upstream
            .send(&worker(index, 2), get(), SendOptions::default())
            .await
            .unwrap();
        assert_ne!(flight.target.key(), held.1.target.key());
    }
}

#[tokio::test]
async fn without_weight_or_name_there_is_no_target() {
    let upstream = Upstream::build(&spec(&[(ip(nobody().await), 0)]), &shared(1));
    assert_eq!(
        send(&upstream, get()).await.unwrap_err().kind,
        Kind::DestinationUnavailable
    );
}

#[tokio::test]
async fn the_connection_limit_is_the_whole_process_and_another_workers_idle_one_helps() {
    let (address, connections) = always(OK).await;
    let mut spec = spec(&[(ip(address), 1)]);
    spec.pool.max_connections = Some(1);
    let upstream = Upstream::build(&spec, &shared(2));
    let held = send(&upstream, get()).await.unwrap();
    let error = upstream
        .send(&worker(1, 2), get(), SendOptions::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.unsent, error.status().as_u16()),
        (Kind::ConnectionLimitReached, true, 503)
    );
    text(held.0).await;
    let (response, _) = upstream
        .send(&worker(1, 2), get(), SendOptions::default())
        .await
        .unwrap();
    assert_eq!(text(response).await, "ok");
    // It went back to the worker that drives it.
    assert!(held.1.target.check_out(1).is_none() && held.1.target.check_out(0).is_some());
    assert_eq!(connections.load(SeqCst), 1);
}

#[tokio::test]
async fn an_unreachable_address_takes_no_longer_than_the_connect_timeout() {
    // A listener whose queue is full and never accepted drops further handshakes.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await
    {
        queued.push(stream);
        assert!(queued.len() < 64);
    }
    let upstream = one(address, |s| s.timeouts.connect = Duration::from_millis(50));
    let error = send(&upstream, get()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.unsent, error.status().as_u16()),
        (Kind::ConnectionTimeout, true, 504)
    );
    assert_eq!(upstream.targets().next().unwrap().2.connections(), 0);
}

#[cfg(unix)]
#[tokio::test]
async fn unix_sockets_are_targets_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("origin.sock");
    let upstream = Upstream::build(&spec(&[(TargetAddr::Unix(path.clone()), 1)]), &shared(1));
    assert_eq!(
        send(&upstream, get()).await.unwrap_err().kind,
        Kind::DestinationUnavailable
    );
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for _ in 0..2 {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut head).await.unwrap();
            }
            assert!(
                String::from_utf8(head)
                    .unwrap()
                    .contains("host: localhost\r\n")
            );
            stream.write_all(OK.as_bytes()).await.unwrap();
        }
    });
    for _ in 0..2 {
        let options = SendOptions {
            host_from_target: true,
            ..Default::default()
        };
        let (response, _) = upstream.send(&worker(0, 1), get(), options).await.unwrap();
        assert_eq!(text(response).await, "ok");
    }
    serving.await.unwrap();
}

#[tokio::test]
async fn the_target_can_name_the_host() {
    let (address, _) = origin(|mut peer, _| async move {
        let head = peer.head().await.unwrap();
        let host = format!("host: {}\r\n", peer.stream.local_addr().unwrap());
        assert!(
            head.contains(&host) && !head.contains("example.test"),
            "{head}"
        );
        peer.say(OK).await;
        peer.closed().await;
    })
    .await;
    let options = SendOptions {
        host_from_target: true,
        ..Default::default()
    };
    one(address, |_| ())
        .send(&worker(0, 1), get(), options)
        .await
        .unwrap();
}

#[tokio::test]
async fn idle_connections_survive_a_generation_and_end_with_the_last() {
    let (ended, mut end) = mpsc::channel(1);
    let (address, connections) = origin(move |mut peer, _| {
        let ended = ended.clone();
        async move {
            while peer.head().await.is_some() {
                peer.say(OK).await;
            }
            ended.send(()).await.unwrap();
        }
    })
    .await;
    let shared = shared(1);
    let old = Upstream::build(&spec(&[(ip(address), 1)]), &shared);
    text(send(&old, get()).await.unwrap().0).await;
    let mut changed = spec(&[(ip(address), 7)]);
    changed.pool.idle_timeout = Duration::from_secs(1);
    let new = Upstream::build(&changed, &shared);
    drop(old);
    text(send(&new, get()).await.unwrap().0).await;
    assert_eq!(connections.load(SeqCst), 1);
    // A request in flight keeps its target until its body has ended.
    let (response, flight) = send(&new, get()).await.unwrap();
    drop((new, flight));
    assert_eq!(text(response).await, "ok");
    tokio::time::timeout(PATIENCE, end.recv()).await.unwrap();
    assert!(shared.targets.alive().is_empty());
}

#[tokio::test]
async fn a_sweep_closes_what_was_idle_too_long_on_this_worker() {
    let (address, _) = always(OK).await;
    let shared = shared(2);
    let mut brief = spec(&[(ip(address), 1)]);
    brief.pool.idle_timeout = Duration::from_millis(20);
    let upstream = Upstream::build(&brief, &shared);
    for index in [0, 1] {
        let (response, _) = upstream
            .send(&worker(index, 2), get(), SendOptions::default())
            .await
            .unwrap();
        text(response).await;
    }
    let target = upstream.targets().next().unwrap().2;
    sweep(&shared, &worker(0, 2));
    assert_eq!(target.idle(), 2);
    tokio::time::sleep(Duration::from_millis(30)).await;
    sweep(&shared, &worker(0, 2));
    assert_eq!(target.idle(), 1);
    eventually(|| target.connections() == 1).await;
}

fn resolver(addresses: Vec<SocketAddr>) -> Arc<resolve::Resolver> {
    Arc::new(move |_, _| {
        let addresses = addresses.clone();
        Box::pin(async move {
            if addresses.is_empty() {
                Err(io::Error::other("no such name"))
            } else {
                Ok(addresses)
            }
        })
    })
}

#[tokio::test]
async fn every_address_of_a_name_is_tried_within_one_dial() {
    let (good, connections) = always(OK).await;
    let resolver = resolver(vec![nobody().await, nobody().await, good]);
    let shared = Arc::new(Shared::with_resolver(
        tokio::runtime::Handle::current(),
        1,
        resolver,
    ));
    let mut spec = spec(&[(TargetAddr::Name("api.test".into(), good.port()), 1)]);
    // Every request dials.
    spec.pool.idle = 0;
    let upstream = Upstream::build(&spec, &shared);
    assert!(upstream.resolved().await.is_empty());
    for _ in 0..6 {
        assert_eq!(text(send(&upstream, get()).await.unwrap().0).await, "ok");
    }
    assert_eq!(connections.load(SeqCst), 6);
}

#[tokio::test]
async fn a_name_that_is_not_found_is_told_and_skipped() {
    let (good, _) = always(OK).await;
    let lost = TargetAddr::Name("lost.test".into(), 80);
    let shared = Arc::new(Shared::with_resolver(
        tokio::runtime::Handle::current(),
        1,
        resolver(vec![]),
    ));
    let upstream = Upstream::build(&spec(&[(lost.clone(), 5), (ip(good), 1)]), &shared);
    assert_eq!(upstream.resolved().await, ["lost.test:80"]);
    for _ in 0..3 {
        assert_eq!(text(send(&upstream, get()).await.unwrap().0).await, "ok");
    }
    let alone = Upstream::build(&spec(&[(lost, 1)]), &shared);
    let error = send(&alone, get()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.status().as_u16(), error.unsent),
        (Kind::DnsError, 502, true)
    );
    // One lookup serves both upstreams.
    assert_eq!(shared.lookups.alive().len(), 1);
    drop((upstream, alone));
    assert!(shared.lookups.alive().is_empty());
}

#[tokio::test]
async fn the_systems_resolver_knows_localhost() {
    let (address, _) = always(OK).await;
    let upstream = Upstream::build(
        &spec(&[(TargetAddr::Name("localhost".into(), address.port()), 1)]),
        &shared(1),
    );
    assert!(upstream.resolved().await.is_empty());
    assert_eq!(text(send(&upstream, get()).await.unwrap().0).await, "ok");
}

#[test]
fn connections_of_a_shared_runtime_go_back_and_out_again() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (address, connections) = always(OK).await;
        let upstream = Arc::new(one(address, |_| ()));
        let tasks = (0..4).map(|_| {
            let upstream = upstream.clone();
            tokio::spawn(async move {
                for _ in 0..100 {
                    assert_eq!(text(send(&upstream, get()).await.unwrap().0).await, "ok");
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        let dialed = connections.load(SeqCst);
        assert!(dialed < 100, "{dialed} connections for 400 requests");
        let target = upstream.targets().next().unwrap().2;
        assert_eq!(target.in_flight(), 0);
        eventually(|| target.idle() == target.connections()).await;
    });
}
