//! TLS of the API's own address: the handshake, and what it has shown about the caller. A certificate that a CA of
//! `[admin] tls.client_ca` has signed is the right to call, as a token is.

use std::io;
use std::sync::Arc;

use tokio_rustls::LazyConfigAcceptor;

use super::connection::Wire;
use crate::config::admin::AdminSpec;
use crate::config::http::ClientAuthSpec;
use crate::supervisor::AdminBinding;
use crate::tls::{Handshake, Server, Session};

/// What a connection begins with.
#[derive(Debug, Clone)]
pub(super) enum Opening {
    Cleartext,
    Tls(Arc<Server>),
}

impl Opening {
    /// Of the connections that are accepted now. `None`: none may be, since what they would be shown is not there.
    pub(super) fn of(binding: &AdminBinding) -> Option<Opening> {
        match (&binding.spec.tls, &binding.tls) {
            (None, _) => Some(Opening::Cleartext),
            (Some(_), Some(server)) => Some(Opening::Tls(server.clone())),
            (Some(_), None) => None,
        }
    }

    /// The connection that requests come over, and what was settled about it.
    ///
    /// # Errors
    /// When the caller speaks no TLS, or does not show the certificate that it must.
    pub(super) async fn pass(self, wire: Wire) -> io::Result<(Wire, Option<Secured>)> {
        let server = match self {
            Opening::Cleartext => return Ok((wire, None)),
            Opening::Tls(server) => server,
        };
        let hello = LazyConfigAcceptor::new(Default::default(), wire).await?;
        let Handshake {
            config,
            client_auth,
        } = server.handshake(hello.client_hello().server_name());
        let stream = hello.into_stream(config).await?;
        let session = Session::of(stream.get_ref().1, client_auth)?;
        let secured = Secured {
            subject: session.client.map(|client| client.subject),
            client_auth: session.client_auth,
        };
        Ok((Box::pin(stream), Some(secured)))
    }
}

/// What a handshake has settled about everything that comes over its connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Secured {
    /// Of the caller's certificate.
    subject: Option<Box<str>>,
    /// What it was asked for.
    client_auth: Option<Arc<ClientAuthSpec>>,
}

impl Secured {
    /// The subject of the caller's certificate, if it is what `spec` asks for.
    pub(super) fn proves(&self, spec: &AdminSpec) -> Option<&str> {
        let asked = spec.tls.as_ref()?.client_auth.as_ref()?;
        let shown = self.client_auth.as_ref()?;
        self.subject.as_deref().filter(|_| shown == asked)
    }
}

/// True if every caller must show a certificate.
pub(super) fn asks_for_certificates(spec: &AdminSpec) -> bool {
    let tls = spec.tls.as_ref();
    tls.is_some_and(|tls| tls.client_auth.is_some())
}

/// True if connections that were opened under `old` may be used under `new`.
pub(super) fn may_go_on(old: &AdminSpec, new: &AdminSpec) -> bool {
    let asked = |spec: &AdminSpec| spec.tls.as_ref().map(|tls| tls.client_auth.clone());
    asked(old) == asked(new)
}
