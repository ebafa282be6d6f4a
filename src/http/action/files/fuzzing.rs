//! What the fuzzer calls of `files`.

use http::header::{ACCEPT_ENCODING, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::conditional::{self, Verdict};
use super::negotiate::codings;
use super::path::{Place, decode};
use super::range::{Wanted, wanted};
use super::stat::{Kind, Stat};
use crate::config::http::FileCoding;

/// No path of a request leads out of the root or has a name with a slash or a NUL in it.
pub fn place(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // As the pipeline hands it on: a path that admission has taken.
    let Ok(target) = http::uri::PathAndQuery::try_from(text) else {
        return;
    };
    let Ok(path) = crate::http::path::Path::parse(target.path()) else {
        return;
    };
    let Some(place) = decode(&path.forward).and_then(|decoded| Place::new(&decoded, false)) else {
        return;
    };
    assert!(!place.path.starts_with('/') && !place.path.contains('\0'));
    for (number, name) in place.path.split('/').enumerate() {
        let first = number == 0;
        assert!(!name.is_empty() || place.path.is_empty());
        assert!(
            !name.starts_with('.') || (first && name == ".well-known"),
            "{name}"
        );
    }
}

/// What is sent of a file lies within it, no byte twice.
pub fn range(data: &[u8]) {
    let Some((length, line)) = data.split_first_chunk::<2>() else {
        return;
    };
    let length = u64::from(u16::from_le_bytes(*length));
    let Ok(value) = HeaderValue::from_bytes(line) else {
        return;
    };
    let headers = HeaderMap::from_iter([(RANGE, value)]);
    if let Wanted::Parts(parts) = wanted(&headers, length) {
        let mut sorted = parts.clone();
        sorted.sort_by_key(|part| part.start);
        assert!(!parts.is_empty());
        assert!(
            parts
                .iter()
                .all(|part| part.start < part.end && part.end <= length)
        );
        assert!(sorted.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}

/// Preconditions have one outcome, and `*` names whatever is there.
pub fn conditional(data: &[u8]) {
    let stat = Stat {
        kind: Kind::File,
        device: 1,
        inode: 1,
        size: 10,
        modified: (784_111_777, 0),
        changed: (784_111_777, 0),
    };
    let current = stat.validators(None);
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some((which, value)) = line.split_first() else {
            continue;
        };
        let names = [
            "if-match",
            "if-none-match",
            "if-modified-since",
            "if-unmodified-since",
            "if-range",
        ];
        let name = HeaderName::from_static(names[usize::from(*which) % names.len()]);
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    let verdict = conditional::evaluate(&headers, &current);
    if headers.is_empty() {
        assert_eq!(verdict, Verdict::Proceed);
        assert!(conditional::range_applies(&headers, &current));
    }
    headers.remove("if-match");
    headers.remove("if-unmodified-since");
    headers.insert("if-none-match", HeaderValue::from_static("*"));
    assert_eq!(
        conditional::evaluate(&headers, &current),
        Verdict::NotModified
    );
}

/// A coding that is chosen was offered, and is chosen once.
pub fn negotiate(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else {
        return;
    };
    let offered = [FileCoding::Brotli, FileCoding::Zstd, FileCoding::Gzip];
    let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, value)]);
    let chosen = codings(&headers, &offered);
    for (index, coding) in chosen.iter().enumerate() {
        assert!(offered.contains(coding) && !chosen[..index].contains(coding));
    }
}
