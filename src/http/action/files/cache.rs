//! Contents of small files, kept by what they are (device, inode, size, times), not by name: whoever finds a file with
//! the same state has the same bytes, whatever generation asks, and a changed file is another key. So nothing here ever
//! goes stale; what is no longer asked for is pushed out.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::stat::{Stat, Validators};

/// Bytes of the largest file that is kept.
pub(super) const SMALL: u64 = 64 * 1024;
/// Bytes of all that is kept, by the whole process.
const CAPACITY: u64 = 16 * 1024 * 1024;
/// Bytes an entry costs beside its contents, about.
const OVERHEAD: u64 = 512;

static CONTENTS: LazyLock<Cache<Stat, Arc<Kept>, ByBytes>> =
    LazyLock::new(|| Cache::with_weighter(4096, CAPACITY, ByBytes));

/// A file in memory.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) bytes: Bytes,
    /// Of the file as it is, without a coding: written out once, not for each answer.
    pub(super) validators: Validators,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Stat, Arc<Kept>> for ByBytes {
    fn weight(&self, _: &Stat, kept: &Arc<Kept>) -> u64 {
        kept.bytes.len() as u64 + OVERHEAD
    }
}

pub(super) fn get(stat: &Stat) -> Option<Arc<Kept>> {
    CONTENTS.get(stat)
}

pub(super) fn put(stat: Stat, bytes: Bytes) {
    let validators = stat.validators(None);
    CONTENTS.insert(stat, Arc::new(Kept { bytes, validators }));
}

#[cfg(test)]
mod tests {
    use super::super::stat::Kind;
    use super::*;

    #[test]
    fn it_stays_within_its_bytes() {
        let stat = |inode| Stat {
            kind: Kind::File,
            device: 0,
            inode,
            size: SMALL,
            modified: (0, 0),
            changed: (0, 0),
        };
        let contents = Bytes::from(vec![1; SMALL as usize]);
        for inode in 0..1000 {
            put(stat(inode), contents.clone());
        }
        assert!(CONTENTS.weight() <= CAPACITY);
        let kept = (0..1000).filter(|inode| get(&stat(*inode)).is_some());
        let kept = kept.count();
        assert!((100..=255).contains(&kept), "{kept}");
    }
}
