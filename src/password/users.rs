//! The users of one place, and what of their passwords was right before.

use std::collections::HashMap;
use std::sync::Arc;

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::forward::{PasswordSpec, UserSpec};
use crate::config::http::HashedPassword;

/// Right pairs of name and password that are remembered.
const REMEMBERED: usize = 4_096;

/// Leased by [`Users::identity`], so that what is remembered outlives a swap that leaves the users as they are, and no other.
#[derive(Debug)]
pub(super) struct Users {
    by_name: HashMap<Arc<str>, Known>,
    /// What an unknown name's password is held against if there are hashes, so that it takes as long as a known one's: the dearest of
    /// all. A user with a cheaper hash can be told by the time it takes; to have all hashes of one kind and cost helps.
    dummy: Option<HashedPassword>,
    /// Goes into every digest: one that leaks tells nothing without it. `None`: the system has none, nothing is remembered.
    key: Option<[u8; 32]>,
    right: Cache<[u8; 32], ()>,
}

/// What a password is held against.
#[derive(Debug)]
enum Known {
    Hash(HashedPassword),
    /// Digest of the secret: of one length, so that the time of a comparison tells nothing.
    Plain([u8; 32]),
}

/// What is known of a name and a password.
pub(super) enum Found {
    Verified(Arc<str>),
    Ask(Question),
    /// It is not the secret, or there is no such user and nothing that takes time.
    Wrong,
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
    /// The same for the same users with the same hashes and secrets.
    pub(super) fn identity(users: &[UserSpec]) -> [u8; 32] {
        let mut sorted: Vec<_> = users.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut digest = Sha256::new();
        for user in sorted {
            let (kind, text) = match &user.password {
                PasswordSpec::Hashed(hash) => (b"hash", hash.expose()),
                PasswordSpec::Plain(secret) => (b"text", secret.expose()),
            };
            // By their lengths they cannot be taken for others.
            digest.update((user.name.len() as u64).to_ne_bytes());
            digest.update(&user.name);
            digest.update(kind);
            digest.update((text.len() as u64).to_ne_bytes());
            digest.update(text);
        }
        digest.finalize().into()
    }

    pub(super) fn new(users: Vec<UserSpec>) -> Users {
        let mut key = [0; 32];
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let filled = provider.secure_random.fill(&mut key).is_ok();
        Users {
            dummy: users
                .iter()
                .filter_map(|user| match &user.password {
                    PasswordSpec::Hashed(hash) => Some(hash),
                    PasswordSpec::Plain(_) => None,
                })
                .max_by_key(|hash| hash.cost)
                .cloned(),
            by_name: users
                .into_iter()
                .map(|user| (user.name.into(), Known::of(user.password)))
                .collect(),
            key: filled.then_some(key),
            right: Cache::new(REMEMBERED),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub(super) fn find(&self, name: String, password: Vec<u8>) -> Found {
        let known = self.by_name.get_key_value(name.as_str());
        if let Some((user, Known::Plain(secret))) = known {
            let given: [u8; 32] = Sha256::digest(&password).into();
            return match bool::from(given.ct_eq(secret)) {
                true => Found::Verified(user.clone()),
                false => Found::Wrong,
            };
        }
        let digest = self.digest(&name, &password);
        if let (Some((user, _)), Some(digest)) = (known, &digest)
            && self.right.get(digest).is_some()
        {
            return Found::Verified(user.clone());
        }
        let hash = known.and_then(|(_, known)| match known {
            Known::Hash(hash) => Some(hash),
            Known::Plain(_) => None,
        });
        let Some(hash) = hash.or(self.dummy.as_ref()) else {
            return Found::Wrong;
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

impl Known {
    fn of(password: PasswordSpec) -> Known {
        match password {
            PasswordSpec::Hashed(hash) => Known::Hash(hash),
            PasswordSpec::Plain(secret) => Known::Plain(Sha256::digest(secret.expose()).into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn user(name: &str, hash: HashedPassword) -> UserSpec {
        UserSpec {
            name: name.to_owned(),
            password: PasswordSpec::Hashed(hash),
        }
    }

    fn users(names: &[&str]) -> Vec<UserSpec> {
        let text = "$2b$04$EGdrhbKUv8Oc9vGiXX0HQOxSg445d458Muh7DAHskb6QbtCvdxcie";
        let hash = HashedPassword::parse(text).unwrap();
        names.iter().map(|name| user(name, hash.clone())).collect()
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
            Found::Wrong
        ));
    }

    #[test]
    fn an_unknown_name_is_as_dear_as_the_dearest() {
        let cheap = "$2b$04$EGdrhbKUv8Oc9vGiXX0HQOxSg445d458Muh7DAHskb6QbtCvdxcie";
        let dear = cheap.replacen("$04$", "$12$", 1);
        let argon = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$\
                     Zm9vYmFyZm9vYmFyZm9vYmFyZm9vYmFyZm9vYmFyZm8";
        let dummy = |texts: &[&str]| {
            let users = texts.iter().enumerate();
            let users =
                users.map(|(n, text)| user(&n.to_string(), HashedPassword::parse(text).unwrap()));
            Users::new(users.collect()).dummy.unwrap()
        };
        assert_eq!(dummy(&[cheap, &dear, argon]).expose(), dear);
        assert_eq!(dummy(&[cheap, argon]).expose(), argon);
        assert_eq!(dummy(&[argon, cheap]).expose(), argon);
    }

    #[test]
    fn the_same_users_are_the_same_in_any_order() {
        let one = Users::identity(&users(&["a", "b"]));
        assert_eq!(one, Users::identity(&users(&["b", "a"])));
        assert_ne!(one, Users::identity(&users(&["a"])));
    }
}
