//! What a request's candidates lead to.

use std::io;
use std::sync::Arc;

use super::cache::{self, Kept};
use super::open::{How, Opened, Root};
use super::path::{Place, join};
use super::stat::Kind;
use crate::config::http::{FileCoding, FilesSpec};

/// What to look for.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// The decoded path of the request.
    pub(super) path: String,
    /// In order; the first that is there.
    pub(super) candidates: Vec<String>,
    /// That the client takes, best first.
    pub(super) codings: Vec<FileCoding>,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    File(FoundFile),
    /// A folder, asked for without the slash that relative links in its page need.
    Redirect,
    /// A folder whose list is to be shown, at this place below the root.
    Folder(Opened, String),
    Missing,
    /// There, but this process may not read it.
    Forbidden,
}

#[derive(Debug)]
pub(super) struct FoundFile {
    pub(super) opened: Opened,
    /// Its name without a coding's ending, which tells its type.
    pub(super) name: String,
    pub(super) coding: Option<FileCoding>,
    /// What it holds, if that is in memory.
    pub(super) contents: Option<Arc<Kept>>,
}

impl FoundFile {
    fn new(opened: Opened, name: String, coding: Option<FileCoding>) -> FoundFile {
        FoundFile {
            contents: cache::get(&opened.stat),
            opened,
            name,
            coding,
        }
    }
}

/// Looks. With [`How::Full`] it may block.
///
/// # Errors
/// What says nothing about the file: `WouldBlock`, too many descriptors, a broken disk.
pub(super) fn find(spec: &FilesSpec, wanted: &Wanted, how: How) -> io::Result<Found> {
    let root = match Root::open(&spec.root, how) {
        Ok(root) => root,
        Err(error) => {
            return match Absence::of(error)? {
                Absence::Missing => Ok(Found::Missing),
                Absence::Forbidden => Ok(Found::Forbidden),
            };
        }
    };
    let mut search = Search {
        spec,
        root,
        how,
        forbidden: false,
    };
    for candidate in &wanted.candidates {
        let Some(place) = Place::new(candidate, spec.hidden) else {
            continue;
        };
        let Some(opened) = search.get(&place.path)? else {
            continue;
        };
        match opened.stat.kind {
            Kind::File if !place.folder => return search.best(opened, place.path, wanted),
            Kind::Folder if place.folder => {
                // `/dir` found by `{path}/`.
                let bare = !wanted.path.ends_with('/')
                    && candidate.strip_suffix('/') == Some(wanted.path.as_str());
                if let Some((index, path)) = search.index(&place.path)? {
                    return if bare {
                        Ok(Found::Redirect)
                    } else {
                        search.best(index, path, wanted)
                    };
                }
                if spec.browse {
                    return Ok(if bare {
                        Found::Redirect
                    } else {
                        Found::Folder(opened, place.path)
                    });
                }
            }
            Kind::File | Kind::Folder | Kind::Other => {}
        }
    }
    Ok(if search.forbidden {
        Found::Forbidden
    } else {
        Found::Missing
    })
}

struct Search<'s> {
    spec: &'s FilesSpec,
    root: Root,
    how: How,
    /// Something was there that may not be read.
    forbidden: bool,
}

impl Search<'_> {
    fn get(&mut self, path: &str) -> io::Result<Option<Opened>> {
        match self.root.get(path, self.spec.follow_symlinks, self.how) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) => {
                self.forbidden |= matches!(Absence::of(error)?, Absence::Forbidden);
                Ok(None)
            }
        }
    }

    fn index(&mut self, folder: &str) -> io::Result<Option<(Opened, String)>> {
        for name in &self.spec.index {
            let Some(place) = Place::new(&join(folder, name), self.spec.hidden) else {
                continue;
            };
            if let Some(opened) = self.get(&place.path)?
                && opened.stat.kind == Kind::File
            {
                return Ok(Some((opened, place.path)));
            }
        }
        Ok(None)
    }

    /// The file, or the sibling that the client would rather have.
    fn best(&mut self, opened: Opened, path: String, wanted: &Wanted) -> io::Result<Found> {
        for coding in wanted.codings.iter().filter(|_| may_have_siblings(&path)) {
            let ending = match coding {
                FileCoding::Brotli => "br",
                FileCoding::Zstd => "zst",
                FileCoding::Gzip => "gz",
            };
            if let Some(sibling) = self.get(&format!("{path}.{ending}"))?
                && sibling.stat.kind == Kind::File
            {
                return Ok(Found::File(FoundFile::new(sibling, path, Some(*coding))));
            }
        }
        Ok(Found::File(FoundFile::new(opened, path, None)))
    }
}

/// False for what is compressed by its nature: nobody keeps siblings of it, and its answers need no `Vary`.
pub(super) fn may_have_siblings(name: &str) -> bool {
    let kind = mime_guess::from_path(name).first_raw().unwrap_or_default();
    match kind.split_once('/') {
        Some(("image", sub)) => matches!(sub, "svg+xml" | "bmp" | "x-icon"),
        Some(("video" | "audio", _)) => false,
        Some((_, sub)) => !matches!(
            sub,
            "zip" | "gzip" | "x-7z-compressed" | "x-bzip2" | "x-xz" | "zstd" | "woff" | "woff2"
        ),
        None => true,
    }
}

/// Why something can't be had, as far as that is an answer.
enum Absence {
    Missing,
    Forbidden,
}

impl Absence {
    fn of(error: io::Error) -> io::Result<Absence> {
        #[cfg(unix)]
        {
            use rustix::io::Errno;
            match Errno::from_io_error(&error) {
                // A link that is not followed, or leads out; a socket; a name that is too long for any file.
                Some(
                    Errno::NOENT
                    | Errno::NOTDIR
                    | Errno::LOOP
                    | Errno::MLINK
                    | Errno::XDEV
                    | Errno::NXIO
                    | Errno::NODEV
                    | Errno::NAMETOOLONG
                    | Errno::INVAL
                    | Errno::ILSEQ,
                ) => return Ok(Absence::Missing),
                Some(Errno::ACCESS | Errno::PERM) => return Ok(Absence::Forbidden),
                _ => {}
            }
        }
        match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::InvalidInput => Ok(Absence::Missing),
            io::ErrorKind::PermissionDenied => Ok(Absence::Forbidden),
            _ => Err(error),
        }
    }
}
