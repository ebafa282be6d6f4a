//! `compress`: content codings for responses.

use super::super::super::check::Checker;
use super::super::super::decode::List;
use super::super::super::tree::At;
use super::super::FileCoding;

/// Checked `compress`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompressSpec {
    /// In the order of preference, each once, never empty.
    pub codings: Vec<FileCoding>,
}

impl CompressSpec {
    pub(super) fn new(
        list: &List<FileCoding>,
        at: At,
        check: &mut Checker<'_>,
    ) -> Option<CompressSpec> {
        if list.is_empty() && !list.spoiled {
            let finding = check.findings.error(at, "an empty list of codings");
            finding.help("`false` for none, `[\"zstd\", \"br\", \"gzip\"]` for all");
        }
        let mut codings = Vec::new();
        for coding in list.iter() {
            if codings.contains(&coding.value) {
                let message = format!("`{}` is listed twice", coding.word());
                check.findings.error(coding.at, message);
            } else {
                codings.push(coding.value);
            }
        }
        (!codings.is_empty()).then_some(CompressSpec { codings })
    }
}
