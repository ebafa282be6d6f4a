//! `error_pages` of a server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::check::{Checker, shorten};
use super::super::decode::{Loc, Map};

/// Checked `error_pages`: absolute paths, read at prepare; their contents are part of the generation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorPagesSpec {
    /// By the key as it is written (`404`, `5xx`).
    pages: BTreeMap<String, PathBuf>,
}

/// What a page is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageFor {
    Status(u16),
    /// `4` or `5`.
    Class(u16),
}

impl PageFor {
    fn parse(key: &str) -> Option<PageFor> {
        match key {
            "4xx" => Some(PageFor::Class(4)),
            "5xx" => Some(PageFor::Class(5)),
            number => number
                .parse()
                .ok()
                .filter(|status| (400..=599).contains(status) && number.len() == 3)
                .map(PageFor::Status),
        }
    }
}

impl ErrorPagesSpec {
    pub(super) fn new(raw: Option<&Loc<Map<String>>>, check: &mut Checker<'_>) -> ErrorPagesSpec {
        let mut pages = BTreeMap::new();
        for (key, file) in raw.into_iter().flat_map(|map| map.iter()) {
            if PageFor::parse(key).is_none() {
                let message = format!("`{}` is not the status of an error", shorten(key));
                let finding = check.findings.key_error(file.at, message);
                finding.help("400 to 599, `4xx` or `5xx`");
            } else if file.is_empty() || file.contains('\0') {
                check
                    .findings
                    .error(file.at, "a path has a name, and no NUL in it");
            } else {
                pages.insert(key.clone(), check.base.join(&file.value));
            }
        }
        ErrorPagesSpec { pages }
    }

    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// What each page is for, and its file.
    pub fn pages(&self) -> impl Iterator<Item = (PageFor, &Path)> {
        self.files()
            .filter_map(|(key, path)| Some((PageFor::parse(key)?, path.as_path())))
    }

    /// The files, each with its key.
    pub fn files(&self) -> impl Iterator<Item = (&str, &PathBuf)> {
        self.pages.iter().map(|(key, path)| (key.as_str(), path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_eq!(PageFor::parse("404"), Some(PageFor::Status(404)));
        assert_eq!(PageFor::parse("5xx"), Some(PageFor::Class(5)));
        for wrong in ["200", "600", "3xx", "0404", "+404", "404 ", "", "x"] {
            assert_eq!(PageFor::parse(wrong), None, "{wrong}");
        }
    }
}
