//! `hash-password`: what `basic_auth` and users of forward proxies take instead of a password.

use std::io::{BufRead, IsTerminal, Write};

use argon2::password_hash::PasswordHasher;

use super::{Exit, complain, print};

/// Longer is no password, and would only be hashed away.
const LONGEST: u64 = 4_096;

/// Reads a password and prints its argon2id hash (RFC 9106; 19 MiB and two passes).
pub(crate) fn hash_password() -> Exit {
    match hashed() {
        Ok(hash) => {
            print(&format!("{hash}\n"));
            Exit::Done
        }
        Err(message) => {
            complain(&message);
            Exit::Other
        }
    }
}

/// The hash of a password that is read.
pub(super) fn hashed() -> Result<String, String> {
    password().and_then(|password| hash(&password))
}

/// From a terminal twice, unseen; from anything else its first line.
fn password() -> Result<String, String> {
    let stdin = std::io::stdin();
    let password = if stdin.is_terminal() {
        let hidden = echo::Off::now().map_err(|error| format!("the terminal: {error}"))?;
        let first = ask("Password: ")?;
        let again = ask("Again: ")?;
        drop(hidden);
        if first != again {
            return Err("the two are not the same".to_owned());
        }
        first
    } else {
        line(stdin.lock())?
    };
    if password.is_empty() {
        return Err("no password: it is read from the terminal or from standard input".to_owned());
    }
    Ok(password)
}

fn ask(prompt: &str) -> Result<String, String> {
    // A terminal that shows nothing can still be typed at.
    let _ = write!(std::io::stderr(), "{prompt}").and_then(|()| std::io::stderr().flush());
    let answer = line(std::io::stdin().lock());
    eprintln!();
    answer
}

fn line(from: impl BufRead) -> Result<String, String> {
    let mut text = String::new();
    let read = from.take(LONGEST + 1).read_line(&mut text);
    read.map_err(|error| format!("standard input: {error}"))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.len() as u64 > LONGEST {
        return Err(format!("longer than {LONGEST} bytes"));
    }
    Ok(text.to_owned())
}

fn hash(password: &str) -> Result<String, String> {
    let mut salt = [0; 16];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let filled = provider.secure_random.fill(&mut salt);
    filled.map_err(|_| "the system has no random numbers".to_owned())?;
    let hash = argon2::Argon2::default().hash_password_with_salt(password.as_bytes(), &salt);
    let hash = hash.map_err(|error| format!("the password can't be hashed: {error}"))?;
    Ok(hash.to_string())
}

#[cfg(unix)]
mod echo {
    //! A terminal that does not show what is typed.

    use std::io;

    use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

    /// Dropping it brings the echo back.
    pub(super) struct Off(Termios);

    impl Off {
        pub(super) fn now() -> io::Result<Off> {
            let before = tcgetattr(io::stdin())?;
            let mut hidden = before.clone();
            hidden.local_modes.remove(LocalModes::ECHO);
            tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)?;
            Ok(Off(before))
        }
    }

    impl Drop for Off {
        fn drop(&mut self) {
            // The terminal is gone, or was never changed.
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
        }
    }
}

#[cfg(not(unix))]
mod echo {
    //! Where a terminal's echo can't be switched off from here, it is told.

    use std::io;

    pub(super) struct Off;

    impl Off {
        pub(super) fn now() -> io::Result<Off> {
            eprintln!("evergate: what you type is shown here");
            Ok(Off)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::http::{HashKind, HashedPassword};

    #[test]
    fn a_line_is_a_password_and_its_hash_is_taken() {
        assert_eq!(line(&b"secret\r\nmore"[..]).unwrap(), "secret");
        assert!(line("x".repeat(5_000).as_bytes()).is_err());
        let hashes = [hash("secret").unwrap(), hash("secret").unwrap()];
        assert_ne!(hashes[0], hashes[1]);
        assert_eq!(
            HashedPassword::parse(&hashes[0]).unwrap().kind,
            HashKind::Argon2
        );
    }
}
