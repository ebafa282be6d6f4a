//! `GET /now` and its parts: the running configuration, normalized, secrets redacted, ready to be edited and posted
//! back. Reads never wait for a swap: they look at what was committed last.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::App;
use super::control::Control;
use super::idempotency::fingerprint;
use super::media::{self, Media};
use super::problem::{Problem, Refusal};
use super::query::Query;
use crate::config::{Format, render};
use crate::supervisor::Running;

pub(crate) async fn now<C: Control>(
    State(app): State<App<C>>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let defaults = Query::parse(request.uri(), &["defaults"], &[])?.flag("defaults")?;
    let running = app.control().running().ok_or_else(|| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not-ready",
            "nothing runs: the process starts or stops",
        )
    })?;
    let media = media::preferred(request.headers(), &[Media::Json, Media::Toml, Media::Yaml]);
    let segments = segments(request.uri().path())?;
    let part = match segments.as_slice() {
        [] => None,
        segments => Some(part(&running, segments, defaults)?),
    };
    let etag = part
        .as_ref()
        .map_or_else(|| running.etag.clone(), part_etag);
    let mut response = if not_modified(request.headers(), &etag) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let text = match &part {
            Some(part) => text(part, media)?,
            None => whole(&running, media, defaults),
        };
        media::answer(StatusCode::OK, media.content_type(), text)
    };
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    headers.insert("evergate-generation", HeaderValue::from(running.generation));
    Ok(response)
}

fn whole(running: &Running, media: Media, defaults: bool) -> Vec<u8> {
    match (media, defaults) {
        (Media::Toml, _) => running.document.render(Format::Toml, defaults).into_bytes(),
        (Media::Yaml, _) => running.document.render(Format::Yaml, defaults).into_bytes(),
        (_, true) => running.document.render(Format::Json, true).into_bytes(),
        (_, false) => media::json(&running.document.normal),
    }
}

/// The decoded segments below `/now`.
fn segments(path: &str) -> Result<Vec<String>, Refusal> {
    let below = path
        .strip_prefix("/now")
        .unwrap_or("")
        .trim_start_matches('/');
    let split = below.split('/').filter(|_| !below.is_empty());
    split
        .map(|segment| {
            percent_decode_str(segment)
                .decode_utf8()
                .map(|text| text.into_owned())
        })
        .collect::<Result<_, _>>()
        .map_err(|_| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "bad-request",
                "the path is not UTF-8",
            )
        })
}

/// Walks down the document.
fn part(running: &Running, segments: &[String], defaults: bool) -> Result<Value, Refusal> {
    let full;
    let mut here = &running.document.normal;
    if defaults {
        let text = running.document.render(Format::Json, true);
        full = serde_json::from_str(&text).map_err(|error| {
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                error.to_string(),
            )
        })?;
        here = &full;
    }
    for (depth, segment) in segments.iter().enumerate() {
        here = child(here, segment).ok_or_else(|| {
            if let Some(elsewhere) = elsewhere(running, segments) {
                return Problem::new(StatusCode::NOT_FOUND, "no-such-part", elsewhere);
            }
            let above = match depth {
                0 => "the running configuration".to_owned(),
                _ => format!("/now/{}", segments[..depth].join("/")),
            };
            Problem::new(
                StatusCode::NOT_FOUND,
                "no-such-part",
                format!("{above} has no `{segment}`"),
            )
        })?;
    }
    Ok(here.clone())
}

/// Why a part that runs is not among what is written in the document itself.
fn elsewhere(running: &Running, segments: &[String]) -> Option<String> {
    let [section, name, ..] = segments else {
        return None;
    };
    let whole = running.document.whole();
    segments
        .iter()
        .try_fold(whole, |here, segment| child(here, segment))?;
    let escaped = |text: &str| text.replace('~', "~0").replace('/', "~1");
    let pointer = format!("/{}/{}", escaped(section), escaped(name));
    let written = match running.document.origins.get(&pointer) {
        Some(file) => {
            format!("`{section}.{name}` is written in {file}, which the configuration includes")
        }
        None => format!("this is written in `[defaults.{section}]`"),
    };
    Some(format!("{written}; `?defaults=true` shows it"))
}

/// A key of a table; an item of a list by name, address, own text or index, in this order.
fn child<'a>(value: &'a Value, segment: &str) -> Option<&'a Value> {
    match value {
        Value::Object(table) => table.get(segment),
        Value::Array(items) => {
            let by = |key: &str| {
                items
                    .iter()
                    .find(|item| item.get(key).and_then(Value::as_str) == Some(segment))
            };
            by("name")
                .or_else(|| by("address"))
                .or_else(|| items.iter().find(|item| item.as_str() == Some(segment)))
                .or_else(|| items.get(segment.parse::<usize>().ok()?))
        }
        _ => None,
    }
}

fn part_etag(part: &Value) -> String {
    let digest = fingerprint(&[part.to_string().as_bytes()]);
    let hex: String = digest[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("\"{hex}\"")
}

fn text(part: &Value, media: Media) -> Result<Vec<u8>, Refusal> {
    match media {
        Media::Toml => toml::to_string(part).map(String::into_bytes).map_err(|_| {
            let detail = "TOML shows tables only; ask for JSON or YAML, or for the table around it";
            Problem::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", detail)
        }),
        Media::Yaml => Ok(render::render(part, Format::Yaml).into_bytes()),
        _ => Ok(media::json(part)),
    }
}

/// `If-None-Match` by weak comparison (RFC 9110, 13.1.2).
fn not_modified(headers: &HeaderMap, etag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH);
    let mut tags = values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','));
    tags.any(|tag| {
        let tag = tag.trim();
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn items_are_found_by_name_address_text_and_index() {
        let list = json!([{ "address": "10.0.0.1:80" }, { "name": "blue", "address": "1" }, "text", { "x": 3 }]);
        assert_eq!(child(&list, "10.0.0.1:80").unwrap(), &list[0]);
        assert_eq!(child(&list, "blue").unwrap(), &list[1]);
        assert_eq!(child(&list, "text").unwrap(), &list[2]);
        assert_eq!(child(&list, "1").unwrap(), &list[1]);
        assert_eq!(child(&list, "3").unwrap(), &list[3]);
        assert!(child(&list, "4").is_none());
        assert!(child(&json!("scalar"), "0").is_none());
    }

    #[test]
    fn segments_are_decoded_one_by_one() {
        assert_eq!(segments("/now/http/a%2Fb").unwrap(), ["http", "a/b"]);
        assert!(segments("/now").unwrap().is_empty());
        assert!(segments("/now/%ff").is_err());
    }
}
