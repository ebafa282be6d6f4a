//! The handshake before HTTP: it takes what the address presents at the moment the client's hello has come, so that a
//! client which connects after a swap gets the new certificate, and is over within `timeouts.header`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::ServerConnection;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::http::{self, Listener, Protocol};
use crate::config::http::ConnectionSpec;
use crate::generation::EpochGuard;
use crate::http::connection::{Connection, IDLE_LINGER};
use crate::http::{Face as _, Secure};
use crate::net::{Peer, Sever};
use crate::tls::{Failure, Handshake, Session};

/// A handshake of which something was read already, to see whose it is.
pub(super) struct Begun {
    /// What was read.
    pub(super) first: Bytes,
    /// When its time began.
    pub(super) since: Instant,
}

/// Serves one accepted connection to its end, as [`http::serve`] does. `secure`: of the entry it was accepted under.
///
/// What is not TLS, and a hello that has no version, cipher or protocol in common with us, is answered by an alert.
pub fn serve<S>(
    stream: S,
    peer: Peer,
    local: Option<SocketAddr>,
    listener: Arc<Listener>,
    secure: Secure,
    guard: EpochGuard,
) -> impl Future<Output = ()> + Send + 'static
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let begun = Begun {
        first: Bytes::new(),
        since: Instant::now(),
    };
    serve_begun(stream, begun, peer, local, listener, secure, guard)
}

/// The same for a connection of which something was read already.
pub(super) async fn serve_begun<S>(
    stream: S,
    begun: Begun,
    peer: Peer,
    local: Option<SocketAddr>,
    listener: Arc<Listener>,
    secure: Secure,
    guard: EpochGuard,
) where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let counters = listener.handshakes.clone();
    let Begun { first, since } = begun;
    let late = late(secure.connection.header_timeout, since, &guard);
    let done = tokio::select! {
        biased;
        done = handshake(stream, first, &listener, secure) => done,
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
    http::serve_chosen(stream, Arc::new(connection), protocol, listener, guard).await;
}

async fn handshake<S>(
    stream: S,
    first: Bytes,
    listener: &Listener,
    accepted: Secure,
) -> io::Result<(TlsStream<S>, Arc<ConnectionSpec>, Session)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (hello, rest) = hello(stream, first).await?;
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
    let stream = hello.into_stream_with(config, |session| take_in(session, &rest));
    let stream = stream.await?;
    let session = Session::of(stream.get_ref().1, client_auth)?;
    Ok((stream, secure.connection, session))
}

/// The client's hello, of which `first` was read already, and what of that came behind it.
pub(super) async fn hello<S>(mut stream: S, first: Bytes) -> io::Result<(StartHandshake<S>, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut rest = &first[..];
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest)?;
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = StartHandshake::from_parts(accepted, stream);
                return Ok((hello, first.slice_ref(rest)));
            }
            Err((error, mut alert)) => {
                let mut last = Vec::new();
                alert.write_all(&mut last)?;
                stream.write_all(&last).await?;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
    let hello = LazyConfigAcceptor::new(acceptor, stream).await?;
    Ok((hello, Bytes::new()))
}

/// Hands over what came behind a hello. It is less than a session takes at once.
pub(super) fn take_in(session: &mut ServerConnection, mut rest: &[u8]) {
    while !rest.is_empty() {
        if let Err(error) = session.read_tls(&mut rest) {
            // The handshake finds that something is missing, and fails.
            return tracing::debug!(%error, "more than a handshake takes came behind a hello");
        }
    }
}

/// Ends when the handshake must: its time, which began at `since`, is over, or its epoch has no more patience.
pub(super) async fn late(limit: Option<Duration>, since: Instant, guard: &EpochGuard) {
    let limit = async {
        match limit.and_then(|limit| since.checked_add(limit)) {
            Some(end) => tokio::time::sleep_until(end).await,
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
