//! `rewrite`: another path for what stands behind. Whatever comes out is a path as admission lets them in: decodable, no
//! NUL, no dot segments, every escape as it came. A variable or group can't lead out of the segments it stands in.

use std::fmt::Write as _;

use http::{HeaderName, HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use regex_automata::util::captures::Captures;

use super::headers::Edit;
use super::{Asking, Passed, Refusal};
use crate::config::http::{FiltersSpec, Piece, RewriteSpec};
use crate::config::template::{Source as _, Var};
use crate::http::error;
use crate::http::path::Path;
use crate::upstream::error::Error;

static X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// A value in a path or a query: nothing in it may mean anything there.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The compiled `rewrite` of a server or a route.
#[derive(Debug)]
pub(super) struct Rewrite {
    spec: RewriteSpec,
}

impl Rewrite {
    pub(super) fn build(spec: &FiltersSpec) -> Option<Rewrite> {
        let spec = RewriteSpec::clone(spec.rewrite.get()?);
        Some(Rewrite { spec })
    }

    /// Gives the request its new path and query.
    ///
    /// # Errors
    /// 400 if what the request brought along makes no path.
    pub(super) fn apply(
        &self,
        asking: &mut Asking<'_, '_>,
        passed: &mut Passed,
    ) -> Result<(), Refusal> {
        // `OPTIONS *` is about the server, not about a path.
        if asking.context.path.forward == "*" {
            return Ok(());
        }
        match &self.spec {
            RewriteSpec::Prefix { strip, add } => {
                let path = &asking.context.path;
                let rest = match strip {
                    None => &*path.forward,
                    Some(strip) => {
                        let Some(rest) = stripped(path, strip) else {
                            return Ok(());
                        };
                        let prefix = &path.forward[..path.forward.len() - rest.len()];
                        tell_prefix(asking, prefix, passed);
                        rest
                    }
                };
                let text = format!("{}{rest}", add.as_deref().unwrap_or_default());
                // The client asked for `/app`, what stands behind is asked for `/`: the slash is ours.
                let slashless = text.is_empty();
                let path = parsed(&text)?;
                asking.context.path = path;
                asking.context.slashless = slashless;
            }
            RewriteSpec::To { regex, path, query } => {
                let decoded = &*asking.context.path.decoded;
                let groups = match regex {
                    None => None,
                    Some(pattern) => {
                        let mut groups = pattern.regex.create_captures();
                        pattern.regex.captures(decoded, &mut groups);
                        if !groups.is_match() {
                            return Ok(());
                        }
                        Some(groups)
                    }
                };
                let path = rendered(path, asking, groups.as_ref(), Place::Path);
                let query = query
                    .as_ref()
                    .map(|query| rendered(query, asking, groups.as_ref(), Place::Query));
                asking.context.path = parsed(&path)?;
                if let Some(query) = query {
                    asking.context.query = (!query.is_empty()).then(|| query.into());
                }
            }
        }
        Ok(())
    }
}

/// What is sent on behind `strip`; empty, or it begins with a slash.
fn stripped<'p>(path: &'p Path<'_>, strip: &str) -> Option<&'p str> {
    let rest = path.decoded.strip_prefix(strip)?;
    if !rest.is_empty() && !rest.starts_with('/') {
        return None;
    }
    // Both forms have the same segments.
    let segments = strip.matches('/').count();
    let mut slashes = path.forward.match_indices('/');
    let (at, _) = slashes.nth(segments).unwrap_or((path.forward.len(), ""));
    path.forward.get(at..)
}

/// `X-Forwarded-Prefix`, from which applications make the links that lead back here. A trusted proxy's goes before.
fn tell_prefix(asking: &Asking<'_, '_>, prefix: &str, passed: &mut Passed) {
    let before = asking.parts.headers.get(&X_FORWARDED_PREFIX);
    let before = before.filter(|_| asking.context.connection.trusted);
    let text = match before.and_then(|value| value.to_str().ok()) {
        Some(before) => format!("{before}, {prefix}"),
        None => prefix.to_owned(),
    };
    if let Ok(value) = HeaderValue::try_from(text) {
        let edit = Edit::Set(X_FORWARDED_PREFIX.clone(), value);
        passed.request.push(edit);
    }
}

fn parsed(text: &str) -> Result<Path<'static>, Refusal> {
    let rooted;
    let text = if text.starts_with('/') {
        text
    } else {
        rooted = format!("/{text}");
        &rooted
    };
    let refused = |why: String| -> Refusal {
        let detail = format!("the rewritten path: {why}");
        Box::new(error::respond(&Error::client(
            StatusCode::BAD_REQUEST,
            detail,
        )))
    };
    let path = Path::parse(text).map_err(|error| refused(error.to_string()))?;
    // The configuration has none, and the path as it came had none: somebody put them together.
    if path.forward != text {
        return Err(refused("a dot segment".to_owned()));
    }
    Ok(path.into_owned())
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Path,
    Query,
}

fn rendered(
    pieces: &[Piece],
    asking: &Asking<'_, '_>,
    groups: Option<&Captures>,
    place: Place,
) -> String {
    let path = &asking.context.path;
    let mut out = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Var(Var::Path) => push_path(&mut out, &path.forward, place),
            Piece::Var(Var::Query) if place == Place::Query => {
                out.push_str(asking.context.query.as_deref().unwrap_or_default());
            }
            Piece::Var(var) => {
                let vars = asking.vars();
                // Writing to a String can't fail.
                let _ = write!(out, "{}", utf8_percent_encode(&vars.var(var), VALUE));
            }
            Piece::Group(group) => {
                let span = groups.and_then(|groups| groups.get_group(*group));
                let part = span.map(|span| path.forward_of(span.range()));
                push_path(&mut out, part.unwrap_or_default(), place);
            }
        }
    }
    out
}

/// A part of a path as it came. In a query some characters have another meaning.
fn push_path(out: &mut String, part: &str, place: Place) {
    if place == Place::Path {
        out.push_str(part);
        return;
    }
    for c in part.chars() {
        match c {
            '&' => out.push_str("%26"),
            '+' => out.push_str("%2B"),
            '=' => out.push_str("%3D"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;
    use crate::config::Format;
    use crate::document::{Context, Document};
    use crate::http::connection::HeadMarks;
    use crate::http::request::RequestContext;
    use crate::http::test_kit::{connection, spec};

    fn rewrite(lines: &str) -> Rewrite {
        let text = format!(
            "[http.a]\nlisten = \"127.0.0.1:1\"\nrespond = \"\"\nrewrite = {{ {lines} }}\n"
        );
        let context = Context {
            base: "/".into(),
            running: None,
        };
        let parsed = Document::parse(text.as_bytes(), Format::Toml, &context).unwrap();
        Rewrite::build(&parsed.document.http["a"].filters).unwrap()
    }

    /// What is sent on for `target`, and the prefix that is told.
    fn sent_on(
        rewrite: &Rewrite,
        target: &str,
        header: &str,
    ) -> Result<(String, Option<String>), u16> {
        let connection = connection(spec());
        let request = Request::get(target).header("host", "h.test");
        let request = request.header(
            "x-v",
            http::HeaderValue::from_bytes(header.as_bytes()).unwrap(),
        );
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let uri = std::mem::take(&mut parts.uri);
        let mut context =
            RequestContext::admit(&connection, &mut parts, &uri, HeadMarks::default(), false)
                .unwrap();
        let mut passed = Passed::default();
        let flight = crate::generation::Generation::new(1).begin(0);
        let mut asking = Asking {
            context: &mut context,
            parts: &mut parts,
            server: "a",
            route: None,
            generation: 1,
            flight: &flight,
        };
        rewrite
            .apply(&mut asking, &mut passed)
            .map_err(|refusal| refusal.status().as_u16())?;
        let prefix = passed.request.into_iter().find_map(|edit| match edit {
            Edit::Set(_, value) => Some(value.to_str().unwrap().to_owned()),
            _ => None,
        });
        Ok((context.target().into_owned(), prefix))
    }

    fn to(rewrite: &Rewrite, target: &str) -> String {
        sent_on(rewrite, target, "v").unwrap().0
    }

    #[test]
    fn prefixes_go_by_whole_segments_and_escapes_stay() {
        let strip = rewrite("strip_prefix = \"/api/v1/\"");
        for (target, expected, prefix) in [
            ("/api/v1/users?x=1", "/users?x=1", Some("/api/v1")),
            ("/api/v1", "/", Some("/api/v1")),
            ("/api/v1/", "/", Some("/api/v1")),
            ("/api/v1//x", "//x", Some("/api/v1")),
            ("/%61pi/v1/a%20b%2Fc", "/a%20b%2Fc", Some("/%61pi/v1")),
            ("/api/v12", "/api/v12", None),
            ("/api%2Fv1/x", "/api%2Fv1/x", None),
            ("/other/../api/v1/x", "/x", Some("/api/v1")),
        ] {
            let (path, told) = sent_on(&strip, target, "v").unwrap();
            assert_eq!(
                (path.as_str(), told.as_deref()),
                (expected, prefix),
                "{target}"
            );
        }
        let both = rewrite("strip_prefix = \"/a\", add_prefix = \"/b c/\"");
        assert_eq!(to(&both, "/a"), "/b%20c");
        assert_eq!(to(&both, "/a/x%20y?q"), "/b%20c/x%20y?q");
        assert_eq!(to(&both, "/x"), "/x");
        assert_eq!(to(&rewrite("add_prefix = \"/b\""), "/"), "/b/");
    }

    #[test]
    fn a_path_of_variables() {
        let path = rewrite("path = \"/site/{host}{path}\"");
        assert_eq!(to(&path, "/a%20b?q=1"), "/site/h.test/a%20b?q=1");
        let query = rewrite("path = \"/index.php?q={path}&v={header.x-v}&{query}\"");
        assert_eq!(to(&query, "/a&b?x=1"), "/index.php?q=/a%26b&v=v&x=1");
        assert_eq!(to(&rewrite("path = \"/x?\""), "/a?b"), "/x");
        let value = rewrite("path = \"/f/{header.x-v}\"");
        let of = |text: &str| sent_on(&value, "/", text).map(|(path, _)| path);
        assert_eq!(of("a/../../b"), Ok("/f/a%2F..%2F..%2Fb".into()));
        assert_eq!(of("a?b#c%2e"), Ok("/f/a%3Fb%23c%252e".into()));
        assert_eq!(of(".."), Err(400));
        assert_eq!(of("."), Err(400));
    }

    #[test]
    fn groups_keep_their_escapes() {
        let regex = rewrite("regex = '^/u/(?<id>[^/]+)(/.*)?$', to = '/users$2?id=$id'");
        assert_eq!(to(&regex, "/u/a%20b/c%2Fd"), "/users/c%2Fd?id=a%20b");
        assert_eq!(to(&regex, "/u/%C3%A9&x"), "/users?id=%C3%A9%26x");
        assert_eq!(to(&regex, "/other?x"), "/other?x");
        let all = rewrite("regex = '^/old(.*)', to = '$1'");
        assert_eq!(to(&all, "/old/x?q"), "/x?q");
        assert_eq!(to(&all, "/older"), "/er");
        assert_eq!(to(&all, "/old"), "/");
        let dots = rewrite("regex = '^/a(.*)', to = '/.$1'");
        assert_eq!(sent_on(&dots, "/a./x", "v"), Err(400));
    }

    proptest! {
        #[test]
        fn what_comes_out_is_a_path_that_admission_takes(
            target in "/([./]|%2e|%2F|%25|%C3%A9|[a-c?&]){0,24}",
            header in "([ -~]|é|%|/|\\.){0,12}",
            which in 0..5_usize,
        ) {
            let lines = [
                "strip_prefix = '/a'",
                "add_prefix = '/b/c'",
                "path = '/x/{header.x-v}{path}?{header.x-v}&{query}'",
                "regex = '(.*)/([^/]*)', to = '$2/$1{query.a}'",
                "strip_prefix = '/a/b', add_prefix = '/é'",
            ];
            let Ok((target, _)) = sent_on(&rewrite(lines[which]), &target, &header) else {
                return Ok(());
            };
            let sent: http::uri::PathAndQuery = target.parse().unwrap();
            prop_assert!(sent.path().starts_with('/') && target.is_ascii());
            let path = Path::parse(sent.path()).unwrap();
            prop_assert_eq!(&*path.forward, sent.path());
            prop_assert!(!path.decoded.split('/').any(|s| s == "." || s == ".."));
            prop_assert!(!path.decoded.contains('\0'));
        }
    }
}
