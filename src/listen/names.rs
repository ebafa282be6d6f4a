//! Connections of an address where names tell whose they are: the hello is read within `timeouts.header`, and then they go on
//! unopened to a target of `[tcp]`, or with what was read to the handshake of HTTP.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::entry::{Entry, Plane};
use super::l4::Coming;
use super::tls::{self, Begun, late};
use crate::http::{Face as _, Secure};
use crate::l4::names::{Goal, Names, Way};
use crate::l4::tcp::Tcp;
use crate::net::Sever;
use crate::tls::Failure;
use crate::tls::hello::{self, Hello};

/// How long an alert may take to leave.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// What the address did when the connection came.
pub(super) struct Accepted {
    pub(super) names: Arc<Names>,
    /// `None`: there is no HTTP.
    pub(super) secure: Option<Secure>,
}

/// Where a connection goes.
enum Goes {
    Tcp(Way),
    /// TLS is ended here for a listener that goes by no names any more.
    Opened(Arc<Tcp>),
    Http(Secure),
    Nowhere,
}

/// Serves one accepted connection to its end.
pub(super) async fn serve<S>(mut stream: S, coming: Coming, accepted: Accepted)
where
    S: AsyncRead + AsyncWrite + Sever + Unpin + Send + 'static,
{
    let peer = coming.peer;
    if !accepted.names.admits(peer.ip()) {
        tracing::debug!(%peer, "not allowed");
        stream.sever();
        return;
    }
    let since = Instant::now();
    let mut first = BytesMut::new();
    let read = tokio::select! {
        biased;
        read = hello::read(&mut stream, &mut first) => read,
        () = late(accepted.names.header_timeout(), since, &coming.guard) => {
            Err(io::ErrorKind::TimedOut.into())
        }
    };
    let hello = match read {
        Ok(hello) => Some(hello),
        // Whoever ends TLS says so.
        Err(error) if error.kind() == io::ErrorKind::InvalidData && accepted.secure.is_some() => {
            None
        }
        Err(error) => {
            tracing::debug!(%peer, %error, "no TLS hello");
            if accepted.secure.is_some() {
                coming.listener.handshakes.failed(match error.kind() {
                    io::ErrorKind::TimedOut => Failure::Timeout,
                    _ => Failure::of(&error),
                });
            }
            return;
        }
    };
    let serving = coming.listener.slot.pin();
    let goes = goes(&serving.entry, accepted, hello.as_ref());
    let first = first.freeze();
    // Boxed, each: few bytes of state for who waits with a hello, and none has room for what only another needs.
    match goes {
        Goes::Tcp(way) => {
            let binding = coming.listener.slot.binding;
            let flight = serving.generation.begin(binding);
            drop((serving, hello));
            Box::pin(coming.join(stream, way, flight, first)).await;
        }
        Goes::Http(secure) => {
            drop((serving, hello));
            let Coming {
                peer,
                local,
                listener,
                guard,
            } = coming;
            let begun = Begun { first, since };
            Box::pin(tls::serve_begun(
                stream, begun, peer, local, listener, secure, guard,
            ))
            .await;
        }
        Goes::Opened(tcp) => {
            drop((serving, hello));
            Box::pin(coming.secure(stream, first, tcp)).await;
        }
        Goes::Nowhere => {
            drop(serving);
            tracing::debug!(%peer, ?hello, "nobody has this name");
            refuse(stream).await;
        }
    }
}

/// Where the client goes that said `hello` (`None`: it speaks no TLS), by what serves now. No session begins by a definition that
/// is gone: of an address that is another thing by now, only what went to HTTP goes on as it was accepted, to be told to finish.
fn goes(now: &Entry, accepted: Accepted, hello: Option<&Hello>) -> Goes {
    let secure = now.http().secure();
    let (names, secure, gone) = match (&now.plane, secure) {
        (Plane::Names(names), secure) => (names.clone(), secure, false),
        (Plane::Http, Some(secure)) => return Goes::Http(secure),
        (Plane::Tcp(tcp), _) if tcp.tls.is_some() => return Goes::Opened(tcp.clone()),
        (Plane::Tcp(tcp), _) => {
            let upstream = tcp.upstream().cloned();
            return upstream.map_or(Goes::Nowhere, |upstream| {
                let tcp = tcp.clone();
                Goes::Tcp(Way { tcp, upstream })
            });
        }
        _ => (accepted.names, accepted.secure, true),
    };
    let goal = match hello {
        Some(hello) => names.find(hello),
        None => Some(&Goal::Http),
    };
    match (goal, secure) {
        (Some(Goal::Tcp(way)), _) if !gone => Goes::Tcp(way.clone()),
        (Some(Goal::Http), Some(secure)) => Goes::Http(secure),
        _ => Goes::Nowhere,
    }
}

/// Says that no server has the name that was asked for, and closes.
async fn refuse<S: AsyncWrite + Unpin>(mut stream: S) {
    let last = async {
        stream.write_all(&hello::UNRECOGNIZED_NAME).await?;
        stream.shutdown().await
    };
    let _ = timeout(LAST_WRITE, last).await;
}
