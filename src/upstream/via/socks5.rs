//! The client's side of SOCKS5 CONNECT (RFC 1928) with user and password (RFC 1929). Every answer says how long it is, so nothing
//! that follows is read.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{Fault, Question};
use crate::config::scalar::TargetAddr;
use crate::config::via::LoginSpec;
use crate::upstream::error::{Error, Kind};

const VERSION: u8 = 5;
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
    let answered = |kind, what: String| {
        Fault::Answered(Error::upstream(kind, format!("via {hop}: {what}")).unsent())
    };
    let unknown = |what: &str| {
        let detail = format!("via {hop}: {what}");
        Fault::Answered(Error::us(Kind::ConnectionRefused, detail).unsent())
    };
    let request = request(to).ok_or_else(|| {
        answered(
            Kind::DestinationUnavailable,
            format!("{to} cannot be asked for by SOCKS"),
        )
    })?;
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
    send(stream, &request).await?;
    *asked = true;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    if head[0] != VERSION {
        return Err(Fault::not_understood("it does not answer in SOCKS5"));
    }
    if head[1] != 0 {
        let (kind, why) = meaning(head[1]);
        let what = format!("CONNECT {to} was answered with reply {}: {why}", head[1]);
        return Err(answered(kind, what));
    }
    // The address that it dials from, which nobody here asks for.
    let length = match head[3] {
        1 => 4,
        4 => 16,
        3 => usize::from(stream.read_u8().await?),
        _ => {
            return Err(Fault::not_understood(
                "its reply has an address of no known kind",
            ));
        }
    };
    let mut rest = [0; 257];
    stream.read_exact(&mut rest[..length + 2]).await?;
    Ok(())
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// `None`: it is neither an address nor a name that fits.
fn request(to: &TargetAddr) -> Option<Vec<u8>> {
    let mut out = vec![VERSION, 1, 0];
    let port = match to {
        TargetAddr::Ip(std::net::SocketAddr::V4(v4)) => {
            out.push(1);
            out.extend(v4.ip().octets());
            v4.port()
        }
        TargetAddr::Ip(std::net::SocketAddr::V6(v6)) => {
            out.push(4);
            out.extend(v6.ip().octets());
            v6.port()
        }
        TargetAddr::Name(name, port) => {
            out.extend([3, u8::try_from(name.len()).ok()?]);
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
        7 => (Kind::ConnectionRefused, "it does not know CONNECT"),
        8 => (
            Kind::ConnectionRefused,
            "it does not know this kind of address",
        ),
        _ => (Kind::ConnectionRefused, "a reply without a meaning"),
    }
}
