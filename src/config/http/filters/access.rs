//! `allow` and `deny`.

use ipnet::IpNet;

use super::super::super::check::Checker;
use super::super::super::decode::List;
use super::super::super::tree::At;

/// Ranges of client addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessSpec {
    /// Never empty.
    pub nets: Vec<IpNet>,
}

impl AccessSpec {
    pub(super) fn new(
        parsed: Vec<(IpNet, At)>,
        at: At,
        written: &List<String>,
        check: &mut Checker<'_>,
    ) -> Option<AccessSpec> {
        if written.is_empty() && !written.spoiled {
            check
                .findings
                .error(at, "an empty list of addresses")
                .help("`false` for no list, `[\"0.0.0.0/0\", \"::/0\"]` for every address");
        }
        let nets: Vec<IpNet> = parsed.into_iter().map(|(net, _)| net).collect();
        (!nets.is_empty()).then_some(AccessSpec { nets })
    }
}
