//! Unix sockets: bound under a temporary name beside the path, put in place by a rename when they listen. A path where
//! somebody answers is taken; one where nobody does is stale. Removal unlinks only our own file.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

/// Permissions of a socket that only our own user (and root) may connect to.
pub const PRIVATE: u32 = 0o600;
/// Permissions of a socket that serves everybody who may enter its folder, as a loopback port would.
pub const PUBLIC: u32 = 0o666;

/// Keeps the temporary names of this process apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Bound under a temporary name; dropping it removes that.
#[derive(Debug)]
pub struct Reserved {
    socket: Option<Socket>,
    temporary: PathBuf,
    path: PathBuf,
}

/// Reserves `path` with the permissions `mode`.
///
/// # Errors
/// `AddrInUse` when somebody answers there or something else than a socket is there.
pub fn reserve(path: &Path, mode: u32) -> io::Result<Reserved> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(taken("something that is not a socket is there"));
        }
        Ok(_) => refuse_answered(path)?,
    }
    let mut temporary = path.as_os_str().to_owned();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}-{number}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    // Of a process with our id that died.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = open()?;
    socket.bind(&SockAddr::unix(&temporary)?)?;
    let reserved = Reserved {
        socket: Some(socket),
        temporary,
        path: path.to_owned(),
    };
    std::fs::set_permissions(&reserved.temporary, std::fs::Permissions::from_mode(mode))?;
    Ok(reserved)
}

fn taken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, why)
}

fn open() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Asks whether somebody is behind `path`, without waiting: one whose queue is full is there too.
fn refuse_answered(path: &Path) -> io::Result<()> {
    match open()?.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(taken("somebody listens there")),
    }
}

impl Reserved {
    /// As it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Listens with a queue of `backlog` and takes the path over.
    ///
    /// # Errors
    /// Those of `listen` and `rename`, and `AddrInUse` when somebody took the path since; it is untouched then.
    pub fn listen(mut self, backlog: i32) -> io::Result<Listener> {
        let socket = self.socket.take().ok_or(io::ErrorKind::NotConnected)?;
        socket.listen(backlog)?;
        let node = node(&self.temporary)?;
        refuse_answered(&self.path)?;
        std::fs::rename(&self.temporary, &self.path)?;
        Ok(Listener {
            socket: UnixListener::from(socket),
            path: std::mem::take(&mut self.path),
            node,
            accepting: AtomicUsize::new(0),
        })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.temporary.display(), %error, "a temporary socket stays");
        }
    }
}

/// Device and inode: which file a path leads to.
fn node(path: &Path) -> io::Result<(u64, u64)> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// A listening socket at its path, non-blocking. Dropping it removes the path, unless somebody else has taken it since.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Of the file it was bound to. The socket holds that file, so no other one gets its inode before we close.
    node: (u64, u64),
    /// Runtimes it is registered with.
    accepting: AtomicUsize,
}

impl Listener {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<UnixListener> {
        self.socket.try_clone()
    }

    /// Removes the path and, once the last runtime has let go of it, refuses who still comes through it; those in the
    /// queue can be accepted. Each runtime calls this after it has let go.
    ///
    /// A reactor never forgets that a socket was shut: an accept that waits in one would spin for ever.
    ///
    /// # Errors
    /// Where a listening socket cannot be shut (all but Linux): who has looked the path up before it was removed may
    /// still enter the queue.
    pub fn shut(&self) -> io::Result<()> {
        self.remove();
        if self.accepting.load(Ordering::Acquire) > 0 {
            return Ok(());
        }
        SockRef::from(&self.socket).shutdown(std::net::Shutdown::Read)
    }

    /// The next queued connection, `None` when the queue is empty now.
    ///
    /// # Errors
    /// Those of `accept` that a later try may cure.
    pub fn accept_queued(&self) -> io::Result<Option<UnixStream>> {
        loop {
            match self.socket.accept() {
                Ok((stream, _)) => return Ok(Some(stream)),
                Err(error) => match error.kind() {
                    // `InvalidInput`: empty, and shut.
                    io::ErrorKind::WouldBlock | io::ErrorKind::InvalidInput => return Ok(None),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
    }

    fn remove(&self) {
        if node(&self.path).is_ok_and(|there| there == self.node)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a socket's path stays");
        }
    }
}

/// A [`Listener`] in a runtime.
#[derive(Debug)]
pub struct Accepting {
    // The reactor lets go before the count says so: fields are dropped in this order.
    socket: tokio::net::UnixListener,
    counted: Counted,
}

#[derive(Debug)]
struct Counted(Arc<Listener>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.accepting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Accepting {
    /// Registers it with the runtime this runs in.
    ///
    /// # Errors
    /// Those of the reactor, or no descriptor left.
    pub fn new(listener: Arc<Listener>) -> io::Result<Accepting> {
        let socket = tokio::net::UnixListener::from_std(listener.try_clone()?)?;
        listener.accepting.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(listener);
        Ok(Accepting { socket, counted })
    }

    /// The next connection. Cancel-safe.
    ///
    /// # Errors
    /// Those of `accept`.
    pub async fn accept(&self) -> io::Result<tokio::net::UnixStream> {
        self.socket.accept().await.map(|(stream, _)| stream)
    }

    /// The runtime lets go of it.
    pub fn into_listener(self) -> Arc<Listener> {
        self.counted.0.clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_path_is_taken_over_at_listen_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let reserved = reserve(&path, PRIVATE).unwrap();
        assert!(!path.exists());
        let listener = reserved.listen(8).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let refused = reserve(&path, PRIVATE).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
        drop(reserve(&path, PUBLIC).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let _ours = reserve(&path, PRIVATE).unwrap().listen(8).unwrap();
        UnixStream::connect(&path).unwrap();
        let file = folder.path().join("f");
        std::fs::write(&file, "").unwrap();
        assert!(reserve(&file, PRIVATE).is_err());
        assert!(file.exists());
    }

    #[test]
    fn a_path_with_a_full_queue_or_another_kind_of_socket_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("full");
        let full = open().unwrap();
        full.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        full.listen(0).unwrap();
        let mut waiting = Vec::new();
        loop {
            let client = open().unwrap();
            match client.connect(&SockAddr::unix(&path).unwrap()) {
                Ok(()) => waiting.push(client),
                Err(_) => break,
            }
        }
        assert!(reserve(&path, PUBLIC).is_err());
        let path = folder.path().join("datagrams");
        let _other = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        assert!(reserve(&path, PUBLIC).is_err());
    }

    #[test]
    fn of_two_that_reserved_one_path_the_second_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let (one, two) = (
            reserve(&path, PUBLIC).unwrap(),
            reserve(&path, PUBLIC).unwrap(),
        );
        let _listener = one.listen(8).unwrap();
        assert_eq!(two.listen(8).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_path_that_another_has_taken_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let old = reserve(&path, PUBLIC).unwrap().listen(8).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _new = reserve(&path, PUBLIC).unwrap().listen(8).unwrap();
        drop(old);
        UnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn it_is_shut_when_the_last_runtime_has_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Arc::new(reserve(&path, PUBLIC).unwrap().listen(8).unwrap());
        let link = folder.path().join("link");
        std::fs::hard_link(&path, &link).unwrap();
        let one = Accepting::new(listener.clone()).unwrap();
        let two = Accepting::new(listener.clone()).unwrap();
        one.into_listener().shut().unwrap();
        assert!(!path.exists());
        let _late = UnixStream::connect(&link).unwrap();
        two.accept().await.unwrap();
        let _later = UnixStream::connect(&link).unwrap();
        let last = two.into_listener();
        if last.shut().is_ok() {
            assert!(UnixStream::connect(&link).is_err());
        }
        assert!(last.accept_queued().unwrap().is_some());
        assert!(last.accept_queued().unwrap().is_none());
    }

    #[test]
    fn what_is_queued_when_it_is_shut_is_served_and_later_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = reserve(&path, PUBLIC).unwrap().listen(64).unwrap();
        let mut clients: Vec<_> = (0..50)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        // Still leads to the socket once the path is gone.
        let other = folder.path().join("link");
        std::fs::hard_link(&path, &other).unwrap();
        let shut = listener.shut();
        assert!(!path.exists());
        assert!(UnixStream::connect(&path).is_err());
        if cfg!(target_os = "linux") {
            shut.unwrap();
            assert!(UnixStream::connect(&other).is_err());
        }
        let mut served = 0;
        while let Some(mut stream) = listener.accept_queued().unwrap() {
            stream.write_all(b"x").unwrap();
            served += 1;
        }
        drop(listener);
        assert_eq!(served, 50);
        for client in &mut clients {
            client.read_exact(&mut [0; 1]).unwrap();
        }
    }
}
