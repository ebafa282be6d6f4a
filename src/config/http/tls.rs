//! `tls` of a server: certificates, and the cleartext address that sends its clients here. What a certificate holds is
//! not looked at here: files are read at prepare, and judged there.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer};

use super::super::admin::secret;
use super::super::check::Checker;
use super::super::decode::{Decode, List, Loc, section, text, words, wrong_kind};
use super::super::findings::Findings;
use super::super::scalar::{HostPattern, ListenAddr, REDACTED, Secret, SecretRef, Wrong};
use super::super::template::{Part, Template, Var};
use super::super::tree::{At, Node, Value};
use super::check::{Checked, addresses};
use super::{ActionSpec, ConnectionSpec, FiltersSpec, HttpSpec, RedirectSpec};

section! {
    /// Makes the server HTTPS. The certificate is chosen by the name the client asks for (SNI) over all servers of the
    /// address: exact, then the longest wildcard, else the first.
    pub struct TlsRaw {
        /// Certificates with their keys.
        certificates: List<CertificateRaw>,
        /// Names and addresses of a certificate that is made at start, for development: no client trusts it by itself.
        self_signed: List<String>,
        /// Cleartext addresses (`:80`) from which clients are sent here with 308.
        redirect_http: List<String>,
        /// Ask clients for a certificate.
        client_auth: ClientAuthRaw,
        /// The oldest version of TLS it speaks.
        min_version: TlsVersion = "1.2",
        /// What is offered by ALPN, the preferred first; left out: `h2`, then `http/1.1`, of those in `protocols`.
        alpn: List<Alpn>,
    }
    later = [&["acme"]];
}

section! {
    /// Ask clients for a certificate that a CA of ours has signed.
    pub struct ClientAuthRaw {
        /// Path of a PEM file with the certificates of the CAs that are trusted for it, or the PEM text itself.
        ca: String,
        /// `require`: a client without one gets no further; `request`: it may do without, but not with a wrong one.
        mode: ClientAuthMode = "require",
    }
    short = ca;
    later = [];
}

section! {
    /// A certificate and its key, or a folder of such pairs.
    pub struct CertificateRaw {
        /// Path of a PEM file with the certificate and its chain, the server's own first; or the PEM text itself.
        cert: String,
        /// Path of a PEM file with the private key, or the key itself, a secret.
        key: KeyRaw,
        /// Folder of `NAME.crt` and `NAME.key`, instead of `cert` and `key`.
        dir: String,
    }
    later = [];
}

/// A private key as a document gives it: a path, or a secret whose text is PEM.
#[derive(Debug, Clone)]
pub enum KeyRaw {
    Path(String),
    Secret(SecretRef),
}

impl Decode for KeyRaw {
    fn decode(node: &Node<'_>, findings: &mut Findings) -> Option<Self> {
        match &node.value {
            Value::Text(path) if *path != REDACTED && !path.is_empty() && !is_pem(path) => {
                text(node, findings).map(|t| KeyRaw::Path(t.to_owned()))
            }
            // It may have been meant as a path.
            Value::Unset(_) => {
                wrong_kind(node, "a string", findings);
                None
            }
            _ => SecretRef::decode(node, findings).map(KeyRaw::Secret),
        }
    }
}

impl Serialize for KeyRaw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            KeyRaw::Path(path) => serializer.serialize_str(path),
            KeyRaw::Secret(secret) => secret.serialize(serializer),
        }
    }
}

impl JsonSchema for KeyRaw {
    fn schema_name() -> Cow<'static, str> {
        SecretRef::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        SecretRef::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        SecretRef::json_schema(generator)
    }
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    V12,
    V13,
}

words!(TlsVersion { "1.2" => TlsVersion::V12, "1.3" => TlsVersion::V13 });

/// Whether a client must have a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientAuthMode {
    Require,
    Request,
}

words!(ClientAuthMode { "require" => ClientAuthMode::Require, "request" => ClientAuthMode::Request });

/// A protocol as ALPN names it (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    H2,
    Http1,
}

words!(Alpn { "h2" => Alpn::H2, "http/1.1" => Alpn::Http1 });

/// Checked `client_auth`. Two servers with the same one may share a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAuthSpec {
    pub ca: PemSource,
    pub mode: ClientAuthMode,
}

/// Checked `tls`, less what belongs to the connection ([`ConnectionSpec::tls`]) and the redirect, which is a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSpec {
    /// In the document's order.
    pub certificates: Vec<CertificateSpec>,
    /// Host names (`*.` allowed) and IP addresses; empty: none is made.
    pub self_signed: Vec<String>,
    /// `None`: clients are not asked for a certificate.
    pub client_auth: Option<Arc<ClientAuthSpec>>,
}

/// Where a certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSpec {
    Pair {
        cert: PemSource,
        key: PemSource,
    },
    /// An absolute path.
    Folder(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PemSource {
    /// An absolute path; read at prepare, its contents are part of the generation.
    File(PathBuf),
    Text(Secret),
}

impl PemSource {
    /// `None`: the text is in the document.
    pub fn path(&self) -> Option<&Path> {
        match self {
            PemSource::File(path) => Some(path),
            PemSource::Text(_) => None,
        }
    }
}

/// What follows the name of a server in that of the server which redirects to it.
const REDIRECT: &str = ".tls.redirect_http";

/// The server that `name`, a server made of `redirect_http`, redirects to.
pub fn redirects_to(name: &str) -> Option<&str> {
    name.strip_suffix(REDIRECT)
}

impl TlsRaw {
    /// `running` is what serves under the same name: it has the keys behind `"<redacted>"`.
    pub(in crate::config) fn spec(
        &self,
        at: At,
        running: Option<&TlsSpec>,
        check: &mut Checker<'_>,
    ) -> TlsSpec {
        let mut certificates = Vec::new();
        for (index, raw) in self.certificates.iter().flat_map(|c| c.iter()).enumerate() {
            let running = running.and_then(|tls| tls.certificates.get(index));
            certificates.extend(raw.spec(raw.at, running, check));
        }
        let self_signed: Vec<String> = check
            .each(self.self_signed.as_ref(), subject)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let given = self
            .certificates
            .as_ref()
            .is_some_and(|c| !c.is_empty() || c.spoiled)
            || self
                .self_signed
                .as_ref()
                .is_some_and(|s| !s.is_empty() || s.spoiled)
            || !self.spoiled.is_empty();
        if !given {
            check
                .findings
                .error(at, "`tls` needs a certificate")
                .help("`certificates = [{ cert = \"site.crt\", key = \"site.key\" }]`, or `self_signed = [\"localhost\"]` for development");
        }
        let client_auth = self.client_auth.as_ref().and_then(|c| c.spec(c.at, check));
        TlsSpec {
            certificates,
            self_signed,
            client_auth: client_auth.map(Arc::new),
        }
    }

    /// What is offered by ALPN to those who may choose among `h1` and `h2`.
    pub(super) fn alpn(&self, h1: bool, h2: bool, check: &mut Checker<'_>) -> Vec<Alpn> {
        let Some(list) = &self.alpn else {
            let spoken = [(h2, Alpn::H2), (h1, Alpn::Http1)].into_iter();
            return spoken.filter(|(on, _)| *on).map(|(_, name)| name).collect();
        };
        let mut out = Vec::new();
        for item in list.iter() {
            let (name, word) = (item.value, item.value.word());
            let spoken = if name == Alpn::H2 { h2 } else { h1 };
            if !spoken {
                check
                    .findings
                    .error(item.at, format!("`{word}` is not in `protocols`"));
            } else if out.contains(&name) {
                check
                    .findings
                    .error(item.at, format!("`{word}` is listed twice"));
            } else {
                out.push(name);
            }
        }
        if h2 && !out.contains(&Alpn::H2) && !list.spoiled {
            check
                .findings
                .error(
                    list.at,
                    "HTTP/2 is in `protocols`, but without `h2` here no client can choose it",
                )
                .help("add `h2`, or say `protocols = [\"h1\"]`");
        }
        out
    }

    pub(super) fn min_version(&self) -> TlsVersion {
        self.min_version
            .as_ref()
            .map_or(TlsVersion::V12, |v| v.value)
    }

    /// The addresses of `redirect_http`.
    pub(super) fn redirect(&self, check: &mut Checker<'_>) -> Vec<(ListenAddr, At)> {
        self.redirect_http
            .as_ref()
            .map(|list| addresses(list, check))
            .unwrap_or_default()
    }
}

impl CertificateRaw {
    fn spec(
        &self,
        at: At,
        running: Option<&CertificateSpec>,
        check: &mut Checker<'_>,
    ) -> Option<CertificateSpec> {
        match (&self.cert, &self.key, &self.dir) {
            (None, None, Some(dir)) => {
                if dir.is_empty() {
                    check.findings.error(dir.at, "an empty path");
                }
                Some(CertificateSpec::Folder(check.base.join(&dir.value)))
            }
            (Some(cert), Some(key), None) => Some(CertificateSpec::Pair {
                cert: cert_source(cert, check)?,
                key: key_source(key, running, check)?,
            }),
            _ if !self.spoiled.is_empty() => None,
            _ => {
                check
                    .findings
                    .error(at, "a certificate is `cert` with `key`, or a `dir`")
                    .help("`{ cert = \"site.crt\", key = \"site.key\" }`, or `{ dir = \"certs\" }` with NAME.crt and NAME.key in it");
                None
            }
        }
    }
}

impl ClientAuthRaw {
    fn spec(&self, at: At, check: &mut Checker<'_>) -> Option<ClientAuthSpec> {
        let Some(ca) = &self.ca else {
            if !self.spoiled.contains(&"ca") {
                check.findings.error(at, "`client_auth` needs a `ca`").help(
                    "a PEM file with the certificates of those who sign your clients' certificates",
                );
            }
            return None;
        };
        Some(ClientAuthSpec {
            ca: cert_source(ca, check)?,
            mode: self
                .mode
                .as_ref()
                .map_or(ClientAuthMode::Require, |mode| mode.value),
        })
    }
}

pub(in crate::config) fn cert_source(
    cert: &Loc<String>,
    check: &mut Checker<'_>,
) -> Option<PemSource> {
    if cert.is_empty() {
        check.findings.error(cert.at, "an empty path");
        return None;
    }
    Some(if is_pem(cert) {
        PemSource::Text(Secret::new(cert.value.clone()))
    } else {
        PemSource::File(check.base.join(&cert.value))
    })
}

pub(in crate::config) fn key_source(
    key: &Loc<KeyRaw>,
    running: Option<&CertificateSpec>,
    check: &mut Checker<'_>,
) -> Option<PemSource> {
    let reference = match &key.value {
        KeyRaw::Path(path) | KeyRaw::Secret(SecretRef::File(path)) => {
            return Some(PemSource::File(check.base.join(path)));
        }
        KeyRaw::Secret(reference) => Loc {
            value: reference.clone(),
            at: key.at,
        },
    };
    let running = match running {
        Some(CertificateSpec::Pair {
            key: PemSource::Text(text),
            ..
        }) => Some(text),
        _ => None,
    };
    secret(&reference, running, check).map(PemSource::Text)
}

/// PEM text cannot be a path: it has line breaks.
fn is_pem(text: &str) -> bool {
    text.trim_start().starts_with("-----BEGIN ")
}

/// What a self-signed certificate may be for.
fn subject(text: &str) -> Result<String, Wrong> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(ip.to_string());
    }
    match HostPattern::parse(text)? {
        HostPattern::Regex(_) => Err(Wrong::new(
            "a certificate is for names, not for regular expressions",
        )),
        name => Ok(name.to_string()),
    }
}

impl Checked {
    /// The server that `tls.redirect_http` stands for.
    pub fn redirecting(&self, check: &mut Checker<'_>) -> Option<Checked> {
        let (listen, listen_at): (Vec<_>, Vec<_>) = self.redirect.iter().cloned().unzip();
        let first = *listen_at.first()?;
        let ports = self.spec.listen.iter().filter_map(ListenAddr::tcp);
        let Some(port) = ports.map(|a| a.port()).find(|port| *port != 0) else {
            if !self.spec.listen.is_empty() {
                check
                    .findings
                    .error(first, "there is no port to send clients to")
                    .help("give `listen` an address with a port that is not 0");
            }
            return None;
        };
        let mut parts = vec![Part::Text("https://".to_owned()), Part::Var(Var::Host)];
        if port != 443 {
            parts.push(Part::Text(format!(":{port}")));
        }
        parts.push(Part::Var(Var::Uri));
        let spec = HttpSpec {
            name: format!("{}{REDIRECT}", self.spec.name).into(),
            listen,
            hosts: self.spec.hosts.clone(),
            connection: ConnectionSpec {
                tls: None,
                alpn: Vec::new(),
                ..self.spec.connection.clone()
            },
            tls: None,
            upgraded_timeout: None,
            filters: FiltersSpec {
                access_log: self.spec.filters.access_log,
                ..FiltersSpec::default()
            },
            error_pages: super::ErrorPagesSpec::default(),
            routes: Vec::new(),
            fallback: Some(ActionSpec::Redirect(RedirectSpec {
                to: Template { parts },
                status: ::http::StatusCode::PERMANENT_REDIRECT,
            })),
            on_change: self.spec.on_change,
        };
        Some(Checked {
            hosts_at: vec![first; spec.hosts.len()],
            spec,
            at: first,
            enabled: true,
            listen_at,
            routes_at: Vec::new(),
            redirect: Vec::new(),
            settings_at: self.settings_at,
        })
    }
}
