//! The client's side of CONNECT (RFC 9110 section 9.3.6): one request head, and the head of its answer. It is written and read by
//! hand, since what follows the answer is not HTTP any more.

use std::str;

use ::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{Fault, Question};
use crate::config::scalar::TargetAddr;
use crate::config::via::LoginSpec;
use crate::upstream::error::{Error, Kind, Side};

/// Bytes of the answer's head, interim ones with it.
pub(super) const MOST: usize = 16 * 1024;

/// `Via` of what begins here (RFC 9110 section 7.6.3).
const FIRST: &[u8] = b"1.1 evergate";

/// Asks a proxy for a tunnel. Returns what came after its answer.
pub(super) async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    question: Question<'_>,
    asked: &mut bool,
) -> Result<Bytes, Fault> {
    let Question { hop, to, login, .. } = question;
    stream.write_all(&request(question)).await?;
    stream.flush().await?;
    *asked = true;
    let mut read = BytesMut::with_capacity(1024);
    let mut looked = 0;
    loop {
        let Some(end) = memchr::memmem::find(&read[looked..], b"\r\n\r\n") else {
            looked = read.len().saturating_sub(3);
            if read.len() >= MOST {
                return Err(Fault::not_understood(format!(
                    "the head of its answer is over {MOST} bytes"
                )));
            }
            let room = MOST - read.len();
            if (&mut *stream).take(room as u64).read_buf(&mut read).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            continue;
        };
        let head = read.split_to(looked + end + 4);
        looked = 0;
        let status =
            status(&head).ok_or_else(|| Fault::not_understood("it does not answer in HTTP/1"))?;
        match status.as_u16() {
            200..=299 => return Ok(read.freeze()),
            // An interim one: its own follows.
            100 | 102..=199 => {}
            _ => return Err(Fault::Answered(refused(hop, to, status, login.is_some()))),
        }
    }
}

fn request(question: Question<'_>) -> Vec<u8> {
    let Question { to, login, .. } = question;
    let mut head = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
    if let Some(LoginSpec { user, password }) = login {
        let pair = STANDARD.encode(format!("{user}:{}", password.expose()));
        head.push_str(&format!("Proxy-Authorization: Basic {pair}\r\n"));
    }
    // A proxy that leads back to itself counts how often it was passed.
    head.push_str("Via: ");
    let passed = question.passed.map_or(FIRST, |passed| passed.as_bytes());
    [head.as_bytes(), passed, b"\r\n\r\n"].concat()
}

/// The status of `HTTP/1.x NNN …`.
fn status(head: &[u8]) -> Option<StatusCode> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let (minor, rest) = rest.split_first()?;
    let code = rest.strip_prefix(b" ")?.get(..3)?;
    let ends = matches!(rest.get(4), None | Some(b' '));
    (minor.is_ascii_digit() && ends).then_some(())?;
    StatusCode::from_bytes(code).ok()
}

fn refused(hop: &str, to: &TargetAddr, status: StatusCode, known: bool) -> Error {
    let kind = match status {
        StatusCode::GATEWAY_TIMEOUT => Kind::ConnectionTimeout,
        StatusCode::SERVICE_UNAVAILABLE => Kind::DestinationUnavailable,
        _ => Kind::ConnectionRefused,
    };
    let why = match (status, known) {
        (StatusCode::PROXY_AUTHENTICATION_REQUIRED, true) => {
            ": it does not take this user and password"
        }
        (StatusCode::PROXY_AUTHENTICATION_REQUIRED, false) => ": it wants a user and a password",
        _ => "",
    };
    let detail = format!("via {hop}: CONNECT {to} was answered with {status}{why}");
    let side = match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => Side::Us,
        _ => Side::Upstream,
    };
    Error::new(kind, side, detail).unsent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_read_strictly() {
        let status = |line: &str| status(format!("{line}\r\n\r\n").as_bytes()).map(|s| s.as_u16());
        assert_eq!(status("HTTP/1.1 200 Connection established"), Some(200));
        assert_eq!(status("HTTP/1.0 407"), Some(407));
        for wrong in [
            "HTTP/2 200 OK",
            "HTTP/1.1 20",
            "HTTP/1.1 2000",
            "HTTP/1.1  200",
            "SSH-2.0-x",
            "",
            "HTTP/1.1 099 x",
        ] {
            assert_eq!(status(wrong), None, "{wrong}");
        }
    }
}
