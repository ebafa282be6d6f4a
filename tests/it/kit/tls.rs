//! Certificates made on the spot, and a blocking TLS client that shows what it was given.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, ProtocolVersion,
    SignatureScheme, StreamOwned,
};

use super::PATIENCE;
use super::raw::{Conn, Response};

/// A certificate with its key.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
    pub(crate) der: Vec<u8>,
}

impl Pair {
    pub(crate) fn new(names: &[&str]) -> Pair {
        let names = names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Pair {
            cert: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
            der: made.cert.der().to_vec(),
        }
    }
}

/// A CA whose certificates clients show.
pub(crate) struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub(crate) cert: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let cert = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        Authority { issuer, cert }
    }

    /// A certificate of a client.
    pub(crate) fn client(&self, name: &str) -> Pair {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![format!("{name}.test")]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let subject = &mut params.distinguished_name;
        subject.push(rcgen::DnType::OrganizationName, "Example, Inc.");
        subject.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let made = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            cert: made.pem(),
            key: key.serialize_pem(),
            der: made.der().to_vec(),
        }
    }
}

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A client that takes any certificate whose key signed the handshake, and keeps sessions.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    config: ClientConfig,
}

impl Client {
    pub(crate) fn new() -> Client {
        Client::versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
    }

    pub(crate) fn versions(versions: &[&'static rustls::SupportedProtocolVersion]) -> Client {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
            .with_no_client_auth();
        Client { config }
    }

    pub(crate) fn alpn(mut self, protocols: &[&str]) -> Client {
        self.config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        self
    }

    /// Trusts what `ca` has signed and nothing else.
    pub(crate) fn trusting(ca: &str) -> Client {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Client { config }
    }

    /// Shows a certificate when it is asked for one.
    pub(crate) fn showing(mut self, pair: &Pair) -> Client {
        let provider = aws_lc_rs::default_provider();
        let chain = vec![CertificateDer::from(pair.der.clone())];
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let key = CertifiedKey::from_der(chain, key, &provider).unwrap();
        self.config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(key));
        self
    }

    /// Says no name in its hello.
    pub(crate) fn without_name(mut self) -> Client {
        self.config.enable_sni = false;
        self
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        Arc::new(self.config.clone())
    }

    /// A connection whose handshake is over.
    pub(crate) fn open(&self, to: SocketAddr, name: &str) -> io::Result<Conn<Tls>> {
        self.over(TcpStream::connect_timeout(&to, PATIENCE)?, name)
    }

    pub(crate) fn over(&self, stream: TcpStream, name: &str) -> io::Result<Conn<Tls>> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let client = ClientConnection::new(self.config(), name).unwrap();
        let mut stream = StreamOwned::new(client, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Conn::with(stream))
    }

    /// One GET on a connection of its own, which must be answered.
    pub(crate) fn get(&self, to: SocketAddr, name: &str, path: &str) -> Response {
        let host = name.to_owned();
        self.open(to, name)
            .and_then(|mut conn| conn.exchange(request(&host, path, "close")))
            .unwrap_or_else(|e| panic!("GET {path} from {name} at {to}: {e}"))
    }
}

pub(crate) fn request(host: &str, path: &str, connection: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: {connection}\r\n\r\n")
}

impl Conn<Tls> {
    /// The certificate it was given.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.stream.conn.peer_certificates().unwrap()[0].to_vec()
    }

    pub(crate) fn alpn(&self) -> Option<String> {
        let chosen = self.stream.conn.alpn_protocol()?;
        Some(String::from_utf8_lossy(chosen).into_owned())
    }

    pub(crate) fn version(&self) -> ProtocolVersion {
        self.stream.conn.protocol_version().unwrap()
    }

    pub(crate) fn is_resumed(&self) -> bool {
        self.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
