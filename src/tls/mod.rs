//! TLS towards clients: what one address presents, and what outlives generations so that a swap costs no client its
//! session; towards upstreams: [`client`]. All use of rustls on the server's side is here; listening and routing only see [`Server`] and [`Session`].
//!
//! A generation's certificates are read and judged in [`store`] before anything of it can be seen. Each address then
//! has a [`Server`], which is part of its entry: a handshake takes the one of the generation that serves when the
//! client's hello has come.

mod choose;
pub mod client;
pub mod store;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::ServerSessionMemoryCache;
use rustls::{ProtocolVersion, ServerConfig, ServerConnection};

use crate::config::http::{ConnectionSpec, TlsVersion};
use choose::Chooser;
use store::Certificate;

/// Sessions of TLS 1.2 clients that take no tickets, the whole process together.
const SESSIONS: usize = 4096;
const H2: &[u8] = b"h2";
const H1: &[u8] = b"http/1.1";

/// What outlives generations: ticket keys and sessions, so that clients resume across swaps, and the certificates made
/// at start. One per process.
///
/// A session may be resumed at every address: no client is asked for a certificate, so it proves nothing that another
/// address would have to check. rustls itself binds it to the name asked for, the version and the cipher suite.
pub struct Shared {
    provider: Arc<CryptoProvider>,
    /// For 1.2 and newer, and for 1.3 alone: all that is the same at every address.
    from_12: ServerConfig,
    only_13: ServerConfig,
    /// By their names; made once, so that a swap changes none.
    self_signed: Mutex<HashMap<Vec<String>, Arc<Certificate>>>,
}

impl Shared {
    /// # Errors
    /// When there is no randomness for the ticket keys.
    pub fn new() -> Result<Shared, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tickets = aws_lc_rs::Ticketer::new()?;
        let sessions = ServerSessionMemoryCache::new(SESSIONS);
        let base = |versions: &[&'static rustls::SupportedProtocolVersion]| {
            let nothing = Arc::new(Chooser::new(&[]));
            let builder = ServerConfig::builder_with_provider(provider.clone());
            let builder = builder.with_protocol_versions(versions)?;
            let mut config = builder.with_no_client_auth().with_cert_resolver(nothing);
            config.ticketer = tickets.clone();
            config.session_storage = sessions.clone();
            Ok::<_, rustls::Error>(config)
        };
        let from_12 = base(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        Ok(Shared {
            from_12,
            only_13: base(&[&rustls::version::TLS13])?,
            provider,
            self_signed: Mutex::default(),
        })
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// What one address of a generation presents to its clients.
pub struct Server {
    config: Arc<ServerConfig>,
    chooser: Arc<Chooser>,
}

impl Server {
    /// `certificates`: of all servers of the address; the first is for clients that ask for no name or an unknown one.
    /// `None`: the connection is cleartext.
    pub fn new(
        certificates: &[Arc<Certificate>],
        connection: &ConnectionSpec,
        shared: &Shared,
    ) -> Option<Server> {
        let base = match connection.tls? {
            TlsVersion::V12 => &shared.from_12,
            TlsVersion::V13 => &shared.only_13,
        };
        let chooser = Arc::new(Chooser::new(certificates));
        let mut config = base.clone();
        config.cert_resolver = chooser.clone();
        let protocols = [(connection.h2, H2), (connection.h1, H1)];
        let spoken = protocols.into_iter().filter(|(speaks, _)| *speaks);
        config.alpn_protocols = spoken.map(|(_, name)| name.to_vec()).collect();
        Some(Server {
            config: Arc::new(config),
            chooser,
        })
    }

    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// True if the certificate for `sni` is good for `host` too, both in lower case.
    pub fn shares(&self, sni: &str, host: &str) -> bool {
        self.chooser.presented(sni).is_some_and(|c| c.names(host))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.chooser).finish()
    }
}

/// What a handshake has settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The name the client asked for, in lower case.
    pub sni: Option<Box<str>>,
    /// `TLSv1.3`, `TLSv1.2`.
    pub version: &'static str,
    /// What the client chose by ALPN: `Some(true)` for HTTP/2, `None` if it offered nothing.
    pub h2: Option<bool>,
}

impl Session {
    /// Of a connection whose handshake is over.
    pub fn of(connection: &ServerConnection) -> Session {
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        };
        Session {
            sni: connection
                .server_name()
                .map(|n| n.to_ascii_lowercase().into()),
            version,
            h2: connection.alpn_protocol().map(|name| name == H2),
        }
    }
}
