//! The handshake before HTTP: it takes what the address presents at the moment the client's hello has come, so that a
//! client which connects after a swap gets the new certificate, and is over within `timeouts.header`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::http::{self, Listener, Protocol};
use crate::config::http::ConnectionSpec;
use crate::generation::EpochGuard;
use crate::http::connection::{Connection, IDLE_LINGER};
use crate::http::{Face as _, Secure};
use crate::net::{Peer, Sever};
use crate::tls::{Failure, Handshake, Session};

/// Serves one accepted connection to its end, as [`http::serve`] does. `secure`: of the entry it was accepted under.
///
/// What is not TLS, and a hello that has no version, cipher or protocol in common with us, is answered by an alert.
pub async fn serve<S>(
    stream: S,
    peer: Peer,
    local: Option<SocketAddr>,
    listener: Arc<Listener>,
    secure: Secure,
    guard: EpochGuard,
) where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let counters = listener.handshakes.clone();
    let late = late(secure.connection.header_timeout, &guard);
    let done = tokio::select! {
        biased;
        done = handshake(stream, &listener, secure) => done,
        () = late => {
            counters.failed(Failure::Timeout);
            return;
        }
    };
    let (stream, spec, session) = match done {
        Ok(done) => done,
        Err(error) => {
            counters.failed(Failure::of(&error));
            tracing::debug!(%peer, %error, "TLS handshake failed");
            return;
        }
    };
    counters.done(session.resumed);
    drop(counters);
    let protocol = match session.h2 {
        Some(true) => Protocol::Http2,
        Some(false) => Protocol::Http1,
        None if spec.h1 => Protocol::Http1,
        None => {
            // RFC 9113 section 3.2: HTTP/2 over TLS is chosen by ALPN.
            tracing::debug!(%peer, "the client offered no protocol, and HTTP/1 is not spoken here");
            return;
        }
    };
    let connection = Connection::new(peer, local, spec, listener.worker.clone()).over_tls(session);
    http::serve_chosen(stream, connection, protocol, listener, guard).await;
}

async fn handshake<S>(
    stream: S,
    listener: &Listener,
    accepted: Secure,
) -> io::Result<(TlsStream<S>, Arc<ConnectionSpec>, Session)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello = LazyConfigAcceptor::new(Default::default(), stream).await?;
    // An address that speaks cleartext by now has told this connection to finish: it may do so as it was accepted.
    let secure = listener
        .slot
        .pin()
        .entry
        .http()
        .secure()
        .unwrap_or(accepted);
    let Handshake {
        config,
        client_auth,
    } = secure.server.handshake(hello.client_hello().server_name());
    let stream = hello.into_stream(config).await?;
    let session = Session::of(stream.get_ref().1, client_auth)?;
    Ok((stream, secure.connection, session))
}

/// Ends when the handshake must: its time is over, or its epoch has no more patience.
pub(super) async fn late(limit: Option<std::time::Duration>, guard: &EpochGuard) {
    let limit = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let finish = async {
        guard.epoch.finish.cancelled().await;
        tokio::time::sleep(IDLE_LINGER).await;
    };
    tokio::select! {
        () = limit => {}
        () = finish => {}
        () = guard.epoch.cut.cancelled() => {}
    }
}
