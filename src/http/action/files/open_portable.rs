//! Opening below a root by the standard library alone, for systems without descriptor-relative opens. What a path means
//! is looked at before it is opened, so someone who can write below the root may race it; on unix nobody can.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::stat::{Kind, Stat};

/// How an open may go about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// From memory only: not possible here.
    Cached,
    /// May block.
    Full,
}

/// A folder that is served, without links in its path.
#[derive(Debug)]
pub(super) struct Root(PathBuf);

/// What was opened; a folder has no file.
#[derive(Debug)]
pub(super) struct Opened {
    file: Option<File>,
    path: PathBuf,
    pub(super) stat: Stat,
}

impl Root {
    pub(super) fn open(path: &Path, how: How) -> io::Result<Root> {
        match how {
            How::Cached => Err(io::ErrorKind::WouldBlock.into()),
            How::Full => std::fs::canonicalize(path).map(Root),
        }
    }

    /// Opens a path of the form `a/b`, without empty or dot segments; the empty one is the root itself.
    pub(super) fn get(&self, path: &str, follow: bool, how: How) -> io::Result<Opened> {
        if how == How::Cached {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut full = self.0.clone();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            full.push(name);
            if !follow && std::fs::symlink_metadata(&full)?.file_type().is_symlink() {
                return Err(io::ErrorKind::NotFound.into());
            }
        }
        let real = std::fs::canonicalize(&full)?;
        if !real.starts_with(&self.0) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let meta = std::fs::metadata(&real)?;
        let file = if meta.is_file() {
            Some(File::open(&real)?)
        } else {
            None
        };
        Ok(Opened {
            file,
            path: real,
            stat: stat(&meta),
        })
    }
}

impl Opened {
    /// At most `most` names in a folder, and whether there are more.
    pub(super) fn names(&self, most: usize) -> io::Result<(Vec<String>, bool)> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                if names.len() == most {
                    return Ok((names, true));
                }
                names.push(name);
            }
        }
        Ok((names, false))
    }

    pub(super) fn into_file(self) -> io::Result<File> {
        self.file.ok_or_else(|| io::ErrorKind::IsADirectory.into())
    }
}

/// What a file is. May block.
pub(super) fn stat_of(file: &File) -> io::Result<Stat> {
    file.metadata().map(|meta| stat(&meta))
}

fn stat(meta: &std::fs::Metadata) -> Stat {
    let since = |time: io::Result<SystemTime>| {
        let since = time.ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        since.map_or((0, 0), |d| {
            (
                i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
                d.subsec_nanos(),
            )
        })
    };
    Stat {
        kind: if meta.is_file() {
            Kind::File
        } else if meta.is_dir() {
            Kind::Folder
        } else {
            Kind::Other
        },
        // Without an identity nothing is kept in memory.
        device: 0,
        inode: 0,
        size: meta.len(),
        modified: since(meta.modified()),
        changed: since(meta.modified()),
    }
}

/// Reads at a place. May block. Only one reader has the file.
pub(super) fn read_at(mut file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    file.seek(SeekFrom::Start(offset))?;
    file.read(buffer)
}

/// Nothing is known to be in memory.
pub(super) fn read_at_once(_: &File, _: &mut [u8], _: u64) -> Option<usize> {
    None
}
