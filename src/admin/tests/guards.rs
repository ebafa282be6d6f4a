//! Who is let in, and within which bounds.

use std::time::Duration;

use axum::body::Body;
use tower::ServiceExt;

use super::super::fake::Fake;
use super::super::{App, Context, router};
use super::{api, call, json, refusal, request};
use crate::config::MAX_BYTES;
use crate::config::scalar::Secret;

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
    let big = vec![b' '; MAX_BYTES + 1];
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
    let fits = call(&fake, "POST /reload", &[toml], vec![b' '; MAX_BYTES]).await;
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
    let api = router(App::new(fake, context));
    let response = api.oneshot(super::request("GET /status", &[], "")).await;
    let status = json(response.unwrap()).await;
    assert_eq!(status["panics"], 1);
}
