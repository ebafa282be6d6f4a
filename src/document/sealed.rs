//! A document of somebody with a read token, who may try whether it would be accepted, but not learn what this machine
//! keeps: errors quote values and files, so nothing is put in from there.

use crate::config::findings::Findings;
use crate::config::tree::{At, Node, Value};

/// Refuses every key that has a file read whose content an error could quote.
pub(super) fn refuse_files(root: &Node<'_>, findings: &mut Findings) {
    let mut refuse = |at: At| {
        findings
            .key_error(at, "a read token may not have files read")
            .help("use a full token");
    };
    if let Some(include) = child(root, "include") {
        refuse(include.at);
    }
    let below = child(root, "defaults").and_then(|defaults| child(defaults, "upstreams"));
    let upstreams = child(root, "upstreams").map_or(&[][..], entries);
    let tables = upstreams.iter().map(|(_, table)| table).chain(below);
    for table in tables {
        if let Some(file) = child(table, "targets_file") {
            refuse(file.at);
        }
    }
}

fn entries<'n, 't>(node: &'n Node<'t>) -> &'n [(std::borrow::Cow<'t, str>, Node<'t>)] {
    match &node.value {
        Value::Table(entries) => entries,
        _ => &[],
    }
}

fn child<'n, 't>(node: &'n Node<'t>, key: &str) -> Option<&'n Node<'t>> {
    let mut entries = entries(node).iter();
    entries.find(|(k, _)| k == key).map(|(_, child)| child)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Context, Document, Refused};
    use crate::config::Format;

    #[test]
    fn nothing_of_environment_and_files_is_told() {
        let text = "include = '/etc/passwd'\n\
                    [defaults.upstreams]\ntargets_file = '/etc/passwd'\n\
                    [http.web]\nlisten = '${PATH}'\nlimits.headers = '${PATH}'\nrespond = '${PATH:-x}'\n\
                    [upstreams.u]\ntargets_file = '/etc/passwd'\n";
        let context = Context {
            base: "/".into(),
            running: None,
        };
        let refused = Document::parse_sealed(text.as_bytes(), Format::Toml, &context).unwrap_err();
        let Refused::Invalid { errors, .. } = refused else {
            panic!("{refused:?}");
        };
        let found: Vec<_> = errors
            .iter()
            .map(|e| (e.pointer.as_str(), e.message.as_str()))
            .collect();
        let files = "a read token may not have files read";
        let values = "a read token may not have values of the environment";
        assert_eq!(
            found,
            [
                ("/include", files),
                ("/defaults/upstreams/targets_file", files),
                ("/http/web/listen", values),
                ("/http/web/limits/headers", values),
                ("/http/web/respond", values),
                ("/upstreams/u/targets_file", files),
            ]
        );
        assert!(
            errors
                .iter()
                .all(|e| e.help.as_deref() == Some("use a full token"))
        );
    }
}
