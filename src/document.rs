//! The root of the language: bytes in one of three formats become a checked [`Document`], or every error of the
//! document at once. What is here knows all sections and how they refer to each other.

mod across;
mod locator;
mod reach;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::admin::{AdminRaw, AdminSpec};
use crate::config::check::Checker;
use crate::config::decode::{Decode, Loc, Map, section};
use crate::config::findings::{Findings, Kind};
use crate::config::http::{Around, FilterSets, FiltersRaw, HttpRaw, HttpSpec};
use crate::config::runtime::{RuntimeRaw, RuntimeSpec};
use crate::config::scalar::{Secret, has_ipv6};
use crate::config::tree::{At, Node, Places, Value};
use crate::config::upstream::{References, UpstreamRaw, UpstreamSpec};
use crate::config::{Diagnostic, Format, format, render};

pub use locator::Locator;

section! {
    /// The whole configuration of a process.
    pub struct Root {
        /// Version of the language: 1.
        version: u64,
        /// The control surface: where the admin API listens and who may call it.
        admin: AdminRaw = {},
        /// The process as a whole.
        runtime: RuntimeRaw = {},
        /// HTTP servers by name.
        http: Map<HttpRaw> = {},
        /// Filters that servers and routes take with `use`, by name.
        filters: Map<FiltersRaw> = {},
        /// Where requests go, by name.
        upstreams: Map<UpstreamRaw> = {},
    }
    later = [&["include", "log", "access_log", "defaults", "forward", "tcp", "udp", "tunnels", "agents"]];
}

/// A checked configuration: every reference resolved, every default in, nothing left to parse.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub admin: AdminSpec,
    pub runtime: RuntimeSpec,
    /// By name; only enabled servers.
    pub http: BTreeMap<Arc<str>, HttpSpec>,
    /// By name; those of `[upstreams]` and those that a URL or address in an action stands for.
    pub upstreams: BTreeMap<Arc<str>, UpstreamSpec>,
    /// Secrets that are part of filters, by where they stand: what a `"<redacted>"` that comes back stands for.
    pub secrets: BTreeMap<String, Secret>,
    /// The normalized document as JSON, secrets redacted: what `GET /now` answers. No key that was left out.
    pub normal: serde_json::Value,
}

/// A document that passed, with what is worth saying about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    pub document: Document,
    pub warnings: Vec<Diagnostic>,
    /// Finds places of the text again, for what goes wrong after parsing.
    pub locator: Locator,
}

/// Why a document did not pass.
#[derive(Debug, Clone, PartialEq)]
pub enum Refused {
    /// Not well-formed TOML, JSON or YAML: 400.
    Syntax(Vec<Diagnostic>),
    /// Well-formed, but wrong in itself: 422. Warnings of the same document come with the errors.
    Invalid {
        errors: Vec<Diagnostic>,
        warnings: Vec<Diagnostic>,
    },
    /// Right in itself, but a file it needs for a secret is not to be had here: 409.
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
    pub fn parse(bytes: &[u8], format: Format, context: &Context<'_>) -> Result<Parsed, Refused> {
        Self::parse_with(bytes, format, context, has_ipv6())
    }

    fn parse_with(
        bytes: &[u8],
        format: Format,
        context: &Context<'_>,
        has_ipv6: bool,
    ) -> Result<Parsed, Refused> {
        let syntax = |findings: Findings, source: &str, places: &Places<'_>| {
            Refused::Syntax(
                findings
                    .resolve(source, places)
                    .into_iter()
                    .map(|(_, d)| d)
                    .collect(),
            )
        };
        let source =
            format::text(bytes).map_err(|(f, valid)| syntax(f, valid, &Places::default()))?;
        let tree =
            format::parse(source, format).map_err(|(f, places)| syntax(f, source, &places))?;
        let mut findings = Findings::default();
        let root = Root::decode(&without_notes(tree.root), &mut findings).unwrap_or_default();
        // Fails for an empty path only, from which relative paths stay what they are.
        let base = std::path::absolute(&context.base).unwrap_or_else(|_| context.base.clone());
        let mut check = Checker::new(findings, &base, has_ipv6)
            .beside(context.running.map(|running| &running.secrets));
        let document = Self::checked(root, context.running, &mut check);

        let refused = check.findings.has_errors();
        let mut warnings = Vec::new();
        let mut errors = Vec::new();
        let mut only_unavailable = true;
        for (kind, diagnostic) in check.findings.resolve(source, &tree.places) {
            match kind {
                Kind::Warning => warnings.push(diagnostic),
                Kind::Error | Kind::Unavailable => {
                    only_unavailable &= kind == Kind::Unavailable;
                    errors.push(diagnostic);
                }
            }
        }
        match (refused, only_unavailable) {
            (false, _) => Ok(Parsed {
                document,
                warnings,
                locator: Locator::new(source, format),
            }),
            (true, true) => Err(Refused::Unavailable(errors)),
            (true, false) => Err(Refused::Invalid { errors, warnings }),
        }
    }

    /// Raw to spec, and what can only be seen across sections.
    fn checked(mut root: Root, running: Option<&Document>, check: &mut Checker<'_>) -> Document {
        // Serializing to a tree of values fails for non-string keys only, which no raw type has.
        let normal = serde_json::to_value(&root).unwrap_or_default();
        if normal.as_object().is_some_and(serde_json::Map::is_empty) && root.spoiled.is_empty() {
            check.findings.warning(
                At::ROOT,
                "the document is empty: nothing is served but the admin API",
            );
        }
        root.fill();
        if let Some(version) = root.version.as_ref().filter(|v| v.value != 1) {
            let message = format!("version {} of the language is not known", version.value);
            check
                .findings
                .error(version.at, message)
                .help("this is version 1");
        }
        let runtime = root.runtime.unwrap_or_default().value.spec(check);
        let admin_raw = root.admin.unwrap_or_default();
        let admin = admin_raw.spec(check, running.map(|r| &r.admin));

        let declared = root.upstreams.unwrap_or_default().value;
        check.names(&declared);
        let mut upstreams: BTreeMap<Arc<str>, UpstreamSpec> = BTreeMap::new();
        for (name, raw) in declared.iter() {
            let spec = raw.spec(name, raw.at, check);
            upstreams.insert(spec.name.clone(), spec);
        }
        let mut references = References::new(&declared, check.base);

        let mut sets = FilterSets::new(
            &root.filters.unwrap_or_default().value,
            &mut references,
            check,
        );
        let servers_raw = root.http.unwrap_or_default().value;
        check.names(&servers_raw);
        let mut around = Around {
            on_change: runtime.on_change,
            references: &mut references,
            sets: &mut sets,
        };
        let mut servers: Vec<_> = servers_raw
            .iter()
            .map(|(name, raw)| {
                let running = running.and_then(|r| r.http.get(name.as_str()));
                raw.spec(name, raw.at, running, &mut around, check)
            })
            .collect();
        for server in &servers {
            reach::warn(server, check);
        }
        references.warn_unused(check);
        sets.warn_unused(check);
        upstreams.append(&mut references.implicit);
        servers.retain(|server| server.enabled);
        across::add_redirects(&mut servers, check);
        across::check(&servers, &admin.listen, check);
        let http = servers
            .into_iter()
            .map(|s| (s.spec.name.clone(), s.spec))
            .collect();
        Document {
            admin,
            runtime,
            http,
            upstreams,
            secrets: std::mem::take(&mut check.secrets),
            normal,
        }
    }

    /// The format of a file by its ending: `.toml`, `.json`, `.yaml`, `.yml`.
    pub fn format_of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "toml" => Some(Format::Toml),
            "json" => Some(Format::Json),
            "yaml" | "yml" => Some(Format::Yaml),
            _ => None,
        }
    }

    /// The normalized document in `format`; `defaults` fills in every key that was left out.
    pub fn render(&self, format: Format, defaults: bool) -> String {
        if !defaults {
            return render::render(&self.normal, format);
        }
        // The normalized form has passed before, so reading it again finds nothing.
        let mut root = Root::decode(&Node::nowhere(&self.normal), &mut Findings::default())
            .unwrap_or_default();
        root.fill();
        root.version.get_or_insert(Loc {
            value: 1,
            at: At::NOWHERE,
        });
        render::render(&serde_json::to_value(&root).unwrap_or_default(), format)
    }

    /// JSON Schema (2020-12) of the language, from the types' doc comments.
    pub fn json_schema() -> serde_json::Value {
        schema::json_schema()
    }
}

/// Top-level keys that begin with `x-` are notes for people.
fn without_notes(mut root: Node<'_>) -> Node<'_> {
    if let Value::Table(entries) = &mut root.value {
        entries.retain(|(key, _)| !key.starts_with("x-"));
    }
    root
}
