//! TLS towards an admin API: whom to believe, and who we are, from the command line's files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args as ClapArgs;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::config::http::{CertificateSpec, PemSource};
use crate::config::upstream::UpstreamTlsSpec;
use crate::tls::client::{Client, Offer};
use crate::tls::store::Files;

/// For an admin address that is `https://`.
#[derive(Debug, Default, ClapArgs)]
pub(crate) struct Tls {
    /// PEM file with the CA that has signed the admin API's certificate; without it those of this system are believed
    #[arg(long, env = "EVERGATE_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// PEM file with our own certificate, for `admin.tls.client_ca`
    #[arg(long, env = "EVERGATE_CERT", value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// PEM file with its key
    #[arg(long, env = "EVERGATE_KEY", value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
}

impl Tls {
    /// Shakes hands with `host`, which must prove that it is that.
    ///
    /// # Errors
    /// A sentence: a file that cannot be used, or a peer that is not to be believed.
    pub(crate) async fn connect(
        &self,
        stream: TcpStream,
        host: &str,
    ) -> Result<TlsStream<TcpStream>, String> {
        let client = self.client()?;
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| format!("`{name}` is no name that a certificate has"))?;
        let connector = tokio_rustls::TlsConnector::from(client.config(Offer::H1));
        let connected = connector.connect(name, stream).await;
        connected.map_err(|error| error.to_string())
    }

    fn client(&self) -> Result<Arc<Client>, String> {
        let mut files = Files::new();
        let mut source = |path: &Path| {
            let read = std::fs::read(path);
            let bytes = read.map_err(|error| format!("{}: {error}", path.display()))?;
            files.insert(path.to_owned(), bytes.into());
            Ok::<_, String>(PemSource::File(path.to_owned()))
        };
        let ca = self.ca.as_deref().map(&mut source).transpose()?;
        let client = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some(CertificateSpec::Pair {
                cert: source(cert)?,
                key: source(key)?,
            }),
            _ => None,
        };
        let spec = UpstreamTlsSpec {
            server_name: None,
            ca,
            client,
            insecure: false,
            pins: Vec::new(),
        };
        let messages = |faults: Vec<_>| {
            join(
                faults
                    .into_iter()
                    .map(|f: crate::tls::store::Fault| f.message),
            )
        };
        Client::alone(&spec, &files).map_err(messages)
    }
}

fn join(messages: impl Iterator<Item = String>) -> String {
    messages.collect::<Vec<_>>().join("; ")
}
