//! The users of a `basic_auth`, and what of their passwords was right before.

use std::collections::HashMap;
use std::sync::Arc;

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::config::http::HashedPassword;

/// Right pairs of name and password that are remembered.
const REMEMBERED: usize = 4_096;

/// Leased by [`Users::identity`], so that what is remembered outlives a swap that leaves the users as they are, and no other.
#[derive(Debug)]
pub(in crate::http::filter) struct Users {
    by_name: HashMap<Arc<str>, HashedPassword>,
    /// What an unknown name's password is held against, so that it takes as long as a known one's.
    dummy: Option<HashedPassword>,
    /// Goes into every digest: one that leaks tells nothing without it. `None`: the system has none, nothing is remembered.
    key: Option<[u8; 32]>,
    right: Cache<[u8; 32], ()>,
}

/// What is known of a name and a password.
pub(super) enum Found {
    Verified(Arc<str>),
    Ask(Question),
    /// There are no users at all.
    Nobody,
}

/// A password to be held against a hash.
pub(super) struct Question {
    /// Who it is if the password is right; `None` for an unknown name.
    pub(super) user: Option<Arc<str>>,
    pub(super) digest: Option<[u8; 32]>,
    pub(super) hash: HashedPassword,
    pub(super) password: Vec<u8>,
}

impl Users {
    /// The same for the same users with the same hashes.
    pub(super) fn identity(users: &[(String, HashedPassword)]) -> [u8; 32] {
        let mut sorted: Vec<_> = users.iter().collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        let mut digest = Sha256::new();
        for (name, hash) in sorted {
            // Neither has a line break in it.
            digest.update(name);
            digest.update(b"\n");
            digest.update(hash.expose());
            digest.update(b"\n");
        }
        digest.finalize().into()
    }

    pub(super) fn new(users: Vec<(String, HashedPassword)>) -> Users {
        let mut key = [0; 32];
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let filled = provider.secure_random.fill(&mut key).is_ok();
        Users {
            dummy: users.first().map(|(_, hash)| hash.clone()),
            by_name: users
                .into_iter()
                .map(|(name, hash)| (name.into(), hash))
                .collect(),
            key: filled.then_some(key),
            right: Cache::new(REMEMBERED),
        }
    }

    pub(super) fn find(&self, name: String, password: Vec<u8>) -> Found {
        let digest = self.digest(&name, &password);
        let known = self.by_name.get_key_value(name.as_str());
        if let (Some((user, _)), Some(digest)) = (known, &digest)
            && self.right.get(digest).is_some()
        {
            return Found::Verified(user.clone());
        }
        let hash = known.map(|(_, hash)| hash).or(self.dummy.as_ref());
        let Some(hash) = hash else {
            return Found::Nobody;
        };
        Found::Ask(Question {
            user: known.map(|(user, _)| user.clone()),
            digest,
            hash: hash.clone(),
            password,
        })
    }

    /// A pair was right.
    pub(super) fn remember(&self, digest: Option<[u8; 32]>) {
        if let Some(digest) = digest {
            self.right.insert(digest, ());
        }
    }

    fn digest(&self, name: &str, password: &[u8]) -> Option<[u8; 32]> {
        let mut digest = Sha256::new();
        digest.update(self.key?);
        digest.update((name.len() as u64).to_ne_bytes());
        digest.update(name);
        digest.update(password);
        Some(digest.finalize().into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn users(names: &[&str]) -> Vec<(String, HashedPassword)> {
        let text = "$2b$04$EGdrhbKUv8Oc9vGiXX0HQOxSg445d458Muh7DAHskb6QbtCvdxcie";
        let hash = HashedPassword::parse(text).unwrap();
        names
            .iter()
            .map(|n| ((*n).to_owned(), hash.clone()))
            .collect()
    }

    #[test]
    fn what_was_right_is_remembered_and_nothing_else() {
        let known = Users::new(users(&["alice", "bob"]));
        let ask = |name: &str, password: &str| known.find(name.into(), password.into());
        let Found::Ask(question) = ask("alice", "x") else {
            panic!()
        };
        assert_eq!(question.user.as_deref(), Some("alice"));
        known.remember(question.digest);
        assert!(matches!(ask("alice", "x"), Found::Verified(user) if &*user == "alice"));
        assert!(
            matches!(ask("alice", "y"), Found::Ask(_)) && matches!(ask("bob", "x"), Found::Ask(_))
        );
        assert!(matches!(ask("carol", "x"), Found::Ask(question) if question.user.is_none()));
        assert!(matches!(
            Users::new(vec![]).find("a".into(), vec![]),
            Found::Nobody
        ));
    }

    #[test]
    fn the_same_users_are_the_same_in_any_order() {
        let one = Users::identity(&users(&["a", "b"]));
        assert_eq!(one, Users::identity(&users(&["b", "a"])));
        assert_ne!(one, Users::identity(&users(&["a"])));
    }
}
