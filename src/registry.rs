//! State that outlives generations, by identity. A registry maps a key to a weak reference; a generation holds the
//! strong one (a *lease*). There is no removal code: the last generation that uses an entry drops it, and the entry's
//! drop stops its task. A prepare that fails drops its leases, so there is nothing to roll back.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// A map from identity to whatever is alive under it.
#[derive(Debug)]
pub struct Registry<K, V> {
    entries: Mutex<HashMap<K, Weak<V>>>,
}

impl<K, V> Default for Registry<K, V> {
    fn default() -> Self {
        Registry {
            entries: Mutex::new(HashMap::new()),
        }
    }
}

impl<K: Hash + Eq + Clone, V> Registry<K, V> {
    /// The living entry, or one made now.
    pub fn lease(&self, key: &K, make: impl FnOnce() -> V) -> Arc<V> {
        let mut entries = self.entries.lock();
        if let Some(alive) = entries.get(key).and_then(Weak::upgrade) {
            return alive;
        }
        if entries.len() >= 64 && entries.len() == entries.capacity() {
            entries.retain(|_, weak| weak.strong_count() > 0);
        }
        let made = Arc::new(make());
        entries.insert(key.clone(), Arc::downgrade(&made));
        made
    }

    /// The living entry.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        self.entries.lock().get(key).and_then(Weak::upgrade)
    }

    /// Every living entry.
    pub fn alive(&self) -> Vec<(K, Arc<V>)> {
        let mut entries = self.entries.lock();
        entries.retain(|_, weak| weak.strong_count() > 0);
        entries
            .iter()
            .filter_map(|(k, weak)| Some((k.clone(), weak.upgrade()?)))
            .collect()
    }

    /// Forgets those that are no more. Left to themselves they stay until the map is full: each keeps its key and the memory
    /// of its value, which lie scattered among what could be given back.
    pub fn sweep(&self) {
        let mut entries = self.entries.lock();
        entries.retain(|_, weak| weak.strong_count() > 0);
        entries.shrink_to_fit();
    }

    pub fn contains(&self, key: &K) -> bool {
        self.entries
            .lock()
            .get(key)
            .is_some_and(|weak| weak.strong_count() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_the_same_entry_until_the_last_one_falls() {
        let registry = Registry::<&str, u32>::default();
        let a = registry.lease(&"x", || 1);
        let b = registry.lease(&"x", || 2);
        assert!(Arc::ptr_eq(&a, &b));
        drop((a, b));
        assert!(!registry.contains(&"x"));
        assert_eq!(*registry.lease(&"x", || 3), 3);
        assert_eq!(registry.alive().len(), 0);
    }

    #[test]
    fn sweeping_keeps_what_is_leased_and_nothing_else() {
        let registry = Registry::<Arc<str>, u32>::default();
        let kept = registry.lease(&"kept".into(), || 0);
        let gone: Arc<str> = "gone".into();
        drop(registry.lease(&gone, || 1));
        assert_eq!(Arc::strong_count(&gone), 2);
        registry.sweep();
        assert_eq!(Arc::strong_count(&gone), 1);
        assert!(Arc::ptr_eq(&kept, &registry.lease(&"kept".into(), || 2)));
    }
}
