//! What each call takes and answers.

use std::time::Duration;

use axum::http::StatusCode;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::super::control::Control;
use super::super::fake::{ETAG, Fake};
use super::{api, call, json, refusal, request, text};
use crate::supervisor::{Source, SubmitError};

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
