//! What a worker's table holds under its lock: who is there, and the sums of those who were.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Kind, Shared, Totals};

/// Names of listeners that a worker keeps sums for. Beyond, those are forgotten of which nothing is open.
pub(super) const NAMES: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) begun: u64,
    pub(super) open: BTreeMap<u64, Arc<Shared>>,
    /// Of those that have ended; `open` is not kept here.
    pub(super) totals: [Totals; Kind::ALL.len()],
    /// By listener. Bytes are those of sessions that have ended.
    pub(super) names: BTreeMap<Name, Totals>,
}

/// What bytes are counted under: a listener's name, empty where there is none or no room for it.
pub type Name = (Kind, Arc<str>);

impl Table {
    /// Counts one that begins, and says under which name.
    pub(super) fn begin(&mut self, kind: Kind, listener: Option<&Arc<str>>) -> Name {
        self.begun += 1;
        self.totals[kind as usize].opened += 1;
        let mut name = (kind, listener.cloned().unwrap_or_default());
        if self.names.len() >= NAMES && !self.names.contains_key(&name) {
            self.names.retain(|_, totals| totals.open > 0);
            if self.names.len() >= NAMES {
                name.1 = Arc::default();
            }
        }
        let totals = self.names.entry(name.clone()).or_default();
        totals.open += 1;
        totals.opened += 1;
        name
    }

    /// It has ended; the same lock takes it off the table, so that no sum ever falls.
    pub(super) fn end(&mut self, name: &Name, passed: Totals) {
        self.totals[name.0 as usize].add(passed);
        if let Some(totals) = self.names.get_mut(name) {
            totals.add(passed);
            totals.open = totals.open.saturating_sub(1);
        }
    }
}
