//! Certificates of clients: who may sign them, and what one says about its holder.
//!
//! A session proves what was checked when it began. So each policy — the mode and the very CAs — has ticket keys and
//! stored sessions of its own: what began under one can never be resumed under another (CVE-2025-23419).

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::{Error, RootCertStore};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::Shared;
use super::certificate::hex;
use super::store::Fault;
use crate::config::http::{ClientAuthMode, ClientAuthSpec};

/// Sessions of TLS 1.2 clients that take no tickets, of one policy, the whole process together.
const SESSIONS: usize = 1024;
/// Characters of a name from a client's certificate. No CA signs longer ones, and they would have to go through headers.
const MAX_TEXT: usize = 4096;

/// The policy of a server, made of its `client_auth` and the contents of its CA file.
pub struct ClientAuth {
    pub(super) spec: Arc<ClientAuthSpec>,
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    pub(super) resumption: Arc<Resumption>,
    id: [u8; 32],
}

/// What makes sessions of one policy resumable.
pub(super) struct Resumption {
    pub(super) tickets: Arc<dyn ProducesTickets>,
    pub(super) sessions: Arc<ServerSessionMemoryCache>,
}

impl Resumption {
    /// # Errors
    /// When there is no randomness for the ticket keys.
    pub(super) fn new(sessions: usize) -> Result<Resumption, Error> {
        Ok(Resumption {
            tickets: rustls::crypto::aws_lc_rs::Ticketer::new()?,
            sessions: ServerSessionMemoryCache::new(sessions),
        })
    }
}

impl ClientAuth {
    /// `name` is what to call the `pem` of the CAs, `pointer` where it is written. `before`: taken over if it is the same.
    ///
    /// # Errors
    /// What is wrong with it, at its place.
    pub(super) fn new(
        spec: &Arc<ClientAuthSpec>,
        pem: &[u8],
        name: &str,
        pointer: &str,
        before: Option<&Arc<ClientAuth>>,
        shared: &Shared,
    ) -> Result<Arc<ClientAuth>, Fault> {
        let fault = |what: String| Fault::new(pointer, format!("{name} {what}"));
        let mut roots = RootCertStore::empty();
        let mut digest = Sha256::new();
        digest.update([u8::from(spec.mode == ClientAuthMode::Require)]);
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let der = certificate.map_err(|error| fault(format!("is not valid PEM: {error}")))?;
            digest.update(der.len().to_be_bytes());
            digest.update(&der);
            let unusable =
                |error| fault(format!("holds a certificate that cannot be used: {error}"));
            roots.add(der).map_err(unusable)?;
        }
        if roots.is_empty() {
            return Err(fault("holds no certificate".to_owned())
                .help("a PEM file has a line `-----BEGIN CERTIFICATE-----`"));
        }
        let id = digest.finalize().into();
        if let Some(before) = before.filter(|b| b.id == id && *b.spec == **spec) {
            return Ok(before.clone());
        }
        let provider = shared.provider.clone();
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = match spec.mode {
            ClientAuthMode::Require => builder,
            ClientAuthMode::Request => builder.allow_unauthenticated(),
        };
        let verifier = builder
            .build()
            .map_err(|error| fault(format!("cannot be used: {error}")))?;
        let fresh =
            Resumption::new(SESSIONS).map_err(|error| fault(format!("cannot be used: {error}")))?;
        Ok(Arc::new(ClientAuth {
            spec: spec.clone(),
            verifier,
            resumption: shared.policies.lease(&id, || fresh),
            id,
        }))
    }
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientAuth").field(&self.spec).finish()
    }
}

/// What the certificate of a client says about its holder; a CA of ours vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCert {
    /// RFC 4514, the most specific part first; all but printable ASCII is escaped.
    pub subject: Box<str>,
    /// SHA-256 of the certificate in lower-case hexadecimal.
    pub fingerprint: Box<str>,
    /// Alternative names with their kind: `DNS:a.test,URI:spiffe://a/b`.
    pub san: Box<str>,
}

impl ClientCert {
    /// `None`: not to be understood, or too long to be shown, and so not to be relied on.
    pub(super) fn read(der: &CertificateDer<'_>) -> Option<ClientCert> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let mut san = String::new();
        let extension = parsed.subject_alternative_name().ok()?;
        for name in extension.iter().flat_map(|san| &san.value.general_names) {
            let (kind, text) = match name {
                GeneralName::DNSName(name) => ("DNS", *name),
                GeneralName::URI(uri) => ("URI", *uri),
                GeneralName::RFC822Name(address) => ("email", *address),
                _ => continue,
            };
            if !san.is_empty() {
                san.push(',');
            }
            san.push_str(kind);
            san.push(':');
            escape(text, &mut san);
        }
        let subject = subject(parsed.subject());
        if subject.len().max(san.len()) > MAX_TEXT {
            return None;
        }
        Some(ClientCert {
            subject: subject.into(),
            fingerprint: hex(&Sha256::digest(der)).into(),
            san: san.into(),
        })
    }
}

/// The DNS names among the alternative names of a certificate; `None`: it is not to be understood.
pub(super) fn dns_names(der: &CertificateDer<'_>) -> Option<Vec<String>> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let extension = parsed.subject_alternative_name().ok()?;
    let names = extension.iter().flat_map(|san| &san.value.general_names);
    let dns = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    Some(dns.collect())
}

/// A name as RFC 4514 writes it.
fn subject(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    let parts: Vec<_> = name.iter().collect();
    for part in parts.into_iter().rev() {
        let mut separator = if out.is_empty() { "" } else { "," };
        for attribute in part.iter() {
            out.push_str(separator);
            separator = "+";
            attribute_text(attribute, &mut out);
        }
    }
    out
}

fn attribute_text(attribute: &AttributeTypeAndValue<'_>, out: &mut String) {
    let oid = attribute.attr_type().to_id_string();
    let known = SHORT.iter().find(|(id, _)| *id == oid);
    match (known, attribute.as_str()) {
        (Some((_, short)), Ok(value)) => {
            out.push_str(short);
            out.push('=');
            escape(value, out);
        }
        (known, _) => {
            out.push_str(known.map_or(oid.as_str(), |(_, short)| short));
            out.push_str("=#");
            out.push_str(&hex(attribute.attr_value().data));
        }
    }
}

/// Short names of RFC 4514 section 3, and those that certificates of people have.
const SHORT: [(&str, &str); 11] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
];

/// Escapes what would end a value, and all that a header field or a log line should not have (RFC 4514 section 2.4).
fn escape(value: &str, out: &mut String) {
    use std::fmt::Write as _;
    let last = value.len().saturating_sub(1);
    for (index, byte) in value.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => {
                out.push('\\');
                out.push(byte.into());
            }
            b' ' | b'#' if index == 0 => {
                out.push('\\');
                out.push(byte.into());
            }
            b' ' if index == last => out.push_str("\\ "),
            b' '..=b'~' => out.push(byte.into()),
            // A string takes everything.
            _ => _ = write!(out, "\\{byte:02X}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn a_name_cannot_pretend_to_be_another() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params
            .subject_alt_names
            .push(SanType::URI("spiffe://a/b,c".try_into().unwrap()));
        params.distinguished_name = rcgen::DistinguishedName::new();
        let name = &mut params.distinguished_name;
        name.push(DnType::OrganizationName, "Example, Inc.");
        name.push(DnType::CommonName, "al\u{e9}\r\n,CN=admin ");
        let der = params.self_signed(&key).unwrap();
        let read = ClientCert::read(der.der()).unwrap();
        assert_eq!(
            &*read.subject,
            r"CN=al\C3\A9\0D\0A\,CN=admin\ ,O=Example\, Inc."
        );
        assert_eq!(&*read.san, r"DNS:a.test,URI:spiffe://a/b\,c");
        assert_eq!(read.fingerprint.len(), 64);
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_printable_and_has_no_bare_comma(text in "\\PC{0,40}") {
            let mut out = String::new();
            escape(&text, &mut out);
            prop_assert!(out.bytes().all(|b| (b' '..=b'~').contains(&b)));
            let bytes = out.as_bytes();
            let mut at = 0;
            while at < bytes.len() {
                match bytes[at] {
                    b'\\' => at += 1,
                    b => prop_assert!(!b",+;<>\"".contains(&b)),
                }
                at += 1;
            }
        }
    }
}
