//! How many sessions a user has. It outlives generations, so that a swap lets nobody have more.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The sessions of the users of one proxy.
#[derive(Debug, Default)]
pub(super) struct Users {
    sessions: Mutex<HashMap<Arc<str>, usize>>,
}

/// A session's place; dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    of: Arc<Users>,
    user: Arc<str>,
}

impl Users {
    /// `None`: there are `most` already.
    pub(super) fn enter(self: &Arc<Users>, user: &Arc<str>, most: usize) -> Option<Place> {
        let mut sessions = self.sessions.lock();
        let count = sessions.entry(user.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place {
            of: self.clone(),
            user: user.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sessions = self.of.sessions.lock();
        if let Some(count) = sessions.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                sessions.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back() {
        let users = Arc::new(Users::default());
        let (alice, bob): (Arc<str>, Arc<str>) = ("alice".into(), "bob".into());
        let first = users.enter(&alice, 1).unwrap();
        assert!(users.enter(&alice, 1).is_none());
        assert!(users.enter(&bob, 1).is_some());
        drop(first);
        assert!(users.enter(&alice, 1).is_some());
        assert!(users.sessions.lock().is_empty());
    }
}
