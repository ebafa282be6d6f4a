//! Proofs that a secret is known, without sending it: HMAC-SHA256 (RFC 2104) over what only this connection has (the TLS
//! exporter, RFC 8446 section 7.5) and what only this attempt has (the server's nonce). Who passes messages on between
//! two connections has another exporter on each of them, so what it passes on proves nothing; what was recorded proves
//! nothing later. The server proves it too, with another label: a stolen certificate alone does not make an agent talk.

use aws_lc_rs::hmac;

use super::wire::VERSION;
use crate::config::scalar::Secret;

/// What the exporter is asked for.
pub const LABEL: &[u8] = b"EXPORTER-evergate-tunnel";

/// Of 32 bytes each.
pub type Exporter = [u8; 32];
pub type Nonce = [u8; 32];

/// Who proves that it knows the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prover {
    Agent,
    Server,
}

/// What is proved: this connection, this attempt, this agent.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    pub exporter: &'a Exporter,
    pub nonce: &'a Nonce,
    pub agent: &'a str,
}

impl Claim<'_> {
    fn message(&self, prover: Prover) -> Vec<u8> {
        let mut message = Vec::with_capacity(80 + self.agent.len());
        message.extend_from_slice(match prover {
            Prover::Agent => b"agent\0",
            Prover::Server => b"serve\0",
        });
        message.push(VERSION);
        // Both have a fixed length, and what has not comes last.
        message.extend_from_slice(self.exporter);
        message.extend_from_slice(self.nonce);
        message.extend_from_slice(self.agent.as_bytes());
        message
    }

    /// The proof, in hexadecimal.
    pub fn prove(&self, prover: Prover, secret: &Secret) -> String {
        hex(hmac::sign(&key(secret), &self.message(prover)).as_ref())
    }

    /// Whether a proof is one. Takes as long for a wrong one as for a right one.
    pub fn verify(&self, prover: Prover, secret: &Secret, proof: &str) -> bool {
        let Some(tag) = unhex(proof) else {
            return false;
        };
        hmac::verify(&key(secret), &self.message(prover), &tag).is_ok()
    }

    /// The secret that a proof was made with. Looks at all of them, so that its time says nothing about which.
    pub fn which<'s>(&self, secrets: &'s [Secret], proof: &str) -> Option<&'s Secret> {
        let mut found = None;
        for secret in secrets {
            if self.verify(Prover::Agent, secret, proof) {
                found = Some(secret);
            }
        }
        found
    }
}

fn key(secret: &Secret) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes())
}

/// Random bytes that nobody can guess.
///
/// # Errors
/// When the system has none.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| std::io::Error::other("the system has no randomness"))?;
    Ok(bytes)
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a string never fails.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The 32 bytes that a text stands for.
pub fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |d: u8| char::from(d).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    #[test]
    fn a_proof_is_good_for_its_secret_connection_attempt_agent_and_side_alone() {
        let claim = Claim {
            exporter: &[1; 32],
            nonce: &[2; 32],
            agent: "home",
        };
        let good = secret("correct horse");
        let proof = claim.prove(Prover::Agent, &good);
        assert!(claim.verify(Prover::Agent, &good, &proof));
        assert!(!claim.verify(Prover::Server, &good, &proof));
        assert!(!claim.verify(Prover::Agent, &secret("wrong"), &proof));
        for other in [
            Claim {
                exporter: &[9; 32],
                ..claim
            },
            Claim {
                nonce: &[9; 32],
                ..claim
            },
            Claim {
                agent: "homer",
                ..claim
            },
        ] {
            assert!(!other.verify(Prover::Agent, &good, &proof));
        }
        for wrong in ["", "zz", &proof[1..], &proof.replace(|_| true, "é")] {
            assert!(!claim.verify(Prover::Agent, &good, wrong));
        }
    }

    #[test]
    fn either_of_two_secrets_will_do() {
        let claim = Claim {
            exporter: &[1; 32],
            nonce: &[2; 32],
            agent: "home",
        };
        let both = [secret("old"), secret("new")];
        for known in &both {
            let proof = claim.prove(Prover::Agent, known);
            assert_eq!(claim.which(&both, &proof), Some(known));
        }
        let proof = claim.prove(Prover::Agent, &secret("none"));
        assert_eq!(claim.which(&both, &proof), None);
    }

    #[test]
    fn hexadecimal_goes_there_and_back() {
        let bytes: [u8; 32] = std::array::from_fn(|i| i as u8 * 7);
        assert_eq!(unhex(&hex(&bytes)), Some(bytes));
    }
}
