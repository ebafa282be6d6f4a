//! `${NAME}` and `${NAME:-default}`: what a text takes from the environment of the process. All texts of a tree are filled
//! before anything is read, so every kind of value may come from there; what was written is kept by place, and goes back
//! in where a document is shown. Secrets refuse such a text (`config::scalar::SecretRef`): they have `{ env = "NAME" }`.

use std::borrow::Cow;
use std::ffi::OsString;

use super::MAX_BYTES;
use super::check::shorten;
use super::scalar::Wrong;
use super::tree::{At, Node, Value};

/// Where values come from; the process's own in all but tests.
pub type Lookup<'e> = &'e dyn Fn(&str) -> Option<OsString>;

/// The environment of the process.
pub fn process(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Fills texts, and remembers what was written.
pub struct Environment<'e> {
    /// `None`: nothing may be taken from the environment.
    lookup: Option<Lookup<'e>>,
    /// What was written, by place.
    written: Vec<(At, String)>,
    /// Bytes that may still be put in: a small document could stand for a huge one.
    left: usize,
}

impl<'e> Environment<'e> {
    pub fn new(lookup: Lookup<'e>) -> Environment<'e> {
        Self::of(Some(lookup))
    }

    /// `None`: whoever brings the text may not learn what the environment says, so each `${NAME}` is an error.
    pub fn of(lookup: Option<Lookup<'e>>) -> Environment<'e> {
        Environment {
            lookup,
            written: Vec::new(),
            left: MAX_BYTES,
        }
    }

    /// Fills every text of a tree.
    pub fn fill(&mut self, root: &mut Node<'_>) {
        root.walk(&mut |node| {
            let Value::Text(text) = &node.value else {
                return;
            };
            match expand(text, self.lookup, &mut self.left) {
                Ok(None) => {}
                Ok(Some(filled)) => {
                    self.written.push((node.at, text.to_string()));
                    node.from_env = true;
                    node.value = Value::Text(Cow::Owned(filled));
                }
                Err(wrong) => node.value = Value::Unset(Box::new(wrong)),
            }
        });
    }

    /// What was written, by place.
    pub fn written(self) -> Vec<(At, String)> {
        self.written
    }
}

/// One text, filled from the environment of the process: for what is asked of a document as it is shown. What cannot be
/// filled stays what it is.
pub fn filled(text: &str) -> Cow<'_, str> {
    match expand(text, Some(&process), &mut MAX_BYTES.clone()) {
        Ok(Some(filled)) => Cow::Owned(filled),
        Ok(None) | Err(_) => Cow::Borrowed(text),
    }
}

/// `None`: there is nothing to put in.
fn expand(
    text: &str,
    lookup: Option<Lookup<'_>>,
    left: &mut usize,
) -> Result<Option<String>, Wrong> {
    // A single byte is looked for much quicker, and nearly no text has it.
    if !text.as_bytes().contains(&b'$') {
        return Ok(None);
    }
    let mut out = String::new();
    let mut changed = false;
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if let Some(after) = from.strip_prefix("$${") {
            out.push_str("${");
            changed = true;
            rest = after;
        } else if let Some(reference) = Reference::at(from)? {
            let value = reference.value(lookup.ok_or_else(forbidden)?)?;
            *left = left.checked_sub(value.len()).ok_or_else(too_much)?;
            out.push_str(&value);
            changed = true;
            rest = from.get(reference.len..).unwrap_or_default();
        } else {
            out.push('$');
            rest = from.get(1..).unwrap_or_default();
        }
    }
    out.push_str(rest);
    Ok(changed.then_some(out))
}

fn forbidden() -> Wrong {
    Wrong::new("a read token may not have values of the environment").help("use a full token")
}

fn too_much() -> Wrong {
    Wrong::new("the environment would put more than 16 MiB into this document")
}

/// `${NAME}` or `${NAME:-default}`.
struct Reference<'t> {
    name: &'t str,
    default: Option<&'t str>,
    /// Bytes of all of it.
    len: usize,
}

impl<'t> Reference<'t> {
    /// The one that `text` begins with; `None`: it begins with something else, such as `${1}` of a regular expression.
    fn at(text: &'t str) -> Result<Option<Reference<'t>>, Wrong> {
        let Some(inner) = text.strip_prefix("${") else {
            return Ok(None);
        };
        if !inner.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return Ok(None);
        }
        let end = inner
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(inner.len());
        let (name, after) = inner.split_at(end);
        let (default, inside) = match after.strip_prefix(":-") {
            Some(default) => match default.split_once('}') {
                Some((default, _)) => (Some(default), 2 + default.len()),
                None => return Err(not_one(text)),
            },
            None if after.starts_with('}') => (None, 0),
            None => return Err(not_one(text)),
        };
        Ok(Some(Reference {
            name,
            default,
            len: "${".len() + name.len() + inside + "}".len(),
        }))
    }

    fn value(&self, lookup: Lookup<'_>) -> Result<Cow<'t, str>, Wrong> {
        let name = shorten(self.name);
        match (lookup(self.name), self.default) {
            // As in a shell: `:-` is for what is empty, too.
            (None, Some(default)) => Ok(Cow::Borrowed(default)),
            (Some(value), Some(default)) if value.is_empty() => Ok(Cow::Borrowed(default)),
            (Some(value), _) => value.into_string().map(Cow::Owned).map_err(|_| {
                Wrong::new(format!("the environment variable `{name}` is not UTF-8"))
            }),
            (None, None) => Err(Wrong::new(format!(
                "the environment variable `{name}` is not set"
            ))
            .help(format!(
                "set it where the process is started, or write `${{{name}:-default}}`; `$${{` is the text itself"
            ))),
        }
    }
}

fn not_one(text: &str) -> Wrong {
    Wrong::new(format!("`{}` is not closed as it must be", shorten(text))).help(
        "a value from the environment is `${NAME}` or `${NAME:-default}`; `$${` is the text itself",
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> Option<OsString> {
        match name {
            "HOST" => Some("10.0.0.1".into()),
            "EMPTY" => Some("".into()),
            "LONG" => Some("x".repeat(1024 * 1024).into()),
            _ => None,
        }
    }

    fn of(text: &str) -> Result<Option<String>, Wrong> {
        expand(text, Some(&lookup), &mut MAX_BYTES.clone())
    }

    #[test]
    fn references_are_filled_and_everything_else_stays() {
        for (text, expected) in [
            ("${HOST}:80", Some("10.0.0.1:80")),
            ("a${HOST}b${HOST}", Some("a10.0.0.1b10.0.0.1")),
            ("${NONE:-x y}", Some("x y")),
            ("${NONE:-}", Some("")),
            ("${EMPTY:-x}|${EMPTY}|", Some("x||")),
            ("${HOST:-x}", Some("10.0.0.1")),
            ("$${HOST}", Some("${HOST}")),
            ("$$${HOST}", Some("$${HOST}")),
            ("$$HOST $HOST ${1} ${} $", None),
            ("~^/a{2}$", None),
            ("ä${HOST}ä", Some("ä10.0.0.1ä")),
        ] {
            assert_eq!(of(text).unwrap().as_deref(), expected, "{text}");
        }
        for wrong in ["${NONE}", "${HOST", "${HOST-x}", "${HOST:-x", "${HOST x}"] {
            assert!(of(wrong).unwrap_err().help.is_some(), "{wrong}");
        }
    }

    #[test]
    fn who_may_not_have_it_gets_no_default_either() {
        let of = |text: &str| expand(text, None, &mut MAX_BYTES.clone());
        assert_eq!(
            of("$${HOST} ${1}").unwrap().as_deref(),
            Some("${HOST} ${1}")
        );
        for text in ["${HOST}", "${NONE}", "${HOST:-x}", "${NONE:-x}"] {
            assert_eq!(of(text).unwrap_err(), forbidden(), "{text}");
        }
    }

    #[test]
    fn what_the_environment_puts_in_is_bounded() {
        assert!(of(&"${LONG}".repeat(16)).is_ok());
        assert!(of(&"${LONG}".repeat(17)).is_err());
    }

    proptest! {
        #[test]
        fn an_escaped_text_means_itself(text in "[ab$}{:\\-A]{0,20}") {
            let escaped = text.replace("${", "$${");
            let meant = of(&escaped).unwrap().unwrap_or(escaped.clone());
            prop_assert_eq!(meant, text);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,30}") {
            let _ = of(&text);
        }
    }
}
