//! The router with its guards against a fake supervisor, and the listener against real sockets.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::ServiceExt;

use super::control::Control;
use super::fake::{ETAG, Fake};
use super::{App, Context, router};
use crate::config::scalar::Secret;
use crate::supervisor::{Source, SubmitError};

fn api(fake: &Fake) -> axum::Router {
    router(App::new(fake.clone(), Context::default()))
}

/// `METHOD path`, then header lines; `Host: localhost` unless given.
fn request(line: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let (method, path) = line.split_once(' ').unwrap();
    let mut builder = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        builder = builder.header("host", "localhost:8837");
    }
    for (name, value) in headers.iter().filter(|(_, value)| *value != "-") {
        builder = builder.header(*name, *value);
    }
    builder.body(body.into()).unwrap()
}

async fn call(
    fake: &Fake,
    line: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Response<Body> {
    api(fake)
        .oneshot(request(line, headers, body))
        .await
        .unwrap()
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(
        response
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .to_vec(),
    )
    .unwrap()
}

async fn json(response: Response<Body>) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

/// Status and slug.
async fn refusal(response: Response<Body>) -> (u16, String) {
    let status = response.status().as_u16();
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    let problem = json(response).await;
    assert_eq!(problem["status"], status);
    let slug = problem["type"]
        .as_str()
        .unwrap()
        .strip_prefix("urn:evergate:problem:")
        .unwrap();
    (status, slug.to_owned())
}

#[tokio::test]
async fn what_a_browser_page_can_send_is_refused_on_every_method() {
    let fake = Fake::new();
    for line in [
        "GET /now",
        "GET /livez",
        "POST /reload",
        "POST /stop",
        "OPTIONS /reload",
        "DELETE /now",
        "HEAD /now",
    ] {
        for headers in [
            &[("host", "evil.example")][..],
            &[("host", "127.0.0.1.evil.example:8837")],
            &[("origin", "http://evil.example")],
            &[("origin", "null")],
            &[("origin", "http://localhost:9999")],
            &[
                ("origin", "http://localhost:8837"),
                ("origin", "http://evil.example"),
            ],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site")],
            &[
                ("sec-fetch-site", "cross-site"),
                ("origin", "http://localhost:8837"),
            ],
        ] {
            let response = call(&fake, line, headers, Body::empty()).await;
            assert_eq!(response.status(), 403, "{line} {headers:?}");
        }
        for headers in [
            &[("host", "-")][..],
            &[("host", "a"), ("host", "a")],
            &[("host", "a b")],
            &[("host", "x@localhost")],
        ] {
            assert_eq!(
                call(&fake, line, headers, Body::empty()).await.status(),
                400,
                "{line} {headers:?}"
            );
        }
    }
    for kind in [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
    ] {
        for path in ["/reload", "/adapt", "/stop"] {
            for body in ["", "a=b"] {
                let response = call(
                    &fake,
                    &format!("POST {path}"),
                    &[("content-type", kind)],
                    body,
                )
                .await;
                assert_eq!(refusal(response).await, (415, "unsupported-type".into()));
            }
        }
    }
    // The target's own authority counts as well.
    let response = call(&fake, "GET http://evil.example/now", &[], Body::empty()).await;
    assert_eq!(refusal(response).await, (403, "foreign-host".into()));
    assert!(fake.seen().is_empty());
}

#[tokio::test]
async fn our_own_page_and_plain_clients_pass() {
    let fake = Fake::new();
    for headers in [
        &[][..],
        &[
            ("origin", "http://localhost:8837"),
            ("sec-fetch-site", "same-origin"),
        ],
        &[("sec-fetch-site", "none")],
        &[("host", "[::1]:8837")],
        &[("host", "127.0.0.1")],
    ] {
        assert_eq!(
            call(&fake, "POST /reload", headers, "").await.status(),
            200,
            "{headers:?}"
        );
    }
    assert_eq!(fake.seen().len(), 5);
}

#[tokio::test]
async fn verbs_take_post_and_say_so() {
    let fake = Fake::new();
    for path in ["/reload", "/adapt", "/stop"] {
        for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let response = call(&fake, &format!("{method} {path}"), &[], "").await;
            assert_eq!(
                (response.status().as_u16(), &response.headers()["allow"]),
                (405, &"POST".parse().unwrap())
            );
            if method == "GET" {
                let detail = json(response).await["detail"].as_str().unwrap().to_owned();
                assert!(detail.contains("curl -X POST"), "{detail}");
                assert!(
                    detail.contains(&format!("http://localhost:8837{path}")),
                    "{detail}"
                );
            }
        }
    }
    for method in ["PATCH", "PUT", "DELETE", "POST"] {
        let response = call(&fake, &format!("{method} /now"), &[], "").await;
        assert_eq!(response.headers()["allow"], "GET,HEAD");
        assert_eq!(refusal(response).await, (405, "method-not-allowed".into()));
    }
    assert_eq!(
        refusal(call(&fake, "GET /nowhere", &[], "").await).await,
        (404, "not-found".into())
    );
    assert!(fake.seen().is_empty());
}

#[tokio::test]
async fn the_token_guards_all_but_livez_and_counts_at_once() {
    let fake = Fake::new();
    let api = api(&fake);
    let ask = |line: &'static str, token: &'static str| {
        let headers: &[_] = if token.is_empty() {
            &[]
        } else {
            &[("authorization", token)]
        };
        let (api, request) = (api.clone(), request(line, headers, ""));
        async move { api.oneshot(request).await.unwrap() }
    };
    assert_eq!(ask("GET /now", "").await.status(), 200);
    fake.settings(|spec| spec.token = Some(Secret::new("s3cret".into())));
    for token in [
        "",
        "Bearer wrong",
        "Bearer",
        "Bearer s3cre",
        "Basic s3cret",
        "s3cret",
    ] {
        let response = ask("GET /now", token).await;
        assert_eq!(
            response.headers()["www-authenticate"],
            "Bearer realm=\"evergate\""
        );
        assert_eq!(refusal(response).await, (401, "unauthorized".into()));
    }
    assert_eq!(ask("GET /now", "Bearer s3cret").await.status(), 200);
    assert_eq!(ask("GET /now", "bearer s3cret").await.status(), 200);
    assert_eq!(ask("GET /readyz", "").await.status(), 401);
    assert_eq!(ask("GET /livez", "").await.status(), 200);
    fake.settings(|spec| spec.allowed_hosts = vec!["admin.example".into()]);
    let named = request("GET /livez", &[("host", "Admin.Example:1")], "");
    assert_eq!(api.oneshot(named).await.unwrap().status(), 200);
}

#[tokio::test]
async fn bodies_are_bounded_in_size() {
    let fake = Fake::new();
    let toml = ("content-type", "application/toml");
    let big = vec![b' '; super::guard::MAX_BODY + 1];
    let length = (big.len()).to_string();
    let announced = call(
        &fake,
        "POST /reload",
        &[toml, ("content-length", &length)],
        big.clone(),
    )
    .await;
    assert_eq!(refusal(announced).await, (413, "too-large".into()));
    let frames =
        futures_util::stream::iter([Ok::<_, std::io::Error>(axum::body::Bytes::from(big))]);
    let chunked = call(&fake, "POST /reload", &[toml], Body::from_stream(frames)).await;
    assert_eq!(refusal(chunked).await, (413, "too-large".into()));
    let fits = call(
        &fake,
        "POST /reload",
        &[toml],
        vec![b' '; super::guard::MAX_BODY],
    )
    .await;
    assert_eq!(fits.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_given_up_and_a_wait_is_not() {
    let fake = Fake::new();
    let never = Body::from_stream(futures_util::stream::pending::<
        Result<axum::body::Bytes, std::io::Error>,
    >());
    let response = call(
        &fake,
        "POST /reload",
        &[("content-type", "application/toml")],
        never,
    )
    .await;
    assert_eq!(refusal(response).await, (408, "slow-body".into()));

    fake.hold();
    let api = api(&fake);
    let waiting = tokio::spawn(api.oneshot(request("POST /reload?wait=drained", &[], "")));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!waiting.is_finished());
    fake.release();
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn reload_takes_documents_and_no_document() {
    let fake = Fake::new();
    let of = |kind| [("content-type", kind)];
    assert_eq!(call(&fake, "POST /reload", &[], "").await.status(), 200);
    for kind in ["application/json", "application/toml", "application/yaml"] {
        assert_eq!(
            call(&fake, "POST /reload", &of(kind), "{}").await.status(),
            200
        );
        let empty = call(&fake, "POST /reload", &of(kind), "").await;
        assert_eq!(refusal(empty).await, (400, "empty-body".into()));
    }
    assert_eq!(
        refusal(call(&fake, "POST /reload", &[], "{}").await)
            .await
            .0,
        415
    );
    let seen = fake.seen();
    assert!(matches!(seen[0].source, Source::File));
    assert!(matches!(&seen[2].source, Source::Body { bytes, .. } if bytes == "{}"));
    assert_eq!(seen.len(), 4);

    let answer = call(&fake, "POST /reload", &of("application/json"), "{}").await;
    assert_eq!(answer.headers()["evergate-generation"], "2");
    let answer = json(answer).await;
    assert_eq!(
        (&answer["outcome"], &answer["swap"], &answer["generation"]),
        (&"committed".into(), &5.into(), &2.into())
    );
    assert_eq!(
        (&answer["previous"], &answer["etag"]),
        (&1.into(), &"\"e2\"".into())
    );
    assert!(answer["warnings"].is_array() && answer["plan"]["listeners"].is_array());

    let bad = call(&fake, "POST /reload", &of("application/toml"), "bad").await;
    assert_eq!(bad.status(), 422);
    let bad = json(bad).await;
    assert_eq!(
        (&bad["errors"][0]["pointer"], &bad["errors"][0]["line"]),
        (&"/http".into(), &3.into())
    );
    assert_eq!(
        (&bad["swap"], &bad["errors"][0]["help"]),
        (&6.into(), &"did you mean `http`?".into())
    );
}

#[tokio::test]
async fn queries_are_checked() {
    let fake = Fake::new();
    for (line, expected) in [
        ("POST /reload?wiat=drained", (400, "bad-query")),
        ("POST /reload?wait=never", (400, "bad-query")),
        ("POST /reload?drain_timeout=5", (400, "bad-query")),
        ("POST /reload?strict=1", (400, "bad-query")),
        ("POST /reload?canary=5&for=30s", (422, "not-supported-yet")),
        ("POST /reload?confirm=60s", (422, "not-supported-yet")),
        ("POST /reload?max_errors=1%25", (422, "not-supported-yet")),
        ("POST /adapt?wait=drained", (400, "bad-query")),
        ("POST /stop?strict=true", (400, "bad-query")),
        ("GET /now?format=toml", (400, "bad-query")),
        ("GET /status?a", (400, "bad-query")),
        ("GET /swaps/1?wait=accepted", (400, "bad-query")),
    ] {
        let (status, slug) = refusal(call(&fake, line, &[], "").await).await;
        assert_eq!((status, slug.as_str()), expected, "{line}");
    }
    assert!(fake.seen().is_empty());
    let line = "POST /reload?wait=drained&drain_timeout=5s&strict=true&turn=250ms";
    assert_eq!(
        call(&fake, line, &[("if-match", ETAG)], "").await.status(),
        200
    );
    let seen = fake.seen().remove(0);
    assert_eq!(seen.drain_timeout, Some(Duration::from_secs(5)));
    assert_eq!(seen.turn, Some(Duration::from_millis(250)));
    assert_eq!((seen.strict, seen.if_match.as_deref()), (true, Some(ETAG)));
    let stale = call(&fake, "POST /reload", &[("if-match", "\"old\"")], "").await;
    assert_eq!(refusal(stale).await, (412, "if-match".into()));
}

#[tokio::test]
async fn accepted_says_where_to_look() {
    let fake = Fake::new();
    fake.hold();
    let response = call(&fake, "POST /reload?wait=accepted", &[], "").await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["location"]),
        (202, &"/swaps/1".parse().unwrap())
    );
    assert_eq!(json(response).await["swap"], 1);
    assert_eq!(call(&fake, "GET /swaps/1", &[], "").await.status(), 200);
    assert_eq!(
        json(call(&fake, "GET /swaps", &[], "").await).await["swaps"][0]["swap"],
        1
    );
    assert_eq!(
        refusal(call(&fake, "GET /swaps/2?wait=drained", &[], "").await).await,
        (404, "no-such-swap".into())
    );
    assert_eq!(
        refusal(call(&fake, "GET /swaps/x", &[], "").await).await.0,
        404
    );
    fake.release();
    assert_eq!(
        json(call(&fake, "GET /swaps/1?wait=drained", &[], "").await).await["phase"],
        "drained"
    );
}

#[tokio::test]
async fn events_stream_a_line_each_and_as_server_sent_events() {
    let fake = Fake::new();
    let ndjson = ("accept", "application/x-ndjson");
    let response = call(&fake, "POST /reload", &[ndjson], "").await;
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let lines: Vec<Value> = text(response)
        .await
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let phases: Vec<_> = lines
        .iter()
        .map(|line| line["phase"].as_str().unwrap())
        .collect();
    assert_eq!(phases, ["received", "committed", "draining", "drained"]);
    assert_eq!(lines[3]["status"], 200);

    let committed = text(call(&fake, "POST /reload?wait=committed", &[ndjson], "").await).await;
    assert_eq!(committed.lines().count(), 2);
    let sse = call(&fake, "POST /stop", &[("accept", "text/event-stream")], "").await;
    assert_eq!(sse.headers()["content-type"], "text/event-stream");
    let sse = text(sse).await;
    assert!(
        sse.starts_with("id: 1\nevent: received\ndata: {\"seq\":1,"),
        "{sse}"
    );
    assert_eq!(sse.matches("\n\n").count(), 4);
}

#[tokio::test]
async fn an_event_leaves_as_it_happens_and_a_reader_may_leave() {
    let fake = Fake::new();
    fake.hold();
    let response = call(
        &fake,
        "POST /reload",
        &[("accept", "application/x-ndjson")],
        "",
    )
    .await;
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.ends_with(b"}\n"));
    drop(body);
    fake.release();
    assert_eq!(fake.wait(1, true).await.unwrap().status, Some(200));
}

#[tokio::test]
async fn a_key_is_one_swap_whatever_is_retried() {
    let fake = Fake::new();
    let api = api(&fake);
    let ask = |line: &'static str, body: &'static str| {
        let headers = [
            ("idempotency-key", "k1"),
            ("content-type", "application/json"),
        ];
        let (api, request) = (api.clone(), request(line, &headers, body));
        async move { api.oneshot(request).await.unwrap() }
    };
    fake.hold();
    let (first, second) = (
        tokio::spawn(ask("POST /reload", "{}")),
        tokio::spawn(ask("POST /reload", "{}")),
    );
    while fake.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    fake.release();
    let (first, second) = (
        json(first.await.unwrap()).await,
        json(second.await.unwrap()).await,
    );
    assert_eq!(first, second);
    assert_eq!(json(ask("POST /reload", "{}").await).await, first);
    for (line, body) in [
        ("POST /reload", "{ }"),
        ("POST /reload?wait=drained", "{}"),
        ("POST /stop", "{}"),
    ] {
        assert_eq!(
            refusal(ask(line, body).await).await,
            (422, "idempotency-key".into())
        );
    }
    assert_eq!(fake.seen().len(), 1);
    let empty = call(&fake, "POST /reload", &[("idempotency-key", "")], "").await;
    assert_eq!(refusal(empty).await, (400, "bad-header".into()));
}

#[tokio::test]
async fn a_refused_queue_is_told() {
    let fake = Fake::new();
    fake.refuse(SubmitError::Stopping);
    assert_eq!(
        refusal(call(&fake, "POST /reload", &[], "").await).await,
        (503, "stopping".into())
    );
    fake.refuse(SubmitError::Busy);
    assert_eq!(
        refusal(call(&fake, "POST /adapt", &[], "").await).await,
        (409, "busy".into())
    );
    fake.hold();
    assert_eq!(
        refusal(call(&fake, "GET /readyz", &[], "").await).await,
        (503, "not-ready".into())
    );
    assert_eq!(call(&fake, "GET /livez", &[], "").await.status(), 200);
}

#[tokio::test]
async fn now_and_its_parts_have_tags() {
    let fake = Fake::new();
    let response = call(&fake, "GET /now", &[], "").await;
    assert_eq!(response.headers()["etag"], ETAG);
    assert_eq!(response.headers()["evergate-generation"], "1");
    assert_eq!(json(response).await["http"]["web"]["listen"][0], ":8080");
    for tag in [ETAG, "W/\"e1\"", "\"x\", \"e1\"", "*"] {
        let response = call(&fake, "GET /now", &[("if-none-match", tag)], "").await;
        assert_eq!(
            (response.status(), &response.headers()["etag"]),
            (StatusCode::NOT_MODIFIED, &ETAG.parse().unwrap())
        );
        assert!(text(response).await.is_empty());
    }
    let part = call(&fake, "GET /now/upstreams/api/targets/10.0.0.1:80", &[], "").await;
    let tag = part.headers()["etag"].to_str().unwrap().to_owned();
    assert_ne!(tag, ETAG);
    assert_eq!(json(part).await["address"], "10.0.0.1:80");
    let by_index = call(
        &fake,
        "GET /now/upstreams/api/targets/0",
        &[("if-none-match", &tag)],
        "",
    )
    .await;
    assert_eq!(by_index.status(), 304);
    let unix = call(
        &fake,
        "GET /now/upstreams/api/targets/unix:%2Fa%2Fb",
        &[],
        "",
    )
    .await;
    assert_eq!(json(unix).await["address"], "unix:/a/b");
    for path in [
        "/now/nothing",
        "/now/http/web/listen/1",
        "/now/http/web/listen/0/x",
    ] {
        assert_eq!(
            call(&fake, &format!("GET {path}"), &[], "").await.status(),
            404,
            "{path}"
        );
    }
    let toml = call(
        &fake,
        "GET /now/http/web",
        &[("accept", "application/toml")],
        "",
    )
    .await;
    assert_eq!(toml.headers()["content-type"], "application/toml");
    assert_eq!(text(toml).await, "listen = [\":8080\"]\n");
    let list = call(
        &fake,
        "GET /now/http/web/listen",
        &[("accept", "application/toml")],
        "",
    )
    .await;
    assert_eq!(refusal(list).await, (406, "not-acceptable".into()));
    let yaml = call(
        &fake,
        "GET /now/http",
        &[("accept", "application/yaml")],
        "",
    )
    .await;
    assert_eq!(text(yaml).await, "web:\n  listen:\n    - \":8080\"\n");
}

#[tokio::test]
async fn adapt_answers_with_the_document_or_in_words() {
    let fake = Fake::new();
    let json_type = ("content-type", "application/json");
    let answer = json(call(&fake, "POST /adapt", &[json_type], "{}").await).await;
    assert_eq!(
        (&answer["outcome"], &answer["generation"]),
        (&"adapted".into(), &1.into())
    );
    assert!(answer["config"]["http"].is_object());
    let words = call(
        &fake,
        "POST /adapt",
        &[json_type, ("accept", "text/plain")],
        "{}",
    )
    .await;
    assert_eq!(words.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(text(words).await, "nothing changes\n");
}

#[tokio::test]
async fn stop_takes_no_body() {
    let fake = Fake::new();
    let json_type = ("content-type", "application/json");
    assert_eq!(
        refusal(call(&fake, "POST /stop", &[json_type], "{\"a\":1}").await)
            .await
            .0,
        400
    );
    assert_eq!(
        refusal(call(&fake, "POST /stop", &[], "now").await).await.0,
        415
    );
    let answer = json(call(&fake, "POST /stop?drain_timeout=0s", &[], "").await).await;
    assert_eq!(
        (&answer["outcome"], &answer["generation"]),
        (&"stopped".into(), &0.into())
    );
    assert_eq!(fake.seen()[0].drain_timeout, Some(Duration::ZERO));
}

#[tokio::test]
async fn a_panic_costs_its_request_a_500() {
    let fake = Fake::new();
    let context = Context::default();
    let api = router(App::new(fake.clone(), context.clone()));
    let request = request(
        "POST /reload",
        &[("content-type", "application/toml")],
        "panic",
    );
    assert_eq!(
        refusal(api.oneshot(request).await.unwrap()).await,
        (500, "internal".into())
    );
    assert_eq!(context.panics.load(std::sync::atomic::Ordering::Relaxed), 1);
}

/// One request on a connection of its own, to its end.
async fn raw(address: std::net::SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

const READY: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn the_listener_follows_the_binding() {
    let fake = Fake::new();
    let spec = fake.binding().borrow().as_ref().unwrap().spec.clone();
    let first = fake.bind(spec.clone());
    let server = tokio::spawn(super::serve::run(fake.clone(), Context::default()));
    assert!(raw(first, READY).await.starts_with("HTTP/1.1 200 "));

    // A request in flight on the old address is answered after the move.
    fake.hold();
    let mut old = TcpStream::connect(first).await.unwrap();
    old.write_all(b"POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    while fake.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    let second = fake.bind(spec);
    assert!(raw(second, READY).await.starts_with("HTTP/1.1 200 "));
    fake.release();
    let mut answer = String::new();
    old.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"committed\""),
        "{answer}"
    );

    // The end: no address, then no supervisor.
    fake.unbind();
    drop(fake);
    server.abort();
}

#[tokio::test]
async fn a_refused_upload_is_answered_not_reset() {
    let fake = Fake::new();
    let spec = fake.binding().borrow().as_ref().unwrap().spec.clone();
    let address = fake.bind(spec);
    let server = tokio::spawn(super::serve::run(fake.clone(), Context::default()));
    let size = super::guard::MAX_BODY + 4096;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /reload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/toml\r\n\
         Content-Length: {size}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; size]).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    server.abort();
}
