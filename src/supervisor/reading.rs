//! Of a swap: the document as it came is read and checked, and then the files that it names, within `prepare_timeout`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::Rejection;
use super::actor::Supervisor;
use super::certificates;
use super::files;
use super::request::{Source, SwapRequest};
use super::targets::TargetLists;
use crate::config::{Diagnostic, Format};
use crate::document::{Context, Document, Parsed, Refused};
use crate::http::Files;
use crate::snapshot::{Contents, Pems};
use crate::tls::stamp::Stamps;

/// How long reading the configuration file itself, or what it includes, may take.
const READ_FILE: Duration = Duration::from_secs(30);

/// A document as it came.
struct Read {
    bytes: Bytes,
    format: Format,
    /// Relative paths begin here.
    base: PathBuf,
    file: Option<PathBuf>,
}

impl Read {
    fn new(bytes: Bytes, format: Format, base: PathBuf) -> Read {
        Read {
            bytes,
            format,
            base,
            file: None,
        }
    }
}

impl Supervisor {
    /// The document that a swap is to, and the file that it was read from.
    pub(super) async fn parsed(
        &self,
        request: &SwapRequest,
    ) -> Result<(Parsed, Option<PathBuf>), Rejection> {
        let source = &request.source;
        if let (Source::Running, Some(current)) = (source, &self.current) {
            return Ok((current.document.again(), None));
        }
        let Read {
            bytes,
            format,
            base,
            file,
        } = self.read(source).await?;
        let running = self
            .current
            .as_ref()
            .map(|current| current.document.clone());
        // The file of the process itself is no secret to who may see what runs.
        let sealed = request.read_only && matches!(source, Source::Body { .. });
        let parsed = parse(
            &self.options.compiler,
            (bytes, format),
            base,
            running,
            sealed,
        )
        .await?;
        Ok((parsed, file))
    }

    /// Puts in the targets that stand in files, and returns what the files said. `lenient`: of a file that is wrong, the
    /// running targets stay.
    pub(super) async fn take_targets(
        &self,
        parsed: &Parsed,
        document: &mut Arc<Document>,
        lenient: bool,
        deadline: Instant,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<TargetLists, Rejection> {
        let timeout = document.runtime.prepare_timeout;
        let named = document.target_files();
        if named.is_empty() {
            return Ok(TargetLists::default());
        }
        let (contents, mut errors) = read_all(parsed, named, deadline, timeout).await;
        let running = self.current.as_ref().map(|current| &*current.document);
        let read = |path: &Path| contents.get(path).map(|bytes| &bytes[..]);
        let faults = Arc::make_mut(document).take_targets(read, running.filter(|_| lenient));
        if lenient {
            warnings.append(&mut errors);
        }
        for (pointer, message, kept) in faults {
            let help = kept.then(|| "the targets that it named before stay".to_owned());
            let list = if kept { &mut *warnings } else { &mut errors };
            list.push(parsed.locate(&pointer, message, help));
        }
        if errors.is_empty() {
            Ok(contents)
        } else {
            Err(Rejection::with(409, "not-prepared", errors))
        }
    }

    async fn read(&self, source: &Source) -> Result<Read, Rejection> {
        let folder = |path: &Path| {
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            std::path::absolute(parent.unwrap_or(Path::new(".")))
                .unwrap_or_else(|_| PathBuf::from("."))
        };
        let known = self.inner.file.lock().clone();
        match source {
            Source::Body { bytes, format } => {
                let base = known
                    .as_deref()
                    .map_or_else(|| folder(Path::new("x")), folder);
                Ok(Read::new(bytes.clone(), *format, base))
            }
            // Nothing runs, so nothing runs again.
            Source::Running => Err(Rejection::new(409, "no-file", "nothing runs")),
            Source::Embedded { bytes, format } => {
                Ok(Read::new(bytes.clone(), *format, folder(Path::new("x"))))
            }
            Source::File => {
                let Some(path) = known.or_else(|| (self.options.search)()) else {
                    let detail = "the process was started without a file, and none is found now; post a document";
                    return Err(Rejection::new(409, "no-file", detail));
                };
                let Some(format) = Document::format_of(&path) else {
                    let detail = format!(
                        "{}: the name must end in .toml, .json, .yaml or .yml",
                        path.display()
                    );
                    return Err(Rejection::new(409, "no-file", detail));
                };
                let read = tokio::time::timeout(READ_FILE, files::read(&path)).await;
                let bytes = read
                    .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
                    .map_err(|error| {
                        Rejection::new(409, "no-file", format!("{}: {error}", path.display()))
                    })?;
                let base = folder(&path);
                let file = Some(path);
                Ok(Read {
                    bytes,
                    format,
                    base,
                    file,
                })
            }
        }
    }
}

async fn parse(
    compiler: &tokio::runtime::Handle,
    (bytes, format): (Bytes, Format),
    base: PathBuf,
    running: Option<Arc<Document>>,
    sealed: bool,
) -> Result<Parsed, Rejection> {
    let parsed = compiler.spawn_blocking(move || {
        let context = Context {
            base,
            running: running.as_deref(),
        };
        match sealed {
            true => Document::parse_sealed(&bytes, format, &context),
            false => Document::parse(&bytes, format, &context),
        }
    });
    // It reads what the document includes and its secrets, and a file may hang.
    let Ok(parsed) = tokio::time::timeout(READ_FILE, parsed).await else {
        let detail = format!("the document and its files could not be read within {READ_FILE:?}");
        return Err(Rejection::new(409, "not-prepared", detail));
    };
    match parsed {
        Ok(Ok(parsed)) => Ok(parsed),
        Ok(Err(Refused::Syntax(errors))) => Err(Rejection::with(400, "malformed-document", errors)),
        Ok(Err(Refused::Invalid { errors, .. })) => {
            Err(Rejection::with(422, "invalid-document", errors))
        }
        Ok(Err(Refused::Unavailable(errors))) => Err(Rejection::with(409, "not-prepared", errors)),
        Err(error) => Err(Rejection::new(
            500,
            "internal",
            format!("parsing failed: {error}"),
        )),
    }
}

/// Reads every file the document names, all at once. `stamps`: of those of certificates, from before.
pub(super) async fn load(
    parsed: &Parsed,
    stamps: Arc<Stamps>,
    deadline: Instant,
    timeout: Duration,
) -> Result<Contents, Rejection> {
    let (mut named, mut errors) = (parsed.document.file_pointers(), Vec::new());
    let mut folders = parsed.document.certificate_folders();
    let mut seen = HashSet::new();
    folders.retain(|(folder, _)| seen.insert(folder.clone()));
    for (folder, pointer) in &folders {
        let listed = tokio::time::timeout_at(deadline, files::pairs(folder)).await;
        match listed.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(paths) => named.extend(paths.into_iter().map(|path| (path, pointer.clone()))),
            Err(error) => {
                let message = format!("{}: {error}", folder.display());
                errors.push(parsed.locate(pointer, message, None));
            }
        }
    }
    // What `[defaults]` name is named by every server, and read once.
    let mut seen = HashSet::new();
    named.retain(|(path, _)| seen.insert(path.clone()));
    let (mut files, more) = read_all(parsed, named, deadline, timeout).await;
    errors.extend(more);
    if errors.is_empty() {
        let faults = parsed.document.judge_htpasswd(&files).into_iter();
        errors.extend(faults.map(|f| parsed.locate(&f.pointer, f.message, f.help)));
    }
    if !errors.is_empty() {
        return Err(Rejection::with(409, "not-prepared", errors));
    }
    let folders: Vec<PathBuf> = folders.into_iter().map(|(folder, _)| folder).collect();
    let pems = certificates::pems(&parsed.document, &folders, &files);
    let answers: HashSet<_> = parsed
        .document
        .answer_pointers()
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    files.retain(|path, _| answers.contains(path));
    Ok(Contents {
        answers: files,
        pems: Pems {
            files: pems,
            stamps,
        },
    })
}

/// Reads files at once. Returns what they say, and what could not be read.
async fn read_all(
    parsed: &Parsed,
    named: Vec<(PathBuf, String)>,
    deadline: Instant,
    timeout: Duration,
) -> (Files, Vec<Diagnostic>) {
    let reads = named.into_iter().map(|(path, pointer)| async move {
        let read = tokio::time::timeout_at(deadline, files::read(&path)).await;
        let error = match read {
            Ok(Ok(bytes)) => return Ok((path, bytes)),
            Ok(Err(error)) => format!("{}: {error}", path.display()),
            Err(_) => format!(
                "{}: could not be read within `prepare_timeout` ({timeout:?})",
                path.display()
            ),
        };
        Err(parsed.locate(&pointer, error, None))
    });
    let (mut files, mut errors) = (Files::new(), Vec::new());
    for read in join_all(reads).await {
        match read {
            Ok((path, bytes)) => drop(files.insert(path, bytes)),
            Err(error) => errors.push(error),
        }
    }
    (files, errors)
}

/// Sees that every folder to be served is one.
pub(super) async fn look_for_folders(
    parsed: &Parsed,
    deadline: Instant,
    timeout: Duration,
) -> Result<(), Rejection> {
    let mut named = parsed.document.folder_pointers();
    let mut seen = HashSet::new();
    named.retain(|(folder, _)| seen.insert(folder.clone()));
    let looks = named.into_iter().map(|(path, pointer)| async move {
        let error = match tokio::time::timeout_at(deadline, files::folder(&path)).await {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => format!("{}: {error}", path.display()),
            Err(_) => format!(
                "{}: could not be looked at within `prepare_timeout` ({timeout:?})",
                path.display()
            ),
        };
        Some(parsed.locate(&pointer, error, None))
    });
    let errors: Vec<_> = join_all(looks).await.into_iter().flatten().collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Rejection::with(409, "not-prepared", errors))
    }
}
