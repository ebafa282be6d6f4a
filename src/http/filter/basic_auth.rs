//! `basic_auth`: who may come, by name and password (RFC 7617). What a password costs to check is paid on threads of its
//! own and once: what was right is remembered, as a keyed digest, as long as the users are the same ones.
//!
//! An unknown name costs what a known one does. `Authorization` goes on to the upstream, as it does through other proxies:
//! applications read the user from it.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{Given, Refusal};
use crate::config::forward::{PasswordSpec, UserSpec};
use crate::config::http::{BasicAuthSpec, htpasswd};
use crate::http::error;
use crate::password::{self, Denied, Passwords};

/// `basic_auth` as a generation has it.
#[derive(Debug)]
pub(super) struct BasicAuth {
    passwords: Passwords,
    challenge: HeaderValue,
}

/// What a request brings.
pub(super) enum Look<'a> {
    /// Who it is, at no cost.
    Known(Arc<str>),
    /// It must be found out.
    Unknown(Check<'a>),
}

impl BasicAuth {
    /// The contents of the file were judged when it was read.
    pub(super) fn build(spec: &BasicAuthSpec, given: &Given<'_>) -> BasicAuth {
        let mut all = spec.users.clone();
        if let Some((path, _)) = &spec.htpasswd
            && let Some(text) = given.files.get(path)
        {
            let known = |name: &str| spec.users.iter().any(|(other, _)| other == name);
            let users = htpasswd(text).unwrap_or_default();
            all.extend(users.into_iter().filter(|(name, _)| !known(name)));
        }
        let users = all.into_iter().map(|(name, hash)| UserSpec {
            name,
            password: PasswordSpec::Hashed(hash),
        });
        BasicAuth {
            passwords: Passwords::new(users.collect(), &given.shared.passwords),
            challenge: spec.challenge.clone(),
        }
    }

    /// Looks at what a request says of itself.
    ///
    /// # Errors
    /// 401 for one that says nothing, or nothing that could be right.
    pub(super) fn look(&self, headers: &HeaderMap) -> Result<Look<'_>, Refusal> {
        let Some((name, password)) = credentials(headers, &AUTHORIZATION) else {
            return Err(self.refusal());
        };
        Ok(match self.passwords.look(name, password) {
            password::Look::Known(user) => Look::Known(user),
            password::Look::Unknown(check) => Look::Unknown(Check { of: self, check }),
            password::Look::Wrong => return Err(self.refusal()),
        })
    }

    fn refusal(&self) -> Refusal {
        let mut response = error::plain(StatusCode::UNAUTHORIZED);
        let headers = response.headers_mut();
        headers.insert(WWW_AUTHENTICATE, self.challenge.clone());
        Box::new(response)
    }
}

/// A password to be held against its hash.
pub(super) struct Check<'a> {
    of: &'a BasicAuth,
    check: password::Check<'a>,
}

impl Check<'_> {
    /// Who it is.
    ///
    /// # Errors
    /// 401 if the password is wrong, 503 if too many wait to be checked.
    pub(super) async fn run(self) -> Result<Arc<str>, Refusal> {
        self.check.run().await.map_err(|denied| match denied {
            Denied::Wrong => self.of.refusal(),
            Denied::Busy => {
                let mut response = error::plain(StatusCode::SERVICE_UNAVAILABLE);
                let headers = response.headers_mut();
                headers.insert(RETRY_AFTER, HeaderValue::from(1));
                Box::new(response)
            }
        })
    }
}

/// Name and password of the one field of this name, if it is `Basic` (RFC 7617 section 2).
pub(in crate::http) fn credentials(
    headers: &HeaderMap,
    field: &HeaderName,
) -> Option<(String, Vec<u8>)> {
    let mut lines = headers.get_all(field).iter();
    let (line, None) = (lines.next()?, lines.next()) else {
        return None;
    };
    let (scheme, token) = line.as_bytes().split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut name = STANDARD.decode(token.trim_ascii()).ok()?;
    let colon = name.iter().position(|b| *b == b':')?;
    let password = name.split_off(colon + 1);
    name.pop();
    Some((String::from_utf8(name).ok()?, password))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_one_basic_field() {
        let of = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(AUTHORIZATION, HeaderValue::from_str(line).unwrap());
            }
            credentials(&headers, &AUTHORIZATION)
        };
        let is = |name: &str, password: &str| Some((name.into(), password.as_bytes().to_vec()));
        assert_eq!(of(&["Basic YWxpY2U6YTpi"]), is("alice", "a:b"));
        assert_eq!(of(&["bASIC  YWxpY2U6"]), is("alice", ""));
        for wrong in [
            &[][..],
            &["Basic YWxpY2U="],
            &["Bearer YWxpY2U6YTpi"],
            &["Basic"],
            &["Basic !"],
            &["Basic /zph"],
            &["Basic YWxpY2U6YTpi", "Basic YWxpY2U6YTpi"],
        ] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
    }
}
