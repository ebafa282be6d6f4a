//! One check of a target: a connection of its own, never a pooled one, because what shall be known is whether new ones
//! can be had. All of it within `timeout`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONNECTION, HOST, USER_AGENT};
use ::http::{HeaderValue, Request, Uri, Version};
use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::super::connect::within_tunnel;
use super::super::dial::ServiceAt;
use super::super::error::chain;
use super::super::h1::HEAD;
use super::super::resolve::Names;
use super::super::transport::{Tls, Transport};
use super::super::via::{self, Via, Way};
use super::super::wire::Socket;
use super::{grpc, h2};
use crate::config::scalar::TargetAddr;
use crate::config::upstream::{HealthSpec, ProbeSpec, Protocol};
use crate::net::proxy_protocol;
use crate::tls::client::Offer;

/// Bytes of an answer in which `receive` is looked for.
const RECEIVE: usize = 16 * 1024;

/// What is asked of one target.
#[derive(Debug)]
pub(super) struct Probe {
    address: TargetAddr,
    names: Option<Arc<Names>>,
    spec: HealthSpec,
    transport: Transport,
    /// What `Host` says, unless the settings do.
    authority: String,
}

impl Probe {
    pub(super) fn new(
        address: TargetAddr,
        names: Option<Arc<Names>>,
        spec: HealthSpec,
        transport: Transport,
    ) -> Probe {
        let authority = match (&address, spec.port) {
            (TargetAddr::Ip(ip), Some(port)) => SocketAddr::new(ip.ip(), port).to_string(),
            (TargetAddr::Name(name, _), Some(port)) => format!("{name}:{port}"),
            (TargetAddr::Unix(_) | TargetAddr::Tunnel(..), _) => "localhost".to_owned(),
            (address, None) => address.to_string(),
        };
        Probe {
            address,
            names,
            spec,
            transport,
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
        let deadline = Instant::now() + limit;
        let late = |what: &str| format!("{what} within {limit:?}");
        let socket = timeout_at(deadline, self.connect()).await;
        let socket = socket.map_err(|_| late("not connected"))??;
        // What another port serves need not know the protocol.
        let introduced = self
            .transport
            .proxy_protocol
            .filter(|_| self.spec.port.is_none());
        let socket = match introduced {
            Some(version) => {
                let header = proxy_protocol::header(version, None);
                let written = timeout_at(deadline, written(socket, &header)).await;
                written.map_err(|_| late("no PROXY header written"))??
            }
            None => socket,
        };
        let (socket, h2) = match &self.transport.tls {
            Some(tls) => {
                let secure = timeout_at(deadline, self.secure(socket, tls)).await;
                secure.map_err(|_| late("no TLS"))??
            }
            None => (socket, self.transport.protocol == Protocol::H2c),
        };
        let answer = timeout_at(deadline, self.talk(socket, h2)).await;
        answer.map_err(|_| late("no answer"))?
    }

    /// TLS as the target's requests have it; whether HTTP/2 was chosen in it.
    async fn secure(&self, socket: Socket, tls: &Tls) -> Result<(Socket, bool), String> {
        let offer = match (&self.spec.probe, self.transport.protocol) {
            (ProbeSpec::Grpc { .. }, _) => Offer::H2,
            (ProbeSpec::Tcp { .. }, _) => Offer::H1,
            (ProbeSpec::Http { .. }, Protocol::H2 | Protocol::H2c) => Offer::H2,
            (ProbeSpec::Http { .. }, Protocol::Auto) => Offer::Both,
            (ProbeSpec::Http { .. }, Protocol::Http1) => Offer::H1,
        };
        let connector = TlsConnector::from(tls.client.config(offer));
        let stream = connector.connect(tls.name.clone(), socket).await;
        let stream = stream.map_err(|error| format!("TLS: {error}"))?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if offer == Offer::H2 && !h2 {
            return Err("TLS: did not choose h2 by ALPN".to_owned());
        }
        Ok((Socket::Tls(Box::new(stream)), h2))
    }

    /// As in [`ServiceAt`].
    fn speaks(&self) -> Offer {
        match &self.spec.probe {
            ProbeSpec::Tcp { .. } => Offer::Nothing,
            ProbeSpec::Http { .. } => self.transport.within(Offer::Both),
            ProbeSpec::Grpc { .. } => self.transport.within(Offer::H2),
        }
    }

    async fn talk(&self, socket: Socket, h2: bool) -> Result<String, String> {
        match &self.spec.probe {
            ProbeSpec::Tcp { send, receive } => tcp(socket, send, receive.as_deref()).await,
            ProbeSpec::Http {
                method,
                path,
                host,
                headers,
                expect,
            } => {
                let mut request = Request::new(Full::default());
                *request.method_mut() = method.clone();
                let fields = request.headers_mut();
                fields.insert(USER_AGENT, HeaderValue::from_static("evergate-health"));
                for (name, value) in headers {
                    fields.insert(name, value.clone());
                }
                let host = match host {
                    Some(host) => host.clone(),
                    None => HeaderValue::try_from(self.authority.as_str())
                        .map_err(|e| format!("the target's address as `Host`: {e}"))?,
                };
                let status = if h2 {
                    let uri = Uri::builder()
                        .scheme(self.transport.scheme())
                        .authority(host.as_bytes())
                        .path_and_query(path.as_str());
                    *request.uri_mut() = uri.build().map_err(|e| format!("the request: {e}"))?;
                    *request.version_mut() = Version::HTTP_2;
                    h2::send(socket, request).await?.response.status()
                } else {
                    fields.insert(HOST, host);
                    fields.insert(CONNECTION, HeaderValue::from_static("close"));
                    *request.uri_mut() = path.parse().map_err(|e| format!("the path: {e}"))?;
                    http1(socket, request).await?
                };
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
                let scheme = self.transport.scheme();
                grpc::ask(socket, scheme, authority, service, headers).await
            }
        }
    }

    /// Through the proxies on the way, as requests go; `at` says the port.
    async fn through(
        &self,
        via: &Via,
        at: impl Fn(&SocketAddr) -> SocketAddr,
    ) -> Result<Socket, String> {
        let to = match (&self.address, &self.names) {
            (TargetAddr::Ip(ip), _) => TargetAddr::Ip(at(ip)),
            (TargetAddr::Name(..), Some(names)) => {
                let first = names.rotated().first().map(at);
                TargetAddr::Ip(first.ok_or("the name has no address")?)
            }
            (TargetAddr::Name(name, port), None) => {
                TargetAddr::Name(name.clone(), self.spec.port.unwrap_or(*port))
            }
            (other, _) => other.clone(),
        };
        let deadline = Instant::now() + self.spec.timeout;
        let way = Way {
            hops: via.hops(),
            // Checks belong to no worker; the first one's place in a round is as good as any.
            worker: 0,
            passed: None,
        };
        let opened = via::open(way, &to, deadline).await;
        opened.map(Socket::Within).map_err(|error| error.detail)
    }

    async fn connect(&self) -> Result<Socket, String> {
        let at = |address: &SocketAddr| match self.spec.port {
            Some(port) => SocketAddr::new(address.ip(), port),
            None => *address,
        };
        if let Some(via) = &self.transport.via {
            return self.through(via, at).await;
        }
        let found = match (&self.address, &self.names) {
            (TargetAddr::Ip(ip), _) => dial(at(ip)).await,
            (TargetAddr::Name(..), Some(names)) => {
                let all: Vec<_> = names.rotated().iter().map(at).collect();
                return any(&all, self.spec.timeout).await;
            }
            #[cfg(unix)]
            (TargetAddr::Unix(path), _) => {
                let stream = tokio::net::UnixStream::connect(path).await;
                stream.map(Socket::Unix)
            }
            (TargetAddr::Tunnel(agent, service), _) => {
                let deadline = tokio::time::Instant::now() + self.spec.timeout;
                let to = ServiceAt {
                    agent,
                    service,
                    client: None,
                    speaks: self.speaks(),
                };
                let dialled = within_tunnel(to, &self.transport, deadline).await;
                return dialled.map_err(|error| error.detail);
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        found.map_err(|error| format!("connect: {error}"))
    }
}

/// The first of several addresses that answers; each may use its share of the time.
async fn any(addresses: &[SocketAddr], limit: Duration) -> Result<Socket, String> {
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

async fn dial(address: SocketAddr) -> io::Result<Socket> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Socket::Tcp(stream))
}

/// The stream after these first bytes.
async fn written(mut stream: Socket, bytes: &[u8]) -> Result<Socket, String> {
    let write = stream.write_all(bytes).await;
    write.map_err(|error| format!("PROXY header: {error}"))?;
    Ok(stream)
}

async fn tcp(mut stream: Socket, send: &[u8], receive: Option<&[u8]>) -> Result<String, String> {
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
    socket: Socket,
    request: Request<Full<Bytes>>,
) -> Result<::http::StatusCode, String> {
    let handshake = http1::Builder::new()
        .max_header_size(HEAD)
        .max_buf_size(2 * HEAD)
        .handshake(TokioIo::new(socket));
    let (mut sender, connection) = handshake.await.map_err(|e| chain(&e))?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let answer = sender.send_request(request).await;
    Ok(answer.map_err(|error| chain(&error))?.status())
}
