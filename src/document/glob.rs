//! The files that a pattern of `include` names: `*` and `?` within one name, as a shell reads them.

use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Whether a pattern may name any number of files, none included.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// The paths that `pattern` names below `base`, sorted; those that are not there are none. At most `most` and one more.
///
/// # Errors
/// Those of the system for a folder that is there and cannot be read.
pub(super) fn matches(base: &Path, pattern: &str, most: usize) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![base.to_owned()];
    for component in Path::new(pattern).components() {
        let wildcard = match component {
            Component::Normal(name) => name.to_str().filter(|name| is_pattern(name)),
            _ => None,
        };
        let mut next = Vec::new();
        for folder in &found {
            match wildcard {
                Some(wildcard) => list(folder, wildcard, most, &mut next)?,
                None => next.push(folder.join(component)),
            }
        }
        found = next;
    }
    found.retain(|path| path.symlink_metadata().is_ok());
    found.sort();
    Ok(found)
}

fn list(folder: &Path, wildcard: &str, most: usize, out: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        if name_matches(wildcard, &name) {
            out.push(folder.join(name));
        }
        if out.len() > most {
            break;
        }
    }
    Ok(())
}

/// A name that begins with a dot is meant only by a pattern that does: editors keep their own files so.
fn name_matches(pattern: &str, name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where to go on when what follows the last `*` does not fit: that star takes one character more.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match &mut star {
                Some((after, from)) => {
                    *from += 1;
                    (p, n) = (*after, *from);
                }
                None => return false,
            },
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_match_within_a_name() {
        for (pattern, name, expected) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".a.toml", false),
            (".*", ".a", true),
            ("a*b*c", "axxbxbxc", true),
            ("a*b*c", "axxbxbx", false),
            ("?.toml", "ä.toml", true),
            ("?", "", false),
            ("*", "", true),
            ("a", "ab", false),
            ("**", "ab", true),
        ] {
            assert_eq!(
                name_matches(pattern, OsStr::new(name)),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn patterns_walk_down_folders_and_what_is_not_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path();
        for name in ["b/site.toml", "a/site.toml", "c/other.toml"] {
            std::fs::create_dir_all(base.join(name).parent().unwrap()).unwrap();
            std::fs::write(base.join(name), "").unwrap();
        }
        let of = |pattern: &str| {
            let found = matches(base, pattern, 10).unwrap();
            found
                .iter()
                .map(|path| {
                    path.strip_prefix(base)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(of("*/site.toml"), ["a/site.toml", "b/site.toml"]);
        assert_eq!(
            of("?/*.toml"),
            ["a/site.toml", "b/site.toml", "c/other.toml"]
        );
        assert!(of("none/*.toml").is_empty());
        assert!(of("a/site.toml/*").is_empty());
    }
}
