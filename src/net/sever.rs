//! Closing a connection in the middle of what it carries. A close is the end of some messages (an HTTP/1.0 answer without a
//! length), so that one which has been cut must end in another way.

use std::time::Duration;

/// A stream that can be closed so that its reader knows that something is missing.
pub trait Sever {
    /// Makes the close that follows a reset. A unix socket has none: there a cut end looks like any other.
    fn sever(&self);

    /// The socket itself, if its bytes are what the other end sent: nothing is encrypted, nothing waits in a buffer.
    fn plain_tcp(&self) -> Option<&tokio::net::TcpStream> {
        None
    }
}

impl Sever for tokio::net::TcpStream {
    fn sever(&self) {
        let socket = socket2::SockRef::from(self);
        if let Err(error) = socket.set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "a connection can't be reset");
        }
    }

    fn plain_tcp(&self) -> Option<&tokio::net::TcpStream> {
        Some(self)
    }
}

#[cfg(unix)]
impl Sever for tokio::net::UnixStream {
    fn sever(&self) {}
}

/// Over TLS the end is also one without a `close_notify`.
impl<S: Sever> Sever for tokio_rustls::server::TlsStream<S> {
    fn sever(&self) {
        self.get_ref().0.sever();
    }
}

/// A stream of HTTP/2. Nothing is done: hyper ends it cleanly when it is dropped, so that here, too, a cut end looks like any
/// other (RFC 9113 section 8.5 wants a reset).
impl Sever for hyper_util::rt::TokioIo<hyper::upgrade::Upgraded> {
    fn sever(&self) {}
}

#[cfg(test)]
impl Sever for tokio::io::DuplexStream {
    fn sever(&self) {}
}
