//! What describes the API and the configuration, from the process itself: no version can be out of step.

use std::sync::LazyLock;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, Response, StatusCode};

use super::media::{self, Media};
use super::problem::Refusal;
use super::query::Query;
use crate::document::Document;

/// The contract of this API, as committed.
pub(crate) const OPENAPI: &str = include_str!("../../admin-openapi.yaml");

pub(crate) async fn openapi(request: Request) -> Result<Response<Body>, Refusal> {
    Query::parse(request.uri(), &[], &[])?;
    Ok(media::answer(
        StatusCode::OK,
        Media::Yaml.content_type(),
        OPENAPI,
    ))
}

/// JSON Schema (2020-12) of the configuration.
pub(crate) async fn schema(request: Request) -> Result<Response<Body>, Refusal> {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| media::json(&Document::json_schema()).into());
    Query::parse(request.uri(), &[], &[])?;
    Ok(media::answer(
        StatusCode::OK,
        HeaderValue::from_static("application/schema+json"),
        TEXT.clone(),
    ))
}
