//! Fixed responses and redirects: answered from memory.

use std::path::Path;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use crate::config::http::{RedirectSpec, RespondBody, RespondSpec};
use crate::config::template::{Part, Source, Template};
use crate::http::Files;
use crate::http::body::{Content, ResponseBody};
use crate::http::text::field_value;

/// `respond`.
#[derive(Debug)]
pub struct Respond {
    status: StatusCode,
    body: Text,
    /// Those without variables, the default content type included.
    fixed: HeaderMap,
    rendered: Vec<(HeaderName, Template)>,
}

/// `redirect`.
#[derive(Debug)]
pub struct Redirect {
    status: StatusCode,
    to: Template,
}

#[derive(Debug)]
enum Text {
    Fixed(Bytes),
    Rendered(Template),
}

impl Respond {
    pub fn build(spec: &RespondSpec, files: &Files) -> Respond {
        let (body, kind) = match &spec.body {
            RespondBody::Template(template) => {
                let text = match template.literal() {
                    Some(text) => Text::Fixed(Bytes::copy_from_slice(text.as_bytes())),
                    None => Text::Rendered(template.clone()),
                };
                (text, "text/plain; charset=utf-8")
            }
            RespondBody::File(path) => (
                Text::Fixed(files.get(path).cloned().unwrap_or_default()),
                media_type(path),
            ),
        };
        let bodiless = has_no_content(spec.status);
        let mut fixed = HeaderMap::new();
        let mut rendered = Vec::new();
        for (name, template) in &spec.headers {
            match template.literal() {
                Some(text) => {
                    if let Some(value) = field_value(text.to_owned()) {
                        fixed.append(name, value);
                    }
                }
                None => rendered.push((name.clone(), template.clone())),
            }
        }
        let named = fixed.contains_key(CONTENT_TYPE)
            || rendered.iter().any(|(name, _)| *name == CONTENT_TYPE);
        let empty = matches!(&body, Text::Fixed(bytes) if bytes.is_empty());
        if !named && !bodiless && !empty {
            fixed.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        Respond {
            status: spec.status,
            body,
            fixed,
            rendered,
        }
    }

    pub fn respond(&self, source: &impl Source) -> Response<ResponseBody> {
        let bytes = match &self.body {
            _ if has_no_content(self.status) => Bytes::new(),
            Text::Fixed(bytes) => bytes.clone(),
            Text::Rendered(template) => Bytes::from(template.render(source)),
        };
        let mut response = Response::new(ResponseBody::new(Content::from(bytes)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.clone_from(&self.fixed);
        for (name, template) in &self.rendered {
            if let Some(value) = field_value(template.render(source)) {
                headers.append(name, value);
            }
        }
        response
    }
}

impl Redirect {
    pub fn build(spec: &RedirectSpec) -> Redirect {
        Redirect {
            status: spec.status,
            to: spec.to.clone(),
        }
    }

    pub fn respond(&self, source: &impl Source) -> Response<ResponseBody> {
        let mut to = self.to.render(source);
        // `redirect = "{uri}"` for a request to `//elsewhere/` must not lead away from here.
        if matches!(self.to.parts.first(), Some(Part::Var(_))) && to.starts_with(['/', '\\']) {
            let rest = to.trim_start_matches(['/', '\\']).to_owned();
            to = format!("/{rest}");
        }
        let mut response = Response::new(ResponseBody::new(Content::Empty));
        *response.status_mut() = self.status;
        if let Some(value) = field_value(to) {
            response.headers_mut().insert(LOCATION, value);
        }
        response
    }
}

/// Statuses whose responses never have content (RFC 9110 section 6.4.1).
fn has_no_content(status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

/// By a file's ending; the few that one serves as a single page.
fn media_type(path: &Path) -> &'static str {
    let ending = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default()
        .to_ascii_lowercase();
    match ending.as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "json" => "application/json",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "xml" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "txt" | "md" | "" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::template::Var;
    use std::borrow::Cow;

    struct Uri(&'static str);
    impl Source for Uri {
        fn var(&self, _: &Var) -> Cow<'_, str> {
            self.0.into()
        }
    }

    fn location(parts: Vec<Part>, uri: &'static str) -> String {
        let redirect = Redirect {
            status: StatusCode::PERMANENT_REDIRECT,
            to: Template { parts },
        };
        let response = redirect.respond(&Uri(uri));
        String::from_utf8(response.headers()[LOCATION].as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_redirect_can_not_be_turned_elsewhere_or_split() {
        let bare = || vec![Part::Var(Var::Uri)];
        assert_eq!(location(bare(), "/a?b"), "/a?b");
        assert_eq!(location(bare(), "//evil.test/a"), "/evil.test/a");
        assert_eq!(location(bare(), "/\\evil.test"), "/evil.test");
        assert_eq!(
            location(bare(), "/a\r\nSet-Cookie: x=1"),
            "/aSet-Cookie: x=1"
        );
        let full = vec![Part::Text("https://a.test".into()), Part::Var(Var::Uri)];
        assert_eq!(location(full, "//x"), "https://a.test//x");
    }

    #[test]
    fn defaults_of_a_fixed_response() {
        let template = |text: &str| Template {
            parts: vec![Part::Text(text.into())],
        };
        let mut spec = RespondSpec {
            status: StatusCode::OK,
            body: RespondBody::Template(template("hello")),
            headers: vec![(HeaderName::from_static("x-a"), template("1"))],
        };
        let response = Respond::build(&spec, &Files::new()).respond(&Uri(""));
        assert_eq!(
            response.headers()[CONTENT_TYPE],
            "text/plain; charset=utf-8"
        );
        assert_eq!(response.headers()["x-a"], "1");
        spec.headers = vec![(CONTENT_TYPE, template("text/html"))];
        let response = Respond::build(&spec, &Files::new()).respond(&Uri(""));
        assert_eq!(
            response
                .headers()
                .get_all(CONTENT_TYPE)
                .iter()
                .collect::<Vec<_>>(),
            ["text/html"]
        );
        spec.status = StatusCode::NO_CONTENT;
        let response = Respond::build(&spec, &Files::new()).respond(&Uri(""));
        assert!(matches!(response.body().content(), Content::Empty));
    }

    #[test]
    fn a_file_is_typed_by_its_ending() {
        let mut files = Files::new();
        files.insert("/x/page.HTML".into(), Bytes::from_static(b"<p>"));
        let spec = RespondSpec {
            status: StatusCode::OK,
            body: RespondBody::File("/x/page.HTML".into()),
            headers: vec![],
        };
        let response = Respond::build(&spec, &files).respond(&Uri(""));
        assert_eq!(response.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        assert!(matches!(response.body().content(), Content::Full(bytes) if bytes == "<p>"));
    }
}
