//! The root of the language: bytes in one of three formats become a checked [`Document`], or every error of the
//! document at once. What is here knows all sections and how they refer to each other.

mod across;
mod glob;
mod include;
mod locator;
mod reach;
mod returned;
#[cfg(test)]
mod said_once;
mod schema;
mod sealed;
mod shown;
mod targets;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::admin::{AdminRaw, AdminSpec};
use crate::config::agent::{self, AgentRaw, AgentSpec};
use crate::config::check::Checker;
use crate::config::decode::{Decode, List, Map, Switch, section};
use crate::config::defaults::{DefaultsRaw, lay_under};
use crate::config::environment::{self, Environment, Lookup};
use crate::config::findings::{Findings, Kind};
use crate::config::forward::{self, ForwardRaw, ForwardSpec};
use crate::config::http::{Around, FilterSets, FiltersRaw, HttpRaw, HttpSpec};
use crate::config::log::{self, AccessLogRaw, AccessLogSpec, LogRaw, LogSpec};
use crate::config::runtime::{RuntimeRaw, RuntimeSpec};
use crate::config::scalar::{Secret, has_ipv6};
use crate::config::tcp::{self, TcpRaw, TcpSpec};
use crate::config::texts::Texts;
use crate::config::tree::{self, At, Node, Places, Value};
use crate::config::tunnel::{TunnelRaw, TunnelSpec, check_agents};
use crate::config::udp::{self, UdpRaw, UdpSpec};
use crate::config::upstream::{References, UpstreamRaw, UpstreamSpec, resolve_splits};
use crate::config::via::resolve_vias;
use crate::config::{Diagnostic, Format, format, render};

pub use include::{Included, Sources};
pub use locator::Locator;
pub use targets::targets;

use across::Alone;
use shown::Behind;

section! {
    /// The whole configuration of a process.
    pub struct Root {
        /// Version of the language: 1.
        version: u64,
        /// More files of this document, relative to its folder; `*` and `?` stand for parts of a name. A section may be in
        /// several files, a name in it in one. They include no others.
        include: List<String>,
        /// The control surface: where the admin API listens and who may call it.
        admin: AdminRaw = {},
        /// The process as a whole.
        runtime: RuntimeRaw = {},
        /// What the process says of itself, on standard error.
        log: LogRaw = {},
        /// A line for each request; left out or `false`: none.
        access_log: Switch<AccessLogRaw>,
        /// HTTP servers by name.
        http: Map<HttpRaw> = {},
        /// Forward proxies by name.
        forward: Map<ForwardRaw> = {},
        /// Connections that are passed on as they are, by name.
        tcp: Map<TcpRaw> = {},
        /// Datagrams that are passed on as they are, by name.
        udp: Map<UdpRaw> = {},
        /// Filters that servers and routes take with `use`, by name.
        filters: Map<FiltersRaw> = {},
        /// Where requests go, by name.
        upstreams: Map<UpstreamRaw> = {},
        /// Where agents publish services, by name.
        tunnels: Map<TunnelRaw> = {},
        /// What this machine publishes at others, by name.
        agents: Map<AgentRaw> = {},
        /// What lies under every table of a kind.
        defaults: DefaultsRaw,
    }
    later = [];
}

/// A checked configuration: every reference resolved, every default in, nothing left to parse.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub admin: AdminSpec,
    pub runtime: RuntimeSpec,
    pub log: LogSpec,
    /// `None`: no line is written for a request.
    pub access_log: Option<AccessLogSpec>,
    /// By name; only enabled servers.
    pub http: BTreeMap<Arc<str>, HttpSpec>,
    /// By name; only enabled ones.
    pub forward: BTreeMap<Arc<str>, ForwardSpec>,
    /// By name; only enabled listeners.
    pub tcp: BTreeMap<Arc<str>, TcpSpec>,
    /// By name; only enabled listeners.
    pub udp: BTreeMap<Arc<str>, UdpSpec>,
    /// By name; those of `[upstreams]` and those that a URL or address in an action stands for.
    pub upstreams: BTreeMap<Arc<str>, UpstreamSpec>,
    /// By name; only enabled ones.
    pub tunnels: BTreeMap<Arc<str>, TunnelSpec>,
    /// By name; only enabled ones.
    pub agents: BTreeMap<Arc<str>, AgentSpec>,
    /// The normalized document as JSON, as it is written, secrets redacted: what `GET /now` answers. No key that was left
    /// out, nothing of what it includes, `[defaults]` where they are said.
    pub normal: serde_json::Value,
    /// The included file of every named table that is in one, by its JSON Pointer, such as `/http/shop`.
    pub origins: BTreeMap<String, Arc<str>>,
    /// See [`Document::whole`]; `None`: the same as `normal`.
    pub(crate) whole: Option<serde_json::Value>,
    /// The secrets that are written out, by their JSON Pointers in the document with all that it includes.
    pub(crate) secrets: BTreeMap<String, Secret>,
}

/// A document that passed, with what is worth saying about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// Shared: a large one is not copied on its way to where it runs.
    pub document: Arc<Document>,
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

    /// Reads and checks a document of somebody who may not learn what the environment of the process or its files say: errors
    /// quote values, so `${NAME}`, `include` and `targets_file` are refused.
    ///
    /// # Errors
    /// As [`Document::parse`].
    pub fn parse_sealed(
        bytes: &[u8],
        format: Format,
        context: &Context<'_>,
    ) -> Result<Parsed, Refused> {
        let outside = Outside {
            has_ipv6: has_ipv6(),
            environment: None,
            included: None,
        };
        Self::parse_in(bytes, format, context, &outside)
    }

    /// Reads and checks a document whose files may have changed or be gone: from the texts that were read once.
    ///
    /// # Errors
    /// As [`Document::parse`].
    pub fn parse_again(sources: &Sources, context: &Context<'_>) -> Result<Parsed, Refused> {
        let outside = Outside {
            has_ipv6: has_ipv6(),
            environment: Some(&environment::process),
            included: Some(&sources.included),
        };
        Self::parse_in(sources.text.as_bytes(), sources.format, context, &outside)
    }

    fn parse_with(
        bytes: &[u8],
        format: Format,
        context: &Context<'_>,
        has_ipv6: bool,
    ) -> Result<Parsed, Refused> {
        let outside = Outside {
            has_ipv6,
            environment: Some(&environment::process),
            included: None,
        };
        Self::parse_in(bytes, format, context, &outside)
    }

    fn parse_in(
        bytes: &[u8],
        format: Format,
        context: &Context<'_>,
        outside: &Outside<'_>,
    ) -> Result<Parsed, Refused> {
        let source =
            format::text(bytes).map_err(|(f, valid)| syntax(f, valid, &Places::default()))?;
        let mut tree =
            format::parse(source, format).map_err(|(f, places)| syntax(f, source, &places))?;
        let mut findings = Findings::default();
        let mut environment = Environment::of(outside.environment);
        environment.fill(&mut tree.root);
        // Fails for an empty path only, from which relative paths stay what they are.
        let base = std::path::absolute(&context.base).unwrap_or_else(|_| context.base.clone());
        let included = match (outside.included, outside.environment) {
            (_, None) => {
                sealed::refuse_files(&tree.root, &mut findings);
                Vec::new()
            }
            (Some(included), _) => included.to_vec(),
            (None, _) => include::read(&tree.root, &base, source.len(), &mut findings),
        };
        let own = (outside.environment.is_some() && include::is_given(&tree.root))
            .then(|| Root::decode(&without_notes(tree.root.clone()), &mut Findings::default()))
            .flatten();
        let sources = Sources {
            text: source.into(),
            format,
            included,
        };
        let mut joined = include::join(tree, &sources, Some(&mut environment), &mut findings)
            .map_err(Refused::Syntax)?;
        if let Some(running) = context.running {
            returned::put_back(
                &mut joined.tree,
                running,
                outside.environment,
                &mut findings,
            );
        }
        let root = without_notes(joined.tree.root);
        let laid = is_laid(&root, &mut findings);
        let read = ReadTree {
            root: Root::decode(&root, &mut findings).unwrap_or_default(),
            own,
            laid,
            written: environment.written(),
            places: &joined.tree.places,
            origins: joined.origins,
        };
        let mut check = Checker::new(findings, &base, outside.has_ipv6);
        let document = Self::checked(read, context.running, &mut check);

        let refused = check.findings.has_errors();
        let mut warnings = Vec::new();
        let mut errors = Vec::new();
        let mut only_unavailable = true;
        for (kind, diagnostic) in check.findings.resolve(&joined.texts, &joined.tree.places) {
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
                document: Arc::new(document),
                warnings,
                locator: Locator::new(sources),
            }),
            (true, true) => Err(Refused::Unavailable(errors)),
            (true, false) => Err(Refused::Invalid { errors, warnings }),
        }
    }

    /// Raw to spec, and what can only be seen across sections.
    fn checked(
        read: ReadTree<'_>,
        running: Option<&Document>,
        check: &mut Checker<'_>,
    ) -> Document {
        let mut root = read.root;
        // Serializing to a tree of values fails for non-string keys only, which no raw type has.
        let json = |root: &Root| serde_json::to_value(root).unwrap_or_default();
        let mut joined = json(&root);
        let secrets = check.findings.take_literal_secrets();
        let behind = Behind::new(&joined, read.written, secrets, read.places);
        behind.restore(&mut joined);
        let mut whole = None;
        let defaults = root.defaults.take();
        if read.own.is_some() || defaults.is_some() {
            root.include = None;
            if let Some(defaults) = defaults.as_ref().filter(|_| read.laid) {
                lay_under(
                    root.http.as_mut().map(|http| &mut http.value),
                    defaults.http.as_ref().map(|h| &*h.value),
                );
                lay_under(
                    root.upstreams
                        .as_mut()
                        .map(|upstreams| &mut upstreams.value),
                    defaults.upstreams.as_ref().map(|u| &*u.value),
                );
                lay_under(
                    root.forward.as_mut().map(|forward| &mut forward.value),
                    defaults.forward.as_ref().map(|f| &*f.value),
                );
                lay_under(
                    root.tcp.as_mut().map(|tcp| &mut tcp.value),
                    defaults.tcp.as_ref().map(|t| &*t.value),
                );
                lay_under(
                    root.udp.as_mut().map(|udp| &mut udp.value),
                    defaults.udp.as_ref().map(|u| &*u.value),
                );
            }
            let mut laid = json(&root);
            behind.restore_laid(&joined, &mut laid);
            whole = Some(laid);
        }
        let normal = match &read.own {
            None => joined,
            Some(own) => {
                let mut normal = json(own);
                behind.restore(&mut normal);
                normal
            }
        };
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

        let log = root.log.unwrap_or_default().spec();
        let access_log = log::access_log(root.access_log.as_ref(), check);

        let declared = root.upstreams.unwrap_or_default().value;
        check.names(&declared);
        let mut upstreams: BTreeMap<Arc<str>, UpstreamSpec> = BTreeMap::new();
        for (name, raw) in declared.iter() {
            let running = running.and_then(|r| r.upstreams.get(name.as_str()));
            let spec = raw.spec(name, raw.at, running, check);
            upstreams.insert(spec.name.clone(), spec);
        }
        let mut references = References::new(&declared, check.base);
        resolve_splits(&declared, &mut upstreams, &mut references, check);
        let running_upstreams = running.map(|r| &r.upstreams);
        resolve_vias(
            &declared,
            &mut upstreams,
            &mut references,
            running_upstreams,
            check,
        );

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
        let forward_raw = root.forward.unwrap_or_default().value;
        check.names(&forward_raw);
        let mut proxies: Vec<_> = forward_raw
            .iter()
            .map(|(name, raw)| {
                let running = running.and_then(|r| r.forward.get(name.as_str()));
                let around = forward::Around {
                    admin: &admin,
                    on_change: runtime.on_change,
                    references: &mut references,
                    upstreams: &upstreams,
                    running_upstreams,
                };
                raw.spec(name, raw.at, running, around, check)
            })
            .collect();
        let tcp_raw = root.tcp.unwrap_or_default().value;
        check.names(&tcp_raw);
        let on_change = runtime.on_change;
        let mut tcp: Vec<_> = tcp_raw
            .iter()
            .map(|(name, raw)| {
                let running = running.and_then(|r| r.tcp.get(name.as_str()));
                raw.spec(name, raw.at, on_change, running, &mut references, check)
            })
            .collect();
        tcp.retain(|listener| listener.enabled);
        let udp_raw = root.udp.unwrap_or_default().value;
        check.names(&udp_raw);
        let mut udp: Vec<_> = udp_raw
            .iter()
            .map(|(name, raw)| raw.spec(name, raw.at, on_change, &mut references, check))
            .collect();
        udp.retain(|listener| listener.enabled);
        let agents_raw = root.agents.unwrap_or_default().value;
        check.names(&agents_raw);
        let agents = agents_raw
            .iter()
            .filter_map(|(name, raw)| {
                let around = agent::Around {
                    references: &mut references,
                    upstreams: &upstreams,
                    running: running.and_then(|r| r.agents.get(name.as_str())),
                    running_upstreams,
                };
                let spec = raw.spec(name, raw.at, around, check)?;
                Some((spec.name.clone(), spec))
            })
            .collect();
        references.warn_unused(check);
        sets.warn_unused(check);
        upstreams.append(&mut references.implicit);
        tcp::check_upstreams(&tcp, &upstreams, check);
        udp::check_upstreams(&udp, &upstreams, check);
        let tunnels_raw = root.tunnels.unwrap_or_default().value;
        check.names(&tunnels_raw);
        let mut tunnels: Vec<_> = tunnels_raw
            .iter()
            .map(|(name, raw)| {
                let running = running.and_then(|r| r.tunnels.get(name.as_str()));
                raw.spec(name, raw.at, running, check)
            })
            .collect();
        let placed = upstreams.values().map(|u| (u, references.place(&u.name)));
        check_agents(&tunnels, placed, check);
        tunnels.retain(|tunnel| tunnel.enabled);
        servers.retain(|server| server.enabled);
        across::add_redirects(&mut servers, check);
        across::check(&servers, &admin.listen, check);
        let alone = tcp.iter().map(Alone::tcp);
        let alone = alone.chain(tunnels.iter().map(Alone::tunnel));
        proxies.retain(|proxy| proxy.enabled);
        let alone = alone.chain(proxies.iter().map(Alone::forward));
        across::check_alone(alone, &servers, &admin.listen, check);
        across::names::check(&tcp, &servers, check);
        across::check_datagrams(&udp, check);
        let udp = udp
            .into_iter()
            .map(|u| (u.spec.name.clone(), u.spec))
            .collect();
        let tcp = tcp
            .into_iter()
            .map(|t| (t.spec.name.clone(), t.spec))
            .collect();
        let tunnels = tunnels
            .into_iter()
            .map(|t| (t.spec.name.clone(), t.spec))
            .collect();
        let http = servers
            .into_iter()
            .map(|s| (s.spec.name.clone(), s.spec))
            .collect();
        Document {
            admin,
            runtime,
            log,
            access_log,
            http,
            forward: proxies
                .into_iter()
                .map(|f| (f.spec.name.clone(), f.spec))
                .collect(),
            tcp,
            udp,
            upstreams,
            tunnels,
            agents,
            normal,
            origins: read.origins,
            whole,
            secrets: behind.secrets,
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

    /// The normalized document in `format`. `defaults`: with all that it includes and `[defaults]` in their places, and
    /// every key that was left out.
    pub fn render(&self, format: Format, defaults: bool) -> String {
        if !defaults {
            return render::render(&self.normal, format);
        }
        render::render(&self.filled(), format)
    }

    /// JSON Schema (2020-12) of the language, from the types' doc comments.
    pub fn json_schema() -> serde_json::Value {
        schema::json_schema()
    }
}

/// What a document takes from the world around it.
struct Outside<'o> {
    has_ipv6: bool,
    /// `None`: nothing of it may be told, neither of the environment nor of files that are read while parsing.
    environment: Option<Lookup<'o>>,
    /// The texts of what it includes; `None`: from the files.
    included: Option<&'o [Included]>,
}

/// A document that was read, but not checked.
struct ReadTree<'r> {
    /// With all that it includes.
    root: Root,
    /// Without, if it includes anything.
    own: Option<Root>,
    /// Whether `[defaults]` are laid under.
    laid: bool,
    written: Vec<(At, String)>,
    places: &'r Places<'r>,
    origins: BTreeMap<String, Arc<str>>,
}

/// Values that `[defaults]` may stand for in all tables together.
const MAX_LAID: usize = 1_000_000;
/// Bytes that the texts of these values may have.
const MAX_LAID_BYTES: usize = 64 * 1024 * 1024;

/// Whether `[defaults]` can be laid under: a small document could stand for a huge one.
fn is_laid(root: &Node<'_>, findings: &mut Findings) -> bool {
    let child = |node: &Node<'_>, key: &str| match &node.value {
        Value::Table(entries) => entries.iter().position(|(k, _)| k == key),
        _ => None,
    };
    let get = |path: &[&str]| {
        path.iter().try_fold(root, |node, key| match &node.value {
            Value::Table(entries) => child(node, key).map(|index| &entries[index].1),
            _ => None,
        })
    };
    let (mut values, mut bytes) = (0usize, 0usize);
    for kind in shown::KINDS {
        let tables = match get(&[kind]).map(|node| &node.value) {
            Some(Value::Table(tables)) => tables.len(),
            _ => 0,
        };
        let Some(below) = get(&["defaults", kind]) else {
            continue;
        };
        values = values.saturating_add(tables.saturating_mul(tree::count(below)));
        bytes = bytes.saturating_add(tables.saturating_mul(tree::bytes(below)));
    }
    let more = match (values > MAX_LAID, bytes > MAX_LAID_BYTES) {
        (true, _) => format!("{MAX_LAID} values"),
        (false, true) => "64 MiB of text".to_owned(),
        (false, false) => return true,
    };
    let at = get(&["defaults"]).map_or(At::ROOT, |node| node.at);
    findings
        .key_error(at, format!("`[defaults]` would stand for more than {more}"))
        .help("say what is long in the tables that need it");
    false
}

fn syntax(findings: Findings, source: &str, places: &Places<'_>) -> Refused {
    let found = findings.resolve(&Texts::one(source), places);
    Refused::Syntax(found.into_iter().map(|(_, d)| d).collect())
}

/// Top-level keys that begin with `x-` are notes for people.
fn without_notes(mut root: Node<'_>) -> Node<'_> {
    if let Value::Table(entries) = &mut root.value {
        entries.retain(|(key, _)| !key.starts_with("x-"));
    }
    root
}
