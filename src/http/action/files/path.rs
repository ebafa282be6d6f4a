//! From the path of a request to a path below the root: decoded once, by segments, so that no encoding makes a slash, a
//! dot segment or a NUL.

use percent_encoding::percent_decode_str;

/// The decoded path of a request. `None`: no file can have it (an encoded slash, a NUL, not UTF-8).
///
/// `forward` begins with a slash and has no dot segments: see `http::path`.
pub(super) fn decode(forward: &str) -> Option<String> {
    let mut out = String::with_capacity(forward.len());
    for (index, segment) in forward.split('/').enumerate() {
        if index > 0 {
            out.push('/');
        }
        let decoded = percent_decode_str(segment).decode_utf8().ok()?;
        if decoded.contains(['/', '\0']) {
            return None;
        }
        out.push_str(&decoded);
    }
    Some(out)
}

/// Where a candidate leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// `a/b`: no empty, no dot segments; empty for the root.
    pub(super) path: String,
    /// The candidate ends with a slash: a folder is meant.
    pub(super) folder: bool,
}

impl Place {
    /// `None`: nothing that is served can be there. `hidden`: names may begin with a dot.
    pub(super) fn new(candidate: &str, hidden: bool) -> Option<Place> {
        let mut path = String::with_capacity(candidate.len());
        for segment in candidate.split('/').filter(|s| !s.is_empty()) {
            // `.well-known` is there to be public (RFC 8615).
            let dotted = segment.starts_with('.') && !(path.is_empty() && segment == ".well-known");
            if matches!(segment, "." | "..") || (dotted && !hidden) || !is_name(segment) {
                return None;
            }
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(segment);
        }
        Some(Place {
            folder: candidate.is_empty() || candidate.ends_with('/'),
            path,
        })
    }
}

/// Whether a segment can be the name of one thing in a folder, and of nothing else.
fn is_name(segment: &str) -> bool {
    !segment.contains('\0')
        && (!cfg!(windows) || !(segment.contains(['\\', ':']) || segment.ends_with(['.', ' '])))
}

/// `folder/name`.
pub(super) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::path::Path;

    #[test]
    fn decoded_once() {
        let table = [
            ("/a%20b", Some("/a b")),
            ("/%C3%A9", Some("/é")),
            ("/a%2Fb", None),
            ("/a%2fb", None),
            ("/a%252Fb", Some("/a%2Fb")),
            ("/%252e%252e/x", Some("/%2e%2e/x")),
            ("/..%2f..%2fetc", None),
            ("/a%00", None),
            ("/%ff", None),
            ("/%c0%ae%c0%ae/", None),
            ("/100%", Some("/100%")),
            ("//a//", Some("//a//")),
        ];
        for (forward, decoded) in table {
            assert_eq!(decode(forward).as_deref(), decoded, "{forward}");
        }
    }

    #[test]
    fn places() {
        let of = |candidate: &str| Place::new(candidate, false).map(|p| (p.path, p.folder));
        assert_eq!(of("/"), Some((String::new(), true)));
        assert_eq!(of("//a//b"), Some(("a/b".into(), false)));
        assert_eq!(of("/a/"), Some(("a".into(), true)));
        assert_eq!(of("/.git/config"), None);
        assert_eq!(of("/a/.env"), None);
        assert_eq!(of("/../a"), None);
        assert_eq!(of("/a/../b"), None);
        assert_eq!(of("/.well-known/x"), Some((".well-known/x".into(), false)));
        assert_eq!(of("/a/.well-known/x"), None);
        assert_eq!(Place::new("/.git/x", true).unwrap().path, ".git/x");
        assert_eq!(Place::new("/a/..", true), None);
    }

    proptest! {
        #[test]
        fn no_request_names_what_is_above(
            raw in "/([./]|%2e|%2E|%2f|%5c|%25|%252e|%00|[a-c\\\\]){0,24}",
            hidden: bool,
        ) {
            let Ok(path) = Path::parse(&raw) else { return Ok(()) };
            let Some(decoded) = decode(&path.forward) else { return Ok(()) };
            let Some(place) = Place::new(&decoded, hidden) else { return Ok(()) };
            prop_assert!(!place.path.starts_with('/') && !place.path.contains('\0'));
            for segment in place.path.split('/').filter(|_| !place.path.is_empty()) {
                prop_assert!(!segment.is_empty() && segment != "." && segment != "..");
                prop_assert!(hidden || !segment.starts_with('.'));
            }
        }
    }
}
