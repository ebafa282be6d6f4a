//! An agent's side of a flow: dials the service as far as that is permitted, and passes on what comes both ways, without
//! copying it on its way from the carrier.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ::http::{HeaderMap, Request, Response, StatusCode};
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason as H2Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::agent::{Connection, Running, Settings, Shared, dedicated};
use super::carrier::{broken, send_all};
use super::datagram;
use super::hub::{Reason, Refusal};
use super::session::address;
use super::wire;
use crate::config::agent::{ServiceKind, ServiceSpec};
use crate::config::scalar::TargetAddr;
use crate::net::copy::{Anywhere, Pair, Way};
use crate::net::{Sever, SeverOnDrop, proxy_protocol};
use crate::tls::client::{Client, Offer};

/// Bytes read from a service at a time.
const CHUNK: usize = 32 * 1024;

/// What a service is reached over.
enum Local {
    Stream(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Datagrams(UdpSocket),
}

/// What an agent serves a flow with.
pub(super) struct Serving<'a> {
    pub(super) settings: Arc<Settings>,
    pub(super) shared: Arc<Shared>,
    pub(super) running: &'a Running,
}

/// Serves one flow to its end.
pub(super) async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    serving: Serving<'_>,
) {
    let (head, receive) = request.into_parts();
    let name = text(&head.headers, wire::SERVICE).unwrap_or_default();
    let (local, own) = match begin(name, &head.headers, &serving).await {
        Ok(begun) => begun,
        Err(refusal) => return refuse(respond, &refusal, &serving.settings, name),
    };
    // A flow may outlive them by long.
    let dropped = &serving.running.dropped;
    drop((serving, head));
    let Ok(send) = respond.send_response(Response::new(()), false) else {
        return;
    };
    match (local, own) {
        (Local::Stream(stream), None) => relay(stream, receive, send).await,
        (Local::Tls(stream), None) => relay_within(*stream, receive, send).await,
        (Local::Datagrams(socket), _) => {
            datagram::relay(socket, receive, send, dropped).await;
        }
        (Local::Stream(stream), Some(own)) => join(stream, own, send).await,
        (Local::Tls(stream), Some(own)) => join(*stream, own, send).await,
    }
}

fn text<'f>(fields: &'f HeaderMap, name: &str) -> Option<&'f str> {
    fields.get(name)?.to_str().ok()
}

/// Both ends of the flow, where the session is not one of them.
async fn begin(
    name: &str,
    fields: &HeaderMap,
    serving: &Serving<'_>,
) -> Result<(Local, Option<Connection>), Refusal> {
    let local = reach(name, &serving.settings, fields).await?;
    let own = match text(fields, wire::TICKET) {
        // Boxed: of many flows few come here.
        Some(ticket) => Some(Box::pin(own(serving, ticket)).await?),
        None => None,
    };
    Ok((local, own))
}

/// A connection to the server for this flow alone.
async fn own(serving: &Serving<'_>, ticket: &str) -> Result<Connection, Refusal> {
    let Serving {
        settings,
        shared,
        running,
    } = serving;
    let by = running.by().unwrap_or_else(|| settings.clone());
    let made = dedicated(&by, shared, running, ticket).await;
    made.map_err(|failed| {
        let detail = format!("a connection of its own: {}", failed.why);
        Refusal::new(Reason::Unreachable, detail)
    })
}

fn refuse(mut respond: SendResponse<Bytes>, refusal: &Refusal, settings: &Settings, name: &str) {
    tracing::warn!(agent = %settings.spec.name, service = name, reason = %refusal.reason, "{}", refusal.detail);
    let answer = Response::builder()
        .status(StatusCode::BAD_GATEWAY)
        .header(wire::REASON, refusal.reason.word())
        .header(wire::DETAIL, printable(&refusal.detail))
        .body(());
    if let Ok(answer) = answer {
        // It fails where the flow has been given up.
        let _ = respond.send_response(answer, true);
    }
}

/// What a header can hold.
fn printable(text: &str) -> String {
    let plain = |c: char| {
        if c == ' ' || c.is_ascii_graphic() {
            c
        } else {
            '?'
        }
    };
    text.chars().map(plain).take(500).collect()
}

/// Connects to a service, with TLS if the agent is to speak that.
async fn reach(name: &str, settings: &Settings, fields: &HeaderMap) -> Result<Local, Refusal> {
    let service = settings.spec.services.get(name);
    let service =
        service.ok_or_else(|| Refusal::new(Reason::Absent, "the agent has no such service"))?;
    let client = address(fields.get(wire::CLIENT)).zip(address(fields.get(wire::LOCAL)));
    let deadline = Instant::now() + service.connect;
    let local = connect(service, settings, client, deadline).await?;
    let offer = match text(fields, wire::SPEAKS) {
        Some(wire::HTTP_1) => Offer::H1,
        Some(wire::HTTP_2) => Offer::H2,
        _ => Offer::Nothing,
    };
    match (local, settings.services.get(name)) {
        (Local::Stream(stream), Some(client)) if offer != Offer::Nothing => {
            secure(stream, client, offer, service, deadline).await
        }
        (local, _) => Ok(local),
    }
}

/// TLS with a service.
async fn secure(
    stream: TcpStream,
    client: &Client,
    offer: Offer,
    service: &ServiceSpec,
    deadline: Instant,
) -> Result<Local, Refusal> {
    let to = &service.to;
    let connector = TlsConnector::from(client.config(offer));
    let shaken = timeout_at(deadline, connector.connect(client.name_of(to), stream)).await;
    let shaken = shaken.map_err(|_| {
        let detail = format!("{to}: no TLS within {:?}", service.connect);
        Refusal::new(Reason::Timeout, detail)
    })?;
    let stream = shaken
        .map_err(|error| Refusal::new(Reason::Unreachable, format!("TLS with {to}: {error}")))?;
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    if offer == Offer::H2 && !h2 {
        let detail = format!("TLS with {to}: it did not choose h2 by ALPN");
        return Err(Refusal::new(Reason::Unreachable, detail));
    }
    Ok(Local::Tls(Box::new(stream)))
}

/// Looks the service's address up, asks whether it may be dialled, and dials.
async fn connect(
    service: &ServiceSpec,
    settings: &Settings,
    client: Option<(SocketAddr, SocketAddr)>,
    deadline: Instant,
) -> Result<Local, Refusal> {
    let to = &service.to;
    let late = || {
        let detail = format!("{to}: not connected within {:?}", service.connect);
        Refusal::new(Reason::Timeout, detail)
    };
    let (name, found) = match to {
        TargetAddr::Ip(ip) => (None, vec![*ip]),
        TargetAddr::Name(name, port) => {
            let looked = tokio::net::lookup_host((&**name, *port));
            let looked = timeout_at(deadline, looked).await.map_err(|_| late())?;
            let found = looked.map_err(|error| {
                Refusal::new(Reason::Unreachable, format!("{name} is not found: {error}"))
            })?;
            (Some(&**name), found.collect())
        }
        other => {
            let detail = format!("{other} is not dialled over a network");
            return Err(Refusal::new(Reason::Unreachable, detail));
        }
    };
    let permit = &settings.spec.permit;
    let allowed = |ip: &SocketAddr| permit.iter().any(|p| p.allows(name, ip.ip(), ip.port()));
    let permitted: Vec<SocketAddr> = found.iter().copied().filter(allowed).collect();
    if permitted.is_empty() {
        let detail = match found.first() {
            Some(ip) => format!("the agent's `permit` does not let it dial {ip}"),
            None => format!("{to} has no address"),
        };
        return Err(Refusal::new(Reason::Unreachable, detail));
    }
    let mut last = late();
    for (tried, ip) in permitted.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(permitted.len() - tried).unwrap_or(u32::MAX);
        match tokio::time::timeout(share, dial(service, *ip, client)).await {
            Ok(Ok(local)) => return Ok(local),
            Ok(Err(error)) => last = failed(*ip, &error),
            Err(_) => last = late(),
        }
    }
    Err(last)
}

fn failed(ip: SocketAddr, error: &io::Error) -> Refusal {
    let reason = match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::Refused,
        io::ErrorKind::TimedOut => Reason::Timeout,
        _ => Reason::Unreachable,
    };
    Refusal::new(reason, format!("connect to {ip}: {error}"))
}

async fn dial(
    service: &ServiceSpec,
    ip: SocketAddr,
    client: Option<(SocketAddr, SocketAddr)>,
) -> io::Result<Local> {
    if service.kind == ServiceKind::Udp {
        let any: SocketAddr = match ip {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(ip).await?;
        return Ok(Local::Datagrams(socket));
    }
    let mut stream = TcpStream::connect(ip).await?;
    stream.set_nodelay(true)?;
    if let Some(version) = service.proxy_protocol {
        // Once, and before anything else.
        let header = proxy_protocol::header(version, client);
        stream.write_all(&header).await?;
    }
    Ok(Local::Stream(stream))
}

/// The public side has reset the flow.
fn given_up(reset: Result<H2Reason, h2::Error>) -> io::Error {
    match reset {
        Ok(reason) => io::Error::new(io::ErrorKind::ConnectionReset, reason.description()),
        Err(error) => broken(error),
    }
}

/// Passes on what comes, both ways, until both have ended. A failure on one side is a reset on the other; so is the end of
/// the session, with which this is dropped.
async fn relay(stream: TcpStream, mut receive: RecvStream, mut send: SendStream<Bytes>) {
    let mut stream = SeverOnDrop::new(stream);
    let (from, mut to) = stream.get_mut().split();
    let up = async {
        let mut buffer = BytesMut::new();
        loop {
            tokio::select! {
                readable = from.readable() => readable?,
                // Also where nothing is to be sent: who had asked is gone.
                reset = poll_fn(|cx| send.poll_reset(cx)) => return Err(given_up(reset)),
            }
            // Memory only for what is there.
            buffer.reserve(CHUNK);
            match from.try_read_buf(&mut buffer) {
                Ok(0) => break,
                Ok(_) => send_all(&mut send, buffer.split().freeze()).await?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    buffer = BytesMut::new();
                }
                Err(error) => return Err(error),
            }
        }
        send.send_data(Bytes::new(), true).map_err(broken)
    };
    let down = async {
        while let Some(chunk) = receive.data().await {
            let chunk = chunk.map_err(broken)?;
            to.write_all(&chunk).await?;
            let flow = receive.flow_control();
            flow.release_capacity(chunk.len()).map_err(broken)?;
        }
        to.shutdown().await
    };
    match tokio::try_join!(up, down) {
        Ok(_) => stream.spare(),
        Err(error) => {
            tracing::debug!(%error, "a flow broke");
            send.send_reset(H2Reason::CANCEL);
        }
    }
}

/// The same where memory is held for what may come.
async fn relay_within(
    stream: TlsStream<TcpStream>,
    mut receive: RecvStream,
    mut send: SendStream<Bytes>,
) {
    let mut stream = SeverOnDrop::new(stream);
    let (mut from, mut to) = tokio::io::split(&mut stream);
    let up = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            let size = tokio::select! {
                read = from.read_buf(&mut buffer) => read?,
                reset = poll_fn(|cx| send.poll_reset(cx)) => return Err(given_up(reset)),
            };
            if size == 0 {
                break;
            }
            send_all(&mut send, buffer.split().freeze()).await?;
        }
        send.send_data(Bytes::new(), true).map_err(broken)
    };
    let down = async {
        while let Some(chunk) = receive.data().await {
            let chunk = chunk.map_err(broken)?;
            to.write_all(&chunk).await?;
            to.flush().await?;
            let flow = receive.flow_control();
            flow.release_capacity(chunk.len()).map_err(broken)?;
        }
        to.shutdown().await
    };
    let ended = tokio::try_join!(up, down);
    drop((from, to));
    match ended {
        Ok(_) => stream.spare(),
        Err(error) => {
            tracing::debug!(%error, "a flow broke");
            send.send_reset(H2Reason::CANCEL);
        }
    }
}

/// The same over a connection of the flow's own. One that is dropped without a word for its end has broken. `asked`: the stream
/// that the flow was asked for on, on which nothing more is said; the public side resets it when it drops the flow, which the
/// connection does not tell while it is not read.
async fn join<S>(stream: S, own: Connection, mut asked: SendStream<Bytes>)
where
    S: AsyncRead + AsyncWrite + Sever + Unpin,
{
    let (mut stream, mut own) = (SeverOnDrop::new(stream), SeverOnDrop::new(own));
    let way = || Way::new(Anywhere, Bytes::new());
    let mut pair = Pair::new(&mut stream, &mut own, way(), way(), None);
    let ended = poll_fn(|cx| {
        let moved = pair.poll(cx);
        // It may drop what has had both its ends, and the last bytes may be on their way here.
        if moved.is_ready() || pair.forth.is_ended() {
            return moved;
        }
        asked.poll_reset(cx).map(|reset| Err(given_up(reset)))
    })
    .await;
    drop(pair);
    match ended {
        Ok(_) => {
            stream.spare();
            own.spare();
        }
        Err(error) => tracing::debug!(%error, "a flow broke"),
    }
}
