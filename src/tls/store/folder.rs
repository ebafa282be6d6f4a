//! Folders of certificates: `NAME.crt` with `NAME.key`.

use std::io;
use std::path::{Path, PathBuf};

/// Certificates that a folder may hold.
const MAX_PAIRS: usize = 10_000;

/// The paths of every `NAME.crt` in `folder` and of the `NAME.key` that goes with it. Blocks.
///
/// # Errors
/// Those of the system, and ones with a plain sentence for a certificate without its key and for a folder with more
/// than 10,000 of them.
pub fn pairs(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let all = pairs_found(folder)?;
    for [cert, key] in all.as_chunks().0 {
        if !key.exists() {
            let (cert, key) = (cert.file_name(), key.file_name());
            let [cert, key] =
                [cert, key].map(|name| name.unwrap_or_default().display().to_string());
            return Err(io::Error::other(format!("{cert} is there without {key}")));
        }
    }
    Ok(all)
}

/// The same without a look whether the keys are there.
///
/// # Errors
/// As [`pairs`], but for that.
pub fn pairs_found(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let cert = entry?.path();
        if !is_certificate(&cert) {
            continue;
        }
        if all.len() >= 2 * MAX_PAIRS {
            let message = format!("holds more than {MAX_PAIRS} certificates");
            return Err(io::Error::other(message));
        }
        let key = cert.with_extension("key");
        all.extend([cert, key]);
    }
    Ok(all)
}

pub(super) fn is_certificate(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "crt")
}

/// True if a file of this name may be one of a folder's.
pub fn is_of_pair(path: &Path) -> bool {
    is_certificate(path) || path.extension().is_some_and(|e| e == "key")
}
