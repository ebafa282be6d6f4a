//! `files`: a folder that is served, as it is written and as it is checked.

use std::path::PathBuf;

use ::http::HeaderValue;

use super::super::check::{Checker, shorten};
use super::super::decode::{List, Loc, section, words};
use super::super::scalar::Wrong;
use super::super::template::{Part, Template};

section! {
    /// Serve the files of a folder.
    pub struct FilesRaw {
        /// The folder. Nothing outside of it is served, whatever a path or a link says.
        root: String,
        /// Files that stand for a folder: the first that is there. `[]` for none.
        index: List<String> = ["index.html"],
        /// Answer for a folder without an index file with a list of what is in it: HTML, or JSON where `Accept` asks for it.
        browse: bool = false,
        /// What is tried for a request, the first that is there: a file, or with a slash at its end a folder. `{path}` is the
        /// decoded path. A single-page application adds `"/index.html"`.
        tries as "try": List<String> = ["{path}", "{path}/"],
        /// Compressed siblings to send where the client takes them, best first: `app.js.br`, `.zst`, `.gz`.
        precompressed: List<FileCoding> = ["br", "zstd", "gzip"],
        /// Serve and list names that begin with a dot, too. `/.well-known` is served either way.
        hidden: bool = false,
        /// Follow symbolic links, as long as they stay below `root` and are relative.
        follow_symlinks: bool = false,
        /// The `Cache-Control` field of answers with a file.
        cache_control: String,
    }
    short = root;
    later = [];
}

/// A content coding (RFC 9110 section 8.4.1) that a sibling of a file may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileCoding {
    Brotli,
    Zstd,
    Gzip,
}

words!(FileCoding { "br" => FileCoding::Brotli, "zstd" => FileCoding::Zstd, "gzip" => FileCoding::Gzip });

/// Checked `files`.
#[derive(Debug, Clone, PartialEq, Hash)]
pub struct FilesSpec {
    /// An absolute path. That it is a folder is seen at prepare.
    pub root: PathBuf,
    /// Relative to a folder, without dot segments.
    pub index: Vec<String>,
    pub browse: bool,
    /// Never empty.
    pub tries: Vec<Template>,
    /// In the order of preference.
    pub precompressed: Vec<FileCoding>,
    pub hidden: bool,
    pub follow_symlinks: bool,
    pub cache_control: Option<HeaderValue>,
}

pub(super) fn files(raw: &Loc<Box<FilesRaw>>, check: &mut Checker<'_>) -> Option<FilesSpec> {
    let is_on = |flag: &Option<Loc<bool>>| flag.as_ref().is_some_and(|f| f.value);
    let index = check.each(raw.index.as_ref(), index_name);
    let tries = check.each(raw.tries.as_ref(), candidate);
    if let Some(list) = raw.tries.as_ref().filter(|l| l.is_empty() && !l.spoiled) {
        check
            .findings
            .error(list.at, "with nothing to try nothing is found")
            .help("leave `try` out for the file and the folder of the request's path");
    }
    let mut precompressed = Vec::new();
    for coding in raw.precompressed.iter().flat_map(|l| l.iter()) {
        if precompressed.contains(&coding.value) {
            let message = format!("`{}` is listed twice", coding.word());
            check.findings.error(coding.at, message);
        }
        precompressed.push(coding.value);
    }
    let cache_control = raw.cache_control.as_ref().and_then(|text| {
        let value = HeaderValue::from_str(text).ok().filter(|v| !v.is_empty());
        let wrong = || {
            Wrong::new(format!(
                "`{}` is not a value of `Cache-Control`",
                shorten(text)
            ))
            .help("such as `\"public, max-age=3600\"`; leave it out to send none")
        };
        check.take(text.at, value.ok_or_else(wrong))
    });
    let Some(root) = &raw.root else {
        if !raw.spoiled.contains(&"root") {
            check
                .findings
                .error(raw.at, "`files` needs a `root`")
                .help("the folder to serve, such as `files = \"www\"`");
        }
        return None;
    };
    if root.is_empty() || root.contains('\0') {
        let message = if root.is_empty() {
            "an empty path"
        } else {
            "a path cannot hold a NUL"
        };
        check.findings.error(root.at, message);
        return None;
    }
    Some(FilesSpec {
        // One way of writing it: what equals must look equal.
        root: check.base.join(&root.value).components().collect(),
        index: index.into_iter().map(|(name, _)| name).collect(),
        browse: is_on(&raw.browse),
        tries: tries.into_iter().map(|(template, _)| template).collect(),
        precompressed,
        hidden: is_on(&raw.hidden),
        follow_symlinks: is_on(&raw.follow_symlinks),
        cache_control,
    })
}

fn has_dot_segment(path: &str) -> bool {
    path.split('/').any(|s| s == "." || s == "..")
}

fn index_name(text: &str) -> Result<String, Wrong> {
    let usable = !text.is_empty()
        && !text.contains('\0')
        && !text.split('/').any(str::is_empty)
        && !has_dot_segment(text);
    if usable {
        return Ok(text.to_owned());
    }
    Err(
        Wrong::new(format!("`{}` is not the name of a file", shorten(text)))
            .help("a name within the folder, such as `index.html`"),
    )
}

fn candidate(text: &str) -> Result<Template, Wrong> {
    let template = Template::parse(text).map_err(|mut all| {
        if all.is_empty() {
            Wrong::new("not a template")
        } else {
            all.swap_remove(0)
        }
    })?;
    let rooted = match template.parts.first() {
        Some(Part::Text(text)) => text.starts_with('/'),
        Some(Part::Var(_)) => true,
        None => false,
    };
    if !rooted {
        return Err(
            Wrong::new(format!("`{}` does not begin with a slash", shorten(text)))
                .help("candidates are paths below `root`: `{path}`, `/index.html`"),
        );
    }
    if has_dot_segment(text) || text.contains('\0') {
        return Err(Wrong::new(format!(
            "`{}` has a segment that no file can have",
            shorten(text)
        ))
        .help("paths are below `root` and have no `.` or `..` in them"));
    }
    Ok(template)
}
