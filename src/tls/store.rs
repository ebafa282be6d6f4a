//! The certificates of a generation, made of what its document names. All that can be wrong with one is found here,
//! before anything of the generation can be seen, and is said with its place.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Shared;
use super::client::Clients;
use crate::config::http::{CertificateSpec, HttpSpec, PemSource, TlsSpec};
use crate::config::upstream::UpstreamSpec;

/// A certificate with its chain and key, and what of it is asked for later.
#[derive(Debug)]
pub struct Certificate {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) names: Vec<Name>,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// A DNS name in a certificate, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    Exact(Box<str>),
    /// `*.a.test`, held as `a.test`.
    Below(Box<str>),
}

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

/// The certificates of one generation.
#[derive(Debug, Default)]
pub struct Material {
    /// By server, in the document's order.
    servers: HashMap<Arc<str>, Vec<Arc<Certificate>>>,
    /// Taken over by the next generation where nothing changed.
    made: HashMap<Origin, Arc<Certificate>>,
    /// How upstreams are spoken to.
    clients: Clients,
}

/// Contents of files by path.
pub(super) type Files = HashMap<PathBuf, Bytes>;

impl Material {
    /// Makes the certificates of `servers`, and what `upstreams` need for TLS, out of `files`, with what is worth a
    /// warning. `before`: those that serve.
    ///
    /// # Errors
    /// Everything wrong with any of them.
    pub fn load<'a>(
        servers: impl Iterator<Item = &'a HttpSpec>,
        upstreams: impl Iterator<Item = &'a UpstreamSpec>,
        files: &Files,
        before: Option<&Material>,
        shared: &Shared,
    ) -> Result<(Material, Vec<Fault>), Vec<Fault>> {
        let mut loader = Loader {
            files,
            before,
            shared,
            now: Timestamp::now(),
            made: HashMap::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
        };
        let mut all = HashMap::new();
        for server in servers {
            if let Some(tls) = &server.tls {
                all.insert(server.name.clone(), loader.server(&server.name, tls));
            }
        }
        let clients = Clients::load(upstreams, files, before.map(|b| &b.clients), shared);
        match clients {
            Ok((clients, mut warnings)) if loader.errors.is_empty() => {
                let material = Material {
                    servers: all,
                    made: loader.made,
                    clients,
                };
                loader.warnings.append(&mut warnings);
                Ok((material, loader.warnings))
            }
            Ok(_) => Err(loader.errors),
            Err(mut errors) => {
                loader.errors.append(&mut errors);
                Err(loader.errors)
            }
        }
    }

    /// How upstreams are spoken to.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// True if a server has the same certificates here and there.
    pub fn same(&self, other: &Material, server: &str) -> bool {
        let (here, there) = (self.of(server), other.of(server));
        here.len() == there.len() && here.iter().zip(there).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// Those of a server, in the document's order.
    pub fn of(&self, server: &str) -> &[Arc<Certificate>] {
        self.servers.get(server).map_or(&[], Vec::as_slice)
    }
}

struct Loader<'a> {
    files: &'a Files,
    before: Option<&'a Material>,
    shared: &'a Shared,
    now: Timestamp,
    made: HashMap<Origin, Arc<Certificate>>,
    errors: Vec<Fault>,
    warnings: Vec<Fault>,
}

/// The places and names of a pair, for what is said about it.
pub(super) struct Pair<'a> {
    pub(super) cert: &'a [u8],
    pub(super) cert_pointer: String,
    pub(super) cert_name: String,
    pub(super) key: &'a [u8],
    pub(super) key_pointer: String,
    pub(super) key_name: String,
}

impl Loader<'_> {
    fn server(&mut self, server: &str, tls: &TlsSpec) -> Vec<Arc<Certificate>> {
        let mut out = Vec::new();
        for (index, spec) in tls.certificates.iter().enumerate() {
            let pointer = format!("/http/{server}/tls/certificates/{index}");
            match spec {
                CertificateSpec::Pair { cert, key } => {
                    let (cert_name, cert) = text(cert, "the certificate", self.files);
                    let (key_name, key) = text(key, "the key", self.files);
                    out.extend(self.pair(&Pair {
                        cert: &cert,
                        cert_pointer: format!("{pointer}/cert"),
                        cert_name,
                        key: &key,
                        key_pointer: format!("{pointer}/key"),
                        key_name,
                    }));
                }
                CertificateSpec::Folder(folder) => self.folder(folder, &pointer, &mut out),
            }
        }
        if !tls.self_signed.is_empty() {
            out.extend(self.self_signed(server, &tls.self_signed));
        }
        out
    }

    fn folder(&mut self, folder: &Path, pointer: &str, out: &mut Vec<Arc<Certificate>>) {
        let files = self.files;
        let pointer = format!("{pointer}/dir");
        let mut pairs: Vec<(&Path, &Bytes, PathBuf, &Bytes)> = files
            .iter()
            .filter(|(path, _)| path.parent() == Some(folder) && is_certificate(path))
            .filter_map(|(path, cert)| {
                let key_path = path.with_extension("key");
                let key = files.get(&key_path)?;
                Some((path.as_path(), cert, key_path, key))
            })
            .collect();
        // The folder's order is the system's whim.
        pairs.sort_by_key(|(path, ..)| *path);
        if pairs.is_empty() {
            self.errors.push(
                Fault::new(pointer, format!("{} has no certificates", folder.display()))
                    .help("put NAME.crt and NAME.key into it"),
            );
            return;
        }
        for (cert_path, cert, key_path, key) in pairs {
            out.extend(self.pair(&Pair {
                cert,
                cert_pointer: pointer.clone(),
                cert_name: cert_path.display().to_string(),
                key,
                key_pointer: pointer.clone(),
                key_name: key_path.display().to_string(),
            }));
        }
    }

    fn pair(&mut self, pair: &Pair<'_>) -> Option<Arc<Certificate>> {
        let origin = origin(pair.cert, pair.key);
        let known = self
            .made
            .get(&origin)
            .or_else(|| self.before?.made.get(&origin))
            .cloned();
        let certificate = match known {
            Some(certificate) => certificate,
            None => match parse(pair, &self.shared.provider) {
                Ok(certificate) => Arc::new(certificate),
                Err(fault) => {
                    self.errors.push(fault);
                    return None;
                }
            },
        };
        if let Some(word) = certificate.untimely(self.now) {
            let message = format!("{} {word}", pair.cert_name);
            self.warnings
                .push(Fault::new(&pair.cert_pointer, message).help("clients will refuse it"));
        }
        self.made.insert(origin, certificate.clone());
        Some(certificate)
    }

    fn self_signed(&mut self, server: &str, names: &[String]) -> Option<Arc<Certificate>> {
        let mut made = self.shared.self_signed.lock();
        if let Some(certificate) = made.get(names) {
            return Some(certificate.clone());
        }
        let generated =
            rcgen::generate_simple_self_signed(names.to_vec()).map_err(|e| e.to_string());
        let certificate = generated.and_then(|generated| {
            let leaf = generated.cert.der().clone();
            let key = PrivateKeyDer::try_from(generated.signing_key.serialize_der())?;
            let (names, not_before, not_after) = read(&leaf).ok_or("it cannot be read back")?;
            let key = CertifiedKey::from_der(vec![leaf], key, &self.shared.provider)
                .map_err(|error| error.to_string())?;
            Ok(Arc::new(Certificate {
                key: Arc::new(key),
                names,
                not_before,
                not_after,
            }))
        });
        match certificate {
            Ok(certificate) => {
                made.insert(names.to_vec(), certificate.clone());
                Some(certificate)
            }
            Err(error) => {
                let pointer = format!("/http/{server}/tls/self_signed");
                let message = format!("the certificate cannot be made: {error}");
                self.errors.push(Fault::new(pointer, message));
                None
            }
        }
    }
}

/// What to call a text, and the text.
pub(super) fn text(source: &PemSource, name: &str, files: &Files) -> (String, Bytes) {
    match source {
        PemSource::Text(text) => (
            name.to_owned(),
            Bytes::copy_from_slice(text.expose().as_bytes()),
        ),
        // Every file that the document names was read.
        PemSource::File(path) => (
            path.display().to_string(),
            files.get(path).cloned().unwrap_or_default(),
        ),
    }
}

/// # Errors
/// What is wrong with one of the two, or that they do not belong together.
pub(super) fn parse(pair: &Pair<'_>, provider: &CryptoProvider) -> Result<Certificate, Fault> {
    let Pair {
        cert_name,
        key_name,
        ..
    } = pair;
    let bad_cert = |what: String| Fault::new(&pair.cert_pointer, format!("{cert_name} {what}"));
    let bad_key = |what: String| Fault::new(&pair.key_pointer, format!("{key_name} {what}"));
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(pair.cert).collect();
    let chain = chain.map_err(|error| bad_cert(format!("is not valid PEM: {error}")))?;
    let Some(leaf) = chain.first() else {
        return Err(bad_cert("holds no certificate".to_owned())
            .help("a PEM file has a line `-----BEGIN CERTIFICATE-----`"));
    };
    let (names, not_before, not_after) = read(leaf)
        .ok_or_else(|| bad_cert("holds something that is no X.509 certificate".to_owned()))?;
    let key = PrivateKeyDer::from_pem_slice(pair.key).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => {
            let encrypted = memchr::memmem::find(pair.key, b"ENCRYPTED PRIVATE KEY").is_some();
            if encrypted {
                bad_key("is encrypted".to_owned())
                    .help("give the key without a passphrase: `openssl pkey -in IN -out OUT`")
            } else {
                bad_key("holds no private key".to_owned())
                    .help("a PEM file has a line such as `-----BEGIN PRIVATE KEY-----`")
            }
        }
        error => bad_key(format!("is not valid PEM: {error}")),
    })?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            bad_key(format!("is not the key of {cert_name}"))
                .help("the server's own certificate comes first, then those that signed it")
        }
        Error::InvalidCertificate(error) => bad_cert(format!("cannot be used: {error:?}")),
        error => bad_key(format!("cannot be used: {error}")),
    })?;
    Ok(Certificate {
        key: Arc::new(key),
        names,
        not_before,
        not_after,
    })
}

impl Certificate {
    /// True if it is good for `host`, in lower case: a wildcard stands for one label (RFC 9525 section 6.3).
    pub(super) fn names(&self, host: &str) -> bool {
        self.names.iter().any(|name| match name {
            Name::Exact(name) => **name == *host,
            Name::Below(domain) => host
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == &**domain),
        })
    }

    /// Says so if it is not valid at `now`.
    pub(super) fn untimely(&self, now: Timestamp) -> Option<String> {
        if now > self.not_after {
            Some(format!("expired at {}", self.not_after))
        } else if now < self.not_before {
            Some(format!("is not valid before {}", self.not_before))
        } else {
            None
        }
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
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let cert = entry?.path();
        if !is_certificate(&cert) {
            continue;
        }
        let key = cert.with_extension("key");
        if !key.exists() {
            let (cert, key) = (cert.file_name(), key.file_name());
            let [cert, key] =
                [cert, key].map(|name| name.unwrap_or_default().display().to_string());
            return Err(io::Error::other(format!("{cert} is there without {key}")));
        }
        if all.len() >= 2 * MAX_PAIRS {
            let message = format!("holds more than {MAX_PAIRS} certificates");
            return Err(io::Error::other(message));
        }
        all.extend([cert, key]);
    }
    Ok(all)
}

fn is_certificate(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "crt")
}

fn origin(cert: &[u8], key: &[u8]) -> Origin {
    let mut digest = Sha256::new();
    digest.update(cert.len().to_be_bytes());
    digest.update(cert);
    digest.update(key);
    digest.finalize().into()
}

/// The DNS names of a certificate and when it is valid.
fn read(leaf: &CertificateDer<'_>) -> Option<(Vec<Name>, Timestamp, Timestamp)> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let extension = parsed.subject_alternative_name().ok()?;
    let names = extension.iter().flat_map(|san| &san.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => {
            let name = name.to_ascii_lowercase();
            Some(match name.strip_prefix("*.") {
                Some(domain) => Name::Below(domain.into()),
                None => Name::Exact(name.into()),
            })
        }
        _ => None,
    });
    let validity = parsed.validity();
    // A time beyond what can be told is as good as never.
    let time = |seconds: i64| Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
    Some((
        names.collect(),
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
    ))
}
