//! Which certificate a client gets: by the name it asks for, exact, then the longest wildcard above it, else the first;
//! among several for one name the first whose key the client can verify.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::{Certificate, Name};

/// The certificates of one address by the names in them.
#[derive(Debug)]
pub(super) struct Chooser {
    all: Box<[Arc<Certificate>]>,
    exact: HashMap<Box<str>, Vec<usize>>,
    /// `*.a.test` under `a.test`.
    below: HashMap<Box<str>, Vec<usize>>,
}

impl Chooser {
    pub(super) fn new(certificates: &[Arc<Certificate>]) -> Chooser {
        let mut chooser = Chooser {
            all: certificates.into(),
            exact: HashMap::new(),
            below: HashMap::new(),
        };
        for (index, certificate) in certificates.iter().enumerate() {
            for name in &certificate.names {
                let of = match name {
                    Name::Exact(name) => chooser.exact.entry(name.clone()),
                    Name::Below(domain) => chooser.below.entry(domain.clone()),
                };
                of.or_default().push(index);
            }
        }
        chooser
    }

    #[cfg(test)]
    pub(super) fn at(&self, index: usize) -> &Arc<Certificate> {
        &self.all[index]
    }

    /// Those for `name` (lower case); empty: none is.
    fn named(&self, name: &str) -> &[usize] {
        if let Some(found) = self.exact.get(name) {
            return found;
        }
        domains_above(name)
            .filter_map(|domain| self.below.get(domain))
            .next()
            .map_or(&[], Vec::as_slice)
    }

    /// The certificate that a client which asks for `name` gets, if it can verify every kind of key.
    pub(super) fn presented(&self, name: &str) -> Option<&Arc<Certificate>> {
        let first = self.named(name).first().copied().unwrap_or(0);
        self.all.get(first)
    }

    pub(super) fn pick(
        &self,
        name: Option<&str>,
        schemes: &[SignatureScheme],
    ) -> Option<&Arc<Certificate>> {
        let lower = name.map(|name| match name.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => Cow::Borrowed(name),
        });
        let named = lower.as_deref().map_or(&[][..], |name| self.named(name));
        let candidates = named.iter().filter_map(|index| self.all.get(*index));
        let verifiable = |c: &&Arc<Certificate>| c.key.key.choose_scheme(schemes).is_some();
        candidates
            .clone()
            .find(verifiable)
            // rustls says what does not fit better than "no certificate" would.
            .or_else(|| candidates.clone().next())
            .or_else(|| self.all.iter().find(verifiable))
            .or_else(|| self.all.first())
    }
}

/// The domains that a name lies below.
pub(super) fn domains_above(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(at, _)| &name[at + 1..])
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.pick(hello.server_name(), hello.signature_schemes())
            .map(|certificate| certificate.key.clone())
    }
}
