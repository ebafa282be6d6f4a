//! What is sent again, where to, and how often.

use std::sync::atomic::Ordering::SeqCst;

use super::*;
use crate::config::http::RetrySpec;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno";

fn retrying(change: impl FnOnce(&mut RetrySpec)) -> SendOptions {
    let mut spec = RetrySpec::default();
    change(&mut spec);
    SendOptions {
        retries: Some(Arc::new(spec)),
        ..SendOptions::default()
    }
}

fn two(a: SocketAddr, b: SocketAddr) -> Upstream {
    let spec = spec(&[(TargetAddr::Ip(a), 1), (TargetAddr::Ip(b), 1)]);
    Upstream::build(&spec, &shared(1))
}

async fn status(
    upstream: &Upstream,
    request: Request<RequestBody>,
    options: SendOptions,
) -> Result<u16, Error> {
    let worker = worker(0, 1);
    let sending = upstream.send(&worker, request, options);
    let answer = tokio::time::timeout(PATIENCE, sending).await.unwrap();
    answer.map(|(response, _)| response.status().as_u16())
}

#[tokio::test]
async fn a_bad_status_is_tried_elsewhere_if_idempotent() {
    let ((bad, _), (good, _)) = tokio::join!(always(BUSY), always(OK));
    let upstream = two(bad, good);
    let by_status = || retrying(|spec| spec.statuses = vec![503]);
    for _ in 0..4 {
        assert_eq!(status(&upstream, get(), by_status()).await.unwrap(), 200);
    }
    let mut posts = Vec::new();
    for _ in 0..2 {
        let post = request(Method::POST, RequestBody::empty());
        posts.push(status(&upstream, post, by_status()).await.unwrap());
    }
    posts.sort_unstable();
    assert_eq!(posts, [200, 503]);
    // Another status is not asked for, and with nowhere else to go the answer stands.
    let other = || retrying(|spec| spec.statuses = vec![502]);
    let alone = one(bad, |_| ());
    assert_eq!(status(&alone, get(), by_status()).await.unwrap(), 503);
    let mut got = Vec::new();
    for _ in 0..2 {
        got.push(status(&upstream, get(), other()).await.unwrap());
    }
    got.sort_unstable();
    assert_eq!(got, [200, 503]);
}

#[tokio::test]
async fn a_kept_body_is_sent_again_whole() {
    let (bad, _) = origin(|mut peer, _| async move {
        peer.until("hello").await;
    })
    .await;
    let (good, _) = origin(|mut peer, _| async move {
        while peer.until("hello").await.is_some() {
            peer.say(OK).await;
        }
    })
    .await;
    let upstream = two(bad, good);
    for _ in 0..2 {
        let whole = http_body_util::Full::from("hello").map_err(|never| match never {});
        let body = RequestBody::of(whole, BodyRules::default());
        let body = body.keep(5).await.unwrap();
        let mut put = request(Method::PUT, body);
        put.headers_mut()
            .insert("content-length", "5".parse().unwrap());
        let got = status(&upstream, put, retrying(|spec| spec.reset = true)).await;
        assert_eq!(got.unwrap(), 200);
    }
    let whole = http_body_util::Full::from("hello").map_err(|never| match never {});
    let large = RequestBody::of(whole, BodyRules::default());
    assert!(large.keep(4).await.unwrap().again().is_none());
}

#[tokio::test]
async fn the_budget_ends_a_storm() {
    let (a, b) = tokio::join!(counted(BUSY), counted(BUSY));
    let upstream = two(a.0, b.0);
    for _ in 0..100 {
        let options = retrying(|spec| spec.server_error = true);
        assert_eq!(status(&upstream, get(), options).await.unwrap(), 503);
    }
    let total = a.1.load(SeqCst) + b.1.load(SeqCst);
    assert!((101..=125).contains(&total), "{total}");
}

/// As [`always`], but counts requests.
async fn counted(text: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let (address, _) = origin(move |mut peer, _| {
        let counter = counter.clone();
        async move {
            while peer.head().await.is_some() {
                counter.fetch_add(1, SeqCst);
                peer.say(text).await;
            }
        }
    })
    .await;
    (address, count)
}

#[tokio::test]
async fn a_backup_serves_only_while_nobody_else_can() {
    let ((main, _), (spare, _)) = tokio::join!(always(OK), always(BUSY));
    let pair = |main, spare| {
        let mut spec = spec(&[(TargetAddr::Ip(main), 1), (TargetAddr::Ip(spare), 9)]);
        spec.targets[1].backup = true;
        Upstream::build(&spec, &shared(1))
    };
    let upstream = pair(main, spare);
    for _ in 0..10 {
        let got = status(&upstream, get(), SendOptions::default()).await;
        assert_eq!(got.unwrap(), 200);
    }
    let upstream = pair(nobody().await, spare);
    let got = status(&upstream, get(), SendOptions::default()).await;
    assert_eq!(got.unwrap(), 503);
}
