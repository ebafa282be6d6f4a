//! Certificates apart from swaps: which serve, which files they come from, and taking over what those files hold now. No
//! generation is made for that: the addresses of the one that serves present something else from the next hello on.
//!
//! Asked for by `POST /certificates/refresh` it is all or nothing; when the [`super::watch`] has seen a change, each pair
//! is for itself, and where one cannot be used the old one stays.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Rejection;
use super::actor::{Current, Supervisor};
use super::files;
use super::handle::Handle;
use crate::config::Diagnostic;
use crate::document::Document;
use crate::snapshot::{Pems, Snapshot};
use crate::tls::stamp::Stamps;
use crate::tls::store::{self, Certificate, Fault, Files, Material, Readings, Wanted};

/// Refreshes that may wait for their turn.
pub(super) const WAITING: usize = 16;
const DAY: i64 = 24 * 60 * 60;

/// A certificate that serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateStatus {
    /// Names of the servers that present it.
    pub servers: Vec<String>,
    /// Host names and addresses that it is good for.
    pub names: Vec<String>,
    /// RFC 3339, UTC.
    pub not_before: String,
    /// RFC 3339, UTC.
    pub not_after: String,
    /// Whole days until `not_after`; below 0: it is over.
    pub days_left: i64,
    /// `valid`, `expiring` (30 days or less are left), `expired` or `not_yet_valid`.
    pub state: String,
    /// SHA-256 of the certificate in lower-case hexadecimal.
    pub fingerprint: String,
    /// Path of its file, `document`, `local CA` or `self-signed`.
    pub source: String,
    /// Why what lies there now is not used; the one before stays.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

/// Answer of `GET /certificates` and `POST /certificates/refresh`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateList {
    /// Those that serve, by source.
    pub certificates: Vec<CertificateStatus>,
    /// What lies in the files now and is not used, since it cannot be.
    pub problems: Vec<Diagnostic>,
}

/// One who asks for a refresh.
#[derive(Debug, Clone)]
pub struct RefreshRequest {
    /// ETag that must be the running one, else 412.
    pub if_match: Option<String>,
    /// Who asked: for the log.
    pub actor: String,
}

/// Why certificates were not refreshed; those before stay.
#[derive(Debug, Clone, PartialEq)]
pub struct RefreshRefused {
    pub status: u16,
    /// Stable slug of the problem type.
    pub problem: &'static str,
    pub detail: String,
    pub errors: Vec<Diagnostic>,
}

impl From<Rejection> for RefreshRefused {
    fn from(rejection: Rejection) -> RefreshRefused {
        RefreshRefused {
            status: rejection.status,
            problem: rejection.problem,
            detail: rejection.detail,
            errors: rejection.errors,
        }
    }
}

/// What the actor is asked between two swaps.
pub(super) enum Ask {
    /// All or nothing.
    Refresh {
        request: RefreshRequest,
        reply: oneshot::Sender<Result<CertificateList, RefreshRefused>>,
    },
    /// What can be used is. Answers whether something cannot; `aloud`: that is said in the log.
    Follow {
        seen: Box<Seen>,
        aloud: bool,
        reply: oneshot::Sender<bool>,
    },
}

/// What a look at the files has found, and what served then: if that serves no more, somebody else has read them later.
pub(super) struct Seen {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) stamps: Stamps,
    pub(super) read: Readings,
}

impl Handle {
    /// The certificates that serve.
    pub fn certificates(&self) -> CertificateList {
        self.inner.view.load_full().certificates()
    }

    /// Reads the files of all certificates again, and takes over what they hold if all of it can be used. It is done
    /// whether or not one waits for it.
    ///
    /// # Errors
    /// 409 with what cannot be used, or when too many wait; 412; 503 when nothing serves.
    pub async fn refresh_certificates(
        &self,
        request: RefreshRequest,
    ) -> Result<CertificateList, RefreshRefused> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Refresh { request, reply };
        match self.inner.asks.try_send(ask) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                let detail = "too many refreshes are waiting";
                return Err(Rejection::new(409, "busy", detail).into());
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Rejection::stopping().into()),
        }
        // The actor is gone: the process stops.
        let gone = |_| Err(Rejection::stopping().into());
        answer.await.unwrap_or_else(gone)
    }
}

impl Supervisor {
    /// Answers one who asks between two swaps. A stop ends it.
    pub(super) async fn answer(&mut self, ask: Ask) {
        let stopping = self.inner.stopping.clone();
        match ask {
            Ask::Refresh { request, reply } => {
                let answer = tokio::select! {
                    biased;
                    () = stopping.cancelled() => Err(Rejection::stopping()),
                    answer = self.refresh(&request) => answer,
                };
                let (status, actor) = (
                    answer.as_ref().map_or_else(|e| e.status, |()| 200),
                    request.actor,
                );
                tracing::info!(target: "evergate::audit", actor, status, "certificates refresh decided");
                let answer = answer.map(|()| self.inner.view.load_full().certificates());
                // Whoever has gone does not want to know.
                let _ = reply.send(answer.map_err(Into::into));
            }
            Ask::Follow { seen, aloud, reply } => {
                let Seen {
                    snapshot,
                    stamps,
                    read,
                } = *seen;
                let serves = |current: &Current| Arc::ptr_eq(&current.snapshot, &snapshot);
                let spoiled = match self.current.as_ref().is_some_and(serves) {
                    true => self.renew(false, stamps, read).await,
                    // Looked at again in a second.
                    false => Ok(false),
                };
                let spoiled = spoiled.unwrap_or_else(|rejection| {
                    let detail = rejection.detail;
                    tracing::error!(detail, "certificates could not be followed");
                    false
                });
                self.say_kept_out(aloud);
                let _ = reply.send(spoiled);
            }
        }
    }

    /// Says what is kept out, once until it is mended.
    fn say_kept_out(&mut self, aloud: bool) {
        let kept_out = self
            .current
            .as_ref()
            .map_or(&[][..], |c| &c.snapshot.certificates.kept_out);
        self.said.retain(|fault| kept_out.contains(fault));
        for fault in kept_out.iter().filter(|_| aloud) {
            // Several servers may have the same files.
            if !self.said.iter().any(|said| said.message == fault.message) {
                let (pointer, message) = (fault.pointer.as_str(), &fault.message);
                tracing::warn!(pointer, "kept out, what served before stays: {message}");
                self.said.push(fault.clone());
            }
        }
    }

    async fn refresh(&mut self, request: &RefreshRequest) -> Result<(), Rejection> {
        self.inner.check_if_match(request.if_match.as_deref())?;
        let Some(current) = &self.current else {
            return Err(Rejection::new(503, "not-ready", "no generation serves"));
        };
        let deadline = Instant::now() + current.document.runtime.prepare_timeout;
        let watched = Watched::of(&current.document);
        let stamps = watched.stamps(deadline).await;
        let read = watched.read(&current.snapshot.pems.files, deadline).await;
        self.renew(true, stamps, read).await.map(drop)
    }

    /// Takes over what was read. `whole`: all of it or nothing. Returns whether something cannot be used.
    async fn renew(
        &mut self,
        whole: bool,
        stamps: Stamps,
        read: Readings,
    ) -> Result<bool, Rejection> {
        let (Some(current), Some(crew)) = (&self.current, &self.crew) else {
            return Err(Rejection::new(503, "not-ready", "no generation serves"));
        };
        let (document, snapshot) = (current.document.clone(), current.snapshot.clone());
        let tls = crew.tls.clone();
        let built = self.options.compiler.spawn_blocking(move || {
            let (old, files) = (&snapshot.certificates, &snapshot.pems.files);
            let renewed = Material::renew(Wanted::all(&document), &read, old, files, &tls);
            if whole && !renewed.material.kept_out.is_empty() {
                return Err(renewed.material.kept_out);
            }
            let servers = Wanted::all(&document).map(|wanted| wanted.name);
            let changed = servers.filter(|server| !renewed.material.same(old, server));
            let changed: Vec<String> = changed.map(|name| name.to_string()).collect();
            let pems = Pems {
                files: renewed.files,
                stamps: Arc::new(stamps),
            };
            Ok((
                snapshot.renewed(&document, pems, renewed.material, &tls),
                changed,
            ))
        });
        let (snapshot, changed) = match built.await {
            Ok(Ok(done)) => done,
            Ok(Err(faults)) => {
                let errors = faults.iter().map(diagnostic).collect();
                return Err(Rejection::with(409, "certificates", errors));
            }
            Err(error) => {
                let detail = format!("reading certificates failed: {error}");
                return Err(Rejection::new(500, "internal", detail));
            }
        };
        let spoiled = !snapshot.certificates.kept_out.is_empty();
        if let Some(current) = &mut self.current {
            current.snapshot = Arc::new(snapshot);
        }
        if !changed.is_empty() {
            tracing::info!(
                servers = changed.join(", "),
                "certificates taken over from their files"
            );
        }
        self.publish();
        Ok(spoiled)
    }
}

/// The files and folders that the certificates of a document come from, each once.
#[derive(Debug, Default)]
pub(super) struct Watched {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Watched {
    pub(super) fn of(document: &Document) -> Watched {
        let once = |named: Vec<(PathBuf, String)>| {
            let paths: HashSet<PathBuf> = named.into_iter().map(|(path, _)| path).collect();
            paths.into_iter().collect()
        };
        Watched {
            files: once(document.certificate_pointers()),
            folders: once(document.certificate_folders()),
        }
    }

    /// How all of them lie there now; nothing, if that does not show in time.
    pub(super) async fn stamps(&self, deadline: Instant) -> Stamps {
        if self.files.is_empty() && self.folders.is_empty() {
            return Stamps::default();
        }
        let (files, folders) = (self.files.clone(), self.folders.clone());
        let look = tokio::task::spawn_blocking(move || Stamps::take(&files, &folders));
        let looked = tokio::time::timeout_at(deadline, look).await;
        // The look itself fails when the runtime ends.
        looked.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// What all of them hold now. A pipe is read by swaps only: `before` has what it gave.
    pub(super) async fn read(&self, before: &Files, deadline: Instant) -> Readings {
        let mut out = Readings::default();
        let mut paths: HashSet<PathBuf> = self.files.iter().cloned().collect();
        for folder in &self.folders {
            match within(deadline, files::pairs_found(folder)).await {
                Ok(found) => paths.extend(found),
                Err(error) => _ = out.failed.insert(folder.clone(), error.to_string()),
            }
        }
        let reads = paths.into_iter().map(|path| async move {
            let pipe = within(deadline, tokio::fs::metadata(&path))
                .await
                .is_ok_and(|meta| !meta.is_file() && !meta.is_dir());
            let kept = before.get(&path).filter(|_| pipe);
            let read = match kept {
                Some(bytes) => Ok(bytes.clone()),
                None => within(deadline, files::read(&path)).await,
            };
            (path, read)
        });
        for (path, read) in join_all(reads).await {
            match read {
                Ok(bytes) => _ = out.files.insert(path, bytes),
                Err(error) => _ = out.failed.insert(path, error.to_string()),
            }
        }
        out
    }
}

async fn within<T>(
    deadline: Instant,
    read: impl Future<Output = std::io::Result<T>>,
) -> std::io::Result<T> {
    let read = tokio::time::timeout_at(deadline, read).await;
    read.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// What serves, and what is kept out.
pub(super) fn list(material: &Material, now: Timestamp) -> CertificateList {
    let mut all: BTreeMap<(&str, String), CertificateStatus> = BTreeMap::new();
    for (server, certificate, place) in material.all() {
        let one = all
            .entry((&place.source, certificate.fingerprint()))
            .or_insert_with_key(|(source, fingerprint)| {
                status(certificate, source, fingerprint, now)
            });
        one.servers.push(server.to_string());
        one.error = one.error.take().or_else(|| place.error.clone());
    }
    let mut certificates: Vec<_> = all.into_values().collect();
    for certificate in &mut certificates {
        certificate.servers.sort();
        certificate.servers.dedup();
    }
    CertificateList {
        certificates,
        problems: material.kept_out.iter().map(diagnostic).collect(),
    }
}

fn status(
    certificate: &Certificate,
    source: &str,
    fingerprint: &str,
    now: Timestamp,
) -> CertificateStatus {
    let left = certificate.not_after.as_second() - now.as_second();
    let state = match left {
        _ if now < certificate.not_before => "not_yet_valid",
        ..0 => "expired",
        _ if left <= super::watch::SOON => "expiring",
        _ => "valid",
    };
    CertificateStatus {
        servers: Vec::new(),
        names: certificate.names(),
        not_before: certificate.not_before.to_string(),
        not_after: certificate.not_after.to_string(),
        days_left: left.div_euclid(DAY),
        state: state.to_owned(),
        fingerprint: fingerprint.to_owned(),
        source: source.to_owned(),
        error: None,
    }
}

/// Without a place in the text: what runs may have been written long ago.
fn diagnostic(fault: &Fault) -> Diagnostic {
    Diagnostic {
        help: fault.help.map(Into::into),
        ..Diagnostic::without_place(&fault.pointer, fault.message.as_str())
    }
}

/// Contents and looks of the files that hold certificates, out of all that a document's files hold.
pub(super) fn pems(document: &Document, folders: &[PathBuf], all: &Files) -> Files {
    let named: HashSet<PathBuf> = document
        .certificate_pointers()
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    let within = |path: &PathBuf| {
        path.parent()
            .is_some_and(|p| folders.iter().any(|f| f == p))
    };
    all.iter()
        .filter(|(path, _)| named.contains(*path) || (within(path) && store::is_of_pair(path)))
        .map(|(path, bytes)| (path.clone(), bytes.clone()))
        .collect::<HashMap<_, _>>()
}
