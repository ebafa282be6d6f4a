//! The router with its guards against a fake supervisor, and the listener against real sockets.
#![allow(clippy::unwrap_used)]

mod calls;
mod guards;
mod listener;

use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::fake::Fake;
use super::{App, Context, router};

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
