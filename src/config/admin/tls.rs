//! `[admin] tls`: one certificate for the one address, and whose certificates stand for a token. What the files hold is
//! read and judged at prepare, with those of the servers.

use std::sync::Arc;

use super::super::check::Checker;
use super::super::decode::section;
use super::super::http::{
    CertificateSpec, ClientAuthMode, ClientAuthSpec, KeyRaw, TlsSpec, cert_source, key_source,
};
use super::super::tree::At;

section! {
    /// Makes the admin API HTTPS, TLS 1.2 or 1.3.
    pub struct AdminTlsRaw {
        /// Path of a PEM file with the certificate and its chain, the API's own first; or the PEM text itself.
        cert: String,
        /// Path of a PEM file with the private key, or the key itself, a secret.
        key: KeyRaw,
        /// Path of a PEM file with the certificates of the CAs that sign those of callers, or the PEM text itself. Every
        /// caller must show such a certificate then, and needs no token.
        client_ca: String,
    }
    later = [];
}

impl AdminTlsRaw {
    /// `running` has the key behind `"<redacted>"`. `None`: something is wrong, and recorded.
    pub(super) fn spec(
        &self,
        at: At,
        running: Option<&TlsSpec>,
        check: &mut Checker<'_>,
    ) -> Option<TlsSpec> {
        let client_auth = self.client_ca.as_ref().and_then(|ca| {
            let (ca, mode) = (cert_source(ca, check)?, ClientAuthMode::Require);
            Some(Arc::new(ClientAuthSpec { ca, mode }))
        });
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else {
            let spoiled = |key| self.spoiled.contains(&key);
            if !spoiled("cert") && !spoiled("key") {
                let finding = check
                    .findings
                    .error(at, "`tls` needs a `cert` and its `key`");
                finding.help("`tls = { cert = \"admin.crt\", key = \"admin.key\" }`");
            }
            return None;
        };
        let running = running.and_then(|tls| tls.certificates.first());
        let cert = cert_source(cert, check);
        let key = key_source(key, running, check);
        let (cert, key) = cert.zip(key)?;
        Some(TlsSpec {
            certificates: vec![CertificateSpec::Pair { cert, key }],
            self_signed: Vec::new(),
            client_auth,
        })
    }
}
