//! The certificates of a generation, made of what its document names. All that can be wrong with one is found here,
//! before anything of the generation can be seen, and is said with its place.
//!
//! Files also change while a generation serves. Then what is new and good is taken over one by one, and where something
//! is not, what serves stays ([`Material::renew`]).

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::{Span, Timestamp};
use sha2::{Digest, Sha256};

use super::Shared;
use super::certificate::Pair;
use super::client_auth::ClientAuth;
use crate::config::http::{CertificateSpec, ClientAuthSpec, PemSource, TlsSpec};
use crate::document::Document;

pub use super::certificate::Certificate;

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
/// Names for which certificates of ours are kept although nobody uses them.
const MAX_UNUSED: usize = 64;

/// The certificates of one generation.
#[derive(Debug, Clone, Default)]
pub struct Material {
    servers: HashMap<Arc<str>, Held>,
    /// Taken over by the next generation where nothing changed.
    made: HashMap<Origin, Arc<Certificate>>,
    /// What the files have and is not used, since it cannot be.
    pub kept_out: Vec<Fault>,
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
    pub name: &'a Arc<str>,
    /// JSON Pointer of its `tls`.
    pub pointer: String,
    pub tls: &'a TlsSpec,
}

impl Wanted<'_> {
    /// What the HTTP servers of a document want.
    pub fn http(document: &Document) -> impl Iterator<Item = Wanted<'_>> {
        document.http.values().filter_map(|server| {
            Some(Wanted {
                name: &server.name,
                pointer: format!("/http/{}/tls", server.name),
                tls: server.tls.as_ref()?,
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

/// The source of a certificate that is made here: signed by the local CA, or by itself.
const LOCAL: &str = "local CA";
const SELF: &str = "self-signed";
/// That of one whose text is in the document.
const DOCUMENT: &str = "document";

struct Loader<'a> {
    files: &'a Files,
    failed: &'a HashMap<PathBuf, String>,
    before: Option<&'a Material>,
    /// What is wrong is left out, and what was there before stays.
    keeps: bool,
    shared: &'a Shared,
    now: Timestamp,
    made: HashMap<Origin, Arc<Certificate>>,
    errors: Vec<Fault>,
    warnings: Vec<Fault>,
    /// Files that are not used.
    spoiled: Vec<PathBuf>,
}

/// A PEM text, what to call it, and where it is written.
struct Text {
    text: Bytes,
    name: String,
    pointer: String,
}

impl<'a> Loader<'a> {
    fn new(
        files: &'a Files,
        failed: &'a HashMap<PathBuf, String>,
        before: Option<&'a Material>,
        shared: &'a Shared,
    ) -> Loader<'a> {
        Loader {
            files,
            failed,
            before,
            keeps: false,
            shared,
            now: Timestamp::now(),
            made: HashMap::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
            spoiled: Vec::new(),
        }
    }

    fn all<'s>(&mut self, servers: impl Iterator<Item = Wanted<'s>>) -> HashMap<Arc<str>, Held> {
        servers
            .map(|wanted| (wanted.name.clone(), self.server(&wanted)))
            .collect()
    }

    fn server(&mut self, wanted: &Wanted<'_>) -> Held {
        let Wanted { name, pointer, tls } = wanted;
        let before = self.before.and_then(|before| before.servers.get(*name));
        let mut out = Held::default();
        for (index, spec) in tls.certificates.iter().enumerate() {
            let pointer = format!("{pointer}/certificates/{index}");
            match spec {
                CertificateSpec::Pair { cert, key } => {
                    let paths = [cert, key].into_iter().filter_map(PemSource::path);
                    let paths: Vec<PathBuf> = paths.map(Path::to_owned).collect();
                    let cert_path = cert.path().map(|path| path.display().to_string());
                    let cert = self.text(cert, "the certificate", format!("{pointer}/cert"));
                    let key = self.text(key, "the key", format!("{pointer}/key"));
                    let source = cert_path.unwrap_or_else(|| DOCUMENT.to_owned());
                    let place = Place::new(pointer, source);
                    self.pair([cert, key], paths, place, before, &mut out);
                }
                CertificateSpec::Folder(folder) => self.folder(folder, pointer, before, &mut out),
            }
        }
        if !tls.self_signed.is_empty() {
            let pointer = format!("{pointer}/self_signed");
            self.self_signed(pointer, &tls.self_signed, before, &mut out);
        }
        if let Some(spec) = &tls.client_auth {
            let before = before.and_then(|before| before.client_auth.as_ref());
            out.client_auth = self.client_auth(format!("{pointer}/client_auth/ca"), spec, before);
        }
        out
    }

    fn client_auth(
        &mut self,
        pointer: String,
        spec: &Arc<ClientAuthSpec>,
        before: Option<&Arc<ClientAuth>>,
    ) -> Option<Arc<ClientAuth>> {
        let path = spec.ca.path().map(Path::to_owned);
        let made = self.text(&spec.ca, "the CA", pointer).and_then(|ca| {
            ClientAuth::new(spec, &ca.text, &ca.name, &ca.pointer, before, self.shared)
        });
        match made {
            Ok(made) => Some(made),
            Err(fault) => {
                self.errors.push(fault);
                self.spoiled.extend(path);
                before.filter(|_| self.keeps).cloned()
            }
        }
    }

    fn text(&self, source: &PemSource, name: &str, pointer: String) -> Result<Text, Fault> {
        match source {
            PemSource::Text(text) => Ok(Text {
                text: Bytes::copy_from_slice(text.expose().as_bytes()),
                name: name.to_owned(),
                pointer,
            }),
            PemSource::File(path) => self.file(path, pointer),
        }
    }

    fn file(&self, path: &Path, pointer: String) -> Result<Text, Fault> {
        let name = path.display().to_string();
        if let Some(reason) = self.failed.get(path) {
            return Err(Fault::new(pointer, format!("{name}: {reason}")));
        }
        Ok(Text {
            // Every file that the document names was read.
            text: self.files.get(path).cloned().unwrap_or_default(),
            name,
            pointer,
        })
    }

    fn folder(&mut self, folder: &Path, pointer: String, before: Option<&Held>, out: &mut Held) {
        let dir_pointer = format!("{pointer}/dir");
        let known = self.files.keys().chain(self.failed.keys());
        let mut certs: Vec<PathBuf> = known
            .filter(|path| path.parent() == Some(folder) && is_certificate(path))
            .cloned()
            .collect();
        // The folder's order is the system's whim.
        certs.sort();
        let failed = self.failed.get(folder);
        if certs.is_empty() || failed.is_some() {
            let fault = match failed {
                Some(reason) => Fault::new(dir_pointer, format!("{}: {reason}", folder.display())),
                None => {
                    let message = format!("{} has no certificates", folder.display());
                    Fault::new(dir_pointer, message).help("put NAME.crt and NAME.key into it")
                }
            };
            self.keep_folder(folder, &pointer, &fault, before, out);
            self.errors.push(fault);
            return;
        }
        for path in certs {
            let key_path = path.with_extension("key");
            let both = [&path, &key_path].map(|path| self.file(path, dir_pointer.clone()));
            let place = Place::new(pointer.as_str(), path.display().to_string());
            self.pair(both, vec![path, key_path], place, before, out);
        }
    }

    /// All that the folder gave before.
    fn keep_folder(
        &mut self,
        folder: &Path,
        pointer: &str,
        fault: &Fault,
        before: Option<&Held>,
        out: &mut Held,
    ) {
        let Some(before) = before.filter(|_| self.keeps) else {
            return;
        };
        for (certificate, place) in before.certificates.iter().zip(&before.places) {
            let path = Path::new(&place.source);
            if place.pointer == pointer && path.parent() == Some(folder) {
                self.made.insert(certificate.origin, certificate.clone());
                let error = Some(fault.message.clone());
                out.add(
                    certificate.clone(),
                    Place {
                        error,
                        ..place.clone()
                    },
                );
                self.spoiled
                    .extend([path.to_owned(), path.with_extension("key")]);
            }
        }
    }

    /// `texts`: certificate and key; `paths`: of those of them that are files.
    fn pair(
        &mut self,
        texts: [Result<Text, Fault>; 2],
        paths: Vec<PathBuf>,
        place: Place,
        before: Option<&Held>,
        out: &mut Held,
    ) {
        let [cert, key] = texts;
        match self.made(cert, key) {
            Ok(certificate) => out.add(certificate, place),
            Err(fault) => {
                let error = Some(fault.message.clone());
                self.errors.push(fault);
                self.spoiled.extend(paths);
                let kept = before.filter(|_| self.keeps).and_then(|b| b.of(&place));
                if let Some(certificate) = kept {
                    self.made.insert(certificate.origin, certificate.clone());
                    out.add(certificate.clone(), Place { error, ..place });
                }
            }
        }
    }

    fn made(
        &mut self,
        cert: Result<Text, Fault>,
        key: Result<Text, Fault>,
    ) -> Result<Arc<Certificate>, Fault> {
        let (cert, key) = (cert?, key?);
        let origin = origin(&cert.text, &key.text);
        let known = self
            .made
            .get(&origin)
            .or_else(|| self.before?.made.get(&origin))
            .cloned();
        let pair = Pair {
            cert: &cert.text,
            cert_pointer: &cert.pointer,
            cert_name: &cert.name,
            key: &key.text,
            key_pointer: &key.pointer,
            key_name: &key.name,
        };
        let certificate = match known {
            Some(certificate) => certificate,
            None => {
                let mut made = pair.parse(&self.shared.provider)?;
                made.origin = origin;
                Arc::new(made)
            }
        };
        if let Some(word) = certificate.untimely(self.now) {
            let message = format!("{} {word}", cert.name);
            self.warnings
                .push(Fault::new(cert.pointer, message).help("clients will refuse it"));
        }
        self.made.insert(origin, certificate.clone());
        Ok(certificate)
    }

    fn self_signed(
        &mut self,
        pointer: String,
        names: &[String],
        before: Option<&Held>,
        out: &mut Held,
    ) {
        let (made, why) = self.shared.local(names, |c| !self.is_ending(c));
        if let Some(why) = why {
            let message = format!(
                "{why}: the certificate is made anew at each start, and no client can be told to trust it"
            );
            self.warnings.push(Fault::new(pointer.as_str(), message));
        }
        let error = match made {
            Ok((certificate, by_ca)) => {
                let source = if by_ca { LOCAL } else { SELF };
                out.add(certificate, Place::new(pointer, source));
                return;
            }
            Err(error) => format!("the certificate cannot be made: {error}"),
        };
        for source in [LOCAL, SELF].into_iter().filter(|_| self.keeps) {
            let mut place = Place::new(pointer.as_str(), source);
            if let Some(kept) = before.and_then(|before| before.of(&place)) {
                place.error = Some(error.clone());
                out.add(kept.clone(), place);
            }
        }
        self.errors.push(Fault::new(pointer, error));
    }

    fn is_ending(&self, certificate: &Certificate) -> bool {
        let renew = certificate.not_after.checked_sub(Span::new().hours(RENEW));
        renew.is_ok_and(|at| self.now >= at)
    }
}

/// Certificates that a folder may hold.
const MAX_PAIRS: usize = 10_000;

/// The paths of every `NAME.crt` in `folder` and of the `NAME.key` that goes with it. Blocks.
///
/// # Errors
/// Those of the system, and ones with a plain sentence for a certificate without its key and for a folder with more
/// than 10,000 of them.
pub fn pairs(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let all = pairs_found(folder)?;
    for [cert, key] in all.as_chunks().0 {
        if !key.exists() {
            let (cert, key) = (cert.file_name(), key.file_name());
            let [cert, key] =
                [cert, key].map(|name| name.unwrap_or_default().display().to_string());
            return Err(io::Error::other(format!("{cert} is there without {key}")));
        }
    }
    Ok(all)
}

/// The same without a look whether the keys are there.
///
/// # Errors
/// As [`pairs`], but for that.
pub fn pairs_found(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let cert = entry?.path();
        if !is_certificate(&cert) {
            continue;
        }
        if all.len() >= 2 * MAX_PAIRS {
            let message = format!("holds more than {MAX_PAIRS} certificates");
            return Err(io::Error::other(message));
        }
        let key = cert.with_extension("key");
        all.extend([cert, key]);
    }
    Ok(all)
}

fn is_certificate(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "crt")
}

/// True if a file of this name may be one of a folder's.
pub fn is_of_pair(path: &Path) -> bool {
    is_certificate(path) || path.extension().is_some_and(|e| e == "key")
}

fn origin(cert: &[u8], key: &[u8]) -> Origin {
    let mut digest = Sha256::new();
    digest.update(cert.len().to_be_bytes());
    digest.update(cert);
    digest.update(key);
    digest.finalize().into()
}

/// Lets go of certificates of ours that nobody uses, when there are many.
pub(super) fn forget_unused(made: &mut HashMap<Vec<String>, (Arc<Certificate>, bool)>) {
    if made.len() >= MAX_UNUSED {
        made.retain(|_, (certificate, _)| Arc::strong_count(certificate) > 1);
    }
}
