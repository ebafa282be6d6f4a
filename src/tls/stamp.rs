//! How files lie there, so that a look every second tells whether one has changed without reading it.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::store;

/// A file that changed so short a time ago may have changed again without a trace: clocks of file systems are coarse.
const FRESH: Duration = Duration::from_secs(2);

/// One look at some files and folders.
#[derive(Debug, Clone, Default)]
pub struct Stamps {
    /// `None`: it cannot be looked at.
    files: BTreeMap<PathBuf, Option<Stamp>>,
    fresh: bool,
}

/// What changes with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
    /// Where it is, so that another file under the same name is another one: device, number, time of the last change of
    /// either.
    place: (u64, u64, i64, i64),
}

impl Stamps {
    /// Looks at files, and at the certificates and keys in folders. Blocks.
    pub fn take(files: &[PathBuf], folders: &[PathBuf]) -> Stamps {
        let now = SystemTime::now();
        let mut out = Stamps::default();
        for path in files {
            out.look(path, now);
        }
        for folder in folders {
            match store::pairs_found(folder) {
                Ok(all) => all.iter().for_each(|path| out.look(path, now)),
                Err(_) => drop(out.files.insert(folder.clone(), None)),
            }
        }
        out
    }

    fn look(&mut self, path: &Path, now: SystemTime) {
        // What is no regular file (a pipe) cannot be read twice: it is read by a swap only.
        let meta = std::fs::metadata(path).ok().filter(Metadata::is_file);
        let stamp = meta.map(|meta| Stamp::of(&meta));
        let modified = stamp.and_then(|stamp| stamp.modified);
        self.fresh |= modified.is_some_and(|at| at + FRESH > now);
        self.files.insert(path.to_owned(), stamp);
    }

    /// True if nothing has changed between the two looks, as far as one can see.
    pub fn same(&self, other: &Stamps) -> bool {
        self.files == other.files
    }

    /// True if the looks could miss a change that came right after them.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

impl Stamp {
    #[cfg(unix)]
    fn of(meta: &Metadata) -> Stamp {
        use std::os::unix::fs::MetadataExt;
        Stamp {
            len: meta.len(),
            modified: meta.modified().ok(),
            place: (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()),
        }
    }

    #[cfg(not(unix))]
    fn of(meta: &Metadata) -> Stamp {
        Stamp {
            len: meta.len(),
            modified: meta.modified().ok(),
            place: (0, 0, 0, 0),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_look_sees_files_that_come_change_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("a.crt"), dir.path().join("b.pem"));
        let look = || Stamps::take(std::slice::from_ref(&other), &[dir.path().to_owned()]);
        let empty = look();
        assert!(empty.same(&look()) && !empty.is_fresh());
        std::fs::write(&one, "1").unwrap();
        let first = look();
        assert!(!first.same(&empty) && first.is_fresh());
        // Another file of the same length and time under the same name.
        let time = std::fs::metadata(&one).unwrap().modified().unwrap();
        let next = dir.path().join("next");
        std::fs::write(&next, "2").unwrap();
        let file = std::fs::File::options().write(true).open(&next).unwrap();
        file.set_modified(time).unwrap();
        std::fs::rename(&next, &one).unwrap();
        let second = look();
        assert!(!second.same(&first));
        std::fs::write(&other, "").unwrap();
        assert!(!look().same(&second));
        std::fs::remove_file(&other).unwrap();
        assert!(look().same(&second));
        let gone = Stamps::take(&[], &[dir.path().join("none")]);
        assert!(gone.same(&Stamps::take(&[], &[dir.path().join("none")])) && !gone.is_empty());
    }
}
