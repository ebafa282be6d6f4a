//! `tls` of an upstream: whom to believe that it is the target, and who we are. Files are read at prepare and judged
//! there (`tls::client`).

use super::super::check::{Checker, shorten};
use super::super::decode::section;
use super::super::http::{CertificateSpec, KeyRaw, PemSource, cert_source, key_source};
use super::super::scalar::{Pin, TargetAddr};
use super::super::tree::At;
use super::{Protocol, TargetSpec};

section! {
    /// Speaks TLS to the targets. `{}` trusts the CAs of the system.
    pub struct UpstreamTlsRaw {
        /// The name the target must prove and is asked for (SNI). Without it the host of the target's address, which may
        /// be an IP address; a request's `Host` never decides it, since one connection serves many requests.
        server_name: String,
        /// The CAs to trust instead of the system's: path of a PEM file, or the PEM text itself.
        ca: String,
        /// Our certificate, for targets that ask for one: path of a PEM file, or the PEM text itself.
        client_cert: String,
        /// Its private key: path of a PEM file, or the key itself, a secret.
        client_key: KeyRaw,
        /// Take any certificate. The connection is encrypted, but anybody may be at its other end.
        insecure: bool = false,
    }
    later = [];
}

/// Checked `tls` of an upstream.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UpstreamTlsSpec {
    /// A DNS name or an IP address; `None`: the host of each target.
    pub server_name: Option<String>,
    /// `None`: the system's.
    pub ca: Option<PemSource>,
    /// Always a [`CertificateSpec::Pair`].
    pub client: Option<CertificateSpec>,
    pub insecure: bool,
    /// The public keys that are trusted, instead of CAs; empty: it goes by them.
    pub pins: Vec<Pin>,
}

impl UpstreamTlsRaw {
    /// `running` is what serves under the same name: it has the key behind `"<redacted>"`.
    pub(in crate::config) fn spec(
        &self,
        running: Option<&UpstreamTlsSpec>,
        check: &mut Checker<'_>,
    ) -> UpstreamTlsSpec {
        let server_name = self.server_name.as_ref().and_then(|name| {
            if is_server_name(name) {
                return Some(name.value.clone());
            }
            let message = format!("`{}` is no name that a certificate has", shorten(name));
            check
                .findings
                .error(name.at, message)
                .help("a host name such as `api.example.com`, or an IP address");
            None
        });
        let ca = self.ca.as_ref().and_then(|ca| cert_source(ca, check));
        let client = match (&self.client_cert, &self.client_key) {
            (Some(cert), Some(key)) => {
                let running = running.and_then(|tls| tls.client.as_ref());
                cert_source(cert, check)
                    .zip(key_source(key, running, check))
                    .map(|(cert, key)| CertificateSpec::Pair { cert, key })
            }
            (Some(cert), None) if !self.spoiled.contains(&"client_key") => {
                let message = "`client_cert` needs `client_key`";
                check.findings.error(cert.at, message);
                None
            }
            (None, Some(key)) if !self.spoiled.contains(&"client_cert") => {
                let message = "`client_key` needs `client_cert`";
                check.findings.error(key.at, message);
                None
            }
            _ => None,
        };
        let insecure = self.insecure.as_ref().filter(|insecure| insecure.value);
        if let Some(insecure) = insecure {
            match &self.ca {
                Some(ca) => {
                    let message = "`ca` says whom to trust, and `insecure` trusts anybody";
                    check
                        .findings
                        .error(ca.at, message)
                        .help("give one of them");
                }
                None => {
                    let message =
                        "the targets' certificates are not checked: anybody may pose as one";
                    check.findings.warning(insecure.at, message);
                }
            }
        }
        UpstreamTlsSpec {
            server_name,
            ca,
            client,
            insecure: insecure.is_some(),
            pins: Vec::new(),
        }
    }
}

/// A DNS name (letters, digits, `-`, `_`; no dot at its end, which no certificate has) or an IP address.
fn is_server_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..64).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.parse::<std::net::IpAddr>().is_ok()
        || (text.len() < 254
            && text.split('.').all(is_label)
            // Would be an address that is none.
            && text.bytes().any(|b| !b.is_ascii_digit() && b != b'.'))
}

/// What `protocol`, `tls` and the targets must agree on. `protocol_at`: where it is written.
pub(super) fn agree(
    protocol: Protocol,
    protocol_at: At,
    tls: Option<(&UpstreamTlsSpec, At)>,
    targets: &[TargetSpec],
    check: &mut Checker<'_>,
) {
    match (protocol, tls) {
        (Protocol::H2, None) => {
            check
                .findings
                .error(
                    protocol_at,
                    "`h2` is HTTP/2 over TLS, and there is no `tls`",
                )
                .help("`h2c` is HTTP/2 in cleartext; `tls = {}` trusts the CAs of the system");
        }
        (Protocol::H2c, Some(_)) => {
            check
                .findings
                .error(
                    protocol_at,
                    "`h2c` is HTTP/2 in cleartext, and there is `tls`",
                )
                .help("`h2` is HTTP/2 over TLS");
        }
        _ => {}
    }
    if let Some((tls, at)) = tls
        && tls.server_name.is_none()
        && !tls.insecure
        && targets
            .iter()
            .any(|t| matches!(t.address, TargetAddr::Unix(_) | TargetAddr::Tunnel(..)))
    {
        check
            .findings
            .error(
                at,
                "a socket or a service in a tunnel has no name that its certificate could prove",
            )
            .help("give `server_name`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_certificates_have() {
        for right in ["a", "api.example.com", "10.0.0.1", "::1", "a_b.test", "1a"] {
            assert!(is_server_name(right), "{right}");
        }
        let long = "a".repeat(64);
        for wrong in [
            "", "a.", ".a", "-a", "a b", "*.a.test", "1.2.3", "a:80", &long,
        ] {
            assert!(!is_server_name(wrong), "{wrong}");
        }
    }
}
