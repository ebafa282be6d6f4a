//! Checks against real targets, and what becomes of requests.

use ::http::StatusCode;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::super::error::Kind;
use super::super::health::State;
use super::*;
use crate::config::upstream::{HealthSpec, OnDown, PassiveSpec, ProbeSpec, StatusRange};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Checked as quickly as can be; one answer decides.
fn health(probe: ProbeSpec) -> HealthSpec {
    HealthSpec {
        probe,
        port: None,
        interval: Duration::from_millis(2),
        timeout: Duration::from_secs(5),
        healthy_after: 1,
        unhealthy_after: 1,
        on_down: OnDown::Keep,
    }
}

fn tcp(send: &str, receive: Option<&str>) -> ProbeSpec {
    ProbeSpec::Tcp {
        send: send.into(),
        receive: receive.map(Into::into),
    }
}

fn http(path: &str, expect: &str) -> ProbeSpec {
    ProbeSpec::Http {
        method: Method::GET,
        path: path.into(),
        host: None,
        headers: vec![],
        expect: vec![StatusRange::parse(expect).unwrap()],
    }
}

fn grpc(service: &str) -> ProbeSpec {
    ProbeSpec::Grpc {
        service: service.into(),
        host: None,
        headers: vec![],
    }
}

fn checked(address: SocketAddr, spec: HealthSpec) -> Upstream {
    let upstream = one(address, |s| s.health = Some(spec));
    upstream.begin(false);
    upstream
}

/// Whether the first check passed, and what it said.
async fn verdict(upstream: &Upstream) -> (bool, String) {
    let target = upstream.targets().next().unwrap().2;
    eventually(|| target.report().check.is_some()).await;
    let check = target.report().check.unwrap();
    (check.passed, check.reason)
}

async fn verdict_on(address: SocketAddr, probe: ProbeSpec) -> (bool, String) {
    verdict(&checked(address, health(probe))).await
}

#[tokio::test]
async fn a_connection_is_enough_or_what_is_said_on_it() {
    let (quiet, _) = origin(|peer, _| peer.closed()).await;
    assert_eq!(
        verdict_on(quiet, tcp("", None)).await,
        (true, "connected".into())
    );
    let (passed, why) = verdict_on(nobody().await, tcp("", None)).await;
    assert!(!passed && why.starts_with("connect: "), "{why}");
    let (redis, _) = origin(|mut peer, _| async move {
        if peer.until("PING\r\n").await.is_some() {
            peer.say("+PO").await;
            peer.say("NG\r\n").await;
        }
    })
    .await;
    assert!(verdict_on(redis, tcp("PING\r\n", Some("+PONG"))).await.0);
    let (passed, why) = verdict_on(redis, tcp("PING\r\n", Some("-ERR"))).await;
    assert_eq!(
        (passed, why.as_str()),
        (false, "closed after 7 bytes without `receive`")
    );
    let (endless, _) = origin(|mut peer, _| async move {
        while peer.stream.write_all(&[b'x'; 1000]).await.is_ok() {}
    })
    .await;
    let (passed, why) = verdict_on(endless, tcp("", Some("y"))).await;
    assert_eq!(
        (passed, why.as_str()),
        (false, "`receive` is not in the first 16384 bytes")
    );
    let mut hasty = health(tcp("", Some("hello")));
    hasty.timeout = Duration::from_millis(50);
    let (passed, why) = verdict(&checked(quiet, hasty)).await;
    assert_eq!((passed, why.as_str()), (false, "no answer within 50ms"));
}

#[tokio::test]
async fn an_http_check_is_the_request_that_is_asked_for_and_follows_nothing() {
    let (told, mut heads) = mpsc::channel(8);
    let (address, _) = origin(move |mut peer, _| {
        let told = told.clone();
        async move {
            let head = peer.head().await.unwrap();
            let answer = match head.split(' ').nth(1).unwrap() {
                "/moved" => "HTTP/1.1 302 Found\r\nlocation: /ok\r\ncontent-length: 0\r\n\r\n",
                // A body without end is not waited for.
                "/ok?deep" => "HTTP/1.1 204 No Content\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nbegun",
            };
            let _ = told.try_send(head);
            peer.say(answer).await;
            peer.closed().await;
        }
    })
    .await;
    let mut spec = health(http("/ok?deep", "204"));
    spec.interval = Duration::from_secs(3600);
    let ProbeSpec::Http {
        method,
        host,
        headers,
        ..
    } = &mut spec.probe
    else {
        unreachable!()
    };
    *method = Method::OPTIONS;
    *host = Some("app.test".parse().unwrap());
    *headers = vec![("x-probe".parse().unwrap(), "1".parse().unwrap())];
    let verdict_of = verdict(&checked(address, spec)).await;
    assert_eq!(verdict_of, (true, "status 204 No Content".into()));
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with("OPTIONS /ok?deep HTTP/1.1\r\n"), "{head}");
    for field in [
        "host: app.test\r\n",
        "x-probe: 1\r\n",
        "connection: close\r\n",
    ] {
        assert!(head.contains(field), "{head}");
    }
    let (passed, why) = verdict_on(address, http("/moved", "2xx")).await;
    assert_eq!((passed, why.as_str()), (false, "status 302 Found"));
    assert!(verdict_on(address, http("/moved", "200-399")).await.0);
    assert!(verdict_on(address, http("/begun", "2xx")).await.0);
    // Another port than the target's.
    let mut elsewhere = health(http("/ok?deep", "204"));
    elsewhere.port = Some(address.port());
    assert!(verdict(&checked(nobody().await, elsewhere)).await.0);
}

/// A gRPC server that answers each call with `answer(request body)`.
async fn grpc_server(
    answer: fn(&[u8]) -> (&'static [u8], &'static str),
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(
                move |request: Request<hyper::body::Incoming>| async move {
                    let right = request.uri().path() == "/grpc.health.v1.Health/Check"
                        && request.headers()["content-type"] == "application/grpc"
                        && request.headers()["te"] == "trailers"
                        && request.method() == Method::POST;
                    if !right {
                        let wrong = Full::new(Bytes::new()).map_err(|e| match e {}).boxed();
                        return Response::builder().status(400).body(wrong);
                    }
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let (message, status) = answer(&body);
                    let mut trailers = ::http::HeaderMap::new();
                    trailers.insert("grpc-status", status.parse().unwrap());
                    let frames: Vec<Piece> = vec![
                        Ok(Frame::data(Bytes::from_static(message))),
                        Ok(Frame::trailers(trailers)),
                    ];
                    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed();
                    Response::builder()
                        .header("content-type", "application/grpc")
                        .body(body)
                },
            );
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (address, serving)
}

#[tokio::test]
async fn a_grpc_check_asks_for_its_service() {
    let (address, _serving) = grpc_server(|body| match body {
        b"\0\0\0\0\x0b\x0a\x09feed.Feed" => (b"\0\0\0\0\x02\x08\x01", "0"),
        b"\0\0\0\0\0" => (b"\0\0\0\0\x02\x08\x02", "0"),
        _ => (b"", "5"),
    })
    .await;
    assert_eq!(
        verdict_on(address, grpc("feed.Feed")).await,
        (true, "SERVING".into())
    );
    assert_eq!(
        verdict_on(address, grpc("")).await,
        (false, "NOT_SERVING".into())
    );
    assert_eq!(
        verdict_on(address, grpc("x")).await,
        (false, "grpc-status 5".into())
    );
    let (web, _) = always("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    assert!(!verdict_on(web, grpc("")).await.0);
}

#[tokio::test]
async fn a_check_over_http1_ends_no_sooner_than_its_lease_and_no_later() {
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let shared = shared(1);
    let mut spec = spec(&[(TargetAddr::Ip(nobody().await), 1)]);
    spec.health = Some(health(tcp("", None)));
    let old = Upstream::build(&spec, &shared);
    assert_eq!(tasks(), 0);
    old.begin(false);
    let new = Upstream::build(&spec, &shared);
    new.begin(true);
    assert_eq!(tasks(), 1);
    drop(old);
    eventually(|| !new.targets().next().unwrap().2.is_up()).await;
    assert_eq!(tasks(), 1);
    drop(new);
    eventually(|| tasks() == 0).await;
}

#[tokio::test]
async fn a_down_target_gets_nothing_until_all_are_down() {
    let ((a, to_a), (b, to_b)) = tokio::join!(always(OK), always(OK));
    let mut spec = spec(&[(TargetAddr::Ip(a), 1), (TargetAddr::Ip(b), 1)]);
    let mut checking = health(http("/", "503"));
    checking.interval = Duration::from_secs(3600);
    spec.health = Some(checking);
    let shared = shared(1);
    let upstream = Upstream::build(&spec, &shared);
    upstream.begin(false);
    let all = || upstream.targets().map(|(_, _, target)| target.clone());
    eventually(|| all().all(|target| target.state() == State::Down)).await;
    assert!(upstream.fails_open());
    let before = (to_a.load(Ordering::SeqCst), to_b.load(Ordering::SeqCst));
    for _ in 0..4 {
        let (response, _) = send(&upstream, get()).await.unwrap();
        assert_eq!(text(response).await, "ok");
    }
    assert!(to_a.load(Ordering::SeqCst) > before.0 && to_b.load(Ordering::SeqCst) > before.1);
    // A generation that does not check: all are up.
    spec.health = None;
    let next = Upstream::build(&spec, &shared);
    next.begin(true);
    assert!(!next.fails_open());
}

#[tokio::test]
async fn answers_and_errors_eject() {
    let (bad, to_bad) =
        always("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
    let (good, _) = always(OK).await;
    let mut spec = spec(&[(TargetAddr::Ip(bad), 1), (TargetAddr::Ip(good), 1)]);
    spec.passive = Some(PassiveSpec {
        failures: 3,
        window: Duration::from_secs(60),
        eject: Duration::from_secs(60),
    });
    let upstream = Upstream::build(&spec, &shared(1));
    upstream.begin(false);
    let mut bad_answers = 0;
    for _ in 0..20 {
        let (response, _) = send(&upstream, get()).await.unwrap();
        bad_answers += usize::from(response.status() == StatusCode::SERVICE_UNAVAILABLE);
        let _ = text(response).await;
    }
    assert_eq!((bad_answers, to_bad.load(Ordering::SeqCst)), (3, 1));
    let states: Vec<_> = upstream.targets().map(|(_, _, t)| t.state()).collect();
    assert_eq!(states, [State::Ejected, State::Up]);
}

#[tokio::test]
async fn a_body_that_breaks_is_a_failure_and_so_is_a_reset() {
    let (bad, _) = origin(|mut peer, number| async move {
        peer.head().await.unwrap();
        if number == 0 {
            peer.say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
                .await;
        }
    })
    .await;
    let (good, _) = always(OK).await;
    let mut spec = spec(&[(TargetAddr::Ip(bad), 1), (TargetAddr::Ip(good), 1)]);
    spec.passive = Some(PassiveSpec {
        failures: 2,
        window: Duration::from_secs(60),
        eject: Duration::from_secs(60),
    });
    let upstream = Upstream::build(&spec, &shared(1));
    let target = upstream.targets().next().unwrap().2.clone();
    let (response, flight) = send(&upstream, get()).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    flight.broken(&error);
    assert_eq!(target.state(), State::Up);
    let mut failed = 0;
    for _ in 0..6 {
        failed += usize::from(send(&upstream, get()).await.is_err());
    }
    assert_eq!((failed, target.state()), (1, State::Ejected));
}

#[tokio::test]
async fn what_a_target_has_in_flight_ends_with_it_if_that_is_wanted() {
    let on = Arc::new(AtomicUsize::new(1));
    let state = on.clone();
    let (address, _) = origin(move |mut peer, _| {
        let state = state.clone();
        async move {
            let head = peer.head().await.unwrap();
            if head.contains("/healthz") {
                let status = if state.load(Ordering::SeqCst) == 1 {
                    200
                } else {
                    500
                };
                peer.say(&format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n"))
                    .await;
            } else if head.starts_with("POST") {
                peer.say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
                    .await;
            }
            peer.closed().await;
        }
    })
    .await;
    for cut in [OnDown::Keep, OnDown::Cut] {
        on.store(1, Ordering::SeqCst);
        let mut spec = health(http("/healthz", "200"));
        spec.on_down = cut;
        let upstream = checked(address, spec);
        assert!(verdict(&upstream).await.0);
        let (response, mut flight) = send(&upstream, request(Method::POST, RequestBody::empty()))
            .await
            .unwrap();
        let mut waiting = Box::pin(send(&upstream, get()));
        let early = tokio::time::timeout(Duration::from_millis(20), &mut waiting).await;
        assert!(early.is_err());
        on.store(0, Ordering::SeqCst);
        let target = upstream.targets().next().unwrap().2;
        eventually(|| target.state() == State::Down).await;
        let mut ended = false;
        std::future::poll_fn(|cx| {
            ended = flight.poll_cut(cx).is_ready();
            std::task::Poll::Ready(())
        })
        .await;
        assert_eq!(ended, cut == OnDown::Cut);
        if cut == OnDown::Cut {
            let error = waiting.await.unwrap_err();
            assert_eq!(
                (error.kind, error.unsent),
                (Kind::ConnectionTerminated, false)
            );
        } else {
            let more = tokio::time::timeout(Duration::from_millis(20), &mut waiting).await;
            assert!(more.is_err());
        }
        drop(response);
    }
}

#[tokio::test]
async fn a_target_that_is_new_to_what_runs_gets_a_small_share_at_first() {
    let ((a, _), (b, _)) = tokio::join!(always(OK), always(OK));
    let mut spec = spec(&[(TargetAddr::Ip(a), 1)]);
    spec.slow_start = Duration::from_secs(3600);
    let shared = shared(1);
    let first = Upstream::build(&spec, &shared);
    first.begin(false);
    spec.targets.push(TargetSpec {
        address: TargetAddr::Ip(b),
        weight: 1,
        backup: false,
    });
    let second = Upstream::build(&spec, &shared);
    second.begin(true);
    let mut to_b = 0;
    for _ in 0..110 {
        let (response, flight) = send(&second, get()).await.unwrap();
        to_b += usize::from(flight.target.key().1 == TargetAddr::Ip(b));
        text(response).await;
    }
    assert_eq!(to_b, 10);
    // At boot all are new, and none is slow.
    let boot = Upstream::build(&spec, &super::shared(1));
    boot.begin(false);
    assert_eq!(&*boot.weights_now(), [100, 100]);
}
