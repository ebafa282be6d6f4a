//! TLS towards upstreams: whom to believe, and who we are. One [`Client`] per distinct setting: its identity covers the
//! contents of every file behind it, so that a connection made under one CA never serves a configuration that names
//! another. An unchanged one is taken over by the next generation with the sessions it holds.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificate::{Certificate, Pair};
use super::store::{Fault, Files};
use super::{H1, H2, Shared};
use crate::config::http::{CertificateSpec, PemSource};
use crate::config::scalar::{Pin, TargetAddr};
use crate::config::upstream::UpstreamTlsSpec;
use crate::document::Document;

/// What makes two settings the same: the digest of all that a handshake depends on.
pub type Identity = [u8; 32];

/// What is offered by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    H1,
    H2,
    Both,
    /// What is spoken is no HTTP.
    Nothing,
}

/// How TLS is spoken to the targets of an upstream.
pub struct Client {
    identity: Identity,
    server_name: Option<ServerName<'static>>,
    h1: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
    both: Arc<ClientConfig>,
    nothing: Arc<ClientConfig>,
}

impl Client {
    /// One that belongs to no upstream, made of `files`. Warnings are not for who asks here.
    ///
    /// # Errors
    /// Everything wrong with it.
    pub fn alone(tls: &UpstreamTlsSpec, files: &Files) -> Result<Arc<Client>, Vec<Fault>> {
        let mut loader = Loader {
            files,
            provider: &Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            known: HashMap::new(),
            system: None,
            now: Timestamp::now(),
            warnings: Vec::new(),
        };
        loader.client("/upstreams//tls", tls)
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// All share their sessions.
    pub fn config(&self, offer: Offer) -> Arc<ClientConfig> {
        match offer {
            Offer::H1 => self.h1.clone(),
            Offer::H2 => self.h2.clone(),
            Offer::Both => self.both.clone(),
            Offer::Nothing => self.nothing.clone(),
        }
    }

    /// The name that a target must prove: `server_name`, else the host of its address.
    pub fn name_of(&self, target: &TargetAddr) -> ServerName<'static> {
        let fallback = || ServerName::from(std::net::IpAddr::from([0, 0, 0, 0]));
        match (&self.server_name, target) {
            (Some(name), _) => name.clone(),
            (None, TargetAddr::Ip(address)) => ServerName::from(address.ip()),
            // One that cannot be a certificate's name can't be proved either.
            (None, TargetAddr::Name(host, _)) => {
                ServerName::try_from(host.to_string()).unwrap_or_else(|_| fallback())
            }
            // Only where nothing is proved: the document's checks see to it.
            (None, TargetAddr::Unix(_) | TargetAddr::Tunnel(..)) => {
                ServerName::try_from("localhost").unwrap_or_else(|_| fallback())
            }
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

/// The clients of one generation.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    by_name: HashMap<Arc<str>, Arc<Client>>,
}

/// Somebody who speaks TLS to others.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Found again by it.
    pub name: Arc<str>,
    /// JSON Pointer of its `tls`.
    pub pointer: String,
    pub tls: &'a UpstreamTlsSpec,
}

impl Wanted<'_> {
    /// All of a document: upstreams by their names, agents by [`agent`], their services by [`service`].
    pub fn all(document: &Document) -> impl Iterator<Item = Wanted<'_>> {
        let upstreams = document.upstreams.values().filter_map(|upstream| {
            Some(Wanted {
                name: upstream.name.clone(),
                pointer: upstream.tls_pointer(),
                tls: upstream.tls.as_ref()?,
            })
        });
        let agents = document.agents.values().map(|spec| Wanted {
            name: agent(&spec.name).into(),
            pointer: format!("/agents/{}/tls", spec.name),
            tls: &spec.tls,
        });
        let services = document.agents.values().flat_map(|spec| {
            spec.services.iter().filter_map(|(name, service_spec)| {
                Some(Wanted {
                    name: service(&spec.name, name).into(),
                    pointer: format!("/agents/{}/services/{name}/tls", spec.name),
                    tls: service_spec.tls.as_ref()?,
                })
            })
        });
        upstreams.chain(agents).chain(services)
    }
}

/// What an agent is called among those who speak TLS. No upstream can have this name.
pub fn agent(name: &str) -> String {
    format!("[agents.{name}]")
}

/// The same for a service of an agent.
pub fn service(agent: &str, name: &str) -> String {
    format!("[agents.{agent}.services.{name}]")
}

impl Clients {
    /// Makes what `wanted` out of `files`, with what is worth a warning. `before`: those that serve.
    ///
    /// # Errors
    /// Everything wrong with any of them.
    pub fn load<'a>(
        wanted: impl Iterator<Item = Wanted<'a>>,
        files: &Files,
        before: Option<&Clients>,
        shared: &Shared,
    ) -> Result<(Clients, Vec<Fault>), Vec<Fault>> {
        let known = before.into_iter().flat_map(|b| b.by_name.values());
        let mut loader = Loader {
            files,
            provider: &shared.provider,
            known: known.map(|c| (c.identity, c.clone())).collect(),
            system: None,
            now: Timestamp::now(),
            warnings: Vec::new(),
        };
        let mut clients = Clients::default();
        let mut errors = Vec::new();
        for Wanted { name, pointer, tls } in wanted {
            match loader.client(&pointer, tls) {
                Ok(client) => drop(clients.by_name.insert(name, client)),
                Err(mut faults) => errors.append(&mut faults),
            }
        }
        if errors.is_empty() {
            Ok((clients, loader.warnings))
        } else {
            Err(errors)
        }
    }

    pub fn of(&self, name: &str) -> Option<&Arc<Client>> {
        self.by_name.get(name)
    }

    /// True if somebody has the same here and there.
    pub fn same(&self, other: &Clients, name: &str) -> bool {
        match (self.of(name), other.of(name)) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }
}

/// What to call a text, and the text.
fn text(source: &PemSource, name: &str, files: &Files) -> (String, Bytes) {
    match source {
        PemSource::Text(text) => (
            name.to_owned(),
            Bytes::copy_from_slice(text.expose().as_bytes()),
        ),
        // Every file that the document names was read.
        PemSource::File(path) => (
            path.display().to_string(),
            files.get(path).cloned().unwrap_or_default(),
        ),
    }
}

/// Roots that are trusted, and what tells them from others.
#[derive(Clone)]
struct Trust {
    roots: Arc<RootCertStore>,
    digest: Identity,
}

struct Loader<'a> {
    files: &'a Files,
    provider: &'a Arc<CryptoProvider>,
    known: HashMap<Identity, Arc<Client>>,
    /// Read when the first one asks.
    system: Option<Trust>,
    now: Timestamp,
    warnings: Vec<Fault>,
}

impl Loader<'_> {
    fn client(&mut self, pointer: &str, tls: &UpstreamTlsSpec) -> Result<Arc<Client>, Vec<Fault>> {
        let mut faults = Vec::new();
        let by_key = tls.insecure || !tls.pins.is_empty();
        let trust = match (&tls.ca, by_key) {
            (_, true) => None,
            (Some(ca), false) => {
                let (name, pem) = text(ca, "the CA", self.files);
                match authorities(&pem) {
                    Ok(roots) => Some(roots),
                    Err(what) => {
                        faults.push(Fault::new(
                            format!("{pointer}/ca"),
                            format!("{name} {what}"),
                        ));
                        None
                    }
                }
            }
            (None, false) => Some(self.system(pointer)),
        };
        let mut digest = Sha256::new();
        // Of the parts only the name has no fixed length, and it comes last.
        match &trust {
            Some(trust) => digest.update(trust.digest),
            None => digest.update([0; 32]),
        }
        // As many as there are: nothing else can be meant by the same bytes.
        digest.update(tls.pins.len().to_be_bytes());
        tls.pins.iter().for_each(|pin| digest.update(pin.0));
        let mut own = None;
        if let Some(CertificateSpec::Pair { cert, key }) = &tls.client {
            let (cert_name, cert) = text(cert, "the client certificate", self.files);
            let (key_name, key) = text(key, "the client key", self.files);
            digest.update(Sha256::digest(&cert));
            digest.update(Sha256::digest(&key));
            let pair = Pair {
                cert: &cert,
                cert_pointer: &format!("{pointer}/client_cert"),
                cert_name: &cert_name,
                key: &key,
                key_pointer: &format!("{pointer}/client_key"),
                key_name: &key_name,
            };
            match pair.parse(self.provider) {
                Ok(certificate) => {
                    if let Some(word) = certificate.untimely(self.now) {
                        let message = format!("{} {word}", pair.cert_name);
                        let fault = Fault::new(pair.cert_pointer, message);
                        self.warnings.push(fault.help("the targets will refuse it"));
                    }
                    own = Some(certificate);
                }
                Err(fault) => faults.push(fault),
            }
        } else {
            digest.update([0; 64]);
        }
        digest.update(tls.server_name.as_deref().unwrap_or_default());
        if !faults.is_empty() {
            return Err(faults);
        }
        let identity: Identity = digest.finalize().into();
        if let Some(client) = self.known.get(&identity) {
            return Ok(client.clone());
        }
        let made = self
            .make(identity, trust, own, tls)
            .map_err(|error| vec![Fault::new(pointer, format!("TLS is not possible: {error}"))])?;
        let client = Arc::new(made);
        self.known.insert(identity, client.clone());
        Ok(client)
    }

    fn make(
        &self,
        identity: Identity,
        trust: Option<Trust>,
        own: Option<Certificate>,
        tls: &UpstreamTlsSpec,
    ) -> Result<Client, rustls::Error> {
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let builder = match trust {
            Some(trust) => builder.with_root_certificates(trust.roots),
            None => {
                let by_key = Arc::new(ByKey {
                    pins: tls.pins.clone(),
                    provider: self.provider.clone(),
                });
                builder.dangerous().with_custom_certificate_verifier(by_key)
            }
        };
        let config = match own {
            Some(own) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.key)))
            }
            None => builder.with_no_client_auth(),
        };
        let offering = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
            Arc::new(config)
        };
        let server_name = tls.server_name.clone().map(ServerName::try_from);
        Ok(Client {
            identity,
            server_name: server_name
                .transpose()
                .map_err(|error| rustls::Error::General(error.to_string()))?,
            h1: offering(&[H1]),
            h2: offering(&[H2]),
            both: offering(&[H2, H1]),
            nothing: offering(&[]),
        })
    }

    /// The CAs of this system. Read anew for each generation that needs them: they change with the system's packages.
    fn system(&mut self, pointer: &str) -> Trust {
        if let Some(trust) = &self.system {
            return trust.clone();
        }
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "CAs of the system");
        }
        let mut digest = Sha256::new();
        let mut roots = RootCertStore::empty();
        for certificate in found.certs {
            digest.update(certificate.len().to_be_bytes());
            digest.update(&certificate);
            // What webpki cannot read signs nothing that it could check.
            let _ = roots.add(certificate);
        }
        if roots.is_empty() {
            let message =
                "this system has no CA certificates: those of Mozilla that are built in are used";
            let fault = Fault::new(pointer, message);
            self.warnings
                .push(fault.help("install `ca-certificates`, or name yours in `ca`"));
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            digest.update(b"built in");
        }
        let trust = Trust {
            roots: Arc::new(roots),
            digest: digest.finalize().into(),
        };
        self.system.insert(trust).clone()
    }
}

/// The CAs in a PEM text, or what is wrong with it.
fn authorities(pem: &[u8]) -> Result<Trust, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("is not valid PEM: {error}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("holds something that is no CA certificate: {error}"))?;
    }
    if roots.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    Ok(Trust {
        roots: Arc::new(roots),
        digest: Sha256::digest(pem).into(),
    })
}

/// Goes by the key that signed the handshake. `insecure`: by any.
#[derive(Debug)]
struct ByKey {
    /// Empty: any key will do.
    pins: Vec<Pin>,
    provider: Arc<CryptoProvider>,
}

/// The server has another key than the one that is pinned.
#[derive(Debug, thiserror::Error)]
#[error("the server's key is {0}, and not a pinned one")]
pub struct OtherKey(pub Pin);

/// The pin of a certificate's key.
///
/// # Errors
/// When it cannot be read.
pub fn pin_of(certificate: &CertificateDer<'_>) -> Result<Pin, rustls::Error> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
    Ok(Pin(Sha256::digest(parsed.public_key().raw).into()))
}

impl ServerCertVerifier for ByKey {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pins.is_empty() {
            return Ok(ServerCertVerified::assertion());
        }
        let pin = pin_of(certificate)?;
        if self.pins.contains(&pin) {
            return Ok(ServerCertVerified::assertion());
        }
        let other = OtherError(Arc::new(OtherKey(pin)));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(
            other,
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
