//! An agent's side of a flow: dials the service as far as that is permitted, and passes on what comes both ways, without
//! copying it on its way from the carrier.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;

use ::http::{Request, Response, StatusCode};
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason as H2Reason, RecvStream, SendStream};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use super::agent::Settings;
use super::carrier::{broken, send_all};
use super::datagram;
use super::hub::{Reason, Refusal};
use super::session::address;
use super::wire;
use crate::config::agent::{ServiceKind, ServiceSpec};
use crate::config::scalar::TargetAddr;
use crate::net::{Sever as _, proxy_protocol};

/// Bytes read from a service at a time.
const CHUNK: usize = 32 * 1024;

/// What a service is reached over.
enum Local {
    Stream(TcpStream),
    Datagrams(UdpSocket),
}

/// Serves one flow to its end.
pub(super) async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    settings: &Settings,
) {
    let (head, receive) = request.into_parts();
    let name = head.headers.get(wire::SERVICE);
    let name = name.and_then(|name| name.to_str().ok()).unwrap_or_default();
    let client =
        address(head.headers.get(wire::CLIENT)).zip(address(head.headers.get(wire::LOCAL)));
    let reached = match settings.spec.services.get(name) {
        Some(service) => reach(service, settings, client)
            .await
            .map(|local| (service.kind, local)),
        None => Err(Refusal::new(
            Reason::Absent,
            "the agent has no such service",
        )),
    };
    let local = match reached {
        Ok((_, local)) => local,
        Err(refusal) => {
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
            return;
        }
    };
    let Ok(send) = respond.send_response(Response::new(()), false) else {
        return;
    };
    match local {
        Local::Stream(stream) => relay(stream, receive, send).await,
        Local::Datagrams(socket) => datagram::relay(socket, receive, send).await,
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

/// Looks the service's address up, asks whether it may be dialled, and dials.
async fn reach(
    service: &ServiceSpec,
    settings: &Settings,
    client: Option<(SocketAddr, SocketAddr)>,
) -> Result<Local, Refusal> {
    let deadline = Instant::now() + service.connect;
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

/// Passes on what comes, both ways, until both have ended. A failure on one side is a reset on the other.
async fn relay(mut stream: TcpStream, mut receive: RecvStream, mut send: SendStream<Bytes>) {
    let (from, mut to) = stream.split();
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
    if let Err(error) = tokio::try_join!(up, down) {
        tracing::debug!(%error, "a flow broke");
        send.send_reset(H2Reason::CANCEL);
        stream.sever();
    }
}
