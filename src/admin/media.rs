//! Media types in both directions: what a body is said to be, and which of the offered forms the client prefers
//! (RFC 9110, 12.5.1).

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use super::problem::{Problem, Refusal};
use crate::config::Format;

/// A form that some answer comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Media {
    Json,
    Toml,
    Yaml,
    Text,
    Ndjson,
    EventStream,
}

impl Media {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Media::Json => "application/json",
            Media::Toml => "application/toml",
            Media::Yaml => "application/yaml",
            Media::Text => "text/plain",
            Media::Ndjson => "application/x-ndjson",
            Media::EventStream => "text/event-stream",
        }
    }

    /// With the parameters that an answer carries.
    pub(crate) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Media::Text => "text/plain; charset=utf-8",
            other => other.name(),
        })
    }
}

/// The offered form with the highest weight in `Accept`; the more exact range wins a tie, then the order of `offered`.
/// An `Accept` that fits none gets the first: an answer in JSON is of more use than 406.
pub(crate) fn preferred(headers: &HeaderMap, offered: &[Media]) -> Media {
    let mut best: Option<(u16, u8, Media)> = None;
    let values = headers.get_all(header::ACCEPT);
    let ranges: Vec<(&str, u16)> = values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(weighted)
        .collect();
    for media in offered {
        // The most exact range that fits gives the weight.
        let fit = ranges
            .iter()
            .filter_map(|(range, weight)| Some((exactness(range, *media)?, *weight)))
            .max();
        if let Some((exact, weight)) = fit
            && weight > 0
            && best.is_none_or(|(w, e, _)| (weight, exact) > (w, e))
        {
            best = Some((weight, exact, *media));
        }
    }
    match (best, offered.first()) {
        (Some((_, _, media)), _) => media,
        (None, Some(first)) => *first,
        (None, None) => Media::Json,
    }
}

/// One range of an `Accept` with its weight in thousandths.
fn weighted(entry: &str) -> (&str, u16) {
    let mut parts = entry.split(';');
    let range = parts.next().unwrap_or("").trim();
    let weight = parts.find_map(|parameter| {
        let (name, value) = parameter.trim().split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("q")
            .then(|| value.trim().parse::<f32>().ok())?
    });
    let weight = weight.unwrap_or(1.0).clamp(0.0, 1.0);
    (range, (weight * 1000.0) as u16)
}

fn exactness(range: &str, media: Media) -> Option<u8> {
    if range.eq_ignore_ascii_case(media.name()) {
        return Some(2);
    }
    if range == "*/*" {
        return Some(0);
    }
    let kind = range.strip_suffix("/*")?;
    let of = media.name().split('/').next()?;
    kind.eq_ignore_ascii_case(of).then_some(1)
}

/// The format that the headers claim for a body; `None` when they claim none.
///
/// # Errors
/// 415 for any other type: the three that an HTML form can send are among them, which is the point.
pub(crate) fn body_format(headers: &HeaderMap) -> Result<Option<Format>, Refusal> {
    if let Some(coding) = headers.get(header::CONTENT_ENCODING)
        && !coding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(unsupported(
            "bodies are taken uncompressed: leave Content-Encoding out",
        ));
    }
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(unsupported("more than one Content-Type"));
    }
    let text = value
        .to_str()
        .map_err(|_| unsupported("Content-Type is not ASCII"))?;
    let mut parts = text.split(';');
    let essence = parts.next().unwrap_or("").trim().to_ascii_lowercase();
    let format = match essence.as_str() {
        "application/json" => Format::Json,
        "application/toml" => Format::Toml,
        "application/yaml" | "application/x-yaml" => Format::Yaml,
        other => {
            return Err(unsupported(&format!(
                "Content-Type `{other}` is not taken; send application/json, application/toml or application/yaml, \
                 as in: curl -H 'Content-Type: application/toml' --data-binary @evergate.toml"
            )));
        }
    };
    for parameter in parts {
        if let Some((name, value)) = parameter.trim().split_once('=')
            && name.trim().eq_ignore_ascii_case("charset")
            && !value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        {
            return Err(unsupported("documents are UTF-8"));
        }
    }
    Ok(Some(format))
}

pub(crate) fn unsupported(detail: &str) -> Refusal {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported-type",
        detail,
    )
}

/// A value as JSON text with a line end, indented: these answers are read by people with `curl` as well.
pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // Every type here serializes: string keys only, no fallible impl. The fallback keeps a bug from becoming a panic.
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_else(|error| {
        serde_json::json!({ "detail": error.to_string() })
            .to_string()
            .into_bytes()
    });
    text.push(b'\n');
    text
}

/// The name that an enum of ours has in the API.
pub(crate) fn name<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        // No enum of names; then its JSON is the best name there is.
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// An answer in one piece.
pub(crate) fn answer(
    status: StatusCode,
    kind: HeaderValue,
    body: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

pub(crate) fn json_answer<T: Serialize>(value: &T) -> Response<Body> {
    answer(StatusCode::OK, Media::Json.content_type(), json(value))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: &[Media] = &[Media::Json, Media::Ndjson, Media::EventStream];

    fn accept(text: &str) -> Media {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_str(text).unwrap());
        preferred(&headers, ALL)
    }

    #[test]
    fn the_highest_weight_wins_then_the_exact_range() {
        assert_eq!(preferred(&HeaderMap::new(), ALL), Media::Json);
        assert_eq!(accept("*/*"), Media::Json);
        assert_eq!(accept("application/x-ndjson"), Media::Ndjson);
        assert_eq!(accept("text/event-stream, */*"), Media::EventStream);
        assert_eq!(
            accept("application/json;q=0.5, application/x-ndjson;q=0.9"),
            Media::Ndjson
        );
        assert_eq!(accept("text/*"), Media::EventStream);
        assert_eq!(accept("application/json;q=0, */*"), Media::Ndjson);
        assert_eq!(accept("image/png"), Media::Json);
        assert_eq!(accept("APPLICATION/X-NDJSON ; q=1.0"), Media::Ndjson);
    }

    #[test]
    fn forms_are_not_documents() {
        for kind in [
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "text/plain",
            "",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(kind).unwrap());
            assert_eq!(body_format(&headers).unwrap_err().status, 415, "{kind}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("Application/TOML; charset=UTF-8"),
        );
        assert_eq!(body_format(&headers).unwrap(), Some(Format::Toml));
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-16"),
        );
        assert_eq!(body_format(&headers).unwrap_err().status, 415);
    }

    proptest! {
        #[test]
        fn any_accept_gets_something_offered(text in "[ -~]{0,80}") {
            prop_assert!(ALL.contains(&accept(&text)));
        }
    }
}
