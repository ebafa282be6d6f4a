//! `[filters.NAME]` and `use`.

use std::collections::{BTreeMap, HashSet};

use super::super::super::check::{Checker, shorten};
use super::super::super::decode::{List, Loc, Map};
use super::super::super::tree::At;
use super::super::super::upstream::References;
use super::{FiltersSpec, LATER, Standing, filtered};

filtered! {
    /// Filters under a name, which servers and routes take with `use`. A limiter in it counts once for all its users.
    pub struct FiltersRaw {}
    later = [LATER];
}

/// All of `[filters]`, checked, and which of them somebody used.
#[derive(Debug, Default)]
pub struct FilterSets {
    sets: BTreeMap<String, (FiltersSpec, At)>,
    used: HashSet<String>,
}

impl FilterSets {
    pub fn new(
        raw: &Map<FiltersRaw>,
        references: &mut References<'_>,
        check: &mut Checker<'_>,
    ) -> FilterSets {
        check.names(raw);
        let mut sets = BTreeMap::new();
        for (name, set) in raw.iter() {
            let written = set.written();
            let standing = Standing {
                scope: format_args!("filters/{name}"),
                pointer: format_args!("/filters/{name}"),
                live: true,
            };
            let spec = written.spec(standing, references, check);
            if spec == FiltersSpec::default() && set.spoiled.is_empty() {
                check
                    .findings
                    .key_warning(set.at, format!("no filter is in `{}`", shorten(name)));
            }
            sets.insert(name.clone(), (spec, set.at));
        }
        FilterSets {
            sets,
            used: HashSet::new(),
        }
    }

    /// What a `use` brings: of several names the last is the nearest.
    pub(in crate::config) fn take(
        &mut self,
        names: Option<&Loc<List<String>>>,
        check: &mut Checker<'_>,
    ) -> FiltersSpec {
        let mut all = FiltersSpec::default();
        for name in names.into_iter().flat_map(|list| list.iter()) {
            match self.sets.get(name.as_str()) {
                Some((spec, _)) => {
                    all = spec.over(&all);
                    self.used.insert(name.value.clone());
                }
                None => {
                    let message = format!("there is no filter `{}`", shorten(name));
                    let help = check.suggest(name, self.sets.keys().map(String::as_str));
                    let help = help.unwrap_or_else(|| "filters are in `[filters.NAME]`".to_owned());
                    check.findings.error(name.at, message).help(help);
                }
            }
        }
        all
    }

    pub fn warn_unused(&self, check: &mut Checker<'_>) {
        for (name, (_, at)) in &self.sets {
            if !self.used.contains(name) {
                let message = format!("nothing uses the filter `{}`", shorten(name));
                check.findings.key_warning(*at, message);
            }
        }
    }
}
