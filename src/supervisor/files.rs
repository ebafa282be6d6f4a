//! Reading the files that a document names. Only regular files and FIFOs are read; a FIFO is waited for without a
//! blocked thread, so a writer that never comes costs the swap its `prepare_timeout` and the process nothing.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::config::MAX_BYTES;
use crate::tls::store;

/// Reads `path` whole. Cancel-safe: dropping it leaves nothing behind but, for a regular file, one read that ends.
///
/// # Errors
/// Those of the system, and one with a plain sentence for a folder, a device or a file over 16 MiB.
pub(super) async fn read(path: &Path) -> io::Result<Bytes> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = tokio::fs::metadata(path).await?.file_type();
        if kind.is_fifo() {
            return read_fifo(path).await;
        }
    }
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        use std::io::Read;
        let meta = std::fs::metadata(&path)?;
        if meta.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::IsADirectory,
                "is a folder, not a file",
            ));
        }
        if !meta.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "is not a regular file",
            ));
        }
        let mut bytes = Vec::with_capacity(meta.len().min(MAX_BYTES as u64) as usize);
        std::fs::File::open(&path)?
            .take(MAX_BYTES as u64 + 1)
            .read_to_end(&mut bytes)?;
        check_size(bytes.len())?;
        Ok(bytes.into())
    })
    .await
    .map_err(io::Error::other)?
}

/// [`store::pairs`] on a thread that may wait.
///
/// # Errors
/// As there.
pub(super) async fn pairs(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || store::pairs(&folder))
        .await
        .map_err(io::Error::other)?
}

/// [`store::pairs_found`] on a thread that may wait.
///
/// # Errors
/// As there.
pub(super) async fn pairs_found(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || store::pairs_found(&folder))
        .await
        .map_err(io::Error::other)?
}

/// Sees that `path` is a folder whose files can be reached.
///
/// # Errors
/// Those of the system, and one with a plain sentence for anything but a folder.
pub(super) async fn folder(path: &Path) -> io::Result<()> {
    let meta = tokio::fs::metadata(path).await?;
    if !meta.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            "is not a folder",
        ));
    }
    // Needs the right to enter it, not to list it.
    tokio::fs::metadata(path.join(".")).await.map(drop)
}

fn check_size(len: usize) -> io::Result<()> {
    if len > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "is larger than 16 MiB",
        ));
    }
    Ok(())
}

#[cfg(unix)]
async fn read_fifo(path: &Path) -> io::Result<Bytes> {
    let pipe = tokio::net::unix::pipe::OpenOptions::new().open_receiver(path)?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        // Before the first read: without a writer so far, a read would say "end" at once.
        pipe.readable().await?;
        match pipe.try_read(&mut chunk) {
            Ok(0) => return Ok(bytes.into()),
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        check_size(bytes.len())?;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_regular_file_is_read_and_a_folder_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "text").unwrap();
        assert_eq!(read(&path).await.unwrap(), "text");
        assert!(super::folder(folder.path()).await.is_ok() && super::folder(&path).await.is_err());
        assert_eq!(
            read(folder.path()).await.unwrap_err().kind(),
            io::ErrorKind::IsADirectory
        );
        assert_eq!(
            read(&folder.path().join("b")).await.unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_fifo_is_waited_for_until_its_writer_has_ended() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let mut waiting = Box::pin(read(&path));
        // Nobody writes: it waits (polled once with the reactor running).
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), &mut waiting).await;
        assert!(early.is_err());
        let to = path.clone();
        let writer = std::thread::spawn(move || {
            let mut file = std::fs::OpenOptions::new().write(true).open(to).unwrap();
            file.write_all(b"first ").unwrap();
            file.write_all(b"second").unwrap();
        });
        assert_eq!(waiting.await.unwrap(), "first second");
        writer.join().unwrap();
    }
}
