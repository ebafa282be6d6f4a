//! One check of a target: a connection of its own, never a pooled one, because what shall be known is whether new ones
//! can be had. All of it within `timeout`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONNECTION, HOST, USER_AGENT};
use ::http::{HeaderName, HeaderValue, Request, Version};
use bytes::{Bytes, BytesMut};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::super::error::chain;
use super::super::resolve::Names;
use super::grpc;
use crate::config::scalar::TargetAddr;
use crate::config::upstream::{HealthSpec, ProbeSpec};

/// Bytes of an answer in which `receive` is looked for.
const RECEIVE: usize = 16 * 1024;
/// Bytes of an answer's head.
const HEAD: usize = 64 * 1024;

/// A connection to check with.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}
pub(super) type Stream = Box<dyn Io>;

/// What is asked of one target.
#[derive(Debug)]
pub(super) struct Probe {
    address: TargetAddr,
    names: Option<Arc<Names>>,
    spec: HealthSpec,
    /// What `Host` says, unless the settings do.
    authority: String,
}

impl Probe {
    pub(super) fn new(address: TargetAddr, names: Option<Arc<Names>>, spec: HealthSpec) -> Probe {
        let authority = match (&address, spec.port) {
            (TargetAddr::Ip(ip), Some(port)) => SocketAddr::new(ip.ip(), port).to_string(),
            (TargetAddr::Name(name, _), Some(port)) => format!("{name}:{port}"),
            (TargetAddr::Unix(_), _) => "localhost".to_owned(),
            (address, None) => address.to_string(),
        };
        Probe {
            address,
            names,
            spec,
            authority,
        }
    }

    pub(super) fn spec(&self) -> &HealthSpec {
        &self.spec
    }

    /// False while the target's name is unknown: there is nothing to ask then.
    pub(super) fn is_resolved(&self) -> bool {
        self.names.as_ref().is_none_or(|names| names.is_up())
    }

    /// Asks. `Ok` and `Err` both say in a few words what came of it.
    pub(super) async fn ask(&self) -> Result<String, String> {
        let limit = self.spec.timeout;
        let mut stage = "not connected";
        let asked = async {
            let stream = self.connect().await?;
            stage = "no answer";
            self.talk(stream).await
        };
        let asked = tokio::time::timeout(limit, asked).await;
        asked.unwrap_or_else(|_| Err(format!("{stage} within {limit:?}")))
    }

    async fn talk(&self, stream: Stream) -> Result<String, String> {
        match &self.spec.probe {
            ProbeSpec::Tcp { send, receive } => tcp(stream, send, receive.as_deref()).await,
            ProbeSpec::Http {
                method,
                path,
                host,
                headers,
                expect,
            } => {
                let mut request = Request::new(Empty::new());
                *request.method_mut() = method.clone();
                self.set_fields(&mut request, host.as_ref(), headers)?;
                let uri = path.parse().map_err(|e| format!("the path: {e}"))?;
                *request.uri_mut() = uri;
                let status = http1(stream, request).await?;
                let said = format!("status {status}");
                if expect.iter().any(|range| range.contains(status)) {
                    Ok(said)
                } else {
                    Err(said)
                }
            }
            ProbeSpec::Grpc {
                service,
                host,
                headers,
            } => {
                let host = host.as_ref().and_then(|host| host.to_str().ok());
                let authority = host.unwrap_or(&self.authority);
                grpc::ask(stream, "http", authority, service, headers).await
            }
        }
    }

    fn set_fields<B>(
        &self,
        request: &mut Request<B>,
        host: Option<&HeaderValue>,
        more: &[(HeaderName, HeaderValue)],
    ) -> Result<(), String> {
        let fields = request.headers_mut();
        let host = match host {
            Some(host) => host.clone(),
            None => HeaderValue::try_from(self.authority.as_str())
                .map_err(|e| format!("the target's address as `Host`: {e}"))?,
        };
        fields.insert(HOST, host);
        fields.insert(CONNECTION, HeaderValue::from_static("close"));
        fields.insert(USER_AGENT, HeaderValue::from_static("evergate-health"));
        for (name, value) in more {
            fields.insert(name, value.clone());
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Stream, String> {
        let at = |address: &SocketAddr| match self.spec.port {
            Some(port) => SocketAddr::new(address.ip(), port),
            None => *address,
        };
        let found = match (&self.address, &self.names) {
            (TargetAddr::Ip(ip), _) => dial(at(ip)).await,
            (TargetAddr::Name(..), Some(names)) => {
                let all: Vec<_> = names.rotated().iter().map(at).collect();
                return any(&all, self.spec.timeout).await;
            }
            #[cfg(unix)]
            (TargetAddr::Unix(path), _) => {
                let stream = tokio::net::UnixStream::connect(path).await;
                stream.map(|s| Box::new(s) as Stream)
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        found.map_err(|error| format!("connect: {error}"))
    }
}

/// The first of several addresses that answers; each may use its share of the time.
async fn any(addresses: &[SocketAddr], limit: Duration) -> Result<Stream, String> {
    let mut why = "the name has no address".to_owned();
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    for address in addresses {
        match tokio::time::timeout(share, dial(*address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => why = format!("connect to {address}: {error}"),
            Err(_) => why = format!("{address}: not connected within {share:?}"),
        }
    }
    Err(why)
}

async fn dial(address: SocketAddr) -> io::Result<Stream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

async fn tcp(mut stream: Stream, send: &[u8], receive: Option<&[u8]>) -> Result<String, String> {
    if !send.is_empty() {
        let sent = stream.write_all(send).await;
        sent.map_err(|error| format!("send: {error}"))?;
    }
    let Some(wanted) = receive else {
        return Ok("connected".to_owned());
    };
    let mut read = BytesMut::with_capacity(1024);
    loop {
        if memchr::memmem::find(&read, wanted).is_some() {
            return Ok("received what is expected".to_owned());
        }
        if read.len() >= RECEIVE {
            return Err(format!("`receive` is not in the first {RECEIVE} bytes"));
        }
        match stream.read_buf(&mut read).await {
            Ok(0) => {
                return Err(format!(
                    "closed after {} bytes without `receive`",
                    read.len()
                ));
            }
            Ok(_) => {}
            Err(error) => return Err(format!("receive: {error}")),
        }
    }
}

/// The status of the answer; its body is not waited for.
async fn http1(
    stream: Stream,
    mut request: Request<Empty<Bytes>>,
) -> Result<::http::StatusCode, String> {
    *request.version_mut() = Version::HTTP_11;
    let handshake = http1::Builder::new()
        .max_header_size(HEAD)
        .max_buf_size(2 * HEAD)
        .handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|e| chain(&e))?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let answer = sender.send_request(request).await;
    Ok(answer.map_err(|error| chain(&error))?.status())
}
