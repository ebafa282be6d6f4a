//! One request to an admin API over a connection of its own: TCP, TLS or a unix socket, HTTP/1.1. No pool, no redirects, no
//! retries: the caller decides what a lost answer means.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use super::secure::Tls;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Where an admin API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// Host and port.
    Tcp(String),
    /// The same, over TLS.
    Tls(String),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') && cfg!(unix) {
                true => Ok(Address::Unix(path.into())),
                false => Err("unix: takes an absolute path".to_owned()),
            };
        }
        let (of, rest): (fn(String) -> Address, &str) = match text.strip_prefix("https://") {
            Some(rest) => (Address::Tls, rest),
            None => (Address::Tcp, text.strip_prefix("http://").unwrap_or(text)),
        };
        let authority = rest.trim_end_matches('/');
        match authority.parse::<http::uri::Authority>() {
            Ok(parsed)
                if parsed.port_u16().is_some()
                    && !authority.contains('@')
                    && !parsed.host().is_empty() =>
            {
                Ok(of(authority.to_owned()))
            }
            _ => Err(
                "expected HOST:PORT, http://HOST:PORT, https://HOST:PORT or unix:/PATH".to_owned(),
            ),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(authority) => f.write_str(authority),
            Address::Tls(authority) => write!(f, "https://{authority}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What to ask.
#[derive(Debug, Default)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

/// An answer and the connection that it comes over, which ends with it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    connection: JoinHandle<()>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Sends one request and returns once the head of the answer is there.
///
/// # Errors
/// A sentence: nobody there, or no answer.
pub(crate) async fn send(
    address: &Address,
    token: Option<&str>,
    tls: &Tls,
    ask: Ask,
) -> Result<Answer, String> {
    let said = |what: &str, error: &dyn std::fmt::Display| format!("{what} {address}: {error}");
    let connect = async {
        match address {
            Address::Tcp(authority) | Address::Tls(authority) => {
                let stream = tokio::net::TcpStream::connect(authority).await?;
                stream.set_nodelay(true)?;
                std::io::Result::Ok(Socket::Tcp(stream))
            }
            #[cfg(unix)]
            Address::Unix(path) => Ok(Socket::Unix(tokio::net::UnixStream::connect(path).await?)),
            #[cfg(not(unix))]
            Address::Unix(_) => Err(std::io::Error::from(std::io::ErrorKind::Unsupported)),
        }
    };
    let stream = match tokio::time::timeout(CONNECT, connect).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(said("no evergate at", &error)),
        Err(_) => return Err(said("no evergate at", &"it did not accept in time")),
    };
    let stream: Box<dyn Stream> = match (stream, address) {
        (Socket::Tcp(stream), Address::Tls(authority)) => {
            let host = authority.rsplit_once(':').map_or("", |(host, _)| host);
            match tokio::time::timeout(CONNECT, tls.connect(stream, host)).await {
                Ok(Ok(stream)) => Box::new(stream),
                Ok(Err(error)) => return Err(said("no TLS with", &error)),
                Err(_) => return Err(said("no TLS with", &"it did not answer in time")),
            }
        }
        (Socket::Tcp(stream), _) => Box::new(stream),
        #[cfg(unix)]
        (Socket::Unix(stream), _) => Box::new(stream),
    };
    let host = match address {
        Address::Tcp(authority) | Address::Tls(authority) => authority.as_str(),
        Address::Unix(_) => "localhost",
    };
    let mut request = Request::builder()
        .method(ask.method)
        .uri(&ask.target)
        .header(header::HOST, host)
        .header(
            header::USER_AGENT,
            concat!("evergate/", env!("CARGO_PKG_VERSION")),
        );
    for (name, value) in &ask.headers {
        request = request.header(*name, value);
    }
    if let Some(token) = token {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| "the token has characters that no header may have")?;
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    let request = request
        .body(Full::new(ask.body))
        .map_err(|error| format!("{}: {error}", ask.target))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| said("no answer from", &error))?;
    let connection = tokio::spawn(async move {
        // What went wrong shows in the answer, or in its absence.
        let _ = connection.await;
    });
    match sender.send_request(request).await {
        Ok(response) => Ok(Answer {
            response,
            connection,
        }),
        Err(error) => {
            connection.abort();
            Err(said("no answer from", &error))
        }
    }
}

/// A connection that nothing was said over.
enum Socket {
    Tcp(tokio::net::TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(
            "127.0.0.1:1".parse(),
            Ok(Address::Tcp("127.0.0.1:1".into()))
        );
        assert_eq!(
            "http://localhost:8837/".parse(),
            Ok(Address::Tcp("localhost:8837".into()))
        );
        assert_eq!("https://a:1/".parse(), Ok(Address::Tls("a:1".into())));
        assert_eq!("[::1]:8837".parse(), Ok(Address::Tcp("[::1]:8837".into())));
        for wrong in [
            "",
            "localhost",
            "https://a",
            "http://a",
            "unix:relative",
            "a b:1",
            "u@h:1",
            ":1",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
