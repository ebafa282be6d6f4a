//! `basic_auth`.

use std::fmt;
use std::path::PathBuf;

use ::http::HeaderValue;

use super::super::super::admin::secret;
use super::super::super::check::Checker;
use super::super::super::decode::{Map, section};
use super::super::super::scalar::SecretRef;
use super::super::super::tree::At;
use super::password::{HashedPassword, user_name};

section! {
    /// Who may come, by name and password (RFC 7617). What the client sends goes on to the upstream; `headers` can take it away.
    pub struct BasicAuthRaw {
        /// Hashed passwords by name: argon2 (`$argon2id$…`) or bcrypt (`$2b$…`), never plain text. `evergate hash-password` makes one.
        users: Map<SecretRef>,
        /// A file with a line `name:hash` for each user; read when the configuration is loaded. A name that `users` has counts there.
        htpasswd: String,
        /// What the client shows when it asks for the password.
        realm: String = "restricted",
    }
    later = [];
}

/// Checked `basic_auth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicAuthSpec {
    pub users: Vec<(String, HashedPassword)>,
    /// An absolute path, and the JSON Pointer of where it is written.
    pub htpasswd: Option<(PathBuf, String)>,
    /// Value of `WWW-Authenticate`.
    pub challenge: HeaderValue,
}

impl BasicAuthSpec {
    /// `pointer` is the JSON Pointer of the table it stands in.
    pub(super) fn new(
        raw: &BasicAuthRaw,
        at: At,
        pointer: fmt::Arguments<'_>,
        check: &mut Checker<'_>,
    ) -> Option<BasicAuthSpec> {
        if raw.users.is_none() && raw.htpasswd.is_none() && raw.spoiled.is_empty() {
            let wrong = check
                .findings
                .error(at, "`basic_auth` needs `users` or `htpasswd`");
            wrong.help("without users nobody could come in");
        }
        let mut users = Vec::new();
        for (name, raw) in raw.users.iter().flat_map(|users| users.iter()) {
            if let Err(wrong) = user_name(name) {
                check
                    .findings
                    .key_error(raw.at, wrong.message)
                    .help_if(wrong.help);
            }
            let Some(text) = secret(raw, None, check) else {
                continue;
            };
            let hash = HashedPassword::parse(text.expose().trim());
            users.extend(check.take(raw.at, hash).map(|hash| (name.clone(), hash)));
        }
        let htpasswd = raw.htpasswd.as_ref().and_then(|path| {
            if path.is_empty() {
                check.findings.error(path.at, "an empty path");
                return None;
            }
            let pointer = format!("{pointer}/basic_auth/htpasswd");
            Some((check.base.join(&path.value), pointer))
        });
        let realm = raw.realm.as_ref()?;
        let challenge = challenge(realm);
        if challenge.is_none() {
            let wrong = check.findings.error(realm.at, "not fit for a header");
            wrong.help("ASCII without control characters, `\"` and `\\`");
        }
        Some(BasicAuthSpec {
            users,
            htpasswd,
            challenge: challenge?,
        })
    }
}

fn challenge(realm: &str) -> Option<HeaderValue> {
    let plain = |b: u8| (b.is_ascii_graphic() || b == b' ') && b != b'"' && b != b'\\';
    if !realm.bytes().all(plain) {
        return None;
    }
    HeaderValue::try_from(format!("Basic realm=\"{realm}\", charset=\"UTF-8\"")).ok()
}
