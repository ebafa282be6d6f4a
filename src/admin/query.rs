//! Query parameters, parsed strictly: an unknown key is an error, since a misspelt `strict=true` that is silently
//! ignored would apply what it was meant to refuse.

use std::time::Duration;

use axum::http::{StatusCode, Uri};
use percent_encoding::percent_decode_str;

use super::problem::{Problem, Refusal};
use crate::config::scalar::Span;

/// How long a call waits for its swap before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// 202 at once.
    Accepted,
    /// Until the new generation serves (for a stop: until nothing is accepted).
    Committed,
    /// Until the old ones are gone.
    Drained,
}

/// The parameters of one request.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Takes only keys of `known`, each once.
    ///
    /// # Errors
    /// 400 `bad-query` for any other key; 422 `not-supported-yet` for a key of `later`.
    pub(crate) fn parse(uri: &Uri, known: &[&str], later: &[&str]) -> Result<Query, Refusal> {
        let mut query = Query::default();
        for piece in uri
            .query()
            .unwrap_or("")
            .split('&')
            .filter(|piece| !piece.is_empty())
        {
            let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
            let (key, value) = (decode(key)?, decode(value)?);
            if later.contains(&key.as_str()) {
                let detail = format!("the query parameter `{key}` is not supported yet");
                return Err(Problem::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "not-supported-yet",
                    detail,
                ));
            }
            if !known.contains(&key.as_str()) {
                let all = match known {
                    [] => "this call takes none".to_owned(),
                    known => format!("this call takes {}", known.join(", ")),
                };
                return Err(Problem::bad_query(format!(
                    "unknown query parameter `{key}`: {all}"
                )));
            }
            if query.get(&key).is_some() {
                return Err(Problem::bad_query(format!(
                    "the query parameter `{key}` is given twice"
                )));
            }
            query.pairs.push((key, value));
        }
        Ok(query)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// A whole number of `range`.
    pub(crate) fn number(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.map(Some).ok_or_else(|| {
            let (from, to) = (range.start(), range.end());
            Problem::bad_query(format!(
                "`{key}` is a whole number from {from} to {to}, not `{text}`"
            ))
        })
    }

    /// `true` or `false`; absent is false.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, Refusal> {
        match self.get(key) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(Problem::bad_query(format!(
                "`{key}` is `true` or `false`, not `{other}`"
            ))),
        }
    }

    /// Whether a key is there; its one value is `value`.
    pub(crate) fn only(&self, key: &str, value: &str) -> Result<bool, Refusal> {
        match self.get(key) {
            None => Ok(false),
            Some(given) if given == value => Ok(true),
            Some(other) => Err(Problem::bad_query(format!(
                "`{key}` is `{value}`, not `{other}`"
            ))),
        }
    }

    /// A duration as in the configuration: one integer and `ms`, `s`, `m`, `h` or `d`; at most 365 days.
    pub(crate) fn duration(&self, key: &str) -> Result<Option<Duration>, Refusal> {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        match Span::parse(text) {
            Some(Span(duration)) => Ok(Some(duration)),
            None => Err(Problem::bad_query(format!(
                "`{key}` is a duration of at most 365 days: one integer and ms, s, m, h or d, such as `10s`, not `{text}`"
            ))),
        }
    }

    /// The `wait` parameter, of those `allowed`.
    pub(crate) fn wait(&self, allowed: &[Wait]) -> Result<Option<Wait>, Refusal> {
        let Some(text) = self.get("wait") else {
            return Ok(None);
        };
        let wait = [
            ("accepted", Wait::Accepted),
            ("committed", Wait::Committed),
            ("drained", Wait::Drained),
        ];
        let found = wait
            .iter()
            .find(|(name, wait)| *name == text && allowed.contains(wait));
        found.map(|(_, wait)| Some(*wait)).ok_or_else(|| {
            let names: Vec<_> = wait
                .iter()
                .filter(|(_, wait)| allowed.contains(wait))
                .map(|(name, _)| *name)
                .collect();
            Problem::bad_query(format!(
                "`wait` is one of {}, not `{text}`",
                names.join(", ")
            ))
        })
    }
}

fn decode(text: &str) -> Result<String, Refusal> {
    let text = text.replace('+', " ");
    percent_decode_str(&text)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| Problem::bad_query("the query is not UTF-8"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Query, Refusal> {
        let uri: Uri = format!("/reload?{query}").parse().unwrap();
        Query::parse(&uri, &["wait", "strict", "turn"], &["canary"])
    }

    #[test]
    fn unknown_repeated_and_later_keys_are_refused() {
        assert_eq!(parse("wiat=drained").unwrap_err().status, 400);
        assert_eq!(parse("strict=true&strict=true").unwrap_err().status, 400);
        let later = parse("canary=5").unwrap_err();
        assert_eq!((later.status, later.slug()), (422, "not-supported-yet"));
        assert_eq!(parse("%ff=1").unwrap_err().status, 400);
    }

    #[test]
    fn values_are_checked() {
        let query = parse("wait=drained&strict=true&turn=250ms").unwrap();
        assert_eq!(
            query.wait(&[Wait::Committed, Wait::Drained]).unwrap(),
            Some(Wait::Drained)
        );
        assert_eq!(query.wait(&[Wait::Committed]).unwrap_err().status, 400);
        assert!(query.flag("strict").unwrap());
        assert_eq!(
            query.duration("turn").unwrap(),
            Some(Duration::from_millis(250))
        );
        let turn = |text: &str| parse(text).unwrap().number("turn", 1..=10);
        assert_eq!(turn("turn=10").unwrap(), Some(10));
        assert_eq!(turn("").unwrap(), None);
        for wrong in ["turn=11", "turn=0", "turn=-1", "turn=", "turn=1.0"] {
            assert!(turn(wrong).is_err(), "{wrong}");
        }
        assert!(parse("strict=yes").unwrap().flag("strict").is_err());
        assert!(parse("turn=10").unwrap().duration("turn").is_err());
        assert!(parse("turn=").unwrap().duration("turn").is_err());
        assert!(parse("turn=366d").unwrap().duration("turn").is_err());
    }
}
