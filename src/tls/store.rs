//! The certificates of a generation, made of what its document names. All that can be wrong with one is found here,
//! before anything of the generation can be seen, and is said with its place.
//!
//! Files also change while a generation serves. Then what is new and good is taken over one by one, and where something
//! is not, what serves stays ([`Material::renew`]).

mod folder;
mod load;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use jiff::{Span, Timestamp};

use super::Shared;
use super::client::Clients;
use super::client_auth::ClientAuth;
use crate::config::http::TlsSpec;
use crate::document::Document;
use load::Loader;

pub use super::certificate::Certificate;
pub use folder::{is_of_pair, pairs, pairs_found};

/// Something wrong, or worth a word, at a place of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// JSON Pointer.
    pub pointer: String,
    pub message: String,
    pub help: Option<&'static str>,
}

impl Fault {
    pub(super) fn new(pointer: impl Into<String>, message: impl Into<String>) -> Fault {
        Fault {
            pointer: pointer.into(),
            message: message.into(),
            help: None,
        }
    }

    pub(super) fn help(self, help: &'static str) -> Fault {
        Fault {
            help: Some(help),
            ..self
        }
    }
}

/// What a certificate was made of: the digest of its PEM texts.
type Origin = [u8; 32];

/// Contents of files by path.
pub type Files = HashMap<PathBuf, Bytes>;

/// Hours before its end at which a certificate of ours is made anew.
const RENEW: i64 = 30 * 24;
/// The source of a certificate that the local CA has signed.
const LOCAL: &str = "local CA";

/// The certificates of one generation.
#[derive(Debug, Clone, Default)]
pub struct Material {
    servers: HashMap<Arc<str>, Held>,
    /// Taken over by the next generation where nothing changed.
    made: HashMap<Origin, Arc<Certificate>>,
    /// What the files have and is not used, since it cannot be.
    pub kept_out: Vec<Fault>,
}

/// What the TLS of a document needs: what its servers present, made of `pems`, and how its upstreams are spoken to, made
/// of `files`; with what is worth a warning. `before`: those that serve.
///
/// # Errors
/// Everything wrong with any of them.
pub fn load(
    document: &Document,
    pems: &Files,
    files: &Files,
    before: Option<(&Material, &Clients)>,
    shared: &Shared,
) -> Result<(Material, Clients, Vec<Fault>), Vec<Fault>> {
    let (material, clients) = before.unzip();
    let material = Material::load(Wanted::all(document), pems, material, shared);
    let wanted = super::client::Wanted::all(document);
    let clients = Clients::load(wanted, files, clients, shared);
    match (material, clients) {
        (Ok((material, mut warnings)), Ok((clients, more))) => {
            warnings.extend(more);
            Ok((material, clients, warnings))
        }
        (material, clients) => {
            let errors = material.err().into_iter().chain(clients.err());
            Err(errors.flatten().collect())
        }
    }
}

/// Those of one server.
#[derive(Debug, Clone, Default)]
struct Held {
    /// In the document's order.
    certificates: Vec<Arc<Certificate>>,
    /// Of each of them.
    places: Vec<Place>,
    client_auth: Option<Arc<ClientAuth>>,
}

impl Held {
    fn add(&mut self, certificate: Arc<Certificate>, place: Place) {
        self.certificates.push(certificate);
        self.places.push(place);
    }

    fn of(&self, place: &Place) -> Option<&Arc<Certificate>> {
        let same = |other: &Place| other.pointer == place.pointer && other.source == place.source;
        let at = self.places.iter().position(same)?;
        self.certificates.get(at)
    }
}

/// Where a certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// JSON Pointer of what names it.
    pub pointer: String,
    /// Path of its file, or what it is instead.
    pub source: String,
    /// Why what lies there now is not used.
    pub error: Option<String>,
}

impl Place {
    fn new(pointer: impl Into<String>, source: impl Into<String>) -> Place {
        Place {
            pointer: pointer.into(),
            source: source.into(),
            error: None,
        }
    }
}

/// What a server wants to present.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Found again by it.
    pub name: Arc<str>,
    /// JSON Pointer of its `tls`.
    pub pointer: String,
    pub tls: &'a TlsSpec,
    /// Its one certificate is written in `tls` itself.
    pub flat: bool,
}

/// What the admin API is called among the servers. No server can have this name.
pub static ADMIN: LazyLock<Arc<str>> = LazyLock::new(|| "[admin]".into());

/// What a forward proxy is called among the servers. No server can have this name.
pub fn forward_name(name: &str) -> Arc<str> {
    format!("[forward.{name}]").into()
}

/// What a TCP listener is called among the servers. No server can have this name.
pub fn tcp_name(name: &str) -> Arc<str> {
    format!("[tcp.{name}]").into()
}

/// What a tunnel is called among the servers. No server can have this name.
pub fn tunnel_name(name: &str) -> Arc<str> {
    format!("[tunnels.{name}]").into()
}

impl Wanted<'_> {
    /// What all that a document serves wants.
    pub fn all(document: &Document) -> impl Iterator<Item = Wanted<'_>> {
        Wanted::http(document)
            .chain(Wanted::forward(document))
            .chain(Wanted::tunnels(document))
            .chain(Wanted::tcp(document))
            .chain(document.admin.tls.as_ref().map(|tls| Wanted {
                name: ADMIN.clone(),
                pointer: "/admin/tls".to_owned(),
                tls,
                flat: true,
            }))
    }

    /// JSON Pointer of a certificate.
    fn certificate(&self, index: usize) -> String {
        match self.flat {
            true => self.pointer.clone(),
            false => format!("{}/certificates/{index}", self.pointer),
        }
    }

    /// JSON Pointer of what signs the certificates of clients.
    fn client_ca(&self) -> String {
        match self.flat {
            true => format!("{}/client_ca", self.pointer),
            false => format!("{}/client_auth/ca", self.pointer),
        }
    }

    /// What the forward proxies of a document want.
    fn forward(document: &Document) -> impl Iterator<Item = Wanted<'_>> {
        document.forward.values().filter_map(|proxy| {
            Some(Wanted {
                name: forward_name(&proxy.name),
                pointer: format!("/forward/{}/tls", proxy.name),
                tls: proxy.tls.as_ref()?,
                flat: false,
            })
        })
    }

    /// What the TCP listeners of a document want.
    fn tcp(document: &Document) -> impl Iterator<Item = Wanted<'_>> {
        document.tcp.values().filter_map(|tcp| {
            Some(Wanted {
                name: tcp_name(&tcp.name),
                pointer: format!("/tcp/{}/tls", tcp.name),
                tls: tcp.tls.as_ref()?,
                flat: false,
            })
        })
    }

    /// What the tunnels of a document want.
    fn tunnels(document: &Document) -> impl Iterator<Item = Wanted<'_>> {
        document.tunnels.values().map(|tunnel| Wanted {
            name: tunnel_name(&tunnel.name),
            pointer: format!("/tunnels/{}/tls", tunnel.name),
            tls: &tunnel.tls,
            flat: false,
        })
    }

    /// What the HTTP servers of a document want.
    pub fn http(document: &Document) -> impl Iterator<Item = Wanted<'_>> {
        document.http.values().filter_map(|server| {
            Some(Wanted {
                name: server.name.clone(),
                pointer: format!("/http/{}/tls", server.name),
                tls: server.tls.as_ref()?,
                flat: false,
            })
        })
    }
}

/// What was read of the files that hold certificates, keys and CAs.
#[derive(Debug, Default)]
pub struct Readings {
    pub files: Files,
    /// Files and folders that could not be read, with the reason.
    pub failed: HashMap<PathBuf, String>,
}

/// What a renewal has come to.
#[derive(Debug)]
pub struct Renewed {
    pub material: Material,
    /// Contents of the files that it is made of: for what was kept out, the earlier ones.
    pub files: Files,
}

impl Material {
    /// Makes the certificates of `servers` out of `files`, with what is worth a warning. `before`: those that serve.
    ///
    /// # Errors
    /// Everything wrong with any of them.
    pub fn load<'a>(
        servers: impl Iterator<Item = Wanted<'a>>,
        files: &Files,
        before: Option<&Material>,
        shared: &Shared,
    ) -> Result<(Material, Vec<Fault>), Vec<Fault>> {
        let nothing = HashMap::new();
        let mut loader = Loader::new(files, &nothing, before, shared);
        let servers = loader.all(servers);
        if !loader.errors.is_empty() {
            return Err(loader.errors);
        }
        let (made, kept_out) = (loader.made, Vec::new());
        let material = Material {
            servers,
            made,
            kept_out,
        };
        Ok((material, loader.warnings))
    }

    /// The same out of files read anew, for the same servers: where something is wrong, what `before` has stays, made of
    /// `old`. What is wrong is in [`Material::kept_out`].
    pub fn renew<'a>(
        servers: impl Iterator<Item = Wanted<'a>>,
        read: &Readings,
        before: &Material,
        old: &Files,
        shared: &Shared,
    ) -> Renewed {
        let mut loader = Loader::new(&read.files, &read.failed, Some(before), shared);
        loader.keeps = true;
        let servers = loader.all(servers);
        let mut files = read.files.clone();
        for path in loader.spoiled {
            match old.get(&path) {
                Some(bytes) => _ = files.insert(path, bytes.clone()),
                None => _ = files.remove(&path),
            }
        }
        let material = Material {
            servers,
            made: loader.made,
            kept_out: loader.errors,
        };
        Renewed { material, files }
    }

    /// True if a server has the same certificates and the same policy for clients here and there.
    pub fn same(&self, other: &Material, server: &str) -> bool {
        let (here, there) = (self.of(server), other.of(server));
        let policy = match (self.client_auth(server), other.client_auth(server)) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        policy
            && here.len() == there.len()
            && here.iter().zip(there).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// Those of a server, in the document's order.
    pub fn of(&self, server: &str) -> &[Arc<Certificate>] {
        self.servers
            .get(server)
            .map_or(&[], |held| held.certificates.as_slice())
    }

    /// What a server asks of its clients; `None`: no certificate.
    pub fn client_auth(&self, server: &str) -> Option<&Arc<ClientAuth>> {
        self.servers.get(server)?.client_auth.as_ref()
    }

    /// Every certificate with its server and place, in no order.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Certificate>, &Place)> {
        self.servers.iter().flat_map(|(server, held)| {
            let all = held.certificates.iter().zip(&held.places);
            all.map(move |(certificate, place)| (server, certificate, place))
        })
    }

    /// When the first certificate of ours must be made anew; `None`: there is none.
    pub fn renewal(&self) -> Option<Timestamp> {
        let ours = self.all().filter(|(_, _, place)| place.source == LOCAL);
        let ends = ours.map(|(_, certificate, _)| certificate.not_after);
        ends.min()
            .map(|end| end.checked_sub(Span::new().hours(RENEW)).unwrap_or(end))
    }
}
