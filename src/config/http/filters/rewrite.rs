//! `rewrite`: another path, and perhaps another query, for what stands behind.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use regex_automata::PatternID;

use super::super::super::check::{Checker, shorten};
use super::super::super::decode::{Loc, section};
use super::super::super::scalar::{Pattern, Wrong};
use super::super::super::template::{Part, Template, Var};
use super::super::super::tree::At;

section! {
    /// Change the path that an upstream gets, or that `files` looks for. It is one of three: prefixes, a `path`, or a
    /// `regex` with its `to`. Routes are chosen before, by the path as it came.
    pub struct RewriteRaw {
        /// Taken off the beginning of the path, by whole segments: `/api` takes it off `/api` and `/api/x`, not off `/apix`,
        /// which stays as it is. Compared decoded, as `match.path` is. An upstream is told by `X-Forwarded-Prefix`.
        strip_prefix: String,
        /// Put before the path, after `strip_prefix` has been taken off.
        add_prefix: String,
        /// The whole new path, in which `{variables}` are replaced and encoded. With a `?` in it also the new query, else the
        /// query stays.
        path: String,
        /// A regular expression, unanchored. Where the decoded path matches, `to` becomes the path; else it stays.
        regex: String,
        /// As `path`; `$1`, `${1}` or `$name` is what a group of `regex` matched, `$$` is a dollar.
        to: String,
    }
    one_of = ["strip_prefix", "add_prefix", "path", "regex", "to"];
    later = [];
}

/// Checked `rewrite`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RewriteSpec {
    Prefix {
        /// Decoded; `/a/b` without a slash at its end.
        strip: Option<String>,
        /// As it is sent; `/a/b` without a slash at its end.
        add: Option<String>,
    },
    To {
        /// `None`: every path.
        regex: Option<Pattern>,
        path: Vec<Piece>,
        /// `None`: the query stays.
        query: Option<Vec<Piece>>,
    },
}

/// A part of a new path or query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Encoded: fit to be sent.
    Text(String),
    Var(Var),
    /// A group of the regular expression.
    Group(usize),
}

/// Bytes that no path and no query can have as they are. `%` stays: it begins an escape.
const UNFIT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

impl RewriteSpec {
    pub(super) fn new(raw: &RewriteRaw, at: At, check: &mut Checker<'_>) -> Option<RewriteSpec> {
        let prefixes = raw.strip_prefix.is_some() || raw.add_prefix.is_some();
        let by_regex = raw.regex.is_some() || raw.to.is_some();
        let kinds = usize::from(prefixes) + usize::from(raw.path.is_some()) + usize::from(by_regex);
        if kinds != 1 {
            if kinds > 1 || raw.spoiled.is_empty() {
                let message = if kinds == 0 {
                    "`rewrite` says nothing"
                } else {
                    "`rewrite` says more than one thing"
                };
                let finding = check.findings.error(at, message);
                finding.help("prefixes, or `path`, or `regex` with `to`");
            }
            return None;
        }
        if prefixes {
            let mut read = |raw: Option<&Loc<String>>, encode: bool| {
                let raw = raw?;
                check.take(raw.at, prefix(raw, encode))
            };
            let strip = read(raw.strip_prefix.as_ref(), false);
            let add = read(raw.add_prefix.as_ref(), true);
            return Some(RewriteSpec::Prefix { strip, add });
        }
        if let Some(path) = &raw.path {
            let (path, query) = pieces(path, None, check)?;
            return Some(RewriteSpec::To {
                regex: None,
                path,
                query,
            });
        }
        let (Some(regex), Some(to)) = (&raw.regex, &raw.to) else {
            if raw.spoiled.is_empty() {
                let message = "`regex` and `to` are nothing without each other";
                check.findings.error(at, message);
            }
            return None;
        };
        let regex = check.take(regex.at, Pattern::compile(regex))?;
        let (path, query) = pieces(to, Some(&regex), check)?;
        Some(RewriteSpec::To {
            regex: Some(regex),
            path,
            query,
        })
    }
}

fn prefix(text: &str, encode: bool) -> Result<String, Wrong> {
    let wrong = |why| {
        Wrong::new(format!(
            "`{}` is not a prefix of paths: {why}",
            shorten(text)
        ))
    };
    let bare = text.trim_end_matches('/');
    if !text.starts_with('/') || bare.is_empty() {
        return Err(wrong("it begins with `/` and has a name behind it"));
    }
    if text.contains(['?', '#']) || text.chars().any(char::is_control) {
        return Err(wrong("it has a query or a control character in it"));
    }
    if has_dots(bare) {
        return Err(wrong("it has a dot segment"));
    }
    Ok(if encode {
        encoded(bare)
    } else {
        bare.to_owned()
    })
}

fn has_dots(path: &str) -> bool {
    path.split('/').any(|segment| {
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        plain == "." || plain == ".."
    })
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, UNFIT).to_string()
}

type Target = (Vec<Piece>, Option<Vec<Piece>>);

/// A text with variables and groups, split at its first `?`.
fn pieces(raw: &Loc<String>, regex: Option<&Pattern>, check: &mut Checker<'_>) -> Option<Target> {
    let mut path = Vec::new();
    let mut query: Option<Vec<Piece>> = None;
    let mut put = |piece: Piece| match (&mut query, piece) {
        (Some(query), piece) => query.push(piece),
        (None, Piece::Text(text)) => match text.split_once('?') {
            Some((head, tail)) => {
                path.push(Piece::Text(encoded(head)));
                query = Some(vec![Piece::Text(encoded(tail))]);
            }
            None => path.push(Piece::Text(encoded(&text))),
        },
        (None, piece) => path.push(piece),
    };
    let mut sound = true;
    for run in runs(raw, regex) {
        match run {
            Ok(Run::Group(group)) => put(Piece::Group(group)),
            Ok(Run::Text(text)) => match Template::parse(&text) {
                Ok(template) => template.parts.into_iter().for_each(|part| match part {
                    Part::Text(text) => put(Piece::Text(text)),
                    Part::Var(var) => put(Piece::Var(var)),
                }),
                Err(all) => {
                    sound = false;
                    for wrong in all {
                        check
                            .findings
                            .error(raw.at, wrong.message)
                            .help_if(wrong.help);
                    }
                }
            },
            Err(wrong) => {
                sound = false;
                check
                    .findings
                    .error(raw.at, wrong.message)
                    .help_if(wrong.help);
            }
        }
    }
    let absolute = match path
        .iter()
        .find(|piece| !matches!(piece, Piece::Text(t) if t.is_empty()))
    {
        Some(Piece::Text(text)) => text.starts_with('/'),
        Some(Piece::Var(var)) => *var == Var::Path,
        Some(Piece::Group(_)) => true,
        None => false,
    };
    if sound && !absolute {
        let finding = check.findings.error(raw.at, "a path begins with `/`");
        finding.help("or with `{path}`");
        sound = false;
    }
    let shape: String = path
        .iter()
        .map(|piece| match piece {
            Piece::Text(text) => text.as_str(),
            Piece::Var(_) | Piece::Group(_) => "x",
        })
        .collect();
    if sound && has_dots(&shape) {
        check.findings.error(raw.at, "a dot segment in a path");
        sound = false;
    }
    sound.then_some((path, query))
}

enum Run {
    Text(String),
    Group(usize),
}

/// Splits a text at the names of groups. Without a regular expression a `$` is a character.
fn runs(text: &str, regex: Option<&Pattern>) -> Vec<Result<Run, Wrong>> {
    let Some(regex) = regex else {
        return vec![Ok(Run::Text(text.to_owned()))];
    };
    let mut out = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        literal.push_str(before);
        if let Some(tail) = after.strip_prefix('$') {
            literal.push('$');
            rest = tail;
            continue;
        }
        let braced = after.strip_prefix('{').and_then(|a| a.split_once('}'));
        let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        let (name, tail) = braced.unwrap_or_else(|| {
            let digits = after.starts_with(|c: char| c.is_ascii_digit());
            let end = after
                .bytes()
                .take_while(|b| word(b) && (!digits || b.is_ascii_digit()))
                .count();
            after.split_at(end)
        });
        rest = tail;
        out.push(Ok(Run::Text(std::mem::take(&mut literal))));
        out.push(group(name, regex).map(Run::Group));
    }
    literal.push_str(rest);
    out.push(Ok(Run::Text(literal)));
    out
}

fn group(name: &str, regex: &Pattern) -> Result<usize, Wrong> {
    let captures = regex.regex.create_captures();
    let groups = captures.group_info();
    let index = match name.parse::<usize>() {
        Ok(index) => Some(index).filter(|index| *index < groups.group_len(PatternID::ZERO)),
        Err(_) => groups.to_index(PatternID::ZERO, name),
    };
    index.ok_or_else(|| {
        Wrong::new(format!("`regex` has no group `{}`", shorten(name)))
            .help("write `$$` for the character itself")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        assert_eq!(prefix("/a b/", false), Ok("/a b".into()));
        assert_eq!(prefix("/a b/é/", true), Ok("/a%20b/%C3%A9".into()));
        for wrong in ["", "/", "a", "//", "/a?b", "/a/../b", "/a/%2e", "/a\n"] {
            assert!(prefix(wrong, true).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn groups_by_number_and_name() {
        let regex = Pattern::compile("^/(a)(?<rest>.*)$").unwrap();
        let of = |text: &str| -> Vec<String> {
            runs(text, Some(&regex))
                .into_iter()
                .map(|run| match run {
                    Ok(Run::Text(text)) => text,
                    Ok(Run::Group(group)) => format!("<{group}>"),
                    Err(wrong) => format!("!{}", wrong.message),
                })
                .filter(|run| !run.is_empty())
                .collect()
        };
        assert_eq!(of("/x/$1/$rest"), ["/x/", "<1>", "/", "<2>"]);
        assert_eq!(of("$$1${1}0$0"), ["$1", "<1>", "0", "<0>"]);
        assert_eq!(of("/$1a"), ["/", "<1>", "a"]);
        assert_eq!(of("$3"), ["!`regex` has no group `3`"]);
        assert_eq!(of("/$"), ["/", "!`regex` has no group ``"]);
    }
}
