//! Hashed passwords, as `basic_auth` and htpasswd files have them: argon2 (PHC strings) and bcrypt. Plain texts, and
//! hashes that are no better today, are refused.

use std::fmt;
use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash;

use super::super::super::check::shorten;
use super::super::super::scalar::Wrong;

/// A hash that somebody's password can be held against.
#[derive(Clone, PartialEq, Eq)]
pub struct HashedPassword {
    pub kind: HashKind,
    /// How dear a verification is, roughly in microseconds: for comparison.
    pub cost: u64,
    text: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashKind {
    Argon2,
    Bcrypt,
}

impl fmt::Debug for HashedPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} <redacted>", self.kind)
    }
}

/// More memory than this, in KiB, a login is not worth; nor more passes or lanes than these.
const ARGON2_MEMORY: u32 = 256 * 1024;
const ARGON2_PASSES: u32 = 64;
const ARGON2_LANES: u32 = 64;
/// Seconds of work.
const BCRYPT_COST: u32 = 16;

const HELP: &str =
    "`evergate hash-password` makes an argon2id hash, `htpasswd -nB NAME` one of bcrypt";

impl HashedPassword {
    /// Reads a hash.
    ///
    /// # Errors
    /// What kind of thing it is instead; never the text itself.
    pub fn parse(text: &str) -> Result<HashedPassword, Wrong> {
        let kind = if text.starts_with("$argon2") {
            argon2(text).map(|cost| (HashKind::Argon2, cost))
        } else if ["$2a$", "$2b$", "$2y$"].iter().any(|p| text.starts_with(p)) {
            bcrypt(text).map(|cost| (HashKind::Bcrypt, cost))
        } else {
            Err(unknown(text))
        };
        let (kind, cost) = kind.map_err(|message| Wrong::new(message).help(HELP))?;
        Ok(HashedPassword {
            kind,
            cost,
            text: text.into(),
        })
    }

    /// The hash itself; for verification only.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

/// Reads it for its cost.
fn argon2(text: &str) -> Result<u64, &'static str> {
    let hash = PasswordHash::new(text).map_err(|_| "an argon2 hash that is not whole")?;
    let known = ["argon2id", "argon2i", "argon2d"];
    if !known.contains(&hash.algorithm.as_str()) || hash.salt.is_none() || hash.hash.is_none() {
        return Err("an argon2 hash that is not whole");
    }
    let params = argon2::Params::try_from(&hash)
        .map_err(|_| "an argon2 hash with parameters that are not possible")?;
    let fits = params.m_cost() <= ARGON2_MEMORY
        && params.t_cost() <= ARGON2_PASSES
        && params.p_cost() <= ARGON2_LANES;
    if !fits {
        return Err("an argon2 hash that takes over 256 MiB, 64 passes or 64 lanes");
    }
    // About half a microsecond for each KiB and pass; lanes share the memory.
    Ok(u64::from(params.m_cost()) * u64::from(params.t_cost()) / 2)
}

/// Reads it for its cost.
fn bcrypt(text: &str) -> Result<u64, &'static str> {
    let parts: bcrypt::HashParts = text
        .parse()
        .map_err(|_| "a bcrypt hash that is not whole")?;
    if !(4..=BCRYPT_COST).contains(&parts.get_cost()) {
        return Err("a bcrypt hash with a cost that is not within 4 to 16");
    }
    // About 50 microseconds for each round.
    Ok(50 << parts.get_cost())
}

fn unknown(text: &str) -> &'static str {
    let kinds = [
        (
            "$apr1$",
            "an MD5 hash (`$apr1$`), which is no protection today",
        ),
        ("$1$", "an MD5 hash (`$1$`), which is no protection today"),
        (
            "{SHA}",
            "a SHA-1 hash (`{SHA}`), which is no protection today",
        ),
        (
            "$5$",
            "a hash of crypt's SHA-256 (`$5$`), which is not taken",
        ),
        (
            "$6$",
            "a hash of crypt's SHA-512 (`$6$`), which is not taken",
        ),
        ("$2x$", "a bcrypt hash of the broken kind (`$2x$`)"),
        ("$", "a hash of a kind that is not known"),
    ];
    let kind = kinds.iter().find(|(prefix, _)| text.starts_with(prefix));
    kind.map_or(
        "not a hash: a password is never plain text here",
        |(_, what)| what,
    )
}

/// Whether a text can be a user's name: it stands before a `:` in what a client sends.
pub(in crate::config) fn user_name(text: &str) -> Result<(), Wrong> {
    if text.is_empty() || text.contains(|c: char| c == ':' || c.is_control()) || text.len() > 255 {
        return Err(
            Wrong::new(format!("`{}` is not a user's name", shorten(text)))
                .help("up to 255 bytes without `:` and control characters"),
        );
    }
    Ok(())
}

/// A user's name and hash.
pub(super) type User = (String, HashedPassword);

/// Reads the lines of an htpasswd file. Empty ones, and those that begin with `#`, say nothing.
///
/// # Errors
/// Every line that is wrong, by its number.
pub fn htpasswd(bytes: &[u8]) -> Result<Vec<User>, Vec<(usize, Wrong)>> {
    let (mut users, mut wrong): (Vec<User>, _) = (Vec::new(), Vec::new());
    let mut names = std::collections::HashSet::new();
    for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let read = || -> Result<User, Wrong> {
            let text = std::str::from_utf8(line).map_err(|_| Wrong::new("not UTF-8"))?;
            let (name, hash) = text
                .split_once(':')
                .ok_or_else(|| Wrong::new("no `name:hash`"))?;
            // Not quoted: the path may be that of a file which holds something else.
            user_name(name).map_err(|_| Wrong::new("no user's name before `:`"))?;
            Ok((name.to_owned(), HashedPassword::parse(hash)?))
        };
        match read() {
            Ok((name, _)) if !names.insert(name.clone()) => {
                wrong.push((index + 1, Wrong::new("the user is here twice")));
            }
            Ok(user) => users.push(user),
            Err(error) => wrong.push((index + 1, error)),
        }
    }
    if wrong.is_empty() {
        Ok(users)
    } else {
        Err(wrong)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ARGON2: &str = "$argon2id$v=19$m=16,t=2,p=1$MTIzNDU2Nzg$lKKjYkJmbAVmfFJAaJYqug";
    const BCRYPT: &str = "$2b$04$EGdrhbKUv8Oc9vGiXX0HQOxSg445d458Muh7DAHskb6QbtCvdxcie";

    #[test]
    fn lines_are_users_and_each_wrong_one_is_told() {
        let file = format!("# staff\nalice:{ARGON2}\r\n\nbob:{BCRYPT}\n");
        let users = htpasswd(file.as_bytes()).unwrap();
        let kinds: Vec<_> = users.iter().map(|(n, h)| (n.as_str(), h.kind)).collect();
        assert_eq!(
            kinds,
            [("alice", HashKind::Argon2), ("bob", HashKind::Bcrypt)]
        );
        let file = format!(
            "a:$apr1$x$y\nb\nc:{{SHA}}x\nd:{BCRYPT}\nd:{BCRYPT}\n:{BCRYPT}\ne:secret\nf:{}\ng:{}\nh:{}\n",
            &BCRYPT[..50],
            ARGON2.replace("m=16", "m=999999999"),
            BCRYPT.replace("$04$", "$31$")
        );
        let wrong = htpasswd(file.as_bytes()).unwrap_err();
        let lines: Vec<_> = wrong.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 2, 3, 5, 6, 7, 8, 9, 10]);
        assert!(!format!("{wrong:?}").contains("secret"));
        assert!(!format!("{users:?}").contains("$2b$"));
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = htpasswd(&bytes);
        }

        #[test]
        fn no_hash_makes_it_panic(text in r"(\$argon2id?|\$2[aby]|\$)?[$a-z0-9=,./]{0,70}") {
            let _ = HashedPassword::parse(&text);
        }
    }
}
