//! One request: routing, headers, actions, errors.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::http::{ConnectionSpec, HttpSpec};
use crate::upstream::Upstream;

/// Contents of the files a document names, read at prepare.
pub type Files = HashMap<PathBuf, Bytes>;

/// What one generation does behind one bound address: all servers that share it. Shared by the workers.
#[derive(Debug)]
pub struct Entry {
    pub connection: ConnectionSpec,
}

impl Entry {
    /// Compiles the servers of one address. `specs` share `connection`; every upstream they name is in `upstreams`,
    /// every file in `files` (the document's checks guarantee it).
    pub fn build(
        _specs: &[&HttpSpec],
        _upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
        _files: &Files,
    ) -> Entry {
        unimplemented!()
    }

    /// True if a request that lives by `definition` (see `generation::Flight::define`: a digest of server name, action and
    /// the target used) would live by the same here.
    pub fn holds(&self, _definition: u64) -> bool {
        unimplemented!()
    }
}
