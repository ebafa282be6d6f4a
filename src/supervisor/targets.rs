//! `targets_file`: who writes it changes an upstream's targets without touching the document.
//!
//! A change that is right leads to a swap of the running document to itself, with the new targets in it. That takes the way
//! of every other change, so it is as lossless, planned, shown and ordered as one; the document, and with it its ETag, stays
//! what it was. A file that is wrong, or gone, changes nothing and is told of once.
//!
//! Files are looked at once a second, by name: editors, ConfigMaps and network mounts replace files in ways of which only
//! their content tells.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::event::{Kind, Outcome};
use super::request::{Source, SwapRequest};
use super::{Handle, files};
use crate::config::upstream::UpstreamSpec;
use crate::document::{Document, targets};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long looking at one may take.
const READ: Duration = Duration::from_secs(10);
/// A file may change again within the same tick of its clock: one that is as young as this is read each time.
const YOUNG: Duration = Duration::from_secs(3);
/// The longest wait before a swap that was refused for another reason is tried again; the first is a second.
const RETRY: Duration = Duration::from_secs(60);

/// What the files said when they were read, by path.
pub(super) type TargetLists = HashMap<PathBuf, Bytes>;

/// Looks at the files of one generation; it ends when this is dropped.
pub(super) struct Watch {
    _task: AbortOnDropHandle<()>,
}

impl Watch {
    /// Watches the files that `document` names; none if it names none.
    pub(super) fn start(document: &Document, seen: TargetLists, handle: Handle) -> Option<Watch> {
        let mut watched = Vec::new();
        for upstream in document.upstreams.values() {
            if let Some(path) = &upstream.targets_file {
                watched.push(Watched {
                    path: path.clone(),
                    upstream: upstream.clone(),
                    stamp: None,
                    seen: seen.get(path).cloned(),
                    silent: false,
                });
            }
        }
        if watched.is_empty() {
            return None;
        }
        let task = tokio::spawn(watch(watched, handle));
        Some(Watch {
            _task: AbortOnDropHandle::new(task),
        })
    }
}

async fn watch(mut watched: Vec<Watched>, handle: Handle) {
    let mut refused = 0_u32;
    let mut again: Option<Instant> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let mut changed = None;
        for one in &mut watched {
            if one.look().await {
                changed = Some(one.path.clone());
            }
        }
        let due = again.is_some_and(|at| Instant::now() >= at);
        if changed.is_none() && !due {
            continue;
        }
        let path = changed.unwrap_or_else(|| watched[0].path.clone());
        match swap(&handle, &path).await {
            // Committed: the new generation watches now.
            Ok(()) => (refused, again) = (0, None),
            Err(why) => {
                let wait = LOOK.saturating_mul(1 << refused.min(6)).min(RETRY);
                refused = refused.saturating_add(1);
                again = Some(Instant::now() + wait);
                let path = path.display();
                tracing::warn!(%path, why, "targets changed, but the swap was refused; again in {wait:?}");
            }
        }
    }
}

async fn swap(handle: &Handle, path: &Path) -> Result<(), String> {
    let request = SwapRequest {
        kind: Kind::Reload,
        source: Source::Running,
        if_match: None,
        drain_timeout: None,
        strict: false,
        turn: None,
        actor: format!("targets_file {}", path.display()),
        read_only: false,
    };
    let id = handle.submit(request).map_err(|error| error.to_string())?;
    match handle.wait(id, true).await {
        Some(record) if record.outcome == Some(Outcome::Rejected) => {
            Err(record.detail.unwrap_or_default())
        }
        _ => Ok(()),
    }
}

/// One file.
struct Watched {
    path: PathBuf,
    upstream: UpstreamSpec,
    /// Of what was read last.
    stamp: Option<Stamp>,
    /// What it said last, right or wrong.
    seen: Option<Bytes>,
    /// It has been said that it cannot be read.
    silent: bool,
}

/// Tells, without reading it, that a file is most likely the same.
#[derive(PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    #[cfg(unix)]
    inode: (u64, u64),
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Stamp {
        Stamp {
            modified: meta.modified().ok(),
            len: meta.len(),
            #[cfg(unix)]
            inode: {
                use std::os::unix::fs::MetadataExt;
                (meta.dev(), meta.ino())
            },
        }
    }

    fn is_young(&self) -> bool {
        let age = self.modified.map(|at| at.elapsed().unwrap_or_default());
        age.is_none_or(|age| age < YOUNG)
    }
}

impl Watched {
    /// Whether it says something new that is right.
    async fn look(&mut self) -> bool {
        let meta = tokio::fs::metadata(&self.path).await.ok();
        if meta
            .as_ref()
            .is_some_and(|meta| !meta.is_file() && !meta.is_dir())
        {
            // A pipe says what it has to say once, to a swap that asks.
            return false;
        }
        let stamp = meta.as_ref().map(Stamp::of);
        let same = stamp.is_some() && stamp == self.stamp;
        if same && stamp.as_ref().is_some_and(|stamp| !stamp.is_young()) {
            return false;
        }
        let path = self.path.display();
        let read = tokio::time::timeout(READ, files::read(&self.path)).await;
        let bytes = match read.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(bytes) => bytes,
            Err(error) => {
                if !std::mem::replace(&mut self.silent, true) {
                    tracing::warn!(%path, %error, "targets cannot be read; the old ones stay");
                }
                return false;
            }
        };
        self.stamp = stamp;
        self.silent = false;
        if self.seen.as_ref() == Some(&bytes) {
            return false;
        }
        let parsed = targets(&bytes, &self.path, &self.upstream);
        self.seen = Some(bytes);
        match parsed {
            Ok(targets) => targets != self.upstream.targets,
            Err(faults) => {
                let more = faults.len() - 1;
                let fault = &faults[0];
                tracing::warn!(more, "{fault}; the old targets stay");
                false
            }
        }
    }
}
