//! `include`: one document out of several files. Each is a document of its own without `include`; sections that are in
//! two of them are joined name by name, and a name that is in two is an error. All texts are kept by a document, so that
//! it can be read again, or its places found, when the files have changed or are gone.

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Document, glob};
use crate::config::decode::{Decode, List, Loc};
use crate::config::environment::Environment;
use crate::config::findings::Findings;
use crate::config::texts::Texts;
use crate::config::tree::{At, Node, Places, Tree, Value};
use crate::config::{Diagnostic, Format, MAX_BYTES, format};

/// Files that a document may include.
const MAX_FILES: usize = 1_000;

/// The text of an included file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Included {
    /// Its whole path.
    pub file: Arc<str>,
    pub format: Format,
    pub text: Arc<str>,
}

/// All that a document was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    pub text: Arc<str>,
    pub format: Format,
    /// In the order in which they were joined.
    pub included: Vec<Included>,
}

/// A document and what it includes, as one tree.
pub(super) struct Joined<'s> {
    pub(super) tree: Tree<'s>,
    pub(super) texts: Texts<'s>,
    /// The file of every named table that is in an included one, by the table's JSON Pointer.
    pub(super) origins: BTreeMap<String, Arc<str>>,
}

/// Reads the files that `include` of `root` names. What is wrong with one is a finding at the item that names it.
pub(super) fn read(
    root: &Node<'_>,
    base: &Path,
    own_length: usize,
    findings: &mut Findings,
) -> Vec<Included> {
    let mut reader = Reader {
        base,
        left: MAX_BYTES.saturating_sub(own_length),
        known: HashSet::new(),
        included: Vec::new(),
        findings,
    };
    for item in patterns(root).iter() {
        if reader.item(item).is_none() {
            break;
        }
    }
    reader.included
}

/// Whether a document includes anything.
pub(super) fn is_given(root: &Node<'_>) -> bool {
    !patterns(root).is_empty()
}

fn patterns(root: &Node<'_>) -> List<String> {
    let Value::Table(entries) = &root.value else {
        return List::default();
    };
    let include = entries.iter().find(|(key, _)| key == "include");
    // What is wrong with it is said when the section is read.
    include
        .and_then(|(_, node)| List::decode(node, &mut Findings::default()))
        .unwrap_or_default()
}

struct Reader<'r> {
    base: &'r Path,
    /// Bytes that may still be read.
    left: usize,
    known: HashSet<PathBuf>,
    included: Vec<Included>,
    findings: &'r mut Findings,
}

impl Reader<'_> {
    /// `None`: a bound is reached.
    fn item(&mut self, item: &Loc<String>) -> Option<()> {
        if !glob::is_pattern(item) {
            return self.file(item.at, self.base.join(item.as_str()));
        }
        if item.split('/').any(|part| part == "**") {
            self.findings
                .error(item.at, "`**` is not supported")
                .help("write a `*` for each folder");
            return Some(());
        }
        match glob::matches(self.base, item, MAX_FILES) {
            Ok(paths) => {
                if paths.is_empty() {
                    let message = format!("no file matches `{}`", item.as_str());
                    self.findings.warning(item.at, message);
                }
                paths
                    .into_iter()
                    .try_for_each(|path| self.file(item.at, path))
            }
            Err(error) => {
                let message = format!("`{}`: {error}", item.as_str());
                self.findings.unavailable(item.at, message);
                Some(())
            }
        }
    }

    fn file(&mut self, at: At, path: PathBuf) -> Option<()> {
        let name = path.display().to_string();
        if !self.known.insert(path.clone()) {
            return Some(());
        }
        if self.included.len() == MAX_FILES {
            let message = format!("more than {MAX_FILES} files are included");
            self.findings.error(at, message);
            return None;
        }
        let Some(format) = Document::format_of(&path) else {
            self.findings
                .error(
                    at,
                    format!("{name}: the name must end in .toml, .json, .yaml or .yml"),
                )
                .help("a pattern such as `conf.d/*.toml` leaves out what does not");
            return Some(());
        };
        match regular(&path, self.left) {
            Ok(None) => {
                self.findings
                    .unavailable(at, format!("{name}: with it, all is larger than 16 MiB"));
                return None;
            }
            Ok(Some(text)) => {
                self.left = self.left.saturating_sub(text.len());
                self.included.push(Included {
                    file: name.into(),
                    format,
                    text: text.into(),
                });
            }
            Err(reason) => drop(self.findings.unavailable(at, format!("{name}: {reason}"))),
        }
        Some(())
    }
}

/// The text of a regular file; a pipe could keep us waiting. `None`: it has more than `most` bytes.
fn regular(path: &Path, most: usize) -> Result<Option<String>, String> {
    let say = |error: io::Error| error.to_string();
    let meta = std::fs::metadata(path).map_err(say)?;
    if meta.is_dir() {
        return Err("is a folder, not a file".to_owned());
    }
    if !meta.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(say)?
        .take(most as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(say)?;
    if bytes.len() > most {
        return Ok(None);
    }
    let text = format::text(&bytes).map_err(|(findings, valid)| {
        let found = findings.resolve(&Texts::one(valid), &Places::default());
        let first = found.into_iter().next();
        first.map_or_else(String::new, |(_, d)| {
            let (line, column) = (d.line.unwrap_or(1), d.column.unwrap_or(1));
            format!("line {line}, column {column}: {}", d.message)
        })
    })?;
    Ok(Some(text.to_owned()))
}

/// Joins a document and what it includes to one tree. `environment`: fills what comes in.
///
/// # Errors
/// Every error of syntax of the included files.
pub(super) fn join<'s>(
    main: Tree<'s>,
    sources: &'s Sources,
    mut environment: Option<&mut Environment<'_>>,
    findings: &mut Findings,
) -> Result<Joined<'s>, Vec<Diagnostic>> {
    let mut joined = Joined {
        tree: main,
        texts: Texts::one(&sources.text),
        origins: BTreeMap::new(),
    };
    let mut errors = Vec::new();
    let mut names = Names::new(&joined.tree.root);
    for included in &sources.included {
        let offset = joined.texts.add(&included.file, &included.text);
        match format::parse(&included.text, included.format) {
            Ok(tree) => {
                let mut root = joined.tree.adopt(tree, offset);
                if let Some(environment) = &mut environment {
                    environment.fill(&mut root);
                }
                joined.take(root, &included.file, &mut names, findings);
            }
            Err((found, places)) => {
                let found = found.resolve(&Texts::one(&included.text), &places);
                errors.extend(found.into_iter().map(|(_, diagnostic)| Diagnostic {
                    file: Some(included.file.to_string()),
                    ..diagnostic
                }));
            }
        }
    }
    if errors.is_empty() {
        Ok(joined)
    } else {
        Err(errors)
    }
}

/// Where each section, and each name in it, was first seen.
struct Names<'s> {
    /// The section's index among the entries of the root.
    sections: HashMap<String, usize>,
    names: HashMap<(usize, Cow<'s, str>), At>,
}

impl<'s> Names<'s> {
    fn new(root: &Node<'s>) -> Names<'s> {
        let mut names = Names {
            sections: HashMap::new(),
            names: HashMap::new(),
        };
        if let Value::Table(entries) = &root.value {
            for (index, (key, node)) in entries.iter().enumerate() {
                names.section(index, key, node);
            }
        }
        names
    }

    fn section(&mut self, index: usize, key: &str, node: &Node<'s>) {
        self.sections.insert(key.to_owned(), index);
        if let Value::Table(entries) = &node.value {
            let all = entries.iter();
            self.names
                .extend(all.map(|(name, child)| ((index, name.clone()), child.at)));
        }
    }
}

impl<'s> Joined<'s> {
    /// Takes the sections of an included file in.
    fn take(
        &mut self,
        fragment: Node<'s>,
        file: &Arc<str>,
        names: &mut Names<'s>,
        findings: &mut Findings,
    ) {
        let sections = match fragment.value {
            Value::Table(sections) => sections,
            other => {
                let message = format!("expected a table, found {}", other.kind());
                findings.error(fragment.at, message);
                return;
            }
        };
        for (key, node) in sections {
            match key.as_ref() {
                "include" => {
                    findings
                        .key_error(node.at, "an included file includes no others")
                        .help("name all files in the document itself, with patterns that do not match its own");
                }
                "version" if node.value == Value::Int(1) => {}
                "version" => {
                    findings
                        .error(node.at, "this version of the language is not known")
                        .help("this is version 1");
                }
                note if note.starts_with("x-") => {}
                _ => self.section(key, node, file, names, findings),
            }
        }
    }

    fn section(
        &mut self,
        key: Cow<'s, str>,
        node: Node<'s>,
        file: &Arc<str>,
        names: &mut Names<'s>,
        findings: &mut Findings,
    ) {
        let Value::Table(root) = &mut self.tree.root.value else {
            return;
        };
        let Some(index) = names.sections.get(key.as_ref()).copied() else {
            if let Value::Table(entries) = &node.value {
                for (name, _) in entries {
                    self.origins.insert(pointer(&key, name), file.clone());
                }
            }
            names.section(root.len(), &key, &node);
            root.push((key, node));
            return;
        };
        let Some((_, known)) = root.get_mut(index) else {
            return;
        };
        let (at, known_at) = (node.at, known.at);
        let (Value::Table(here), Value::Table(new)) = (&mut known.value, node.value) else {
            let elsewhere = self.place(known_at);
            findings.key_error(
                at,
                format!("`{key}` is in two files: here and in {elsewhere}"),
            );
            return;
        };
        let mut twice = Vec::new();
        for (name, child) in new {
            match names.names.entry((index, name.clone())) {
                Entry::Occupied(first) => {
                    twice.push((name, child.at, *first.get()));
                }
                Entry::Vacant(free) => {
                    free.insert(child.at);
                    self.origins.insert(pointer(&key, &name), file.clone());
                    here.push((name, child));
                }
            }
        }
        for (name, at, first) in twice {
            let elsewhere = self.place(first);
            let message = format!("`{key}.{name}` is in two files: here and in {elsewhere}");
            findings.key_error(at, message);
        }
    }

    /// Where a key is, in words.
    fn place(&self, at: At) -> String {
        let span = self.tree.places.key_span(at).unwrap_or_default();
        let place = self.texts.place(span);
        let (line, column) = (place.line, place.column);
        match place.file {
            Some(file) => format!("{file}, line {line}, column {column}"),
            None => format!("the document that includes it, line {line}, column {column}"),
        }
    }
}

/// The JSON Pointer of a named table.
fn pointer(section: &str, name: &str) -> String {
    let escaped = |text: &str| text.replace('~', "~0").replace('/', "~1");
    format!("/{}/{}", escaped(section), escaped(name))
}
