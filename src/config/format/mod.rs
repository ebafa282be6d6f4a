//! Text to tree: TOML, JSON and YAML, each with the place of every key and value. Duplicate keys, more than
//! [`MAX_DEPTH`] levels and anything that is not UTF-8 are errors of syntax.

mod json;
mod toml;
mod yaml;

use std::borrow::Cow;
use std::collections::HashSet;

use super::Format;
use super::findings::Findings;
use super::tree::{MAX_DEPTH, Node, Places, Span, Tree};

/// Bytes as text.
///
/// # Errors
/// Findings with the place of the first byte that is not UTF-8, and the text before it.
pub fn text(bytes: &[u8]) -> Result<&str, (Findings, &str)> {
    let refuse = |offset: usize, message: &str, help: &str| {
        let mut findings = Findings::default();
        findings
            .syntax((to_u32(offset), to_u32(offset)), message)
            .help(help);
        Err((
            findings,
            std::str::from_utf8(&bytes[..offset]).unwrap_or_default(),
        ))
    };
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return refuse(
            0,
            "the document begins with a byte order mark",
            "save it as UTF-8 without BOM",
        );
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return refuse(
            0,
            "the document is UTF-16, not UTF-8",
            "save it as UTF-8 without BOM",
        );
    }
    if u32::try_from(bytes.len()).is_err() {
        return refuse(
            0,
            "the document is larger than 4 GiB",
            "nothing that large can be meant",
        );
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => refuse(
            error.valid_up_to(),
            "here is a byte that is not UTF-8",
            "save the document as UTF-8",
        ),
    }
}

/// Parses a text.
///
/// # Errors
/// Findings with every error of syntax that the format's parser can tell, and the places they refer to.
pub fn parse(source: &str, format: Format) -> Result<Tree<'_>, (Findings, Places<'_>)> {
    let mut findings = Findings::default();
    let mut places = Places::default();
    let root = match format {
        Format::Toml => toml::parse(source, &mut places, &mut findings),
        Format::Json => json::parse(source, &mut places, &mut findings),
        Format::Yaml => yaml::parse(source, &mut places, &mut findings),
    };
    match root {
        Some(root) if !findings.has_errors() => Ok(Tree { root, places }),
        _ => Err((findings, places)),
    }
}

/// Tells whether a table has a key already: by looking through a small table, by hashing in a large one.
#[derive(Default)]
struct Keys<'a>(HashSet<Cow<'a, str>>);

impl<'a> Keys<'a> {
    const SMALL: usize = 16;

    /// Reports a key that is among the entries read so far. `false`: it is.
    fn is_new(
        &mut self,
        key: &str,
        entries: &[(Cow<'a, str>, Node<'a>)],
        span: Span,
        findings: &mut Findings,
    ) -> bool {
        let known = if entries.len() < Self::SMALL {
            entries.iter().any(|(k, _)| k == key)
        } else {
            let new = entries.get(self.0.len()..).unwrap_or_default();
            self.0.extend(new.iter().map(|(k, _)| k.clone()));
            self.0.contains(key)
        };
        if known {
            findings.syntax(span, format!("the key `{key}` is here twice"));
        }
        !known
    }
}

/// Reports a value that lies too deep. `false`: it does.
fn is_shallow(depth: usize, span: Span, findings: &mut Findings) -> bool {
    if depth > MAX_DEPTH {
        findings.syntax(
            span,
            format!("more than {MAX_DEPTH} tables and lists inside each other"),
        );
    }
    depth <= MAX_DEPTH
}

fn to_u32(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}
