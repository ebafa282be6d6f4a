//! What needs no running process: `run`, `check`, `schema`.

use std::collections::{HashMap, HashSet};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tracing_subscriber::EnvFilter;

use super::args::{Check, Run};
use super::file::{Text, find_config};
use super::{Exit, complain, draw, print};
use crate::app::{self, App, StartError};
use crate::config::Diagnostic;
use crate::document::{Context, Document, Parsed, Refused};
use crate::log;
use crate::supervisor::SwapRecord;
use crate::supervisor::event::Kind;
use crate::tls;
use crate::tls::store;

/// What a process starts with, as findings and the first line name it.
struct Start<'a> {
    config: Option<&'a Path>,
    /// What runs without a file.
    embedded: Bytes,
    /// How that is called.
    name: &'a Path,
}

impl Start<'_> {
    /// What the first line says.
    fn from(&self) -> String {
        match self.config {
            Some(path) => path.display().to_string(),
            None => self.name.display().to_string(),
        }
    }

    /// Draws what the start has found in the configuration.
    fn findings(&self, record: &SwapRecord) {
        let bytes = match self.config {
            Some(path) => Text::again(path).map(|text| text.bytes).unwrap_or_default(),
            None => self.embedded.to_vec(),
        };
        draw::findings(&self.from(), &bytes, &record.errors, &record.warnings);
    }
}

/// Runs a file, or the built-in welcome page, until stopped.
pub(crate) fn run(run: Run) -> Exit {
    let config = find_config(run.config.as_deref());
    let start = Start {
        config: config.as_deref(),
        embedded: Bytes::from_static(app::WELCOME.as_bytes()),
        name: Path::new("the built-in welcome page"),
    };
    until_stopped(&start, Arc::new(|| find_config(None)), run.quiet)
}

/// Runs a document that the command line stands for until stopped.
pub(crate) fn run_text(name: &Path, text: String, quiet: bool) -> Exit {
    let start = Start {
        config: None,
        embedded: text.into(),
        name,
    };
    // There is no file to read again, and one that lies about is not meant.
    until_stopped(&start, Arc::new(|| None), quiet)
}

fn until_stopped(start: &Start<'_>, search: app::Search, quiet: bool) -> Exit {
    let _flush = log(quiet);
    let options = app::Options {
        config: start.config.map(Path::to_owned),
        embedded: start.embedded.clone(),
        search,
        signals: true,
        gate: None,
    };
    let app = match App::start(options) {
        Ok(app) => app,
        Err(StartError::Refused(record)) => return refused(start, &record),
        Err(error) => {
            complain(&error.to_string());
            return Exit::Other;
        }
    };
    // The newest of the first kind is the only one: nothing else starts a process.
    let swaps = app.handle().swaps();
    if let Some(boot) = swaps.iter().find(|swap| swap.kind == Kind::Boot) {
        start.findings(boot);
    }
    if !quiet {
        announce(&start.from(), &app);
    }
    match app.wait() {
        Ok(()) => Exit::Done,
        Err(error) => {
            complain(&error.to_string());
            Exit::Other
        }
    }
}

/// Prints what listens where.
fn announce(from: &str, app: &App) {
    let admin = app
        .handle()
        .admin_binding()
        .borrow()
        .as_ref()
        .map(|binding| match &binding.spec.tls {
            Some(_) => format!("https://{}", binding.listener.address()),
            None => binding.listener.address(),
        });
    print(&draw::started(
        from,
        &app.handle().status(),
        admin.as_deref(),
    ));
}

/// Shows why the first configuration was refused.
fn refused(start: &Start<'_>, record: &SwapRecord) -> Exit {
    start.findings(record);
    let detail = record
        .detail
        .as_deref()
        .unwrap_or("the configuration was refused");
    complain(&draw::summary(detail, record.errors.len()));
    Exit::of_status(record.status.unwrap_or(500))
}

/// Log lines go to standard error: `RUST_LOG`, else warnings with `--quiet`, else what `[log]` says. What is returned
/// writes the last ones.
fn log(quiet: bool) -> Option<log::Flush> {
    let fixed = match EnvFilter::try_from_default_env() {
        Ok(filter) => Some(filter),
        Err(_) => quiet.then(|| EnvFilter::new("warn")),
    };
    let (lines, flush) = log::to(std::io::stderr()).ok()?;
    log::switch::install(lines, fixed, std::io::stderr().is_terminal());
    Some(flush)
}

/// Says everything that is wrong with a file.
pub(crate) fn check(check: &Check) -> Exit {
    let Some(path) = find_config(check.config.as_deref()) else {
        complain("no configuration file: name one with -c, or put an evergate.toml here");
        return Exit::Other;
    };
    let text = match Text::read(&path) {
        Ok(text) => text,
        Err(message) => {
            complain(&message);
            return Exit::Other;
        }
    };
    let base = path.parent().map(Path::to_owned).unwrap_or_default();
    let base = if base.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        base
    };
    let context = Context {
        base,
        running: None,
    };
    let (errors, warnings, exit) = match Document::parse(&text.bytes, text.format, &context) {
        Ok(parsed) => {
            let mut missing = missing_files(&parsed);
            let mut warnings = parsed.warnings.clone();
            if missing.is_empty() {
                missing.extend(judge_htpasswd(&parsed));
                let (errors, more) = judge_certificates(&parsed);
                missing.extend(errors);
                missing.extend(judge_targets(&parsed));
                warnings.extend(more);
            }
            let refused = check.strict && !warnings.is_empty();
            let exit = match (refused, missing.is_empty()) {
                (true, _) => Exit::Invalid,
                (false, false) => Exit::NotPrepared,
                (false, true) => Exit::Done,
            };
            (missing, warnings, exit)
        }
        Err(Refused::Syntax(errors)) => (errors, vec![], Exit::Invalid),
        Err(Refused::Invalid { errors, warnings }) => (errors, warnings, Exit::Invalid),
        Err(Refused::Unavailable(errors)) => (errors, vec![], Exit::NotPrepared),
    };
    draw::findings(&text.name, &text.bytes, &errors, &warnings);
    match (exit, errors.len()) {
        (Exit::Done, _) => print(&format!("{}: ok\n", text.name)),
        (_, 0) => complain(&format!("{}: a warning refuses (--strict)", text.name)),
        (_, 1) => complain(&format!("{}: 1 error", text.name)),
        (_, count) => complain(&format!("{}: {count} errors", text.name)),
    }
    exit
}

/// The files and folders that a document names and that a start would miss. Nothing is read: a FIFO may have no writer
/// yet.
fn missing_files(parsed: &Parsed) -> Vec<Diagnostic> {
    let document = &parsed.document;
    // What `[defaults]` name is named by every server.
    let mut seen = HashSet::new();
    let of = |named: Vec<(PathBuf, String)>, folder| {
        let all = named.into_iter();
        all.map(move |(path, pointer)| (path, pointer, folder))
    };
    of(document.file_pointers(), false)
        .chain(of(document.target_files(), false))
        .chain(of(document.folder_pointers(), true))
        .chain(of(document.certificate_folders(), true))
        .filter(|(path, _, _)| seen.insert(path.clone()))
        .filter_map(|(path, pointer, folder)| {
            let why = match std::fs::metadata(&path) {
                Ok(meta) if meta.is_dir() == folder => return None,
                Ok(_) if folder => "is not a folder".to_owned(),
                Ok(_) => "is a folder, not a file".to_owned(),
                Err(error) => error.to_string(),
            };
            let message = format!("{}: {why}", path.display());
            Some(parsed.locate(&pointer, message, None))
        })
        .collect()
}

/// Errors of the files with users that a document names. One that is no regular file (a FIFO may have no writer yet) is
/// left to the start.
fn judge_htpasswd(parsed: &Parsed) -> Vec<Diagnostic> {
    let document = &parsed.document;
    let mut files = HashMap::new();
    for (path, pointer) in document.htpasswd_pointers() {
        if !std::fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
            continue;
        }
        match std::fs::read(&path) {
            Ok(text) => drop(files.insert(path, Bytes::from(text))),
            Err(error) => {
                let message = format!("{}: {error}", path.display());
                return vec![parsed.locate(&pointer, message, None)];
            }
        }
    }
    let faults = document.judge_htpasswd(&files).into_iter();
    faults
        .map(|f| parsed.locate(&f.pointer, f.message, f.help))
        .collect()
}

/// Errors of the files of targets. One that is no regular file is left to a start.
fn judge_targets(parsed: &Parsed) -> Vec<Diagnostic> {
    let mut document = parsed.document.clone();
    let mut errors = Vec::new();
    let mut files: HashMap<PathBuf, Vec<u8>> = HashMap::new();
    for (path, pointer) in document.target_files() {
        if !std::fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
            continue;
        }
        match std::fs::read(&path) {
            Ok(bytes) => drop(files.insert(path, bytes)),
            Err(error) => {
                let message = format!("{}: {error}", path.display());
                errors.push(parsed.locate(&pointer, message, None));
            }
        }
    }
    let faults = Arc::make_mut(&mut document)
        .take_targets(|path| files.get(path).map(|bytes| &bytes[..]), None);
    let told = faults.into_iter();
    errors.extend(told.map(|(pointer, message, _)| parsed.locate(&pointer, message, None)));
    errors
}

/// Errors and warnings of the certificates that a document names. Where one of their files is no regular one (a FIFO may
/// have no writer yet), a start will tell.
fn judge_certificates(parsed: &Parsed) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
    let document = &parsed.document;
    let mut named = document.certificate_pointers();
    named.extend(document.upstream_pointers());
    for (folder, pointer) in document.certificate_folders() {
        match store::pairs(&folder) {
            Ok(paths) => named.extend(paths.into_iter().map(|path| (path, pointer.clone()))),
            Err(error) => {
                let message = format!("{}: {error}", folder.display());
                return (vec![parsed.locate(&pointer, message, None)], vec![]);
            }
        }
    }
    let mut files = HashMap::new();
    for (path, pointer) in named {
        if !std::fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
            return (vec![], vec![]);
        }
        match std::fs::read(&path) {
            Ok(text) => drop(files.insert(path, Bytes::from(text))),
            Err(error) => {
                let message = format!("{}: {error}", path.display());
                return (vec![parsed.locate(&pointer, message, None)], vec![]);
            }
        }
    }
    let located = |faults: Vec<store::Fault>| {
        let place = |f: store::Fault| parsed.locate(&f.pointer, f.message, f.help.map(Into::into));
        let mut all: Vec<_> = faults.into_iter().map(place).collect();
        all.dedup();
        all
    };
    let shared = match tls::Shared::new() {
        Ok(shared) => shared,
        Err(error) => {
            let message = format!("TLS is not possible here: {error}");
            return (vec![parsed.locate("", message, None)], vec![]);
        }
    };
    match store::load(document, &files, &files, None, &shared) {
        Ok((_, _, warnings)) => (vec![], located(warnings)),
        Err(errors) => (located(errors), vec![]),
    }
}

/// Prints the JSON Schema of the configuration.
pub(crate) fn schema() -> Exit {
    print(&format!("{:#}\n", Document::json_schema()));
    Exit::Done
}
