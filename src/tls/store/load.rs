//! From what a server wants and what its files hold to its certificates.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::{Span, Timestamp};
use sha2::{Digest, Sha256};

use super::folder::is_certificate;
use super::{Certificate, Fault, Files, Held, LOCAL, Material, Origin, Place, RENEW, Wanted};
use crate::config::http::{CertificateSpec, ClientAuthSpec, PemSource};
use crate::tls::Shared;
use crate::tls::certificate::Pair;
use crate::tls::client_auth::ClientAuth;

/// The sources of those that sign themselves, and of those whose text is in the document.
const SELF: &str = "self-signed";
const DOCUMENT: &str = "document";

/// Makes certificates, and gathers what is wrong with them.
pub(super) struct Loader<'a> {
    files: &'a Files,
    failed: &'a HashMap<PathBuf, String>,
    before: Option<&'a Material>,
    /// What is wrong is left out, and what was there before stays.
    pub(super) keeps: bool,
    shared: &'a Shared,
    now: Timestamp,
    pub(super) made: HashMap<Origin, Arc<Certificate>>,
    /// Those made of files, by their paths: what `[defaults]` name is named by every server.
    of_files: HashMap<Vec<PathBuf>, Arc<Certificate>>,
    pub(super) errors: Vec<Fault>,
    pub(super) warnings: Vec<Fault>,
    /// Files that are not used.
    pub(super) spoiled: Vec<PathBuf>,
}

/// A PEM text, what to call it, and where it is written.
struct Text {
    text: Bytes,
    name: String,
    pointer: String,
}

impl<'a> Loader<'a> {
    pub(super) fn new(
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
            of_files: HashMap::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
            spoiled: Vec::new(),
        }
    }

    pub(super) fn all<'s>(
        &mut self,
        servers: impl Iterator<Item = Wanted<'s>>,
    ) -> HashMap<Arc<str>, Held> {
        servers
            .map(|wanted| (wanted.name.clone(), self.server(&wanted)))
            .collect()
    }

    fn server(&mut self, wanted: &Wanted<'_>) -> Held {
        let Wanted {
            name, pointer, tls, ..
        } = wanted;
        let before = self.before.and_then(|before| before.servers.get(name));
        let mut out = Held::default();
        for (index, spec) in tls.certificates.iter().enumerate() {
            let pointer = wanted.certificate(index);
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
            out.client_auth = self.client_auth(wanted.client_ca(), spec, before);
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
        if let Some(certificate) = self.of_files.get(&paths) {
            out.add(certificate.clone(), place);
            return;
        }
        let [cert, key] = texts;
        match self.made(cert, key) {
            Ok(certificate) => {
                if paths.len() == 2 {
                    self.of_files.insert(paths, certificate.clone());
                }
                out.add(certificate, place);
            }
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

fn origin(cert: &[u8], key: &[u8]) -> Origin {
    let mut digest = Sha256::new();
    digest.update(cert.len().to_be_bytes());
    digest.update(cert);
    digest.update(key);
    digest.finalize().into()
}
