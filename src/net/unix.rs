//! Unix sockets: bound under a temporary name beside the path, put in place by a rename when they listen. A path where
//! somebody answers is taken; one where nobody does is stale. Removal unlinks only our own inode.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// Bound under a temporary name; dropping it removes that.
#[derive(Debug)]
pub struct Reserved {
    socket: Option<Socket>,
    temporary: PathBuf,
    path: PathBuf,
}

/// Reserves `path` with mode 0600.
///
/// # Errors
/// `AddrInUse` when somebody answers there or something else than a socket is there.
pub fn reserve(path: &Path) -> io::Result<Reserved> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "something that is not a socket is there",
            ));
        }
        Ok(_) => {
            if UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "somebody listens there",
                ));
            }
        }
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(&temporary)?)?;
    let reserved = Reserved {
        socket: Some(socket),
        temporary,
        path: path.to_owned(),
    };
    std::fs::set_permissions(&reserved.temporary, std::fs::Permissions::from_mode(0o600))?;
    Ok(reserved)
}

impl Reserved {
    /// Listens and takes the path over.
    ///
    /// # Errors
    /// Those of `listen` and `rename`; the path is untouched then.
    pub fn listen(mut self) -> io::Result<(UnixListener, PathBuf)> {
        let socket = self.socket.take().ok_or(io::ErrorKind::NotConnected)?;
        socket.listen(128)?;
        std::fs::rename(&self.temporary, &self.path)?;
        Ok((UnixListener::from(socket), std::mem::take(&mut self.path)))
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

/// Ends `listener` and removes `path` if nobody else has taken it since. The file system's inode is not the socket's, so
/// what tells is who answers at the path once we no longer listen: nobody, then the name is ours.
pub fn remove_own(listener: &UnixListener, path: &Path) {
    if let Err(error) = socket2::SockRef::from(listener).shutdown(std::net::Shutdown::Both) {
        tracing::debug!(%error, "shutting a unix listener");
        return;
    }
    if UnixStream::connect(path).is_err()
        && let Err(error) = std::fs::remove_file(path)
    {
        tracing::debug!(path = %path.display(), %error, "socket path stays");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_over_at_listen_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let reserved = reserve(&path).unwrap();
        assert!(!path.exists());
        let (listener, _) = reserved.listen().unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(reserve(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        remove_own(&listener, &path);
        assert!(!path.exists());
        drop(reserve(&path).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        reserve(&path).unwrap().listen().unwrap();
        let file = folder.path().join("f");
        std::fs::write(&file, "").unwrap();
        assert!(reserve(&file).is_err());
    }
}
