//! Opening below a root and nowhere else. The kernel does it in one step where it can (`openat2`); elsewhere each
//! component is opened by itself and no link is followed but by us. Nothing is opened that could block: a FIFO opens at
//! once and is then seen not to be a file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::stat::{Kind, Stat};

/// Links that one path may lead through.
const MAX_LINKS: usize = 40;

/// How an open may go about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// From what the kernel holds in memory only, never waiting for a disk or a network; `WouldBlock` if that does not do.
    /// What it opens can't be read.
    Cached,
    /// May block.
    Full,
}

/// A folder that is served.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

/// What was opened: a file, a folder, or something else that is not to be touched.
#[derive(Debug)]
pub(super) struct Opened {
    file: File,
    pub(super) stat: Stat,
}

impl Root {
    /// The root's own path is the operator's: links in it are followed, so that a deployment may switch it.
    pub(super) fn open(path: &Path, how: How) -> io::Result<Root> {
        let flags = path_only() | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match how {
            #[cfg(target_os = "linux")]
            How::Cached => linux::cached(rustix::fs::CWD, path, flags, None).map(Root),
            #[cfg(not(target_os = "linux"))]
            How::Cached => Err(io::ErrorKind::WouldBlock.into()),
            How::Full => Ok(Root(rustix::fs::open(path, flags, Mode::empty())?)),
        }
    }

    /// Opens a path of the form `a/b`, without empty or dot segments; the empty one is the root itself.
    ///
    /// # Errors
    /// Those of the system; `ELOOP` for a link that is not followed, `EXDEV` for one that leads out.
    pub(super) fn get(&self, path: &str, follow: bool, how: How) -> io::Result<Opened> {
        let path = if path.is_empty() { "." } else { path };
        match how {
            #[cfg(target_os = "linux")]
            How::Cached => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let fd = linux::cached(&self.0, Path::new(path), flags, Some(follow))?;
                let stat = linux::cached_stat(&fd)?;
                Ok(Opened {
                    file: fd.into(),
                    stat,
                })
            }
            #[cfg(not(target_os = "linux"))]
            How::Cached => Err(io::ErrorKind::WouldBlock.into()),
            How::Full => {
                let fd = self.open_full(path, follow)?;
                let stat = stat_of(&fd)?;
                Ok(Opened {
                    file: fd.into(),
                    stat,
                })
            }
        }
    }

    fn open_full(&self, path: &str, follow: bool) -> io::Result<OwnedFd> {
        #[cfg(target_os = "linux")]
        if let Some(opened) = linux::beneath(&self.0, path, follow) {
            return opened;
        }
        self.open_by_component(path, follow)
    }

    /// Without the kernel's help.
    fn open_by_component(&self, path: &str, follow: bool) -> io::Result<OwnedFd> {
        let mut todo: VecDeque<Vec<u8>> = VecDeque::from([path.as_bytes().to_vec()]);
        split_first(&mut todo);
        // The folders from the root down to where we stand.
        let mut stack = vec![reopen(&self.0)?];
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            let Some(here) = stack.last() else {
                return Err(Errno::XDEV.into());
            };
            let last = todo.is_empty();
            match &name[..] {
                b"" | b"." if !last => continue,
                b"" | b"." => return Ok(reopen(here)?),
                b".." => {
                    stack.pop();
                    if stack.is_empty() {
                        return Err(Errno::XDEV.into());
                    }
                    if last {
                        todo.push_back(b".".to_vec());
                    }
                    continue;
                }
                _ => {}
            }
            let more = if last {
                OFlags::empty()
            } else {
                path_only() | OFlags::DIRECTORY
            };
            let flags = readable() | OFlags::NOFOLLOW | more;
            match rustix::fs::openat(here, &name[..], flags, Mode::empty()) {
                Ok(fd) if last => return Ok(fd),
                Ok(fd) => stack.push(fd),
                // A link is told by different names on different systems; whether it is one, reading it tells.
                Err(error @ (Errno::LOOP | Errno::MLINK | Errno::NOTDIR)) => {
                    let Ok(target) = rustix::fs::readlinkat(here, &name[..], Vec::new()) else {
                        return Err(error.into());
                    };
                    links += 1;
                    if !follow || links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let target = target.into_bytes();
                    if target.first() == Some(&b'/') {
                        return Err(Errno::XDEV.into());
                    }
                    todo.push_front(target);
                    split_first(&mut todo);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::NOENT.into())
    }
}

/// Puts the segments of the first path in its place.
fn split_first(todo: &mut VecDeque<Vec<u8>>) {
    let Some(path) = todo.pop_front() else { return };
    for segment in path.rsplit(|b| *b == b'/') {
        todo.push_front(segment.to_vec());
    }
}

fn reopen(folder: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(folder, ".", readable() | OFlags::DIRECTORY, Mode::empty())
}

fn readable() -> OFlags {
    OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC
}

/// A folder that is passed through needs the right to enter it only, where the system knows the difference.
fn path_only() -> OFlags {
    #[cfg(target_os = "linux")]
    let flags = OFlags::PATH;
    #[cfg(not(target_os = "linux"))]
    let flags = OFlags::RDONLY;
    flags
}

/// What a descriptor is of. May block.
pub(super) fn stat_of(fd: impl AsFd) -> io::Result<Stat> {
    let stat = rustix::fs::fstat(fd)?;
    // The fields' types differ between systems, and so do the signs.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    Ok(Stat {
        kind: kind(FileType::from_raw_mode(stat.st_mode)),
        device: stat.st_dev as u64,
        inode: stat.st_ino as u64,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
        changed: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
    })
}

fn kind(kind: FileType) -> Kind {
    match kind {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Folder,
        _ => Kind::Other,
    }
}

impl Opened {
    /// At most `most` names in a folder, and whether there are more. What is not UTF-8 can't be asked for, so it is left out.
    pub(super) fn names(&self, most: usize) -> io::Result<(Vec<String>, bool)> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.file)? {
            let entry = entry?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(_) if names.len() == most => return Ok((names, true)),
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok((names, false))
    }
}

impl Opened {
    pub(super) fn into_file(self) -> io::Result<File> {
        Ok(self.file)
    }
}

/// Reads at a place, without the file's own position. May block.
pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

/// Reads what the system holds in memory already; `None` if that is nothing, or can't be known.
pub(super) fn read_at_once(file: &File, buffer: &mut [u8], offset: u64) -> Option<usize> {
    #[cfg(target_os = "linux")]
    {
        let mut buffers = [io::IoSliceMut::new(buffer)];
        rustix::io::preadv2(
            file,
            &mut buffers,
            offset,
            rustix::io::ReadWriteFlags::NOWAIT,
        )
        .ok()
        .filter(|n| *n > 0)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, buffer, offset);
        None
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::{AtFlags, ResolveFlags, StatxFlags};

    use super::*;

    /// Tries while names are being moved about under a lookup.
    const TRIES: usize = 4;

    /// The system has no `openat2` (before Linux 5.6), or a sandbox forbids it.
    static MISSING: AtomicBool = AtomicBool::new(false);

    /// `None`: there is no such call here.
    fn openat2(
        at: impl AsFd,
        path: &Path,
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> Option<rustix::io::Result<OwnedFd>> {
        if MISSING.load(Ordering::Relaxed) {
            return None;
        }
        match rustix::fs::openat2(at, path, flags, Mode::empty(), resolve) {
            // A sandbox may say EPERM; opening to read never does otherwise but for O_NOATIME, which is not asked for.
            Err(Errno::NOSYS | Errno::PERM) => {
                MISSING.store(true, Ordering::Relaxed);
                None
            }
            result => Some(result),
        }
    }

    fn limits(follow: bool) -> ResolveFlags {
        let links = if follow {
            ResolveFlags::empty()
        } else {
            ResolveFlags::NO_SYMLINKS
        };
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | links
    }

    /// From memory. `beneath`: below `at`, following links or not.
    pub(super) fn cached(
        at: impl AsFd,
        path: &Path,
        flags: OFlags,
        beneath: Option<bool>,
    ) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::CACHED | beneath.map_or(ResolveFlags::empty(), limits);
        match openat2(at, path, flags, resolve) {
            Some(Ok(fd)) => Ok(fd),
            // INVAL: before Linux 5.12.
            None | Some(Err(Errno::AGAIN | Errno::INVAL)) => Err(io::ErrorKind::WouldBlock.into()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Like [`stat_of`], from memory.
    pub(super) fn cached_stat(fd: &OwnedFd) -> io::Result<Stat> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(fd, "", flags, StatxFlags::BASIC_STATS)
            .map_err(|_| io::ErrorKind::WouldBlock)?;
        let mode = u32::from(stat.stx_mode);
        Ok(Stat {
            kind: kind(FileType::from_raw_mode(mode)),
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            size: stat.stx_size,
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        })
    }

    /// `None`: there is no such call here.
    pub(super) fn beneath(root: &OwnedFd, path: &str, follow: bool) -> Option<io::Result<OwnedFd>> {
        let mut tries = 0;
        loop {
            match openat2(root, Path::new(path), readable(), limits(follow))? {
                // Something was renamed while `..` of a link was looked up.
                Err(Errno::AGAIN) if tries < TRIES => tries += 1,
                result => return Some(result.map_err(io::Error::from)),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    /// A tree with links of every kind; outside of `root` there is only what must not be seen.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("root/a/b")).unwrap();
        std::fs::create_dir_all(at("outside/a")).unwrap();
        for file in ["root/f", "root/a/f", "root/a/b/f"] {
            std::fs::write(at(file), "inside").unwrap();
        }
        for file in ["outside/f", "outside/a/f"] {
            std::fs::write(at(file), "OUTSIDE").unwrap();
        }
        for (target, link) in [
            ("../outside", "root/out"),
            ("../outside/f", "root/outf"),
            ("../../outside", "root/a/out"),
            ("a/f", "root/in"),
            ("../a", "root/a/back"),
            ("../f", "root/a/upf"),
            ("..", "root/up"),
            ("loop", "root/loop"),
            ("../root/f", "root/round"),
            ("/etc", "root/etc"),
            ("/proc/self/root", "root/magic"),
        ] {
            symlink(target, at(link)).unwrap();
        }
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("root/fifo"),
            FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        dir
    }

    fn text(fd: OwnedFd) -> Option<String> {
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).ok()?;
        Some(text)
    }

    #[test]
    fn links_are_followed_inside_and_only_if_asked_for() {
        let dir = tree();
        let root = Root::open(&dir.path().join("root"), How::Full).unwrap();
        let kind = |path: &str, follow| root.get(path, follow, How::Full).map(|o| o.stat.kind);
        for (path, plain, followed) in [
            ("f", true, true),
            ("a/b/f", true, true),
            ("in", false, true),
            ("a/back/f", false, true),
            ("a/upf", false, true),
            ("out/f", false, false),
            ("outf", false, false),
            ("a/out/f", false, false),
            ("up/root/f", false, false),
            ("round", false, false),
            ("loop", false, false),
            ("etc/passwd", false, false),
            ("magic/etc/passwd", false, false),
            ("none", false, false),
            ("f/x", false, false),
        ] {
            assert_eq!(
                kind(path, false).is_ok_and(|k| k == Kind::File),
                plain,
                "{path}"
            );
            assert_eq!(
                kind(path, true).is_ok_and(|k| k == Kind::File),
                followed,
                "{path}"
            );
            for follow in [false, true] {
                let ours = root.open_by_component(path, follow).is_ok();
                assert_eq!(ours, if follow { followed } else { plain }, "{path}");
            }
        }
        assert_eq!(kind("", false).unwrap(), Kind::Folder);
        assert_eq!(kind("a", false).unwrap(), Kind::Folder);
        // Opened without waiting for a writer.
        assert_eq!(kind("fifo", false).unwrap(), Kind::Other);
        assert!(root.open_by_component("fifo", false).is_ok());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn from_memory_it_is_the_same_or_nothing() {
        let dir = tree();
        let root = Root::open(&dir.path().join("root"), How::Full).unwrap();
        for path in ["f", "a/b/f", "a", "in", "out/f", "none", "fifo"] {
            for follow in [false, true] {
                let full = root.get(path, follow, How::Full);
                match root.get(path, follow, How::Cached) {
                    Ok(cached) => assert_eq!(cached.stat, full.unwrap().stat, "{path}"),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), full.unwrap_err().raw_os_error())
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn no_path_reads_what_is_outside(
            names in prop::collection::vec(
                prop::sample::select(vec![
                    "a", "b", "f", "..", ".", "out", "outf", "in", "back", "up", "upf", "loop", "round", "etc", "magic",
                    "root", "outside", "passwd", "%2e%2e",
                ]),
                0..7,
            ),
            follow: bool,
        ) {
            static TREE: std::sync::LazyLock<tempfile::TempDir> = std::sync::LazyLock::new(tree);
            let root = Root::open(&TREE.path().join("root"), How::Full).unwrap();
            let path = names.join("/");
            let ours = root.open_by_component(&path, follow).ok().and_then(text);
            prop_assert!(ours.as_deref().is_none_or(|t| t == "inside"), "{path}: {ours:?}");
            // The kernel's resolution says the same.
            if let Ok(opened) = root.open_full(&path, follow) {
                prop_assert_eq!(text(opened), ours);
            } else {
                prop_assert_eq!(ours, None);
            }
        }
    }
}
