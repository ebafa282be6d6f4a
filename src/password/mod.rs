//! Names and passwords, for every room that asks clients for them. What a password costs to check is paid on threads of
//! its own and once: what was right is remembered, as a keyed digest, as long as the users are the same ones.
//!
//! An unknown name costs what a known one does.

mod hasher;
mod users;

use std::sync::Arc;

use crate::config::forward::UserSpec;
use crate::registry::Registry;
use hasher::Hasher;
use users::{Found, Users};

/// What outlives generations, by identity. One per process.
#[derive(Debug, Default)]
pub struct Shared {
    /// By digest of names and what their passwords are held against.
    users: Registry<[u8; 32], Users>,
    /// One, while anybody has users.
    hashers: Registry<(), Hasher>,
}

/// The users of one place, as a generation has them.
#[derive(Debug)]
pub struct Passwords {
    users: Arc<Users>,
    hasher: Arc<Hasher>,
}

/// What a name and a password are at first sight.
pub enum Look<'a> {
    /// Right, at no cost.
    Known(Arc<str>),
    /// It must be found out.
    Unknown(Check<'a>),
    Wrong,
}

/// A password to be held against its hash.
pub struct Check<'a> {
    of: &'a Passwords,
    question: users::Question,
}

/// Why nobody is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// No such name, or another password.
    Wrong,
    /// Too many wait to be checked.
    Busy,
}

impl Passwords {
    pub fn new(users: Vec<UserSpec>, shared: &Shared) -> Passwords {
        Passwords {
            users: shared
                .users
                .lease(&Users::identity(&users), || Users::new(users)),
            hasher: shared.hashers.lease(&(), Hasher::start),
        }
    }

    /// Whether there is a user of this name.
    pub fn has(&self, name: &str) -> bool {
        self.users.has(name)
    }

    pub fn look(&self, name: String, password: Vec<u8>) -> Look<'_> {
        match self.users.find(name, password) {
            Found::Verified(user) => Look::Known(user),
            Found::Ask(question) => Look::Unknown(Check { of: self, question }),
            Found::Wrong => Look::Wrong,
        }
    }

    /// Who it is.
    ///
    /// # Errors
    /// [`Denied`].
    pub async fn verify(&self, name: String, password: Vec<u8>) -> Result<Arc<str>, Denied> {
        match self.look(name, password) {
            Look::Known(user) => Ok(user),
            Look::Unknown(check) => check.run().await,
            Look::Wrong => Err(Denied::Wrong),
        }
    }
}

impl Check<'_> {
    /// Who it is.
    ///
    /// # Errors
    /// [`Denied`].
    pub async fn run(self) -> Result<Arc<str>, Denied> {
        let Passwords { users, hasher } = self.of;
        let users::Question {
            user,
            digest,
            hash,
            password,
        } = self.question;
        let Ok(answer) = hasher.verify(hash, password) else {
            return Err(Denied::Busy);
        };
        let right = answer.await.unwrap_or(false);
        let user = user.filter(|_| right).ok_or(Denied::Wrong)?;
        users.remember(digest);
        Ok(user)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::forward::PasswordSpec;
    use crate::config::http::HashedPassword;
    use crate::config::scalar::Secret;

    #[tokio::test]
    async fn secrets_and_hashes_stand_side_by_side() {
        let hash = bcrypt::hash("hashed", 4).unwrap();
        let user = |name: &str, password| UserSpec {
            name: name.to_owned(),
            password,
        };
        let users = vec![
            user(
                "plain",
                PasswordSpec::Plain(Secret::new("plain secret".into())),
            ),
            user(
                "hash",
                PasswordSpec::Hashed(HashedPassword::parse(&hash).unwrap()),
            ),
        ];
        let passwords = Passwords::new(users, &Shared::default());
        for (name, password, right) in [
            ("plain", "plain secret", true),
            ("plain", "plain secre", false),
            ("plain", "plain secret\0", false),
            ("plain", "", false),
            ("hash", "hashed", true),
            ("hash", "plain secret", false),
            ("nobody", "plain secret", false),
            ("", "", false),
        ] {
            for _ in 0..2 {
                let answer = passwords.verify(name.to_owned(), password.into()).await;
                assert_eq!(answer.is_ok(), right, "{name} {password:?}");
            }
        }
    }
}
