//! TLS towards clients: what one address presents, and what outlives generations so that a swap costs no client its
//! session; towards upstreams: [`client`]. All use of rustls on the server's side is here; listening and routing only see [`Server`] and [`Session`].
//!
//! A generation's certificates are read and judged in [`store`] before anything of it can be seen. Each address then
//! has a [`Server`], which is part of its entry: a handshake takes the one of the generation that serves when the
//! client's hello has come. Files that change between two swaps are taken over by [`Server::exchange`].

mod certificate;
mod choose;
pub mod client;
mod client_auth;
mod counters;
pub mod hello;
mod local_ca;
mod server;
pub mod stamp;
pub mod store;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::PrivateKeyDer;
use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};

use crate::config::http::ClientAuthSpec;
use crate::registry::Registry;
use client_auth::Resumption;
use local_ca::LocalCa;
use store::Certificate;

pub use client_auth::{ClientAuth, ClientCert};
pub use counters::{Counters, Failure, Handshakes};
pub use local_ca::certificate_path as local_ca_path;
pub use server::{Handshake, Presented, Server};

/// Sessions of TLS 1.2 clients that take no tickets, the whole process together.
const SESSIONS: usize = 4096;
/// Names for which certificates of ours are kept although nobody uses them.
const MAX_UNUSED: usize = 64;
const H2: &[u8] = b"h2";
const H1: &[u8] = b"http/1.1";
/// All that some clients offer when they want HTTP/1.0 (`curl --http1.0`).
const H1_0: &[u8] = b"http/1.0";

/// What outlives generations: ticket keys and sessions, so that clients resume across swaps, and the certificates made
/// at start. One per process.
///
/// A session that began where no client is asked for a certificate may be resumed at every address: it proves nothing
/// that another address would have to check. rustls itself binds it to the name asked for, the version and the cipher
/// suite. Those of a `client_auth` are kept apart: see [`client_auth`].
pub struct Shared {
    provider: Arc<CryptoProvider>,
    open: Arc<Resumption>,
    policies: Registry<[u8; 32], Resumption>,
    local: Mutex<Local>,
}

/// What is behind `self_signed`.
struct Local {
    /// Where the CA is kept. `None`: nobody said; `Some(None)`: nowhere.
    folder: Option<Option<PathBuf>>,
    ca: Option<LocalCa>,
    /// By their names, and whether the CA has signed them; made once, so that a swap changes none.
    made: HashMap<Vec<String>, (Arc<Certificate>, bool)>,
}

/// A certificate of ours and whether the local CA has signed it, or why there is none.
type Made = Result<(Arc<Certificate>, bool), String>;

impl Shared {
    /// # Errors
    /// When there is no randomness for the ticket keys.
    pub fn new() -> Result<Shared, rustls::Error> {
        Ok(Shared {
            provider: Arc::new(aws_lc_rs::default_provider()),
            open: Arc::new(Resumption::new(SESSIONS)?),
            policies: Registry::default(),
            local: Mutex::new(Local {
                folder: None,
                ca: None,
                made: HashMap::new(),
            }),
        })
    }

    /// The same with a local CA in the state folder, made when it is first needed. `None`: there is no such folder, and
    /// who uses `self_signed` is told what that means.
    pub fn with_state_folder(self, folder: Option<PathBuf>) -> Shared {
        self.local.lock().folder = Some(folder);
        self
    }

    /// A certificate for `names`: the one that was made before if it is still `good`. With it comes why the local CA could
    /// not sign it. Blocks when the CA is first needed.
    fn local(
        &self,
        names: &[String],
        good: impl Fn(&Certificate) -> bool,
    ) -> (Made, Option<String>) {
        let mut local = self.local.lock();
        let mut why = None;
        if local.ca.is_none() {
            match local.folder.clone() {
                None => {}
                Some(None) => why = Some("there is no state folder".to_owned()),
                Some(Some(folder)) => match LocalCa::open(&folder) {
                    Ok(ca) => local.ca = Some(ca),
                    Err(error) => {
                        let folder = folder.display();
                        why = Some(format!("the local CA cannot be kept in {folder}: {error}"));
                    }
                },
            }
        }
        if let Some((certificate, by_ca)) = local.made.get(names)
            && good(certificate)
        {
            return (Ok((certificate.clone(), *by_ca)), why);
        }
        let made = match &local.ca {
            Some(ca) => ca.issue(names, &self.provider),
            None => self_signed(names, &self.provider),
        };
        let by_ca = local.ca.is_some();
        let made = made.map(|certificate| (Arc::new(certificate), by_ca));
        if let Ok(made) = &made {
            forget_unused(&mut local.made);
            local.made.insert(names.to_vec(), made.clone());
        }
        (made, why)
    }
}

/// Lets go of certificates of ours that nobody uses, when there are many.
fn forget_unused(made: &mut HashMap<Vec<String>, (Arc<Certificate>, bool)>) {
    if made.len() >= MAX_UNUSED {
        made.retain(|_, (certificate, _)| Arc::strong_count(certificate) > 1);
    }
}

fn self_signed(names: &[String], provider: &CryptoProvider) -> Result<Certificate, String> {
    let made = rcgen::generate_simple_self_signed(names.to_vec()).map_err(|e| e.to_string())?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let chain = vec![made.cert.der().clone()];
    Certificate::new(chain, key, provider).map_err(|error| error.to_string())
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// What a handshake has settled.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    /// The name the client asked for, in lower case.
    pub sni: Option<Box<str>>,
    /// `TLSv1.3`, `TLSv1.2`.
    pub version: &'static str,
    /// What the client chose by ALPN: `Some(true)` for HTTP/2, `None` if it offered nothing.
    pub h2: Option<bool>,
    /// It went on with an earlier session.
    pub resumed: bool,
    /// What was asked of the client; `None`: no certificate.
    pub client_auth: Option<Arc<ClientAuthSpec>>,
    /// The certificate it has shown.
    pub client: Option<Box<ClientCert>>,
}

impl Session {
    /// Of a connection whose handshake is over, under `client_auth`.
    ///
    /// # Errors
    /// When the client's certificate holds names that we cannot show to anyone.
    pub fn of(
        connection: &ServerConnection,
        client_auth: Option<Arc<ClientAuthSpec>>,
    ) -> io::Result<Session> {
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        };
        let shown = connection
            .peer_certificates()
            .and_then(|chain| chain.first());
        let client = match shown {
            None => None,
            Some(der) => Some(Box::new(ClientCert::read(der).ok_or_else(unreadable)?)),
        };
        Ok(Session {
            sni: connection
                .server_name()
                .map(|n| n.to_ascii_lowercase().into()),
            version,
            h2: connection.alpn_protocol().map(|name| name == H2),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            client_auth,
            client,
        })
    }
}

/// The DNS names of the certificate that a client has shown; empty: it has shown none.
///
/// # Errors
/// When the certificate cannot be read.
pub fn names_of(connection: &ServerConnection) -> io::Result<Vec<String>> {
    let shown = connection.peer_certificates().and_then(|c| c.first());
    match shown {
        None => Ok(Vec::new()),
        Some(der) => client_auth::dns_names(der).ok_or_else(unreadable),
    }
}

fn unreadable() -> io::Error {
    let error = rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding);
    io::Error::new(io::ErrorKind::InvalidData, error)
}
