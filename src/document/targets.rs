//! Targets that stand in files of their own. A document that is parsed names the files; what reads them puts the targets
//! in, and only then it is whole. From there on they are as if they stood in the document itself: plan, comparison and
//! upstreams know no difference.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Document, Locator, Parsed, Sources};
use crate::config::Format;
use crate::config::scalar::TargetAddr;
use crate::config::upstream::{TargetSpec, UpstreamSpec, parse_targets};

impl Document {
    /// The files of targets, each with the JSON Pointer of its path.
    pub fn target_files(&self) -> Vec<(PathBuf, String)> {
        let named = self.upstreams.iter().filter_map(|(name, upstream)| {
            let path = upstream.targets_file.clone()?;
            Some((path, format!("/upstreams/{name}/targets_file")))
        });
        named.collect()
    }

    /// Puts in what the files say. `read` gives a file's bytes, or `None` where that has been complained of. Of one that is
    /// wrong, the targets of `running` stay, if it had that file too. Returns what is wrong, each with its pointer and
    /// whether old targets stay.
    pub fn take_targets<'f>(
        &mut self,
        read: impl Fn(&Path) -> Option<&'f [u8]>,
        running: Option<&Document>,
    ) -> Vec<(String, String, bool)> {
        let mut faults = Vec::new();
        for (name, upstream) in &mut self.upstreams {
            let Some(path) = upstream.targets_file.clone() else {
                continue;
            };
            let parsed = read(&path).map(|bytes| targets(bytes, &path, upstream));
            match parsed {
                Some(Ok(targets)) => upstream.targets = targets,
                other => {
                    let old = running.and_then(|running| running.upstreams.get(name));
                    let old = old.filter(|old| old.targets_file.as_ref() == Some(&path));
                    if let Some(old) = old {
                        upstream.targets = old.targets.clone();
                    }
                    let pointer = format!("/upstreams/{name}/targets_file");
                    let messages = other.and_then(Result::err).unwrap_or_default();
                    faults.extend(
                        messages
                            .into_iter()
                            .map(|m| (pointer.clone(), m, old.is_some())),
                    );
                }
            }
        }
        faults
    }

    /// The same document once more, as if it had just been parsed. What goes wrong afterwards is found in its normalized
    /// text.
    pub fn again(&self) -> Parsed {
        Parsed {
            document: Arc::new(self.clone()),
            warnings: Vec::new(),
            locator: Locator::new(Sources {
                text: self.render(Format::Json, false).into(),
                format: Format::Json,
                included: Vec::new(),
            }),
        }
    }
}

/// Reads a file's targets as `upstream` needs them.
///
/// # Errors
/// What is wrong, with path and line.
pub fn targets(
    bytes: &[u8],
    path: &Path,
    upstream: &UpstreamSpec,
) -> Result<Vec<TargetSpec>, Vec<String>> {
    let base = path.parent().unwrap_or(Path::new("/"));
    let place = path.display();
    let targets = parse_targets(bytes, base).map_err(|faults| {
        let told = faults.into_iter().map(|fault| match fault.line {
            0 => format!("{place}: {}", fault.message),
            line => format!("{place}:{line}: {}", fault.message),
        });
        told.collect::<Vec<_>>()
    })?;
    let port = upstream.health.as_ref().and_then(|health| health.port);
    let unix = |t: &&TargetSpec| matches!(t.address, TargetAddr::Unix(_));
    match targets.iter().any(|target| unix(&target)) {
        true if port.is_some() => {
            let message =
                format!("{place}: `health.port` is given, but a `unix:` target has no port");
            Err(vec![message])
        }
        _ => Ok(targets),
    }
}
