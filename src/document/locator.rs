//! Places in the text for what goes wrong after parsing: an address in use, a file that cannot be read.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Document;
use super::include::{self, Sources};
use crate::config::environment::filled;
use crate::config::findings::Findings;
use crate::config::forward::ForwardSpec;
use crate::config::http::{
    ActionSpec, CertificateSpec, FiltersSpec, HttpSpec, PemSource, RespondBody, TlsSpec, htpasswd,
    redirects_to,
};
use crate::config::scalar::ListenAddr;
use crate::config::{Diagnostic, format};

/// What is wrong with a file, at the place that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub pointer: String,
    pub message: String,
    pub help: Option<String>,
}

/// More of them help nobody.
const MOST_FAULTS: usize = 20;

/// Keeps a document's texts and parses them again when a place is asked for, which is rare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locator {
    sources: Sources,
}

impl Locator {
    pub(super) fn new(sources: Sources) -> Locator {
        Locator { sources }
    }

    /// A diagnostic at a JSON Pointer of the normalized document with all that it includes, or at what is nearest above it
    /// in the text; what comes from `[defaults]` is there.
    pub fn locate(
        &self,
        pointer: &str,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Diagnostic {
        let message = message.into();
        let found = self.find(pointer, &message);
        let (pointer, place) =
            found.unwrap_or_else(|| (pointer.to_owned(), Diagnostic::without_place("", message)));
        Diagnostic {
            pointer,
            help,
            ..place
        }
    }

    fn find(&self, pointer: &str, message: &str) -> Option<(String, Diagnostic)> {
        let mut findings = Findings::default();
        // The texts have passed before.
        let main = format::parse(&self.sources.text, self.sources.format).ok()?;
        let joined = include::join(main, &self.sources, None, &mut findings).ok()?;
        let root = &joined.tree.root;
        let (node, missing) = root.nearest(pointer);
        let below = below(pointer).map(|below| (root.nearest(&below), below));
        let (pointer, node) = match below {
            Some(((node, fewer), below)) if fewer < missing => (below, node),
            _ => (pointer.to_owned(), node),
        };
        let mut findings = Findings::default();
        findings.error(node.at, message);
        let found = findings.resolve(&joined.texts, &joined.tree.places);
        found.into_iter().next().map(|(_, found)| (pointer, found))
    }

    /// All that the document was read from, as it came.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }
}

/// Where `[defaults]` have what a named table may not.
fn below(pointer: &str) -> Option<String> {
    let (kind, rest) = pointer.strip_prefix('/')?.split_once('/')?;
    let (_, rest) = rest.split_once('/')?;
    Some(format!("/defaults/{kind}/{rest}"))
}

impl super::Parsed {
    /// A diagnostic about a place of this document: see [`Locator::locate`].
    pub fn locate(
        &self,
        pointer: &str,
        message: impl Into<String>,
        help: Option<String>,
    ) -> Diagnostic {
        self.locator.locate(pointer, message, help)
    }
}

impl Document {
    /// The JSON Pointer of an address of a server (an index into its `listen`).
    pub fn listen_pointer(&self, server: &str, index: usize) -> String {
        let pointer = match redirects_to(server).filter(|to| self.http.contains_key(*to)) {
            Some(to) => format!("/http/{to}/tls/redirect_http"),
            None => format!("/http/{server}/listen"),
        };
        let listen = self.http.get(server).map(|s| &s.listen[..]);
        self.address_pointer(pointer, listen.unwrap_or_default(), index)
    }

    /// As [`Document::listen_pointer`], of a forward proxy.
    pub fn forward_listen_pointer(&self, name: &str, index: usize) -> String {
        let listen = self.forward.get(name).map(|f| &f.listen[..]);
        let pointer = format!("/forward/{name}/listen");
        self.address_pointer(pointer, listen.unwrap_or_default(), index)
    }

    /// The JSON Pointer of the text that an address came from; `pointer` is that of the list.
    fn address_pointer(&self, pointer: String, listen: &[ListenAddr], index: usize) -> String {
        let written = self.whole().pointer(&pointer).and_then(|l| l.as_array());
        // `:80` stands for two addresses, of which the IPv6 one may be left out: so the texts are walked beside the
        // addresses, and the text that `index` is reached in is the one.
        let mut reached = 0;
        for (at, text) in written.into_iter().flatten().enumerate() {
            let text = filled(text.as_str().unwrap_or_default());
            // Each text stood for something when the document was read, and a unix path always for one.
            if text.starts_with("unix:") {
                reached += 1;
            } else {
                let all = ListenAddr::parse_all(&text, Path::new("/")).unwrap_or_default();
                for addr in &all {
                    reached += usize::from(listen.get(reached) == Some(addr));
                }
            }
            if reached > index {
                return format!("{pointer}/{at}");
            }
        }
        pointer
    }

    /// The files whose contents are part of the configuration, each with the JSON Pointer of its path.
    pub fn file_pointers(&self) -> Vec<(PathBuf, String)> {
        let mut out = self.answer_pointers();
        out.extend(self.certificate_pointers());
        out
    }

    /// Those of them that only a swap reads anew.
    pub fn answer_pointers(&self) -> Vec<(PathBuf, String)> {
        let mut out = self.action_pointers(|action| match action {
            ActionSpec::Respond(respond) => match &respond.body {
                RespondBody::File(path) => Some((path, "respond/file")),
                RespondBody::Template(_) => None,
            },
            ActionSpec::Proxy(_)
            | ActionSpec::Files(_)
            | ActionSpec::Redirect(_)
            | ActionSpec::Tcp { .. } => None,
        });
        for (name, server) in &self.http {
            let pages = server.error_pages.files();
            out.extend(
                pages.map(|(key, path)| (path.clone(), format!("/http/{name}/error_pages/{key}"))),
            );
        }
        out.extend(self.htpasswd_pointers());
        out.extend(self.upstream_pointers());
        out
    }

    /// The files that TLS to upstreams needs.
    pub fn upstream_pointers(&self) -> Vec<(PathBuf, String)> {
        let mut out = Vec::new();
        let upstreams = self
            .upstreams
            .values()
            .filter_map(|u| Some((u.tls_pointer(), u.tls.as_ref()?)));
        let agents = self
            .agents
            .iter()
            .map(|(name, agent)| (format!("/agents/{name}/tls"), &agent.tls));
        let services = self.agents.iter().flat_map(|(name, agent)| {
            let place = move |service| format!("/agents/{name}/services/{service}/tls");
            let all = agent.services.iter();
            all.filter_map(move |(service, spec)| Some((place(service), spec.tls.as_ref()?)))
        });
        for (pointer, tls) in upstreams.chain(agents).chain(services) {
            if let Some(PemSource::File(path)) = &tls.ca {
                out.push((path.clone(), format!("{pointer}/ca")));
            }
            if let Some(CertificateSpec::Pair { cert, key }) = &tls.client {
                for (source, part) in [(cert, "client_cert"), (key, "client_key")] {
                    if let PemSource::File(path) = source {
                        out.push((path.clone(), format!("{pointer}/{part}")));
                    }
                }
            }
        }
        out
    }

    /// Those of them that hold users. A file that several places take from `[filters]` is here once.
    pub fn htpasswd_pointers(&self) -> Vec<(PathBuf, String)> {
        let all = self.http.values().flat_map(HttpSpec::all_filters);
        let proxies = self.forward.values().flat_map(ForwardSpec::files);
        let files = all.flat_map(FiltersSpec::files).chain(proxies);
        let once: BTreeSet<_> = files
            .map(|(path, at)| (path.clone(), at.to_owned()))
            .collect();
        once.into_iter().collect()
    }

    /// What is wrong with the users' files among `files`, each line at its place.
    pub fn judge_htpasswd(&self, files: &HashMap<PathBuf, Bytes>) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (path, pointer) in self.htpasswd_pointers() {
            let read = files
                .get(&path)
                .map_or(Ok(Vec::new()), |text| htpasswd(text));
            for (line, wrong) in read.err().unwrap_or_default() {
                let message = format!("{}:{line}: {}", path.display(), wrong.message);
                faults.push(Fault {
                    pointer: pointer.clone(),
                    message,
                    help: wrong.help,
                });
            }
        }
        // A file of another kind is wrong in every line.
        faults.truncate(MOST_FAULTS);
        faults
    }

    /// The folders that are served, each with the JSON Pointer of its path.
    pub fn folder_pointers(&self) -> Vec<(PathBuf, String)> {
        self.action_pointers(|action| match action {
            ActionSpec::Files(files) => Some((&files.root, "files/root")),
            ActionSpec::Proxy(_)
            | ActionSpec::Respond(_)
            | ActionSpec::Redirect(_)
            | ActionSpec::Tcp { .. } => None,
        })
    }

    /// Of every action of which `path` knows one: the path and where it is written.
    fn action_pointers(
        &self,
        path: impl Fn(&ActionSpec) -> Option<(&PathBuf, &'static str)>,
    ) -> Vec<(PathBuf, String)> {
        let mut out = Vec::new();
        for (name, server) in &self.http {
            let written = self
                .whole()
                .pointer(&format!("/http/{name}/routes"))
                .and_then(|r| r.as_array());
            let enabled = written
                .into_iter()
                .flatten()
                .enumerate()
                .filter(|(_, route)| is_enabled(route));
            for ((index, _), route) in enabled.zip(&server.routes) {
                out.extend(path(&route.action).map(|(path, key)| {
                    (path.clone(), format!("/http/{name}/routes/{index}/{key}"))
                }));
            }
            let fallback = server.fallback.as_ref().and_then(&path);
            out.extend(fallback.map(|(path, key)| (path.clone(), format!("/http/{name}/{key}"))));
        }
        out
    }

    /// Those of them that hold certificates, keys and CAs.
    pub fn certificate_pointers(&self) -> Vec<(PathBuf, String)> {
        let mut out = Vec::new();
        for (pointer, certificate) in self.certificates() {
            if let CertificateSpec::Pair { cert, key } = certificate {
                for (source, part) in [(cert, "cert"), (key, "key")] {
                    if let PemSource::File(path) = source {
                        out.push((path.clone(), format!("{pointer}/{part}")));
                    }
                }
            }
        }
        let admin = self.admin.tls.as_ref();
        for certificate in admin.iter().flat_map(|tls| &tls.certificates) {
            if let CertificateSpec::Pair { cert, key } = certificate {
                for (source, part) in [(cert, "cert"), (key, "key")] {
                    let path = source.path().map(Path::to_owned);
                    out.extend(path.map(|path| (path, format!("/admin/tls/{part}"))));
                }
            }
        }
        let admin_ca = admin.and_then(|tls| tls.client_auth.as_ref()?.ca.path());
        out.extend(admin_ca.map(|path| (path.to_owned(), "/admin/tls/client_ca".to_owned())));
        for (pointer, tls) in self.presented() {
            let auth = tls.client_auth.as_ref();
            if let Some(PemSource::File(path)) = auth.map(|auth| &auth.ca) {
                out.push((path.clone(), format!("{pointer}/client_auth/ca")));
            }
        }
        out
    }

    /// The folders of certificates, each with the JSON Pointer of its path.
    pub fn certificate_folders(&self) -> Vec<(PathBuf, String)> {
        self.certificates()
            .filter_map(|(pointer, certificate)| match certificate {
                CertificateSpec::Folder(path) => Some((path.clone(), format!("{pointer}/dir"))),
                CertificateSpec::Pair { .. } => None,
            })
            .collect()
    }

    /// What listeners present, but for the admin API, each with the JSON Pointer of its `tls`.
    fn presented(&self) -> impl Iterator<Item = (String, &TlsSpec)> {
        let servers = self
            .http
            .iter()
            .filter_map(|(name, s)| Some((format!("/http/{name}/tls"), s.tls.as_ref()?)));
        let proxies = self
            .forward
            .iter()
            .filter_map(|(name, f)| Some((format!("/forward/{name}/tls"), f.tls.as_ref()?)));
        let tunnels = self
            .tunnels
            .iter()
            .map(|(name, t)| (format!("/tunnels/{name}/tls"), &t.tls));
        let tcp = self
            .tcp
            .iter()
            .filter_map(|(name, t)| Some((format!("/tcp/{name}/tls"), t.tls.as_ref()?)));
        servers.chain(proxies).chain(tunnels).chain(tcp)
    }

    fn certificates(&self) -> impl Iterator<Item = (String, &CertificateSpec)> {
        self.presented().flat_map(|(pointer, tls)| {
            let all = tls.certificates.iter().enumerate();
            all.map(move |(index, c)| (format!("{pointer}/certificates/{index}"), c))
        })
    }
}

fn is_enabled(route: &serde_json::Value) -> bool {
    route
        .get("enabled")
        .and_then(serde_json::Value::as_bool)
        .unwrap_or(true)
}
