//! The path in the two forms that are needed: as routes compare it (decoded, but `%2F`) and as it is sent on (as it
//! came). Neither has dot segments. A path without `%` and `/.` is both at once and costs nothing.

use std::borrow::Cow;
use std::ops::Range;

/// Why a path is refused (400).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    #[error("the path has a NUL in it")]
    Nul,
    #[error("the decoded path is not UTF-8")]
    Encoding,
    #[error("the path does not begin with a slash")]
    Relative,
}

/// A path in both forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path<'a> {
    /// For matching: percent-decoded once, but `%2F`, which stays `%2F`.
    pub decoded: Cow<'a, str>,
    /// For sending on: the bytes of the request, less dot segments.
    pub forward: Cow<'a, str>,
}

impl<'a> Path<'a> {
    /// Reads the path of a request target: `*`, or what begins with `/`.
    ///
    /// Segments end at `/`, not at `%2F`; a segment that decodes to `.` or `..` is a dot segment (RFC 3986 section
    /// 5.2.4). Empty segments are kept.
    ///
    /// # Errors
    /// [`BadPath`] for a NUL, for what does not decode to UTF-8, and for a relative path.
    pub fn parse(raw: &'a str) -> Result<Path<'a>, BadPath> {
        if raw == "*" {
            return Ok(Path {
                decoded: Cow::Borrowed(raw),
                forward: Cow::Borrowed(raw),
            });
        }
        if !raw.starts_with('/') {
            return Err(BadPath::Relative);
        }
        let bytes = raw.as_bytes();
        let escaped = memchr::memchr(b'%', bytes).is_some();
        if !escaped && memchr::memmem::find(bytes, b"/.").is_none() {
            return Ok(Path {
                decoded: Cow::Borrowed(raw),
                forward: Cow::Borrowed(raw),
            });
        }
        let mut forward = String::with_capacity(raw.len());
        let mut decoded = Vec::with_capacity(raw.len());
        // Where each kept segment begins in the two forms, its slash included.
        let mut starts: Vec<(usize, usize)> = Vec::new();
        let mut segments = raw[1..].split('/').peekable();
        while let Some(segment) = segments.next() {
            let start = (forward.len(), decoded.len());
            decoded.push(b'/');
            decode_into(segment, &mut decoded)?;
            match &decoded[start.1 + 1..] {
                dots @ (b"." | b"..") => {
                    let up = dots.len() == 2;
                    decoded.truncate(start.1);
                    if up && let Some((raw_start, decoded_start)) = starts.pop() {
                        forward.truncate(raw_start);
                        decoded.truncate(decoded_start);
                    }
                    if segments.peek().is_none() {
                        forward.push('/');
                        decoded.push(b'/');
                    }
                }
                _ => {
                    forward.push('/');
                    forward.push_str(segment);
                    starts.push(start);
                }
            }
        }
        let decoded = String::from_utf8(decoded).map_err(|_| BadPath::Encoding)?;
        let forward = if forward == raw {
            Cow::Borrowed(raw)
        } else {
            Cow::Owned(forward)
        };
        Ok(Path {
            decoded: Cow::Owned(decoded),
            forward,
        })
    }

    /// The same, holding its own text.
    pub fn into_owned(self) -> Path<'static> {
        Path {
            decoded: Cow::Owned(self.decoded.into_owned()),
            forward: Cow::Owned(self.forward.into_owned()),
        }
    }

    /// The part of what is sent on that `part` of the decoded form came of. Empty if that is none.
    pub fn forward_of(&self, part: Range<usize>) -> &str {
        // Every escape that was decoded has made it shorter.
        if self.forward.len() == self.decoded.len() {
            return self.forward.get(part).unwrap_or_default();
        }
        let bytes = self.forward.as_bytes();
        let (mut at, mut decoded, mut start) = (0, 0, None);
        loop {
            if decoded == part.start {
                start = start.or(Some(at));
            }
            if decoded == part.end || at >= bytes.len() {
                break;
            }
            at += match &bytes[at..] {
                // `%2F` stays as it is.
                [b'%', high, low, ..] => match hex(*high).zip(hex(*low)) {
                    None | Some((2, 15)) => 1,
                    Some(_) => 3,
                },
                _ => 1,
            };
            decoded += 1;
        }
        start
            .and_then(|start| self.forward.get(start..at))
            .unwrap_or_default()
    }
}

fn decode_into(segment: &str, out: &mut Vec<u8>) -> Result<(), BadPath> {
    let mut rest = segment.as_bytes();
    while let [byte, tail @ ..] = rest {
        let escape = match (byte, tail) {
            (b'%', [high, low, tail @ ..]) => hex(*high)
                .zip(hex(*low))
                .map(|(high, low)| (high << 4 | low, tail)),
            _ => None,
        };
        match escape {
            Some((0, _)) => return Err(BadPath::Nul),
            Some((b'/', _)) => out.extend_from_slice(b"%2F"),
            Some((other, _)) => out.push(other),
            // A `%` that begins no escape stands for itself, as every server takes it.
            None => out.push(*byte),
        }
        rest = escape.map_or(tail, |(_, tail)| tail);
    }
    Ok(())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms() {
        let table = [
            ("/", "/", "/"),
            ("*", "*", "*"),
            ("/a/b", "/a/b", "/a/b"),
            ("/a//b", "/a//b", "/a//b"),
            ("/a/./b", "/a/b", "/a/b"),
            ("/a/../b", "/b", "/b"),
            ("/a/..", "/", "/"),
            ("/a/b/..", "/a/", "/a/"),
            ("/a/.", "/a/", "/a/"),
            ("/../../etc/passwd", "/etc/passwd", "/etc/passwd"),
            ("/a/%2e%2E/b", "/b", "/b"),
            ("/a/.%2e/b", "/b", "/b"),
            ("/.well-known/x", "/.well-known/x", "/.well-known/x"),
            ("/a/...", "/a/...", "/a/..."),
            ("/a%2Fb", "/a%2Fb", "/a%2Fb"),
            ("/a%2fb", "/a%2Fb", "/a%2fb"),
            ("/a%20b", "/a b", "/a%20b"),
            ("/%C3%A9", "/é", "/%C3%A9"),
            ("/100%", "/100%", "/100%"),
            ("/%zz", "/%zz", "/%zz"),
            ("/a/..%2fb", "/a/..%2Fb", "/a/..%2fb"),
            ("/%41/%42/../%43", "/A/C", "/%41/%43"),
        ];
        for (raw, decoded, forward) in table {
            let path = Path::parse(raw).unwrap();
            assert_eq!(
                (&*path.decoded, &*path.forward),
                (decoded, forward),
                "{raw}"
            );
        }
    }

    #[test]
    fn refused() {
        assert_eq!(Path::parse("/a%00"), Err(BadPath::Nul));
        assert_eq!(Path::parse("/%ff"), Err(BadPath::Encoding));
        assert_eq!(Path::parse("/%c0%af"), Err(BadPath::Encoding));
        assert_eq!(Path::parse("a/b"), Err(BadPath::Relative));
        assert_eq!(Path::parse(""), Err(BadPath::Relative));
    }

    #[test]
    fn a_plain_path_is_not_copied() {
        let path = Path::parse("/v1/users/42.json").unwrap();
        assert!(matches!(
            (path.decoded, path.forward),
            (Cow::Borrowed(_), Cow::Borrowed(_))
        ));
    }

    proptest! {
        #[test]
        fn no_dot_segment_survives_and_nothing_climbs(raw in "/([./]|%2e|%2E|%2f|%25|[a-c]){0,24}") {
            let path = Path::parse(&raw).unwrap();
            for form in [&path.decoded, &path.forward] {
                prop_assert!(form.starts_with('/'));
                prop_assert!(!form.split('/').any(|s| s == "." || s == ".."));
            }
            let encoded_dots = path.forward.split('/').any(|s| {
                matches!(s.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..")
            });
            prop_assert!(!encoded_dots);
        }

        #[test]
        fn what_is_sent_on_reads_as_what_was_matched(raw in "/([./]|%2e|%2f|%C3%A9|[a-c]){0,24}") {
            let first = Path::parse(&raw).unwrap();
            let again = Path::parse(&first.forward).unwrap();
            prop_assert_eq!(&again.decoded, &first.decoded);
            prop_assert_eq!(&again.forward, &first.forward);
        }

        #[test]
        fn a_part_of_the_decoded_form_is_found_again(raw in "/([./a%]|%2e|%2f|%41|%C3%A9|%25){0,24}", from: u8, to: u8) {
            let Ok(path) = Path::parse(&raw) else { return Ok(()) };
            let (from, to) = (usize::from(from.min(to)), usize::from(from.max(to)));
            let Some(part) = path.decoded.get(from..to) else { return Ok(()) };
            // A part may begin within an escape that stayed: only whole segments read the same alone.
            let whole = path.forward_of(0..path.decoded.len());
            prop_assert_eq!(whole, &*path.forward);
            let three = [path.forward_of(0..from), path.forward_of(from..to), path.forward_of(to..path.decoded.len())];
            prop_assert_eq!(three.concat(), &*path.forward);
            if !part.contains(['%', '.']) && part.starts_with('/') {
                prop_assert_eq!(&*Path::parse(path.forward_of(from..to)).unwrap().decoded, part);
            }
        }

        #[test]
        fn never_panics(raw in "\\PC{0,40}") {
            let _ = Path::parse(&raw);
        }
    }
}
