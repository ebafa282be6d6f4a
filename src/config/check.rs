//! Raw to spec: what every section needs to check its values and to say what is wrong with them.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::decode::{Limit, List, Loc, Map};
use super::findings::{Findings, nearest};
use super::scalar::{Span, Wrong};
use super::tree::At;

/// Suggestions among names of the document; each costs a look at all of them.
const MAX_SUGGESTIONS: usize = 100;

/// What specs are checked against, and where mistakes go.
#[derive(Debug)]
pub struct Checker<'c> {
    pub findings: Findings,
    /// Folder that relative paths start from.
    pub base: &'c Path,
    /// Whether this host has IPv6.
    pub has_ipv6: bool,
    suggestions: usize,
}

impl<'c> Checker<'c> {
    pub fn new(findings: Findings, base: &'c Path, has_ipv6: bool) -> Checker<'c> {
        Checker {
            findings,
            base,
            has_ipv6,
            suggestions: 0,
        }
    }

    /// The value, or `None` and a finding at `at`.
    pub fn take<T>(&mut self, at: At, result: Result<T, Wrong>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(wrong) => {
                self.findings.error(at, wrong.message).help_if(wrong.help);
                None
            }
        }
    }

    /// Parses the items of a list; wrong ones are recorded and left out.
    pub fn each<T>(
        &mut self,
        list: Option<&Loc<List<String>>>,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Vec<(T, At)> {
        list.map(|list| self.each_of(list, parse))
            .unwrap_or_default()
    }

    /// As [`Checker::each`].
    pub fn each_of<T>(
        &mut self,
        list: &List<String>,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Vec<(T, At)> {
        list.iter()
            .filter_map(|item| Some((self.take(item.at, parse(item))?, item.at)))
            .collect()
    }

    /// A duration that must not be 0.
    pub fn duration(&mut self, span: Option<&Loc<Span>>) -> Duration {
        let Some(span) = span else {
            return Duration::ZERO;
        };
        self.not_zero(span.at, span.0);
        span.0
    }

    /// A duration that must not be 0, but may be without limit.
    pub fn limit(&mut self, span: Option<&Loc<Limit<Span>>>) -> Option<Duration> {
        let span = span?;
        let duration = span.get()?.0;
        self.not_zero(span.at, duration);
        Some(duration)
    }

    fn not_zero(&mut self, at: At, duration: Duration) {
        if duration.is_zero() {
            self.findings
                .error(at, "a timeout of 0 would end everything at once")
                .help("`\"unlimited\"` or `false` for none, where that is possible");
        }
    }

    /// A number within a range.
    pub fn number(&mut self, at: At, value: u64, range: RangeInclusive<u64>) -> u64 {
        if !range.contains(&value) {
            let message = if *range.end() == u64::MAX {
                format!("{value} is less than {}", range.start())
            } else {
                format!("{value} is not within {} to {}", range.start(), range.end())
            };
            self.findings.error(at, message);
        }
        value
    }

    /// A count of at least one, as the machine's word.
    pub fn count(&mut self, at: At, value: u64) -> usize {
        usize::try_from(self.number(at, value, 1..=u64::MAX)).unwrap_or(usize::MAX)
    }

    /// A count of at least one, but it may be without limit.
    pub fn most(&mut self, raw: Option<&Loc<Limit<u64>>>) -> Option<usize> {
        let raw = raw?;
        raw.get().map(|count| self.count(raw.at, count))
    }

    /// Checks the names of a section's tables.
    pub fn names<T>(&mut self, tables: &Map<T>) {
        for (name, table) in tables.iter() {
            if !is_name(name) {
                self.findings
                    .key_error(table.at, format!("`{}` is not a name", shorten(name)))
                    .help("names have up to 128 letters, digits, `_`, `-` and `.`");
            }
        }
    }

    /// "did you mean" among names that the document chose.
    pub fn suggest<'k>(
        &mut self,
        word: &str,
        known: impl IntoIterator<Item = &'k str>,
    ) -> Option<String> {
        self.suggestions += 1;
        if self.suggestions > MAX_SUGGESTIONS {
            return None;
        }
        nearest(word, known).map(|k| format!("did you mean `{k}`?"))
    }
}

/// Whether a text may name a thing: letters, digits, `_`, `-` and `.`.
pub fn is_name(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    (1..=128).contains(&text.len()) && text.bytes().all(fits)
}

/// The beginning of a text that may be very long, for a message.
pub fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 {
        return text.to_owned();
    }
    let mut start: String = text.chars().take(79).collect();
    start.push('…');
    start
}
