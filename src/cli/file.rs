//! Configuration files as the command line sees them: where they are looked for, and their text with its format.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::config::{Format, MAX_BYTES};
use crate::document::Document;

/// The name that is looked for.
const NAME: &str = "evergate.toml";

/// The file to run with: `explicit` as it is, else the first that exists of `./evergate.toml`, the user's configuration
/// folder and `/etc/evergate/evergate.toml`. `None`: there is none, and the embedded welcome page runs.
pub fn find_config(explicit: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = explicit {
        return Some(path.to_owned());
    }
    search(|name| std::env::var_os(name), Path::is_file)
}

fn search(
    env: impl Fn(&str) -> Option<OsString>,
    exists: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    // The XDG specification has relative values ignored.
    let folder = |name: &str| {
        env(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let user = if cfg!(windows) {
        folder("APPDATA")
    } else {
        folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")))
    };
    let mac = cfg!(target_os = "macos")
        .then(|| folder("HOME").map(|home| home.join("Library/Application Support")))
        .flatten();
    let places = [
        Some(PathBuf::from(NAME)),
        user.map(|folder| folder.join("evergate").join(NAME)),
        mac.map(|folder| folder.join("evergate").join(NAME)),
        cfg!(unix).then(|| Path::new("/etc/evergate").join(NAME)),
    ];
    places.into_iter().flatten().find(|path| exists(path))
}

/// A file that was read.
#[derive(Debug)]
pub(crate) struct Text {
    /// As the user wrote it; `-` is standard input.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) format: Format,
}

impl Text {
    /// Reads a file, or standard input (TOML) for `-`.
    ///
    /// # Errors
    /// A sentence: not readable, too large, or of no known format.
    pub(crate) fn read(path: &Path) -> Result<Text, String> {
        let name = path.display().to_string();
        let at = |error: std::io::Error| format!("{name}: {error}");
        let mut bytes = Vec::new();
        let format = if path == Path::new("-") {
            std::io::stdin()
                .take(MAX_BYTES as u64 + 1)
                .read_to_end(&mut bytes)
                .map_err(at)?;
            Format::Toml
        } else {
            let format = Document::format_of(path).ok_or_else(|| {
                format!("{name}: a configuration file ends in .toml, .json, .yaml or .yml")
            })?;
            std::fs::File::open(path)
                .map_err(at)?
                .take(MAX_BYTES as u64 + 1)
                .read_to_end(&mut bytes)
                .map_err(at)?;
            format
        };
        if bytes.len() > MAX_BYTES {
            return Err(format!("{name}: larger than 16 MiB"));
        }
        Ok(Text {
            name,
            bytes,
            format,
        })
    }

    /// A file that somebody else has read already, for its lines only. Nothing but a regular file: a FIFO would wait, or
    /// take away what is written for another reader.
    pub(crate) fn again(path: &Path) -> Option<Text> {
        path.is_file().then(|| Text::read(path).ok()).flatten()
    }

    pub(crate) fn content_type(&self) -> &'static str {
        match self.format {
            Format::Toml => "application/toml",
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn found(env: &[(&str, &str)], files: &[&str]) -> Option<PathBuf> {
        let env = |name: &str| {
            env.iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.into())
        };
        search(env, |path| files.iter().any(|file| Path::new(file) == path))
    }

    #[test]
    fn the_nearest_file_wins() {
        let env = [("HOME", "/home/u"), ("XDG_CONFIG_HOME", "/x")];
        let etc = "/etc/evergate/evergate.toml";
        assert_eq!(
            found(&env, &["evergate.toml", etc]),
            Some("evergate.toml".into())
        );
        assert_eq!(
            found(&env, &["/x/evergate/evergate.toml", etc]),
            Some("/x/evergate/evergate.toml".into())
        );
        let home = "/home/u/.config/evergate/evergate.toml";
        assert_eq!(found(&env[..1], &[home, etc]), Some(home.into()));
        assert_eq!(
            found(
                &[("XDG_CONFIG_HOME", "relative")],
                &["relative/evergate/evergate.toml", etc]
            ),
            Some(etc.into())
        );
        assert_eq!(found(&env, &[]), None);
    }

    #[test]
    fn an_explicit_file_is_taken_as_it_is() {
        assert_eq!(
            find_config(Some(Path::new("/no/such"))),
            Some("/no/such".into())
        );
    }
}
