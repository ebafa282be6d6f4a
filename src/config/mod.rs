//! The grammar of the configuration language: what one value, one table, one error looks like. It knows no sockets
//! and no runtime; `document` is the root that uses it. What leaves this module as a *spec* cannot be wrong in
//! itself: references are resolved, defaults are in, regexes are compiled.

pub mod admin;
pub mod agent;
pub mod check;
pub mod decode;
pub mod defaults;
pub mod diagnostic;
pub mod environment;
pub mod findings;
pub mod format;
pub mod forward;
pub mod http;
mod l4;
pub mod log;
pub mod render;
pub mod runtime;
pub mod scalar;
pub mod tcp;
pub mod template;
pub mod texts;
pub mod tree;
pub mod tunnel;
pub mod udp;
pub mod upstream;
pub mod via;

use serde::{Deserialize, Serialize};

/// Largest document, and largest file that a document names, in bytes. Messages call it 16 MiB.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The text formats a document may come in. All three mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Toml,
    Json,
    Yaml,
}

/// How bad a diagnostic is: an error refuses the document, a warning does not (unless `strict=true`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

/// One finding about a document, with its place: what the admin API lists under `errors` and `warnings`, and what
/// the CLI draws with a caret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Diagnostic {
    /// JSON Pointer (RFC 6901) of the value it is about; empty for the whole document.
    pub pointer: String,
    /// The included file that it is in, with its whole path; absent for the document itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<String>,
    /// Line of the value, from 1; absent when the document has no text (nothing was parsed).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<u32>,
    /// Column of the value in characters, from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub column: Option<u32>,
    /// What is wrong, in one sentence.
    pub message: String,
    /// How to mend it, where we know.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub help: Option<String>,
    /// Byte range in the source, for drawing; not part of the API.
    #[serde(skip)]
    pub span: Option<(u32, u32)>,
}

impl Diagnostic {
    /// A finding about what has no text, or whose text is not at hand.
    pub fn without_place(pointer: impl Into<String>, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            pointer: pointer.into(),
            file: None,
            line: None,
            column: None,
            message: message.into(),
            help: None,
            span: None,
        }
    }
}
