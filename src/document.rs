//! The root of the language: bytes in one of three formats become a checked [`Document`], or every error of the
//! document at once. What is here knows all sections and how they refer to each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::admin::AdminSpec;
use crate::config::http::HttpSpec;
use crate::config::runtime::RuntimeSpec;
use crate::config::upstream::UpstreamSpec;
use crate::config::{Diagnostic, Format};

/// A checked configuration: every reference resolved, every default in, nothing left to parse.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub admin: AdminSpec,
    pub runtime: RuntimeSpec,
    /// By name; only enabled servers.
    pub http: BTreeMap<Arc<str>, HttpSpec>,
    /// By name; those of `[upstreams]` and those that a URL or address in an action stands for.
    pub upstreams: BTreeMap<Arc<str>, UpstreamSpec>,
    /// The normalized document as JSON, secrets redacted: what `GET /now` answers. No key that was left out.
    pub normal: serde_json::Value,
}

/// A document that passed, with what is worth saying about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    pub document: Document,
    pub warnings: Vec<Diagnostic>,
}

/// Why a document did not pass.
#[derive(Debug, Clone, PartialEq)]
pub enum Refused {
    /// Not well-formed TOML, JSON or YAML: 400.
    Syntax(Vec<Diagnostic>),
    /// Well-formed, but wrong in itself: 422. Warnings of the same document come with the errors.
    Invalid { errors: Vec<Diagnostic>, warnings: Vec<Diagnostic> },
    Unavailable(Vec<Diagnostic>),
}

/// What a document is read against.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// Folder that relative paths start from.
    pub base: PathBuf,
    /// The running document: gives the value behind a `"<redacted>"` that comes back.
    pub running: Option<&'a Document>,
}

impl Document {
    /// Reads and checks a whole document.
    ///
    /// # Errors
    /// [`Refused`] with every error found, each with its JSON Pointer, line and column.
    pub fn parse(_bytes: &[u8], _format: Format, _context: &Context<'_>) -> Result<Parsed, Refused> {
        unimplemented!()
    }

    /// The format of a file by its ending: `.toml`, `.json`, `.yaml`, `.yml`.
    pub fn format_of(_path: &Path) -> Option<Format> {
        unimplemented!()
    }

    /// The normalized document in `format`; `defaults` fills in every key that was left out.
    pub fn render(&self, _format: Format, _defaults: bool) -> String {
        unimplemented!()
    }

    /// JSON Schema (2020-12) of the language, from the types' doc comments.
    pub fn json_schema() -> serde_json::Value {
        unimplemented!()
    }
}

impl Parsed {
    pub fn locate(&self, _p: &str, _m: &str, _h: Option<&str>) -> Diagnostic { unimplemented!() }
}
impl Document {
    pub fn listen_pointer(&self, _a: &crate::config::scalar::ListenAddr) -> String { unimplemented!() }
    pub fn file_pointers(&self) -> Vec<(PathBuf, String)> { unimplemented!() }
}
impl Diagnostic { pub fn warning(self) -> Diagnostic { self } }
