//! The client's side of SOCKS5 (RFC 1928), CONNECT and UDP ASSOCIATE, with user and password (RFC 1929). Every answer says how
//! long it is, so nothing that follows is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{Fault, Question};
use crate::config::scalar::TargetAddr;
use crate::config::via::LoginSpec;
use crate::upstream::error::{Error, Kind};

const VERSION: u8 = 5;
const CONNECT: u8 = 1;
const ASSOCIATE: u8 = 3;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
const NO_LOGIN: u8 = 0;
const PASSWORD: u8 = 2;
const NONE_TAKEN: u8 = 0xff;

/// Asks a proxy for a connection.
pub(super) async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    question: Question<'_>,
    asked: &mut bool,
) -> Result<(), Fault> {
    let Question { hop, to, login, .. } = question;
    let address = address(to).ok_or_else(|| {
        let what = format!("{to} cannot be asked for by SOCKS");
        answered(hop, Kind::DestinationUnavailable, &what)
    })?;
    greet(stream, hop, login).await?;
    request(stream, CONNECT, &address).await?;
    *asked = true;
    // The address that it dials from, which nobody here asks for.
    reply(stream, hop, &format!("CONNECT {to}")).await?;
    Ok(())
}

/// Asks the proxy `hop` to relay datagrams, from wherever we send them. Returns where to, as the proxy has it.
pub(super) async fn associate(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    hop: &str,
    login: Option<&LoginSpec>,
) -> Result<SocketAddr, Fault> {
    greet(stream, hop, login).await?;
    request(stream, ASSOCIATE, &[IPV4, 0, 0, 0, 0, 0, 0]).await?;
    let bound = reply(stream, hop, "UDP ASSOCIATE").await?;
    bound
        .filter(|bound| bound.port() != 0)
        .ok_or_else(|| Fault::not_understood("its reply does not say where datagrams go"))
}

fn answered(hop: &str, kind: Kind, what: &str) -> Fault {
    Fault::Answered(Error::upstream(kind, format!("via {hop}: {what}")).unsent())
}

/// Says who we are, if it wants to know that.
async fn greet(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    hop: &str,
    login: Option<&LoginSpec>,
) -> Result<(), Fault> {
    let unknown = |what: &str| {
        let detail = format!("via {hop}: {what}");
        Fault::Answered(Error::us(Kind::ConnectionRefused, detail).unsent())
    };
    let greeting: &[u8] = match login {
        Some(_) => &[VERSION, 2, NO_LOGIN, PASSWORD],
        None => &[VERSION, 1, NO_LOGIN],
    };
    send(stream, greeting).await?;
    let mut choice = [0; 2];
    stream.read_exact(&mut choice).await?;
    match (choice, login) {
        ([VERSION, NO_LOGIN], _) => {}
        ([VERSION, PASSWORD], Some(LoginSpec { user, password })) => {
            send(stream, &credentials(user, password.expose())).await?;
            let mut verdict = [0; 2];
            stream.read_exact(&mut verdict).await?;
            if verdict[1] != 0 {
                return Err(unknown("it does not take this user and password"));
            }
        }
        ([VERSION, NONE_TAKEN], login) => {
            let what = match login {
                Some(_) => "it takes no user and password",
                None => "it wants to know who we are, by a user and a password or otherwise",
            };
            return Err(unknown(what));
        }
        _ => return Err(Fault::not_understood("it does not answer in SOCKS5")),
    }
    Ok(())
}

async fn request(
    stream: &mut (impl AsyncWrite + Unpin),
    command: u8,
    address: &[u8],
) -> std::io::Result<()> {
    send(stream, &[&[VERSION, command, 0], address].concat()).await
}

/// Reads the reply to a request, `asked`. Returns the address of its own that the proxy names; `None`: it names no number.
async fn reply(
    stream: &mut (impl AsyncRead + Unpin),
    hop: &str,
    asked: &str,
) -> Result<Option<SocketAddr>, Fault> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    if head[0] != VERSION {
        return Err(Fault::not_understood("it does not answer in SOCKS5"));
    }
    if head[1] != 0 {
        let (kind, why) = meaning(head[1]);
        let what = format!("{asked} was answered with reply {}: {why}", head[1]);
        return Err(answered(hop, kind, &what));
    }
    let length = match head[3] {
        IPV4 => 4,
        IPV6 => 16,
        NAME => usize::from(stream.read_u8().await?),
        _ => {
            return Err(Fault::not_understood(
                "its reply has an address of no known kind",
            ));
        }
    };
    let mut rest = [0; 257];
    stream.read_exact(&mut rest[..length + 2]).await?;
    Ok(number(head[3], &rest))
}

/// An address and a port, if they are numbers.
fn number(kind: u8, bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, rest): (IpAddr, _) = match kind {
        IPV4 => {
            let (ip, rest) = bytes.split_first_chunk::<4>()?;
            (Ipv4Addr::from(*ip).into(), rest)
        }
        IPV6 => {
            let (ip, rest) = bytes.split_first_chunk::<16>()?;
            (Ipv6Addr::from(*ip).to_canonical(), rest)
        }
        _ => return None,
    };
    let port = u16::from_be_bytes(*rest.first_chunk()?);
    Some(SocketAddr::new(ip, port))
}

/// The header of datagrams to `to` (RFC 1928 section 7); `None`: SOCKS cannot say it.
pub(super) fn header(to: &TargetAddr) -> Option<Vec<u8>> {
    Some([&[0, 0, 0], &*address(to)?].concat())
}

/// What a datagram of the relay holds, and who sent it: `Err` has the port of a name. `None`: it has no header, or is a
/// fragment, of which we ask for none.
pub(super) fn read(datagram: &[u8]) -> Option<(Result<SocketAddr, u16>, &[u8])> {
    let [0, 0, 0, kind, rest @ ..] = datagram else {
        return None;
    };
    if *kind == NAME {
        let (length, rest) = rest.split_first()?;
        let rest = rest.get(usize::from(*length)..)?;
        let (port, data) = rest.split_first_chunk()?;
        return Some((Err(u16::from_be_bytes(*port)), data));
    }
    let from = number(*kind, rest)?;
    let length = if *kind == IPV4 { 4 + 2 } else { 16 + 2 };
    Some((Ok(from), rest.get(length..)?))
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Type, address and port. `None`: it is neither an address nor a name that fits.
fn address(to: &TargetAddr) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let port = match to {
        TargetAddr::Ip(SocketAddr::V4(v4)) => {
            out.push(IPV4);
            out.extend(v4.ip().octets());
            v4.port()
        }
        TargetAddr::Ip(SocketAddr::V6(v6)) => {
            out.push(IPV6);
            out.extend(v6.ip().octets());
            v6.port()
        }
        TargetAddr::Name(name, port) => {
            out.extend([NAME, u8::try_from(name.len()).ok()?]);
            out.extend(name.as_bytes());
            *port
        }
        TargetAddr::Unix(_) | TargetAddr::Tunnel(..) => return None,
    };
    out.extend(port.to_be_bytes());
    Some(out)
}

/// The document's checks see to it that both fit.
fn credentials(user: &str, password: &str) -> Vec<u8> {
    let mut out = vec![1];
    for text in [user, password] {
        let text = &text.as_bytes()[..text.len().min(255)];
        out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        out.extend(text);
    }
    out
}

/// What a reply means (RFC 1928 section 6).
fn meaning(reply: u8) -> (Kind, &'static str) {
    match reply {
        1 => (Kind::ConnectionRefused, "general failure"),
        2 => (Kind::ConnectionRefused, "not allowed there"),
        3 => (Kind::DestinationUnavailable, "network unreachable"),
        4 => (Kind::DestinationUnavailable, "host unreachable"),
        5 => (Kind::ConnectionRefused, "connection refused"),
        6 => (Kind::ConnectionTimeout, "time ran out"),
        7 => (Kind::ConnectionRefused, "it does not do that"),
        8 => (
            Kind::ConnectionRefused,
            "it does not know this kind of address",
        ),
        _ => (Kind::ConnectionRefused, "a reply without a meaning"),
    }
}
