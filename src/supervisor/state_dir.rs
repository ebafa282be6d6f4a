//! The state folder and its lock: with a folder of its own, a second process is a stranger; with ours it refuses to start.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::config::admin::AdminSpec;
use crate::config::scalar::ListenAddr;
use crate::document::Document;

/// Held for the life of the process.
#[derive(Debug)]
pub(super) struct StateLock {
    _file: File,
    dir: PathBuf,
}

impl StateLock {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// The state folder that a process with this document has.
pub fn folder(document: &Document) -> Option<PathBuf> {
    let given = document.runtime.state_dir.clone();
    given.or_else(|| default_dir(&document.admin))
}

#[derive(Debug)]
pub(super) enum LockError {
    /// Another process holds it.
    Held(PathBuf),
    /// It cannot be written: a warning, nothing is kept.
    Unwritable(PathBuf, io::Error),
}

/// The platform's state folder for this admin address; `None` where the address is not one for sure (port 0).
fn default_dir(admin: &AdminSpec) -> Option<PathBuf> {
    let name: String = match &admin.listen {
        ListenAddr::Tcp(address) if address.port() == 0 => return None,
        other => other
            .to_string()
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '.' {
                    c
                } else {
                    '_'
                }
            })
            .collect(),
    };
    let base = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| {
            let home = std::env::var_os("HOME").map(PathBuf::from)?;
            Some(home.join(".local").join("state"))
        })?;
    Some(base.join("evergate").join(name))
}

pub(super) fn lock(dir: &Path) -> Result<StateLock, LockError> {
    let unwritable = |error| LockError::Unwritable(dir.to_owned(), error);
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(dir).map_err(unwritable)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))
        .map_err(unwritable)?;
    match file.try_lock() {
        Ok(()) => Ok(StateLock {
            _file: file,
            dir: dir.to_owned(),
        }),
        Err(TryLockError::WouldBlock) => Err(LockError::Held(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(unwritable(error)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_holder() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a").join("b");
        let held = lock(&dir).unwrap();
        assert!(matches!(lock(&dir), Err(LockError::Held(_))));
        drop(held);
        lock(&dir).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(lock(&file), Err(LockError::Unwritable(..))));
    }
}
