//! A public key by its digest: what stands for a certificate where there is no CA.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::Wrong;

/// SHA-256 of a certificate's `SubjectPublicKeyInfo` in DER, written `sha256/BASE64` (RFC 7469 section 2.4 has the same
/// digest). It stays what it is when the certificate is renewed with the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin(pub [u8; 32]);

impl Pin {
    /// Parses `sha256/BASE64`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Pin, Wrong> {
        let wrong = || {
            Wrong::new(format!(
                "`{}` is not a pin",
                super::super::check::shorten(text)
            ))
            .help("a pin is `sha256/` and 44 characters, as the other side's `/tunnels` shows it")
        };
        let digest = text.strip_prefix("sha256/").ok_or_else(wrong)?;
        let bytes = STANDARD_NO_PAD
            .decode(digest.trim_end_matches('='))
            .map_err(|_| wrong())?;
        bytes.try_into().map(Pin).map_err(|_| wrong())
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256/{}", STANDARD.encode(self.0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_prints_to_what_it_parses_from() {
        let pin = Pin([7; 32]);
        assert_eq!(Pin::parse(&pin.to_string()).unwrap(), pin);
        let bare = pin.to_string();
        assert_eq!(Pin::parse(bare.trim_end_matches('=')).unwrap(), pin);
        for wrong in [
            "",
            "sha256/",
            "sha1/AAAA",
            "sha256/AAAA",
            &bare[7..],
            "sha256/!",
        ] {
            assert!(Pin::parse(wrong).is_err(), "{wrong}");
        }
    }
}
