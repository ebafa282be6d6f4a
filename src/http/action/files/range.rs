//! `Range` (RFC 9110 section 14): which bytes of a file are asked for.

use std::ops::Range;

use http::HeaderMap;
use http::header::RANGE;

/// Ranges one request may ask for; players and viewers of documents ask for a few.
const MAX_RANGES: usize = 16;

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All: nothing else was asked for, or not in a way that is heeded.
    Whole,
    /// These, never empty, none beyond the end, in the order asked for and without overlaps.
    Parts(Vec<Range<u64>>),
    /// Nothing of it exists: 416.
    Nothing,
}

/// Reads `Range` for a representation of `length` bytes.
///
/// What is not well-formed, asks for too much at once, or for the same byte twice, is answered with the whole: it can
/// never make us send more than that.
pub(super) fn wanted(headers: &HeaderMap, length: u64) -> Wanted {
    let mut lines = headers.get_all(RANGE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Wanted::Whole;
    };
    match parse(line.as_bytes()) {
        Some(specs) => select(&specs, length),
        None => Wanted::Whole,
    }
}

/// One item, as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spec {
    /// `first-last`, `first-`.
    From(u64, u64),
    /// `-n`: the last n bytes.
    Last(u64),
}

fn parse(line: &[u8]) -> Option<Vec<Spec>> {
    let (unit, set) = line.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let mut specs = Vec::new();
    for item in set.split(|b| *b == b',') {
        let item = item.trim_ascii();
        // A list may have empty items (RFC 9110 section 5.6.1).
        if item.is_empty() {
            continue;
        }
        if specs.len() == MAX_RANGES {
            return None;
        }
        let dash = item.iter().position(|b| *b == b'-')?;
        let (first, last) = (&item[..dash], &item[dash + 1..]);
        specs.push(match (first.is_empty(), last.is_empty()) {
            (true, _) => Spec::Last(number(last)?),
            (false, true) => Spec::From(number(first)?, u64::MAX),
            (false, false) => {
                let (first, last) = (number(first)?, number(last)?);
                if last < first {
                    return None;
                }
                Spec::From(first, last)
            }
        });
    }
    (!specs.is_empty()).then_some(specs)
}

/// Digits only; what is too large for us is larger than any file.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |all, digit| {
        digit.is_ascii_digit().then(|| {
            all.saturating_mul(10)
                .saturating_add(u64::from(digit - b'0'))
        })
    })
}

fn select(specs: &[Spec], length: u64) -> Wanted {
    // Nothing of an empty file can be sent as a part; some clients ask for one with every request.
    if length == 0 {
        return Wanted::Whole;
    }
    let parts: Vec<Range<u64>> = specs
        .iter()
        .filter_map(|spec| match *spec {
            Spec::From(first, last) => {
                (first < length).then(|| first..last.saturating_add(1).min(length))
            }
            Spec::Last(0) => None,
            Spec::Last(count) => Some(length.saturating_sub(count)..length),
        })
        .collect();
    if parts.is_empty() {
        return Wanted::Nothing;
    }
    let mut sorted: Vec<_> = parts.iter().collect();
    sorted.sort_by_key(|part| part.start);
    if sorted.windows(2).any(|pair| pair[1].start < pair[0].end) {
        return Wanted::Whole;
    }
    Wanted::Parts(parts)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str, length: u64) -> Wanted {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, text.parse().unwrap());
        wanted(&headers, length)
    }

    #[test]
    fn one_and_many() {
        let parts =
            |parts: &[(u64, u64)]| Wanted::Parts(parts.iter().map(|(a, b)| *a..*b).collect());
        let table = [
            ("bytes=0-0", parts(&[(0, 1)])),
            ("bytes=0-99", parts(&[(0, 100)])),
            ("bytes=10-", parts(&[(10, 100)])),
            ("bytes=-10", parts(&[(90, 100)])),
            ("bytes=-1000", parts(&[(0, 100)])),
            ("bytes=90-1000", parts(&[(90, 100)])),
            ("BYTES=1-2", parts(&[(1, 3)])),
            ("bytes= 1-2 , 5-6,", parts(&[(1, 3), (5, 7)])),
            ("bytes=5-6,1-2", parts(&[(5, 7), (1, 3)])),
            ("bytes=200-300,1-2", parts(&[(1, 3)])),
            ("bytes=0-18446744073709551616", parts(&[(0, 100)])),
            ("bytes=18446744073709551616-", Wanted::Nothing),
            ("bytes=100-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=0-10,5-20", Wanted::Whole),
            ("bytes=0-,0-,0-", Wanted::Whole),
            ("bytes=2-1", Wanted::Whole),
            ("bytes=", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("bytes=1", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=--1", Wanted::Whole),
            ("items=0-1", Wanted::Whole),
            ("bytes", Wanted::Whole),
        ];
        for (text, expected) in table {
            assert_eq!(of(text, 100), expected, "{text}");
        }
        assert_eq!(of("bytes=0-", 0), Wanted::Whole);
        let many = (0..17).map(|n| format!("{n}-{n}")).collect::<Vec<_>>();
        assert_eq!(of(&format!("bytes={}", many.join(",")), 100), Wanted::Whole);
        let few = format!("bytes={}", many[..16].join(","));
        assert!(matches!(of(&few, 100), Wanted::Parts(parts) if parts.len() == 16));
    }

    proptest! {
        #[test]
        fn never_more_than_there_is(text in "bytes=([0-9]{0,3}-[0-9]{0,3},?){0,20}", length in 0..300_u64) {
            if let Wanted::Parts(parts) = of(&text, length) {
                prop_assert!(!parts.is_empty());
                prop_assert!(parts.iter().all(|p| p.start < p.end && p.end <= length));
                prop_assert!(parts.iter().map(|p| p.end - p.start).sum::<u64>() <= length);
            }
        }

        #[test]
        fn never_panics(text in "(bytes=)?[ -~]{0,40}", length: u64) {
            let _ = of(&text, length);
        }
    }
}
