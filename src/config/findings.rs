//! Everything that is wrong with a document, gathered while it is read. Nothing stops at the first mistake.

use std::collections::BTreeSet;

use super::Diagnostic;
use super::scalar::Secret;
use super::texts::Texts;
use super::tree::{At, Places, Span};

/// Findings that are kept; more help nobody, and a hostile document could have millions.
const MAX_FINDINGS: usize = 1_000;

/// The mistakes found so far.
#[derive(Debug, Default)]
pub struct Findings {
    list: Vec<Finding>,
    /// What was said of which place: what lies in `[defaults]` is looked at once for every table above it.
    said: BTreeSet<(Where, String)>,
    /// Takes what is over the bound.
    spill: Option<Box<Finding>>,
    dropped_errors: usize,
    /// Not mistakes: the secrets that are written out, for a `"<redacted>"` that comes back.
    literals: Vec<(At, Secret)>,
}

/// One mistake, before its place is turned into line and column.
#[derive(Debug)]
pub struct Finding {
    place: Where,
    kind: Kind,
    message: String,
    help: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Where {
    Value(At),
    Key(At),
    Text(Span),
}

/// What a finding means for the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Wrong in itself.
    Error,
    /// Right in itself, but not to be had here: a file that cannot be read.
    Unavailable,
    Warning,
}

impl Finding {
    /// How to mend it.
    pub fn help(&mut self, help: impl Into<String>) {
        self.help = Some(help.into());
    }

    /// How to mend it, if we know.
    pub fn help_if(&mut self, help: Option<String>) {
        self.help = help;
    }
}

impl Findings {
    pub fn error(&mut self, at: At, message: impl Into<String>) -> &mut Finding {
        self.add(Where::Value(at), Kind::Error, message.into())
    }

    /// An error about a key rather than its value.
    pub fn key_error(&mut self, at: At, message: impl Into<String>) -> &mut Finding {
        self.add(Where::Key(at), Kind::Error, message.into())
    }

    /// An error of syntax, which has a place in the text only.
    pub fn syntax(&mut self, span: Span, message: impl Into<String>) -> &mut Finding {
        self.add(Where::Text(span), Kind::Error, message.into())
    }

    pub fn unavailable(&mut self, at: At, message: impl Into<String>) -> &mut Finding {
        self.add(Where::Value(at), Kind::Unavailable, message.into())
    }

    pub fn warning(&mut self, at: At, message: impl Into<String>) -> &mut Finding {
        self.add(Where::Value(at), Kind::Warning, message.into())
    }

    /// A warning about a named thing as a whole, shown at its name.
    pub fn key_warning(&mut self, at: At, message: impl Into<String>) -> &mut Finding {
        self.add(Where::Key(at), Kind::Warning, message.into())
    }

    /// Remembers a secret that is written out.
    pub fn literal_secret(&mut self, at: At, secret: &Secret) {
        self.literals.push((at, secret.clone()));
    }

    /// The secrets that are written out, each with its place.
    pub fn take_literal_secrets(&mut self) -> Vec<(At, Secret)> {
        std::mem::take(&mut self.literals)
    }

    fn add(&mut self, place: Where, kind: Kind, message: String) -> &mut Finding {
        // An error of syntax has been found by a parser, which says nothing twice.
        let said = (place, message);
        let again = !matches!(place, Where::Text(_)) && self.said.contains(&said);
        let finding = Finding {
            place,
            kind,
            message: said.1.clone(),
            help: None,
        };
        if again {
            self.spill.insert(Box::new(finding))
        } else if self.list.len() < MAX_FINDINGS {
            self.said.insert(said);
            let index = self.list.len();
            self.list.push(finding);
            &mut self.list[index]
        } else {
            if kind != Kind::Warning {
                self.dropped_errors += 1;
            }
            self.spill.insert(Box::new(finding))
        }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether the document must be refused.
    pub fn has_errors(&self) -> bool {
        self.dropped_errors > 0 || self.list.iter().any(|f| f.kind != Kind::Warning)
    }

    /// The diagnostics in the order of the text, each with what it means.
    pub fn resolve(self, texts: &Texts<'_>, places: &Places<'_>) -> Vec<(Kind, Diagnostic)> {
        let mut placed: Vec<(Option<Span>, String, Finding)> = self
            .list
            .into_iter()
            .map(|finding| {
                let (span, at) = match finding.place {
                    Where::Value(at) => (places.value_span(at), at),
                    Where::Key(at) => (places.key_span(at), at),
                    Where::Text(span) => (Some(span), At::NOWHERE),
                };
                (span, places.pointer(at), finding)
            })
            .collect();
        // Stable: findings about one place stay in the order in which they were made.
        placed.sort_by_key(|(span, _, _)| span.map_or(0, |s| s.0));
        let mut lines = texts.lines();
        let mut out: Vec<(Kind, Diagnostic)> = placed
            .into_iter()
            .map(|(span, pointer, finding)| {
                let place = span.map(|span| lines.advance(span));
                let diagnostic = Diagnostic {
                    pointer,
                    file: place.as_ref().and_then(|p| p.file.map(str::to_owned)),
                    line: place.as_ref().map(|p| p.line),
                    column: place.as_ref().map(|p| p.column),
                    message: finding.message,
                    help: finding.help,
                    span: place.map(|p| p.span),
                };
                (finding.kind, diagnostic)
            })
            .collect();
        if self.dropped_errors > 0 {
            let message = format!("{} more errors are not shown", self.dropped_errors);
            out.push((Kind::Error, Diagnostic::without_place("", message)));
        }
        out
    }
}

/// The known word nearest to `word`, if it is near enough to be meant.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // A distance costs the product of the lengths; nobody mistypes a name of this length.
    if word.len() > 100 {
        return None;
    }
    let lower = word.to_lowercase();
    let bound = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .filter(|k| k.len() <= 100)
        .map(|k| (strsim::damerau_levenshtein(&lower, &k.to_lowercase()), k))
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, k)| k)
}

/// The help line for a word that is not known.
pub fn did_you_mean<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    nearest(word, known).map(|k| format!("did you mean `{k}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_must_be_near() {
        let known = ["listen", "hosts", "enabled"];
        assert_eq!(nearest("lisen", known), Some("listen"));
        assert_eq!(nearest("Listen", known), Some("listen"));
        assert_eq!(nearest("hsots", known), Some("hosts"));
        assert_eq!(nearest("quux", known), None);
    }

    #[test]
    fn what_is_said_of_one_place_twice_is_shown_once() {
        let mut findings = Findings::default();
        for _ in 0..2 {
            findings.error(At::ROOT, "x").help("y");
            findings.key_error(At::ROOT, "x");
        }
        findings.error(At::ROOT, "z");
        let all = findings.resolve(&Texts::one(""), &Places::default());
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].1.help.as_deref(), Some("y"));
    }

    #[test]
    fn findings_are_bounded_and_the_rest_is_counted() {
        let mut findings = Findings::default();
        for _ in 0..MAX_FINDINGS + 5 {
            findings.syntax((0, 0), "x").help("y");
        }
        let all = findings.resolve(&Texts::one(""), &Places::default());
        assert_eq!(all.len(), MAX_FINDINGS + 1);
        assert_eq!(
            all.last().map(|d| d.1.message.as_str()),
            Some("5 more errors are not shown")
        );
    }
}
