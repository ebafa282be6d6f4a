//! One certificate with its chain and key: made of PEM texts, or refused with the reason; and what of it is asked later.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::store::Fault;

/// A certificate with its chain and key.
#[derive(Debug)]
pub struct Certificate {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) names: Vec<Name>,
    addresses: Vec<IpAddr>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// SHA-256 of the certificate.
    fingerprint: [u8; 32],
    /// Digest of the PEM texts that it was made of; zeros for one that was made here.
    pub(super) origin: [u8; 32],
}

/// A DNS name in a certificate, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    Exact(Box<str>),
    /// `*.a.test`, held as `a.test`.
    Below(Box<str>),
}

/// The places and names of a pair, for what is said about it.
pub(super) struct Pair<'a> {
    pub(super) cert: &'a [u8],
    pub(super) cert_pointer: &'a str,
    pub(super) cert_name: &'a str,
    pub(super) key: &'a [u8],
    pub(super) key_pointer: &'a str,
    pub(super) key_name: &'a str,
}

impl Pair<'_> {
    /// # Errors
    /// What is wrong with it, at its place.
    pub(super) fn parse(&self, provider: &CryptoProvider) -> Result<Certificate, Fault> {
        let (cert_name, key_name) = (self.cert_name, self.key_name);
        let bad_cert = |what: String| Fault::new(self.cert_pointer, format!("{cert_name} {what}"));
        let bad_key = |what: String| Fault::new(self.key_pointer, format!("{key_name} {what}"));
        let chain: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(self.cert).collect();
        let chain = chain.map_err(|error| bad_cert(format!("is not valid PEM: {error}")))?;
        if chain.is_empty() {
            return Err(bad_cert("holds no certificate".to_owned())
                .help("a PEM file has a line `-----BEGIN CERTIFICATE-----`"));
        }
        let key = PrivateKeyDer::from_pem_slice(self.key).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => {
                let encrypted = memchr::memmem::find(self.key, b"ENCRYPTED PRIVATE KEY").is_some();
                if encrypted {
                    bad_key("is encrypted".to_owned())
                        .help("give the key without a passphrase: `openssl pkey -in IN -out OUT`")
                } else {
                    bad_key("holds no private key".to_owned())
                        .help("a PEM file has a line such as `-----BEGIN PRIVATE KEY-----`")
                }
            }
            error => bad_key(format!("is not valid PEM: {error}")),
        });
        Certificate::read(&chain[0])
            .ok_or_else(|| bad_cert("holds something that is no X.509 certificate".to_owned()))?;
        Certificate::new(chain, key?, provider).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                bad_key(format!("is not the key of {cert_name}"))
                    .help("the server's own certificate comes first, then those that signed it")
            }
            Error::InvalidCertificate(error) => bad_cert(format!("cannot be used: {error:?}")),
            error => bad_key(format!("cannot be used: {error}")),
        })
    }
}

impl Certificate {
    /// `chain`: the server's own certificate first.
    ///
    /// # Errors
    /// That of rustls, when the two do not fit or cannot be used.
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        provider: &CryptoProvider,
    ) -> Result<Certificate, Error> {
        let unreadable = || Error::General("it is no X.509 certificate".into());
        let leaf = chain.first().ok_or_else(unreadable)?;
        let fingerprint = Sha256::digest(leaf).into();
        let (names, addresses, [not_before, not_after]) =
            Certificate::read(leaf).ok_or_else(unreadable)?;
        Ok(Certificate {
            key: Arc::new(CertifiedKey::from_der(chain, key, provider)?),
            names,
            addresses,
            not_before,
            not_after,
            fingerprint,
            origin: [0; 32],
        })
    }

    /// The certificate itself.
    pub fn der(&self) -> Option<&CertificateDer<'static>> {
        self.key.cert.first()
    }

    /// Names and addresses of a certificate, and when it is valid.
    fn read(leaf: &CertificateDer<'_>) -> Option<(Vec<Name>, Vec<IpAddr>, [Timestamp; 2])> {
        let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
        let extension = parsed.subject_alternative_name().ok()?;
        let (mut names, mut addresses) = (Vec::new(), Vec::new());
        for name in extension.iter().flat_map(|san| &san.value.general_names) {
            match name {
                GeneralName::DNSName(name) => {
                    let name = name.to_ascii_lowercase();
                    names.push(match name.strip_prefix("*.") {
                        Some(domain) => Name::Below(domain.into()),
                        None => Name::Exact(name.into()),
                    });
                }
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        let validity = parsed.validity();
        // A time beyond what can be told is as good as never.
        let time = |seconds: i64| Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let valid = [&validity.not_before, &validity.not_after].map(|t| time(t.timestamp()));
        Some((names, addresses, valid))
    }

    /// True if it is good for `host`, in lower case: a wildcard stands for one label (RFC 9525 section 6.3).
    pub(super) fn is_for(&self, host: &str) -> bool {
        self.names.iter().any(|name| match name {
            Name::Exact(name) => **name == *host,
            Name::Below(domain) => host
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == &**domain),
        })
    }

    /// Says so if it is not valid at `now`.
    pub(super) fn untimely(&self, now: Timestamp) -> Option<String> {
        if now > self.not_after {
            Some(format!("expired at {}", self.not_after))
        } else if now < self.not_before {
            Some(format!("is not valid before {}", self.not_before))
        } else {
            None
        }
    }

    /// Names, then addresses, as people write them.
    pub fn names(&self) -> Vec<String> {
        let names = self.names.iter().map(|name| match name {
            Name::Exact(name) => name.to_string(),
            Name::Below(domain) => format!("*.{domain}"),
        });
        names
            .chain(self.addresses.iter().map(IpAddr::to_string))
            .collect()
    }

    /// SHA-256 of the certificate in lower-case hexadecimal.
    pub fn fingerprint(&self) -> String {
        hex(&self.fingerprint)
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // A string takes everything.
        let _ = write!(out, "{byte:02x}");
    }
    out
}
