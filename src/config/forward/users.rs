//! Who may use a forward proxy.

use std::path::PathBuf;

use super::super::admin::secret;
use super::super::check::Checker;
use super::super::http::filters::password::user_name;
use super::super::http::{HashedPassword, htpasswd};
use super::super::scalar::Secret;
use super::ForwardRaw;

/// Checked `users` and `htpasswd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsersSpec {
    pub users: Vec<UserSpec>,
    /// An absolute path, and the JSON Pointer of where it is written.
    pub htpasswd: Option<(PathBuf, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSpec {
    pub name: String,
    pub password: PasswordSpec,
}

/// What a password is held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PasswordSpec {
    Plain(Secret),
    Hashed(HashedPassword),
}

impl PasswordSpec {
    /// What begins as a hash does is one.
    fn parse(secret: Secret) -> Result<PasswordSpec, super::super::scalar::Wrong> {
        let text = secret.expose().trim();
        let hashes = ["$argon2", "$2a$", "$2b$", "$2y$"];
        if hashes.iter().any(|prefix| text.starts_with(prefix)) {
            return HashedPassword::parse(text).map(PasswordSpec::Hashed);
        }
        Ok(PasswordSpec::Plain(secret))
    }
}

impl UsersSpec {
    /// All users, with those of the file, whose contents were judged when it was read.
    pub fn all(&self, file: Option<&[u8]>) -> Vec<UserSpec> {
        let mut all = self.users.clone();
        let more = file.map(|text| htpasswd(text).unwrap_or_default());
        for (name, hash) in more.into_iter().flatten() {
            if !self.users.iter().any(|user| user.name == name) {
                all.push(UserSpec {
                    name,
                    password: PasswordSpec::Hashed(hash),
                });
            }
        }
        all
    }
}

impl ForwardRaw {
    /// `name` is that of the proxy.
    pub(super) fn users(&self, name: &str, check: &mut Checker<'_>) -> Option<UsersSpec> {
        if self.users.is_none() && self.htpasswd.is_none() {
            return None;
        }
        let mut users = Vec::new();
        for (name, raw) in self.users.iter().flat_map(|users| users.iter()) {
            if let Err(wrong) = user_name(name) {
                let finding = check.findings.key_error(raw.at, wrong.message);
                finding.help_if(wrong.help);
            }
            let Some(text) = secret(raw, None, check) else {
                continue;
            };
            if let Some(password) = check.take(raw.at, PasswordSpec::parse(text)) {
                if let PasswordSpec::Plain(plain) = &password
                    && plain.expose().len() > 255
                {
                    let finding = check.findings.error(raw.at, "a password of over 255 bytes");
                    finding.help("SOCKS has none that are longer (RFC 1929)");
                }
                users.push(UserSpec {
                    name: name.clone(),
                    password,
                });
            }
        }
        let none = |map: &super::Map<_>| map.is_empty() && map.spoiled.is_empty();
        if let (Some(map), None) = (&self.users, &self.htpasswd)
            && none(map)
        {
            let finding = check.findings.error(map.at, "an empty table of users");
            finding.help("leave it out to let in anybody; without users nobody could come in");
        }
        let htpasswd = self.htpasswd.as_ref().and_then(|path| {
            if path.is_empty() {
                check.findings.error(path.at, "an empty path");
                return None;
            }
            let pointer = format!("/forward/{name}/htpasswd");
            Some((check.base.join(&path.value), pointer))
        });
        Some(UsersSpec { users, htpasswd })
    }
}
