//! The list of a folder, as a page and as JSON.

use std::fmt::Write as _;
use std::io;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::open::{How, Opened, Root};
use super::path::join;
use super::stat::Kind;
use crate::config::http::FilesSpec;

/// Names that are listed of one folder.
const MAX_NAMES: usize = 10_000;

/// All but what RFC 3986 calls unreserved: a name is never taken for a scheme, a query or a path.
const NAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Entry {
    name: String,
    #[serde(rename = "type")]
    kind: EntryKind,
    /// Bytes, of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// RFC 3339.
    modified: String,
}

/// Folders are listed before files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum EntryKind {
    Directory,
    File,
}

/// Reads and renders a folder. Blocks.
pub(super) fn render(
    spec: &FilesSpec,
    folder: &Opened,
    place: &str,
    path: &str,
    json: bool,
) -> io::Result<Bytes> {
    let root = Root::open(&spec.root, How::Full)?;
    let (names, more) = folder.names(MAX_NAMES)?;
    let mut entries: Vec<Entry> = names
        .into_iter()
        .filter(|name| spec.hidden || !name.starts_with('.'))
        // What can't be had by a request is not listed.
        .filter_map(|name| entry(&root, spec, place, name))
        .collect();
    entries.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    if json {
        return serde_json::to_vec(&entries)
            .map(Bytes::from)
            .map_err(io::Error::other);
    }
    Ok(page(&entries, path, more).into())
}

fn entry(root: &Root, spec: &FilesSpec, place: &str, name: String) -> Option<Entry> {
    let stat = root
        .get(&join(place, &name), spec.follow_symlinks, How::Full)
        .ok()?
        .stat;
    let kind = match stat.kind {
        Kind::File => EntryKind::File,
        Kind::Folder => EntryKind::Directory,
        Kind::Other => return None,
    };
    Some(Entry {
        name,
        kind,
        size: (kind == EntryKind::File).then_some(stat.size),
        modified: jiff::Timestamp::from_second(stat.modified.0)
            .unwrap_or_default()
            .to_string(),
    })
}

fn page(entries: &[Entry], path: &str, more: bool) -> String {
    let title = escape(path);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 2rem; color-scheme: light dark }} \
         td {{ padding-right: 2rem }} td + td {{ text-align: right }}</style>\n\
         </head>\n<body>\n<h1>{title}</h1>\n<table>\n"
    );
    if !path.trim_matches('/').is_empty() {
        out.push_str("<tr><td><a href=\"../\">../</a></td></tr>\n");
    }
    for entry in entries {
        let slash = match entry.kind {
            EntryKind::Directory => "/",
            EntryKind::File => "",
        };
        let size = entry.size.map(|s| s.to_string()).unwrap_or_default();
        // Writing to a string never fails.
        let _ = writeln!(
            out,
            "<tr><td><a href=\"./{}{slash}\">{}{slash}</a></td><td>{size}</td><td>{}</td></tr>",
            utf8_percent_encode(&entry.name, NAME),
            escape(&entry.name),
            entry.modified,
        );
    }
    out.push_str("</table>\n");
    if more {
        out.push_str("<p>There are more.</p>\n");
    }
    out.push_str("</body>\n</html>\n");
    out
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Marks that change the direction of text, and controls, are shown, not obeyed.
            c if c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text_and_never_markup() {
        let entry = |name: &str, kind| Entry {
            name: name.into(),
            kind,
            size: (kind == EntryKind::File).then_some(7),
            modified: "2026-01-01T00:00:00Z".into(),
        };
        let entries = [
            entry("<b>", EntryKind::Directory),
            entry("javascript:alert(1)", EntryKind::File),
            entry("a\"b'&?#\u{202e}", EntryKind::File),
        ];
        let page = page(&entries, "/<script>/", false);
        assert!(page.contains("<h1>/&lt;script&gt;/</h1>"), "{page}");
        assert!(
            page.contains("<a href=\"./%3Cb%3E/\">&lt;b&gt;/</a>"),
            "{page}"
        );
        assert!(
            page.contains("href=\"./javascript%3Aalert%281%29\""),
            "{page}"
        );
        assert!(
            page.contains("href=\"./a%22b%27%26%3F%23%E2%80%AE\">a&quot;b&#39;&amp;?#\u{fffd}</a>"),
            "{page}"
        );
        assert!(page.contains("href=\"../\"") && !page.contains("There are more"));
        assert!(!super::page(&[], "/", true).contains("../"));
    }
}
